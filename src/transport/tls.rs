//! TLS with client certificates: the server's certificate, the clients that have access, and the later check
//! that they still have it.
//!
//! A [`State`] is built from the files' content and replaced as a whole; it shares nothing with the one
//! before, no session and no ticket. Sessions are never resumed: each connection proves its certificate
//! again, so that a revoked certificate cannot come back through an old session. This module must never
//! accept a connection that the client CAs do not vouch for.
//!
//! # Revocation lists
//!
//! A list applies to the certificates of the CA that signed it, anywhere in a client's chain; it does not
//! affect clients of CAs without a list. A list past its date still applies, with a warning at each load: it
//! still names the same revoked certificates, and refusing everyone would take every host down because of a
//! late renewal.

mod files;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::Validity;

pub(crate) use self::files::Source;
pub use self::files::TlsError;
use self::files::{CERTIFICATE, CLIENT_CA, certificates, parsed, private_key, warn_of_time};
use super::chain_cache::ChainCache;
use super::crl;
use crate::host::identity::{IdentityError, limiting_authority};
use crate::model::host::HostName;

/// Hosts and certificates that are refused although their certificate is genuine: `host revoke` recorded
/// them.
pub trait Revocation: Send + Sync + 'static {
    /// Returns true if this host's certificate with this serial number (lower-case hexadecimal, no leading
    /// zeros) is refused. It is called for each request, so it must answer from memory.
    fn refused(&self, host: &HostName, serial: &str) -> bool;
}

/// A [`Revocation`] that refuses nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NobodyRevoked;

impl Revocation for NobodyRevoked {
    fn refused(&self, _: &HostName, _: &str) -> bool {
        false
    }
}

/// The certificates, CAs and revocation lists that TLS uses at one time.
#[derive(Debug)]
pub struct State {
    pub(super) config: Arc<ServerConfig>,
    /// The same for clients that need no certificate.
    pub(super) open: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// The clients' CAs.
    authorities: Vec<CertificateDer<'static>>,
    /// Distinguishes this state from every other one in this process.
    pub(super) generation: u64,
    /// The content of clients' chains.
    pub(super) chains: ChainCache,
    warnings: Vec<String>,
    validity: Validity,
    /// The newest revocation list of each CA; `None` if no list is configured.
    lists: Option<Vec<crl::NewestList>>,
    /// The keys of the client CAs.
    signers: Vec<Vec<u8>>,
}

impl State {
    /// Builds a state from the content of the four files (PEM; a revocation list may also be DER).
    ///
    /// An expired certificate or list is no error: see [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// A file holds nothing of its kind or is damaged, or the parts do not belong together.
    pub fn load(
        cert_pem: &[u8],
        key_pem: &[u8],
        client_ca_pem: &[u8],
        crl: Option<&[u8]>,
    ) -> Result<Self, TlsError> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);

        let mut warnings = Vec::new();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(cert_pem, CERTIFICATE)?;
        let Some(own) = chain.first() else {
            return Err(TlsError::NoCertificate);
        };
        let own = parsed(own, CERTIFICATE)?;
        warn_of_time("the server certificate", &own, &mut warnings);
        let validity = own.validity().clone();
        let key = private_key(key_pem)?;
        let authorities = certificates(client_ca_pem, CLIENT_CA)?;
        let Clients { verifier, open_verifier, lists, signers } =
            client_verifier(&provider, &authorities, crl, &mut warnings)?;

        let config = |verifier: Arc<dyn ClientCertVerifier>| {
            let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
                .map_err(TlsError::Unusable)?
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain.clone(), key.clone_key())
                .map_err(|error| match error {
                    rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch) => {
                        TlsError::KeyMismatch
                    }
                    error => TlsError::Unusable(error),
                })?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok::<_, TlsError>(Arc::new(config))
        };
        Ok(Self {
            config: config(Arc::clone(&verifier))?,
            open: config(open_verifier)?,
            verifier,
            authorities,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            chains: ChainCache::default(),
            warnings,
            validity,
            lists,
            signers,
        })
    }

    /// Checks that this state may replace the one in force without an operator's consent.
    ///
    /// # Errors
    /// A server certificate that is not valid now would replace one that is; or a revocation list that is older than the
    /// one in force, or is missing, would give revoked hosts access again.
    pub fn check_may_replace(&self, in_force: &Self) -> Result<(), TlsError> {
        if in_force.validity.is_valid() && !self.validity.is_valid() {
            let Validity { not_before, not_after } = &self.validity;
            return Err(TlsError::NotNow(match *not_after < x509_parser::time::ASN1Time::now() {
                true => format!("expired on {not_after}"),
                false => format!("is not valid before {not_before}"),
            }));
        }
        match (&self.lists, &in_force.lists) {
            (Some(new), Some(before)) => Ok(crl::check_successor(new, before, &self.signers)?),
            // Only the configuration decides whether there is a list.
            _ => Ok(()),
        }
    }

    /// Returns warnings for the operator: certificates and lists that have expired, or will not work as
    /// intended.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Refuses a chain that names its host by the common name if an authority limits DNS names: the verifier
    /// applies such limits to DNS names only.
    pub(super) fn check_name_constraints(
        &self,
        chain: &[CertificateDer<'static>],
    ) -> Result<(), IdentityError> {
        match limiting_authority(chain, &self.authorities)? {
            Some(authority) => Err(IdentityError::Unbound { authority }),
            None => Ok(()),
        }
    }

    /// Verifies that a client's chain, its own certificate first, is valid now.
    pub(super) fn verify(&self, chain: &[CertificateDer<'static>]) -> Result<(), rustls::Error> {
        let (own, rest) = chain.split_first().ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier.verify_client_cert(own, rest, UnixTime::now()).map(|_| ())
    }
}

/// The parts of a state that decide which clients have access.
struct Clients {
    verifier: Arc<dyn ClientCertVerifier>,
    /// Accepts also clients without a certificate.
    open_verifier: Arc<dyn ClientCertVerifier>,
    lists: Option<Vec<crl::NewestList>>,
    signers: Vec<Vec<u8>>,
}

fn client_verifier(
    provider: &Arc<CryptoProvider>,
    authorities: &[CertificateDer<'static>],
    crl: Option<&[u8]>,
    warnings: &mut Vec<String>,
) -> Result<Clients, TlsError> {
    if authorities.is_empty() {
        return Err(TlsError::NoClientCa);
    }
    let mut roots = RootCertStore::empty();
    let mut parsed_authorities = Vec::with_capacity(authorities.len());
    for authority in authorities {
        let certificate = parsed(authority, CLIENT_CA)?;
        let name = format!("the certificate {}", certificate.subject());
        if !certificate.is_ca() {
            return Err(TlsError::NotACa(name));
        }
        warn_of_time(&format!("{name} in the client CA's file"), &certificate, warnings);
        roots
            .add(authority.clone())
            .map_err(|error| TlsError::Damaged { file: CLIENT_CA, why: error.to_string() })?;
        parsed_authorities.push(certificate);
    }
    let signers = parsed_authorities.iter().map(|one| one.public_key().raw.to_vec()).collect();
    let (ders, lists) = match crl {
        Some(bytes) => {
            let (ders, newest) = crl::load(bytes, &parsed_authorities, provider, warnings)?;
            (ders, Some(newest))
        }
        None => (Vec::new(), None),
    };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .with_crls(ders)
        .allow_unknown_revocation_status();
    let verifier = builder.clone().build().map_err(TlsError::Verifier)?;
    let open_verifier = builder.allow_unauthenticated().build().map_err(TlsError::Verifier)?;
    Ok(Clients { verifier, open_verifier, lists, signers })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateRevocationListDer;
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::error::chain;
    use crate::transport::testing::{Authority, Identity, days};

    fn load(own: &Identity, ca: &str, crl: Option<&str>) -> Result<State, TlsError> {
        State::load(own.certificate.as_bytes(), own.key.as_bytes(), ca.as_bytes(), crl.map(str::as_bytes))
    }

    /// Returns the client's chain in the form in which a handshake provides it.
    fn chain_of(identity: &Identity) -> Vec<CertificateDer<'static>> {
        certificates(identity.certificate.as_bytes(), CERTIFICATE).unwrap()
    }

    #[test]
    fn each_fault_of_the_files_is_named() {
        let (ca, other) = (Authority::new("one CA"), Authority::new("another CA"));
        let (own, ca_pem) = (ca.server(), ca.pem());
        let with =
            |certificate: &str, key: &str| Identity { certificate: certificate.into(), key: key.into() };
        let encrypted = own.key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
        let leaf = ca.client("web1", 1).certificate;
        let cases = [
            (
                load(&with("", &own.key), &ca_pem, None),
                "server certificate's file holds no certificate",
                Source::Certificate,
            ),
            (load(&with(&own.certificate, ""), &ca_pem, None), "holds no private key", Source::Key),
            (load(&with(&own.certificate, &encrypted), &ca_pem, None), "is encrypted", Source::Key),
            (
                load(&with(&own.certificate, &ca.server().key), &ca_pem, None),
                "does not belong to",
                Source::Key,
            ),
            (load(&own, "", None), "client CA's file holds no certificate", Source::ClientCa),
            (load(&own, &leaf, None), "is no CA certificate", Source::ClientCa),
            (load(&own, &ca_pem, Some("")), "holds no revocation list", Source::Crl),
            (load(&own, &ca_pem, Some("\x30nonsense")), "its file is damaged", Source::Crl),
            (load(&own, &ca_pem, Some(&other.crl(&[]))), "comes from no CA in tls.client_ca", Source::Crl),
            (
                load(&own, &ca_pem, Some(&Authority::new("one CA").crl(&[]))),
                "is not signed by that CA's key",
                Source::Crl,
            ),
        ];
        let may_not = load(&own, &ca.without_lists("one CA").pem(), Some(&ca.crl(&[])));
        let cases = cases.into_iter().chain([(may_not, "may not sign revocation lists", Source::Crl)]);
        for (result, expected, source) in cases {
            let error = result.expect_err(expected);
            let text = chain(&error);
            assert!(text.contains(expected), "{text}");
            assert_eq!(error.source_file(), source, "{text}");
        }
    }

    #[test]
    fn damaged_pem_names_its_file() {
        let ca = Authority::new("one CA");
        let own = ca.server();
        let cut = |pem: &str| pem.replacen("MII", "MI!", 1);
        let bad = Identity { certificate: cut(&own.certificate), key: own.key.clone() };
        assert_eq!(load(&bad, &ca.pem(), None).unwrap_err().source_file(), Source::Certificate);
        assert_eq!(load(&own, &cut(&ca.pem()), None).unwrap_err().source_file(), Source::ClientCa);
    }

    #[test]
    fn what_has_expired_is_warned_of_and_used() {
        let ca = Authority::new("one CA");
        let own = ca.issue("localhost", |params| params.not_after = days(-1));
        let crl = ca.crl_of(&[7], days(-30), days(-1));
        let state = load(&own, &ca.pem(), Some(&crl)).unwrap();
        let [certificate, list] = state.warnings() else {
            panic!("{:?}", state.warnings());
        };
        assert!(certificate.contains("server certificate expired"), "{certificate}");
        assert!(list.contains("should have been renewed"), "{list}");
        assert!(state.verify(&chain_of(&ca.client("web1", 7))).is_err(), "an old list still counts");
        assert!(state.verify(&chain_of(&ca.client("web1", 8))).is_ok());
    }

    #[test]
    fn a_list_of_one_ca_leaves_the_clients_of_others_alone() {
        let (one, two) = (Authority::new("one CA"), Authority::new("another CA"));
        let state = load(&one.server(), &(one.pem() + &two.pem()), Some(&one.crl(&[7]))).unwrap();
        assert!(state.warnings().is_empty(), "{:?}", state.warnings());
        assert!(state.verify(&chain_of(&one.client("web1", 7))).is_err());
        assert!(state.verify(&chain_of(&one.client("web1", 8))).is_ok());
        assert!(state.verify(&chain_of(&two.client("web1", 7))).is_ok());
    }

    #[test]
    fn the_newest_list_of_a_ca_counts_and_der_is_read() {
        let ca = Authority::new("one CA");
        let (old, new) = (ca.crl_of(&[], days(-9), days(30)), ca.crl_of(&[7], days(-1), days(30)));
        let state = load(&ca.server(), &ca.pem(), Some(&(old + &new))).unwrap();
        assert!(state.verify(&chain_of(&ca.client("web1", 7))).is_err());
        let der = CertificateRevocationListDer::from_pem_slice(new.as_bytes()).unwrap();
        let own = ca.server();
        let (certificate, key) = (own.certificate.as_bytes(), own.key.as_bytes());
        let state = State::load(certificate, key, ca.pem().as_bytes(), Some(&der)).unwrap();
        assert!(state.verify(&chain_of(&ca.client("web1", 7))).is_err());
    }

    #[test]
    fn nothing_older_takes_the_place_of_what_is_in_force() {
        let (ca, other) = (Authority::new("one CA"), Authority::new("another CA"));
        let own = ca.server();
        let with = |ca_pem: &str, crl: &str| load(&own, ca_pem, Some(crl)).unwrap();
        let list = |number: u8, day: i64| ca.crl_numbered(&[7], number, days(day), days(30));
        let in_force = with(&ca.pem(), &list(2, -2));
        let refused = |new: &State| new.check_may_replace(&in_force).map_err(|error| chain(&error));
        for (number, day) in [(2, -2), (2, -1), (3, -5), (255, -2)] {
            assert_eq!(refused(&with(&ca.pem(), &list(number, day))), Ok(()), "{number} {day}");
        }
        for (number, day) in [(2, -3), (1, -1)] {
            let told = refused(&with(&ca.pem(), &list(number, day))).unwrap_err();
            assert!(
                told.contains("older") && told.contains("number 2") && told.contains("--force"),
                "{told}"
            );
        }
        // A file with a newer list beside an older one counts as the newer one.
        assert_eq!(refused(&with(&ca.pem(), &(list(1, -9) + &list(2, -2)))), Ok(()));
        // A CA that stays must keep its list, a CA that goes need not; and the configuration may ask for no
        // list at all.
        let both = ca.pem() + &other.pem();
        let told = refused(&with(&both, &other.crl(&[]))).unwrap_err();
        assert!(told.contains("no list of CN=one CA"), "{told}");
        assert_eq!(refused(&with(&other.pem(), &other.crl(&[]))), Ok(()));
        assert_eq!(refused(&load(&own, &ca.pem(), None).unwrap()), Ok(()));
        // Another CA of the same name numbers its lists from one.
        let again = Authority::new("one CA");
        let first = again.crl_numbered(&[], 1, days(-9), days(30));
        assert_eq!(refused(&with(&again.pem(), &first)), Ok(()));

        let expired = ca.issue("localhost", |params| params.not_after = days(-1));
        let early = ca.issue("localhost", |params| params.not_before = days(1));
        let good = load(&own, &ca.pem(), None).unwrap();
        for (other, word) in [(&expired, "expired on"), (&early, "is not valid before")] {
            let other = load(other, &ca.pem(), None).unwrap();
            let error = other.check_may_replace(&good).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.source_file(), Source::Certificate);
            assert!(good.check_may_replace(&other).is_ok() && other.check_may_replace(&other).is_ok());
        }
    }

    #[test]
    fn two_cas_of_one_name_with_a_list_are_warned_of() {
        let (one, two) = (Authority::new("one CA"), Authority::new("one CA"));
        let state = load(&one.server(), &(one.pem() + &two.pem()), Some(&one.crl(&[]))).unwrap();
        assert!(state.warnings().iter().any(|warning| warning.contains("several CAs")));
    }

    #[test]
    fn each_state_has_a_generation_of_its_own() {
        let ca = Authority::new("one CA");
        let (one, two) = (load(&ca.server(), &ca.pem(), None), load(&ca.server(), &ca.pem(), None));
        assert_ne!(one.unwrap().generation, two.unwrap().generation);
    }
}
