//! When removed volumes are due for deletion: by their age, or because the backend runs out of space.
//!
//! Age is measured by the wall clock, which may be wrong. So nothing is deleted for its age for a while after the service
//! was started or the clock was set.

use std::time::Duration;

use time::{OffsetDateTime, PrimitiveDateTime};

use crate::backend::{Backend, Health};
use crate::catalog::Removed;

/// How long the clock must have run evenly before anything is deleted for its age: the time to notice a clock that is
/// wrong at the start or was set wrong. At most the backend's own trash time.
pub(super) const CLOCK_GRACE: Duration = Duration::from_secs(3600);

/// Space is scarce when less than one part in this many is free.
const SCARCE_FRACTION: u64 = 10;

/// Returns when a removed volume is to be deleted; `None` if that is later than any date.
pub(super) fn expires_at(removed: &Removed, backend: &Backend) -> Option<OffsetDateTime> {
    if removed.expired {
        return Some(removed.at);
    }
    removed.at.checked_add(backend.settings().trash.try_into().ok()?)
}

/// Returns how long a removed volume is still kept because of its age; `None` if that ends later than any date. A clock
/// that was set back keeps it longer.
pub(super) fn time_left(
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
    Some(by_age.max(trash.min(CLOCK_GRACE).saturating_sub(even_for)))
}

/// Returns the time at or after which a removal is too recent for its volume to be deleted.
pub(super) fn due_before(trash: Duration, now: OffsetDateTime, even_for: Duration) -> OffsetDateTime {
    let first = PrimitiveDateTime::MIN.assume_utc();
    if even_for < trash.min(CLOCK_GRACE) {
        return first;
    }
    trash
        .try_into()
        .ok()
        .and_then(|trash| now.checked_sub(trash))
        .map_or(first, |due| due + time::Duration::NANOSECOND)
}

/// Returns true if less than a tenth of the space or of the inodes is free. A file system without a limit of inodes
/// reports a total of zero, which is never scarce.
pub(super) fn is_scarce(health: &Health) -> bool {
    let is_low = |free: u64, total: u64| free.saturating_mul(SCARCE_FRACTION) < total;
    match health {
        Health::Online(usage) => {
            is_low(usage.free_bytes, usage.total_bytes) || is_low(usage.free_inodes, usage.total_inodes)
        }
        Health::Offline { .. } | Health::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
            unconfirmed: None,
            visible: true,
        };
        let at = OffsetDateTime::UNIX_EPOCH + time::Duration::days(365);
        let mut removed = Removed { volume: Arc::new(volume), at, expired: false };
        let hours = |count: u64| Duration::from_secs(count * 3600);
        let later = |count: i64| at + time::Duration::hours(count);
        let day = hours(24);
        assert_eq!(time_left(&removed, day, later(20), hours(20)), Some(hours(4)));
        assert_eq!(time_left(&removed, day, later(24), hours(24)), Some(Duration::ZERO));
        // The clock was set forward by years, or the service has just started: an hour more.
        assert_eq!(time_left(&removed, day, later(99_999), Duration::ZERO), Some(hours(1)));
        assert_eq!(time_left(&removed, day, later(99_999), hours(1)), Some(Duration::ZERO));
        // A retention time of seconds does not become an hour, and one of zero stays zero.
        let second = Duration::from_secs(1);
        assert_eq!(time_left(&removed, second, later(1), Duration::ZERO), Some(second));
        assert_eq!(time_left(&removed, Duration::ZERO, later(0), Duration::ZERO), Some(Duration::ZERO));
        // The clock was set back: kept longer, except for a volume that the operator wants deleted.
        assert_eq!(time_left(&removed, day, later(-100), hours(9)), Some(hours(124)));
        removed.expired = true;
        assert_eq!(time_left(&removed, day, later(-100), Duration::ZERO), Some(Duration::ZERO));
    }
}
