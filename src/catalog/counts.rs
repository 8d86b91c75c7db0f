//! Counts of a view: what each host has, and what lies on each backend.
//!
//! Derived from the rest of the view, and so neither recorded nor ever the only place that knows something. Whatever
//! changes a view's volumes, ledgers or hosts counts it here, so that nobody has to look at all volumes for a number.

use std::collections::BTreeMap;
use std::sync::Arc;

use imbl::OrdMap;

use super::entities::{Host, Volume};
use super::view::View;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::volume::VolumeName;

/// The counts of a view. Hosts and backends that have nothing are missing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counts {
    hosts: OrdMap<HostName, HostCounts>,
    backends: OrdMap<BackendName, BackendCounts>,
}

/// The counts of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostCounts {
    /// The number of volumes that it created or ever mounted, without removed ones.
    pub volumes: usize,
    /// The number of its ledger entries.
    pub mounts: usize,
    /// The number of those that are [stale](View::stale).
    pub stale: usize,
    /// The number of those under its present activation. It tells cheaply whether an Activate begins a new activation.
    pub(super) live: usize,
}

/// The counts of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BackendCounts {
    /// The number of its volumes, without removed ones.
    pub volumes: usize,
    /// The number of ledger entries of its volumes.
    pub mounts: usize,
}

impl View {
    /// Returns what a host has.
    #[must_use]
    pub fn counts_of_host(&self, host: &HostName) -> HostCounts {
        self.counts.hosts.get(host).copied().unwrap_or_default()
    }

    /// Returns what lies on a backend.
    #[must_use]
    pub fn counts_of_backend(&self, backend: &BackendName) -> BackendCounts {
        self.counts.backends.get(backend).copied().unwrap_or_default()
    }

    /// Returns the backends that have volumes, with what lies on each.
    pub fn backends_in_use(&self) -> impl Iterator<Item = (&BackendName, BackendCounts)> {
        self.counts.backends.iter().map(|(name, counts)| (name, *counts))
    }

    /// Returns the hosts that have volumes or mounts.
    pub fn hosts_in_use(&self) -> impl Iterator<Item = &HostName> {
        self.counts.hosts.keys()
    }

    /// Returns the number of ledger entries.
    #[must_use]
    pub fn mount_count(&self) -> usize {
        self.counts.backends.values().map(|counts| counts.mounts).sum()
    }

    /// Returns the number of stale ledger entries.
    #[must_use]
    pub fn stale_count(&self) -> usize {
        self.counts.hosts.values().map(|counts| counts.stale).sum()
    }

    /// Puts a volume in the place of the one of its name. The caller counts the hosts' mounts.
    pub(super) fn put_counted(&mut self, volume: &Arc<Volume>) -> Option<Arc<Volume>> {
        let before = self.volumes.insert(volume.name.clone(), Arc::clone(volume));
        if let Some(before) = &before {
            self.count_volume(before, lower);
        }
        self.count_volume(volume, raise);
        if before.as_ref().is_none_or(|before| before.known_to != volume.known_to) {
            for host in before.iter().flat_map(|before| &before.known_to) {
                self.count_host(host, |counts| lower(&mut counts.volumes, 1));
            }
            for host in &volume.known_to {
                self.count_host(host, |counts| counts.volumes += 1);
            }
        }
        before
    }

    /// Removes the volume of that name. The caller counts the hosts' mounts.
    pub(super) fn remove_counted(&mut self, name: &VolumeName) -> Option<Arc<Volume>> {
        let before = self.volumes.remove(name)?;
        self.count_volume(&before, lower);
        for host in &before.known_to {
            self.count_host(host, |counts| lower(&mut counts.volumes, 1));
        }
        Some(before)
    }

    /// Counts an entry that was added to a ledger.
    pub(super) fn count_mount(&mut self, mount: &Mount) {
        let (is_live, is_stale) = (self.is_live(mount), self.stale(mount));
        self.count_host(&mount.host, |counts| {
            counts.mounts += 1;
            counts.live += usize::from(is_live);
            counts.stale += usize::from(is_stale);
        });
    }

    /// Counts an entry that was removed from a ledger.
    pub(super) fn uncount_mount(&mut self, mount: &Mount) {
        let (is_live, is_stale) = (self.is_live(mount), self.stale(mount));
        self.count_host(&mount.host, |counts| {
            lower(&mut counts.mounts, 1);
            lower(&mut counts.live, usize::from(is_live));
            lower(&mut counts.stale, usize::from(is_stale));
        });
    }

    /// Puts a host's record in the place of the one of its name, and counts which of its mounts are live and stale from
    /// now on.
    pub(super) fn put_host_counted(&mut self, name: &HostName, host: &Arc<Host>) {
        fn certainty(host: Option<&Arc<Host>>) -> (bool, u64) {
            host.map(|host| (host.cloned.is_some(), host.certain_from.0)).unwrap_or_default()
        }
        let before = self.activation(name);
        let known = self.hosts.insert(name.clone(), Arc::clone(host));
        if certainty(known.as_ref()) != certainty(Some(host)) {
            // Which of its mounts are stale is another question now. It is a rare one.
            self.recount();
        } else if host.activation > before {
            let is_certain = host.cloned.is_none() && before >= host.certain_from;
            self.count_host(name, |counts| {
                counts.stale += if is_certain { counts.live } else { 0 };
                counts.live = 0;
            });
        }
    }

    /// Counts everything again.
    pub(super) fn recount(&mut self) {
        let mut hosts: BTreeMap<&HostName, HostCounts> = BTreeMap::new();
        let mut backends: BTreeMap<&BackendName, BackendCounts> = BTreeMap::new();
        for volume in self.volumes.values() {
            let on_backend = backends.entry(&volume.backend).or_default();
            on_backend.volumes += 1;
            on_backend.mounts += volume.mounts.len();
            for host in &volume.known_to {
                hosts.entry(host).or_default().volumes += 1;
            }
            for mount in volume.mounts.iter() {
                let of_host = hosts.entry(&mount.host).or_default();
                of_host.mounts += 1;
                of_host.live += usize::from(self.is_live(mount));
                of_host.stale += usize::from(self.stale(mount));
            }
        }
        let hosts = hosts.into_iter().map(|(host, counts)| (host.clone(), counts)).collect();
        let backends = backends.into_iter().map(|(backend, counts)| (backend.clone(), counts)).collect();
        self.counts = Counts { hosts, backends };
    }

    fn is_live(&self, mount: &Mount) -> bool {
        mount.activation == self.activation(&mount.host)
    }

    fn count_host(&mut self, host: &HostName, change: impl FnOnce(&mut HostCounts)) {
        let mut counts = self.counts_of_host(host);
        change(&mut counts);
        if counts == HostCounts::default() {
            self.counts.hosts.remove(host);
        } else {
            self.counts.hosts.insert(host.clone(), counts);
        }
    }

    fn count_volume(&mut self, volume: &Volume, change: fn(&mut usize, usize)) {
        let mut counts = self.counts_of_backend(&volume.backend);
        change(&mut counts.volumes, 1);
        change(&mut counts.mounts, volume.mounts.len());
        if counts == BackendCounts::default() {
            self.counts.backends.remove(&volume.backend);
        } else {
            self.counts.backends.insert(volume.backend.clone(), counts);
        }
    }
}

fn raise(count: &mut usize, by: usize) {
    *count += by;
}

/// Lowers a count, to 0 at the least: while single rows are put into a view, a mount may go before its activation has
/// come.
fn lower(count: &mut usize, by: usize) {
    *count = count.saturating_sub(by);
}
