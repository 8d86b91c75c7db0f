//! What is known of a backend about things left half-done.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::model::backend::BackendId;
use crate::model::volume::VolumeId;

/// How long a staged directory without a record is left alone where several instances make volumes: whoever made it has
/// given up by then, or was lost.
const UNRECORDED: Duration = Duration::from_secs(120);

/// Whether a backend was looked through since something on it may have been left half-done.
#[derive(Debug)]
pub(super) struct RecoveryState {
    /// Counts what may have been left; begins at 1, because a crash may have come before this process.
    pub(super) damage: AtomicU64,
    /// The damage that was mended.
    pub(super) mended: AtomicU64,
    /// One task mends at a time.
    pub(super) turn: tokio::sync::Mutex<()>,
    /// What the last look found and left.
    left: Mutex<Left>,
    /// The identity that this process chose for the backend, where no catalog knew one.
    chosen: Mutex<Option<BackendId>>,
}

/// What was found and left.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Volumes whose directories lie in the trash and cannot come back, because something else took their names.
    pub(super) displaced: HashSet<VolumeId>,
    /// Volumes whose directories another instance is moving.
    pub(super) elsewhere: HashSet<VolumeId>,
    /// Staged directories without a record that may be another instance's, and when each was first seen here.
    pub(super) unrecorded: HashMap<VolumeId, Instant>,
}

impl Default for RecoveryState {
    fn default() -> Self {
        Self {
            damage: AtomicU64::new(1),
            mended: AtomicU64::new(0),
            turn: tokio::sync::Mutex::default(),
            left: Mutex::default(),
            chosen: Mutex::default(),
        }
    }
}

impl RecoveryState {
    /// This process chose an identity for the backend, and nobody else writes it.
    pub(super) fn choose(&self, id: BackendId) {
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    /// Whether this process chose that identity.
    pub(super) fn chose(&self, id: BackendId) -> bool {
        *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) == Some(id)
    }

    pub(super) fn is_done(&self) -> bool {
        self.mended.load(Ordering::Acquire) == self.damage.load(Ordering::Acquire)
    }

    /// Whether what stands under the volume's name is not its directory.
    pub(super) fn is_displaced(&self, id: VolumeId) -> bool {
        self.left().displaced.contains(&id)
    }

    /// Whether another instance was moving the volume's directory at the last look.
    pub(super) fn is_elsewhere(&self, id: VolumeId) -> bool {
        self.left().elsewhere.contains(&id)
    }

    /// Since when a staged directory is known to have no record.
    pub(super) fn unrecorded_since(&self, id: VolumeId) -> Instant {
        self.left().unrecorded.get(&id).copied().unwrap_or_else(Instant::now)
    }

    pub(super) fn leave(&self, left: Left) {
        *self.left() = left;
    }

    /// Whether it is time for another look at what was left to time or to others.
    pub(super) fn is_due(&self) -> bool {
        let left = self.left();
        !left.elsewhere.is_empty() || left.unrecorded.values().any(|since| is_abandoned(*since))
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        // It is whole after every statement under this lock.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what was seen without a record look older.
    #[cfg(test)]
    pub(super) fn age(&self) {
        for since in self.left().unrecorded.values_mut() {
            *since = since.checked_sub(UNRECORDED).unwrap();
        }
    }
}

/// Whether a directory that is known to have no record since then belongs to nobody any more.
pub(super) fn is_abandoned(since: Instant) -> bool {
    since.elapsed() >= UNRECORDED
}
