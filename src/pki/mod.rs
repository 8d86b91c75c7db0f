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
mod pair;
mod renewal;
mod request;

use std::fmt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use self::authority::{Authority, Signed};
pub use self::certificate::{
    CertInfo, CertificateError, InvalidServerName, ServerName, describe, describe_der,
};
pub use self::error::PkiError;
use self::files::Lock;
pub use self::pair::Pair;
use self::pair::{Trust, authorities, leaf, read};
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
        let authority = trust.authority(|| format!("the certificate of {host}"))?;
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
        let authority = trust.authority(|| format!("the certificate of {host}"))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, None))
    }

    /// Makes sure that the server's certificate holds a name, and says whether it was made anew for that.
    pub fn add_server_name(&self, name: &ServerName) -> Result<bool, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let pair = self.server();
        let Some(leaf) = leaf(&pair, &trust)? else {
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
        // The key is not looked at: also a user who may not read it can check a configuration.
        let (Ok(theirs), Ok((_, ours))) = (certificate::decode(client_ca_pem), authorities(&self.ca().cert))
        else {
            return false;
        };
        theirs.iter().all(|one| {
            ours.contains(one) && describe_der(one).is_ok_and(|info| authority::is_made_here(&info))
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
        authorities(&self.ca().cert).map(|(pem, _)| pem)
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

    fn trust(&self) -> Result<Trust, PkiError> {
        Trust::read(self.ca())
    }
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
