//! The parts of the engine together, and how a change is carried out with them.
//!
//! Plan, send, bring into the memory: again until the plan's conditions held when it was sent. A change is refused only on
//! a view that is up to date. While the cluster is out of reach, nothing is begun but Unmounts, which the outbox keeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::client::{CallError, Client, CallErrorKind};
use super::key_locks::{KeyLocks, QueuedLocks, cells};
use super::outbox::{Answered, Entry, Outbox};
use super::replica::{Replica, STALE_LIMIT, Step};
use super::txn::{Attempt, Planned, RELEASED_AT_ONCE, Sent, Transactions, plan};
use crate::catalog::{CatalogError, Change, Freshness, Outcome, Refusal, UnmountTarget, View};
use crate::model::host::HostName;

/// How long to wait for another instance that moves a directory.
const ELSEWHERE: Duration = Duration::from_secs(1);

/// How long a Mount waits until the start of its engine is recorded.
const STARTED: Duration = Duration::from_secs(7);

/// How many hosts one transaction marks as seen: etcd takes 128 conditions.
pub(super) const SEEN_AT_ONCE: usize = 100;

/// The parts of the engine.
pub(super) struct Core {
    pub(super) client: Arc<Client>,
    pub(super) replica: Arc<Replica>,
    pub(super) txn: Arc<Transactions>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) key_locks: KeyLocks,
}

/// The result of a change, kept while its transaction is under way.
type Effect = (Outcome, Vec<Step>);

impl Core {
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
                self.replica.memory.committed(revision, steps);
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
                why = self.client.health.out_of_reach() => return Err(self.client.unreachable(why)),
            }
        }
        // Mounted before it is recorded that its engine was started, it would count as one of before.
        if let Change::Mount { host, .. } = change {
            tokio::select! {
                biased;
                started = timeout(STARTED, self.outbox.started(host)) => if started.is_err() {
                    let why = format!("it is not recorded yet that the engine of {host} was started");
                    return Err(self.client.unreachable(Arc::new(why)));
                },
                why = self.client.health.out_of_reach() => return Err(self.client.unreachable(why)),
            }
        }
        let needed = change.footprint(&self.replica.memory.view()).freshness;
        let mut up_to_date = needed == Freshness::Always;
        if up_to_date {
            self.replica.sync().await?;
        }
        let (mut waited, mut stale) = (false, 0);
        loop {
            let owner = self.txn.owner();
            let planned = plan(&self.replica.memory, &self.client.keys, owner, change)
                .map_err(|error| self.client.failed(crate::error::chain(&error)))?;
            let (outcome, transaction) = match planned {
                Planned::Refused(_) | Planned::Moving(_) if !up_to_date => {
                    self.replica.sync().await?;
                    up_to_date = true;
                    continue;
                }
                Planned::Nothing(_) if !up_to_date && needed == Freshness::ForNothingToDo => {
                    self.replica.sync().await?;
                    up_to_date = true;
                    continue;
                }
                Planned::Refused(refusal) => return Err(refusal.into()),
                Planned::Nothing(outcome) => return Ok(outcome),
                Planned::Moving(volume) => {
                    if waited {
                        return Err(Refusal::Moving(volume).into());
                    }
                    waited = true;
                    let mut settled = self.replica.memory.ended_claims();
                    let elsewhere = self.replica.memory.look(|_, rows| rows.claim(volume.id).is_some());
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
                    why = self.client.health.out_of_reach() => return Err(self.client.unreachable(why)),
                    begun = Attempt::begin(&self.txn) => begun,
                });
            }
            let Some(sender) = attempt.as_mut() else { continue };
            let keep = (outcome, transaction.steps.clone());
            match sender.send(&transaction, keep).await {
                Ok(Sent::Committed(revision, (outcome, steps))) => {
                    self.replica.memory.committed(revision, steps);
                    return Ok(outcome);
                }
                Ok(Sent::Stale) => {
                    stale += 1;
                    if stale % STALE_LIMIT == 0 {
                        self.replica.doubt(change).await;
                    }
                    self.replica.sync().await?;
                    up_to_date = true;
                }
                Ok(Sent::Unknown) => {
                    return Err(self.client.unreachable(self.client.health.fault().unwrap_or_default()));
                }
                Err(CallError { kind: CallErrorKind::LeaseGone, .. }) => self.client.renew_lease(owner.lease).await?,
                Err(error) => return Err(self.client.failed(error.text)),
            }
        }
    }

    /// Waits until everything in front of a change is done. What can be kept does not wait for what cannot be known
    /// before the cluster is back.
    pub(super) async fn wait_for_turn(&self, turn: &mut QueuedLocks, change: &Change) {
        if self.can_wait(change).is_some() {
            tokio::select! {
                biased;
                () = turn.acquired() => {}
                _ = self.client.health.out_of_reach() => {}
            }
        } else {
            turn.acquired().await;
        }
    }

    /// What of a change can be kept until the cluster is back, because the answer to it is always the same.
    fn can_wait(&self, change: &Change) -> Option<(HostName, Answered)> {
        match change {
            Change::Unmount { name, host, id, target: None } => {
                let view = self.replica.memory.view();
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
        let outcome = View::clone(&self.replica.memory.view())
            .apply(change.clone())
            .map_or_else(|_| Outcome::default(), |(outcome, _)| outcome);
        let entry = Entry { host, what, sent: sent.clone() };
        let Err(error) = self.outbox.with_disk(move |outbox| outbox.keep(entry)).await else {
            return Ok(outcome);
        };
        // What was sent may still take effect: an error is answered only once it cannot any more.
        let took_effect = match sent {
            Some((slot, numbers)) => Attempt::resume(&self.txn, slot, numbers, &()).settle().await.is_some(),
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
        Err(self.client.failed(format!(
            "it is out of reach, and nothing can be kept in {}: {error}",
            self.outbox.path().display()
        )))
    }
}

/// The place of a change in the order of this instance's.
pub(super) fn place(core: &Core, change: &Change) -> QueuedLocks {
    core.key_locks.queue(cells(change.footprint(&core.replica.memory.view())))
}
