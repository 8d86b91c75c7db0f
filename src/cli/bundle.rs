//! The file that a host's bundle is written to.
//!
//! The file holds a private key: others can never read it, not even for a moment; it is never half-written
//! under its name, and never replaces an existing file unasked.

use std::io;
use std::path::{Path, PathBuf};

use super::output::Pending;

/// Reasons why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum BundleError {
    /// The file exists already.
    #[error("{} exists: name another file, or give --force to replace it", .0.display())]
    Exists(PathBuf),
    /// The path names no file.
    #[error("{} names no file: the bundle is written to a file, such as web1.tar", .0.display())]
    NoFile(PathBuf),
    /// The temporary file cannot be made; no certificate was issued.
    #[error("the bundle cannot be written to {}, so that no certificate was asked for", .path.display())]
    Prepare {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The certificate was issued, but its bundle could not be written.
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

/// The destination of a bundle: a file that has a temporary name until it is complete. A drop before that
/// removes it.
pub(in crate::cli) struct Destination {
    path: PathBuf,
    file: Pending,
}

impl Destination {
    /// Makes the file, empty and readable only for its owner, in the directory of `path`.
    pub(in crate::cli) fn prepare(path: &Path, replace: bool) -> Result<Self, BundleError> {
        if path.file_name().is_none() || path.is_dir() {
            return Err(BundleError::NoFile(path.into()));
        }
        // A dangling symlink counts as an existing file.
        if !replace && path.symlink_metadata().is_ok() {
            return Err(BundleError::Exists(path.into()));
        }
        let file = Pending::begin(path, 0o600, replace)
            .map_err(|source| BundleError::Prepare { path: path.into(), source })?;
        Ok(Self { path: path.into(), file })
    }

    /// Writes the bundle and gives the file its name.
    pub(in crate::cli) fn write(self, bundle: &[u8]) -> Result<(), BundleError> {
        let Self { path, file } = self;
        file.finish(bundle).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => BundleError::Exists(path),
            _ => BundleError::Write { path, source },
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use volhost_test_fuse::{Op, ScratchFs};

    fn names(directory: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_bundle_is_its_owners_alone_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web1.tar");
        let destination = Destination::prepare(&path, false).unwrap();
        let [waiting] = &names(directory.path())[..] else { panic!("no file waits") };
        let waiting = std::fs::metadata(directory.path().join(waiting)).unwrap();
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

    /// Tests a file system such as NFS, which cannot rename without replacing.
    #[test]
    fn a_file_made_meanwhile_stays_where_no_rename_spares_it() {
        let Some(storage) = ScratchFs::mount() else { return };
        storage.control().refuse_rename_flags(true);
        let path = storage.at().join("web1.tar");
        let late = Destination::prepare(&path, false).unwrap();
        storage.control().hang_on(Op::Rename, true);
        std::thread::scope(|threads| {
            let late = threads.spawn(|| late.write(b"archive"));
            assert!(storage.control().wait_for_hanging(1, std::time::Duration::from_secs(20)));
            std::fs::write(storage.backing().join("web1.tar"), "mine").unwrap();
            storage.control().hang_on(Op::Rename, false);
            assert!(matches!(late.join().unwrap(), Err(BundleError::Exists(_))));
        });
        assert_eq!(std::fs::read(storage.backing().join("web1.tar")).unwrap(), b"mine");
        std::fs::remove_file(&path).unwrap();
        let flushes = storage.control().seen(Op::Fsyncdir);
        Destination::prepare(&path, false).unwrap().write(b"archive").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"archive");
        assert_eq!(names(storage.at()), ["web1.tar"]);
        assert!(
            storage.control().seen(Op::Fsyncdir) > flushes,
            "the new name may not outlast a loss of power"
        );
    }

    #[test]
    fn a_place_that_cannot_be_written_is_told_beforehand() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("no/such/web1.tar");
        assert!(matches!(Destination::prepare(&nowhere, false), Err(BundleError::Prepare { .. })));
        assert!(matches!(Destination::prepare(directory.path(), true), Err(BundleError::NoFile(_))));
    }
}
