//! Requests and certificates that travel between this directory and the place where the authority's key is kept.
//!
//! A certificate that comes back is put in force only if whoever relies on it would take it: verified by the TLS library
//! itself, against the authority that is to sign for that purpose, under every name that is wanted.

use std::sync::Arc;

use rcgen::PublicKeyData as _;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;

use super::certificate::{self, CertInfo, ServerName, describe_der};
use super::pair::{Pair, Purpose, Trust, leaf, read_key};
use super::renewal::{host_of, key_for, present, union, with_loopback, write_certificate};
use super::{IssuedHost, Pki, PkiError, authority, request};
use crate::host::name::HostName;

/// Which of this machine's certificates a request or a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// The server's.
    Server,
    /// The one of this machine's own engine.
    Client,
}

/// A server's certificate that was signed for another machine.
#[derive(Debug, Clone)]
pub struct SignedElsewhere {
    /// The certificate.
    pub pem: String,
    /// The names that it is good for.
    pub names: Vec<ServerName>,
    /// Until when it is valid.
    pub not_after: OffsetDateTime,
}

/// A certificate that came from elsewhere and is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Which it is.
    pub which: Request,
    /// Its file.
    pub path: std::path::PathBuf,
    /// What it says.
    pub info: CertInfo,
}

impl Pki {
    /// A request (PEM) for one of this machine's certificates, whose key is made where there is none: the server's for
    /// the names it has and those that are wanted, or the client's for `node`.
    pub fn request(
        &self,
        which: Request,
        node: &HostName,
        server_names: &[ServerName],
    ) -> Result<String, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let (pair, names) = match which {
            Request::Server => {
                let pair = self.server();
                let known = leaf(&pair, &trust)?.map(|leaf| leaf.info.names).unwrap_or_default();
                (pair, union(known, &with_loopback(server_names)))
            }
            Request::Client => (self.client(), vec![ServerName::Dns(node.to_string())]),
        };
        let key = key_for(&lock, &pair)?;
        authority::request(&key, &names).map_err(|source| PkiError::signing("the request", source))
    }

    /// Signs another machine's server certificate (1 year), for the names in its request.
    ///
    /// While one authority replaces another, by the old one: see [`rollover`](super::rollover).
    pub fn sign_server_csr(&self, csr_pem: &str) -> Result<SignedElsewhere, PkiError> {
        let (key, names) = request::verify_server(csr_pem).map_err(PkiError::ServerRequest)?;
        let trust = self.trust()?;
        let authority =
            trust.authority(Purpose::Server(None), || "the server's certificate".to_owned())?;
        let signed = authority
            .sign_server(&key, &names, OffsetDateTime::now_utc())
            .map_err(|source| PkiError::signing("the server", source))?;
        Ok(SignedElsewhere { pem: signed.pem, names, not_after: signed.not_after })
    }

    /// Puts a certificate in force that was signed elsewhere on a [`request`](Self::request).
    pub fn install(
        &self,
        cert_pem: &str,
        node: &HostName,
        server_names: &[ServerName],
    ) -> Result<Installed, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let (der, info) = first(cert_pem)?;
        let (which, pair) = self.owner(&der)?;
        match which {
            Request::Server => {
                let present = leaf(&pair, &trust)?;
                let known = present.as_ref().map(|leaf| leaf.info.names.clone()).unwrap_or_default();
                let signers = trust.signers(Purpose::Server(present.as_ref()));
                for name in union(known, &with_loopback(server_names)) {
                    verify_server(&der, &signers, &name)?;
                }
            }
            Request::Client => verify_host(&der, &info, &trust, node)?,
        }
        write_certificate(&lock, &pair.cert, &certificate::encode([&der]))?;
        Ok(Installed { which, path: pair.cert, info })
    }

    /// Takes a host's certificate that was signed elsewhere, for the catalog and the host's bundle.
    pub fn accept_host(&self, host: &HostName, cert_pem: &str) -> Result<IssuedHost, PkiError> {
        let trust = self.trust()?;
        let (der, info) = first(cert_pem)?;
        verify_host(&der, &info, &trust, host)?;
        Ok(IssuedHost {
            cert_pem: certificate::encode([&der]),
            key_pem: None,
            ca_pem: trust.pem,
            issued: present(host.clone(), &info),
        })
    }

    /// Whose key a certificate is of.
    fn owner(&self, der: &CertificateDer<'_>) -> Result<(Request, Pair), PkiError> {
        let public = certificate::public_key(der).map_err(unreadable)?;
        for (which, pair) in [(Request::Server, self.server()), (Request::Client, self.client())] {
            if read_key(&pair.key)?.is_some_and(|key| key.subject_public_key_info() == public) {
                return Ok((which, pair));
            }
        }
        Err(PkiError::Unfit(format!(
            "it is of neither key here, {} and {}: have a request signed that `volhost pki csr` made here",
            self.server().key.display(),
            self.client().key.display()
        )))
    }
}

fn first(pem: &str) -> Result<(CertificateDer<'static>, CertInfo), PkiError> {
    let der = certificate::decode(pem.as_bytes()).map_err(unreadable)?.swap_remove(0);
    let info = describe_der(&der).map_err(unreadable)?;
    Ok((der, info))
}

fn unreadable(source: certificate::CertificateError) -> PkiError {
    PkiError::Unfit(crate::error::chain(&source))
}

/// Refuses a server's certificate that engines would refuse under this name.
fn verify_server(
    der: &CertificateDer<'_>,
    signers: &[CertificateDer<'static>],
    name: &ServerName,
) -> Result<(), PkiError> {
    let called = match name {
        ServerName::Dns(name) => name
            .clone()
            .try_into()
            .map_err(|error| PkiError::Unfit(format!("{name} cannot be verified: {error}")))?,
        ServerName::Ip(address) => rustls::pki_types::ServerName::IpAddress((*address).into()),
    };
    WebPkiServerVerifier::builder_with_provider(roots(signers)?, default_provider().into())
        .build()
        .map_err(|error| PkiError::Unfit(error.to_string()))?
        .verify_server_cert(der, &[], &called, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|error| unfit(&error, &format!("a server called {name}"), signers))
}

/// Refuses a host's certificate that we would refuse, or that does not name it.
fn verify_host(
    der: &CertificateDer<'_>,
    info: &CertInfo,
    trust: &Trust,
    host: &HostName,
) -> Result<(), PkiError> {
    if host.is_anonymous() {
        return Err(PkiError::Anonymous);
    }
    let found = host_of(info);
    if found.as_ref() != Some(host) {
        let found = found.map_or_else(|| "no host".to_owned(), |found| found.to_string());
        return Err(PkiError::Unfit(format!("it names {found}, but is to be for {host}")));
    }
    let signers = trust.signers(Purpose::Host);
    WebPkiClientVerifier::builder_with_provider(roots(&signers)?, default_provider().into())
        .build()
        .map_err(|error| PkiError::Unfit(error.to_string()))?
        .verify_client_cert(der, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|error| unfit(&error, &format!("host {host}"), &signers))
}

fn roots(signers: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for one in signers {
        roots.add(one.clone()).map_err(|error| PkiError::Unfit(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// Why a certificate is not taken, with the authority that should have signed it.
fn unfit(error: &rustls::Error, whom: &str, signers: &[CertificateDer<'static>]) -> PkiError {
    let names: Vec<_> = signers.iter().filter_map(|one| describe_der(one).ok()).map(|info| info.subject).collect();
    PkiError::Unfit(format!("it is not good for {whom}, signed by {}: {error}", names.join(" or ")))
}
