//! Certificates: an authority, this machine's server and client certificates, those of other hosts, and bundles.
//!
//! Everything lies in one directory (`ca`, `server` and `client`, each a `.crt` and a `.key`). A key is made in
//! memory, written once, 0600, and never replaced or removed here; a certificate can be made again from its key, so a
//! renewal is the rename of one file and nobody ever reads a certificate beside another one's key. To change a key,
//! remove both files of its pair.
//!
//! The authority's key is needed only while something is signed and may be kept elsewhere at other times. Who may
//! have a certificate is decided by the caller; who is let in with one, by the transport.

pub mod authority;
pub mod bundle;
pub mod certificate;
mod error;
mod files;
mod request;

use std::fmt;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use self::authority::{Authority, Signed};
pub use self::certificate::{
    CertInfo, CertificateError, InvalidServerName, ServerName, describe, describe_der,
};
pub use self::error::PkiError;
use self::files::Lock;
pub use self::request::RequestError;
use crate::host::name::HostName;

/// A directory of keys and certificates, `/etc/volhost/pki` by default.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

/// A certificate that was issued to a host, for the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whom it names.
    pub host: HostName,
    /// Its serial number, in lower-case hexadecimal without leading zeros.
    pub serial: String,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

/// What [`Pki::ensure`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensured {
    /// Whether the authority was made now.
    pub ca_made: bool,
    /// Whether `server.crt` was written now, for the first time or anew.
    pub server_renewed: bool,
    /// Certificates issued to hosts now: this machine's own, or none.
    pub issued: Vec<Issued>,
    /// The certificate that is in `client.crt` now, whenever it was issued. A process that ended between issuing and
    /// recording left one the catalog does not know, and only a known certificate can be revoked by its host's name.
    pub client: Option<Issued>,
}

/// A certificate for another host, with what its engine needs beside it. Nothing of it is kept here.
#[derive(Clone)]
pub struct IssuedHost {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key; none when the host made its own and sent a request.
    pub key_pem: Option<String>,
    /// The authorities that the engine is to trust: all of `ca.crt`.
    pub ca_pem: String,
    /// What the catalog remembers.
    pub issued: Issued,
}

impl fmt::Debug for IssuedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not reach a log.
        f.debug_struct("IssuedHost").field("issued", &self.issued).finish_non_exhaustive()
    }
}

/// The two files of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, 0644.
    pub cert: PathBuf,
    /// The private key, 0600.
    pub key: PathBuf,
}

/// The authorities in `ca.crt`, and the one that can sign, if its key is here.
struct Trust {
    pem: String,
    certificates: Vec<CertificateDer<'static>>,
    authority: Option<Authority>,
    made: bool,
}

/// A pair that is complete and fits.
struct Leaf {
    key: KeyPair,
    info: CertInfo,
}

impl Pki {
    /// The directory need not exist.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority's files. The key may be missing.
    #[must_use]
    pub fn ca(&self) -> Pair {
        self.pair("ca")
    }

    /// The files that an `https` listener serves with.
    #[must_use]
    pub fn server(&self) -> Pair {
        self.pair("server")
    }

    /// The files by which this machine's own engine proves its name.
    #[must_use]
    pub fn client(&self) -> Pair {
        self.pair("client")
    }

    /// Makes what does not exist yet: the authority (20 years), the server's certificate (1 year, for the names given
    /// and `localhost`, `127.0.0.1` and `::1`) and this machine's client certificate (10 years, for `node`).
    ///
    /// The server's certificate is made anew, with the same key, when a third of its life is left or a name is
    /// missing; the names it had stay. The client's is made anew when a third is left or `node` has changed. Where the
    /// authority's key is kept elsewhere, that is an error only for a server's certificate that cannot serve as it
    /// is, and a warning in the log otherwise.
    ///
    /// Blocks: it waits for other processes that write here, and for the disk.
    pub fn ensure(&self, node: &HostName, server_names: &[ServerName]) -> Result<Ensured, PkiError> {
        self.ensure_at(node, server_names, OffsetDateTime::now_utc())
    }

    /// Issues a certificate (10 years) and its key to another host.
    pub fn issue_host(&self, host: &HostName) -> Result<IssuedHost, PkiError> {
        let trust = self.trust()?;
        let authority = self.authority(&trust, || format!("the certificate of {host}"))?;
        let key = authority::new_key().map_err(|source| PkiError::signing(host, source))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, Some(key.serialize_pem())))
    }

    /// Certifies (10 years) the key of a host that sent a certificate request in PEM.
    ///
    /// The request's signature must verify. Only its key is taken; a common name or DNS name in it that is not the
    /// host's is refused.
    pub fn sign_csr(&self, host: &HostName, csr_pem: &str) -> Result<IssuedHost, PkiError> {
        let key = request::verify(csr_pem, host)
            .map_err(|source| PkiError::Request { host: host.clone(), source })?;
        let trust = self.trust()?;
        let authority = self.authority(&trust, || format!("the certificate of {host}"))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, None))
    }

    /// Makes sure that the server's certificate holds a name, and says whether it was made anew for that.
    pub fn add_server_name(&self, name: &ServerName) -> Result<bool, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let pair = self.server();
        let Some(leaf) = leaf(&pair, &trust, &self.ca().cert)? else {
            return Err(PkiError::NoServer { path: pair.cert });
        };
        self.renew_server(&lock, &trust, &leaf, std::slice::from_ref(name), OffsetDateTime::now_utc())
    }

    /// Whether these authorities, in PEM, are nothing but authorities that volhost made and keeps here.
    ///
    /// An authority that an operator brought vouches for more than hosts, also when it lies in `ca.crt`, so it is
    /// not ours; neither is a text that cannot be read.
    #[must_use]
    pub fn is_ours(&self, client_ca_pem: &[u8]) -> bool {
        let (Ok(theirs), Ok(trust)) = (certificate::decode(client_ca_pem), self.trust()) else {
            return false;
        };
        theirs.iter().all(|one| {
            trust.certificates.contains(one)
                && describe_der(one).is_ok_and(|info| authority::is_made_here(&info))
        })
    }

    /// Whether it is time for another server's certificate. [`Pki::ensure`] makes it.
    pub fn renewal_due(&self) -> Result<bool, PkiError> {
        Ok(self.server_info()?.renewal_due(OffsetDateTime::now_utc()))
    }

    /// What the server's certificate says.
    pub fn server_info(&self) -> Result<CertInfo, PkiError> {
        let path = self.server().cert;
        let pem = read(&path)?.ok_or_else(|| PkiError::NoServer { path: path.clone() })?;
        describe(pem).map_err(|source| PkiError::Certificate { path, source })
    }

    /// All of `ca.crt`, in PEM.
    pub fn ca_pem(&self) -> Result<String, PkiError> {
        Ok(self.trust()?.pem)
    }

    fn ensure_at(
        &self,
        node: &HostName,
        server_names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Ensured, PkiError> {
        let lock = self.lock()?;
        let trust = self.make_trust(&lock, now)?;

        let mut names = server_names.to_vec();
        names.extend([
            ServerName::Dns("localhost".to_owned()),
            ServerName::Ip(std::net::Ipv4Addr::LOCALHOST.into()),
            ServerName::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
        ]);
        let pair = self.server();
        let server_renewed = match leaf(&pair, &trust, &self.ca().cert)? {
            Some(leaf) => self.renew_server(&lock, &trust, &leaf, &names, now)?,
            None => {
                let authority = self.authority(&trust, || "the server's certificate".to_owned())?;
                let key = key_for(&lock, &pair)?;
                sign_server(&lock, authority, &pair, &key, union(Vec::new(), &names), now)?;
                true
            }
        };

        let pair = self.client();
        let (earlier, issued) = match leaf(&pair, &trust, &self.ca().cert)? {
            Some(leaf) => {
                let issued = renew_client(&lock, &trust, &pair, &leaf, node, now)?;
                (present(&leaf.info), issued)
            }
            None => {
                let authority = self.authority(&trust, || format!("the certificate of {node}"))?;
                let key = key_for(&lock, &pair)?;
                (None, Some(sign_client(&lock, authority, &pair, &key, node, now)?))
            }
        };
        Ok(Ensured {
            ca_made: trust.made,
            server_renewed,
            client: issued.clone().or(earlier),
            issued: issued.into_iter().collect(),
        })
    }

    /// Makes the server's certificate anew if it lacks a name or nears its end.
    fn renew_server(
        &self,
        lock: &Lock,
        trust: &Trust,
        leaf: &Leaf,
        wanted: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<bool, PkiError> {
        let pair = self.server();
        let missing = wanted.iter().find(|name| !leaf.info.names.contains(name));
        if missing.is_some() || !leaf.info.is_valid_at(now) {
            let authority = self.authority(trust, || match missing {
                Some(name) => format!("a server's certificate that names {name}"),
                None => format!(
                    "a server's certificate in place of {}, which is not valid now",
                    pair.cert.display()
                ),
            })?;
            let names = union(leaf.info.names.clone(), wanted);
            sign_server(lock, authority, &pair, &leaf.key, names, now)?;
            return Ok(true);
        }
        if !renewable(trust, &pair, &leaf.info, now) {
            return Ok(false);
        }
        let authority = self.authority(trust, || "the server's certificate".to_owned())?;
        sign_server(lock, authority, &pair, &leaf.key, leaf.info.names.clone(), now)?;
        Ok(true)
    }

    fn pair(&self, name: &str) -> Pair {
        Pair { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    fn lock(&self) -> Result<Lock, PkiError> {
        Lock::acquire(&self.dir).map_err(|source| PkiError::Io {
            did: "lock",
            path: self.dir.clone(),
            source,
        })
    }

    /// The authority that signs, for what is needed.
    fn authority<'t>(
        &self,
        trust: &'t Trust,
        need: impl FnOnce() -> String,
    ) -> Result<&'t Authority, PkiError> {
        trust.authority.as_ref().ok_or_else(|| PkiError::CaKeyMissing { key: self.ca().key, need: need() })
    }

    /// The authorities, made where there are none. A key without a certificate is what a crash in here leaves.
    fn make_trust(&self, lock: &Lock, now: OffsetDateTime) -> Result<Trust, PkiError> {
        let ca = self.ca();
        if read(&ca.cert)?.is_some() {
            return self.trust();
        }
        for leaf in [self.server().cert, self.client().cert] {
            if read(&leaf)?.is_some() {
                return Err(PkiError::CaLost { ca: ca.cert, leaf });
            }
        }
        let key = key_for(lock, &ca)?;
        let signed = authority::self_sign(&key, now).map_err(|source| PkiError::signing("the CA", source))?;
        write_certificate(lock, &ca.cert, &signed.pem)?;
        Ok(Trust { made: true, ..self.trust()? })
    }

    fn trust(&self) -> Result<Trust, PkiError> {
        let ca = self.ca();
        let Some(pem) = read(&ca.cert)? else { return Err(PkiError::NoCa { path: ca.cert }) };
        let unusable = |source| PkiError::Certificate { path: ca.cert.clone(), source };
        let certificates = certificate::decode(&pem).map_err(unusable)?;
        for one in &certificates {
            if !describe_der(one).map_err(unusable)?.is_ca {
                return Err(PkiError::NotACa { path: ca.cert });
            }
        }
        let authority = match read_key(&ca.key)? {
            None => None,
            Some(key) => {
                // Several certificates lie here while one authority replaces another: the key says which one signs.
                let public = key.subject_public_key_info();
                let own = certificates
                    .iter()
                    .find(|one| certificate::public_key(one).is_ok_and(|key| key == public));
                let Some(own) = own else { return Err(PkiError::Mismatch { pair: ca }) };
                Some(Authority::new(own, key).map_err(|source| PkiError::signing("the CA", source))?)
            }
        };
        let pem = String::from_utf8_lossy(&pem).into_owned();
        Ok(Trust { pem, certificates, authority, made: false })
    }
}

/// A pair as it stands; none while its certificate is still to be made.
fn leaf(pair: &Pair, trust: &Trust, ca: &Path) -> Result<Option<Leaf>, PkiError> {
    let Some(pem) = read(&pair.cert)? else { return Ok(None) };
    let Some(key) = read_key(&pair.key)? else {
        return Err(PkiError::CertificateWithoutKey { pair: pair.clone() });
    };
    let unusable = |source| PkiError::Certificate { path: pair.cert.clone(), source };
    let all = certificate::decode(&pem).map_err(unusable)?;
    let first = all.first().ok_or_else(|| unusable(CertificateError::None))?;
    if certificate::public_key(first).map_err(unusable)? != key.subject_public_key_info() {
        return Err(PkiError::Mismatch { pair: pair.clone() });
    }
    if !trust.certificates.iter().any(|authority| certificate::is_signed_by(first, authority)) {
        return Err(PkiError::Stranger { path: pair.cert.clone(), ca: ca.to_owned() });
    }
    let info = describe_der(first).map_err(unusable)?;
    Ok(Some(Leaf { key, info }))
}

/// Makes this machine's client certificate anew if its name has changed or it nears its end. What cannot be signed
/// is left as it is: the server serves other hosts all the same.
fn renew_client(
    lock: &Lock,
    trust: &Trust,
    pair: &Pair,
    leaf: &Leaf,
    node: &HostName,
    now: OffsetDateTime,
) -> Result<Option<Issued>, PkiError> {
    let renamed = host_of(&leaf.info).as_ref() != Some(node);
    if !renamed && !renewable(trust, pair, &leaf.info, now) {
        return Ok(None);
    }
    let Some(authority) = &trust.authority else {
        log::warn!(
            "{} does not name this machine, {node}, and there is no CA key to make another one with",
            pair.cert.display()
        );
        return Ok(None);
    };
    log::info!(
        "{} is made anew for {node}; a running engine reads it when it is restarted",
        pair.cert.display()
    );
    sign_client(lock, authority, pair, &leaf.key, node, now).map(Some)
}

/// Whether a certificate nears its end and a later one can be made.
fn renewable(trust: &Trust, pair: &Pair, info: &CertInfo, now: OffsetDateTime) -> bool {
    if !info.renewal_due(now) {
        return false;
    }
    let path = pair.cert.display();
    match &trust.authority {
        None => {
            log::warn!(
                "{path} expires on {}, and there is no CA key to make another one with",
                info.not_after
            );
            false
        }
        Some(authority) if authority.not_after() <= info.not_after => {
            log::warn!("{path} expires on {} together with its CA: it is time for a new CA", info.not_after);
            false
        }
        Some(_) => true,
    }
}

fn sign_server(
    lock: &Lock,
    authority: &Authority,
    pair: &Pair,
    key: &KeyPair,
    names: Vec<ServerName>,
    now: OffsetDateTime,
) -> Result<(), PkiError> {
    let signed =
        authority.sign_server(key, &names, now).map_err(|source| PkiError::signing("the server", source))?;
    write_certificate(lock, &pair.cert, &signed.pem)
}

fn sign_client(
    lock: &Lock,
    authority: &Authority,
    pair: &Pair,
    key: &KeyPair,
    node: &HostName,
    now: OffsetDateTime,
) -> Result<Issued, PkiError> {
    let signed = sign_host(authority, key, node, now)?;
    write_certificate(lock, &pair.cert, &signed.pem)?;
    Ok(issued(node, &signed))
}

fn sign_host(
    authority: &Authority,
    key: &impl rcgen::PublicKeyData,
    host: &HostName,
    now: OffsetDateTime,
) -> Result<Signed, PkiError> {
    if host.is_anonymous() {
        return Err(PkiError::Anonymous);
    }
    authority.sign_host(key, host, now).map_err(|source| PkiError::signing(host, source))
}

fn issued_host(trust: &Trust, host: &HostName, signed: Signed, key_pem: Option<String>) -> IssuedHost {
    let issued = issued(host, &signed);
    IssuedHost { cert_pem: signed.pem, key_pem, ca_pem: trust.pem.clone(), issued }
}

fn issued(host: &HostName, signed: &Signed) -> Issued {
    let Signed { pem: _, serial, issued_at, not_after } = signed;
    Issued { host: host.clone(), serial: serial.clone(), issued_at: *issued_at, not_after: *not_after }
}

/// A host's certificate that was issued earlier.
fn present(info: &CertInfo) -> Option<Issued> {
    Some(Issued {
        host: host_of(info)?,
        serial: info.serial.clone(),
        issued_at: info.not_before + authority::BACKDATED,
        not_after: info.not_after,
    })
}

fn host_of(info: &CertInfo) -> Option<HostName> {
    HostName::parse(info.dns_names.first()?).ok()
}

fn union(mut names: Vec<ServerName>, more: &[ServerName]) -> Vec<ServerName> {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The key of a pair whose certificate is to be made: the one that a crash left, or a new one.
fn key_for(lock: &Lock, pair: &Pair) -> Result<KeyPair, PkiError> {
    if let Some(key) = read_key(&pair.key)? {
        return Ok(key);
    }
    let key = authority::new_key().map_err(|source| PkiError::signing("a new key", source))?;
    files::write_key(lock, &pair.key, key.serialize_pem().as_bytes()).map_err(|source| PkiError::Io {
        did: "write",
        path: pair.key.clone(),
        source,
    })?;
    Ok(key)
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(pem) = read(path)? else { return Ok(None) };
    if files::is_exposed(path) {
        log::warn!("{} can be read by others than its owner: `chmod 600` it", path.display());
    }
    authority::parse_key(&pem).map(Some).map_err(|source| PkiError::Key { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    files::read(path).map_err(|source| PkiError::Io { did: "read", path: path.to_owned(), source })
}

fn write_certificate(lock: &Lock, path: &Path, pem: &str) -> Result<(), PkiError> {
    files::write_certificate(lock, path, pem.as_bytes()).map_err(|source| PkiError::Io {
        did: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
