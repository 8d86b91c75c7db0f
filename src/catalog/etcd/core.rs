//! Joins the parts of the engine, and carries out a change with them.
//!
//! A change is planned, sent, and applied to the memory. If the plan's conditions did not hold when the transaction was
//! carried out, the change is planned again. A change is refused only on a view that is up to date. While the cluster is out
//! of reach, no change begins; Unmounts and Activates are kept in the outbox.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::client::{CallError, CallErrorKind, Client};
use super::key_locks::{KeyLocks, QueuedLocks, cells};
use super::outbox::{Answered, Entry, Outbox};
use super::replica::{Replica, STALE_LIMIT, Step};
use super::txn::{Attempt, Planned, RELEASED_AT_ONCE, Sent, Transactions, plan};
use crate::catalog::{CatalogError, Change, Freshness, Outcome, Refusal, UnmountTarget, View};
use crate::model::host::HostName;

/// How long a Mount waits until the outbox is carried out.
const OUTBOX_WAIT: Duration = Duration::from_secs(1);

/// How long to wait for another instance that moves a directory.
const MOVE_WAIT: Duration = Duration::from_secs(1);

/// How long a Mount waits until the start of its engine is recorded.
const ACTIVATION_WAIT: Duration = Duration::from_secs(7);

/// The largest number of hosts that one transaction marks as seen: etcd allows 128 conditions.
pub(super) const SEEN_AT_ONCE: usize = 100;

/// The parts of the engine.
pub(super) struct Core {
    pub(super) client: Arc<Client>,
    pub(super) replica: Arc<Replica>,
    pub(super) txn: Arc<Transactions>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) key_locks: KeyLocks,
}

/// The outcome of a change and the steps for the memory, kept while its transaction is under way.
type Effect = (Outcome, Vec<Step>);

impl Core {
    /// Carries out a change. The caller has waited for the changes queued before it.
    pub(super) async fn carry_out(&self, change: Change) -> Result<Outcome, CatalogError> {
        match &change {
            // Only a check that this instance is alive, which needs no cluster.
            Change::Seen(hosts) if hosts.is_empty() => return Ok(Outcome::default()),
            Change::Seen(hosts) if hosts.len() > SEEN_AT_ONCE => {
                for part in hosts.chunks(SEEN_AT_ONCE) {
                    Box::pin(self.execute(&Change::Seen(part.to_vec()))).await?;
                }
                return Ok(Outcome::default());
            }
            Change::Release { .. } => return self.release(&change).await,
            _ => {}
        }
        self.execute(&change).await
    }

    /// Releases mounts, in as many transactions as needed.
    async fn release(&self, change: &Change) -> Result<Outcome, CatalogError> {
        let mut all = Box::pin(self.execute(change)).await?;
        let mut last = all.released.len();
        while last == RELEASED_AT_ONCE {
            match Box::pin(self.execute(change)).await {
                Ok(Outcome { after, released, .. }) => {
                    last = released.len();
                    all.after = after;
                    all.released.extend(released);
                }
                // Another instance removed the volume meanwhile, so it has no mounts.
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Carries out a change in one transaction, or keeps it in the outbox.
    async fn execute(&self, change: &Change) -> Result<Outcome, CatalogError> {
        let mut attempt = None;
        let done = self.try_until_committed(change, &mut attempt).await;
        // A cluster that refuses the change, for example because its storage is full, did nothing of it, either.
        if let (Err(CatalogError::Unreachable { .. } | CatalogError::Write { .. }), Some((host, request))) =
            (&done, self.deferrable(change))
        {
            return self.keep_for_later(change, host, request, attempt).await;
        }
        // A transaction that was sent may still take effect. An error is answered only when it no longer can.
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

    /// Plans and sends a change until it is committed, refused, or fails. `attempt` is set when the first transaction is
    /// sent; the caller settles it.
    async fn try_until_committed<'a>(
        &'a self,
        change: &Change,
        attempt: &mut Option<Attempt<'a, Effect>>,
    ) -> Result<Outcome, CatalogError> {
        // The requests that were answered before are carried out before this one.
        if matches!(change, Change::Mount { .. }) && self.outbox.len() > 0 {
            tokio::select! {
                // If the cluster has no room for the outbox, it has none for the Mount, either, and says so.
                _ = timeout(OUTBOX_WAIT, self.outbox.wait_until_empty()) => {}
                why = self.client.health.out_of_reach() => return Err(self.client.unreachable(why)),
            }
        }
        // A Mount before the activation of its engine is recorded would count as one of the activation before.
        if let Change::Mount { host, .. } = change {
            tokio::select! {
                biased;
                started = timeout(ACTIVATION_WAIT, self.outbox.wait_for_activation(host)) => if started.is_err() {
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
        let (mut waited_for_move, mut stale_attempts) = (false, 0);
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
                    if waited_for_move {
                        return Err(Refusal::Moving(volume).into());
                    }
                    waited_for_move = true;
                    let mut ended_claims = self.replica.memory.ended_claims();
                    let still_claimed = self.replica.memory.look(|_, rows| rows.claim(volume.id).is_some());
                    if still_claimed {
                        let _ = timeout(MOVE_WAIT, ended_claims.changed()).await;
                    }
                    if matches!(change, Change::Mount { .. }) {
                        // The catalog does not know where the directory is now.
                        return Err(Refusal::Moving(volume).into());
                    }
                    continue;
                }
                Planned::Write(outcome, transaction) => (outcome, transaction),
            };
            if attempt.is_none() {
                // The slots of unanswered transactions stay taken until the cluster is back.
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
                    stale_attempts += 1;
                    if stale_attempts % STALE_LIMIT == 0 {
                        self.replica.doubt(change).await;
                    }
                    self.replica.sync().await?;
                    up_to_date = true;
                }
                Ok(Sent::Unknown) => {
                    return Err(self.client.unreachable(self.client.health.fault().unwrap_or_default()));
                }
                Err(CallError { kind: CallErrorKind::LeaseGone, .. }) => {
                    self.client.renew_lease(owner.lease).await?;
                }
                Err(error) => return Err(self.client.failed(error.text)),
            }
        }
    }

    /// Waits until the changes queued before this one are done. If the cluster is out of reach, a change that the outbox can
    /// keep does not wait: the outcome of the others is not known before the cluster is back.
    pub(super) async fn wait_for_turn(&self, turn: &mut QueuedLocks, change: &Change) {
        if self.deferrable(change).is_some() {
            tokio::select! {
                biased;
                () = turn.acquired() => {}
                _ = self.client.health.out_of_reach() => {}
            }
        } else {
            turn.acquired().await;
        }
    }

    /// Returns what the outbox keeps of a change that can wait until the cluster is back, because its answer is always the
    /// same; `None` for any other change.
    fn deferrable(&self, change: &Change) -> Option<(HostName, Answered)> {
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

    /// Keeps a change in the outbox and answers it.
    async fn keep_for_later(
        &self,
        change: &Change,
        host: HostName,
        request: Answered,
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
        let entry = Entry { host, request, sent: sent.clone() };
        let Err(error) = self.outbox.with_disk(move |outbox| outbox.keep(entry)).await else {
            return Ok(outcome);
        };
        // A transaction that was sent may still take effect: an error is answered only when it no longer can.
        let took_effect = match sent {
            Some((slot, numbers)) => Attempt::resume(&self.txn, slot, numbers, &()).settle().await.is_some(),
            None => false,
        };
        // The slot no longer shows the outcome, so that the next start must not find a part of the entry in the file.
        if let Err(error) = self.outbox.with_disk(Outbox::truncate).await {
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

/// Queues a change behind all earlier ones of this instance that access the same keys.
pub(super) fn queue(core: &Core, change: &Change) -> QueuedLocks {
    core.key_locks.queue(cells(change.footprint(&core.replica.memory.view())))
}
