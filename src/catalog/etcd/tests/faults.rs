//! Tests with a real etcd that answers late, in part, or with a misleading error.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use etcd_client::{AlarmAction, AlarmType};

use super::*;

/// etcd answers "no space" to a transaction that it applied, if its file outgrew the quota meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_for_want_of_room_was_not_done() {
    for round in 0..2 {
        let server = Server::start_with(&["--quota-backend-bytes", "600000"]);
        let catalog = server.open("quota", "store1").await;
        let mut results = Vec::new();
        // More at the same time than there are slots, until it is full.
        for batch in 0..40 {
            let names: Vec<_> = (0..200).map(|at| format!("v{batch}-{at}")).collect();
            let inserted =
                join_all(names.iter().map(|name| catalog.submit(Change::Insert(volume(name))))).await;
            let full = inserted.iter().any(Result::is_err);
            results.extend(names.into_iter().zip(inserted));
            if full {
                break;
            }
        }
        catalog.sync().await.unwrap();
        let view = catalog.view();
        let keys = server.ctl(&["get", "--prefix", "/quota/volumes/", "--keys-only"]).unwrap();
        let refused = results.iter().filter(|(_, result)| result.is_err()).count();
        assert!(refused > 0, "it is not full after {} volumes", results.len());
        for (name, result) in &results {
            let there = keys.lines().any(|key| key == format!("/quota/volumes/{name}"));
            assert_eq!(result.is_ok(), there, "round {round}: {name} of {}: {result:?}", results.len());
            assert_eq!(there, view.volume(name).is_some(), "{name}");
        }
    }
}

/// Makes etcd require a password, and returns an instance with the credentials.
fn with_a_password(server: &Server, node: &str) -> Instance {
    let file = server.dir.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    for words in [
        &["user", "add", "root:secret"][..],
        &["user", "add", "volhost:secret"],
        &["role", "add", "volhost"],
        &["role", "grant-permission", "--prefix", "volhost", "readwrite", "/"],
        &["user", "grant-role", "volhost", "volhost"],
        &["auth", "enable"],
    ] {
        assert!(server.ctl(words).is_some(), "{words:?}");
    }
    let credentials =
        Credentials { user: Some("volhost".into()), password_file: Some(file), ..Credentials::default() };
    Instance { credentials, ..server.instance(node) }
}

async fn open_as(server: &Server, prefix: &str, instance: Instance) -> Arc<dyn Catalog> {
    open_in(server.cluster(prefix), instance).await
}

async fn open_in(cluster: Cluster, instance: Instance) -> Arc<dyn Catalog> {
    opened(cluster, instance).await
}

/// Waiting for the storage of the credentials delays nothing that needs only the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_cannot_be_read_in_time_hold_up_nothing() {
    let Some(storage) = volhost_test_fuse::ScratchFs::mount() else { return };
    let server = Server::start();
    let mut instance = with_a_password(&server, "store1");
    let file = instance.credentials.password_file.replace(storage.at().join("password")).unwrap();
    std::fs::copy(&file, storage.backing().join("password")).unwrap();
    let catalog = open_as(&server, "credentials", instance).await;
    storage.control().hang(true);
    // The files are read every second.
    assert!(storage.control().wait_for_hanging(1, SOON), "the file is not read");
    for name in ["one", "another"] {
        let made = timeout(SOON, catalog.submit(Change::Insert(volume(name)))).await;
        assert!(matches!(made, Ok(Ok(_))), "{made:?}");
    }
    storage.control().hang(false);
}

/// A call may wait for a token that never comes; the other calls do not wait for it one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_token_does_not_queue_other_calls() {
    let server = Server::start();
    let instance = with_a_password(&server, "store1");
    let catalog = open_as(&server, "line", instance).await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    let pending: Vec<_> =
        (0..44).map(|at| catalog.submit(Change::Insert(volume(&format!("v{at}"))))).collect();
    server.signal("STOP");
    let asked = Instant::now();
    let unmounted = timeout(SOON, catalog.submit(unmount(&made, "x"))).await;
    let took = asked.elapsed();
    server.signal("CONT");
    unmounted.unwrap_or_else(|_| panic!("it is not answered within {took:?}")).unwrap();
    join_all(pending).await;
    eventually("the Unmount is recorded", async || catalog.fault().is_none()).await;
    catalog.sync().await.unwrap();
    assert!(catalog.view().volume("db").unwrap().mounts.is_empty());
}

/// A caller that repeats a request when the limit is over, as dockerd does, must have been answered by then: an Unmount that
/// is kept later counts twice.
#[tokio::test]
async fn an_unmount_is_kept_within_a_limit_that_is_short() {
    let server = Server::start();
    for seconds in [3, 1] {
        let (prefix, request) = (format!("short{seconds}"), Duration::from_secs(seconds));
        let catalog = open_as(&server, &prefix, Instance { request, ..server.instance(&prefix) }).await;
        let made = create(&catalog, "db").await;
        for _ in 0..2 {
            done(&catalog, mount(&made, "web1", "x")).await;
        }
        server.signal("STOP");
        let kept = timeout(request, catalog.submit(unmount(&made, "x"))).await;
        server.signal("CONT");
        kept.unwrap_or_else(|_| panic!("it is not answered within {request:?}")).unwrap();
        eventually("the Unmount is recorded", async || catalog.fault().is_none()).await;
        catalog.sync().await.unwrap();
        let view = catalog.view();
        let counted: Vec<_> = view.volume("db").unwrap().mounts.iter().map(|mount| mount.count).collect();
        assert_eq!(counted, [1]);
    }
}

/// Starts a proxy that loses transactions while the returned flag is set, and forwards everything else.
fn way_without_writes(to: String) -> (u16, Arc<AtomicBool>) {
    let (listener, lost) = (TcpListener::bind("127.0.0.1:0").unwrap(), Arc::new(AtomicBool::new(false)));
    let (port, losing) = (listener.local_addr().unwrap().port(), Arc::clone(&lost));
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (near, far) = (near.unwrap(), TcpStream::connect(&to).unwrap());
            let (mut from, mut back) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let losing = Arc::clone(&losing);
            std::thread::spawn(move || {
                let _ = forward(&near, &far, &losing);
                let _ = far.shutdown(Shutdown::Both);
            });
        }
    });
    (port, lost)
}

/// Forwards HTTP/2 frame by frame, except the data frames of a transaction, which contain its slot's name.
fn forward(mut near: &TcpStream, mut far: &TcpStream, losing: &AtomicBool) -> std::io::Result<()> {
    let mut preface = [0; 24];
    near.read_exact(&mut preface)?;
    far.write_all(&preface)?;
    let mut lost = HashSet::new();
    loop {
        let mut head = [0; 9];
        near.read_exact(&mut head)?;
        let mut frame = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        near.read_exact(&mut frame)?;
        let (is_data, stream) = (head[3] == 0, [head[5], head[6], head[7], head[8]]);
        let writes = is_data && frame.windows(6).any(|part| part == b"~slots");
        if writes && losing.load(Ordering::SeqCst) {
            lost.insert(stream);
        }
        // The end of a lost stream may be a separate frame.
        if !(is_data && lost.contains(&stream)) {
            far.write_all(&[&head, &*frame].concat())?;
        }
    }
}

/// With a disk that hangs, a cluster answers reads and takes no change.
#[tokio::test(flavor = "multi_thread")]
async fn changes_that_are_not_taken_in_count_although_questions_are_answered() {
    let server = Server::start();
    let (port, lost) = way_without_writes(server.address());
    let cluster = Cluster { members: vec![format!("127.0.0.1:{port}")], ..server.cluster("hangs") };
    let limit = Duration::from_secs(8);
    let instance = Instance { request: limit, ..server.instance("store1") };
    let catalog = open_in(cluster, instance).await;
    let made = create(&catalog, "db").await;
    for _ in 0..3 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    let count = || catalog.view().volume("db").unwrap().mounts.iter().map(|mount| mount.count).sum::<u32>();
    let kept = async |what: &str| {
        let kept = timeout(limit, catalog.submit(unmount(&made, "x"))).await;
        kept.unwrap_or_else(|_| panic!("{what}: it is not answered")).unwrap();
        for _ in 0..30 {
            let why = catalog.fault().expect("it stays so, however well questions are answered");
            assert!(why.contains("no change is taken in") && why.contains("no answer within"), "{why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    lost.store(true, Ordering::SeqCst);
    kept("alone").await;
    let refused = catalog.submit(Change::Insert(volume("other"))).await;
    assert!(matches!(refused, Err(CatalogError::Unreachable { .. })), "{refused:?}");
    lost.store(false, Ordering::SeqCst);
    eventually("it is recorded", async || catalog.fault().is_none()).await;
    assert_eq!(count(), 2);

    lost.store(true, Ordering::SeqCst);
    let mounted = catalog.submit(mount(&made, "web2", "y"));
    kept("behind a Mount").await;
    lost.store(false, Ordering::SeqCst);
    let mounted = mounted.await.is_ok();
    eventually("it is recorded", async || catalog.fault().is_none()).await;
    assert_eq!(count(), 1 + u32::from(mounted));
    done(&catalog, mount(&made, "web3", "z")).await;
}

/// An unanswered transaction is settled as soon as possible, also while a record of another instance is not understood.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_understood_keeps_nobody_waiting() {
    let server = Server::start();
    let (port, lost) = way_without_writes(server.address());
    let cluster = Cluster { members: vec![format!("127.0.0.1:{port}")], ..server.cluster("held") };
    let catalog = open_in(cluster, server.instance("store1")).await;
    create(&catalog, "db").await;
    lost.store(true, Ordering::SeqCst);
    let sent = catalog.submit(Change::Insert(volume("other")));
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.ctl(&["put", "/held/volumes/newer", r#"{"v":2}"#]).unwrap();
    eventually("it is noticed", async || catalog.fault().is_some()).await;
    lost.store(false, Ordering::SeqCst);
    let answered = timeout(SOON, sent).await.expect("it is answered");
    assert!(matches!(answered, Err(CatalogError::Unreachable { .. })), "{answered:?}");
    assert!(catalog.fault().unwrap().contains("has the version 2"));
}

/// Members with different data answer reads, and refuse every change until an operator acts.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_corrupt_cluster_refuses_is_told_at_once() {
    let server = Server::start();
    let catalog = server.open("corrupt", "store1").await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    let url = format!("http://{}", server.address());
    let mut client = etcd_client::Client::connect([url], None).await.unwrap();
    client.alarm(AlarmAction::Activate, AlarmType::Corrupt, None).await.unwrap();
    let soon = Duration::from_secs(5);
    let refused = timeout(soon, catalog.submit(mount(&made, "web2", "y"))).await.expect("it is told");
    let said = crate::error::chain(&refused.unwrap_err());
    assert!(said.contains("corrupt cluster"), "{said}");
    timeout(soon, catalog.submit(unmount(&made, "x"))).await.expect("it is kept").unwrap();
    server.ctl(&["alarm", "disarm"]).unwrap();
    eventually("it is recorded", async || catalog.fault().is_none()).await;
    assert!(catalog.view().volume("db").unwrap().mounts.is_empty());
}

/// A token of this kind becomes useless when any user or role changes, although it does not expire then.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_too_old_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    std::fs::write(&key, "one that is long enough for this").unwrap();
    let tokens = format!("jwt,priv-key={},sign-method=HS256,ttl=10m", key.display());
    let server = Server::start_with(&["--auth-token", &tokens]);
    let instance = with_a_password(&server, "store1");
    let catalog = open_as(&server, "tokens", instance).await;
    for round in 0..3 {
        let made = create(&catalog, &format!("v{round}")).await;
        let root = ["--user", "root:secret", "role", "add", &format!("other{round}")];
        server.ctl(&root).unwrap();
        done(&catalog, mount(&made, "web1", "x")).await;
        server.ctl(&["--user", "root:secret", "user", "add", &format!("other{round}:x")]).unwrap();
        catalog.sync().await.unwrap();
        done(&catalog, unmount(&made, "x")).await;
        assert_eq!(catalog.fault(), None);
    }
}
