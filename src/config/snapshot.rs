//! Snapshots of files: the state of a file's content when it was read, to compare it with the later state.

use std::hash::{DefaultHasher, Hasher as _};
use std::io;
use std::path::{Path, PathBuf};

use crate::files;

/// A file and the state of its content when it was read. A missing file has a snapshot, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSnapshot {
    path: PathBuf,
    /// The most bytes of it that are read.
    most: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Content { bytes: usize, hash: u64 },
    Unreadable(io::ErrorKind),
}

impl FileSnapshot {
    /// Takes the snapshot of a file, by its absolute path; more than `most` bytes count as unreadable. A snapshot that
    /// is taken before the file is read misses no change.
    #[must_use]
    pub fn now(path: &Path, most: usize) -> Self {
        Self::read(path, most).1
    }

    /// Reads a file's bytes and takes its snapshot.
    pub fn read(path: &Path, most: usize) -> (io::Result<Vec<u8>>, Self) {
        let bytes = files::read_at_most(path, most);
        let state = match &bytes {
            Ok(bytes) => {
                let mut hasher = DefaultHasher::new();
                hasher.write(bytes);
                State::Content { bytes: bytes.len(), hash: hasher.finish() }
            }
            Err(error) => State::Unreadable(error.kind()),
        };
        (bytes, Self { path: path.into(), most, state })
    }

    /// Takes a new snapshot of the same file.
    #[must_use]
    pub(super) fn again(&self) -> Self {
        Self::now(&self.path, self.most)
    }

    /// Returns the file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the file existed, whatever its content.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.state != State::Unreadable(io::ErrorKind::NotFound)
    }
}
