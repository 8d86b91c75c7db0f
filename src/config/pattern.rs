//! Patterns of host names, as in the configuration and the map.

use std::fmt;

use wildmatch::WildMatch;

use crate::model::host::{ANONYMOUS, HostName};

/// A host's name in lower case, in which `*` stands for any characters, including dots, and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern(String);

/// Why a text is not a pattern of host names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no host's name and no pattern of names: it takes 1 to 253 letters, digits, hyphens and dots, with `*` for any characters and `?` for one"
)]
pub struct InvalidHostPattern(String);

impl HostPattern {
    /// Parses a host's name, `anonymous`, or a pattern of names such as `web*`, and folds it to lower case.
    pub fn parse(text: &str) -> Result<Self, InvalidHostPattern> {
        let folded = text.to_ascii_lowercase();
        // A pattern must be able to match some name; a text without wildcards must itself be a name.
        let matchable = (1..=253).contains(&folded.len())
            && folded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.*?".contains(&b));
        let pattern = Self(folded);
        if matchable && (!pattern.is_exact() || pattern.0 == ANONYMOUS || HostName::parse(text).is_ok()) {
            Ok(pattern)
        } else {
            Err(InvalidHostPattern(text.chars().take(64).collect()))
        }
    }

    /// Returns true if it names one host and has no wildcard.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains(['*', '?'])
    }

    /// Returns true if it is `*`, which matches every host.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.0 == "*"
    }

    /// Returns true if it matches the host.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        WildMatch::new(&self.0).matches(host.as_str())
    }

    /// Returns the pattern as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let web1 = HostName::parse("web1.example.org").unwrap();
        for (pattern, expected) in [
            ("web1.example.org", true),
            ("WEB1.Example.org", true),
            ("web*", true),
            ("*", true),
            ("web?.example.org", true),
            ("web1", false),
            ("eb1*", false),
            ("anonymous", false),
        ] {
            assert_eq!(HostPattern::parse(pattern).unwrap().matches(&web1), expected, "{pattern}");
        }
        assert!(HostPattern::parse("anonymous").unwrap().matches(&HostName::anonymous()));
    }

    #[test]
    fn what_could_match_no_name_is_refused() {
        for text in ["", "a_b", "a b", "web[12]", "!web", "a/b", "-web", "a..b", "é*", &"a".repeat(254)] {
            assert!(HostPattern::parse(text).is_err(), "{text:?} was accepted");
        }
    }
}
