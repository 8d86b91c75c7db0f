//! The last known state of a backend, so that readers never wait for storage.
//!
//! Nothing here touches the file system: operations and probes report their results.

use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::root::Usage;

/// A backend's last known state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Not checked yet.
    Unknown,
    /// The root could be opened and is the expected one. Holds the usage of its file system as of the last probe.
    Online(Usage),
    /// The root cannot be used.
    Offline {
        /// The fault and its remedy.
        reason: String,
        /// The start of the offline time, whatever its reasons were.
        since: OffsetDateTime,
    },
}

/// The latest [`Health`] of one backend.
#[derive(Debug)]
pub(super) struct Cell(ArcSwap<Health>);

impl Cell {
    pub(super) fn new() -> Self {
        Self(ArcSwap::from_pointee(Health::Unknown))
    }

    pub(super) fn load(&self) -> Arc<Health> {
        self.0.load_full()
    }

    pub(super) fn online(&self, usage: Usage) {
        self.0.store(Arc::new(Health::Online(usage)));
    }

    pub(super) fn offline(&self, reason: &str) {
        let now = OffsetDateTime::now_utc();
        self.0.rcu(|was| {
            let since = match **was {
                Health::Offline { since, .. } => since,
                Health::Unknown | Health::Online(_) => now,
            };
            Health::Offline { reason: reason.into(), since }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_offline_since_the_first_reason() {
        let cell = Cell::new();
        assert_eq!(*cell.load(), Health::Unknown);
        cell.offline("unmounted");
        let Health::Offline { since: first, .. } = *cell.load() else { panic!("not offline") };
        cell.offline("another disk");
        assert_eq!(*cell.load(), Health::Offline { reason: "another disk".into(), since: first });
        let usage =
            Usage { total_bytes: 10, free_bytes: 5, total_inodes: 2, free_inodes: 1, ..Usage::default() };
        cell.online(usage);
        assert_eq!(*cell.load(), Health::Online(usage));
    }
}
