//! What a machine that volhost runs on is called: chosen once, kept, and nobody else's.

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::Client;
use crate::harness::wait::{SOON, until};

fn named(daemon: &Daemon<'_>, node: Option<&str>) {
    let path = daemon.path("etc/volhost/volhost.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    match node {
        Some(node) => config["node"] = json!(node),
        None => drop(config.as_object_mut().unwrap().remove("node")),
    }
    daemon.put("etc/volhost/volhost.json", &config.to_string());
}

fn mount(client: &mut Client, id: &str) -> Result<(), String> {
    let answer = client.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": id })).unwrap();
    if answer.status == 200 { Ok(()) } else { Err(answer.err()) }
}

fn unmount(client: &mut Client, id: &str) {
    let answer = client.call("/VolumeDriver.Unmount", &json!({ "Name": "db", "ID": id })).unwrap();
    assert_eq!(answer.status, 200);
}

fn holders(daemon: &Daemon<'_>) -> Vec<(String, String)> {
    daemon.mounts().into_iter().map(|mount| (mount.host, mount.id)).collect()
}

fn held(by: &str, ids: &[&str]) -> Vec<(String, String)> {
    ids.iter().map(|id| (by.to_owned(), (*id).to_owned())).collect()
}

#[test]
fn a_hostname_that_changes_changes_nothing_and_node_takes_the_mounts_along() {
    let mut daemon = Daemon::start();
    let create = json!({ "Name": "db", "Opts": { "access": "exclusive" } });
    assert_eq!(daemon.unix().call("/VolumeDriver.Create", &create).unwrap().status, 200);
    mount(&mut daemon.unix(), "a").unwrap();
    mount(&mut daemon.tls(), "b").unwrap();
    let certificate = std::fs::read(daemon.identity().cert).unwrap();

    // Its name is not said any more, and the hostname is another one.
    named(&daemon, None);
    daemon.restart();
    assert!(daemon.log().contains("it is still called node1 here"), "{}", daemon.log());
    assert_eq!(daemon.status()["node"], "node1");
    assert_eq!(std::fs::read(daemon.identity().cert).unwrap(), certificate);
    assert_eq!(daemon.status()["needs_restart"], json!([]));
    daemon.cli(&["reload"]).ok();
    assert_eq!(daemon.status()["needs_restart"], json!([]));
    mount(&mut daemon.unix(), "c").expect("it holds it");
    assert_eq!(holders(&daemon), held("node1", &["a", "b", "c"]));

    // What the engine of this machine has read, it goes on with.
    let before = daemon.identity();
    let kept = daemon.path("kept");
    std::fs::create_dir(&kept).unwrap();
    let keep = |path: &std::path::Path, name: &str| {
        std::fs::copy(path, kept.join(name)).unwrap();
        kept.join(name)
    };
    let old = crate::harness::http::Identity {
        ca: keep(&before.ca, "ca"),
        cert: keep(&before.cert, "cert"),
        key: keep(&before.key, "key"),
    };
    named(&daemon, Some("node2"));
    until("the change to be noticed", SOON, || {
        (daemon.status()["needs_restart"] == json!(["node"])).then_some(())
    });
    daemon.restart();
    assert_eq!(holders(&daemon), held("node2", &["a", "b", "c"]));
    assert!(daemon.log().contains("is called node2 from now on"), "{}", daemon.log());
    let mut engine = daemon.connect(&old).unwrap();
    unmount(&mut engine, "b");
    mount(&mut engine, "d").expect("it is the same machine");
    unmount(&mut daemon.unix(), "a");
    mount(&mut daemon.tls(), "e").expect("it is the same machine");
    assert_eq!(holders(&daemon), held("node2", &["c", "d", "e"]));
    daemon.restart();
    assert_eq!(holders(&daemon), held("node2", &["c", "d", "e"]));
}

#[test]
fn neither_a_machines_name_nor_a_host_that_is_there_is_given_to_another() {
    let mut daemon = Daemon::start();
    let add = |daemon: &Daemon<'_>, verb: &str, name: &str| {
        let bundle = daemon.path(&format!("{verb}-{name}.tar"));
        let words = ["host", verb, name, "--advertise", "https://store1:7443", "--force", "-o"];
        daemon.cli(&[&words[..], &[bundle.to_str().unwrap()]].concat())
    };
    let refused = add(&daemon, "add", "node1").fails();
    assert!(refused.contains("node1 is the name of a machine that volhost runs on"), "{refused}");
    add(&daemon, "add", "web1").ok();
    let refused = add(&daemon, "add", "web1").fails();
    assert!(refused.contains("`volhost host renew web1`"), "{refused}");
    add(&daemon, "renew", "web1").ok();
    daemon.cli(&["host", "revoke", "web1"]).ok();
    add(&daemon, "add", "web1").ok();

    named(&daemon, Some("node2"));
    daemon.restart();
    for verb in ["add", "renew"] {
        let refused = add(&daemon, verb, "node1").fails();
        assert!(refused.contains("a name that machine node2 gave up"), "{refused}");
    }
    daemon.cli(&["host", "revoke", "node1"]).ok();
    add(&daemon, "add", "node1").ok();
}

#[cfg(feature = "etcd")]
mod shared {
    use std::time::Instant;

    use super::*;
    use crate::harness::etcd::Cluster;
    use crate::harness::fleet::Fleet;

    #[test]
    fn two_machines_of_one_name_do_not_serve_at_once() {
        let mut fleet = Fleet::of(Cluster::single().start(), 2).prepare();
        fleet.instances[0].start_again();
        named(&fleet.instances[1], Some("store1"));
        let status = fleet.instances[1].start_with(&[]).unwrap_err();
        let log = fleet.instances[1].log();
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("is served by another machine called store1"), "{log}");
        assert!(log.contains("waiting for the name store1"), "{log}");

        // One that was killed is back at once, and another machine may have its name once it cannot live any more.
        let begun = Instant::now();
        fleet.instances[0].restart();
        assert!(begun.elapsed().as_secs() < 12, "it waited for itself: {:?}", begun.elapsed());
        fleet.instances[0].kill9();
        fleet.instances[1].start_again();
        assert!(fleet.instances[1].log().contains("was another machine's until now"));
        // The first one comes back, finds its name taken, and is given another.
        assert_eq!(fleet.instances[0].start_with(&[]).unwrap_err().code(), Some(1));
        named(&fleet.instances[0], Some("store3"));
        fleet.instances[0].start_again();
    }
}
