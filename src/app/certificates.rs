//! Requests and certificates that travel between the storage host and the machine that keeps the CA's key: what needs
//! no running service.
//!
//! A service that runs follows its files and takes an installed certificate up by itself.

use std::path::Path;

use super::spec::server_names;
use crate::config::Config;
use crate::model::host::{HostName, InvalidHostName};
pub(crate) use crate::pki::{Installed, MadeCa, OwnCertificate, SignedServerCertificate};
use crate::pki::{InvalidServerName, IssuedHost, Pki, PkiError, ServerName};

/// The reason for which there is no request or no certificate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificatesError {
    /// The directory of certificates, or what was to be done with it.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No name of a host.
    #[error(transparent)]
    Host(#[from] InvalidHostName),
    /// No name of a server.
    #[error(transparent)]
    Server(#[from] InvalidServerName),
    /// The certificates in use come from somewhere else.
    #[error(
        "`tls` names certificates that are not volhost's own: request and replace them where they come from"
    )]
    NotOurs,
}

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub(crate) enum Signed {
    /// A server's certificate.
    Server(SignedServerCertificate),
    /// A host's.
    Host(Box<IssuedHost>),
}

/// Makes the CA by hand, for a shared catalog, whose instances never make one.
pub(crate) fn init(config: &Config) -> Result<MadeCa, CertificatesError> {
    if config.live.tls.server.is_some() && config.live.tls.client_ca.is_some() {
        return Err(CertificatesError::NotOurs);
    }
    Ok(Pki::new(&config.boot.pki).init()?)
}

/// A request (PEM) for one of this machine's certificates; the server's also for names that the configuration does not
/// tell.
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
