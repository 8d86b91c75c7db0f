//! What can go wrong with the directory of certificates, and what to do then.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::authority::{KeyError, SigningError};
use super::certificate::CertificateError;
use super::request::RequestError;
use super::{Pair, Request};
use crate::model::host::HostName;

/// Why a certificate was not made or not read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The file system refused.
    #[error("could not {did} {}", path.display())]
    Io {
        /// What was tried.
        did: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// A file that should hold a certificate.
    #[error("{} is no usable certificate", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CertificateError,
    },
    /// A file that should hold a private key.
    #[error("{} is no usable private key", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: KeyError,
    },
    /// Half a pair, and not the half that a crash leaves.
    #[error(
        "{cert} stands there without {key}: put the key back, or remove the certificate so that both are made anew",
        cert = pair.cert.display(), key = pair.key.display()
    )]
    CertificateWithoutKey {
        /// The pair.
        pair: Pair,
    },
    /// A pair of two that do not belong together.
    #[error(
        "{key} is not the key of {cert}: put the right one back, or move both away so that they are made anew",
        cert = pair.cert.display(), key = pair.key.display()
    )]
    Mismatch {
        /// The pair.
        pair: Pair,
    },
    /// An authority that may not sign.
    #[error("{} holds a certificate that is none of a CA: remove it from there", path.display())]
    NotACa {
        /// The file.
        path: PathBuf,
    },
    /// More than one authority that takes over.
    #[error("{} holds several certificates, but only one CA can take over: leave that one in it", path.display())]
    NotOne {
        /// The file.
        path: PathBuf,
    },
    /// Nothing to finish and nothing to abort.
    #[error("no rollover of the CA is under way: `volhost pki rollover start` begins one")]
    NoRollover,
    /// A certificate that was signed elsewhere and cannot be used.
    #[error("the certificate is not taken: {0}")]
    Unfit(String),
    /// What came from elsewhere is no certificate.
    #[error("the certificate is not taken")]
    Unreadable(#[source] CertificateError),
    /// A request for a server's certificate that is not signed.
    #[error("the certificate request is refused")]
    ServerRequest(#[source] RequestError),
    /// Certificates are there, but not what signed them.
    #[error(
        "{ca} is missing, but {leaf} was signed by it: put it back (every host's bundle holds a copy, as /etc/docker/volhost/ca.crt), or move the certificates away to begin with a new CA",
        ca = ca.display(), leaf = leaf.display()
    )]
    CaLost {
        /// The authority's certificate.
        ca: PathBuf,
        /// A certificate of it.
        leaf: PathBuf,
    },
    /// An authority is there already.
    #[error("{} is there already: `volhost pki rollover start` begins to replace it", path.display())]
    CaExists {
        /// Its certificate.
        path: PathBuf,
    },
    /// There is no authority, and none may be made unasked.
    #[error(
        "there is no CA in {pki}, and for a catalog that is shared none is made unasked, because its instances must all have the same one: on the first instance `volhost pki init` makes it; on every other one, put the first one's ca.crt there, with its ca.key (mode 0600) where this instance shall sign, too; or name certificates of your own in `tls`: \"cert\", \"key\" and \"client_ca\"",
        pki = pki.display()
    )]
    NoCaGiven {
        /// The directory.
        pki: PathBuf,
    },
    /// The authority's certificate is there, but neither its key nor all that it is to sign.
    #[error("{}", needed(missing, node, pki))]
    NotSigned {
        /// The directory.
        pki: PathBuf,
        /// This machine's name.
        node: HostName,
        /// The certificates that are missing.
        missing: Vec<Request>,
    },
    /// No authority was made yet.
    #[error("there is no CA in {}: `volhost serve` makes one when it is first started", path.display())]
    NoCa {
        /// Where its certificate would be.
        path: PathBuf,
    },
    /// No server's certificate was made yet.
    #[error("{} does not exist: `volhost serve` makes it when it is first started", path.display())]
    NoServer {
        /// Where it would be.
        path: PathBuf,
    },
    /// Something must be signed, and the key for it is kept elsewhere.
    #[error("{need} is needed, but {} to sign it with is missing: put it there and try again, or have a request signed where it is (`volhost pki csr`, `volhost pki sign`)", key.display())]
    CaKeyMissing {
        /// Where the authority's key would be.
        key: PathBuf,
        /// What is to be signed.
        need: String,
    },
    /// A certificate that our authority did not sign.
    #[error(
        "{path} was not signed by {ca}: to serve with a certificate of another CA, name it as `tls.cert` and `tls.key`; else move it and its key away so that both are made anew",
        path = path.display(), ca = ca.display()
    )]
    Stranger {
        /// The certificate.
        path: PathBuf,
        /// The authority's.
        ca: PathBuf,
    },
    /// The reserved name is nobody's.
    #[error("no certificate is issued to `anonymous`: the name is kept for callers without one")]
    Anonymous,
    /// A certificate request that is not signed.
    #[error("the certificate request for {host} is refused")]
    Request {
        /// For whom.
        host: HostName,
        /// Why.
        #[source]
        source: RequestError,
    },
    /// Signing failed.
    #[error("no certificate was made for {subject}")]
    Signing {
        /// For whom.
        subject: String,
        /// Why.
        #[source]
        source: SigningError,
    },
}

/// What to do where certificates and the key to sign them with are missing.
fn needed(missing: &[Request], node: &HostName, pki: &Path) -> String {
    let words: Vec<_> = missing
        .iter()
        .map(|which| match which {
            Request::Server => ("server", String::new()),
            Request::Client => ("client", format!(" --host {node}")),
        })
        .collect();
    let each =
        |line: &dyn Fn(&(&str, String)) -> String| words.iter().map(line).collect::<Vec<_>>().join(" and ");
    format!(
        "{pki} has no {crt}, and no ca.key to sign with: put ca.key there (mode 0600); or run {csr} here, {sign} on an \
         instance that has ca.key, and {install} here",
        pki = pki.display(),
        crt = each(&|(name, _)| format!("{name}.crt")).replace(" and ", " and no "),
        csr = each(&|(name, _)| format!("`volhost pki csr {name} -o {name}.csr`")),
        sign = each(&|(name, host)| format!("`volhost pki sign {name}.csr{host} -o {name}.crt`")),
        install = each(&|(name, _)| format!("`volhost pki install {name}.crt`")),
    )
}

impl PkiError {
    pub(super) fn signing(subject: &(impl fmt::Display + ?Sized), source: SigningError) -> Self {
        Self::Signing { subject: subject.to_string(), source }
    }
}
