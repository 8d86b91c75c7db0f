//! The battery that every catalog engine passes: what a catalog promises, whatever keeps it.
//!
//! Knows no engine. A test module of an engine calls [`battery`] with a way to open stores.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use time::{Duration, OffsetDateTime};

use super::*;
use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Ledger};
use crate::model::options::{Options, Sharing};
use crate::model::volume::{MountId, VolumeName};

/// Runs everything. `open` opens the store of that name, which is empty the first time; it is closed, or dropped, when
/// it is opened again.
pub(super) async fn battery(open: impl AsyncFn(&'static str) -> Arc<dyn Catalog>) {
    a_volume_lives_and_dies(open("life").await).await;
    insertions_can_be_taken_back(open("withdraw").await).await;
    the_trash_gives_back_what_it_holds(open("trash").await).await;
    an_adopted_volume_is_only_forgotten(open("adopt").await).await;
    mounts_are_counted_and_protect(open("mounts").await).await;
    a_new_activation_makes_mounts_stale(open("activations").await).await;
    the_operator_releases(open("release").await).await;
    revocation_meets_every_certificate_so_far(open("hosts").await).await;
    a_machine_takes_its_mounts_along(&open).await;
    clones_are_remembered(&open).await;
    a_backends_identity_is_its_own(open("backends").await).await;
    submissions_are_decided_in_their_order(open("order").await).await;
    one_of_many_hosts_gets_an_exclusive_volume(open("exclusive").await).await;
    one_of_many_wins_a_name(open("race").await).await;
    a_view_never_changes(open("views").await).await;
    nobody_need_wait(open("unawaited").await).await;
    everything_survives_a_reopening(&open).await;
    what_is_closed_takes_nothing(open("closed").await).await;
}

/// A moment with more digits than a record has: what is answered must be what is kept.
pub(super) fn at(second: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH
        + Duration::seconds(1_700_000_000 + second)
        + Duration::nanoseconds(123_456_789)
}

pub(super) fn kept(second: i64) -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(1_700_000_000 + second) + Duration::milliseconds(123)
}

pub(super) fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

pub(super) fn host(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

pub(super) fn mount_id(text: &str) -> MountId {
    MountId::parse(text).unwrap()
}

pub(super) fn backend(text: &str) -> BackendName {
    BackendName::parse(text).unwrap()
}

pub(super) fn volume(text: &str) -> Volume {
    Volume {
        id: VolumeId::random(),
        name: name(text),
        backend: backend("fast"),
        options: Options::parse([("backend", "fast"), ("uid", "70"), ("mode", "750")]).unwrap(),
        created_at: at(0),
        adopted: false,
        known_to: vec![host("web1")],
        mounts: Ledger::default(),
        visible: false,
        unconfirmed: true,
    }
}

pub(super) fn mount(volume: &Volume, by: &str, id: &str) -> Change {
    let (name, volume) = (volume.name.clone(), volume.id);
    Change::Mount { name, volume, host: host(by), id: mount_id(id), address: None, at: at(10), again: false }
}

fn unmount(volume: &Volume, by: &str, id: &str) -> Change {
    Change::Unmount { name: volume.name.clone(), host: host(by), id: mount_id(id), target: None }
}

pub(super) fn remove(volume: &Volume, keep: bool) -> Change {
    Change::Remove { name: volume.name.clone(), id: volume.id, at: at(20), keep }
}

fn certificate(serial: &str) -> Certificate {
    let issuer = Some("CN=a CA".into());
    Certificate { serial: serial.into(), issuer, issued_at: at(1), not_after: at(1000), revoked: false }
}

async fn done(catalog: &Arc<dyn Catalog>, change: Change) -> Outcome {
    catalog.submit(change.clone()).await.unwrap_or_else(|error| panic!("{change:?}: {error}"))
}

async fn refused(catalog: &Arc<dyn Catalog>, change: Change) -> Refusal {
    let before = catalog.view();
    match catalog.submit(change.clone()).await {
        Err(CatalogError::Refused(refusal)) => {
            assert_eq!(*before, *catalog.view(), "a refusal changed something");
            refusal
        }
        other => panic!("{change:?} was not refused: {other:?}"),
    }
}

/// Inserts and publishes.
pub(super) async fn create(catalog: &Arc<dyn Catalog>, text: &str) -> Arc<Volume> {
    let volume = volume(text);
    done(catalog, Change::Insert(volume.clone())).await;
    done(catalog, Change::Publish(volume.name, volume.id)).await.after.unwrap()
}

async fn a_volume_lives_and_dies(catalog: Arc<dyn Catalog>) {
    let made = volume("db");
    let outcome = done(&catalog, Change::Insert(made.clone())).await;
    let inserted = outcome.after.unwrap();
    assert!(outcome.before.is_none() && !inserted.visible);
    assert_eq!(*inserted, Volume { created_at: kept(0), ..made.clone() });
    assert_eq!(catalog.view().volume("db"), Some(&inserted));

    assert!(
        matches!(refused(&catalog, Change::Insert(volume("db"))).await, Refusal::Exists(v) if v.id == made.id)
    );
    assert!(
        matches!(refused(&catalog, mount(&made, "web1", "x")).await, Refusal::NoSuchVolume),
        "it is hidden"
    );
    assert!(matches!(refused(&catalog, remove(&made, true)).await, Refusal::NoSuchVolume), "it is hidden");
    let other = Change::Publish(made.name.clone(), VolumeId::random());
    assert!(matches!(refused(&catalog, other).await, Refusal::NoSuchVolume));

    let outcome = done(&catalog, Change::Publish(made.name.clone(), made.id)).await;
    let (before, after) = (outcome.before.unwrap(), outcome.after.unwrap());
    assert!(!before.visible && before.unconfirmed && after.visible && !after.unconfirmed);
    assert_eq!(catalog.view().volume("db"), Some(&after), "it is shown as it is answered");
    done(&catalog, Change::Publish(made.name.clone(), made.id)).await;

    let other = Change::Remove { name: made.name.clone(), id: VolumeId::random(), at: at(1), keep: false };
    assert!(matches!(refused(&catalog, other).await, Refusal::NoSuchVolume));
    let outcome = done(&catalog, remove(&made, false)).await;
    assert_eq!(outcome.before.unwrap().id, made.id);
    assert!(outcome.after.is_none() && outcome.trashed.is_none());
    assert!(catalog.view().volumes.is_empty() && catalog.view().trash.is_empty());
    assert!(matches!(refused(&catalog, remove(&made, false)).await, Refusal::NoSuchVolume));
}

async fn insertions_can_be_taken_back(catalog: Arc<dyn Catalog>) {
    let made = volume("db");
    let withdraw = Change::Withdraw(made.name.clone(), made.id);
    assert!(matches!(refused(&catalog, withdraw.clone()).await, Refusal::NoSuchVolume));
    done(&catalog, Change::Insert(made.clone())).await;
    assert_eq!(done(&catalog, withdraw.clone()).await.before.unwrap().id, made.id);
    assert!(catalog.view().volumes.is_empty());
    done(&catalog, Change::Insert(made.clone())).await;
    done(&catalog, Change::Publish(made.name.clone(), made.id)).await;
    assert!(matches!(refused(&catalog, withdraw).await, Refusal::Exists(_)), "it was shown");
}

async fn the_trash_gives_back_what_it_holds(catalog: Arc<dyn Catalog>) {
    let made = create(&catalog, "db").await;
    let trashed = done(&catalog, remove(&made, true)).await.trashed.unwrap();
    assert_eq!((trashed.at, trashed.volume.id), (kept(20), made.id));
    assert_eq!(catalog.view().removed("db"), Some(&trashed));

    let second = create(&catalog, "db").await;
    assert!(
        matches!(refused(&catalog, Change::Restore(made.id)).await, Refusal::Exists(v) if v.id == second.id)
    );
    done(&catalog, Change::Remove { name: name("db"), id: second.id, at: at(30), keep: true }).await;
    assert_eq!(catalog.view().removed("db").unwrap().volume.id, second.id, "the newest is meant by a name");
    done(&catalog, Change::Forget(second.id)).await;
    assert!(matches!(refused(&catalog, Change::Forget(second.id)).await, Refusal::NotInTrash));

    let outcome = done(&catalog, Change::Restore(made.id)).await;
    let restored = outcome.after.unwrap();
    assert_eq!(*restored, Volume { visible: false, ..Volume::clone(&made) });
    assert_eq!(outcome.trashed, Some(Arc::clone(&trashed)));
    assert!(catalog.view().trash.is_empty());
    assert!(matches!(refused(&catalog, Change::Restore(made.id)).await, Refusal::NotInTrash));

    let back = Change::Unrestore { name: name("db"), id: made.id, at: trashed.at };
    assert_eq!(done(&catalog, back.clone()).await.trashed, Some(Arc::clone(&trashed)));
    assert_eq!(catalog.view().trash.get(&made.id), Some(&trashed), "as if it had never left");
    assert!(catalog.view().volumes.is_empty());

    done(&catalog, Change::Restore(made.id)).await;
    done(&catalog, Change::Publish(name("db"), made.id)).await;
    assert!(matches!(refused(&catalog, back).await, Refusal::Exists(_)), "it was shown");
}

async fn an_adopted_volume_is_only_forgotten(catalog: Arc<dyn Catalog>) {
    let adopted = Volume { adopted: true, ..volume("old-data") };
    done(&catalog, Change::Insert(adopted.clone())).await;
    done(&catalog, Change::Publish(adopted.name.clone(), adopted.id)).await;
    assert_eq!(done(&catalog, remove(&adopted, true)).await.trashed, None);
    assert!(catalog.view().trash.is_empty() && catalog.view().volumes.is_empty());
}

async fn mounts_are_counted_and_protect(catalog: Arc<dyn Catalog>) {
    let made = create(&catalog, "db").await;
    let mounted = done(&catalog, mount(&made, "web2", "x")).await.after.unwrap();
    assert_eq!(mounted.known_to, [host("web1"), host("web2")]);
    let entry = mounted.mounts.iter().next().unwrap();
    assert_eq!((entry.count, entry.since, entry.activation), (1, kept(10), Activation(0)));
    assert!(
        matches!(refused(&catalog, remove(&made, true)).await, Refusal::Mounted(v) if v.mounts.len() == 1)
    );

    let again = done(&catalog, mount(&made, "web2", "x")).await.after.unwrap();
    assert_eq!(again.mounts.iter().map(|mount| mount.count).collect::<Vec<_>>(), [2]);
    let outcome = done(&catalog, unmount(&made, "web2", "x")).await;
    assert_eq!(outcome.released[0].count, 2, "as it was before");
    assert_eq!(outcome.after.unwrap().mounts.len(), 1);
    assert!(matches!(refused(&catalog, remove(&made, true)).await, Refusal::Mounted(_)));

    // What is not known succeeds and changes nothing.
    for unknown in
        [unmount(&made, "web1", "x"), unmount(&made, "web2", "y"), unmount(&volume("no"), "web2", "x")]
    {
        let before = catalog.view();
        assert!(done(&catalog, unknown).await.released.is_empty());
        assert_eq!(*before, *catalog.view());
    }

    assert!(done(&catalog, unmount(&made, "web2", "x")).await.after.unwrap().mounts.is_empty());
    let wrong = Volume { id: VolumeId::random(), ..volume("db") };
    assert!(matches!(refused(&catalog, mount(&wrong, "web2", "x")).await, Refusal::NoSuchVolume));
    done(&catalog, remove(&made, false)).await;
    assert!(done(&catalog, unmount(&made, "web2", "x")).await.released.is_empty());
}

async fn a_new_activation_makes_mounts_stale(catalog: Arc<dyn Catalog>) {
    let made = create(&catalog, "db").await;
    done(&catalog, Change::Activate(host("web1"))).await;
    assert_eq!(catalog.view().activation(&host("web1")), Activation(0), "nothing was mounted under it");
    done(&catalog, mount(&made, "web1", "x")).await;
    done(&catalog, mount(&made, "web2", "x")).await;
    done(&catalog, Change::Activate(host("web1"))).await;
    done(&catalog, Change::Activate(host("web1"))).await;
    let view = catalog.view();
    assert_eq!(view.activation(&host("web1")), Activation(1), "the second one found nothing mounted");
    let stale: Vec<_> = view.volume("db").unwrap().mounts.iter().filter(|m| view.stale(m)).collect();
    assert_eq!(stale.iter().map(|m| m.host.as_str()).collect::<Vec<_>>(), ["web1"]);

    done(&catalog, mount(&made, "web1", "x")).await;
    let newest = done(&catalog, unmount(&made, "web1", "x")).await.released;
    assert_eq!(newest[0].activation, Activation(1));
    done(&catalog, Change::Activate(host("web1"))).await;
    assert_eq!(catalog.view().activation(&host("web1")), Activation(1), "its mount was undone");
}

async fn the_operator_releases(catalog: Arc<dyn Catalog>) {
    let made = create(&catalog, "db").await;
    let release = |id: Option<&str>, alive_too| Change::Release {
        name: name("db"),
        host: host("web1"),
        id: id.map(mount_id),
        alive_too,
    };
    for id in ["a", "b"] {
        done(&catalog, mount(&made, "web1", id)).await;
    }
    done(&catalog, Change::Activate(host("web1"))).await;
    for id in ["b", "c"] {
        done(&catalog, mount(&made, "web1", id)).await;
        done(&catalog, mount(&made, "web2", id)).await;
    }
    let ids = |outcome: Outcome| {
        outcome.released.iter().map(|m| (m.id.to_string(), m.activation.0)).collect::<Vec<_>>()
    };
    assert_eq!(ids(done(&catalog, release(Some("b"), false)).await), [("b".into(), 0)]);
    assert_eq!(ids(done(&catalog, release(None, false)).await), [("a".into(), 0)]);
    assert!(done(&catalog, release(None, false)).await.released.is_empty());
    assert_eq!(ids(done(&catalog, release(Some("c"), true)).await), [("c".into(), 1)]);
    let outcome = done(&catalog, release(None, true)).await;
    assert_eq!(outcome.after.as_ref().unwrap().mounts.len(), 2, "another host's are not touched");
    assert_eq!(ids(outcome), [("b".into(), 1)]);
    done(&catalog, Change::Activate(host("web1"))).await;
    assert_eq!(catalog.view().activation(&host("web1")), Activation(1), "all of its mounts were released");
    let unknown = Change::Release { name: name("no"), host: host("web1"), id: None, alive_too: true };
    assert!(matches!(refused(&catalog, unknown).await, Refusal::NoSuchVolume));
}

async fn revocation_meets_every_certificate_so_far(catalog: Arc<dyn Catalog>) {
    let web1 = host("web1");
    assert!(!catalog.view().is_revoked(&web1, "a1"), "a certificate made elsewhere is good until revoked");
    done(&catalog, Change::Issue(web1.clone(), certificate("a1"))).await;
    done(&catalog, Change::Revoke(web1.clone(), at(5))).await;
    let view = catalog.view();
    assert!(view.is_revoked(&web1, "a1") && view.is_revoked(&web1, "f00d"), "recorded or not");
    assert_eq!(view.hosts.get(&web1).unwrap().revoked_at, Some(kept(5)));
    assert!(!view.is_revoked(&host("web2"), "a1"));
    done(&catalog, Change::Issue(web1.clone(), certificate("a2"))).await;
    let view = catalog.view();
    assert!(!view.is_revoked(&web1, "a2") && view.is_revoked(&web1, "a1") && view.is_revoked(&web1, "f00d"));
    done(&catalog, Change::Revoke(host("never-seen"), at(6))).await;
    assert!(catalog.view().is_revoked(&host("never-seen"), "b1"));

    done(&catalog, Change::Seen(vec![(web1.clone(), at(9)), (HostName::anonymous(), at(7))])).await;
    done(&catalog, Change::Seen(vec![(web1.clone(), at(8))])).await;
    let view = catalog.view();
    assert_eq!(view.hosts.get(&web1).unwrap().last_seen, Some(kept(9)), "it does not go back");
    assert_eq!(view.hosts.get(&HostName::anonymous()).unwrap().last_seen, Some(kept(7)));
    assert_eq!(view.hosts.get(&web1).unwrap().certificates.len(), 2);
    done(&catalog, Change::Connected(web1.clone(), "CN=another CA".into())).await;
    assert_eq!(catalog.view().hosts.get(&web1).unwrap().last_issuer.as_deref(), Some("CN=another CA"));
}

fn backend_record(state: BackendState) -> BackendRecord {
    BackendRecord { id: BackendId::random(), state, mountpoints: PathBuf::from("/mnt/fast/volumes").into() }
}

async fn a_machine_takes_its_mounts_along(open: &impl AsyncFn(&'static str) -> Arc<dyn Catalog>) {
    const MOUNTS: usize = 150;
    let catalog = open("machines").await;
    let machine = catalog.machine();
    done(&catalog, Change::Name(machine, host("old"))).await;
    assert_eq!(catalog.view().name_of(machine), Some(host("old")));
    let db = create(&catalog, "db").await;
    let mounted = (0..MOUNTS).map(|number| catalog.submit(mount(&db, "old", &format!("m{number}"))));
    for done in join_all(mounted).await {
        done.unwrap();
    }
    done(&catalog, mount(&db, "web1", "x")).await;
    done(&catalog, Change::Name(machine, host("new"))).await;
    // By a name that was given up, it is still the same machine.
    done(&catalog, unmount(&db, "old", "m0")).await;
    done(&catalog, mount(&db, "old", "again")).await;
    let told = |catalog: &Arc<dyn Catalog>| {
        let view = catalog.view();
        let mounts = &view.volume("db").unwrap().mounts;
        let by = |name: &str| mounts.iter().filter(|mount| mount.host == host(name)).count();
        assert_eq!((by("new"), by("old"), by("web1")), (MOUNTS, 0, 1));
        assert_eq!((view.name_of(machine), view.name_now(&host("old"))), (Some(host("new")), &host("new")));
    };
    told(&catalog);
    catalog.close().await;
    drop(catalog);
    told(&open("machines").await);
}

async fn clones_are_remembered(open: &impl AsyncFn(&'static str) -> Arc<dyn Catalog>) {
    let catalog = open("clones").await;
    let called = |last: u8| Change::Called {
        host: host("web1"),
        serial: "a1".into(),
        from: [10, 0, 0, last].into(),
        at: at(1),
    };
    let options = Options { access: Some(Sharing::Exclusive), ..Options::default() };
    let made = Volume { options, ..volume("db") };
    let from = |last: u8| Change::Mount {
        name: made.name.clone(),
        volume: made.id,
        host: host("web1"),
        id: mount_id(&format!("m{last}")),
        address: Some([10, 0, 0, last].into()),
        at: at(2),
        again: false,
    };
    for change in
        [Change::Insert(made.clone()), Change::Publish(made.name.clone(), made.id), called(1), from(1)]
    {
        done(&catalog, change).await;
    }
    assert_eq!(done(&catalog, called(2)).await.cloned, None);
    assert_eq!(done(&catalog, called(1)).await.cloned, Some(true));
    catalog.close().await;
    drop(catalog);
    let catalog = open("clones").await;
    assert!(catalog.view().is_cloned(&host("web1")));
    assert!(matches!(refused(&catalog, from(2)).await, Refusal::Cloned(_)));
    assert_eq!(done(&catalog, Change::NotCloned(host("web1"))).await.cloned, Some(false));
    done(&catalog, from(2)).await;
    assert!(!catalog.view().is_cloned(&host("web1")));
}

async fn a_backends_identity_is_its_own(catalog: Arc<dyn Catalog>) {
    let chosen = backend_record(BackendState::Initialising);
    done(&catalog, Change::Backend(backend("fast"), Some(chosen.clone()))).await;
    let established = BackendRecord { state: BackendState::Established, ..chosen.clone() };
    done(&catalog, Change::Backend(backend("fast"), Some(established.clone()))).await;
    assert_eq!(catalog.view().backends.get(&backend("fast")).map(|b| &**b), Some(&established));
    let stolen = Change::Backend(backend("slow"), Some(established.clone()));
    assert!(
        matches!(refused(&catalog, stolen.clone()).await, Refusal::IdentityTaken(n) if n == backend("fast"))
    );
    done(&catalog, Change::Backend(backend("fast"), None)).await;
    done(&catalog, Change::Backend(backend("fast"), None)).await;
    done(&catalog, stolen).await;
    assert_eq!(catalog.view().backends.len(), 1);
}

async fn submissions_are_decided_in_their_order(catalog: Arc<dyn Catalog>) {
    let volumes: Vec<_> = (0..50).map(|i| volume(&format!("v{i}"))).collect();
    let mut submitted = Vec::new();
    for volume in &volumes {
        submitted.push(catalog.submit(Change::Insert(volume.clone())));
        submitted.push(catalog.submit(Change::Publish(volume.name.clone(), volume.id)));
        submitted.push(catalog.submit(mount(volume, "web1", "x")));
        submitted.push(catalog.submit(unmount(volume, "web1", "x")));
        submitted.push(catalog.submit(remove(volume, false)));
        submitted.push(catalog.submit(Change::Insert(Volume { id: VolumeId::random(), ..volume.clone() })));
    }
    // Awaited backwards: the order is that of the calls.
    for (index, submitted) in submitted.into_iter().enumerate().rev() {
        submitted.await.unwrap_or_else(|error| panic!("change {index}: {error}"));
    }
    assert_eq!(catalog.view().volumes.len(), 50);
    assert!(catalog.view().volumes.values().all(|volume| !volume.visible));
}

async fn one_of_many_wins_a_name(catalog: Arc<dyn Catalog>) {
    let tries = (0..64).map(|_| {
        let catalog = Arc::clone(&catalog);
        tokio::spawn(async move {
            let volume = volume("db");
            (volume.id, catalog.submit(Change::Insert(volume)).await)
        })
    });
    let results: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = results.iter().filter(|(_, result)| result.is_ok()).map(|(id, _)| *id).collect();
    assert_eq!(winners, [catalog.view().volume("db").unwrap().id]);
    for (_, result) in results.iter().filter(|(_, result)| result.is_err()) {
        assert!(matches!(result, Err(CatalogError::Refused(Refusal::Exists(v))) if v.id == winners[0]));
    }
}

async fn one_of_many_hosts_gets_an_exclusive_volume(catalog: Arc<dyn Catalog>) {
    let options = Options { access: Some(Sharing::Exclusive), ..Options::default() };
    let made = Volume { options, ..volume("db") };
    done(&catalog, Change::Insert(made.clone())).await;
    done(&catalog, Change::Publish(made.name.clone(), made.id)).await;
    let tries = (0..64).map(|number| {
        let (catalog, change) = (Arc::clone(&catalog), mount(&made, &format!("web{number}"), "x"));
        tokio::spawn(async move { catalog.submit(change).await })
    });
    let results: Vec<_> = join_all(tries).await.into_iter().map(Result::unwrap).collect();
    let held = Arc::clone(catalog.view().volume("db").unwrap());
    let [holder] = held.mounts.iter().collect::<Vec<_>>()[..] else { panic!("{:?}", held.mounts) };
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results {
        assert!(matches!(result, Ok(_) | Err(CatalogError::Refused(Refusal::Held(_)))), "{result:?}");
    }
    // The holder may have it as often as it likes, also after its engine was started again.
    let holder = holder.host.as_str();
    done(&catalog, mount(&made, holder, "y")).await;
    done(&catalog, Change::Activate(host(holder))).await;
    done(&catalog, mount(&made, holder, "x")).await;
    let other = if holder == "web0" { "web1" } else { "web0" };
    assert!(
        matches!(refused(&catalog, mount(&made, other, "x")).await, Refusal::Held(_)),
        "stale is held, too"
    );
    let (name, host, id) = (made.name.clone(), host(holder), None);
    done(&catalog, Change::Release { name, host, id, alive_too: true }).await;
    done(&catalog, mount(&made, other, "x")).await;
}

async fn a_view_never_changes(catalog: Arc<dyn Catalog>) {
    let made = create(&catalog, "db").await;
    let then = catalog.view();
    let copy = View::clone(&then);
    done(&catalog, mount(&made, "web1", "x")).await;
    create(&catalog, "other").await;
    assert_eq!(*then, copy);
    assert!(then.volume("db").unwrap().mounts.is_empty() && then.volume("other").is_none());
    assert!(!catalog.view().volume("db").unwrap().mounts.is_empty());
}

async fn nobody_need_wait(catalog: Arc<dyn Catalog>) {
    let made = volume("db");
    drop(catalog.submit(Change::Insert(made.clone())));
    done(&catalog, Change::Publish(made.name, made.id)).await;
}

async fn everything_survives_a_reopening(open: &impl AsyncFn(&'static str) -> Arc<dyn Catalog>) {
    let catalog = open("reopen").await;
    assert_eq!(*catalog.view(), View::default(), "a new catalog is empty");
    for text in ["a", "b", "c", "d"] {
        create(&catalog, text).await;
    }
    let volume = |text: &str| Volume::clone(catalog.view().volume(text).unwrap());
    for change in [
        Change::Backend(backend("fast"), Some(backend_record(BackendState::Established))),
        Change::Backend(backend("slow"), Some(backend_record(BackendState::Initialising))),
        mount(&volume("a"), "web1", "x"),
        mount(&volume("a"), "web1", "x"),
        mount(&volume("a"), "web2", "an ID/with …%2F"),
        mount(&volume("b"), "web1", "y"),
        Change::Activate(host("web1")),
        mount(&volume("a"), "web1", "x"),
        mount(&volume("b"), "web3", "z"),
        unmount(&volume("b"), "web3", "z"),
        remove(&volume("c"), true),
        remove(&volume("d"), false),
        Change::Issue(host("web1"), certificate("a1")),
        Change::Revoke(host("web1"), at(5)),
        Change::Issue(host("web1"), certificate("a2")),
        Change::Seen(vec![(HostName::anonymous(), at(7))]),
        Change::Connected(HostName::anonymous(), "CN=a CA".into()),
    ] {
        done(&catalog, change).await;
    }
    let before = catalog.view();
    catalog.close().await;
    drop(catalog);
    let catalog = open("reopen").await;
    assert_eq!(*before, *catalog.view());
    // Decisions go on from there, and from nowhere else.
    done(&catalog, Change::Activate(host("web1"))).await;
    assert_eq!(catalog.view().activation(&host("web1")), Activation(2));
    done(&catalog, Change::Restore(*before.trash.keys().next().unwrap())).await;
    let hidden = catalog.view();
    assert!(!hidden.volume("c").unwrap().visible);
    done(&catalog, Change::Insert(self::volume("cut-off"))).await;
    drop(catalog);
    let catalog = open("reopen").await;
    let view = catalog.view();
    assert!(view.volume("c").unwrap().visible, "what was recorded is shown after a restart");
    let cut_off = view.volume("cut-off").unwrap();
    assert!(cut_off.visible && cut_off.unconfirmed && !view.volume("a").unwrap().unconfirmed);
    assert_eq!(catalog.view().activation(&host("web1")), Activation(2));
    catalog.close().await;
}

async fn what_is_closed_takes_nothing(catalog: Arc<dyn Catalog>) {
    let made = volume("db");
    let queued = catalog.submit(Change::Insert(made));
    catalog.close().await;
    catalog.close().await;
    queued.await.expect("it was queued before");
    let late = catalog.submit(Change::Insert(volume("late"))).await;
    assert!(matches!(late, Err(CatalogError::Closed)));
    assert!(catalog.view().volume("db").is_some(), "what exists can still be told");
}
