//! Reads the name of a host from its certificate.
//!
//! This module only reads: the TLS handshake has already decided that the certificate is genuine, within its
//! dates and not revoked. It must never guess a name: a certificate without a valid host name identifies
//! nobody.

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use crate::model::host::{HostName, InvalidHostName};

/// Reasons why a certificate names no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not an X.509 certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// The certificate has neither a DNS name nor a common name.
    #[error("the certificate names no host: it has neither a DNS name (subjectAltName) nor a common name")]
    Nameless,
    /// The certificate has only a common name, and an authority limits DNS names: nothing in the verified
    /// chain says that this host was meant to have access.
    #[error(
        "the certificate has no DNS name (subjectAltName), and {authority} limits the DNS names that it vouches for, \
         which binds no common name: have a certificate issued with the host's name as a DNS name"
    )]
    Unbound {
        /// The subject of the authority.
        authority: String,
    },
    /// The decisive name is not a valid host name.
    #[error("the certificate's {place} names no host")]
    Invalid {
        /// The place of the name: `first DNS name` or `common name`.
        place: &'static str,
        /// The fault of the name.
        #[source]
        source: InvalidHostName,
    },
}

/// The facts in a host's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The host's name.
    pub host: HostName,
    /// The certificate's serial number, as [`serial`] reads it.
    pub serial: String,
    /// The issuer of the certificate: the subject of the authority, as text.
    pub issuer: String,
    /// The end of its validity, in seconds since 1970.
    pub not_after: i64,
    /// True if the host's name is the common name, because there is no DNS name.
    pub by_common_name: bool,
}

/// Reads all facts from a certificate (DER) at once: parsing it is a good part of the cost of a new
/// connection.
pub fn identity(der: &[u8]) -> Result<Identity, IdentityError> {
    let certificate = parse(der)?;
    let (host, by_common_name) = host_of(&certificate)?;
    Ok(Identity {
        host,
        by_common_name,
        serial: serial_text(certificate.tbs_certificate.raw_serial()),
        issuer: certificate.issuer().to_string(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Reads the host's name from a certificate (DER): its first DNS name, or its common name if it has no DNS
/// name.
///
/// A first DNS name that is not a valid host name (a wildcard, `anonymous`) is an error. A later name is not
/// tried, because then the order of the names would decide who the host is.
pub fn host_name(der: &[u8]) -> Result<HostName, IdentityError> {
    host_of(&parse(der)?).map(|(host, _)| host)
}

/// Returns the host's name, and true if it is the common name.
fn host_of(certificate: &X509Certificate<'_>) -> Result<(HostName, bool), IdentityError> {
    let alternative =
        certificate.subject_alternative_name().map_err(|e| IdentityError::Unreadable(e.to_string()))?;
    let dns = alternative.and_then(|extension| {
        extension.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some(Ok(*name)),
            // A DNS name that is not text must not make the common name decide.
            GeneralName::Invalid(tag, _) if tag.0 == 2 => {
                Some(Err(IdentityError::Unreadable("its DNS name (subjectAltName) is no ASCII text".into())))
            }
            _ => None,
        })
    });
    if let Some(name) = dns {
        let name = name?;
        return HostName::parse(name)
            .map(|host| (host, false))
            .map_err(|source| IdentityError::Invalid { place: "first DNS name", source });
    }
    let common = certificate.subject().iter_common_name().next().ok_or(IdentityError::Nameless)?;
    let name = common.as_str().map_err(|e| IdentityError::Unreadable(format!("its common name: {e}")))?;
    HostName::parse(name)
        .map(|host| (host, true))
        .map_err(|source| IdentityError::Invalid { place: "common name", source })
}

/// Returns the subject of an authority that limits DNS names (name constraints) and may have signed the first
/// certificate of `chain` (DER): an authority in the rest of `chain`, or one of `roots`.
///
/// Limits on DNS names apply only to DNS names, and the verifier of the handshake checks no common name.
/// Authorities are found by their names, so one of two with the same name counts although the other may have
/// signed.
pub fn limiting_authority(
    chain: &[impl AsRef<[u8]>],
    roots: &[impl AsRef<[u8]>],
) -> Result<Option<String>, IdentityError> {
    let Some((own, others)) = chain.split_first() else { return Ok(None) };
    let mut wanted = vec![parse(own.as_ref())?.issuer().as_raw().to_vec()];
    let mut authorities = Vec::new();
    for der in others.iter().map(AsRef::as_ref).chain(roots.iter().map(AsRef::as_ref)) {
        authorities.push(parse(der)?);
    }
    let mut next = 0;
    while let Some(name) = wanted.get(next).cloned() {
        next += 1;
        for authority in authorities.iter().filter(|authority| authority.subject().as_raw() == name) {
            if limits_dns_names(authority) {
                return Ok(Some(authority.subject().to_string()));
            }
            let issuer = authority.issuer().as_raw().to_vec();
            if !wanted.contains(&issuer) {
                wanted.push(issuer);
            }
        }
    }
    Ok(None)
}

fn limits_dns_names(authority: &X509Certificate<'_>) -> bool {
    match authority.name_constraints() {
        Ok(None) => false,
        Ok(Some(extension)) => {
            let constraints = extension.value;
            let lists = [&constraints.permitted_subtrees, &constraints.excluded_subtrees];
            let mut subtrees = lists.into_iter().flatten().flatten();
            subtrees.any(|subtree| matches!(subtree.base, GeneralName::DNSName(_) | GeneralName::Invalid(..)))
        }
        // Constraints that cannot be read may limit anything.
        Err(_) => true,
    }
}

/// Returns the serial number of a certificate (DER) in lower-case hexadecimal without leading zeros, as the
/// catalog has it.
pub fn serial(der: &[u8]) -> Result<String, IdentityError> {
    let certificate = parse(der)?;
    Ok(serial_text(certificate.tbs_certificate.raw_serial()))
}

/// Returns the end of a certificate's (DER) validity, in seconds since 1970.
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
