//! The certificate authority: making one, and signing with it.
//!
//! It never writes a file and never sees a request: its callers decide who gets a certificate.

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

/// How long certificates live: authorities.
pub(crate) const CA_LIFE: Duration = Duration::days(20 * 365 + 5);
/// How long certificates live: hosts, whose engines read theirs once.
pub(crate) const HOST_LIFE: Duration = Duration::days(10 * 365 + 2);
/// How long certificates live: servers, whose are made anew by themselves.
pub(crate) const SERVER_LIFE: Duration = Duration::days(365);
/// How far a clock may be behind ours and still take a certificate that was just issued.
pub(crate) const BACKDATED: Duration = Duration::hours(1);

/// What the subject of every authority made here begins with.
const CA_NAME: &str = "volhost CA ";
const ORGANIZATION: &str = "volhost";

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The authority's own certificate is over, so that what it signs is worth nothing.
    #[error("the CA's certificate expired on {0}: begin a new CA in an empty directory")]
    Expired(OffsetDateTime),
    /// No randomness was to be had.
    #[error("the system gave no random numbers")]
    Random,
    /// The library could not.
    #[error("the certificate could not be made")]
    Make(#[source] rcgen::Error),
    /// A certificate is broken.
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
    /// Who signed it: the authority's subject, as [`CertInfo::subject`].
    pub issuer: String,
    /// When it was signed, to the second.
    pub issued_at: OffsetDateTime,
    /// Until when it is valid.
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
    /// The authority of this certificate and key, which the caller knows to match.
    pub(crate) fn new(certificate: &CertificateDer<'_>, key: KeyPair) -> Result<Self, SigningError> {
        let info = certificate::describe_der(certificate).map_err(SigningError::Certificate)?;
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(SigningError::Make)?;
        Ok(Self { issuer, info })
    }

    /// When the authority's own certificate expires.
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

    /// Signs the certificate by which a host's engine proves its name.
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
        // Nothing outlives the authority that vouches for it: verifiers would refuse it for reasons hard to see.
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

/// A new private key: ECDSA on P-256, which every engine and every TLS library takes.
pub(crate) fn new_key() -> Result<KeyPair, SigningError> {
    KeyPair::generate().map_err(SigningError::Make)
}

/// A request (PEM) that proves who has a key, for these names.
pub(crate) fn request(key: &KeyPair, names: &[ServerName]) -> Result<String, SigningError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject_name(&names.first().map(ToString::to_string).unwrap_or_default());
    params.subject_alt_names = names.iter().map(alternative).collect::<Result<_, _>>()?;
    params.serialize_request(key).and_then(|request| request.pem()).map_err(SigningError::Make)
}

/// A self-signed authority's certificate for this key.
pub(crate) fn self_sign(key: &KeyPair, now: OffsetDateTime) -> Result<Signed, SigningError> {
    let issued_at = whole_seconds(now);
    let serial = Serial::random()?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial.0.to_vec().into());
    params.not_before = issued_at - BACKDATED;
    params.not_after = issued_at + CA_LIFE;
    // Two authorities of one name would be taken for each other by verifiers that look issuers up by name.
    let id: String = serial.to_string().chars().take(8).collect();
    params.distinguished_name = subject_name(&format!("{CA_NAME}{id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let not_after = params.not_after;
    let pem = params.self_signed(key).map_err(SigningError::Make)?.pem();
    let issuer = certificate::describe(&pem).map_err(SigningError::Certificate)?.subject;
    Ok(Signed { pem, serial: serial.to_string(), issuer, issued_at, not_after })
}

/// Whether a certificate is an authority that was made here, not one that an operator brought.
pub(crate) fn is_made_here(info: &CertInfo) -> bool {
    info.is_ca && info.common_name.as_ref().is_some_and(|name| name.starts_with(CA_NAME))
}

/// Reads a private key in PEM: PKCS #8, SEC 1 or PKCS #1.
pub(crate) fn parse_key(pem: &[u8]) -> Result<KeyPair, KeyError> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(KeyError::Pem)?;
    KeyPair::try_from(&der).map_err(KeyError::Key)
}

/// Why a text is no private key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No PEM of a key.
    #[error("it holds no readable `-----BEGIN PRIVATE KEY-----`")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// A kind of key that is not known, or a broken one.
    #[error("it holds a key that is broken or of an unknown kind")]
    Key(#[source] rcgen::Error),
}

/// A public key to be certified, read from its subject public key info.
pub(crate) fn public_key(der: &[u8]) -> Result<SubjectPublicKeyInfo, rcgen::Error> {
    SubjectPublicKeyInfo::from_der(der)
}

/// A serial number of 126 random bits: positive, and of one length for all.
struct Serial([u8; 16]);

impl Serial {
    fn random() -> Result<Self, SigningError> {
        let mut bytes = [0; 16];
        rustls::crypto::aws_lc_rs::default_provider()
            .secure_random
            .fill(&mut bytes)
            .map_err(|_| SigningError::Random)?;
        let [first, ..] = &mut bytes;
        // The highest bit would make it negative; the next one keeps the first digit from being a zero.
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
    // X.509 ends a common name at 64 characters; whoever has a longer name is known by the alternative name alone.
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

/// Certificates know whole seconds only.
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
