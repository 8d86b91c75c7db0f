//! A catalog in etcd that is saved, made again and compared: with one of the embedded engine's in both directions, while
//! instances serve it or not, and where that is cut off.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::harness::etcd::PREFIX;
use crate::harness::wait::{SOON, until};
use crate::harness::{Cluster, Daemon, Fleet, mortal, scratch};

/// Everything that a catalog tells of.
fn state(daemon: &Daemon<'_>) -> Value {
    let ask = |words: &[&str]| daemon.cli(&[words, &["--json"]].concat()).json();
    let volumes = daemon.volumes();
    // A new volume becomes durable by itself a moment after the answer.
    daemon.await_durable(&volumes.iter().map(String::as_str).collect::<Vec<_>>());
    let inspected: Vec<_> = volumes.iter().map(|name| ask(&["volume", "inspect", name])).collect();
    json!([inspected, ask(&["mount", "ls"]), ask(&["host", "ls"]), ask(&["volume", "ls", "--trash"])])
}

/// Volumes of several kinds, mounts of two hosts, and something in the trash.
fn prepare(daemon: &Daemon<'_>, volumes: &Path) {
    daemon.cli(&["volume", "create", "-o", "mode=0750", "-o", "uid=70", "db"]).ok();
    fs::create_dir(volumes.join("old")).unwrap();
    daemon.cli(&["volume", "create", "-o", "adopt=true", "old"]).ok();
    daemon.cli(&["volume", "create", "gone"]).ok();
    fs::write(volumes.join("gone/file"), "kept").unwrap();
    daemon.cli(&["volume", "rm", "gone"]).ok();
    for id in ["c1", "a/b%2Fc"] {
        let mounted = daemon.unix().call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": id })).unwrap();
        assert_eq!(mounted.status, 200);
    }
}

/// The keys of a catalog, without those by which instances know of each other.
fn records(fleet: &Fleet<'_>) -> Vec<(String, String)> {
    let mut records = fleet.etcd.get(&format!("/{PREFIX}/"));
    let own = ["~", "head", "format", "instances/", "moving/"];
    records.retain(|(key, _)| !own.iter().any(|own| key[PREFIX.len() + 2..].starts_with(own)));
    records
}

#[test]
fn a_catalog_goes_from_a_file_to_etcd_and_back_to_the_letter() {
    let mut fleet = Fleet::of(Cluster::single().start(), 2).prepare();
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let in_file = |name: &str| {
        let file = json!({ "catalog": format!("sqlite:{}", path(name)) });
        fleet.setup(0, PREFIX, &file).prepare()
    };
    let (mut one, mut other) = (in_file("one.db"), in_file("other.db"));
    one.start_again();
    prepare(&one, &fleet.volumes());
    let before = state(&one);
    assert!(one.terminate().success());
    let (first, second) = (path("first.jsonl"), path("second.jsonl"));
    one.cli(&["catalog", "export", "-o", &first]).ok();
    let text = fs::read_to_string(&first).unwrap();

    let told = fleet.instances[1].cli(&["catalog", "export"]).fails();
    assert!(told.contains("there is no catalog etcd://"), "{told}");
    let told = fleet.instances[1].cli(&["catalog", "import", &first]).ok();
    assert_eq!(
        told,
        format!(
            "{} holds 2 volumes, 2 mounts, 1 removed volume, 1 host and 1 backend",
            fleet.etcd.catalog(PREFIX)
        )
    );
    assert_eq!(fleet.instances[0].cli(&["catalog", "export"]).ok(), text.trim_end());
    for instance in &mut fleet.instances {
        instance.start_again();
    }
    for instance in &fleet.instances {
        assert_eq!(state(instance), before);
        assert_eq!(
            instance.cli(&["check", "--catalog"]).ok(),
            "2 volumes on 1 backend: each has its directory"
        );
    }

    // Also while it is served; what is exported is what all of them have answered.
    let mut client = fleet.client(0, "web1");
    assert_eq!(client.volume("Create", &json!({ "Name": "new" })).unwrap().status, 200);
    fleet.instances[1].cli(&["catalog", "export", "-o", &second]).ok();
    assert!(fs::read_to_string(&second).unwrap().contains("\"key\":[\"new\"]"));
    let now = state(&fleet.instances[0]);
    for instance in &mut fleet.instances {
        assert!(instance.terminate().success());
    }
    other.cli(&["catalog", "import", &second]).ok();
    assert_eq!(other.cli(&["catalog", "export"]).ok(), fs::read_to_string(&second).unwrap().trim_end());
    other.start_again();
    let later = state(&other);
    assert_eq!((&later[0], &later[1], &later[3]), (&now[0], &now[1], &now[3]));
}

#[test]
fn nothing_is_imported_or_rebuilt_over_a_catalog_that_is_served_or_holds_something() {
    let mut fleet = Fleet::of(Cluster::single().start(), 2).prepare();
    let dir = scratch();
    let export = dir.path().join("export.jsonl").to_str().unwrap().to_owned();
    fleet.instances[0].start_again();
    for words in [&["catalog", "import", &export][..], &["catalog", "rebuild"]] {
        fleet.instances[0].cli(&["catalog", "export", "--force", "-o", &export]).ok();
        let before = records(&fleet);
        let said = fleet.instances[1].cli(words);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(said.stderr.contains("is in use by volhost on store1; stop that"), "{}", said.stderr);
        assert_eq!(records(&fleet), before);
    }
    fleet.instances[0].cli(&["volume", "create", "db"]).ok();
    assert!(fleet.instances[0].terminate().success());
    let before = fleet.etcd.get("");
    for (words, expected) in [
        (&["catalog", "import", &export][..], "already and it is not empty; to have another in its place"),
        (&["catalog", "rebuild"], "already; to have another in its place"),
    ] {
        let said = fleet.instances[1].cli(words);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert!(said.stderr.contains("there is a catalog etcd://"), "{}", said.stderr);
        assert!(said.stderr.contains(expected), "{}", said.stderr);
        assert_eq!(fleet.etcd.get(""), before);
    }
}

/// An export of this many volumes, two records of each.
fn many(volumes: usize) -> String {
    let mut text = "{\"volhost\":\"catalog\",\"v\":1}\n".to_owned();
    let at = "2026-01-02T03:04:05.678Z";
    for number in 0..volumes {
        writeln!(
            text,
            "{{\"table\":\"volumes\",\"key\":[\"v{number:05}\"],\"record\":{{\"v\":1,\"id\":\"0b9e4a1c-9d0f-4d1b-8a55-{number:012}\",\
             \"backend\":\"default\",\"created_at\":\"{at}\"}}}}\n\
             {{\"table\":\"mounts\",\"key\":[\"v{number:05}\",\"web1\",\"c1\",\"0\"],\"record\":{{\"v\":1,\"count\":1,\"since\":\"{at}\"}}}}"
        )
        .unwrap();
    }
    let sum = digest(&SHA256, text.as_bytes());
    let sum = sum.as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    writeln!(text, "{{\"records\":{},\"sha256\":\"{sum}\"}}", 2 * volumes).unwrap();
    text
}

#[test]
fn an_import_that_was_killed_is_no_catalog_until_it_is_run_again() {
    let mut fleet = Fleet::of(Cluster::single().start(), 1).prepare();
    let dir = scratch();
    let export = dir.path().join("many.jsonl");
    fs::write(&export, many(20_000)).unwrap();
    let export = export.to_str().unwrap();
    let mut importing = mortal(env!("CARGO_BIN_EXE_volhost"))
        .arg("--root")
        .arg(fleet.instances[0].path(""))
        .args(["catalog", "import", export])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let some = format!("/{PREFIX}/volumes/v00500");
    until("some of the records", SOON, || (!fleet.etcd.get(&some).is_empty()).then_some(()));
    importing.kill().unwrap();
    assert!(!importing.wait().unwrap().success(), "it was done before it was killed");
    let left = records(&fleet).len();
    assert!((500..40_000).contains(&left), "{left}");

    let daemon = &mut fleet.instances[0];
    let ended = daemon.start_with(&[]).expect_err("it serves the half of a catalog");
    assert_eq!(ended.code(), Some(1));
    assert!(daemon.log().contains("run that `volhost catalog import`"), "{}", daemon.log());
    for words in [&["catalog", "export"][..], &["check", "--catalog"]] {
        let said = daemon.cli(words);
        assert_eq!(said.code, Some(1));
        assert!(said.stderr.contains("it is not whole"), "{}", said.stderr);
    }
    // Another text, to see that nothing of the first one stays.
    fs::write(export, many(3)).unwrap();
    daemon.cli(&["catalog", "import", export]).ok();
    daemon.start_again();
    assert_eq!(daemon.volumes(), ["v00000", "v00001", "v00002"]);
    daemon.has_mounts(&[("v00000", "web1", false), ("v00001", "web1", false), ("v00002", "web1", false)]);
}

#[test]
fn a_catalog_that_is_wiped_is_rebuilt_from_the_backends_and_serves_as_before() {
    let mut fleet = Fleet::of(Cluster::single().start(), 2).start();
    prepare(&fleet.instances[0], &fleet.volumes());
    // Of the instance that heard the host: the other one is told only once a minute when that last was.
    let before = state(&fleet.instances[0]);
    for instance in &mut fleet.instances {
        assert!(instance.terminate().success());
    }
    fleet.etcd.ctl(&["del", "--prefix", &format!("/{PREFIX}/")]).ok();
    let rebuilt = fleet.instances[1].cli(&["catalog", "rebuild", "--json"]).json();
    assert_eq!(rebuilt["findings"], json!([]), "{rebuilt}");
    assert_eq!(
        (&rebuilt["volumes"], &rebuilt["mounts"], &rebuilt["removed"]),
        (&json!(2), &json!(2), &json!(1)),
        "{rebuilt}"
    );
    for instance in &mut fleet.instances {
        instance.start_again();
    }
    for instance in &fleet.instances {
        assert_eq!(state(instance), before);
        instance.agrees_with(&fleet.volumes());
    }
    // The comparison sees what is wrong also while they serve.
    fs::create_dir(fleet.volumes().join("stranger")).unwrap();
    let said = fleet.instances[1].cli(&["check", "--catalog", "--json"]);
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    let answer: Value = serde_json::from_str(&said.stdout).unwrap();
    assert_eq!((&answer["findings"][0]["kind"], &answer["findings"][1]), (&json!("found"), &Value::Null));
}

#[test]
fn a_cluster_that_refuses_is_a_fault_of_the_configuration_and_one_that_is_silent_a_failure() {
    let etcd = Cluster::single().user("volhost", "secret").start();
    let mut fleet = Fleet::of(etcd, 1).start();
    assert!(fleet.instances[0].terminate().success());
    fleet.instances[0].cli(&["catalog", "export"]).ok();
    fleet.etcd.write_password("wrong");
    let dir = scratch();
    let export = dir.path().join("export.jsonl");
    fs::write(&export, many(1)).unwrap();
    let commands = [
        &["catalog", "export"][..],
        &["catalog", "import", export.to_str().unwrap()],
        &["catalog", "rebuild"],
        &["check", "--catalog"],
    ];
    for words in commands {
        let said = fleet.instances[0].cli(words);
        assert_eq!(said.code, Some(78), "{words:?}: {}", said.stderr);
        assert!(said.stderr.contains("does not let this instance in"), "{words:?}: {}", said.stderr);
    }
    fleet.etcd.write_password("secret");
    fleet.etcd.kill(0);
    for words in commands {
        let asked = Instant::now();
        let said = fleet.instances[0].cli(words);
        assert_eq!(said.code, Some(1), "{words:?}: {}", said.stderr);
        assert!(said.stderr.contains("is out of reach: "), "{words:?}: {}", said.stderr);
        assert!(asked.elapsed() < SOON, "{words:?}: {:?}", asked.elapsed());
    }
}
