//! What is made where it is missing, and made anew in time.
//!
//! Everything here is written under the directory's lock: a key first and its certificate after it, so that a process
//! that ends in between leaves a key whose certificate the next one makes.

use std::path::Path;

use rcgen::KeyPair;
use time::OffsetDateTime;

use super::authority::{self, Authority};
use super::certificate::{CertInfo, ServerName};
use super::pair::{Leaf, Pair, Purpose, Trust, leaf, read, read_key};
use super::{Ensured, Issued, Pki, PkiError, issued, sign_host};
use crate::files::{self, Lock};
use crate::model::host::HostName;

/// What becomes of a directory that has no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutCa {
    /// It gets one.
    Make,
    /// That is an error.
    Refuse,
}

impl Pki {
    /// [`Pki::ensure`], at a moment that tests can choose.
    pub(super) fn ensure_at(
        &self,
        node: &HostName,
        server_names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Ensured, PkiError> {
        self.ensure_with(WithoutCa::Make, node, server_names, now)
    }

    /// Makes what is missing, and anew what is old.
    pub(super) fn ensure_with(
        &self,
        without_ca: WithoutCa,
        node: &HostName,
        server_names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Ensured, PkiError> {
        let lock = self.lock()?;
        let (trust, ca_made) = self.make_trust(&lock, without_ca, now)?;

        let names = with_loopback(server_names);
        let pair = self.server();
        let server_renewed = match leaf(&pair, &trust)? {
            Some(leaf) => self.renew_server(&lock, &trust, &leaf, &names, now)?,
            None => {
                let authority =
                    trust.authority(Purpose::Server(None), || "the server's certificate".to_owned())?;
                let key = key_for(&lock, &pair)?;
                sign_server(&lock, authority, &pair, &key, &names, now)?;
                true
            }
        };

        let pair = self.client();
        let (earlier, issued) = match leaf(&pair, &trust)? {
            Some(leaf) => {
                let issued = renew_client(&lock, &trust, &pair, &leaf, node, now)?;
                (host_of(&leaf.info).map(|host| present(host, &leaf.info)), issued)
            }
            None => {
                let authority = trust.authority(Purpose::Host, || format!("the certificate of {node}"))?;
                let key = key_for(&lock, &pair)?;
                (None, Some(sign_client(&lock, authority, &pair, &key, node, now)?))
            }
        };
        Ok(Ensured {
            ca_made,
            server_renewed,
            client: issued.clone().or(earlier),
            issued: issued.into_iter().collect(),
        })
    }

    /// Makes the server's certificate anew if it lacks a name or nears its end.
    pub(super) fn renew_server(
        &self,
        lock: &Lock,
        trust: &Trust,
        leaf: &Leaf,
        wanted: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<bool, PkiError> {
        let pair = self.server();
        let missing = wanted.iter().find(|name| !leaf.info.names.contains(name));
        if missing.is_some() || !leaf.info.is_valid_at(now) {
            let authority = trust.authority(Purpose::Server(Some(leaf)), || match missing {
                Some(name) => format!("a server's certificate that names {name}"),
                None => format!(
                    "a server's certificate in place of {}, which is not valid now",
                    pair.cert.display()
                ),
            })?;
            let names = union(leaf.info.names.clone(), wanted);
            sign_server(lock, authority, &pair, &leaf.key, &names, now)?;
            return Ok(true);
        }
        let Some(authority) = renewable(trust, Purpose::Server(Some(leaf)), &pair, &leaf.info, now) else {
            return Ok(false);
        };
        sign_server(lock, authority, &pair, &leaf.key, &leaf.info.names, now)?;
        Ok(true)
    }

    /// The authorities, made where there are none. A key without a certificate is what a crash in here leaves.
    fn make_trust(
        &self,
        lock: &Lock,
        without_ca: WithoutCa,
        now: OffsetDateTime,
    ) -> Result<(Trust, bool), PkiError> {
        if read(&self.ca().cert)?.is_some() {
            self.settle(lock)?;
            return Ok((self.trust()?, false));
        }
        if without_ca == WithoutCa::Refuse {
            return Err(PkiError::NoCaGiven { pki: self.dir().to_owned() });
        }
        self.make_ca(lock, now)?;
        Ok((self.trust()?, true))
    }

    /// Makes the authority, unless there are certificates of one that was lost.
    pub(super) fn make_ca(&self, lock: &Lock, now: OffsetDateTime) -> Result<(), PkiError> {
        let ca = self.ca();
        for leaf in [self.server().cert, self.client().cert] {
            if read(&leaf)?.is_some() {
                return Err(PkiError::CaLost { ca: ca.cert, leaf });
            }
        }
        let key = key_for(lock, &ca)?;
        let signed = authority::self_sign(&key, now).map_err(|source| PkiError::signing("the CA", source))?;
        write_certificate(lock, &ca.cert, &signed.pem)
    }
}

/// Makes this machine's client certificate anew if its name has changed, it nears its end, or another authority takes
/// over. What cannot be signed is left as it is: the server serves other hosts all the same.
fn renew_client(
    lock: &Lock,
    trust: &Trust,
    pair: &Pair,
    leaf: &Leaf,
    node: &HostName,
    now: OffsetDateTime,
) -> Result<Option<Issued>, PkiError> {
    let (authority, _) = trust.signer(Purpose::Host);
    let renamed = host_of(&leaf.info).as_ref() != Some(node);
    let moves = authority.is_some() && trust.successor.as_ref().is_some_and(|new| !new.signed(leaf));
    let authority = if renamed || moves {
        authority
    } else {
        match renewable(trust, Purpose::Host, pair, &leaf.info, now) {
            None => return Ok(None),
            authority => authority,
        }
    };
    let Some(authority) = authority else {
        log::warn!(
            "{} does not name this machine, {node}, and there is no CA key to make another one with: {}",
            pair.cert.display(),
            elsewhere("client")
        );
        return Ok(None);
    };
    log::info!(
        "{} is made anew for {node}; a running engine reads it when it is restarted",
        pair.cert.display()
    );
    sign_client(lock, authority, pair, &leaf.key, node, now).map(Some)
}

/// The authority that makes a certificate anew, where it is time and a later one can be made.
fn renewable<'a>(
    trust: &'a Trust,
    purpose: Purpose<'_>,
    pair: &Pair,
    info: &CertInfo,
    now: OffsetDateTime,
) -> Option<&'a Authority> {
    if !info.renewal_due(now) {
        return None;
    }
    let path = pair.cert.display();
    match trust.signer(purpose).0 {
        None => {
            let which = match purpose {
                Purpose::Host => "client",
                Purpose::Server(_) => "server",
            };
            log::warn!(
                "{path} expires on {}, and there is no CA key to make another one with: {}",
                info.not_after,
                elsewhere(which)
            );
            None
        }
        Some(authority) if authority.not_after() <= info.not_after => {
            log::warn!(
                "{path} expires on {} together with its CA: `volhost pki rollover start` begins a new one",
                info.not_after
            );
            None
        }
        authority => authority,
    }
}

/// How a certificate is had from where the CA's key is.
fn elsewhere(which: &str) -> String {
    format!(
        "put it there, or have the request of `volhost pki csr {which}` signed where it is (`volhost pki sign`) and give the certificate to `volhost pki install`"
    )
}

pub(super) fn sign_server(
    lock: &Lock,
    authority: &Authority,
    pair: &Pair,
    key: &KeyPair,
    names: &[ServerName],
    now: OffsetDateTime,
) -> Result<(), PkiError> {
    let signed =
        authority.sign_server(key, names, now).map_err(|source| PkiError::signing("the server", source))?;
    write_certificate(lock, &pair.cert, &signed.pem)
}

pub(super) fn sign_client(
    lock: &Lock,
    authority: &Authority,
    pair: &Pair,
    key: &KeyPair,
    node: &HostName,
    now: OffsetDateTime,
) -> Result<Issued, PkiError> {
    let signed = sign_host(authority, key, node, now)?;
    write_certificate(lock, &pair.cert, &signed.pem)?;
    Ok(issued(node, &signed))
}

/// A host's certificate that was issued earlier, or elsewhere.
pub(super) fn present(host: HostName, info: &CertInfo) -> Issued {
    Issued {
        host,
        serial: info.serial.clone(),
        issuer: info.issuer.clone(),
        issued_at: info.not_before + authority::BACKDATED,
        not_after: info.not_after,
    }
}

/// The names that are wanted, and those by which this machine calls itself.
pub(super) fn with_loopback(wanted: &[ServerName]) -> Vec<ServerName> {
    let loopback = [
        ServerName::Dns("localhost".to_owned()),
        ServerName::Ip(std::net::Ipv4Addr::LOCALHOST.into()),
        ServerName::Ip(std::net::Ipv6Addr::LOCALHOST.into()),
    ];
    union(wanted.to_vec(), &loopback)
}

pub(super) fn host_of(info: &CertInfo) -> Option<HostName> {
    HostName::parse(info.dns_names.first()?).ok()
}

pub(super) fn union(mut names: Vec<ServerName>, more: &[ServerName]) -> Vec<ServerName> {
    for name in more {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// The key of a pair whose certificate is to be made: the one that a crash left, or a new one.
pub(super) fn key_for(_held: &Lock, pair: &Pair) -> Result<KeyPair, PkiError> {
    if let Some(key) = read_key(&pair.key)? {
        return Ok(key);
    }
    let key = authority::new_key().map_err(|source| PkiError::signing("a new key", source))?;
    files::create(&pair.key, key.serialize_pem().as_bytes(), 0o600).map_err(|source| PkiError::Io {
        did: "write",
        path: pair.key.clone(),
        source,
    })?;
    Ok(key)
}

pub(super) fn write_certificate(_held: &Lock, path: &Path, pem: &str) -> Result<(), PkiError> {
    files::replace(path, pem.as_bytes(), 0o644).map_err(|source| PkiError::Io {
        did: "write",
        path: path.to_owned(),
        source,
    })
}
