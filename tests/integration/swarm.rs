//! Swarm with volumes of volhost, as the README tells it: its files and command lines are what runs here.
//!
//! volhost and Swarm's manager are on `store1`; `web1` is the other node.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::engine::directory;
use crate::harness::engine::IMAGE;
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts::{join, serve_both};
use crate::readme;

/// How long Swarm may take to see that a node is gone, and managers to hear what a node has.
const SWARM: Duration = Duration::from_secs(90);

/// The name under which `docker-compose` looks for its file.
pub(crate) const COMPOSE: &str = "docker-compose.yaml";

/// An engine with the image that the README's examples name.
pub(crate) fn engine(host: &Host) -> Engine<'_> {
    let engine = Engine::start(host);
    engine.ok(&["tag", IMAGE, "busybox"]);
    engine
}

/// What the containers of the examples wrote: a line at each start.
pub(crate) fn starts(daemon: &Daemon<'_>, volume: &str) -> usize {
    fs::read_to_string(directory(daemon, volume).join("log")).map_or(0, |text| text.lines().count())
}

/// Lets two engines be a swarm whose manager is the first.
fn make_swarm(store1: &Engine<'_>, web1: &Engine<'_>, manager: Ipv4Addr) {
    let manager = manager.to_string();
    store1.ok(&["swarm", "init", "--advertise-addr", &manager]);
    // A node is taken for lost after three of these: soon, and not because a busy machine held it up.
    store1.ok(&["swarm", "update", "--dispatcher-heartbeat", "3s"]);
    let token = store1.ok(&["swarm", "join-token", "--quiet", "worker"]);
    web1.ok(&["swarm", "join", "--token", &token, &format!("{manager}:2377")]);
}

/// Waits until a service's task runs on a node.
fn until_runs(manager: &Engine<'_>, service: &str, node: &str) {
    let wanted = format!("{node} Running");
    until(&format!("{service} to run on {node}"), SWARM, || {
        let format = "{{.Node}} {{.CurrentState}}";
        let tasks =
            manager.ok(&["service", "ps", "--filter", "desired-state=running", "--format", format, service]);
        tasks.starts_with(&wanted).then_some(())
    });
}

/// Waits until a service's tasks failed with a message that has this in it, and says the message.
fn until_refused(manager: &Engine<'_>, service: &str, why: &str) -> String {
    until(&format!("{service} to fail with {why:?}"), SWARM, || {
        let errors = manager.ok(&["service", "ps", "--no-trunc", "--format", "{{.Error}}", service]);
        errors.lines().find(|error| error.contains(why)).map(str::to_owned)
    })
}

#[test]
fn a_service_moves_to_another_node_with_its_data_and_an_exclusive_one_when_the_operator_says_so() {
    let (store1, web1) = (Host::new("store1"), Host::new("web1"));
    let daemon = serve_both(&store1, &web1);
    join(&daemon, &web1);
    let (manager, worker) = (engine(&store1), engine(&web1));
    make_swarm(&manager, &worker, Host::GATEWAY);
    let commands = readme::commands("Swarm");
    let [(_, on_store1), (_, on_web1), (_, create), (_, release)] = &commands[..] else {
        panic!("the README has other commands: {commands:?}");
    };

    // Nothing is known of the plugin before it was used.
    manager.shell(create).ok();
    until_refused(&manager, "app", "missing plugin on 2 nodes");
    // Both services begin on the node that is going to die.
    manager.ok(&["node", "update", "--availability", "pause", "store1"]);
    for (engine, warm_up) in [(&manager, on_store1), (&worker, on_web1)] {
        assert_eq!(engine.shell(warm_up).ok(), "[local volhost]");
    }
    let shared = create.replace("app", "shared").replace(",volume-opt=access=exclusive", "");
    manager.shell(&shared).ok();
    for service in ["app", "shared"] {
        until_runs(&manager, service, "web1");
        until("the first line", SOON, || (starts(&daemon, service) == 1).then_some(()));
    }
    daemon.has_mounts(&[("app", "web1", false), ("shared", "web1", false)]);

    manager.ok(&["node", "update", "--availability", "active", "store1"]);
    let _disk = worker.lose_power();
    drop(web1);
    until_runs(&manager, "shared", "store1");
    until("the second line", SOON, || (starts(&daemon, "shared") == 2).then_some(()));
    let why = until_refused(&manager, "app", "exclusive");
    assert!(why.contains("in use by host web1 (mount "), "{why}");
    assert!(why.contains("`volhost mount release app web1 --all` frees it"), "{why}");
    assert_eq!(starts(&daemon, "app"), 1, "it was started beside one that may be alive");

    let words: Vec<_> = release.strip_prefix("volhost ").unwrap().split(' ').collect();
    let (code, screen) = daemon.typed(&words, "web1\n");
    assert_eq!(code, Some(0), "{screen}");
    until_runs(&manager, "app", "store1");
    until("the second line", SOON, || (starts(&daemon, "app") == 2).then_some(()));
    daemon.has_mounts(&[("app", "store1", false), ("shared", "store1", false)]);

    // The file for Compose is good for a swarm.
    let [(_, make), .., (_, deploy)] = &readme::commands("Compose")[..] else {
        panic!("the README has no commands for Compose");
    };
    fs::write(store1.dir().join(COMPOSE), readme::block("Compose", "yaml")).unwrap();
    manager.shell(make).ok();
    manager.shell(deploy).ok();
    until_runs(&manager, "files_app", "store1");
    until("the stack's line", SOON, || (starts(&daemon, "files") == 1).then_some(()));
}

#[test]
fn a_node_that_was_only_cut_off_gives_its_exclusive_volume_up_by_itself() {
    let (store1, web1) = (Host::new("store1"), Host::new("web1"));
    let daemon = serve_both(&store1, &web1);
    join(&daemon, &web1);
    let (manager, worker) = (engine(&store1), engine(&web1));
    let commands = readme::commands("Swarm");
    for (engine, (_, warm_up)) in [&manager, &worker].into_iter().zip(&commands) {
        engine.shell(warm_up).ok();
    }
    // What a node has when it joins is known at once.
    make_swarm(&manager, &worker, Host::GATEWAY);
    manager.ok(&["node", "update", "--availability", "pause", "store1"]);
    let create = commands[2].1.replace("--name app", "--name app --stop-grace-period 1s");
    manager.shell(&create).ok();
    until_runs(&manager, "app", "web1");
    until("the first line", SOON, || (starts(&daemon, "app") == 1).then_some(()));
    manager.ok(&["node", "update", "--availability", "active", "store1"]);

    let cable = |state: &str| store1.run(["ip", "link", "set", "port2", state]).ok();
    cable("down");
    // Else Swarm may as well choose the node again that has the volume, once it is back.
    manager.ok(&["node", "update", "--availability", "pause", "web1"]);
    until_refused(&manager, "app", "is exclusive and in use by host web1");
    assert_eq!(worker.ok(&["ps", "--quiet"]).lines().count(), 1, "it runs where nobody sees it");
    assert_eq!(starts(&daemon, "app"), 1);
    cable("up");
    until_runs(&manager, "app", "store1");
    until("the second line", SOON, || (starts(&daemon, "app") == 2).then_some(()));
    assert_eq!(worker.ok(&["ps", "--quiet"]), "");
    daemon.has_mounts(&[("app", "store1", false)]);
}
