//! What all parts of the engine share, and how a change is carried out with them.
//!
//! Plan → send → take in, until the plan's conditions held when it was sent. What is refused by the view is refused only
//! after the view was made fresh. While the cluster is out of reach nothing is begun but Unmounts, which the spool keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::dir_locks::ReleaseQueue;
use super::health::Health;
use super::key_locks::{KeyLocks, QueuedLocks, cells};
use super::keys::Keys;
use super::members::{CallError, Kind, Members};
use super::outbox::{Answered, Entry, Outbox};
use super::plan::{Owner, Planned, RELEASED_AT_ONCE, plan};
use super::read_index::ReadIndexRequest;
use super::replica::{Replica, Step};
use super::slots::Slots;
use super::transact::{Attempt, Sent};
use super::watch_health::WatchHealth;
use crate::catalog::{CatalogError, Change, Freshness, Outcome, Refusal, UnmountTarget, View};
use crate::model::host::HostName;

/// How long it is waited for another instance that moves a directory.
pub(super) const ELSEWHERE: Duration = Duration::from_secs(1);

/// How long a Mount waits for it to be recorded that its engine was started.
const STARTED: Duration = Duration::from_secs(7);

/// How many hosts one transaction notes as seen: it may have 128 conditions.
pub(super) const SEEN_AT_ONCE: usize = 100;

/// How often in a row a change may have been decided on rows that are other ones by then. Others who write the same rows do
/// that to it a few times; so often, it is what is known that is wrong.
pub(super) const STALE: usize = 50;

/// What the parts share.
pub(super) struct Core {
    pub(super) location: String,
    pub(super) keys: Keys,
    /// This instance, for as long as its spool exists.
    pub(super) me: Uuid,
    pub(super) members: Members,
    pub(super) replica: Replica,
    pub(super) health: Health,
    pub(super) slots: Slots,
    pub(super) outbox: Arc<Outbox>,
    pub(super) key_locks: KeyLocks,
    /// The claims that are to be given back.
    pub(super) release_queue: ReleaseQueue,
    /// The lease that this instance's claims end with.
    pub(super) lease: AtomicI64,
    /// Wakes who keeps the lease, where it was found to be gone.
    pub(super) lease_gone: tokio::sync::Notify,
    /// Has the watch begun anew, where it is behind.
    pub(super) watch_anew: tokio::sync::Notify,
    /// Whether the cluster's history is not the one that the memory was made of.
    pub(super) other_history: AtomicBool,
    /// Whether what others do is heard and understood.
    pub(super) watch_health: WatchHealth,
    /// Whether what is known contradicts the cluster although it is fresh.
    pub(super) doubted: AtomicBool,
    pub(super) questions: mpsc::UnboundedSender<ReadIndexRequest>,
    /// Tells one process of this instance from the one before, in the numbers of transactions.
    pub(super) run: Uuid,
    pub(super) numbers: AtomicU64,
    /// Whether the catalog is being closed.
    pub(super) closing: watch::Sender<bool>,
}

/// What is kept of a change while its transaction is under way.
type Effect = (Outcome, Vec<Step>);

impl Core {
    /// A number that no other transaction of any instance has.
    pub(super) fn number(&self) -> String {
        format!("{}.{}", self.run.simple(), self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn owner(&self) -> Owner {
        Owner { me: self.me, lease: self.lease.load(Ordering::Acquire) }
    }

    pub(super) fn unreachable(&self, why: Arc<String>) -> CatalogError {
        CatalogError::Unreachable { location: self.location.clone(), why }
    }

    pub(super) fn failed(&self, why: String) -> CatalogError {
        CatalogError::Write {
            location: self.location.clone(),
            source: Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)),
        }
    }

    /// Makes the view as fresh as what was answered before this call.
    pub(super) async fn sync(&self) -> Result<(), CatalogError> {
        if let Some(why) = self.health.fault() {
            return Err(self.unreachable(why));
        }
        let (answer, fresh) = tokio::sync::oneshot::channel();
        if self.questions.send(answer).is_err() {
            return Err(CatalogError::Closed);
        }
        tokio::select! {
            biased;
            answered = fresh => match answered {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => Err(self.unreachable(why)),
                Err(_) => Err(CatalogError::Closed),
            },
            why = self.health.out_of_reach() => Err(self.unreachable(why)),
        }
    }

    /// Carries a change out, once everything in front of it is done.
    pub(super) async fn carry_out(&self, change: Change) -> Result<Outcome, CatalogError> {
        match &change {
            // Nothing but a sign of life, which needs nobody else.
            Change::Seen(hosts) if hosts.is_empty() => return Ok(Outcome::default()),
            Change::Seen(hosts) if hosts.len() > SEEN_AT_ONCE => {
                for part in hosts.chunks(SEEN_AT_ONCE) {
                    Box::pin(self.decide(&Change::Seen(part.to_vec()))).await?;
                }
                return Ok(Outcome::default());
            }
            Change::Release { .. } => return self.release(&change).await,
            _ => {}
        }
        self.decide(&change).await
    }

    /// Releases mounts, in as many transactions as that takes.
    async fn release(&self, change: &Change) -> Result<Outcome, CatalogError> {
        let mut all = Box::pin(self.decide(change)).await?;
        let mut last = all.released.len();
        while last == RELEASED_AT_ONCE {
            match Box::pin(self.decide(change)).await {
                Ok(Outcome { after, released, .. }) => {
                    last = released.len();
                    all.after = after;
                    all.released.extend(released);
                }
                // Removed by others meanwhile: nobody mounts it any more.
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    async fn decide(&self, change: &Change) -> Result<Outcome, CatalogError> {
        let mut attempt = None;
        let done = self.try_until_it_holds(change, &mut attempt).await;
        // Refused by the cluster, such as where its storage is full, nothing of it was done, either.
        if let (Err(CatalogError::Unreachable { .. } | CatalogError::Write { .. }), Some((host, what))) =
            (&done, self.can_wait(change))
        {
            return self.keep_for_later(change, host, what, attempt).await;
        }
        // What was sent may still take effect. An error is answered only once it cannot any more.
        let settled = match attempt {
            Some(attempt) => attempt.settle().await,
            None => None,
        };
        match settled {
            Some((revision, (outcome, steps))) => {
                self.replica.committed(revision, steps);
                Ok(outcome)
            }
            None => done,
        }
    }

    async fn try_until_it_holds<'a>(
        &'a self,
        change: &Change,
        attempt: &mut Option<Attempt<'a, Effect>>,
    ) -> Result<Outcome, CatalogError> {
        // What an engine was answered before comes before what it asks for now.
        if matches!(change, Change::Mount { .. }) && self.outbox.len() > 0 {
            tokio::select! {
                // Where the cluster has no room for it, it has none for the Mount, either, and says so.
                _ = timeout(ELSEWHERE, self.outbox.emptied()) => {}
                why = self.health.out_of_reach() => return Err(self.unreachable(why)),
            }
        }
        // Mounted before it is recorded that its engine was started, it would count as one of before.
        if let Change::Mount { host, .. } = change {
            tokio::select! {
                biased;
                started = timeout(STARTED, self.outbox.started(host)) => if started.is_err() {
                    let why = format!("it is not recorded yet that the engine of {host} was started");
                    return Err(self.unreachable(Arc::new(why)));
                },
                why = self.health.out_of_reach() => return Err(self.unreachable(why)),
            }
        }
        let needed = change.footprint(&self.replica.view()).freshness;
        let mut fresh = needed == Freshness::Always;
        if fresh {
            self.sync().await?;
        }
        let (mut waited, mut stale) = (false, 0);
        loop {
            let owner = self.owner();
            let planned = plan(&self.replica, &self.keys, owner, change)
                .map_err(|error| self.failed(crate::error::chain(&error)))?;
            let (outcome, transaction) = match planned {
                Planned::Refused(_) | Planned::Elsewhere(_) if !fresh => {
                    self.sync().await?;
                    fresh = true;
                    continue;
                }
                Planned::Nothing(_) if !fresh && needed == Freshness::ForNothingToDo => {
                    self.sync().await?;
                    fresh = true;
                    continue;
                }
                Planned::Refused(refusal) => return Err(refusal.into()),
                Planned::Nothing(outcome) => return Ok(outcome),
                Planned::Elsewhere(volume) => {
                    if waited {
                        return Err(Refusal::Moving(volume).into());
                    }
                    waited = true;
                    let mut settled = self.replica.settled();
                    let elsewhere = self.replica.look(|_, known| known.mover(volume.id).is_some());
                    if elsewhere {
                        let _ = timeout(ELSEWHERE, settled.changed()).await;
                    }
                    if matches!(change, Change::Mount { .. }) {
                        // Where the directory is now, the catalog does not know.
                        return Err(Refusal::Moving(volume).into());
                    }
                    continue;
                }
                Planned::Write(outcome, transaction) => (outcome, transaction),
            };
            if attempt.is_none() {
                // Slots of what was sent and not answered are not free before the cluster is back.
                *attempt = Some(tokio::select! {
                    biased;
                    why = self.health.out_of_reach() => return Err(self.unreachable(why)),
                    begun = Attempt::begin(self) => begun,
                });
            }
            let Some(sender) = attempt.as_mut() else { continue };
            let keep = (outcome, transaction.steps.clone());
            match sender.send(&transaction, keep).await {
                Ok(Sent::Committed(revision, (outcome, steps))) => {
                    self.replica.committed(revision, steps);
                    return Ok(outcome);
                }
                Ok(Sent::Stale) => {
                    stale += 1;
                    if stale % STALE == 0 {
                        self.doubt(change).await;
                    }
                    self.sync().await?;
                    fresh = true;
                }
                Ok(Sent::Unknown) => {
                    return Err(self.unreachable(self.health.fault().unwrap_or_default()));
                }
                Err(CallError { kind: Kind::LeaseGone, .. }) => self.renew_lease(owner.lease).await?,
                Err(trouble) => return Err(self.failed(trouble.text)),
            }
        }
    }

    /// Waits until everything in front of a change is done. What can be kept does not wait for what cannot be known
    /// before the cluster is back.
    pub(super) async fn wait_for_turn(&self, turn: &mut QueuedLocks, change: &Change) {
        if self.can_wait(change).is_some() {
            tokio::select! {
                biased;
                () = turn.come() => {}
                _ = self.health.out_of_reach() => {}
            }
        } else {
            turn.come().await;
        }
    }

    /// What of a change can be kept until the cluster is back, because the answer to it is always the same.
    fn can_wait(&self, change: &Change) -> Option<(HostName, Answered)> {
        match change {
            Change::Unmount { name, host, id, target: None } => {
                let view = self.replica.view();
                let target = UnmountTarget {
                    volume: view.volumes.get(name).map(|volume| volume.id),
                    activation: view.activation(host),
                };
                Some((host.clone(), Answered::Unmount { volume: name.clone(), id: id.clone(), target }))
            }
            Change::Activate(host) => Some((host.clone(), Answered::Activate)),
            _ => None,
        }
    }

    async fn keep_for_later(
        &self,
        change: &Change,
        host: HostName,
        what: Answered,
        attempt: Option<Attempt<'_, Effect>>,
    ) -> Result<Outcome, CatalogError> {
        let sent = match attempt {
            Some(attempt) if attempt.is_uncertain() => Some(attempt.leave()),
            Some(attempt) => {
                attempt.settle().await;
                None
            }
            None => None,
        };
        let outcome = View::clone(&self.replica.view())
            .apply(change.clone())
            .map_or_else(|_| Outcome::default(), |(outcome, _)| outcome);
        let entry = Entry { host, what, sent: sent.clone() };
        let Err(error) = self.outbox.with_disk(move |spool| spool.keep(entry)).await else {
            return Ok(outcome);
        };
        // What was sent may still take effect: an error is answered only once it cannot any more.
        let took_effect = match sent {
            Some((slot, numbers)) => Attempt::resume(self, slot, numbers, &()).settle().await.is_some(),
            None => false,
        };
        // The slot tells no longer what became of it, should the next start find something of it in the file.
        if let Err(error) = self.outbox.with_disk(Outbox::cut_off).await {
            log::error!(
                "{} may end with a request that was not kept, and that the next start would count: {error}",
                self.outbox.path().display()
            );
        }
        if took_effect {
            return Ok(outcome);
        }
        Err(self.failed(format!(
            "it is out of reach, and nothing can be kept in {}: {error}",
            self.outbox.path().display()
        )))
    }

    /// Has the lease that is gone renewed, and waits for that.
    pub(super) async fn renew_lease(&self, gone: i64) -> Result<(), CatalogError> {
        while self.lease.load(Ordering::Acquire) == gone {
            self.lease_gone.notify_one();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
                why = self.health.out_of_reach() => return Err(self.unreachable(why)),
            }
        }
        Ok(())
    }
}

/// The place of a change in the order of this instance's.
pub(super) fn place(core: &Core, change: &Change) -> QueuedLocks {
    core.key_locks.queue(cells(change.footprint(&core.replica.view())))
}
