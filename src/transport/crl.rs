//! Revocation lists. They are checked when they are loaded, before they could wrongly refuse a client.
//!
//! The verifier looks a list up by its issuer's name; if the list's signature is wrong, it then refuses every
//! client of that CA. So this module must never accept a list that no client CA signed.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

/// Reasons why a revocation list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// The file holds no revocation list.
    #[error("its file holds no revocation list (PEM, `BEGIN X509 CRL`)")]
    Empty,
    /// The bytes are not a revocation list.
    #[error("its file is damaged: {0}")]
    Damaged(String),
    /// The issuer is not a client CA.
    #[error("the list of {0} comes from no CA in tls.client_ca: add that CA there, or leave its list out")]
    UnknownIssuer(String),
    /// The list has the name of a client CA, and the signature of another key.
    #[error("the list of {0} is not signed by that CA's key")]
    Signature(String),
    /// The CA may not sign lists.
    #[error("{0} may not sign revocation lists (its key usage lacks cRLSign)")]
    NotASigner(String),
    /// The list has no date of the next update.
    #[error("the list of {0} has no date of its next update, which is needed")]
    NoNextUpdate(String),
    /// The list is older than the one in force.
    #[error(
        "the list of {issuer} is older than the one in force ({new}; in force: {in_force}): it would let in again what was revoked since; if that is meant, `volhost reload --force`"
    )]
    Older {
        /// The CA of the list.
        issuer: String,
        /// The edition of the list in the file.
        new: String,
        /// The edition of the list in force.
        in_force: String,
    },
    /// The file has no list of a CA that is still trusted and had one.
    #[error(
        "its file holds no list of {0} any more, whose list is in force: it would let in again what that CA revoked; if that is meant, `volhost reload --force`"
    )]
    Gone(String),
}

/// The edition of a list, which orders the lists of one CA.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edition {
    /// The CRL number: its length, then its big-endian bytes without leading zeros, so that numbers compare
    /// in their order.
    number: Option<(usize, Vec<u8>)>,
    /// The time of issue, in seconds since 1970.
    made: i64,
    text: String,
}

impl Edition {
    fn of(list: &CertificateRevocationList<'_>) -> Self {
        let number = list.crl_number().map(|number| {
            let bytes = number.to_bytes_be();
            let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            (bytes.len(), bytes)
        });
        let made = list.last_update();
        let text = match list.crl_number() {
            Some(number) => format!("number {number}, made on {made}"),
            None => format!("made on {made}"),
        };
        Self { number, made: made.timestamp(), text }
    }

    /// Returns true if this edition is older than another one of the same CA. If both have a number, the
    /// number decides, because a CA never repeats one, even if its clock is wrong.
    fn is_older_than(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(own), Some(other)) if own != other => own < other,
            _ => self.made < other.made,
        }
    }
}

/// The newest list of one CA.
#[derive(Debug, Clone)]
pub(super) struct NewestList {
    issuer: String,
    /// The public key that signed the list. If a CA replaces another one of the same name, its editions are
    /// not compared with the other's.
    signer: Vec<u8>,
    edition: Edition,
}

/// Refuses new lists that would undo a revocation in force. `signers` are the keys of the trusted CAs: lists
/// of a CA that is no longer trusted do not matter.
pub(super) fn check_successor(
    new: &[NewestList],
    in_force: &[NewestList],
    signers: &[Vec<u8>],
) -> Result<(), CrlError> {
    for before in in_force.iter().filter(|before| signers.contains(&before.signer)) {
        match new.iter().find(|list| list.signer == before.signer) {
            None => return Err(CrlError::Gone(before.issuer.clone())),
            Some(list) if list.edition.is_older_than(&before.edition) => {
                return Err(CrlError::Older {
                    issuer: before.issuer.clone(),
                    new: list.edition.text.clone(),
                    in_force: before.edition.text.clone(),
                });
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Reads every list in a file, PEM or DER, and checks that a client CA signed each. Puts the newest first,
/// because the verifier uses only the first list of an issuer. Returns also the newest list of each CA.
pub(super) fn load(
    bytes: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<(Vec<CertificateRevocationListDer<'static>>, Vec<NewestList>), CrlError> {
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
    let mut newest: Vec<NewestList> = Vec::new();
    for (list, _) in &checked {
        if !newest.iter().any(|newer| newer.signer == list.signer) {
            newest.push(list.clone());
        }
    }
    Ok((checked.into_iter().map(|(_, der)| der).collect(), newest))
}

/// Checks one list, and returns its CA and edition.
fn check(
    der: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<NewestList, CrlError> {
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
    Ok(NewestList { issuer, signer: signer.public_key().raw.to_vec(), edition: Edition::of(&list) })
}

fn signed_by(
    list: &CertificateRevocationList<'_>,
    authority: &X509Certificate<'_>,
    provider: &CryptoProvider,
) -> bool {
    let key = &authority.public_key().subject_public_key.data;
    // A key works with few of these algorithms and a signature with one, so trying all of them gives no wrong
    // result.
    provider.signature_verification_algorithms.all.iter().any(|algorithm| {
        algorithm.verify_signature(key, list.tbs_cert_list.as_ref(), &list.signature_value.data).is_ok()
    })
}
