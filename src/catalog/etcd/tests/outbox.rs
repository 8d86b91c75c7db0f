//! Tests of the outbox: each entry is carried out once and blocks nothing, with connections to etcd that lose answers.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::catalog::UnmountTarget;
use crate::catalog::etcd::outbox::{Answered, Entry, Outbox};
use crate::catalog::etcd::txn::Slot;
use crate::model::mounts::Activation;

fn kept_unmount(volume: &Volume, by: &str, id: &str, activation: u64) -> Entry {
    let target = UnmountTarget { volume: Some(volume.id), activation: Activation(activation) };
    let request = Answered::Unmount { volume: volume.name.clone(), id: mount_id(id), target };
    Entry { host: host(by), request, sent: None }
}

fn kept_activate(by: &str) -> Entry {
    Entry { host: host(by), request: Answered::Activate, sent: None }
}

async fn recorded(etcd: &Etcd) {
    let emptied = timeout(SOON, etcd.core.outbox.wait_until_empty()).await;
    emptied.expect("what is kept is recorded");
}

fn count(view: &View, volume: &str) -> u32 {
    view.volume(volume).unwrap().mounts.iter().map(|mount| mount.count).sum()
}

/// A proxy in front of etcd that can lose and delay messages.
struct Way {
    port: u16,
    state: Arc<WayState>,
}

#[derive(Default)]
struct WayState {
    /// True while answers are lost.
    mute: AtomicBool,
    /// A part of the request whose answer and connection are lost, once.
    loses: Mutex<Option<Vec<u8>>>,
    /// A part of the requests that never arrive.
    bars: Mutex<Option<Vec<u8>>>,
    /// The number of connections so far, and how many of the first ones get their answers late.
    count: AtomicUsize,
    late: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl Way {
    fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, to, state) = (listener.local_addr().unwrap().port(), server.address(), Arc::default());
        let way = Self { port, state: Arc::clone(&state) };
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(&to) else { continue };
                state.open.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                let number = state.count.fetch_add(1, Ordering::SeqCst);
                for forth in [true, false] {
                    let (client, server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || state.carry(forth, number, client, server));
                }
            }
        });
        way
    }

    fn cluster(&self, prefix: &str) -> Cluster {
        Cluster { members: vec![format!("127.0.0.1:{}", self.port)], prefix: prefix.into() }
    }

    /// Loses every answer, or stops doing so.
    fn mute(&self, mute: bool) {
        self.state.mute.store(mute, Ordering::SeqCst);
        if !mute {
            self.state.close();
        }
    }
}

impl WayState {
    fn carry(&self, forth: bool, number: usize, client: TcpStream, server: TcpStream) {
        let (mut from, mut to) = if forth { (client, server) } else { (server, client) };
        let mut part = vec![0; 65536];
        while let Ok(length @ 1..) = from.read(&mut part) {
            let part = &part[..length];
            let has = |what: &Option<Vec<u8>>| {
                forth && what.as_ref().is_some_and(|what| part.windows(what.len()).any(|seen| seen == what))
            };
            if has(&self.bars.lock().unwrap()) {
                break;
            }
            while !forth && number < self.late.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let mut loses = self.loses.lock().unwrap();
            let lost = has(&loses);
            if lost {
                *loses = None;
                self.mute.store(true, Ordering::SeqCst);
            }
            drop(loses);
            if forth || !self.mute.load(Ordering::SeqCst) {
                let _ = to.write_all(part);
            }
            if lost {
                // Until then the request has taken effect.
                std::thread::sleep(Duration::from_millis(500));
                self.mute.store(false, Ordering::SeqCst);
                self.close();
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn close(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Opens an instance through a proxy that can delay its watch, while its calls are answered at once.
async fn with_a_late_watch(server: &Server, prefix: &str) -> (Way, Arc<Etcd>) {
    let way = Way::to(server);
    let etcd = opened(way.cluster(prefix), server.instance("store1")).await;
    etcd.sync().await.unwrap();
    // Calls from now on use another connection.
    etcd.core.client.members.suspect();
    (way, etcd)
}

impl Way {
    /// Stops the watch of [`with_a_late_watch`] during something.
    async fn late<T>(&self, during: impl Future<Output = T>) -> T {
        self.state.late.store(1, Ordering::SeqCst);
        let done = during.await;
        self.state.late.store(0, Ordering::SeqCst);
        done
    }
}

/// An instance that was cut off has entries to record before its watch has delivered what the others did.
#[tokio::test]
async fn what_is_kept_is_decided_by_what_others_did_before() {
    let server = Server::start();
    let other = server.open("behind", "store2").await;
    let made = create(&other, "db").await;
    let (way, one) = with_a_late_watch(&server, "behind").await;
    for (round, kept) in [kept_unmount(&made, "web1", "x", 0), kept_activate("web1")].into_iter().enumerate()
    {
        way.late(async {
            done(&other, mount(&made, "web1", "x")).await;
            one.core.outbox.keep(kept).unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        })
        .await;
        recorded(&one).await;
        other.sync().await.unwrap();
        let told = (count(&other.view(), "db"), other.view().activation(&host("web1")));
        assert_eq!(told, [(0, Activation(0)), (1, Activation(1))][round]);
    }
}

/// Leaves an entry, as a killed process does, that has taken effect according to the number in its slot.
fn as_left_behind(server: &Server, prefix: &str, made: &Volume) {
    let all = server.ctl(&["get", "--prefix", &format!("/{prefix}/~slots/")]).unwrap();
    let head = server.ctl(&["get", &format!("/{prefix}/head"), "--print-value-only"]).unwrap();
    let lines: Vec<_> = all.lines().collect();
    let at = lines.iter().position(|line| *line == head.trim()).expect("a slot holds the last number");
    let number: usize = lines[at - 1].rsplit('/').next().unwrap().parse().unwrap();
    let (outbox, _) = Outbox::open(&server.instance("store1").spool, prefix).unwrap();
    let sent = Some((Slot { number, revision: 1 }, vec![head.trim().to_owned()]));
    outbox.keep(Entry { sent, ..kept_unmount(made, "web1", "x", 0) }).unwrap();
}

#[tokio::test]
async fn what_took_effect_before_two_restarts_counts_once() {
    let server = Server::start();
    let catalog = server.open("restarts", "store1").await;
    let made = create(&catalog, "db").await;
    for _ in 0..9 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    done(&catalog, unmount(&made, "x")).await;
    drop(catalog);
    as_left_behind(&server, "restarts", &made);
    for _ in 0..3 {
        let catalog = server.open("restarts", "store1").await;
        assert_eq!(count(&catalog.view(), "db"), 8);
    }
}

#[tokio::test]
async fn what_took_effect_counts_once_where_the_answer_about_the_slots_is_lost() {
    let server = Server::start();
    let first = opened(server.cluster("asked"), server.instance("store1")).await;
    let me = first.core.client.me;
    let catalog: Arc<dyn Catalog> = first;
    let made = create(&catalog, "db").await;
    for _ in 0..9 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    done(&catalog, unmount(&made, "x")).await;
    drop(catalog);
    as_left_behind(&server, "asked", &made);
    let way = Way::to(&server);
    *way.state.loses.lock().unwrap() = Some(format!("{me}/63").into_bytes());
    let catalog = opened(way.cluster("asked"), server.instance("store1")).await;
    assert!(way.state.loses.lock().unwrap().is_none(), "an answer was lost");
    assert_eq!(count(&catalog.view(), "db"), 8);
}

/// If nothing can be kept, an error is answered only for an Unmount that never takes effect.
#[tokio::test]
async fn a_full_disk_leaves_no_doubt_about_an_unmount() {
    let server = Server::start();
    let way = Way::to(&server);
    let instance = Instance { request: Duration::from_secs(5), ..server.instance("store1") };
    let etcd = opened(way.cluster("full"), instance).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    for _ in 0..5 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    etcd.core.outbox.fill_disk();
    way.mute(true);
    let asked = catalog.submit(unmount(&made, "x"));
    eventually("etcd counts as out of reach", async || catalog.fault().is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    way.mute(false);
    let answered = timeout(SOON, asked).await.expect("it is answered in the end");
    eventually("etcd is back", async || catalog.fault().is_none()).await;
    catalog.sync().await.unwrap();
    let expected = if answered.is_ok() { 4 } else { 5 };
    assert_eq!(count(&catalog.view(), "db"), expected, "{answered:?}");
    for _ in 0..SLOTS {
        timeout(SOON, etcd.core.txn.slots.take()).await.expect("every slot is given back");
    }
}

/// The container engine repeats an Unmount that is answered after its limit, which would count twice.
#[tokio::test]
async fn what_is_kept_is_answered_within_the_limit_that_a_reload_set() {
    let server = Server::start();
    let way = Way::to(&server);
    let etcd = opened(way.cluster("limit"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    for _ in 0..2 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    let limit = Duration::from_secs(7);
    catalog.limit_requests(limit);
    way.mute(true);
    let answered = timeout(limit, catalog.submit(unmount(&made, "x"))).await;
    assert!(answered.is_ok(), "the engine was told that it is not known what became of it");
    assert_eq!(etcd.core.outbox.len(), 1);
    way.mute(false);
    recorded(&etcd).await;
    assert_eq!(count(&catalog.view(), "db"), 1);
}

/// A request that waits for this machine's disk delays none that needs only the cluster.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_hangs_holds_up_no_more_than_what_is_kept() {
    let server = Server::start();
    let way = Way::to(&server);
    let instance = Instance { request: Duration::from_secs(10), ..server.instance("store1") };
    let etcd = opened(way.cluster("hangs"), instance).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    for _ in 0..2 {
        done(&catalog, mount(&made, "web1", "x")).await;
    }
    let (hang, hanging) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let of_disk = Arc::clone(&etcd);
    let disk = std::thread::spawn(move || {
        let held = of_disk.core.outbox.hang_disk();
        hang.send(()).unwrap();
        // This also returns if the test panics.
        let _ = ended.recv();
        drop(held);
    });
    hanging.recv().unwrap();
    way.mute(true);
    let kept = tokio::spawn(catalog.submit(unmount(&made, "x")));
    eventually("etcd counts as out of reach", async || etcd.core.client.health.fault().is_some()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    way.mute(false);
    let of_catalog = Arc::clone(&catalog);
    let looked = tokio::task::spawn_blocking(move || of_catalog.fault());
    let looked = timeout(SOON, looked).await;
    // It is refused while etcd counts as out of reach.
    let insert = async {
        while catalog.submit(Change::Insert(volume("other"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let made = timeout(SOON, insert).await;
    let waits = !kept.is_finished();
    drop(end);
    disk.join().unwrap();
    assert!(looked.is_ok(), "the fault cannot be told");
    assert!(made.is_ok(), "nothing can be changed");
    assert!(waits, "the Unmount was answered and not kept");
    kept.await.unwrap().unwrap();
    recorded(&etcd).await;
    assert_eq!(count(&catalog.view(), "db"), 1);
}

/// A container engine crashes again and again, and starts a container each time.
#[tokio::test]
async fn many_activations_of_one_mount_are_no_hindrance() {
    let server = Server::start();
    let etcd = opened(server.cluster("crashes"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    for at in 0..150 {
        done(&catalog, mount(&made, "web1", "x")).await;
        if at < 149 {
            done(&catalog, Change::Activate(host("web1"))).await;
        }
    }
    let taken = done(&catalog, unmount(&made, "x")).await;
    assert_eq!(taken.released[0].activation, Activation(149));
    assert_eq!((count(&catalog.view(), "db"), etcd.core.outbox.len(), catalog.fault()), (149, 0, None));
    done(&catalog, unmount(&made, "x")).await;
    assert_eq!((count(&catalog.view(), "db"), etcd.core.outbox.len(), catalog.fault()), (148, 0, None));
    let id = Some(mount_id("x"));
    let release = Change::Release { name: made.name.clone(), host: host("web1"), id, alive_too: false };
    assert_eq!(done(&catalog, release.clone()).await.released.len(), 148);
    assert_eq!(done(&catalog, release).await.released.len(), 0);
}

#[tokio::test]
async fn what_one_transaction_cannot_release_several_do() {
    let server = Server::start();
    let catalog = server.open("release", "store1").await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web2", "x")).await;
    for _ in 0..4 {
        done(&catalog, Change::Activate(host("web1"))).await;
        for id in 0..40 {
            done(&catalog, mount(&made, "web1", &format!("m{id}"))).await;
        }
    }
    let release = |alive_too| {
        let (name, host) = (made.name.clone(), host("web1"));
        Change::Release { name, host, id: None, alive_too }
    };
    // This instance received the mounts from etcd.
    let other = server.open("release", "store2").await;
    let outcome = done(&other, release(false)).await;
    assert_eq!((outcome.released.len(), outcome.before.unwrap().mounts.len()), (120, 161));
    assert_eq!(outcome.after.unwrap().mounts.len(), 41);
    assert_eq!(done(&catalog, release(true)).await.released.len(), 40);
    assert_eq!(catalog.view().volume("db").unwrap().mounts.len(), 1);
}

/// An entry that etcd always refuses delays no other; it is kept, and tried again at the next start.
#[tokio::test]
async fn what_etcd_always_refuses_blocks_nothing() {
    let mut server = Server::start();
    let etcd = opened(server.cluster("refused"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "stale")).await;
    done(&catalog, Change::Activate(host("web1"))).await;
    for id in ["x", "y"] {
        done(&catalog, mount(&made, "web1", id)).await;
    }
    // An Unmount of a stale mount has one condition more than another, and this etcd does not allow so many.
    server.stop();
    server.args = ["--max-txn-ops", "4"].map(str::to_owned).into();
    server.start_again();
    catalog.sync().await.unwrap();
    etcd.core.outbox.keep(kept_unmount(&made, "web1", "x", 1)).unwrap();
    etcd.core.outbox.keep(kept_unmount(&made, "web1", "stale", 1)).unwrap();
    etcd.core.outbox.keep(kept_unmount(&made, "web1", "y", 1)).unwrap();
    recorded(&etcd).await;
    assert_eq!((count(&catalog.view(), "db"), catalog.fault()), (1, None));
    let path = etcd.core.outbox.path().to_path_buf();
    // Recorded entries are removed from the file a moment later.
    let mut text = String::new();
    for _ in 0..100 {
        text = std::fs::read_to_string(&path).unwrap();
        if text.lines().count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(text.lines().count() == 2 && text.contains("stale"), "{text}");
    drop((etcd, catalog));

    server.stop();
    server.args.clear();
    server.start_again();
    for _ in 0..2 {
        let catalog = server.open("refused", "store1").await;
        assert_eq!(count(&catalog.view(), "db"), 0);
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
}

/// A Mount after an engine's start must not count for the activation before, however long it takes to record the start.
#[tokio::test]
async fn a_mount_comes_after_the_start_of_its_engine() {
    let server = Server::start();
    let way = Way::to(&server);
    let etcd = opened(way.cluster("started"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "before")).await;
    *way.state.bars.lock().unwrap() = Some(b"/~spools/".to_vec());
    etcd.core.outbox.keep(kept_activate("web1")).unwrap();
    let mounted = catalog.submit(mount(&made, "web1", "after"));
    tokio::time::sleep(Duration::from_millis(2500)).await;
    *way.state.bars.lock().unwrap() = None;
    let mounted = mounted.await;
    recorded(&etcd).await;
    catalog.sync().await.unwrap();
    let view = catalog.view();
    assert_eq!(view.activation(&host("web1")), Activation(1));
    let mut of: Vec<_> =
        view.volume("db").unwrap().mounts.iter().map(|m| (m.id.as_str(), m.activation.0)).collect();
    of.sort_unstable();
    mounted.expect("it waited, and was done");
    assert_eq!(of, [("after", 1), ("before", 0)]);
}

/// The second line of defence, if the memory is ever wrong in a way that no event corrects.
#[tokio::test]
async fn what_contradicts_the_cluster_is_read_again_for_what_is_kept() {
    let server = Server::start();
    let etcd = opened(server.cluster("doubted"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    catalog.sync().await.unwrap();
    etcd.core.replica.memory.corrupt_revision(&RowKey::Volume(made.name.clone()));
    etcd.core.outbox.keep(kept_unmount(&made, "web1", "x", 0)).unwrap();
    recorded(&etcd).await;
    assert_eq!(count(&catalog.view(), "db"), 0);
}

/// A Publish of a volume that another instance has removed meanwhile is refused.
#[tokio::test]
async fn what_was_removed_by_others_is_not_published() {
    let server = Server::start();
    let other = server.open("gone", "store2").await;
    let made = create(&other, "db").await;
    let (way, one) = with_a_late_watch(&server, "gone").await;
    let publish = Change::Publish(made.name.clone(), made.id);
    let (asked, answered) = oneshot::channel();
    way.late(async {
        done(&other, remove(&made, true)).await;
        // It may have to wait for the watch.
        let _ = asked.send(one.submit(publish));
        tokio::time::sleep(Duration::from_millis(500)).await;
    })
    .await;
    let published = answered.await.unwrap().await;
    assert!(matches!(published, Err(CatalogError::Refused(Refusal::NoSuchVolume))), "{published:?}");
}
