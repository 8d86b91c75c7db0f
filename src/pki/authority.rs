//! The certificate authority: makes one, and signs with it.
//!
//! This module never writes a file and never decides who gets a certificate: its callers do both.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use super::certificate::{self, CertInfo, CertificateError, ServerName};
use crate::model::host::HostName;

/// The lifetime of an authority's certificate.
pub(crate) const CA_LIFE: Duration = Duration::days(20 * 365 + 5);
/// The lifetime of a host's certificate. It is long because an engine reads its certificate only once, at its
/// start.
pub(crate) const HOST_LIFE: Duration = Duration::days(10 * 365 + 2);
/// The lifetime of a server's certificate. It is short because volhost renews it by itself.
pub(crate) const SERVER_LIFE: Duration = Duration::days(365);
/// How far a host's clock may be behind ours so that the host still accepts a certificate that was just
/// issued.
pub(crate) const BACKDATED: Duration = Duration::hours(1);

/// The prefix of the common name of every authority that volhost makes.
const CA_NAME: &str = "volhost CA ";
const ORGANIZATION: &str = "volhost";

/// An error while a certificate was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The authority's own certificate has expired, so verifiers would refuse anything it signs.
    #[error("the CA's certificate expired on {0}: begin a new CA in an empty directory")]
    Expired(OffsetDateTime),
    /// The system provided no random numbers.
    #[error("the system gave no random numbers")]
    Random,
    /// The library could not make the certificate.
    #[error("the certificate could not be made")]
    Make(#[source] rcgen::Error),
    /// The authority's certificate is broken.
    #[error("the CA's certificate is unusable")]
    Certificate(#[source] CertificateError),
}

/// A certificate that was just signed.
#[derive(Debug, Clone)]
pub(crate) struct Signed {
    /// The certificate.
    pub pem: String,
    /// Its serial number, in lower-case hexadecimal without leading zeros.
    pub serial: String,
    /// The authority's subject, in the form of [`CertInfo::subject`].
    pub issuer: String,
    /// The time of signing, in whole seconds.
    pub issued_at: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

/// An authority that can sign.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    info: CertInfo,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Authority {
    /// Returns the authority of this certificate and key. The caller must know that they match.
    pub(crate) fn new(certificate: &CertificateDer<'_>, key: KeyPair) -> Result<Self, SigningError> {
        let info = certificate::describe_der(certificate).map_err(SigningError::Certificate)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(SigningError::Make)?;
        Ok(Self { issuer, info })
    }

    /// Returns the time when the authority's own certificate expires.
    #[must_use]
    pub(crate) fn not_after(&self) -> OffsetDateTime {
        self.info.not_after
    }

    /// Signs a server's certificate for these names.
    pub(crate) fn sign_server(
        &self,
        key: &impl PublicKeyData,
        names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Signed, SigningError> {
        let alternative = names.iter().map(alternative).collect::<Result<_, _>>()?;
        let subject = names.first().map(ToString::to_string).unwrap_or_default();
        self.sign(key, &subject, alternative, ExtendedKeyUsagePurpose::ServerAuth, SERVER_LIFE, now)
    }

    /// Signs the certificate with which a host's engine proves its name.
    pub(crate) fn sign_host(
        &self,
        key: &impl PublicKeyData,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<Signed, SigningError> {
        let alternative = vec![dns(host.as_str())?];
        self.sign(key, host.as_str(), alternative, ExtendedKeyUsagePurpose::ClientAuth, HOST_LIFE, now)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        subject: &str,
        alternative: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
        life: Duration,
        now: OffsetDateTime,
    ) -> Result<Signed, SigningError> {
        let issued_at = whole_seconds(now);
        if issued_at >= self.info.not_after {
            return Err(SigningError::Expired(self.info.not_after));
        }
        let serial = Serial::random()?;
        let mut params = CertificateParams::default();
        params.serial_number = Some(serial.0.to_vec().into());
        params.not_before = (issued_at - BACKDATED).max(self.info.not_before);
        // A certificate never outlives its authority: verifiers would refuse it for reasons that are hard to
        // see.
        params.not_after = (issued_at + life).min(self.info.not_after);
        params.distinguished_name = subject_name(subject);
        params.subject_alt_names = alternative;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose];
        params.use_authority_key_identifier_extension = true;
        let not_after = params.not_after;
        let pem = params.signed_by(key, &self.issuer).map_err(SigningError::Make)?.pem();
        let issuer = self.info.subject.clone();
        Ok(Signed { pem, serial: serial.to_string(), issuer, issued_at, not_after })
    }
}

/// Makes a new private key: ECDSA on P-256, which every engine and every TLS library accepts.
pub(crate) fn new_key() -> Result<KeyPair, SigningError> {
    KeyPair::generate().map_err(SigningError::Make)
}

/// Makes a certificate request (PEM) for these names, signed with the key to prove its possession.
pub(crate) fn request(key: &KeyPair, names: &[ServerName]) -> Result<String, SigningError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject_name(&names.first().map(ToString::to_string).unwrap_or_default());
    params.subject_alt_names = names.iter().map(alternative).collect::<Result<_, _>>()?;
    params.serialize_request(key).and_then(|request| request.pem()).map_err(SigningError::Make)
}

/// Makes the self-signed certificate of an authority with this key.
pub(crate) fn self_sign(key: &KeyPair, now: OffsetDateTime) -> Result<Signed, SigningError> {
    let issued_at = whole_seconds(now);
    let serial = Serial::random()?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.0.to_vec().into());
    params.not_before = issued_at - BACKDATED;
    params.not_after = issued_at + CA_LIFE;
    // Verifiers that look up issuers by name would confuse two authorities of the same name.
    let id: String = serial.to_string().chars().take(8).collect();
    params.distinguished_name = subject_name(&format!("{CA_NAME}{id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let not_after = params.not_after;
    let pem = params.self_signed(key).map_err(SigningError::Make)?.pem();
    let issuer = certificate::describe(&pem).map_err(SigningError::Certificate)?.subject;
    Ok(Signed { pem, serial: serial.to_string(), issuer, issued_at, not_after })
}

/// Returns true if volhost made this authority; false if an operator brought it.
pub(crate) fn is_made_here(info: &CertInfo) -> bool {
    info.is_ca && info.common_name.as_ref().is_some_and(|name| name.starts_with(CA_NAME))
}

/// Reads a private key in PEM: PKCS #8, SEC 1 or PKCS #1.
pub(crate) fn parse_key(pem: &[u8]) -> Result<KeyPair, KeyError> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(KeyError::Pem)?;
    KeyPair::try_from(&der).map_err(KeyError::Key)
}

/// Reasons why a text is not a private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text has no readable PEM block of a private key.
    #[error("it holds no readable `-----BEGIN PRIVATE KEY-----`")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The key is broken, or of an unknown kind.
    #[error("it holds a key that is broken or of an unknown kind")]
    Key(#[source] rcgen::Error),
}

/// Reads the public key that is to be certified, from its subject public key info.
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, rcgen::Error> {
    SubjectPublicKeyInfo::from_der(der)
}

/// A serial number with 126 random bits: always positive, and always of the same length.
struct Serial([u8; 16]);

impl Serial {
    fn random() -> Result<Self, SigningError> {
        let mut bytes = [0; 16];
        rustls::crypto::aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut bytes)
            .map_err(|_| SigningError::Random)?;
        let [first, ..] = &mut bytes;
        // A set highest bit would make the number negative; the next bit is set so that the first hexadecimal
        // digit is never 0.
        *first = (*first & 0x3f) | 0x40;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn subject_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, ORGANIZATION);
    // X.509 limits a common name to 64 characters; a longer name is only in the subject alternative name.
    if !common_name.is_empty() && common_name.len() <= 64 {
        name.push(DnType::CommonName, common_name);
    }
    name
}

fn alternative(name: &ServerName) -> Result<SanType, SigningError> {
    match name {
        ServerName::Dns(name) => dns(name),
        ServerName::Ip(address) => Ok(SanType::IpAddress(*address)),
    }
}

fn dns(name: &str) -> Result<SanType, SigningError> {
    Ok(SanType::DnsName(name.try_into().map_err(SigningError::Make)?))
}

/// Drops the fraction of a second, which a certificate cannot hold.
fn whole_seconds(at: OffsetDateTime) -> OffsetDateTime {
    at.replace_nanosecond(0).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_are_positive_of_one_length_and_never_the_same() {
        let all: std::collections::BTreeSet<_> =
            std::iter::repeat_with(|| Serial::random().unwrap().to_string()).take(500).collect();
        assert_eq!(all.len(), 500);
        assert!(
            all.iter()
                .all(|serial| serial.len() == 32 && ('4'..'8').contains(&serial.chars().next().unwrap()))
        );
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        assert!(matches!(parse_key(b"junk"), Err(KeyError::Pem(_))));
        let broken = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(parse_key(broken), Err(KeyError::Key(_))));
    }
}
