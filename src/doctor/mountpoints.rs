//! Checks the mountpoints that this host should see: each must exist, be the right backend, and be usable.
//!
//! A container that gets a directory in which nothing is mounted writes to this machine's own disk, and
//! nobody notices: only the identity file shows the difference.

use std::path::Path;

use super::directory::{self, DirectoryState, Writable};
use super::plugin::Plugin;
use super::service::{Backend, ServiceReply};
use super::{Finding, LOCAL_TIMEOUT, Verdict, shown, space};

const BACKEND: &str = "backend";
const CHECK: &str = "mountpoint";

/// Inspects all of them at the same time.
pub(super) fn examine(plugin: &Plugin, seen: Option<&ServiceReply>, findings: &mut Vec<Finding>) {
    let finding = |verdict, message: &str| Finding::new(CHECK, &plugin.name, verdict, message);
    let backends = match seen.map(|seen| &seen.backends) {
        None => {
            let message = "which mountpoints this host is to see is known to the service alone";
            return findings.push(finding(Verdict::Skipped, message));
        }
        Some(Err(why)) => {
            let message = format!("which mountpoints this host is to see was not told: {why}");
            return findings.push(finding(Verdict::Skipped, &message));
        }
        Some(Ok(backends)) if backends.is_empty() => {
            let message = "this host sees no volume yet, and so no mountpoint is known; after the first one run this again";
            return findings.push(finding(Verdict::Note, message));
        }
        Some(Ok(backends)) => backends,
    };
    let paths: Vec<_> = backends.iter().map(|backend| &*backend.mountpoint).collect();
    let states = directory::inspect_all(&paths);
    for (backend, dir_state) in backends.iter().zip(states) {
        // On the storage host, the check of the service has already reported these findings.
        let mut new = |finding: Finding| {
            let is_same = |told: &Finding| told.check == finding.check && told.subject == finding.subject;
            if !findings.iter().any(is_same) {
                findings.push(finding);
            }
        };
        new(state(backend));
        if let Some(DirectoryState::Directory { identity: Ok(Some(_)), file_system, .. }) = &dir_state {
            file_system.judge_setuid(&backend.mountpoint).map(&mut new);
            file_system.judge_journal(&backend.mountpoint, "volumes").map(&mut new);
        }
        let (finding, space) = judge(backend, dir_state);
        new(finding);
        if let Some(space) = space {
            new(space::judge(&shown(&backend.mountpoint), space, "volumes"));
        }
    }
}

/// Judges the backend's state as the service reports it.
fn state(backend: &Backend) -> Finding {
    let Backend { name, state, .. } = backend;
    let finding = |verdict, message: &str| Finding::new(BACKEND, name, verdict, message);
    match &**state {
        "online" => finding(Verdict::Ok, "the service has it online"),
        "unmapped" => {
            finding(Verdict::Warning, "the service has it in its map no more, and mounts nothing of it anew")
                .remedy("put it back into the backend map on the storage host, or remove its volumes")
        }
        state => {
            finding(Verdict::Wrong, &format!("the service has it {state}: no volume of it can be mounted"))
                .remedy("`volhost backend ls` on the storage host tells the reason")
        }
    }
}

fn judge(backend: &Backend, dir_state: Option<DirectoryState>) -> (Finding, Option<space::Space>) {
    let Backend { name, id, state: _, mountpoint } = backend;
    let finding = |verdict, message: String| Finding::new(CHECK, shown(mountpoint), verdict, message);
    let wrong = |message: String| finding(Verdict::Wrong, message);
    let mount = |path: &Path| {
        format!(
            "mount the share of backend {name:?} at {}; if this host sees it elsewhere, say so in the backend's \
             `mountpoint_by_host`",
            path.display()
        )
    };
    let (identity, writable, space) = match dir_state {
        None => {
            let message =
                format!("it does not answer within {} s: its storage hangs", LOCAL_TIMEOUT.as_secs());
            return (
                wrong(message)
                    .remedy("mend the storage or the way to it, or unmount it (`umount --force --lazy`)"),
                None,
            );
        }
        Some(DirectoryState::Missing) => {
            return (
                wrong("there is no such directory on this machine".into()).remedy(mount(mountpoint)),
                None,
            );
        }
        Some(DirectoryState::Failed(why)) => {
            return (wrong(format!("it cannot be looked at: {why}")).remedy(mount(mountpoint)), None);
        }
        Some(DirectoryState::Directory { identity, writable, space, file_system: _ }) => {
            (identity, writable, space)
        }
    };
    let judged = match (identity, writable) {
        (Ok(None), _) => {
            // The free space on the disk below says nothing about the backend.
            let message = "it has no .volhost/backend.json: nothing is mounted there, and containers would write to \
                           this machine's own disk";
            return (wrong(message.into()).remedy(mount(mountpoint)), None);
        }
        (Ok(Some(found)), _) if id.as_ref().is_some_and(|id| *id != found) => {
            let id = id.as_deref().unwrap_or_default();
            let message = format!("another backend is mounted there (id {found}, where {name:?} has {id})");
            return (wrong(message).remedy(mount(mountpoint)), None);
        }
        (Err(why), _) => finding(Verdict::Warning, format!("whether it is backend {name:?} cannot be told: {why}"))
            .remedy("run this as root, on a share without root_squash"),
        (Ok(Some(_)), Writable::ReadOnly) => wrong(format!("it is backend {name:?}, but read-only"))
            .remedy(format!(
                "if it was not mounted so, the kernel's log tells why (`dmesg`); then `mount -o remount,rw {}`",
                mountpoint.display()
            )),
        (Ok(Some(_)), Writable::Denied) => {
            finding(Verdict::Warning, format!("it is backend {name:?}, but this user may not write there"))
                .remedy("run this as root; on a share with root_squash give volumes the users that write (`-o uid=`)")
        }
        (Ok(Some(_)), Writable::Yes) => finding(Verdict::Ok, format!("it is backend {name:?}, and can be written to")),
    };
    (judged, space)
}

#[cfg(test)]
mod tests {
    use super::super::filesystem::FileSystem;
    use super::*;

    #[test]
    fn what_is_seen_is_judged() {
        let backend = Backend {
            name: "fast".into(),
            id: Some("one".into()),
            state: "online".into(),
            mountpoint: "/mnt/fast".into(),
        };
        let directory = |identity: Result<Option<&str>, &str>, writable| {
            let identity = identity.map(|id| id.map(str::to_owned)).map_err(str::to_owned);
            let file_system = FileSystem::default();
            Some(DirectoryState::Directory { identity, writable, space: None, file_system })
        };
        for (dir_state, verdict, words) in [
            (directory(Ok(Some("one")), Writable::Yes), Verdict::Ok, "can be written to"),
            (directory(Ok(Some("one")), Writable::ReadOnly), Verdict::Wrong, "read-only"),
            (directory(Ok(Some("one")), Writable::Denied), Verdict::Warning, "may not write"),
            (directory(Ok(Some("two")), Writable::Yes), Verdict::Wrong, "id two, where \"fast\" has one"),
            (directory(Ok(None), Writable::Yes), Verdict::Wrong, "own disk"),
            (directory(Err("denied"), Writable::Yes), Verdict::Warning, "denied"),
            (Some(DirectoryState::Missing), Verdict::Wrong, "no such directory"),
            (Some(DirectoryState::Failed("stale".into())), Verdict::Wrong, "stale"),
            (None, Verdict::Wrong, "does not answer within 5 s"),
        ] {
            let (finding, _) = judge(&backend, dir_state);
            assert_eq!(finding.verdict, verdict, "{finding:?}");
            assert!(finding.message.contains(words), "{finding:?}");
            assert_eq!(finding.remedy.is_some(), verdict != Verdict::Ok, "{finding:?}");
        }
    }

    #[test]
    fn the_services_word_on_a_backend_is_passed_on() {
        for (word, verdict) in
            [("online", Verdict::Ok), ("offline", Verdict::Wrong), ("unmapped", Verdict::Warning)]
        {
            let backend = Backend { name: "b".into(), id: None, state: word.into(), mountpoint: "/b".into() };
            assert_eq!(state(&backend).verdict, verdict);
        }
    }
}
