//! A look at a directory that may never end: made by a process of its own, which is given up on.
//!
//! A thread will not do. A process ends only when all of its threads have ended, and one that waits in the kernel for
//! storage that does not answer cannot be ended at all, so that `doctor` would hang where it is needed most. The process
//! is this program again, told by the environment what to look at; its answer is one line of JSON. It only reads.

use std::io::{self, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::PATIENCE;
use super::filesystem::FileSystem;
use super::space::Space;
use crate::backend::identity_at;

/// The variable that tells such a process what to look at.
const VARIABLE: &str = "VOLHOST_DOCTOR_LOOK";

/// How many directories are looked at at the same time.
const AT_ONCE: usize = 16;

/// What a directory looks like from this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Sight {
    /// There is nothing.
    Missing,
    /// It is there.
    Directory {
        /// The identity of the backend that it is; none where it is none. Else why it cannot be read.
        identity: Result<Option<String>, String>,
        /// Whether this user may write.
        writable: Writable,
        /// The room in its file system.
        space: Option<Space>,
        /// What its file system allows and promises.
        file_system: FileSystem,
    },
    /// It cannot be looked at.
    Failed(String),
}

/// Whether a directory may be written to. By the kernel's word: nothing is written to find out, so that a disk that
/// only refuses writes is not noticed before the kernel has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Writable {
    /// It may.
    Yes,
    /// The file system is mounted read-only, or became so after an error.
    ReadOnly,
    /// This user may not; others, in containers, may be allowed to.
    Denied,
}

/// Looks, in a process of its own; none where that has not ended in time.
pub(super) fn look(directory: &Path, patience: Duration) -> Option<Sight> {
    // By this name also a program that was replaced while it runs is found.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("volhost").arg("doctor").env(VARIABLE, directory);
    // It may live on for as long as the storage hangs: it must hold nothing that others wait for.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Some(Sight::Failed(error.to_string())),
    };
    let stdout = child.stdout.take()?;
    let (sender, told) = mpsc::channel();
    let reading = std::thread::Builder::new().spawn(move || {
        let mut text = String::new();
        let read = io::BufReader::new(stdout).read_to_string(&mut text);
        // Nobody listens any more once it was given up on.
        let _ = sender.send(read.map(|_| text));
    });
    if let Err(error) = reading {
        let _ = child.kill();
        return Some(Sight::Failed(format!("no thread can be started: {error}")));
    }
    let sight = match told.recv_timeout(patience) {
        Ok(Ok(text)) => serde_json::from_str(&text).unwrap_or_else(|error| Sight::Failed(error.to_string())),
        Ok(Err(error)) => Sight::Failed(error.to_string()),
        Err(_) => {
            // It ends when the storage lets it.
            let _ = child.kill();
            return None;
        }
    };
    let _ = child.wait();
    Some(sight)
}

/// Looks at several directories, some at the same time, each as [`look`] does.
pub(super) fn look_at_all(directories: &[&Path]) -> Vec<Option<Sight>> {
    let look_at_some = |some: &[&Path]| -> Vec<Option<Sight>> {
        std::thread::scope(|scope| {
            let begin = |path: &Path| {
                let path = path.to_owned();
                std::thread::Builder::new().spawn_scoped(scope, move || look(&path, PATIENCE))
            };
            let looking: Vec<_> = some.iter().copied().map(begin).collect();
            let told = looking.into_iter().map(|thread| match thread {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|_| Some(Sight::Failed("the look broke off".into())))
                }
                Err(error) => Some(Sight::Failed(format!("no thread can be started: {error}"))),
            });
            told.collect()
        })
    };
    directories.chunks(AT_ONCE).flat_map(look_at_some).collect()
}

/// What this process was told to look at, if it was started for that.
#[must_use]
pub(crate) fn asked() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Looks, and may never return.
#[must_use]
pub(crate) fn look_here(directory: &Path) -> Sight {
    match std::fs::metadata(directory) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Sight::Failed("it is no directory".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Sight::Missing,
        Err(error) => return Sight::Failed(error.to_string()),
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
    Sight::Directory { identity, writable, space, file_system }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_seen_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look_here(&dir.path().join("missing")), Sight::Missing);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(look_here(&file), Sight::Failed(_)));
        let Sight::Directory { identity: Ok(None), writable: Writable::Yes, space: Some(space), .. } =
            look_here(dir.path())
        else {
            panic!("{:?}", look_here(dir.path()))
        };
        assert!(space.total_bytes > 0);
        std::fs::create_dir(dir.path().join(".volhost")).unwrap();
        std::fs::write(dir.path().join(".volhost/backend.json"), "{").unwrap();
        let seen = look_here(dir.path());
        assert!(
            matches!(&seen, Sight::Directory { identity: Err(why), .. } if why.contains("backend.json")),
            "{seen:?}"
        );
        // As it goes from one process to the other.
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Sight>(&text).unwrap(), seen);
    }
}
