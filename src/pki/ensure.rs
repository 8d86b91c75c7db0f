//! Makes and renews the certificates of this machine and the authority that signs them.
//!
//! Every write happens under the directory's lock, and a key is written before its certificate: a process
//! that ends in between leaves a key, and the next process makes the certificate for it.

use std::path::{Path, PathBuf};

use rcgen::KeyPair;
use time::OffsetDateTime;

use super::authority::{self, Authority};
use super::certificate::{CertInfo, ServerName, describe};
use super::host_certificate::{Issued, issued, sign_host};
use super::pair::{Leaf, Pair, Purpose, Trust, leaf, read, read_key};
use super::{OwnCertificate, Pki, PkiError};
use crate::files::{self, Lock};
use crate::model::host::HostName;

/// The outcome of [`Pki::ensure`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensured {
    /// True if this call made the authority.
    pub ca_made: bool,
    /// True if this call wrote `server.crt`.
    pub server_renewed: bool,
    /// The certificates that this call issued to hosts: this machine's own, or none.
    pub issued: Vec<Issued>,
    /// The certificate in `client.crt`, whenever it was issued. The catalog may lack it because a process
    /// ended after it issued the certificate and before it recorded it, and only a recorded certificate can
    /// be revoked by its host's name.
    pub client: Option<Issued>,
}

/// Missing files in a directory in which no authority may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MissingFiles {
    /// The authority's certificate, and maybe more.
    Ca,
    /// These certificates, and the authority's key that would sign them.
    Signed(Vec<OwnCertificate>),
}

/// An authority that was made on the operator's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeCa {
    /// The path of its certificate.
    pub path: PathBuf,
    /// The content of the certificate.
    pub info: CertInfo,
}

/// The behaviour in a directory that has no authority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfNoCa {
    Make,
    Refuse,
}

impl Pki {
    /// Makes what does not exist yet: the authority (20 years), the server's certificate (1 year, for the
    /// given names and `localhost`, `127.0.0.1` and `::1`) and this machine's client certificate (10 years,
    /// for `node`).
    ///
    /// Renews the server's certificate, with the same key, when a third of its life is left or a name is
    /// missing; it keeps the names it had. Renews the client's when a third is left or `node` has changed. If
    /// the authority's key is kept elsewhere, that is an error only if the server's certificate cannot serve
    /// as it is; otherwise it is a warning in the log.
    ///
    /// Blocks: it waits for other processes that write here, and for the disk.
    pub fn ensure(&self, node: &HostName, server_names: &[ServerName]) -> Result<Ensured, PkiError> {
        self.ensure_at(node, server_names, OffsetDateTime::now_utc())
    }

    /// Does the same as [`Pki::ensure`], but fails if there is no authority. It is for instances of a shared
    /// catalog: each accepts the hosts of the others, so one authority must sign for all.
    pub fn ensure_of_given_ca(
        &self,
        node: &HostName,
        server_names: &[ServerName],
    ) -> Result<Ensured, PkiError> {
        self.ensure_with(IfNoCa::Refuse, node, server_names, OffsetDateTime::now_utc())
    }

    /// Returns what [`ensure_of_given_ca`](Self::ensure_of_given_ca) would find missing. Reads no key and
    /// writes nothing.
    #[must_use]
    pub fn missing_files(&self) -> Option<MissingFiles> {
        let Pair { cert, key } = self.ca();
        if !cert.exists() {
            return Some(MissingFiles::Ca);
        }
        if key.exists() {
            return None;
        }
        let pairs = [(OwnCertificate::Server, self.server()), (OwnCertificate::Client, self.client())];
        let missing: Vec<_> =
            pairs.into_iter().filter(|(_, pair)| !pair.cert.exists()).map(|(which, _)| which).collect();
        (!missing.is_empty()).then_some(MissingFiles::Signed(missing))
    }

    /// Makes an authority (20 years) in a directory that has none.
    pub fn init(&self) -> Result<MadeCa, PkiError> {
        let lock = self.lock()?;
        let path = self.ca().cert;
        if read(&path)?.is_some() {
            return Err(PkiError::CaExists { path });
        }
        self.make_ca(&lock, OffsetDateTime::now_utc())?;
        let info = describe(self.ca_pem()?)
            .map_err(|source| PkiError::Certificate { path: path.clone(), source })?;
        Ok(MadeCa { path, info })
    }

    /// Adds a name to the server's certificate. Returns true if the certificate was renewed because it lacked
    /// the name.
    pub fn add_server_name(&self, name: &ServerName) -> Result<bool, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let pair = self.server();
        let Some(leaf) = leaf(&pair, &trust)? else {
            return Err(PkiError::NoServer { path: pair.cert });
        };
        self.renew_server(&lock, &trust, &leaf, std::slice::from_ref(name), OffsetDateTime::now_utc())
    }

    /// Returns true if the server's certificate is due for renewal; [`Pki::ensure`] renews it.
    pub fn renewal_due(&self) -> Result<bool, PkiError> {
        Ok(self.server_info()?.renewal_due(OffsetDateTime::now_utc()))
    }

    /// Does the same as [`Pki::ensure`], at a time that a test chooses.
    pub(super) fn ensure_at(
        &self,
        node: &HostName,
        server_names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Ensured, PkiError> {
        self.ensure_with(IfNoCa::Make, node, server_names, now)
    }

    /// Makes what is missing, and renews what is due.
    pub(super) fn ensure_with(
        &self,
        if_no_ca: IfNoCa,
        node: &HostName,
        server_names: &[ServerName],
        now: OffsetDateTime,
    ) -> Result<Ensured, PkiError> {
        let lock = self.lock()?;
        let (trust, ca_made) = self.make_trust(&lock, if_no_ca, now)?;

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
                (host_of(&leaf.info).map(|host| earlier_issued(host, &leaf.info)), issued)
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

    /// Renews the server's certificate if it lacks a name or is due. Returns true if it did.
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

    /// Returns the authorities, and true if they were made now. A key without a certificate is left by a
    /// crash in this module.
    fn make_trust(
        &self,
        lock: &Lock,
        if_no_ca: IfNoCa,
        now: OffsetDateTime,
    ) -> Result<(Trust, bool), PkiError> {
        if read(&self.ca().cert)?.is_some() {
            self.complete_interrupted_step(lock)?;
            return Ok((self.trust()?, false));
        }
        if if_no_ca == IfNoCa::Refuse {
            return Err(PkiError::NoCaGiven { pki: self.dir().to_owned() });
        }
        self.make_ca(lock, now)?;
        Ok((self.trust()?, true))
    }

    /// Makes the authority. Refuses if there are certificates of an authority that was lost.
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

/// Renews this machine's client certificate if the machine's name has changed, the certificate is due, or
/// another authority takes over. Keeps a certificate that cannot be signed now, because the server can serve
/// other hosts all the same.
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
            signing_remedy("client")
        );
        return Ok(None);
    };
    log::info!(
        "{} is made anew for {node}; a running engine reads it when it is restarted",
        pair.cert.display()
    );
    sign_client(lock, authority, pair, &leaf.key, node, now).map(Some)
}

/// Returns the authority that can renew a certificate, if the certificate is due and the authority outlives
/// it.
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
                signing_remedy(which)
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

/// Words how to get a certificate from the place where the authority's key is kept.
fn signing_remedy(which: &str) -> String {
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

/// Returns the catalog's record of a host certificate that was issued earlier, or elsewhere.
pub(super) fn earlier_issued(host: HostName, info: &CertInfo) -> Issued {
    Issued {
        host,
        serial: info.serial.clone(),
        issuer: info.issuer.clone(),
        issued_at: info.not_before + authority::BACKDATED,
        not_after: info.not_after,
    }
}

/// Returns the wanted names and the loopback names of this machine.
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

/// Returns the key of a pair whose certificate is to be made: the one that a crash left, or a new one.
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
