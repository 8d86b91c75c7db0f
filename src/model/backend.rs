//! Names and identities of backends. A [`BackendName`] is safe to print, to log and to use as a JSON key.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

use super::volume::VolumeId;

/// A backend's name in the map: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendName(Arc<str>);

/// The text is no backend name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no backend name: it takes 1 to 63 letters, digits, `_`, `.` and `-`, and begins with a letter or a digit"
)]
pub struct InvalidBackendName(String);

impl BackendName {
    /// The backend that a volume created without `-o backend=` goes to.
    pub const DEFAULT: &str = "default";

    /// Parses a backend's name.
    pub fn parse(text: &str) -> Result<Self, InvalidBackendName> {
        let valid = text.len() <= 63
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if valid { Ok(Self(text.into())) } else { Err(InvalidBackendName(text.chars().take(64).collect())) }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for BackendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A backend's identity, by which it is recognised wherever it is mounted. It is written once, into its
/// `.volhost/backend.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(Uuid);

impl BackendId {
    /// A new identity, for a backend that has none.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The identity as a key of the catalog's claims, which are otherwise of volumes.
    pub(crate) fn lock_key(self) -> VolumeId {
        VolumeId::from_uuid(self.0)
    }
}

impl fmt::Display for BackendId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for BackendId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_pattern() {
        for good in ["default", "fast-1", "9", "a_b.c"] {
            assert!(BackendName::parse(good).is_ok(), "{good:?} was refused");
        }
        let long = "a".repeat(64);
        for bad in ["", ".volhost", "-a", "_a", "a b", "a/b", "é", &long] {
            assert!(BackendName::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn an_identity_survives_its_text() {
        let id = BackendId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
    }
}
