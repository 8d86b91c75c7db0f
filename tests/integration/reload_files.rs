//! Files that a reload does not find, cannot read, or must not believe: what was in force stays, nobody is held up, and
//! the operator is told which file it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::authority::{Authority, from_now};
use crate::harness::wait::{SOON, until};
use crate::reload::{CONFIG, MAP, Own, in_force, last_reload, map, serves, works};
use volhost_test_fuse::FuseFs;

/// A pipe without a writer: whoever opens it waits.
fn pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

/// What became of one unit at `volhost reload`, with this exit code.
#[track_caller]
fn reload(daemon: &Daemon<'_>, unit: &str, words: &[&str], code: i32) -> Value {
    let said = daemon.cli(&[&["reload", "--json"], words].concat());
    assert_eq!(said.code, Some(code), "{}\n{}", said.stdout, said.stderr);
    let reloads: Value = serde_json::from_str(&said.stdout).unwrap();
    reloads.as_array().unwrap().iter().find(|reload| reload["unit"] == unit).unwrap().clone()
}

/// The faults of a unit that a reload rejects, whatever else it does.
#[track_caller]
fn rejected(daemon: &Daemon<'_>, unit: &str) -> String {
    let reload = reload(daemon, unit, &[], 78);
    assert_eq!(reload["result"], "rejected", "{reload}");
    reload["faults"].to_string()
}

#[test]
fn a_configuration_that_is_gone_stays_in_force_until_that_is_meant() {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["hosts"] = json!({ "node1": { "rights": ["mount"] } });
    config["spec"] = Value::Null;
    let daemon = setup.config(&config).start();
    let mut engine = daemon.unix();
    let create = json!({ "Name": "db" });
    assert_eq!(engine.call("/VolumeDriver.Create", &create).unwrap().status, 403);

    fs::rename(daemon.path(CONFIG), daemon.path("etc/volhost/away.json")).unwrap();
    in_force("the rejection", || last_reload(&daemon)["result"] == "rejected");
    let fault = rejected(&daemon, "configuration");
    assert!(fault.contains("volhost.json") && fault.contains("reload --force"), "{fault}");
    assert_eq!(engine.call("/VolumeDriver.Create", &create).unwrap().status, 403, "the rights are gone");
    assert!(!daemon.path("etc/docker/plugins/volhost.json").exists(), "a spec file was written");

    // What is put back is in force as before; and who means it says so.
    fs::rename(daemon.path("etc/volhost/away.json"), daemon.path(CONFIG)).unwrap();
    in_force("the file put back", || last_reload(&daemon)["result"] == "applied");
    fs::remove_file(daemon.path(CONFIG)).unwrap();
    in_force("the rejection again", || last_reload(&daemon)["result"] == "rejected");
    assert_eq!(reload(&daemon, "configuration", &["--force"], 0)["result"], "applied");
    assert_eq!(engine.call("/VolumeDriver.Create", &create).unwrap().status, 200);
    assert!(daemon.path("etc/docker/plugins/volhost.json").exists());
    // From then on there is no file to be missed.
    assert_eq!(reload(&daemon, "configuration", &[], 0)["result"], "applied");
}

#[test]
fn a_map_that_is_gone_stays_in_force_until_that_is_meant() {
    let daemon = Daemon::start();
    let mut client = daemon.tls();
    daemon.put(MAP, &map(&daemon, &["fast"]));
    in_force("map", || serves(&mut client, "fast"));
    fs::remove_file(daemon.path(MAP)).unwrap();
    in_force("the rejection", || last_reload(&daemon)["result"] == "rejected");
    let fault = rejected(&daemon, "configuration");
    assert!(fault.contains("backends.json") && fault.contains("reload --force"), "{fault}");
    assert!(serves(&mut client, "fast"), "the map in force went with its file");
    assert_eq!(reload(&daemon, "configuration", &["--force"], 0)["result"], "applied");
    assert!(!serves(&mut client, "fast") && serves(&mut client, "default"));
}

#[test]
fn certificates_of_our_own_that_are_gone_are_not_made_anew_unasked() {
    let daemon = Daemon::start();
    let pki = |name: &str| daemon.path("etc/volhost/pki").join(name);
    let engine = daemon.identity();
    let served = || daemon.connect(&engine).unwrap().server().to_vec();
    let before = served();

    // The authority: another one would shut every host out.
    let ca = fs::read(pki("ca.crt")).unwrap();
    for name in ["ca.crt", "ca.key"] {
        fs::rename(pki(name), daemon.path(name)).unwrap();
    }
    in_force("the rejection", || last_reload(&daemon)["unit"] == "certificates");
    let fault = rejected(&daemon, "certificates");
    assert!(fault.contains("pki/ca.crt") && fault.contains("reload --force"), "{fault}");
    assert!(!pki("ca.crt").exists() && !pki("ca.key").exists(), "an authority was made");
    for name in ["ca.key", "ca.crt"] {
        fs::rename(daemon.path(name), pki(name)).unwrap();
    }
    in_force("the authority put back", || last_reload(&daemon)["result"] == "applied");
    assert_eq!(fs::read(pki("ca.crt")).unwrap(), ca);

    // The server's pair: how its key is changed, by the operator's word.
    for name in ["server.crt", "server.key"] {
        fs::remove_file(pki(name)).unwrap();
    }
    let fault = rejected(&daemon, "certificates");
    assert!(fault.contains("pki/server."), "{fault}");
    assert_eq!(served(), before);
    assert_eq!(reload(&daemon, "certificates", &["--force"], 0)["result"], "applied");
    assert_ne!(served(), before);
}

#[test]
fn certificates_and_a_list_of_others_that_are_gone_stay_in_force() {
    let own = Own::start(json!({ "*": {} }));
    let (web1, web99) = (own.identity(&own.ca, "web1", 1), own.identity(&own.ca, "web99", 99));
    for (name, unit) in [
        ("server.crt", "certificates"),
        ("server.key", "certificates"),
        ("ca.crt", "certificates"),
        ("crl.pem", "crl"),
    ] {
        let (file, away) = (own.daemon.path("tls").join(name), own.daemon.path("away"));
        fs::rename(&file, &away).unwrap();
        let fault = rejected(&own.daemon, unit);
        assert!(fault.contains(name), "{fault}");
        assert!(own.lets_in(&web1) && !own.lets_in(&web99), "without {name}");
        fs::rename(&away, &file).unwrap();
        let mended = || own.daemon.cli(&["reload"]).code == Some(0);
        until("the file put back", SOON, || mended().then_some(()));
    }
}

#[test]
fn a_start_without_a_configuration_says_so_first() {
    let daemon = Daemon::setup().unconfigured().start();
    let log = daemon.log();
    let first = log.lines().next().unwrap();
    assert!(first.contains("no configuration") && first.contains("volhost.json"), "{log}");
    drop(daemon);
    let log = Daemon::start().log();
    assert!(!log.contains("no configuration"), "{log}");
}

#[test]
fn a_pipe_in_the_place_of_a_file_holds_nobody_up() {
    let own = Own::start(json!({ "*": {} }));
    let daemon = &own.daemon;
    let web1 = own.identity(&own.ca, "web1", 1);
    let mut client = own.connect(&web1);
    for (name, unit) in [
        ("tls/crl.pem", "crl"),
        ("tls/server.key", "certificates"),
        ("tls/ca.crt", "certificates"),
        (CONFIG, "configuration"),
    ] {
        let (file, away) = (daemon.path(name), daemon.path("away"));
        fs::rename(&file, &away).unwrap();
        pipe(&file);
        let began = Instant::now();
        let fault = rejected(daemon, unit);
        assert!(fault.contains(name.rsplit('/').next().unwrap()) && fault.contains("pipe"), "{fault}");
        assert!(began.elapsed() < Duration::from_secs(8), "{name} held the reload up");
        assert!(works(&mut client) && own.lets_in(&web1));
        fs::rename(&away, &file).unwrap();
        let mended = || daemon.cli(&["reload"]).code == Some(0);
        until("the file put back", SOON, || mended().then_some(()));
    }
    // A directory, and a device that never ends.
    let (file, away) = (daemon.path("tls/crl.pem"), daemon.path("away"));
    fs::rename(&file, &away).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    let fault = rejected(daemon, "crl");
    assert!(fault.contains("crl.pem") && fault.contains("device"), "{fault}");
    // More than any list of revocations holds.
    fs::remove_file(&file).unwrap();
    fs::File::create(&file).unwrap().set_len(1 << 30).unwrap();
    let fault = rejected(daemon, "crl");
    assert!(fault.contains("crl.pem") && fault.contains("MiB"), "{fault}");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 300_000, "{peak} kB were taken for a file that is not even read");
}

#[test]
fn a_start_does_not_wait_for_a_pipe() {
    for name in ["etc/volhost/volhost.json", "etc/volhost/backends.json", "etc/volhost/pki/ca.crt"] {
        let setup = Daemon::setup();
        let file = setup.root().join(name);
        let setup = setup.file("x", "");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let setup = if name == CONFIG { setup.unconfigured() } else { setup };
        pipe(&file);
        let began = Instant::now();
        let (status, log) = setup.refused(|| ());
        assert!(began.elapsed() < Duration::from_secs(8), "{name}: {log}");
        assert!(log.contains(name) && log.contains("pipe"), "{log}");
        assert_eq!(status.code(), Some(78), "{log}");
    }
}

#[test]
fn a_share_that_hangs_holds_up_its_own_unit_for_a_while_and_no_other() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let ca = Authority::new("the company's CA");
    let setup = Own::setup(&ca, Some(json!({ "*": {} })));
    let (backing, share) = (setup.root().join("backing"), setup.root().join("share"));
    for directory in [&backing, &share] {
        fs::create_dir_all(directory).unwrap();
    }
    fs::write(backing.join("crl.pem"), ca.crl(&[99])).unwrap();
    let storage = FuseFs::mount(&backing, &share).unwrap();
    let mut config = Own::config(&setup.root(), Some(json!({ "*": {} })));
    config["tls"]["crl"] = share.join("crl.pem").to_str().unwrap().into();
    let own = Own { daemon: setup.config(&config).start(), ca };
    // Dropped first: a process that waits for the share does not end.
    let storage = storage;
    let daemon = &own.daemon;
    let (web1, web99) = (own.identity(&own.ca, "web1", 1), own.identity(&own.ca, "web99", 99));
    assert!(own.lets_in(&web1) && !own.lets_in(&web99));

    storage.control().hang(true);
    daemon.signal("HUP");
    let mut client = own.connect(&web1);
    let good = map(daemon, &["fast"]);
    daemon.put(MAP, &good);
    in_force("the map, while the list hangs", || serves(&mut client, "fast"));
    let before = own.connect(&web1).server().to_vec();
    let next = own.ca.server();
    daemon.put("tls/server.key", &next.key);
    daemon.put("tls/server.crt", &next.cert);
    in_force("a certificate, while the list hangs", || own.connect(&web1).server() != before);
    // Who waits for the unit is answered in time, and the status names the file.
    let began = Instant::now();
    let fault = rejected(daemon, "crl");
    assert!(began.elapsed() < Duration::from_secs(16), "{:?}", began.elapsed());
    assert!(fault.contains("crl.pem") && fault.contains("does not answer"), "{fault}");
    let troubles = daemon.status()["troubles"].to_string();
    assert!(troubles.contains("crl.pem"), "{troubles}");
    let table = daemon.cli(&["status"]).ok();
    assert!(table.contains("crl.pem"), "{table}");
    assert!(own.lets_in(&web1) && !own.lets_in(&web99), "the list in force went with its share");
    // Nobody who asks again leaves another thread behind.
    let threads = || fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap().count();
    let count = threads();
    for _ in 0..5 {
        rejected(daemon, "crl");
    }
    assert!(threads() <= count + 2, "{} threads, and {count} before", threads());

    storage.control().behave();
    fs::write(backing.join("crl.pem"), own.ca.crl(&[1, 99])).unwrap();
    let shut_out = || (!own.lets_in(&web1)).then_some(());
    until("the list that is in force when the share answers again", SOON, shut_out);
    until("the status", SOON, || (daemon.status()["troubles"] == json!([])).then_some(()));
}

#[test]
fn an_expired_certificate_does_not_replace_a_good_one_unasked() {
    let own = Own::start(json!({ "*": {} }));
    let web1 = own.identity(&own.ca, "web1", 1);
    let served = || own.connect(&web1).server().to_vec();
    let before = served();
    let old = own.ca.server_until(from_now(-1));
    own.daemon.put("tls/server.key", &old.key);
    own.daemon.put("tls/server.crt", &old.cert);
    let fault = rejected(&own.daemon, "certificates");
    assert!(fault.contains("server.crt") && fault.contains("expired"), "{fault}");
    assert!(fault.contains("reload --force"), "{fault}");
    assert_eq!(served(), before);
    assert_eq!(reload(&own.daemon, "certificates", &["--force"], 0)["result"], "applied");
    // By then it is in force, and reading it once more is no replacement.
    assert_eq!(reload(&own.daemon, "certificates", &[], 0)["result"], "applied");
}

#[test]
fn an_older_list_takes_no_revocation_back_unasked() {
    let own = Own::start(json!({ "*": {} }));
    let web1 = own.identity(&own.ca, "web1", 1);
    own.daemon.put("tls/crl.pem", &own.ca.crl_of(&[1], 3, from_now(0)));
    in_force("the revocation", || !own.lets_in(&web1));
    for older in [own.ca.crl_of(&[99], 2, from_now(0)), own.ca.crl_of(&[99], 3, from_now(-2))] {
        own.daemon.put("tls/crl.pem", &older);
        let fault = rejected(&own.daemon, "crl");
        assert!(fault.contains("crl.pem") && fault.contains("older"), "{fault}");
        assert!(fault.contains("reload --force"), "{fault}");
        assert!(!own.lets_in(&web1), "an older list let a revoked host in");
    }
    // A file that has no word of that CA any more says less still.
    let other = Authority::new("the company's other CA");
    own.daemon.put("tls/ca.crt", &format!("{}{}", own.ca.pem(), other.pem()));
    own.daemon.put("tls/crl.pem", &other.crl(&[7]));
    let fault = rejected(&own.daemon, "crl");
    assert!(fault.contains("the company's CA"), "{fault}");
    assert!(!own.lets_in(&web1));
    own.daemon.put("tls/crl.pem", &own.ca.crl_of(&[99], 2, from_now(0)));
    assert_eq!(reload(&own.daemon, "crl", &["--force"], 0)["result"], "applied");
    until("the revocation taken back", SOON, || own.lets_in(&web1).then_some(()));
    own.daemon.put("tls/crl.pem", &own.ca.crl_of(&[1], 4, from_now(0)));
    in_force("a newer list", || !own.lets_in(&web1));
}
