//! Revocation lists, checked when they are loaded rather than at the first client they would wrongly refuse.
//!
//! The verifier looks a list up by its issuer's name and only then finds out that the signature is wrong, and refuses
//! every client of that CA. So a list that no client CA signed must never get past this module.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// Why a revocation list is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Nothing of the kind in the file.
    #[error("its file holds no revocation list (PEM, `BEGIN X509 CRL`)")]
    Empty,
    /// Bytes that are no list.
    #[error("its file is damaged: {0}")]
    Damaged(String),
    /// An issuer that is no client CA.
    #[error("the list of {0} comes from no CA in tls.client_ca: add that CA there, or leave its list out")]
    UnknownIssuer(String),
    /// The issuer's name with another one's signature.
    #[error("the list of {0} is not signed by that CA's key")]
    Signature(String),
    /// A CA that may not sign lists.
    #[error("{0} may not sign revocation lists (its key usage lacks cRLSign)")]
    NotASigner(String),
    /// A list without the date of the next.
    #[error("the list of {0} has no date of its next update, which is needed")]
    NoNextUpdate(String),
    /// A list that another one took the place of before.
    #[error(
        "the list of {issuer} is older than the one in force ({new}; in force: {in_force}): it would let in again what was revoked since; if that is meant, `volhost reload --force`"
    )]
    Older {
        /// Whose it is.
        issuer: String,
        /// Which one is in the file.
        new: String,
        /// Which one is in force.
        in_force: String,
    },
    /// A CA that is still let in, and whose list is no longer there.
    #[error(
        "its file holds no list of {0} any more, whose list is in force: it would let in again what that CA revoked; if that is meant, `volhost reload --force`"
    )]
    Gone(String),
}

/// What tells the lists of one CA apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edition {
    /// The number, big-endian without leading zeros, with its length before it so that numbers are in their order.
    number: Option<(usize, Vec<u8>)>,
    /// When it was made, in seconds since 1970.
    made: i64,
    told: String,
}

impl Edition {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let number = list.crl_number().map(|number| {
            let bytes = number.to_bytes_be();
            let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            (bytes.len(), bytes)
        });
        let made = list.last_update();
        let told = match list.crl_number() {
            Some(number) => format!("number {number}, made on {made}"),
            None => format!("made on {made}"),
        };
        Self { number, made: made.timestamp(), told }
    }

    /// Returns true if it is older than another one of the same CA. The number decides where both have one, because a
    /// CA never repeats it, whatever its clock says.
    fn is_older_than(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(own), Some(other)) if own != other => own < other,
            _ => self.made < other.made,
        }
    }
}

/// The newest list of one CA.
#[derive(Debug, Clone)]
pub(super) struct Newest {
    issuer: String,
    /// The key that signed it: a CA that takes the place of another of the same name begins anew.
    signer: Vec<u8>,
    edition: Edition,
}

/// Looks whether lists would take back a revocation that is in force. `signers` are the keys of the CAs that are let
/// in: what a CA that is gone revoked does not matter.
pub(super) fn follow(new: &[Newest], in_force: &[Newest], signers: &[Vec<u8>]) -> Result<(), CrlError> {
    for before in in_force.iter().filter(|before| signers.contains(&before.signer)) {
        match new.iter().find(|list| list.signer == before.signer) {
            None => return Err(CrlError::Gone(before.issuer.clone())),
            Some(list) if list.edition.is_older_than(&before.edition) => {
                return Err(CrlError::Older {
                    issuer: before.issuer.clone(),
                    new: list.edition.told.clone(),
                    in_force: before.edition.told.clone(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Reads every list in a file, PEM or DER, checks that a client CA signed each, and puts the newest first, because the
/// verifier asks only the first list of an issuer. Returns also which one that is for each CA.
pub(super) fn load(
    bytes: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Vec<Newest>), CrlError> {
    let lists: Vec<CertificateRevocationListDer<'static>> = if bytes.first() == Some(&0x30) {
        vec![bytes.to_vec().into()]
    } else {
        CertificateRevocationListDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| CrlError::Damaged(error.to_string()))?
    };
    if lists.is_empty() {
        return Err(CrlError::Empty);
    }
    let mut checked = Vec::with_capacity(lists.len());
    for der in lists {
        checked.push((check(&der, authorities, provider, warnings)?, der));
    }
    checked.sort_by(|(one, _), (other, _)| other.edition.cmp(&one.edition));
    let mut newest: Vec<Newest> = Vec::new();
    for (list, _) in &checked {
        if !newest.iter().any(|newer| newer.signer == list.signer) {
            newest.push(list.clone());
        }
    }
    Ok((checked.into_iter().map(|(_, der)| der).collect(), newest))
}

/// Checks one list and tells which one it is.
fn check(
    der: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<Newest, CrlError> {
    let (_, list) =
        CertificateRevocationList::from_der(der).map_err(|error| CrlError::Damaged(error.to_string()))?;
    let issuer = list.issuer().to_string();
    let named: Vec<_> = authorities
        .iter()
        .filter(|authority| authority.subject().as_raw() == list.issuer().as_raw())
        .collect();
    if named.is_empty() {
        return Err(CrlError::UnknownIssuer(issuer));
    }
    let Some(signer) = named.iter().find(|authority| signed_by(&list, authority, provider)) else {
        return Err(CrlError::Signature(issuer));
    };
    if let Ok(Some(usage)) = signer.key_usage()
        && !usage.value.crl_sign()
    {
        return Err(CrlError::NotASigner(issuer));
    }
    if named.len() > 1 {
        warnings.push(format!(
            "several CAs in tls.client_ca have the name {issuer}: the revocation list of one makes the clients of the others be refused; give each CA a name of its own"
        ));
    }
    match list.next_update() {
        None => return Err(CrlError::NoNextUpdate(issuer)),
        Some(next) if next < ASN1Time::now() => warnings.push(format!(
            "the revocation list of {issuer} should have been renewed by {next}: what it lists is still refused, later revocations are unknown"
        )),
        Some(_) => {}
    }
    Ok(Newest { issuer, signer: signer.public_key().raw.to_vec(), edition: Edition::of(&list) })
}

fn signed_by(
    list: &CertificateRevocationList<'_>,
    authority: &X509Certificate<'_>,
    provider: &CryptoProvider,
) -> bool {
    let key = &authority.public_key().subject_public_key.data;
    // A key is good for few of these algorithms, and a signature for one: trying all of them decides nothing wrongly.
    provider.signature_verification_algorithms.all.iter().any(|algorithm| {
        algorithm.verify_signature(key, list.tbs_cert_list.as_ref(), &list.signature_value.data).is_ok()
    })
}
