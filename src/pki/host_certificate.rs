//! Certificates of other hosts.

use std::fmt;

use time::OffsetDateTime;

use super::authority::{self, Authority, Signed};
use super::pair::{Purpose, Trust};
use super::{Pki, PkiError, request};
use crate::model::host::HostName;

/// The catalog's record of a certificate that was issued to a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The host that the certificate names.
    pub host: HostName,
    /// The serial number, in lower-case hexadecimal without leading zeros.
    pub serial: String,
    /// The subject of the authority that signed it.
    pub issuer: String,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

/// A certificate for another host, with what its engine needs beside it. None of it is kept here.
#[derive(Clone)]
pub struct IssuedHost {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key; `None` if the host made its own and sent a request.
    pub key_pem: Option<String>,
    /// The authorities that the engine is to trust: all of `ca.crt`.
    pub ca_pem: String,
    /// What the catalog records.
    pub issued: Issued,
}

impl fmt::Debug for IssuedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not reach a log.
        f.debug_struct("IssuedHost").field("issued", &self.issued).finish_non_exhaustive()
    }
}

impl Pki {
    /// Issues a certificate (10 years) and its key to another host.
    pub fn issue_host(&self, host: &HostName) -> Result<IssuedHost, PkiError> {
        let trust = self.trust()?;
        let authority = trust.authority(Purpose::Host, || format!("the certificate of {host}"))?;
        let key = authority::new_key().map_err(|source| PkiError::signing(host, source))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, Some(key.serialize_pem())))
    }

    /// Certifies (10 years) the key of a host that sent a certificate request in PEM.
    ///
    /// The request's signature must verify. Only its key is taken; a common name or DNS name in it that is not the
    /// host's is refused.
    pub fn sign_csr(&self, host: &HostName, csr_pem: &str) -> Result<IssuedHost, PkiError> {
        let key = request::verify(csr_pem, host)
            .map_err(|source| PkiError::Request { host: host.clone(), source })?;
        let trust = self.trust()?;
        let authority = trust.authority(Purpose::Host, || format!("the certificate of {host}"))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, None))
    }
}

pub(super) fn sign_host(
    authority: &Authority,
    key: &impl rcgen::PublicKeyData,
    host: &HostName,
    now: OffsetDateTime,
) -> Result<Signed, PkiError> {
    if host.is_anonymous() {
        return Err(PkiError::Anonymous);
    }
    authority.sign_host(key, host, now).map_err(|source| PkiError::signing(host, source))
}

fn issued_host(trust: &Trust, host: &HostName, signed: Signed, key_pem: Option<String>) -> IssuedHost {
    let issued = issued(host, &signed);
    IssuedHost { cert_pem: signed.pem, key_pem, ca_pem: trust.pem.clone(), issued }
}

pub(super) fn issued(host: &HostName, signed: &Signed) -> Issued {
    let Signed { pem: _, serial, issuer, issued_at, not_after } = signed;
    Issued {
        host: host.clone(),
        serial: serial.clone(),
        issuer: issuer.clone(),
        issued_at: *issued_at,
        not_after: *not_after,
    }
}
