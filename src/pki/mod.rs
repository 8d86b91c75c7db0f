//! Certificates: an authority, this machine's server and client certificates, those of other hosts, and bundles.
//!
//! Everything lies in one directory (`ca`, `server` and `client`, each a `.crt` and a `.key`). A key is made in
//! memory, written once, 0600, and never replaced or removed here; a certificate can be made again from its key, so a
//! renewal is the rename of one file and nobody ever reads a certificate beside another one's key. To change a key,
//! remove both files of its pair, then restart or `volhost reload --force`; that of the authority is changed by a rollover, during which `ca-next` lies there too.
//!
//! The authority's key is needed only while something is signed and may be kept elsewhere at other times: requests go
//! there and certificates come back. Who may have a certificate is decided by the caller; who is let in with one, by the
//! transport.

pub(crate) mod authority;
pub mod bundle;
pub(crate) mod certificate;
mod error;
mod external_ca;
mod pair;
mod renewal;
mod request;
mod rollover;

use std::fmt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use self::authority::{Authority, Signed};
pub use self::certificate::{
    CertInfo, CertificateError, InvalidServerName, ServerName, describe, describe_der,
};
pub use self::error::PkiError;
pub use self::external_ca::{Installed, Request, SignedElsewhere};
pub use self::pair::Pair;
use self::pair::{Purpose, Trust, authorities, leaf, read};
use self::renewal::WithoutCa;
pub use self::request::RequestError;
pub use self::rollover::{Finished, Rollover, STEPS, Started};
use crate::files::{self, Lock};
use crate::model::host::HostName;

/// A directory of keys and certificates, `/etc/volhost/pki` by default.
#[derive(Debug, Clone)]
pub struct Pki {
    dir: PathBuf,
}

/// A certificate that was issued to a host, for the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// Whom it names.
    pub host: HostName,
    /// Its serial number, in lower-case hexadecimal without leading zeros.
    pub serial: String,
    /// The subject of the authority that signed it.
    pub issuer: String,
    /// When it was issued.
    pub issued_at: OffsetDateTime,
    /// When it expires.
    pub not_after: OffsetDateTime,
}

/// What [`Pki::ensure`] found and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensured {
    /// Whether the authority was made now.
    pub ca_made: bool,
    /// Whether `server.crt` was written now, for the first time or anew.
    pub server_renewed: bool,
    /// Certificates issued to hosts now: this machine's own, or none.
    pub issued: Vec<Issued>,
    /// The certificate that is in `client.crt` now, whenever it was issued. A process that ended between issuing and
    /// recording left one the catalog does not know, and only a known certificate can be revoked by its host's name.
    pub client: Option<Issued>,
}

/// What a directory lacks where no authority may be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacking {
    /// The authority: its certificate, and then maybe more.
    Ca,
    /// These certificates, and the authority's key to sign them with.
    Signed(Vec<Request>),
}

/// An authority that was made by the operator's word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeCa {
    /// The file of its certificate.
    pub path: PathBuf,
    /// What that says.
    pub info: CertInfo,
}

/// A certificate for another host, with what its engine needs beside it. Nothing of it is kept here.
#[derive(Clone)]
pub struct IssuedHost {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key; none when the host made its own and sent a request.
    pub key_pem: Option<String>,
    /// The authorities that the engine is to trust: all of `ca.crt`.
    pub ca_pem: String,
    /// What the catalog remembers.
    pub issued: Issued,
}

impl fmt::Debug for IssuedHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not reach a log.
        f.debug_struct("IssuedHost").field("issued", &self.issued).finish_non_exhaustive()
    }
}

impl Pki {
    /// The directory need not exist.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The authority's files. The key may be missing.
    #[must_use]
    pub fn ca(&self) -> Pair {
        self.pair("ca")
    }

    /// The files of the authority that takes over, while one does.
    #[must_use]
    pub fn next(&self) -> Pair {
        self.pair("ca-next")
    }

    /// The files that an `https` listener serves with.
    #[must_use]
    pub fn server(&self) -> Pair {
        self.pair("server")
    }

    /// The files by which this machine's own engine proves its name.
    #[must_use]
    pub fn client(&self) -> Pair {
        self.pair("client")
    }

    /// Makes what does not exist yet: the authority (20 years), the server's certificate (1 year, for the names given
    /// and `localhost`, `127.0.0.1` and `::1`) and this machine's client certificate (10 years, for `node`).
    ///
    /// The server's certificate is made anew, with the same key, when a third of its life is left or a name is
    /// missing; the names it had stay. The client's is made anew when a third is left or `node` has changed. Where the
    /// authority's key is kept elsewhere, that is an error only for a server's certificate that cannot serve as it
    /// is, and a warning in the log otherwise.
    ///
    /// Blocks: it waits for other processes that write here, and for the disk.
    pub fn ensure(&self, node: &HostName, server_names: &[ServerName]) -> Result<Ensured, PkiError> {
        self.ensure_at(node, server_names, OffsetDateTime::now_utc())
    }

    /// As [`Pki::ensure`], but never makes an authority: where there is none, that is an error. For instances that let
    /// in each other's hosts, which are all of one authority.
    pub fn ensure_of_given_ca(
        &self,
        node: &HostName,
        server_names: &[ServerName],
    ) -> Result<Ensured, PkiError> {
        self.ensure_with(WithoutCa::Refuse, node, server_names, OffsetDateTime::now_utc())
    }

    /// What is missing for [`ensure_of_given_ca`](Self::ensure_of_given_ca), as far as that can be told without reading a
    /// key or writing anything.
    #[must_use]
    pub fn lacking(&self) -> Option<Lacking> {
        let Pair { cert, key } = self.ca();
        if !cert.exists() {
            return Some(Lacking::Ca);
        }
        if key.exists() {
            return None;
        }
        let pairs = [(Request::Server, self.server()), (Request::Client, self.client())];
        let missing: Vec<_> =
            pairs.into_iter().filter(|(_, pair)| !pair.cert.exists()).map(|(which, _)| which).collect();
        (!missing.is_empty()).then_some(Lacking::Signed(missing))
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

    /// Issues a certificate (10 years) and its key to another host.
    pub fn issue_host(&self, host: &HostName) -> Result<IssuedHost, PkiError> {
        let trust = self.trust()?;
        let authority = trust.authority(Purpose::Host, || format!("the certificate of {host}"))?;
        let key = authority::new_key().map_err(|source| PkiError::signing(host, source))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, Some(key.serialize_pem())))
    }

    /// Certifies (10 years) the key of a host that sent a certificate request in PEM.
    ///
    /// The request's signature must verify. Only its key is taken; a common name or DNS name in it that is not the
    /// host's is refused.
    pub fn sign_csr(&self, host: &HostName, csr_pem: &str) -> Result<IssuedHost, PkiError> {
        let key = request::verify(csr_pem, host)
            .map_err(|source| PkiError::Request { host: host.clone(), source })?;
        let trust = self.trust()?;
        let authority = trust.authority(Purpose::Host, || format!("the certificate of {host}"))?;
        let signed = sign_host(authority, &key, host, OffsetDateTime::now_utc())?;
        Ok(issued_host(&trust, host, signed, None))
    }

    /// Makes sure that the server's certificate holds a name, and says whether it was made anew for that.
    pub fn add_server_name(&self, name: &ServerName) -> Result<bool, PkiError> {
        let lock = self.lock()?;
        let trust = self.trust()?;
        let pair = self.server();
        let Some(leaf) = leaf(&pair, &trust)? else {
            return Err(PkiError::NoServer { path: pair.cert });
        };
        self.renew_server(&lock, &trust, &leaf, std::slice::from_ref(name), OffsetDateTime::now_utc())
    }

    /// Whether these authorities, in PEM, are nothing but authorities that volhost made and keeps here.
    ///
    /// An authority that an operator brought vouches for more than hosts, also when it lies in `ca.crt`, so it is
    /// not ours; neither is a text that cannot be read.
    #[must_use]
    pub fn is_ours(&self, client_ca_pem: &[u8]) -> bool {
        // The key is not looked at: also a user who may not read it can check a configuration.
        let (Ok(theirs), Ok((_, ours))) = (certificate::decode(client_ca_pem), authorities(&self.ca().cert))
        else {
            return false;
        };
        theirs.iter().all(|one| {
            ours.contains(one) && describe_der(one).is_ok_and(|info| authority::is_made_here(&info))
        })
    }

    /// Whether it is time for another server's certificate. [`Pki::ensure`] makes it.
    pub fn renewal_due(&self) -> Result<bool, PkiError> {
        Ok(self.server_info()?.renewal_due(OffsetDateTime::now_utc()))
    }

    /// What the server's certificate says.
    pub fn server_info(&self) -> Result<CertInfo, PkiError> {
        let path = self.server().cert;
        let pem = read(&path)?.ok_or_else(|| PkiError::NoServer { path: path.clone() })?;
        describe(pem).map_err(|source| PkiError::Certificate { path, source })
    }

    /// All of `ca.crt`, in PEM.
    pub fn ca_pem(&self) -> Result<String, PkiError> {
        authorities(&self.ca().cert).map(|(pem, _)| pem)
    }

    fn pair(&self, name: &str) -> Pair {
        Pair { cert: self.dir.join(format!("{name}.crt")), key: self.dir.join(format!("{name}.key")) }
    }

    fn lock(&self) -> Result<Lock, PkiError> {
        let failed = |did| move |source| PkiError::Io { did, path: self.dir.clone(), source };
        // Others may look for the configuration beside it, but nobody has to look for keys.
        let above = self.dir.parent().map_or(Ok(()), |above| files::make_dir(above, 0o755));
        above.and_then(|()| files::make_dir(&self.dir, 0o700)).map_err(failed("make"))?;
        let lock = Lock::acquire(&self.dir.join(".lock")).map_err(failed("lock"))?;
        // Who was killed in the midst of a write may have been the last for years that writes that file.
        for Pair { cert, key } in [self.ca(), self.next(), self.server(), self.client()] {
            files::sweep(&cert);
            files::sweep(&key);
        }
        Ok(lock)
    }

    fn trust(&self) -> Result<Trust, PkiError> {
        Trust::read(self.ca(), self.next())
    }
}

fn sign_host(
    authority: &Authority,
    key: &impl rcgen::PublicKeyData,
    host: &HostName,
    now: OffsetDateTime,
) -> Result<Signed, PkiError> {
    if host.is_anonymous() {
        return Err(PkiError::Anonymous);
    }
    authority.sign_host(key, host, now).map_err(|source| PkiError::signing(host, source))
}

fn issued_host(trust: &Trust, host: &HostName, signed: Signed, key_pem: Option<String>) -> IssuedHost {
    let issued = issued(host, &signed);
    IssuedHost { cert_pem: signed.pem, key_pem, ca_pem: trust.pem.clone(), issued }
}

fn issued(host: &HostName, signed: &Signed) -> Issued {
    let Signed { pem: _, serial, issuer, issued_at, not_after } = signed;
    Issued {
        host: host.clone(),
        serial: serial.clone(),
        issuer: issuer.clone(),
        issued_at: *issued_at,
        not_after: *not_after,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;
    use std::sync::Arc;

    use rcgen::KeyPair;
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::pki_types::UnixTime;
    use rustls::server::WebPkiClientVerifier;
    use time::Duration;

    use super::*;
    use crate::error::chain;

    pub(super) fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    pub(super) fn name(text: &str) -> ServerName {
        ServerName::parse(text).unwrap()
    }

    pub(super) fn empty() -> (tempfile::TempDir, Pki) {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path().join("pki"));
        (dir, pki)
    }

    pub(super) fn made() -> (tempfile::TempDir, Pki, Ensured) {
        let (dir, pki) = empty();
        let ensured = pki.ensure(&host("store1"), &[name("store1.example.org"), name("10.0.0.7")]).unwrap();
        (dir, pki, ensured)
    }

    pub(super) fn content(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    fn roots(ca_pem: &str) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for one in certificate::decode(ca_pem.as_bytes()).unwrap() {
            roots.add(one).unwrap();
        }
        Arc::new(roots)
    }

    fn moment(at: OffsetDateTime) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(at.unix_timestamp().try_into().unwrap()))
    }

    pub(super) fn serves(ca_pem: &str, cert_pem: &str, called: &str) -> Result<(), rustls::Error> {
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(ca_pem), default_provider().into())
            .build()
            .unwrap();
        let certificate = certificate::decode(cert_pem.as_bytes()).unwrap().remove(0);
        let called = called.to_owned().try_into().unwrap();
        verifier
            .verify_server_cert(&certificate, &[], &called, &[], moment(OffsetDateTime::now_utc()))
            .map(|_| ())
    }

    pub(super) fn is_let_in(ca_pem: &str, cert_pem: &str, at: OffsetDateTime) -> Result<(), rustls::Error> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca_pem), default_provider().into())
            .build()
            .unwrap();
        let certificate = certificate::decode(cert_pem.as_bytes()).unwrap().remove(0);
        verifier.verify_client_cert(&certificate, &[], moment(at)).map(|_| ())
    }

    fn openssl(arguments: &[&str]) -> Option<(bool, String)> {
        let output = Command::new("openssl").args(arguments).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    #[test]
    fn a_first_start_makes_all_and_a_second_nothing() {
        let (_dir, pki, first) = made();
        assert!(first.ca_made && first.server_renewed);
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(pki.dir()), 0o700);
        let mut before = Vec::new();
        for Pair { cert, key } in [pki.ca(), pki.server(), pki.client()] {
            assert_eq!((mode(&cert), mode(&key)), (0o644, 0o600));
            before.extend([content(&cert), content(&key)]);
        }

        let info = describe(content(&pki.client().cert)).unwrap();
        let [issued] = first.issued.as_slice() else { panic!("{:?}", first.issued) };
        assert_eq!(issued.host, host("store1"));
        assert_eq!((&issued.serial, issued.not_after), (&info.serial, info.not_after));
        assert_eq!(info.dns_names, ["store1"]);
        assert_eq!(info.common_name.as_deref(), Some("store1"));
        assert!(!info.is_ca);

        let second = pki.ensure(&host("store1"), &[name("10.0.0.7")]).unwrap();
        let nothing =
            Ensured { ca_made: false, server_renewed: false, issued: vec![], client: Some(issued.clone()) };
        assert_eq!(second, nothing);
        let after: Vec<_> = [pki.ca(), pki.server(), pki.client()]
            .iter()
            .flat_map(|pair| [content(&pair.cert), content(&pair.key)])
            .collect();
        assert!(before == after, "a second start wrote something");
    }

    #[test]
    fn where_the_authority_is_given_none_is_made_unasked() {
        let (_dir, pki) = empty();
        let (node, wanted) = (host("store1"), [name("10.0.0.7")]);
        assert_eq!(pki.lacking(), Some(Lacking::Ca));
        let refused = pki.ensure_of_given_ca(&node, &wanted);
        assert!(matches!(refused, Err(PkiError::NoCaGiven { .. })), "{refused:?}");
        assert!(!pki.ca().key.exists() && !pki.ca().cert.exists());

        let made = pki.init().unwrap();
        assert_eq!(made.path, pki.ca().cert);
        assert!(made.info.is_ca && pki.is_ours(content(&pki.ca().cert).as_bytes()));
        let again = pki.init();
        assert!(matches!(again, Err(PkiError::CaExists { .. })), "{again:?}");
        assert_eq!(pki.lacking(), None);
        let ensured = pki.ensure_of_given_ca(&node, &wanted).unwrap();
        assert!(!ensured.ca_made && ensured.server_renewed);
        assert_eq!(ensured.client.unwrap().host, node);

        // The key is taken elsewhere, then certificates are lost, then the authority.
        std::fs::remove_file(pki.ca().key).unwrap();
        assert_eq!(pki.lacking(), None);
        assert!(!pki.ensure_of_given_ca(&node, &wanted).unwrap().server_renewed);
        std::fs::remove_file(pki.client().cert).unwrap();
        assert_eq!(pki.lacking(), Some(Lacking::Signed(vec![Request::Client])));
        std::fs::remove_file(pki.ca().cert).unwrap();
        assert_eq!(pki.lacking(), Some(Lacking::Ca));
        let lost = pki.init();
        assert!(matches!(lost, Err(PkiError::CaLost { .. })), "{lost:?}");
    }

    #[test]
    fn a_directory_with_the_same_authority_lets_in_the_same_hosts() {
        let (_dir, one, _) = made();
        let (_other_dir, other) = empty();
        std::fs::create_dir_all(other.dir()).unwrap();
        for (from, to) in [(one.ca().cert, other.ca().cert), (one.ca().key, other.ca().key)] {
            std::fs::copy(from, to).unwrap();
        }
        other.ensure_of_given_ca(&host("store2"), &[name("10.0.0.8")]).unwrap();
        let hosts = [&one, &other].map(|pki| pki.issue_host(&host("web1")).unwrap());
        assert_ne!(hosts[0].issued.serial, hosts[1].issued.serial, "revoking one would revoke the other");
        for pki in [&one, &other] {
            let ca = pki.ca_pem().unwrap();
            for host in &hosts {
                is_let_in(&ca, &host.cert_pem, OffsetDateTime::now_utc()).unwrap();
            }
            serves(&ca, &content(&other.server().cert), "10.0.0.8").unwrap();
        }
    }

    #[test]
    fn certificates_live_as_long_as_promised() {
        let (_dir, pki, _) = made();
        for (pair, years) in [(pki.ca(), 20.0), (pki.server(), 1.0), (pki.client(), 10.0)] {
            let info = describe(content(&pair.cert)).unwrap();
            let found = (info.not_after - OffsetDateTime::now_utc()).as_seconds_f64() / (365.25 * 86400.0);
            assert!((found - years).abs() < 0.01, "{} lives {found} years", pair.cert.display());
            assert!(info.not_before < OffsetDateTime::now_utc() - Duration::minutes(59));
        }
    }

    #[test]
    fn a_tls_library_takes_both_certificates_for_what_they_are_and_nothing_else() {
        let (_dir, pki, _) = made();
        let (ca, server, client) =
            (pki.ca_pem().unwrap(), content(&pki.server().cert), content(&pki.client().cert));
        let now = OffsetDateTime::now_utc();
        for called in ["store1.example.org", "10.0.0.7", "localhost", "127.0.0.1", "::1"] {
            serves(&ca, &server, called).unwrap();
        }
        is_let_in(&ca, &client, now).unwrap();

        assert!(serves(&ca, &server, "store2.example.org").is_err());
        assert!(serves(&ca, &client, "store1").is_err(), "a client's certificate served");
        assert!(is_let_in(&ca, &server, now).is_err(), "a server's certificate was let in");
        let (_other_dir, other, _) = made();
        let other = other.ca_pem().unwrap();
        assert!(serves(&other, &server, "localhost").is_err());
        assert!(is_let_in(&other, &client, now).is_err());
    }

    #[test]
    fn openssl_takes_them_by_the_letter_of_the_standard() {
        let (_dir, pki, _) = made();
        let path = |path: PathBuf| path.to_str().unwrap().to_owned();
        let (ca, server, client) = (path(pki.ca().cert), path(pki.server().cert), path(pki.client().cert));
        let strict = ["verify", "-x509_strict", "-check_ss_sig", "-CAfile", &ca];
        for (certificate, more) in [
            (&server, &["-purpose", "sslserver", "-verify_hostname", "localhost"][..]),
            (&server, &["-purpose", "sslserver", "-verify_ip", "10.0.0.7"]),
            (&client, &["-purpose", "sslclient", "-verify_hostname", "store1"]),
            (&ca, &["-purpose", "any"]),
        ] {
            let arguments = [&strict[..], more, &[certificate]].concat();
            // Without openssl the test above has said as much.
            let Some((accepted, said)) = openssl(&arguments) else { return };
            assert!(accepted, "{arguments:?}: {said}");
        }
    }

    #[test]
    fn a_key_whose_certificate_was_not_written_yet_gets_one() {
        let (_dir, pki, _) = made();
        let pairs = [pki.ca(), pki.server(), pki.client()];
        let keys = || pairs.iter().map(|pair| content(&pair.key)).collect::<Vec<_>>();
        let before = keys();
        // From the last step to the first, as a crash could have left it.
        for length in 1..=3 {
            for pair in pairs.iter().rev().take(length) {
                std::fs::remove_file(&pair.cert).unwrap();
            }
            let ensured = pki.ensure(&host("store1"), &[]).unwrap();
            assert_eq!(ensured.issued.len(), 1);
            assert_eq!((ensured.server_renewed, ensured.ca_made), (length >= 2, length == 3));
            assert!(keys() == before, "a key was replaced");
            serves(&pki.ca_pem().unwrap(), &content(&pki.server().cert), "localhost").unwrap();
        }
    }

    #[test]
    fn what_a_crash_left_half_written_is_swept_away() {
        let (_dir, pki) = empty();
        std::fs::create_dir_all(pki.dir()).unwrap();
        for leftover in [".ca.key.new", ".server.crt.new"] {
            std::fs::write(pki.dir().join(leftover), "half").unwrap();
        }
        pki.ensure(&host("store1"), &[]).unwrap();
        let mut found: Vec<_> =
            std::fs::read_dir(pki.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        found.sort();
        let all = [".lock", "ca.crt", "ca.key", "client.crt", "client.key", "server.crt", "server.key"];
        assert_eq!(found, all);
        // Also where nothing is to be written.
        for leftover in [".client.crt.new", ".client.key.new", ".ca-next.key.new"] {
            std::fs::write(pki.dir().join(leftover), "half").unwrap();
        }
        pki.ensure(&host("store1"), &[]).unwrap();
        assert_eq!(std::fs::read_dir(pki.dir()).unwrap().count(), all.len());
    }

    #[test]
    fn pairs_that_no_crash_of_ours_leaves_are_errors_with_a_remedy() {
        let refused = |spoil: &dyn Fn(&Pki)| {
            let (_dir, pki, _) = made();
            spoil(&pki);
            let error = pki.ensure(&host("store1"), &[]).unwrap_err();
            (chain(&error), error)
        };
        let remove = |path: PathBuf| std::fs::remove_file(path).unwrap();
        let copy = |from: PathBuf, to: PathBuf| {
            std::fs::copy(from, to).unwrap();
        };

        let (text, error) = refused(&|pki| remove(pki.server().key));
        assert!(matches!(error, PkiError::CertificateWithoutKey { .. }), "{text}");
        assert!(
            text.contains("server.crt stands there without") && text.contains("put the key back"),
            "{text}"
        );

        let (text, error) = refused(&|pki| copy(pki.client().key, pki.server().key));
        assert!(matches!(error, PkiError::Mismatch { .. }), "{text}");
        let (text, error) = refused(&|pki| copy(pki.client().key, pki.ca().key));
        assert!(matches!(error, PkiError::Mismatch { .. }), "{text}");

        let (text, error) = refused(&|pki| {
            let (_dir, other, _) = made();
            std::fs::copy(other.server().key, pki.server().key).unwrap();
            std::fs::copy(other.server().cert, pki.server().cert).unwrap();
        });
        assert!(matches!(error, PkiError::Stranger { .. }), "{text}");
        assert!(text.contains("`tls.cert`"), "{text}");

        let (text, error) = refused(&|pki| remove(pki.ca().cert));
        assert!(matches!(error, PkiError::CaLost { .. }), "{text}");

        let (text, error) = refused(&|pki| copy(pki.client().cert, pki.ca().cert));
        assert!(matches!(error, PkiError::NotACa { .. }), "{text}");

        let (text, error) = refused(&|pki| std::fs::write(pki.server().cert, "junk").unwrap());
        assert!(matches!(error, PkiError::Certificate { .. }), "{text}");
        assert!(text.contains("server.crt is no usable certificate: it holds no"), "{text}");
    }

    #[test]
    fn the_ca_key_may_be_elsewhere_until_something_must_be_signed() {
        let (_dir, pki, _) = made();
        std::fs::remove_file(pki.ca().key).unwrap();
        let node = host("store1");
        let now = OffsetDateTime::now_utc();
        let ensured = pki.ensure(&node, &[name("localhost")]).unwrap();
        assert!(!ensured.server_renewed && ensured.issued.is_empty());
        // Due, but good for another third of its life.
        assert!(!pki.ensure_at(&node, &[], now + Duration::days(300)).unwrap().server_renewed);
        // The machine's new name is no reason to stop serving.
        assert_eq!(pki.ensure(&host("store2"), &[]).unwrap().client.unwrap().host, node);

        for error in [
            pki.ensure(&node, &[name("new.example.org")]).unwrap_err(),
            pki.ensure_at(&node, &[], now + Duration::days(366)).unwrap_err(),
            pki.add_server_name(&name("new.example.org")).unwrap_err(),
            pki.issue_host(&host("web1")).unwrap_err(),
        ] {
            assert!(matches!(error, PkiError::CaKeyMissing { .. }), "{}", chain(&error));
        }
    }

    #[test]
    fn a_servers_certificate_is_made_anew_when_a_third_is_left() {
        let (_dir, pki, _) = made();
        let node = host("store1");
        let now = OffsetDateTime::now_utc();
        let key = content(&pki.server().key);
        let before = pki.server_info().unwrap();
        assert!(!pki.renewal_due().unwrap());
        assert!(!pki.ensure_at(&node, &[], now + Duration::days(243)).unwrap().server_renewed);
        let ensured = pki.ensure_at(&node, &[], now + Duration::days(244)).unwrap();
        assert!(ensured.server_renewed && ensured.issued.is_empty() && !ensured.ca_made);
        let after = pki.server_info().unwrap();
        assert_eq!(after.names, before.names);
        assert_ne!(after.serial, before.serial);
        assert!(after.not_after > before.not_after);
        assert!(content(&pki.server().key) == key, "the key was replaced");
        // Long over: made anew all the same.
        assert!(pki.ensure_at(&node, &[], now + Duration::days(3000)).unwrap().server_renewed);
    }

    #[test]
    fn nothing_outlives_its_ca_and_none_is_made_over_and_over_before_that() {
        let (_dir, pki, _) = made();
        let node = host("store1");
        let ca = describe(pki.ca_pem().unwrap()).unwrap();
        let late = ca.not_after - Duration::days(30);
        assert!(pki.ensure_at(&node, &[], late).unwrap().server_renewed);
        assert_eq!(pki.server_info().unwrap().not_after, ca.not_after);
        let later = ca.not_after - Duration::days(1);
        let ensured = pki.ensure_at(&node, &[], later).unwrap();
        assert!(!ensured.server_renewed && ensured.issued.is_empty());
        let over = pki.ensure_at(&node, &[name("new.example.org")], ca.not_after).unwrap_err();
        assert!(chain(&over).contains("the CA's certificate expired"), "{}", chain(&over));
    }

    #[test]
    fn names_are_added_and_stay() {
        let (_dir, pki, _) = made();
        let added = name("vol.example.org");
        assert!(pki.add_server_name(&added).unwrap());
        assert!(!pki.add_server_name(&added).unwrap());
        assert!(!pki.ensure(&host("store1"), &[name("10.0.0.7")]).unwrap().server_renewed);
        assert!(pki.ensure(&host("store1"), &[name("fd00::7")]).unwrap().server_renewed);
        for called in ["store1.example.org", "10.0.0.7", "localhost", "vol.example.org", "fd00::7"] {
            serves(&pki.ca_pem().unwrap(), &content(&pki.server().cert), called).unwrap();
        }
    }

    #[test]
    fn a_machine_with_a_new_name_gets_a_certificate_for_it() {
        let (_dir, pki, first) = made();
        let key = content(&pki.client().key);
        let second = pki.ensure(&host("store2"), &[]).unwrap();
        assert_eq!(second.issued.len(), 1);
        assert_eq!(second.client.as_ref().unwrap().host, host("store2"));
        assert_ne!(second.client, first.client);
        assert!(content(&pki.client().key) == key, "the key was replaced");
    }

    #[test]
    fn many_that_start_at_once_end_with_one_set() {
        let (_dir, pki) = empty();
        let all: Vec<_> = std::thread::scope(|scope| {
            let start = || scope.spawn(|| pki.ensure(&host("store1"), &[]).unwrap());
            let threads: Vec<_> = std::iter::repeat_with(start).take(8).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(all.iter().filter(|ensured| ensured.ca_made).count(), 1);
        assert_eq!(all.iter().map(|ensured| ensured.issued.len()).sum::<usize>(), 1);
        assert!(all.iter().all(|ensured| ensured.client == all[0].client));
        // Reading the pairs again finds that they fit.
        assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);
    }

    #[test]
    fn an_issued_host_is_let_in_for_ten_years() {
        let (_dir, pki, _) = made();
        let long = format!("{}.example.org", vec!["a".repeat(60); 3].join("."));
        for host in [host("web1"), host(&long), host("10.1.2.3")] {
            let issued = pki.issue_host(&host).unwrap();
            let info = describe(&issued.cert_pem).unwrap();
            assert_eq!(info.dns_names, [host.as_str()]);
            assert_eq!(info.serial, issued.issued.serial);
            assert_eq!(info.not_after, issued.issued.not_after);
            assert_eq!(issued.ca_pem, content(&pki.ca().cert));
            let key = authority::parse_key(issued.key_pem.as_ref().unwrap().as_bytes()).unwrap();
            let der = certificate::decode(issued.cert_pem.as_bytes()).unwrap().remove(0);
            assert_eq!(
                rcgen::PublicKeyData::subject_public_key_info(&key),
                certificate::public_key(&der).unwrap()
            );
            let now = OffsetDateTime::now_utc();
            is_let_in(&issued.ca_pem, &issued.cert_pem, now).unwrap();
            is_let_in(&issued.ca_pem, &issued.cert_pem, now + Duration::days(3650)).unwrap();
            assert!(is_let_in(&issued.ca_pem, &issued.cert_pem, now + Duration::days(3660)).is_err());
            assert!(!format!("{issued:?}").contains("PRIVATE"), "a key in a log: {issued:?}");
        }
        assert!(matches!(pki.issue_host(&HostName::anonymous()), Err(PkiError::Anonymous)));
    }

    #[test]
    fn a_request_is_certified_for_its_key_alone() {
        let (_dir, pki, _) = made();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let mut params = rcgen::CertificateParams::new(["web1".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let issued = pki.sign_csr(&host("web1"), &request).unwrap();
        assert!(issued.key_pem.is_none());
        let info = describe(&issued.cert_pem).unwrap();
        assert!(!info.is_ca, "a request made a CA");
        assert_eq!(info.dns_names, ["web1"]);
        let der = certificate::decode(issued.cert_pem.as_bytes()).unwrap().remove(0);
        assert_eq!(
            certificate::public_key(&der).unwrap(),
            rcgen::PublicKeyData::subject_public_key_info(&key)
        );
        is_let_in(&issued.ca_pem, &issued.cert_pem, OffsetDateTime::now_utc()).unwrap();

        let error = pki.sign_csr(&host("web2"), &request).unwrap_err();
        assert!(
            chain(&error).contains("it names \"web1\", but the certificate is to be for web2"),
            "{error}"
        );
    }

    #[test]
    fn only_what_volhost_made_and_keeps_is_ours() {
        let (_dir, pki, _) = made();
        let own = content(&pki.ca().cert);
        assert!(pki.is_ours(own.as_bytes()));
        std::fs::remove_file(pki.ca().key).unwrap();
        assert!(pki.is_ours(own.as_bytes()), "the key decides nothing here");

        let (_other_dir, other, _) = made();
        let other = content(&other.ca().cert);
        for theirs in [other.as_str(), &format!("{own}{other}"), "", "junk"] {
            assert!(!pki.is_ours(theirs.as_bytes()), "{theirs:?} passed for ours");
        }
        assert!(!Pki::new("/nonexistent").is_ours(own.as_bytes()));

        // An operator's CA, put in our place.
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let company = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        std::fs::write(pki.ca().cert, &company).unwrap();
        assert!(!pki.is_ours(company.as_bytes()));
    }

    #[test]
    fn an_old_ca_stays_beside_the_new_one() {
        let (_dir, pki, _) = made();
        let (_new_dir, new, _) = made();
        let both = content(&pki.ca().cert) + &content(&new.ca().cert);
        std::fs::write(pki.ca().cert, &both).unwrap();
        std::fs::copy(new.ca().key, pki.ca().key).unwrap();
        // What the old one signed is good, and what is signed now comes from the new one.
        assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);
        assert!(pki.is_ours(both.as_bytes()));
        let issued = pki.issue_host(&host("web1")).unwrap();
        is_let_in(&content(&new.ca().cert), &issued.cert_pem, OffsetDateTime::now_utc()).unwrap();
        assert_eq!(issued.ca_pem, both);
    }
}
