//! A catalog in etcd, shared by several instances of volhost.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::etcd::{Loss, PREFIX};
use crate::harness::{Cluster, Host};

#[test]
fn a_cluster_of_three_keeps_what_it_holds_through_the_loss_of_members() {
    let mut etcd = Cluster::three().tls().user("volhost", "secret").start();
    etcd.put("volhost/a", "1");
    etcd.put("elsewhere", "2");
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(etcd.get("volhost/"), [pair("volhost/a", "1")]);

    // The instances' user is limited to the catalog, and known by its password alone.
    let as_instance = |password: &str, words: &[&str]| etcd.ctl_as_instance(password, words);
    as_instance("secret", &["put", "volhost/b", "3"]).ok();
    assert!(as_instance("secret", &["get", "elsewhere"]).fails().contains("permission denied"));
    assert!(as_instance("wrong", &["get", "volhost/b"]).fails().contains("authentication failed"));
    etcd.change_password("another");
    as_instance("another", &["get", "volhost/b"]).ok();
    as_instance("secret", &["get", "volhost/b"]).fails();

    let leader = etcd.leader();
    etcd.kill(leader);
    assert_ne!(etcd.leader(), leader);
    etcd.put("volhost/a", "4");
    etcd.start(leader);
    etcd.wait_until_healthy();
    let follower = (etcd.leader() + 1) % etcd.size();
    etcd.freeze(follower);
    etcd.put("volhost/c", "5");
    etcd.thaw(follower);
    etcd.wait_until_healthy();

    for loss in [Loss::Frozen, Loss::Killed] {
        etcd.lose_quorum(loss);
        etcd.ctl(&["--command-timeout=2s", "get", "volhost/a"]).fails();
        etcd.recover();
    }
    assert_eq!(etcd.keys(&format!("{PREFIX}/")), ["volhost/a", "volhost/b", "volhost/c"]);
    let before = etcd.revision();
    etcd.compact();
    assert!(etcd.ctl(&["get", "volhost/a", &format!("--rev={}", before - 1)]).fails().contains("compacted"));
    etcd.del("volhost/c");
    assert_eq!((etcd.revision(), etcd.get("volhost/c")), (before + 1, vec![]));

    // Clients of both authorities are let in until the present one is retired.
    etcd.replace_client_certificate();
    etcd.put("volhost/a", "6");
    etcd.retire();
    assert_eq!(etcd.get("volhost/a"), [pair("volhost/a", "6")]);
}

#[test]
fn clusters_do_not_meet_and_one_member_comes_back_by_itself() {
    let mut first = Cluster::single().start();
    let second = Cluster::single().start();
    assert_ne!(first.addresses(), second.addresses());
    first.put("volhost/a", "1");
    assert_eq!(second.keys(""), [""; 0]);
    first.restart();
    assert_eq!(first.keys(""), ["volhost/a"]);
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
        etcd.put("volhost/a", "1");
        let own = web1.listen([127, 0, 0, 1].into());
        web1.dial(own.local_addr().unwrap()).unwrap();
        web1.heal(&store);
        assert_eq!(dial(), Ok(()));
    }
    etcd.freeze(0);
    etcd.kill(1);
    etcd.recover();
    assert_eq!(etcd.keys("volhost/"), ["volhost/a"]);
}
