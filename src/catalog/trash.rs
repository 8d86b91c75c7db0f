//! The removed volumes of a catalog, by ID and in the order in which they are deleted.
//!
//! Pure. The order is derived from the volumes and not recorded. Because of it, finding the volumes that are due costs
//! the same however many removed volumes there are.

use std::ops::Deref;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use time::{OffsetDateTime, PrimitiveDateTime};

use super::entities::Removed;
use crate::model::backend::BackendName;
use crate::model::volume::VolumeId;

/// The removed volumes. Dereferences to a map by ID.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trash {
    by_id: OrdMap<VolumeId, Arc<Removed>>,
    by_age: OrdSet<Place>,
    /// How many there are of each backend; those that have none are missing.
    counts: OrdMap<BackendName, usize>,
}

/// The position of a removed volume in the order of deletion: within each backend, first the volumes to be deleted now,
/// then the others, each from the oldest removal on.
type Place = (BackendName, bool, OffsetDateTime, VolumeId);

impl Trash {
    /// Inserts a removed volume, replacing an earlier entry of the same ID.
    pub fn insert(&mut self, removed: Arc<Removed>) {
        self.remove(&removed.volume.id);
        self.by_age.insert(place(&removed));
        *self.counts.entry(removed.volume.backend.clone()).or_default() += 1;
        self.by_id.insert(removed.volume.id, removed);
    }

    /// Takes a removed volume out.
    pub fn remove(&mut self, id: &VolumeId) -> Option<Arc<Removed>> {
        let removed = self.by_id.remove(id)?;
        self.by_age.remove(&place(&removed));
        match self.counts.get_mut(&removed.volume.backend) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.counts.remove(&removed.volume.backend)),
        }
        Some(removed)
    }

    /// Returns the number of removed volumes of a backend.
    #[must_use]
    pub fn count_of(&self, backend: &BackendName) -> usize {
        self.counts.get(backend).copied().unwrap_or_default()
    }

    /// Returns the removed volumes of a backend in the order of deletion.
    pub fn of<'a>(&'a self, backend: &'a BackendName) -> impl Iterator<Item = &'a Arc<Removed>> {
        self.from(backend, false, PrimitiveDateTime::MIN.assume_utc())
    }

    /// Returns the removed volumes of a backend that are kept for their retention time and were removed at `at` or
    /// later, the oldest removal first.
    pub fn kept_since<'a>(
        &'a self,
        backend: &'a BackendName,
        at: OffsetDateTime,
    ) -> impl Iterator<Item = &'a Arc<Removed>> {
        self.from(backend, true, at)
    }

    fn from<'a>(
        &'a self,
        backend: &'a BackendName,
        kept: bool,
        at: OffsetDateTime,
    ) -> impl Iterator<Item = &'a Arc<Removed>> {
        self.by_age
            .range((backend.clone(), kept, at, VolumeId::LEAST)..)
            .take_while(move |(of, ..)| of == backend)
            .filter_map(|(.., id)| self.by_id.get(id))
    }
}

impl Deref for Trash {
    type Target = OrdMap<VolumeId, Arc<Removed>>;

    fn deref(&self) -> &Self::Target {
        &self.by_id
    }
}

fn place(removed: &Removed) -> Place {
    (removed.volume.backend.clone(), !removed.expired, removed.at, removed.volume.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::{at, backend, volume};

    fn removed(on: &str, seconds: i64, expired: bool) -> Arc<Removed> {
        let mut volume = volume("db");
        volume.id = VolumeId::random();
        volume.backend = backend(on);
        Arc::new(Removed { volume: Arc::new(volume), at: at(seconds), expired })
    }

    #[test]
    fn each_backends_volumes_come_in_the_order_of_deletion() {
        let mut trash = Trash::default();
        let all = [
            removed("fast", 3, false),
            removed("fast", 1, false),
            removed("fast", 2, true),
            removed("fast", 0, true),
            removed("slow", 0, false),
        ];
        all.iter().for_each(|removed| trash.insert(Arc::clone(removed)));
        let times = |trash: &Trash, on: &str| -> Vec<_> {
            trash.of(&backend(on)).map(|removed| (removed.at, removed.expired)).collect()
        };
        let expected = [(at(0), true), (at(2), true), (at(1), false), (at(3), false)];
        assert_eq!(times(&trash, "fast"), expected);
        assert_eq!(times(&trash, "slow"), [(at(0), false)]);
        assert_eq!(trash.kept_since(&backend("fast"), at(2)).count(), 1);
        // A changed entry has one place in the order, and a removed one has none.
        trash.insert(Arc::new(Removed { expired: true, ..Removed::clone(&all[0]) }));
        assert_eq!(times(&trash, "fast").last(), Some(&(at(1), false)));
        assert_eq!(trash.len(), 5);
        let counts: Vec<_> = trash.counts.iter().map(|(of, count)| (of.as_str(), *count)).collect();
        assert_eq!(counts, [("fast", 4), ("slow", 1)]);
        for removed in &all {
            assert!(trash.remove(&removed.volume.id).is_some());
        }
        assert_eq!(trash, Trash::default());
    }
}
