//! The embedded engine: a catalog in one SQLite file on this machine.
//!
//! # How a change becomes durable
//!
//! One thread writes. It takes what has queued up meanwhile, decides each change on a draft of the view, stores the
//! records of all of them in one transaction and waits for the disk once; only then the draft becomes the view and
//! the callers are answered. What [may follow](Change::may_follow) its answer waits for the next transaction, or for a
//! few seconds without a change; while nothing is queued, it is decided right where it is submitted. Another thread,
//! with a connection of its own, moves the log into the file in the background, so that no commit waits for it. Readers
//! see neither.
//!
//! A file is either opened whole or left alone: what is empty, foreign, damaged or newer is refused byte for byte as
//! it was, because an empty catalog in the place of a lost one would make every volume vanish from its engines.
//!
//! # When the file goes away
//!
//! Before and after each commit, and every few seconds, it is looked whether the files still have their names. Where
//! they do not, what was committed to them is lost with the process, but memory has all of it: a new file is made of
//! the view, the change under way included, before anything is answered. Where another file has the name, or the file
//! system is gone, changes are refused until that is over; readers see nothing of it.
//!
//! It must never be opened where file locks or shared memory do not work, nor by two processes.

mod checkpoint;
mod error;
mod file;
mod lock;
mod offline;
mod pending;
mod place;
mod presence;
mod rows;
mod schema;
mod writer;

use std::future::ready;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{oneshot, watch};

pub use self::error::OpenError;
use self::lock::Lock;
pub use self::offline::{NewCatalog, peek, read};
use self::pending::Pending;

use self::writer::{Files, Job, Writer};
use super::{Catalog, CatalogError, Change, Location, Submitted, View};

/// A catalog in a file. Dropping it waits until everything queued is durable, as [`close`](Catalog::close) does
/// without blocking.
#[derive(Debug)]
pub struct Sqlite {
    view: Arc<ArcSwap<View>>,
    fault: Arc<ArcSwapOption<String>>,
    location: String,
    /// `None` once it is being closed.
    queue: Mutex<Option<Sender<Job>>>,
    /// Locked after `queue`.
    pending: Arc<Mutex<Pending>>,
    /// Its sender is dropped when the writer has ended, however it ended.
    ended: watch::Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens the catalog in the file at `path`, which is made where there is none, with the directories above it. Blocks
/// until every record was read.
pub fn open(path: &Path) -> Result<Sqlite, OpenError> {
    let (opened, lock) = file::open(path)?;
    serve(path, opened, lock)
}

/// Starts the threads of an opened file.
fn serve(path: &Path, opened: file::Opened, lock: Lock) -> Result<Sqlite, OpenError> {
    let location = Location::Sqlite(path.to_path_buf()).to_string();
    let (view, files) = Files::serve(opened, &location)?;
    let view = Arc::new(ArcSwap::from_pointee(view));
    let (pending, fault) = (Arc::<Mutex<Pending>>::default(), Arc::new(ArcSwapOption::empty()));
    let (queue, jobs) = mpsc::channel();
    let (ends, ended) = watch::channel(());
    let writer = Writer::new(
        files,
        lock,
        Arc::clone(&view),
        Arc::clone(&pending),
        Arc::clone(&fault),
        location.clone(),
    );
    let thread = std::thread::Builder::new()
        .name("catalog".into())
        .spawn(move || {
            writer.run(jobs);
            drop(ends);
        })
        .map_err(|source| OpenError::Io { path: path.into(), doing: "served by a thread", source })?;
    let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
    Ok(Sqlite { view, fault, location, queue, pending, ended, thread })
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
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(decided) = pending.decide(&change, &self.view) {
                return Box::pin(ready(decided));
            }
            pending.jobs += 1;
            drop(pending);
            // Where the writer has ended, the job comes back and is dropped here, and its answer with it.
            let _ = queue.send(Job { change, answer });
        }
        Box::pin(async move { outcome.await.unwrap_or(Err(CatalogError::Closed)) })
    }

    fn location(&self) -> &str {
        &self.location
    }

    fn fault(&self) -> Option<Arc<String>> {
        self.fault.load_full()
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
