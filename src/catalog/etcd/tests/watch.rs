//! Tests of events that an instance receives late, never, or from another history: a proxy stands between it and etcd.

use std::sync::Mutex;

use etcd_client::{AlarmAction, AlarmType, Client, GetOptions, PutOptions, Txn, TxnOp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::catalog::Write;
use crate::catalog::etcd::keys::Keys;
use crate::catalog::record::encode;

/// A proxy in front of etcd that can be made slow, or closed.
struct Proxy {
    port: u16,
    way: Sender<Way>,
    /// Closes the proxy as soon as these bytes are sent, or cuts it as soon as etcd has them and before it answers.
    ends_at: Arc<Mutex<Option<End>>>,
}

type End = (Vec<u8>, Way);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Each connection delivers this many bytes a second from etcd.
    Slow(u32),
    /// Nothing gets through in either direction, and no connection ends.
    Closed,
    /// Every connection ends.
    Cut,
}

impl Proxy {
    async fn before(server: &Server) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (way, ends_at) = (Sender::new(Way::Open), Arc::new(Mutex::new(None)));
        let (at, ways, ends) = (server.address(), way.clone(), Arc::clone(&ends_at));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&at).await else { continue };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let (ways, ends) = (ways.clone(), Arc::clone(&ends));
                tokio::spawn(async move {
                    let mut cut = ways.subscribe();
                    let up = async {
                        let mut part = vec![0; 16 * 1024];
                        while let Ok(read @ 1..) = from_client.read(&mut part).await {
                            let part = &part[..read];
                            let is_seen = |(what, _): &mut End| part.windows(what.len()).any(|at| at == what);
                            let end = ends.lock().unwrap().take_if(is_seen).map(|(_, end)| end);
                            if end.is_some() {
                                ways.send_replace(Way::Closed);
                            }
                            if end != Some(Way::Cut) {
                                open(&ways).await;
                            }
                            if to_server.write_all(part).await.is_err() {
                                break;
                            }
                            if end == Some(Way::Cut) {
                                tokio::time::sleep(Duration::from_millis(300)).await;
                                ways.send_replace(Way::Cut);
                            }
                        }
                    };
                    let down = async {
                        let mut part = vec![0; 16 * 1024];
                        while let Ok(read @ 1..) = from_server.read(&mut part).await {
                            if let Way::Slow(bytes) = open(&ways).await {
                                tokio::time::sleep(
                                    Duration::from_secs(1) * u32::try_from(read).unwrap() / bytes,
                                )
                                .await;
                            }
                            if to_client.write_all(&part[..read]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        () = up => {}
                        () = down => {}
                        _ = cut.wait_for(|way| *way == Way::Cut) => {}
                    }
                });
            }
        });
        Self { port, way, ends_at }
    }

    fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    fn member(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// Waits until the proxy lets bytes through.
async fn open(way: &Sender<Way>) -> Way {
    *way.subscribe().wait_for(|way| !matches!(way, Way::Closed | Way::Cut)).await.unwrap()
}

async fn through(
    proxies: &[&Proxy],
    server: &Server,
    prefix: &str,
    node: &str,
) -> (Arc<Etcd>, Arc<dyn Catalog>) {
    let members = proxies.iter().map(|proxy| proxy.member()).collect();
    let (cluster, instance) = (Cluster { members, prefix: prefix.into() }, server.instance(node));
    let opened = tokio::task::spawn_blocking(move || super::open(&cluster, &instance)).await.unwrap();
    let etcd = Arc::new(opened.unwrap());
    (Arc::clone(&etcd), etcd)
}

/// Writes this many volumes as another instance would, each of some kilobytes.
async fn write_much(server: &Server, prefix: &str, count: usize) {
    let mut client = Client::connect([server.address()], None).await.unwrap();
    let keys = Keys::new(&server.cluster(prefix));
    let known_to: Vec<_> = (0..500).map(|at| host(&format!("web-{at:04}.example"))).collect();
    let all: Vec<_> = (0..count).collect();
    for part in all.chunks(50) {
        let mut writes: Vec<_> = part
            .iter()
            .map(|at| {
                let made = Volume { known_to: known_to.clone(), ..volume(&format!("much{at}")) };
                let write = Write::Volume(made.name.clone(), Some(Arc::new(made)));
                let row = encode(&write).unwrap();
                TxnOp::put(keys.row(row.table, &row.key), row.record.unwrap(), None)
            })
            .collect();
        writes.push(TxnOp::put(keys.head(), format!("much.{}", part[0]), None));
        client.txn(Txn::new().and_then(writes)).await.unwrap();
    }
}

/// All missed events may come in one message, which may be large and slow.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_far_behind_catches_up() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (_, catalog) = through(&[&proxy], &server, "far", "store1").await;
    for (way, count) in [(Way::Open, 700), (Way::Slow(1_200_000), 1000)] {
        // As if the network is down for a while.
        proxy.set(Way::Cut);
        write_much(&server, "far", count).await;
        proxy.set(way);
        eventually("it knows everything", async || catalog.view().volumes.len() == count).await;
        proxy.set(Way::Open);
        eventually("it is not told to be behind", async || catalog.fault().is_none()).await;
        catalog.sync().await.unwrap();
        server.ctl(&["del", "--prefix", "/far/volumes/"]).unwrap();
        eventually("it forgets everything", async || catalog.view().volumes.is_empty()).await;
    }
}

/// A load balancer asks for the fault, to send hosts elsewhere if an instance does not receive what others do.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stays_behind_says_so() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (etcd, catalog) = through(&[&proxy], &server, "behind", "store1").await;
    let made = create(&catalog, "db").await;
    catalog.sync().await.unwrap();
    proxy.set(Way::Cut);
    write_much(&server, "behind", 700).await;
    proxy.set(Way::Slow(200_000));
    eventually("it says so", async || catalog.fault().is_some_and(|why| why.contains("what was changed")))
        .await;
    etcd.core.client.health.well();
    assert!(catalog.fault().is_some(), "answers do not make up for it");
    let refused = catalog.submit(mount(&made, "web1", "x")).await;
    assert!(matches!(refused, Err(CatalogError::Unreachable { .. })), "{refused:?}");
    proxy.set(Way::Open);
    eventually("it catches up", async || catalog.fault().is_none()).await;
    assert_eq!(catalog.view().volumes.len(), 701);
    done(&catalog, mount(&made, "web1", "x")).await;
}

/// Makes etcd refuse all writes, as if its storage were full, or stops doing so.
async fn no_room(server: &Server, is_so: bool) {
    let mut client = Client::connect([server.address()], None).await.unwrap();
    let action = if is_so { AlarmAction::Activate } else { AlarmAction::Deactivate };
    let members = client.member_list().await.unwrap();
    let mut options = etcd_client::AlarmOptions::new();
    options.with_member(members.members()[0].id());
    client.maintenance_client().alarm(action, AlarmType::Nospace, Some(options)).await.unwrap();
}

#[tokio::test]
async fn a_claim_that_cannot_be_given_back_is_given_back_later() {
    let server = Server::start();
    let (one, other) = (server.open("full", "store1").await, server.open("full", "store2").await);
    let made = create(&one, "db").await;
    for takes_it_over in [false, true] {
        let claimed = one.try_lock(made.id).await.unwrap();
        assert!(claimed.is_some());
        no_room(&server, true).await;
        drop(claimed);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(other.try_lock(made.id).await.unwrap().is_none());
        // A claim meanwhile fails at once: it does not wait until the release is given up.
        assert!(one.try_lock(made.id).await.is_err());
        no_room(&server, false).await;
        let again = if takes_it_over { one.try_lock(made.id).await.unwrap() } else { None };
        assert_eq!(again.is_some(), takes_it_over);
        if takes_it_over {
            // The pending release is cancelled.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert!(other.try_lock(made.id).await.unwrap().is_none());
            drop(again);
        }
        eventually("it is given back", async || other.try_lock(made.id).await.unwrap().is_some()).await;
        eventually("it is given back again", async || one.try_lock(made.id).await.unwrap().is_some()).await;
    }
}

/// The memory of an instance may have its own claim although the claim has ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_granted_by_nothing_but_its_key() {
    let server = Server::start();
    let proxies = [Proxy::before(&server).await, Proxy::before(&server).await];
    let (etcd, one) = through(&[&proxies[0], &proxies[1]], &server, "own", "store1").await;
    let other = server.open("own", "store2").await;
    let (made, half) = (create(&one, "db").await, volume("half"));
    done(&one, Change::Insert(half.clone())).await;
    let claimed = one.try_lock(made.id).await.unwrap();
    assert!(claimed.is_some());
    // The watch uses the first proxy, and hangs; calls use the second one.
    proxies[0].set(Way::Closed);
    let lease = etcd.core.txn.owner().lease;
    one.sync().await.unwrap();
    server.ctl(&["lease", "revoke", &format!("{lease:x}")]).unwrap();
    drop(claimed);
    let granted = [one.try_lock(made.id).await.unwrap(), one.try_lock(half.id).await.unwrap()];
    for (granted, id) in granted.iter().zip([made.id, half.id]) {
        let others = other.try_lock(id).await.unwrap();
        assert!(granted.is_none() || others.is_none(), "both move a directory");
    }
    eventually("it hears of it", async || one.try_lock(made.id).await.is_ok_and(|claimed| claimed.is_some()))
        .await;
}

/// An unanswered transaction may have taken effect, whatever is answered when it is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_was_made_is_granted_or_ends() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (_, one) = through(&[&proxy], &server, "twice", "store1").await;
    let other = server.open("twice", "store2").await;
    let made = create(&one, "db").await;
    let key = format!("/twice/moving/{}", made.id);
    *proxy.ends_at.lock().unwrap() = Some((key.clone().into_bytes(), Way::Cut));
    let claimed = one.try_lock(made.id);
    eventually("it is claimed", async || *proxy.way.borrow() == Way::Cut).await;
    eventually("etcd has it", async || server.ctl(&["get", &key]).unwrap().contains("by")).await;
    no_room(&server, true).await;
    proxy.set(Way::Open);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    no_room(&server, false).await;
    drop(claimed.await);
    eventually("others have it then", async || other.try_lock(made.id).await.unwrap().is_some()).await;
}

/// A cluster is restored, and others go on with it, before this instance has read its present records.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_in_another_history_is_not_said_to_be_missing() {
    let mut server = Server::start();
    let proxy = Proxy::before(&server).await;
    let (_, catalog) = through(&[&proxy], &server, "other", "store1").await;
    create(&catalog, "kept").await;
    let snapshot = server.dir.path().join("snapshot");
    server.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]).unwrap();
    for (history, is_longer) in [("shorter", false), ("longer", true)] {
        for at in 0..50 {
            create(&catalog, &format!("lost{at}")).await;
        }
        catalog.sync().await.unwrap();
        let reached = server.revision();
        proxy.set(Way::Cut);
        server.stop();
        server.restore(&snapshot);
        let other = server.open("other", "store2").await;
        let made = create(&other, &format!("made-in-the-{history}-one")).await;
        while is_longer && server.revision() <= reached {
            server.ctl(&["put", "/somebody/elses", "x"]).unwrap();
        }
        proxy.set(Way::Open);
        let mut answer = Err(CatalogError::Closed);
        eventually("it answers", async || {
            answer = catalog.submit(mount(&made, "web1", "x")).await;
            !matches!(answer, Err(CatalogError::Unreachable { .. }))
        })
        .await;
        answer.unwrap();
        drop(other);
    }
}

/// A restore also restores leases and the keys under them, and this instance would keep its own lease alive.
#[tokio::test]
async fn claims_that_a_snapshot_brings_back_end() {
    let mut server = Server::start();
    let catalog = server.open("snapshot", "store1").await;
    let made = create(&catalog, "db").await;
    let claimed = catalog.try_lock(made.id).await.unwrap();
    assert!(claimed.is_some());
    let snapshot = server.dir.path().join("snapshot");
    server.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]).unwrap();
    drop(claimed);
    create(&catalog, "later").await;
    server.stop();
    server.restore(&snapshot);
    eventually("the catalog is what it was", async || catalog.view().volume("later").is_none()).await;
    eventually("nothing is claimed", async || {
        server.ctl(&["get", "--prefix", "/snapshot/moving/"]).is_some_and(|all| all.is_empty())
    })
    .await;
    eventually("this instance is seen", async || {
        server.ctl(&["get", "--prefix", "/snapshot/instances/"]).is_some_and(|all| !all.is_empty())
    })
    .await;
    let other = server.open("snapshot", "store2").await;
    assert!(other.try_lock(made.id).await.unwrap().is_some());
}

/// An import looks for instances that serve, so that each must be seen.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_is_seen_also_where_its_first_word_was_lost() {
    let server = Server::start();
    let proxy = Proxy::before(&server).await;
    *proxy.ends_at.lock().unwrap() = Some((b"/seen/~nodes/".to_vec(), Way::Closed));
    let (_, catalog) = through(&[&proxy], &server, "seen", "store1").await;
    assert_eq!(*proxy.way.borrow(), Way::Closed, "it says that it is there");
    assert_eq!(server.ctl(&["get", "--prefix", "/seen/instances/"]).unwrap(), "");
    proxy.set(Way::Cut);
    proxy.set(Way::Open);
    eventually("it is seen", async || {
        server.ctl(&["get", "--prefix", "/seen/instances/"]).is_some_and(|all| !all.is_empty())
    })
    .await;
    // A volume that is being made is hidden by a key that ends with the instance.
    done(&catalog, Change::Insert(volume("half"))).await;
    let client = Client::connect([server.address()], None).await.unwrap();
    let moving =
        client.kv_client().get("/seen/moving/", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert!(moving.kvs()[0].lease() > 0);
}

/// A claim of the previous process may belong to another instance by the time that it is released.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_ends_no_claims_but_its_own() {
    let server = Server::start();
    let before = server.open("start", "store1").await;
    // Its instance ends before showing it: the claim stays until the lease ends.
    let made = volume("half");
    done(&before, Change::Insert(made.clone())).await;
    drop(before);
    // After this, no key names the lease that the claim ends with.
    server.ctl(&["del", "--prefix", "/start/instances/"]).unwrap();
    server.ctl(&["del", "--prefix", "/start/~nodes/"]).unwrap();
    let key = format!("/start/moving/{}", made.id);
    let proxy = Proxy::before(&server).await;
    *proxy.ends_at.lock().unwrap() = Some((key.clone().into_bytes(), Way::Closed));
    let theirs = serde_json::json!({ "by": Uuid::from_u128(7) }).to_string();
    let others = async {
        eventually("it ends claims", async || *proxy.way.borrow() == Way::Closed).await;
        let mut client = Client::connect([server.address()], None).await.unwrap();
        let lease = client.lease_grant(60, None).await.unwrap().id();
        let options = PutOptions::new().with_lease(lease);
        client.put(key.clone(), theirs.clone(), Some(options)).await.unwrap();
        proxy.set(Way::Open);
    };
    let proxies = [&proxy];
    let ((_, catalog), ()) = tokio::join!(through(&proxies, &server, "start", "store1"), others);
    assert!(server.ctl(&["get", &key]).unwrap().contains(&theirs));
    assert!(catalog.try_lock(made.id).await.unwrap().is_none());
}
