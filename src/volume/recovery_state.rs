//! What this process knows of each backend's need for recovery.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::backend;
use crate::catalog::PeerEvents;
use crate::model::backend::BackendName;
use crate::model::volume::VolumeId;

/// After how long a staged directory without a record counts as abandoned where several instances make volumes: by then
/// whoever made it has given up, or was lost.
const UNRECORDED_TIMEOUT: Duration = Duration::from_secs(120);

/// The state of recovery of all backends, and what is known of lost peers.
#[derive(Debug)]
pub(super) struct Recovery {
    backends: Mutex<HashMap<BackendName, Arc<BackendRecovery>>>,
    /// What the catalog tells of other instances; `None` if there can be none.
    peers: Option<watch::Receiver<PeerEvents>>,
    /// How many lost peers recovery has been required for.
    peers_lost: AtomicU64,
}

impl Recovery {
    pub(super) fn new(peers: Option<watch::Receiver<PeerEvents>>) -> Self {
        Self { backends: Mutex::default(), peers, peers_lost: AtomicU64::new(0) }
    }

    pub(super) fn of(&self, backend: &BackendName) -> Arc<BackendRecovery> {
        // The map is whole after every statement under this lock.
        let mut backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner);
        match backends.get(backend) {
            Some(known) => Arc::clone(known),
            None => Arc::clone(backends.entry(backend.clone()).or_default()),
        }
    }

    /// Has the backend searched for half-done work before its next operation.
    pub(super) fn require(&self, backend: &BackendName) {
        self.of(backend).require();
    }

    /// Requires recovery of every backend if a peer was lost since the last call: the instances that are left finish
    /// or undo what it had begun.
    pub(super) fn note_lost_peers(&self, map: &backend::Map) {
        let Some(peers) = &self.peers else { return };
        let lost = peers.borrow().lost_instances;
        if self.peers_lost.swap(lost, Ordering::AcqRel) != lost {
            for backend in map.iter() {
                self.require(backend.name());
            }
        }
    }

    /// PeerEvents of other instances from now on.
    pub(super) fn subscribe_to_peers(&self) -> PeerSubscription {
        PeerSubscription(self.peers.clone())
    }
}

/// A subscription to what other instances do.
pub(super) struct PeerSubscription(Option<watch::Receiver<PeerEvents>>);

impl PeerSubscription {
    /// Resolves when there is something new; never, once there can be nothing new.
    pub(super) async fn changed(&mut self) {
        if let Some(events) = &mut self.0 {
            if events.changed().await.is_ok() {
                return;
            }
            self.0 = None;
        }
        pending::<()>().await;
    }
}

/// Whether one backend may hold half-done work, and what its last recovery had to leave.
#[derive(Debug)]
pub(super) struct BackendRecovery {
    /// How often recovery was required. Begins at 1, because a crash may have come before this process.
    required: AtomicU64,
    /// The value of `required` that the last recovery covered.
    covered: AtomicU64,
    turn: tokio::sync::Mutex<()>,
    leftovers: Mutex<Leftovers>,
}

/// What a recovery found and could not finish.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Volumes whose directories lie in the trash and cannot come back, because something else took their names.
    pub(super) displaced: HashSet<VolumeId>,
    /// Volumes whose directories another instance is moving.
    pub(super) elsewhere: HashSet<VolumeId>,
    /// Staged directories without a record that may be another instance's, and when each was first seen here.
    pub(super) unrecorded: HashMap<VolumeId, Instant>,
}

impl Default for BackendRecovery {
    fn default() -> Self {
        Self {
            required: AtomicU64::new(1),
            covered: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            leftovers: Mutex::default(),
        }
    }
}

impl BackendRecovery {
    /// Has the backend searched for half-done work before its next operation.
    pub(super) fn require(&self) {
        self.required.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn is_done(&self) -> bool {
        self.pending().is_none()
    }

    /// What a recovery that begins now has to pass to [`finish`](Self::finish); `None` if none is required.
    pub(super) fn pending(&self) -> Option<u64> {
        let required = self.required.load(Ordering::Acquire);
        (self.covered.load(Ordering::Acquire) != required).then_some(required)
    }

    /// A recovery that began when `covered` was pending has ended.
    pub(super) fn finish(&self, covered: u64, leftovers: Leftovers) {
        *self.leftovers() = leftovers;
        self.covered.store(covered, Ordering::Release);
    }

    /// Held by the one task that may give the backend an identity or recover it.
    pub(super) fn turn(&self) -> &tokio::sync::Mutex<()> {
        &self.turn
    }

    /// Returns true if something else stands under the volume's name than its directory.
    pub(super) fn is_displaced(&self, id: VolumeId) -> bool {
        self.leftovers().displaced.contains(&id)
    }

    /// Returns true if another instance was moving the volume's directory during the last recovery.
    pub(super) fn is_elsewhere(&self, id: VolumeId) -> bool {
        self.leftovers().elsewhere.contains(&id)
    }

    /// When a staged directory was first seen to have no record.
    pub(super) fn unrecorded_since(&self, id: VolumeId) -> Instant {
        self.leftovers().unrecorded.get(&id).copied().unwrap_or_else(Instant::now)
    }

    /// Returns true if the leftovers have to be looked at again: others may have finished with them, or abandoned them.
    pub(super) fn is_retry_due(&self) -> bool {
        let leftovers = self.leftovers();
        !leftovers.elsewhere.is_empty() || leftovers.unrecorded.values().any(|since| is_abandoned(*since))
    }

    fn leftovers(&self) -> MutexGuard<'_, Leftovers> {
        // They are whole after every statement under this lock.
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the leftovers.
    #[cfg(test)]
    pub(super) fn leave(&self, leftovers: Leftovers) {
        *self.leftovers() = leftovers;
    }

    /// Makes directories without a record look older.
    #[cfg(test)]
    pub(super) fn age(&self) {
        for since in self.leftovers().unrecorded.values_mut() {
            *since = since.checked_sub(UNRECORDED_TIMEOUT).unwrap();
        }
    }
}

/// Returns true if a directory that was first seen without a record at `since` belongs to nobody any more.
pub(super) fn is_abandoned(since: Instant) -> bool {
    since.elapsed() >= UNRECORDED_TIMEOUT
}
