//! Tests of the names of machines: no two instances of one name are alive at the same time, and none waits longer than
//! needed for the lease of one that was killed.

use std::time::{Duration, Instant};

use super::*;

async fn try_open(server: &Server, prefix: &str, instance: Instance) -> Result<Etcd, OpenError> {
    let cluster = server.cluster(prefix);
    tokio::task::spawn_blocking(move || open(&cluster, &instance)).await.unwrap()
}

/// Another machine with this name.
fn another(server: &Server, node: &str) -> Instance {
    let instance = server.instance(node);
    Instance { spool: instance.spool.with_file_name(format!("another-{node}")), ..instance }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_begins_beside_a_live_instance_of_its_name() {
    let server = Server::start();
    let one = server.open("names", "store1").await;
    server.open("names", "store2").await.close().await;
    let refused = try_open(&server, "names", another(&server, "store1")).await.map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::Namesake { node, .. } if node == "store1"), "{refused}");
    assert!(!refused.is_configuration() && refused.to_string().contains("set \"node\""), "{refused}");

    // A machine that was copied with its outbox, which says which instance it is.
    let own = server.instance("store1");
    let copy = Instance { spool: own.spool.with_file_name("copy"), ..server.instance("store9") };
    std::fs::create_dir_all(&copy.spool).unwrap();
    for file in std::fs::read_dir(&own.spool).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.spool.join(file.file_name())).unwrap();
    }
    let refused = try_open(&server, "names", copy).await.map(drop).unwrap_err();
    assert!(matches!(&refused, OpenError::Copied { node, .. } if node == "store1"), "{refused}");
    create(&one, "db").await;

    one.close().await;
    drop(one);
    try_open(&server, "names", another(&server, "store1")).await.expect("the name is free").close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_instance_keeps_its_name_from_itself_not_at_all_and_from_others_while_it_may_live() {
    let server = Server::start();
    drop(server.open("killed", "store1").await);
    let begun = Instant::now();
    // The lease of the killed process has not expired.
    drop(server.open("killed", "store1").await);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    try_open(&server, "killed", another(&server, "store1")).await.expect("it is dead by now").close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_nobody_named_is_not_let_in_and_a_name_that_is_kept_is() {
    let server = Server::start();
    let called = |name: &str, configured: bool| Instance {
        candidate_name: CandidateName { name: HostName::parse(name).unwrap(), configured },
        ..server.instance("store1")
    };
    let refused = try_open(&server, "nameless", called("localhost", false)).await.map(drop).unwrap_err();
    assert!(refused.is_configuration() && refused.to_string().contains("set \"node\""), "{refused}");
    let catalog: Arc<dyn Catalog> = opened(server.cluster("nameless"), called("store1", false)).await;
    done(&catalog, Change::Name(catalog.machine(), host("store1"))).await;
    catalog.close().await;
    drop(catalog);
    // The hostname is not set yet.
    try_open(&server, "nameless", called("localhost", false)).await.expect("it has a name").close().await;
    let other = Instance { spool: server.instance("other").spool, ..called("localhost.localdomain", false) };
    assert!(matches!(try_open(&server, "nameless", other).await, Err(OpenError::Nameless { .. })));
}
