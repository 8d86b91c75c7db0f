//! The part of the configuration that a reload puts in force.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Advertise, HostPattern};
use crate::model::backend::BackendName;
use crate::model::backend_settings::BackendSettings;
use crate::model::limits::Limits;
use crate::model::right::Listed;

/// The part of the configuration that a reload puts in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// True if plain HTTP may be served to other machines.
    pub insecure: bool,
    /// The address that engines are told to call; `None` uses one of `listen`.
    pub advertise: Option<Advertise>,
    /// The TLS files that replace our own.
    pub tls: TlsFiles,
    /// The spec file to write; `None` writes none.
    pub spec: Option<SpecSettings>,
    /// The path of the backend map.
    pub map: PathBuf,
    /// The backend map.
    pub backends: BTreeMap<BackendName, MapEntry>,
    /// The hosts that may use volumes, and their rights. `None` lets every host in.
    pub hosts: Option<Listed>,
    /// The limits on connections and requests.
    pub limits: Limits,
}

impl Live {
    /// Returns the names of the fields that have another value in `new`.
    #[must_use]
    pub fn changed(&self, new: &Self) -> Vec<&'static str> {
        // Destructured without `..`, so that a new field cannot be forgotten here.
        let Self { insecure, advertise, tls, spec, map, backends, hosts, limits } = self;
        super::differing(&[
            ("insecure", *insecure != new.insecure),
            ("advertise", *advertise != new.advertise),
            ("tls", *tls != new.tls),
            ("spec", *spec != new.spec),
            ("backends", *map != new.map || *backends != new.backends),
            ("hosts", *hosts != new.hosts),
            ("limits", *limits != new.limits),
        ])
    }
}

/// The TLS files that the configuration names. Our own, in [`Boot::pki`](super::Boot::pki), are used for the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The server's certificate and key.
    pub server: Option<KeyPair>,
    /// The CAs whose clients are let in.
    pub client_ca: Option<PathBuf>,
    /// The revocation lists of those CAs.
    pub crl: Option<PathBuf>,
}

/// The paths of a certificate chain and its private key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// The certificate chain, in PEM.
    pub cert: PathBuf,
    /// The private key, in PEM.
    pub key: PathBuf,
}

/// The settings of the spec file by which engines of this machine find the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecSettings {
    /// The directory that the spec file is written to.
    pub dir: PathBuf,
    /// The format; `None` writes JSON for `https` and one line for other addresses.
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

/// One entry of the backend map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    /// The settings of the backend itself.
    pub settings: BackendSettings,
    /// The hosts that may use it. `None` means all of them, an empty list none.
    pub hosts: Option<Vec<HostPattern>>,
}
