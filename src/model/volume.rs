//! Names and IDs of volumes, and the IDs that engines give their mounts.
//!
//! A [`VolumeName`] cannot lead out of its backend, because it cannot contain a `/` or begin with a dot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use uuid::Uuid;

/// A volume's name: `[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}`, unique in a catalog and the name of its directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName(Arc<str>);

/// Why a text is no volume name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVolumeName {
    /// The request named no volume.
    #[error("the volume name is missing: a name has 1 to 255 characters")]
    Empty,
    /// The text is longer than a directory's name can be.
    #[error("the volume name is {0} bytes long: a name has at most 255")]
    TooLong(usize),
    /// The text has a character that is not allowed.
    #[error(
        "{name:?} is no volume name: {found:?} is not allowed {place}; a name takes letters, digits, `_`, `.` and `-`, and begins with a letter or a digit"
    )]
    Character {
        /// The given text.
        name: String,
        /// The first character that is not allowed.
        found: char,
        /// Where it stands.
        place: &'static str,
    },
}

impl VolumeName {
    /// Parses a volume's name.
    pub fn parse(text: &str) -> Result<Self, InvalidVolumeName> {
        if text.is_empty() {
            return Err(InvalidVolumeName::Empty);
        }
        if text.len() > 255 {
            return Err(InvalidVolumeName::TooLong(text.len()));
        }
        let mut inner = false;
        for found in text.chars() {
            if !(found.is_ascii_alphanumeric() || (inner && matches!(found, '_' | '.' | '-'))) {
                let place = if inner { "in it" } else { "at its beginning" };
                return Err(InvalidVolumeName::Character { name: text.into(), found, place });
            }
            inner = true;
        }
        Ok(Self(text.into()))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for VolumeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A volume's ID, which differs from that of a later volume of the same name. It is also the name of its directory
/// while it is being made and after it was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(Uuid);

impl VolumeId {
    /// A value before the ID of every volume, which belongs to none.
    pub(crate) const LEAST: Self = Self(Uuid::nil());

    /// Returns an ID that no volume has yet.
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub(super) fn from_uuid(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for VolumeId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The ID that an engine gives with Mount and Unmount: opaque, and engines reuse and repeat it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountId(Box<str>);

/// Why a text is no mount's ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMountId {
    /// The request had no ID.
    #[error("the mount's ID is missing: Mount and Unmount take {{\"Name\": …, \"ID\": …}}")]
    Empty,
    /// Engines send 64 hexadecimal digits.
    #[error("the mount's ID is {0} bytes long: at most 256 are taken")]
    TooLong(usize),
    /// The text has a control character, which would garble tables and logs.
    #[error("the mount's ID holds a control character")]
    Control,
}

impl MountId {
    /// Parses a mount's ID: 1 to 256 bytes without control characters.
    pub fn parse(text: &str) -> Result<Self, InvalidMountId> {
        match text.len() {
            0 => Err(InvalidMountId::Empty),
            length @ 257.. => Err(InvalidMountId::TooLong(length)),
            _ if text.chars().any(char::is_control) => Err(InvalidMountId::Control),
            _ => Ok(Self(text.into())),
        }
    }

    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_name_of_the_pattern_is_accepted(name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}") {
            let parsed = VolumeName::parse(&name).unwrap();
            prop_assert_eq!(parsed.as_str(), name);
        }

        #[test]
        fn no_accepted_name_can_leave_a_directory(text in any::<String>()) {
            if let Ok(name) = VolumeName::parse(&text) {
                let path = std::path::Path::new(name.as_str());
                let mut parts = path.components();
                prop_assert!(matches!(parts.next(), Some(std::path::Component::Normal(_))));
                prop_assert!(parts.next().is_none());
                prop_assert!(!text.starts_with('.'), "{text:?} could hide or be our own `.volhost`");
            }
        }
    }

    #[test]
    fn refusals_name_the_character_and_the_place() {
        let cases = [
            ("a b/../c", "\"a b/../c\" is no volume name: ' ' is not allowed in it"),
            ("../../etc", "\"../../etc\" is no volume name: '.' is not allowed at its beginning"),
            ("a\0b", "'\\0' is not allowed in it"),
            ("ünïcode", "'ü' is not allowed at its beginning"),
        ];
        for (text, expected) in cases {
            let error = VolumeName::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(VolumeName::parse(""), Err(InvalidVolumeName::Empty));
        assert_eq!(VolumeName::parse(&"a".repeat(256)), Err(InvalidVolumeName::TooLong(256)));
    }

    #[test]
    fn mount_ids_are_opaque_but_printable() {
        assert!(MountId::parse("fc63179f2437490d").is_ok());
        assert_eq!(MountId::parse(""), Err(InvalidMountId::Empty));
        assert_eq!(MountId::parse("a\nb"), Err(InvalidMountId::Control));
        assert_eq!(MountId::parse(&"a".repeat(257)), Err(InvalidMountId::TooLong(257)));
    }
}
