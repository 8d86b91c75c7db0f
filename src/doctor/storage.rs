//! Checks the storage host: its configuration, the status that its service reports, and the disk that its
//! catalog needs.

use std::path::Path;

use crate::model::timestamp;
use time::{Duration, OffsetDateTime};

use super::directory::{self, DirectoryState};
use super::filesystem::FileSystem;
use super::space::{self, Space};
use super::{Finding, LOCAL_TIMEOUT, Scope, Verdict, shown};
use crate::admin::client::{Client, ClientError};
use crate::admin::wire::{self, Nothing, Reload, verb};
use crate::config;
use crate::error::chain;
use crate::model::location::Location;

const CONFIGURATION: &str = "configuration";
const SERVICE: &str = "service";
const CATALOG: &str = "catalog";
const RELOAD: &str = "reload";
const CERTIFICATE: &str = "server-certificate";
const BACKEND: &str = "backend";
const CLONED: &str = "cloned-host";

/// The remaining lifetime below which the server's certificate gets a warning. volhost renews its own long
/// before.
const EXPIRY_WARNING: Duration = Duration::days(30);

/// The facts about the storage host that later checks need.
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    /// The plugin's configured name; `None` if the configuration is wrong.
    pub name: Option<String>,
    /// True if the configuration asks for no spec file.
    pub no_spec: bool,
}

/// Checks the service of this machine; `None` if this is not a storage host.
pub(super) fn examine(scope: &Scope, findings: &mut Vec<Finding>) -> Option<Storage> {
    let Scope { paths, config, socket, .. } = scope;
    let is_one = config.is_some()
        || socket.is_some()
        || paths.config().exists()
        || paths.catalog().exists()
        || paths.admin().exists();
    if !is_one {
        let message =
            "this is no storage host: it has no configuration, no catalog and no admin socket of volhost";
        findings.push(Finding::new(SERVICE, shown(&paths.config()), Verdict::Note, message));
        return None;
    }
    let file = config.clone().unwrap_or_else(|| paths.config());
    let loaded = crate::app::load(paths, config.as_deref());
    findings.push(configuration(&file, loaded.as_ref().err()));
    // This is the configuration as a running service has it: files that only the service needs may be
    // missing.
    let followed = config::served(paths, config.as_deref()).ok().map(|loaded| loaded.config);
    let admin = socket.clone().or_else(|| followed.as_ref().map(|config| config.boot.admin.clone()));
    let admin = admin.unwrap_or_else(|| paths.admin());
    service(&admin, findings);
    // The catalog needs a local disk; one in etcd needs little of it, and not always.
    let shared = followed.as_ref().is_some_and(|config| matches!(config.boot.catalog, Location::Etcd(_)));
    let used_for = if shared { "Unmounts while etcd is out of reach" } else { "the catalog" };
    match Space::of(&paths.state) {
        Ok(space) => findings.push(space::judge(&shown(&paths.state), space, used_for)),
        Err(rustix::io::Errno::NOENT) => {}
        Err(error) => {
            let message = format!("the room for {used_for} cannot be told: {error}");
            findings.push(Finding::new("space", shown(&paths.state), Verdict::Warning, message));
        }
    }
    findings.extend(FileSystem::of(&paths.state).judge_journal(&paths.state, "changes of the catalog"));
    Some(Storage {
        no_spec: followed.as_ref().is_some_and(|config| config.live.spec.is_none()),
        name: followed.map(|config| config.boot.name),
    })
}

fn configuration(file: &Path, faults: Option<&config::Faults>) -> Finding {
    let finding = |verdict, message: &str| Finding::new(CONFIGURATION, shown(file), verdict, message);
    match faults {
        None if file.exists() => finding(Verdict::Ok, "it is without fault"),
        None => finding(Verdict::Ok, "there is none, and the defaults hold"),
        Some(faults) => {
            let count = faults.iter().count();
            let first = faults.iter().next().map(ToString::to_string).unwrap_or_default();
            let more = if count > 1 { format!(", and {} more", count - 1) } else { String::new() };
            finding(Verdict::Wrong, &format!("{first}{more}"))
                .remedy("`volhost check` tells every fault with its place")
        }
    }
}

fn service(admin: &Path, findings: &mut Vec<Finding>) {
    let finding = |verdict, message: String| Finding::new(SERVICE, shown(admin), verdict, message);
    let client = Client::new(admin).with_answer_timeout(LOCAL_TIMEOUT);
    let status = match client.ask::<verb::Status>(&Nothing {}) {
        Ok(status) => status,
        Err(error @ ClientError::Denied { .. }) => {
            findings.push(
                finding(Verdict::Note, chain(&error))
                    .remedy("run this as root, or as the user that runs the service"),
            );
            return;
        }
        Err(ClientError::Missing { .. } | ClientError::Refused { .. }) => {
            let message = "the service does not run: nobody listens on its admin socket".to_owned();
            let remedy = "`systemctl start volhost` (or `volhost serve`); if it does not start, its log tells why: \
                          `journalctl -u volhost`";
            findings.push(finding(Verdict::Wrong, message).remedy(remedy));
            return;
        }
        Err(error) => {
            findings.push(
                finding(Verdict::Wrong, chain(&error))
                    .remedy("its log may tell why: `journalctl -u volhost`"),
            );
            return;
        }
    };
    let message = format!("volhost {} serves since {}", status.version, status.since);
    findings.push(finding(Verdict::Ok, message));
    findings.extend(catalog(&status));
    reload(&status, findings);
    findings.extend(status.troubles.iter().map(|trouble| {
        let remedy = "what it says: it is looked at every 5 s";
        Finding::new(SERVICE, &status.name, Verdict::Wrong, trouble.clone()).remedy(remedy)
    }));
    certificate(&status, OffsetDateTime::now_utc(), findings);
    findings.extend(cloned(&status));
    status.backends.iter().for_each(|backend| findings.extend(self::backend(backend)));
    let online = status.backends.iter().filter(|backend| backend.state == "online");
    let paths: Vec<_> = online.map(|backend| Path::new(&backend.path)).collect();
    for (path, dir_state) in paths.iter().zip(directory::inspect_all(&paths)) {
        // The service reports a backend that hangs.
        let Some(DirectoryState::Directory { file_system, .. }) = dir_state else { continue };
        findings.extend(file_system.judge_setuid(path));
        findings.extend(file_system.judge_journal(path, "volumes"));
    }
}

/// Reports why the service cannot change its catalog; `None` if it can.
fn catalog(status: &wire::Status) -> Option<Finding> {
    let fault = status.catalog_fault.as_ref()?;
    let remedy = "mend what it names: it is tried again by itself, and what was answered is not lost";
    Some(Finding::new(CATALOG, &status.catalog, Verdict::Wrong, fault.clone()).remedy(remedy))
}

/// Reports the hosts whose certificate several machines use.
fn cloned(status: &wire::Status) -> Vec<Finding> {
    let finding = |host: &String| {
        let message = "several machines use its certificate: none of its mounts is called stale, and its exclusive volumes \
                       are given to one of them only";
        let remedy = format!(
            "`volhost host ls` tells from where: list the addresses as `addresses` of {host} in `hosts`, if they are one \
             machine's; else give one of them a certificate of its own (`volhost host renew {host}`), or better a name of \
             its own (`volhost host add`)"
        );
        Finding::new(CLONED, host, Verdict::Wrong, message).remedy(&remedy)
    };
    status.cloned_hosts.iter().map(finding).collect()
}

fn reload(status: &wire::Status, findings: &mut Vec<Finding>) {
    match &status.last_reload {
        Some(Reload { at, unit, result, faults }) if result == "rejected" => {
            let message = format!(
                "{unit} read at {at} was rejected, and what was read before is still in force: {}",
                faults.join("; ")
            );
            let remedy = "mend the file: it is read again by itself (`volhost check` reads it before)";
            findings.push(Finding::new(RELOAD, &status.name, Verdict::Wrong, message).remedy(remedy));
        }
        _ if !status.needs_restart.is_empty() => {
            let message =
                format!("changed, but in force only after a restart: {}", status.needs_restart.join(", "));
            let remedy = "`systemctl restart volhost`, which loses nothing";
            findings.push(Finding::new(RELOAD, &status.name, Verdict::Warning, message).remedy(remedy));
        }
        _ => {
            findings.push(Finding::new(
                RELOAD,
                &status.name,
                Verdict::Ok,
                "what is in the files is in force",
            ));
        }
    }
}

fn certificate(status: &wire::Status, now: OffsetDateTime, findings: &mut Vec<Finding>) {
    let Some(text) = &status.server_certificate_expires else { return };
    let Ok(expires) = timestamp::parse(text) else { return };
    let days = (expires - now).whole_days();
    let finding = |verdict, message: String| Finding::new(CERTIFICATE, &status.name, verdict, message);
    let remedy = "replace the files that `tls` names: they are read again by themselves (volhost renews its own; if it \
                  does not, its log tells why)";
    findings.push(if expires <= now {
        finding(Verdict::Wrong, format!("it expired at {text}")).remedy(remedy)
    } else if expires <= now + EXPIRY_WARNING {
        finding(Verdict::Warning, format!("it expires in {days} days, at {text}")).remedy(remedy)
    } else {
        finding(Verdict::Ok, format!("it is good for {days} days"))
    });
}

/// Judges a backend as the service reports it. A backend that is online is also judged by its space and by
/// the mountpoints.
fn backend(backend: &wire::Backend) -> Vec<Finding> {
    let wire::Backend {
        name,
        path,
        state,
        draining: _,
        reason,
        volumes: _,
        total_bytes,
        free_bytes,
        names: _,
    } = backend;
    let finding = |verdict, message: String| Finding::new(BACKEND, name, verdict, message);
    let reason = reason.as_deref().unwrap_or("it was not looked at yet");
    match &**state {
        "online" => {
            let mut found = vec![finding(Verdict::Ok, format!("it is online at {path}"))];
            if let (Some(total_bytes), Some(free_bytes)) = (*total_bytes, *free_bytes) {
                let space = Space { total_bytes, free_bytes, ..Space::default() };
                found.push(space::judge(path, space, "volumes"));
            }
            found
        }
        "unmapped" => vec![
            finding(Verdict::Warning, format!("it is unmapped: {reason}"))
                .remedy("put it back into the backend map, or remove its volumes"),
        ],
        state => vec![
            finding(Verdict::Wrong, format!("it is {state}: {reason}"))
                .remedy("mend what the reason names; volhost notices within 5 s"),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> wire::Status {
        wire::Status {
            catalog_fault: None,
            version: "0.1.0".into(),
            name: "volhost".into(),
            node: "store1".into(),
            listening: Vec::new(),
            catalog: "sqlite:/c".into(),
            volumes: 0,
            mounts: 0,
            backends: Vec::new(),
            connections: 0,
            since: "2026-01-02T03:04:05Z".into(),
            last_reload: None,
            needs_restart: Vec::new(),
            spec: None,
            server_certificate_expires: Some("2027-01-02T03:04:05Z".into()),
            log_lines_dropped: 0,
            troubles: Vec::new(),
            cloned_hosts: Vec::new(),
        }
    }

    #[test]
    fn a_cloned_host_is_wrong_and_told_with_both_remedies() {
        let found = cloned(&wire::Status { cloned_hosts: vec!["web1".into()], ..status() });
        assert_eq!((found[0].check, found[0].verdict), (CLONED, Verdict::Wrong));
        let remedy = found[0].remedy.as_deref().unwrap();
        assert!(remedy.contains("`addresses` of web1") && remedy.contains("host renew web1"), "{remedy}");
        assert!(cloned(&status()).is_empty());
    }

    #[test]
    fn the_servers_certificate_is_judged_by_its_end() {
        let status = status();
        let end = timestamp::parse("2027-01-02T03:04:05Z").unwrap();
        for (left, verdict, words) in [
            (Duration::days(364), Verdict::Ok, "for 364 days"),
            (Duration::days(30), Verdict::Warning, "in 30 days"),
            (Duration::ZERO, Verdict::Wrong, "expired at 2027-01-02"),
        ] {
            let mut findings = Vec::new();
            certificate(&status, end - left, &mut findings);
            assert_eq!(findings[0].verdict, verdict, "{findings:?}");
            assert!(findings[0].message.contains(words), "{findings:?}");
        }
    }

    #[test]
    fn a_catalog_that_cannot_be_changed_is_wrong() {
        let mut status = status();
        assert!(catalog(&status).is_none());
        status.catalog_fault = Some("http://10.0.0.1:2379: no answer within 2s".into());
        let found = catalog(&status).unwrap();
        assert_eq!((found.check, found.verdict), (CATALOG, Verdict::Wrong));
        assert!(found.message.contains("no answer within 2s"), "{found:?}");
    }

    #[test]
    fn a_backend_that_left_the_map_is_a_warning_and_a_full_one_is_wrong() {
        let backend = |state: &str, free| {
            let (name, path, reason) = ("fast".to_owned(), "/mnt/fast".to_owned(), None);
            let (total_bytes, free_bytes) = (Some(1000), free);
            let state = state.to_owned();
            backend(&wire::Backend {
                name,
                path,
                state,
                draining: false,
                reason,
                volumes: 1,
                total_bytes,
                free_bytes,
                names: None,
            })
            .iter()
            .map(|finding| (finding.check, finding.verdict))
            .collect::<Vec<_>>()
        };
        assert_eq!(backend("unmapped", None), [(BACKEND, Verdict::Warning)]);
        assert_eq!(backend("offline", None), [(BACKEND, Verdict::Wrong)]);
        assert_eq!(backend("online", Some(0)), [(BACKEND, Verdict::Ok), ("space", Verdict::Wrong)]);
        assert_eq!(backend("online", None), [(BACKEND, Verdict::Ok)]);
    }
}
