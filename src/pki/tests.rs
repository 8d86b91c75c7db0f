//! Tests of a directory of certificates over its life, with real verifiers, and fixtures for the other tests
//! of this room.

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
use time::{Duration, OffsetDateTime};

use super::*;
use crate::error::chain;
use crate::model::host::HostName;

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

pub(super) fn client_is_accepted(
    ca_pem: &str,
    cert_pem: &str,
    at: OffsetDateTime,
) -> Result<(), rustls::Error> {
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
    assert_eq!(pki.missing_files(), Some(MissingFiles::Ca));
    let refused = pki.ensure_of_given_ca(&node, &wanted);
    assert!(matches!(refused, Err(PkiError::NoCaGiven { .. })), "{refused:?}");
    assert!(!pki.ca().key.exists() && !pki.ca().cert.exists());

    let made = pki.init().unwrap();
    assert_eq!(made.path, pki.ca().cert);
    assert!(made.info.is_ca && pki.is_ours(content(&pki.ca().cert).as_bytes()));
    let again = pki.init();
    assert!(matches!(again, Err(PkiError::CaExists { .. })), "{again:?}");
    assert_eq!(pki.missing_files(), None);
    let ensured = pki.ensure_of_given_ca(&node, &wanted).unwrap();
    assert!(!ensured.ca_made && ensured.server_renewed);
    assert_eq!(ensured.client.unwrap().host, node);

    // The key is taken elsewhere, then certificates are lost, then the authority.
    std::fs::remove_file(pki.ca().key).unwrap();
    assert_eq!(pki.missing_files(), None);
    assert!(!pki.ensure_of_given_ca(&node, &wanted).unwrap().server_renewed);
    std::fs::remove_file(pki.client().cert).unwrap();
    assert_eq!(pki.missing_files(), Some(MissingFiles::Signed(vec![OwnCertificate::Client])));
    std::fs::remove_file(pki.ca().cert).unwrap();
    assert_eq!(pki.missing_files(), Some(MissingFiles::Ca));
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
            client_is_accepted(&ca, &host.cert_pem, OffsetDateTime::now_utc()).unwrap();
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
    client_is_accepted(&ca, &client, now).unwrap();

    assert!(serves(&ca, &server, "store2.example.org").is_err());
    assert!(serves(&ca, &client, "store1").is_err(), "a client's certificate served");
    assert!(client_is_accepted(&ca, &server, now).is_err(), "a server's certificate was let in");
    let (_other_dir, other, _) = made();
    let other = other.ca_pem().unwrap();
    assert!(serves(&other, &server, "localhost").is_err());
    assert!(client_is_accepted(&other, &client, now).is_err());
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
        // The test above has already said that openssl is missing.
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
    // Temporary files are removed even if nothing is to be written.
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
    assert!(text.contains("server.crt stands there without") && text.contains("put the key back"), "{text}");

    let (text, error) = refused(&|pki| copy(pki.client().key, pki.server().key));
    assert!(matches!(error, PkiError::Mismatch { .. }), "{text}");
    let (text, error) = refused(&|pki| copy(pki.client().key, pki.ca().key));
    assert!(matches!(error, PkiError::Mismatch { .. }), "{text}");

    let (text, error) = refused(&|pki| {
        let (_dir, other, _) = made();
        std::fs::copy(other.server().key, pki.server().key).unwrap();
        std::fs::copy(other.server().cert, pki.server().cert).unwrap();
    });
    assert!(matches!(error, PkiError::ForeignIssuer { .. }), "{text}");
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
    // A new name of the machine is no reason to stop serving.
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
    // A certificate that expired long ago is renewed all the same.
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
    // A second call reads the pairs and finds that they match.
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
        client_is_accepted(&issued.ca_pem, &issued.cert_pem, now).unwrap();
        client_is_accepted(&issued.ca_pem, &issued.cert_pem, now + Duration::days(3650)).unwrap();
        assert!(client_is_accepted(&issued.ca_pem, &issued.cert_pem, now + Duration::days(3660)).is_err());
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
    assert_eq!(certificate::public_key(&der).unwrap(), rcgen::PublicKeyData::subject_public_key_info(&key));
    client_is_accepted(&issued.ca_pem, &issued.cert_pem, OffsetDateTime::now_utc()).unwrap();

    let error = pki.sign_csr(&host("web2"), &request).unwrap_err();
    assert!(chain(&error).contains("it names \"web1\", but the certificate is to be for web2"), "{error}");
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

    // An operator's CA in the place of ours.
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
    // A certificate that the old authority signed stays valid, and the new one signs from now on.
    assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);
    assert!(pki.is_ours(both.as_bytes()));
    let issued = pki.issue_host(&host("web1")).unwrap();
    client_is_accepted(&content(&new.ca().cert), &issued.cert_pem, OffsetDateTime::now_utc()).unwrap();
    assert_eq!(issued.ca_pem, both);
}
