//! Claims: that this instance alone moves a volume's directory, as a key that ends with its lease.
//!
//! What is known of such a key says nothing while the watch is behind: the lease may have ended, and another instance may
//! have claimed the directory since. So a claim is granted by nothing but a key that was just written. And no claim
//! stays because it could not be given back: that is tried for as long as the catalog is served.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::core::Core;
use super::key_locks::{Cell, QueuedLocks};
use super::members::{CallError, Kind};
use super::plan::{self, Owner, Transaction};
use super::transact::{Attempt, Sent};
use crate::catalog::{Access, CatalogError, DistributedLock};
use crate::model::volume::VolumeId;

/// How often it is looked who moves a directory, where what is known of it is not so any more.
const TRIES: usize = 20;

/// How long it is waited in between.
const PAUSE: Duration = Duration::from_millis(50);

/// How long after a claim could not be given back that is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The claims that are to be given back, each as it was made at a revision.
#[derive(Debug, Default)]
pub(super) struct ReleaseQueue(Mutex<HashMap<VolumeId, i64>>);

impl ReleaseQueue {
    fn lock(&self) -> MutexGuard<'_, HashMap<VolumeId, i64>> {
        // The map is whole after every statement under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, id: VolumeId, revision: i64) {
        self.lock().insert(id, revision);
    }

    fn has(&self, id: VolumeId, revision: i64) -> bool {
        self.lock().get(&id) == Some(&revision)
    }

    fn remove(&self, id: VolumeId) {
        self.lock().remove(&id);
    }
}

impl Core {
    /// Claims the moving of a volume's directory.
    pub(super) async fn claim(
        self: &Arc<Self>,
        id: VolumeId,
    ) -> Result<Option<DistributedLock>, CatalogError> {
        let mut turn = self.turn_to_move(id);
        turn.come().await;
        for _ in 0..TRIES {
            self.sync().await?;
            let before = self.replica.look(|_, known| known.mover(id).cloned());
            if before.as_ref().is_some_and(|(moves, _)| moves.by != self.me) {
                return Ok(None);
            }
            let written = self.write(|owner| plan::claim(&self.keys, owner, id, before.as_ref())).await?;
            let Some(revision) = written else {
                // That a lease ended no question tells, only the watch.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            // One that was to be given back is another one by now.
            self.release_queue.remove(id);
            let hides = before.is_some_and(|(moves, _)| moves.hides.is_some());
            return self.granted(id, revision, hides).await.map(Some);
        }
        Ok(None)
    }

    /// Waits for what was answered before a claim was written.
    async fn granted(
        self: &Arc<Self>,
        id: VolumeId,
        revision: i64,
        hides: bool,
    ) -> Result<DistributedLock, CatalogError> {
        let mut reached = self.replica.reached();
        let come = reached.wait_for(|reached| *reached >= revision);
        let out_of_reach = tokio::select! {
            biased;
            _ = come => None,
            why = self.health.out_of_reach() => Some(why),
        };
        // A volume that is being made or restored stays hidden until it is shown, which ends the claim.
        let release = {
            let (core, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
            move || {
                let _inside = runtime.enter();
                core.give_back(id, revision);
            }
        };
        let claimed = if hides { DistributedLock::default() } else { DistributedLock::new(release) };
        match out_of_reach {
            // Dropped, it is given back.
            Some(why) => Err(self.unreachable(why)),
            None => Ok(claimed),
        }
    }

    /// Gives a claim back, in the background: until that is done, it is claimed again, or ends with the instance's lease.
    fn give_back(self: &Arc<Self>, id: VolumeId, revision: i64) {
        let core = Arc::clone(self);
        self.release_queue.add(id, revision);
        // Its place is taken now: it is in front of a claim that is asked for from now on.
        let mut turn = self.turn_to_move(id);
        tokio::spawn(async move {
            let mut said = false;
            loop {
                turn.come().await;
                if *core.closing.borrow() || !core.release_queue.has(id, revision) {
                    return;
                }
                match core.write(|_| plan::give_back(&core.keys, id, revision)).await {
                    Ok(_) => {
                        core.release_queue.remove(id);
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
                // Meanwhile it may be claimed again.
                drop(turn);
                tokio::time::sleep(AGAIN).await;
                core.health.back().await;
                turn = core.turn_to_move(id);
            }
        });
    }

    fn turn_to_move(&self, id: VolumeId) -> QueuedLocks {
        self.key_locks.queue(vec![(Cell::Moving(id), Access::Write)])
    }

    /// Writes what no rule decides; at which revision, or nothing where its conditions do not hold.
    async fn write(&self, make: impl Fn(Owner) -> Transaction) -> Result<Option<i64>, CatalogError> {
        loop {
            let mut attempt = tokio::select! {
                biased;
                why = self.health.out_of_reach() => return Err(self.unreachable(why)),
                begun = Attempt::begin(self) => begun,
            };
            let owner = self.owner();
            let transaction = make(owner);
            let sent = attempt.send(&transaction, ()).await;
            // Whatever was said last: what was sent before, and not answered, may have taken effect.
            let settled = attempt.settle().await.map(|(revision, ())| revision);
            let revision = match (sent, settled) {
                (Ok(Sent::Committed(revision, ())), _) | (_, Some(revision)) => revision,
                (Ok(Sent::Stale), None) => return Ok(None),
                (Ok(Sent::Unknown), None) => {
                    return Err(self.unreachable(self.health.fault().unwrap_or_default()));
                }
                (Err(CallError { kind: Kind::LeaseGone, .. }), None) => {
                    self.renew_lease(owner.lease).await?;
                    continue;
                }
                (Err(trouble), None) => return Err(self.failed(trouble.text)),
            };
            self.replica.committed(revision, transaction.steps);
            return Ok(Some(revision));
        }
    }
}
