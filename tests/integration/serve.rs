//! Starting and stopping: what `serve` prints, how it ends, and what is still there afterwards.

use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::{Client, Target};
use crate::harness::wait::{SOON, until};

fn get(client: &mut Client, name: &str) -> (u16, Value) {
    let answer = client.call("/VolumeDriver.Get", &json!({ "Name": name })).unwrap();
    (answer.status, answer.json())
}

#[test]
fn each_listener_is_named_with_its_real_port_and_answers() {
    let daemon = Daemon::start();
    assert_eq!(daemon.addresses().len(), 2, "{:?}", daemon.addresses());
    assert_ne!(daemon.tcp("https").port(), 0);
    for mut client in [daemon.tls(), daemon.unix()] {
        let answer = client.call("/Plugin.Activate", &json!({})).unwrap();
        assert_eq!((answer.status, answer.json()), (200, json!({ "Implements": ["VolumeDriver"] })));
    }
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(daemon.cli(&["status", "--json"]).json()["name"], "volhost");
}

#[test]
fn what_was_answered_survives_kill_9() {
    let mut daemon = Daemon::start();
    let mut client = daemon.tls();
    for (rpc, body) in [
        ("Create", json!({ "Name": "db", "Opts": { "mode": "0711" } })),
        ("Mount", json!({ "Name": "db", "ID": "one" })),
        ("Create", json!({ "Name": "gone" })),
        ("Remove", json!({ "Name": "gone" })),
    ] {
        let answer = client.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap();
        assert_eq!(answer.status, 200, "{rpc}: {}", answer.err());
    }
    let before = (get(&mut client, "db"), daemon.cli(&["mount", "ls", "--json"]).json());
    daemon.restart();
    let mut client = daemon.tls();
    assert_eq!((get(&mut client, "db"), daemon.cli(&["mount", "ls", "--json"]).json()), before);
    let (status, answer) = get(&mut client, "gone");
    assert_eq!((status, answer["Err"].is_string()), (400, true), "{answer}");
}

#[test]
fn sigterm_lets_go_of_everything_and_succeeds() {
    let mut daemon = Daemon::start();
    let (address, socket) = (daemon.tcp("https"), daemon.socket());
    let mut idle = daemon.unix();
    assert_eq!(idle.call("/Plugin.Activate", &json!({})).unwrap().status, 200);
    let pid = daemon.pid();
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log());
    assert!(idle.is_closed());
    assert!(Client::connect(&Target::Tcp(address)).is_err());
    assert!(Client::connect(&Target::Unix(socket)).is_err());
    let process = std::path::PathBuf::from(format!("/proc/{pid}"));
    until("the process's end", SOON, || (!process.exists()).then_some(()));
    daemon.start_again();
    assert_eq!(daemon.tls().call("/VolumeDriver.List", &json!({})).unwrap().status, 200);
}

#[test]
fn a_wrong_configuration_ends_with_78_before_anything_is_made() {
    let setup = Daemon::setup().config(&json!({ "lissten": [] }));
    let root = setup.root();
    let (status, log) = setup.refused(|| {
        assert!(
            !root.join("var/lib/volhost").exists(),
            "a catalog was made for a configuration that is wrong"
        );
    });
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("lissten") && log.contains("listen"), "no name or no hint in: {log}");
}

#[test]
fn each_directory_has_the_mode_that_was_said_whatever_the_umask() {
    for umask in ["000", "077"] {
        let daemon = Daemon::setup().umask(umask).start();
        let listened = daemon.socket();
        let expected = [
            ("etc/volhost/pki", 0o700),
            ("etc/docker/plugins", 0o755),
            ("run/volhost", 0o755),
            ("var/lib/volhost", 0o700),
            ("var/lib/volhost/volumes", 0o710),
            ("var/lib/volhost/volumes/.volhost", 0o700),
            ("var/lib/volhost/volumes/.volhost/new", 0o700),
            ("var/lib/volhost/volumes/.volhost/trash", 0o700),
        ];
        assert_eq!(listened.parent(), Some(&*daemon.path("run/volhost")));
        for (path, mode) in expected {
            let found = std::fs::metadata(daemon.path(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "umask {umask}: {path} has {found:04o}");
        }
    }
}

#[test]
fn a_backend_that_volhost_did_not_make_keeps_its_mode() {
    let mut daemon = Daemon::setup().umask("077").prepare();
    let volumes = daemon.path("var/lib/volhost/volumes");
    std::fs::create_dir_all(&volumes).unwrap();
    std::fs::set_permissions(&volumes, std::fs::Permissions::from_mode(0o755)).unwrap();
    daemon.start_again();
    assert_eq!(std::fs::metadata(&volumes).unwrap().permissions().mode() & 0o7777, 0o755);
}
