//! The identity of a directory on its file system, which tells it from another one that got its name.

use std::fmt;
use std::str::FromStr;

/// A directory's inode, and its birth time if the file system keeps one.
///
/// The inode alone is not enough: a file system may give it to the next directory. Written as `INODE` or
/// `INODE@SECONDS.NANOSECONDS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectoryId {
    /// The inode's number.
    pub inode: u64,
    /// When it was made: seconds since 1970, and nanoseconds.
    pub born: Option<(i64, u32)>,
}

impl DirectoryId {
    /// Returns false if `other` is certainly another directory. A birth time that only one side knows says nothing, because
    /// clients of network file systems differ in what they are told.
    #[must_use]
    pub fn may_be(&self, other: &Self) -> bool {
        self.inode == other.inode && self.born.zip(other.born).is_none_or(|(born, of_other)| born == of_other)
    }
}

impl fmt::Display for DirectoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.born {
            None => write!(f, "{}", self.inode),
            Some((seconds, nanoseconds)) => write!(f, "{}@{seconds}.{nanoseconds:09}", self.inode),
        }
    }
}

impl FromStr for DirectoryId {
    type Err = InvalidDirectoryId;

    fn from_str(text: &str) -> Result<Self, InvalidDirectoryId> {
        let parse = || {
            let Some((inode, born)) = text.split_once('@') else {
                return Some(Self { inode: text.parse().ok()?, born: None });
            };
            let (seconds, nanoseconds) = born.split_once('.')?;
            let born = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
            Some(Self { inode: inode.parse().ok()?, born: Some(born) })
        };
        // One text for one directory: a record that is written again stays as it was.
        parse().filter(|id| id.to_string() == text).ok_or(InvalidDirectoryId)
    }
}

/// The error of a text that is no [`DirectoryId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not INODE or INODE@SECONDS.NANOSECONDS")]
pub struct InvalidDirectoryId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_were_written() {
        for text in ["0", "12", "18446744073709551615@-1.000000001", "12@1790000000.123456789"] {
            assert_eq!(text.parse::<DirectoryId>().unwrap().to_string(), text);
        }
        for text in ["", "-1", "x", "1@", "1@2", "1@2.3", "1@2.0000000001", "01", "1@02.000000000"] {
            assert_eq!(text.parse::<DirectoryId>(), Err(InvalidDirectoryId), "{text}");
        }
    }

    #[test]
    fn an_inode_that_was_used_again_is_another_directory() {
        let id = |text: &str| text.parse::<DirectoryId>().unwrap();
        assert!(id("5@1.000000000").may_be(&id("5@1.000000000")));
        assert!(!id("5@1.000000000").may_be(&id("5@2.000000000")));
        assert!(!id("5").may_be(&id("6")));
        assert!(id("5").may_be(&id("5@2.000000000")));
    }
}
