//! The name of a host, read from the certificate it proved itself with.
//!
//! This module only reads: whether a certificate is genuine, in its time and not revoked was decided by the TLS
//! handshake before. It must never guess a name: a certificate without a plain one names nobody.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::name::{HostName, InvalidHostName};

/// Why a certificate names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// Neither a DNS name nor a common name.
    #[error("the certificate names no host: it has neither a DNS name (subjectAltName) nor a common name")]
    Nameless,
    /// The name that decides is no plain host name.
    #[error("the certificate's {place} names no host")]
    Invalid {
        /// Where the name stands: `first DNS name` or `common name`.
        place: &'static str,
        /// What is wrong with it.
        #[source]
        source: InvalidHostName,
    },
}

/// What a host's certificate says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The host's name.
    pub host: HostName,
    /// The certificate's serial number, as [`serial`] reads it.
    pub serial: String,
    /// Who issued the certificate: the subject of the authority, as text.
    pub issuer: String,
    /// When the certificate ends, in seconds since 1970.
    pub not_after: i64,
}

/// Reads all of it from a certificate (DER) at once: parsing it is a good part of what a new connection costs.
pub fn identity(der: &[u8]) -> Result<Identity, IdentityError> {
    let certificate = parse(der)?;
    Ok(Identity {
        host: host_of(&certificate)?,
        serial: serial_text(certificate.tbs_certificate.raw_serial()),
        issuer: certificate.issuer().to_string(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Reads the host's name from a certificate (DER): its first DNS name, and only where it has none its common name.
///
/// A first DNS name that is no plain host name (a wildcard, `anonymous`) is an error: a later name is not tried,
/// because the order would then decide who somebody is.
pub fn host_name(der: &[u8]) -> Result<HostName, IdentityError> {
    host_of(&parse(der)?)
}

fn host_of(certificate: &X509Certificate<'_>) -> Result<HostName, IdentityError> {
    let alternative =
        certificate.subject_alternative_name().map_err(|e| IdentityError::Unreadable(e.to_string()))?;
    let dns = alternative.and_then(|extension| {
        extension.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(Ok(*name)),
            // A DNS name that is no text must not make the common name decide.
            GeneralName::Invalid(tag, _) if tag.0 == 2 => {
                Some(Err(IdentityError::Unreadable("its DNS name (subjectAltName) is no ASCII text".into())))
            }
            _ => None,
        })
    });
    if let Some(name) = dns {
        let name = name?;
        return HostName::parse(name)
            .map_err(|source| IdentityError::Invalid { place: "first DNS name", source });
    }
    let common = certificate.subject().iter_common_name().next().ok_or(IdentityError::Nameless)?;
    let name = common.as_str().map_err(|e| IdentityError::Unreadable(format!("its common name: {e}")))?;
    HostName::parse(name).map_err(|source| IdentityError::Invalid { place: "common name", source })
}

/// The serial number of a certificate (DER) in lower-case hexadecimal without leading zeros, as the catalog keeps it.
pub fn serial(der: &[u8]) -> Result<String, IdentityError> {
    let certificate = parse(der)?;
    Ok(serial_text(certificate.tbs_certificate.raw_serial()))
}

/// When a certificate (DER) ends, in seconds since 1970.
pub fn not_after(der: &[u8]) -> Result<i64, IdentityError> {
    Ok(parse(der)?.validity().not_after.timestamp())
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(IdentityError::Unreadable(error.to_string())),
    }
}

fn serial_text(bytes: &[u8]) -> String {
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match digits.trim_start_matches('0') {
        "" => "0".into(),
        digits => digits.into(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType, SerialNumber};

    use super::*;

    fn certificate(common: Option<&str>, alternative: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = alternative.to_vec();
        params.serial_number = Some(SerialNumber::from_slice(&[0x00, 0x0a, 0xbc, 0x01]));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn dns(name: &str) -> SanType {
        SanType::DnsName(name.try_into().unwrap())
    }

    #[test]
    fn the_first_dns_name_goes_before_the_common_name() {
        let address = SanType::IpAddress("127.0.0.1".parse().unwrap());
        let der = certificate(Some("other"), &[address.clone(), dns("Web1.example.org"), dns("web2")]);
        assert_eq!(host_name(&der).unwrap().as_str(), "web1.example.org");
        assert_eq!(host_name(&certificate(Some("other"), &[address])).unwrap().as_str(), "other");
    }

    #[test]
    fn a_bad_first_name_is_not_passed_over() {
        for bad in ["*.example.org", "anonymous"] {
            let error = host_name(&certificate(Some("web1"), &[dns(bad), dns("web1")])).unwrap_err();
            assert!(matches!(error, IdentityError::Invalid { place: "first DNS name", .. }), "{error}");
            let error = host_name(&certificate(Some(bad), &[])).unwrap_err();
            assert!(matches!(error, IdentityError::Invalid { place: "common name", .. }), "{error}");
        }
    }

    #[test]
    fn a_certificate_without_a_name_names_nobody() {
        assert_eq!(host_name(&certificate(None, &[])), Err(IdentityError::Nameless));
        assert!(matches!(host_name(b"no certificate"), Err(IdentityError::Unreadable(_))));
    }

    #[test]
    fn serials_are_hexadecimal_without_leading_zeros() {
        assert_eq!(serial(&certificate(Some("web1"), &[])).unwrap(), "abc01");
        assert_eq!(serial_text(&[0]), "0");
        assert_eq!(serial_text(&[0, 0xff]), "ff");
    }
}
