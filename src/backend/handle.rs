//! Directories by handle: everything below a backend's root is reached this way.
//!
//! No link is followed, no mount point crossed, and no path of more than one component opened. So nothing outside the
//! backend is touched, whatever others rename or swap meanwhile.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::backend::error::BackendError;

/// Returns a name for a file while it is being written, unique among all processes and machines.
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
    /// Opens a directory right below this one, but no link and no mount point; `None` if there is no such entry.
    pub(super) fn open(&self, name: &str) -> Result<Option<Self>, BackendError> {
        let path = self.path.join(name);
        match open_beneath(&self.fd, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BackendError::io("open", &path, errno)),
        }
    }

    /// Opens a directory right below this one, or creates it, closed to other users.
    pub(super) fn made(&self, name: &str) -> Result<Self, BackendError> {
        if let Some(found) = self.open(name)? {
            return Ok(found);
        }
        let path = self.path.join(name);
        match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => self.sync()?,
            // Another operation was faster.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(BackendError::io("make", &path, errno)),
        }
        self.open(name)?.ok_or(BackendError::Missing { path })
    }

    /// Returns the status of an entry right below this directory, without following a link; `None` if there is none.
    pub(super) fn stat(&self, name: &str) -> Result<Option<Stat>, BackendError> {
        match rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(BackendError::io("examine", &self.path.join(name), errno)),
        }
    }

    /// Writes a file right below this directory durably, replacing a leftover of an earlier attempt. The name is not
    /// durable yet: the caller renames the file.
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

    /// Removes the files with this prefix that [`unfinished`] named: those of earlier attempts, and those of other writers,
    /// whose attempts then fail.
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

    /// Makes changes in this directory durable.
    pub(super) fn sync(&self) -> Result<(), BackendError> {
        match rustix::fs::fsync(&self.fd) {
            // Some FUSE and network file systems have no fsync for directories and report that with this errno; they
            // keep their promises about directories without it.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(BackendError::uncertain("make durable", &self.path, errno)),
        }
    }

    /// Calls `visit` with each entry except `.` and `..`, until it returns `false`.
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
}

/// Opens one name right below a directory, without leaving it, following a link or crossing a mount point.
pub(super) fn open_beneath(
    dir: impl AsFd,
    name: impl rustix::path::Arg,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    // O_NONBLOCK, because a FIFO that somebody put there must not block this process. It has no effect on a directory,
    // and openat2 refuses it with O_PATH.
    let wait = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
    rustix::fs::openat2(dir, name, flags | wait | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// A directory of this process's user whose owner has more rights for a while; [`TemporaryMode::restore`] takes them
/// back.
///
/// Only a process that is not root needs it: the kernel lets such a process move a directory to another parent, or
/// empty it, only if the directory's own mode allows writing.
pub(super) struct TemporaryMode {
    fd: OwnedFd,
    mode: Mode,
}

impl TemporaryMode {
    /// Gives the owner `rights` on a directory; `None` if it belongs to another user or allows that already.
    pub(super) fn open(
        dir: impl AsFd,
        name: impl rustix::path::Arg,
        rights: Mode,
    ) -> Result<Option<Self>, Errno> {
        // O_PATH, because the mode may allow nothing else.
        let fd = open_beneath(dir, name, OFlags::PATH | OFlags::DIRECTORY)?;
        let stat = rustix::fs::fstat(&fd)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        if stat.st_uid != rustix::process::geteuid().as_raw() || mode.contains(rights) {
            return Ok(None);
        }
        let temporary = Self { fd, mode };
        temporary.set(mode | rights)?;
        Ok(Some(temporary))
    }

    /// Gives the directory its former mode back.
    pub(super) fn restore(self) -> Result<(), Errno> {
        self.set(self.mode)
    }

    fn set(&self, mode: Mode) -> Result<(), Errno> {
        // The only way to change the mode with an O_PATH handle: this link leads to the handle's directory.
        rustix::fs::chmod(format!("/proc/self/fd/{}", self.fd.as_raw_fd()), mode)
    }
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Returns the kind of an entry that stands where a directory should, in words.
pub(super) fn kind(of: FileType) -> &'static str {
    match of {
        FileType::Symlink => "a symbolic link",
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        _ => "a special file",
    }
}

pub(super) fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::open;

    #[test]
    fn no_name_leads_out_of_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        for name in ["..", "../..", "/etc", "a/../../.."] {
            assert!(open_beneath(&root.dir.fd, name, OFlags::RDONLY).is_err(), "{name}");
        }
    }
}
