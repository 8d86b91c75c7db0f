//! How errors reach a person: the chain of causes in one line, the exit codes, and the hint on a mistyped word.

use std::error::Error;
use std::fmt::Write as _;

/// The program's exit codes.
pub mod exit {
    /// The command did not do what it was asked.
    pub const FAILED: u8 = 1;
    /// The command line was not understood.
    pub const USAGE: u8 = 2;
    /// The configuration is wrong (`EX_CONFIG` of sysexits.h).
    pub const CONFIG: u8 = 78;
}

/// An error and everything that caused it, in one line, outermost first.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

/// The one of `known` that a mistyped `word` most likely meant, if any is near enough to be worth a hint.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
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
    fn hints_are_given_for_slips_only() {
        let known = ["backend", "uid", "listen"];
        assert_eq!(nearest("bakend", known), Some("backend"));
        assert_eq!(nearest("Listne", known), Some("listen"));
        assert_eq!(nearest("frobnicate", known), None);
    }
}
