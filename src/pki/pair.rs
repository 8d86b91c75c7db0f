//! Certificates and keys as they stand in the directory: read, and found to fit together.
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

/// The two files of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate, 0644.
    pub cert: PathBuf,
    /// The private key, 0600.
    pub key: PathBuf,
}

/// The authorities in `ca.crt`, and the one that can sign, if its key is here.
pub(super) struct Trust {
    pub ca: Pair,
    pub pem: String,
    pub certificates: Vec<CertificateDer<'static>>,
    pub authority: Option<Authority>,
}

/// A pair that is complete and fits.
pub(super) struct Leaf {
    pub key: KeyPair,
    pub info: CertInfo,
}

impl Trust {
    pub fn read(ca: Pair) -> Result<Self, PkiError> {
        let (pem, certificates) = authorities(&ca.cert)?;
        let authority = match read_key(&ca.key)? {
            None => None,
            Some(key) => {
                // Several certificates lie here while one authority replaces another: the key says which one signs.
                let public = key.subject_public_key_info();
                let own = certificates
                    .iter()
                    .find(|one| certificate::public_key(one).is_ok_and(|key| key == public));
                let Some(own) = own else { return Err(PkiError::Mismatch { pair: ca }) };
                Some(Authority::new(own, key).map_err(|source| PkiError::signing("the CA", source))?)
            }
        };
        Ok(Self { ca, pem, certificates, authority })
    }

    /// The authority that signs what is needed.
    pub fn authority(&self, need: impl FnOnce() -> String) -> Result<&Authority, PkiError> {
        self.authority
            .as_ref()
            .ok_or_else(|| PkiError::CaKeyMissing { key: self.ca.key.clone(), need: need() })
    }
}

/// The certificates in `ca.crt`, as text and each in DER.
pub(super) fn authorities(path: &Path) -> Result<(String, Vec<CertificateDer<'static>>), PkiError> {
    let Some(pem) = read(path)? else { return Err(PkiError::NoCa { path: path.to_owned() }) };
    let unusable = |source| PkiError::Certificate { path: path.to_owned(), source };
    let certificates = certificate::decode(&pem).map_err(unusable)?;
    for one in &certificates {
        if !describe_der(one).map_err(unusable)?.is_ca {
            return Err(PkiError::NotACa { path: path.to_owned() });
        }
    }
    // What is not UTF-8 can only stand beside the certificates, where it is comment.
    Ok((String::from_utf8_lossy(&pem).into_owned(), certificates))
}

/// A pair as it stands; none while its certificate is still to be made.
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
        return Err(PkiError::Stranger { path: pair.cert.clone(), ca: trust.ca.cert.clone() });
    }
    let info = describe_der(first).map_err(unusable)?;
    Ok(Some(Leaf { key, info }))
}

pub(super) fn read_key(path: &Path) -> Result<Option<KeyPair>, PkiError> {
    let Some(pem) = read(path)? else { return Ok(None) };
    if is_exposed(path) {
        log::warn!("{} can be read by others than its owner: `chmod 600` it", path.display());
    }
    authority::parse_key(&pem).map(Some).map_err(|source| PkiError::Key { path: path.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, PkiError> {
    files::read(path).map_err(|source| PkiError::Io { did: "read", path: path.to_owned(), source })
}

/// Whether users other than the owner can read a file.
fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0)
}
