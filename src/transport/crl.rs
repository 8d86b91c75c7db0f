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
}

/// Reads every list in a file, PEM or DER, checks that a client CA signed each, and puts the newest first, because the
/// verifier asks only the first list of an issuer.
pub(super) fn load(
    bytes: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
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
    let mut dated = Vec::with_capacity(lists.len());
    for der in lists {
        let made = check(&der, authorities, provider, warnings)?;
        dated.push((made, der));
    }
    dated.sort_by_key(|(made, _)| std::cmp::Reverse(*made));
    Ok(dated.into_iter().map(|(_, der)| der).collect())
}

/// Checks one list and answers when it was made, in seconds since 1970.
fn check(
    der: &[u8],
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
    warnings: &mut Vec<String>,
) -> Result<i64, CrlError> {
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
    Ok(list.last_update().timestamp())
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
