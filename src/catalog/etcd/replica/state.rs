//! The faults of the replica. While it has one, it cannot be trusted: no change is decided, however well the cluster
//! answers, and requests are refused with the reason.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::catalog::etcd::client::Health;

/// Why this instance does not know what others do. The gravest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Another instance has this one's name: what is counted under it is that instance's.
    Namesake,
    /// A record was written by a newer volhost, or is damaged.
    NotUnderstood,
    /// The watch does not deliver in time.
    Behind,
}

/// Why the catalog has to be read whole. The gravest comes last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reload {
    /// The memory differs from the cluster, although the watch is up to date.
    Doubted,
    /// The cluster's history is not the one that the memory was built from.
    OtherHistory,
}

/// The state of the replica, and the signal by which the watch learns of a change.
#[derive(Debug, Default)]
pub(super) struct ReplicaState {
    state: Mutex<State>,
    restart: Notify,
}

#[derive(Debug, Default)]
struct State {
    reload: Option<Reload>,
    /// The present faults, each with its message.
    faults: BTreeMap<Fault, String>,
}

impl ReplicaState {
    /// Returns why the catalog has to be read whole, if so. Until that is done, the memory is not up to date.
    pub(super) fn needs_reload(&self) -> Option<Reload> {
        self.state().reload
    }

    /// Makes the watch end, and the catalog be read whole. Returns true if that is new.
    pub(super) fn reload(&self, why: Reload) -> bool {
        let before = {
            let mut state = self.state();
            let before = state.reload;
            state.reload = before.max(Some(why));
            before
        };
        self.restart_watch();
        before < Some(why)
    }

    /// Records that the catalog was read whole.
    pub(super) fn reloaded(&self) {
        self.state().reload = None;
    }

    /// Makes the watch begin again if it is behind.
    pub(super) fn restart_watch(&self) {
        self.restart.notify_one();
    }

    /// Waits until the watch is to begin again.
    pub(super) async fn restarted(&self) {
        self.restart.notified().await;
    }

    /// Adds a fault. The health is told under the lock, so that it always shows the gravest of the present faults.
    pub(super) fn fail(&self, fault: Fault, why: &str, health: &Health) {
        let mut state = self.state();
        state.faults.insert(fault, why.to_owned());
        if let Some(gravest) = state.faults.values().next() {
            health.distrust(gravest);
        }
    }

    /// Removes a fault.
    pub(super) fn recover(&self, fault: Fault, health: &Health) {
        let mut state = self.state();
        if state.faults.remove(&fault).is_none() {
            return;
        }
        match state.faults.values().next() {
            Some(gravest) => health.distrust(gravest),
            None => health.trust(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole after every statement under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
