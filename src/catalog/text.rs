//! A whole catalog as text: one JSON object per line, for exports and for the copies that backends keep.
//!
//! The first line identifies the file; the last one holds the number of records and their SHA-256, so that a file that
//! was cut off or altered is never taken for a whole one. Between them stand the records with their keys, in a fixed
//! order: equal catalogs have equal texts. This module only converts; it opens no file.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, BufRead};

use crate::model::timestamp;
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::View;
use super::record::{InvalidRow, Loader, Row, Table, Unwritable, encode};
use super::rules::recorded_time;

/// The value of `volhost` in the first line.
const KIND: &str = "catalog";

/// A catalog that was read from its text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parsed {
    /// The content. Every volume is visible.
    pub view: View,
    /// When the copy was made; `None` for an export.
    pub at: Option<OffsetDateTime>,
    /// The number of records.
    pub records: usize,
}

/// Why a text is not a whole catalog.
#[derive(Debug, thiserror::Error)]
#[error("line {line}")]
pub struct InvalidText {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with the line.
    #[source]
    pub fault: LineFault,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineFault {
    /// It does not begin like the text of a catalog.
    #[error("it is not the first line of a catalog that volhost exported")]
    Foreign,
    /// A later volhost wrote it.
    #[error(
        "it has the version {0}, and this volhost knows 1: it was written by a newer volhost; use that one"
    )]
    Newer(u64),
    /// It is not a line of a catalog.
    #[error("it is not understood")]
    Malformed(#[source] serde_json::Error),
    /// It cannot be read, or is not UTF-8.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// It names a table that does not exist.
    #[error("there is no table {0:?}")]
    Table(String),
    /// An earlier line has this key.
    #[error("the record {0} stands there a second time")]
    Duplicate(String),
    /// Its record cannot be read.
    #[error(transparent)]
    Row(#[from] InvalidRow),
    /// The text ends without its last line.
    #[error("the text ends here without the line that counts the records: it was cut off")]
    CutOff,
    /// The last line has a wrong number of records.
    #[error("it counts {told} records, and {found} are there")]
    Count {
        /// The number that it gives.
        told: u64,
        /// The number that was read.
        found: usize,
    },
    /// The last line has a wrong checksum.
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

/// Returns the lines of a catalog's text one by one, so that a large catalog is not held in memory twice. `at` is the
/// time of a copy.
pub fn lines(
    view: &View,
    at: Option<OffsetDateTime>,
) -> impl Iterator<Item = Result<String, Unwritable>> + '_ {
    let at = at.map(|at| timestamp::rfc3339_exact(recorded_time(at)));
    let mut first = Some(match at {
        None => format!("{{\"volhost\":\"{KIND}\",\"v\":1}}\n"),
        Some(at) => format!("{{\"volhost\":\"{KIND}\",\"v\":1,\"at\":\"{at}\"}}\n"),
    });
    let mut records = view.records();
    let (mut sum, mut count, mut ended) = (Context::new(&SHA256), 0_usize, false);
    std::iter::from_fn(move || {
        let line = match first.take() {
            Some(first) => first,
            None if ended => return None,
            None => match records.next().as_ref().map(encode) {
                Some(Ok(row)) => {
                    count += 1;
                    line(&row)
                }
                Some(Err(error)) => return Some(Err(error)),
                None => {
                    ended = true;
                    let sum = hexadecimal(sum.clone());
                    return Some(Ok(format!("{{\"records\":{count},\"sha256\":\"{sum}\"}}\n")));
                }
            },
        };
        sum.update(line.as_bytes());
        Some(Ok(line))
    })
}

fn line(Row { table, key, record }: &Row<'_>) -> String {
    let key = Value::from(key.iter().map(|part| &**part).collect::<Vec<_>>());
    let record = record.as_deref().unwrap_or("null");
    format!("{{\"table\":\"{}\",\"key\":{key},\"record\":{record}}}\n", table.name())
}

/// Returns a catalog as text; `at` is the time of a copy.
pub fn compose(view: &View, at: Option<OffsetDateTime>) -> Result<String, Unwritable> {
    lines(view, at).collect()
}

/// Reads a whole catalog from its text, or returns what is wrong and in which line.
pub fn parse(input: impl BufRead) -> Result<Parsed, InvalidText> {
    let mut loader = Loader::default();
    let mut taken: HashSet<(&str, Vec<String>)> = HashSet::new();
    let Whole { at, records } = read(input, |table, key, record| {
        let parts: Vec<_> = key.iter().map(String::as_str).collect();
        loader.take(table, &parts, record)?;
        if taken.insert((table.name(), key.to_vec())) {
            Ok(())
        } else {
            Err(LineFault::Duplicate(format!("{}/{}", table.name(), key.join("/"))))
        }
    })?;
    // The fault is reported at the closing line, which follows the first line and the records.
    let view = loader.finish().map_err(|fault| InvalidText { line: records + 2, fault: fault.into() })?;
    Ok(Parsed { view, at, records })
}

/// The closing facts of a text that was read to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// When the copy was made; `None` for an export.
    pub at: Option<OffsetDateTime>,
    /// The number of records.
    pub records: usize,
}

/// Reads a catalog's text record by record: the table, the key and the JSON of each. The caller must not trust any
/// record before this returns without an error.
pub fn read(
    input: impl BufRead,
    take: impl FnMut(Table, &[String], &str) -> Result<(), LineFault>,
) -> Result<Whole, InvalidText> {
    let mut lines = Lines { input, line: String::new(), number: 0 };
    read_lines(&mut lines, take).map_err(|fault| InvalidText { line: lines.number.max(1), fault })
}

fn read_lines(
    lines: &mut Lines<impl BufRead>,
    mut take: impl FnMut(Table, &[String], &str) -> Result<(), LineFault>,
) -> Result<Whole, LineFault> {
    let at = first(lines.next()?.ok_or(LineFault::Foreign)?)?;
    let (mut sum, mut records) = (Context::new(&SHA256), 0);
    loop {
        sum.update(lines.line.as_bytes());
        let line = lines.next()?.filter(|line| line.ends_with('\n')).ok_or(LineFault::CutOff)?;
        if let Ok(end) = serde_json::from_str::<Last>(line) {
            if end.records != records as u64 {
                return Err(LineFault::Count { told: end.records, found: records });
            }
            if hexadecimal(sum) != end.sha256 {
                return Err(LineFault::Checksum);
            }
            return match lines.next()? {
                Some(_) => Err(LineFault::Trailing),
                None => Ok(Whole { at, records }),
            };
        }
        let Line { table, key, record } = serde_json::from_str(line).map_err(LineFault::Malformed)?;
        let Some(table) = Table::ALL.into_iter().find(|known| known.name() == table) else {
            return Err(LineFault::Table(table));
        };
        take(table, &key, &record.to_string())?;
        records += 1;
    }
}

/// Reads an input line by line.
struct Lines<R> {
    input: R,
    /// The line that was read last.
    line: String,
    /// The number of lines read.
    number: usize,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> Result<Option<&str>, LineFault> {
        self.line.clear();
        match self.input.read_line(&mut self.line).map_err(LineFault::Unreadable)? {
            0 => Ok(None),
            _ => {
                self.number += 1;
                Ok(Some(&self.line))
            }
        }
    }
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
    at.map(|at| timestamp::parse(&at).map(recorded_time).map_err(|_| LineFault::Foreign)).transpose()
}

fn hexadecimal(sum: Context) -> String {
    sum.finish().as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
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
            let parsed = parse(text.as_bytes()).unwrap();
            assert_eq!((&parsed.view, parsed.at, parsed.records), (&sample(), at, SAMPLE.len()));
            assert_eq!(compose(&parsed.view, at).unwrap(), text);
        }
        assert_eq!(parse(compose(&View::default(), None).unwrap().as_bytes()).unwrap(), Parsed::default());
    }

    #[test]
    fn a_text_cut_off_anywhere_or_with_a_bit_turned_is_refused() {
        let text = compose(&sample(), None).unwrap();
        for end in 0..text.len() {
            assert!(parse(&text.as_bytes()[..end]).is_err(), "cut off at {end}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(turned) = String::from_utf8(bytes) {
                assert!(parse(turned.as_bytes()).is_err(), "turned at {at}");
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
            let told = chain(&parse(text.as_bytes()).unwrap_err());
            assert!(told.contains(expected), "{told}, not {expected}");
        }
    }
}
