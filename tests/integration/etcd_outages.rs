//! A catalog in etcd while members of the cluster, all of it, or the way to it is lost.
//!
//! What was answered holds; what cannot be known is not answered; and when the outage is over everything works by itself.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::etcd::{call, ok, refused};
use crate::harness::authority::Authority;
use crate::harness::etcd::{Loss, PREFIX};
use crate::harness::http::Client;
use crate::harness::state::Mount;
use crate::harness::wait::{SOON, until};
use crate::harness::{Cluster, Daemon, Fleet, Host};

/// The configuration below an instance's root.
const CONFIG: &str = "etc/volhost/volhost.json";

/// How long a request may take while a member of several is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a request may take, where nothing else is configured.
const LIMIT: Duration = Duration::from_secs(20);

/// What a machine that is busy may add to that.
const SLACK: Duration = Duration::from_secs(5);

/// How long what is told from memory may take on such a machine: less than anybody waits for a cluster that is silent.
const FROM_MEMORY: Duration = Duration::from_secs(6);

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn the_loss_of_one_member_of_three_costs_no_request() {
    let etcd = Cluster::three().tls().user("volhost", "secret").start();
    let mut fleet = Fleet::of(etcd, 2).start();
    let clients: Vec<_> = (0..4).map(|worker| fleet.client(worker % 2, "web1")).collect();
    let rounds: [AtomicUsize; 4] = Default::default();
    let over = AtomicBool::new(false);
    let Fleet { instances, etcd, .. } = &mut fleet;
    let slowest = std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .zip(&rounds)
            .enumerate()
            .map(|(worker, (client, done))| {
                scope.spawn({
                    let over = &over;
                    move || load(worker, client, done, over)
                })
            })
            .collect();
        // Whoever fails on the way must not leave the others at work for good.
        let stop = Stop(&over);
        let go_on = |what: &str| {
            let before: Vec<_> = rounds.iter().map(|rounds| rounds.load(Ordering::SeqCst)).collect();
            until(what, 3 * PATIENCE, || {
                let ended = workers.iter().any(ScopedJoinHandle::is_finished);
                let done =
                    rounds.iter().zip(&before).all(|(now, before)| now.load(Ordering::SeqCst) > before + 2);
                (done || ended).then_some(())
            });
        };
        go_on("the load to begin");
        for loss in [Loss::Killed, Loss::Frozen] {
            for of_leader in [false, true] {
                let leader = etcd.leader();
                let lost = if of_leader { leader } else { (leader + 1) % etcd.size() };
                etcd.lose(lost, loss);
                go_on(&format!("the load to go on, a member {loss:?}, leader: {of_leader}"));
                etcd.recover();
            }
        }
        drop(stop);
        workers.into_iter().map(|worker| worker.join().unwrap()).max().unwrap()
    });
    assert!(slowest < PATIENCE, "a request took {slowest:?}");
    for instance in instances {
        assert_eq!(instance.volumes(), [""; 0]);
        instance.has_mounts(&[]);
        assert_eq!(instance.status()["catalog_fault"], Value::Null);
    }
}

/// Answered later than that, it would be sent again, kept twice, and counted twice: another container's mount would go.
#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn an_unmount_is_kept_within_the_limit_that_a_reload_set() {
    let mut fleet = Fleet::of(Cluster::single().start(), 1).start();
    let mut client = fleet.client(0, "web1");
    ok(&mut client, "Create", "db", "");
    for _ in 0..2 {
        ok(&mut client, "Mount", "db", "one");
    }
    let Fleet { instances, etcd, .. } = &mut fleet;
    let daemon = &instances[0];
    let text = std::fs::read(daemon.path(CONFIG)).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    config["limits"] = json!({ "request": "7s" });
    daemon.put(CONFIG, &config.to_string());
    daemon.cli(&["reload"]).ok();
    etcd.lose(0, Loss::Frozen);
    ok(&mut client, "Unmount", "db", "one");
    etcd.recover();
    until("it to be counted", SOON, || {
        daemon.mounts().iter().map(Mount::essence).eq([("db", "web1", 1, false)]).then_some(())
    });
}

/// Ends a load when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Makes volumes, uses them and removes them, until it is over; the longest time that a request took.
fn load(worker: usize, mut client: Client, done: &AtomicUsize, over: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    while !over.load(Ordering::SeqCst) {
        let name = format!("db{worker}-{}", done.load(Ordering::SeqCst));
        for rpc in ["Create", "Mount", "Get", "Unmount", "Remove"] {
            let asked = Instant::now();
            ok(&mut client, rpc, &name, "one");
            slowest = slowest.max(asked.elapsed());
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    slowest
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn a_password_and_certificates_are_followed_while_serving() {
    let etcd = Cluster::single().tls().user("volhost", "secret").start();
    let mut fleet = Fleet::of(etcd, 1).start();
    let mut client = fleet.client(0, "web1");
    let mut number = 0;
    let mut works_soon = |what: &str, client: &mut Client| {
        until(what, SOON, || {
            number += 1;
            let answer = call(client, "Create", &format!("db{number}"), "");
            (answer.status == 200).then_some(())
        });
        ok(client, "Get", "db1", "");
    };
    works_soon("a first volume", &mut client);

    // In the order that a careful administrator has, no request notices anything.
    fleet.etcd.write_password("second");
    until("the file to be read again", SOON, || {
        fleet.instances[0].log().contains("has changed").then_some(())
    });
    fleet.etcd.change_password("second");
    for number in 0..10 {
        ok(&mut client, "Create", &format!("careful{number}"), "");
    }
    fleet.etcd.change_password("third");
    ok(&mut client, "Get", "db1", "");
    fleet.etcd.write_password("third");
    works_soon("the new password", &mut client);
    // What it let the instance in by is forgotten with a restart.
    fleet.etcd.restart();
    works_soon("the password to be told again", &mut client);

    fleet.etcd.replace_client_certificate();
    works_soon("the new certificate", &mut client);
    fleet.etcd.retire();
    works_soon("the new authority", &mut client);
    fleet.instances[0].restart();
    works_soon("a new start", &mut fleet.client(0, "web1"));
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn who_is_not_let_in_is_told_so_and_ends() {
    let etcd = Cluster::single().tls().user("volhost", "secret").start();
    let fleet = Fleet::of(etcd, 0).start();
    let credentials = fleet.etcd.credentials().unwrap();
    let with = |field: &str, value: Value| {
        let mut changed = credentials.clone();
        changed[field] = value;
        json!({ "etcd": changed })
    };
    let refused = |changes: &Value, expected: &[&str]| {
        let asked = Instant::now();
        let (status, log) = fleet.setup(0, PREFIX, changes).refused(|| ());
        assert!(status.code().is_some_and(|code| code != 0), "{changes}: {status}");
        assert!(asked.elapsed() < SOON, "{changes}: it took {:?}", asked.elapsed());
        for words in expected {
            assert!(log.contains(words), "no {words:?} in: {log}");
        }
    };
    let file = |name: &str, text: &str| {
        let path = fleet.etcd.client_file(name);
        std::fs::write(&path, text).unwrap();
        let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&path, owner_only).unwrap();
        json!(path)
    };
    let address = fleet.etcd.addresses()[0].to_string();

    refused(
        &with("password_file", file("wrong", "wrong\n")),
        &[&address, "password_file", "authentication failed"],
    );
    refused(&with("user", json!("nobody")), &[&address, "\"user\""]);
    let other = Authority::new("another CA");
    refused(&with("ca", file("other.crt", &other.pem())), &[&address, "certificate"]);
    // What is not the user's is refused by etcd itself.
    let (status, log) = fleet.setup(0, "elsewhere", &json!({})).refused(|| ());
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    assert!(log.contains("elsewhere") && log.contains("permission"), "{log}");
    assert_eq!(fleet.etcd.keys(""), [""; 0]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn an_instance_that_slept_through_a_compaction_reads_everything_again() {
    let mut fleet = Fleet::of(Cluster::single().start(), 2).start();
    let mut client = fleet.client(0, "web1");
    for name in ["kept", "removed", "used"] {
        ok(&mut client, "Create", name, "");
    }
    ok(&mut client, "Mount", "used", "before");
    ok(&mut fleet.client(1, "web2"), "Get", "used", "");
    fleet.instances[1].signal("STOP");
    ok(&mut client, "Unmount", "used", "before");
    ok(&mut client, "Mount", "used", "after");
    ok(&mut client, "Remove", "removed", "");
    for number in 0..20 {
        ok(&mut client, "Create", &format!("new{number}"), "");
    }
    // A stream that stands has been sent all of that already.
    fleet.etcd.restart();
    until("the first instance to go on", SOON, || {
        (call(&mut client, "Create", "last", "").status == 200).then_some(())
    });
    fleet.etcd.compact();
    fleet.instances[1].signal("CONT");

    let expected = fleet.instances[0].volumes();
    assert_eq!(expected.len(), 23);
    until("the second instance to catch up", SOON, || {
        (fleet.instances[1].volumes() == expected).then_some(())
    });
    assert_eq!(fleet.instances[1].mounts(), fleet.instances[0].mounts());
    let mut second = fleet.client(1, "web2");
    ok(&mut second, "Get", "last", "");
    refused(&mut second, "Get", "removed", "");
    // And the stream goes on from there.
    ok(&mut client, "Create", "next", "");
    ok(&mut second, "Get", "next", "");
    until("what is new without being asked for", SOON, || {
        fleet.instances[1].volumes().contains(&"next".to_owned()).then_some(())
    });
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn etcd_without_space_takes_no_change_and_loses_no_unmount() {
    let fleet = Fleet::of(Cluster::single().quota(2 * 1024 * 1024).start(), 2).start();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web1")];
    ok(&mut at[0], "Create", "db", "");
    ok(&mut at[0], "Mount", "db", "one");
    let much = "x".repeat(100_000);
    let filled =
        (0..100).any(|number| fleet.etcd.ctl(&["put", &format!("/other/{number}"), &much]).code != Some(0));
    assert!(filled, "etcd keeps to no quota");

    let why = refused(&mut at[1], "Create", "new", "");
    assert!(why.contains("database space exceeded"), "{why}");
    ok(&mut at[1], "Get", "db", "");
    assert!(refused(&mut at[1], "Get", "unknown", "").contains("no such volume"));
    ok(&mut at[1], "Unmount", "db", "one");
    let fault = || fleet.instances[1].status()["catalog_fault"].as_str().map(str::to_owned);
    until("the status to tell what is kept", SOON, || fault().filter(|fault| fault.contains("1 answered")));
    fleet.instances[0].has_mounts(&[("db", "web1", false)]);

    // As the README says it.
    fleet.etcd.ctl(&["del", "--prefix", "/other/"]).ok();
    fleet.etcd.compact();
    for words in [&["defrag"][..], &["alarm", "disarm"]] {
        fleet.etcd.ctl(words).ok();
    }
    until("what was kept to be recorded", SOON, || {
        fault().is_none().then_some(()).filter(|()| fleet.instances[0].mounts().is_empty())
    });
    ok(&mut at[1], "Create", "new", "");
    ok(&mut at[0], "Remove", "db", "");
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn a_cluster_that_is_restored_from_a_snapshot_is_noticed_and_read_again() {
    let mut fleet = Fleet::of(Cluster::single().start(), 2).start();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web1")];
    ok(&mut at[0], "Create", "kept", "");
    ok(&mut at[0], "Mount", "kept", "before");
    let snapshot = fleet.etcd.save();
    ok(&mut at[0], "Create", "lost", "");
    ok(&mut at[1], "Get", "lost", "");
    ok(&mut at[1], "Unmount", "kept", "before");

    fleet.etcd.take_back(&snapshot);
    for (instance, client) in fleet.instances.iter().zip(&mut at) {
        until("the log to tell of it", SOON, || {
            instance.log().contains("has another history at revision").then_some(())
        });
        until("the catalog to be read again", SOON, || {
            call(client, "Get", "lost", "").err().contains("no such volume").then_some(())
        });
        instance.has_mounts(&[("kept", "web1", false)]);
    }
    let compared = fleet.instances[0].cli(&["check", "--catalog"]);
    assert!(compared.code == Some(1) && compared.stdout.contains("lost"), "{compared:?}");

    // They are of one mind about what comes after it, and about what is known again.
    ok(&mut at[0], "Create", "new", "");
    ok(&mut at[1], "Get", "new", "");
    ok(&mut at[1], "Unmount", "kept", "before");
    ok(&mut at[0], "Remove", "kept", "");
    ok(&mut at[1], "Mount", "new", "one");
    assert!(refused(&mut at[0], "Remove", "new", "").contains("web1"));
    assert_eq!(fleet.instances[1].volumes(), ["new"]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn without_a_quorum_what_is_known_is_told_and_unmounts_are_kept() {
    let mut fleet = Fleet::of(Cluster::three().start(), 2).start();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web1")];
    for name in ["db", "idle"] {
        ok(&mut at[0], "Create", name, "");
    }
    for id in ["one", "two", "three", "three", "four"] {
        ok(&mut at[0], "Mount", "db", id);
    }
    let told = |client: &mut Client| {
        ["Get", "Path", "List"].map(|rpc| {
            let asked = Instant::now();
            let told = ok(client, rpc, "db", "");
            assert!(asked.elapsed() < FROM_MEMORY, "{rpc} took {:?}", asked.elapsed());
            told
        })
    };
    let before = told(&mut at[0]);
    until("the other one to know it", SOON, || {
        let known = ["Get", "Path", "List"].map(|rpc| ok(&mut at[1], rpc, "db", ""));
        (known == before).then_some(())
    });

    fleet.etcd.lose_quorum(Loss::Killed);
    for (instance, client) in at.iter_mut().enumerate() {
        let refusals = ["Create", "Mount", "Remove"].map(|rpc| {
            let asked = Instant::now();
            let why = refused(client, rpc, if rpc == "Create" { "new" } else { "idle" }, "one");
            assert!(asked.elapsed() < LIMIT + SLACK, "{rpc} took {:?}", asked.elapsed());
            (rpc, why)
        });
        for (rpc, why) in refusals {
            assert!(why.contains("the catalog"), "{rpc} at {instance}: {why}");
        }
        assert_eq!(told(client), before, "at {instance}");
    }
    for (instance, id) in [(0, "one"), (1, "two"), (0, "three")] {
        let asked = Instant::now();
        ok(&mut at[instance], "Unmount", "db", id);
        assert!(asked.elapsed() < LIMIT, "an Unmount took {:?}", asked.elapsed());
    }
    // What is not in memory cannot be known: to an engine an answer would say that it does not exist.
    let mut asking = fleet.client(0, "web1");
    let unknown = asking.volume("Get", &json!({ "Name": "unknown" }));
    assert!(unknown.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof), "{unknown:?}");
    for instance in &fleet.instances {
        until("the status to tell the fault", SOON, || instance.status()["catalog_fault"].as_str().map(drop));
    }

    // It does not listen before it has read everything, and what it has promised is not forgotten meanwhile.
    let daemon = &mut fleet.instances[0];
    daemon.kill9();
    let log = daemon.log().len();
    daemon.launch();
    let catalog = fleet.etcd.catalog(PREFIX);
    until("the log to tell what is waited for", SOON, || {
        daemon.log()[log..].contains(&catalog).then_some(())
    });
    assert_eq!(daemon.printed(), [""; 0]);

    fleet.etcd.recover();
    let ready = fleet.instances[0].ready();
    assert!(ready.is_ok(), "{ready:?}");
    let counts = |daemon: &Daemon<'_>| -> Vec<_> {
        daemon.mounts().into_iter().map(|mount| (mount.id, mount.count)).collect()
    };
    let expected = [("four".to_owned(), 1), ("three".to_owned(), 1)];
    for instance in 0..2 {
        until("the unmounts to be counted", SOON, || {
            (counts(&fleet.instances[instance]) == expected).then_some(())
        });
        until("the fault to be over", SOON, || {
            fleet.instances[instance].status()["catalog_fault"].is_null().then_some(())
        });
    }
    at = [fleet.client(0, "web1"), fleet.client(1, "web1")];
    for (client, name) in at.iter_mut().zip(["new0", "new1"]) {
        for rpc in ["Create", "Mount", "Unmount", "Remove"] {
            ok(client, rpc, name, "one");
        }
    }
    // Nothing is counted down a second time.
    fleet.instances[0].restart();
    fleet.instances[1].restart();
    assert_eq!(counts(&fleet.instances[0]), expected);
    assert_eq!(fleet.instances[0].volumes(), ["db", "idle"]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn a_frozen_quorum_delays_nothing_that_is_known_and_goes_on_where_it_was() {
    let mut fleet = Fleet::of(Cluster::three().start(), 1).start();
    let mut client = fleet.client(0, "web1");
    for rpc in ["Create", "Mount"] {
        ok(&mut client, rpc, "db", "one");
    }
    ok(&mut client, "Mount", "db", "two");
    fleet.etcd.lose_quorum(Loss::Frozen);
    let asked = Instant::now();
    ok(&mut client, "Get", "db", "");
    assert!(asked.elapsed() < FROM_MEMORY, "a Get took {:?}", asked.elapsed());
    let asked = Instant::now();
    refused(&mut client, "Create", "new", "");
    assert!(asked.elapsed() < LIMIT + SLACK, "a Create took {:?}", asked.elapsed());
    ok(&mut client, "Unmount", "db", "one");
    fleet.etcd.recover();
    until("the unmount to be counted", SOON, || {
        (fleet.instances[0].mounts().iter().map(|mount| &*mount.id).eq(["two"])).then_some(())
    });
    // What was refused may have been under way; it is undone, or finished when it is asked for again.
    until("a volume to be made", SOON, || {
        (call(&mut client, "Create", "new", "").status == 200).then_some(())
    });
    fleet.instances[0].agrees_with(&fleet.volumes());
}

/// etcd and volhost go down together where their machines do.
#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn an_instance_whose_cluster_says_nothing_ends_in_time_when_it_is_told_to() {
    let mut fleet = Fleet::of(Cluster::single().start(), 1).start();
    let mut client = fleet.client(0, "web1");
    // What is to be written at the end is when this host was seen last.
    for rpc in ["Create", "Get", "Get"] {
        ok(&mut client, rpc, "db", "");
    }
    fleet.etcd.lose_quorum(Loss::Frozen);
    let told = Instant::now();
    assert!(fleet.instances[0].terminate().success());
    assert!(told.elapsed() < LIMIT, "it took {:?}", told.elapsed());
    fleet.etcd.recover();
    fleet.instances[0].start_again();
    assert_eq!(fleet.instances[0].volumes(), ["db"]);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "this volhost is built without etcd")]
fn an_instance_that_is_cut_off_gives_nothing_away_that_others_may_have() {
    let hosts = ["store", "web1", "web2"].map(Host::new);
    let [store, web1, web2] = &hosts;
    for host in [web1, web2] {
        host.join(store);
    }
    let etcd = Cluster::single().on(store).start();
    let limit = json!({ "limits": { "request": "12s" } });
    let fleet = Fleet::of(etcd, 2).on(&[web1, web2]).config(limit).start();
    let mut at = [fleet.client(0, "web1"), fleet.client(1, "web2")];
    for name in ["free", "held", "half"] {
        let exclusive = json!({ "Name": name, "Opts": { "access": "exclusive" } });
        assert_eq!(at[0].volume("Create", &exclusive).unwrap().status, 200);
    }
    ok(&mut at[0], "Create", "used", "");
    for name in ["held", "used"] {
        ok(&mut at[0], "Mount", name, "one");
    }
    ok(&mut at[1], "Get", "used", "");

    web1.cut(store);
    let [dark, light] = &mut at;
    std::thread::scope(|scope| {
        let refusals = scope.spawn(|| {
            ["Mount", "Remove"].map(|rpc| {
                let asked = Instant::now();
                let why = refused(dark, rpc, "free", "one");
                assert!(asked.elapsed() < LIMIT + SLACK, "{rpc} took {:?}", asked.elapsed());
                why
            })
        });
        ok(light, "Mount", "free", "two");
        ok(light, "Create", "new", "");
        for why in refusals.join().unwrap() {
            assert!(why.contains("the catalog"), "{why}");
        }
    });
    // It takes what its host gives back, and the others still see it as used.
    for name in ["held", "used"] {
        ok(dark, "Unmount", name, "one");
        ok(dark, "Get", name, "");
    }
    assert!(refused(light, "Mount", "held", "two").contains("web1"));
    assert!(refused(light, "Remove", "used", "").contains("web1"));
    fleet.instances[1].has_mounts(&[
        ("free", "web2", false),
        ("held", "web1", false),
        ("used", "web1", false),
    ]);

    web1.heal(store);
    until("what was given back to be free", SOON, || {
        (call(light, "Mount", "held", "two").status == 200).then_some(())
    });
    until("what was used to be removed", SOON, || {
        (call(light, "Remove", "used", "").status == 200).then_some(())
    });
    // It refuses in any case, and knows why when it hears of the others again.
    until("the one that was cut off to know the holder", SOON, || {
        refused(dark, "Mount", "free", "one").contains("web2").then_some(())
    });
    ok(dark, "Get", "new", "");
    until("it to know all that was done meanwhile", SOON, || {
        let mounts = fleet.instances[0].mounts();
        let known = [("free", "web2", 1, false), ("held", "web2", 1, false)];
        mounts.iter().map(Mount::essence).eq(known).then_some(())
    });

    // What it sends arrives, and it does not hear what became of it.
    web1.deafen(store);
    let lost = call(dark, "Mount", "half", "one");
    let other = call(light, "Mount", "half", "two");
    assert!(lost.status != 200 || other.status != 200, "an exclusive volume was given twice");
    web1.heal(store);
    // Whatever was not answered is taken back by itself.
    if lost.status != 200 {
        until("the volume to be had", 2 * SOON, || {
            (call(light, "Mount", "half", "two").status == 200).then_some(())
        });
        until("both to agree", SOON, || {
            let holders = |daemon: &Daemon<'_>| -> Vec<_> {
                let mounts = daemon.mounts().into_iter().filter(|mount| mount.volume == "half");
                mounts.map(|mount| mount.host).collect()
            };
            fleet.instances.iter().all(|daemon| holders(daemon) == ["web2"]).then_some(())
        });
    }
}
