//! Deleting for good what was removed: when its time is over, when it was asked for, or the oldest first when space
//! runs out.
//!
//! The only place that deletes data, and only what a Remove was recorded for. It goes in small slices with pauses, so
//! that live volumes keep their storage's attention; the backend's identity is checked before each; and what was
//! begun is taken up again after a restart, because the record goes last.
//!
//! What is deleted for its age is deleted by the wall clock, which may be wrong: so for a while after the service was
//! started or the clock was set, nothing is.

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
use crate::catalog::{CatalogError, Change, Refusal, Removed};
use crate::error::chain;
use crate::process::clock::Look;

/// How often the trash is looked through when nothing was removed and nothing expired meanwhile.
const ROUND: Duration = Duration::from_secs(30);

/// How many entries go before a pause.
const SLICE: usize = 256;

/// The pause: with [`SLICE`] it bounds the rate to about 5,000 entries a second for each backend.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a volume that could not be deleted is left alone.
const RETRY: Duration = Duration::from_secs(60);

/// How long one is left alone that another instance is at work on.
const ELSEWHERE: Duration = Duration::from_secs(5);

/// How long the clock must have gone evenly before anything is deleted for its age: time for a clock that is wrong at
/// the start, or was set wrong, to be noticed. Not longer than the backend's own trash time.
const GRACE: Duration = Duration::from_secs(3600);

/// Below one part in this many, space runs out.
const SCARCE: u64 = 10;

/// Why a removed volume could not be deleted.
#[derive(Debug, Clone)]
pub(super) struct Blocked {
    /// What stands in the way.
    pub(super) reason: String,
    /// Until when it is left alone.
    until: Instant,
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
        let (now, even_for) = (OffsetDateTime::now_utc(), self.clock_is_even_for());
        let (in_force, view) = (self.in_force.load(), self.catalog.view());
        let left = view.trash.values().filter_map(|removed| {
            time_left(removed, in_force.map.get(&removed.volume.backend)?.settings().trash, now, even_for)
        });
        // What is due already and still there waits for something else.
        left.filter(|left| !left.is_zero()).min().map_or(ROUND, |left| left.min(ROUND))
    }

    /// For how long the clock has gone evenly. That it was set is logged.
    fn clock_is_even_for(&self) -> Duration {
        let Look { even_for, set_by } = self.clock.look();
        if let Some(set_by) = set_by {
            let way = if set_by.is_negative() { "back" } else { "forward" };
            let by = Duration::from_secs(set_by.abs().whole_seconds().unsigned_abs());
            log::warn!(
                "the clock was set {way} by {}: certificates go by it from now on; nothing in the trash is deleted for \
                 its age in the next {}, so that a wrong clock can be set right",
                humantime::format_duration(by),
                humantime::format_duration(GRACE)
            );
        }
        even_for
    }

    /// Deletes what is due on one backend, one volume after the other.
    async fn purge_due(self: &Arc<Self>, backend: &Arc<Backend>) {
        while let Some(removed) = self.next_due(backend) {
            match self.purge_volume(backend, &removed).await {
                Ok(()) | Err(Error::NotInTrash(_)) => {}
                // Another instance is at it, or should be: the others do not wait for that.
                Err(error @ Error::NotMended(_)) if self.is_shared() => self.pass_over(&removed, &error),
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
        let (now, even_for, health) = (OffsetDateTime::now_utc(), self.clock_is_even_for(), backend.health());
        if matches!(*health, Health::Offline { .. }) {
            return None;
        }
        let scarce = is_scarce(&health);
        let view = self.catalog.view();
        view.trash
            .values()
            .filter(|removed| removed.volume.backend == *backend.name())
            .filter(|removed| self.blocked(removed).is_none_or(|blocked| blocked.until <= Instant::now()))
            .filter(|removed| {
                scarce
                    || time_left(removed, backend.settings().trash, now, even_for)
                        .is_some_and(|left| left.is_zero())
            })
            .min_by_key(|removed| removed.at)
            .cloned()
    }

    pub(super) async fn purge_volume(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        removed: &Removed,
    ) -> Result<(), Error> {
        let (id, name) = (removed.volume.id, &removed.volume.name);
        // A volume that is being restored is not deleted, and one that is being deleted is not restored; and no two
        // instances delete one.
        let Some(_moving) = self.claimed(backend.name(), id).await? else {
            return Err(Error::NotMended(name.clone()));
        };
        let now = self.catalog.view().trash.get(&id).cloned();
        // It may have been restored and removed again.
        let Some(now) = now.filter(|now| now.at == removed.at) else { return Ok(()) };
        let expect = self.ready(backend).await?;
        // Known before the first entry goes, so that what is half-deleted is never restored.
        let first = self.begun_set().insert(id);
        let mut recorded = match now.expired {
            true => true,
            false => self.record_begun(removed).await.inspect_err(|_| {
                // Nothing of it was deleted by this process.
                if first {
                    self.begun_set().remove(&id);
                }
            })?,
        };
        loop {
            match backend.run(expect, move |root| root.purge(id, SLICE)).await? {
                Progress::Done => break,
                Progress::More { .. } => {
                    recorded = recorded || self.record_begun(removed).await?;
                    tokio::time::sleep(PAUSE).await;
                }
                Progress::Blocked { path, reason } => {
                    self.block(removed, format!("{}: {reason}", path.display()));
                    return Ok(());
                }
            }
        }
        step("purge:deleted");
        match self.catalog.submit(Change::Forget(id)).await {
            // Another instance was quicker.
            Ok(_) | Err(CatalogError::Refused(Refusal::NotInTrash)) => {}
            Err(error) => return Err(error.into()),
        }
        step("purge:forgotten");
        self.unblock(id);
        self.begun_set().remove(&id);
        log::info!("deleted volume {name}, removed at {}, for good", super::error::rfc3339(removed.at));
        // Whether space is still scarce is a matter of what is free now.
        backend.probe(expect).await;
        Ok(())
    }

    /// Makes it durable that deleting a volume has begun; `false` where the catalog has no room to write that down.
    /// Deleting goes on all the same: it may be what makes room. Not so where other instances go by what is written: one
    /// of them might restore what is being deleted here.
    async fn record_begun(&self, removed: &Removed) -> Result<bool, Error> {
        match self.catalog.submit(Change::Expire { id: removed.volume.id, removed: removed.at }).await {
            Ok(_) => Ok(true),
            // It was restored meanwhile, and perhaps removed again since.
            Err(CatalogError::Refused(Refusal::NotInTrash)) => {
                Err(Error::NotInTrash(removed.volume.name.to_string()))
            }
            Err(CatalogError::Write { .. }) if !self.is_shared() => Ok(false),
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

    /// Leaves a volume alone for a while of which another instance has the directory.
    fn pass_over(&self, removed: &Removed, error: &Error) {
        log::debug!("removed volume {} has to wait: {}", removed.volume.name, chain(error));
        self.note_blocked(removed, "another instance is at work on it".into(), ELSEWHERE);
    }

    fn block(&self, removed: &Removed, reason: String) {
        if self.blocked(removed).is_none_or(|known| known.reason != reason) {
            log::warn!("removed volume {} cannot be deleted yet: {reason}", removed.volume.name);
        }
        self.note_blocked(removed, reason, RETRY);
    }

    fn note_blocked(&self, removed: &Removed, reason: String, pause: Duration) {
        let blocked = Blocked { reason, until: Instant::now() + pause, removed_at: removed.at };
        let view = self.catalog.view();
        let mut all = self.blocked_map();
        // Others delete volumes, too.
        all.retain(|id, _| view.trash.contains_key(id));
        all.insert(removed.volume.id, blocked);
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

/// How long a removed volume is still kept, for its age; nothing, where that is beyond what can be written. A clock
/// that was set back keeps it longer.
fn time_left(
    removed: &Removed,
    trash: Duration,
    now: OffsetDateTime,
    even_for: Duration,
) -> Option<Duration> {
    if removed.expired {
        return Some(Duration::ZERO);
    }
    let until = removed.at.checked_add(trash.try_into().ok()?)?;
    let by_age = Duration::try_from(until - now).unwrap_or_default();
    Some(by_age.max(trash.min(GRACE).saturating_sub(even_for)))
}

pub(super) fn is_scarce(health: &Health) -> bool {
    match health {
        Health::Online(usage) => usage.free_bytes.saturating_mul(SCARCE) < usage.total_bytes,
        Health::Offline { .. } | Health::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Usage;

    fn online(total_bytes: u64, free_bytes: u64) -> Health {
        Health::Online(Usage { total_bytes, free_bytes, ..Usage::default() })
    }

    #[test]
    fn space_is_scarce_below_a_tenth() {
        assert!(is_scarce(&online(1000, 99)));
        assert!(!is_scarce(&online(1000, 100)));
        assert!(!is_scarce(&online(0, 0)));
        assert!(!is_scarce(&Health::Unknown));
    }

    #[test]
    fn a_clock_that_was_set_deletes_nothing_for_a_while() {
        use crate::volume::name::VolumeId;
        let volume = crate::catalog::Volume {
            id: VolumeId::random(),
            name: crate::volume::name::VolumeName::parse("db").unwrap(),
            backend: crate::backend::name::BackendName::parse("default").unwrap(),
            options: crate::volume::options::Options::default(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            adopted: false,
            known_to: Vec::new(),
            mounts: crate::volume::mounts::Ledger::default(),
            unconfirmed: false,
            visible: true,
        };
        let at = OffsetDateTime::UNIX_EPOCH + time::Duration::days(365);
        let mut removed = Removed { volume: Arc::new(volume), at, expired: false };
        let hours = |count: u64| Duration::from_secs(count * 3600);
        let later = |count: i64| at + time::Duration::hours(count);
        let day = hours(24);
        assert_eq!(time_left(&removed, day, later(20), hours(20)), Some(hours(4)));
        assert_eq!(time_left(&removed, day, later(24), hours(24)), Some(Duration::ZERO));
        // Set forward by years, or just started: an hour more.
        assert_eq!(time_left(&removed, day, later(99_999), Duration::ZERO), Some(hours(1)));
        assert_eq!(time_left(&removed, day, later(99_999), hours(1)), Some(Duration::ZERO));
        // A trash of seconds does not become one of an hour, and none stays none.
        let second = Duration::from_secs(1);
        assert_eq!(time_left(&removed, second, later(1), Duration::ZERO), Some(second));
        assert_eq!(time_left(&removed, Duration::ZERO, later(0), Duration::ZERO), Some(Duration::ZERO));
        // Set back: longer, but not for what the operator wants gone.
        assert_eq!(time_left(&removed, day, later(-100), hours(9)), Some(hours(124)));
        removed.expired = true;
        assert_eq!(time_left(&removed, day, later(-100), Duration::ZERO), Some(Duration::ZERO));
    }
}
