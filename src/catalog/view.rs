//! What a catalog holds in memory, and what can be asked of it. How it changes is told in [`rules`](super::rules).
//!
//! Pure: no I/O, no clock, no engine. Views share structure, so that a copy costs nothing and a change a few nodes.

use std::sync::Arc;

use imbl::OrdMap;

use super::entities::{BackendRecord, Host, Removed, Volume};
use super::trash::Trash;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::VolumeName;

/// Everything a catalog holds, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    /// The volumes by name, those that are not visible yet among them.
    pub volumes: OrdMap<VolumeName, Arc<Volume>>,
    /// The removed volumes.
    pub trash: Trash,
    /// The hosts.
    pub hosts: OrdMap<HostName, Arc<Host>>,
    /// The backends.
    pub backends: OrdMap<BackendName, Arc<BackendRecord>>,
    /// How many ledger entries a host has under its present activation; hosts without one are not in it. Derived from
    /// the others and not recorded: it answers cheaply whether an Activate matters.
    pub(super) live: OrdMap<HostName, u32>,
}

impl View {
    /// The volume of that name, visible or still being made: who answers engines looks at its `visible` first.
    #[must_use]
    pub fn volume(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.get(name)
    }

    /// A host's present activation; a host that was never recorded is in its first.
    #[must_use]
    pub fn activation(&self, host: &HostName) -> Activation {
        self.hosts.get(host).map(|host| host.activation).unwrap_or_default()
    }

    /// Whether a mount is of an earlier activation of its host: the engine that made it was started again since. Never
    /// while the host is cloned: the start may have been another machine's.
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

    /// Whether a host's certificate is to be refused: when its serial number (in the spelling of
    /// [`Certificate::serial`](super::Certificate::serial)) was revoked, or when the host was revoked once and this is not a certificate that was
    /// issued to it here since. So a revocation also meets certificates of which the catalog has lost, or never had,
    /// a record.
    #[must_use]
    pub fn is_revoked(&self, host: &HostName, serial: &str) -> bool {
        let Some(host) = self.hosts.get(host) else { return false };
        match host.certificates.iter().find(|certificate| certificate.serial == serial) {
            Some(certificate) => certificate.revoked,
            None => host.revoked_at.is_some(),
        }
    }

    /// The newest removed volume of that name: what a restore by name means.
    #[must_use]
    pub fn removed(&self, name: &str) -> Option<&Arc<Removed>> {
        self.trash
            .values()
            .filter(|removed| removed.volume.name.as_str() == name)
            .max_by_key(|removed| removed.at)
    }
}
