//! A backend's root: opened for one operation, checked, and closed afterwards.
//!
//! The root's own path is the operator's and may lead through symbolic links; below it everything goes by [`Handle`]. All
//! calls here block; [`Backend::run`](super::Backend::run) keeps them off the runtime.

use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::backend::error::BackendError;
use crate::backend::handle::Handle;
use crate::backend::layout::{META_DIR, UNFINISHED_IDENTITY};
use crate::backend::name_folding::NameFolding;
use crate::model::backend::BackendName;

/// A backend's root, opened for one operation.
#[derive(Debug)]
pub struct Root {
    pub(super) backend: BackendName,
    pub(super) dir: Handle,
}

/// The file system under a root: its space, and how it folds names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Its size.
    pub total_bytes: u64,
    /// The bytes that unprivileged users can still write.
    pub free_bytes: u64,
    /// The number of files it can hold; 0 if it has no such limit or does not report it.
    pub total_inodes: u64,
    /// The number of files that unprivileged users can still make.
    pub free_inodes: u64,
    /// How it folds names.
    pub name_folding: NameFolding,
}

impl Root {
    /// Opens a root. With `require_mount` it must lie on another file system than `/`.
    pub(super) fn open(
        backend: &BackendName,
        path: &Path,
        require_mount: bool,
    ) -> Result<Self, BackendError> {
        let offline = |reason| BackendError::Offline { backend: backend.clone(), reason };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let path = path.display();
            offline(match errno {
                Errno::NOENT => format!("{path} does not exist; is the share mounted?"),
                Errno::NOTDIR => format!("{path} is not a directory"),
                Errno::STALE | Errno::NOTCONN => {
                    format!("{path} is gone from its server ({errno}); mount the share again")
                }
                Errno::MFILE | Errno::NFILE => {
                    format!("{path} cannot be opened: {errno}; raise the limit of open files (LimitNOFILE)")
                }
                _ => format!("{path} cannot be opened: {errno}"),
            })
        })?;
        if require_mount {
            let device = rustix::fs::fstat(&fd).map(|stat| stat.st_dev);
            let root = rustix::fs::stat("/").map(|stat| stat.st_dev);
            let path = path.display();
            match (device, root) {
                (Ok(device), Ok(root)) if device != root => {}
                (Ok(_), Ok(_)) => {
                    return Err(offline(format!(
                        "{path} lies on the root file system, but `require_mount` is set; is the share mounted?"
                    )));
                }
                (Err(errno), _) | (_, Err(errno)) => {
                    return Err(offline(format!("{path} cannot be examined: {errno}")));
                }
            }
        }
        Ok(Self { backend: backend.clone(), dir: Handle { fd, path: path.into() } })
    }

    /// Returns the root's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// Returns the size and free space of the file system, and how it folds names.
    pub fn usage(&self) -> Result<Usage, BackendError> {
        let stat = rustix::fs::fstatvfs(&self.dir.fd)
            .map_err(|errno| BackendError::io("ask for the free space of", self.path(), errno))?;
        Ok(Usage {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_inodes: stat.f_files,
            free_inodes: stat.f_favail,
            name_folding: self.name_folding()?,
        })
    }

    /// Returns true if nothing below the root could be damaged by a new backend: there is only `lost+found` and a
    /// `.volhost` without content.
    pub fn is_empty(&self) -> Result<bool, BackendError> {
        let mut empty = true;
        self.dir.for_each(|name, _| {
            empty = match name.to_bytes() {
                b"lost+found" => true,
                b".volhost" => {
                    self.dir.open(META_DIR)?.is_some_and(|meta| holds_nothing(&meta).unwrap_or(false))
                }
                _ => false,
            };
            Ok(empty)
        })?;
        Ok(empty)
    }

    /// Opens [`META_DIR`]; `None` if it was not made yet.
    pub(super) fn meta(&self) -> Result<Option<Handle>, BackendError> {
        self.dir.open(META_DIR)
    }

    /// Opens a directory in [`META_DIR`]; `None` if it was not made yet.
    pub(super) fn meta_dir(&self, name: &str) -> Result<Option<Handle>, BackendError> {
        match self.dir.open(META_DIR)? {
            Some(meta) => meta.open(name),
            None => Ok(None),
        }
    }

    /// Opens a directory in [`META_DIR`], or creates it.
    pub(super) fn meta_dir_made(&self, name: &str) -> Result<Handle, BackendError> {
        self.dir.made(META_DIR)?.made(name)
    }

    /// Returns how the storage folds names below it.
    pub fn name_folding(&self) -> Result<NameFolding, BackendError> {
        self.dir.name_folding()
    }
}

/// Returns true if [`META_DIR`] holds nothing but an unfinished identity.
fn holds_nothing(meta: &Handle) -> Result<bool, BackendError> {
    let mut nothing = true;
    meta.for_each(|name, _| {
        nothing = name.to_bytes().starts_with(UNFINISHED_IDENTITY.as_bytes());
        Ok(nothing)
    })?;
    Ok(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::{Mounted, backend_name, is_root, open};

    fn refused(path: &Path, require_mount: bool) -> String {
        Root::open(&backend_name("fast"), path, require_mount).unwrap_err().to_string()
    }

    #[test]
    fn a_root_that_cannot_be_used_is_offline_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert_eq!(
            refused(&gone, false),
            format!("backend \"fast\" is offline: {} does not exist; is the share mounted?", gone.display())
        );
        assert!(refused(&file, false).ends_with("is not a directory"));
        assert!(refused(Path::new("/"), true).contains("lies on the root file system"));
    }

    #[test]
    fn a_mounted_root_satisfies_require_mount() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let _mounted = Mounted::tmpfs(dir.path());
        Root::open(&backend_name("fast"), dir.path(), true).unwrap();
    }

    #[test]
    fn the_way_to_a_root_may_lead_through_links() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        let root = open(&dir.path().join("link"));
        assert!(root.is_empty().unwrap());
        let usage = root.usage().unwrap();
        assert!(usage.total_bytes >= usage.free_bytes && usage.total_bytes > 0);
    }
}
