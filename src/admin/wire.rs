//! The admin socket's JSON: the request and the reply of each verb, and the table of verbs.
//!
//! Every verb is `POST /VERB` with a JSON object; the answer is JSON, with status 200, or a [`Failure`]. The field
//! names that `--json` prints are fixed: more may be added, none renamed.

mod rollover;
pub(crate) mod verb;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use self::rollover::{Ca, Rollover, RolloverEnd, RolloverEnded, RolloverHost};
pub(crate) use self::verb::Verb;

/// A request without arguments: `{}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// The answer in case of an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The error and its remedy, for a person.
    pub error: String,
}

/// An answer without data: what was done, in words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    /// What was done, in one sentence.
    pub done: String,
}

/// The state of the service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Status {
    /// volhost's version.
    pub version: String,
    /// The plugin's name.
    pub name: String,
    /// This machine's host name.
    pub node: String,
    /// The addresses served.
    pub listening: Vec<String>,
    /// Where the catalog lies.
    pub catalog: String,
    /// Why the catalog cannot be written at present.
    pub catalog_fault: Option<String>,
    /// The number of volumes.
    pub volumes: usize,
    /// The number of mounts: entries, not counts.
    pub mounts: usize,
    /// The backends.
    pub backends: Vec<Backend>,
    /// The number of open connections.
    pub connections: usize,
    /// The time when the service was ready, RFC 3339.
    pub since: String,
    /// The outcome of the latest reload; one that needs attention comes first.
    pub last_reload: Option<Reload>,
    /// Settings that were changed in the file but take effect only after a restart.
    pub needs_restart: Vec<String>,
    /// The path of the spec file, and its fault if it has one.
    pub spec: Option<String>,
    /// When the server's certificate expires, RFC 3339.
    pub server_certificate_expires: Option<String>,
    /// The number of log lines that were dropped since the start, because the output did not take them.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// What is wrong with a socket or the spec file, and which files do not answer.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The hosts that are cloned: several machines use one of their certificates.
    #[serde(default)]
    pub cloned_hosts: Vec<String>,
}

/// The request to read everything again.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReloadAsked {
    /// True to accept files that are worse than those in force: missing files, an expired certificate, an older list.
    #[serde(default)]
    pub force: bool,
}

/// The outcome of a reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reload {
    /// When it ended, RFC 3339.
    pub at: String,
    /// The unit that was read: `configuration`, `certificates` or `crl`.
    pub unit: String,
    /// `applied`, `rejected` or `unchanged`.
    pub result: String,
    /// Why it was rejected.
    pub faults: Vec<String>,
}

/// A volume, as in `volume ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// Its name.
    pub name: String,
    /// Its backend's name.
    pub backend: String,
    /// Its directory on this machine; for an unmapped backend, where hosts saw it last.
    pub path: String,
    /// When it was created, RFC 3339.
    pub created_at: String,
    /// The options that it was created with.
    pub options: BTreeMap<String, String>,
    /// The state of its backend: `online`, `offline`, `unmapped`; or `pending` while it is being made.
    pub state: String,
    /// The number of its mounts.
    pub mounts: usize,
}

/// A volume, as in `volume inspect`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VolumeDetail {
    /// The fields of `volume ls`.
    #[serde(flatten)]
    pub volume: Volume,
    /// The volume's ID.
    pub id: String,
    /// True if its directory existed before the volume.
    pub adopted: bool,
    /// False while a power cut could take its directory, which is then made again, empty.
    pub durable: bool,
    /// The hosts that created or ever mounted it.
    pub known_to: Vec<String>,
    /// Its mounts.
    pub mounted_by: Vec<Mount>,
    /// Its directory as it is now; `null` if its backend does not answer.
    pub directory: Option<Directory>,
}

/// The present state of a volume's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Directory {
    /// Its kind: `directory`, `nothing`, or another kind of file.
    pub kind: String,
    /// The user that owns it.
    pub uid: Option<u32>,
    /// The group that owns it.
    pub gid: Option<u32>,
    /// Its permissions, in octal.
    pub mode: Option<String>,
    /// Differences from the volume's options, such as `uid=70 then, uid=999 now`.
    pub changed: Vec<String>,
}

/// A removed volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trashed {
    /// The name it had.
    pub name: String,
    /// Its ID, which distinguishes two removed volumes of one name.
    pub id: String,
    /// Its backend's name.
    pub backend: String,
    /// When it was removed, RFC 3339.
    pub removed_at: String,
    /// When it will be deleted for good, RFC 3339; `null` while its backend is not in the map.
    pub expires_at: Option<String>,
    /// Why the last attempt to delete it failed.
    pub blocked: Option<String>,
}

/// Names a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeName {
    /// The volume's name.
    pub name: String,
}

/// Creates a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeCreate {
    /// Its name.
    pub name: String,
    /// Its options.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
}

/// Removes a volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeRemove {
    /// Its name.
    pub name: String,
    /// True to delete its data now instead of after the backend's `trash` time. Then `name` may also be the name or ID
    /// of a volume that is in the trash already.
    #[serde(default)]
    pub now: bool,
}

/// Restores a removed volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeRestore {
    /// The name it had (for the latest removed volume of that name), or its ID.
    pub name: String,
}

/// A mount, as in `mount ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The volume's name.
    pub volume: String,
    /// The host whose engine uses it.
    pub host: String,
    /// The engine's ID for it.
    pub id: String,
    /// The number of Mounts that were not followed by an Unmount.
    pub count: u32,
    /// When the first of them was answered, RFC 3339.
    pub since: String,
    /// True if the host's engine was restarted since.
    pub stale: bool,
    /// The network address that the first of them came from.
    pub address: Option<String>,
}

/// Releases mounts at the operator's request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountRelease {
    /// The volume; all volumes if absent.
    #[serde(default)]
    pub volume: Option<String>,
    /// The host whose mounts are released.
    pub host: String,
    /// The mount's ID; all mounts if absent.
    #[serde(default)]
    pub id: Option<String>,
    /// True to release mounts that may be alive as well.
    #[serde(default)]
    pub all: bool,
    /// True to report only what would be released.
    #[serde(default)]
    pub dry_run: bool,
}

/// The result of a release, or of a dry run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Released {
    /// The mounts that were released.
    pub released: Vec<Mount>,
    /// The mounts of that host that may be alive and were left.
    pub kept: Vec<Mount>,
}

/// A backend, as in `backend ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Backend {
    /// Its name.
    pub name: String,
    /// Its directory; for an unmapped one, where hosts saw it last.
    pub path: String,
    /// `online`, `offline` or `unmapped`.
    pub state: String,
    /// True if new volumes are refused.
    pub draining: bool,
    /// Why it is not online.
    pub reason: Option<String>,
    /// The number of volumes on it.
    pub volumes: usize,
    /// The size of its file system in bytes, if it is known.
    pub total_bytes: Option<u64>,
    /// The free bytes there, if they are known.
    pub free_bytes: Option<u64>,
    /// How its storage tells names apart, if that is known: `exact`, `case-insensitive`, `final dots dropped`, or both
    /// of these.
    #[serde(default)]
    pub names: Option<String>,
}

/// Names a backend.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackendName {
    /// Its name.
    pub name: String,
}

/// Gives a backend's directory an identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackendInit {
    /// The backend's name.
    pub name: String,
    /// True to replace another identity that the catalog has recorded for it.
    #[serde(default)]
    pub force: bool,
}

/// A host, as in `host ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Host {
    /// Its name.
    pub name: String,
    /// The serial number of its latest certificate issued here.
    pub serial: Option<String>,
    /// When that certificate expires, RFC 3339.
    pub expires: Option<String>,
    /// When the host last sent a request, RFC 3339.
    pub last_seen: Option<String>,
    /// The number of its mounts.
    pub mounts: usize,
    /// True if its latest certificate is revoked.
    pub revoked: bool,
    /// True if several machines use one of its certificates.
    pub cloned: bool,
    /// The addresses that the certificate is used from; for a host that is not cloned, where it last called from.
    pub addresses: Vec<String>,
}

/// Names a host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostName {
    /// Its name.
    pub name: String,
}

/// Issues a host's certificate and makes its bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostAdd {
    /// The host's name.
    pub name: String,
    /// The URL by which that host reaches this service; the configured `advertise` if absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The plugin's name on that host; the configured `name` if absent.
    #[serde(default)]
    pub plugin_name: Option<String>,
    /// A certificate signing request in PEM, made on the host: the bundle then holds no key.
    #[serde(default)]
    pub csr: Option<String>,
    /// The host's certificate in PEM, signed where the CA's key is: the bundle then holds no key, and this machine
    /// needs none.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// A host's bundle.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostAdded {
    /// The host's name.
    pub name: String,
    /// Its certificate's serial number.
    pub serial: String,
    /// When the certificate expires, RFC 3339.
    pub expires: String,
    /// The URL that the bundle's spec file names.
    pub advertise: String,
    /// The plugin's name on that host.
    pub plugin_name: String,
    /// The tar archive, in base64.
    pub bundle: String,
}

/// The result of a revocation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostRevoked {
    /// The host's name.
    pub name: String,
    /// The number of its certificates that were in force until now.
    pub certificates: usize,
    /// The number of its mounts, which stay counted until they are released.
    pub mounts: usize,
}
