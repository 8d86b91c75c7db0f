//! Docker Engine uses volhost: the way of a first user, of a second host, and what engines do on their bad days.
//!
//! The engine is Debian's `docker.io`; each runs on a machine of its own. Where not said otherwise volhost runs on the
//! same machine under `--root`, and the spec files that it writes there are shown to the engine where it looks for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::http::{Client, Target};
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};

/// volhost on a machine whose engine will find it.
fn serve(host: &Host) -> Daemon<'_> {
    let daemon = Daemon::setup().on(host).start();
    show_spec(host, &daemon);
    daemon
}

fn show_spec(host: &Host, daemon: &Daemon<'_>) {
    host.bind(&daemon.path("etc/docker/plugins"), "/etc/docker/plugins");
}

/// volhost on `web1` for other machines too: reached at the machine's address on the network that `web2` has joined.
fn serve_both<'a>(web1: &'a Host, web2: &Host) -> Daemon<'a> {
    web2.join(web1);
    let advertised = advertised();
    let daemon = Daemon::setup()
        .on(web1)
        .config(&json!({ "node": "web1", "listen": ["https://127.0.0.1:7443", advertised] }))
        .start();
    show_spec(web1, &daemon);
    daemon
}

fn advertised() -> String {
    format!("https://{}:7443", Host::GATEWAY)
}

/// Makes a bundle for a machine and unpacks it there as the README says.
fn join(daemon: &Daemon<'_>, host: &Host) {
    let bundle = host.dir().join("bundle.tar");
    let bundle = bundle.to_str().unwrap();
    daemon.cli(&["host", "add", host.name(), "--advertise", &advertised(), "-o", bundle]).ok();
    host.run(["tar", "-C", "/", "-xf", bundle]).ok();
}

fn create(engine: &Engine<'_>, name: &str) {
    assert_eq!(engine.ok(&["volume", "create", "--driver", "volhost", name]), name);
}

/// The names that volhost lists.
fn volumes(daemon: &Daemon<'_>) -> Vec<String> {
    let listed = daemon.cli(&["volume", "ls", "--json"]).json();
    let name = |volume: &Value| volume["name"].as_str().unwrap().to_owned();
    listed.as_array().unwrap().iter().map(name).collect()
}

/// The mounts that volhost lists: volume, host, count, and whether it is stale.
fn mounts(daemon: &Daemon<'_>) -> Vec<(String, String, u64, bool)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let listed = daemon.cli(&["mount", "ls", "--json"]).json();
    let mount = |m: &Value| {
        (text(&m["volume"]), text(&m["host"]), m["count"].as_u64().unwrap(), m["stale"].as_bool().unwrap())
    };
    listed.as_array().unwrap().iter().map(mount).collect()
}

fn mount(volume: &str, host: &str) -> (String, String, u64, bool) {
    (volume.to_owned(), host.to_owned(), 1, false)
}

fn stale((volume, host, count, _): (String, String, u64, bool)) -> (String, String, u64, bool) {
    (volume, host, count, true)
}

/// The directory of a volume on the one backend that needs no configuration.
fn directory(daemon: &Daemon<'_>, volume: &str) -> std::path::PathBuf {
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
    assert_eq!(volumes(&daemon), ["db"]);
    assert_eq!(mounts(&daemon), []);

    assert_eq!(engine.ok(&["volume", "rm", "db"]), "db");
    assert!(!directory(&daemon, "db").exists());
    assert_eq!(volumes(&daemon), [""; 0]);
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
fn a_second_host_joins_by_a_bundle_and_shares_the_volumes() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let (first, second) = (Engine::start(&web1), Engine::start(&web2));

    create(&first, "db");
    first.run(&["-v", "db:/x"], "echo from web1 > /x/file");
    // No driver is named here: the engine asks its plugins for a name it does not know.
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file && echo from web2 > /x/file"), "from web1");
    assert_eq!(first.run(&["-v", "db:/x"], "cat /x/file"), "from web2");

    second.sleeper("keeper", &["-v", "db:/x"]);
    assert_eq!(mounts(&daemon), [mount("db", "web2")]);
    let refusal = first.fails(&["volume", "rm", "db"]);
    assert!(refusal.contains("web2"), "the holder is not named: {refusal}");
    assert_eq!(fs::read_to_string(directory(&daemon, "db").join("file")).unwrap(), "from web2\n");

    second.ok(&["rm", "--force", "keeper"]);
    assert_eq!(mounts(&daemon), []);
    first.ok(&["volume", "rm", "db"]);
    assert_eq!(second.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn a_bundle_holds_four_files_and_the_spec_comes_last() {
    let daemon = Daemon::start();
    let bundle = daemon.path("web2.tar");
    let bundle = bundle.to_str().unwrap();
    daemon.cli(&["host", "add", "web2", "--advertise", "https://store1.example:7443", "-o", bundle]).ok();
    let mut archive = tar::Archive::new(fs::File::open(bundle).unwrap());
    let entries: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            assert!(header.entry_type().is_file(), "{:?} is no file", entry.path());
            (entry.path().unwrap().to_str().unwrap().to_owned(), header.mode().unwrap() & 0o7777)
        })
        .collect();
    let names: Vec<_> = entries.iter().map(|(name, _)| &**name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let below = |name: &str| format!("etc/docker/{name}");
    assert_eq!(
        sorted,
        ["plugins/volhost.json", "volhost/ca.crt", "volhost/host.crt", "volhost/host.key"].map(below)
    );
    assert_eq!(names.last(), Some(&"etc/docker/plugins/volhost.json"));
    let key = entries.iter().find(|(name, _)| name.ends_with("host.key")).unwrap();
    assert_eq!(key.1, 0o600);
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
    assert_eq!(mounts(&daemon), []);
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
    assert_eq!(volumes(&daemon), ["c"]);
    create(&engine, &"a".repeat(255));
}

#[test]
fn options_that_are_not_known_are_refused_with_the_known_ones() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    let refusal = engine.fails(&["volume", "create", "-d", "volhost", "-o", "sizze=1G", "db"]);
    assert!(refusal.contains("sizze") && refusal.contains("backend, uid, gid, mode"), "{refusal}");
    assert_eq!(volumes(&daemon), [""; 0]);
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
}

#[test]
fn mounts_are_counted_through_copies_restarts_and_kills() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    create(&engine, "db");
    let one = [mount("db", "web1")];

    engine.sleeper("c1", &["-v", "db:/x"]);
    assert_eq!(mounts(&daemon), one);
    let local = web1.dir().join("file");
    let local = local.to_str().unwrap();
    fs::write(local, "copied\n").unwrap();
    // Each copy mounts and unmounts under the running container's own ID.
    engine.ok(&["cp", local, "c1:/x/file"]);
    assert_eq!(mounts(&daemon), one);
    engine.ok(&["cp", "c1:/x/file", &format!("{local}.back")]);
    assert_eq!(mounts(&daemon), one);
    assert_eq!(fs::read_to_string(format!("{local}.back")).unwrap(), "copied\n");

    engine.ok(&["restart", "--time", "0", "c1"]);
    assert_eq!(mounts(&daemon), one);
    engine.ok(&["kill", "c1"]);
    until("the unmount after a kill", SOON, || mounts(&daemon).is_empty().then_some(()));
    engine.ok(&["start", "c1"]);
    assert_eq!(mounts(&daemon), one);
    engine.sleeper("c2", &["-v", "db:/y:ro"]);
    assert_eq!(mounts(&daemon), [mount("db", "web1"), mount("db", "web1")]);
    assert!(engine.fails(&["volume", "rm", "db"]).contains("in use"));
    engine.ok(&["rm", "--force", "c1", "c2"]);
    assert_eq!(mounts(&daemon), []);
    engine.ok(&["volume", "rm", "db"]);
}

#[test]
fn anonymous_volumes_go_with_their_container() {
    let web1 = Host::new("web1");
    let daemon = serve(&web1);
    let engine = Engine::start(&web1);
    engine.run(&["--mount", "type=volume,volume-driver=volhost,target=/x"], "echo hello > /x/file");
    engine.run(&["--volume-driver", "volhost", "-v", "/x"], "echo hello > /x/file");
    assert_eq!(volumes(&daemon), [""; 0]);
    assert_eq!(mounts(&daemon), []);
}

#[test]
fn a_crashed_engine_leaves_mounts_that_only_the_operator_releases() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let first = Engine::start(&web1);
    create(&first, "db");
    let second = Engine::start(&web2);
    second.sleeper("c1", &["-v", "db:/x"]);
    let alive = mount("db", "web2");
    assert_eq!(mounts(&daemon), std::slice::from_ref(&alive));

    // What may be alive is not released by the word for what is dead.
    daemon.cli(&["mount", "release", "db", "web2", "--yes"]);
    assert_eq!(mounts(&daemon), std::slice::from_ref(&alive));

    // The machine loses power and comes back under the same name, with the same bundle.
    drop(second);
    drop(web2);
    let web2 = Host::new("web2");
    web2.join(&web1);
    join(&daemon, &web2);
    let second = Engine::start(&web2);
    assert_eq!(second.ok(&["volume", "ls", "-q"]), "db");
    until("the new activation", SOON, || (mounts(&daemon) == [stale(alive.clone())]).then_some(()));
    second.sleeper("c2", &["-v", "db:/x"]);
    second.ok(&["rm", "--force", "c2"]);
    assert_eq!(mounts(&daemon), [stale(alive)], "a new engine's unmount took an old engine's mount");
    for engine in [&first, &second] {
        let refusal = engine.fails(&["volume", "rm", "db"]);
        assert!(refusal.contains("web2"), "{refusal}");
    }

    daemon.cli(&["mount", "release", "db", "web2", "--yes"]).ok();
    assert_eq!(mounts(&daemon), []);
    first.ok(&["volume", "rm", "db"]);
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
    let (dead, alive) = (stale(mount("db", "web1")), mount("db", "web1"));
    let both = mounts(&daemon);
    assert!(both.len() == 2 && both.contains(&dead) && both.contains(&alive), "{both:?}");
    engine.ok(&["rm", "--force", "c1"]);
    assert_eq!(mounts(&daemon), [dead]);
    engine.fails(&["volume", "rm", "db"]);
    daemon.cli(&["mount", "release", "db", "web1", "--yes"]).ok();
    assert_eq!(mounts(&daemon), []);
    engine.ok(&["volume", "rm", "db"]);
}

#[test]
fn a_revoked_host_is_shut_out_at_once_and_forgets_nothing() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let mut engine = Engine::start(&web2);
    engine.ok(&["volume", "create", "-d", "volhost", "--label", "tier=gold", "db"]);
    // The host's name is in the certificate, so a second bundle for it proves the same host.
    let identity = daemon.add_host("web2", &["--advertise", &advertised()], &web2.dir().join("bundle"));
    let address = advertised().strip_prefix("https://").unwrap().parse().unwrap();
    let connect = || Client::tls(web2.dial(address).unwrap(), &identity.ca, Some(&identity));
    let mut open = connect().unwrap();
    assert_eq!(open.call("/VolumeDriver.Get", &json!({ "Name": "db" })).unwrap().status, 200);

    daemon.cli(&["host", "revoke", "web2"]).ok();
    let revoked = Instant::now();
    assert!(open.is_closed(), "an open connection outlived the revocation");
    let took = revoked.elapsed();
    assert!(took < Duration::from_secs(3), "the revocation took {took:?}");
    let again = connect().and_then(|mut client| client.call("/VolumeDriver.Get", &json!({ "Name": "db" })));
    assert!(again.is_err(), "a revoked host was answered: {again:?}");
    // To the engine this is a broken connection, never an answer: an answer would cost it the labels.
    let failure = engine.fails(&["volume", "inspect", "db"]);
    assert!(failure.contains("error while checking"), "{failure}");
    assert_eq!(volumes(&daemon), ["db"]);

    // The host that is let in again, with a certificate of a later date, finds everything as it was.
    join(&daemon, &web2);
    engine.stop();
    engine.start_again();
    assert_eq!(engine.inspect("db")["Labels"], json!({ "tier": "gold" }));
    // The other host was never concerned.
    let mut own =
        Client::tls(web1.dial(daemon.tcp("https")).unwrap(), &daemon.identity().ca, Some(&daemon.identity()));
    assert_eq!(own.as_mut().unwrap().call("/VolumeDriver.List", &json!({})).unwrap().status, 200);
}

#[test]
fn an_engine_without_a_certificate_gets_nowhere() {
    let daemon = Daemon::start();
    let ca = daemon.identity().ca;
    let stream = std::net::TcpStream::connect(daemon.tcp("https")).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let answer =
        Client::tls(stream, &ca, None).and_then(|mut client| client.call("/Plugin.Activate", &json!({})));
    assert!(answer.is_err(), "a stranger was answered: {answer:?}");
    let plain =
        Client::connect(&Target::Tcp(daemon.tcp("https"))).unwrap().call("/Plugin.Activate", &json!({}));
    assert!(
        plain.is_err() || plain.as_ref().is_ok_and(|a| a.status >= 400),
        "plain text was answered: {plain:?}"
    );
}
