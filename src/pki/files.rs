//! The directory's files: the lock that serialises its writers, and writing that leaves the old file or the new one.
//!
//! A key is never replaced: what exists under its name stays, whoever wrote it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;

/// The exclusive right to write in a directory, until it is dropped.
#[derive(Debug)]
pub struct Lock {
    // The lock belongs to the open file and ends when it is closed.
    _file: File,
}

impl Lock {
    /// Makes the directory (0755: its keys are 0600 one by one, and certificates are for everyone) where it is
    /// missing, and waits until no other process writes there.
    pub fn acquire(dir: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(".lock"))?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(|()| Self { _file: file })?),
            }
        }
    }
}

/// Reads a file that need not exist.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a private key, 0600, under a name that must be free.
pub fn write_key(_held: &Lock, path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o600, |from, to| {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // A file system without this flag: the lock keeps our own processes out between the look and the rename.
            Err(Errno::INVAL | Errno::NOSYS) if std::fs::symlink_metadata(to).is_err() => {
                std::fs::rename(from, to)
            }
            done => Ok(done?),
        }
    })
}

/// Writes a certificate, 0644, in place of the one that may be there.
pub fn write_certificate(_held: &Lock, path: &Path, content: &[u8]) -> io::Result<()> {
    write(path, content, 0o644, |from, to| std::fs::rename(from, to))
}

/// Whether users other than the owner can read a file.
pub fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    let temporary = dir.join(temporary);
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
