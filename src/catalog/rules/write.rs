//! The records that a change stores and deletes, each with its key.
//!
//! Only names; [`record`](crate::catalog::record) defines the stored form.

use std::sync::Arc;

use crate::catalog::entities::{BackendRecord, Host, Removed, Volume};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// A record to store, or to delete if there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A volume, without its mounts and its visibility.
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
    /// Returns the key of the record that it stores or deletes.
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

    /// Returns true if it deletes the record.
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

/// The key of a record.
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

/// The key of a ledger's entry in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountKey {
    /// The volume's name.
    pub volume: VolumeName,
    /// The host that uses it.
    pub host: HostName,
    /// The engine's ID.
    pub id: MountId,
    /// The host's activation that it is counted under.
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
