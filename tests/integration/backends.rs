//! Backends as operators and engines meet them: the map, identity, shares that go and come, and links laid as traps.
//!
//! Real file systems, each test's mounts its own.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::storage::{
    Storage, backend, create, done, names, refused, remap, rpc, says, unmount, until_backend,
};
use crate::harness::wait::{SOON, until};

fn named(name: &str) -> Value {
    json!({ "Name": name })
}

fn mounting(name: &str) -> Value {
    json!({ "Name": name, "ID": "one" })
}

/// A way to spoil an identity file: its name, how, and what the refusals then say.
type Spoilt<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

fn identity(root: &Path) -> PathBuf {
    root.join(".volhost/backend.json")
}

#[test]
fn a_volume_goes_where_it_is_told_or_to_the_default_or_to_the_only_one() {
    let storage = Storage::new();
    let (fast, slow, third) = (storage.dir("fast"), storage.dir("slow"), storage.dir("third"));
    let daemon = Daemon::setup().backends(&json!({ "fast": fast, "slow": { "path": slow } })).start();
    let err = refused(&daemon, "Create", &json!({ "Name": "db" }), 400);
    says(&err, &["-o backend=", "fast, slow"]);
    let err = refused(&daemon, "Create", &json!({ "Name": "db", "Opts": { "backend": "fats" } }), 400);
    says(&err, &["fats", "fast, slow"]);
    create(&daemon, "db", &json!({ "backend": "slow" }));
    assert_eq!(done(&daemon, "Get", &named("db"))["Volume"]["Mountpoint"], json!(slow.join("db")));
    // Said again without the backend, it is the same volume; said with another one, it is not.
    create(&daemon, "db", &json!(null));
    let err = refused(&daemon, "Create", &json!({ "Name": "db", "Opts": { "backend": "fast" } }), 400);
    says(&err, &["backend=slow", "backend=fast"]);

    remap(&daemon, &json!({ "slow": slow }));
    create(&daemon, "only", &json!(null));
    assert_eq!(names(&slow), [".volhost", "db", "only"]);
    remap(&daemon, &json!({ "default": { "path": third, "mountpoint": "/data/third" }, "slow": slow }));
    create(&daemon, "plain", &json!(null));
    assert_eq!(done(&daemon, "Path", &named("plain"))["Mountpoint"], "/data/third/plain");
    assert_eq!(names(&third), [".volhost", "plain"]);
    assert_eq!(names(&fast), [".volhost"]);
}

#[test]
fn owner_and_mode_are_the_backends_unless_the_options_say_otherwise() {
    let storage = Storage::new();
    let root = storage.dir("b");
    let map = json!({ "default": { "path": root, "uid": 1000, "gid": 1001, "mode": "0750" } });
    let daemon = Daemon::setup().backends(&map).start();
    create(&daemon, "plain", &json!({}));
    create(&daemon, "said", &json!({ "uid": "7", "gid": "8", "mode": "2770" }));
    create(&daemon, "partly", &json!({ "mode": "1777" }));
    let found = |name: &str| {
        let made = fs::metadata(root.join(name)).unwrap();
        (made.uid(), made.gid(), made.mode() & 0o7777)
    };
    assert_eq!(found("plain"), (1000, 1001, 0o750));
    assert_eq!(found("said"), (7, 8, 0o2770));
    assert_eq!(found("partly"), (1000, 1001, 0o1777));
    for (option, value) in [("mode", "rwx"), ("mode", "10000"), ("uid", "-1"), ("gid", "4294967295")] {
        let err = refused(&daemon, "Create", &json!({ "Name": "x", "Opts": { option: value } }), 400);
        says(&err, &[option, value]);
    }
    assert_eq!(names(&root), [".volhost", "partly", "plain", "said"]);
}

#[test]
fn an_existing_directory_is_adopted_by_the_operator_alone_and_never_removed() {
    let storage = Storage::new();
    let root = storage.dir("b");
    let daemon = Daemon::setup().backends(&json!({ "default": root })).start();
    fs::create_dir(root.join("old")).unwrap();
    fs::write(root.join("old/data"), "precious").unwrap();
    fs::set_permissions(root.join("old"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("old", root.join("link")).unwrap();
    fs::write(root.join("file"), "").unwrap();

    says(&refused(&daemon, "Create", &named("old"), 400), &["adopt=true"]);
    let adopt = json!({ "Name": "old", "Opts": { "adopt": "true" } });
    says(&refused(&daemon, "Create", &adopt, 403), &["volhost volume create -o adopt=true"]);
    for name in ["link", "file", "none"] {
        says(&daemon.cli(&["volume", "create", "-o", "adopt=true", name]).fails(), &["no directory", name]);
    }
    assert!(daemon.volumes().is_empty());

    for _ in 0..2 {
        daemon.cli(&["volume", "create", "-o", "adopt=true", "old"]).ok();
        done(&daemon, "Mount", &mounting("old"));
        done(&daemon, "Unmount", &mounting("old"));
        assert_eq!(fs::metadata(root.join("old")).unwrap().mode() & 0o7777, 0o700);
        done(&daemon, "Remove", &named("old"));
        assert_eq!(fs::read_to_string(root.join("old/data")).unwrap(), "precious");
    }
    daemon.cli(&["volume", "create", "-o", "adopt=true", "old"]).ok();
    daemon.cli(&["volume", "rm", "--now", "--yes", "old"]).ok();
    assert_eq!(fs::read_to_string(root.join("old/data")).unwrap(), "precious");
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "--json"]).json(), json!([]));
    assert!(daemon.volumes().is_empty());
}

#[test]
fn only_an_empty_directory_becomes_a_backend_by_itself() {
    let storage = Storage::new();
    let (empty, disk, full) = (storage.dir("empty"), storage.dir("disk"), storage.dir("full"));
    storage.disk("disk", "ext4", 32).mount(&disk);
    assert_eq!(names(&disk), ["lost+found"]);
    fs::write(full.join("data"), "somebody's").unwrap();
    let daemon = Daemon::setup().backends(&json!({ "empty": empty, "disk": disk, "full": full })).start();
    for online in ["empty", "disk"] {
        let row = backend(&daemon, online);
        assert_eq!(
            (&row["state"], &row["reason"], &row["volumes"]),
            (&json!("online"), &json!(null), &json!(0))
        );
        let (total, free) = (row["total_bytes"].as_u64().unwrap(), row["free_bytes"].as_u64().unwrap());
        assert!(free <= total && (online == "empty" || (16 << 20..=32 << 20).contains(&total)), "{row}");
        create(&daemon, online, &json!({ "backend": online }));
    }
    let row = backend(&daemon, "full");
    assert_eq!((&row["state"], &row["total_bytes"]), (&json!("offline"), &json!(null)));
    let refusal = refused(&daemon, "Create", &json!({ "Name": "db", "Opts": { "backend": "full" } }), 500);
    for text in [row["reason"].as_str().unwrap(), &refusal] {
        says(text, &["not empty", "volhost backend init full"]);
    }
    assert_eq!(names(&full), ["data"]);
    says(&daemon.cli(&["backend", "adopt", "full"]).fails(), &["volhost backend init full"]);

    daemon.cli(&["backend", "init", "full"]).ok();
    assert_eq!(backend(&daemon, "full")["state"], "online");
    create(&daemon, "db", &json!({ "backend": "full" }));
    assert_eq!(names(&full), [".volhost", "data", "db"]);
    says(&daemon.cli(&["backend", "init", "full"]).fails(), &["remembers", "--force"]);
    says(&daemon.cli(&["backend", "init", "none"]).fails(), &["none", "disk, empty, full"]);
}

#[test]
fn a_missing_anothers_or_unknown_identity_is_offline_with_the_reason() {
    let storage = Storage::new();
    let (a, b, c) = (storage.dir("a"), storage.dir("b"), storage.dir("c"));
    let daemon = Daemon::setup().backends(&json!({ "a": a, "b": b })).start();
    create(&daemon, "db", &json!({ "backend": "a" }));
    create(&daemon, "other", &json!({ "backend": "b" }));
    let own = fs::read(identity(&a)).unwrap();
    let cases: [Spoilt<'_>; 4] = [
        (
            "missing",
            &|| fs::remove_file(identity(&a)).unwrap(),
            &["has no .volhost/backend.json", "is the share mounted?"],
        ),
        (
            "another's",
            &|| fs::write(identity(&a), fs::read(identity(&b)).unwrap()).unwrap(),
            &["another backend", "volhost backend adopt a"],
        ),
        ("garbled", &|| fs::write(identity(&a), "{").unwrap(), &["not understood"]),
        (
            "newer",
            &|| fs::write(identity(&a), r#"{"version":2,"id":"?"}"#).unwrap(),
            &["version 2", "newer volhost"],
        ),
    ];
    for (what, spoil, words) in cases {
        spoil();
        let spoilt = fs::read(identity(&a)).ok();
        let bodies = [
            ("Create", json!({ "Name": "new", "Opts": { "backend": "a" } })),
            ("Mount", mounting("db")),
            ("Remove", named("db")),
        ];
        for (verb, body) in bodies {
            let err = refused(&daemon, verb, &body, 500);
            says(&err, &["backend \"a\" is offline"]);
            says(&err, words);
        }
        assert_eq!(backend(&daemon, "a")["state"], "offline", "{what}");
        assert_eq!(done(&daemon, "Get", &named("db"))["Volume"]["Status"]["backend_state"], "offline");
        assert_eq!(fs::read(identity(&a)).ok(), spoilt, "{what}: the file was touched");
        fs::write(identity(&a), &own).unwrap();
        // The next operation finds it well, before any probe does.
        done(&daemon, "Mount", &mounting("db"));
        done(&daemon, "Unmount", &mounting("db"));
        assert_eq!(backend(&daemon, "a")["state"], "online", "{what}");
    }
    // A backend of another catalog.
    fs::create_dir(c.join(".volhost")).unwrap();
    let foreign = String::from_utf8(own).unwrap();
    let id = serde_json::from_str::<Value>(&foreign).unwrap()["id"].as_str().unwrap().to_owned();
    let other = if id.starts_with('0') { "1" } else { "0" };
    let flipped = format!("{other}{}", &id[1..]);
    fs::write(identity(&c), foreign.replace(&id, &flipped)).unwrap();
    remap(&daemon, &json!({ "a": a, "b": b, "c": c }));
    let err = refused(&daemon, "Create", &json!({ "Name": "new", "Opts": { "backend": "c" } }), 500);
    says(&err, &["does not know", "volhost backend adopt c", &flipped]);
    says(&daemon.cli(&["backend", "init", "c"]).fails(), &["backend already", "adopt"]);
    daemon.cli(&["backend", "adopt", "c"]).ok();
    create(&daemon, "new", &json!({ "backend": "c" }));
    assert_eq!(backend(&daemon, "c")["state"], "online");
}

#[test]
fn a_share_can_be_unmounted_while_serving_and_comes_back_by_itself() {
    let storage = Storage::new();
    let share = storage.dir("share");
    let disk = storage.disk("share", "xfs", 320);
    disk.mount(&share);
    let daemon = Daemon::setup().backends(&json!({ "default": share })).start();
    create(&daemon, "db", &json!({}));
    fs::write(share.join("db/data"), "kept").unwrap();
    done(&daemon, "Mount", &mounting("db"));
    // No handle of the service's keeps it from being unmounted.
    unmount(&share);
    let row = until_backend(&daemon, "default", "offline");
    says(row["reason"].as_str().unwrap(), &[".volhost/backend.json", "is the share mounted?"]);

    let got = done(&daemon, "Get", &named("db"));
    assert_eq!(got["Volume"]["Mountpoint"], json!(share.join("db")));
    assert_eq!(got["Volume"]["Status"]["backend_state"], "offline");
    assert_eq!(done(&daemon, "List", &json!({}))["Volumes"].as_array().unwrap().len(), 1);
    assert_eq!(done(&daemon, "Path", &named("db"))["Mountpoint"], json!(share.join("db")));
    for (verb, body) in [("Create", named("new")), ("Mount", json!({ "Name": "db", "ID": "two" }))] {
        says(&refused(&daemon, verb, &body, 500), &["offline", "is the share mounted?"]);
    }
    done(&daemon, "Unmount", &mounting("db"));
    says(&refused(&daemon, "Remove", &named("db"), 500), &["offline", "is the share mounted?"]);
    assert!(names(&share).is_empty(), "written below the mount point: {:?}", names(&share));

    // Also a service that is started now touches nothing.
    let mut daemon = daemon;
    daemon.restart();
    assert_eq!(done(&daemon, "Get", &named("db"))["Volume"]["Status"]["backend_state"], "offline");
    says(&refused(&daemon, "Create", &named("new"), 500), &["offline"]);
    assert!(names(&share).is_empty(), "written below the mount point: {:?}", names(&share));

    disk.mount(&share);
    until_backend(&daemon, "default", "online");
    done(&daemon, "Mount", &mounting("db"));
    assert_eq!(fs::read_to_string(share.join("db/data")).unwrap(), "kept");
    create(&daemon, "new", &json!({}));
    daemon.has_mounts(&[("db", "node1", false)]);
}

#[test]
fn a_backend_that_must_be_mounted_is_offline_on_the_root_file_system() {
    let storage = Storage::new();
    let (share, later) = (storage.dir("share"), storage.path("later"));
    let map = json!({ "default": { "path": share, "require_mount": true }, "later": later });
    let daemon = Daemon::setup().backends(&map).start();
    let err = refused(&daemon, "Create", &named("db"), 500);
    says(&err, &["require_mount", "is the share mounted?"]);
    assert!(names(&share).is_empty());
    let err = refused(&daemon, "Create", &json!({ "Name": "x", "Opts": { "backend": "later" } }), 500);
    says(&err, &["does not exist", "later"]);
    storage.tmpfs(&share);
    fs::create_dir(&later).unwrap();
    for name in ["default", "later"] {
        until_backend(&daemon, name, "online");
        create(&daemon, name, &json!({ "backend": name }));
    }
}

#[test]
fn a_draining_backend_takes_no_new_volume_and_serves_the_others() {
    let storage = Storage::new();
    let (root, other) = (storage.dir("b"), storage.dir("o"));
    let daemon = Daemon::setup().backends(&json!({ "default": root, "other": other })).start();
    create(&daemon, "db", &json!({}));
    remap(&daemon, &json!({ "default": { "path": root, "draining": true }, "other": other }));
    until("the backend to drain", SOON, || (backend(&daemon, "default")["draining"] == true).then_some(()));
    says(&refused(&daemon, "Create", &named("new"), 400), &["draining", "-o backend="]);
    says(&daemon.cli(&["volume", "create", "new"]).fails(), &["draining"]);
    create(&daemon, "new", &json!({ "backend": "other" }));
    create(&daemon, "db", &json!({}));
    done(&daemon, "Mount", &mounting("db"));
    done(&daemon, "Unmount", &mounting("db"));
    done(&daemon, "Remove", &named("db"));
    daemon.cli(&["volume", "restore", "db"]).ok();
}

#[test]
fn a_backend_that_leaves_the_map_keeps_its_volumes_and_returns_as_it_was() {
    let storage = Storage::new();
    let (root, other) = (storage.dir("b"), storage.dir("o"));
    let whole = json!({ "fast": { "path": root, "mountpoint": "/data/fast" }, "other": other });
    let daemon = Daemon::setup().backends(&whole).start();
    create(&daemon, "db", &json!({ "backend": "fast" }));
    done(&daemon, "Mount", &mounting("db"));
    let before = done(&daemon, "Get", &named("db"));
    remap(&daemon, &json!({ "other": other }));
    let row = backend(&daemon, "fast");
    assert_eq!((&row["state"], &row["volumes"]), (&json!("unmapped"), &json!(1)));
    says(row["reason"].as_str().unwrap(), &["not in the backend map"]);

    let now = done(&daemon, "Get", &named("db"));
    assert_eq!(now["Volume"]["Status"]["backend_state"], "unmapped");
    assert_eq!(now["Volume"]["Mountpoint"], before["Volume"]["Mountpoint"]);
    assert_eq!(done(&daemon, "Path", &named("db"))["Mountpoint"], "/data/fast/db");
    assert_eq!(daemon.volumes(), ["db"]);
    for (verb, body) in [
        ("Mount", json!({ "Name": "db", "ID": "two" })),
        ("Create", json!({ "Name": "new", "Opts": { "backend": "fast" } })),
    ] {
        let status = if verb == "Create" { 400 } else { 500 };
        says(&refused(&daemon, verb, &body, status), &["fast"]);
    }
    says(&refused(&daemon, "Mount", &json!({ "Name": "db", "ID": "two" }), 500), &["not in the backend map"]);
    done(&daemon, "Unmount", &mounting("db"));
    says(&refused(&daemon, "Remove", &named("db"), 500), &["not in the backend map"]);
    // A Create of what exists is answered from the record.
    create(&daemon, "db", &json!({}));

    remap(&daemon, &whole);
    until_backend(&daemon, "fast", "online");
    assert_eq!(done(&daemon, "Mount", &mounting("db"))["Mountpoint"], "/data/fast/db");
    done(&daemon, "Unmount", &mounting("db"));
    done(&daemon, "Remove", &named("db"));
}

#[test]
fn an_empty_disk_in_the_place_of_a_known_one_is_taken_by_force_only() {
    let storage = Storage::new();
    let share = storage.dir("share");
    storage.disk("old", "ext4", 16).mount(&share);
    let daemon = Daemon::setup().backends(&json!({ "default": share })).start();
    create(&daemon, "db", &json!({}));
    create(&daemon, "lost", &json!({}));
    unmount(&share);
    storage.disk("new", "ext4", 16).mount(&share);
    says(&refused(&daemon, "Mount", &mounting("db"), 500), &["offline", "is the share mounted?"]);
    until_backend(&daemon, "default", "offline");
    says(&daemon.cli(&["backend", "init", "default"]).fails(), &["remembers", "--force"]);
    assert_eq!(names(&share), ["lost+found"]);
    daemon.cli(&["backend", "init", "--force", "default"]).ok();
    assert_eq!(backend(&daemon, "default")["state"], "online");
    // The volumes that lay on the other disk are still known, and can be removed.
    says(&refused(&daemon, "Mount", &mounting("db"), 500), &["no directory", "db"]);
    assert_eq!(done(&daemon, "Get", &named("db"))["Volume"]["Name"], "db");
    done(&daemon, "Remove", &named("db"));
    refused(&daemon, "Get", &named("db"), 400);
    assert_eq!(daemon.volumes(), ["lost"]);
    create(&daemon, "db", &json!({}));
    done(&daemon, "Mount", &mounting("db"));
}

#[test]
fn a_directory_that_was_taken_away_by_hand_is_told_and_its_volume_can_go() {
    let storage = Storage::new();
    let root = storage.dir("b");
    let daemon = Daemon::setup().backends(&json!({ "default": root })).start();
    for name in ["db", "trashed"] {
        create(&daemon, name, &json!({}));
    }
    daemon.await_durable(&["db"]);
    done(&daemon, "Remove", &named("trashed"));
    fs::rename(root.join("db"), storage.path("away")).unwrap();
    fs::remove_dir_all(root.join(".volhost/trash")).unwrap();
    says(&refused(&daemon, "Mount", &mounting("db"), 500), &["no directory", "moved by hand"]);
    daemon.has_mounts(&[]);
    says(&daemon.cli(&["volume", "restore", "trashed"]).fails(), &["does not exist"]);
    assert_eq!(daemon.volumes(), ["db"]);
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "-q"]).ok().lines().count(), 1);
    daemon.cli(&["volume", "rm", "--now", "--yes", "trashed"]).ok();
    until("the removed volume to be forgotten", SOON, || {
        daemon.cli(&["volume", "ls", "--trash", "-q"]).ok().is_empty().then_some(())
    });
    fs::rename(storage.path("away"), root.join("db")).unwrap();
    done(&daemon, "Mount", &mounting("db"));
    done(&daemon, "Unmount", &mounting("db"));
    fs::remove_dir(root.join("db")).unwrap();
    done(&daemon, "Remove", &named("db"));
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "--json"]).json(), json!([]));
    create(&daemon, "db", &json!({}));
}

#[test]
fn a_full_disk_refuses_new_volumes_keeps_nothing_of_them_and_lets_others_go() {
    let storage = Storage::new();
    let root = storage.dir("b");
    storage.disk("b", "ext4", 16).mount(&root);
    let map = json!({ "default": { "path": root, "trash": "0" } });
    let mut daemon = Daemon::setup().backends(&map).start();
    create(&daemon, "db", &json!({}));
    // To the last block, those for root too.
    let mut filler = fs::File::create(root.join("db/data")).unwrap();
    for size in [1 << 20, 1024] {
        while std::io::Write::write_all(&mut filler, &vec![1; size]).and_then(|()| filler.sync_all()).is_ok()
        {
        }
    }
    drop(filler);
    says(&refused(&daemon, "Create", &named("new"), 500), &["No space left on device"]);
    refused(&daemon, "Get", &named("new"), 400);
    done(&daemon, "Mount", &mounting("db"));
    done(&daemon, "Unmount", &mounting("db"));
    daemon.restart();
    assert_eq!(daemon.volumes(), ["db"]);
    // What frees the space must not need any.
    done(&daemon, "Remove", &named("db"));
    until("there to be space again", SOON, || {
        (rpc(&daemon, "Create", &named("new")).status == 200).then_some(())
    });
    assert!(names(&root.join(".volhost/new")).is_empty());
}

#[test]
fn links_below_a_backend_lead_nowhere() {
    let storage = Storage::new();
    let (root, outside) = (storage.dir("b"), storage.dir("outside"));
    fs::write(outside.join("precious"), "kept").unwrap();
    fs::create_dir(outside.join("db")).unwrap();
    let untouched = || {
        assert_eq!(names(&outside), ["db", "precious"]);
        assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "kept");
    };
    let daemon = Daemon::setup().backends(&json!({ "default": root })).start();
    create(&daemon, "db", &json!({}));
    daemon.await_durable(&["db"]);
    let (volume, aside) = (root.join("db"), root.join("aside"));
    for target in [outside.as_path(), Path::new("/etc"), Path::new("aside"), Path::new("/nowhere")] {
        fs::rename(&volume, &aside).unwrap();
        symlink(target, &volume).unwrap();
        says(&refused(&daemon, "Mount", &mounting("db"), 500), &["db"]);
        says(&refused(&daemon, "Remove", &named("db"), 500), &["db", "not a directory"]);
        assert!(fs::symlink_metadata(&volume).unwrap().is_symlink());
        fs::remove_file(&volume).unwrap();
        fs::rename(&aside, &volume).unwrap();
    }
    symlink(&outside, root.join("new")).unwrap();
    says(&refused(&daemon, "Create", &named("new"), 400), &["exists already", "not a directory"]);
    untouched();
    // volhost's own directories are no better a trap.
    done(&daemon, "Remove", &named("db"));
    daemon.cli(&["volume", "restore", "db"]).ok();
    for house in [".volhost/trash", ".volhost/new", ".volhost"] {
        let (real, aside) = (root.join(house), root.join("real"));
        fs::rename(&real, &aside).unwrap();
        let decoy = if house == ".volhost" { &aside } else { &outside };
        symlink(decoy, &real).unwrap();
        if house != ".volhost/new" {
            says(&refused(&daemon, "Remove", &named("db"), 500), &["no symbolic link"]);
        }
        if house != ".volhost/trash" {
            says(&refused(&daemon, "Create", &named("x"), 500), &["no symbolic link"]);
        }
        fs::remove_file(&real).unwrap();
        fs::rename(&aside, &real).unwrap();
        untouched();
    }
    done(&daemon, "Remove", &named("db"));
    untouched();
}

#[test]
fn a_swap_race_never_leads_out_of_the_backend() {
    let storage = Storage::new();
    let (root, outside) = (storage.dir("b"), storage.dir("outside"));
    for at in 0..100 {
        fs::write(outside.join(at.to_string()), "kept").unwrap();
    }
    let before = names(&outside);
    let daemon = Daemon::setup().backends(&json!({ "default": { "path": root, "trash": "0" } })).start();
    let (volume, link) = (root.join("db"), root.join(".link"));
    symlink(&outside, &link).unwrap();
    let over = AtomicBool::new(false);
    let mut answered = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                // Fails while there is no volume to swap.
                let _ = renameat_with(CWD, &link, CWD, &volume, RenameFlags::EXCHANGE);
            }
        });
        let start = Instant::now();
        let mut client = daemon.unix();
        while start.elapsed() < Duration::from_secs(3) {
            for (verb, body) in [
                ("Create", named("db")),
                ("Mount", mounting("db")),
                ("Unmount", mounting("db")),
                ("Remove", named("db")),
            ] {
                client.call(&format!("/VolumeDriver.{verb}"), &body).unwrap();
                answered += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(answered > 50, "only {answered} requests");
    assert_eq!(names(&outside), before);
    assert!(names(&root.join(".volhost/new")).is_empty());
    assert_eq!(rpc(&daemon, "List", &json!({})).status, 200);
}

#[test]
fn a_directory_that_was_replaced_is_told_as_what_it_is() {
    let daemon = Daemon::start();
    create(&daemon, "db", &json!({}));
    daemon.await_durable(&["db"]);
    let at = daemon.path("var/lib/volhost/volumes/db");
    fs::rename(&at, daemon.path("elsewhere")).unwrap();
    symlink(daemon.path("elsewhere"), &at).unwrap();
    let told = refused(&daemon, "Mount", &mounting("db"), 500);
    says(&told, &["volume db has no directory", "a symbolic link", "put the directory back"]);
    let shown = daemon.cli(&["volume", "inspect", "db", "--json"]).json();
    assert_eq!(shown[0]["directory"]["kind"], "a symbolic link");
    let compared = daemon.cli(&["check", "--catalog"]);
    assert_eq!(compared.code, Some(1), "{compared:?}");
    says(&compared.stdout, &["missing", "a symbolic link stands in the place"]);

    symlink("/", at.with_file_name("link")).unwrap();
    let adopted = daemon.cli(&["volume", "create", "-o", "adopt=true", "link"]);
    assert_eq!(adopted.code, Some(1), "{adopted:?}");
    says(&adopted.stderr, &["no directory link to adopt", "a symbolic link stands there"]);
    fs::remove_file(&at).unwrap();
    says(&refused(&daemon, "Mount", &mounting("db"), 500), &["is gone"]);
    fs::rename(daemon.path("elsewhere"), &at).unwrap();
    done(&daemon, "Mount", &mounting("db"));
}

/// An engine that copies an image's files up gives the volume's directory the owner and mode of the image's.
#[test]
fn an_owner_that_was_changed_is_compared_with_what_the_options_said() {
    let daemon = Daemon::start();
    create(&daemon, "db", &json!({ "uid": "70", "gid": "999", "mode": "0750" }));
    create(&daemon, "plain", &json!({}));
    let inspected = |name: &str| {
        let shown = daemon.cli(&["volume", "inspect", name, "--json"]).json();
        shown[0]["directory"].clone()
    };
    let whole = json!({ "kind": "directory", "uid": 70, "gid": 999, "mode": "0750", "changed": [] });
    assert_eq!(inspected("db"), whole);
    daemon.cli(&["check", "--catalog"]).ok();
    for name in ["db", "plain"] {
        let at = daemon.path("var/lib/volhost/volumes").join(name);
        std::os::unix::fs::chown(&at, Some(999), Some(999)).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let changed = ["uid=70 then, uid=999 now", "mode=0750 then, mode=0700 now"];
    assert_eq!(
        inspected("db"),
        json!({ "kind": "directory", "uid": 999, "gid": 999, "mode": "0700", "changed": changed })
    );
    assert_eq!(inspected("plain")["changed"], json!([]), "nothing was said of it");
    says(&daemon.cli(&["volume", "inspect", "db"]).ok(), &["owner 999:999, mode 0700", changed[0]]);
    // It is worth knowing, and nothing that must be mended.
    let compared = daemon.cli(&["check", "--catalog"]).ok();
    says(&compared, &["owner", changed[0], changed[1], "`volume-nocopy`"]);
    assert!(!compared.contains("plain"), "{compared}");
}
