//! Hosts that join, share, crash, come back and are shut out: several machines, one volhost.
//!
//! volhost runs on `web1`, and the engines of other machines reach it over the network between them, each by the
//! bundle that an administrator made for it.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::engine::{create, directory, show_spec};
use crate::harness::http::{Client, Target};
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};

/// volhost on a machine for others too: reached at its address on the network that the second one joins.
pub(crate) fn serve_both<'a>(web1: &'a Host, web2: &Host) -> Daemon<'a> {
    web2.join(web1);
    let advertised = advertised();
    let daemon = Daemon::setup()
        .on(web1)
        .config(&json!({ "node": web1.name(), "listen": ["https://127.0.0.1:7443", advertised] }))
        .start();
    show_spec(web1, &daemon);
    daemon
}

fn advertised() -> String {
    format!("https://{}:7443", Host::GATEWAY)
}

/// Makes a bundle for a machine and unpacks it there as the README says.
pub(crate) fn join(daemon: &Daemon<'_>, host: &Host) {
    let bundle = host.dir().join("bundle.tar");
    let bundle = bundle.to_str().unwrap();
    // A host that joins again gets another bundle in the place of its first.
    let verb = daemon.verb_for(host.name());
    daemon.cli(&["host", verb, host.name(), "--advertise", &advertised(), "--force", "-o", bundle]).ok();
    host.run(["tar", "-C", "/", "-xf", bundle]).ok();
}

/// Waits until a new activation is recorded that makes every mount stale: an engine has its answer before that.
#[track_caller]
pub(crate) fn until_all_stale(daemon: &Daemon<'_>) {
    until("the new activation", SOON, || daemon.mounts().iter().all(|mount| mount.stale).then_some(()));
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
    daemon.has_mounts(&[("db", "web2", false)]);
    let refusal = first.fails(&["volume", "rm", "db"]);
    assert!(refusal.contains("web2"), "the holder is not named: {refusal}");
    assert_eq!(fs::read_to_string(directory(&daemon, "db").join("file")).unwrap(), "from web2\n");

    second.ok(&["rm", "--force", "keeper"]);
    daemon.has_mounts(&[]);
    first.ok(&["volume", "rm", "db"]);
    assert_eq!(second.ok(&["volume", "ls", "-q"]), "");
}

#[test]
fn a_bundle_holds_four_files_with_their_directories_and_the_spec_comes_last() {
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
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            assert_eq!(header.entry_type().is_dir(), path.ends_with('/'), "{path}");
            assert!(header.entry_type().is_dir() || header.entry_type().is_file(), "{path}");
            (entry.path().unwrap().to_str().unwrap().to_owned(), header.mode().unwrap() & 0o7777)
        })
        .collect();
    let names: Vec<_> = entries.iter().map(|(name, _)| &**name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    let below = |name: &str| format!("etc/docker/{name}");
    assert_eq!(
        sorted,
        [
            "plugins/",
            "plugins/volhost.json",
            "volhost/",
            "volhost/ca.crt",
            "volhost/host.crt",
            "volhost/host.key"
        ]
        .map(below)
    );
    assert_eq!(names.last(), Some(&"etc/docker/plugins/volhost.json"));
    let key = entries.iter().find(|(name, _)| name.ends_with("host.key")).unwrap();
    assert_eq!(key.1, 0o600);
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
    daemon.has_mounts(&[("db", "web2", false)]);

    // What may be alive is not released by the word for what is dead.
    daemon.cli(&["mount", "release", "db", "web2", "--yes"]);
    daemon.has_mounts(&[("db", "web2", false)]);

    // The machine loses power and comes back under the same name, with the same bundle.
    drop(second);
    drop(web2);
    let web2 = Host::new("web2");
    web2.join(&web1);
    join(&daemon, &web2);
    let second = Engine::start(&web2);
    assert_eq!(second.ok(&["volume", "ls", "-q"]), "db");
    until_all_stale(&daemon);
    daemon.has_mounts(&[("db", "web2", true)]);
    second.sleeper("c2", &["-v", "db:/x"]);
    second.ok(&["rm", "--force", "c2"]);
    // A new engine's unmount does not take an old engine's mount.
    daemon.has_mounts(&[("db", "web2", true)]);
    for engine in [&first, &second] {
        let refusal = engine.fails(&["volume", "rm", "db"]);
        assert!(refusal.contains("web2"), "{refusal}");
    }

    daemon.cli(&["mount", "release", "db", "web2", "--yes"]).ok();
    daemon.has_mounts(&[]);
    first.ok(&["volume", "rm", "db"]);
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
    assert_eq!(daemon.volumes(), ["db"]);

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

#[test]
fn a_host_that_has_its_fill_is_told_which_limit_and_goes_on_once_that_is_raised() {
    let web1 = Host::new("web1");
    let limited = |volumes: usize, mounts: usize| json!({ "node": "web1", "limits": { "volumes_per_host": volumes, "mounts_per_host": mounts } });
    let daemon = Daemon::setup().on(&web1).config(&limited(2, 1)).start();
    show_spec(&web1, &daemon);
    let engine = Engine::start(&web1);
    create(&engine, "db");
    create(&engine, "logs");
    let refused = engine.fails(&["volume", "create", "-d", "volhost", "cache"]);
    assert!(refused.contains("as many as limits.volumes_per_host allows"), "{refused}");
    engine.sleeper("keeper", &["-v", "db:/x"]);
    let refused = engine.fails(&["run", "--rm", "--network=none", "-v", "logs:/x", "box", "true"]);
    assert!(
        refused.contains("host web1 has 1 mounts, as many as limits.mounts_per_host allows"),
        "{refused}"
    );
    daemon.has_mounts(&[("db", "web1", false)]);
    daemon.cli(&["volume", "create", "ours"]).ok();

    daemon.put("etc/volhost/volhost.json", &limited(10, 10).to_string());
    daemon.cli(&["reload"]).ok();
    create(&engine, "cache");
    engine.run(&["-v", "logs:/x"], "echo hello > /x/file");
    assert_eq!(daemon.volumes(), ["cache", "db", "logs", "ours"]);
    daemon.has_mounts(&[("db", "web1", false)]);
}
