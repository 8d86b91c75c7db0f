//! Requests and certificates that travel between the storage host and the machine that keeps the CA's key: everything
//! about them that needs no running service.
//!
//! A running service follows its files and puts an installed certificate in force by itself.

use std::path::Path;

use super::spec::server_names;
use crate::config::Config;
use crate::model::host::{HostName, InvalidHostName};
pub(crate) use crate::pki::{Installed, MadeCa, OwnCertificate, SignedServerCertificate};
use crate::pki::{InvalidServerName, IssuedHost, Pki, PkiError, ServerName};

/// Why there is no request or no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    /// The directory of certificates, or the action on it, failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The text is not a host's name.
    #[error(transparent)]
    Host(#[from] InvalidHostName),
    /// The text is not a server's name.
    #[error(transparent)]
    Server(#[from] InvalidServerName),
    /// The certificates in use come from somewhere else.
    #[error(
        "`tls` names certificates that are not volhost's own: request and replace them where they come from"
    )]
    NotOurs,
}

/// A signed certificate.
#[derive(Debug, Clone)]
pub(crate) enum Signed {
    /// A server's certificate.
    Server(SignedServerCertificate),
    /// A host's certificate.
    Host(Box<IssuedHost>),
}

/// Makes the CA by hand, for a shared catalog: its instances never make one themselves.
pub(crate) fn init(config: &Config) -> Result<MadeCa, CertificatesError> {
    if config.live.tls.server.is_some() && config.live.tls.client_ca.is_some() {
        return Err(CertificatesError::NotOurs);
    }
    Ok(Pki::new(&config.boot.pki).init()?)
}

/// Returns a request (PEM) for one of this machine's certificates. The server's may ask for names in addition to those
/// of the configuration.
pub(crate) fn request(
    config: &Config,
    which: OwnCertificate,
    more: &[String],
) -> Result<String, CertificatesError> {
    let mut names = server_names(config);
    for name in more {
        names.push(ServerName::parse(name)?);
    }
    Ok(own(config)?.request(which, &config.boot.node, &names)?)
}

/// Puts a certificate in force that was signed on such a request.
pub(crate) fn install(config: &Config, cert_pem: &str) -> Result<Installed, CertificatesError> {
    Ok(own(config)?.install(cert_pem, &config.boot.node, &server_names(config))?)
}

/// Signs a request with the CA in a directory: for a host of that name, else for a server with the names it asks for.
pub(crate) fn sign(dir: &Path, host: Option<&str>, csr_pem: &str) -> Result<Signed, CertificatesError> {
    let pki = Pki::new(dir);
    Ok(match host {
        Some(name) => Signed::Host(pki.sign_csr(&HostName::parse(name)?, csr_pem)?.into()),
        None => Signed::Server(pki.sign_server_csr(csr_pem)?),
    })
}

/// Returns the directory of volhost's own certificates, if they are in use.
fn own(config: &Config) -> Result<Pki, CertificatesError> {
    if config.live.tls.server.is_some() {
        Err(CertificatesError::NotOurs)
    } else {
        Ok(Pki::new(&config.boot.pki))
    }
}
