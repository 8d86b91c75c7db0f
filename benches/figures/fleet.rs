//! What a fleet asks of one volhost: mounts, and many hosts at once.

use std::path::Path;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tokio::runtime::Runtime;
use volhost::catalog::{Catalog as _, Change, sqlite};
use volhost::model::host::HostName;
use volhost::model::volume::MountId;

use crate::floor::Durable;
use crate::load::{self, Client};
use crate::process::Root;
use crate::subjects::{Row, by_turns, create_one, mebibytes, populate, times};

/// Mount and Unmount, durable, and what many mounts take of memory.
pub(crate) fn mount(runtime: &Runtime, directory: &Path, volumes: u64) -> Vec<Row> {
    const EACH: u32 = 200;
    let root = Root::new(directory.join("root"));
    let volhost = root.start();
    let mut durable = Durable::new(&directory.join("floor"));
    let mut connection = runtime.block_on(Client::new(&root.pki()).connect(volhost.address));
    runtime.block_on(create_one(&mut connection, "db".into()));
    let (ours, floor) = by_turns(|turn| {
        let began = Instant::now();
        for _ in 0..EACH {
            if turn {
                for rpc in ["Mount", "Unmount"] {
                    let (rpc, body) = (format!("/VolumeDriver.{rpc}"), r#"{"Name":"db","ID":"c1"}"#.into());
                    runtime.block_on(load::call(&mut connection, &rpc, body));
                }
            } else {
                durable.mount_and_unmount();
            }
        }
        f64::from(EACH) / began.elapsed().as_secs_f64()
    });
    let mounts = volumes / 10;
    let (without, with) = mounted(runtime, &Root::new(directory.join("mounted")), volumes, mounts);
    vec![
        Row::new(
            "Mounts and Unmounts a second, one client; two durable SQLite transactions",
            &format!("{ours:.0}/s"),
            &format!("{floor:.0}/s"),
            &times(ours / floor),
            "",
        ),
        Row::new(
            &format!("{volumes} volumes, {mounts} mounts: memory without files' pages; without mounts"),
            &mebibytes(with),
            &mebibytes(without),
            &times(with as f64 / without as f64),
            "",
        ),
    ]
}

/// The memory that volumes take before and after some of them are mounted.
fn mounted(runtime: &Runtime, root: &Root, volumes: u64, mounts: u64) -> (u64, u64) {
    root.start().terminate();
    populate(runtime, root, volumes);
    let memory = || {
        let volhost = root.start();
        std::thread::sleep(Duration::from_secs(1));
        let memory = volhost.memory().anonymous;
        volhost.terminate();
        memory
    };
    let without = memory();
    runtime.block_on(async {
        let catalog = sqlite::open(&root.catalog()).expect("volhost made it");
        let view = catalog.view();
        let every = (volumes / mounts.max(1)).max(1);
        let mut queued = Vec::new();
        for (number, volume) in
            (0..volumes).zip(view.volumes.values()).filter(|(number, _)| number % every == 0)
        {
            queued.push(catalog.submit(Change::Mount {
                name: volume.name.clone(),
                volume: volume.id,
                host: HostName::parse(&format!("host{}", number % 50)).expect("it is valid"),
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
    (without, memory())
}

/// The slowest of a hundred Gets while many hosts ask at once, and while one asks as much.
pub(crate) fn hosts(runtime: &Runtime, directory: &Path) -> Vec<Row> {
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
    runtime.block_on(async {
        create_one(&mut one.connect(volhost.address).await, load::name(0)).await;
    });
    let (many, single) = by_turns(|turn| {
        runtime.block_on(async {
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
    let alone = runtime
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
