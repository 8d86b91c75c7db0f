//! The certificates and revocation lists for TLS: our own, or the administrator's.
//!
//! Certificates and the list are reloaded as two units: the last good version of each stays in force, so that a broken
//! list does not keep out a new certificate, nor the reverse.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use time::OffsetDateTime;

use super::ServeError;
use super::spec::server_names;
use crate::admin;
use crate::catalog::{Catalog, CatalogError, Change, Location};
use crate::config::snapshot::FileSnapshot;
use crate::config::{Boot, Config, Fault, KeyPair, Listen, Loaded, TlsFiles};
use crate::error::chain;
use crate::files;
use crate::pki::{self, Issued, MissingFiles, Pki, PkiError};
use crate::transport::TlsError;
use crate::transport::tls::{Source, State};

/// The most bytes of a file with revocation lists: some hundred thousand certificates.
const CRL_BYTES: usize = 32 << 20;

/// The certificates and the revocation list in force, and where they come from.
pub(super) struct Tls {
    pki: Pki,
    /// `None` if no address is served over TLS.
    state: Option<Arc<ArcSwap<State>>>,
    /// The files in force.
    files: Option<Files>,
    /// The content in force.
    material: Material,
    attempted: Attempted,
}

/// The paths of the files to serve with: the administrator's or ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    crl: Option<PathBuf>,
}

/// The files of the last attempt to read them, good or not, in their state at that time.
#[derive(Debug, Clone, Default)]
struct Attempted {
    files: Option<Files>,
    certificates: Vec<FileSnapshot>,
    list: Vec<FileSnapshot>,
}

/// The bytes of the four files.
#[derive(Debug, Clone, Default)]
struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Vec<u8>,
    crl: Option<Vec<u8>>,
}

/// A reader of the certificates, for a thread that may hang.
pub(super) struct CertificateReader {
    pki: Pki,
    config: Config,
    /// The files in force, if there are any.
    before: Option<Files>,
    /// True if certificates of our own making are in force.
    own: bool,
    /// True to make files again that were in force and are missing.
    forced: bool,
    /// True to read the revocation list as well.
    with_list: bool,
}

/// The result of reading the certificates.
pub(super) struct CertificatesRead {
    files: Files,
    certificates: Vec<FileSnapshot>,
    material: Result<Material, ServeError>,
    /// The revocation list, if it was asked for.
    list: Option<CrlRead>,
}

/// The result of reading the revocation list.
pub(super) struct CrlRead {
    snapshots: Vec<FileSnapshot>,
    content: Result<Option<Vec<u8>>, ServeError>,
}

/// The certificates in force, and who issued them.
struct Material {
    contents: Contents,
    /// This machine's own certificate, if our authority issued one.
    client: Option<Issued>,
    /// True if our authority signs both the server's certificate and those of the hosts.
    ours: bool,
    /// True if only clients of our own authority are let in.
    ours_only: bool,
    /// True if certificates of our own making are served with.
    own: bool,
}

impl Material {
    /// Returns the material of a service that has no address with TLS.
    fn none() -> Self {
        Self { contents: Contents::default(), client: None, ours: false, ours_only: true, own: false }
    }
}

/// The outcome of putting certificates in force.
pub(super) enum Outcome {
    /// They are in force.
    Good,
    /// The previous ones stay in force.
    Bad(ServeError),
    /// They need another list than the one in force: both must be read together.
    WithList,
}

impl Tls {
    /// Makes our own certificates if they are needed and missing, and reads the files to serve with. Blocks.
    pub(super) fn prepare(config: &Config) -> Result<Self, ServeError> {
        let pki = Pki::new(&config.boot.pki);
        if !is_served(config) {
            let (material, attempted) = (Material::none(), Attempted::default());
            return Ok(Self { pki, state: None, files: None, material, attempted });
        }
        let reader = CertificateReader {
            pki: pki.clone(),
            config: config.clone(),
            before: None,
            own: false,
            forced: false,
            with_list: true,
        };
        let CertificatesRead { files, certificates, material, list } = files::within(move || reader.read())?;
        let mut material = material?;
        let mut snapshots = Vec::new();
        if let Some(list) = list {
            snapshots = list.snapshots;
            material.contents.crl = list.content?;
        }
        check_authority(config, material.ours_only, &files)?;
        let state = Some(Arc::new(ArcSwap::from_pointee(files.state(&material.contents)?)));
        let attempted = Attempted { files: Some(files.clone()), certificates, list: snapshots };
        Ok(Self { pki, state, files: Some(files), material, attempted })
    }

    /// Returns the TLS state to serve with; `None` if no address is `https`.
    pub(super) fn state(&self) -> Option<Arc<ArcSwap<State>>> {
        self.state.clone()
    }

    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Returns this machine's own certificate, if our authority issued one.
    pub(super) fn client(&self) -> Option<&Issued> {
        self.material.client.as_ref()
    }

    pub(super) fn is_ours(&self) -> bool {
        self.material.ours
    }

    /// Returns when the server's certificate expires.
    pub(super) fn expires(&self) -> Option<OffsetDateTime> {
        self.files
            .as_ref()
            .and_then(|_| pki::describe(&self.material.contents.cert).ok())
            .map(|info| info.not_after)
    }

    /// Returns when the first CA in the file expires whose clients are accepted.
    pub(super) fn client_ca_expires(&self) -> Option<OffsetDateTime> {
        self.files
            .as_ref()
            .and_then(|_| pki::describe(&self.material.contents.client_ca).ok())
            .map(|info| info.not_after)
    }

    /// Returns true if only clients of our own authority are let in.
    pub(super) fn trusts_ours_only(&self) -> bool {
        self.material.ours_only
    }

    /// Returns the files to follow for the certificates and for the list, in the state in which they were last read.
    /// Bad files are included, because they will be repaired.
    pub(super) fn followed(&self) -> (Vec<FileSnapshot>, Vec<FileSnapshot>) {
        (self.attempted.certificates.clone(), self.attempted.list.clone())
    }

    /// Returns a reader of these certificates; `None` if none are served with. `forced` makes files again that were in
    /// force and are missing.
    pub(super) fn reader(&self, config: &Config, forced: bool, with_list: bool) -> Option<CertificateReader> {
        self.state.as_ref()?;
        let (pki, config, before) = (self.pki.clone(), config.clone(), self.files.clone());
        Some(CertificateReader { pki, config, before, own: self.material.own, forced, with_list })
    }

    /// Puts certificates, keys and the client CA in force if they are good; with `forced` even if those that they
    /// replace are better.
    pub(super) fn put_in_force(&mut self, read: CertificatesRead, config: &Config, forced: bool) -> Outcome {
        let Some(state) = self.state.clone() else { return Outcome::Good };
        let CertificatesRead { files, certificates, material, list } = read;
        self.attempted.files = Some(files.clone());
        self.attempted.certificates = certificates;
        if let Some(list) = &list {
            self.attempted.list.clone_from(&list.snapshots);
        }
        let read_list = list.is_some();
        let loaded = (|| {
            let mut material = material?;
            check_authority(config, material.ours_only, &files)?;
            material.contents.crl = match list {
                Some(list) => list.content?,
                None => self.material.contents.crl.clone(),
            };
            let loaded = files.state(&material.contents)?;
            if !forced {
                files.named(loaded.check_may_replace(&state.load()))?;
            }
            Ok((material, loaded))
        })();
        match loaded {
            Ok((material, loaded)) => {
                self.material = material;
                self.files = Some(files);
                state.store(Arc::new(loaded));
                Outcome::Good
            }
            // The list in force belongs to the previous authorities; the one in the file may belong to the new ones.
            Err(ServeError::Tls { source, .. }) if source.source_file() == Source::Crl && !read_list => {
                Outcome::WithList
            }
            Err(error) => Outcome::Bad(error),
        }
    }

    /// Returns the file of the list to read, if there is one. The outer `None` says that all files must be read: the
    /// list is one of several that came with the configuration and are not in force yet.
    pub(super) fn list_to_read(&self) -> Option<Option<PathBuf>> {
        if self.attempted.files != self.files {
            return None;
        }
        Some(self.files.as_ref().and_then(|files| files.crl.clone()))
    }

    /// Puts a revocation list in force if it is good; with `forced` even if it is older than the one in force.
    pub(super) fn put_list_in_force(&mut self, read: CrlRead, forced: bool) -> Result<(), ServeError> {
        let (Some(state), Some(files)) = (&self.state, &self.files) else { return Ok(()) };
        self.attempted.list = read.snapshots;
        let new = Contents { crl: read.content?, ..self.material.contents.clone() };
        let loaded = files.state(&new)?;
        if !forced {
            files.named(loaded.check_may_replace(&state.load()))?;
        }
        state.store(Arc::new(loaded));
        self.material.contents = new;
        Ok(())
    }
}

impl CertificateReader {
    /// Returns the same reader for another configuration.
    pub(super) fn with(self, config: &Config) -> Self {
        Self { config: config.clone(), ..self }
    }

    /// Renews our own certificates if they are due, and reads all files. Blocks.
    pub(super) fn read(self) -> CertificatesRead {
        let Self { pki, config, before, own, forced, with_list } = self;
        let files = Files::of(&config, &pki);
        let mut must_exist = Vec::new();
        if let Some(before) = before.as_ref().filter(|_| !forced) {
            let now = [&files.cert, &files.key, &files.client_ca].map(PathBuf::clone);
            let names = [&before.cert, &before.key, &before.client_ca];
            must_exist
                .extend(now.into_iter().zip(names).filter(|(now, name)| now == *name).map(|(now, _)| now));
            must_exist.extend(own.then(|| pki.ca().cert));
        }
        let gone = must_exist.into_iter().find(|path| {
            let found = std::fs::metadata(path);
            matches!(found, Err(error) if error.kind() == std::io::ErrorKind::NotFound)
        });
        let make_ca = forced || !own;
        // A list whose path is new is read with the rest.
        let with_list = with_list || before.is_none_or(|before| before.crl != files.crl);
        let ensured = match gone {
            Some(path) => Err(ServeError::Gone { path }),
            None => ensure(&pki, &config, make_ca).map_err(ServeError::Pki),
        };
        let mut certificates = Vec::new();
        let mut read = |path: &Path| {
            let (bytes, snapshot) = FileSnapshot::read(path, files::SMALL);
            certificates.push(snapshot);
            bytes.map_err(|source| ServeError::Read { path: path.into(), source })
        };
        // Each is examined, whatever is wrong with another: all of them are followed.
        let all = (read(&files.cert), read(&files.key), read(&files.client_ca));
        let material = (|| {
            let client = ensured?;
            let contents = Contents { cert: all.0?, key: all.1?, client_ca: all.2?, crl: None };
            let ours_only = pki.is_ours(&contents.client_ca);
            let ours = config.live.tls.server.is_none() && ours_only;
            Ok(Material { contents, client, ours, ours_only, own: needs_own(&config) })
        })();
        let list = with_list.then(|| CrlRead::read(files.crl.as_deref()));
        CertificatesRead { files, certificates, material, list }
    }
}

impl CrlRead {
    /// Reads the list in a file, if there is one. Blocks.
    pub(super) fn read(path: Option<&Path>) -> Self {
        let Some(path) = path else { return Self { snapshots: Vec::new(), content: Ok(None) } };
        let (bytes, snapshot) = FileSnapshot::read(path, CRL_BYTES);
        let content = bytes.map(Some).map_err(|source| ServeError::Read { path: path.into(), source });
        Self { snapshots: vec![snapshot], content }
    }
}

impl Files {
    fn of(config: &Config, pki: &Pki) -> Self {
        let TlsFiles { server, client_ca, crl } = &config.live.tls;
        let own = pki.server();
        let (cert, key) = match server {
            Some(KeyPair { cert, key }) => (cert.clone(), key.clone()),
            None => (own.cert, own.key),
        };
        let client_ca = client_ca.clone().unwrap_or_else(|| pki.ca().cert);
        Self { cert, key, client_ca, crl: crl.clone() }
    }

    fn state(&self, contents: &Contents) -> Result<State, ServeError> {
        let Contents { cert, key, client_ca, crl } = contents;
        let state = self.named(State::load(cert, key, client_ca, crl.as_deref()))?;
        for warning in state.warnings() {
            log::warn!("{warning}");
        }
        Ok(state)
    }

    /// Adds to an error the file that it is in.
    fn named<T>(&self, result: Result<T, TlsError>) -> Result<T, ServeError> {
        result.map_err(|source| {
            let path = match source.source_file() {
                Source::Certificate => &self.cert,
                Source::Key => &self.key,
                Source::ClientCa => &self.client_ca,
                Source::Crl => self.crl.as_ref().unwrap_or(&self.client_ca),
            };
            ServeError::Tls { path: path.clone(), source }
        })
    }
}

/// Makes our own certificates if they are missing or old, unless the administrator's replace all of them. Makes an
/// authority only if `make_ca` allows it and the catalog is not shared.
fn ensure(pki: &Pki, config: &Config, make_ca: bool) -> Result<Option<Issued>, PkiError> {
    if !needs_own(config) {
        return Ok(None);
    }
    let names = server_names(config);
    let ensured = match &config.boot.catalog {
        Location::Sqlite(_) if make_ca => pki.ensure(&config.boot.node, &names)?,
        // Every instance lets in the hosts that one of them enrolled.
        Location::Sqlite(_) | Location::Etcd(_) => pki.ensure_of_given_ca(&config.boot.node, &names)?,
    };
    if ensured.ca_made {
        log::info!("made an authority and certificates in {}", pki.dir().display());
    } else if ensured.server_renewed {
        log::info!("made the server's certificate in {} anew", pki.dir().display());
    }
    Ok(ensured.client)
}

/// Returns true if certificates of our own making are served with.
fn needs_own(config: &Config) -> bool {
    let TlsFiles { server, client_ca, crl: _ } = &config.live.tls;
    is_served(config) && (server.is_none() || client_ca.is_none())
}

fn is_served(config: &Config) -> bool {
    let Boot { listen, metrics, .. } = &config.boot;
    listen.iter().chain(metrics).any(|listen| matches!(listen, Listen::Https(_)))
}

/// Refuses to let in the clients of a foreign authority unless `hosts` lists them, because it signs for others as well.
fn check_authority(config: &Config, ours_only: bool, files: &Files) -> Result<(), ServeError> {
    if config.live.hosts.is_some() || ours_only {
        return Ok(());
    }
    Err(ServeError::Authority { path: files.client_ca.clone() })
}

/// Returns the fault of a configuration that lets in the clients of a foreign authority and does not list hosts.
pub(super) fn fault_of_client_ca(loaded: &Loaded) -> Option<Fault> {
    let config = &loaded.config;
    let pki = Pki::new(&config.boot.pki);
    let read = |path: &Path| files::read_at_most(path, files::SMALL);
    if config.live.tls.client_ca.is_some() {
        return loaded.check_client_ca(|path| read(path).is_ok_and(|pem| pki.is_ours(&pem)));
    }
    // An authority that somebody put in the place of ours is foreign as well.
    let own = pki.ca().cert;
    if config.live.hosts.is_some() || !is_served(config) {
        return None;
    }
    match read(&own) {
        Ok(pem) if pki.is_ours(&pem) => None,
        Ok(_) => Some(fault_of(loaded, "hosts", &ServeError::Authority { path: own })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(source) => Some(fault_of(loaded, "tls", &ServeError::Read { path: own, source })),
    }
}

/// Returns the fault of a configuration with a shared catalog if the authority that all instances share is missing
/// here.
pub(super) fn fault_of_shared_ca(loaded: &Loaded) -> Option<Fault> {
    let config = &loaded.config;
    if matches!(config.boot.catalog, Location::Sqlite(_)) || !needs_own(config) {
        return None;
    }
    let error = match Pki::new(&config.boot.pki).missing_files()? {
        MissingFiles::Ca => PkiError::NoCaGiven { pki: config.boot.pki.clone() },
        MissingFiles::Signed(missing) => {
            PkiError::NotSigned { pki: config.boot.pki.clone(), node: config.boot.node.clone(), missing }
        }
    };
    Some(fault_of(loaded, "tls", &error))
}

/// Returns a fault without a position in the file.
fn fault_of(loaded: &Loaded, field: &str, error: &(dyn std::error::Error + 'static)) -> Fault {
    let file = loaded.files.first().map(|seen| seen.path().to_owned()).unwrap_or_default();
    Fault { file, line: 0, column: 0, field: field.into(), what: chain(error), hint: None }
}

/// Records the certificate that our authority issued to this machine, like every other host's.
pub(super) async fn record(client: &Issued, catalog: &dyn Catalog) -> Result<(), CatalogError> {
    let known =
        catalog.view().hosts.get(&client.host).is_some_and(|host| {
            host.certificates.iter().any(|certificate| certificate.serial == client.serial)
        });
    if !known {
        let certificate = admin::certificate(client);
        catalog.submit(Change::Issue(client.host.clone(), certificate)).await?;
    }
    Ok(())
}

/// Returns an error in one line, for the status.
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
        config.boot.catalog = Location::parse("etcd://127.0.0.1:1/volhost").unwrap();
        let pki = Pki::new(&config.boot.pki);
        let refused = Tls::prepare(&config).err().unwrap();
        assert!(refused.is_configuration(), "{refused}");
        assert!(matches!(refused, ServeError::Pki(PkiError::NoCaGiven { .. })), "{refused}");
        assert!(!pki.ca().cert.exists() && !pki.ca().key.exists());

        pki.init().unwrap();
        let mut tls = Tls::prepare(&config).unwrap();
        assert!(tls.is_ours() && tls.trusts_ours_only());
        let reload = |tls: &mut Tls, config: &Config, forced| {
            let read = tls.reader(config, forced, false).unwrap().read();
            match tls.put_in_force(read, config, forced) {
                Outcome::Good => Ok(()),
                Outcome::Bad(error) => Err(error),
                Outcome::WithList => panic!("there is no list"),
            }
        };
        reload(&mut tls, &config, false).unwrap();
        for file in std::fs::read_dir(pki.dir()).unwrap() {
            std::fs::remove_file(file.unwrap().path()).unwrap();
        }
        let refused = reload(&mut tls, &config, false).unwrap_err();
        assert!(matches!(&refused, ServeError::Gone { path } if path.starts_with(pki.dir())), "{refused}");
        let refused = reload(&mut tls, &config, true).unwrap_err();
        assert!(matches!(refused, ServeError::Pki(PkiError::NoCaGiven { .. })), "{refused}");
        assert!(!pki.ca().cert.exists());
        // With a catalog that is not shared, volhost makes the authority itself.
        config.boot.catalog = Location::Sqlite(paths.catalog());
        Tls::prepare(&config).unwrap();
        assert!(pki.ca().cert.exists());
    }
}
