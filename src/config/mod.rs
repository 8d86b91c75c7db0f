//! The configuration and the backend map: read, checked and typed, or refused with everything that is wrong.
//!
//! [`load()`] reads both files at once, so that one run names the faults of both. What comes out needs no further
//! check: names are names, paths are absolute, durations are durations and every default is filled in. [`changes`]
//! tells what a reload may apply; [`watch`] tells when to reload.
//!
//! This room opens no socket, makes no directory and writes no file, and it never looks into a backend: a backend's
//! path need not exist.

pub(crate) mod address;
mod backends;
mod catalog;
mod directories;
pub(crate) mod fault;
pub mod fields;
mod json;
mod load;
mod node;
mod parse;
pub(crate) mod paths;
pub(crate) mod pattern;
mod walk;
pub(crate) mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::address::{Advertise, Listen};
pub use self::fault::{Fault, Faults};
pub use self::load::{load, reload, served};
pub use self::paths::Paths;
pub use self::pattern::HostPattern;
use self::watch::Seen;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::location::{Credentials, Location};
use crate::model::mountpoints::Mountpoints;
use crate::model::options::Mode;
use crate::model::right::Listed;

/// Everything that is configured, the backend map with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The plugin's name, to which engines bind their volumes.
    pub name: String,
    /// What this machine is called when its own engine calls over a Unix socket.
    pub node: HostName,
    /// Whether the file says so; else it is the hostname, unless the catalog keeps another name.
    pub node_configured: bool,
    /// How far a volume's name reaches, as engines are told.
    pub scope: Scope,
    /// Where engines are served, at least one place.
    pub listen: Vec<Listen>,
    /// Whether plain HTTP may be served to other machines.
    pub insecure: bool,
    /// What engines are told to call instead of what `listen` says.
    pub advertise: Option<Advertise>,
    /// The TLS files that take the place of our own.
    pub tls: TlsFiles,
    /// Where our own CA, certificates and keys are. No field of the file sets it.
    pub pki: PathBuf,
    /// The spec file to write, if one is.
    pub spec: Option<SpecSettings>,
    /// Where the catalog lies.
    pub catalog: Location,
    /// By what an etcd cluster lets this instance in.
    pub etcd: Credentials,
    /// Where is kept what was answered while a shared catalog was out of reach. No field of the file sets it.
    pub spool: PathBuf,
    /// The backend map's file.
    pub map: PathBuf,
    /// The backend map. Empty when the file names none.
    pub backends: BTreeMap<BackendName, BackendSettings>,
    /// Which hosts may use volumes, and how. `None` says nothing about it.
    pub hosts: Option<Listed>,
    /// The admin socket.
    pub admin: PathBuf,
    /// What is too much and what takes too long.
    pub limits: Limits,
}

/// How far a volume's name reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each engine has volumes of its own.
    Local,
    /// The same name is the same volume on every host.
    Global,
}

impl Scope {
    /// The word in the file, which is also the one that Capabilities answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Global => "global",
        }
    }
}

/// The TLS files that the configuration names; for each that it does not, our own in [`Config::pki`] hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The server's certificate and its key.
    pub server: Option<KeyPair>,
    /// The CAs whose clients are let in.
    pub client_ca: Option<PathBuf>,
    /// The certificates that those CAs took back.
    pub crl: Option<PathBuf>,
}

/// A certificate chain and the key it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate chain, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}

/// The spec file by which engines of this machine find us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecSettings {
    /// The directory it is written into.
    pub dir: PathBuf,
    /// Its format; `None` when the address decides: JSON for `https`, one line for the others.
    pub format: Option<SpecFormat>,
}

/// The formats of spec files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecFormat {
    /// `NAME.json`, which can name TLS files.
    Json,
    /// `NAME.spec`, one line with an address.
    Spec,
}

/// One backend, as the map has it: what `backend::Settings` says of its directory, and who may use it, which no backend
/// knows. Neither room uses the other's type; `app` turns this one into that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The directory under which its volumes lie. Absolute, without `..`, overlapping no other's.
    pub path: PathBuf,
    /// Where the engines' hosts see `path`.
    pub mountpoints: Mountpoints,
    /// Whether new volumes are refused.
    pub draining: bool,
    /// Whether `path` must lie on a mounted file system other than the root's.
    pub require_mount: bool,
    /// How long removed volumes are kept; zero deletes them at once.
    pub trash: Duration,
    /// Who owns new volumes.
    pub uid: u32,
    /// Which group owns new volumes.
    pub gid: u32,
    /// The permissions of new volumes.
    pub mode: Mode,
    /// Which hosts may use it. `None` is all of them, an empty list none.
    pub hosts: Option<Vec<HostPattern>>,
}

/// What is too much and what takes too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// Connections of one host at once.
    pub connections_per_host: usize,
    /// The bytes of a request's body.
    pub body_bytes: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a request may take.
    pub request: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_host: 256,
            body_bytes: 1 << 20,
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(20),
        }
    }
}

/// A configuration that was read without a fault.
#[derive(Debug)]
pub struct Loaded {
    /// What was read.
    pub config: Config,
    /// The files it was read from and what stood in them, those that were looked for and not found included: what
    /// [`watch::Unit::Config`] shall follow.
    pub files: Vec<Seen>,
    /// A fault that the field `tls.client_ca` would have, but for its text.
    client_ca: Option<Fault>,
}

/// A configuration that was read and has faults.
#[derive(Debug)]
pub struct Rejected {
    /// All that is wrong.
    pub faults: Faults,
    /// The files that were read, as in [`Loaded::files`]. They may be others than before: a map that the configuration
    /// names anew and that is still to come, for one.
    pub files: Vec<Seen>,
}

impl Loaded {
    /// Returns the configuration's file if there is none, so that the defaults hold.
    #[must_use]
    pub fn missing_file(&self) -> Option<&Path> {
        self.files.first().filter(|seen| !seen.is_there()).map(Seen::path)
    }

    /// The fault of a configuration that lets the clients of somebody else's CA in and does not say which.
    ///
    /// `is_ours` tells whether a CA file holds our own CA and no other; this room cannot read certificates. The
    /// caller asks after each load.
    pub fn check_client_ca(&self, is_ours: impl Fn(&Path) -> bool) -> Option<Fault> {
        let file = self.config.tls.client_ca.as_deref()?;
        let place = self.client_ca.as_ref()?;
        (self.config.hosts.is_none() && !is_ours(file)).then(|| Fault {
            what: format!(
                "{} is not volhost's own CA, which makes the field \"hosts\" mandatory: name the hosts that may call, \
                 such as \"hosts\": {{\"web1\": {{}}}}, or all that this CA ever signs by \"hosts\": {{\"*\": {{}}}}",
                file.display()
            ),
            ..place.clone()
        })
    }
}

/// What differs between two configurations, by the names of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What a reload puts in force.
    pub hot: Vec<&'static str>,
    /// What stays as it was until volhost is started again.
    pub needs_restart: Vec<&'static str>,
}

impl Changes {
    /// Whether the two are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.hot.is_empty() && self.needs_restart.is_empty()
    }
}

/// What differs between the configuration in force and one that was read anew.
///
/// Sockets, catalog and PKI are made once. Name, node and scope are read by engines once, or bound to what is
/// recorded: a name that moves under a running service would orphan the volumes that engines bound to it.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Changes {
    // Destructured in full, so that a new field cannot be forgotten here.
    let Config {
        name,
        node,
        node_configured: _the_name_tells,
        scope,
        listen,
        insecure,
        advertise,
        tls,
        pki,
        spec,
        catalog,
        etcd,
        spool: _the_root_alone_sets_it,
        map,
        backends,
        hosts,
        admin,
        limits,
    } = new;
    let hot = [
        ("insecure", *insecure != old.insecure),
        ("advertise", *advertise != old.advertise),
        ("tls", *tls != old.tls),
        ("spec", *spec != old.spec),
        ("backends", *map != old.map || *backends != old.backends),
        ("hosts", *hosts != old.hosts),
        ("limits", *limits != old.limits),
    ];
    let needs_restart = [
        ("name", *name != old.name),
        ("node", *node != old.node),
        ("scope", *scope != old.scope),
        ("listen", *listen != old.listen),
        ("pki", *pki != old.pki),
        ("catalog", *catalog != old.catalog),
        ("etcd", *etcd != old.etcd),
        ("admin", *admin != old.admin),
    ];
    let differing = |fields: &[(&'static str, bool)]| {
        fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
    };
    Changes { hot: differing(&hot), needs_restart: differing(&needs_restart) }
}

#[cfg(test)]
pub(crate) mod tests;
