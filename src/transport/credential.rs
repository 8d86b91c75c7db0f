//! The certificates that gave a caller access over TLS, and the time for which the result of their
//! verification holds.
//!
//! The content of a chain comes from a [cache](super::chain_cache); each handshake verifies the certificates again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::chain_cache::{Chain, ParsedChain};
use super::tls::{Revocation, State};
use crate::host::CertificateId;
use crate::host::identity::IdentityError;
use crate::model::host::HostName;

/// The results of verifying chains under one state. A chain that many connections use is verified only once.
pub(super) type Verdicts = HashMap<Chain, Result<(), AccessLost>>;

/// Reasons why a caller loses its access.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum AccessLost {
    #[error("its certificate is not accepted any more")]
    Certificate(#[source] rustls::Error),
    #[error("its name is not accepted any more")]
    Name(#[source] IdentityError),
    #[error("its certificate (serial {0}) was revoked")]
    Revoked(String),
}

/// A certificate chain that was valid when it was last checked.
#[derive(Debug)]
pub(super) struct Credential {
    read: Arc<ParsedChain>,
    /// The time until which that result holds, in seconds since 1970.
    good_until: AtomicI64,
    /// The generation of the state under which the chain was last found valid.
    generation: AtomicU64,
}

impl Credential {
    /// Keeps a chain that a handshake under `state` accepted, and reads the host's name from it.
    pub(super) fn of(chain: &[CertificateDer<'static>], state: &State) -> Result<Self, IdentityError> {
        let read = state.chains.read(chain)?;
        if read.by_common_name {
            state.check_name_constraints(chain)?;
        }
        let good_until = AtomicI64::new(next_end(&read.ends, now()));
        Ok(Self { read, good_until, generation: AtomicU64::new(state.generation) })
    }

    /// Returns the host that the certificate names.
    pub(super) fn host(&self) -> &HostName {
        &self.read.host
    }

    /// Returns the other facts in the certificate that the catalog records.
    pub(super) fn certificate_id(&self) -> CertificateId<'_> {
        CertificateId { issuer: &self.read.issuer, serial: &self.read.serial }
    }

    /// Checks that the caller still has access. Verifies the chain again under a new state and when one of
    /// its certificates has expired; checks revocation by name every time.
    pub(super) fn check(
        &self,
        state: &State,
        revocation: &dyn Revocation,
        verdicts: &mut Verdicts,
    ) -> Result<(), AccessLost> {
        let Self { read, good_until, generation } = self;
        let ParsedChain { chain, host, by_common_name, serial, issuer: _, ends } = &**read;
        let now = now();
        if generation.load(Ordering::Acquire) != state.generation || now > good_until.load(Ordering::Acquire)
        {
            let verify = || {
                state.verify(chain).map_err(AccessLost::Certificate)?;
                if *by_common_name {
                    state.check_name_constraints(chain).map_err(AccessLost::Name)
                } else {
                    Ok(())
                }
            };
            verdicts.entry(Arc::clone(chain)).or_insert_with(verify).clone()?;
            good_until.store(next_end(ends, now), Ordering::Release);
            generation.store(state.generation, Ordering::Release);
        }
        if revocation.refused(host, serial) {
            return Err(AccessLost::Revoked(serial.clone()));
        }
        Ok(())
    }
}

fn now() -> i64 {
    // A clock before 1970 is no reason to refuse anybody.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// Returns the first expiry that is still to come.
fn next_end(ends: &[i64], now: i64) -> i64 {
    ends.iter().copied().filter(|end| *end >= now).min().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::transport::testing::Authority;

    /// An authority's limits on DNS names do not apply to a common name. So a common name is refused if there
    /// are such limits.
    #[test]
    fn a_common_name_does_not_get_around_its_authoritys_limits() {
        use rcgen::{CertificateParams, DnType, GeneralSubtree, NameConstraints};
        let limits = |dns: &str| NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName(dns.into())],
            excluded_subtrees: vec![],
        };
        let excluded = NameConstraints {
            permitted_subtrees: vec![],
            excluded_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
        };
        let addresses = NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::IpAddress(rcgen::CidrSubnet::V4(
                [10, 0, 0, 0],
                [255, 0, 0, 0],
            ))],
            excluded_subtrees: vec![],
        };
        let nameless = |name: &str| {
            let name = name.to_owned();
            move |params: &mut CertificateParams| {
                params.subject_alt_names.clear();
                params.distinguished_name.push(DnType::CommonName, name);
            }
        };
        let state_of = |ca: &Authority, roots: &str| {
            let own = ca.server();
            State::load(own.certificate.as_bytes(), own.key.as_bytes(), roots.as_bytes(), None).unwrap()
        };
        let of = |pem: &str, state: &State| {
            let chain: Vec<_> =
                CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap();
            assert!(state.verify(&chain).is_ok(), "nothing else is wrong with it");
            Credential::of(&chain, state).map(|credential| (credential.host().to_string(), credential))
        };
        let free = Authority::new("one CA");
        for (what, name_constraints, taken) in [
            ("no limits", None, true),
            ("limits of addresses", Some(addresses), true),
            ("limits that would allow it", Some(limits("web1")), false),
            ("limits that would not", Some(limits("example.org")), false),
            ("excluded names", Some(excluded), false),
        ] {
            // The root itself has the limits.
            let ca = free.limited("one CA", name_constraints.clone());
            let state = state_of(&ca, &ca.pem());
            let (common, dns) =
                (ca.issue("web1", nameless("web1")).certificate, ca.issue("web1", |_| {}).certificate);
            assert_eq!(of(&common, &state).is_ok(), taken, "{what}");
            // An authority below the root has the limits.
            let below = ca.below("another CA", name_constraints);
            let common_below = below.issue("web1", nameless("web1")).certificate + &below.pem();
            assert_eq!(of(&common_below, &state).is_ok(), taken, "{what}, below");
            if let Err(error) = of(&common_below, &state) {
                assert!(error.to_string().contains("CN=another CA limits the DNS names"), "{error}");
            }
            if what == "limits that would allow it" {
                assert_eq!(of(&dns, &state).unwrap().0, "web1", "a DNS name is verified");
            }
        }
        // A caller that connected before the limits came loses its access.
        let ca = free.limited("one CA", None);
        let pem = ca.issue("web1", nameless("web1")).certificate;
        let (_, credential) = of(&pem, &state_of(&ca, &ca.pem())).unwrap();
        let limited = free.limited("one CA", Some(limits("web1")));
        let now = state_of(&limited, &limited.pem());
        let refused =
            credential.check(&now, &crate::transport::NobodyRevoked, &mut Verdicts::new()).unwrap_err();
        assert!(
            crate::error::chain(&refused).contains("limits the DNS names"),
            "{}",
            crate::error::chain(&refused)
        );
        assert!(
            credential
                .check(&state_of(&ca, &ca.pem()), &crate::transport::NobodyRevoked, &mut Verdicts::new())
                .is_ok()
        );
    }
}
