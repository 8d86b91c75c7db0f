//! Deleting for good what was removed: when its time is over, when it was asked for, or the oldest first when space
//! or inodes run out.
//!
//! The only place that deletes data, and only what a Remove was recorded for. Before the first entry goes, the directory
//! on the backend is marked as one whose deletion has begun, and then never restored, whatever catalog is in force. The
//! record says so, too, unless the catalog has no room for that: deleting may be what makes room.
//!
//! It goes in small slices with pauses, so that live volumes keep their storage's attention; the backend's identity is
//! checked before each; and what was begun is taken up again after a restart, because the record goes last. The removed
//! volumes of a backend take turns, so that one that is large, or still written to, holds up no other.
//!
//! What is deleted for its age is deleted by the wall clock, which may be wrong: so for a while after the service was
//! started or the clock was set, nothing is.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use time::{OffsetDateTime, PrimitiveDateTime};

use super::Service;
use super::backend_tasks::Rounds;
use super::error::Error;
use super::step::step;
use crate::backend::{Backend, BackendError, Expect, Health, Pass, Progress, Root};
use crate::catalog::{CatalogError, Change, Refusal, Removed};
use crate::error::chain;
use crate::model::volume::VolumeId;
use crate::process::clock::Look;

/// How often the trash is looked through when nothing was removed and nothing expired meanwhile.
const ROUND: Duration = Duration::from_secs(30);

/// How many entries go before a pause.
const SLICE: usize = 256;

/// The pause: with [`SLICE`] it bounds the rate to about 5,000 entries a second for each backend.
const PAUSE: Duration = Duration::from_millis(50);

/// How many slices of one volume go before the others have their turn.
const TURN: u32 = 16;

/// After how many turns a volume no longer keeps the next oldest from being deleted, too, while space is scarce.
const LONG: u32 = 60;

/// How many times a volume may be gone through and found to hold entries again before it counts as written to.
const AGAIN: usize = 3;

/// How long a volume that could not be deleted is left alone.
const RETRY: Duration = Duration::from_secs(60);

/// How long one is left alone that another instance is at work on, or that somebody writes to.
const SOON: Duration = Duration::from_secs(5);

/// How long the clock must have gone evenly before anything is deleted for its age: time for a clock that is wrong at
/// the start, or was set wrong, to be noticed. Not longer than the backend's own trash time.
const GRACE: Duration = Duration::from_secs(3600);

/// Below one part in this many, space runs out.
const SCARCE: u64 = 10;

/// How far this process has got with deleting one volume.
#[derive(Debug, Default)]
pub(super) struct Work {
    pass: Pass,
    turns: u32,
}

/// What a turn left of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing, or nothing to be deleted.
    Nothing,
    /// Entries for another turn.
    Some,
    /// Entries that cannot be removed for now, as is noted.
    Blocked,
}

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
            let is_due = |backend: &Arc<Backend>| !self.due(backend, &HashMap::new(), 1).is_empty();
            purges.begin(&self, is_due, |service, backend| async move { service.purge_due(&backend).await });
            // A notification that comes while nobody waits is kept, so that no removal is overlooked.
            let _ = tokio::time::timeout(self.pause(), self.purge.notified()).await;
        }
    }

    /// How long nothing is to be done unless something happens: until the next volume expires.
    fn pause(&self) -> Duration {
        let (now, even_for) = (OffsetDateTime::now_utc(), self.clock_is_even_for());
        let (in_force, view) = (self.in_force.load(), self.catalog.view());
        let left = in_force.map.iter().filter_map(|backend| {
            let trash = backend.settings().trash;
            // What is due already and still there waits for something else.
            let removed = view.trash.kept_since(backend.name(), due_before(trash, now, even_for)).next()?;
            time_left(removed, trash, now, even_for)
        });
        let now = Instant::now();
        let again: Vec<_> =
            self.blocked_map().values().map(|blocked| blocked.until.saturating_duration_since(now)).collect();
        left.chain(again).filter(|left| !left.is_zero()).min().map_or(ROUND, |left| left.min(ROUND))
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

    /// Deletes what is due on one backend: a turn of each volume, and again, until nothing is due.
    async fn purge_due(self: &Arc<Self>, backend: &Arc<Backend>) {
        let mut under_way: HashMap<VolumeId, Work> = HashMap::new();
        loop {
            let round = self.due(backend, &under_way, usize::MAX);
            under_way.retain(|id, _| round.iter().any(|removed| removed.volume.id == *id));
            if round.is_empty() {
                break;
            }
            for removed in round {
                // A round may be long, and the clock, the map or the space another one meanwhile.
                let in_force = self.in_force.load_full();
                let Some(backend) = in_force.map.get(backend.name()) else { return };
                if !self.is_due(backend, &removed) {
                    continue;
                }
                let id = removed.volume.id;
                match self.purge_turn(backend, &removed, under_way.entry(id).or_default()).await {
                    Ok(Left::Some) => {}
                    Ok(Left::Nothing | Left::Blocked) | Err(Error::NotInTrash(_)) => {
                        under_way.remove(&id);
                    }
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
        }
        // What became due just after the last look would else wait for the next round.
        self.purge.notify_one();
    }

    /// The removed volumes to delete now, at most `limit`, in the order of deletion: those that are due, and while space is
    /// scarce and none of these gives any soon, the oldest of the others.
    fn due(&self, backend: &Backend, under_way: &HashMap<VolumeId, Work>, limit: usize) -> Vec<Arc<Removed>> {
        let (now, even_for, health) = (OffsetDateTime::now_utc(), self.clock_is_even_for(), backend.health());
        if matches!(*health, Health::Offline { .. }) {
            return Vec::new();
        }
        let view = self.catalog.view();
        let is_free = |removed: &&Arc<Removed>| {
            self.blocked(removed).is_none_or(|blocked| blocked.until <= Instant::now())
        };
        let is_due = |removed: &&Arc<Removed>| {
            time_left(removed, backend.settings().trash, now, even_for).is_some_and(|left| left.is_zero())
        };
        let is_long =
            |removed: &Arc<Removed>| under_way.get(&removed.volume.id).is_some_and(|work| work.turns >= LONG);
        let all = || view.trash.of(backend.name());
        let mut due: Vec<_> = all().take_while(is_due).filter(is_free).take(limit).cloned().collect();
        if is_scarce(&health) && due.iter().all(is_long) {
            due.extend(all().skip_while(is_due).filter(is_free).find(|removed| !is_long(removed)).cloned());
        }
        due
    }

    /// Returns true if a removed volume that was found to be due still is.
    fn is_due(&self, backend: &Backend, removed: &Removed) -> bool {
        let (now, even_for) = (OffsetDateTime::now_utc(), self.clock_is_even_for());
        is_scarce(&backend.health())
            || time_left(removed, backend.settings().trash, now, even_for).is_some_and(|left| left.is_zero())
    }

    /// Deletes some slices of a removed volume, and the volume with the last of them.
    pub(super) async fn purge_turn(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        removed: &Removed,
        work: &mut Work,
    ) -> Result<Left, Error> {
        let (id, name) = (removed.volume.id, &removed.volume.name);
        // A volume that is being restored is not deleted, and one that is being deleted is not restored; and no two
        // instances delete one.
        let Some(_moving) = self.claimed(backend.name(), id).await? else {
            return Err(Error::NotMended(name.clone()));
        };
        let now = self.catalog.view().trash.get(&id).cloned();
        // It may have been restored and removed again.
        let Some(now) = now.filter(|now| now.at == removed.at) else { return Ok(Left::Nothing) };
        let expect = self.ready(backend).await?;
        if !now.expired {
            self.record_begun(removed).await?;
        }
        step("purge:recorded");
        work.turns = work.turns.saturating_add(1);
        // More than once only where something was left of an earlier deletion that no record knew of.
        while backend.run(expect, move |root| root.mark_deleting(id)).await? {
            step("purge:marked");
            match self.purge_slices(backend, expect, removed, work).await? {
                Left::Nothing => {}
                left @ (Left::Some | Left::Blocked) => return Ok(left),
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
        log::info!(
            "deleted volume {name}, removed at {}, for good",
            crate::model::timestamp::rfc3339(removed.at)
        );
        if is_scarce(&backend.health()) {
            // Whether it still is, is a matter of what is free now.
            backend.probe(expect).await;
        }
        Ok(Left::Nothing)
    }

    /// Deletes up to [`TURN`] slices of what is marked.
    async fn purge_slices(
        &self,
        backend: &Backend,
        expect: Expect,
        removed: &Removed,
        work: &mut Work,
    ) -> Result<Left, Error> {
        let id = removed.volume.id;
        for _ in 0..TURN {
            let mut pass = work.pass.clone();
            let slice = move |root: &Root| root.purge(id, SLICE, &mut pass).map(|progress| (progress, pass));
            let (progress, pass) = backend.run(expect, slice).await?;
            work.pass = pass;
            match progress {
                Progress::Done => return Ok(Left::Nothing),
                Progress::More { .. } if work.pass.again >= AGAIN => {
                    work.pass = Pass::default();
                    let reason = "something is written into it: is the volume still in use?";
                    self.note_blocked(removed, reason.into(), SOON);
                    return Ok(Left::Blocked);
                }
                Progress::More { .. } => tokio::time::sleep(PAUSE).await,
                Progress::Blocked { path, reason } => {
                    self.block(removed, format!("{}: {reason}", path.display()));
                    return Ok(Left::Blocked);
                }
            }
        }
        Ok(Left::Some)
    }

    /// Records that deleting a volume begins. Where the catalog has no room for that, deleting goes on all the same, by the
    /// mark on the backend: it may be what makes room. Not so where other instances go by what is recorded: one of them
    /// might begin to restore what is being deleted here.
    async fn record_begun(&self, removed: &Removed) -> Result<(), Error> {
        match self.catalog.submit(Change::Expire { id: removed.volume.id, removed: removed.at }).await {
            Ok(_) => Ok(()),
            // It was restored meanwhile, and perhaps removed again since.
            Err(CatalogError::Refused(Refusal::NotInTrash)) => {
                Err(Error::NotInTrash(removed.volume.name.to_string()))
            }
            Err(CatalogError::Write { .. }) if !self.is_shared() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true if a removed volume's data may be gone in part, or is to go now.
    pub(super) async fn is_being_deleted(
        &self,
        backend: &Backend,
        expect: Expect,
        id: VolumeId,
    ) -> Result<bool, Error> {
        let is_expired = self.catalog.view().trash.get(&id).is_some_and(|removed| removed.expired);
        Ok(is_expired || backend.run(expect, move |root| root.is_deleting(id)).await?)
    }

    /// Leaves a volume alone for a while of which another instance has the directory.
    fn pass_over(&self, removed: &Removed, error: &Error) {
        log::debug!("removed volume {} has to wait: {}", removed.volume.name, chain(error));
        self.note_blocked(removed, "another instance is at work on it".into(), SOON);
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

/// What was removed at this moment or later is not due for its age.
fn due_before(trash: Duration, now: OffsetDateTime, even_for: Duration) -> OffsetDateTime {
    let first = PrimitiveDateTime::MIN.assume_utc();
    if even_for < trash.min(GRACE) {
        return first;
    }
    trash
        .try_into()
        .ok()
        .and_then(|trash| now.checked_sub(trash))
        .map_or(first, |due| due + time::Duration::NANOSECOND)
}

/// Returns true if less than a tenth of the space or of the inodes is free. A file system that has no limit of inodes, or
/// does not tell, says that it has none at all.
pub(super) fn is_scarce(health: &Health) -> bool {
    let is_low = |free: u64, total: u64| free.saturating_mul(SCARCE) < total;
    match health {
        Health::Online(usage) => {
            is_low(usage.free_bytes, usage.total_bytes) || is_low(usage.free_inodes, usage.total_inodes)
        }
        Health::Offline { .. } | Health::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Usage;

    #[test]
    fn space_and_inodes_are_scarce_below_a_tenth() {
        let is_scarce_with = |total_bytes, free_bytes, total_inodes, free_inodes| {
            let usage = Usage { total_bytes, free_bytes, total_inodes, free_inodes, ..Usage::default() };
            is_scarce(&Health::Online(usage))
        };
        assert!(is_scarce_with(1000, 99, 0, 0));
        assert!(!is_scarce_with(1000, 100, 0, 0));
        assert!(!is_scarce_with(0, 0, 0, 0));
        assert!(is_scarce_with(1000, 500, 1000, 99));
        assert!(!is_scarce_with(1000, 500, 1000, 100));
        assert!(!is_scarce(&Health::Unknown));
    }

    #[test]
    fn a_clock_that_was_set_deletes_nothing_for_a_while() {
        use crate::model::volume::VolumeId;
        let volume = crate::catalog::Volume {
            id: VolumeId::random(),
            name: crate::model::volume::VolumeName::parse("db").unwrap(),
            backend: crate::model::backend::BackendName::parse("default").unwrap(),
            options: crate::model::options::Options::default(),
            created_at: OffsetDateTime::UNIX_EPOCH,
            adopted: false,
            known_to: Vec::new(),
            mounts: crate::model::mounts::Ledger::default(),
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
