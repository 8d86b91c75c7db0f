//! The README and `docs` say what the program does: their tables are compared with the program's own, their commands are
//! run, and their links lead somewhere.
//!
//! What an engine does with volhost is told by `engine` and `hosts`; here is looked at what a reader types and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use volhost::config::fields::{self, Field, Takes};
use volhost::model::options::TABLE;

use crate::harness::wait::run;
use crate::harness::{Daemon, scratch};

/// The README and every page of `docs`, one after the other.
fn readme() -> String {
    pages().into_values().collect::<Vec<_>>().join("\n")
}

/// The text of each page, by its path.
fn pages() -> BTreeMap<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().unwrap();
    let (mut pages, mut directories) = (vec![root.join("README.md")], vec![root.join("docs")]);
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { pages.push(path) }
        }
    }
    pages.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The first code block of a kind (`yaml`) after a heading.
pub(crate) fn block(heading: &str, kind: &str) -> String {
    blocks(heading, kind).swap_remove(0)
}

/// A command line, the machine that it is typed on (`web1# docker volume ls`), and the lines that it prints there.
pub(crate) struct Typed {
    /// The machine.
    pub on: String,
    /// The command line, in one line.
    pub command: String,
    /// What is shown below it.
    pub output: Vec<String>,
}

/// The command lines of a heading's section, each with its machine.
pub(crate) fn commands(heading: &str) -> Vec<(String, String)> {
    let all = typed(&blocks(heading, "console").concat());
    all.into_iter().map(|Typed { on, command, output: _ }| (on, command)).collect()
}

/// Those of the block after a marker such as `<!-- fleet -->`.
pub(crate) fn marked(marker: &str) -> Vec<Typed> {
    let text = readme();
    let (_, after) = text.split_once(&format!("<!-- {marker} -->\n```console\n")).unwrap();
    typed(after.split("```").next().unwrap())
}

/// What stands in the block of a kind after a marker such as `<!-- three nodes: member -->`.
#[cfg(feature = "etcd")]
pub(crate) fn after(marker: &str, kind: &str) -> String {
    let text = readme();
    let (_, after) = text.split_once(&format!("<!-- {marker} -->\n```{kind}\n")).unwrap();
    after.split("```").next().unwrap().to_owned()
}

fn typed(console: &str) -> Vec<Typed> {
    let mut all: Vec<Typed> = Vec::new();
    for line in console.replace("\\\n", "").lines() {
        match line.split_once("# ").filter(|(on, _)| on.bytes().all(|b| b.is_ascii_alphanumeric())) {
            Some((on, command)) => {
                all.push(Typed { on: on.into(), command: command.trim().into(), output: Vec::new() });
            }
            None => all.last_mut().expect("a command stands before what it prints").output.push(line.into()),
        }
    }
    all
}

/// The code blocks of a kind in a heading's section, whatever the heading's level.
fn blocks(heading: &str, kind: &str) -> Vec<String> {
    let text = format!("\n{}", readme());
    let (_, after) = text.split_once(&format!("# {heading}\n")).unwrap();
    let section = after.split("\n#").next().unwrap();
    let opened = format!("```{kind}\n");
    let begins = section.split(&*opened).skip(1);
    begins.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// The rows of the table after a marker such as `<!-- options -->`, without its header.
pub(crate) fn table(marker: &str) -> Vec<Vec<String>> {
    let text = readme();
    let (_, after) = text.split_once(&format!("<!-- {marker} -->\n")).unwrap();
    let rows: Vec<_> = after.lines().take_while(|line| line.starts_with('|')).skip(2).map(cells).collect();
    assert!(!rows.is_empty(), "no table after {marker}");
    rows
}

fn cells(row: &str) -> Vec<String> {
    // A bar within a cell is escaped.
    let row = row.trim().trim_start_matches('|').trim_end_matches('|').replace("\\|", "\u{0}");
    row.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

/// What stands between backquotes.
pub(crate) fn quoted(text: &str) -> Vec<String> {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    flat.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a row's first cell is this word, quoted.
fn named<'a>(rows: &'a [Vec<String>], word: &str) -> Option<&'a Vec<String>> {
    rows.iter().find(|row| row[0] == format!("`{word}`"))
}

#[test]
fn the_options_are_those_of_the_program() {
    let expected: Vec<Vec<String>> = TABLE
        .iter()
        .map(|row| vec![format!("`{}`", row.name), row.value.into(), row.default.into(), row.doc.into()])
        .collect();
    assert_eq!(table("options"), expected);
}

#[test]
fn every_field_of_both_files_is_told_and_no_other() {
    let row = |prefix: &str, field: &Field| {
        [
            format!("`{prefix}{}`", field.name),
            field.default.into(),
            field.doc.into(),
            field.applied.as_str().into(),
        ]
    };
    let mut expected = Vec::new();
    for field in fields::CONFIG {
        expected.push(row("", field).to_vec());
        let (prefix, below) = match field.takes {
            Takes::Object(below) => (format!("{}.", field.name), below),
            Takes::Hosts(below) => (format!("{}.NAME.", field.name), below),
            _ => continue,
        };
        expected.extend(below.iter().map(|field| row(&prefix, field).to_vec()));
    }
    assert_eq!(table("configuration"), expected);
    let expected: Vec<_> = fields::BACKEND.iter().map(|field| row("", field)[..3].to_vec()).collect();
    assert_eq!(table("map"), expected);
}

#[test]
fn every_check_of_the_doctor_is_told_and_no_other() {
    let mut told: Vec<_> = table("doctor").iter().flat_map(|row| quoted(&row[0])).collect();
    told.dedup();
    assert_eq!(told, volhost::doctor::CHECKS);
}

#[test]
fn every_command_and_each_of_its_flags_is_told() {
    let rows = table("commands");
    let mut commands = Vec::new();
    leaves(&mut Vec::new(), &mut commands);
    assert!(commands.len() > 10, "{commands:?}");
    let mut missing = Vec::new();
    for (command, flags) in &commands {
        let row = rows.iter().find(|row| {
            let words: Vec<_> = row[0].trim_matches('`').split(' ').skip(1).collect();
            words.starts_with(&command.iter().map(String::as_str).collect::<Vec<_>>())
        });
        match row {
            None => missing.push(command.join(" ")),
            Some(row) => missing.extend(
                flags.iter().filter(|flag| !row[1].contains(*flag)).map(|flag| format!("{command:?} {flag}")),
            ),
        }
    }
    assert!(missing.is_empty(), "the README's table of commands lacks {missing:?}");
    assert_eq!(rows.len(), commands.len(), "the README's table has commands that the program has not");
}

/// Every command without further commands below it, with its own long flags, as its help tells them.
fn leaves(words: &mut Vec<String>, found: &mut Vec<(Vec<String>, Vec<String>)>) {
    let help = run(Command::new(env!("CARGO_BIN_EXE_volhost")).args(&*words).arg("--help")).ok();
    let below: Vec<String> = section(&help, "Commands:")
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect();
    if below.is_empty() {
        let flags = section(&help, "Options:").filter_map(|line| {
            let (_, flag) = line.split_once("--").filter(|_| line.trim_start().starts_with('-'))?;
            flag.split([' ', '\n']).next().map(|name| format!("--{name}"))
        });
        found.push((words.clone(), flags.filter(|flag| flag != "--help").collect()));
        return;
    }
    for name in below {
        words.push(name);
        leaves(words, found);
        words.pop();
    }
}

/// The lines of a section of a help text.
fn section<'a>(help: &'a str, title: &'a str) -> impl Iterator<Item = &'a str> {
    let from = help.lines().skip_while(move |line| *line != title).skip(1);
    from.take_while(|line| line.is_empty() || line.starts_with(' '))
}

#[test]
fn the_program_understands_every_command_that_is_quoted() {
    let text = readme();
    let prompted = text.lines().filter_map(|line| {
        let (prompt, command) = line.split_once("# ")?;
        (prompt.is_empty() || prompt.bytes().all(|b| b.is_ascii_alphanumeric()))
            .then(|| command.trim().to_owned())
    });
    let spans = quoted(&text.replace("```", "")).into_iter();
    let commands: BTreeSet<String> = prompted
        .chain(spans)
        .filter(|command| command.starts_with("volhost ") && !command.starts_with("volhost serve"))
        .filter(|command| command != "volhost help COMMAND")
        .map(|command| command.replace(" SHELL", " bash").replace("[PAGE]", "serve"))
        .collect();
    assert!(commands.len() > 30, "{commands:?}");
    let mut names = Vec::new();
    leaves(&mut Vec::new(), &mut names);
    let dir = scratch();
    for command in commands {
        let words = [" | ", " #", " > "].iter().fold(&*command, |text, end| text.split(end).next().unwrap());
        let words: Vec<_> = words.split_whitespace().skip(1).collect();
        // A sentence may name a command without its arguments.
        if names.iter().any(|(name, _)| *name == words) {
            continue;
        }
        // What is written to the system's directories is written to the test's.
        let words = words.iter().map(|word| match word.strip_prefix("/usr/") {
            Some(below) => dir.path().join("usr").join(below).into_os_string(),
            None => word.into(),
        });
        let mut volhost = Command::new(env!("CARGO_BIN_EXE_volhost"));
        volhost.current_dir(dir.path()).args(words).arg("--root").arg(dir.path());
        let status = volhost.output().unwrap().status;
        assert_ne!(status.code(), Some(2), "`{command}` is not understood");
    }
}

/// The anchors of a page's headings, as a viewer of Markdown makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut in_block = false;
    let headings = text.lines().filter(|line| {
        in_block ^= line.starts_with("```");
        !in_block && line.starts_with('#')
    });
    headings
        .map(|line| {
            let words = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
            words.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect()
}

#[test]
fn no_link_leads_nowhere() {
    let pages = pages();
    let (mut looked_at, mut dead) = (0, Vec::new());
    for (page, text) in &pages {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            looked_at += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let Ok(path) = path.canonicalize() else {
                dead.push(format!("{}: {target}", page.display()));
                continue;
            };
            if !anchor.is_empty() && !pages.get(&path).is_some_and(|text| anchors(text).contains(anchor)) {
                dead.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(looked_at > 50 && dead.is_empty(), "of {looked_at} links these lead nowhere: {dead:#?}");
}

#[test]
fn the_readme_is_short_enough_to_be_finished() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.lines().count() <= 300, "it has {} lines", text.lines().count());
    let long: Vec<_> = text.lines().filter(|line| line.chars().count() > 120).collect();
    assert!(long.is_empty(), "lines of more than 120 characters: {long:#?}");
}

#[test]
fn the_tests_that_are_named_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files: BTreeSet<_> = quoted(&readme())
        .into_iter()
        .filter(|word| ["tests/", "src/", "systemd/", ".ci/"].iter().any(|start| word.starts_with(start)))
        .map(|word| word.split(' ').next().unwrap().to_owned())
        .collect();
    let missing: Vec<_> = files.iter().filter(|file| !root.join(file).exists()).collect();
    assert!(files.len() > 10 && missing.is_empty(), "the README names files that are not there: {missing:?}");
}

/// The rows of the table of engines, as `tests/engines` reads them: what, the tests with Docker Engine, those with
/// podman, and how podman differs.
fn engine_rows() -> Vec<[String; 4]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/engines.tsv");
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let row = [(); 4].map(|()| fields.next().unwrap_or_default());
        assert!(fields.next().is_none() && !row[2].is_empty(), "not three or four fields: {line}");
        row
    };
    text.lines().filter(|line| !line.starts_with('#')).map(row).collect()
}

#[test]
fn the_table_of_engines_has_the_rows_that_are_tested() {
    let (rows, told) = (engine_rows(), table("engines"));
    let tested: Vec<_> = rows.iter().map(|row| &row[0]).collect();
    assert_eq!(told.iter().map(|row| &row[0]).collect::<Vec<_>>(), tested);
    for cell in told.iter().flat_map(|row| &row[1..]) {
        let known = ["yes", "no", "differs (", "– ("];
        assert!(known.iter().any(|word| cell.starts_with(word)), "{cell:?} is no word of tests/engines");
    }
    let mut notes: Vec<&str> = Vec::new();
    for note in rows.iter().map(|row| &*row[3]).filter(|note| !note.is_empty()) {
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    let numbered = |(at, note): (usize, &&str)| format!("{}. {note}\n", at + 1);
    let notes: String = notes.iter().enumerate().map(numbered).collect();
    assert!(readme().contains(&format!("|\n\n{notes}\n")), "the notes below the table are not\n{notes}");
}

/// Files whose tests start an engine and run with this machine's own alone: for want of a program in the other systems'
/// trees, or because the engine is only the witness of what volhost does.
const OWN_ENGINE_ALONE: [&str; 8] =
    ["addresses", "bad_days", "doctor", "fleet", "gluster", "rollover", "swarm", "tour"];

#[test]
fn every_test_that_starts_an_engine_is_run_with_every_engine() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration");
    let (mut all, mut starting) = (BTreeSet::new(), BTreeSet::new());
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap();
        // What is looked for stands here, too.
        if path.is_dir() || module == "readme" || OWN_ENGINE_ALONE.contains(&module) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for test in text.split("#[test]\nfn ").skip(1) {
            let name = format!("{module}::{}", test.split('(').next().unwrap());
            if ["Engine::start(", "Engine::with_options(", "Podman::new("].iter().any(|s| test.contains(s)) {
                starting.insert(name.clone());
            }
            all.insert(name);
        }
    }
    let listed =
        |text: &str| text.split(' ').filter(|test| *test != "-").map(str::to_owned).collect::<Vec<_>>();
    let rows = engine_rows();
    let mapped: BTreeSet<_> =
        rows.iter().flat_map(|row| [listed(&row[1]), listed(&row[2])].concat()).collect();
    let missing: Vec<_> = starting.difference(&mapped).collect();
    assert!(starting.len() > 20 && missing.is_empty(), "no row of tests/data/engines.tsv has {missing:?}");
    let unknown: Vec<_> = mapped.difference(&all).collect();
    assert!(unknown.is_empty(), "tests/data/engines.tsv names tests that are not there: {unknown:?}");
}

#[test]
fn every_bad_day_that_is_told_is_a_test_and_the_other_way_round() {
    let tests = |file: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration").join(file);
        let text = std::fs::read_to_string(path.with_extension("rs")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let named = lines.windows(2).filter(|pair| pair[0] == "#[test]").filter_map(|pair| {
            Some(format!("{file}::{}", pair[1].strip_prefix("fn ")?.strip_suffix("() {")?))
        });
        named.collect::<BTreeSet<_>>()
    };
    let mut told = BTreeSet::new();
    for row in table("bad days") {
        assert!(row.len() == 5 && row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        let test = quoted(&row[4]).pop().unwrap();
        let file = test.split("::").next().unwrap();
        assert!(tests(file).contains(&test), "there is no test {test}");
        told.insert(test);
    }
    let missing: Vec<_> = tests("bad_days").difference(&told).cloned().collect();
    assert!(missing.is_empty(), "the README does not tell of {missing:?}");
}

#[test]
fn the_tour_of_one_host_shows_what_the_program_prints() {
    let daemon = Daemon::start();
    let mut engine = daemon.tls();
    let mut call = |rpc: &str, body: Value| {
        let answer = engine.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap();
        assert_eq!(answer.status, 200, "{rpc}: {}", answer.err());
        answer.json()
    };
    // What `docker volume create`, `docker run` and `docker volume inspect` ask.
    call("Create", json!({ "Name": "db" }));
    let volume = call("Get", json!({ "Name": "db" }));
    let told = readme();
    // As `docker volume inspect` shows it.
    for field in volume["Volume"]["Status"].as_object().unwrap().keys() {
        assert!(told.contains(&format!("            \"{field}\":")), "Status has {field}");
    }
    call("Mount", json!({ "Name": "db", "ID": "46de83de098f" }));
    shown(&daemon, &["mount", "ls"]);
    shown(&daemon, &["host", "ls"]);
    call("Unmount", json!({ "Name": "db", "ID": "46de83de098f" }));
    call("Remove", json!({ "Name": "db" }));
    shown(&daemon, &["volume", "ls", "--trash"]);
    assert_eq!(daemon.cli(&["volume", "restore", "db"]).ok(), "db");
    let status = daemon.cli(&["status"]).ok();
    for line in status.lines().filter(|line| line.starts_with("  ")) {
        let label = line.get(..16).unwrap();
        assert!(told.contains(&format!("\n{label}")), "`status` tells {label:?}");
    }
}

/// The header that a command prints is the one that the README shows for it.
fn shown(daemon: &Daemon<'_>, words: &[&str]) {
    let printed = daemon.cli(words).ok();
    let header: Vec<_> = printed.lines().next().unwrap().split_whitespace().map(str::to_owned).collect();
    let text = readme();
    let command = format!("# volhost {}", words.join(" "));
    let mut lines = text.lines().skip_while(|line| !line.ends_with(&command)).skip(1);
    let told: Vec<_> = lines.next().unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    assert_eq!(told, header, "{command}");
}

#[test]
fn the_json_fields_are_those_that_are_told() {
    let daemon = Daemon::start();
    let rows = table("results");
    let mut answers: BTreeMap<&str, Value> = BTreeMap::new();
    let mut ask = |name: &'static str, words: &[&str]| {
        let value = daemon.cli(&[words, &["--json"]].concat()).json();
        let one = value.as_array().map_or(value.clone(), |list| list.last().cloned().unwrap());
        answers.insert(name, one);
    };
    ask("volume create", &["volume", "create", "a"]);
    ask("volume ls", &["volume", "ls"]);
    let mount = daemon.tls().call("/VolumeDriver.Mount", &json!({ "Name": "a", "ID": "one" })).unwrap();
    assert_eq!(mount.status, 200);
    ask("volume inspect", &["volume", "inspect", "a"]);
    ask("mount ls", &["mount", "ls"]);
    ask("mount release", &["mount", "release", "a", "node1", "--all", "--yes"]);
    ask("volume rm", &["volume", "rm", "a"]);
    ask("volume ls --trash", &["volume", "ls", "--trash"]);
    ask("volume restore", &["volume", "restore", "a"]);
    ask("backend ls", &["backend", "ls"]);
    ask("host ls", &["host", "ls"]);
    ask("status", &["status"]);
    let bundle = daemon.path("web1.tar");
    let bundle = bundle.to_str().unwrap();
    ask("host add", &["host", "add", "web1", "--advertise", "https://store1:7443", "-o", bundle]);
    ask("host revoke", &["host", "revoke", "web1"]);
    ask("pki install", &["pki", "install", &signed(&daemon)]);
    ask("pki rollover start", &["pki", "rollover", "start"]);
    ask("pki rollover status", &["pki", "rollover", "status"]);
    ask("pki rollover finish", &["pki", "rollover", "finish", "--force", "--yes"]);
    for (command, answer) in answers {
        let row = rows.iter().find(|row| quoted(&row[0]).iter().any(|name| name == command));
        let row = row.unwrap_or_else(|| panic!("no row for {command}"));
        let mut told = row[1].clone();
        // The fields of an object within the object.
        if let Some((before, within)) = row[1].split_once("`directory` {") {
            let (within, after) = within.split_once('}').unwrap();
            assert_eq!(fields_of(&answer["directory"]), quoted(within).into_iter().collect(), "{command}");
            told = format!("{before}`directory`{after}");
        }
        if told.contains("as `volume ls` lists them") {
            told.push_str(&named_row(&rows, "volume ls")[1]);
        }
        let told = quoted(&told).into_iter().filter(|name| !["volume ls", "mount ls"].contains(&&**name));
        assert_eq!(fields_of(&answer), told.collect(), "{command}");
    }
}

fn fields_of(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

/// The file of a certificate that this daemon's own CA signed on its request.
fn signed(daemon: &Daemon<'_>) -> String {
    let file = |name: &str| daemon.path(name).to_str().unwrap().to_owned();
    let (request, certificate) = (file("server.csr"), file("server.crt"));
    daemon.cli(&["pki", "csr", "server", "-o", &request]).ok();
    daemon.cli(&["pki", "sign", &request, "-o", &certificate]).ok();
    certificate
}

fn named_row<'a>(rows: &'a [Vec<String>], word: &str) -> &'a Vec<String> {
    named(rows, word).unwrap()
}
