//! The map of the house, checked: which room may use which, and that no file has outgrown its subject.
//!
//! Reads the sources as text. What stands in comments and in test modules is not looked at: a test may use any room.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms that every room may use: the words, and what errors, files and tests of crashes need everywhere.
const VOCABULARY: [&str; 4] = ["model", "error", "files", "failpoint"];

/// Which room may use which, beside itself and the vocabulary. `*` is every room; `room::part` only that part of it.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "admin::client",
            "admin::wire",
            "config",
            "discovery",
            "pki::describe",
            "app",
            "catalog::reconcile",
            "doctor",
        ],
    ),
    // It looks at a host from outside, with the eyes of the others: the configuration as `check` reads it, spec files
    // and the call as `spec lint` does, the service as a client of the admin socket, a backend by its identity file.
    (
        "doctor",
        &[
            "admin::client",
            "admin::wire",
            "app::load",
            "backend::Identity",
            "backend::identity_at",
            "config",
            "discovery::lint",
            "pki::bundle",
            "pki::describe",
        ],
    ),
    ("app", &["*"]),
    ("admin", &["volume", "host", "catalog", "backend", "pki", "discovery", "config"]),
    ("monitoring", &["volume", "catalog", "protocol", "transport", "admin", "process", "host"]),
    ("protocol", &["volume", "host", "transport"]),
    ("transport", &["host", "process"]),
    ("volume", &["catalog", "backend", "host", "process::clock"]),
    ("config", &[]),
    ("catalog", &[]),
    ("backend", &[]),
    ("host", &[]),
    ("discovery", &["pki"]),
    ("pki", &[]),
    ("process", &[]),
    ("model", &[]),
    ("error", &[]),
    ("files", &[]),
    ("failpoint", &[]),
];

/// How long a file may be before its tests.
const LINES: usize = 600;

#[test]
fn every_arrow_between_rooms_is_on_the_map() {
    let mut wrong = Vec::new();
    let mut rooms = BTreeSet::new();
    for source in sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == source.room) else {
            assert_eq!(source.room, "lib", "{} belongs to no room of the table", source.path.display());
            continue;
        };
        rooms.insert(source.room.clone());
        for used in paths(&source.code, &source.module) {
            if !is_allowed(&source.room, allowed, &used) {
                wrong.push(format!("{}: uses {used}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not on the map of the house (ARROWS in this test):\n{}", wrong.join("\n"));
    assert!(rooms.len() > 10, "the test looked only at {rooms:?}");
}

#[test]
fn no_file_outgrows_its_subject() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|source| (source.path, source.lines))
        .filter(|(_, lines)| *lines > LINES)
        .map(|(path, lines)| format!("{}: {lines} lines before its tests", path.display()))
        .collect();
    assert!(long.is_empty(), "a file of more than {LINES} lines has two subjects:\n{}", long.join("\n"));
}

/// One file of `src`.
struct Source {
    path: PathBuf,
    /// The module's path below the crate: `["volume", "mount"]`.
    module: Vec<String>,
    /// The first of it; `lib` and `main` for themselves.
    room: String,
    /// The text without comments and without its test module.
    code: String,
    /// How long the file is before its test module, comments included.
    lines: usize,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    assert!(files.len() > 10, "no sources in {}", root.display());
    let only_for_tests: Vec<_> = files.iter().flat_map(|file| test_modules(file)).collect();
    let is_test =
        |file: &PathBuf| only_for_tests.iter().any(|stem| file.with_extension("").starts_with(stem));
    files.iter().filter(|file| !is_test(file)).map(|file| read(&root, file)).collect()
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

/// The files, without extension, that a file declares by `#[cfg(test)] mod name;`.
fn test_modules(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let home = match file.file_stem().and_then(|stem| stem.to_str()) {
        Some("mod" | "lib" | "main") => file.parent().unwrap().to_path_buf(),
        _ => file.with_extension(""),
    };
    let declared = |pair: &[&str]| {
        let name =
            pair[1].strip_prefix("pub(crate) ").unwrap_or(pair[1]).strip_prefix("mod ")?.strip_suffix(';')?;
        (pair[0] == "#[cfg(test)]").then(|| home.join(name))
    };
    lines.windows(2).filter_map(declared).collect()
}

fn read(root: &Path, file: &Path) -> Source {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let opens_tests =
        |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    let before_tests = lines.windows(2).position(opens_tests).unwrap_or(lines.len());
    let code = lines[..before_tests].iter().map(|line| without_comment(line)).collect::<Vec<_>>().join("\n");
    let below = file.strip_prefix(root).unwrap().with_extension("");
    let mut module: Vec<_> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    let room = module[0].clone();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    Source { path: below.with_extension("rs"), module, room, code, lines: before_tests }
}

fn without_comment(line: &str) -> &str {
    let trimmed = line.trim_start();
    if trimmed.starts_with("//") {
        return "";
    }
    // A `//` after code that is not part of a URL in a string.
    line.match_indices("//").find(|(at, _)| !line[..*at].ends_with(':')).map_or(line, |(at, _)| &line[..at])
}

/// Every path from the crate's top that the code names: in `use`, with its braces spread, and in expressions.
fn paths(code: &str, module: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (start, keyword) in starts(code) {
        let mut rest = &code[start + keyword.len()..];
        let mut home = if keyword == "super::" { &module[..module.len().saturating_sub(1)] } else { &[] };
        while let Some(further) = rest.strip_prefix("super::") {
            rest = further;
            home = &home[..home.len().saturating_sub(1)];
        }
        spread(&home.join("::"), rest, &mut found);
    }
    found
}

/// Where paths from the top (or from a parent) begin, with the word they begin with.
fn starts(code: &str) -> Vec<(usize, &'static str)> {
    let mut starts = Vec::new();
    for keyword in ["crate::", "super::", "volhost::"] {
        for (at, _) in code.match_indices(keyword) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
                starts.push((at, keyword));
            }
        }
    }
    starts
}

/// Adds `prefix::` and what follows in `rest`: `a::b`, or `{a, b::{c, d}}`.
fn spread(prefix: &str, rest: &str, found: &mut BTreeSet<String>) {
    let rest = rest.trim_start();
    if let Some(inner) = rest.strip_prefix('{') {
        for part in braced(inner) {
            spread(prefix, part, found);
        }
        return;
    }
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    let path = match (prefix, word) {
        (_, "" | "self") => prefix.to_owned(),
        ("", word) => word.to_owned(),
        (prefix, word) => format!("{prefix}::{word}"),
    };
    match after.strip_prefix("::") {
        Some(further) => spread(&path, further, found),
        None if path.is_empty() => {}
        None => {
            found.insert(path);
        }
    }
}

/// The parts between commas up to the brace that closes.
fn braced(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&inner[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn is_allowed(room: &str, allowed: &[&str], used: &str) -> bool {
    let lies_in =
        |place: &str| used == place || used.strip_prefix(place).is_some_and(|rest| rest.starts_with("::"));
    lies_in(room)
        || VOCABULARY.iter().any(|place| lies_in(place))
        || allowed.iter().any(|place| *place == "*" || lies_in(place))
}

#[test]
fn the_reader_of_paths_finds_them_all() {
    let code = "use crate::volume::{mount::Counted, Service, self};\nuse crate::{error, host::{Caller, Via}};\n\
                fn f() { crate::pki::make(); super::sqlite::open(); super::super::app::run(); mycrate::no(); }";
    let module = ["catalog".to_owned(), "view".to_owned()];
    let found: Vec<_> = paths(code, &module).into_iter().collect();
    let expected = [
        "app::run",
        "catalog::sqlite::open",
        "error",
        "host::Caller",
        "host::Via",
        "pki::make",
        "volume",
        "volume::Service",
        "volume::mount::Counted",
    ];
    assert_eq!(found, expected);
    assert!(is_allowed("catalog", &[], "model::volume::VolumeName"));
    assert!(!is_allowed("catalog", &[], "volume::Service"));
    assert!(!is_allowed("cli", &["admin::client"], "admin::clients"));
    assert_eq!(without_comment("let a = \"https://b\"; // crate::c"), "let a = \"https://b\"; ");
}
