//! The embedded engine: a catalog in one SQLite file on this machine.
//!
//! # How a change becomes durable
//!
//! One writer at a time. A thread takes every change that has been queued meanwhile, decides each of them on a draft of
//! the view, stores the records of all of them in one transaction and waits for the disk once. Only then does the draft
//! become the view, and the callers are answered. A caller that may block does that for its own change if nothing is
//! queued, which saves the way to the thread and back. A change that [may follow](Change::may_follow) its answer is stored
//! with the next transaction, or after a few seconds without a change; while nothing is queued, the caller's own thread
//! decides it. Another thread, with its own connection, moves the log into the file in the background, so that no
//! commit waits for it. Readers notice neither thread.
//!
//! A file is either opened whole or left alone: an empty, foreign, damaged or newer file is refused and stays byte for
//! byte as it was, because an empty catalog in the place of a lost one would make every volume vanish from its engines.
//!
//! # When the file goes away
//!
//! Before and after each commit, and every few seconds, the writer checks that the files still have their names. If
//! they do not, whatever was committed to them is lost with the process, but memory holds all of it: a new file is made
//! from the view, including the change under way, before anything is answered. If another file has the name, or the
//! file system is gone, changes are refused until that is over; reads are not affected.
//!
//! The file must never lie where file locks or shared memory do not work, nor may two processes open it.

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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use arc_swap::{ArcSwap, ArcSwapOption};
use tokio::sync::{oneshot, watch};

pub use self::error::OpenError;
use self::lock::Lock;
pub use self::offline::{NewCatalog, peek, read};
use self::pending::Pending;

use self::writer::{Files, Job, Writer};
use super::{Catalog, CatalogError, Change, Location, Submitted, View};

/// A catalog in a file. Dropping it blocks until everything queued is durable; [`close`](Catalog::close) does the same
/// without blocking.
#[derive(Debug)]
pub struct Sqlite {
    view: Arc<ArcSwap<View>>,
    fault: Arc<ArcSwapOption<String>>,
    location: String,
    /// `None` once the catalog is being closed.
    queue: Mutex<Option<Sender<Job>>>,
    /// Locked after `queue`.
    pending: Arc<Mutex<Pending>>,
    /// Locked while the disk is waited for; `None` once the catalog is closed.
    writer: Arc<Mutex<Option<Writer>>>,
    /// The sender is dropped when the writer has ended for any reason.
    ended: watch::Receiver<()>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Opens the catalog in the file at `path`, or creates it together with the directories above it. Blocks until every
/// record was read.
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
    let writer = Arc::new(Mutex::new(Some(writer)));
    let (of_thread, name) = (Arc::clone(&writer), location.clone());
    let thread = std::thread::Builder::new()
        .name("catalog".into())
        .spawn(move || {
            writer::run(&of_thread, jobs, &name);
            drop(ends);
        })
        .map_err(|source| OpenError::Io { path: path.into(), doing: "served by a thread", source })?;
    let (queue, thread) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
    Ok(Sqlite { view, fault, location, queue, pending, writer, ended, thread })
}

impl Sqlite {
    /// Locks the writer and counts a change for it, if nothing comes before that change; what is queued from now on waits
    /// for the lock.
    fn idle_writer(&self) -> Option<MutexGuard<'_, Option<Writer>>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let writer = self.writer.try_lock().ok()?;
        let is_idle = pending.jobs == 0 && queue.is_some() && writer.is_some();
        pending.jobs += usize::from(is_idle);
        is_idle.then_some(writer)
    }

    /// Lets the writer end once it has done every queued change.
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
            // If the writer has ended, the job comes back and is dropped here, together with the sender of its answer.
            let _ = queue.send(Job { change, answer });
        }
        Box::pin(async move { outcome.await.unwrap_or(Err(CatalogError::Closed)) })
    }

    fn submit_blocking(&self, change: Change) -> Submitted {
        match self.idle_writer().as_deref_mut() {
            Some(Some(writer)) => Box::pin(ready(writer.process_one(change))),
            _ => self.submit(change),
        }
    }

    fn is_idle(&self) -> bool {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).jobs == 0
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
        // Nothing is ever sent: this waits for the sender to be dropped.
        Box::pin(async move { while ended.changed().await.is_ok() {} })
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // The writer catches its panics, so its result says nothing.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
