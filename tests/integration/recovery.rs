//! A lost catalog: saved as text, made again from text, from the backends' copies and from their directories; and the
//! comparison of catalog and directories.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, scratch};

const CATALOG: &str = "var/lib/volhost/catalog.db";
const VOLUMES: &str = "var/lib/volhost/volumes";

/// Everything that a catalog tells of.
fn state(daemon: &Daemon<'_>) -> Value {
    let ask = |words: &[&str]| daemon.cli(&[words, &["--json"]].concat()).json();
    let backends = ask(&["backend", "ls"]);
    let backends: Vec<_> = backends
        .as_array()
        .unwrap()
        .iter()
        .map(|row| json!([row["name"], row["state"], row["volumes"]]))
        .collect();
    let volumes = daemon.volumes();
    // A new volume becomes durable by itself a moment after the answer.
    daemon.await_durable(&volumes.iter().map(String::as_str).collect::<Vec<_>>());
    let inspected: Vec<_> = volumes.iter().map(|name| ask(&["volume", "inspect", name])).collect();
    json!([
        inspected,
        ask(&["mount", "ls"]),
        ask(&["host", "ls"]),
        ask(&["volume", "ls", "--trash"]),
        backends
    ])
}

/// A service with volumes of several kinds, a mount, a revoked host and something in the trash.
fn furnished() -> Daemon<'static> {
    let daemon = Daemon::start();
    daemon.cli(&["volume", "create", "-o", "mode=0750", "-o", "uid=70", "db"]).ok();
    fs::create_dir(daemon.path(VOLUMES).join("old")).unwrap();
    daemon.cli(&["volume", "create", "-o", "adopt=true", "old"]).ok();
    daemon.cli(&["volume", "create", "gone"]).ok();
    fs::write(daemon.path(VOLUMES).join("gone/file"), "kept").unwrap();
    daemon.cli(&["volume", "rm", "gone"]).ok();
    let mounted = daemon.unix().call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "c1" })).unwrap();
    assert_eq!(mounted.status, 200);
    let bundle = daemon.path("web1.tar");
    let bundle = bundle.to_str().unwrap();
    daemon.cli(&["host", "add", "web1", "--advertise", "https://store1:7443", "-o", bundle]).ok();
    daemon.cli(&["host", "revoke", "web1"]).ok();
    daemon
}

/// Takes the catalog away, whatever is left of it.
fn lose(daemon: &Daemon<'_>) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(daemon.path(&format!("{CATALOG}{suffix}")));
    }
}

fn copies(daemon: &Daemon<'_>, volumes: &str) -> [PathBuf; 2] {
    ["catalog.jsonl", "catalog.jsonl.before"].map(|name| daemon.path(volumes).join(".volhost").join(name))
}

/// The findings of a `--json` answer: kind and name.
fn findings(answer: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = answer["findings"].as_array().unwrap().iter();
    all.map(|finding| (text(&finding["kind"]), text(&finding["name"]))).collect()
}

fn pair(kind: &str, name: &str) -> (String, String) {
    (kind.into(), name.into())
}

#[test]
fn a_catalog_lost_or_cut_off_anywhere_is_rebuilt_and_serves_as_before() {
    let mut daemon = furnished();
    assert!(daemon.terminate().success());
    daemon.start_again();
    let before = state(&daemon);
    assert!(daemon.terminate().success());

    let whole = fs::read(daemon.path(CATALOG)).unwrap();
    for length in (0..whole.len()).step_by(1024) {
        fs::write(daemon.path(CATALOG), &whole[..length]).unwrap();
        let told = daemon.cli(&["catalog", "export"]).fails();
        assert!(told.contains("catalog.db"), "{length}: {told}");
        let told = daemon.cli(&["catalog", "rebuild"]).fails();
        assert!(told.contains("there is a catalog"), "{length}: {told}");
        assert_eq!(fs::read(daemon.path(CATALOG)).unwrap(), whole[..length], "it was changed");
    }
    fs::write(daemon.path(CATALOG), &whole[..whole.len() / 2]).unwrap();
    assert!(!daemon.start_with(&[]).unwrap_err().success());
    assert!(daemon.log().contains("volhost catalog rebuild"), "{}", daemon.log());

    lose(&daemon);
    let rebuilt = daemon.cli(&["catalog", "rebuild", "--json"]).json();
    assert_eq!(findings(&rebuilt), [], "{rebuilt}");
    assert_eq!(
        (&rebuilt["volumes"], &rebuilt["mounts"], &rebuilt["removed"]),
        (&json!(2), &json!(1), &json!(1))
    );
    daemon.start_again();
    assert_eq!(state(&daemon), before);
    daemon.cli(&["volume", "restore", "gone"]).ok();
    assert_eq!(fs::read_to_string(daemon.path(VOLUMES).join("gone/file")).unwrap(), "kept");
}

#[test]
fn a_copy_older_than_the_directories_gives_what_it_knew_and_lists_the_rest() {
    let mut daemon = furnished();
    assert!(daemon.terminate().success());
    let old = fs::read(&copies(&daemon, VOLUMES)[0]).unwrap();
    daemon.start_again();
    let unmounted =
        daemon.unix().call("/VolumeDriver.Unmount", &json!({ "Name": "db", "ID": "c1" })).unwrap();
    assert_eq!(unmounted.status, 200);
    fs::write(daemon.path(VOLUMES).join("db/file"), "first").unwrap();
    daemon.cli(&["volume", "rm", "db"]).ok();
    for name in ["db", "new"] {
        daemon.cli(&["volume", "create", name]).ok();
    }
    daemon.kill9();
    for copy in copies(&daemon, VOLUMES) {
        fs::write(copy, &old).unwrap();
    }
    lose(&daemon);
    let rebuilt = daemon.cli(&["catalog", "rebuild", "--json"]).json();
    assert_eq!(findings(&rebuilt), [pair("found", "db"), pair("found", "new"), pair("removed since", "db")]);
    daemon.start_again();
    assert_eq!(daemon.volumes(), ["old"]);
    let hosts = daemon.cli(&["host", "ls", "--json"]).json();
    let revoked = hosts.as_array().unwrap().iter().find(|row| row["name"] == "web1").unwrap();
    assert_eq!(revoked["revoked"], true, "{hosts}");
    daemon.cli(&["volume", "create", "-o", "adopt=true", "-o", "backend=default", "new"]).ok();
    // The older volume of the name comes back once the name is free.
    fs::rename(daemon.path(VOLUMES).join("db"), daemon.path(VOLUMES).join("db2")).unwrap();
    daemon.cli(&["volume", "restore", "db"]).ok();
    assert_eq!(fs::read_to_string(daemon.path(VOLUMES).join("db/file")).unwrap(), "first");
    let db = daemon.cli(&["volume", "inspect", "db", "--json"]).json();
    assert_eq!(db[0]["options"], json!({ "mode": "0750", "uid": "70" }));
}

#[test]
fn an_export_is_imported_and_exported_again_to_the_letter() {
    let mut daemon = furnished();
    let told = daemon.cli(&["catalog", "export"]).fails();
    assert!(told.contains("is in use by process"), "{told}");
    assert!(daemon.terminate().success());
    let dir = scratch();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (first, second, broken) = (path("first"), path("second"), path("broken"));
    daemon.cli(&["catalog", "export", "-o", &first]).ok();
    let told = daemon.cli(&["catalog", "export", "-o", &first]).fails();
    assert!(told.contains("exists: name another file"), "{told}");
    let text = fs::read_to_string(&first).unwrap();
    assert_eq!(daemon.cli(&["catalog", "export"]).ok(), text.trim_end());

    let whole = fs::read(daemon.path(CATALOG)).unwrap();
    let told = daemon.cli(&["catalog", "import", &first]).fails();
    assert!(told.contains("it is not empty"), "{told}");
    assert_eq!(fs::read(daemon.path(CATALOG)).unwrap(), whole, "a refused import changed the catalog");

    lose(&daemon);
    let lines: Vec<_> = text.lines().collect();
    for (bad, expected) in [
        (text.replacen("\"volumes\"", "\"spells\"", 1), "there is no table \"spells\""),
        (format!("{}\n{}\n{}\n", lines[0], lines[1], lines[1]), "line 3: the record "),
        (format!("{}\n", lines[..lines.len() - 1].join("\n")), "it was cut off"),
        (text.replacen("0750", "0751", 1), "the checksum is another one"),
        ("{\"Name\":\"volhost\"}\n".into(), "line 1: it is not the first line"),
    ] {
        fs::write(&broken, bad).unwrap();
        let told = daemon.cli(&["catalog", "import", &broken]).fails();
        assert!(told.contains(expected), "{told}, not {expected}");
        assert!(!daemon.path(CATALOG).exists(), "a refused import made a catalog");
    }
    let told = daemon.cli(&["catalog", "export"]).fails();
    assert!(told.contains("there is no catalog"), "{told}");
    daemon.cli(&["catalog", "import", &first]).ok();
    daemon.cli(&["catalog", "export", "-o", &second]).ok();
    assert_eq!(fs::read_to_string(&second).unwrap(), text);
    // A backend's copy is an export too.
    lose(&daemon);
    daemon.cli(&["catalog", "import", copies(&daemon, VOLUMES)[0].to_str().unwrap()]).ok();
    daemon.start_again();
    assert_eq!(daemon.volumes(), ["db", "old"]);
}

#[test]
fn a_spoilt_copy_gives_way_to_an_older_one_or_another_backends() {
    let setup = Daemon::setup();
    let (a, b) = (setup.path("srv/a"), setup.path("srv/b"));
    for backend in [&a, &b] {
        fs::create_dir_all(backend).unwrap();
    }
    let mut daemon = setup.backends(&json!({ "a": a, "b": b })).start();
    daemon.cli(&["volume", "create", "-o", "backend=a", "one"]).ok();
    assert!(daemon.terminate().success());
    daemon.start_again();
    daemon.cli(&["volume", "create", "-o", "backend=b", "two"]).ok();
    assert!(daemon.terminate().success());
    let [of_a, before_a] = copies(&daemon, "srv/a");
    let [of_b, before_b] = copies(&daemon, "srv/b");
    let spoil = |path: &PathBuf| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let rebuild = || {
        lose(&daemon);
        daemon.cli(&["catalog", "rebuild", "--json"]).json()
    };
    spoil(&of_a);
    let rebuilt = rebuild();
    assert_eq!((rebuilt["volumes"].as_u64(), findings(&rebuilt)), (Some(2), vec![]), "{rebuilt}");
    let row = |path: &PathBuf| {
        let rows = rebuilt["copies"].as_array().unwrap();
        rows.iter().find(|row| row["path"] == json!(path)).unwrap_or_else(|| panic!("{rebuilt}")).clone()
    };
    assert!(row(&of_a)["reason"].is_string() && row(&of_b)["reason"].is_null(), "{rebuilt}");
    // Only copies of before the second volume are left.
    spoil(&of_b);
    fs::remove_file(&before_b).unwrap();
    let rebuilt = rebuild();
    assert_eq!((rebuilt["volumes"].as_u64(), findings(&rebuilt)), (Some(1), vec![pair("found", "two")]));
    // None at all: the identities are there, and everything can be adopted.
    spoil(&before_a);
    let rebuilt = rebuild();
    assert_eq!(findings(&rebuilt), [pair("found", "one"), pair("found", "two")], "{rebuilt}");
    daemon.start_again();
    assert_eq!(daemon.backend_state("a").as_deref(), Some("online"));
    daemon.cli(&["volume", "create", "-o", "adopt=true", "-o", "backend=a", "one"]).ok();
}

#[test]
fn a_catalog_begun_anew_does_not_take_the_place_of_a_copy_that_knew_more() {
    let mut daemon = furnished();
    assert!(daemon.terminate().success());
    lose(&daemon);
    daemon.start_again();
    daemon.cli(&["backend", "adopt", "default"]).ok();
    assert!(daemon.terminate().success());
    lose(&daemon);
    let rebuilt = daemon.cli(&["catalog", "rebuild", "--json"]).json();
    assert_eq!(rebuilt["volumes"], 2, "{rebuilt}");
    daemon.start_again();
    let db = daemon.cli(&["volume", "inspect", "db", "--json"]).json();
    assert_eq!(db[0]["options"], json!({ "mode": "0750", "uid": "70" }));
    assert!(daemon.log().contains("knew volumes which this one does not"), "{}", daemon.log());
}

#[test]
fn nothing_is_rebuilt_from_a_share_that_is_not_mounted() {
    let mut daemon = furnished();
    assert!(daemon.terminate().success());
    lose(&daemon);
    fs::rename(daemon.path(VOLUMES), daemon.path("away")).unwrap();
    fs::create_dir(daemon.path(VOLUMES)).unwrap();
    let told = daemon.cli(&["catalog", "rebuild"]).fails();
    assert!(told.contains("are the shares mounted?"), "{told}");
    assert!(!daemon.path(CATALOG).exists());
}

/// What is left of a volume whose deletion has begun does not come back by a catalog that does not know of it.
#[test]
fn a_half_deleted_volume_is_not_whole_by_a_rebuilt_or_imported_catalog() {
    for rebuild in [true, false] {
        let mut daemon = Daemon::start();
        daemon.cli(&["volume", "create", "half"]).ok();
        let volumes = daemon.path(VOLUMES);
        for file in ["one", "two"] {
            fs::write(volumes.join("half").join(file), "kept").unwrap();
        }
        if rebuild {
            daemon.cli(&["volume", "rm", "half"]).ok();
        }
        assert!(daemon.terminate().success());
        let older = fs::read(&copies(&daemon, VOLUMES)[0]).unwrap();
        daemon.start_with(&[("VOLHOST_STOP_AT", "purge:marked")]).unwrap();
        daemon.cli(&["volume", "rm", "--now", "--yes", "half"]);
        daemon.wait_for_end();
        let home = volumes.join(".volhost");
        let begun = || {
            let mut names =
                fs::read_dir(&home).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.find(|name| name.starts_with("deleting-"))
        };
        let marked = begun().expect("its deletion has begun");
        let id = marked.strip_prefix("deleting-").unwrap();
        fs::remove_file(home.join(&marked).join("one")).unwrap();
        lose(&daemon);
        if rebuild {
            for copy in copies(&daemon, VOLUMES) {
                fs::write(copy, &older).unwrap();
            }
            let rebuilt = daemon.cli(&["catalog", "rebuild", "--json"]).json();
            assert_eq!(findings(&rebuilt), [pair("being deleted", id)]);
            daemon.start_again();
        } else {
            let export = daemon.path("export");
            fs::write(&export, &older).unwrap();
            daemon.cli(&["catalog", "import", export.to_str().unwrap()]).ok();
            let said = daemon.cli(&["check", "--catalog", "--json"]);
            let answer: Value = serde_json::from_str(&said.stdout).unwrap();
            assert_eq!((said.code, findings(&answer)), (Some(1), vec![pair("being deleted", "half")]));
            daemon.start_again();
            let body = json!({ "Name": "half", "ID": "c1" });
            let mount = daemon.unix().call("/VolumeDriver.Mount", &body).unwrap();
            assert_eq!(mount.status, 500, "half of it was mounted");
            assert!(daemon.log().contains("its deletion had begun"), "{}", daemon.log());
            daemon.cli(&["volume", "rm", "half"]).ok();
        }
        let told = daemon.cli(&["volume", "restore", "half"]).fails();
        assert!(told.contains("being deleted") || told.contains("no removed volume"), "{told}");
        assert!(!volumes.join("half").exists());
        until("the rest to be deleted", SOON, || begun().is_none().then_some(()));
        until("its record to be gone", SOON, || daemon.trash().is_empty().then_some(()));
        daemon.cli(&["check", "--catalog"]).ok();
    }
}

#[test]
fn check_compares_catalog_and_directories_and_changes_nothing() {
    let mut daemon = furnished();
    until("the first copy", SOON, || copies(&daemon, VOLUMES)[0].exists().then_some(()));
    for running in [true, false] {
        if !running {
            assert!(daemon.terminate().success());
        }
        let told = daemon.cli(&["check", "--catalog"]).ok();
        assert_eq!(told, "2 volumes on 1 backend: each has its directory");
        assert_eq!(findings(&daemon.cli(&["check", "--catalog", "--json"]).json()), []);
        fs::create_dir(daemon.path(VOLUMES).join("stranger")).unwrap();
        fs::rename(daemon.path(VOLUMES).join("old"), daemon.path("old")).unwrap();
        let stray = "7b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e";
        let stray_path = daemon.path(VOLUMES).join(".volhost/new").join(stray);
        fs::create_dir(&stray_path).unwrap();
        let said = daemon.cli(&["check", "--catalog", "--json"]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        let answer: Value = serde_json::from_str(&said.stdout).unwrap();
        let expected = [pair("missing", "old"), pair("found", "stranger"), pair("leftover", stray)];
        assert_eq!(findings(&answer), expected, "{answer}");
        let said = daemon.cli(&["check", "--catalog"]);
        assert!(said.stdout.contains("-o adopt=true -o backend=default stranger"), "{}", said.stdout);
        assert!(stray_path.exists(), "it was changed");
        fs::remove_dir(&stray_path).unwrap();
        fs::rename(daemon.path("old"), daemon.path(VOLUMES).join("old")).unwrap();
        fs::remove_dir(daemon.path(VOLUMES).join("stranger")).unwrap();
    }
    fs::rename(daemon.path(VOLUMES), daemon.path("away")).unwrap();
    let said = daemon.cli(&["check", "--catalog"]);
    assert_eq!(said.code, Some(1));
    assert!(said.stdout.contains("default was not looked at: "), "{}", said.stdout);
}
