//! A whole catalog as text: one JSON object a line, for exports and for the copies that backends keep.
//!
//! The first line says what the file is, the last one how many records there are and their SHA-256, so that a file
//! that was cut off or altered is never taken for a whole one. Between them stands each record under its key, sorted:
//! equal catalogs have equal texts. Only converts; reads and writes no file.

use std::collections::HashSet;
use std::fmt::Write as _;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::View;
use super::record::{InvalidRow, Loader, Row, Table, Unwritable, encode};
use super::rules::moment;

/// What the first line says under `volhost`.
const KIND: &str = "catalog";

/// A catalog that was read from its text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// What it holds. Every volume is visible.
    pub view: View,
    /// When the copy was made; an export does not say.
    pub at: Option<OffsetDateTime>,
    /// How many records it has.
    pub records: usize,
}

/// Why a text is no whole catalog.
#[derive(Debug, thiserror::Error)]
#[error("line {line}")]
pub struct InvalidText {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    #[source]
    pub fault: LineFault,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    /// It does not begin as a catalog's text does.
    #[error("it is not the first line of a catalog that volhost exported")]
    Foreign,
    /// A later volhost wrote it.
    #[error(
        "it has the version {0}, and this volhost knows 1: it was written by a newer volhost; use that one"
    )]
    Newer(u64),
    /// It is no line of a catalog.
    #[error("it is not understood")]
    Malformed(#[source] serde_json::Error),
    /// It names a table that is not there.
    #[error("there is no table {0:?}")]
    Table(String),
    /// An earlier line has this key.
    #[error("the record {0} stands there a second time")]
    Duplicate(String),
    /// Its record is not understood.
    #[error(transparent)]
    Row(#[from] InvalidRow),
    /// The text ends without its last line.
    #[error("the text ends here without the line that counts the records: it was cut off")]
    CutOff,
    /// The last line counts other records.
    #[error("it counts {told} records, and {found} are there")]
    Count {
        /// What it says.
        told: u64,
        /// What was found.
        found: usize,
    },
    /// The last line has another checksum.
    #[error("the checksum is another one: a record was altered")]
    Checksum,
    /// Something follows the last line.
    #[error("something follows the line that counts the records")]
    Trailing,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct First {
    volhost: String,
    v: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    table: String,
    key: Vec<String>,
    record: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Last {
    records: u64,
    sha256: String,
}

/// Writes a catalog down; `at` is when a copy was made.
pub fn compose(view: &View, at: Option<OffsetDateTime>) -> Result<String, Unwritable> {
    let writes: Vec<_> = view.records().collect();
    let mut rows = writes.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let place = |row: &Row<'_>| Table::ALL.iter().position(|table| *table == row.table);
    rows.sort_by(|one, other| (place(one), &one.key).cmp(&(place(other), &other.key)));
    let at = at.and_then(|at| moment(at).format(&Rfc3339).ok());
    let mut text = match at {
        None => format!("{{\"volhost\":\"{KIND}\",\"v\":1}}\n"),
        Some(at) => format!("{{\"volhost\":\"{KIND}\",\"v\":1,\"at\":\"{at}\"}}\n"),
    };
    for Row { table, key, record } in &rows {
        let key = Value::from(key.iter().map(|part| &**part).collect::<Vec<_>>());
        let record = record.as_deref().unwrap_or("null");
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{{\"table\":\"{}\",\"key\":{key},\"record\":{record}}}", table.name());
    }
    let sum = sum(&text);
    let _ = writeln!(text, "{{\"records\":{},\"sha256\":\"{sum}\"}}", rows.len());
    Ok(text)
}

/// Reads a catalog's text: all of it, or what is wrong and where.
pub fn parse(text: &str) -> Result<Parsed, InvalidText> {
    let mut lines = text.split_inclusive('\n').enumerate();
    let wrong = |line: usize, fault: LineFault| InvalidText { line: line + 1, fault };
    let (_, head) = lines.next().ok_or_else(|| wrong(0, LineFault::Foreign))?;
    let at = first(head).map_err(|fault| wrong(0, fault))?;
    let mut loader = Loader::default();
    let mut taken: HashSet<(&str, Vec<String>)> = HashSet::new();
    let (mut read, mut last) = (head.len(), 0);
    for (number, line) in lines {
        last = number;
        let before = read;
        read += line.len();
        if !line.ends_with('\n') {
            return Err(wrong(number, LineFault::CutOff));
        }
        if let Ok(end) = serde_json::from_str::<Last>(line) {
            if end.records != taken.len() as u64 {
                return Err(wrong(number, LineFault::Count { told: end.records, found: taken.len() }));
            }
            if text.get(..before).is_none_or(|before| sum(before) != end.sha256) {
                return Err(wrong(number, LineFault::Checksum));
            }
            if read != text.len() {
                return Err(wrong(number + 1, LineFault::Trailing));
            }
            let records = taken.len();
            let view = loader.finish().map_err(|fault| wrong(number, fault.into()))?;
            return Ok(Parsed { view, at, records });
        }
        let Line { table, key, record } =
            serde_json::from_str(line).map_err(|error| wrong(number, LineFault::Malformed(error)))?;
        let Some(table) = Table::ALL.into_iter().find(|known| known.name() == table) else {
            return Err(wrong(number, LineFault::Table(table)));
        };
        let parts: Vec<_> = key.iter().map(String::as_str).collect();
        loader.take(table, &parts, &record.to_string()).map_err(|fault| wrong(number, fault.into()))?;
        let place = format!("{}/{}", table.name(), key.join("/"));
        if !taken.insert((table.name(), key)) {
            return Err(wrong(number, LineFault::Duplicate(place)));
        }
    }
    Err(wrong(last, LineFault::CutOff))
}

fn first(line: &str) -> Result<Option<OffsetDateTime>, LineFault> {
    let value: Value = serde_json::from_str(line).map_err(|_| LineFault::Foreign)?;
    if value.get("volhost").and_then(Value::as_str) != Some(KIND) {
        return Err(LineFault::Foreign);
    }
    match value.get("v").and_then(Value::as_u64) {
        Some(1) => {}
        Some(newer) => return Err(LineFault::Newer(newer)),
        None => return Err(LineFault::Foreign),
    }
    let First { volhost: _, v: _, at } = serde_json::from_value(value).map_err(LineFault::Malformed)?;
    at.map(|at| OffsetDateTime::parse(&at, &Rfc3339).map(moment).map_err(|_| LineFault::Foreign)).transpose()
}

fn sum(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    const SAMPLE: &[(Table, &[&str], &str)] = &[
        (
            Table::Volumes,
            &["db"],
            r#"{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"fast","options":{"mode":"0750"},"created_at":"2026-01-02T03:04:05.678Z","known_to":["web1"]}"#,
        ),
        (
            Table::Mounts,
            &["db", "web1", "a/\"b", "3"],
            r#"{"v":1,"count":2,"since":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (Table::Hosts, &["web1"], r#"{"v":1,"activation":3,"revoked_at":"2026-01-02T03:04:05.678Z"}"#),
        (
            Table::Backends,
            &["fast"],
            r#"{"v":1,"id":"3b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","state":"established","mountpoint":"/mnt/fast"}"#,
        ),
    ];

    fn sample() -> View {
        let mut loader = Loader::default();
        for (table, key, record) in SAMPLE {
            loader.take(*table, key, record).unwrap();
        }
        loader.finish().unwrap()
    }

    #[test]
    fn a_text_is_read_back_and_written_again_to_the_letter() {
        let at = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        for at in [None, Some(at)] {
            let text = compose(&sample(), at).unwrap();
            let parsed = parse(&text).unwrap();
            assert_eq!((&parsed.view, parsed.at, parsed.records), (&sample(), at, SAMPLE.len()));
            assert_eq!(compose(&parsed.view, at).unwrap(), text);
        }
        assert_eq!(parse(&compose(&View::default(), None).unwrap()).unwrap(), Parsed::default());
    }

    #[test]
    fn a_text_cut_off_anywhere_or_with_a_bit_turned_is_refused() {
        let text = compose(&sample(), None).unwrap();
        for end in 0..text.len() {
            assert!(parse(text.get(..end).unwrap()).is_err(), "cut off at {end}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(turned) = String::from_utf8(bytes) {
                assert!(parse(&turned).is_err(), "turned at {at}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let text = compose(&sample(), None).unwrap();
        let lines: Vec<_> = text.lines().collect();
        let cases: &[(String, &str)] = &[
            (String::new(), "line 1: it is not the first line"),
            (r#"{"Name":"x"}"#.to_owned() + "\n", "line 1: it is not the first line"),
            (text.replace("\"v\":1}\n{\"table", "\"v\":2}\n{\"table"), "line 1: it has the version 2"),
            (text.replace("\"volumes\"", "\"spells\""), "line 2: there is no table \"spells\""),
            (
                text.replace("{\"table\":\"hosts\"", "{\"table\":\"hosts\",\"x\":1"),
                "line 4: it is not understood",
            ),
            (
                text.replace("\"backend\":\"fast\"", "\"backend\":\"../x\""),
                "line 2: row volumes/db has a backend",
            ),
            (text.replace("fast", "slow"), "line 6: the checksum is another one"),
            (
                format!("{}\n{}\n{}\n", lines[0], lines[1], lines[1]),
                "line 3: the record volumes/db stands there",
            ),
            (format!("{}\n{}\n", lines[0], lines[1]), "line 2: the text ends here"),
            (
                format!("{}\n{}\n{}\n", lines[0], lines[1], lines[5]),
                "line 3: it counts 4 records, and 1 are there",
            ),
            (format!("{text}{}\n", lines[1]), "line 7: something follows"),
        ];
        for (text, expected) in cases {
            let told = chain(&parse(text).unwrap_err());
            assert!(told.contains(expected), "{told}, not {expected}");
        }
    }
}
