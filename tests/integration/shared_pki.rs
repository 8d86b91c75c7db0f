//! Instances that share a catalog are of one CA: none makes one of its own unasked, what a refusal says to do works, and
//! then every host of one is let in by the other. No cluster runs here: whether an instance may serve is told before
//! one is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::http::Identity;
use crate::harness::wait::{self, Said};
use crate::harness::{Daemon, scratch};
use crate::readme::{Typed, marked};

/// Nobody answers there, and nobody has to.
const CLUSTER: &str = "etcd://127.0.0.1:1/volhost";

fn shared(node: &str) -> Value {
    json!({ "node": node, "listen": ["https://127.0.0.1:0"], "catalog": CLUSTER,
            "advertise": format!("https://{node}.example.org:7443") })
}

fn instance(node: &str) -> Daemon<'static> {
    Daemon::setup().config(&shared(node)).prepare()
}

/// Fails unless it is refused as wrongly configured, by `serve` and by `check`; what is said.
fn refused(daemon: &mut Daemon<'_>) -> String {
    let ended = daemon.start_with(&[]).expect_err("it serves");
    assert_eq!(ended.code(), Some(78), "{}", daemon.log());
    let checked = daemon.cli(&["check", "--json"]);
    assert_eq!(checked.code, Some(78), "{}", checked.stderr);
    let faults: Value = serde_json::from_str(&checked.stdout).unwrap();
    assert_eq!(faults.as_array().unwrap().len(), 1, "{faults}");
    assert_eq!(faults[0]["field"], "tls");
    let what = faults[0]["what"].as_str().unwrap().to_owned();
    assert!(daemon.log().contains(&what), "`serve` says something else:\n{}", daemon.log());
    what
}

/// Runs a command of a message on an instance, in a directory.
fn run(daemon: &Daemon<'_>, command: &str, directory: &Path) -> Said {
    let words =
        command.strip_prefix("volhost ").unwrap_or_else(|| panic!("{command:?} is no command")).split(' ');
    let mut volhost = Command::new(env!("CARGO_BIN_EXE_volhost"));
    wait::run(volhost.arg("--root").arg(daemon.path("")).args(words).current_dir(directory))
}

fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn file(daemon: &Daemon<'_>, name: &str) -> std::path::PathBuf {
    daemon.path("etc/volhost/pki").join(name)
}

fn give(from: &Daemon<'_>, to: &Daemon<'_>, name: &str) {
    fs::create_dir_all(file(to, "")).unwrap();
    fs::copy(file(from, name), file(to, name)).unwrap();
}

fn lets_in(daemon: &Daemon<'_>, identity: &Identity) -> bool {
    let listed = |mut client: crate::harness::http::Client| client.call("/VolumeDriver.List", &json!({}));
    daemon.connect(identity).and_then(listed).is_ok_and(|answer| answer.status == 200)
}

/// Starts it with a catalog of its own: what certificates it has is the same, and no cluster is needed.
fn serve(daemon: &mut Daemon<'_>, node: &str) {
    let mut config = shared(node);
    config.as_object_mut().unwrap().remove("catalog");
    daemon.put("etc/volhost/volhost.json", &config.to_string());
    daemon.start_again();
}

#[test]
fn no_instance_of_a_shared_catalog_makes_a_ca_unasked_and_what_the_refusal_says_to_do_works() {
    let desk = scratch();
    let desk = desk.path();
    let mut store1 = instance("store1");
    let said = refused(&mut store1);
    assert!(!file(&store1, "ca.crt").exists(), "it was made all the same");
    for part in ["etc/volhost/pki", "`volhost pki init`", "ca.crt", "ca.key", "`tls`", "\"client_ca\""] {
        assert!(said.contains(part), "no {part} in: {said}");
    }
    let init = quoted(&said)[0];
    let told = run(&store1, init, desk).ok();
    assert!(told.contains("etc/volhost/pki/ca.crt: O=volhost, CN=volhost CA "), "{told}");
    assert_eq!(fs::metadata(file(&store1, "ca.key")).unwrap().permissions().mode() & 0o777, 0o600);
    store1.cli(&["check"]).ok();
    let again = run(&store1, init, desk).fails();
    assert!(again.contains("ca.crt is there already"), "{again}");

    // The second one has its certificates signed on the first one, and the CA's key never leaves that.
    let mut store2 = instance("store2");
    refused(&mut store2);
    give(&store1, &store2, "ca.crt");
    let said = refused(&mut store2);
    let example = marked("second instance");
    let told: Vec<_> = example.iter().map(|typed| &*typed.command).collect();
    assert_eq!(quoted(&said), told, "the README says something else");
    for Typed { on, command, output: _ } in &example {
        run(if on == "store1" { &store1 } else { &store2 }, command, desk).ok();
    }
    store2.cli(&["check"]).ok();
    assert!(!file(&store2, "ca.key").exists());

    // The third one is given the key, and signs for itself.
    let mut store3 = instance("store3");
    give(&store1, &store3, "ca.crt");
    give(&store1, &store3, "ca.key");
    store3.cli(&["check"]).ok();

    for (daemon, node) in [(&mut store1, "store1"), (&mut store2, "store2"), (&mut store3, "store3")] {
        serve(daemon, node);
    }
    let hosts = [
        store1.identity(),
        store2.identity(),
        store3.identity(),
        store1.add_host("web1", &[], &desk.join("web1")),
        store3.add_host("web3", &[], &desk.join("web3")),
    ];
    for daemon in [&store1, &store2, &store3] {
        for host in &hosts {
            assert!(
                lets_in(daemon, host),
                "{} is not let in at {:?}",
                host.cert.display(),
                daemon.addresses()
            );
        }
    }
    let bundle = desk.join("web2.tar");
    let said = store2.cli(&["host", "add", "web2", "-o", bundle.to_str().unwrap()]).fails();
    assert!(said.contains("ca.key to sign it with is missing"), "{said}");
}

#[test]
fn an_instance_that_needs_no_certificates_of_volhosts_making_needs_no_ca() {
    for part in [
        json!({ "listen": ["http://127.0.0.1:0"] }),
        json!({ "tls": { "cert": "/etc/hostname", "key": "/etc/hostname", "client_ca": "/etc/hostname" }, "hosts": {} }),
    ] {
        let mut config = shared("store1");
        config.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        let daemon = Daemon::setup().config(&config).prepare();
        daemon.cli(&["check"]).ok();
    }
    // Half of them is not enough: the other half would be volhost's.
    for part in [
        json!({ "tls": { "client_ca": "/etc/hostname" }, "hosts": {} }),
        json!({ "tls": { "cert": "/etc/hostname", "key": "/etc/hostname" } }),
    ] {
        let mut config = shared("store1");
        config.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        refused(&mut Daemon::setup().config(&config).prepare());
    }
}
