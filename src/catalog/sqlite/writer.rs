//! The thread that decides changes and makes them durable. It rebuilds the file if it is gone.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::checkpoint::{Checkpoints, empty_log};
use super::error::OpenError;
use super::file::{self, Opened};
use super::lock::Lock;
use super::pending::{MAX_BATCH, Pending, volumes_of};
use super::place::beside;
use super::presence::Presence;
use super::rows::store;
use super::schema;
use crate::catalog::{CatalogError, Change, Outcome, View, Write};
use crate::error::chain;
use crate::model::volume::VolumeName;

/// How long the queue must be empty before leftover work is done: repairing what a failure left, and storing records
/// that nobody waits for.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the files are checked while nothing is written.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// A queued change, and the sender of its answer.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: oneshot::Sender<Result<Outcome, CatalogError>>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// The open files in service, with the thread that moves the log into the file.
pub(super) struct Files {
    connection: Connection,
    checkpoints: Checkpoints,
    presence: Presence,
}

impl Files {
    /// Starts serving an opened file; returns its view as well.
    pub(super) fn serve(opened: Opened, location: &str) -> Result<(View, Self), OpenError> {
        let Opened { view, writer: connection, checkpointer, presence } = opened;
        let path = presence.path();
        let checkpoints = Checkpoints::start(checkpointer, beside(path, "-wal"), location.into())
            .map_err(|source| OpenError::Io { path: path.into(), doing: "served by a thread", source })?;
        Ok((view, Self { connection, checkpoints, presence }))
    }

    /// Gives up files that are no longer the catalog's: the files that have their names now must not be touched.
    fn abandon(self) {
        let Self { connection, checkpoints, presence: _ } = self;
        checkpoints.stop();
        // SQLite takes care of this itself as well. A failure here loses nothing.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        let _ = connection.close();
    }
}

/// Serves the queue until its last sender is gone, then closes the file.
pub(super) fn run(writer: &Mutex<Option<Writer>>, queue: Receiver<Job>, location: &str) {
    // After a panic, all callers, present and later, are told that the catalog is closed: their answers' senders are
    // dropped, here and with the queue.
    let served = catch_unwind(AssertUnwindSafe(|| serve(writer, &queue)));
    if !matches!(served, Ok(Ok(()))) {
        log::error!("the catalog {location} takes no more changes: its writer panicked; restart volhost");
    }
    drop(queue);
    let writer = writer.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(writer) = writer {
        writer.close();
    }
}

/// The error of a writer that panicked on a caller's thread.
struct Panicked;

fn serve(writer: &Mutex<Option<Writer>>, queue: &Receiver<Job>) -> Result<(), Panicked> {
    // A confirmation usually comes soon after a change, and is decided without this thread: look again after a short
    // pause.
    let (mut is_idle, mut changed) = (true, false);
    loop {
        let next = queue.recv_timeout(if is_idle && !changed { CHECK_INTERVAL } else { IDLE_TIMEOUT });
        let mut writer = writer.lock().map_err(|_| Panicked)?;
        let Some(writer) = &mut *writer else { return Ok(()) };
        match next {
            Ok(first) => {
                let batch = std::iter::once(first).chain(queue.try_iter()).take(MAX_BATCH).collect();
                writer.process_batch(batch);
                changed = true;
            }
            Err(RecvTimeoutError::Timeout) => {
                writer.pending().jobs += 1;
                writer.catch_up();
                let mut pending = writer.pending();
                pending.jobs -= 1;
                changed = !pending.deferred.is_empty();
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
        is_idle = writer.is_idle();
    }
}

/// What decides changes and makes them durable: on the catalog's thread, or on a caller's if nothing else is pending.
pub(super) struct Writer {
    files: Files,
    lock: Lock,
    view: Arc<ArcSwap<View>>,
    /// Shown by [`Catalog::fault`](crate::catalog::Catalog::fault).
    fault: Arc<ArcSwapOption<String>>,
    location: String,
    /// True if the log's end may hold a commit that was answered with an error: see [`Writer::overwrite_failed_commit`].
    failed_commit_in_log: bool,
    /// True once the files were seen to be gone. They are not trusted again, even if they come back, because a commit
    /// to them may have been answered with an error since.
    gone: bool,
    pending: Arc<Mutex<Pending>>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Writer {
    pub(super) fn new(
        files: Files,
        lock: Lock,
        view: Arc<ArcSwap<View>>,
        pending: Arc<Mutex<Pending>>,
        fault: Arc<ArcSwapOption<String>>,
        location: String,
    ) -> Self {
        Self { files, lock, view, pending, fault, location, failed_commit_in_log: false, gone: false }
    }

    /// Returns true if nothing is to be repaired.
    fn is_idle(&self) -> bool {
        !self.failed_commit_in_log && !self.gone && self.fault.load().is_none()
    }

    /// Locks the pending changes; never held while waiting for the disk.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // They are whole after every statement under this lock.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides one change and makes it durable. The caller has counted it among the pending ones.
    pub(super) fn process_one(&mut self, change: Change) -> Result<Outcome, CatalogError> {
        let (answer, mut outcome) = oneshot::channel();
        self.process_batch(vec![Job { change, answer }]);
        outcome.try_recv().unwrap_or(Err(CatalogError::Closed))
    }

    /// Decides changes in their order, makes them durable together, shows them together, and answers.
    fn process_batch(&mut self, batch: Vec<Job>) {
        let base = self.view.load_full();
        let mut draft = View::clone(&base);
        let (mut writes, mut deferred) = (Vec::new(), self.pending().deferred.clone());
        let mut results = Vec::with_capacity(batch.len());
        for job in &batch {
            results.push(draft.apply(job.change.clone()).map_err(CatalogError::from).map(
                |(outcome, records)| {
                    if job.change.may_follow() {
                        deferred.extend(volumes_of(&records));
                    } else {
                        writes.extend(records);
                    }
                    outcome
                },
            ));
        }
        if writes.is_empty() && deferred.len() < MAX_BATCH {
            self.pending().deferred = deferred;
        } else if let Err(failure) = self.persist(&draft, writes, deferred) {
            (draft, results) = self.decide_without_disk(&base, &batch, &failure.into());
        }
        self.view.store(Arc::new(draft));
        // Before anybody is answered, so that their next change may be decided at once.
        self.pending().jobs -= batch.len();
        for (job, result) in batch.into_iter().zip(results) {
            // Nobody may be waiting any more; the change stands all the same.
            let _ = job.answer.send(result);
        }
    }

    /// Decides the changes of a failed transaction again. Those that need the disk are answered with the failure and
    /// leave nothing; the others are decided as if those had never been submitted.
    fn decide_without_disk(
        &mut self,
        base: &View,
        batch: &[Job],
        failure: &Arc<dyn Error + Send + Sync>,
    ) -> (View, Vec<Result<Outcome, CatalogError>>) {
        let mut draft = base.clone();
        let results = batch.iter().map(|job| {
            let mut trial = draft.clone();
            let (outcome, writes) = trial.apply(job.change.clone())?;
            if writes.is_empty() || job.change.may_follow() {
                self.pending().deferred.extend(volumes_of(&writes));
                draft = trial;
                return Ok(outcome);
            }
            Err(CatalogError::Write { location: self.location.clone(), source: Arc::clone(failure) })
        });
        let results = results.collect();
        (draft, results)
    }

    /// Makes records durable, all or none, together with the records that may follow their answers. `draft` is the view
    /// with all of them.
    fn persist(
        &mut self,
        draft: &View,
        writes: Vec<Write>,
        deferred: BTreeSet<VolumeName>,
    ) -> Result<(), Failure> {
        self.check_files();
        let mut result = if self.gone { Ok(()) } else { self.commit(draft, writes, deferred) };
        // A write to files that are gone by now is lost.
        self.check_files();
        if self.gone {
            result = self.rebuild(draft).map_err(Failure::from);
        }
        match &result {
            Ok(()) => self.fault.store(None),
            Err(failure) => self.note_fault(chain(&**failure)),
        }
        result
    }

    /// Notes why nothing can be written; logs it if the reason is new.
    fn note_fault(&self, why: String) {
        if self.fault.load().as_deref() != Some(&why) {
            log::error!("the catalog {} cannot be written: {why}", self.location);
            self.fault.store(Some(Arc::new(why)));
        }
    }

    /// Writes records to the file. If there is no room for all, those that may follow keep waiting.
    fn commit(
        &mut self,
        draft: &View,
        mut writes: Vec<Write>,
        deferred: BTreeSet<VolumeName>,
    ) -> Result<(), Failure> {
        let waited_for = writes.len();
        let there = deferred.iter().filter_map(|name| draft.volumes.get_key_value(name));
        writes.extend(there.map(|(name, volume)| Write::Volume(name.clone(), Some(Arc::clone(volume)))));
        match self.transact(&writes) {
            Ok(()) => {
                self.pending().deferred.clear();
                Ok(())
            }
            Err(_) if 0 < waited_for && waited_for < writes.len() => {
                writes.truncate(waited_for);
                self.transact(&writes)?;
                self.pending().deferred = deferred;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Writes records in one transaction.
    fn transact(&mut self, writes: &[Write]) -> Result<(), Failure> {
        let transaction = self.files.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = store(&transaction, writes).and_then(|()| Ok(transaction.commit()?));
        match result {
            Ok(()) => {
                self.failed_commit_in_log = false;
                self.files.checkpoints.wrote(writes.len());
            }
            Err(_) => {
                self.failed_commit_in_log = true;
                self.overwrite_failed_commit();
            }
        }
        result
    }

    /// Checks that the files are still there.
    fn check_files(&mut self) {
        let there = self.files.presence.is_whole() && self.lock.is_in_place();
        if !self.gone && !there {
            self.gone = true;
            log::error!(
                "the catalog {} was removed, moved or replaced while volhost uses it: nothing is lost as long as \
                 volhost runs: it rebuilds the catalog from memory",
                self.location
            );
        }
    }

    /// Rebuilds the file from the view.
    fn rebuild(&mut self, view: &View) -> Result<(), OpenError> {
        let Self { files: Files { connection, presence, .. }, lock, .. } = self;
        presence.check_place()?;
        let path = presence.path().to_path_buf();
        if !lock.is_in_place() {
            *lock = Lock::take(&path)?;
        }
        file::prepare_new(&path, view)?;
        // If the old file or its log still lies there, its log must be empty, because SQLite would take it for the new
        // file's. The old file stays whole by this, so a crash before the new one has its name leaves a whole catalog,
        // too.
        let _ = empty_log(connection);
        presence.replace(&beside(&path, ".new"), file::put_in_place)?;
        let (_, files) = Files::serve(file::read_whole(&path)?, &self.location)?;
        std::mem::replace(&mut self.files, files).abandon();
        (self.gone, self.failed_commit_in_log) = (false, false);
        self.pending().deferred.clear();
        log::warn!("the catalog {} was rebuilt from memory, with everything that it held", self.location);
        Ok(())
    }

    /// Does leftover work while nobody waits for a change: stores records that were answered already, and repairs the
    /// files.
    fn catch_up(&mut self) {
        self.check_files();
        let deferred = self.pending().deferred.clone();
        if self.gone || !deferred.is_empty() {
            let view = self.view.load_full();
            // A failure was logged, and this is tried again. A start without these records finds out the same from the
            // directories.
            let _ = self.persist(&view, Vec::new(), deferred);
        } else if self.failed_commit_in_log || self.fault.load().is_some() {
            self.overwrite_failed_commit();
        }
    }

    /// Undoes a failed commit for good.
    ///
    /// A failed commit is rolled back for this connection, but all its pages may still stand at the log's end: for
    /// instance if the disk failed to confirm that it has them. A process that starts after a crash would find them
    /// there and take the change for a durable one, although it was answered with an error. Any successful commit
    /// overwrites them, so this makes a commit that changes nothing; until one succeeds, it is tried again.
    fn overwrite_failed_commit(&mut self) {
        let settled =
            self.files.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(
                |transaction| {
                    schema::set_version(&transaction, schema::MIGRATIONS.len())?;
                    transaction.commit()
                },
            );
        match settled {
            Ok(()) => {
                self.failed_commit_in_log = false;
                self.fault.store(None);
            }
            Err(error) => {
                log::debug!("the catalog {} cannot be written yet: {}", self.location, chain(&error));
            }
        }
    }

    /// Moves the log into the file and closes it. A failure here loses nothing: the next start reads the log.
    fn close(mut self) {
        self.catch_up();
        let Self { files, lock, location, gone, .. } = self;
        if gone {
            files.abandon();
            return;
        }
        let Files { connection, checkpoints, presence: _ } = files;
        checkpoints.stop();
        let moved = empty_log(&connection);
        if let Err(error) = moved.and_then(|_| connection.close().map_err(|(_, error)| error)) {
            log::warn!("the log of the catalog {location} stays beside it: {}", chain(&error));
        }
        // Only now may another process open the file.
        drop(lock);
    }
}
