//! JSON with places: a reader that notes every fault with file, line, column and field, and goes on.
//!
//! The syntax is that of RFC 8259 and nothing beside it: no comments, no trailing commas. serde_json judges the text,
//! since the parser that knows the places would let control characters and foreign spaces pass.
//!
//! A [`Node`] never fails at once: what it cannot read becomes a fault of its [`Source`] and `None`, so that one run
//! finds everything. Nothing here knows what a configuration is.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jsonc_parser::ast::{ObjectProp, Value};
use jsonc_parser::common::Ranged as _;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::fault::Fault;

/// No configuration is larger; more is a mistake that must not cost memory.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// No configuration nests deeper; more would cost stack.
const MAX_DEPTH: usize = 32;

/// More faults than anybody mends at once; each costs a walk along its line.
const MAX_FAULTS: usize = 1000;

/// The length from which on Linux takes no path.
const MAX_PATH_BYTES: usize = 4096;

/// What a word is cut to before it is shown or compared.
const SHOWN_CHARS: usize = 64;

/// One file's text, where its lines begin, and the faults found in it so far.
pub(super) struct Source {
    file: PathBuf,
    text: String,
    lines: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl Source {
    /// Takes a file's bytes. What is no text, or too much of it, is a fault, and stands for an empty object.
    pub(super) fn new(file: &Path, bytes: Vec<u8>) -> Self {
        let source = |text: String| {
            let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            Self { file: file.into(), text, lines, faults: RefCell::default() }
        };
        let empty = || source("{}".to_owned());
        if bytes.len() > MAX_BYTES {
            let empty = empty();
            empty.fault(
                "",
                format!("the file is larger than {} MiB: it is no configuration", MAX_BYTES >> 20),
            );
            return empty;
        }
        let unreadable = |error: std::string::FromUtf8Error| {
            let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let valid = source(String::from_utf8_lossy(valid).into_owned());
            let (line, column) = valid.place(valid.text.len());
            let empty = empty();
            empty.syntax(line, column, "the file is not UTF-8 text from here on");
            empty
        };
        String::from_utf8(bytes).map_or_else(unreadable, source)
    }

    /// Reads the text as one JSON value. A syntax error is a fault, and then there is no value.
    pub(super) fn value(&self) -> Option<Value<'_>> {
        if self.text.trim_ascii().is_empty() {
            self.syntax(1, 1, "the file is empty: the least that it can say is {}");
            return None;
        }
        if self.text.starts_with('\u{feff}') {
            self.syntax(1, 1, "the file begins with a byte order mark: JSON has none");
            return None;
        }
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&self.text) {
            let (line, column) = self.place(self.offset(error.line(), error.column()));
            let told = error.to_string();
            let place = format!(" at line {} column {}", error.line(), error.column());
            self.syntax(
                line,
                column,
                &format!("this is no JSON: {}", told.strip_suffix(&place).unwrap_or(&told)),
            );
            return None;
        }
        if let Some(at) = too_deep(&self.text) {
            let (line, column) = self.place(at);
            self.syntax(line, column, &format!("nested deeper than {MAX_DEPTH} levels: no configuration is"));
            return None;
        }
        match parse_to_ast(&self.text, &CollectOptions::default(), &strict()) {
            Ok(result) => result.value,
            Err(error) => {
                let (line, column) = self.place(error.range().start);
                self.syntax(line, column, &format!("this is no JSON: {}", error.kind()));
                None
            }
        }
    }

    /// The document's outermost value, as a node without a field's name.
    pub(super) fn root<'a>(&'a self, value: &'a Value<'a>) -> Node<'a> {
        Node { source: self, value, field: String::new() }
    }

    /// The faults found so far.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }

    /// Notes a fault whose place is known.
    pub(super) fn note(&self, fault: Fault) {
        let Fault { file: _, line, column, field, what, hint } = fault;
        self.push(line, column, &field, what, hint);
    }

    /// Notes a fault of the whole file.
    pub(super) fn fault(&self, field: &str, what: impl Into<String>) {
        self.push(0, 0, field, what.into(), None);
    }

    fn syntax(&self, line: usize, column: usize, what: &str) {
        self.push(line, column, "", what.into(), None);
    }

    fn push(&self, line: usize, column: usize, field: &str, what: String, hint: Option<String>) {
        let mut faults = self.faults.borrow_mut();
        let file = self.file.clone();
        match faults.len().cmp(&MAX_FAULTS) {
            Ordering::Less => faults.push(Fault { file, line, column, field: field.into(), what, hint }),
            Ordering::Equal => {
                let what = format!("more than {MAX_FAULTS} faults: the first {MAX_FAULTS} are told");
                faults.push(Fault { file, line: 0, column: 0, field: String::new(), what, hint: None });
            }
            Ordering::Greater => {}
        }
    }

    /// Line and column of a byte of the text, both from 1; the column counts characters.
    fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        let rest = self.text.get(start..).unwrap_or_default();
        let before = rest.bytes().take(offset.saturating_sub(start));
        // Every byte but a continuation begins a character.
        (line.max(1), before.filter(|byte| byte & 0xC0 != 0x80).count() + 1)
    }

    /// The byte at a line and a column of bytes, both from 1, as serde_json counts: column 0 is the newline before.
    fn offset(&self, line: usize, column: usize) -> usize {
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        (start + column).saturating_sub(1).min(self.text.len())
    }
}

/// JSON and nothing beside it; each field by its name, so that what a newer parser allows must be decided here.
fn strict() -> ParseOptions {
    ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    }
}

/// Where a valid JSON text first nests deeper than [`MAX_DEPTH`].
fn too_deep(text: &str) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some(at);
        }
    }
    None
}

/// A value, where it stands and what it is called.
#[derive(Clone)]
pub(super) struct Node<'a> {
    source: &'a Source,
    value: &'a Value<'a>,
    field: String,
}

impl<'a> Node<'a> {
    /// Notes that this value is wrong.
    pub(super) fn fault(&self, what: impl Into<String>) {
        self.fault_with(what, None);
    }

    /// Notes that this value is wrong, and what was probably meant.
    pub(super) fn fault_with(&self, what: impl Into<String>, hint: Option<String>) {
        let (line, column) = self.source.place(self.value.start());
        self.source.push(line, column, &self.field, what.into(), hint);
    }

    /// Notes the fault of something that belongs below this value and is not there.
    pub(super) fn missing(&self, name: &str, what: impl Into<String>) {
        let (line, column) = self.source.place(self.value.start());
        self.source.push(line, column, &join(&self.field, name), what.into(), None);
    }

    /// A fault of this value, to be noted later or not at all.
    pub(super) fn possible_fault(&self) -> Fault {
        let (line, column) = self.source.place(self.value.start());
        let (file, field) = (self.source.file.clone(), self.field.clone());
        Fault { file, line, column, field, what: String::new(), hint: None }
    }

    /// Whether the value is `null`.
    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::NullKeyword(_))
    }

    /// Whether the value is a string.
    pub(super) fn is_string(&self) -> bool {
        matches!(self.value, Value::StringLit(_))
    }

    /// Notes that the value is of a wrong type; `takes` is what it should be.
    pub(super) fn wrong_type(&self, takes: &str) {
        self.fault(format!("this is {}: it takes {takes}", self.kind()));
    }

    /// A string.
    pub(super) fn string(&self, takes: &str) -> Option<&'a str> {
        match self.value {
            Value::StringLit(text) => Some(&text.value),
            _ => {
                self.wrong_type(takes);
                None
            }
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            Value::BooleanLit(literal) => Some(literal.value),
            _ => {
                self.wrong_type("true or false");
                None
            }
        }
    }

    /// A whole number without fraction or exponent.
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

    /// Whether the value is `0` or `"0"`.
    pub(super) fn is_zero(&self) -> bool {
        match self.value {
            Value::NumberLit(literal) => literal.value == "0",
            Value::StringLit(text) => text.value == "0",
            _ => false,
        }
    }

    /// A duration with its unit.
    pub(super) fn duration(&self, example: &str) -> Option<Duration> {
        let takes = format!("a duration with its unit, such as {example:?}");
        if let Value::NumberLit(literal) = self.value {
            let number = cut(literal.value);
            self.fault_with(
                format!("{number} has no unit: it takes {takes}"),
                Some(format!("did you mean \"{number}s\"?")),
            );
            return None;
        }
        let text = self.string(&takes)?;
        if !text.is_empty() && text.trim().bytes().all(|b| b.is_ascii_digit()) {
            let hint = Some(format!("did you mean \"{}s\"?", cut(text.trim())));
            self.fault_with(format!("{} has no unit: it takes {takes}", quoted(text)), hint);
            return None;
        }
        let duration = humantime::parse_duration(text).ok();
        if duration.is_none() {
            self.fault(format!("{} is no duration: it takes {takes}", quoted(text)));
        }
        duration
    }

    /// An absolute path.
    pub(super) fn path(&self, takes: &str) -> Option<PathBuf> {
        self.absolute(self.string(takes)?)
    }

    /// A path that is a part of this value's text, if it is absolute.
    pub(super) fn absolute(&self, text: &str) -> Option<PathBuf> {
        let what = if !text.starts_with('/') {
            "is a relative path: it takes an absolute one, which begins with a slash"
        } else if text.contains('\0') {
            "holds a zero byte: no path does"
        } else if text.len() >= MAX_PATH_BYTES {
            "is longer than a path can be"
        } else {
            return Some(text.into());
        };
        self.fault(format!("{} {what}", quoted(text)));
        None
    }

    /// One of a few words.
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

    /// What was read from this value; an error becomes its fault.
    pub(super) fn noted<T, E: std::fmt::Display>(&self, read: Result<T, E>) -> Option<T> {
        read.map_err(|error| self.fault(error.to_string())).ok()
    }

    /// The elements of an array.
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

    /// The members of an object whose keys are names that the operator chose. A key given twice is a fault.
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

    /// The members of an object whose keys are `known`. Others, and one given twice, are faults.
    pub(super) fn members(&self, known: &[&'static str], takes: &str) -> Option<Members<'a>> {
        let mut members = BTreeMap::new();
        for entry in self.entries(takes)? {
            if known.contains(&entry.key) {
                members.insert(entry.key, entry.node);
            } else {
                let what = if known.is_empty() {
                    "unknown field: nothing is set here".to_owned()
                } else {
                    format!("unknown field: the known ones are {}", known.join(", "))
                };
                entry.fault(what, near(entry.key, known.iter().copied()));
            }
        }
        Some(Members { members })
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

/// A member of an object: its key, where that stands, and its value.
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
        let (line, column) = self.node.source.place(self.at);
        self.node.source.push(line, column, &self.node.field, what.into(), hint);
    }
}

/// The known members of an object.
#[derive(Default)]
pub(super) struct Members<'a> {
    members: BTreeMap<&'a str, Node<'a>>,
}

impl<'a> Members<'a> {
    /// The value of a key, if it was given.
    pub(super) fn take(&mut self, key: &str) -> Option<Node<'a>> {
        self.members.remove(key)
    }
}

/// A word of a file as a message shows it: in quotes, and not too long.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text))
}

/// The hint on a mistyped word. A long one is no slip, and comparing it would cost time.
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

/// The path of a field below another; what is not a plain word is shown in quotes.
fn join(field: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= SHOWN_CHARS
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.*?".contains(c));
    let key = if plain { key.to_owned() } else { quoted(key) };
    if field.is_empty() { key } else { format!("{field}.{key}") }
}
