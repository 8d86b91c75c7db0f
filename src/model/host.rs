//! The name of a host: what a client certificate, or the configured `node`, calls the machine whose engine calls.
//!
//! A `HostName` is always a plain DNS name in lower case, or the one reserved name `anonymous`.

use std::fmt;
use std::sync::Arc;

/// The name for callers over plain TCP, which prove no identity.
pub const ANONYMOUS: &str = "anonymous";

/// A host's name: a plain DNS name of at most 253 bytes, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

/// Why a text is no host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no host name: {why}")]
pub struct InvalidHostName {
    name: String,
    why: &'static str,
}

impl HostName {
    /// Parses a host name: dot-separated labels of letters, digits and inner hyphens (RFC 1123), folded to lower case.
    ///
    /// Wildcards, empty labels, a trailing dot and the reserved name `anonymous` are refused.
    pub fn parse(text: &str) -> Result<Self, InvalidHostName> {
        let name = text.to_ascii_lowercase();
        match fault(&name) {
            None => Ok(Self(name.into())),
            Some(why) => Err(InvalidHostName { name: text.chars().take(64).collect(), why }),
        }
    }

    /// Parses the name of a host that is known already: like [`parse`](Self::parse), but `anonymous` is allowed.
    pub fn parse_or_anonymous(text: &str) -> Result<Self, InvalidHostName> {
        if text.eq_ignore_ascii_case(ANONYMOUS) { Ok(Self::anonymous()) } else { Self::parse(text) }
    }

    /// Returns the name of callers over plain TCP.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.into())
    }

    /// Returns true for the reserved name of callers without an identity.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        &*self.0 == ANONYMOUS
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn fault(name: &str) -> Option<&'static str> {
    if name == ANONYMOUS {
        return Some("`anonymous` is reserved for callers without a certificate");
    }
    if name.is_empty() || name.len() > 253 {
        return Some("a host name has 1 to 253 characters");
    }
    name.split('.').find_map(|label| {
        if label.is_empty() || label.len() > 63 {
            Some("each part between dots has 1 to 63 characters")
        } else if label.starts_with('-') || label.ends_with('-') {
            Some("no part begins or ends with a hyphen")
        } else if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            Some("only letters, digits, hyphens and dots are allowed")
        } else {
            None
        }
    })
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_dns_names_are_accepted_and_folded() {
        for (text, name) in
            [("web1", "web1"), ("Web1.Example.ORG", "web1.example.org"), ("10.1.2.3", "10.1.2.3")]
        {
            assert_eq!(HostName::parse(text).unwrap().as_str(), name);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let long = "a".repeat(254);
        for text in [
            "",
            "*.example.org",
            "anonymous",
            "ANONYMOUS",
            "a..b",
            "a.",
            "-a",
            "a-",
            "a_b",
            "a b",
            "a/b",
            "é",
            &long,
        ] {
            assert!(HostName::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn only_the_reserved_name_is_anonymous() {
        assert!(HostName::anonymous().is_anonymous());
        assert!(!HostName::parse("anonymous.example.org").unwrap().is_anonymous());
    }
}
