//! The lock that keeps other processes from a catalog's file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::error::OpenError;
use super::place::beside;
use super::presence::Identity;

/// How long a lock is waited for: a process that was killed has it until the system has cleared up after it.
const PATIENCE: Duration = Duration::from_secs(1);

/// That this process alone has a catalog's file open. Given up when it is dropped, or when the process ends in
/// whatever way.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    held: Identity,
    _file: File,
}

impl Lock {
    /// Takes the lock of the catalog at `path`: on a file beside it, because SQLite's own file must stay as it is
    /// until it was found to be a catalog.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let lock = beside(path, ".lock");
        let failed = |source| OpenError::Io { path: lock.clone(), doing: "locked", source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&lock).map_err(failed)?;
        let patience = Instant::now() + PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => {
                    std::thread::sleep(PATIENCE / 20);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(OpenError::Locked { path: path.into(), holder: holder(&mut file) });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        // The number is only for whoever comes second: on a full disk it may be missing.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        let held = Identity::of(&file.metadata().map_err(failed)?);
        Ok(Self { path: lock, held, _file: file })
    }

    /// Whether who comes second still finds it.
    pub(super) fn is_in_place(&self) -> bool {
        self.held.is_at(&self.path)
    }
}

/// Who holds a lock, for a message.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let pid = file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return "another process".into() };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let lock = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        Lock::take(&path).unwrap();
    }
}
