//! A value of a file with its position: read as what it should be, or noted as a fault.
//!
//! Reading a [`Node`] never ends the run: a value that cannot be read is `None` and a fault of its [`Source`], so that
//! one run finds every fault. Nothing here knows the configuration's own fields: the callers name them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use jsonc_parser::ast::{ObjectProp, Value};
use jsonc_parser::common::Ranged as _;

use super::fault::Fault;
use super::fields::{Field, Takes, names};
use super::json::Source;
use crate::error::is_unsafe_to_show;

/// The length from which on Linux accepts no path.
const MAX_PATH_BYTES: usize = 4096;

/// The length to which words are cut before they are shown or compared.
const SHOWN_CHARS: usize = 64;

/// A value with its position and its field's path.
#[derive(Clone)]
pub(super) struct Node<'a> {
    source: &'a Source,
    value: &'a Value<'a>,
    field: String,
}

impl<'a> Node<'a> {
    /// Returns the outermost value of a file, which has no name.
    pub(super) fn root(source: &'a Source, value: &'a Value<'a>) -> Self {
        Self { source, value, field: String::new() }
    }

    /// Notes that this value is wrong.
    pub(super) fn fault(&self, what: impl Into<String>) {
        self.fault_with(what, None);
    }

    /// Notes that this value is wrong, with a hint on what was probably meant.
    pub(super) fn fault_with(&self, what: impl Into<String>, hint: Option<String>) {
        let place = self.source.place(self.value.start());
        self.source.push(place, &self.field, what.into(), hint);
    }

    /// Notes that something is missing below this value.
    pub(super) fn missing(&self, name: &str, what: impl Into<String>) {
        let place = self.source.place(self.value.start());
        self.source.push(place, &join(&self.field, name), what.into(), None);
    }

    /// Returns a fault of this value, to be noted later or not at all.
    pub(super) fn possible_fault(&self) -> Fault {
        let (line, column) = self.source.place(self.value.start());
        let (file, field) = (self.source.file().to_path_buf(), self.field.clone());
        Fault { file, line, column, field, what: String::new(), hint: None }
    }

    /// Returns true if the value is `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::NullKeyword(_))
    }

    /// Returns true if the value is a string.
    pub(super) fn is_string(&self) -> bool {
        matches!(self.value, Value::StringLit(_))
    }

    /// Notes that the value is of a wrong type; `takes` is what it should be.
    pub(super) fn wrong_type(&self, takes: &str) {
        self.fault(format!("this is {}: it takes {takes}", self.kind()));
    }

    /// Reads a string.
    pub(super) fn string(&self, takes: &str) -> Option<&'a str> {
        match self.value {
            Value::StringLit(text) => self.printable(&text.value),
            _ => {
                self.wrong_type(takes);
                None
            }
        }
    }

    /// Returns the text if no log line and no terminal can mistake it for something else. A path could contain other
    /// characters, but no sensible path does.
    fn printable<'t>(&self, text: &'t str) -> Option<&'t str> {
        let Some(found) = text.chars().find(|c| is_unsafe_to_show(*c)) else { return Some(text) };
        let found = found.escape_default();
        self.fault(format!("{} holds the control character {found}: take it out", quoted(text)));
        None
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::BooleanLit(literal) => Some(literal.value),
            _ => {
                self.wrong_type("true or false");
                None
            }
        }
    }

    /// Reads a whole number without fraction or exponent.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let (least, most) = (range.start(), range.end());
        let takes = format!("a whole number from {least} to {most}");
        let Value::NumberLit(literal) = self.value else {
            self.wrong_type(&takes);
            return None;
        };
        let number = literal.value.parse().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.fault(format!("{} is out of range: it takes {takes}", cut(literal.value)));
        }
        number
    }

    /// Returns true if the value is `0` or `"0"`.
    pub(super) fn is_zero(&self) -> bool {
        match self.value {
            Value::NumberLit(literal) => literal.value == "0",
            Value::StringLit(text) => text.value == "0",
            _ => false,
        }
    }

    /// Reads a duration with its unit. If the unit is missing, the hint offers `units`; following the hint must never
    /// destroy anything.
    pub(super) fn duration(&self, example: &str, units: &[&str]) -> Option<Duration> {
        let hint = |number: &str| {
            let is_whole = number.bytes().all(|b| b.is_ascii_digit());
            let meant: Vec<_> = units.iter().map(|unit| format!("\"{number}{unit}\"")).collect();
            is_whole.then(|| format!("did you mean {}?", meant.join(" or ")))
        };
        let takes = format!("a duration with its unit, such as {example:?}");
        if let Value::NumberLit(literal) = self.value {
            let number = cut(literal.value);
            self.fault_with(format!("{number} has no unit: it takes {takes}"), hint(&number));
            return None;
        }
        let text = self.string(&takes)?;
        if !text.is_empty() && text.trim().bytes().all(|b| b.is_ascii_digit()) {
            let hint = hint(&cut(text.trim()));
            self.fault_with(format!("{} has no unit: it takes {takes}", quoted(text)), hint);
            return None;
        }
        let duration = humantime::parse_duration(text).ok();
        if duration.is_none() {
            self.fault(format!("{} is no duration: it takes {takes}", quoted(text)));
        }
        duration
    }

    /// Reads an absolute path.
    pub(super) fn path(&self, takes: &str) -> Option<PathBuf> {
        self.absolute(self.string(takes)?)
    }

    /// Reads a path that is a part of this value's text, if it is absolute.
    pub(super) fn absolute(&self, text: &str) -> Option<PathBuf> {
        let what = if !text.starts_with('/') {
            "is a relative path: it takes an absolute one, which begins with a slash"
        } else if text.len() >= MAX_PATH_BYTES {
            "is longer than a path can be"
        } else {
            return Some(text.into());
        };
        self.fault(format!("{} {what}", quoted(text)));
        None
    }

    /// Reads one of a set of words.
    pub(super) fn word<T: Copy>(&self, what: &str, words: &[(&'static str, T)]) -> Option<T> {
        let known = words.iter().map(|(word, _)| *word);
        let takes = known.clone().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or ");
        let text = self.string(&takes)?;
        let meant = words.iter().find(|(word, _)| *word == text);
        if meant.is_none() {
            let hint = near(text, known);
            self.fault_with(format!("{} is no {what}: it takes {takes}", quoted(text)), hint);
        }
        meant.map(|(_, value)| *value)
    }

    /// Returns the result of reading this value; an error becomes the value's fault.
    pub(super) fn noted<T, E: std::fmt::Display>(&self, read: Result<T, E>) -> Option<T> {
        read.map_err(|error| self.fault(error.to_string())).ok()
    }

    /// Reads the elements of an array.
    pub(super) fn elements(&self, takes: &str) -> Option<Vec<Node<'a>>> {
        let Value::Array(array) = self.value else {
            self.wrong_type(takes);
            return None;
        };
        let node = |(index, value)| {
            let field = format!("{}[{index}]", self.field);
            Node { source: self.source, value, field }
        };
        Some(array.elements.iter().enumerate().map(node).collect())
    }

    /// Reads the members of an object whose keys are names that the operator chose. A key given twice is a fault.
    pub(super) fn entries(&self, takes: &str) -> Option<Vec<Entry<'a>>> {
        let Value::Object(object) = self.value else {
            self.wrong_type(takes);
            return None;
        };
        let mut seen = BTreeMap::new();
        let mut entries = Vec::new();
        for property in &object.properties {
            let entry = self.entry(property);
            if let Some(first) = seen.get(entry.key) {
                let (first, _) = self.source.place(*first);
                entry.fault(format!("is given twice, first in line {first}: one of the two must go"), None);
            } else {
                seen.insert(entry.key, entry.at);
                entries.push(entry);
            }
        }
        Some(entries)
    }

    /// Reads the members of an object with these fields. Other keys, keys given twice, and fields that are not
    /// implemented yet are faults.
    pub(super) fn members(&self, fields: &'static [Field], takes: &str) -> Option<Members<'a>> {
        let mut members = BTreeMap::new();
        for entry in self.entries(takes)? {
            match fields.iter().find(|field| field.name == entry.key) {
                Some(Field { takes: Takes::Nothing, null, .. }) => {
                    if !(*null && entry.node.is_null()) {
                        entry.node.fault("is not supported by this version: take it out");
                    }
                }
                Some(_) => {
                    members.insert(entry.key, entry.node);
                }
                None => {
                    let known = names(fields).collect::<Vec<_>>().join(", ");
                    let what = format!("unknown field: the known ones are {known}");
                    entry.fault(what, near(entry.key, names(fields)));
                }
            }
        }
        Some(Members { fields, members })
    }

    /// Reads the address of a JSON Schema, which is for editors: any string.
    pub(super) fn schema(&self) -> Option<&'a str> {
        self.string("the name of a JSON Schema, for editors")
    }

    fn entry(&self, property: &'a ObjectProp<'a>) -> Entry<'a> {
        let key = property.name.as_str();
        let field = join(&self.field, key);
        let node = Node { source: self.source, value: &property.value, field };
        Entry { key, at: property.name.start(), node }
    }

    fn kind(&self) -> &'static str {
        match self.value {
            Value::StringLit(_) => "a string",
            Value::NumberLit(_) => "a number",
            Value::BooleanLit(_) => "true or false",
            Value::Object(_) => "an object",
            Value::Array(_) => "a list",
            Value::NullKeyword(_) => "null",
        }
    }
}

/// A member of an object: its key, the key's position, and its value.
pub(super) struct Entry<'a> {
    /// The key, without quotes and escapes.
    pub(super) key: &'a str,
    at: usize,
    /// The value.
    pub(super) node: Node<'a>,
}

impl Entry<'_> {
    /// Notes that the key is wrong.
    pub(super) fn fault(&self, what: impl Into<String>, hint: Option<String>) {
        let place = self.node.source.place(self.at);
        self.node.source.push(place, &self.node.field, what.into(), hint);
    }
}

/// The known members of an object.
#[derive(Default)]
pub(super) struct Members<'a> {
    fields: &'static [Field],
    members: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Members<'a> {
    /// Returns the value of a key, if it was given.
    pub(super) fn take(&mut self, key: &str) -> Option<Node<'a>> {
        // A value that is not an object has no fields.
        debug_assert!(
            self.fields.is_empty() || names(self.fields).any(|name| name == key),
            "the field {key:?} is read and has no row in fields.rs"
        );
        self.members.remove(key)
    }

    /// Returns the value of a key that names a file, if it was given, and its path if that is valid.
    pub(super) fn file(&mut self, key: &str, files: NamedFiles) -> Option<(Node<'a>, Option<PathBuf>)> {
        let node = self.take(key).filter(|node| !node.is_null())?;
        let path = node.path("a path");
        if let Some(path) = path.as_deref().filter(|_| files == NamedFiles::MustExist) {
            match std::fs::metadata(path) {
                Ok(found) if found.is_file() => {}
                Ok(_) => node.fault(format!("{} is no file", path.display())),
                Err(error) => node.fault(format!("{} cannot be read: {error}", path.display())),
            }
        }
        Some((node, path))
    }

    /// Returns the number that is a key's value, if it was given and lies in the range that the table of fields has for
    /// it.
    pub(super) fn number(&mut self, key: &str) -> Option<u64> {
        let node = self.take(key)?;
        let range = self.fields.iter().find_map(|field| match &field.takes {
            Takes::Number(range) if field.name == key => Some(range.clone()),
            _ => None,
        });
        // No number is valid for a field that is not a number in the table.
        node.integer(range.unwrap_or(RangeInclusive::new(1, 0)))
    }
}

/// The requirement on files that the configuration names (keys, certificates, a password).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NamedFiles {
    /// A missing one is a fault.
    MustExist,
    /// The reader of a missing one will notice it.
    MayBeMissing,
}

/// Returns a word of a file as a message shows it: in quotes, and not too long.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

/// Returns the hint on a mistyped word. A long word is no typing error, and comparing it would cost time.
fn near(word: &str, known: impl IntoIterator<Item = &'static str>) -> Option<String> {
    let near = if word.len() <= SHOWN_CHARS { crate::error::nearest(word, known) } else { None };
    near.map(|near| format!("did you mean {near:?}?"))
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
    }
}

/// Returns the path of a field below another; a key that is not a plain word is shown in quotes.
fn join(field: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= SHOWN_CHARS
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.*?".contains(c));
    let key = if plain { key.to_owned() } else { quoted(key) };
    if field.is_empty() { key } else { format!("{field}.{key}") }
}
