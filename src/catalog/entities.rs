//! The entities of a catalog: volumes, removed volumes, hosts with their certificates, and backends.
//!
//! Plain data. A [`View`](super::View) holds them; [`record`](super::record) defines their stored form.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;
use uuid::Uuid;

use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::mountpoints::Mountpoints;
use crate::model::mounts::{Activation, Ledger};
use crate::model::options::Options;
use crate::model::volume::{VolumeId, VolumeName};

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The ID, which distinguishes it from a later volume of the same name.
    pub id: VolumeId,
    /// The name of the volume and of its directory.
    pub name: VolumeName,
    /// The backend that it lies on.
    pub backend: BackendName,
    /// The options that its Create gave.
    pub options: Options,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// True if its directory existed before the volume, so that a Remove leaves the directory.
    pub adopted: bool,
    /// The hosts that created or ever mounted it, sorted.
    pub known_to: Vec<HostName>,
    /// The mounts of the volume.
    pub mounts: Ledger,
    /// True if its directory stands under its name. Not recorded: every volume is visible when a catalog is opened,
    /// because an existing volume must be listed even while its backend is offline.
    pub visible: bool,
    /// True if its directory may not have its final name yet. Recorded from the Create's first record until a
    /// [`Publish`](super::Change::Publish). In a catalog that has just been opened it says that the Create may have
    /// been cut off; only the directory tells. The volume is shown all the same, because the Create may have been
    /// answered.
    pub unconfirmed: bool,
}

/// A removed volume whose directory is in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The volume before its removal, without mounts.
    pub volume: Arc<Volume>,
    /// When it was removed.
    pub at: OffsetDateTime,
    /// True if it is to be deleted now, before its retention time is over.
    pub expired: bool,
}

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// The number of its engine's latest Activate that began a new activation.
    pub activation: Activation,
    /// The certificates that volhost issued to it, oldest first.
    pub certificates: Vec<Certificate>,
    /// The time when all certificates that it had then were revoked, if that ever happened.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it last sent a request.
    pub last_seen: Option<OffsetDateTime>,
    /// The subject of the authority that issued the certificate with which it last connected.
    pub last_issuer: Option<String>,
    /// The machine that serves the catalog under this name; `None` for a host that only calls.
    pub machine: Option<Uuid>,
    /// The name that the machine has now, if it gave up this one.
    pub renamed: Option<HostName>,
    /// The addresses that its certificates were used from; the certificate used least recently comes first.
    pub used: Vec<CertificateUse>,
    /// Set while several machines use one of its certificates.
    pub cloned: Option<Cloned>,
    /// The first activation whose mounts can be recognised as stale. While the host was cloned, they could not.
    pub certain_from: Activation,
}

/// A certificate that was issued to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its serial number, in lower-case hexadecimal without leading zeros or separators.
    pub serial: String,
    /// The subject of the authority that issued it; `None` if that was not recorded.
    pub issuer: Option<String>,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
    /// True if it was revoked.
    pub revoked: bool,
}

/// The addresses that one certificate was used from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateUse {
    /// The certificate's serial number.
    pub serial: String,
    /// The addresses; the one used last is at the end.
    pub addresses: Vec<IpAddr>,
}

/// The observation that several machines use one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// The certificate's serial number.
    pub serial: String,
    /// The time when it was noticed.
    pub since: OffsetDateTime,
    /// The addresses that it is used from.
    pub addresses: Vec<IpAddr>,
}

/// What is recorded of a backend, so that its volumes can be listed while it is not in the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRecord {
    /// Its identity.
    pub id: BackendId,
    /// How far its identity file is known to be written.
    pub state: BackendState,
    /// Where hosts last saw it.
    pub mountpoints: Mountpoints,
}

/// The progress of a backend's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// The identity is chosen. Its file may not be written yet; the next start may write it.
    Initialising,
    /// The identity file is written. If it is missing, the directory is not this backend.
    Established,
}
