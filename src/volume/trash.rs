//! The state of the trash: which removed volumes are due, and which cannot be deleted at present.
//!
//! Nothing is deleted here; [`super::purge`] does that.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::expiry::{CLOCK_GRACE, due_before, is_scarce, time_left};
use crate::backend::{self, Backend, Health};
use crate::catalog::{Removed, View};
use crate::model::volume::VolumeId;
use crate::process::clock::{Clock, Look};

/// How often the trash is searched when nothing was removed and nothing expired meanwhile.
const TRASH_INTERVAL: Duration = Duration::from_secs(30);

/// How long to leave alone a volume that could not be deleted.
const BLOCKED_PAUSE: Duration = Duration::from_secs(60);

/// How long to leave alone a volume that another instance is working on, or that somebody writes to.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// This process's knowledge of the trash, besides the catalog.
#[derive(Debug, Default)]
pub(super) struct Trash {
    wake: Notify,
    blocked: Mutex<HashMap<VolumeId, BlockedPurge>>,
    clock: Clock,
}

/// Why a removed volume could not be deleted.
#[derive(Debug, Clone)]
pub(super) struct BlockedPurge {
    pub(super) reason: String,
    /// The time of the next attempt.
    retry_at: Instant,
    /// The time of the removal concerned: a volume can be restored and removed again.
    removed_at: OffsetDateTime,
}

impl Trash {
    /// Makes the trash be searched at once.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Waits until it is woken, or at most for `pause`. A wake-up that comes while nobody waits is kept.
    pub(super) async fn wait(&self, pause: Duration) {
        let _ = timeout(pause, self.wake.notified()).await;
    }

    /// Returns how long it takes until the next volume expires or is tried again, at most [`TRASH_INTERVAL`].
    pub(super) fn time_to_next(&self, map: &backend::Map, view: &View) -> Duration {
        let (now, even_for) = (OffsetDateTime::now_utc(), self.clock_even_for());
        let expiries = map.iter().filter_map(|backend| {
            let trash = backend.settings().trash;
            // A volume that is due already and still there waits for something else.
            let removed = view.trash.kept_since(backend.name(), due_before(trash, now, even_for)).next()?;
            time_left(removed, trash, now, even_for)
        });
        let now = Instant::now();
        let retries: Vec<_> = self
            .blocked_map()
            .values()
            .map(|blocked| blocked.retry_at.saturating_duration_since(now))
            .collect();
        let next = expiries.chain(retries).filter(|left| !left.is_zero()).min();
        next.map_or(TRASH_INTERVAL, |left| left.min(TRASH_INTERVAL))
    }

    /// Returns how long the clock has run evenly. Logs once that a clock was set.
    fn clock_even_for(&self) -> Duration {
        let Look { even_for, set_by } = self.clock.look();
        if let Some(set_by) = set_by {
            let way = if set_by.is_negative() { "back" } else { "forward" };
            let by = Duration::from_secs(set_by.abs().whole_seconds().unsigned_abs());
            log::warn!(
                "the clock was set {way} by {}: certificates go by it from now on; nothing in the trash is deleted for \
                 its age in the next {}, so that a wrong clock can be set right",
                humantime::format_duration(by),
                humantime::format_duration(CLOCK_GRACE)
            );
        }
        even_for
    }

    /// Returns the volumes to delete from one backend now, at most `limit`, in the order of deletion: those whose time
    /// is over, and, while space is scarce and all of these are `slow`, the oldest of the others.
    pub(super) fn due(
        &self,
        backend: &Backend,
        view: &View,
        slow: impl Fn(&Removed) -> bool,
        limit: usize,
    ) -> Vec<Arc<Removed>> {
        let (now, even_for, health) = (OffsetDateTime::now_utc(), self.clock_even_for(), backend.health());
        if matches!(*health, Health::Offline { .. }) {
            return Vec::new();
        }
        let is_free = |removed: &&Arc<Removed>| {
            self.blocked(removed).is_none_or(|blocked| blocked.retry_at <= Instant::now())
        };
        let has_expired = |removed: &&Arc<Removed>| {
            time_left(removed, backend.settings().trash, now, even_for).is_some_and(|left| left.is_zero())
        };
        let all = || view.trash.of(backend.name());
        let mut due: Vec<_> = all().take_while(has_expired).filter(is_free).take(limit).cloned().collect();
        if is_scarce(&health) && due.iter().all(|removed| slow(removed)) {
            let oldest = all().skip_while(has_expired).filter(is_free).find(|removed| !slow(removed));
            due.extend(oldest.cloned());
        }
        due
    }

    /// Returns true if a removed volume that was due still is.
    pub(super) fn is_still_due(&self, backend: &Backend, removed: &Removed) -> bool {
        let (now, even_for) = (OffsetDateTime::now_utc(), self.clock_even_for());
        is_scarce(&backend.health())
            || time_left(removed, backend.settings().trash, now, even_for).is_some_and(|left| left.is_zero())
    }

    /// Leaves alone for a while a volume that cannot be deleted, and logs each new reason.
    pub(super) fn block(&self, view: &View, removed: &Removed, reason: String) {
        if self.blocked(removed).is_none_or(|known| known.reason != reason) {
            log::warn!("removed volume {} cannot be deleted yet: {reason}", removed.volume.name);
        }
        self.note_blocked(view, removed, reason, BLOCKED_PAUSE);
    }

    /// Leaves alone for a moment a volume that somebody else is working on.
    pub(super) fn block_briefly(&self, view: &View, removed: &Removed, reason: String) {
        self.note_blocked(view, removed, reason, BUSY_PAUSE);
    }

    fn note_blocked(&self, view: &View, removed: &Removed, reason: String, pause: Duration) {
        let blocked = BlockedPurge { reason, retry_at: Instant::now() + pause, removed_at: removed.at };
        let mut all = self.blocked_map();
        // Other instances delete volumes as well.
        all.retain(|id, _| view.trash.contains_key(id));
        all.insert(removed.volume.id, blocked);
    }

    /// Returns why this removed volume could not be deleted when it was last tried.
    pub(super) fn blocked(&self, removed: &Removed) -> Option<BlockedPurge> {
        let blocked = self.blocked_map().get(&removed.volume.id).cloned();
        blocked.filter(|blocked| blocked.removed_at == removed.at)
    }

    /// Makes a volume be tried again at once, or forgets one that is gone.
    pub(super) fn unblock(&self, id: VolumeId) {
        self.blocked_map().remove(&id);
    }

    fn blocked_map(&self) -> MutexGuard<'_, HashMap<VolumeId, BlockedPurge>> {
        // The map is whole after every statement under this lock.
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
