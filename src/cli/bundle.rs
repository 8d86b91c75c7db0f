//! The file that a host's bundle is written to.
//!
//! It holds a private key: it is never readable for others, not for a moment, never half-written under its name, and
//! never takes an existing file's place unasked.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Why there is no bundle.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum BundleError {
    /// The file is there.
    #[error("{} exists: name another file, or give --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The path names no file.
    #[error("{} names no file: the bundle is written to a file, such as web1.tar", .0.display())]
    NoFile(PathBuf),
    /// The file cannot be made beside its place; nothing was issued.
    #[error("the bundle cannot be written to {}, so that no certificate was asked for", .path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The certificate was issued, and its bundle lost.
    #[error("the certificate was issued, but its bundle cannot be written to {}; ask for another one", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The service's answer holds no archive.
    #[error("the certificate was issued, but the bundle in the answer is no base64")]
    NotBase64(#[source] base64::DecodeError),
}

/// A file that waits under another name until it is complete. Dropped before, it is removed.
pub(in crate::cli) struct Destination {
    path: PathBuf,
    waiting: PathBuf,
    file: File,
    replace: bool,
}

impl Destination {
    /// Makes the waiting file, empty and for its owner alone, in the directory of `path`.
    pub(in crate::cli) fn prepare(path: &Path, replace: bool) -> Result<Self, BundleError> {
        let Some(name) = path.file_name().filter(|_| !path.is_dir()) else {
            return Err(BundleError::NoFile(path.into()));
        };
        // A dangling symlink is something too.
        if !replace && path.symlink_metadata().is_ok() {
            return Err(BundleError::Exists(path.into()));
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", uuid::Uuid::new_v4().simple()));
        let waiting = path.with_file_name(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&waiting)
            .map_err(|source| BundleError::Prepare { path: path.into(), source })?;
        Ok(Self { path: path.into(), waiting, file, replace })
    }

    /// Writes the bundle and gives the file its name.
    pub(in crate::cli) fn write(mut self, bundle: &[u8]) -> Result<(), BundleError> {
        let written = self.file.write_all(bundle).and_then(|()| self.file.sync_all());
        written.and_then(|()| self.settle()).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BundleError::Exists(self.path.clone()),
            _ => BundleError::Write { path: self.path.clone(), source },
        })
    }

    fn settle(&self) -> io::Result<()> {
        if self.replace {
            return std::fs::rename(&self.waiting, &self.path);
        }
        match renameat_with(CWD, &self.waiting, CWD, &self.path, RenameFlags::NOREPLACE) {
            // Network file systems refuse the flag; the look before the service was asked has to do there.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(&self.waiting, &self.path),
            result => Ok(result?),
        }
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        // Once renamed it is not there any more, which is as good.
        let _ = std::fs::remove_file(&self.waiting);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_bundle_is_its_owners_alone_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.tar");
        let destination = Destination::prepare(&path, false).unwrap();
        let waiting = std::fs::metadata(&destination.waiting).unwrap();
        assert_eq!(waiting.permissions().mode() & 0o777, 0o600);
        assert!(!path.exists(), "nothing bears the name before it is complete");
        destination.write(b"archive").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"archive");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(directory.path()), ["web1.tar"]);
    }

    #[test]
    fn an_existing_file_stays_unless_it_is_to_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.tar");
        let late = Destination::prepare(&path, false).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Destination::prepare(&path, false), Err(BundleError::Exists(_))));
        assert!(matches!(late.write(b"archive"), Err(BundleError::Exists(_))), "made meanwhile");
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
        assert_eq!(names(directory.path()), ["web1.tar"]);
        Destination::prepare(&path, true).unwrap().write(b"archive").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"archive");
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_beforehand() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("no/such/web1.tar");
        assert!(matches!(Destination::prepare(&nowhere, false), Err(BundleError::Prepare { .. })));
        assert!(matches!(Destination::prepare(directory.path(), true), Err(BundleError::NoFile(_))));
    }
}
