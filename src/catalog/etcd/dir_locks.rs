//! Claims: the right of this instance alone to move a volume's directory, as a key that ends with its lease.
//!
//! A claim in memory proves nothing while the watch is behind: the lease may have ended, and another instance may have
//! claimed the directory since. So a claim is granted only by a key that was just written. And no claim outlives its use
//! because it could not be released: that is tried for as long as the catalog is served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::client::{CallError, CallErrorKind, Client};
use super::key_locks::{Cell, KeyLocks, QueuedLocks};
use super::replica::Replica;
use super::txn::{self, Attempt, Owner, Sent, Transaction, Transactions};
use crate::catalog::{Access, CatalogError, DistributedLock};
use crate::model::volume::VolumeId;

/// How often to look again who moves a directory, if the memory is outdated.
const TRIES: usize = 20;

/// The pause between looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The pause before the release of a claim is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The claims of this instance.
pub(super) struct DirLocks {
    client: Arc<Client>,
    replica: Arc<Replica>,
    txn: Arc<Transactions>,
    key_locks: KeyLocks,
    /// The claims that are to be released, each with the revision at which it was written.
    release_queue: Mutex<HashMap<VolumeId, i64>>,
    /// True while the catalog is being closed.
    closing: watch::Receiver<bool>,
}

impl DirLocks {
    pub(super) fn new(
        client: Arc<Client>,
        replica: Arc<Replica>,
        txn: Arc<Transactions>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        let (key_locks, release_queue) = Default::default();
        Self { client, replica, txn, key_locks, release_queue, closing }
    }

    /// Claims the right to move a volume's directory. Returns `None` if another instance has it.
    pub(super) async fn try_lock(
        self: &Arc<Self>,
        id: VolumeId,
    ) -> Result<Option<DistributedLock>, CatalogError> {
        let mut turn = self.turn_to_move(id);
        turn.acquired().await;
        for _ in 0..TRIES {
            self.replica.sync().await?;
            let before = self.replica.memory.look(|_, rows| rows.claim(id).cloned());
            if before.as_ref().is_some_and(|(claim, _)| claim.by != self.client.me) {
                return Ok(None);
            }
            let written = self
                .write(|owner| txn::claim_directory(&self.client.keys, owner, id, before.as_ref()))
                .await?;
            let Some(revision) = written else {
                // Only the watch shows that a lease has ended.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // A claim that waited for its release was replaced by this one.
            self.queue().remove(&id);
            let hides = before.is_some_and(|(claim, _)| claim.hides.is_some());
            return self.granted(id, revision, hides).await.map(Some);
        }
        Ok(None)
    }

    /// Waits until the memory has everything that was answered before the claim was written.
    async fn granted(
        self: &Arc<Self>,
        id: VolumeId,
        revision: i64,
        hides: bool,
    ) -> Result<DistributedLock, CatalogError> {
        let mut reached = self.replica.memory.reached();
        let caught_up = reached.wait_for(|reached| *reached >= revision);
        let out_of_reach = tokio::select! {
            biased;
            _ = caught_up => None,
            why = self.client.health.out_of_reach() => Some(why),
        };
        // A volume that is being made or restored stays hidden until it is shown, which ends the claim.
        let release = {
            let (locks, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
            move || {
                let _inside = runtime.enter();
                locks.release(id, revision);
            }
        };
        let claimed = if hides { DistributedLock::default() } else { DistributedLock::new(release) };
        match out_of_reach {
            // The claim is dropped here, which releases it.
            Some(why) => Err(self.client.unreachable(why)),
            None => Ok(claimed),
        }
    }

    /// Releases a claim in the background: until that is done, it is claimed again, or it ends with the lease.
    fn release(self: &Arc<Self>, id: VolumeId, revision: i64) {
        let locks = Arc::clone(self);
        self.queue().insert(id, revision);
        // It is queued now, in front of every later claim.
        let mut turn = self.turn_to_move(id);
        tokio::spawn(async move {
            let mut said = false;
            loop {
                turn.acquired().await;
                if *locks.closing.borrow() || locks.queue().get(&id) != Some(&revision) {
                    return;
                }
                match locks.write(|_| txn::release_claim(&locks.client.keys, id, revision)).await {
                    Ok(_) => {
                        locks.queue().remove(&id);
                        return;
                    }
                    Err(CatalogError::Unreachable { .. }) => {}
                    Err(error) if !said => {
                        log::warn!(
                            "a claim cannot be given back, and that is tried again: {}",
                            crate::error::chain(&error)
                        );
                        said = true;
                    }
                    Err(_) => {}
                }
                // Meanwhile the directory may be claimed again.
                drop(turn);
                tokio::time::sleep(AGAIN).await;
                locks.client.health.back().await;
                turn = locks.turn_to_move(id);
            }
        });
    }

    fn queue(&self) -> MutexGuard<'_, HashMap<VolumeId, i64>> {
        // The map is whole after every statement under this lock.
        self.release_queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_to_move(&self, id: VolumeId) -> QueuedLocks {
        self.key_locks.queue(vec![(Cell::Directory(id), Access::Write)])
    }

    /// Writes what no rule decides. Returns the revision, or `None` if the conditions do not hold.
    async fn write(&self, make: impl Fn(Owner) -> Transaction) -> Result<Option<i64>, CatalogError> {
        loop {
            let mut attempt = tokio::select! {
                biased;
                why = self.client.health.out_of_reach() => return Err(self.client.unreachable(why)),
                begun = Attempt::begin(&self.txn) => begun,
            };
            let owner = self.txn.owner();
            let transaction = make(owner);
            let sent = attempt.send(&transaction, ()).await;
            // Whatever the last answer was: an earlier transaction that was not answered may have taken effect.
            let settled = attempt.settle().await.map(|(revision, ())| revision);
            let revision = match (sent, settled) {
                (Ok(Sent::Committed(revision, ())), _) | (_, Some(revision)) => revision,
                (Ok(Sent::Stale), None) => return Ok(None),
                (Ok(Sent::Unknown), None) => {
                    return Err(self.client.unreachable(self.client.health.fault().unwrap_or_default()));
                }
                (Err(CallError { kind: CallErrorKind::LeaseGone, .. }), None) => {
                    self.client.renew_lease(owner.lease).await?;
                    continue;
                }
                (Err(error), None) => return Err(self.client.failed(error.text)),
            };
            self.replica.memory.committed(revision, transaction.steps);
            return Ok(Some(revision));
        }
    }
}
