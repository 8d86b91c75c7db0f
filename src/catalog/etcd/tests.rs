//! Tests of the engine with a real etcd: the promises of every engine, and those of a shared one.

mod faults;
mod names;
mod outbox;
mod watch;

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::join_all;

use super::txn::SLOTS;
use super::*;
use crate::catalog::contract::{self, create, host, mount, mount_id, remove, volume};
use crate::catalog::{CandidateName, Cluster, Credentials, Instance, Outcome, Refusal, RowKey, Volume};
use crate::model::host::HostName;
use crate::model::options::Options;

/// An etcd with its own loopback address, so that its ports are still free when it is started again: other programs choose
/// their ports on another address.
pub(super) struct Server {
    dir: tempfile::TempDir,
    child: Child,
    place: Place,
    /// Additional arguments.
    args: Vec<String>,
}

/// An address of the loopback network, with the first of two free ports: one for clients, the next for peers.
struct Place {
    address: Ipv4Addr,
    port: u16,
    /// The socket whose name reserves the address.
    _ours: UnixListener,
}

impl Place {
    fn find() -> Self {
        let start = std::process::id();
        for number in start..start + 60_000 {
            let [_, _, third, fourth] = number.to_be_bytes();
            if [0, 255].contains(&fourth) {
                continue;
            }
            let address = Ipv4Addr::new(127, 78, third, fourth);
            let name = UnixAddr::from_abstract_name(format!("volhost-test-etcd-{address}")).unwrap();
            let Ok(ours) = UnixListener::bind_addr(&name) else { continue };
            // Another program may listen on a port at every address.
            for port in [2379, 12379, 22379] {
                if [port, port + 1].iter().all(|port| TcpListener::bind((address, *port)).is_ok()) {
                    return Self { address, port, _ours: ours };
                }
            }
        }
        panic!("no address of the loopback network has free ports for etcd");
    }

    fn clients(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    fn peers(&self) -> String {
        format!("http://{}:{}", self.address, self.port + 1)
    }
}

impl Server {
    pub(super) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with additional arguments.
    fn start_with(args: &[&str]) -> Self {
        let (dir, place) = (tempfile::tempdir().unwrap(), Place::find());
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        let mut server = Self { child: run(dir.path(), &place, &args), dir, place, args };
        assert!(server.answers(), "etcd does not start");
        server
    }

    /// Starts it again, with the same data.
    fn start_again(&mut self) {
        self.child = run(self.dir.path(), &self.place, &self.args);
        assert!(self.answers(), "etcd does not start again");
    }

    /// Starts it again, with the data of a snapshot.
    fn restore(&mut self, snapshot: &Path) {
        let data = self.dir.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let (data, peers) = (data.to_str().unwrap(), self.place.peers());
        let cluster = format!("one={peers}");
        let args = ["snapshot", "restore", snapshot.to_str().unwrap(), "--data-dir", data, "--name", "one"];
        let done = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(args)
            .args(["--initial-cluster", &cluster, "--initial-advertise-peer-urls", &peers])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.start_again();
    }

    /// Returns the address for clients.
    fn address(&self) -> String {
        self.place.clients()
    }

    /// Returns the latest revision.
    fn revision(&self) -> i64 {
        let said = self.ctl(&["get", "x", "-w", "fields"]).unwrap();
        let line = said.lines().find(|line| line.starts_with("\"Revision\"")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn answers(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(60);
        while Instant::now() < until && self.child.try_wait().unwrap().is_none() {
            if self.ctl(&["get", "x"]).is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    pub(super) fn ctl(&self, args: &[&str]) -> Option<String> {
        let said = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.address(), "--command-timeout", "2s"])
            .args(args)
            .stderr(Stdio::null())
            .output()
            .unwrap();
        said.status.success().then(|| String::from_utf8(said.stdout).unwrap())
    }

    pub(super) fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(super) fn cluster(&self, prefix: &str) -> Cluster {
        Cluster { members: vec![self.address()], prefix: prefix.into() }
    }

    pub(super) fn instance(&self, node: &str) -> Instance {
        let spool: PathBuf = self.dir.path().join("spools").join(node);
        let candidate = CandidateName { name: HostName::parse(node).unwrap(), configured: true };
        Instance {
            candidate_name: candidate,
            credentials: Credentials::default(),
            spool,
            request: Duration::from_secs(20),
        }
    }

    /// Opens an instance of the catalog with this prefix.
    pub(super) async fn open(&self, prefix: &str, node: &str) -> Arc<dyn Catalog> {
        opened(self.cluster(prefix), self.instance(node)).await
    }
}

/// Opens an instance whose parts the test can reach.
async fn opened(cluster: Cluster, instance: Instance) -> Arc<Etcd> {
    // Opening blocks until everything is read.
    let opened = tokio::task::spawn_blocking(move || open(&cluster, &instance)).await.unwrap();
    Arc::new(opened.unwrap())
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(dir: &Path, place: &Place, args: &[String]) -> Child {
    let (clients, peers) = (format!("http://{}", place.clients()), place.peers());
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--name", "one", "--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("one={peers}")])
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed (etcd-server)")
}

pub(super) async fn done(catalog: &Arc<dyn Catalog>, change: Change) -> Outcome {
    catalog.submit(change.clone()).await.unwrap_or_else(|error| panic!("{change:?}: {error}"))
}

#[tokio::test]
async fn it_keeps_what_every_engine_promises() {
    let server = Server::start();
    contract::battery(async |store| server.open(store, "store1").await).await;
}

#[tokio::test]
async fn what_one_instance_answered_the_other_knows_at_once() {
    let server = Server::start();
    let (one, other) = (server.open("two", "store1").await, server.open("two", "store2").await);
    for round in 0..50 {
        let text = format!("v{round}");
        let made = create(&one, &text).await;
        other.sync().await.unwrap();
        assert_eq!(other.view().volume(&text), Some(&made), "a view that is up to date lacks it");
        // No sync precedes these: a change is not refused only because the view does not have its volume yet.
        done(&other, mount(&made, "web1", "x")).await;
        let refused = one.submit(remove(&made, true)).await;
        assert!(matches!(refused, Err(CatalogError::Refused(Refusal::Mounted(_)))), "{refused:?}");
        done(&one, unmount(&made, "x")).await;
        done(&other, remove(&made, true)).await;
        let gone = one.submit(mount(&made, "web1", "x")).await;
        assert!(matches!(gone, Err(CatalogError::Refused(Refusal::NoSuchVolume))), "{gone:?}");
    }
    let views = [one.view(), {
        other.sync().await.unwrap();
        other.view()
    }];
    assert_eq!(views[0], views[1]);
}

#[tokio::test]
async fn of_many_who_race_through_two_instances_one_wins() {
    let server = Server::start();
    let catalogs = [server.open("race", "store1").await, server.open("race", "store2").await];
    for round in 0..20 {
        let text = format!("v{round}");
        let exclusive =
            || Volume { options: Options::parse([("access", "exclusive")]).unwrap(), ..volume(&text) };
        let made = [exclusive(), exclusive()];
        let inserted = join_all((0..2).map(|at| catalogs[at].submit(Change::Insert(made[at].clone())))).await;
        let winners: Vec<_> = (0..2).filter(|at| inserted[*at].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{inserted:?}");
        let won = &made[winners[0]];
        done(&catalogs[winners[0]], Change::Publish(won.name.clone(), won.id)).await;
        let mounts = (0..8).map(|at| catalogs[at % 2].submit(mount(won, &format!("web{at}"), "x")));
        let mounted = join_all(mounts).await;
        assert_eq!(mounted.iter().filter(|mounted| mounted.is_ok()).count(), 1, "{mounted:?}");
        catalogs[0].sync().await.unwrap();
        let view = catalogs[0].view();
        assert_eq!(view.volume(&text).unwrap().mounts.len(), 1);
        assert_eq!(view.volume(&text).unwrap().id, won.id);
    }
}

#[tokio::test]
async fn a_directory_is_moved_by_one_instance_at_a_time() {
    let server = Server::start();
    let (one, other) = (server.open("moves", "store1").await, server.open("moves", "store2").await);
    let made = create(&one, "db").await;
    let claimed = one.try_lock(made.id).await.unwrap();
    assert!(claimed.is_some());
    assert!(other.try_lock(made.id).await.unwrap().is_none());
    let refused = other.submit(mount(&made, "web1", "x")).await;
    assert!(matches!(refused, Err(CatalogError::Refused(Refusal::Moving(_)))), "{refused:?}");
    drop(claimed);
    // It is released in the background. The same instance is granted it in the order of calls.
    assert!(one.try_lock(made.id).await.unwrap().is_some());
    eventually("the claim is given back", async || other.try_lock(made.id).await.unwrap().is_some()).await;
    eventually("the volume can be mounted", async || other.submit(mount(&made, "web1", "x")).await.is_ok())
        .await;

    // A volume that is being made belongs to the instance that makes it, and is visible to none.
    let half = volume("half");
    done(&one, Change::Insert(half.clone())).await;
    assert!(other.try_lock(half.id).await.unwrap().is_none());
    assert!(!other.view().volume("half").unwrap().visible);
    let lost = other.peer_events().unwrap().borrow().lost_instances;
    drop(one);
    // It was not released: it ends with the instance's lease.
    eventually("the instance is missed", async || {
        other.peer_events().unwrap().borrow().lost_instances > lost
    })
    .await;
    eventually("its volume is shown", async || other.view().volume("half").unwrap().visible).await;
    assert!(other.view().volume("half").unwrap().unconfirmed.is_some());
    assert!(other.try_lock(half.id).await.unwrap().is_some());
}

#[tokio::test]
async fn a_compacted_history_is_no_loss() {
    let server = Server::start();
    let catalog = server.open("compact", "store1").await;
    let made = create(&catalog, "db").await;
    // The watch must miss the events that are compacted: etcd is stopped, started again, and compacted.
    let other = server.open("compact", "store2").await;
    let mut server = server;
    server.stop();
    server.start_again();
    for at in 0..20 {
        done(&other, mount(&made, "web1", &format!("m{at}"))).await;
    }
    let revision = server.revision();
    server.ctl(&["compact", &revision.to_string()]).unwrap();
    catalog.sync().await.unwrap();
    assert_eq!(catalog.view().volume("db").unwrap().mounts.len(), 20);
}

/// Each Mount and each Unmount counts once, whatever the cluster does between a question and its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_counts_once() {
    let server = Server::start();
    let catalogs = [server.open("void", "store1").await, server.open("void", "store2").await];
    let made = create(&catalogs[0], "db").await;
    let others: Vec<_> = (0..6).map(|at| format!("v{at}")).collect();
    for text in &others {
        create(&catalogs[0], text).await;
    }
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let frozen = tokio::task::spawn_blocking(move || {
        let mut server = server;
        for round in 0..8 {
            std::thread::sleep(Duration::from_millis(100 + 37 * round));
            match round % 3 {
                2 => {
                    server.stop();
                    server.start_again();
                }
                // Longer than a member may take to answer, so that calls are repeated.
                _ => {
                    server.signal("STOP");
                    std::thread::sleep(Duration::from_millis(2300));
                    server.signal("CONT");
                }
            }
        }
        stop.send(true).unwrap();
        server
    });
    let mut tasks = Vec::new();
    for client in 0..8 {
        let (catalog, made) = (Arc::clone(&catalogs[client % 2]), Arc::clone(&made));
        let stopped = stopped.clone();
        tasks.push(tokio::spawn(async move {
            let (mut mounts, host) = (0_u32, format!("web{client}"));
            while !*stopped.borrow() {
                for _ in 0..3 {
                    match catalog.submit(mount(&made, &host, "x")).await {
                        Ok(_) => mounts += 1,
                        Err(CatalogError::Unreachable { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                if mounts > 1 {
                    let unmount = Change::Unmount {
                        name: made.name.clone(),
                        host: contract::host(&host),
                        id: mount_id("x"),
                        target: None,
                    };
                    catalog.submit(unmount).await.unwrap();
                    mounts -= 1;
                }
            }
            (host, mounts)
        }));
    }
    stopped.wait_for(|stopped| *stopped).await.unwrap();
    let server = frozen.await.unwrap();
    for task in tasks {
        let (host, mounts) = task.await.unwrap();
        for catalog in &catalogs {
            eventually("every Unmount is recorded", async || catalog.fault().is_none()).await;
        }
        catalogs[0].sync().await.unwrap();
        let view = catalogs[0].view();
        let counted = view.volume("db").unwrap().mounts.iter().find(|mount| mount.host.as_str() == host);
        assert_eq!(counted.map(|mount| mount.count), Some(mounts), "{host}");
    }
    drop(server);
}

/// Unmounts that were answered while etcd was out of reach are recorded once, also by the next process.
#[tokio::test]
async fn what_was_answered_without_a_cluster_is_recorded_once() {
    let mut server = Server::start();
    let catalog = server.open("spool", "store1").await;
    let made = create(&catalog, "db").await;
    for _ in 0..5 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    server.stop();
    // The Unmount waits as long as an election may last; then it is kept.
    let outcome = done(&catalog, unmount(&made, "x")).await;
    assert_eq!(outcome.released.len(), 1);
    let why = catalog.fault().expect("it is out of reach");
    assert!(why.contains("1 answered requests are kept"), "{why}");
    done(&catalog, unmount(&made, "x")).await;
    done(&catalog, unmount(&made, "not-there")).await;
    let refused = catalog.submit(mount(&made, "web2", "y")).await.unwrap_err();
    let place = format!("is out of reach: http://{}", server.place.clients());
    assert!(refused.to_string().contains(&place), "{refused}");
    assert!(matches!(catalog.sync().await, Err(CatalogError::Unreachable { .. })));
    assert_eq!(catalog.view().volume("db").unwrap().mounts.iter().next().unwrap().count, 5);
    done(&catalog, Change::Seen(Vec::new())).await;

    server.start_again();
    let count = |catalog: &Arc<dyn Catalog>| {
        catalog.view().volume("db").unwrap().mounts.iter().map(|mount| mount.count).sum::<u32>()
    };
    eventually("they are recorded", async || count(&catalog) == 3 && catalog.fault().is_none()).await;

    server.stop();
    done(&catalog, unmount(&made, "x")).await;
    drop(catalog);
    server.start_again();
    let catalog = server.open("spool", "store1").await;
    assert_eq!(count(&catalog), 2, "before anything is served");
    drop(catalog);
    assert_eq!(count(&server.open("spool", "store1").await), 2);
}

#[tokio::test]
async fn a_prefix_that_is_somebody_elses_is_left_alone() {
    let server = Server::start();
    server.ctl(&["put", "/taken/by/others", "x"]).unwrap();
    server.ctl(&["put", "/newer/format", r#"{"volhost":"catalog","v":2}"#]).unwrap();
    server.ctl(&["put", "/broken/format", r#"{"volhost":"catalog","v":1}"#]).unwrap();
    server.ctl(&["put", "/broken/volumes/db", r#"{"v":7}"#]).unwrap();
    let before = server.ctl(&["get", "", "--from-key"]).unwrap();
    for (prefix, expected) in [
        ("taken", "/taken/by/others is none of volhost's keys"),
        ("newer", "has the format 2"),
        ("broken", "row volumes/db has the version 7"),
    ] {
        let (cluster, instance) = (server.cluster(prefix), server.instance("store1"));
        let opened = tokio::task::spawn_blocking(move || open(&cluster, &instance).map(drop)).await.unwrap();
        let error = crate::error::chain(&opened.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
    let after = server.ctl(&["get", "", "--from-key"]).unwrap();
    let own = |line: &str| line.contains("~slots") || line.contains("~spools");
    let without_own = |text: &str| text.lines().filter(|line| !own(line)).count();
    assert!(without_own(&after) <= without_own(&before) + SLOTS + 1, "{after}");
}

fn unmount(volume: &Volume, id: &str) -> Change {
    Change::Unmount { name: volume.name.clone(), host: host("web1"), id: mount_id(id), target: None }
}

/// How long anything may take on a busy machine: longer than a lease outlives its instance.
const SOON: Duration = Duration::from_secs(40);

/// Waits until a condition holds.
async fn eventually(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !is().await {
        assert!(Instant::now() < until, "it did not happen that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// This volhost must not write over a record of a newer one, because that would lose its new fields.
#[tokio::test]
async fn what_is_not_understood_stops_every_change_until_it_is_gone() {
    let server = Server::start();
    let catalog = server.open("newer", "store1").await;
    let made = create(&catalog, "db").await;
    server.ctl(&["put", "/newer/volumes/other", r#"{"v":2}"#]).unwrap();
    eventually("it is noticed", async || catalog.fault().is_some()).await;
    for _ in 0..30 {
        let why = catalog.fault().expect("it stays so, however well the cluster answers");
        assert!(why.contains("row volumes/other has the version 2"), "{why}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let refused = catalog.submit(mount(&made, "web1", "x")).await;
    assert!(matches!(refused, Err(CatalogError::Unreachable { .. })), "{refused:?}");
    assert_eq!(catalog.view().volume("db"), Some(&made));
    server.ctl(&["del", "/newer/volumes/other"]).unwrap();
    // The history still has that record; it need not be compacted.
    eventually("changes are taken in", async || catalog.submit(mount(&made, "web1", "x")).await.is_ok())
        .await;
}

/// A cluster that was restored from a snapshot may have reached the same revision again, by other transactions.
#[tokio::test]
async fn another_history_is_noticed_also_where_it_came_as_far() {
    let mut server = Server::start();
    let catalog = server.open("history", "store1").await;
    create(&catalog, "kept").await;
    let snapshot = server.dir.path().join("snapshot");
    server.ctl(&["snapshot", "save", snapshot.to_str().unwrap()]).unwrap();
    // One that the watch has delivered, and one that it may not have delivered.
    create(&catalog, "told").await;
    catalog.sync().await.unwrap();
    create(&catalog, "lost").await;
    let reached = server.revision();

    server.stop();
    server.restore(&snapshot);
    while server.revision() <= reached {
        server.ctl(&["put", "/somebody/elses", "x"]).unwrap();
    }
    eventually("what was lost is lost", async || {
        ["lost", "told"].iter().all(|name| catalog.view().volume(name).is_none())
    })
    .await;
    assert!(catalog.view().volume("kept").is_some());
    eventually("changes are taken in", async || catalog.submit(Change::Insert(volume("new"))).await.is_ok())
        .await;
}

/// An unanswered transaction holds its volume and its slot until etcd is back; an Unmount waits for neither.
#[tokio::test]
async fn an_unmount_waits_for_no_unknown_outcome() {
    let server = Server::start();
    let catalog = server.open("behind", "store1").await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    server.signal("STOP");
    // More changes than there are slots, of this volume and of others.
    let mut pending = vec![catalog.submit(mount(&made, "web2", "y"))];
    for at in 0..2 * SLOTS {
        pending.push(catalog.submit(Change::Insert(volume(&format!("v{at}")))));
    }
    let asked = Instant::now();
    let outcome = done(&catalog, unmount(&made, "x")).await;
    assert!(outcome.released.len() == 1 && asked.elapsed() < SOON, "{:?}", asked.elapsed());
    server.signal("CONT");
    // Each is answered when its outcome is known: it was done, or it never will be.
    let results = join_all(pending).await;
    eventually("the Unmount is recorded", async || catalog.fault().is_none()).await;
    catalog.sync().await.unwrap();
    let view = catalog.view();
    for (at, result) in results.iter().skip(1).enumerate() {
        assert_eq!(result.is_ok(), view.volume(&format!("v{at}")).is_some(), "{at}: {result:?}");
    }
    let mounted: Vec<_> = view.volume("db").unwrap().mounts.iter().map(|mount| mount.host.as_str()).collect();
    assert_eq!(mounted, if results[0].is_ok() { vec!["web2"] } else { vec![] });
}

/// No volhost deletes the record of a host; an operator may.
#[tokio::test]
async fn a_host_whose_record_was_deleted_is_recorded_again() {
    let server = Server::start();
    let catalog = server.open("hand", "store1").await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    done(&catalog, Change::Activate(host("web1"))).await;
    let before = catalog.view().hosts.get(&host("web1")).cloned().unwrap();
    assert_eq!(server.ctl(&["del", "/hand/hosts/web1"]).unwrap().trim(), "1");
    let next = timeout(SOON, catalog.submit(mount(&made, "web1", "y"))).await;
    next.expect("it is not tried for ever").unwrap();
    let seen = Change::Seen(vec![(host("web1"), time::OffsetDateTime::now_utc())]);
    timeout(SOON, catalog.submit(seen)).await.expect("nor is this").unwrap();
    assert!(server.ctl(&["get", "/hand/hosts/web1"]).unwrap().contains("\"activation\":1"));
    assert_eq!(catalog.view().hosts.get(&host("web1")).unwrap().activation, before.activation);
}

/// The second line of defence, if the memory is ever wrong in a way that no event corrects.
#[tokio::test]
async fn what_contradicts_the_cluster_is_read_again() {
    let server = Server::start();
    let etcd = opened(server.cluster("doubt"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    etcd.core.replica.memory.corrupt_revision(&RowKey::Volume(made.name.clone()));
    let mounted = timeout(SOON, catalog.submit(mount(&made, "web1", "x"))).await;
    mounted.expect("it is not tried for ever").unwrap();
    assert_eq!(catalog.view().volume("db").unwrap().mounts.len(), 1);
}
