//! The admin socket's JSON: the request and the reply of each verb, and the table of verbs.
//!
//! Every verb is `POST /VERB` with a JSON object; the answer is JSON, with status 200, or a [`Failure`]. The field
//! names of what `--json` prints are fixed: more may be added, none renamed.

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

/// What an error is answered with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// What went wrong and what to do, for a person.
    pub error: String,
}

/// An answer without content of its own: what was done, in words.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    /// What was done, in one sentence.
    pub done: String,
}

/// How the service is.
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
    /// How many volumes there are.
    pub volumes: usize,
    /// How many mounts there are: entries, not counts.
    pub mounts: usize,
    /// The backends.
    pub backends: Vec<Backend>,
    /// How many connections are open.
    pub connections: usize,
    /// When the service was ready, RFC 3339.
    pub since: String,
    /// What became of the latest reload of each kind; the one that needs attention first.
    pub last_reload: Option<Reload>,
    /// Settings that were changed in the file but hold only after a restart.
    pub needs_restart: Vec<String>,
    /// Where the spec file is, and what is wrong with it if anything.
    pub spec: Option<String>,
    /// When the server's certificate expires, RFC 3339.
    pub server_certificate_expires: Option<String>,
    /// How many lines of the log were dropped since the start, because nobody took them.
    #[serde(default)]
    pub log_lines_dropped: u64,
    /// What is wrong with a socket or the spec file, and which files do not answer.
    #[serde(default)]
    pub troubles: Vec<String>,
    /// The hosts of which several machines use one certificate.
    #[serde(default)]
    pub cloned_hosts: Vec<String>,
}

/// What is to be read again: everything.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReloadAsked {
    /// Also what would be worse than what is in force: files that are gone, an expired certificate, an older list.
    #[serde(default)]
    pub force: bool,
}

/// What became of a reload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Reload {
    /// When, RFC 3339.
    pub at: String,
    /// What was read: `configuration`, `certificates` or `crl`.
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
    /// The options it was created with.
    pub options: BTreeMap<String, String>,
    /// The state of its backend: `online`, `offline`, `unmapped`; or `pending` while it is being made.
    pub state: String,
    /// How many hosts' mounts there are.
    pub mounts: usize,
}

/// A volume, as in `volume inspect`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VolumeDetail {
    /// What `volume ls` tells.
    #[serde(flatten)]
    pub volume: Volume,
    /// Its identity.
    pub id: String,
    /// Whether its directory was there before it.
    pub adopted: bool,
    /// The hosts that created or ever mounted it.
    pub known_to: Vec<String>,
    /// Who uses it.
    pub mounted_by: Vec<Mount>,
    /// Its directory as it is now; `null` when its backend does not say.
    pub directory: Option<Directory>,
}

/// A volume's directory, as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Directory {
    /// What stands there: `directory`, `nothing`, or what else it is.
    pub kind: String,
    /// The user that owns it.
    pub uid: Option<u32>,
    /// The group that owns it.
    pub gid: Option<u32>,
    /// Its permissions, in octal.
    pub mode: Option<String>,
    /// What the volume's options said otherwise, such as `uid=70 then, uid=999 now`.
    pub changed: Vec<String>,
}

/// A removed volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trashed {
    /// The name it had.
    pub name: String,
    /// Its identity, which tells two removed volumes of one name apart.
    pub id: String,
    /// Its backend's name.
    pub backend: String,
    /// When it was removed, RFC 3339.
    pub removed_at: String,
    /// When it will be deleted for good, RFC 3339; nothing while its backend is not in the map.
    pub expires_at: Option<String>,
    /// Why it could not be deleted so far, if that was tried.
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
    /// Whether to delete its data now instead of after the backend's `trash` time. Also takes the name or identity
    /// of a volume that is in the trash already.
    #[serde(default)]
    pub now: bool,
}

/// Restores a removed volume.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VolumeRestore {
    /// The name it had (the latest removed one of that name), or its identity.
    pub name: String,
}

/// A mount, as in `mount ls`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Whose engine uses it.
    pub host: String,
    /// The engine's ID for it.
    pub id: String,
    /// How many Mounts were not followed by an Unmount.
    pub count: u32,
    /// When the first of them was answered, RFC 3339.
    pub since: String,
    /// Whether the host's engine was started again since.
    pub stale: bool,
    /// From which address the first of them came over a network.
    pub address: Option<String>,
}

/// Releases mounts by the operator's word.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MountRelease {
    /// Of this volume; of all when absent.
    #[serde(default)]
    pub volume: Option<String>,
    /// Whose mounts.
    pub host: String,
    /// Which of them; all when absent.
    #[serde(default)]
    pub id: Option<String>,
    /// Whether also those that may be alive.
    #[serde(default)]
    pub all: bool,
    /// Whether only to tell what would be released.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a release did, or would do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Released {
    /// The mounts that were taken out.
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
    /// Whether new volumes are refused.
    pub draining: bool,
    /// Why it is not online.
    pub reason: Option<String>,
    /// How many volumes lie on it.
    pub volumes: usize,
    /// The size of its file system in bytes, when it is known.
    pub total_bytes: Option<u64>,
    /// The bytes free for use there, when it is known.
    pub free_bytes: Option<u64>,
    /// How its storage tells names apart, when it is known: `exact`, `case-insensitive`, `final dots dropped`, or both of
    /// these.
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
    /// Whether to do so although the catalog remembers another identity for it.
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
    /// How many mounts it has.
    pub mounts: usize,
    /// Whether its latest certificate is revoked.
    pub revoked: bool,
    /// Whether several machines use one of its certificates.
    pub cloned: bool,
    /// The addresses that the certificate is used from; of a host that is not cloned, where it called from last.
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
    /// The URL under which that host reaches this service; the configured `advertise` when absent.
    #[serde(default)]
    pub advertise: Option<String>,
    /// The plugin's name on that host; the configured `name` when absent.
    #[serde(default)]
    pub plugin_name: Option<String>,
    /// A certificate signing request in PEM, made on the host: the bundle then holds no key.
    #[serde(default)]
    pub csr: Option<String>,
    /// The host's certificate in PEM, signed where the CA's key is: the bundle then holds no key, and none is needed here.
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

/// What a revocation did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HostRevoked {
    /// The host's name.
    pub name: String,
    /// How many of its certificates were in force until now.
    pub certificates: usize,
    /// Its mounts, which stay counted until they are released.
    pub mounts: usize,
}
