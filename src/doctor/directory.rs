//! Inspects a directory in a separate process, because the inspection may never end.
//!
//! A thread does not suffice. A process ends only when all of its threads have ended, and a thread that waits
//! in the kernel for storage that does not answer cannot be ended at all, so `doctor` would hang exactly when
//! it is needed most. The process is this program again; an environment variable names the directory, and the
//! answer is one line of JSON. It only reads.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::LOCAL_TIMEOUT;
use super::filesystem::FileSystem;
use super::space::Space;
use crate::backend::identity_at;

/// The variable that names the directory for such a process.
const REQUEST_VARIABLE: &str = "VOLHOST_DOCTOR_LOOK";

/// The number of directories that are inspected at the same time.
const MAX_PARALLEL: usize = 16;

/// The state of a directory as this machine sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DirectoryState {
    /// The directory does not exist.
    Missing,
    /// The directory exists.
    Directory {
        /// The identity of the backend in it; `None` if it is not a backend; an error if the identity cannot
        /// be read.
        identity: Result<Option<String>, String>,
        /// This user's write access.
        writable: Writable,
        /// The space in its file system.
        space: Option<Space>,
        /// The facts about its file system.
        file_system: FileSystem,
    },
    /// The directory cannot be inspected.
    Failed(String),
}

/// The write access to a directory, as the kernel reports it. The doctor writes nothing to find out, so a disk
/// that only refuses writes is not detected before the kernel has detected it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Writable {
    Yes,
    /// The file system is mounted read-only, or became so after an error.
    ReadOnly,
    /// This user may not write; others, in containers, may be allowed to.
    Denied,
}

/// Inspects a directory in a separate process; `None` if that does not end in time.
pub(super) fn inspect(directory: &Path, timeout: Duration) -> Option<DirectoryState> {
    // This path also works if the program file was replaced while it runs.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("volhost").arg("doctor").env(REQUEST_VARIABLE, directory);
    // The process may live as long as the storage hangs, so it must hold nothing that others wait for.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Some(DirectoryState::Failed(error.to_string())),
    };
    let stdout = child.stdout.take()?;
    let (sender, told) = mpsc::channel();
    let reading = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let read = io::BufReader::new(stdout).read_to_string(&mut text);
        // The receiver is gone if the time limit has passed.
        let _ = sender.send(read.map(|_| text));
    });
    if let Err(error) = reading {
        let _ = child.kill();
        return Some(DirectoryState::Failed(format!("no thread can be started: {error}")));
    }
    let dir_state = match told.recv_timeout(timeout) {
        Ok(Ok(text)) => {
            serde_json::from_str(&text).unwrap_or_else(|error| DirectoryState::Failed(error.to_string()))
        }
        Ok(Err(error)) => DirectoryState::Failed(error.to_string()),
        Err(_) => {
            // The process ends when the storage lets it.
            let _ = child.kill();
            return None;
        }
    };
    let _ = child.wait();
    Some(dir_state)
}

/// Inspects several directories, some at the same time, each as [`inspect`] does.
pub(super) fn inspect_all(directories: &[&Path]) -> Vec<Option<DirectoryState>> {
    let inspect_some = |some: &[&Path]| -> Vec<Option<DirectoryState>> {
        std::thread::scope(|scope| {
            let begin = |path: &Path| {
                let path = path.to_owned();
                std::thread::Builder::new().spawn_scoped(scope, move || inspect(&path, LOCAL_TIMEOUT))
            };
            let looking: Vec<_> = some.iter().copied().map(begin).collect();
            let told = looking.into_iter().map(|thread| match thread {
                Ok(thread) => thread
                    .join()
                    .unwrap_or_else(|_| Some(DirectoryState::Failed("the look broke off".into()))),
                Err(error) => Some(DirectoryState::Failed(format!("no thread can be started: {error}"))),
            });
            told.collect()
        })
    };
    directories.chunks(MAX_PARALLEL).flat_map(inspect_some).collect()
}

/// Returns the directory that this process was started to inspect; `None` if it was started for something
/// else.
#[must_use]
pub(crate) fn requested() -> Option<PathBuf> {
    std::env::var_os(REQUEST_VARIABLE).map(PathBuf::from)
}

/// Inspects a directory in this process. Never returns if the storage hangs.
#[must_use]
pub(crate) fn inspect_here(directory: &Path) -> DirectoryState {
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return DirectoryState::Failed("it is no directory".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return DirectoryState::Missing,
        Err(error) => return DirectoryState::Failed(error.to_string()),
    }
    let identity = identity_at(directory)
        .map(|found| found.map(|identity| identity.id.to_string()))
        .map_err(|error| error.to_string());
    let writable = match rustix::fs::accessat(CWD, directory, Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => Writable::Yes,
        Err(Errno::ROFS) => Writable::ReadOnly,
        Err(_) => Writable::Denied,
    };
    let (space, file_system) = (Space::of(directory).ok(), FileSystem::of(directory));
    DirectoryState::Directory { identity, writable, space, file_system }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_seen_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect_here(&dir.path().join("missing")), DirectoryState::Missing);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(inspect_here(&file), DirectoryState::Failed(_)));
        let DirectoryState::Directory {
            identity: Ok(None), writable: Writable::Yes, space: Some(space), ..
        } = inspect_here(dir.path())
        else {
            panic!("{:?}", inspect_here(dir.path()))
        };
        assert!(space.total_bytes > 0);
        std::fs::create_dir(dir.path().join(".volhost")).unwrap();
        std::fs::write(dir.path().join(".volhost/backend.json"), "{").unwrap();
        let seen = inspect_here(dir.path());
        assert!(
            matches!(&seen, DirectoryState::Directory { identity: Err(why), .. } if why.contains("backend.json")),
            "{seen:?}"
        );
        // The state passes from one process to the other as JSON.
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<DirectoryState>(&text).unwrap(), seen);
    }
}
