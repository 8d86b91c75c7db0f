//! The part of the configuration that only a restart puts in force.

use std::path::PathBuf;

use super::Listen;
use crate::model::host::HostName;
use crate::model::location::{Credentials, Location};

/// The part of the configuration that only a restart puts in force.
///
/// Sockets, catalog and PKI are opened once. Engines read the name, the node and the scope once, or records depend on
/// them: if a plugin's name changed under a running service, the volumes that engines bound to it would be orphaned.
#[derive(Debug, Clone, PartialEq)]
pub struct Boot {
    /// The plugin's name, to which engines bind their volumes.
    pub name: String,
    /// The name of this machine as a host, which it has for calls over a Unix socket.
    pub node: HostName,
    /// False if `node` is the hostname, which a recorded name in the catalog overrides.
    pub node_configured: bool,
    /// The scope of volume names, as engines are told.
    pub scope: Scope,
    /// The addresses that engines are served at; never empty.
    pub listen: Vec<Listen>,
    /// The directory of our own CA, certificates and keys. No field of the file sets it.
    pub pki: PathBuf,
    /// The catalog's location.
    pub catalog: Location,
    /// The credentials for the etcd cluster of `catalog`.
    pub etcd: Credentials,
    /// The directory for the outbox of a shared catalog. No field of the file sets it.
    pub spool: PathBuf,
    /// The path of the admin socket.
    pub admin: PathBuf,
    /// The address for monitoring, never a Unix socket; `None` if there is none.
    pub metrics: Option<Listen>,
    /// The clients that an `https` address for monitoring serves.
    pub metrics_clients: MetricsClients,
}

impl Boot {
    /// Returns the names of the fields that have another value in `new`.
    #[must_use]
    pub fn changed(&self, new: &Self) -> Vec<&'static str> {
        // Destructured without `..`, so that a new field cannot be forgotten here.
        let Self {
            name,
            node,
            node_configured: _, // A change matters only if it changes `node`.
            scope,
            listen,
            pki,
            catalog,
            etcd,
            spool: _, // Only `--root` changes it.
            admin,
            metrics,
            metrics_clients,
        } = self;
        super::differing(&[
            ("name", *name != new.name),
            ("node", *node != new.node),
            ("scope", *scope != new.scope),
            ("listen", *listen != new.listen),
            ("pki", *pki != new.pki),
            ("catalog", *catalog != new.catalog),
            ("etcd", *etcd != new.etcd),
            ("admin", *admin != new.admin),
            ("metrics", *metrics != new.metrics),
            ("metrics_clients", *metrics_clients != new.metrics_clients),
        ])
    }
}

/// The clients that an `https` address for monitoring serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetricsClients {
    /// Only those with a certificate of a client CA.
    #[default]
    Verified,
    /// Those without a certificate, too. They see no names of volumes and hosts on the page.
    Anyone,
}

impl MetricsClients {
    /// Every value with its word in the file.
    pub const WORDS: [(&str, Self); 2] = [("verified", Self::Verified), ("anyone", Self::Anyone)];
}

/// The scope of volume names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Each engine has its own volumes.
    Local,
    /// The same name is the same volume on every host.
    Global,
}

impl Scope {
    /// Returns the word in the file, which is also the answer to Capabilities.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Global => "global",
        }
    }
}
