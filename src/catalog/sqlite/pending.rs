//! The changes that wait for the writer, shared by the writer and the submitters.
//!
//! The lock is held for a moment only, never while waiting for the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::{CatalogError, Change, Outcome, View, Write};
use crate::model::volume::VolumeName;

/// The most changes that one transaction takes, so that the first of them does not wait for too many.
pub(super) const MAX_BATCH: usize = 1024;

/// The changes that wait for the writer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The number of changes that are queued and unanswered, plus one while the writer does leftover work. While it is
    /// zero the writer changes nothing, and whoever holds the lock may decide changes that need no disk.
    pub(super) jobs: usize,
    /// The volumes whose records were shown and answered before being stored: the next transaction stores them.
    pub(super) deferred: BTreeSet<VolumeName>,
}

impl Pending {
    /// Decides a change that may follow its answer, if no earlier change is undecided; `None` if the writer must decide
    /// it.
    pub(super) fn decide(
        &mut self,
        change: &Change,
        view: &ArcSwap<View>,
    ) -> Option<Result<Outcome, CatalogError>> {
        if self.jobs > 0 || !change.may_follow() || self.deferred.len() >= MAX_BATCH {
            return None;
        }
        let mut draft = View::clone(&view.load());
        Some(draft.apply(change.clone()).map_err(CatalogError::from).map(|(outcome, records)| {
            self.deferred.extend(volumes_of(&records));
            view.store(Arc::new(draft));
            outcome
        }))
    }
}

/// Returns the volumes that these writes record.
pub(super) fn volumes_of(writes: &[Write]) -> impl Iterator<Item = VolumeName> {
    writes.iter().filter_map(|write| match write {
        Write::Volume(name, _) => Some(name.clone()),
        Write::Mount(..) | Write::Removed(..) | Write::Host(..) | Write::Backend(..) => None,
    })
}
