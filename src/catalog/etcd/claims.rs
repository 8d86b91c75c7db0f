//! Claims: that this instance alone moves a volume's directory, as a key that ends with its lease.

use std::sync::Arc;

use super::core::Core;
use super::members::{Kind, Trouble};
use super::order::{Cell, Touch};
use super::plan::{self, Owner, Transaction};
use super::transact::{Attempt, Sent};
use crate::catalog::{CatalogError, Claimed};
use crate::volume::name::VolumeId;

impl Core {
    /// Claims the moving of a volume's directory.
    pub(super) async fn claim(self: &Arc<Self>, id: VolumeId) -> Result<Option<Claimed>, CatalogError> {
        let mut turn = self.order.queue(vec![(Cell::Moving(id), Touch::Writes)]);
        turn.come().await;
        self.sync().await?;
        let mover = self.memory.look(|_, known| known.mover(id).map(|(moves, _)| moves.by));
        match mover {
            // By hiding it: nobody else can, until it is shown.
            Some(by) if by == self.me => return Ok(Some(Claimed::default())),
            Some(_) => return Ok(None),
            None => {}
        }
        let Some(revision) = self.write(|owner| plan::claim(&self.keys, owner, id)).await? else {
            return Ok(None);
        };
        // What was answered before the claim was granted.
        let mut reached = self.memory.reached();
        let come = reached.wait_for(|reached| *reached >= revision);
        tokio::select! {
            biased;
            _ = come => {}
            why = self.health.out_of_reach() => {
                self.give_back(id, revision);
                return Err(self.unreachable(why));
            }
        }
        let (core, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        Ok(Some(Claimed::until(move || {
            let _inside = runtime.enter();
            core.give_back(id, revision);
        })))
    }

    /// Gives a claim back, in the background. One that cannot be given back ends with the instance's lease.
    fn give_back(self: &Arc<Self>, id: VolumeId, revision: i64) {
        let core = Arc::clone(self);
        let mut turn = self.order.queue(vec![(Cell::Moving(id), Touch::Writes)]);
        tokio::spawn(async move {
            turn.come().await;
            while !*core.closing.borrow() {
                match core.write(|_| plan::give_back(&core.keys, id, revision)).await {
                    Err(CatalogError::Unreachable { .. }) => core.health.back().await,
                    Err(error) => {
                        log::warn!("a claim cannot be given back: {}", crate::error::chain(&error));
                        return;
                    }
                    Ok(_) => return,
                }
            }
        });
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
            let settled = attempt.settle().await.map(|(revision, ())| revision);
            let revision = match sent {
                Ok(Sent::Committed(revision, ())) => Some(revision),
                Ok(Sent::Stale) => settled,
                Ok(Sent::Unknown) if settled.is_none() => {
                    return Err(self.unreachable(self.health.fault().unwrap_or_default()));
                }
                Ok(Sent::Unknown) => settled,
                Err(Trouble { kind: Kind::LeaseGone, .. }) => {
                    self.renew_lease(owner.lease).await?;
                    continue;
                }
                Err(trouble) => return Err(self.failed(trouble.text)),
            };
            if let Some(revision) = revision {
                self.memory.committed(revision, transaction.steps);
            }
            return Ok(revision);
        }
    }
}
