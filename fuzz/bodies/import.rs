//! A catalog's text, as `catalog import` reads it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use tempfile::TempDir;
use volhost::app::recovery;
use volhost::catalog::text;
use volhost::config::{self, Paths};

/// Imports the text as it is, and once more with a last line that counts its records: nobody finds a checksum by chance,
/// and what stands before it is what can be wrong.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    imported(text);
    imported(&sealed(text));
}

/// What is taken is in the catalog, and exported again to the same text; what is refused leaves no catalog.
fn imported(text: &str) {
    let parsed = text::parse(text.as_bytes());
    let root = match (&parsed, TempDir::new()) {
        // The whole way is slow, and ends at the text: most of what is refused is not sent along it.
        (Err(_), _) if !digest(&SHA256, text.as_bytes()).as_ref().starts_with(&[0]) => return,
        (_, root) => root.unwrap(),
    };
    let paths = Paths::new(Some(root.path()), true, |_| None).unwrap();
    let config = config::load(&paths, None).unwrap().config;
    fs::create_dir_all(paths.catalog().parent().unwrap()).unwrap();
    let counts = recovery::import(&config, Path::new("catalog.jsonl"), text);
    let Ok(parsed) = parsed else {
        counts.unwrap_err();
        assert!(!paths.catalog().exists(), "a text was refused and left a catalog");
        return;
    };
    counts.unwrap();
    let exported = recovery::export(&config).unwrap();
    assert_eq!(text::compose(&parsed.view, None).unwrap(), exported, "the catalog holds something else");
    let again = text::parse(exported.as_bytes()).unwrap();
    assert_eq!(again.view, parsed.view, "what was exported is read as something else");
    assert_eq!(again.records, exported.lines().count() - 2);

    // A copy says when it was made.
    let copy = text::compose(&parsed.view, parsed.at).unwrap();
    let again = text::parse(copy.as_bytes()).unwrap();
    assert_eq!((again.view, again.at), (parsed.view, parsed.at));
}

/// The text's whole lines, with the last one that belongs to them.
fn sealed(text: &str) -> String {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    let mut lines: Vec<_> = text[..end].split_inclusive('\n').collect();
    if lines.last().is_some_and(|last| last.contains("\"sha256\"")) {
        lines.pop();
    }
    let mut text = lines.concat();
    let sum = digest(&SHA256, text.as_bytes()).as_ref().iter().fold(String::new(), |mut sum, byte| {
        let _ = write!(sum, "{byte:02x}");
        sum
    });
    let _ = writeln!(text, "{{\"records\":{},\"sha256\":\"{sum}\"}}", lines.len().saturating_sub(1));
    text
}
