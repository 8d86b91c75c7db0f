//! Reads certificates: their content, their signer, and the names of a server.
//!
//! Nothing here signs or decides about a client: rustls alone verifies the certificate of a connection.

use std::fmt;
use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

/// A name with which engines call a server: the host part of an `https` URL.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServerName {
    /// A DNS name, in lower case, without a trailing dot.
    Dns(String),
    /// An IP address.
    Ip(IpAddr),
}

/// The reason why a text is not a name of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no name an engine can call a server by: {why}")]
pub struct InvalidServerName {
    name: String,
    why: &'static str,
}

impl ServerName {
    /// Reads the host part of a URL: a DNS name or an address; an IPv6 address may have brackets.
    ///
    /// Refuses wildcards, zones (`fe80::1%eth0`), and the unspecified addresses `0.0.0.0` and `::`: they
    /// stand for every address of a machine, so none of them could be verified.
    pub fn parse(host: &str) -> Result<Self, InvalidServerName> {
        let fault = |why| InvalidServerName { name: host.chars().take(64).collect(), why };
        let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        if let Ok(address) = bracketed.unwrap_or(host).parse::<IpAddr>() {
            return Self::of_address(address)
                .ok_or_else(|| fault("it stands for every address; name one that engines can reach"));
        }
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        match dns_fault(&name) {
            None => Ok(Self::Dns(name)),
            Some(why) => Err(fault(why)),
        }
    }

    /// Returns the name of a server that listens on an address; `None` for the unspecified addresses.
    #[must_use]
    pub fn of_address(address: IpAddr) -> Option<Self> {
        let address = address.to_canonical();
        (!address.is_unspecified()).then_some(Self::Ip(address))
    }
}

fn dns_fault(name: &str) -> Option<&'static str> {
    if name.is_empty() || name.len() > 253 {
        return Some("a DNS name has 1 to 253 characters");
    }
    let fault = name.split('.').find_map(|label| {
        if label.is_empty() || label.len() > 63 {
            Some("each part between dots has 1 to 63 characters")
        } else if label.starts_with('-') || label.ends_with('-') {
            Some("no part begins or ends with a hyphen")
        } else if !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            Some("only letters, digits, hyphens, underscores and dots are allowed")
        } else {
            None
        }
    });
    // A resolver takes such a name for an address, and a verifier then compares it with the wrong kind of
    // name.
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    fault.or(numeric.then_some("its last part is a number, so that it reads as a broken address"))
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// The fields of a certificate. Nothing in them was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertInfo {
    /// The subject, as `CN=web1, O=volhost`.
    pub subject: String,
    /// The subject's first common name, if it has one.
    pub common_name: Option<String>,
    /// The issuer, in the same form.
    pub issuer: String,
    /// The names in the subject alternative name, in their order there: DNS names and addresses. Other kinds
    /// and wildcards are left out.
    pub names: Vec<ServerName>,
    /// The DNS names of the subject alternative name exactly as they stand there, wildcards included.
    pub dns_names: Vec<String>,
    /// The serial number, in lower-case hexadecimal without leading zeros or separators.
    pub serial: String,
    /// The start of its validity.
    pub not_before: OffsetDateTime,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
    /// True if it may sign certificates.
    pub is_ca: bool,
}

impl CertInfo {
    /// Returns true if at most a third of the certificate's lifetime is left: it is time to renew it.
    #[must_use]
    pub fn renewal_due(&self, now: OffsetDateTime) -> bool {
        self.not_after - now <= (self.not_after - self.not_before) / 3
    }

    /// Returns true if this moment is between the certificate's dates.
    #[must_use]
    pub fn is_valid_at(&self, now: OffsetDateTime) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }
}

/// Reasons why a text is not a certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The text is not PEM, or it is broken PEM.
    #[error("it is no readable PEM")]
    Pem(#[source] rustls::pki_types::pem::Error),
    /// The text is PEM of something else.
    #[error("it holds no `-----BEGIN CERTIFICATE-----`")]
    None,
    /// The PEM block is a certificate that cannot be decoded.
    #[error("it holds a certificate that cannot be decoded")]
    Der(#[source] x509_parser::error::X509Error),
    /// A date is out of the range that volhost can represent.
    #[error("it holds a certificate with an impossible date")]
    Date,
}

/// Describes the first certificate of a PEM text.
pub fn describe(pem: impl AsRef<[u8]>) -> Result<CertInfo, CertificateError> {
    let all = decode(pem.as_ref())?;
    describe_der(all.first().ok_or(CertificateError::None)?)
}

/// Describes a certificate in DER.
pub fn describe_der(der: &[u8]) -> Result<CertInfo, CertificateError> {
    let certificate = parse(der)?;
    let mut names = Vec::new();
    let mut dns_names = Vec::new();
    let alternative = certificate.subject_alternative_name().map_err(CertificateError::Der)?;
    for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) => {
                dns_names.push((*name).to_owned());
                names.extend(ServerName::parse(name).ok());
            }
            GeneralName::IPAddress(octets) => names.extend(address(octets).map(ServerName::Ip)),
            _ => {}
        }
    }
    let validity = certificate.validity();
    let date = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CertificateError::Date);
    Ok(CertInfo {
        subject: certificate.subject().to_string(),
        common_name: common_name(certificate.subject()),
        issuer: certificate.issuer().to_string(),
        names,
        dns_names,
        serial: certificate.serial.to_str_radix(16),
        not_before: date(validity.not_before.timestamp())?,
        not_after: date(validity.not_after.timestamp())?,
        is_ca: certificate.is_ca(),
    })
}

/// Returns all certificates of a PEM text, in DER and in order. Skips other PEM blocks. The result is never
/// empty.
pub(crate) fn decode(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let all =
        CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(CertificateError::Pem)?;
    if all.is_empty() { Err(CertificateError::None) } else { Ok(all) }
}

/// Writes certificates as PEM text.
pub(super) fn encode<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> String {
    let blocks: Vec<_> =
        certificates.into_iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref())).collect();
    pem::encode_many_config(&blocks, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

/// Returns a certificate's subject public key info, in DER.
pub(super) fn public_key(der: &[u8]) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(der)?.public_key().raw.to_vec())
}

/// Returns true if the issuer of a certificate is the subject of another one, and that one's key signed it.
/// Ignores the dates.
pub(super) fn is_signed_by(certificate: &[u8], authority: &[u8]) -> bool {
    let (Ok(certificate), Ok(authority)) = (parse(certificate), parse(authority)) else { return false };
    certificate.issuer().as_raw() == authority.subject().as_raw()
        && certificate.verify_signature(Some(authority.public_key())).is_ok()
}

/// Returns the first common name of a subject.
pub(super) fn common_name(subject: &x509_parser::x509::X509Name<'_>) -> Option<String> {
    subject.iter_common_name().find_map(|name| name.as_str().ok()).map(str::to_owned)
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(x509_parser::nom::Err::Error(error) | x509_parser::nom::Err::Failure(error)) => {
            Err(CertificateError::Der(error))
        }
        Err(x509_parser::nom::Err::Incomplete(_)) => {
            Err(CertificateError::Der(x509_parser::error::X509Error::InvalidCertificate))
        }
    }
}

pub(super) fn address(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(octets) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_url_holds() {
        for (text, name) in [
            ("Store1.Example.org.", ServerName::Dns("store1.example.org".to_owned())),
            ("my_service", ServerName::Dns("my_service".to_owned())),
            ("10.0.0.7", ServerName::Ip([10, 0, 0, 7].into())),
            ("[::1]", ServerName::Ip(std::net::Ipv6Addr::LOCALHOST.into())),
            ("::1", ServerName::Ip(std::net::Ipv6Addr::LOCALHOST.into())),
            ("::ffff:10.0.0.7", ServerName::Ip([10, 0, 0, 7].into())),
        ] {
            assert_eq!(ServerName::parse(text), Ok(name));
        }
        for text in
            ["", "0.0.0.0", "[::]", "fe80::1%eth0", "*.example.org", "a..b", "-a", "10.0.0", "a b", "é"]
        {
            assert!(ServerName::parse(text).is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn what_is_no_certificate_is_told_apart() {
        assert!(matches!(describe(""), Err(CertificateError::None)));
        assert!(matches!(describe("-----BEGIN CERTIFICATE-----\n!\n"), Err(CertificateError::Pem(_))));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(describe(broken), Err(CertificateError::Der(_))));
        let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert!(matches!(describe(key), Err(CertificateError::None)));
    }
}
