//! Certificate requests (PKCS #10) from machines whose private keys stay with them.
//!
//! Only the key of a host's request is used: everything else that it asks for is ignored. The names of a
//! server's request are used too; whoever signs it sees them.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

use super::certificate::ServerName;
use super::{authority, certificate};
use crate::model::host::HostName;

/// The minimum length of an RSA key that is certified, in bits.
const MIN_RSA_BITS: usize = 2048;

/// Reasons why a certificate request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The text is not PEM, or PEM of something else.
    #[error("it holds no readable `-----BEGIN CERTIFICATE REQUEST-----`")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The PEM block is a request that cannot be decoded.
    #[error("it cannot be decoded: make it with `openssl req -new`")]
    Decode,
    /// The signature does not prove that the sender has the key.
    #[error("its signature does not fit its key: it was altered, or made with another key")]
    Signature,
    /// volhost or the engines do not support this kind of key or signature.
    #[error(
        "its key or its signature is of a kind that is not taken: use ECDSA on P-256 or P-384, Ed25519, or RSA of at least 2048 bits, with SHA-256 or SHA-384"
    )]
    Unsupported,
    /// The RSA key is too short.
    #[error("its RSA key has {0} bits: use at least 2048, or ECDSA on P-256")]
    Weak(usize),
    /// The request names another host.
    #[error(
        "it names {found:?}, but the certificate is to be for {host}: make the request for that name, or without any (`-subj /`)"
    )]
    OtherName {
        /// The name in the request.
        found: String,
        /// The host that the certificate was to be for.
        host: HostName,
    },
    /// A server's request has no name.
    #[error(
        "it holds no name that engines could call the server by (subjectAltName): make it with `volhost pki csr server`; for a host's, say --host NAME"
    )]
    Nameless,
    /// A server's request has a name that no server can have.
    #[error("{0} is no name that engines can call a server by")]
    ServerName(String),
}

/// Returns the key of a host's request.
///
/// Refuses a common name or DNS name that is not the host's, because it is a sign of a mix-up. Ignores
/// everything else that the request asks for.
pub(super) fn verify(pem: &str, host: &HostName) -> Result<SubjectPublicKeyInfo, RequestError> {
    verified(pem, |request| {
        let common_name = certificate::common_name(&request.certification_request_info.subject);
        let dns_names = alternative_names(request).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        match common_name.into_iter().chain(dns_names).find(|name| !name.eq_ignore_ascii_case(host.as_str()))
        {
            Some(found) => Err(RequestError::OtherName { found, host: host.clone() }),
            None => Ok(()),
        }
    })
    .map(|(key, ())| key)
}

/// Returns the key of a server's request, and all names of its subject alternative name. Whoever signs must
/// be shown them.
pub(super) fn verify_server(pem: &str) -> Result<(SubjectPublicKeyInfo, Vec<ServerName>), RequestError> {
    verified(pem, |request| {
        let names = alternative_names(request)
            .map(|name| match name {
                GeneralName::DNSName(name) => {
                    ServerName::parse(name).map_err(|_| RequestError::ServerName((*name).to_owned()))
                }
                GeneralName::IPAddress(octets) => certificate::address(octets)
                    .and_then(ServerName::of_address)
                    .ok_or_else(|| RequestError::ServerName(format!("{octets:?}"))),
                other => Err(RequestError::ServerName(other.to_string())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() { Err(RequestError::Nameless) } else { Ok(names) }
    })
}

/// Verifies a request's signature, and returns its key and the result of `check`.
fn verified<T>(
    pem: &str,
    check: impl FnOnce(&X509CertificationRequest<'_>) -> Result<T, RequestError>,
) -> Result<(SubjectPublicKeyInfo, T), RequestError> {
    // Older tools write this label.
    let pem = pem.replace("NEW CERTIFICATE REQUEST", "CERTIFICATE REQUEST");
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(RequestError::Pem)?;
    let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Decode)?;
    let info = &request.certification_request_info;

    // Checked before the signature, because the signature of an RSA key that is too short cannot be verified.
    if let Ok(PublicKey::RSA(key)) = info.subject_pki.parsed()
        && key.key_size() < MIN_RSA_BITS
    {
        return Err(RequestError::Weak(key.key_size()));
    }
    request.verify_signature().map_err(|error| match error {
        X509Error::SignatureUnsupportedAlgorithm => RequestError::Unsupported,
        _ => RequestError::Signature,
    })?;
    let checked = check(&request)?;

    let key = authority::public_key(info.subject_pki.raw).map_err(|_| RequestError::Unsupported)?;
    let known = [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ];
    let algorithm = rcgen::PublicKeyData::algorithm(&key);
    if known.into_iter().any(|known| known == algorithm) {
        Ok((key, checked))
    } else {
        Err(RequestError::Unsupported)
    }
}

fn alternative_names<'a>(
    request: &'a X509CertificationRequest<'_>,
) -> impl Iterator<Item = &'a GeneralName<'a>> {
    request.requested_extensions().into_iter().flatten().flat_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(alternative) => alternative.general_names.as_slice(),
        _ => &[],
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};

    use super::*;

    /// Made by openssl with an RSA key of 1024 bits, which was thrown away.
    const SHORT_RSA: &str = "-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBTjCBuAIBADAPMQ0wCwYDVQQDDAR3ZWIxMIGfMA0GCSqGSIb3DQEBAQUAA4GN\n\
ADCBiQKBgQDHvGlufilUyzLZ/tPrtsXGFdiU5vJvoYJD3xIwSEU+UEcYy6EQ5XG0\n\
gB5rc20XWqtfzxLaBNUsyb0eYr4KoeN3Von9oUQGUItuyv7Vd9tQq6yC6AZ25AaD\n\
labnctBb888FRJrr4mTpqBx8ndh2NlKbOCYKpeDMamIcTSoyVJFhywIDAQABoAAw\n\
DQYJKoZIhvcNAQELBQADgYEAQmCjgWlM/W8GD4c1WmsRVWkibqgUQ2QptZyQbBar\n\
FlxJQ3mK941R6QARzwLdxZuqYcPXoTVufec8tm/8ZaGRfMyWjq3KabPrwqJQ0Y+Z\n\
DEUMcBIsW6AWKbG/yPvL87CGyhTPXdWqpHgRuskCew6orBZgs+bvd8tVuwePlqpi\n\
Rt8=\n\
-----END CERTIFICATE REQUEST-----\n";

    fn request(key: &KeyPair, common_name: Option<&str>, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    fn web1() -> HostName {
        HostName::parse("web1").unwrap()
    }

    #[test]
    fn keys_that_engines_and_we_know_are_taken() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let taken = verify(&request(&key, Some("Web1"), &["web1"]), &web1()).unwrap();
            assert_eq!(taken.subject_public_key_info(), key.subject_public_key_info());
        }
    }

    #[test]
    fn requests_without_a_name_and_of_older_tools_are_taken() {
        let key = KeyPair::generate().unwrap();
        let nameless = request(&key, None, &[]);
        verify(&nameless, &web1()).unwrap();
        verify(&nameless.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"), &web1()).unwrap();
        // Addresses are not granted, but they are no sign of a mix-up.
        verify(&request(&key, None, &["10.0.0.1"]), &web1()).unwrap();
    }

    #[test]
    fn keys_that_are_weak_or_unknown_are_refused() {
        assert!(matches!(verify(SHORT_RSA, &web1()), Err(RequestError::Weak(1024))));
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(matches!(verify(&request(&key, None, &[]), &web1()), Err(RequestError::Unsupported)));
    }

    #[test]
    fn other_names_are_refused() {
        let key = KeyPair::generate().unwrap();
        for (common_name, names) in
            [(Some("web2"), &[][..]), (Some("web1"), &["web1", "web2"]), (None, &["*.example.org"])]
        {
            let error = verify(&request(&key, common_name, names), &web1());
            assert!(matches!(error, Err(RequestError::OtherName { .. })), "{common_name:?} {names:?}");
        }
    }

    #[test]
    fn an_altered_request_is_refused() {
        let key = KeyPair::generate().unwrap();
        let pem = request(&key, Some("web1"), &[]);
        let mut der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec();
        let place = der.windows(4).position(|window| window == b"web1").unwrap();
        der[place + 3] = b'2';
        let request = X509CertificationRequest::from_der(&der).unwrap().1;
        assert_eq!(certificate::common_name(&request.certification_request_info.subject).unwrap(), "web2");
        let pem = format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            base64(&der)
        );
        let web2 = HostName::parse("web2").unwrap();
        assert!(matches!(verify(&pem, &web2), Err(RequestError::Signature)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let key = KeyPair::generate().unwrap().serialize_pem();
        for text in ["", "junk", key.as_str()] {
            assert!(matches!(verify(text, &web1()), Err(RequestError::Pem(_))), "{text:?}");
        }
        let broken = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
        assert!(matches!(verify(broken, &web1()), Err(RequestError::Decode)));
    }

    fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for chunk in bytes.chunks(3) {
            let bits = chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte))
                << (8 * (3 - chunk.len()));
            for digit in 0..4 {
                let one = DIGITS[bits >> (18 - 6 * digit) & 63];
                text.push(if digit <= chunk.len() { char::from(one) } else { '=' });
            }
        }
        text
    }
}
