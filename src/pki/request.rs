//! Certificate requests (PKCS #10) of hosts that keep their key to themselves.
//!
//! Only the key is taken from a request: what it asks for beside that is granted to nobody.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::{authority, certificate};
use crate::host::name::HostName;

/// The shortest RSA key that is certified, in bits.
const RSA_BITS: usize = 2048;

/// Why a certificate request is not signed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Not PEM, or of something else.
    #[error("it holds no readable `-----BEGIN CERTIFICATE REQUEST-----`")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// PEM of a request whose inside is broken.
    #[error("it cannot be decoded: make it with `openssl req -new`")]
    Decode,
    /// It does not prove that its sender has the key.
    #[error("its signature does not fit its key: it was altered, or made with another key")]
    Signature,
    /// A kind of key or signature that we or the engines do not know.
    #[error(
        "its key or its signature is of a kind that is not taken: use ECDSA on P-256 or P-384, Ed25519, or RSA of at least 2048 bits, with SHA-256 or SHA-384"
    )]
    Unsupported,
    /// An RSA key that is too short.
    #[error("its RSA key has {0} bits: use at least 2048, or ECDSA on P-256")]
    Weak(usize),
    /// It was made for another host.
    #[error(
        "it names {found:?}, but the certificate is to be for {host}: make the request for that name, or without any (`-subj /`)"
    )]
    OtherName {
        /// The name in the request.
        found: String,
        /// The name that was to be certified.
        host: HostName,
    },
}

/// The key of a request that may be certified for a host.
///
/// A common name or DNS name in it that is not the host's is refused, as a sign of a mix-up; everything else it asks
/// for is passed over.
pub fn verify(pem: &str, host: &HostName) -> Result<SubjectPublicKeyInfo, RequestError> {
    // The label of older tools.
    let pem = pem.replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST");
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(RequestError::Pem)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Decode)?;
    let info = &request.certification_request_info;

    // Before the signature, because an RSA key that is too short has no signature that could be verified.
    if let Ok(PublicKey::RSA(key)) = info.subject_pki.parsed()
        && key.key_size() < RSA_BITS
    {
        return Err(RequestError::Weak(key.key_size()));
    }
    request.verify_signature().map_err(|error| match error {
        X509Error::SignatureUnsupportedAlgorithm => RequestError::Unsupported,
        _ => RequestError::Signature,
    })?;

    let mut names: Vec<String> = certificate::common_name(&info.subject).into_iter().collect();
    for extension in request.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(alternative) = extension {
            names.extend(alternative.general_names.iter().filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                _ => None,
            }));
        }
    }
    if let Some(found) = names.into_iter().find(|name| !name.eq_ignore_ascii_case(host.as_str())) {
        return Err(RequestError::OtherName { found, host: host.clone() });
    }

    let key = authority::public_key(info.subject_pki.raw).map_err(|_| RequestError::Unsupported)?;
    let known = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    if known.into_iter().any(|known| known == algorithm) { Ok(key) } else { Err(RequestError::Unsupported) }
}
