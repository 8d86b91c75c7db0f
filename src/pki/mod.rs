//! Certificates: the authority (CA), this machine's server and client certificates, certificates of other
//! hosts, and bundles.
//!
//! All files are in one directory: `ca`, `server` and `client`, each a `.crt` and a `.key`. This module makes
//! a key in memory, writes it once with mode 0600, and never replaces or removes it. A certificate can be
//! made again from its key, so a renewal renames one file, and nobody ever reads a certificate beside another
//! one's key. To change a key, remove both files of its pair, then restart or run `volhost reload --force`. A
//! rollover changes the key of the authority; while it lasts, the pair `ca-next` is in the directory too.
//!
//! The authority's key is needed only for signing and may be kept elsewhere at other times: requests go there
//! and certificates come back. This module does not decide who may have a certificate (the caller does) or
//! who may connect with one (the transport does).

pub(crate) mod authority;
pub mod bundle;
pub(crate) mod certificate;
mod ensure;
mod error;
mod external_ca;
mod host_certificate;
mod pair;
mod request;
mod rollover;

use std::path::{Path, PathBuf};

pub use self::certificate::{
    CertInfo, CertificateError, InvalidServerName, ServerName, describe, describe_der,
};
pub use self::ensure::{Ensured, MadeCa, MissingFiles};
pub use self::error::PkiError;
pub use self::external_ca::{Installed, OwnCertificate, SignedServerCertificate};
pub use self::host_certificate::{Issued, IssuedHost};
pub use self::pair::Pair;
use self::pair::{Trust, authorities, read};
pub use self::request::RequestError;
pub use self::rollover::{Finished, Rollover, STEPS, Started};
use crate::files::{self, Lock};

/// A directory of keys and certificates, `/etc/volhost/pki` by default.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

impl Pki {
    /// Returns the certificates of a directory. The directory need not exist.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Returns the directory that holds all files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the paths of the authority's files. The key may be missing.
    #[must_use]
    pub fn ca(&self) -> Pair {
        self.pair("ca")
    }

    /// Returns the paths of the new authority's files, which exist while a rollover is under way.
    #[must_use]
    pub fn next(&self) -> Pair {
        self.pair("ca-next")
    }

    /// Returns the paths of the files that an `https` listener serves with.
    #[must_use]
    pub fn server(&self) -> Pair {
        self.pair("server")
    }

    /// Returns the paths of the files with which this machine's own engine proves its name.
    #[must_use]
    pub fn client(&self) -> Pair {
        self.pair("client")
    }

    /// Returns true if volhost made all these authorities (PEM) and they are all in `ca.crt`.
    ///
    /// Returns false for an authority that an operator brought, even if it is in `ca.crt`, because it vouches
    /// for more than hosts; also for text that cannot be read.
    #[must_use]
    pub fn is_ours(&self, client_ca_pem: &[u8]) -> bool {
        // Does not read the key, so that a user who may not read it can check a configuration.
        let (Ok(theirs), Ok((_, ours))) = (certificate::decode(client_ca_pem), authorities(&self.ca().cert))
        else {
            return false;
        };
        theirs.iter().all(|one| {
            ours.contains(one) && describe_der(one).is_ok_and(|info| authority::is_made_here(&info))
        })
    }

    /// Describes the server's certificate, which must exist.
    pub fn server_info(&self) -> Result<CertInfo, PkiError> {
        let path = self.server().cert;
        let pem = read(&path)?.ok_or_else(|| PkiError::NoServer { path: path.clone() })?;
        describe(pem).map_err(|source| PkiError::Certificate { path, source })
    }

    /// Returns all of `ca.crt`, in PEM.
    pub fn ca_pem(&self) -> Result<String, PkiError> {
        authorities(&self.ca().cert).map(|(pem, _)| pem)
    }

    fn pair(&self, name: &str) -> Pair {
        Pair { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    fn lock(&self) -> Result<Lock, PkiError> {
        let failed = |did| move |source| PkiError::Io { did, path: self.dir.clone(), source };
        // The parent directory holds the configuration, which others may read; the keys they may not.
        let above = self.dir.parent().map_or(Ok(()), |above| files::make_dir(above, 0o755));
        above.and_then(|()| files::make_dir(&self.dir, 0o700)).map_err(failed("make"))?;
        let lock = Lock::acquire(&self.dir.join(".lock")).map_err(failed("lock"))?;
        // A process that was killed during a write may have left temporary files, and it may be years until
        // the next write of the same file.
        for Pair { cert, key } in [self.ca(), self.next(), self.server(), self.client()] {
            files::sweep(&cert);
            files::sweep(&key);
        }
        Ok(lock)
    }

    fn trust(&self) -> Result<Trust, PkiError> {
        Trust::read(self.ca(), self.next())
    }
}

#[cfg(test)]
mod tests;
