//! The content of the TLS files: parses certificates and keys, and names the file of each error.
//!
//! This module never reads a file and never decides who has access.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::transport::crl::CrlError;

/// The TLS file that an error is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `tls.cert`
    Certificate,
    /// `tls.key`
    Key,
    /// `tls.client_ca`
    ClientCa,
    /// `tls.crl`
    Crl,
}

/// Reasons why no [`State`](super::State) could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The server certificate's file holds no certificate.
    #[error("the server certificate's file holds no certificate (PEM, `BEGIN CERTIFICATE`)")]
    NoCertificate,
    /// The key's file holds no private key.
    #[error("the key's file holds no private key (PEM, `BEGIN PRIVATE KEY`)")]
    NoKey,
    /// The key is encrypted, so a service cannot use it unattended.
    #[error("the private key is encrypted: a service needs it without a passphrase")]
    EncryptedKey,
    /// The client CA's file holds no certificate.
    #[error("the client CA's file holds no certificate (PEM, `BEGIN CERTIFICATE`)")]
    NoClientCa,
    /// A file is damaged.
    #[error("the {file} is damaged: {why}")]
    Damaged {
        /// The name of the file.
        file: &'static str,
        /// The description of the damage.
        why: String,
    },
    /// The key and the certificate belong to different pairs.
    #[error(
        "the private key does not belong to the server certificate: the first certificate in the file must be the server's own"
    )]
    KeyMismatch,
    /// The key or the certificate cannot be used.
    #[error("the server certificate and key cannot be used")]
    Unusable(#[source] rustls::Error),
    /// A certificate among the client CAs may not sign others.
    #[error(
        "{0} in the client CA's file is no CA certificate (basicConstraints CA:TRUE): whoever has its key could pass for any host"
    )]
    NotACa(String),
    /// A server certificate that is not valid now would replace one that is.
    #[error(
        "the server certificate {0}, and the one in force is good: every engine would refuse it; if it is meant, `volhost reload --force`"
    )]
    NotNow(String),
    /// The revocation list is refused.
    #[error("the revocation list is not used")]
    Crl(#[from] CrlError),
    /// The verifier refuses the CAs or the lists.
    #[error("client certificates cannot be verified")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
}

impl TlsError {
    /// Returns the file that the error is in.
    #[must_use]
    pub fn source_file(&self) -> Source {
        match self {
            Self::NoCertificate | Self::NotNow(_) => Source::Certificate,
            Self::NoKey | Self::EncryptedKey | Self::KeyMismatch | Self::Unusable(_) => Source::Key,
            Self::NoClientCa | Self::NotACa(_) => Source::ClientCa,
            Self::Crl(_) | Self::Verifier(_) => Source::Crl,
            Self::Damaged { file, .. } => match *file {
                CERTIFICATE => Source::Certificate,
                KEY => Source::Key,
                _ => Source::ClientCa,
            },
        }
    }
}

pub(super) const CERTIFICATE: &str = "server certificate's file";
pub(super) const KEY: &str = "private key's file";
pub(super) const CLIENT_CA: &str = "client CA's file";

pub(super) fn certificates(pem: &[u8], file: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Damaged { file, why: error.to_string() })
}

pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
            if pem.windows(encrypted.len()).any(|window| window == encrypted) {
                TlsError::EncryptedKey
            } else {
                TlsError::NoKey
            }
        }
        error => TlsError::Damaged { file: KEY, why: error.to_string() },
    })
}

pub(super) fn parsed<'a>(
    der: &'a CertificateDer<'static>,
    file: &'static str,
) -> Result<X509Certificate<'a>, TlsError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(TlsError::Damaged { file, why: error.to_string() }),
    }
}

pub(super) fn warn_of_time(what: &str, certificate: &X509Certificate<'_>, warnings: &mut Vec<String>) {
    let (validity, now) = (certificate.validity(), x509_parser::time::ASN1Time::now());
    if validity.not_after < now {
        warnings.push(format!("{what} expired on {}: make a new one", validity.not_after));
    } else if validity.not_before > now {
        warnings.push(format!(
            "{what} is not valid before {}: is this machine's clock right?",
            validity.not_before
        ));
    }
}
