//! Cloned hosts: one bundle on two machines, told by the addresses that they call from.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::{Client, Identity};
use crate::harness::wait::{SOON, until};

const ADVERTISE: [&str; 2] = ["--advertise", "https://127.0.0.1:7443"];

/// A connection from one of the loopback network's addresses, each of which stands for a machine.
pub(crate) fn from(daemon: &Daemon<'_>, last: u8, identity: &Identity) -> Client {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0))).unwrap();
    connect(&socket, &daemon.tcp("https")).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SOON)).unwrap();
    Client::tls(stream, &identity.ca, Some(identity)).expect("the handshake succeeds")
}

fn list(client: &mut Client) {
    assert_eq!(client.call("/VolumeDriver.List", &json!({})).unwrap().status, 200);
}

fn activate(client: &mut Client) {
    assert_eq!(client.call("/Plugin.Activate", &json!({})).unwrap().status, 200);
    // It is recorded behind the answer, in the order of what comes after it.
    let body = json!({ "Name": "order", "ID": "x" });
    assert_eq!(client.call("/VolumeDriver.Unmount", &body).unwrap().status, 200);
}

/// Mounts the exclusive volume; what kept it from that.
fn mount(client: &mut Client, id: &str) -> Result<(), String> {
    let answer = client.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": id })).unwrap();
    if answer.status == 200 { Ok(()) } else { Err(answer.err()) }
}

fn host_row(daemon: &Daemon<'_>, name: &str) -> Value {
    let rows = daemon.cli(&["host", "ls", "--json"]).json();
    rows.as_array().unwrap().iter().find(|row| row["name"] == name).cloned().unwrap()
}

fn cloned(daemon: &Daemon<'_>) -> Vec<String> {
    let row = host_row(daemon, "web1");
    if row["cloned"] == false {
        return Vec::new();
    }
    row["addresses"].as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
}

fn stale(daemon: &Daemon<'_>) -> usize {
    daemon.mounts().iter().filter(|mount| mount.stale).count()
}

fn told(daemon: &Daemon<'_>, words: &str) -> usize {
    daemon.log().lines().filter(|line| line.contains(words)).count()
}

/// A volume that a machine has mounted, and another machine with the same bundle that called meanwhile.
fn in_use(daemon: &Daemon<'_>) -> Identity {
    let identity = daemon.add_host("web1", &ADVERTISE, &daemon.path("web1"));
    let (mut one, mut other) = (from(daemon, 2, &identity), from(daemon, 3, &identity));
    let create = json!({ "Name": "db", "Opts": { "access": "exclusive" } });
    assert_eq!(one.call("/VolumeDriver.Create", &create).unwrap().status, 200);
    mount(&mut one, "first").unwrap();
    activate(&mut other);
    assert_eq!(stale(daemon), 1, "one call of another machine is no sign yet");
    list(&mut one);
    until("the clone to be noticed", SOON, || (cloned(daemon) == ["127.0.0.2", "127.0.0.3"]).then_some(()));
    identity
}

#[test]
fn a_cloned_host_is_told_and_an_exclusive_volume_stays_with_one_machine_until_its_addresses_are_listed() {
    let mut daemon = Daemon::start();
    let identity = in_use(&daemon);
    let (mut one, mut other) = (from(&daemon, 2, &identity), from(&daemon, 3, &identity));
    for _ in 0..5 {
        list(&mut other);
        list(&mut one);
    }
    assert_eq!(told(&daemon, "host web1 is cloned"), 1, "{}", daemon.log());
    assert_eq!(daemon.status()["cloned_hosts"], json!(["web1"]));
    let status = daemon.cli(&["status"]).ok();
    assert!(status.contains("web1: several machines use one certificate"), "{status}");
    let table = daemon.cli(&["host", "ls"]).ok();
    assert!(table.contains("127.0.0.2, 127.0.0.3"), "{table}");

    // Nothing is called stale, however often either engine is started, and nothing is freed by that word.
    activate(&mut other);
    activate(&mut one);
    assert_eq!(stale(&daemon), 0);
    daemon.cli(&["host", "release", "web1", "--yes"]).fails();
    assert_eq!(daemon.mounts().len(), 1);

    for _ in 0..2 {
        let refused = mount(&mut from(&daemon, 3, &identity), "second").unwrap_err();
        for word in
            ["db", "web1", "127.0.0.2", "127.0.0.3", "\"addresses\" of web1", "`volhost host renew web1`"]
        {
            assert!(refused.contains(word), "no {word} in {refused}");
        }
        mount(&mut from(&daemon, 2, &identity), "another").unwrap();
        let of_first: Vec<_> = daemon.cli(&["mount", "ls", "--json"]).json().as_array().unwrap().clone();
        assert!(of_first.iter().all(|row| row["address"] == "127.0.0.2"), "{of_first:?}");
        // It is remembered.
        daemon.restart();
    }
    assert_eq!((cloned(&daemon).len(), stale(&daemon)), (2, 0));

    let mut config: Value =
        serde_json::from_slice(&std::fs::read(daemon.path("etc/volhost/volhost.json")).unwrap()).unwrap();
    config["hosts"] = json!({ "web1": { "addresses": ["127.0.0.2/31", "fd00::/64"] }, "*": {} });
    daemon.put("etc/volhost/volhost.json", &config.to_string());
    daemon.cli(&["reload"]).ok();
    until("the clones to be one machine", SOON, || cloned(&daemon).is_empty().then_some(()));
    let (mut one, mut other) = (from(&daemon, 2, &identity), from(&daemon, 3, &identity));
    mount(&mut other, "second").unwrap();
    for _ in 0..3 {
        list(&mut one);
        list(&mut other);
    }
    assert_eq!(cloned(&daemon), Vec::<String>::new());
    // A machine that is not listed is another one all the same.
    until("the clone to be noticed", SOON, || {
        list(&mut from(&daemon, 9, &identity));
        list(&mut one);
        (cloned(&daemon).len() == 2).then_some(())
    });
    assert!(mount(&mut from(&daemon, 9, &identity), "third").is_err());
}

#[test]
fn a_certificate_of_its_own_for_one_of_the_machines_ends_it_once_it_is_in_use() {
    let daemon = Daemon::start();
    let old = in_use(&daemon);
    let new = daemon.add_host("web1", &ADVERTISE, &daemon.path("renewed"));
    assert_eq!(cloned(&daemon).len(), 2, "nobody uses it yet");
    assert!(mount(&mut from(&daemon, 3, &old), "second").is_err());
    mount(&mut from(&daemon, 3, &new), "second").unwrap();
    let (mut one, mut other) = (from(&daemon, 2, &old), from(&daemon, 3, &new));
    for _ in 0..3 {
        list(&mut one);
        list(&mut other);
    }
    assert_eq!((cloned(&daemon).len(), stale(&daemon)), (0, 0));
    assert_eq!(told(&daemon, "host web1 does not count as cloned any more"), 1);
    // One of them went back to the certificate of both.
    until("the clone to be noticed", SOON, || {
        list(&mut from(&daemon, 3, &old));
        list(&mut one);
        (cloned(&daemon).len() == 2).then_some(())
    });
}

#[test]
fn a_host_that_moved_is_no_clone() {
    let daemon = Daemon::start();
    let identity = daemon.add_host("web1", &ADVERTISE, &daemon.path("web1"));
    for last in [2, 2, 3, 3, 4, 4] {
        list(&mut from(&daemon, last, &identity));
    }
    until("the last address", SOON, || {
        (host_row(&daemon, "web1")["addresses"] == json!(["127.0.0.4"])).then_some(())
    });
    assert_eq!(cloned(&daemon), Vec::<String>::new());
    assert_eq!(daemon.status()["cloned_hosts"], json!([]));
}
