//! The thread that decides changes and makes them durable.

use std::collections::BTreeSet;
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;

use super::checkpoint::{Checkpoints, empty_log};
use super::place::Lock;
use super::schema;
use crate::catalog::record::{Row, encode};
use crate::catalog::{CatalogError, Change, Outcome, View, Write};
use crate::error::chain;
use crate::volume::name::VolumeName;

/// How many changes one transaction takes at most, so that the first of them does not wait for too many.
const BATCH: usize = 1024;

/// How long the queue must be empty before what was left over is done: a failed commit undone for good, and records
/// stored that nobody waits for.
const PAUSE: Duration = Duration::from_secs(1);

/// A queued change and who waits for it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) change: Change,
    pub(super) answer: oneshot::Sender<Result<Outcome, CatalogError>>,
}

type Failure = Box<dyn Error + Send + Sync>;

/// What the thread owns.
pub(super) struct Writer {
    connection: Connection,
    checkpoints: Checkpoints,
    lock: Lock,
    view: Arc<ArcSwap<View>>,
    location: String,
    /// Whether the log's end may hold a commit that was answered with an error: see [`Writer::settle`].
    unsettled: bool,
    /// The volumes whose records were shown and answered before they were stored: they go into the next transaction.
    following: BTreeSet<VolumeName>,
}

impl Writer {
    pub(super) fn new(
        connection: Connection,
        checkpoints: Checkpoints,
        lock: Lock,
        view: Arc<ArcSwap<View>>,
        location: String,
    ) -> Self {
        Self { connection, checkpoints, lock, view, location, unsettled: false, following: BTreeSet::new() }
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
        loop {
            let first = if self.unsettled || !self.following.is_empty() {
                match queue.recv_timeout(PAUSE) {
                    Ok(job) => job,
                    Err(RecvTimeoutError::Timeout) => {
                        self.catch_up();
                        continue;
                    }
                    Err(RecvTimeoutError::Disconnected) => return self.catch_up(),
                }
            } else {
                let Ok(job) = queue.recv() else { return };
                job
            };
            self.turn(std::iter::once(first).chain(queue.try_iter()).take(BATCH).collect());
        }
    }

    /// Decides changes in their order, makes them durable together, shows them together, and answers.
    fn turn(&mut self, batch: Vec<Job>) {
        let base = self.view.load_full();
        let mut draft = View::clone(&base);
        let (mut writes, mut following) = (Vec::new(), self.following.clone());
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
        if writes.is_empty() && following.len() < BATCH {
            self.following = following;
        } else if let Err(failure) = self.commit(writes, following, &draft) {
            log::error!("the catalog {} could not be written: {}", self.location, chain(&*failure));
            (draft, results) = self.without_disk(&base, &batch, &failure.into());
        }
        self.view.store(Arc::new(draft));
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
                self.following.extend(volumes_of(&writes));
                draft = trial;
                return Ok(outcome);
            }
            Err(CatalogError::Write { location: self.location.clone(), source: Arc::clone(failure) })
        });
        let results = results.collect();
        (draft, results)
    }

    /// Makes records durable, all of them or none, and with them those that follow, as `draft` has them. Where there
    /// is no room for all, those that follow wait on.
    fn commit(
        &mut self,
        mut writes: Vec<Write>,
        following: BTreeSet<VolumeName>,
        draft: &View,
    ) -> Result<(), Failure> {
        let waited_for = writes.len();
        let there = following.iter().filter_map(|name| draft.volumes.get_key_value(name));
        writes.extend(there.map(|(name, volume)| Write::Volume(name.clone(), Some(Arc::clone(volume)))));
        match self.try_commit(&writes) {
            Ok(()) => {
                self.following.clear();
                Ok(())
            }
            Err(_) if 0 < waited_for && waited_for < writes.len() => {
                writes.truncate(waited_for);
                self.try_commit(&writes)?;
                self.following = following;
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    fn try_commit(&mut self, writes: &[Write]) -> Result<(), Failure> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        store(&transaction, writes)?;
        match transaction.commit() {
            Ok(()) => {
                self.unsettled = false;
                self.checkpoints.wrote(writes.len());
                Ok(())
            }
            Err(error) => {
                self.unsettled = true;
                self.settle();
                Err(error.into())
            }
        }
    }

    /// Does what was left over while nobody waits: stores what was answered already, or undoes a failed commit for
    /// good.
    fn catch_up(&mut self) {
        if !self.following.is_empty() {
            // Where it fails it is tried again; a start without it finds out the same.
            let view = self.view.load_full();
            if let Err(failure) = self.commit(Vec::new(), self.following.clone(), &view) {
                log::debug!("the catalog {} cannot be written yet: {}", self.location, chain(&*failure));
            }
        }
        // What was just stored has settled it, too.
        if self.unsettled {
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
        let settled = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(
            |transaction| {
                schema::set_version(&transaction, schema::MIGRATIONS.len())?;
                transaction.commit()
            },
        );
        match settled {
            Ok(()) => self.unsettled = false,
            Err(error) => {
                log::debug!("the catalog {} cannot be written yet: {}", self.location, chain(&error));
            }
        }
    }

    /// Moves the log into the file and closes it. What fails here loses nothing: the log is read by the next start.
    fn close(self) {
        let Self { connection, checkpoints, lock, view: _, location, unsettled: _, following: _ } = self;
        checkpoints.stop();
        let moved = empty_log(&connection);
        if let Err(error) = moved.and_then(|_| connection.close().map_err(|(_, error)| error)) {
            log::warn!("the log of the catalog {location} stays beside it: {}", chain(&error));
        }
        // Only now may another process have the file.
        drop(lock);
    }
}

/// The volumes whose records these are.
fn volumes_of(writes: &[Write]) -> impl Iterator<Item = VolumeName> {
    writes.iter().filter_map(|write| match write {
        Write::Volume(name, _) => Some(name.clone()),
        Write::Mount(..) | Write::Removed(..) | Write::Host(..) | Write::Backend(..) => None,
    })
}

/// Stores and deletes records, inside the caller's transaction.
pub(super) fn store(
    transaction: &Connection,
    writes: impl IntoIterator<Item = impl std::borrow::Borrow<Write>>,
) -> Result<(), Failure> {
    for write in writes {
        let Row { table, key, record } = encode(write.borrow())?;
        let key = key.iter().map(|part| &**part);
        match &record {
            Some(record) => transaction
                .prepare_cached(schema::store(table))?
                .execute(rusqlite::params_from_iter(key.chain([record.as_str()])))?,
            None => {
                transaction.prepare_cached(schema::delete(table))?.execute(rusqlite::params_from_iter(key))?
            }
        };
    }
    Ok(())
}
