//! The thread that decides changes and makes them durable, and has the file made anew when it is gone.

use std::collections::BTreeSet;
use std::error::Error;
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

/// How long the queue must be empty before what was left over is done: what a failure left is put right, and records
/// are stored that nobody waits for.
const PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked after the files while nothing is written.
const LOOK: Duration = Duration::from_secs(5);

/// A queued change and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: oneshot::Sender<Result<Outcome, CatalogError>>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// The files as they are served: opened, with the thread that moves the log into the file.
pub(super) struct Files {
    connection: Connection,
    checkpoints: Checkpoints,
    presence: Presence,
}

impl Files {
    /// Starts to serve what was opened; beside it what that holds.
    pub(super) fn serve(opened: Opened, location: &str) -> Result<(View, Self), OpenError> {
        let Opened { view, writer: connection, checkpointer, presence } = opened;
        let path = presence.path();
        let checkpoints = Checkpoints::start(checkpointer, beside(path, "-wal"), location.into())
            .map_err(|source| OpenError::Io { path: path.into(), doing: "served by a thread", source })?;
        Ok((view, Self { connection, checkpoints, presence }))
    }

    /// Gives files up that are not those of the catalog any more: nothing that has their names now may be touched.
    fn abandon(self) {
        let Self { connection, checkpoints, presence: _ } = self;
        checkpoints.stop();
        // SQLite looks after this itself. Whatever fails here is a loss to nobody.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        let _ = connection.close();
    }
}

/// What the thread owns.
pub(super) struct Writer {
    files: Files,
    lock: Lock,
    view: Arc<ArcSwap<View>>,
    /// What [`Catalog::fault`](crate::catalog::Catalog::fault) tells.
    fault: Arc<ArcSwapOption<String>>,
    location: String,
    /// Whether the log's end may hold a commit that was answered with an error: see [`Writer::settle`].
    unsettled: bool,
    /// Whether the files were seen to be gone. They are not trusted again, even if they come back: a commit to them
    /// may have been answered with an error since.
    gone: bool,
    pending: Arc<Mutex<Pending>>,
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
        Self { files, lock, view, pending, fault, location, unsettled: false, gone: false }
    }

    /// Locks what waits; never held while the disk is waited for.
    fn pending(&self) -> MutexGuard<'_, Pending> {
        // It is whole after every statement under this lock.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves the queue until its last sender is gone, then closes the file.
    pub(super) fn run(mut self, queue: Receiver<Job>) {
        // Whoever waits for a change that meets a panic, or asks for one later, is told that the catalog is closed:
        // the answers are dropped, here and with the queue.
        if catch_unwind(AssertUnwindSafe(|| self.serve(&queue))).is_err() {
            log::error!(
                "the catalog {} takes no more changes: its writer panicked; restart volhost",
                self.location
            );
        }
        drop(queue);
        self.close();
    }

    fn serve(&mut self, queue: &Receiver<Job>) {
        // What follows a change is mostly there soon after it, and decided without a word to this thread.
        let mut changed = false;
        loop {
            let well = !self.unsettled && !self.gone && !changed && self.fault.load().is_none();
            match queue.recv_timeout(if well { LOOK } else { PAUSE }) {
                Ok(first) => {
                    self.turn(std::iter::once(first).chain(queue.try_iter()).take(MAX_BATCH).collect());
                    changed = true;
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.pending().jobs += 1;
                    self.catch_up();
                    let mut pending = self.pending();
                    pending.jobs -= 1;
                    changed = !pending.following.is_empty();
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Decides changes in their order, makes them durable together, shows them together, and answers.
    fn turn(&mut self, batch: Vec<Job>) {
        let base = self.view.load_full();
        let mut draft = View::clone(&base);
        let (mut writes, mut following) = (Vec::new(), self.pending().following.clone());
        let mut results = Vec::with_capacity(batch.len());
        for job in &batch {
            results.push(draft.apply(job.change.clone()).map_err(CatalogError::from).map(
                |(outcome, records)| {
                    if job.change.may_follow() {
                        following.extend(volumes_of(&records));
                    } else {
                        writes.extend(records);
                    }
                    outcome
                },
            ));
        }
        if writes.is_empty() && following.len() < MAX_BATCH {
            self.pending().following = following;
        } else if let Err(failure) = self.keep(&draft, writes, following) {
            (draft, results) = self.without_disk(&base, &batch, &failure.into());
        }
        self.view.store(Arc::new(draft));
        // Before anybody is answered: what they submit next may then be decided at once.
        self.pending().jobs -= batch.len();
        for (job, result) in batch.into_iter().zip(results) {
            // Nobody may be waiting any more; the change stands all the same.
            let _ = job.answer.send(result);
        }
    }

    /// Decides the changes of a transaction that failed once more: those that need the disk are answered with the
    /// failure and leave nothing, and the others are decided as if those had never been submitted.
    fn without_disk(
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
                self.pending().following.extend(volumes_of(&writes));
                draft = trial;
                return Ok(outcome);
            }
            Err(CatalogError::Write { location: self.location.clone(), source: Arc::clone(failure) })
        });
        let results = results.collect();
        (draft, results)
    }

    /// Makes records durable, all of them or none, and with them those that follow; `draft` is what the catalog holds
    /// with them.
    fn keep(
        &mut self,
        draft: &View,
        writes: Vec<Write>,
        following: BTreeSet<VolumeName>,
    ) -> Result<(), Failure> {
        self.look();
        let mut done = if self.gone { Ok(()) } else { self.commit(draft, writes, following) };
        // What was written to files that are gone by now is lost.
        self.look();
        if self.gone {
            done = self.make_anew(draft).map_err(Failure::from);
        }
        match &done {
            Ok(()) => self.fault.store(None),
            Err(failure) => self.tell(chain(&**failure)),
        }
        done
    }

    /// Notes why nothing can be written; said aloud when it is news.
    fn tell(&self, why: String) {
        if self.fault.load().as_deref() != Some(&why) {
            log::error!("the catalog {} cannot be written: {why}", self.location);
            self.fault.store(Some(Arc::new(why)));
        }
    }

    /// Writes records to the file. Where there is no room for all, those that follow wait on.
    fn commit(
        &mut self,
        draft: &View,
        mut writes: Vec<Write>,
        following: BTreeSet<VolumeName>,
    ) -> Result<(), Failure> {
        let waited_for = writes.len();
        let there = following.iter().filter_map(|name| draft.volumes.get_key_value(name));
        writes.extend(there.map(|(name, volume)| Write::Volume(name.clone(), Some(Arc::clone(volume)))));
        match self.transact(&writes) {
            Ok(()) => {
                self.pending().following.clear();
                Ok(())
            }
            Err(_) if 0 < waited_for && waited_for < writes.len() => {
                writes.truncate(waited_for);
                self.transact(&writes)?;
                self.pending().following = following;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Writes records in one transaction.
    fn transact(&mut self, writes: &[Write]) -> Result<(), Failure> {
        let transaction = self.files.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = store(&transaction, writes).and_then(|()| Ok(transaction.commit()?));
        match done {
            Ok(()) => {
                self.unsettled = false;
                self.files.checkpoints.wrote(writes.len());
            }
            Err(_) => {
                self.unsettled = true;
                self.settle();
            }
        }
        done
    }

    /// Looks whether the files are still there.
    fn look(&mut self) {
        let there = self.files.presence.is_whole() && self.lock.is_in_place();
        if !self.gone && !there {
            self.gone = true;
            log::error!(
                "the catalog {} was removed, moved or replaced while volhost uses it: nothing is lost as long as \
                 volhost runs, which makes it anew from memory",
                self.location
            );
        }
    }

    /// Makes the file anew from what the catalog holds.
    fn make_anew(&mut self, view: &View) -> Result<(), OpenError> {
        let Self { files: Files { connection, presence, .. }, lock, .. } = self;
        presence.make_way()?;
        let path = presence.path().to_path_buf();
        if !lock.is_in_place() {
            *lock = Lock::take(&path)?;
        }
        file::prepare_new(&path, view)?;
        // Where the old file or its log still lies there, nothing may be left in the log, which would be taken for the
        // new file's; so a crash before the new one has its name leaves a whole catalog, too.
        let _ = empty_log(connection);
        presence.replace(&beside(&path, ".new"), file::put_in_place)?;
        let (_, files) = Files::serve(file::understand(&path)?, &self.location)?;
        std::mem::replace(&mut self.files, files).abandon();
        (self.gone, self.unsettled) = (false, false);
        self.pending().following.clear();
        log::warn!("the catalog {} was made anew from memory, with all that it held", self.location);
        Ok(())
    }

    /// Does what was left over while nobody waits for a change: stores what was answered already, and puts right what
    /// is wrong with the files.
    fn catch_up(&mut self) {
        self.look();
        let following = self.pending().following.clone();
        if self.gone || !following.is_empty() {
            let view = self.view.load_full();
            // Where it fails it was said, and is tried again; a start without what follows finds out the same.
            let _ = self.keep(&view, Vec::new(), following);
        } else if self.unsettled || self.fault.load().is_some() {
            self.settle();
        }
    }

    /// Undoes a failed commit for good.
    ///
    /// A commit that failed is rolled back for this connection, and yet all its pages may stand at the log's end:
    /// when the disk failed to say that it has them, for instance. A process that starts after a crash would find
    /// them there and take the change for a durable one, although it was answered with an error. Any commit that
    /// succeeds overwrites the place, so one is made that changes nothing; while none succeeds, it is tried again.
    fn settle(&mut self) {
        let settled =
            self.files.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(
                |transaction| {
                    schema::set_version(&transaction, schema::MIGRATIONS.len())?;
                    transaction.commit()
                },
            );
        match settled {
            Ok(()) => {
                self.unsettled = false;
                self.fault.store(None);
            }
            Err(error) => {
                log::debug!("the catalog {} cannot be written yet: {}", self.location, chain(&error));
            }
        }
    }

    /// Moves the log into the file and closes it. What fails here loses nothing: the log is read by the next start.
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
        // Only now may another process have the file.
        drop(lock);
    }
}
