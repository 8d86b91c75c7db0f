//! A cache of the content of certificate chains.
//!
//! Reading a certificate is a good part of the cost of a new connection, and engines open many connections with the same
//! one. The cache holds only what the same bytes always say: it never replaces their verification.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;

use crate::host::identity::{self, Identity, IdentityError};
use crate::model::host::HostName;

/// The maximum number of cached chains.
const MAX_CHAINS: usize = 1024;
/// The maximum size of a cached chain, in bytes: a peer may send certificates that its chain does not need.
const MAX_CHAIN_BYTES: usize = 4096;

/// A chain of certificates, the caller's own first.
pub(super) type Chain = Arc<[CertificateDer<'static>]>;

/// The content of a chain.
#[derive(Debug)]
pub(super) struct ParsedChain {
    pub(super) chain: Chain,
    pub(super) host: HostName,
    pub(super) by_common_name: bool,
    pub(super) serial: String,
    /// The subject of the authority that issued the caller's own certificate.
    pub(super) issuer: String,
    /// The expiry of each certificate in the chain, in seconds since 1970: the chain is verified again at
    /// each of these times. An expired certificate alone decides nothing, because a peer may send
    /// certificates that its chain does not need.
    pub(super) ends: Vec<i64>,
}

/// A cache of the content of chains.
#[derive(Debug, Default)]
pub(super) struct ChainCache(Mutex<HashMap<Chain, Arc<ParsedChain>>>);

impl ChainCache {
    /// Returns the content of a chain, from the cache if it is there.
    pub(super) fn read(&self, chain: &[CertificateDer<'static>]) -> Result<Arc<ParsedChain>, IdentityError> {
        if let Some(known) = self.table().get(chain) {
            return Ok(Arc::clone(known));
        }
        let read = Arc::new(parse_chain(chain)?);
        if chain.iter().map(|der| der.len()).sum::<usize>() <= MAX_CHAIN_BYTES {
            let mut table = self.table();
            if table.len() >= MAX_CHAINS {
                table.clear();
            }
            table.insert(Arc::clone(&read.chain), Arc::clone(&read));
        }
        Ok(read)
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Chain, Arc<ParsedChain>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_chain(chain: &[CertificateDer<'static>]) -> Result<ParsedChain, IdentityError> {
    let own = chain.first().ok_or(IdentityError::Nameless)?;
    let Identity { host, serial, issuer, not_after, by_common_name } = identity::identity(own)?;
    let others = chain.iter().skip(1).map(|der| identity::not_after(der));
    let ends = std::iter::once(Ok(not_after)).chain(others).collect::<Result<_, _>>()?;
    Ok(ParsedChain { chain: chain.into(), host, by_common_name, serial, issuer, ends })
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;
    use crate::transport::testing::Authority;

    fn chain_of(authority: &Authority, name: &str, more: usize) -> Vec<CertificateDer<'static>> {
        let pem = authority.client(name, 7).certificate;
        let own = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        std::iter::repeat_n(own, 1 + more).collect()
    }

    #[test]
    fn a_chain_is_read_once_and_another_is_another() {
        let (ca, known) = (Authority::new("one CA"), ChainCache::default());
        let (web1, web2) = (chain_of(&ca, "web1", 0), chain_of(&ca, "web2", 0));
        let first = known.read(&web1).unwrap();
        assert_eq!((first.host.as_str(), &*first.serial, first.ends.len()), ("web1", "7", 1));
        assert!(Arc::ptr_eq(&first, &known.read(&web1).unwrap()));
        assert_eq!(known.read(&web2).unwrap().host.as_str(), "web2");
        let longer = known.read(&chain_of(&ca, "web1", 1)).unwrap();
        assert_eq!(longer.ends.len(), 2, "a chain is known by all of its certificates");
        let broken = [CertificateDer::from(vec![0x30, 1])];
        assert!(known.read(&broken).is_err() && known.read(&broken).is_err() && known.read(&[]).is_err());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (ca, known) = (Authority::new("one CA"), ChainCache::default());
        let long = chain_of(&ca, "web1", 50);
        assert_eq!(known.read(&long).unwrap().ends.len(), 51);
        assert!(known.table().is_empty(), "it is too long to be kept");
        let chain = chain_of(&ca, "web1", 0);
        let read = known.read(&chain).unwrap();
        let other = |number: usize| Chain::from([CertificateDer::from(number.to_be_bytes().to_vec())]);
        known.table().extend((1..MAX_CHAINS).map(|number| (other(number), Arc::clone(&read))));
        known.read(&chain_of(&ca, "web2", 0)).unwrap();
        assert_eq!(known.table().len(), 1);
    }
}
