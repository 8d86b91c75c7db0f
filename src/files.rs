//! Small files of our own, whole or not at all: the lock that serialises their writers, and writing that leaves the
//! old content or the new one, whatever happens.
//!
//! For keys, certificates and spec files; nothing below a backend is touched with this.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

/// The exclusive right to write what a lock file stands for, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    // The lock belongs to the open file and ends when it is closed.
    _file: File,
}

impl Lock {
    /// Waits until no other process holds the lock file, which is made, with its directory (0755), where it is missing.
    pub fn acquire(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            make_dir(dir)?;
        }
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(|()| Self { _file: file })?),
            }
        }
    }
}

/// Makes a directory (0755) and those above it where they are missing.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(dir)
}

/// Reads a file that need not exist.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file under a name that must be free. The caller holds the lock that its other writers take.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, rename_to_free)
}

/// Writes a file in place of the one that may be there. The caller holds the lock that its other writers take.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |from, to| std::fs::rename(from, to))
}

/// Gives a file another name in its directory, durably; one that must be free. The caller holds the lock that its
/// other writers take.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rename_to_free(from, to)?;
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Removes a file, durably.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without this flag: the lock keeps our own processes out between the look and the rename.
        Err(Errno::INVAL | Errno::NOSYS) if std::fs::symlink_metadata(to).is_err() => {
            std::fs::rename(from, to)
        }
        done => Ok(done?),
    }
}

/// Removes what a process left that was killed while it wrote this file. The caller holds the lock that the file's other
/// writers take. A leftover that cannot be removed stays: the next write of the file says why.
pub fn sweep(path: &Path) {
    if let Some(temporary) = temporary(path) {
        let _ = std::fs::remove_file(temporary);
    }
}

/// The name that a file is written under first. It begins with a dot and ends in nothing that an engine reads.
fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".new");
    Some(path.parent()?.join(name))
}

fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let (Some(dir), Some(temporary)) = (path.parent(), temporary(path)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // One name suffices under the lock, and what a crash left there is swept away by the next attempt.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let done = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have narrowed the mode.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if done.is_err() {
        // The first error is the one to tell; a leftover is swept away by the next attempt.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_file_takes_nobodys_place_and_a_replaced_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first", 0o600).unwrap();
        assert_eq!(create(&path, b"second", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"first"[..]));
        replace(&path, b"third", 0o644).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"third"[..]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let other = dir.path().join("other");
        create(&other, b"other", 0o600).unwrap();
        assert_eq!(rename(&path, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(&other).unwrap();
        rename(&path, &other).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        remove(&other).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a temporary file was left");
    }

    #[test]
    fn what_a_crash_left_under_the_temporary_name_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".key.new"), "half").unwrap();
        create(&dir.path().join("key"), b"whole", 0o600).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join(".key.new"), "half").unwrap();
        sweep(&dir.path().join("key"));
        sweep(&dir.path().join("other"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
