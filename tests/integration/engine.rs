//! Docker Engine uses volhost: the way of a first user, of a second host, and what engines do on their bad days.
//!
//! The engine is Debian's `docker.io`; each runs on a machine of its own. Where not said otherwise volhost runs on the
//! same machine under `--root`, and the spec files that it writes there are shown to the engine where it looks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};

/// volhost on a machine whose engine will find it.
fn serve(host: &Host) -> Daemon<'_> {
    let daemon = Daemon::setup().on(host).start();
    show_spec(host, &daemon);
    daemon
}

/// Shows an engine the spec files of a daemon under `--root`.
pub(crate) fn show_spec(host: &Host, daemon: &Daemon<'_>) {
    host.bind(&daemon.path("etc/docker/plugins"), "/etc/docker/plugins");
}

/// Makes a volume by the engine's command.
pub(crate) fn create(engine: &Engine<'_>, name: &str) {
    assert_eq!(engine.ok(&["volume", "create", "--driver", "volhost", name]), name);
}

/// The directory of a volume on the one backend that needs no configuration.
pub(crate) fn directory(daemon: &Daemon<'_>, volume: &str) -> PathBuf {
    daemon.path("var/lib/volhost/volumes").join(volume)
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn serve_without_any_configuration_gives_an_engine_its_volumes() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).without_root().unconfigured().start();
    assert_eq!(daemon.addresses(), ["https://127.0.0.1:7443"]);
    let engine = Engine::start(&web1);

    create(&engine, "db");
    engine.run(&["-v", "db:/x"], "echo hello > /x/file");
    assert_eq!(engine.run(&["-v", "db:/x:ro"], "cat /x/file"), "hello");
    assert_eq!(fs::read_to_string(directory(&daemon, "db").join("file")).unwrap(), "hello\n");
    assert_eq!(daemon.volumes(), ["db"]);
    daemon.has_mounts(&[]);

    assert_eq!(engine.ok(&["volume", "rm", "db"]), "db");
    assert!(!directory(&daemon, "db").exists());
    assert_eq!(daemon.volumes(), [""; 0]);
    assert_eq!(engine.ok(&["volume", "ls", "-q"]), "");

    let secrets = web1.run(["find", "/etc/volhost/pki", "-name", "*.key", "-printf", "%m\n"]).ok();
    assert!(!secrets.is_empty() && secrets.lines().all(|mode| mode == "600"), "modes of keys: {secrets}");
}

#[test]
fn everything_lies_below_the_root_that_is_given() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).unconfigured().start();
    show_spec(&web1, &daemon);
    let engine = Engine::start(&web1);
    create(&engine, "db");
    engine.run(&["-v", "db:/x"], "echo hello > /x/file");
    assert!(directory(&daemon, "db").join("file").exists());
    engine.ok(&["volume", "rm", "db"]);
    assert_eq!(files(&web1.path("/var/lib/volhost")), [""; 0]);
    assert!(!web1.path("/etc/volhost").exists() && !web1.path("/run/volhost").exists());
}

#[test]
fn labels_and_options_outlive_a_crash_an_offline_backend_and_a_stopped_service() {
    let web1 = Host::new("web1");
    let mut daemon = serve(&web1);
    let mut engine = Engine::start(&web1);
    let words = ["volume", "create", "-d", "volhost", "--label", "tier=gold", "-o", "mode=0750", "db"];
    engine.ok(&words);
    assert_eq!(fs::metadata(directory(&daemon, "db")).unwrap().permissions().mode() & 0o7777, 0o750);
    engine.run(&["-v", "db:/x"], "echo hello > /x/file");
    let remembered = |engine: &Engine<'_>| {
        let volume = engine.inspect("db");
        assert_eq!(volume["Labels"], json!({ "tier": "gold" }), "{volume}");
        assert_eq!(volume["Options"], json!({ "mode": "0750" }), "{volume}");
        volume["Status"]["backend_state"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(remembered(&engine), "online");

    daemon.kill9();
    let (here, away) = (daemon.path("var/lib/volhost/volumes"), daemon.path("var/lib/volhost/away"));
    fs::rename(&here, &away).unwrap();
    daemon.start_again();
    assert_eq!(remembered(&engine), "offline");
    let refusal = engine.fails(&["run", "--rm", "--network=none", "-v", "db:/x", "box", "true"]);
    assert!(refusal.contains("offline"), "{refusal}");
    daemon.has_mounts(&[]);
    assert!(!here.join("db").exists(), "something was made where the backend is missing");

    // A service that is down keeps the engine from answering, but not from remembering.
    assert_eq!(daemon.terminate().code(), Some(0));
    assert_eq!(engine.ok(&["volume", "ls", "-q"]), "db");
    assert!(engine.fails(&["volume", "inspect", "db"]).contains("connection refused"));

    if here.exists() {
        fs::remove_dir_all(&here).unwrap();
    }
    fs::rename(&away, &here).unwrap();
    daemon.start_again();
    assert_eq!(remembered(&engine), "online");
    engine.stop();
    engine.start_again();
    assert_eq!(remembered(&engine), "online");
    assert_eq!(engine.run(&["-v", "db:/x"], "cat /x/file"), "hello");
}

#[test]
fn odd_names_are_refused_and_touch_nothing() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    create(&engine, "c");
    let backend = daemon.path("var/lib/volhost/volumes");
    let before = (files(&backend), files(&daemon.path("var/lib/volhost")));
    for name in
        ["a b/../c", "../escape", "..", ".volhost", ".volhost/trash", "a/b", "/etc", "é", &"a".repeat(256)]
    {
        let refusal = engine.fails(&["volume", "create", "-d", "volhost", name]);
        assert!(refusal.contains("volume name"), "{name}: {refusal}");
        // With a slash in it a name of a command line becomes another path of the engine's own API: that is between
        // the client and the engine, and `volume rm "a b/../c"` removes `c`.
        if !name.contains('/') && name != ".." {
            engine.fails(&["volume", "inspect", name]);
            engine.fails(&["volume", "rm", name]);
        }
    }
    assert_eq!((files(&backend), files(&daemon.path("var/lib/volhost"))), before);
    assert_eq!(daemon.volumes(), ["c"]);
    create(&engine, &"a".repeat(255));
}

#[test]
fn options_that_are_not_known_are_refused_with_the_known_ones() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    let refusal = engine.fails(&["volume", "create", "-d", "volhost", "-o", "sizze=1G", "db"]);
    assert!(refusal.contains("sizze") && refusal.contains("backend, uid, gid, mode"), "{refusal}");
    assert_eq!(daemon.volumes(), [""; 0]);
    engine.ok(&["volume", "create", "-d", "volhost", "-o", "uid=70", "-o", "gid=70", "db"]);
    assert_eq!(engine.run(&["-v", "db:/x"], "stat -c %u:%g /x"), "70:70");
}

#[test]
fn an_image_fills_an_empty_volume_and_no_other() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    let at_data = |volume: &str, more: &str| {
        format!("type=volume,source={volume},target=/data,volume-driver=volhost{more}")
    };
    assert_eq!(engine.run(&["--mount", &at_data("fresh", "")], "cat /data/seed"), "seed");
    assert_eq!(files(&directory(&daemon, "fresh")), ["seed"]);
    assert_eq!(engine.run(&["--mount", &at_data("bare", ",volume-nocopy")], "ls /data"), "");
    engine.run(&["--mount", &at_data("bare", ",volume-nocopy")], "echo mine > /data/mine");
    assert_eq!(engine.run(&["--mount", &at_data("bare", "")], "ls /data"), "mine");
    // With the image's data comes the mode of the image's directory, whatever was asked for.
    for (volume, more, mode) in [("copied", "", 0o755), ("kept", ",volume-nocopy", 0o700)] {
        engine.ok(&["volume", "create", "-d", "volhost", "-o", "mode=0700", volume]);
        engine.run(&["--mount", &at_data(volume, more)], "ls /data");
        let made = fs::metadata(directory(&daemon, volume)).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, mode, "{volume}");
    }
}

#[test]
fn mounts_are_counted_through_copies_restarts_and_kills() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    create(&engine, "db");
    let one = [("db", "web1", false)];

    engine.sleeper("c1", &["-v", "db:/x"]);
    daemon.has_mounts(&one);
    let local = web1.dir().join("file");
    let local = local.to_str().unwrap();
    fs::write(local, "copied\n").unwrap();
    // Each copy mounts and unmounts under the running container's own ID.
    engine.ok(&["cp", local, "c1:/x/file"]);
    daemon.has_mounts(&one);
    engine.ok(&["cp", "c1:/x/file", &format!("{local}.back")]);
    daemon.has_mounts(&one);
    assert_eq!(fs::read_to_string(format!("{local}.back")).unwrap(), "copied\n");

    engine.ok(&["restart", "--time", "0", "c1"]);
    daemon.has_mounts(&one);
    engine.ok(&["kill", "c1"]);
    until("the unmount after a kill", SOON, || daemon.mounts().is_empty().then_some(()));
    engine.ok(&["start", "c1"]);
    daemon.has_mounts(&one);
    engine.sleeper("c2", &["-v", "db:/y:ro"]);
    daemon.has_mounts(&[("db", "web1", false), ("db", "web1", false)]);
    assert!(engine.fails(&["volume", "rm", "db"]).contains("in use"));
    engine.ok(&["rm", "--force", "c1", "c2"]);
    daemon.has_mounts(&[]);
    engine.ok(&["volume", "rm", "db"]);
}

#[test]
fn anonymous_volumes_go_with_their_container() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    engine.run(&["--mount", "type=volume,volume-driver=volhost,target=/x"], "echo hello > /x/file");
    engine.run(&["--volume-driver", "volhost", "-v", "/x"], "echo hello > /x/file");
    assert_eq!(daemon.volumes(), [""; 0]);
    daemon.has_mounts(&[]);
}

#[test]
fn an_engine_that_is_killed_goes_on_and_its_old_mounts_wait_for_the_operator() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let mut engine = Engine::start(&web1);
    create(&engine, "db");
    engine.sleeper("c1", &["-v", "db:/x"]);
    engine.kill9();
    engine.start_again();
    // The engine ended what ran before, and never told us: that mount is stale from its next activation on.
    assert_eq!(engine.run(&["-v", "db:/x"], "echo hello > /x/file && cat /x/file"), "hello");
    engine.ok(&["start", "c1"]);
    daemon.has_mounts(&[("db", "web1", true), ("db", "web1", false)]);
    engine.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[("db", "web1", true)]);
    engine.fails(&["volume", "rm", "db"]);
    daemon.cli(&["mount", "release", "db", "web1", "--yes"]).ok();
    daemon.has_mounts(&[]);
    engine.ok(&["volume", "rm", "db"]);
}

#[test]
fn containers_go_on_while_volhost_is_killed_and_started_again() {
    let web1 = Host::new("web1");
    let mut daemon = serve(&web1);
    let engine = Engine::start(&web1);
    create(&engine, "db");
    engine.sleeper("c1", &["-v", "db:/x"]);
    daemon.kill9();
    assert_eq!(engine.ok(&["exec", "c1", "sh", "-c", "echo hello > /x/file && cat /x/file"]), "hello");
    daemon.start_again();
    daemon.has_mounts(&[("db", "web1", false)]);
    engine.ok(&["restart", "--time", "0", "c1"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    assert_eq!(engine.ok(&["exec", "c1", "cat", "/x/file"]), "hello");
    engine.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
    engine.ok(&["volume", "rm", "db"]);
}

#[test]
fn an_engine_finds_volhost_by_either_form_of_spec_file_and_over_each_transport() {
    let socket = "unix:/run/volhost/plugin.sock";
    // Over a Unix socket the engine is this machine's; over plain TCP it is nobody in particular.
    let cases = [
        (socket, "spec", "web1"),
        (socket, "json", "web1"),
        ("http://127.0.0.1:7080", "spec", "anonymous"),
        ("http://127.0.0.1:7080", "json", "anonymous"),
    ];
    for (address, format, holder) in cases {
        let web1 = Host::new("web1");
        let mut config = json!({ "node": "web1", "listen": [address], "spec": { "format": format } });
        let daemon = Daemon::setup().on(&web1).without_root().config(&config).start();
        assert_eq!(files(&web1.path("/etc/docker/plugins")), [format!("volhost.{format}")], "{address}");
        let engine = Engine::start(&web1);
        create(&engine, "db");
        engine.sleeper("c1", &["-v", "db:/x"]);
        daemon.has_mounts(&[("db", holder, false)]);
        engine.ok(&["rm", "--force", "c1"]);
        daemon.has_mounts(&[]);
        if holder == "anonymous" {
            // Whoever is nobody in particular removes nothing, until that is said to be right.
            assert!(engine.fails(&["volume", "rm", "db"]).contains("host anonymous may not remove"));
            config["hosts"] = json!({ "anonymous": {} });
            daemon.put("etc/volhost/volhost.json", &config.to_string());
            until("anonymous to be listed", SOON, || {
                (engine.docker(&["volume", "rm", "db"]).code == Some(0)).then_some(())
            });
        } else {
            engine.ok(&["volume", "rm", "db"]);
        }
        assert_eq!(daemon.volumes(), [""; 0]);
    }
}

#[test]
fn a_container_that_outlives_its_engine_keeps_its_mount_until_it_ends() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let mut engine = Engine::with_options(&web1, &["--live-restore"]);
    create(&engine, "db");
    engine.sleeper("c1", &["-v", "db:/x"]);
    let process = |engine: &Engine<'_>| engine.ok(&["inspect", "--format", "{{.State.Pid}}", "c1"]);
    let before = process(&engine);
    engine.kill9();
    engine.start_again();
    assert_eq!(process(&engine), before, "the container was started anew");
    // The engine took it over without another Mount: what volhost knows of it belongs to the engine's earlier life.
    engine.run(&["-v", "db:/x"], "echo hello > /x/file");
    assert_eq!(engine.ok(&["exec", "c1", "cat", "/x/file"]), "hello");
    daemon.has_mounts(&[("db", "web1", true)]);
    engine.fails(&["volume", "rm", "db"]);
    // The Unmount at its end finds that mount by its ID.
    engine.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
    engine.ok(&["volume", "rm", "db"]);
}
