//! What each host has in a view, counted: its volumes, its mounts, and those of its present activation.
//!
//! Derived from the rest of the view, and so neither recorded nor ever the only place that knows something. Whatever
//! changes a view's volumes or ledgers counts it here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entities::Volume;
use super::view::View;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::volume::VolumeName;

/// What one host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostCounts {
    /// The number of volumes that it created or ever mounted, without removed ones.
    pub volumes: usize,
    /// The number of its ledger entries, stale ones included.
    pub mounts: usize,
    /// The number of its ledger entries under its present activation. It tells cheaply whether an Activate begins a new
    /// activation.
    pub(super) live: usize,
}

impl View {
    /// Returns what a host has.
    #[must_use]
    pub fn counts(&self, host: &HostName) -> HostCounts {
        self.counts.get(host).copied().unwrap_or_default()
    }

    /// Puts a volume in the place of the one of its name.
    pub(super) fn put_counted(&mut self, volume: &Arc<Volume>) -> Option<Arc<Volume>> {
        let before = self.volumes.insert(volume.name.clone(), Arc::clone(volume));
        let known_before = before.as_ref().map_or(&[][..], |volume| &volume.known_to);
        if known_before != volume.known_to {
            known_before.iter().for_each(|host| self.count(host, |counts| less(&mut counts.volumes)));
            volume.known_to.iter().for_each(|host| self.count(host, |counts| counts.volumes += 1));
        }
        before
    }

    /// Removes the volume of that name. Its mounts stay counted.
    pub(super) fn remove_counted(&mut self, name: &VolumeName) -> Option<Arc<Volume>> {
        let before = self.volumes.remove(name)?;
        before.known_to.iter().for_each(|host| self.count(host, |counts| less(&mut counts.volumes)));
        Some(before)
    }

    /// Counts an entry that was added to a ledger.
    pub(super) fn count_mount(&mut self, mount: &Mount) {
        let is_live = mount.activation == self.activation(&mount.host);
        self.count(&mount.host, |counts| {
            counts.mounts += 1;
            counts.live += usize::from(is_live);
        });
    }

    /// Counts an entry that was removed from a ledger.
    pub(super) fn uncount_mount(&mut self, mount: &Mount) {
        let is_live = mount.activation == self.activation(&mount.host);
        self.count(&mount.host, |counts| {
            less(&mut counts.mounts);
            if is_live {
                less(&mut counts.live);
            }
        });
    }

    /// Counts the end of a host's present activation. Returns true if that has mounts.
    pub(super) fn end_activation(&mut self, host: &HostName) -> bool {
        let had_mounts = self.counts(host).live > 0;
        self.count(host, |counts| counts.live = 0);
        had_mounts
    }

    /// Counts everything again.
    pub(super) fn recount(&mut self) {
        let mut counts: BTreeMap<&HostName, HostCounts> = BTreeMap::new();
        for volume in self.volumes.values() {
            for host in &volume.known_to {
                counts.entry(host).or_default().volumes += 1;
            }
            for mount in volume.mounts.iter() {
                let of_host = counts.entry(&mount.host).or_default();
                of_host.mounts += 1;
                of_host.live += usize::from(mount.activation == self.activation(&mount.host));
            }
        }
        self.counts = counts.into_iter().map(|(host, counts)| (host.clone(), counts)).collect();
    }

    fn count(&mut self, host: &HostName, change: impl FnOnce(&mut HostCounts)) {
        let mut counts = self.counts(host);
        change(&mut counts);
        if counts == HostCounts::default() {
            self.counts.remove(host);
        } else {
            self.counts.insert(host.clone(), counts);
        }
    }
}

/// Lowers a count by one. While single rows are put into a view, a mount may go before its activation has come.
fn less(count: &mut usize) {
    *count = count.saturating_sub(1);
}
