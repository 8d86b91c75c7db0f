//! How errors reach a person: the chain of causes in one line, what of a text may be shown, how often a line is logged, the
//! exit codes, and the hint on a mistyped word.

pub(crate) mod log_limit;

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;

/// The program's exit codes.
pub(crate) mod exit {
    /// The command did not do what it was asked.
    pub(crate) const FAILED: u8 = 1;
    /// The command line was not understood.
    pub(crate) const USAGE: u8 = 2;
    /// The configuration is wrong (`EX_CONFIG` of sysexits.h).
    pub(crate) const CONFIG: u8 = 78;
}

/// Returns an error and all its causes in one line, outermost first.
#[must_use]
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// Returns true for a character that could break a line, speak to a terminal, or have it show a text in another order than
/// it is written in: control characters, the separators of lines and paragraphs, and the controls of bidirectional text.
#[must_use]
pub(crate) fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns `text` with each character that [`is_unsafe_to_show`] replaced by its escape, such as `\n` or `\u{9b}`.
#[must_use]
pub(crate) fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_unsafe_to_show) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_unsafe_to_show(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// Returns a number with its noun: `1 mount`, `2 mounts`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("{count} {noun}") } else { format!("{count} {noun}s") }
}

/// Returns the one of `known` that a mistyped `word` most likely meant, if any is near enough for a hint.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = 1 + word.chars().count() / 4;
    known
        .into_iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()), candidate)
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_told_outermost_first() {
        #[derive(Debug, thiserror::Error)]
        #[error("the catalog cannot be opened")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "the catalog cannot be opened: disk on fire");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_escaped_and_nothing_else() {
        let plain = "/srv/größe \"x\" \\ 漢字 🦀";
        assert!(matches!(escaped(plain), Cow::Borrowed(shown) if shown == plain));
        assert_eq!(escaped("a\r\n\t\0\x7f\u{85}\u{9b}b"), "a\\r\\n\\t\\u{0}\\u{7f}\\u{85}\\u{9b}b");
        assert_eq!(escaped("\u{2029}\u{202e}\u{2066}\u{200f}"), "\\u{2029}\\u{202e}\\u{2066}\\u{200f}");
    }

    #[test]
    fn hints_are_given_for_slips_only() {
        let known = ["backend", "uid", "listen"];
        assert_eq!(nearest("bakend", known), Some("backend"));
        assert_eq!(nearest("Listne", known), Some("listen"));
        assert_eq!(nearest("frobnicate", known), None);
    }
}
