//! A catalog in etcd that several instances of volhost share, while etcd is well; `etcd_outages` has the rest. First of all
//! what the harness itself promises of its clusters.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::etcd::{Loss, PREFIX};
use crate::harness::http::{Answer, Client};
use crate::harness::wait::{SOON, until};
use crate::harness::{Cluster, Fleet, Host};

/// Calls an RPC for a volume; the name and an ID are all that the most of them take.
pub(crate) fn call(client: &mut Client, rpc: &str, name: &str, id: &str) -> Answer {
    let body = if rpc == "Create" { json!({ "Name": name }) } else { json!({ "Name": name, "ID": id }) };
    client.volume(rpc, &body).unwrap_or_else(|e| panic!("{rpc} of {name}: {e}"))
}

/// The same, for what has to succeed: what was answered.
#[track_caller]
pub(crate) fn ok(client: &mut Client, rpc: &str, name: &str, id: &str) -> Value {
    let answer = call(client, rpc, name, id);
    assert_eq!(answer.status, 200, "{rpc} of {name}: {}", answer.err());
    answer.json()
}

/// The same, for what has to be refused: the reason.
#[track_caller]
pub(crate) fn refused(client: &mut Client, rpc: &str, name: &str, id: &str) -> String {
    let answer = call(client, rpc, name, id);
    assert_ne!(answer.status, 200, "{rpc} of {name} was not refused: {}", answer.json());
    answer.err()
}

#[test]
fn a_cluster_of_three_keeps_what_it_holds_through_the_loss_of_members() {
    let mut etcd = Cluster::three().tls().user("volhost", "secret").start();
    etcd.put("/volhost/a", "1");
    etcd.put("elsewhere", "2");
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(etcd.get("/volhost/"), [pair("/volhost/a", "1")]);

    // The instances' user is limited to the catalog, and known by its password alone.
    let as_instance = |password: &str, words: &[&str]| etcd.ctl_as_instance(password, words);
    as_instance("secret", &["put", "/volhost/b", "3"]).ok();
    assert!(as_instance("secret", &["get", "elsewhere"]).fails().contains("permission denied"));
    assert!(as_instance("wrong", &["get", "/volhost/b"]).fails().contains("authentication failed"));
    etcd.change_password("another");
    as_instance("another", &["get", "/volhost/b"]).ok();
    as_instance("secret", &["get", "/volhost/b"]).fails();

    let leader = etcd.leader();
    etcd.kill(leader);
    assert_ne!(etcd.leader(), leader);
    etcd.put("/volhost/a", "4");
    etcd.start(leader);
    etcd.wait_until_healthy();
    let follower = (etcd.leader() + 1) % etcd.size();
    etcd.freeze(follower);
    etcd.put("/volhost/c", "5");
    etcd.thaw(follower);
    etcd.wait_until_healthy();

    for loss in [Loss::Frozen, Loss::Killed] {
        etcd.lose_quorum(loss);
        etcd.ctl(&["--command-timeout=500ms", "get", "/volhost/a"]).fails();
        etcd.recover();
    }
    assert_eq!(etcd.keys(&format!("/{PREFIX}/")), ["/volhost/a", "/volhost/b", "/volhost/c"]);
    let before = etcd.revision();
    etcd.compact();
    assert!(etcd.ctl(&["get", "/volhost/a", &format!("--rev={}", before - 1)]).fails().contains("compacted"));
    etcd.del("/volhost/c");
    assert_eq!((etcd.revision(), etcd.get("/volhost/c")), (before + 1, vec![]));

    // Clients of both authorities are let in until the present one is retired.
    etcd.replace_client_certificate();
    etcd.put("/volhost/a", "6");
    etcd.retire();
    assert_eq!(etcd.get("/volhost/a"), [pair("/volhost/a", "6")]);
}

#[test]
fn clusters_do_not_meet_and_one_member_comes_back_by_itself() {
    let mut first = Cluster::single().start();
    let second = Cluster::single().start();
    assert_ne!(first.addresses(), second.addresses());
    first.put("/volhost/a", "1");
    assert_eq!(second.keys(""), [""; 0]);
    first.restart();
    assert_eq!(first.keys(""), ["/volhost/a"]);
    assert_eq!((first.credentials(), second.leader()), (None, 0));
}

#[test]
fn what_is_sent_to_or_by_a_machine_that_is_cut_off_vanishes() {
    let (store, web1) = (Host::new("store"), Host::new("web1"));
    web1.join(&store);
    let mut etcd = Cluster::three().on(&store).start();
    let address = etcd.addresses()[0];
    let dial = || {
        let dialed = web1.spawn(move || TcpStream::connect_timeout(&address, Duration::from_secs(2)));
        dialed.join().unwrap().map(drop).map_err(|e| e.kind())
    };
    assert_eq!(dial(), Ok(()));
    for cut in [Host::cut, Host::deafen] {
        cut(&web1, &store);
        assert_eq!(dial(), Err(io::ErrorKind::TimedOut));
        // Neither the members nor the machine itself are concerned.
        etcd.put("/volhost/a", "1");
        let own = web1.listen([127, 0, 0, 1].into());
        web1.dial(own.local_addr().unwrap()).unwrap();
        web1.heal(&store);
        assert_eq!(dial(), Ok(()));
    }
    etcd.freeze(0);
    etcd.kill(1);
    etcd.recover();
    assert_eq!(etcd.keys("/volhost/"), ["/volhost/a"]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn one_instance_keeps_everything_in_a_single_member() {
    let mut fleet = Fleet::of(Cluster::single().start(), 1).start();
    let mut client = fleet.client(0, "web1");
    let opts = json!({ "Name": "db", "Opts": { "mode": "0711" } });
    assert_eq!(client.volume("Create", &opts).unwrap().status, 200);
    ok(&mut client, "Mount", "db", "one");
    for rpc in ["Create", "Mount", "Unmount", "Remove"] {
        ok(&mut client, rpc, "gone", "one");
    }
    let told = |client: &mut Client| {
        (["Get", "Path"].map(|rpc| ok(client, rpc, "db", "")), ok(client, "List", "", ""))
    };
    let before = told(&mut client);
    assert_eq!(before.1["Volumes"].as_array().unwrap().len(), 1);
    assert!(fleet.volumes().join("db").is_dir() && !fleet.volumes().join("gone").exists());
    let keys = fleet.etcd.keys("");
    assert!(!keys.is_empty() && keys.iter().all(|key| key.starts_with("/volhost/")), "{keys:?}");

    for killed in [false, true] {
        if !killed {
            assert_eq!(fleet.instances[0].terminate().code(), Some(0), "{}", fleet.instances[0].log());
            fleet.instances[0].start_again();
        } else {
            fleet.instances[0].restart();
        }
        client = fleet.client(0, "web1");
        assert_eq!(told(&mut client), before);
        fleet.instances[0].has_mounts(&[("db", "web1", false)]);
        assert!(refused(&mut client, "Get", "gone", "").contains("gone"));
        fleet.instances[0].agrees_with(&fleet.volumes());
    }

    // What a prefix begins with another catalog's is no part of that one.
    let other = fleet.volumes().with_file_name("other");
    fs::create_dir(&other).unwrap();
    let setup = fleet.setup(1, "volhost-2", &json!({})).backends(&json!({ "default": other }));
    let second = setup.start();
    assert_eq!(second.volumes(), [""; 0]);
    ok(&mut second.unix(), "Create", "db", "");
    assert!(other.join("db").is_dir());
    assert_eq!(second.volumes(), ["db"]);
    second.has_mounts(&[]);

    ok(&mut client, "Unmount", "db", "one");
    ok(&mut client, "Remove", "db", "one");
    assert_eq!(ok(&mut client, "List", "", ""), json!({ "Volumes": [] }));
    assert_eq!(second.volumes(), ["db"]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn an_instance_waits_for_its_catalog_before_it_listens() {
    let mut fleet = Fleet::of(Cluster::single().start(), 1).prepare();
    let catalog = fleet.etcd.catalog(PREFIX);
    for loss in [Loss::Killed, Loss::Frozen] {
        fleet.etcd.lose(0, loss);
        let daemon = &mut fleet.instances[0];
        let before = daemon.log().len();
        daemon.launch();
        until("the log to tell what is waited for", SOON, || {
            daemon.log()[before..].contains(&catalog).then_some(())
        });
        assert_eq!(daemon.printed(), [""; 0], "{loss:?}");
        fleet.etcd.recover();
        let ready = fleet.instances[0].ready();
        assert!(ready.is_ok(), "{loss:?}: {ready:?}");
        ok(&mut fleet.client(0, "web1"), "Create", "db", "");
        fleet.instances[0].terminate();
    }

    // Who is tired of waiting stops it as ever.
    fleet.etcd.lose(0, Loss::Killed);
    let daemon = &mut fleet.instances[0];
    let before = daemon.log().len();
    daemon.launch();
    until("the log to tell what is waited for", SOON, || {
        daemon.log()[before..].contains(&catalog).then_some(())
    });
    let asked = Instant::now();
    daemon.terminate();
    assert!(asked.elapsed() < SOON, "it took {:?}", asked.elapsed());
}

/// Two instances on a single member.
fn pair() -> Fleet<'static> {
    Fleet::of(Cluster::single().start(), 2).start()
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn what_one_instance_answered_the_other_knows_at_once() {
    let fleet = pair();
    // The same two hosts at both instances, so that either may ask either.
    let mut at = [0, 1].map(|instance| ["web1", "web2"].map(|host| fleet.client(instance, host)));
    for round in 0..200 {
        let (here, there) = (round % 2, (round + 1) % 2);
        let name = format!("db{round}");
        ok(&mut at[here][0], "Create", &name, "");
        let told = ok(&mut at[there][1], "Get", &name, "");
        assert_eq!(told, ok(&mut at[here][0], "Get", &name, ""), "round {round}");
        ok(&mut at[here][0], "Mount", &name, "one");
        let refusal = refused(&mut at[there][1], "Remove", &name, "");
        assert!(refusal.contains("web1"), "round {round}: {refusal}");
        ok(&mut at[there][0], "Unmount", &name, "one");
        ok(&mut at[here][1], "Remove", &name, "");
        // What is known is told from memory, which hears of a removal by itself.
        let refusal = until("the removal to be heard of", SOON, || {
            let answer = call(&mut at[there][0], "Get", &name, "");
            (answer.status != 200).then(|| answer.err())
        });
        assert!(refusal.contains("no such volume"), "{refusal}");
        // Whoever changes anything never meets what is gone.
        refused(&mut at[there][0], "Mount", &name, "one");
    }
    for instance in &fleet.instances {
        assert_eq!(instance.volumes(), [""; 0]);
        instance.has_mounts(&[]);
        instance.agrees_with(&fleet.volumes());
    }
}

/// Has both do the same at once, and says what each was answered.
fn race<T: Send>(at: &mut [Client; 2], work: impl Fn(usize, &mut Client) -> T + Sync) -> [T; 2] {
    let start = Barrier::new(2);
    let [first, second] = at;
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            start.wait();
            work(1, second)
        });
        start.wait();
        let own = work(0, first);
        [own, other.join().unwrap()]
    })
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn a_volume_that_both_are_asked_to_make_is_made_once() {
    let fleet = pair();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web2")];
    for round in 0..50 {
        let name = format!("db{round}");
        // Every other time they are asked for different ones of that name, and only one can have what it wants.
        let differ = round % 2 == 1;
        let answers = race(&mut at, |which, client| {
            let mode = if differ && which == 1 { "0700" } else { "0755" };
            client.volume("Create", &json!({ "Name": name, "Opts": { "mode": mode } })).unwrap()
        });
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        let told: Vec<_> = answers.iter().map(Answer::err).collect();
        assert_eq!(won, if differ { 1 } else { 2 }, "round {round}: {told:?}");
        assert!(!differ || told.concat().contains("mode"), "round {round}: {told:?}");
        let [first, second] = race(&mut at, |_, client| ok(client, "Get", &name, ""));
        assert_eq!(first["Volume"], second["Volume"]);
    }
    for instance in &fleet.instances {
        assert_eq!(instance.volumes().len(), 50);
        instance.agrees_with(&fleet.volumes());
    }
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn of_two_hosts_at_two_instances_exactly_one_gets_an_exclusive_volume() {
    let fleet = pair();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web2")];
    let exclusive = json!({ "Name": "db", "Opts": { "access": "exclusive" } });
    assert_eq!(at[0].volume("Create", &exclusive).unwrap().status, 200);
    for round in 0..50 {
        let answers = race(&mut at, |_, client| call(client, "Mount", "db", "one"));
        let winner = answers.iter().position(|answer| answer.status == 200);
        let winner = winner.unwrap_or_else(|| panic!("round {round}: {answers:?}"));
        let refusal = answers[1 - winner].err();
        assert_ne!(answers[1 - winner].status, 200, "round {round}: both have it");
        assert!(refusal.contains("exclusive") && refusal.contains(["web1", "web2"][winner]), "{refusal}");
        ok(&mut at[winner], "Unmount", "db", "one");
        ok(&mut at[1 - winner], "Mount", "db", "two");
        ok(&mut at[1 - winner], "Unmount", "db", "two");
    }
    fleet.instances[0].has_mounts(&[]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn a_host_that_is_revoked_at_one_instance_is_shut_out_of_the_other_at_once() {
    let fleet = pair();
    let identity = fleet.identity("web2");
    let mut open = [0, 1].map(|instance| fleet.connect(instance, &identity).unwrap());
    ok(&mut open[0], "Create", "db", "");
    ok(&mut open[1], "Mount", "db", "one");
    let mut other = fleet.client(1, "web1");

    fleet.instances[0].cli(&["host", "revoke", "web2"]).ok();
    let revoked = Instant::now();
    for client in &mut open {
        assert!(client.is_closed(), "an open connection outlived the revocation");
    }
    let took = revoked.elapsed();
    assert!(took < SOON, "the revocation took {took:?}");
    for instance in 0..2 {
        let again =
            fleet.connect(instance, &identity).and_then(|mut client| client.volume("List", &json!({})));
        assert!(again.is_err(), "a revoked host was answered: {again:?}");
    }
    ok(&mut other, "Get", "db", "");
    fleet.instances[1].has_mounts(&[("db", "web2", false)]);
}
