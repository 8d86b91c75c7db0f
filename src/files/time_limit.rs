//! Reads files with a time limit.
//!
//! A file on a share whose server is gone holds its reader in the kernel, and nothing can interrupt that. So a separate
//! thread reads, and is left behind if it takes too long. The caller bounds how many are left behind: it starts no
//! second one for the same work.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// How long reading files may take.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The file that each thread is reading.
static READING: Mutex<Vec<(ThreadId, PathBuf)>> = Mutex::new(Vec::new());

/// Records the file that this thread reads, until it is dropped.
pub(super) struct ReadingMark;

impl ReadingMark {
    pub(super) fn new(path: &Path) -> Self {
        reading(|all| all.push((thread::current().id(), path.to_owned())));
        Self
    }
}

impl Drop for ReadingMark {
    fn drop(&mut self) {
        let own = thread::current().id();
        reading(|all| {
            if let Some(latest) = all.iter().rposition(|(thread, _)| *thread == own) {
                all.swap_remove(latest);
            }
        });
    }
}

fn reading<T>(work: impl FnOnce(&mut Vec<(ThreadId, PathBuf)>) -> T) -> T {
    // Whole after every statement under this lock.
    work(&mut READING.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A thread that reads files for a caller.
#[derive(Debug)]
pub(crate) struct ReaderThread(ThreadId);

impl ReaderThread {
    /// Returns the file that the thread is reading at this moment, if any.
    #[must_use]
    pub(crate) fn path(&self) -> Option<PathBuf> {
        reading(|all| all.iter().rev().find(|(thread, _)| *thread == self.0).map(|(_, path)| path.clone()))
    }

    /// Returns the error for work that has taken too long.
    #[must_use]
    pub(crate) fn unfinished(&self) -> Unfinished {
        Unfinished::Silent { path: self.path() }
    }
}

/// Why work on files has no result.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Unfinished {
    /// It took too long.
    #[error(
        "{what} does not answer, {limit} s were waited: is a network share away?",
        what = path.as_ref().map_or_else(|| "the storage that the files lie on".to_owned(), |path| path.display().to_string()),
        limit = READ_TIMEOUT.as_secs()
    )]
    Silent {
        /// The file that was being read, if it is known.
        path: Option<PathBuf>,
    },
    /// No thread could be started.
    #[error("no thread can be started to read the files (LimitNPROC, TasksMax, `ulimit -u`)")]
    NoThread(#[source] Arc<io::Error>),
    /// The thread ended by a panic, which was logged.
    #[error("reading the files broke off: the log says why")]
    BrokeOff,
}

/// Begins work in a new thread.
pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<ReaderThread, Unfinished> {
    let thread = thread::Builder::new().name(name.into()).spawn(work);
    thread
        .map(|thread| ReaderThread(thread.thread().id()))
        .map_err(|error| Unfinished::NoThread(error.into()))
}

/// Does work that reads files in a new thread, and waits for it no longer than [`READ_TIMEOUT`].
pub(crate) fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
    let (sender, receiver) = mpsc::channel();
    let waiting = start("files", move || {
        // Nobody listens any more if the work was given up.
        let _ = sender.send(work());
    })?;
    receiver.recv_timeout(READ_TIMEOUT).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => waiting.unfinished(),
        mpsc::RecvTimeoutError::Disconnected => Unfinished::BrokeOff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_that_holds_a_thread_up_is_known() {
        let (ready, is_ready) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let waiting = start("test", move || {
            let _outer = ReadingMark::new(Path::new("/outer"));
            let inner = ReadingMark::new(Path::new("/inner"));
            ready.send(()).unwrap();
            may_go_on.recv().unwrap();
            drop(inner);
            ready.send(()).unwrap();
            may_go_on.recv().unwrap();
        })
        .unwrap();
        is_ready.recv().unwrap();
        assert_eq!(waiting.path().as_deref(), Some(Path::new("/inner")));
        let told = waiting.unfinished().to_string();
        assert!(told.starts_with("/inner does not answer"), "{told}");
        go_on.send(()).unwrap();
        is_ready.recv().unwrap();
        assert_eq!(waiting.path().as_deref(), Some(Path::new("/outer")));
        go_on.send(()).unwrap();
        assert_eq!(within(|| 7).unwrap(), 7);
        assert!(matches!(within(|| panic!("as a test")), Err::<(), _>(Unfinished::BrokeOff)));
    }
}
