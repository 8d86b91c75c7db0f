//! Reads certificates and keys from the directory and checks that they fit together.
//!
//! Nothing here writes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData as _};
use rustls::pki_types::CertificateDer;

use super::PkiError;
use super::authority::{self, Authority};
use super::certificate::{self, CertInfo, CertificateError, describe_der};
use crate::files;

/// The paths of a certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, mode 0644.
    pub cert: PathBuf,
    /// The private key, mode 0600.
    pub key: PathBuf,
}

/// The authorities in `ca.crt`, and the ones among them that can sign because their keys are here.
pub(super) struct Trust {
    pub ca: Pair,
    pub pem: String,
    pub certificates: Vec<CertificateDer<'static>>,
    /// The authority whose key is `ca.key`; `None` while the key is kept elsewhere.
    pub authority: Option<Authority>,
    /// The authority that takes over while a rollover is under way.
    pub successor: Option<Successor>,
}

/// An authority that is trusted beside the one that it will replace.
pub(super) struct Successor {
    pub pair: Pair,
    pub pem: String,
    pub certificate: CertificateDer<'static>,
    /// `None` while its key is kept elsewhere.
    pub authority: Option<Authority>,
}

/// A server or client certificate with its key; they are known to match.
pub(super) struct Leaf {
    pub key: KeyPair,
    pub info: CertInfo,
    pub der: CertificateDer<'static>,
}

/// The use of a certificate. It decides which authority signs while one replaces the other.
#[derive(Clone, Copy)]
pub(super) enum Purpose<'a> {
    /// A host's certificate: the new authority signs it, so that the engine holds a certificate that stays
    /// valid.
    Host,
    /// The server's certificate, which replaces this one: the old authority signs it, because engines that
    /// know only the old one must be able to verify it until the rollover ends.
    Server(Option<&'a Leaf>),
}

impl Trust {
    pub(super) fn read(ca: Pair, next: Pair) -> Result<Self, PkiError> {
        let (pem, certificates) = authorities(&ca.cert)?;
        // `ca.crt` holds several certificates while one authority replaces the other: the key says which one
        // signs.
        let authority = authority_of(&ca, &certificates)?;
        let successor = match successor(&next)? {
            // The new authority is not in force before it is trusted.
            Some((pem, certificate)) if certificates.contains(&certificate) => {
                let authority = authority_of(&next, std::slice::from_ref(&certificate))?;
                Some(Successor { pair: next, pem, certificate, authority })
            }
            _ => None,
        };
        Ok(Self { ca, pem, certificates, authority, successor })
    }

    /// Returns the authority that signs for a purpose. `need` words what is to be signed, for the error if
    /// the key is missing.
    pub(super) fn authority(
        &self,
        purpose: Purpose<'_>,
        need: impl FnOnce() -> String,
    ) -> Result<&Authority, PkiError> {
        let (authority, pair) = self.signer(purpose);
        authority.ok_or_else(|| PkiError::CaKeyMissing { key: pair.key.clone(), need: need() })
    }

    /// Returns the authority that signs for a purpose if its key is here, and the paths of its files.
    pub(super) fn signer(&self, purpose: Purpose<'_>) -> (Option<&Authority>, &Pair) {
        match &self.successor {
            Some(new) if purpose.is_of(new) => (new.authority.as_ref(), &new.pair),
            _ => (self.authority.as_ref(), &self.ca),
        }
    }

    /// Returns the certificates of the authorities that may have signed a certificate of this purpose.
    pub(super) fn signers(&self, purpose: Purpose<'_>) -> Vec<CertificateDer<'static>> {
        match &self.successor {
            Some(new) if purpose.is_of(new) => vec![new.certificate.clone()],
            Some(new) => self.certificates.iter().filter(|one| **one != new.certificate).cloned().collect(),
            None => self.certificates.clone(),
        }
    }
}

impl Purpose<'_> {
    /// Returns true if the new authority signs for this purpose.
    fn is_of(self, successor: &Successor) -> bool {
        match self {
            Self::Host => true,
            Self::Server(present) => present.is_some_and(|leaf| successor.signed(leaf)),
        }
    }
}

impl Successor {
    /// Returns true if the new authority signed a certificate.
    pub(super) fn signed(&self, leaf: &Leaf) -> bool {
        certificate::is_signed_by(&leaf.der, &self.certificate)
    }
}

/// Returns the authority of a pair's key; `None` while the key is kept elsewhere. Fails if the key belongs to
/// none of these certificates.
fn authority_of(
    pair: &Pair,
    certificates: &[CertificateDer<'static>],
) -> Result<Option<Authority>, PkiError> {
    let Some(key) = read_key(&pair.key)? else { return Ok(None) };
    let public = key.subject_public_key_info();
    let own = certificates.iter().find(|one| certificate::public_key(one).is_ok_and(|key| key == public));
    let Some(own) = own else { return Err(PkiError::Mismatch { pair: pair.clone() }) };
    Authority::new(own, key).map(Some).map_err(|source| PkiError::signing("the CA", source))
}

/// Returns the certificate of the authority that takes over, in PEM and in DER; `None` if no rollover is
/// under way.
pub(super) fn successor(next: &Pair) -> Result<Option<(String, CertificateDer<'static>)>, PkiError> {
    let (pem, mut certificates) = match authorities(&next.cert) {
        Err(PkiError::NoCa { .. }) => return Ok(None),
        found => found?,
    };
    if certificates.len() != 1 {
        return Err(PkiError::NotOne { path: next.cert.clone() });
    }
    Ok(certificates.pop().map(|certificate| (pem, certificate)))
}

/// Returns the certificates in `ca.crt`, as one PEM text and each in DER.
pub(super) fn authorities(path: &Path) -> Result<(String, Vec<CertificateDer<'static>>), PkiError> {
    let Some(pem) = read(path)? else { return Err(PkiError::NoCa { path: path.to_owned() }) };
    let unusable = |source| PkiError::Certificate { path: path.to_owned(), source };
    let certificates = certificate::decode(&pem).map_err(unusable)?;
    for one in &certificates {
        if !describe_der(one).map_err(unusable)?.is_ca {
            return Err(PkiError::NotACa { path: path.to_owned() });
        }
    }
    // PEM allows text that is not UTF-8 only outside of the certificates, where it is a comment.
    Ok((String::from_utf8_lossy(&pem).into_owned(), certificates))
}

/// Reads a pair and checks it; `None` if the certificate does not exist yet.
pub(super) fn leaf(pair: &Pair, trust: &Trust) -> Result<Option<Leaf>, PkiError> {
    let Some(pem) = read(&pair.cert)? else { return Ok(None) };
    let Some(key) = read_key(&pair.key)? else {
        return Err(PkiError::CertificateWithoutKey { pair: pair.clone() });
    };
    let unusable = |source| PkiError::Certificate { path: pair.cert.clone(), source };
    let all = certificate::decode(&pem).map_err(unusable)?;
    let first = all.first().ok_or_else(|| unusable(CertificateError::None))?;
    if certificate::public_key(first).map_err(unusable)? != key.subject_public_key_info() {
        return Err(PkiError::Mismatch { pair: pair.clone() });
    }
    if !trust.certificates.iter().any(|authority| certificate::is_signed_by(first, authority)) {
        return Err(PkiError::ForeignIssuer { path: pair.cert.clone(), ca: trust.ca.cert.clone() });
    }
    let info = describe_der(first).map_err(unusable)?;
    Ok(Some(Leaf { key, info, der: first.clone() }))
}

pub(super) fn read_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(pem) = read(path)? else { return Ok(None) };
    if is_exposed(path) {
        log::warn!("{} can be read by others than its owner: `chmod 600` it", path.display());
    }
    authority::parse_key(&pem).map(Some).map_err(|source| PkiError::Key { path: path.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    files::read_small(path).map_err(|source| PkiError::Io { did: "read", path: path.to_owned(), source })
}

/// Returns true if users other than the owner can read a file.
fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}
