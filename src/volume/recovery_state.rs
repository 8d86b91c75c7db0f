//! The state of each backend's recovery in this process.

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

/// How long a staged directory must have no record to count as abandoned if several instances make volumes: by then its
/// maker has given up, or was lost.
const UNRECORDED_TIMEOUT: Duration = Duration::from_secs(120);

/// The state of recovery of all backends, and of lost peers.
#[derive(Debug)]
pub(super) struct Recovery {
    backends: Mutex<HashMap<BackendName, Arc<BackendRecovery>>>,
    /// The events of other instances; `None` if there can be no others.
    peers: Option<watch::Receiver<PeerEvents>>,
    /// The number of lost peers for which recovery has been required.
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

    /// Makes the backend's next operation search for half-done work first.
    pub(super) fn require(&self, backend: &BackendName) {
        self.of(backend).require();
    }

    /// Requires recovery of every backend if a peer was lost since the last call: the remaining instances finish or
    /// undo what it had begun.
    pub(super) fn note_lost_peers(&self, map: &backend::Map) {
        let Some(peers) = &self.peers else { return };
        let lost = peers.borrow().lost_instances;
        if self.peers_lost.swap(lost, Ordering::AcqRel) != lost {
            for backend in map.iter() {
                self.require(backend.name());
            }
        }
    }

    /// Returns a subscription to the events of other instances from now on.
    pub(super) fn subscribe_to_peers(&self) -> PeerSubscription {
        PeerSubscription(self.peers.clone())
    }
}

/// A subscription to the events of other instances.
pub(super) struct PeerSubscription(Option<watch::Receiver<PeerEvents>>);

impl PeerSubscription {
    /// Resolves when there is a new event; never, if there can be none any more.
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

/// The need for recovery of one backend, and what its last recovery had to leave.
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
    /// Makes the backend's next operation search for half-done work first.
    pub(super) fn require(&self) {
        self.required.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn is_done(&self) -> bool {
        self.pending().is_none()
    }

    /// Returns the value that a recovery which begins now must pass to [`finish`](Self::finish); `None` if none is
    /// required.
    pub(super) fn pending(&self) -> Option<u64> {
        let required = self.required.load(Ordering::Acquire);
        (self.covered.load(Ordering::Acquire) != required).then_some(required)
    }

    /// Ends a recovery that began when `covered` was pending.
    pub(super) fn finish(&self, covered: u64, leftovers: Leftovers) {
        *self.leftovers() = leftovers;
        self.covered.store(covered, Ordering::Release);
    }

    /// Returns the lock that a task holds while it gives the backend an identity or recovers it.
    pub(super) fn turn(&self) -> &tokio::sync::Mutex<()> {
        &self.turn
    }

    /// Returns true if something other than the volume's directory stands under its name.
    pub(super) fn is_displaced(&self, id: VolumeId) -> bool {
        self.leftovers().displaced.contains(&id)
    }

    /// Returns true if another instance was moving the volume's directory during the last recovery.
    pub(super) fn is_elsewhere(&self, id: VolumeId) -> bool {
        self.leftovers().elsewhere.contains(&id)
    }

    /// Returns when a staged directory was first seen without a record.
    pub(super) fn unrecorded_since(&self, id: VolumeId) -> Instant {
        self.leftovers().unrecorded.get(&id).copied().unwrap_or_else(Instant::now)
    }

    /// Returns true if the leftovers must be looked at again: others may have finished with them, or abandoned them.
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
