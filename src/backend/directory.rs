//! Everything below a backend's root, by directory handle only.
//!
//! The root's own path is the operator's and may lead through symbolic links; below it no link is ever followed, no
//! mount point crossed and no path of more than one component opened. So whatever others rename or swap meanwhile,
//! nothing outside the backend is touched. All calls here block; [`Backend::run`](super::Backend::run) keeps them off
//! the runtime.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::backend::error::BackendError;
use crate::backend::name_folding::Naming;
use crate::model::backend::BackendName;

/// The directory below a root that is volhost's own.
pub(super) const META_DIR: &str = ".volhost";

/// Where volumes are made, below [`META_DIR`].
pub(super) const NEW: &str = "new";

/// Where removed volumes lie, below [`META_DIR`].
pub(super) const TRASH: &str = "trash";

/// A backend's root, opened for one operation.
#[derive(Debug)]
pub struct Root {
    pub(super) backend: BackendName,
    pub(super) dir: Handle,
}

/// The file system under a root: its space, and how it tells names apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Its size.
    pub total_bytes: u64,
    /// What unprivileged users can still write.
    pub free_bytes: u64,
    /// How many files it can hold; 0 if it has no such limit, or does not tell.
    pub total_inodes: u64,
    /// How many more files unprivileged users can make.
    pub free_inodes: u64,
    /// How it tells names apart.
    pub naming: Naming,
}

impl Root {
    /// Opens a root; `require_mount` demands that it lies on another file system than `/`.
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

    /// The root's path, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.dir.path
    }

    /// The size and free space of the file system, and how it tells names apart.
    pub fn usage(&self) -> Result<Usage, BackendError> {
        let stat = rustix::fs::fstatvfs(&self.dir.fd)
            .map_err(|errno| BackendError::io("ask for the free space of", self.path(), errno))?;
        Ok(Usage {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            total_inodes: stat.f_files,
            free_inodes: stat.f_favail,
            naming: self.naming()?,
        })
    }

    /// Whether nothing lies below the root that a new backend could damage: `lost+found` aside, and a `.volhost`
    /// that was begun but holds nothing.
    pub fn is_empty(&self) -> Result<bool, BackendError> {
        let mut empty = true;
        self.dir.for_each(|name, _| {
            empty = match name.to_bytes() {
                b"lost+found" => true,
                b".volhost" => {
                    self.dir.open(META_DIR)?.is_some_and(|meta| meta.holds_nothing().unwrap_or(false))
                }
                _ => false,
            };
            Ok(empty)
        })?;
        Ok(empty)
    }

    /// [`META_DIR`] itself; `None` if it was not made yet.
    pub(super) fn home(&self) -> Result<Option<Handle>, BackendError> {
        self.dir.open(META_DIR)
    }

    /// One of the directories in [`META_DIR`]; `None` where it was not made yet.
    pub(super) fn meta_dir(&self, name: &str) -> Result<Option<Handle>, BackendError> {
        match self.dir.open(META_DIR)? {
            Some(meta) => meta.open(name),
            None => Ok(None),
        }
    }

    /// One of the directories in [`META_DIR`], made where it is missing.
    pub(super) fn house_made(&self, name: &str) -> Result<Handle, BackendError> {
        self.dir.made(META_DIR)?.made(name)
    }
}

/// The name of a file while it is being written: nobody else's, in no other process and on no other machine.
pub(super) fn unfinished(like: &str) -> String {
    format!("{like}-{}", crate::files::unique_name())
}

/// An open directory and the path by which messages name it.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Handle {
    /// Opens a directory right below this one: no link, no mount point; `None` where there is nothing.
    pub(super) fn open(&self, name: &str) -> Result<Option<Self>, BackendError> {
        let path = self.path.join(name);
        match open_beneath(&self.fd, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BackendError::io("open", &path, errno)),
        }
    }

    /// Opens a directory right below this one, and makes it, closed to others, where it is missing.
    pub(super) fn made(&self, name: &str) -> Result<Self, BackendError> {
        if let Some(found) = self.open(name)? {
            return Ok(found);
        }
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => self.sync()?,
            // Another operation was first.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(BackendError::io("make", &path, errno)),
        }
        self.open(name)?.ok_or(BackendError::Missing { path })
    }

    /// What stands right below this directory, a link unfollowed; `None` where there is nothing.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, BackendError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BackendError::io("examine", &self.path.join(name), errno)),
        }
    }

    /// Writes a file right below this directory, durably, in the place of what an attempt before may have left there.
    /// Its name is not durable yet: the caller gives it the one it is to have.
    pub(super) fn write_new(
        &self,
        name: &str,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), BackendError> {
        let path = self.path.join(name);
        let failed = |what, errno| BackendError::io(what, &path, errno);
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(failed("remove", errno)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed("make", errno))?;
        let mut file = BufWriter::new(File::from(fd));
        write(&mut file)
            .and_then(|()| file.flush())
            .and_then(|()| file.get_ref().sync_all())
            .map_err(|error| failed("write", Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }

    /// Removes the files that [`unfinished`] names like this one: those of earlier attempts, and of others that are at
    /// it, whose attempt fails by that.
    pub(super) fn remove_unfinished(&self, like: &str) -> Result<(), BackendError> {
        let mut found = Vec::new();
        self.for_each(|name, _| {
            if name.to_bytes().starts_with(like.as_bytes()) {
                found.push(name.to_owned());
            }
            Ok(true)
        })?;
        for name in found {
            match rustix::fs::unlinkat(&self.fd, &*name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => {
                    let path = self.path.join(&*name.to_string_lossy());
                    return Err(BackendError::io("remove", &path, errno));
                }
            }
        }
        Ok(())
    }

    /// Makes what was done in this directory durable.
    pub(super) fn sync(&self) -> Result<(), BackendError> {
        match rustix::fs::fsync(&self.fd) {
            // Some FUSE and network file systems have no fsync for directories and say so with this one errno; what
            // they promise about directories, they promise without it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(BackendError::uncertain("make durable", &self.path, errno)),
        }
    }

    /// Calls `visit` with each entry but `.` and `..`, until it answers `false`.
    pub(super) fn for_each(
        &self,
        mut visit: impl FnMut(&CStr, FileType) -> Result<bool, BackendError>,
    ) -> Result<(), BackendError> {
        let unreadable = |errno| BackendError::io("list", &self.path, errno);
        let mut entries = Dir::read_from(&self.fd).map_err(unreadable)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(unreadable)?;
            let name = entry.file_name();
            if !matches!(name.to_bytes(), b"." | b"..") && !visit(name, entry.file_type())? {
                break;
            }
        }
        Ok(())
    }

    fn holds_nothing(&self) -> Result<bool, BackendError> {
        let mut nothing = true;
        self.for_each(|name, _| {
            nothing = name.to_bytes().starts_with(super::identity::UNFINISHED.as_bytes());
            Ok(nothing)
        })?;
        Ok(nothing)
    }
}

/// Opens one name below a directory handle: it cannot leave the directory, follow a link or cross a mount point.
pub(super) fn open_beneath(
    dir: impl AsFd,
    name: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // O_NONBLOCK, because a FIFO that somebody put there must not hold us; it means nothing for a directory, and
    // openat2 refuses it with O_PATH.
    let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    rustix::fs::openat2(dir, name, flags | wait | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A directory of our own whose owner's rights were widened; they are taken back by [`Widened::restore`].
///
/// Only a process without root's rights needs it: the kernel lets such a one move a directory to another parent, or
/// empty it, only where the directory's own mode lets it write.
pub(super) struct Widened {
    fd: OwnedFd,
    mode: Mode,
}

impl Widened {
    /// Gives the owner `rights` on the directory of that name; `None` when it is not ours, or has them already.
    pub(super) fn open(
        dir: impl AsFd,
        name: impl rustix::path::Arg,
        rights: Mode,
    ) -> Result<Option<Self>, Errno> {
        // O_PATH, because the mode may forbid everything else.
        let fd = open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&fd)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if stat.st_uid != rustix::process::geteuid().as_raw() || mode.contains(rights) {
            return Ok(None);
        }
        let widened = Self { fd, mode };
        widened.set(mode | rights)?;
        Ok(Some(widened))
    }

    /// Gives the directory the mode back that it had.
    pub(super) fn restore(self) -> Result<(), Errno> {
        self.set(self.mode)
    }

    fn set(&self, mode: Mode) -> Result<(), Errno> {
        // The one way to change a mode by a handle that cannot read: the link leads to the handle's own directory.
        rustix::fs::chmod(format!("/proc/self/fd/{}", self.fd.as_raw_fd()), mode)
    }
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

    #[test]
    fn no_name_leads_out_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        for name in ["..", "../..", "/etc", "a/../../.."] {
            assert!(open_beneath(&root.dir.fd, name, OFlags::RDONLY).is_err(), "{name}");
        }
    }
}
