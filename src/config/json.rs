//! JSON with places: a file's text, its syntax, and every fault with its line and column.
//!
//! The syntax is that of RFC 8259 and nothing beside it: no comments, no trailing commas.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::path::{Path, PathBuf};

use jsonc_parser::ast::Value;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use super::fault::Fault;

/// No configuration is larger. More is a mistake that must not cost memory.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// No configuration nests deeper; more would cost stack.
const MAX_DEPTH: usize = 32;

/// See [`Source::characters`].
const STRIDE: usize = 4096;

/// More faults than anybody mends at once.
const MAX_FAULTS: usize = 1000;

/// One file's text, where its lines begin, and the faults found in it so far.
pub(super) struct Source {
    file: PathBuf,
    text: String,
    lines: Vec<usize>,
    /// How many characters there are before each [`STRIDE`]th byte, so that a place in a long line is found at once.
    characters: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl Source {
    /// Takes a file's bytes. Bytes that are no text, or too many, are a fault and read as an empty object.
    pub(super) fn new(file: &Path, bytes: Vec<u8>) -> Self {
        let source = |text: String| {
            let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
            let mut count = 0;
            let mut characters = vec![0];
            for stride in text.as_bytes().chunks(STRIDE) {
                count += begun_in(stride);
                characters.push(count);
            }
            Self { file: file.into(), text, lines, characters, faults: RefCell::default() }
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
            let place = valid.place(valid.text.len());
            let empty = empty();
            empty.syntax(place, "the file is not UTF-8 text from here on");
            empty
        };
        String::from_utf8(bytes).map_or_else(unreadable, source)
    }

    /// Reads the text as one JSON value. A syntax error is a fault, and then there is no value.
    pub(super) fn value(&self) -> Option<Value<'_>> {
        if self.text.trim_ascii().is_empty() {
            self.syntax((1, 1), "the file is empty: the least that it can say is {}");
            return None;
        }
        if self.text.starts_with('\u{feff}') {
            self.syntax((1, 1), "the file begins with a byte order mark: JSON has none");
            return None;
        }
        if let Some(at) = too_deep(&self.text) {
            self.syntax(
                self.place(at),
                &format!("nested deeper than {MAX_DEPTH} levels: no configuration is"),
            );
            return None;
        }
        let parsed = match parse_to_ast(&self.text, &CollectOptions::default(), &strict()) {
            Ok(parsed) => parsed,
            Err(error) => {
                let told = error.kind().to_string();
                self.syntax(
                    self.place(error.range().start),
                    &format!("this is no JSON: {}", uncapitalized(&told)),
                );
                return None;
            }
        };
        // The parser that knows the places lets control characters and foreign spaces pass.
        if let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(&self.text) {
            let told = error.to_string();
            let counted = format!(" at line {} column {}", error.line(), error.column());
            let told = told.strip_suffix(&counted).unwrap_or(&told);
            let place = self.place(self.offset(error.line(), error.column()));
            self.syntax(place, &format!("this is no JSON: {told}"));
            return None;
        }
        parsed.value
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The faults found so far.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        self.faults.into_inner()
    }

    /// Notes a fault whose place is known.
    pub(super) fn note(&self, fault: Fault) {
        let Fault { file: _, line, column, field, what, hint } = fault;
        self.push((line, column), &field, what, hint);
    }

    /// Notes a fault of the whole file.
    pub(super) fn fault(&self, field: &str, what: impl Into<String>) {
        self.push((0, 0), field, what.into(), None);
    }

    fn syntax(&self, place: (usize, usize), what: &str) {
        self.push(place, "", what.into(), None);
    }

    /// Notes a fault at a place of the file.
    pub(super) fn push(
        &self,
        (line, column): (usize, usize),
        field: &str,
        what: String,
        hint: Option<String>,
    ) {
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
    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        (line.max(1), self.characters_before(offset).saturating_sub(self.characters_before(start)) + 1)
    }

    fn characters_before(&self, offset: usize) -> usize {
        let strides = offset / STRIDE;
        let rest = self.text.as_bytes().get(strides * STRIDE..offset).unwrap_or_default();
        self.characters.get(strides).copied().unwrap_or(0) + begun_in(rest)
    }

    /// The byte at a line and a column of bytes, both from 1, as serde_json counts: column 0 is the newline before.
    fn offset(&self, line: usize, column: usize) -> usize {
        let start = line.checked_sub(1).and_then(|index| self.lines.get(index)).copied().unwrap_or(0);
        (start + column).saturating_sub(1).min(self.text.len())
    }
}

/// How many characters begin in these bytes: every byte but a continuation begins one.
fn begun_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count()
}

fn uncapitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(chars).collect()
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

/// Returns the place where a JSON text first nests deeper than [`MAX_DEPTH`].
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
