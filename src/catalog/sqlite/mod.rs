//! The embedded engine: a catalog in one SQLite file on this machine.
//!
//! # How a change becomes durable
//!
//! One thread writes. It takes what has queued up meanwhile, decides each change on a draft of the view, stores the
//! records of all of them in one transaction and waits for the disk once; only then the draft becomes the view and
//! the callers are answered. What [may follow](Change::may_follow) its answer waits for the next transaction, or for a
//! second without a change. Another thread, with a connection of its own, moves the log into the file in the
//! background, so that no commit waits for it. Readers see neither.
//!
//! A file is either opened whole or left alone: what is empty, foreign, damaged or newer is refused byte for byte as
//! it was, because an empty catalog in the place of a lost one would make every volume vanish from its engines.
//!
//! It must never be opened where file locks or shared memory do not work, nor by two processes.

mod checkpoint;
mod error;
mod file;
mod offline;
mod place;
mod schema;
mod writer;

use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};

use self::checkpoint::Checkpoints;
pub use self::error::OpenError;
pub use self::offline::{Claim, peek, read};
use self::writer::{Job, Writer};
use super::{Catalog, CatalogError, Change, Location, Submitted, View};

/// A catalog in a file. Dropping it waits until everything queued is durable, as [`close`](Catalog::close) does
/// without blocking.
#[derive(Debug)]
pub struct Sqlite {
    view: Arc<ArcSwap<View>>,
    location: String,
    /// `None` once it is being closed.
    queue: Mutex<Option<Sender<Job>>>,
    /// Its sender is dropped when the writer has ended, however it ended.
    ended: watch::Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens the catalog in the file at `path`, which is made where there is none, with the directories above it. Blocks
/// until every record was read.
pub fn open(path: &Path) -> Result<Sqlite, OpenError> {
    serve(path, file::open(path)?)
}

/// Starts the threads of an opened file.
fn serve(path: &Path, opened: file::Opened) -> Result<Sqlite, OpenError> {
    let location = Location::Sqlite(path.to_path_buf()).to_string();
    let view = Arc::new(ArcSwap::from_pointee(opened.view));
    let (queue, jobs) = mpsc::channel();
    let (ends, ended) = watch::channel(());
    let no_thread = |source| OpenError::Io { path: path.into(), doing: "served by a thread", source };
    let checkpoints =
        Checkpoints::start(opened.checkpointer, opened.log, location.clone()).map_err(no_thread)?;
    let writer = Writer::new(opened.writer, checkpoints, opened.lock, Arc::clone(&view), location.clone());
    let thread = std::thread::Builder::new()
        .name("catalog".into())
        .spawn(move || {
            writer.run(jobs);
            drop(ends);
        })
        .map_err(no_thread)?;
    Ok(Sqlite { view, location, queue: Mutex::new(Some(queue)), ended, thread: Mutex::new(Some(thread)) })
}

impl Sqlite {
    /// Lets the writer end once it has done what is queued.
    fn stop(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Catalog for Sqlite {
    fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    fn submit(&self, change: Change) -> Submitted {
        let (answer, outcome) = oneshot::channel();
        if let Some(queue) = &*self.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            // Where the writer has ended, the job comes back and is dropped here, and its answer with it.
            let _ = queue.send(Job { change, answer });
        }
        Box::pin(async move { outcome.await.unwrap_or(Err(CatalogError::Closed)) })
    }

    fn location(&self) -> &str {
        &self.location
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.stop();
        let mut ended = self.ended.clone();
        // Nothing is ever sent: what is awaited is the end of the sender.
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The writer catches its panics, so that there is nothing to learn from how it ended.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
