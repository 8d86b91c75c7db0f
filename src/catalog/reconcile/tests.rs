use std::collections::BTreeSet;

use time::OffsetDateTime;

use super::*;
use crate::catalog::entities::{BackendRecord, BackendState, Volume};
use crate::catalog::view::View;
use crate::catalog::{Certificate, Change};
use crate::model::host::HostName;
use crate::model::mounts::Ledger;
use crate::model::options::Options;
use crate::model::volume::MountId;

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
}

fn backend() -> BackendName {
    BackendName::parse("fast").unwrap()
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

/// Returns a catalog with one backend and these volumes, and the facts of that backend.
fn world(volumes: &[&str]) -> (View, Facts) {
    let mut view = View::default();
    let id = BackendId::random();
    let record = BackendRecord {
        id,
        state: BackendState::Established,
        mountpoints: std::path::PathBuf::from("/mnt/fast").into(),
    };
    view.apply(Change::Backend(backend(), Some(record))).unwrap();
    let mut facts = Facts { id: Some(id), ..Facts::default() };
    for volume in volumes {
        create(&mut view, volume);
        facts.directories.insert(name(volume));
    }
    (view, facts)
}

/// Returns a volume as its Create records it first.
fn volume(text: &str) -> Volume {
    Volume {
        id: VolumeId::random(),
        name: name(text),
        backend: backend(),
        options: Options::default(),
        created_at: at(0),
        adopted: false,
        known_to: vec![],
        mounts: Ledger::default(),
        visible: false,
        unconfirmed: Some(std::sync::Arc::default()),
    }
}

fn create(view: &mut View, text: &str) -> VolumeId {
    let volume = volume(text);
    let id = volume.id;
    view.apply(Change::Insert(volume)).unwrap();
    view.apply(Change::Publish(name(text), id)).unwrap();
    view.apply(Change::Confirm(vec![(name(text), id)])).unwrap();
    id
}

fn source(view: &View, seconds: i64) -> Source {
    Source { label: format!("copy-{seconds}"), at: Some(at(seconds)), view: view.clone() }
}

fn kinds(findings: &[Finding]) -> Vec<(Kind, &str)> {
    findings.iter().map(|finding| (finding.kind, &*finding.name)).collect()
}

#[test]
fn every_difference_is_told_once() {
    let (mut view, mut facts) = world(&["db", "web", "half", "gone"]);
    let half = view.volumes["half"].id;
    let gone = view.volumes["gone"].id;
    facts.directories.remove(&name("web"));
    facts.directories.remove(&name("half"));
    facts.directories.insert(name("stranger"));
    facts.staged.insert(half);
    let (stray, other) = (VolumeId::random(), VolumeId::random());
    facts.staged.insert(stray);
    facts.trashed.insert(other);
    view.apply(Change::Remove { name: name("gone"), id: gone, at: at(1), keep: true }).unwrap();
    facts.directories.remove(&name("gone"));
    let (stray, other, gone) = (stray.to_string(), other.to_string(), gone.to_string());
    // The record of a Create that was cut off, and one whose directory stands.
    for text in ["cut-off", "done"] {
        view.apply(Change::Insert(volume(text))).unwrap();
    }
    facts.directories.insert(name("done"));
    let mut expected = vec![
        (Kind::HalfDone, "cut-off"),
        (Kind::Missing, "web"),
        (Kind::Found, "stranger"),
        (Kind::HalfDone, "half"),
        (Kind::Leftover, &*stray),
        (Kind::Leftover, &*other),
        (Kind::NotInTrash, &*gone),
    ];
    expected.sort();
    let findings = compare(&view, &AllFacts::from([(backend(), facts)]));
    assert_eq!(kinds(&findings), expected);
    assert_eq!(compare(&view, &AllFacts::new()), [], "what was not looked at is not judged");
}

#[test]
fn the_newest_copy_holds_and_an_older_one_adds_what_still_stands() {
    let (older, mut facts) = world(&["db", "removed", "only-there"]);
    let mut newer = older.clone();
    for volume in ["removed", "only-there"] {
        let id = newer.volumes[volume].id;
        newer.apply(Change::Remove { name: name(volume), id, at: at(5), keep: false }).unwrap();
    }
    create(&mut newer, "web");
    facts.directories.remove(&name("removed"));
    facts.directories.insert(name("web"));
    facts.directories.insert(name("stranger"));
    let sources = vec![source(&older, 10), source(&newer, 20)];
    let (view, findings) = merge(sources, AllFacts::from([(backend(), facts)]), at(30));
    let names: Vec<_> = view.volumes.keys().map(VolumeName::as_str).collect();
    assert_eq!(names, ["db", "only-there", "web"]);
    assert_eq!(kinds(&findings), [(Kind::Found, "stranger"), (Kind::Older, "only-there")]);
    assert_eq!(view.backends, newer.backends);
}

#[test]
fn a_revocation_in_any_copy_holds() {
    let (mut older, facts) = world(&[]);
    let host = HostName::parse("web1").unwrap();
    let certificate = |serial: &str| Certificate {
        serial: serial.into(),
        issuer: None,
        issued_at: at(1),
        not_after: at(1000),
        revoked: false,
    };
    older.apply(Change::Issue(host.clone(), certificate("a1"))).unwrap();
    let mut newer = older.clone();
    older.apply(Change::Revoke(host.clone(), at(2))).unwrap();
    newer.apply(Change::Issue(host.clone(), certificate("b2"))).unwrap();
    let sources = vec![source(&older, 10), source(&newer, 20)];
    let (view, _) = merge(sources, AllFacts::from([(backend(), facts)]), at(30));
    assert!(view.is_revoked(&host, "a1") && view.is_revoked(&host, "unknown"));
    assert!(!view.is_revoked(&host, "b2"));
}

#[test]
fn a_volume_removed_since_the_copy_goes_to_the_trash_and_frees_its_name() {
    let (mut copy, mut facts) = world(&["db"]);
    let id = copy.volumes["db"].id;
    let (host, mount) = (HostName::parse("web1").unwrap(), MountId::parse("c1").unwrap());
    copy.apply(Change::Mount {
        name: name("db"),
        volume: id,
        host,
        id: mount,
        address: None,
        at: at(1),
        again: false,
    })
    .unwrap();
    // Another volume's directory has the name now.
    facts.trashed.insert(id);
    let (view, findings) = merge(vec![source(&copy, 10)], AllFacts::from([(backend(), facts)]), at(30));
    assert!(view.volumes.is_empty());
    assert_eq!(view.trash[&id].at, at(30));
    assert_eq!(kinds(&findings), [(Kind::Found, "db"), (Kind::RemovedSince, "db")]);
}

#[test]
fn what_is_half_deleted_is_never_whole_whichever_copy_is_taken() {
    let (older, mut facts) = world(&["db", "web", "twice"]);
    let ids = ["db", "web", "twice"].map(|text| older.volumes[text].id);
    facts.directories.clear();
    facts.deleting.extend(ids);
    // An earlier deletion left remains of this volume, and its directory in the trash is whole.
    facts.trashed.insert(ids[2]);
    let unknown = VolumeId::random();
    facts.deleting.insert(unknown);
    let mut newer = older.clone();
    newer.apply(Change::Remove { name: name("web"), id: ids[1], at: at(5), keep: true }).unwrap();
    let all = AllFacts::from([(backend(), facts)]);
    let (web, twice, unknown) = (ids[1].to_string(), ids[2].to_string(), unknown.to_string());
    let mut expected = [
        (Kind::Deleting, "db"),
        (Kind::Deleting, &*web),
        (Kind::HalfDone, "twice"),
        (Kind::Leftover, &*unknown),
    ];
    expected.sort();
    assert_eq!(kinds(&compare(&newer, &all)), expected);
    let (view, findings) = merge(vec![source(&newer, 10)], all.clone(), at(30));
    assert!(view.volumes.is_empty() && view.trash.len() == 3);
    assert_eq!(ids.map(|id| view.trash[&id].expired), [true, true, false]);
    let mut expected = [
        (Kind::Leftover, &*unknown),
        (Kind::RemovedSince, "db"),
        (Kind::RemovedSince, "twice"),
        (Kind::Deleting, &*web),
    ];
    expected.sort();
    assert_eq!(kinds(&findings), expected);
    assert!(
        findings.iter().all(|finding| finding.name != "db" || finding.what.contains("cannot be restored"))
    );
    assert_eq!(kinds(&compare(&view, &all)), [(Kind::Leftover, &*unknown)]);
    // A removed volume that an older copy has, and of which remains are left, is taken over and deleted.
    let mut latest = newer.clone();
    latest.apply(Change::Forget(ids[1])).unwrap();
    let (view, _) = merge(vec![source(&newer, 10), source(&latest, 20)], all, at(30));
    assert!(view.trash.get(&ids[1]).is_some_and(|removed| removed.expired), "{twice}");
}

#[test]
fn the_wrong_disk_is_no_backend_and_says_nothing_of_volumes() {
    let (copy, mut facts) = world(&["db"]);
    let wrong = BackendId::random();
    facts = Facts { id: Some(wrong), directories: BTreeSet::from([name("other")]), ..facts };
    let all = AllFacts::from([(backend(), facts)]);
    let (view, findings) = merge(vec![source(&copy, 10)], all.clone(), at(30));
    assert_eq!((&view.volumes, &view.backends), (&copy.volumes, &copy.backends));
    assert_eq!(kinds(&findings), [(Kind::Conflict, &*wrong.to_string())]);
    // Without a copy, the backend itself says its identity.
    let (view, findings) = merge(vec![], all, at(30));
    assert_eq!(view.backends[&backend()].id, wrong);
    assert_eq!(kinds(&findings), [(Kind::Found, "other")]);
}
