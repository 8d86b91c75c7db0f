//! Starting and stopping: what `serve` prints, how it ends, and what is still there afterwards.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::harness::http::{Client, Target};
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, mortal, signal};

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

/// A pipe that nothing more fits into, and what reads from it.
fn full_pipe() -> (PipeReader, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut writer = File::from(OwnedFd::from(writer));
    writer.write_all(&[b'\n'; 65536]).unwrap();
    (reader, writer)
}

#[test]
fn a_log_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = full_pipe();
    let mut daemon = Daemon::setup().stderr(writer).prepare();
    daemon.start_with(&[("RUST_LOG", "debug")]).unwrap();
    let create = |name: &str| {
        let answer = daemon.unix().call("/VolumeDriver.Create", &json!({ "Name": name })).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.err());
    };
    create("db");
    assert_eq!(daemon.status()["log_lines_dropped"], 0);
    // Each connection is two lines: more than any queue holds.
    let dropped = until("a line that is dropped", SOON, || {
        (0..1000).for_each(|_| drop(daemon.unix()));
        daemon.status()["log_lines_dropped"].as_u64().filter(|dropped| *dropped > 0)
    });
    create("db2");
    // Somebody begins to read, and is told how many lines are missing.
    let (sender, lines) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            // Nobody listens any more once the test has seen enough.
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let told = until("the lines that are missing", SOON, || {
        lines.try_iter().find(|line| line.contains("lines of this log were dropped"))
    });
    let count = told.split_whitespace().find_map(|word| word.parse::<u64>().ok());
    assert!(count >= Some(dropped), "{told}");
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn sigterm_ends_the_service_although_its_log_is_not_read() {
    let (_reader, writer) = full_pipe();
    let mut daemon = Daemon::setup().stderr(writer).start();
    assert_eq!(daemon.terminate().code(), Some(0));
}

#[test]
fn an_output_that_takes_nothing_is_no_reason_to_end() {
    let daemon = Daemon::setup().prepare();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let mut child = mortal(env!("CARGO_BIN_EXE_volhost"))
        .args(["serve", "--root", daemon.path("").to_str().unwrap()])
        .stdin(Stdio::null())
        .stdout(full())
        .stderr(full())
        .spawn()
        .unwrap();
    let served = until("a service, or its end", SOON, || {
        let ended = child.try_wait().unwrap().is_some();
        let served = daemon.cli(&["status"]).code == Some(0);
        (ended || served).then_some(served)
    });
    assert!(served, "it ended: {:?}", child.try_wait());
    // None of its lines can be written, and that is known.
    assert!(daemon.status()["log_lines_dropped"].as_u64().unwrap() > 0);
    signal("TERM", child.id());
    let status = until("its end", SOON, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

/// A file that may grow no further is an error to a write, and not the end of the process.
#[test]
fn the_limit_of_a_files_size_is_answered_and_survived() {
    let mut daemon = Daemon::setup().limit("fsize", "262144").start();
    let mut client = daemon.unix();
    let mut create = |number: usize| {
        let answer = client.call("/VolumeDriver.Create", &json!({ "Name": format!("v{number}") }));
        answer.unwrap_or_else(|error| panic!("volume {number}: {error}"))
    };
    let (made, refused) = (0..5000)
        .find_map(|number| Some((number, create(number))).filter(|(_, answer)| answer.status != 200))
        .expect("the catalog reaches the limit");
    assert_eq!(refused.status, 500, "{}", refused.err());
    assert!(refused.err().contains("could not be written"), "{}", refused.err());
    assert!(made > 0);
    let listed = |daemon: &Daemon<'_>| {
        let answer = daemon.unix().call("/VolumeDriver.List", &json!({})).unwrap();
        answer.json()["Volumes"].as_array().unwrap().len()
    };
    assert_eq!(listed(&daemon), made);
    assert_eq!(get(&mut daemon.unix(), "v0").0, 200);
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log());
    daemon.start_again();
    assert_eq!(listed(&daemon), made);
}

/// A reload that is asked for before the service can do it is done when it can.
#[cfg(feature = "etcd")]
#[test]
fn sighup_does_not_end_a_start_that_waits() {
    use std::os::unix::process::ExitStatusExt as _;

    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["catalog"] = "etcd://127.0.0.1:1/nobody".into();
    let mut daemon = setup.config(&config).prepare();
    daemon.cli(&["pki", "init"]).ok();
    daemon.launch();
    until("a start that waits", SOON, || daemon.log().contains("waiting for the catalog").then_some(()));
    daemon.signal("HUP");
    std::thread::sleep(std::time::Duration::from_millis(100));
    daemon.signal("TERM");
    let status = daemon.ended();
    assert_eq!(status.signal(), Some(15), "{status}: {}", daemon.log());
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
