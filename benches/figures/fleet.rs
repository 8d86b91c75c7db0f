//! What a fleet asks of one volhost: mounts, and many hosts at once.

use std::path::Path;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use volhost::catalog::{Catalog as _, Change, sqlite};
use volhost::model::host::HostName;
use volhost::model::volume::{MountId, VolumeName};

use crate::floor::Durable;
use crate::load::{self, Client, Connection, Runtimes};
use crate::process::{Process, Root};
use crate::subjects::{Row, by_turns, create_one, mebibytes, micros, populate, times};

/// How long one turn of Mounts and Unmounts is.
const TURN: Duration = Duration::from_millis(1500);

/// Mount and Unmount, durable, and what many mounts take of memory.
pub(crate) fn mount(runtimes: &Runtimes, directory: &Path, volumes: u64) -> Vec<Row> {
    const EACH: u32 = 200;
    let root = Root::new(directory.join("root"));
    let volhost = root.start();
    let durable = Durable::new(&directory.join("floor"));
    let mut connection = runtimes.alone.block_on(Client::new(&root.pki()).connect(volhost.address));
    runtimes.alone.block_on(create_one(&mut connection, "db".into()));
    let (ours, floor) = by_turns(|turn| {
        let began = Instant::now();
        for _ in 0..EACH {
            if turn {
                runtimes.alone.block_on(mount_and_unmount(&mut connection, "db"));
            } else {
                durable.mount_and_unmount();
            }
        }
        f64::from(EACH) / began.elapsed().as_secs_f64()
    });
    let mounts = volumes / 10;
    let (without, with) = mounted(runtimes, &Root::new(directory.join("mounted")), volumes, mounts);
    let mut rows = vec![
        Row::new(
            "Mounts and Unmounts a second, one client; two durable SQLite transactions",
            &format!("{ours:.0}/s"),
            &format!("{floor:.0}/s"),
            &times(ours / floor),
            "≥ 0.6",
        ),
        Row::new(
            &format!("{volumes} volumes, {mounts} mounts: memory without files' pages; without mounts"),
            &mebibytes(with),
            &mebibytes(without),
            &times(with as f64 / without as f64),
            "",
        ),
    ];
    rows.extend(long_ledger(runtimes, &Root::new(directory.join("ledger"))));
    rows
}

/// Mounts a volume and unmounts it again.
pub(crate) async fn mount_and_unmount(connection: &mut Connection, name: &str) {
    // As long as engines' IDs are.
    let id = "c".repeat(64);
    for rpc in ["/VolumeDriver.Mount", "/VolumeDriver.Unmount"] {
        load::call(connection, rpc, format!(r#"{{"Name":"{name}","ID":"{id}"}}"#)).await;
    }
}

/// The memory that volumes take before and after some of them are mounted.
fn mounted(runtimes: &Runtimes, root: &Root, volumes: u64, mounts: u64) -> (u64, u64) {
    root.start().terminate();
    populate(&runtimes.alone, root, volumes);
    let memory = || {
        let (volhost, memory) = settled(root);
        volhost.terminate();
        memory
    };
    let without = memory();
    let every = (volumes / mounts.max(1)).max(1);
    let numbers = (0..volumes).step_by(usize::try_from(every).expect("it fits"));
    record_mounts(runtimes, root, numbers.map(|number| (load::name(number), number % 50)));
    (without, memory())
}

/// A volume with many mounts of one host: what a Mount costs there, and what its ledger takes of memory.
fn long_ledger(runtimes: &Runtimes, root: &Root) -> [Row; 2] {
    const MOUNTS: u64 = 50_000;
    let (volhost, client) = (root.start(), Client::new(&root.pki()));
    runtimes.alone.block_on(async {
        let mut connection = client.connect(volhost.address).await;
        for name in ["few", "many"] {
            create_one(&mut connection, name.into()).await;
        }
    });
    volhost.terminate();
    let (volhost, without) = settled(root);
    volhost.terminate();
    record_mounts(runtimes, root, (0..MOUNTS).map(|_| ("many".into(), 0)));
    let (volhost, with) = settled(root);
    let mut connection = runtimes.alone.block_on(client.connect(volhost.address));
    let (many, none) = by_turns(|turn| {
        let name = if turn { "many" } else { "few" };
        let (before, began, mut pairs) = (volhost.cpu(), Instant::now(), 0_u32);
        while began.elapsed() < TURN {
            runtimes.alone.block_on(mount_and_unmount(&mut connection, name));
            pairs += 1;
        }
        micros(volhost.cpu() - before) / f64::from(pairs)
    });
    let each = with.saturating_sub(without) / MOUNTS;
    [
        Row::new(
            "CPU of a Mount and Unmount of a volume that has 50000 mounts; that has none",
            &format!("{many:.0} µs"),
            &format!("{none:.0} µs"),
            &times(many / none),
            "≤ 1.2",
        ),
        Row::alone("memory of 50000 mounts of one volume, each", &format!("{each} B"), ""),
    ]
}

/// Starts volhost; returns it, and its memory without files' pages once it is idle.
fn settled(root: &Root) -> (Process, u64) {
    let volhost = root.start();
    std::thread::sleep(Duration::from_secs(1));
    let memory = volhost.memory().anonymous;
    (volhost, memory)
}

/// Writes mounts into the catalog of a volhost that does not run: of which volume, and the number of a host.
fn record_mounts(runtimes: &Runtimes, root: &Root, mounts: impl Iterator<Item = (String, u64)>) {
    let catalog = sqlite::open(&root.catalog()).expect("volhost made it");
    let view = catalog.view();
    runtimes.alone.block_on(async {
        let mut queued = Vec::new();
        for (number, (name, host)) in mounts.enumerate() {
            let name = VolumeName::parse(&name).expect("it is valid");
            queued.push(catalog.submit(Change::Mount {
                volume: view.volumes.get(&name).expect("it was created").id,
                name,
                host: HostName::parse(&format!("host{host}")).expect("it is valid"),
                // As engines make them.
                id: MountId::parse(&format!("{number:064x}")).expect("it is valid"),
                address: None,
                at: OffsetDateTime::now_utc(),
                again: false,
            }));
        }
        for mounted in queued {
            mounted.await.expect("the catalog takes it");
        }
        catalog.close().await;
    });
}

/// The slowest of a hundred Gets while many hosts ask at once, and while one asks as much.
pub(crate) fn hosts(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    const HOSTS: usize = 200;
    const TIME: Duration = Duration::from_millis(1500);
    let root = Root::new(directory.join("root"));
    let volhost = root.start();
    let one = Client::new(&root.pki());
    let all: Vec<_> =
        (0..HOSTS).map(|number| Client::joining(&root.pki(), &format!("host{number}"))).collect();
    let late = |mut taken: Vec<f64>| {
        taken.sort_unstable_by(f64::total_cmp);
        taken.get(taken.len() * 99 / 100).copied().unwrap_or_default()
    };
    runtimes.alone.block_on(async {
        create_one(&mut one.connect(volhost.address).await, load::name(0)).await;
    });
    let (many, single) = by_turns(|turn| {
        runtimes.many.block_on(async {
            let connections = if turn {
                let mut connections = Vec::new();
                for host in &all {
                    connections.push(host.connect(volhost.address).await);
                }
                connections
            } else {
                one.connect_all(volhost.address, HOSTS).await
            };
            late(load::gets(connections, 1, TIME).await.1)
        })
    });
    let alone = runtimes
        .alone
        .block_on(async { late(load::gets(one.connect_all(volhost.address, 1).await, 1, TIME).await.1) });
    let show = |micros: f64| format!("{:.2} ms", micros / 1000.0);
    vec![
        Row::new(
            &format!("p99 of a Get, {HOSTS} hosts with a connection each; one host with {HOSTS}"),
            &show(many),
            &show(single),
            &times(many / single),
            "",
        ),
        Row::alone("p99 of a Get, one host with one connection", &show(alone), ""),
    ]
}
