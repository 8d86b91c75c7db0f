//! Deleting for good what was removed: when its time is over, when it was asked for, or the oldest first when space
//! runs out.
//!
//! The only place that deletes data, and only what a Remove was recorded for. It goes in small slices with pauses, so
//! that live volumes keep their storage's attention; the backend's identity is checked before each; and what was
//! begun is taken up again after a restart, because the record goes last.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::Service;
use super::error::Error;
use super::name::VolumeId;
use super::rounds::Rounds;
use super::step::step;
use crate::backend::{Backend, BackendError, Health, Progress};
use crate::catalog::{CatalogError, Change, Removed};
use crate::error::chain;

/// How often the trash is looked through when nothing was removed and nothing expired meanwhile.
const ROUND: Duration = Duration::from_secs(30);

/// How many entries go before a pause.
const SLICE: usize = 256;

/// The pause: with [`SLICE`] it bounds the rate to about 5,000 entries a second for each backend.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a volume that could not be deleted is left alone.
const RETRY: Duration = Duration::from_secs(60);

/// Below one part in this many, space runs out.
const SCARCE: u64 = 10;

/// Why a removed volume could not be deleted.
#[derive(Debug, Clone)]
pub(super) struct Blocked {
    /// What stands in the way.
    pub(super) reason: String,
    /// When that was found.
    at: Instant,
    /// Which removal it was of: a volume can be restored and removed again.
    removed_at: OffsetDateTime,
}

impl Service {
    /// Empties the trash for as long as the service runs.
    pub async fn keep_trash(self: Arc<Self>) {
        let mut purges = Rounds::default();
        loop {
            let is_due = |backend: &Arc<Backend>| self.next_due(backend).is_some();
            purges.begin(&self, is_due, |service, backend| async move { service.purge_due(&backend).await });
            // A notification that comes while nobody waits is kept, so that no removal is overlooked.
            let _ = tokio::time::timeout(self.pause(), self.purge.notified()).await;
        }
    }

    /// How long nothing is to be done unless something happens: until the next volume expires.
    fn pause(&self) -> Duration {
        let (now, in_force, view) = (OffsetDateTime::now_utc(), self.in_force.load(), self.catalog.view());
        let expiries = view
            .trash
            .values()
            .filter_map(|removed| expires_at(removed, in_force.map.get(&removed.volume.backend)?));
        // What is due already and still there waits for something else.
        let next = expiries.filter(|at| *at > now).min();
        next.and_then(|at| (at - now).try_into().ok()).map_or(ROUND, |left: Duration| left.min(ROUND))
    }

    /// Deletes what is due on one backend, one volume after the other.
    async fn purge_due(self: &Arc<Self>, backend: &Arc<Backend>) {
        while let Some(removed) = self.next_due(backend) {
            match self.purge_volume(backend, &removed).await {
                Ok(()) => {}
                // Nothing is wrong with this volume: the backend is away, or somebody is looking after the directory.
                Err(
                    error @ (Error::NotMended(_)
                    | Error::TooLong { .. }
                    | Error::Catalog(_)
                    | Error::Backend(BackendError::Offline { .. } | BackendError::Busy { .. })),
                ) => {
                    log::debug!("the trash of backend {} has to wait: {}", backend.name(), chain(&error));
                    // Without a notification: what is still due would be tried again at once, and again.
                    return;
                }
                Err(error) => self.block(&removed, chain(&error)),
            }
        }
        // What became due just after the last look would else wait for the next round.
        self.purge.notify_one();
    }

    /// The next removed volume to delete: the oldest that is due, or the oldest at all while space is scarce.
    fn next_due(&self, backend: &Backend) -> Option<Arc<Removed>> {
        let (now, health) = (OffsetDateTime::now_utc(), backend.health());
        if matches!(*health, Health::Offline { .. }) {
            return None;
        }
        let scarce = is_scarce(&health);
        let view = self.catalog.view();
        view.trash
            .values()
            .filter(|removed| removed.volume.backend == *backend.name())
            .filter(|removed| self.blocked(removed).is_none_or(|blocked| blocked.at.elapsed() >= RETRY))
            .filter(|removed| scarce || expires_at(removed, backend).is_some_and(|at| at <= now))
            .min_by_key(|removed| removed.at)
            .cloned()
    }

    pub(super) async fn purge_volume(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        removed: &Removed,
    ) -> Result<(), Error> {
        let (id, name) = (removed.volume.id, &removed.volume.name);
        // A volume that is being restored is not deleted, and one that is being deleted is not restored.
        let Some(_moving) = self.moving(backend.name(), id) else {
            return Err(Error::NotMended(name.clone()));
        };
        let Some(now) = self.catalog.view().trash.get(&id).cloned() else { return Ok(()) };
        let expect = self.ready(backend).await?;
        // Known before the first entry goes, so that what is half-deleted is never restored.
        self.begun_set().insert(id);
        let mut recorded = now.expired || self.record_begun(id).await?;
        loop {
            match backend.run(expect, move |root| root.purge(id, SLICE)).await? {
                Progress::Done => break,
                Progress::More { .. } => {
                    recorded = recorded || self.record_begun(id).await?;
                    tokio::time::sleep(PAUSE).await;
                }
                Progress::Blocked { path, reason } => {
                    self.block(removed, format!("{}: {reason}", path.display()));
                    return Ok(());
                }
            }
        }
        step("purge:deleted");
        self.catalog.submit(Change::Forget(id)).await?;
        step("purge:forgotten");
        self.unblock(id);
        self.begun_set().remove(&id);
        log::info!("deleted volume {name}, removed at {}, for good", super::error::rfc3339(removed.at));
        // Whether space is still scarce is a matter of what is free now.
        backend.probe(expect).await;
        Ok(())
    }

    /// Makes it durable that deleting a volume has begun; `false` where the catalog has no room to write that down.
    /// Deleting goes on all the same: it may be what makes room.
    async fn record_begun(&self, id: VolumeId) -> Result<bool, Error> {
        match self.catalog.submit(Change::Expire(id)).await {
            Ok(_) => Ok(true),
            Err(CatalogError::Write { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a removed volume's data may be gone in part, or is to go now.
    pub(super) fn is_being_deleted(&self, id: VolumeId) -> bool {
        self.begun_set().contains(&id)
            || self.catalog.view().trash.get(&id).is_some_and(|removed| removed.expired)
    }

    fn begun_set(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        // The set is whole after every statement under this lock.
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn block(&self, removed: &Removed, reason: String) {
        if self.blocked(removed).is_none_or(|known| known.reason != reason) {
            log::warn!("removed volume {} cannot be deleted yet: {reason}", removed.volume.name);
        }
        let blocked = Blocked { reason, at: Instant::now(), removed_at: removed.at };
        self.blocked_map().insert(removed.volume.id, blocked);
    }

    /// Why this removed volume could not be deleted when it was last tried.
    pub(super) fn blocked(&self, removed: &Removed) -> Option<Blocked> {
        let blocked = self.blocked_map().get(&removed.volume.id).cloned();
        blocked.filter(|blocked| blocked.removed_at == removed.at)
    }

    /// Has a volume tried again at once, or forgets one that is gone.
    pub(super) fn unblock(&self, id: VolumeId) {
        self.blocked_map().remove(&id);
    }

    fn blocked_map(&self) -> MutexGuard<'_, HashMap<VolumeId, Blocked>> {
        // The map is whole after every statement under this lock.
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a removed volume is to be deleted; nothing, where that is beyond what can be written.
pub(super) fn expires_at(removed: &Removed, backend: &Backend) -> Option<OffsetDateTime> {
    if removed.expired {
        return Some(removed.at);
    }
    removed.at.checked_add(backend.settings().trash.try_into().ok()?)
}

pub(super) fn is_scarce(health: &Health) -> bool {
    match health {
        Health::Online { total_bytes, free_bytes } => free_bytes.saturating_mul(SCARCE) < *total_bytes,
        Health::Offline { .. } | Health::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_scarce_below_a_tenth() {
        assert!(is_scarce(&Health::Online { total_bytes: 1000, free_bytes: 99 }));
        assert!(!is_scarce(&Health::Online { total_bytes: 1000, free_bytes: 100 }));
        assert!(!is_scarce(&Health::Online { total_bytes: 0, free_bytes: 0 }));
        assert!(!is_scarce(&Health::Unknown));
    }
}
