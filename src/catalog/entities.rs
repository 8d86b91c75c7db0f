//! The entities of a catalog: volumes, removed volumes, hosts with their certificates, and backends.
//!
//! Plain data. A [`View`](super::View) holds them; [`record`](super::record) says how they are written down.

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
    /// What tells it from a later one of the same name.
    pub id: VolumeId,
    /// Its name, and its directory's.
    pub name: VolumeName,
    /// Where it lies.
    pub backend: BackendName,
    /// The options that its Create gave.
    pub options: Options,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// Whether its directory stood there before it, so that a Remove leaves it.
    pub adopted: bool,
    /// The hosts that created or ever mounted it, sorted.
    pub known_to: Vec<HostName>,
    /// Who uses it.
    pub mounts: Ledger,
    /// Whether its directory stands under its name: not recorded. What a catalog held when it was opened is visible,
    /// because a volume that exists must be told of even while its backend is offline.
    pub visible: bool,
    /// Whether its directory may not have come to its name: recorded, from its Create's first record until a
    /// [`Publish`](super::Change::Publish). Found in a catalog that is opened, it says that the Create was perhaps
    /// cut off; its directory tells. It is shown all the same, because it may have been answered.
    pub unconfirmed: bool,
}

/// A removed volume whose directory is in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The volume as it was; without mounts.
    pub volume: Arc<Volume>,
    /// When it was removed.
    pub at: OffsetDateTime,
    /// Whether it is to be deleted now rather than when its time is over.
    pub expired: bool,
}

/// What is known of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Host {
    /// The number of its engine's latest Activate that mattered.
    pub activation: Activation,
    /// The certificates issued to it here, oldest first.
    pub certificates: Vec<Certificate>,
    /// When its certificates of that time were revoked, if ever.
    pub revoked_at: Option<OffsetDateTime>,
    /// When it last sent a request.
    pub last_seen: Option<OffsetDateTime>,
    /// Who issued the certificate with which it last connected: the authority's subject.
    pub last_issuer: Option<String>,
    /// The machine that serves the catalog under this name; `None` for a host that only calls.
    pub machine: Option<Uuid>,
    /// The name that the machine has now, if it gave this one up.
    pub renamed: Option<HostName>,
    /// From where its certificates were used, the certificate that was used first at the front.
    pub used: Vec<CertificateUse>,
    /// Set while several machines use one of its certificates.
    pub cloned: Option<Cloned>,
    /// The first activation whose mounts can be told to be stale: while the host was cloned, nobody could tell.
    pub certain_from: Activation,
}

/// A certificate that was issued to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Its serial number, in lower-case hexadecimal without leading zeros or separators.
    pub serial: String,
    /// The subject of the authority that issued it; none where that was not recorded.
    pub issuer: Option<String>,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// From where one certificate was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateUse {
    /// The certificate's serial number.
    pub serial: String,
    /// The addresses, the one that was used last at the end.
    pub addresses: Vec<IpAddr>,
}

/// That several machines use one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloned {
    /// The certificate's serial number.
    pub serial: String,
    /// When it was noticed.
    pub since: OffsetDateTime,
    /// The addresses that it is used from.
    pub addresses: Vec<IpAddr>,
}

/// What is remembered of a backend, so that its volumes can be told of while it is not in the map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendRecord {
    /// Its identity.
    pub id: BackendId,
    /// Whether its identity file is known to have been written.
    pub state: BackendState,
    /// Where engines' hosts last saw it.
    pub mountpoints: Mountpoints,
}

/// How far a backend's identity has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendState {
    /// Chosen; its file may not have been written yet, and may be written by the next start.
    Initialising,
    /// Written: where the file is missing, this is not the backend.
    Established,
}
