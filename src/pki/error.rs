//! Errors of the directory of certificates, each with its remedy.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::authority::{KeyError, SigningError};
use super::certificate::CertificateError;
use super::request::RequestError;
use super::{OwnCertificate, Pair};
use crate::model::host::HostName;

/// An error while a certificate was made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// The file system reported an error.
    #[error("could not {did} {}", path.display())]
    Io {
        /// The verb of the failed operation.
        did: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file that should hold a certificate does not.
    #[error("{} is no usable certificate", path.display())]
    Certificate {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CertificateError,
    },
    /// A file that should hold a private key does not.
    #[error("{} is no usable private key", path.display())]
    Key {
        /// The path of the file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: KeyError,
    },
    /// The certificate is there and the key is not. A crash never leaves that half of a pair.
    #[error(
        "{cert} stands there without {key}: put the key back, or remove the certificate so that both are made anew",
        cert = pair.cert.display(), key = pair.key.display()
    )]
    CertificateWithoutKey {
        /// The pair.
        pair: Pair,
    },
    /// The certificate and the key of a pair do not match.
    #[error(
        "{key} is not the key of {cert}: put the right one back, or move both away so that they are made anew",
        cert = pair.cert.display(), key = pair.key.display()
    )]
    Mismatch {
        /// The pair.
        pair: Pair,
    },
    /// `ca.crt` holds a certificate that may not sign.
    #[error("{} holds a certificate that is none of a CA: remove it from there", path.display())]
    NotACa {
        /// The path of the file.
        path: PathBuf,
    },
    /// `ca-next.crt` holds more than one authority.
    #[error("{} holds several certificates, but only one CA can take over: leave that one in it", path.display())]
    NotOne {
        /// The path of the file.
        path: PathBuf,
    },
    /// There is no rollover to finish or abort.
    #[error("no rollover of the CA is under way: `volhost pki rollover start` begins one")]
    NoRollover,
    /// A certificate that was signed elsewhere cannot be used.
    #[error("the certificate is not taken: {0}")]
    Unacceptable(String),
    /// A text that should be a certificate signed elsewhere is not one.
    #[error("the certificate is not taken")]
    Unreadable(#[source] CertificateError),
    /// A request for a server's certificate is refused.
    #[error("the certificate request is refused")]
    ServerRequest(#[source] RequestError),
    /// The authority's certificate is missing, but certificates that it signed are there.
    #[error(
        "{ca} is missing, but {leaf} was signed by it: put it back (every host's bundle holds a copy, as /etc/docker/volhost/ca.crt), or move the certificates away to begin with a new CA",
        ca = ca.display(), leaf = leaf.display()
    )]
    CaLost {
        /// The authority's certificate.
        ca: PathBuf,
        /// A certificate that the missing authority signed.
        leaf: PathBuf,
    },
    /// The directory has an authority already.
    #[error("{} is there already: `volhost pki rollover start` begins to replace it", path.display())]
    CaExists {
        /// The authority's certificate.
        path: PathBuf,
    },
    /// There is no authority, and a shared catalog forbids making one unasked.
    #[error(
        "there is no CA in {pki}, and for a catalog that is shared none is made unasked, because its instances must all have the same one: on the first instance `volhost pki init` makes it; on every other one, put the first one's ca.crt there, with its ca.key (mode 0600) where this instance shall sign, too; or name certificates of your own in `tls`: \"cert\", \"key\" and \"client_ca\"",
        pki = pki.display()
    )]
    NoCaGiven {
        /// The directory of certificates.
        pki: PathBuf,
    },
    /// The authority's certificate is there, but its key and some certificates that it should sign are
    /// missing.
    #[error("{}", needed(missing, node, pki))]
    NotSigned {
        /// The directory of certificates.
        pki: PathBuf,
        /// This machine's name.
        node: HostName,
        /// The certificates that are missing.
        missing: Vec<OwnCertificate>,
    },
    /// No authority has been made yet.
    #[error("there is no CA in {}: `volhost serve` makes one when it is first started", path.display())]
    NoCa {
        /// The path where its certificate would be.
        path: PathBuf,
    },
    /// No server certificate has been made yet.
    #[error("{} does not exist: `volhost serve` makes it when it is first started", path.display())]
    NoServer {
        /// The path where it would be.
        path: PathBuf,
    },
    /// Something must be signed, and the authority's key is kept elsewhere.
    #[error("{need} is needed, but {} to sign it with is missing: put it there and try again, or have a request signed where it is (`volhost pki csr`, `volhost pki sign`)", key.display())]
    CaKeyMissing {
        /// The path where the authority's key would be.
        key: PathBuf,
        /// The name of what is to be signed.
        need: String,
    },
    /// Our authority did not sign the certificate.
    #[error(
        "{path} was not signed by {ca}: to serve with a certificate of another CA, name it as `tls.cert` and `tls.key`; else move it and its key away so that both are made anew",
        path = path.display(), ca = ca.display()
    )]
    ForeignIssuer {
        /// The path of the file.
        path: PathBuf,
        /// The authority's certificate.
        ca: PathBuf,
    },
    /// The name `anonymous` is reserved, so it gets no certificate.
    #[error("no certificate is issued to `anonymous`: the name is kept for callers without one")]
    Anonymous,
    /// A host's certificate request is refused.
    #[error("the certificate request for {host} is refused")]
    Request {
        /// The host of the certificate.
        host: HostName,
        /// The cause.
        #[source]
        source: RequestError,
    },
    /// The signing failed.
    #[error("no certificate was made for {subject}")]
    Signing {
        /// The host or server that the certificate was for.
        subject: String,
        /// The cause.
        #[source]
        source: SigningError,
    },
}

/// Words the remedy if certificates are missing and the authority's key is missing too.
fn needed(missing: &[OwnCertificate], node: &HostName, pki: &Path) -> String {
    let words: Vec<_> = missing
        .iter()
        .map(|which| match which {
            OwnCertificate::Server => ("server", String::new()),
            OwnCertificate::Client => ("client", format!(" --host {node}")),
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
