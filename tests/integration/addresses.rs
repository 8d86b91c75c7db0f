//! One name with two addresses: what an engine does when what is behind one of them ends, or never answers.
//!
//! One volhost is behind both, by two relays, because one catalog has one service; to the engine they are two.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use crate::engine::{create, directory};
use crate::fleet::with_the_answer_held_up;
use crate::harness::relay::Relay;
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};

const NAME: &str = "store.example.org";

/// The second address; the first is [`Host::GATEWAY`].
const SECOND: &str = "10.77.0.200";

/// An address of the same network that no machine has.
const NOBODY: &str = "10.77.0.201";

/// volhost on `web1`, for others behind [`NAME`] alone.
fn serve<'a>(web1: &'a Host, web2: &Host, addresses: [&str; 2]) -> Daemon<'a> {
    web2.join(web1);
    web1.run(["ip", "addr", "add", &format!("{SECOND}/24"), "dev", "lan"]).ok();
    let config = json!({ "node": "web1", "listen": ["https://127.0.0.1:7443"],
                         "advertise": format!("https://{NAME}:7443") });
    let daemon = Daemon::setup().on(web1).config(&config).start();
    let bundle = web2.dir().join("bundle.tar");
    let bundle = bundle.to_str().unwrap();
    daemon.cli(&["host", "add", "web2", "-o", bundle]).ok();
    web2.run(["tar", "-C", "/", "-xf", bundle]).ok();
    for address in addresses {
        let line = format!("echo {address} {NAME} >> /etc/hosts");
        web2.run(["sh", "-c", &line]).ok();
    }
    daemon
}

fn relay<'a>(web1: &'a Host, daemon: &Daemon<'_>, address: &str) -> Relay<'a> {
    let at = SocketAddr::new(address.parse().unwrap(), 7443);
    Relay::start(web1, at, daemon.tcp("https"))
}

#[test]
fn an_engine_goes_on_by_itself_when_one_service_of_two_is_gone() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let gateway = Host::GATEWAY.to_string();
    let daemon = serve(&web1, &web2, [&gateway, SECOND]);
    let (mut one, mut two) = (relay(&web1, &daemon, &gateway), relay(&web1, &daemon, SECOND));
    let engine = Engine::start(&web2);
    create(&engine, "db");
    engine.sleeper("c1", &["-v", "db:/x"]);
    // Which of the two comes first is the resolver's choice.
    if one.accepted() == 0 {
        std::mem::swap(&mut one, &mut two);
    }
    assert_eq!(two.accepted(), 0);

    // What it was connected to ends: the next call goes to the other, and nobody notices.
    one.stop();
    assert_eq!(engine.run(&["-v", "db:/x"], "echo hello > /x/file && cat /x/file"), "hello");
    assert!(two.accepted() > 0);
    daemon.has_mounts(&[("db", "web2", false)]);
    // And back.
    one.start_again();
    two.stop();
    assert_eq!(engine.run(&["-v", "db:/x"], "cat /x/file"), "hello");
    assert!(one.accepted() > 0);

    // While both are gone a call is tried again and again, with its body: it is done as soon as one is back.
    one.stop();
    let words = ["volume", "create", "-d", "volhost", "-o", "mode=0700", "late"];
    std::thread::scope(|scope| {
        let made = scope.spawn(|| engine.docker(&words));
        std::thread::sleep(Duration::from_millis(1500));
        two.start_again();
        made.join().unwrap().ok();
    });
    let mode = fs::metadata(directory(&daemon, "late")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o700, "the options were lost on the way");
    engine.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
}

#[test]
fn a_call_that_is_lost_in_flight_fails_once_and_can_be_repeated() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let gateway = Host::GATEWAY.to_string();
    let daemon = serve(&web1, &web2, [&gateway, &gateway]);
    let relay = relay(&web1, &daemon, &gateway);
    let engine = Engine::start(&web2);

    let words = ["volume", "create", "-d", "volhost", "--label", "tier=gold", "db"];
    let exists = || daemon.volumes() == ["db"];
    let said = with_the_answer_held_up(&engine, &words, &relay, exists, || relay.cut()).fails();
    assert!(said.contains("VolumeDriver.Create") && said.contains("try again"), "{said}");
    // It was done, and the same command finds it so.
    assert_eq!(engine.ok(&words), "db");
    assert_eq!(engine.inspect("db")["Labels"], json!({ "tier": "gold" }));

    // Of a Get, nothing is answered that would cost the labels: the engine gives up after 15 s.
    relay.hold();
    std::thread::scope(|scope| {
        let inspected = scope.spawn(|| engine.docker(&["volume", "inspect", "db"]));
        until("the answer to a Get", SOON, || relay.holds_one().then_some(()));
        relay.cut();
        let said = inspected.join().unwrap().fails();
        assert!(said.contains("error while checking if volume"), "{said}");
    });
    assert_eq!(engine.inspect("db")["Labels"], json!({ "tier": "gold" }));

    let removal = ["volume", "rm", "db"];
    let gone = || daemon.volumes().is_empty();
    let said = with_the_answer_held_up(&engine, &removal, &relay, gone, || relay.cut()).fails();
    assert!(said.contains("VolumeDriver.Remove") && said.contains("try again"), "{said}");
    // What is gone is forgotten by the next attempt.
    let again = engine.docker(&removal);
    assert!(again.code == Some(0) || again.stderr.contains("No such volume"), "{again:?}");
    assert_eq!(engine.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn an_address_that_nobody_has_costs_a_wait_for_each_new_connection() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let gateway = Host::GATEWAY.to_string();
    let daemon = serve(&web1, &web2, [NOBODY, &gateway]);
    let relay = relay(&web1, &daemon, &gateway);
    let engine = Engine::start(&web2);
    create(&engine, "db");
    assert_eq!(engine.run(&["-v", "db:/x"], "echo hello > /x/file && cat /x/file"), "hello");
    assert_eq!(daemon.volumes(), ["db"]);
    assert_eq!(relay.accepted(), 1, "a connection that works is kept");
}
