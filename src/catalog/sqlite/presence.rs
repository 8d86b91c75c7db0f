//! Checks that a catalog's files still lie where they were opened.
//!
//! SQLite goes on writing to files that were removed or moved away, and whatever it writes there is lost with the
//! process. So nothing may be answered as durable unless the names were checked after it was written.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::OpenError;
use super::place::{beside, make_directory};

/// The identity of a file. While somebody has the file open, no other file gets the same identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(found: &Metadata) -> Self {
        Self { device: found.dev(), inode: found.ino() }
    }

    /// Returns true if the file at that path is this one.
    pub(super) fn is_at(self, path: &Path) -> bool {
        fs::symlink_metadata(path).is_ok_and(|found| Self::of(&found) == self)
    }
}

/// The paths and identities of a catalog's open files.
#[derive(Debug)]
pub(super) struct Presence {
    path: PathBuf,
    file: Identity,
    log: Identity,
    /// The directory's device: on stacked file systems a file's own device may be another one.
    device: u64,
}

impl Presence {
    /// Records the files of a catalog that was just opened, by its real path.
    pub(super) fn note(path: &Path) -> Result<Self, OpenError> {
        let identity = |path: &Path| fs::symlink_metadata(path).map(|found| Identity::of(&found));
        let tell = |source| OpenError::Io { path: path.into(), doing: "looked at", source };
        Ok(Self {
            path: path.into(),
            file: identity(path).map_err(tell)?,
            log: identity(&beside(path, "-wal")).map_err(tell)?,
            device: nearest(path).map_err(tell)?,
        })
    }

    /// Returns the catalog's real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns true if the files still lie where they were opened.
    pub(super) fn is_whole(&self) -> bool {
        self.file.is_at(&self.path) && self.log.is_at(&beside(&self.path, "-wal"))
    }

    /// Lets `put` put the file `new` in the catalog's place. From then on that file is the catalog's, whatever fails
    /// afterwards.
    pub(super) fn replace(
        &mut self,
        new: &Path,
        put: impl FnOnce(&Path) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let made = fs::symlink_metadata(new).map(|found| Identity::of(&found));
        let put = put(&self.path);
        if let Ok(made) = made
            && made.is_at(&self.path)
        {
            self.file = made;
        }
        put
    }

    /// Makes sure that a new file may be created: its directory exists and is on the same file system as before, and no
    /// other file has its name.
    pub(super) fn check_place(&self) -> Result<(), OpenError> {
        let path = || self.path.clone();
        let tell = |source| OpenError::Io { path: path(), doing: "looked at", source };
        match fs::symlink_metadata(&self.path) {
            Ok(found) if Identity::of(&found) != self.file => {
                return Err(OpenError::Replaced { path: path() });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(tell(error)),
            _ => {}
        }
        // If the file system is not mounted, a catalog below its mount point would be hidden by the next mount.
        if nearest(&self.path).map_err(tell)? != self.device {
            return Err(OpenError::Elsewhere { path: path() });
        }
        let directory = self.path.parent().unwrap_or(&self.path);
        make_directory(directory).map_err(|source| OpenError::Directory { path: directory.into(), source })
    }
}

/// Returns the device of the nearest existing directory above `path`.
fn nearest(path: &Path) -> io::Result<u64> {
    let mut found = Err(io::ErrorKind::NotFound.into());
    for directory in path.ancestors().skip(1) {
        found = fs::metadata(directory).map(|found| found.dev());
        if !matches!(&found, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            break;
        }
    }
    found
}
