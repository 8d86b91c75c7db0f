//! What a change stores and deletes: records, each with what tells it from all others.
//!
//! Only names; how they are written down is told in [`record`](crate::catalog::record).

use std::sync::Arc;

use crate::catalog::entities::{BackendRecord, Host, Removed, Volume};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// A record to be stored, or, where there is no value, to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A volume, without its mounts and without whether it is visible.
    Volume(VolumeName, Option<Arc<Volume>>),
    /// One entry of a volume's ledger.
    Mount(MountKey, Option<Mount>),
    /// A removed volume.
    Removed(VolumeId, Option<Arc<Removed>>),
    /// A host; no change deletes one.
    Host(HostName, Arc<Host>),
    /// A backend.
    Backend(BackendName, Option<Arc<BackendRecord>>),
}

impl Write {
    /// Which record it stores or deletes.
    #[must_use]
    pub fn key(&self) -> RowKey {
        match self {
            Self::Volume(name, _) => RowKey::Volume(name.clone()),
            Self::Mount(key, _) => RowKey::Mount(key.clone()),
            Self::Removed(id, _) => RowKey::Removed(*id),
            Self::Host(name, _) => RowKey::Host(name.clone()),
            Self::Backend(name, _) => RowKey::Backend(name.clone()),
        }
    }

    /// Whether it deletes the record.
    #[must_use]
    pub fn deletes(&self) -> bool {
        match self {
            Self::Volume(_, record) => record.is_none(),
            Self::Mount(_, record) => record.is_none(),
            Self::Removed(_, record) => record.is_none(),
            Self::Host(..) => false,
            Self::Backend(_, record) => record.is_none(),
        }
    }
}

/// Which record a [`Write`] stores or deletes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RowKey {
    /// A volume.
    Volume(VolumeName),
    /// An entry of a volume's ledger.
    Mount(MountKey),
    /// A removed volume.
    Removed(VolumeId),
    /// A host.
    Host(HostName),
    /// A backend.
    Backend(BackendName),
}

/// What tells a ledger's entry from all others in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountKey {
    /// The volume's name.
    pub volume: VolumeName,
    /// The host that uses it.
    pub host: HostName,
    /// The engine's ID.
    pub id: MountId,
    /// Under which of the host's activations.
    pub activation: Activation,
}

impl MountKey {
    pub(in crate::catalog) fn of(volume: &VolumeName, mount: &Mount) -> Self {
        Self {
            volume: volume.clone(),
            host: mount.host.clone(),
            id: mount.id.clone(),
            activation: mount.activation,
        }
    }
}
