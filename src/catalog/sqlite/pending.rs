//! What waits for the writer, as the writer and those who submit see it.
//!
//! It is locked for a moment only, never while the disk is waited for.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::{CatalogError, Change, Outcome, View, Write};
use crate::model::volume::VolumeName;

/// The most changes that one transaction takes, so that the first of them does not wait for too many.
pub(super) const MAX_BATCH: usize = 1024;

/// What waits for the writer.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// How many changes were queued and not answered yet, and one more while the writer does what was left over. While
    /// it is zero the writer changes nothing, and whoever holds the lock may decide what needs no disk.
    pub(super) jobs: usize,
    /// The volumes whose records were shown and answered before they were stored: they go into the next transaction.
    pub(super) following: BTreeSet<VolumeName>,
}

impl Pending {
    /// Decides a change that may follow its answer, where nothing before it is undecided; nothing, where the writer
    /// has to.
    pub(super) fn decide(
        &mut self,
        change: &Change,
        view: &ArcSwap<View>,
    ) -> Option<Result<Outcome, CatalogError>> {
        if self.jobs > 0 || !change.may_follow() || self.following.len() >= MAX_BATCH {
            return None;
        }
        let mut draft = View::clone(&view.load());
        Some(draft.apply(change.clone()).map_err(CatalogError::from).map(|(outcome, records)| {
            self.following.extend(volumes_of(&records));
            view.store(Arc::new(draft));
            outcome
        }))
    }
}

/// The volumes whose records these are.
pub(super) fn volumes_of(writes: &[Write]) -> impl Iterator<Item = VolumeName> {
    writes.iter().filter_map(|write| match write {
        Write::Volume(name, _) => Some(name.clone()),
        Write::Mount(..) | Write::Removed(..) | Write::Host(..) | Write::Backend(..) => None,
    })
}
