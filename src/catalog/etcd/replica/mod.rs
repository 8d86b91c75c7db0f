//! This instance's copy of the catalog: the memory, what keeps it up to date, and whether it can be trusted.
//!
//! - [`memory`]: the view, and the revision of each row in it.
//! - [`watch`]: what all instances wrote, in the order of revisions.
//! - [`read_index`]: waits until the view is as recent as every answer given so far.
//! - [`state`]: why the replica cannot be trusted, if so.
//! - [`load`]: reads everything, at the start and whenever the watch cannot tell what happened.
//!
//! It writes nothing. It must never let a change be decided on a view whose history is not the cluster's.

mod load;
mod memory;
mod read_index;
mod state;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub(crate) use self::load::read;
pub(crate) use self::memory::{Claim, Memory, Rows, Snapshot, Step};
use self::read_index::Request;
pub(crate) use self::state::Fault;
use self::state::{Reload, ReplicaState};
use super::client::Client;
use crate::catalog::{CatalogError, Change};

/// After this many attempts in a row on outdated rows, the memory counts as wrong. Other instances that write the same
/// rows cause a few.
pub(crate) const STALE_LIMIT: usize = 50;

/// How long a change waits for the catalog to be read whole.
const RELOAD: Duration = Duration::from_secs(1);

/// The replica of one catalog.
pub(crate) struct Replica {
    client: Arc<Client>,
    pub(crate) memory: Memory,
    state: ReplicaState,
    read_index: mpsc::UnboundedSender<Request>,
}

impl Replica {
    /// Makes a replica of a snapshot, and keeps it up to date in tasks of the present runtime.
    pub(crate) fn start(client: Arc<Client>, snapshot: Snapshot) -> Arc<Self> {
        let (read_index, requests) = mpsc::unbounded_channel();
        let memory = Memory::new(client.keys.clone(), client.me, snapshot);
        let replica = Arc::new(Self { client, memory, state: ReplicaState::default(), read_index });
        tokio::spawn(read_index::answer(Arc::clone(&replica), requests));
        tokio::spawn(watch::run(Arc::clone(&replica)));
        replica
    }

    /// Waits until the view is as recent as every answer given before this call.
    pub(crate) async fn sync(&self) -> Result<(), CatalogError> {
        let Client { health, .. } = &*self.client;
        if let Some(why) = health.fault() {
            return Err(self.client.unreachable(why));
        }
        let (answer, synced) = oneshot::channel();
        if self.read_index.send(answer).is_err() {
            return Err(CatalogError::Closed);
        }
        tokio::select! {
            biased;
            answered = synced => match answered {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => Err(self.client.unreachable(why)),
                Err(_) => Err(CatalogError::Closed),
            },
            why = health.out_of_reach() => Err(self.client.unreachable(why)),
        }
    }

    /// Reads the catalog whole because the memory differs from the cluster and no event will correct it. Waits until that
    /// is done, or has taken long.
    pub(crate) async fn doubt(&self, change: &Change) {
        log::error!(
            "what is known of the catalog {} is not what it holds, as {STALE_LIMIT} attempts at {change:?} showed: it is read \
             whole again",
            self.client.location
        );
        let mut settled = self.memory.ended_claims();
        self.state.reload(Reload::Doubted);
        let _ = timeout(RELOAD, settled.changed()).await;
    }

    /// Reads the catalog whole because the cluster's history is not the one that the memory was built from: etcd was
    /// restored from a snapshot.
    fn history_changed(&self, revision: i64) {
        if self.state.reload(Reload::OtherHistory) {
            log::error!(
                "the catalog {} has another history at revision {revision}: was etcd restored from a snapshot? what was \
                 recorded since that is lost; `volhost check --catalog` compares it with the directories",
                self.client.location
            );
        }
    }

    /// Distrusts the replica for this reason, until it [recovers](Self::recover).
    pub(crate) fn fail(&self, fault: Fault, why: &str) {
        self.state.fail(fault, why, &self.client.health);
    }

    /// Trusts the replica again, unless there is another fault.
    pub(crate) fn recover(&self, fault: Fault) {
        self.state.recover(fault, &self.client.health);
    }
}
