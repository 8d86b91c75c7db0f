//! What is measured.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use time::OffsetDateTime;
use volhost::catalog::{Catalog as _, Change, Volume, sqlite};
use volhost::model::backend::BackendName;
use volhost::model::host::HostName;
use volhost::model::mounts::Ledger;
use volhost::model::options::Options;
use volhost::model::volume::{VolumeId, VolumeName};

use crate::floor::{self, Durable};
use crate::load::{self, Client, Runtimes};
use crate::process::{Process, Root};

/// The subjects, in their order.
pub(crate) const NAMES: [&str; 11] = [
    "get",
    "create",
    "many",
    "process",
    "mount",
    "hosts",
    "peer",
    "etcd-write",
    "etcd-many",
    "etcd-instances",
    "etcd-get",
];

/// How many connections, or clients, are many.
pub(crate) const CLIENTS: usize = 64;

/// How often two are measured by turns.
pub(crate) const TURNS: usize = 5;

/// A row of the table.
pub(crate) struct Row(pub [String; 5]);

impl Row {
    /// What was measured, what volhost took, what it is compared with, how they compare, and what was aimed at.
    pub(crate) fn new(figure: &str, ours: &str, floor: &str, ratio: &str, target: &str) -> Self {
        Self([figure, ours, floor, ratio, target].map(str::to_owned))
    }

    pub(crate) fn alone(figure: &str, ours: &str, target: &str) -> Self {
        Self::new(figure, ours, "", "", target)
    }
}

/// Get over mutual TLS: the processor time of a call, against a bare server's.
pub(crate) fn get(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    let root = Root::new(directory.join("root"));
    let volhost = root.start();
    let client = Client::new(&root.pki());
    let body = runtimes.alone.block_on(async {
        let mut connection = client.connect(volhost.address).await;
        let create = format!(r#"{{"Name":"{}"}}"#, load::name(0));
        load::call(&mut connection, "/VolumeDriver.Create", create).await;
        load::get(&mut connection, 0).await
    });
    let bare = floor::start(&root.pki(), &body, directory);
    let (ours, floor) = by_turns(|turn| {
        let process = if turn { &volhost } else { &bare };
        runtimes.many.block_on(kept_alive(&client, process, 1, Duration::from_millis(1500)))
    });
    let (ours_new, floor_new) = by_turns(|turn| {
        let process = if turn { &volhost } else { &bare };
        let before = process.cpu();
        let time = Duration::from_millis(1500);
        let calls = runtimes.many.block_on(load::connecting_gets(&client, process.address, CLIENTS, time));
        micros(process.cpu() - before) / calls as f64
    });
    let row = |figure, ours: f64, floor: f64, target| {
        let show = |micros| format!("{micros:.1} µs");
        Row::new(figure, &show(ours), &show(floor), &times(ours / floor), target)
    };
    vec![
        row("CPU of a Get, 64 kept connections; a bare hyper + rustls server", ours, floor, "≤ 1.1"),
        row("CPU of a Get on a new connection; a bare hyper + rustls server", ours_new, floor_new, "≤ 1.08"),
    ]
}

/// Create, durable: the time that one client sees, and how many 64 have done in a second.
pub(crate) fn create(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    const EACH: u32 = 100;
    const TIME: Duration = Duration::from_millis(1500);
    let root = Root::new(directory.join("root"));
    let volhost = root.start();
    let client = Client::new(&root.pki());
    let durable = Durable::new(&directory.join("floor"));
    let mut connection = runtimes.alone.block_on(client.connect(volhost.address));
    let mut number = 0;
    let (ours, floor) = by_turns(|turn| {
        let mut times: Vec<_> = (0..EACH)
            .map(|_| {
                let began = Instant::now();
                if turn {
                    number += 1;
                    runtimes.alone.block_on(create_one(&mut connection, format!("one-{number}")));
                } else {
                    durable.create();
                }
                micros(began.elapsed())
            })
            .collect();
        median(&mut times)
    });
    let rate = |clients: usize, name: &str| {
        runtimes.of(clients).block_on(async {
            let connections = client.connect_all(volhost.address, clients).await;
            let began = Instant::now();
            let tasks: Vec<_> = connections
                .into_iter()
                .enumerate()
                .map(|(who, mut connection)| {
                    let name = name.to_owned();
                    tokio::spawn(async move {
                        let mut made = 0_u32;
                        while began.elapsed() < TIME {
                            create_one(&mut connection, format!("{name}-{who}-{made}")).await;
                            made += 1;
                        }
                        made
                    })
                })
                .collect();
            let mut made = 0;
            for task in tasks {
                made += task.await.expect("no client panics");
            }
            f64::from(made) / began.elapsed().as_secs_f64()
        })
    };
    let (mut many, mut floor_many, mut one) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..TURNS {
        many.push(rate(CLIENTS, &format!("fast{turn}")));
        floor_many.push(durable.creates(CLIENTS, TIME));
        one.push(rate(1, &format!("slow{turn}")));
    }
    let (many, floor_many, one) = (median(&mut many), median(&mut floor_many), median(&mut one));
    let show = |micros: f64| format!("{:.2} ms", micros / 1000.0);
    vec![
        Row::new(
            "a durable Create, one client; mkdir + fsync + durable SQLite insert",
            &show(ours),
            &show(floor),
            &times(ours / floor),
            "≤ 1.0",
        ),
        Row::new(
            "durable Creates a second, 64 clients; 64 threads that do mkdir + fsync + durable SQLite insert",
            &format!("{many:.0}/s"),
            &format!("{floor_many:.0}/s"),
            &times(many / floor_many),
            "≥ 2",
        ),
        Row::new(
            "durable Creates a second, 64 clients; one client",
            &format!("{many:.0}/s"),
            &format!("{one:.0}/s"),
            &times(many / one),
            "",
        ),
    ]
}

pub(crate) async fn create_one(connection: &mut load::Connection, name: String) {
    load::call(connection, "/VolumeDriver.Create", format!(r#"{{"Name":"{name}"}}"#)).await;
}

/// Many volumes against a hundred.
pub(crate) fn many(runtimes: &Runtimes, directory: &Path, volumes: u64) -> Vec<Row> {
    const FEW: u64 = 100;
    const SCRAPES: usize = 20;
    let populated = |name: &str, volumes| {
        let root = Root::new(directory.join(name));
        root.start().terminate();
        populate(&runtimes.alone, &root, volumes);
        root
    };
    let (few_root, many_root) = (populated("few", FEW), populated("many", volumes));
    let mut few_starts: Vec<_> = (0..TURNS).map(|_| started(&few_root)).collect();
    let (start, read) = by_turns(|turn| {
        if turn {
            return started(&many_root);
        }
        let began = Instant::now();
        assert_eq!(floor::read_catalog(&many_root.catalog()), volumes);
        micros(began.elapsed())
    });
    let (few, many) = (few_root.start(), many_root.start());
    std::thread::sleep(Duration::from_secs(1));
    let (light, heavy) = (few.memory(), many.memory());
    let (few_client, many_client) = (Client::new(&few_root.pki()), Client::new(&many_root.pki()));
    let (ours, floor) = by_turns(|turn| {
        let time = Duration::from_millis(1500);
        if turn {
            runtimes.many.block_on(kept_alive(&many_client, &many, volumes, time))
        } else {
            runtimes.many.block_on(kept_alive(&few_client, &few, FEW, time))
        }
    });
    let scrape = |process: &Process| {
        let address = process.metrics.expect("the configuration has one");
        let mut connection = runtimes.alone.block_on(load::connect_plain(address));
        let mut times: Vec<_> = (0..SCRAPES)
            .map(|_| {
                let began = Instant::now();
                runtimes.alone.block_on(load::scrape(&mut connection));
                micros(began.elapsed())
            })
            .collect();
        median(&mut times)
    };
    let (scrape_many, scrape_few) = by_turns(|turn| scrape(if turn { &many } else { &few }));
    let before = many.memory();
    let (list, size) = runtimes.alone.block_on(async {
        let mut connection = many_client.connect(many.address).await;
        let mut taken = Vec::new();
        let mut list = Bytes::new();
        for _ in 0..3 {
            let began = Instant::now();
            list = load::call(&mut connection, "/VolumeDriver.List", "{}".into()).await;
            taken.push(micros(began.elapsed()));
        }
        (median(&mut taken), list.len())
    });
    let peak = many.peak().saturating_sub(before.resident);
    let a_volume = heavy.anonymous.saturating_sub(light.anonymous) / volumes.max(1);
    let figure = |what: &str| format!("{volumes} volumes: {what}");
    let show_start = |micros: f64| format!("{:.1} ms", micros / 1000.0);
    vec![
        Row::new(
            &figure("start to ready; a bare read of their rows"),
            &show_start(start),
            &show_start(read),
            &times(start / read),
            "≤ 1.5",
        ),
        Row::alone(&format!("{FEW} volumes: start to ready"), &show_start(median(&mut few_starts)), ""),
        Row::new(
            &figure("CPU of a Get; 100 volumes"),
            &format!("{ours:.1} µs"),
            &format!("{floor:.1} µs"),
            &times(ours / floor),
            "≤ 1.2",
        ),
        Row::new(
            &figure("a scrape of the metrics; 100 volumes"),
            &format!("{:.2} ms", scrape_many / 1000.0),
            &format!("{:.2} ms", scrape_few / 1000.0),
            &times(scrape_many / scrape_few),
            "≤ 10 ms",
        ),
        Row::alone(&figure("memory a volume"), &format!("{a_volume} B"), ""),
        Row::alone(
            &figure(&format!("a List of {}", mebibytes(size as u64))),
            &format!("{:.0} ms", list / 1000.0),
            "",
        ),
        Row::alone(&figure("memory for three Lists, at the most"), &mebibytes(peak), ""),
    ]
}

/// Starts volhost and ends it again; returns how long it took until it was ready, in microseconds.
pub(crate) fn started(root: &Root) -> f64 {
    let process = root.start();
    let start = micros(process.start);
    process.terminate();
    start
}

/// Writes volumes into the catalog of a volhost that does not run.
pub(crate) fn populate(runtime: &tokio::runtime::Runtime, root: &Root, volumes: u64) {
    let catalog = sqlite::open(&root.catalog()).expect("volhost made it");
    runtime.block_on(async {
        let mut queued = Vec::new();
        for index in 0..volumes {
            queued.push(catalog.submit(Change::Insert(new_volume(index))));
            if queued.len() == 1000 || index + 1 == volumes {
                for inserted in queued.drain(..) {
                    inserted.await.expect("the catalog takes it");
                }
            }
        }
        catalog.close().await;
    });
}

/// The volume of [`load::name`], before it is visible.
pub(crate) fn new_volume(index: u64) -> Volume {
    Volume {
        id: VolumeId::random(),
        name: VolumeName::parse(&load::name(index)).expect("it is valid"),
        backend: BackendName::parse("default").expect("it is valid"),
        options: Options::default(),
        created_at: OffsetDateTime::now_utc(),
        adopted: false,
        known_to: vec![HostName::parse("bench").expect("it is valid")],
        mounts: Ledger::default(),
        visible: false,
        unconfirmed: None,
    }
}

/// Idle memory, the second start, and how soon a changed backend map is in force.
pub(crate) fn process(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    const STARTS: usize = 10;
    const CHANGES: usize = 50;
    let root = Root::new(directory.join("root"));
    let map = |mountpoint: &str| {
        let path = root.path("var/lib/volhost/volumes");
        let text = serde_json::json!({ "default": { "path": path, "mountpoint": mountpoint } }).to_string();
        let new = root.path("etc/volhost/backends.new");
        std::fs::write(&new, text).expect("the map can be written");
        std::fs::rename(new, root.path("etc/volhost/backends.json")).expect("the map can be renamed");
    };
    root.start().terminate();
    map("/mnt/0");
    let mut starts: Vec<_> = (0..STARTS).map(|_| started(&root)).collect();
    let volhost = root.start();
    std::thread::sleep(Duration::from_secs(2));
    let idle = volhost.memory();
    let client = Client::new(&root.pki());
    let mut changes = runtimes.alone.block_on(async {
        let mut connection = client.connect(volhost.address).await;
        create_one(&mut connection, load::name(0)).await;
        let mut changes = Vec::new();
        for change in 1..=CHANGES {
            let began = Instant::now();
            map(&format!("/mnt/{change}"));
            let expected = format!(r#""Mountpoint":"/mnt/{change}/"#);
            while !String::from_utf8_lossy(&load::get(&mut connection, 0).await).contains(&expected) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            changes.push(micros(began.elapsed()));
        }
        changes
    });
    let start = median(&mut starts);
    let usual = median(&mut changes);
    let late = changes.get(CHANGES * 99 / 100).copied().unwrap_or_default();
    vec![
        Row::alone("idle memory, resident", &mebibytes(idle.resident), "≤ 12 MiB"),
        Row::alone("idle memory, without files' pages", &mebibytes(idle.anonymous), ""),
        Row::alone("a second start, to ready", &format!("{:.1} ms", start / 1000.0), "≤ 50 ms"),
        Row::alone("a changed backend map in force, p50", &format!("{:.0} ms", usual / 1000.0), ""),
        Row::alone("a changed backend map in force, p99", &format!("{:.0} ms", late / 1000.0), ""),
    ]
}

/// The processor time, in microseconds, of a Get over connections that stand.
pub(crate) async fn kept_alive(client: &Client, process: &Process, volumes: u64, time: Duration) -> f64 {
    let connections = client.connect_all(process.address, CLIENTS).await;
    let (connections, _) = load::gets(connections, volumes, Duration::from_millis(200)).await;
    let before = process.cpu();
    let (connections, calls) = load::gets(connections, volumes, time).await;
    let taken = process.cpu() - before;
    drop(connections);
    micros(taken) / calls.len() as f64
}

/// Measures two by turns: the median of those with `true`, and of those with `false`.
pub(crate) fn by_turns(mut measure: impl FnMut(bool) -> f64) -> (f64, f64) {
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        ours.push(measure(true));
        floor.push(measure(false));
    }
    (median(&mut ours), median(&mut floor))
}

/// The middle one; sorts them.
pub(crate) fn median(figures: &mut [f64]) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let half = figures.len() / 2;
    match (figures.get(half), half.checked_sub(1).and_then(|below| figures.get(below))) {
        (Some(above), Some(below)) if figures.len().is_multiple_of(2) => f64::midpoint(*above, *below),
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn times(ratio: f64) -> String {
    format!("{ratio:.2}")
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
