//! What TLS is served with: our own certificates, or the administrator's, and revocation lists.
//!
//! Two units are reloaded on their own, the certificates and the list: the last good one of each stays in force, so
//! that a broken list does not keep out a new certificate, nor the reverse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::ServeError;
use super::spec::server_names;
use crate::catalog::Location;
use crate::config::watch::Seen;
use crate::config::{Config, Fault, KeyPair, Listen, Loaded, TlsFiles};
use crate::error::chain;
use crate::pki::{self, Issued, Lacking, Pki, PkiError};
use crate::transport::tls::{Source, State};

/// The certificates in force, and where they come from.
pub(super) struct Tls {
    pki: Pki,
    files: Option<Files>,
    /// What the four files held when they were last good together.
    good: Contents,
    /// The files that were last asked for, good or not, as they were before they were read.
    asked: Asked,
    state: Option<Arc<ArcSwap<State>>>,
    client: Option<Issued>,
    /// Whether our authority signs both the server's certificate and those of the hosts.
    ours: bool,
}

/// The files that are read, resolved: the administrator's or ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    crl: Option<PathBuf>,
}

#[derive(Debug, Clone, Default)]
struct Asked {
    files: Option<Files>,
    certificates: Vec<Seen>,
    list: Vec<Seen>,
}

#[derive(Debug, Clone, Default)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
    crl: Option<Vec<u8>>,
}

impl Tls {
    /// Makes our own certificates where they are needed and missing, and reads what is to be served with. Blocks.
    pub(super) fn prepare(config: &Config) -> Result<Self, ServeError> {
        let pki = Pki::new(&config.pki);
        if !config.listen.iter().any(|listen| matches!(listen, Listen::Https(_))) {
            let (good, asked) = Default::default();
            return Ok(Self { pki, files: None, good, asked, state: None, client: None, ours: false });
        }
        let client = ensure(&pki, config)?;
        let files = Files::of(config, &pki);
        let asked = Asked::now(&files);
        let good = files.read()?;
        check_authority(config, &pki, &files, &good)?;
        let state = files.state(&good)?;
        let ours = is_ours(config, &pki, &good);
        let state = Some(Arc::new(ArcSwap::from_pointee(state)));
        Ok(Self { pki, files: Some(files), good, asked, state, client, ours })
    }

    /// What a server is to serve with; nothing, where no address is `https`.
    pub(super) fn state(&self) -> Option<Arc<ArcSwap<State>>> {
        self.state.clone()
    }

    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// This machine's own certificate, where our authority issued one.
    pub(super) fn client(&self) -> Option<&Issued> {
        self.client.as_ref()
    }

    pub(super) fn is_ours(&self) -> bool {
        self.ours
    }

    /// When the server's certificate expires.
    pub(super) fn expires(&self) -> Option<OffsetDateTime> {
        self.files.as_ref().and_then(|_| pki::describe(&self.good.cert).ok()).map(|info| info.not_after)
    }

    /// Whether nobody is let in but clients of our own authority.
    pub(super) fn trusts_ours_only(&self) -> bool {
        self.state.is_none() || self.pki.is_ours(&self.good.client_ca)
    }

    /// The files that make up the certificates and the list, as they were when they were last read: what is to be
    /// followed. Those that were no good are among them, for they will be mended.
    pub(super) fn followed(&self) -> (Vec<Seen>, Vec<Seen>) {
        (self.asked.certificates.clone(), self.asked.list.clone())
    }

    /// Reads certificates, keys and the client CA again, and puts them in force if they are good. Ours are made anew
    /// first where it is time. Blocks.
    pub(super) fn reload(&mut self, config: &Config) -> Result<(), ServeError> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        let files = Files::of(config, &self.pki);
        self.asked = Asked::now(&files);
        let client = ensure(&self.pki, config)?;
        self.asked = Asked::now(&files);
        let same_list = self.files.as_ref().is_some_and(|before| before.crl == files.crl);
        let mut new = files.read_certificates()?;
        check_authority(config, &self.pki, &files, &new)?;
        new.crl = if same_list { self.good.crl.clone() } else { files.read_list()? };
        let loaded = match files.state(&new) {
            // The list in force belongs to the authorities before; the one in the file may belong to the new ones.
            Err(ServeError::Tls { source, .. }) if source.source_file() == Source::Crl => {
                new.crl = files.read_list()?;
                files.state(&new)?
            }
            loaded => loaded?,
        };
        self.ours = is_ours(config, &self.pki, &new);
        self.client = client;
        self.good = new;
        self.files = Some(files);
        state.store(Arc::new(loaded));
        Ok(())
    }

    /// Reads the revocation list again, and puts it in force if it is good. Blocks.
    pub(super) fn reload_list(&mut self, config: &Config) -> Result<(), ServeError> {
        if self.asked.files != self.files {
            // The list is one of several files that came with the configuration and are not in force yet.
            return self.reload(config);
        }
        let (Some(state), Some(files)) = (&self.state, &self.files) else { return Ok(()) };
        self.asked.list = Asked::now(files).list;
        let new = Contents { crl: files.read_list()?, ..self.good.clone() };
        state.store(Arc::new(files.state(&new)?));
        self.good = new;
        Ok(())
    }
}

impl Asked {
    /// To be called before the files are read, so that no change is missed.
    fn now(files: &Files) -> Self {
        let Files { cert, key, client_ca, crl } = files;
        Self {
            files: Some(files.clone()),
            certificates: [cert, key, client_ca].map(|path| Seen::now(path)).into(),
            list: crl.iter().map(|path| Seen::now(path)).collect(),
        }
    }
}

impl Files {
    fn of(config: &Config, pki: &Pki) -> Self {
        let TlsFiles { server, client_ca, crl } = &config.tls;
        let own = pki.server();
        let (cert, key) = match server {
            Some(KeyPair { cert, key }) => (cert.clone(), key.clone()),
            None => (own.cert, own.key),
        };
        let client_ca = client_ca.clone().unwrap_or_else(|| pki.ca().cert);
        Self { cert, key, client_ca, crl: crl.clone() }
    }

    fn read(&self) -> Result<Contents, ServeError> {
        Ok(Contents { crl: self.read_list()?, ..self.read_certificates()? })
    }

    fn read_certificates(&self) -> Result<Contents, ServeError> {
        Ok(Contents {
            cert: read(&self.cert)?,
            key: read(&self.key)?,
            client_ca: read(&self.client_ca)?,
            crl: None,
        })
    }

    fn read_list(&self) -> Result<Option<Vec<u8>>, ServeError> {
        self.crl.as_deref().map(read).transpose()
    }

    fn state(&self, contents: &Contents) -> Result<State, ServeError> {
        let Contents { cert, key, client_ca, crl } = contents;
        let state = State::load(cert, key, client_ca, crl.as_deref()).map_err(|source| {
            let path = match source.source_file() {
                Source::Certificate => &self.cert,
                Source::Key => &self.key,
                Source::ClientCa => &self.client_ca,
                Source::Crl => self.crl.as_ref().unwrap_or(&self.client_ca),
            };
            ServeError::Tls { path: path.clone(), source }
        })?;
        for warning in state.warnings() {
            log::warn!("{warning}");
        }
        Ok(state)
    }
}

/// Makes our own certificates where they are missing or old, unless the administrator's take the place of all. No
/// authority, where the catalog is shared.
fn ensure(pki: &Pki, config: &Config) -> Result<Option<Issued>, PkiError> {
    if !needs_own(config) {
        return Ok(None);
    }
    let names = server_names(config);
    let ensured = match &config.catalog {
        Location::Sqlite(_) => pki.ensure(&config.node, &names)?,
        // The hosts that one instance lets join are let in by all of them.
        Location::Etcd(_) => pki.ensure_of_given_ca(&config.node, &names)?,
    };
    if ensured.ca_made {
        log::info!("made an authority and certificates in {}", pki.dir().display());
    } else if ensured.server_renewed {
        log::info!("made the server's certificate in {} anew", pki.dir().display());
    }
    Ok(ensured.client)
}

/// Whether something is served with certificates of our own making.
fn needs_own(config: &Config) -> bool {
    let TlsFiles { server, client_ca, crl: _ } = &config.tls;
    let served = config.listen.iter().any(|listen| matches!(listen, Listen::Https(_)));
    served && (server.is_none() || client_ca.is_none())
}

fn is_ours(config: &Config, pki: &Pki, contents: &Contents) -> bool {
    config.tls.server.is_none() && pki.is_ours(&contents.client_ca)
}

/// Whoever lets in the clients of somebody else's authority must say which: that authority signs for others, too.
fn check_authority(config: &Config, pki: &Pki, files: &Files, contents: &Contents) -> Result<(), ServeError> {
    if config.hosts.is_some() || pki.is_ours(&contents.client_ca) {
        return Ok(());
    }
    Err(ServeError::Authority { path: files.client_ca.clone() })
}

/// The fault of a configuration that lets in the clients of somebody else's authority and does not say which.
pub(super) fn fault_of_client_ca(loaded: &Loaded) -> Option<Fault> {
    let config = &loaded.config;
    let pki = Pki::new(&config.pki);
    let is_ours = |path: &Path| std::fs::read(path).is_ok_and(|pem| pki.is_ours(&pem));
    if config.tls.client_ca.is_some() {
        return loaded.check_client_ca(is_ours);
    }
    // An authority that somebody put in the place of ours is not ours either.
    let own = pki.ca().cert;
    let served = config.listen.iter().any(|listen| matches!(listen, Listen::Https(_)));
    if config.hosts.is_some() || !served || !own.exists() || is_ours(&own) {
        return None;
    }
    Some(fault_of(loaded, "hosts", &ServeError::Authority { path: own }))
}

/// The fault of a configuration whose catalog is shared, while what all instances must have in common is not here.
pub(super) fn fault_of_shared_ca(loaded: &Loaded) -> Option<Fault> {
    let config = &loaded.config;
    if matches!(config.catalog, Location::Sqlite(_)) || !needs_own(config) {
        return None;
    }
    let error = match Pki::new(&config.pki).lacking()? {
        Lacking::Ca => PkiError::NoCaGiven { pki: config.pki.clone() },
        Lacking::Signed(missing) => {
            PkiError::NotSigned { pki: config.pki.clone(), node: config.node.clone(), missing }
        }
    };
    Some(fault_of(loaded, "tls", &error))
}

/// A fault that no place in the file has.
fn fault_of(loaded: &Loaded, field: &str, error: &dyn std::error::Error) -> Fault {
    let file = loaded.files.first().map(|seen| seen.path().to_owned()).unwrap_or_default();
    Fault { file, line: 0, column: 0, field: field.into(), what: error.to_string(), hint: None }
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>, ServeError> {
    let path = path.as_ref();
    std::fs::read(path).map_err(|source| ServeError::Read { path: path.into(), source })
}

/// An error in one line for the board.
pub(super) fn worded(error: &ServeError) -> String {
    chain(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Paths;

    #[test]
    fn of_a_shared_catalog_neither_a_start_nor_a_reload_makes_a_ca() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(root.path()), true, |_| None).unwrap();
        let mut config = crate::config::load(&paths, None).unwrap().config;
        config.catalog = Location::parse("etcd://127.0.0.1:1/volhost").unwrap();
        let pki = Pki::new(&config.pki);
        let refused = Tls::prepare(&config).err().unwrap();
        assert!(refused.is_configuration(), "{refused}");
        assert!(matches!(refused, ServeError::Pki(PkiError::NoCaGiven { .. })), "{refused}");
        assert!(!pki.ca().cert.exists() && !pki.ca().key.exists());

        pki.init().unwrap();
        let mut tls = Tls::prepare(&config).unwrap();
        assert!(tls.is_ours() && tls.trusts_ours_only());
        tls.reload(&config).unwrap();
        for file in std::fs::read_dir(pki.dir()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        let refused = tls.reload(&config).unwrap_err();
        assert!(matches!(refused, ServeError::Pki(PkiError::NoCaGiven { .. })), "{refused}");
        assert!(!pki.ca().cert.exists());
        // A catalog of its own is another matter.
        config.catalog = Location::Sqlite(paths.catalog());
        Tls::prepare(&config).unwrap();
        assert!(pki.ca().cert.exists());
    }
}
