//! The content of a catalog in memory, and the queries on it. The [`rules`](super::rules) say how it changes.
//!
//! Pure: no I/O, no clock, no engine. Views share structure: a copy costs almost nothing, and a change copies a few
//! nodes.

use std::sync::Arc;

use imbl::OrdMap;

use super::counts::Counts;
use super::entities::{BackendRecord, Host, Removed, Volume};
use super::trash::Trash;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::VolumeName;

/// Everything that a catalog holds at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The volumes by name, including those that are not visible yet.
    pub volumes: OrdMap<VolumeName, Arc<Volume>>,
    /// The removed volumes.
    pub trash: Trash,
    /// The hosts.
    pub hosts: OrdMap<HostName, Arc<Host>>,
    /// The backends.
    pub backends: OrdMap<BackendName, Arc<BackendRecord>>,
    /// Counts of the other fields.
    pub(super) counts: Counts,
}

impl View {
    /// Returns the volume of that name, visible or still being made. Whoever answers engines must check `visible`
    /// first.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name)
    }

    /// Returns a host's present activation; a host without a record is in its first.
    #[must_use]
    pub fn activation(&self, host: &HostName) -> Activation {
        self.hosts.get(host).map(|host| host.activation).unwrap_or_default()
    }

    /// Returns true if a mount belongs to an earlier activation of its host: the engine that made it was restarted
    /// since. Always false while the host is cloned, because another machine may have been restarted.
    #[must_use]
    pub fn stale(&self, mount: &Mount) -> bool {
        self.hosts.get(&mount.host).is_some_and(|host| {
            host.cloned.is_none() && (host.certain_from..host.activation).contains(&mount.activation)
        })
    }

    /// Returns true if several machines use a certificate of this host.
    #[must_use]
    pub fn is_cloned(&self, host: &HostName) -> bool {
        self.hosts.get(host).is_some_and(|host| host.cloned.is_some())
    }

    /// Returns true if a host's certificate must be refused: if its serial number (spelled as
    /// [`Certificate::serial`](super::Certificate::serial)) was revoked, or if the host was revoked once and the
    /// catalog has not recorded this certificate as issued since. So a revocation also covers certificates whose record
    /// the catalog has lost or never had.
    #[must_use]
    pub fn is_revoked(&self, host: &HostName, serial: &str) -> bool {
        let Some(host) = self.hosts.get(host) else { return false };
        match host.certificates.iter().find(|certificate| certificate.serial == serial) {
            Some(certificate) => certificate.revoked,
            None => host.revoked_at.is_some(),
        }
    }

    /// Returns the newest removed volume of that name, which a restore by name brings back.
    #[must_use]
    pub fn removed(&self, name: &str) -> Option<&Arc<Removed>> {
        self.trash
            .values()
            .filter(|removed| removed.volume.name.as_str() == name)
            .max_by_key(|removed| removed.at)
    }
}
