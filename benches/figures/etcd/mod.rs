//! A catalog in etcd: volhost against bare etcd, which runs in the same run and does what volhost was seen to do there.
//!
//! What each round of both asks of etcd is told as well: it should be the same.

mod bare;
mod cluster;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::TxnOp;
use http::StatusCode;
use volhost::catalog::Write;
use volhost::catalog::record::encode;

use self::bare::{Bare, OURS, Recorder, Recording, read_all};
use self::cluster::{Cluster, Count};
use crate::fleet::mount_and_unmount;
use crate::load::{self, Client, Connection, Runtimes};
use crate::process::{Process, Root};
use crate::subjects::{
    CLIENTS, Row, TURNS, by_turns, create_one, kept_alive, mebibytes, median, micros, new_volume, started,
    times,
};

/// How long one turn is.
const TURN: Duration = Duration::from_millis(700);

/// Runs a subject; nothing, where there is no etcd.
pub(crate) fn measure(subject: &str, runtimes: &Runtimes, directory: &Path, volumes: u64) -> Vec<Row> {
    if !Cluster::is_installed() {
        crate::eprint_line(&format!(
            "{subject} is left out: there is no program etcd (Debian's etcd-server)"
        ));
        return Vec::new();
    }
    match subject {
        "etcd-write" => write(runtimes, directory),
        "etcd-many" => many(runtimes, directory, volumes),
        "etcd-instances" => instances(runtimes, directory),
        _ => get(runtimes, directory),
    }
}

/// Instances of one catalog, none of which is started.
struct Fleet {
    cluster: Cluster,
    /// One without etcd, whose authority all others have.
    alone: Root,
    roots: Vec<Root>,
}

impl Fleet {
    fn new(directory: &Path, members: usize, instances: usize) -> Self {
        let cluster = Cluster::start(directory, members);
        let alone = Root::new(directory.join("alone"));
        alone.start().terminate();
        let (catalog, volumes) = (cluster.location(OURS), directory.join("volumes"));
        let roots = (0..instances)
            .map(|number| Root::sharing(directory.join(format!("node{number}")), &alone, &catalog, &volumes))
            .collect();
        Self { cluster, alone, roots }
    }

    fn start(&self) -> Vec<Process> {
        self.roots.iter().map(Root::start).collect()
    }
}

/// What one of two took.
#[derive(Default)]
struct Taken {
    /// Rounds a second, of each turn.
    rates: Vec<f64>,
    /// Microseconds of each round.
    each: Vec<f64>,
    /// What etcd did for it.
    count: Count,
}

impl Taken {
    /// The median, and what 99 of 100 stay below, in milliseconds.
    fn latency(&mut self) -> (f64, f64) {
        let usual = median(&mut self.each) / 1000.0;
        let late = self.each.get(self.each.len() * 99 / 100).copied().unwrap_or_default() / 1000.0;
        (usual, late)
    }
}

/// Has all workers do rounds at once, for a time; returns them, and what they took.
async fn rounds<W, F>(
    workers: Vec<W>,
    cluster: &Cluster,
    taken: &mut Taken,
    round: impl Fn(W) -> F + Clone + Send + 'static,
) -> Vec<W>
where
    W: Send + 'static,
    F: Future<Output = W> + Send,
{
    let (before, began) = (cluster.count(), Instant::now());
    let until = began + TURN;
    let tasks: Vec<_> = workers
        .into_iter()
        .map(|mut worker| {
            let round = round.clone();
            tokio::spawn(async move {
                let (mut each, mut began) = (Vec::new(), Instant::now());
                while began < until {
                    worker = round(worker).await;
                    let ended = Instant::now();
                    each.push(micros(ended - began));
                    began = ended;
                }
                (worker, each)
            })
        })
        .collect();
    let (mut workers, mut made) = (Vec::new(), 0_usize);
    for task in tasks {
        let (worker, each) = task.await.expect("no client panics");
        made += each.len();
        taken.each.extend(each);
        workers.push(worker);
    }
    taken.rates.push(made as f64 / began.elapsed().as_secs_f64());
    taken.count.add(before, cluster.count());
    workers
}

/// A client of volhost, and which of its volumes it is at.
struct Asking {
    connection: Connection,
    who: usize,
    turn: u64,
    made: u64,
}

impl Asking {
    /// As many connections as there are clients, to all instances alike; each with a volume of its own, made here.
    async fn several(client: &Client, instances: &[Process], count: usize, turn: u64) -> Vec<Self> {
        let mut all = Vec::with_capacity(count);
        for (who, instance) in (0..count).zip(instances.iter().cycle()) {
            let connection = client.connect(instance.address).await;
            all.push(Self { connection, who, turn, made: 0 }.create().await);
        }
        all
    }

    /// As long as what [`load::name`] gives.
    fn name(&self) -> String {
        format!("{:02}-{:02}-{:08}", self.turn, self.who, self.made)
    }

    async fn create(mut self) -> Self {
        self.made += 1;
        let name = self.name();
        create_one(&mut self.connection, name).await;
        self
    }

    async fn mount_and_unmount(mut self) -> Self {
        let name = self.name();
        mount_and_unmount(&mut self.connection, &name).await;
        self
    }
}

/// Watches what volhost writes for one volume.
async fn record(cluster: &Cluster, connection: &mut Connection) -> Recording {
    let (recorder, name) = (Recorder::begin(cluster.client().await).await, load::name(0));
    create_one(connection, name.clone()).await;
    mount_and_unmount(connection, &name).await;
    recorder.end(&name).await
}

/// What is done again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    Create,
    Mount,
}

/// Measures volhost and bare etcd by turns.
async fn compare(
    cluster: &Cluster,
    client: &Client,
    instances: &[Process],
    recording: &Recording,
    clients: usize,
    round: Round,
) -> (Taken, Taken) {
    let (mut ours, mut floor) = (Taken::default(), Taken::default());
    // So that no two have a volume of one name.
    let tag = if round == Round::Create { 10 } else { 20 } + u64::from(clients > 1) * 30;
    let bare = Bare::several(cluster.client().await, recording, clients, tag * 1_000_000);
    let mut bare = Box::pin(bare).await;
    let mut asking = Asking::several(client, instances, clients, tag).await;
    for _ in 0..TURNS {
        asking = match round {
            Round::Create => rounds(asking, cluster, &mut ours, Asking::create).await,
            Round::Mount => rounds(asking, cluster, &mut ours, Asking::mount_and_unmount).await,
        };
        bare = match round {
            Round::Create => rounds(bare, cluster, &mut floor, Bare::create).await,
            Round::Mount => rounds(bare, cluster, &mut floor, Bare::mount_and_unmount).await,
        };
    }
    crate::eprint_line(&format!(
        "  each round: {}; bare: {}",
        ours.count.each(ours.each.len()),
        floor.count.each(floor.each.len())
    ));
    (ours, floor)
}

/// A row of rounds a second, and one of what each takes.
fn rate_and_latency(
    what: &str,
    clients: usize,
    ours: &mut Taken,
    floor: &mut Taken,
    target: &str,
) -> [Row; 2] {
    let who = if clients == 1 { "one client".to_owned() } else { format!("{clients} clients") };
    let (rate, bare_rate) = (median(&mut ours.rates), median(&mut floor.rates));
    let ((usual, late), (bare_usual, bare_late)) = (ours.latency(), floor.latency());
    let show = |usual, late| format!("{usual:.2}, {late:.2} ms");
    [
        Row::new(
            &format!("{what} a second, {who}; two bare etcd transactions each"),
            &format!("{rate:.0}/s"),
            &format!("{bare_rate:.0}/s"),
            &times(rate / bare_rate),
            target,
        ),
        Row::new(
            &format!("{what}, {who}: p50, p99; two bare etcd transactions"),
            &show(usual, late),
            &show(bare_usual, bare_late),
            &format!("{}, {}", times(usual / bare_usual), times(late / bare_late)),
            "",
        ),
    ]
}

/// Create, Mount and Unmount, by one client and by many, with one member and with three.
fn write(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    let mut rows = Vec::new();
    for members in [1, 3] {
        let directory = directory.join(format!("of{members}"));
        std::fs::create_dir_all(&directory).expect("the directory can be made");
        let fleet = Fleet::new(&directory, members, 1);
        let (instances, client) = (fleet.start(), Client::new(&fleet.alone.pki()));
        let (cluster, first) = (&fleet.cluster, instances.first().expect("there is one"));
        let recording = runtimes
            .alone
            .block_on(async { record(cluster, &mut client.connect(first.address).await).await });
        for (round, what, clients, target) in [
            (Round::Create, "Creates", 1, "≥ 0.7"),
            (Round::Create, "Creates", CLIENTS, "≥ 0.7"),
            (Round::Mount, "Mounts and Unmounts", 1, ""),
            (Round::Mount, "Mounts and Unmounts", CLIENTS, ""),
        ] {
            if members > 1 && !(round == Round::Mount && clients == CLIENTS) {
                continue;
            }
            let compared = compare(cluster, &client, &instances, &recording, clients, round);
            let (mut ours, mut floor) = runtimes.of(clients).block_on(compared);
            let of = if members > 1 { format!(" ({members} members)") } else { String::new() };
            let what = format!("etcd{of}: {what}");
            rows.extend(rate_and_latency(&what, clients, &mut ours, &mut floor, target));
        }
    }
    rows
}

/// How what 64 clients get done grows with instances.
fn instances(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    const INSTANCES: [usize; 3] = [1, 2, 4];
    let fleet = Fleet::new(directory, 1, 4);
    let (all, client) = (fleet.start(), Client::new(&fleet.alone.pki()));
    let mut taken = INSTANCES.map(|_| Taken::default());
    runtimes.many.block_on(async {
        let mut workers = Vec::new();
        for (count, turn) in INSTANCES.into_iter().zip(70..) {
            let some = all.get(..count).expect("so many were started");
            workers.push(Asking::several(&client, some, CLIENTS, turn).await);
        }
        for _ in 0..TURNS {
            for (workers, taken) in workers.iter_mut().zip(&mut taken) {
                let asking = std::mem::take(workers);
                *workers = rounds(asking, &fleet.cluster, taken, Asking::mount_and_unmount).await;
            }
        }
    });
    let mut rates = taken.map(|mut taken| median(&mut taken.rates));
    let [one, more @ ..] = &mut rates;
    more.iter()
        .zip(INSTANCES.into_iter().skip(1))
        .map(|(rate, count)| {
            Row::new(
                &format!("etcd: Mounts and Unmounts a second, 64 clients, {count} instances; one instance"),
                &format!("{rate:.0}/s"),
                &format!("{one:.0}/s"),
                &times(*rate / *one),
                "",
            )
        })
        .collect()
}

/// Many volumes in etcd: the start, and the memory.
fn many(runtimes: &Runtimes, directory: &Path, volumes: u64) -> Vec<Row> {
    let fleet = Fleet::new(directory, 1, 1);
    let root = fleet.roots.first().expect("there is one");
    let settled = |root: &Root| {
        let process = root.start();
        // As idle as the service becomes.
        std::thread::sleep(Duration::from_secs(2));
        let memory = process.memory();
        process.terminate();
        memory
    };
    let sqlite = settled(&fleet.alone);
    let few = settled(root);
    runtimes.alone.block_on(populate(&fleet.cluster, volumes));
    let mut keys = 0;
    let (ours, floor) = by_turns(|turn| {
        if turn {
            return started(root);
        }
        runtimes.alone.block_on(async {
            let began = Instant::now();
            keys = read_all(fleet.cluster.client().await).await;
            micros(began.elapsed())
        })
    });
    for file in [Path::new(env!("CARGO_BIN_EXE_volhost")), &fleet.cluster.database()] {
        forget(file);
    }
    let cold = started(root);
    let heavy = settled(root);
    let figure = |what: &str| format!("etcd, {volumes} volumes: {what}");
    let a_volume = heavy.anonymous.saturating_sub(few.anonymous) / volumes.max(1);
    let ms = |micros: f64| format!("{:.0} ms", micros / 1000.0);
    vec![
        Row::new(
            &figure(&format!("start to ready; a bare read of the {keys} keys")),
            &ms(ours),
            &ms(floor),
            &times(ours / floor),
            "",
        ),
        Row::alone(&figure("start to ready, files not in memory"), &ms(cold), ""),
        Row::new(
            &figure("memory, resident; without volumes"),
            &mebibytes(heavy.resident),
            &mebibytes(few.resident),
            &times(heavy.resident as f64 / few.resident as f64),
            "",
        ),
        Row::alone(&figure("memory a volume"), &format!("{a_volume} B"), ""),
        Row::new(
            "etcd: idle memory, resident; with SQLite",
            &mebibytes(few.resident),
            &mebibytes(sqlite.resident),
            &times(few.resident as f64 / sqlite.resident as f64),
            "",
        ),
        Row::new(
            "etcd: idle memory, without files' pages; with SQLite",
            &mebibytes(few.anonymous),
            &mebibytes(sqlite.anonymous),
            &times(few.anonymous as f64 / sqlite.anonymous as f64),
            "",
        ),
    ]
}

/// Drops what the kernel keeps of a file, but for what a process has mapped.
fn forget(file: &Path) {
    let file = std::fs::File::open(file).expect("it was written");
    file.sync_all().expect("the disk takes it");
    // It is advice: where it is not taken, the figure is that of a warm start.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Writes volumes into a catalog that nobody serves.
async fn populate(cluster: &Cluster, volumes: u64) {
    // As many operations as etcd takes in one transaction.
    const AT_ONCE: usize = 128;
    let mut client = cluster.client().await;
    let mut puts = Vec::with_capacity(AT_ONCE);
    for index in 0..volumes {
        let volume = new_volume(index);
        let write = Write::Volume(volume.name.clone(), Some(Arc::new(volume)));
        let row = encode(&write).expect("it can be written");
        let key = format!("/{OURS}/{}/{}", row.table.name(), row.key.join("/"));
        puts.push(TxnOp::put(key, row.record.expect("it is not deleted"), None));
        if puts.len() == AT_ONCE || index + 1 == volumes {
            let all = std::mem::take(&mut puts);
            client.txn(etcd_client::Txn::new().and_then(all)).await.expect("etcd takes it");
        }
    }
}

/// A Get of what there is, against SQLite; a Get of what there is not, against a bare read.
fn get(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    let fleet = Fleet::new(directory, 1, 1);
    let (shared, alone) = (fleet.start(), fleet.alone.start());
    let shared = shared.first().expect("there is one");
    let client = Client::new(&fleet.alone.pki());
    runtimes.alone.block_on(async {
        for process in [shared, &alone] {
            create_one(&mut client.connect(process.address).await, load::name(0)).await;
        }
    });
    let (hit, sqlite) = by_turns(|turn| {
        let process = if turn { shared } else { &alone };
        runtimes.many.block_on(kept_alive(&client, process, 1, TURN))
    });
    alone.terminate();
    let mut rows = vec![Row::new(
        "etcd: CPU of a Get, 64 kept connections; with SQLite",
        &format!("{hit:.1} µs"),
        &format!("{sqlite:.1} µs"),
        &times(hit / sqlite),
        "",
    )];
    for clients in [1, CLIENTS] {
        let (mut ours, mut floor) = (Taken::default(), Taken::default());
        runtimes.of(clients).block_on(async {
            let bare = fleet.cluster.client().await;
            let mut connections = client.connect_all(shared.address, clients).await;
            let mut bare: Vec<_> = (0..clients).map(|_| bare.clone()).collect();
            for _ in 0..TURNS {
                connections = rounds(connections, &fleet.cluster, &mut ours, miss).await;
                bare = rounds(bare, &fleet.cluster, &mut floor, bare_miss).await;
            }
        });
        let who = if clients == 1 { "one client".to_owned() } else { format!("{clients} clients") };
        let ((usual, late), (bare_usual, bare_late)) = (ours.latency(), floor.latency());
        rows.push(Row::new(
            &format!("etcd: a Get that finds nothing, {who}: p50, p99; a bare linearizable get"),
            &format!("{usual:.2}, {late:.2} ms"),
            &format!("{bare_usual:.2}, {bare_late:.2} ms"),
            &format!("{}, {}", times(usual / bare_usual), times(late / bare_late)),
            "",
        ));
    }
    rows
}

async fn miss(mut connection: Connection) -> Connection {
    let body = r#"{"Name":"none"}"#.to_owned();
    let (status, body) = load::ask(&mut connection, "/VolumeDriver.Get", body).await;
    assert_ne!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
    connection
}

async fn bare_miss(mut client: etcd_client::Client) -> etcd_client::Client {
    client.get(format!("/{OURS}/volumes/none"), None).await.expect("etcd answers");
    client
}
