//! The rollover: one authority replaces another, and meanwhile both are trusted.
//!
//! Engines read their files once, so both authorities must be trusted for as long as the operator needs to
//! restart the engines. During this time `ca.crt` holds both authorities, the new one signs hosts'
//! certificates, and the server's certificate stays signed by the old one, because an engine that was not
//! restarted knows no other.
//!
//! The files alone tell how far a rollover has got. It is under way while `ca-next.crt` exists. If `ca.crt`
//! does not hold that authority yet, the next process adds it; if `ca.crt` holds only that authority, the
//! next process renames its key to `ca.key`. Every step is the rename of one file, and between any two steps
//! every client that could connect before still can. The files of an authority that is given up are kept beside the
//! others under its ID: `ca-41ab12cd.crt` and `.key`.

use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

use super::certificate::{CertInfo, describe_der};
use super::ensure::{host_of, key_for, sign_client, sign_server, write_certificate};
use super::pair::{Leaf, Pair, Purpose, Trust, authorities, leaf, successor};
use super::{Issued, Pki, PkiError, authority, certificate};
use crate::failpoint::stop_if_asked;
use crate::files::{self, Lock};

/// The names of all durable steps, in the order in which a rollover reaches them; those of an abort come
/// last.
pub const STEPS: &[&str] = &[
    START_KEY,
    START_CERTIFICATE,
    START_TRUSTED,
    START_CLIENT,
    FINISH_SERVER,
    FINISH_CLIENT,
    FINISH_KEPT,
    FINISH_KEY_ASIDE,
    FINISH_TRUSTED,
    FINISH_KEY,
    ABORT_SERVER,
    ABORT_CLIENT,
    ABORT_TRUSTED,
    ABORT_CERTIFICATE,
];

const START_KEY: &str = "rollover:start:key";
const START_CERTIFICATE: &str = "rollover:start:certificate";
const START_TRUSTED: &str = "rollover:start:trusted";
const START_CLIENT: &str = "rollover:start:client";
const FINISH_SERVER: &str = "rollover:finish:server";
const FINISH_CLIENT: &str = "rollover:finish:client";
const FINISH_KEPT: &str = "rollover:finish:kept";
const FINISH_KEY_ASIDE: &str = "rollover:finish:key-aside";
const FINISH_TRUSTED: &str = "rollover:finish:trusted";
const FINISH_KEY: &str = "rollover:finish:key";
const ABORT_SERVER: &str = "rollover:abort:server";
const ABORT_CLIENT: &str = "rollover:abort:client";
const ABORT_TRUSTED: &str = "rollover:abort:trusted";
const ABORT_CERTIFICATE: &str = "rollover:abort:certificate";

/// A rollover that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollover {
    /// The authorities that are given up: one, unless somebody added more to `ca.crt`.
    pub old: Vec<CertInfo>,
    /// The authority that takes over.
    pub new: CertInfo,
    /// True if the new authority has signed the server's certificate already, because a finish was
    /// interrupted.
    pub finishing: bool,
}

/// The outcome of [`Pki::start_rollover`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// True if this call began the rollover; false if one was under way before.
    pub begun: bool,
    /// The new certificate of this machine's own engine, if it got one.
    pub issued: Option<Issued>,
}

/// The outcome of [`Pki::finish_rollover`] and [`Pki::abort_rollover`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The rollover that has ended.
    pub rollover: Rollover,
    /// The new certificate of this machine's own engine, if it got one.
    pub issued: Option<Issued>,
    /// The files of the authority that was given up. Its key may have been kept elsewhere.
    pub kept: Pair,
}

impl Pki {
    /// Returns the rollover that is under way, if there is one.
    pub fn rollover(&self) -> Result<Option<Rollover>, PkiError> {
        let trust = match self.trust() {
            Err(PkiError::NoCa { .. }) => return Ok(None),
            trust => trust?,
        };
        let server = leaf(&self.server(), &trust)?;
        rollover(&trust, server.as_ref())
    }

    /// Makes a new authority, adds it to the trusted ones, and renews this machine's client certificate with
    /// it. If a rollover is under way already, it is continued and no other is begun.
    pub fn start_rollover(&self) -> Result<Started, PkiError> {
        let lock = self.lock()?;
        self.complete_interrupted_step(&lock)?;
        let under_way = self.trust()?.successor.is_some();
        if !under_way {
            self.make_successor(&lock)?;
        }
        let trust = self.trust()?;
        let Some(new) = &trust.successor else { return Err(PkiError::NoRollover) };
        let mut issued = None;
        if let (Some(leaf), Some(authority)) = (leaf(&self.client(), &trust)?, &new.authority)
            && !new.signed(&leaf)
            && let Some(node) = host_of(&leaf.info)
        {
            let now = OffsetDateTime::now_utc();
            issued = Some(sign_client(&lock, authority, &self.client(), &leaf.key, &node, now)?);
        }
        stop_if_asked(START_CLIENT);
        Ok(Started { begun: !under_way, issued })
    }

    fn make_successor(&self, lock: &Lock) -> Result<(), PkiError> {
        let next = self.next();
        let key = key_for(lock, &next)?;
        stop_if_asked(START_KEY);
        let signed = authority::self_sign(&key, OffsetDateTime::now_utc())
            .map_err(|source| PkiError::signing("the CA", source))?;
        write_certificate(lock, &next.cert, &signed.pem)?;
        stop_if_asked(START_CERTIFICATE);
        self.complete_interrupted_step(lock)
    }

    /// Ends a rollover in favour of the new authority: renews the server's certificate and this machine's
    /// client certificate with it, then removes the old authority from the trusted ones.
    ///
    /// The caller must check which engines that locks out.
    pub fn finish_rollover(&self) -> Result<Finished, PkiError> {
        let (lock, trust, rollover) = self.under_way()?;
        let Some(new) = &trust.successor else { return Err(PkiError::NoRollover) };
        let by_new = || {
            let need = || "the server's and this machine's certificate".to_owned();
            trust.authority(Purpose::Host, need)
        };
        let issued =
            self.sign_both(&lock, &trust, |leaf| !new.signed(leaf), by_new, [FINISH_SERVER, FINISH_CLIENT])?;

        let kept = self.kept(rollover.old.first());
        let others = trust.certificates.iter().filter(|one| **one != new.certificate);
        write_certificate(&lock, &kept.cert, &certificate::encode(others))?;
        stop_if_asked(FINISH_KEPT);
        rename_if_there(&trust.ca, &kept)?;
        stop_if_asked(FINISH_KEY_ASIDE);
        write_certificate(&lock, &trust.ca.cert, &new.pem)?;
        stop_if_asked(FINISH_TRUSTED);
        self.complete_interrupted_step(&lock)?;
        Ok(Finished { rollover, issued, kept })
    }

    /// Undoes [`Pki::start_rollover`]: removes the new authority from the trusted ones.
    ///
    /// The caller must check which engines that locks out.
    pub fn abort_rollover(&self) -> Result<Finished, PkiError> {
        let (lock, mut trust, rollover) = self.under_way()?;
        if trust.authority.is_none() {
            // A finish that was interrupted may have moved the old key aside.
            rename_if_there(&self.kept(rollover.old.first()), &trust.ca)?;
            trust = self.trust()?;
        }
        let Some(new) = &trust.successor else { return Err(PkiError::NoRollover) };
        let by_old = || {
            let need = || "the server's and this machine's certificate".to_owned();
            trust.authority(Purpose::Server(None), need)
        };
        let issued =
            self.sign_both(&lock, &trust, |leaf| new.signed(leaf), by_old, [ABORT_SERVER, ABORT_CLIENT])?;

        let kept = self.kept(Some(&rollover.new));
        let others = trust.certificates.iter().filter(|one| **one != new.certificate);
        write_certificate(&lock, &trust.ca.cert, &certificate::encode(others))?;
        stop_if_asked(ABORT_TRUSTED);
        files::rename(&new.pair.cert, &kept.cert).map_err(|source| PkiError::Io {
            did: "rename",
            path: new.pair.cert.clone(),
            source,
        })?;
        stop_if_asked(ABORT_CERTIFICATE);
        rename_if_there(&new.pair, &kept)?;
        Ok(Finished { rollover, issued, kept })
    }

    /// Completes the step of a process that was killed: adds a new authority to the trusted ones, or, if only
    /// the new authority is trusted, renames its key to `ca.key`.
    pub(super) fn complete_interrupted_step(&self, lock: &Lock) -> Result<(), PkiError> {
        let (ca, next) = (self.ca(), self.next());
        let Some((pem, certificate)) = successor(&next)? else { return Ok(()) };
        let (trusted, certificates) = authorities(&ca.cert)?;
        if !certificates.contains(&certificate) {
            let both = format!("{}\n{pem}", trusted.trim_end());
            write_certificate(lock, &ca.cert, &both)?;
            stop_if_asked(START_TRUSTED);
        } else if certificates.len() == 1 {
            rename_if_there(&next, &ca)?;
            stop_if_asked(FINISH_KEY);
            files::remove(&next.cert).map_err(|source| PkiError::Io {
                did: "remove",
                path: next.cert,
                source,
            })?;
        }
        Ok(())
    }

    fn under_way(&self) -> Result<(Lock, Trust, Rollover), PkiError> {
        let lock = self.lock()?;
        self.complete_interrupted_step(&lock)?;
        let trust = self.trust()?;
        let server = leaf(&self.server(), &trust)?;
        match rollover(&trust, server.as_ref())? {
            Some(rollover) => Ok((lock, trust, rollover)),
            None => Err(PkiError::NoRollover),
        }
    }

    /// Signs the server's certificate and this machine's client certificate again if `needs_signing` returns
    /// true for them.
    fn sign_both<'a>(
        &self,
        lock: &Lock,
        trust: &Trust,
        needs_signing: impl Fn(&Leaf) -> bool,
        authority: impl Fn() -> Result<&'a authority::Authority, PkiError>,
        [server_signed, client_signed]: [&'static str; 2],
    ) -> Result<Option<Issued>, PkiError> {
        let now = OffsetDateTime::now_utc();
        let (server, client) = (self.server(), self.client());
        let present = (leaf(&server, trust)?, leaf(&client, trust)?);
        if let Some(leaf) = present.0.filter(&needs_signing) {
            sign_server(lock, authority()?, &server, &leaf.key, &leaf.info.names, now)?;
        }
        stop_if_asked(server_signed);
        let mut issued = None;
        if let Some(leaf) = present.1.filter(&needs_signing)
            && let Some(node) = host_of(&leaf.info)
        {
            issued = Some(sign_client(lock, authority()?, &client, &leaf.key, &node, now)?);
        }
        stop_if_asked(client_signed);
        Ok(issued)
    }

    /// Returns the paths where the files of an authority that is given up are kept.
    fn kept(&self, authority: Option<&CertInfo>) -> Pair {
        let id: String = authority.map(|info| info.serial.chars().take(8).collect()).unwrap_or_default();
        self.pair(&format!("ca-{id}"))
    }
}

fn rollover(trust: &Trust, server: Option<&Leaf>) -> Result<Option<Rollover>, PkiError> {
    let Some(new) = &trust.successor else { return Ok(None) };
    let describe = |one: &CertificateDer<'_>| {
        describe_der(one).map_err(|source| PkiError::Certificate { path: trust.ca.cert.clone(), source })
    };
    let old = trust.certificates.iter().filter(|one| **one != new.certificate).map(describe);
    let finishing = server.is_some_and(|leaf| new.signed(leaf));
    Ok(Some(Rollover { old: old.collect::<Result<_, _>>()?, new: describe(&new.certificate)?, finishing }))
}

/// Renames a pair's key to the other pair's. Does nothing if the key is kept elsewhere.
fn rename_if_there(from: &Pair, to: &Pair) -> Result<(), PkiError> {
    match files::rename(&from.key, &to.key) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PkiError::Io { did: "rename", path: from.key.clone(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::error::chain;
    use crate::pki::describe;
    use crate::pki::tests::{client_is_accepted, content, empty, host, made, name, serves};

    fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    fn names(pki: &Pki) -> Vec<String> {
        let entries = std::fs::read_dir(pki.dir()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != ".lock");
        names.sort();
        names
    }

    fn remove(path: &Path) {
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn both_are_good_until_the_end_and_then_the_new_one_alone() {
        let (_dir, pki, _) = made();
        let old = pki.ca_pem().unwrap();
        let (keys, files) = ([content(&pki.ca().key), content(&pki.server().key)], names(&pki));
        let before = pki.issue_host(&host("web1")).unwrap();
        assert_eq!(pki.rollover().unwrap(), None);

        let started = pki.start_rollover().unwrap();
        assert!(started.begun);
        assert_eq!(started.issued.unwrap().host, host("store1"));
        assert_eq!(std::fs::metadata(pki.next().key).unwrap().permissions().mode() & 0o777, 0o600);
        let (both, new) = (pki.ca_pem().unwrap(), content(&pki.next().cert));
        assert!(both.starts_with(old.trim_end()) && both.ends_with(&new));
        assert!(pki.is_ours(both.as_bytes()));
        let rollover = pki.rollover().unwrap().unwrap();
        assert_eq!((rollover.old.len(), rollover.finishing), (1, false));
        assert_eq!(rollover.new, describe(&new).unwrap());
        // A second rollover is not begun, and nothing is made twice.
        let again = pki.start_rollover().unwrap();
        assert_eq!(again, Started { begun: false, issued: None });
        assert_eq!(pki.ca_pem().unwrap(), both);
        assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);

        let renewed = pki.issue_host(&host("web1")).unwrap();
        assert_eq!(renewed.issued.issuer, rollover.new.subject);
        assert_eq!(renewed.ca_pem, both);
        client_is_accepted(&new, &renewed.cert_pem, now()).unwrap();
        client_is_accepted(&both, &before.cert_pem, now()).unwrap();
        client_is_accepted(&new, &content(&pki.client().cert), now()).unwrap();
        // The old authority signs the server's certificate even with a new name: an engine that was not
        // restarted knows no other.
        assert!(pki.add_server_name(&name("vol.example.org")).unwrap());
        serves(&old, &content(&pki.server().cert), "vol.example.org").unwrap();

        let finished = pki.finish_rollover().unwrap();
        assert_eq!((&finished.rollover, finished.issued), (&rollover, None));
        assert_eq!(pki.ca_pem().unwrap(), new);
        assert_eq!(pki.rollover().unwrap(), None);
        serves(&new, &content(&pki.server().cert), "vol.example.org").unwrap();
        assert!(client_is_accepted(&pki.ca_pem().unwrap(), &before.cert_pem, now()).is_err());
        assert_eq!(describe(content(&finished.kept.cert)).unwrap(), rollover.old[0]);
        assert_eq!([content(&finished.kept.key), content(&pki.server().key)], keys);
        assert_eq!(std::fs::metadata(&finished.kept.key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(&pki).len(), files.len() + 2, "{:?}", names(&pki));
        let next = pki.issue_host(&host("web2")).unwrap();
        client_is_accepted(&new, &next.cert_pem, now()).unwrap();
        assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);
        // A second rollover works beside the files that the first one kept.
        pki.start_rollover().unwrap();
        let second = pki.finish_rollover().unwrap();
        assert_ne!(second.kept, finished.kept);
        serves(&pki.ca_pem().unwrap(), &content(&pki.server().cert), "localhost").unwrap();
    }

    #[test]
    fn directories_with_the_same_authority_move_to_the_same_new_one() {
        let (_dir, one, _) = made();
        let (_other_dir, other) = empty();
        std::fs::create_dir_all(other.dir()).unwrap();
        let give = |names: &[&str]| {
            for name in names {
                std::fs::copy(one.dir().join(name), other.dir().join(name)).unwrap();
            }
        };
        give(&["ca.crt", "ca.key"]);
        other.ensure_of_given_ca(&host("store2"), &[name("10.0.0.8")]).unwrap();

        one.start_rollover().unwrap();
        give(&["ca-next.key", "ca-next.crt", "ca.crt"]);
        let moved = other.ensure_of_given_ca(&host("store2"), &[]).unwrap();
        assert_eq!(moved.client.unwrap().issuer, describe(content(&one.next().cert)).unwrap().subject);
        assert_eq!(other.ca_pem().unwrap(), one.ca_pem().unwrap());
        let web1 = one.issue_host(&host("web1")).unwrap();
        for pki in [&one, &other] {
            pki.finish_rollover().unwrap();
            client_is_accepted(&pki.ca_pem().unwrap(), &web1.cert_pem, now()).unwrap();
        }
        assert_eq!(other.ca_pem().unwrap(), one.ca_pem().unwrap());
        serves(&one.ca_pem().unwrap(), &content(&other.server().cert), "10.0.0.8").unwrap();
        let web2 = other.issue_host(&host("web2")).unwrap();
        client_is_accepted(&one.ca_pem().unwrap(), &web2.cert_pem, now()).unwrap();
    }

    #[test]
    fn an_abort_leaves_all_as_it_was() {
        let (_dir, pki, _) = made();
        let (old, key) = (pki.ca_pem().unwrap(), content(&pki.ca().key));
        for rollover in [pki.finish_rollover(), pki.abort_rollover()] {
            let error = rollover.unwrap_err();
            assert!(matches!(error, PkiError::NoRollover), "{}", chain(&error));
        }
        pki.start_rollover().unwrap();
        let renewed = pki.issue_host(&host("web1")).unwrap();
        let aborted = pki.abort_rollover().unwrap();
        assert_eq!(aborted.issued.unwrap().host, host("store1"));
        assert_eq!(describe(pki.ca_pem().unwrap()).unwrap(), describe(&old).unwrap());
        assert_eq!(content(&pki.ca().key), key);
        assert!(!pki.next().cert.exists() && !pki.next().key.exists());
        assert!(aborted.kept.key.exists(), "a key was thrown away");
        client_is_accepted(&old, &content(&pki.client().cert), now()).unwrap();
        serves(&old, &content(&pki.server().cert), "localhost").unwrap();
        assert!(client_is_accepted(&pki.ca_pem().unwrap(), &renewed.cert_pem, now()).is_err());
        assert!(!pki.ensure(&host("store1"), &[]).unwrap().server_renewed);
    }

    #[test]
    fn a_finish_that_was_cut_off_can_be_taken_back() {
        let (_dir, pki, _) = made();
        let (old, key) = (pki.ca_pem().unwrap(), content(&pki.ca().key));
        pki.start_rollover().unwrap();
        let rollover = pki.rollover().unwrap().unwrap();
        std::fs::rename(pki.ca().key, pki.kept(rollover.old.first()).key).unwrap();
        pki.abort_rollover().unwrap();
        assert_eq!(content(&pki.ca().key), key);
        serves(&old, &content(&pki.server().cert), "localhost").unwrap();
        client_is_accepted(&old, &pki.issue_host(&host("web1")).unwrap().cert_pem, now()).unwrap();
    }

    #[test]
    fn keys_may_be_elsewhere_until_they_must_sign() {
        let (dir, pki, _) = made();
        let away = dir.path().join("away.key");
        // The old key is needed neither to start nor to finish.
        std::fs::rename(pki.ca().key, &away).unwrap();
        pki.start_rollover().unwrap();
        pki.issue_host(&host("web1")).unwrap();
        let error = pki.add_server_name(&name("vol.example.org")).unwrap_err();
        assert!(chain(&error).contains("ca.key to sign it with is missing"), "{}", chain(&error));
        let error = pki.abort_rollover().map(drop);
        // An abort would leave this machine's engine without a certificate.
        assert!(matches!(error, Err(PkiError::CaKeyMissing { .. })), "{error:?}");
        assert!(pki.rollover().unwrap().is_some());

        let new_away = dir.path().join("new-away.key");
        std::fs::rename(pki.next().key, &new_away).unwrap();
        pki.ensure(&host("store1"), &[]).unwrap();
        for error in [pki.issue_host(&host("web1")).map(drop), pki.finish_rollover().map(drop)] {
            let text = chain(&error.unwrap_err());
            assert!(text.contains("ca-next.key to sign it with is missing"), "{text}");
        }
        std::fs::rename(&new_away, pki.next().key).unwrap();
        let finished = pki.finish_rollover().unwrap();
        assert!(!finished.kept.key.exists() && finished.kept.cert.exists());
        pki.issue_host(&host("web1")).unwrap();
    }

    #[test]
    fn a_key_without_its_certificate_is_no_rollover_and_the_next_one_takes_it() {
        let (_dir, pki, _) = made();
        pki.start_rollover().unwrap();
        let key = content(&pki.next().key);
        pki.abort_rollover().unwrap();
        std::fs::write(pki.next().key, &key).unwrap();
        assert_eq!(pki.rollover().unwrap(), None);
        pki.ensure(&host("store1"), &[]).unwrap();
        assert!(pki.start_rollover().unwrap().begun);
        assert_eq!(content(&pki.next().key), key);
    }

    #[test]
    fn files_that_no_rollover_leaves_are_errors_with_a_remedy() {
        let (_dir, pki, _) = made();
        pki.start_rollover().unwrap();
        let next = content(&pki.next().cert);
        std::fs::write(pki.next().cert, next.repeat(2)).unwrap();
        let text = chain(&pki.ensure(&host("store1"), &[]).unwrap_err());
        assert!(text.contains("ca-next.crt holds several certificates"), "{text}");
        std::fs::write(pki.next().cert, &next).unwrap();
        std::fs::copy(pki.client().key, pki.next().key).unwrap();
        let text = chain(&pki.ensure(&host("store1"), &[]).unwrap_err());
        assert!(text.contains("ca-next.key is not the key of"), "{text}");
        remove(&pki.next().key);
        pki.ensure(&host("store1"), &[]).unwrap();
    }
}
