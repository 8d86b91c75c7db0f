//! Requests and certificates that travel between this directory and the place where the authority's key is
//! kept.
//!
//! A certificate that comes back is put in force only if its users would accept it: the TLS library itself
//! verifies it against the authority that signs for that purpose, under every wanted name.

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
use super::ensure::{earlier_issued, host_of, key_for, union, with_loopback, write_certificate};
use super::pair::{Pair, Purpose, Trust, leaf, read_key};
use super::{IssuedHost, Pki, PkiError, authority, request};
use crate::model::host::HostName;

/// One of this machine's two certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnCertificate {
    /// The server's certificate.
    Server,
    /// The client certificate of this machine's own engine.
    Client,
}

/// A server's certificate that was signed for another machine.
#[derive(Debug, Clone)]
pub struct SignedServerCertificate {
    /// The certificate.
    pub pem: String,
    /// The names that it is valid for.
    pub names: Vec<ServerName>,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
}

/// A certificate that was signed elsewhere and is now in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// The kind of the certificate.
    pub which: OwnCertificate,
    /// The path of the file.
    pub path: std::path::PathBuf,
    /// The content of the certificate.
    pub info: CertInfo,
}

impl Pki {
    /// Makes a request (PEM) for one of this machine's certificates: the server's, with its present names and
    /// the wanted ones, or the client's, for `node`. Makes the key if it does not exist.
    pub fn request(
        &self,
        which: OwnCertificate,
        node: &HostName,
        server_names: &[ServerName],
    ) -> Result<String, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let (pair, names) = match which {
            OwnCertificate::Server => {
                let pair = self.server();
                let known = leaf(&pair, &trust)?.map(|leaf| leaf.info.names).unwrap_or_default();
                (pair, union(known, &with_loopback(server_names)))
            }
            OwnCertificate::Client => (self.client(), vec![ServerName::Dns(node.to_string())]),
        };
        let key = key_for(&lock, &pair)?;
        authority::request(&key, &names).map_err(|source| PkiError::signing("the request", source))
    }

    /// Signs another machine's server certificate (1 year), for the names in its request.
    ///
    /// The old authority signs it while one replaces the other: see [`rollover`](super::rollover).
    pub fn sign_server_csr(&self, csr_pem: &str) -> Result<SignedServerCertificate, PkiError> {
        let (key, names) = request::verify_server(csr_pem).map_err(PkiError::ServerRequest)?;
        let trust = self.trust()?;
        let authority = trust.authority(Purpose::Server(None), || "the server's certificate".to_owned())?;
        let signed = authority
            .sign_server(&key, &names, OffsetDateTime::now_utc())
            .map_err(|source| PkiError::signing("the server", source))?;
        Ok(SignedServerCertificate { pem: signed.pem, names, not_after: signed.not_after })
    }

    /// Puts a certificate in force that was signed elsewhere for a [`request`](Self::request) of this
    /// machine.
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
            OwnCertificate::Server => {
                let present = leaf(&pair, &trust)?;
                let known = present.as_ref().map(|leaf| leaf.info.names.clone()).unwrap_or_default();
                let signers = trust.signers(Purpose::Server(present.as_ref()));
                for name in union(known, &with_loopback(server_names)) {
                    verify_server(&der, &signers, &name)?;
                }
            }
            OwnCertificate::Client => verify_host(&der, &info, &trust, node)?,
        }
        write_certificate(&lock, &pair.cert, &certificate::encode([&der]))?;
        Ok(Installed { which, path: pair.cert, info })
    }

    /// Checks a host's certificate that was signed elsewhere, and returns it for the catalog and the host's
    /// bundle.
    pub fn accept_host(&self, host: &HostName, cert_pem: &str) -> Result<IssuedHost, PkiError> {
        let trust = self.trust()?;
        let (der, info) = first(cert_pem)?;
        verify_host(&der, &info, &trust, host)?;
        Ok(IssuedHost {
            cert_pem: certificate::encode([&der]),
            key_pem: None,
            ca_pem: trust.pem,
            issued: earlier_issued(host.clone(), &info),
        })
    }

    /// Returns the certificate of this machine, and its files, whose key is in a certificate.
    fn owner(&self, der: &CertificateDer<'_>) -> Result<(OwnCertificate, Pair), PkiError> {
        let public = certificate::public_key(der).map_err(PkiError::Unreadable)?;
        for (which, pair) in
            [(OwnCertificate::Server, self.server()), (OwnCertificate::Client, self.client())]
        {
            if read_key(&pair.key)?.is_some_and(|key| key.subject_public_key_info() == public) {
                return Ok((which, pair));
            }
        }
        Err(PkiError::Unacceptable(format!(
            "it is of neither key here, {} and {}: have a request signed that `volhost pki csr` made here",
            self.server().key.display(),
            self.client().key.display()
        )))
    }
}

fn first(pem: &str) -> Result<(CertificateDer<'static>, CertInfo), PkiError> {
    let der = certificate::decode(pem.as_bytes()).map_err(PkiError::Unreadable)?.swap_remove(0);
    let info = describe_der(&der).map_err(PkiError::Unreadable)?;
    Ok((der, info))
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
            .map_err(|error| PkiError::Unacceptable(format!("{name} cannot be verified: {error}")))?,
        ServerName::Ip(address) => rustls::pki_types::ServerName::IpAddress((*address).into()),
    };
    WebPkiServerVerifier::builder_with_provider(roots(signers)?, default_provider().into())
        .build()
        .map_err(|error| PkiError::Unacceptable(error.to_string()))?
        .verify_server_cert(der, &[], &called, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|error| unfit(&error, &format!("a server called {name}"), signers))
}

/// Refuses a host's certificate that this server would refuse, or that does not name the host.
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
        return Err(PkiError::Unacceptable(format!("it names {found}, but is to be for {host}")));
    }
    let signers = trust.signers(Purpose::Host);
    WebPkiClientVerifier::builder_with_provider(roots(&signers)?, default_provider().into())
        .build()
        .map_err(|error| PkiError::Unacceptable(error.to_string()))?
        .verify_client_cert(der, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|error| unfit(&error, &format!("host {host}"), &signers))
}

fn roots(signers: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for one in signers {
        roots.add(one.clone()).map_err(|error| PkiError::Unacceptable(error.to_string()))?;
    }
    Ok(Arc::new(roots))
}

/// Returns the error that says why a certificate is refused and which authority should have signed it.
fn unfit(error: &rustls::Error, whom: &str, signers: &[CertificateDer<'static>]) -> PkiError {
    let names: Vec<_> =
        signers.iter().filter_map(|one| describe_der(one).ok()).map(|info| info.subject).collect();
    PkiError::Unacceptable(format!("it is not good for {whom}, signed by {}: {error}", names.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;
    use crate::pki::tests::{client_is_accepted, content, empty, host, made, name, serves};

    /// Returns a storage host without the authority's key, and the machine that has the key.
    fn two() -> ([tempfile::TempDir; 2], Pki, Pki) {
        let (dir, pki, _) = made();
        let (safe_dir, safe) = empty();
        std::fs::create_dir_all(safe.dir()).unwrap();
        std::fs::copy(pki.ca().cert, safe.ca().cert).unwrap();
        std::fs::rename(pki.ca().key, safe.ca().key).unwrap();
        ([dir, safe_dir], pki, safe)
    }

    #[test]
    fn a_server_gets_its_names_and_nothing_else_from_elsewhere() {
        let (_dirs, pki, safe) = two();
        let wanted = [name("vol.example.org"), name("fd00::7")];
        let node = host("store1");
        let request = pki.request(OwnCertificate::Server, &node, &wanted).unwrap();
        let signed = safe.sign_server_csr(&request).unwrap();
        for wanted in wanted.iter().chain(&[name("store1.example.org"), name("localhost")]) {
            assert!(signed.names.contains(wanted), "{wanted} in {:?}", signed.names);
        }
        let (before, key) = (content(&pki.server().cert), content(&pki.server().key));
        let installed = pki.install(&signed.pem, &node, &wanted).unwrap();
        assert_eq!((installed.which, installed.path), (OwnCertificate::Server, pki.server().cert));
        assert_ne!(content(&pki.server().cert), before);
        assert_eq!(content(&pki.server().key), key);
        for called in ["vol.example.org", "fd00::7", "store1.example.org", "127.0.0.1"] {
            serves(&pki.ca_pem().unwrap(), &content(&pki.server().cert), called).unwrap();
        }
        assert!(!pki.ensure(&node, &wanted).unwrap().server_renewed);
    }

    #[test]
    fn a_machine_that_has_nothing_but_the_authoritys_certificate_asks_for_all() {
        let (_dirs, _, safe) = two();
        let (_dir, pki) = empty();
        std::fs::create_dir_all(pki.dir()).unwrap();
        std::fs::copy(safe.ca().cert, pki.ca().cert).unwrap();
        let (node, wanted) = (host("store2"), [name("10.0.0.8")]);
        let text = chain(&pki.ensure(&node, &wanted).unwrap_err());
        assert!(text.contains("the server's certificate is needed"), "{text}");
        let request = pki.request(OwnCertificate::Server, &node, &wanted).unwrap();
        pki.install(&safe.sign_server_csr(&request).unwrap().pem, &node, &wanted).unwrap();
        let request = pki.request(OwnCertificate::Client, &node, &wanted).unwrap();
        let installed =
            pki.install(&safe.sign_csr(&node, &request).unwrap().cert_pem, &node, &wanted).unwrap();
        assert_eq!(installed.which, OwnCertificate::Client);
        let ensured = pki.ensure(&node, &wanted).unwrap();
        assert_eq!(ensured.client.unwrap().serial, installed.info.serial);
        assert!(ensured.issued.is_empty() && !ensured.server_renewed);
    }

    #[test]
    fn what_would_not_be_relied_on_is_not_installed() {
        let (_dirs, pki, safe) = two();
        let (_other_dir, other, _) = made();
        let (node, none) = (host("store1"), []);
        let server = pki.request(OwnCertificate::Server, &node, &none).unwrap();
        let client = pki.request(OwnCertificate::Client, &node, &none).unwrap();
        let good = safe.sign_server_csr(&server).unwrap().pem;
        let before = [content(&pki.server().cert), content(&pki.client().cert)];
        for (pem, wanted, expected) in [
            (other.sign_server_csr(&server).unwrap().pem, &none[..], "UnknownIssuer"),
            (good.clone(), &[name("new.example.org")], "a server called new.example.org"),
            // A host's certificate for the server's key, and a server's for the client's key.
            (
                safe.sign_csr(&host("localhost"), &bare(&pki.server())).unwrap().cert_pem,
                &none,
                "a server called",
            ),
            (safe.sign_server_csr(&client).unwrap().pem, &none, "host store1"),
            (content(&safe.ca().cert), &none, "it is of neither key here"),
            (safe.issue_host(&node).unwrap().cert_pem, &none, "it is of neither key here"),
            ("junk".to_owned(), &none, "it holds no"),
        ] {
            let text = chain(&pki.install(&pem, &node, wanted).unwrap_err());
            assert!(text.contains(expected), "{text}");
        }
        let text = chain(
            &pki.install(&safe.sign_csr(&host("store1"), &client).unwrap().cert_pem, &host("store9"), &none)
                .unwrap_err(),
        );
        assert!(text.contains("it names store1, but is to be for store9"), "{text}");
        assert_eq!([content(&pki.server().cert), content(&pki.client().cert)], before);

        let text = chain(&safe.sign_server_csr(&bare(&pki.server())).unwrap_err());
        assert!(text.contains("it holds no name") && text.contains("--host NAME"), "{text}");
    }

    /// A request without a name.
    fn bare(pair: &Pair) -> String {
        authority::request(&read_key(&pair.key).unwrap().unwrap(), &[]).unwrap()
    }

    #[test]
    fn a_host_may_be_certified_elsewhere() {
        let (_dirs, pki, safe) = two();
        let signed = safe.issue_host(&host("web1")).unwrap();
        let accepted = pki.accept_host(&host("web1"), &signed.cert_pem).unwrap();
        assert_eq!(accepted.issued, signed.issued);
        assert_eq!((accepted.key_pem, accepted.ca_pem.as_str()), (None, &*content(&pki.ca().cert)));
        client_is_accepted(&accepted.ca_pem, &accepted.cert_pem, OffsetDateTime::now_utc()).unwrap();
        let (_other_dir, other, _) = made();
        for (name, pem, expected) in [
            ("web2", signed.cert_pem.clone(), "it names web1, but is to be for web2"),
            ("web1", other.issue_host(&host("web1")).unwrap().cert_pem, "UnknownIssuer"),
            ("store1.example.org", content(&pki.server().cert), "it is not good for host store1.example.org"),
        ] {
            let text = chain(&pki.accept_host(&host(name), &pem).unwrap_err());
            assert!(text.contains(expected), "{text}");
        }
    }

    #[test]
    fn during_a_rollover_each_certificate_is_of_the_authority_that_it_should_be_of() {
        let (_dirs, pki, safe) = two();
        let node = host("store1");
        pki.start_rollover().unwrap();
        for (from, to) in [(pki.ca().cert, safe.ca().cert), (pki.next().cert, safe.next().cert)] {
            std::fs::copy(from, to).unwrap();
        }
        let early = safe.sign_csr(&host("web1"), &bare(&pki.client()));
        assert!(matches!(early, Err(PkiError::CaKeyMissing { .. })), "{early:?}");
        std::fs::rename(pki.next().key, safe.next().key).unwrap();
        let signed = safe.issue_host(&host("web1")).unwrap();
        pki.accept_host(&host("web1"), &signed.cert_pem).unwrap();
        let request = pki.request(OwnCertificate::Server, &node, &[]).unwrap();
        pki.install(&safe.sign_server_csr(&request).unwrap().pem, &node, &[]).unwrap();
        // Engines that know only the old authority could not verify a certificate of the new one.
        std::fs::copy(safe.next().key, safe.ca().key).unwrap();
        let text = chain(&pki.install(&safe.sign_server_csr(&request).unwrap().pem, &node, &[]).unwrap_err());
        assert!(text.contains("it is not good for a server called"), "{text}");
    }
}
