//! Checks that an engine can use the TLS files that a spec file names, and for how long.
//!
//! Whether the server accepts the host's certificate only the server can say: a probe asks it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::model::timestamp;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use time::{Duration, OffsetDateTime};

use super::fault::Fault;
use super::reading::Files;
use crate::files;
use crate::pki::certificate::decode;
use crate::pki::{CertInfo, describe_der};

/// The remaining lifetime below which a certificate gets a warning: engines read it once, so a restart must
/// be planned.
const EXPIRY_WARNING: Duration = Duration::days(30);

/// Checks the files as they are now.
pub(super) fn check(files: &Files, now: OffsetDateTime, faults: &mut Vec<Fault>) {
    let Files { ca, pair } = files;
    if let Some(ca) = ca
        && let Some(all) = certificates("CAFile", ca, faults)
    {
        // If there are several authorities, the one that is valid longest suffices.
        let infos = all.into_iter().map(|(_, info)| info);
        if let Some(last) = infos.max_by_key(|info| (info.is_valid_at(now), info.not_after)) {
            dates("CAFile", ca, &last, now, faults);
        }
    }
    let Some((cert, key)) = pair else { return };
    let chain = certificates("CertFile", cert, faults);
    if let Some((_, own)) = chain.as_ref().and_then(|chain| chain.first()) {
        dates("CertFile", cert, own, now, faults);
    }
    let key_der = private_key(key, faults);
    let (Some(chain), Some(key_der)) = (chain, key_der) else { return };
    match aws_lc_rs::sign::any_supported_type(&key_der) {
        Err(error) => faults.push(Fault::NoKey { path: key.clone(), why: error.to_string() }),
        Ok(signer) => {
            let chain = chain.into_iter().map(|(der, _)| der).collect();
            // The handshake decides about keys that cannot be compared here.
            if let Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) =
                CertifiedKey::new(chain, signer).keys_match()
            {
                faults.push(Fault::Mismatch { cert: cert.clone(), key: key.clone() });
            }
        }
    }
}

/// Returns the certificates of a file, at least one; `None` after adding a fault.
fn certificates(
    field: &'static str,
    path: &Path,
    faults: &mut Vec<Fault>,
) -> Option<Vec<(CertificateDer<'static>, CertInfo)>> {
    let pem = content(field, path, faults)?;
    let described = decode(&pem).and_then(|all| {
        all.into_iter().map(|der| describe_der(&der).map(|info| (der, info))).collect::<Result<Vec<_>, _>>()
    });
    match described {
        Ok(all) => Some(all),
        Err(error) => {
            let why = crate::error::chain(&error);
            faults.push(Fault::NoCertificate { field, path: path.to_owned(), why });
            None
        }
    }
}

fn private_key(path: &Path, faults: &mut Vec<Fault>) -> Option<PrivateKeyDer<'static>> {
    let pem = content("KeyFile", path, faults)?;
    if let Ok(metadata) = std::fs::metadata(path) {
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            faults.push(Fault::Exposed { path: path.to_owned(), mode });
        }
    }
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| faults.push(Fault::NoKey { path: path.to_owned(), why: error.to_string() }))
        .ok()
}

fn content(field: &'static str, path: &Path, faults: &mut Vec<Fault>) -> Option<Vec<u8>> {
    files::read_at_most(path, files::SMALL)
        .map_err(|error| faults.push(Fault::NoFile { field, path: path.to_owned(), why: error.to_string() }))
        .ok()
}

fn dates(field: &'static str, path: &Path, info: &CertInfo, now: OffsetDateTime, faults: &mut Vec<Fault>) {
    let path = path.to_owned();
    let told = |at: OffsetDateTime| timestamp::rfc3339_exact(at);
    if now > info.not_after {
        faults.push(Fault::Expired { field, path, at: told(info.not_after) });
    } else if now < info.not_before {
        faults.push(Fault::NotYet { field, path, at: told(info.not_before) });
    } else if now + EXPIRY_WARNING > info.not_after {
        faults.push(Fault::ExpiresSoon { field, path, at: told(info.not_after) });
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::path::PathBuf;

    use super::*;
    use crate::model::host::HostName;
    use crate::pki::Pki;

    struct Fixture {
        dir: tempfile::TempDir,
        files: Files,
    }

    /// Returns the files of one host, all of them good.
    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path().join("pki"));
        pki.ensure(&HostName::parse("node1").unwrap(), &[]).unwrap();
        let client = pki.client();
        let files = Files { ca: Some(pki.ca().cert), pair: Some((client.cert, client.key)) };
        Fixture { dir, files }
    }

    impl Fixture {
        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            write(&path, text).unwrap();
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            path
        }

        fn faults_after(&self, days: i64) -> Vec<&'static str> {
            let mut faults = Vec::new();
            check(&self.files, OffsetDateTime::now_utc() + Duration::days(days), &mut faults);
            faults.iter().map(Fault::word).collect()
        }

        fn faults(&self) -> Vec<&'static str> {
            self.faults_after(0)
        }

        fn pair(&mut self) -> &mut (PathBuf, PathBuf) {
            self.files.pair.as_mut().unwrap()
        }
    }

    #[test]
    fn good_files_are_without_fault() {
        assert_eq!(fixture().faults(), [""; 0]);
    }

    #[test]
    fn dates_are_compared_with_the_clock() {
        let f = fixture();
        // An authority's certificate is valid for 20 years, a host's for 10.
        assert_eq!(f.faults_after(3640), ["expires-soon"]);
        assert_eq!(f.faults_after(3700), ["expired"]);
        assert_eq!(f.faults_after(8000), ["expired", "expired"]);
        assert_eq!(f.faults_after(-100), ["not-yet-valid", "not-yet-valid"]);
    }

    #[test]
    fn what_is_missing_is_told_for_each_file() {
        let mut f = fixture();
        f.files =
            Files { ca: Some("/nowhere/ca".into()), pair: Some(("/nowhere/c".into(), "/nowhere/k".into())) };
        assert_eq!(f.faults(), ["no-file"; 3]);
    }

    #[test]
    fn what_is_something_else_is_told() {
        let mut f = fixture();
        let (cert, key) = f.files.pair.clone().unwrap();
        f.files.ca = Some(key.clone());
        *f.pair() = (key, cert);
        // The certificate in the key's place is readable for everybody, as certificates are.
        assert_eq!(f.faults(), ["no-certificate", "no-certificate", "exposed", "no-key"]);
        let broken = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        let mut f = fixture();
        f.pair().1 = f.put("broken.key", broken);
        assert_eq!(f.faults(), ["no-key"]);
    }

    #[test]
    fn a_key_of_another_certificate_is_told() {
        let (mut f, other) = (fixture(), fixture());
        f.pair().1 = other.files.pair.clone().unwrap().1;
        assert_eq!(f.faults(), ["mismatch"]);
    }

    #[test]
    fn a_key_that_others_can_read_is_told() {
        let mut f = fixture();
        for (mode, faults) in [(0o640, &["exposed"][..]), (0o604, &["exposed"]), (0o400, &[])] {
            set_permissions(&f.pair().1, Permissions::from_mode(mode)).unwrap();
            assert_eq!(f.faults(), faults, "{mode:o}");
        }
    }
}
