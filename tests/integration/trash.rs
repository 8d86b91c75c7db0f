//! The trash as operators meet it: what comes back, what goes for good, when, and what is never touched.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{RenameFlags, renameat_with, symlinkat};
use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::storage::{Storage, create, done, names, refused, remap, says, unmount, until_backend};
use crate::harness::wait::{SOON, run, until};

fn named(name: &str) -> Value {
    json!({ "Name": name })
}

/// volhost with one backend whose removed volumes are kept for that long, and the backend's directory.
fn serve(storage: &Storage, trash: &str) -> (Daemon<'static>, PathBuf) {
    let root = storage.dir("b");
    let map = json!({ "default": { "path": root, "trash": trash } });
    (Daemon::setup().backends(&map).start(), root)
}

fn trash(daemon: &Daemon<'_>) -> Vec<Value> {
    let rows = daemon.cli(&["volume", "ls", "--trash", "--json"]).json();
    rows.as_array().expect("a list").clone()
}

/// The removed volumes' directories, also those whose deletion has begun.
fn trashed(root: &Path) -> Vec<String> {
    let home = root.join(".volhost");
    let begun = names(&home).into_iter().filter_map(|name| Some(name.strip_prefix("deleting-")?.to_owned()));
    let kept = if home.join("trash").exists() { names(&home.join("trash")) } else { Vec::new() };
    kept.into_iter().chain(begun).collect()
}

/// Creates a volume with a file that says so.
fn made(daemon: &Daemon<'_>, root: &Path, name: &str, data: &str) {
    create(daemon, name, &json!({}));
    fs::write(root.join(name).join("data"), data).unwrap();
}

fn data(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name).join("data")).unwrap()
}

/// What is left of a removed volume: in the trash, or where it lies once its deletion has begun.
fn left_of(root: &Path, id: &str) -> PathBuf {
    let begun = root.join(format!(".volhost/deleting-{id}"));
    if begun.exists() { begun } else { root.join(".volhost/trash").join(id) }
}

fn until_gone(daemon: &Daemon<'_>, root: &Path, within: Duration) {
    until("the trash to be empty", within, || {
        (trash(daemon).is_empty() && trashed(root).is_empty()).then_some(())
    });
}

#[test]
fn what_was_removed_comes_back_by_name_or_identity() {
    let storage = Storage::new();
    let (daemon, root) = serve(&storage, "24h");
    for data in ["first", "second", "third"] {
        made(&daemon, &root, "db", data);
        done(&daemon, "Remove", &named("db"));
        assert!(!root.join("db").exists(), "the name is free at once");
        refused(&daemon, "Get", &named("db"), 400);
    }
    let rows = trash(&daemon);
    assert_eq!(rows.len(), 3);
    for row in &rows {
        assert_eq!(
            (&row["name"], &row["backend"], &row["blocked"]),
            (&json!("db"), &json!("default"), &json!(null))
        );
        assert!(row["removed_at"].is_string() && row["expires_at"].is_string(), "{row}");
    }
    let ids: Vec<_> = rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "-q"]).ok().lines().collect::<Vec<_>>(), ids);
    let table = daemon.cli(&["volume", "ls", "--trash"]).ok();
    says(&table, &["NAME", "REMOVED", "DELETED AFTER", &ids[0], &ids[2]]);

    daemon.cli(&["volume", "restore", "db"]).ok();
    assert_eq!(data(&root, "db"), "third", "the latest");
    says(&daemon.cli(&["volume", "restore", "db"]).fails(), &["db", "exists already"]);
    says(&daemon.cli(&["volume", "restore", &ids[0]]).fails(), &["db", "exists already"]);
    done(&daemon, "Remove", &named("db"));
    daemon.cli(&["volume", "restore", &ids[0]]).ok();
    assert_eq!(data(&root, "db"), "first");
    says(&daemon.cli(&["volume", "restore", &ids[0]]).fails(), &["volume ls --trash"]);
    says(&daemon.cli(&["volume", "restore", "none"]).fails(), &["none", "volume ls --trash"]);
    // A directory that somebody put in the way is not replaced either.
    done(&daemon, "Remove", &named("db"));
    fs::create_dir(root.join("db")).unwrap();
    says(&daemon.cli(&["volume", "restore", "db"]).fails(), &["db", "exists already"]);
    assert_eq!(trash(&daemon).len(), 3, "what cannot be restored stays in the trash");
    fs::remove_dir(root.join("db")).unwrap();
    let restored = daemon.cli(&["volume", "restore", "--json", "db"]).json();
    assert_eq!((&restored["name"], &restored["state"]), (&json!("db"), &json!("online")));
    assert_eq!(data(&root, "db"), "first");
    done(&daemon, "Mount", &json!({ "Name": "db", "ID": "one" }));
    assert_eq!(daemon.mounts().len(), 1);
}

#[test]
fn the_trash_survives_a_restart() {
    let storage = Storage::new();
    let (mut daemon, root) = serve(&storage, "24h");
    made(&daemon, &root, "db", "kept");
    done(&daemon, "Remove", &named("db"));
    let before = trash(&daemon);
    daemon.restart();
    assert_eq!(trash(&daemon), before);
    daemon.cli(&["volume", "restore", "db"]).ok();
    assert_eq!(data(&root, "db"), "kept");
}

#[test]
fn expired_volumes_are_deleted_soon_after_their_time() {
    let storage = Storage::new();
    let (daemon, root) = serve(&storage, "2s");
    made(&daemon, &root, "db", "gone");
    done(&daemon, "Remove", &named("db"));
    // Looked at where it lies, because even the start of a command may take longer than the trash is kept.
    assert_eq!(trashed(&root).len(), 1, "kept for a while");
    until_gone(&daemon, &root, Duration::from_secs(12));
    // A shorter time in the map holds for what is there already; `0` deletes at once.
    remap(&daemon, &json!({ "default": { "path": root, "trash": "24h" } }));
    until("the new time to be in force", SOON, || {
        made(&daemon, &root, "db", "gone");
        done(&daemon, "Remove", &named("db"));
        std::thread::sleep(Duration::from_secs(1));
        let rows = trash(&daemon);
        let (at, until) = (rows.first()?["removed_at"].as_str()?, rows.first()?["expires_at"].as_str()?);
        (at[..10] != until[..10]).then_some(())
    });
    remap(&daemon, &json!({ "default": { "path": root, "trash": "0" } }));
    until_gone(&daemon, &root, Duration::from_secs(12));
    made(&daemon, &root, "db", "gone");
    done(&daemon, "Remove", &named("db"));
    until_gone(&daemon, &root, Duration::from_secs(12));
    assert_eq!(names(&root), [".volhost"]);
}

#[test]
fn rm_now_deletes_a_volume_or_a_removed_one() {
    let storage = Storage::new();
    let (daemon, root) = serve(&storage, "24h");
    for name in ["a", "b", "c"] {
        made(&daemon, &root, name, name);
    }
    done(&daemon, "Remove", &named("b"));
    done(&daemon, "Remove", &named("c"));
    // Nothing is deleted without a yes.
    says(&daemon.cli(&["volume", "rm", "--now", "a"]).fails(), &["--yes"]);
    assert_eq!(data(&root, "a"), "a");
    daemon.cli(&["volume", "rm", "--now", "--yes", "a", "b"]).ok();
    until("a and b to be gone", SOON, || {
        let left: Vec<_> = trash(&daemon).iter().map(|row| row["name"].clone()).collect();
        (left == ["c"] && trashed(&root).len() == 1).then_some(())
    });
    // A mounted one is not removed by any flag.
    daemon.cli(&["volume", "restore", "c"]).ok();
    done(&daemon, "Mount", &json!({ "Name": "c", "ID": "one" }));
    says(&daemon.cli(&["volume", "rm", "--now", "--force", "--yes", "c"]).fails(), &["in use", "node1"]);
    assert_eq!(data(&root, "c"), "c");
}

#[test]
fn a_deletion_is_bounded_disturbs_nobody_and_is_resumed_after_kill_9() {
    const FILES: usize = 20_000;
    let storage = Storage::new();
    let (mut daemon, root) = serve(&storage, "24h");
    create(&daemon, "big", &json!({}));
    for at in 0..FILES / 100 {
        let dir = root.join(format!("big/{at}"));
        fs::create_dir(&dir).unwrap();
        for file in 0..100 {
            fs::File::create(dir.join(file.to_string())).unwrap();
        }
    }
    daemon.cli(&["volume", "rm", "--now", "--yes", "big"]).ok();
    let start = Instant::now();
    let [id] = &trashed(&root)[..] else { panic!("{:?}", trashed(&root)) };
    let left = || fs::read_dir(left_of(&root, id)).map_or(0, Iterator::count);
    until("some of it to be gone", SOON, || (left() < FILES / 100).then_some(()));
    daemon.kill9();
    let half = left();
    assert!(half > 0, "it was all gone after {:?}: nothing bounds the rate", start.elapsed());
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(left(), half);
    daemon.start_again();
    assert_eq!(trash(&daemon).len(), 1);
    says(&daemon.cli(&["volume", "restore", "big"]).fails(), &["big", "being deleted"]);
    // Others are served meanwhile: now, because how long they take is up to the disk, and what is left to delete must be
    // seen before.
    for at in 0..20 {
        let began = Instant::now();
        create(&daemon, &format!("v{at}"), &json!({}));
        assert!(began.elapsed() < Duration::from_secs(2), "a create took {:?}", began.elapsed());
    }
    until_gone(&daemon, &root, Duration::from_secs(60));
    assert_eq!(names(&root).len(), 21, "the volumes and .volhost");
}

#[test]
fn a_mount_point_inside_a_removed_volume_is_never_crossed() {
    let storage = Storage::new();
    let (daemon, root) = serve(&storage, "0");
    let precious = storage.dir("precious");
    fs::write(precious.join("data"), "kept").unwrap();
    made(&daemon, &root, "db", "gone");
    let (bound, memory) = (root.join("db/a/bound"), root.join("db/b/memory"));
    fs::create_dir_all(&bound).unwrap();
    fs::create_dir_all(&memory).unwrap();
    storage.bind(&precious, &bound);
    storage.tmpfs(&memory);
    fs::write(memory.join("data"), "kept").unwrap();
    done(&daemon, "Remove", &named("db"));
    let row = until("the deletion to be blocked", SOON, || {
        trash(&daemon).pop().filter(|row| row["blocked"].is_string())
    });
    says(row["blocked"].as_str().unwrap(), &["mount point", "unmount it", "findmnt"]);
    says(&daemon.cli(&["volume", "ls", "--trash"]).ok(), &["mount point"]);
    let below = left_of(&root, row["id"].as_str().unwrap());
    assert!(!below.join("data").exists(), "what can go is gone");
    for at in ["a/bound", "b/memory"] {
        assert_eq!(fs::read_to_string(below.join(at).join("data")).unwrap(), "kept");
        // It holds nothing else up.
        made(&daemon, &root, "other", "gone");
        done(&daemon, "Remove", &named("other"));
        until("the other volume to be gone", SOON, || (trash(&daemon).len() == 1).then_some(()));
    }
    unmount(&below.join("a/bound"));
    // Tried again for one who asks, and still not crossed.
    daemon.cli(&["volume", "rm", "--now", "--yes", row["id"].as_str().unwrap()]).ok();
    until("the other mount point to be named", SOON, || {
        let row = trash(&daemon).pop()?;
        row["blocked"].as_str()?.contains("b/memory").then_some(())
    });
    assert!(!below.join("a").exists());
    // What is left of it does not come back as if it were whole.
    says(&daemon.cli(&["volume", "restore", "db"]).fails(), &["being deleted", "gone in part"]);
    assert_eq!(fs::read_to_string(below.join("b/memory/data")).unwrap(), "kept");
    unmount(&below.join("b/memory"));
    daemon.cli(&["volume", "rm", "--now", "--yes", row["id"].as_str().unwrap()]).ok();
    until_gone(&daemon, &root, Duration::from_secs(12));
    assert_eq!(fs::read_to_string(precious.join("data")).unwrap(), "kept");

    // The volume's own directory as a mount point is not moved at all.
    made(&daemon, &root, "db", "own");
    storage.bind(&precious, &root.join("db"));
    says(&refused(&daemon, "Remove", &named("db"), 400), &["mount point", "unmount it"]);
    assert_eq!(fs::read_to_string(precious.join("data")).unwrap(), "kept");
    unmount(&root.join("db"));
    done(&daemon, "Remove", &named("db"));
    until_gone(&daemon, &root, SOON);
}

#[test]
fn a_deletion_is_never_led_out_of_the_volume_by_swapped_links() {
    let storage = Storage::new();
    let (daemon, root) = serve(&storage, "24h");
    let outside = storage.dir("outside");
    for at in 0..50 {
        fs::create_dir(outside.join(at.to_string())).unwrap();
        fs::write(outside.join(at.to_string()).join("data"), "kept").unwrap();
    }
    create(&daemon, "db", &json!({}));
    let volume = root.join("db");
    for at in 0..400 {
        let dir = volume.join(at.to_string());
        fs::create_dir(&dir).unwrap();
        for file in 0..20 {
            fs::File::create(dir.join(file.to_string())).unwrap();
        }
    }
    // A container that goes on using the volume holds its directory, wherever that is renamed to.
    let held = fs::File::open(&volume).unwrap();
    std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
    let (over, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for at in 0..400 {
                    if renameat_with(&held, "link", &held, at.to_string(), RenameFlags::EXCHANGE).is_ok() {
                        swaps.fetch_add(1, Ordering::Relaxed);
                    }
                    // What was removed comes again, for as long as there is a directory.
                    let _ = symlinkat(&outside, &held, "link");
                }
            }
        });
        daemon.cli(&["volume", "rm", "--now", "--yes", "db"]).ok();
        std::thread::sleep(Duration::from_secs(4));
        over.store(true, Ordering::Relaxed);
    });
    drop(held);
    assert!(swaps.load(Ordering::Relaxed) > 100, "{swaps:?} swaps");
    assert_eq!(names(&outside).len(), 50);
    for at in 0..50 {
        assert_eq!(fs::read_to_string(outside.join(at.to_string()).join("data")).unwrap(), "kept");
    }
    if let Some(row) = trash(&daemon).first() {
        daemon.cli(&["volume", "rm", "--now", "--yes", row["id"].as_str().unwrap()]).ok();
    }
    until_gone(&daemon, &root, SOON);
}

#[test]
fn scarce_space_takes_the_oldest_first_and_no_more_than_it_needs() {
    let storage = Storage::new();
    let disk = storage.dir("b");
    storage.disk("b", "ext4", 64).mount(&disk);
    let (daemon, root) = serve(&storage, "24h");
    let fill = |name: &str, mib: usize| fs::write(root.join(name).join("data"), vec![1; mib << 20]).unwrap();
    for name in ["oldest", "middle", "latest"] {
        create(&daemon, name, &json!({}));
        fill(name, 8);
    }
    create(&daemon, "live", &json!({}));
    for name in ["oldest", "middle", "latest"] {
        done(&daemon, "Remove", &named(name));
    }
    assert_eq!(trash(&daemon).len(), 3);
    let free = || {
        let stat = rustix::fs::statvfs(&root).unwrap();
        usize::try_from(stat.f_bavail * stat.f_frsize).unwrap() >> 20
    };
    fill("live", free() - 2);
    let left = until("the oldest to be deleted", 2 * SOON, || {
        let rows = trash(&daemon);
        (rows.len() < 3).then_some(rows)
    });
    let left: Vec<_> = left.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(left, ["middle", "latest"]);
    assert!(free() >= 9, "{} MiB are free", free());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(trash(&daemon).len(), 2, "there is space again");
    assert_eq!(fs::read(root.join("live/data")).unwrap()[0], 1);
    daemon.cli(&["volume", "restore", "middle"]).ok();
}

/// Writes until nothing more fits.
fn fill_up(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 512, 1] {
        while file.write_all(&vec![1; size]).and_then(|()| file.sync_all()).is_ok() {}
    }
}

fn chattr(change: &str, path: &Path) {
    run(Command::new("chattr").arg(change).arg(path)).ok();
}

#[test]
fn a_full_disk_is_emptied_however_deep_its_trees_are_and_whatever_cannot_go() {
    let storage = Storage::new();
    let disk = storage.dir("b");
    storage.disk("b", "ext4", 64).mount(&disk);
    let (daemon, root) = serve(&storage, "24h");
    for name in ["db", "live"] {
        create(&daemon, name, &json!({}));
    }
    let volume = root.join("db");
    let mut deep = volume.join("deep");
    // Nothing in it goes before its end is reached.
    for _ in 0..60 {
        deep.push("d");
    }
    fs::create_dir_all(&deep).unwrap();
    for number in 0..400 {
        fs::write(deep.join(format!("small-{number}")), "small").unwrap();
    }
    let fixed = volume.join("fixed");
    fs::write(&fixed, "").unwrap();
    fill_up(&root.join("live/data"));
    // Until the directory itself takes no more: names as long as any that volhost gives.
    let links = (0..)
        .take_while(|number| fs::hard_link(&fixed, volume.join(format!("{number:036}"))).is_ok())
        .count();
    chattr("+i", &fixed);
    daemon.cli(&["volume", "rm", "--now", "--yes", "db"]).ok();
    let row = until("what can go to be gone", SOON, || {
        trash(&daemon).pop().filter(|row| row["blocked"].is_string())
    });
    let below = left_of(&root, row["id"].as_str().unwrap());
    let left = names(&below);
    says(row["blocked"].as_str().unwrap(), &["immutable", "chattr -i"]);
    assert_eq!(left.len(), links + 1, "{left:?}");
    assert!(!below.join("deep").exists());
    chattr("-i", &below.join("fixed"));
    daemon.cli(&["volume", "rm", "--now", "--yes", row["id"].as_str().unwrap()]).ok();
    until_gone(&daemon, &root, SOON);
    assert_eq!(fs::read(root.join("live/data")).unwrap()[0], 1);
}

#[test]
fn scarce_inodes_take_the_oldest_first_too() {
    let storage = Storage::new();
    storage.tmpfs_of(&storage.dir("b"), 400);
    let (daemon, root) = serve(&storage, "24h");
    let files = |name: &str, from: usize, to: usize| {
        for number in from..to {
            fs::write(root.join(name).join(number.to_string()), "").unwrap();
        }
    };
    for name in ["oldest", "middle", "live"] {
        create(&daemon, name, &json!({}));
    }
    for name in ["oldest", "middle"] {
        files(name, 0, 100);
        done(&daemon, "Remove", &named(name));
    }
    let free = usize::try_from(rustix::fs::statvfs(&root).unwrap().f_ffree).unwrap();
    files("live", 0, free - 5);
    let left = until("the oldest to be deleted", 2 * SOON, || {
        let rows = trash(&daemon);
        (rows.len() < 2).then_some(rows)
    });
    assert_eq!(left[0]["name"], "middle");
    daemon.cli(&["volume", "restore", "middle"]).ok();
}

#[test]
fn the_trash_of_a_backend_that_is_away_waits_for_it() {
    let storage = Storage::new();
    let share = storage.dir("b");
    let disk = storage.disk("b", "ext4", 32);
    disk.mount(&share);
    let (daemon, root) = serve(&storage, "24h");
    for name in ["a", "b"] {
        made(&daemon, &root, name, name);
        done(&daemon, "Remove", &named(name));
    }
    // Not mounted: what was asked for is done when it is back.
    unmount(&share);
    daemon.cli(&["volume", "rm", "--now", "--yes", "a"]).ok();
    until_backend(&daemon, "default", "offline");
    assert_eq!(trash(&daemon).len(), 2);
    assert!(names(&share).is_empty(), "{:?}", names(&share));
    says(&daemon.cli(&["volume", "restore", "b"]).fails(), &["offline", "is the share mounted?"]);
    disk.mount(&share);
    until("a to be deleted", SOON, || (trash(&daemon).len() == 1).then_some(()));
    assert_eq!(trashed(&root).len(), 1);

    // Not in the map: listed without a time.
    let other = storage.dir("other");
    remap(&daemon, &json!({ "other": other }));
    daemon.cli(&["volume", "rm", "--now", "--yes", "b"]).ok();
    let rows = trash(&daemon);
    assert_eq!((rows.len(), &rows[0]["expires_at"]), (1, &json!(null)));
    says(&daemon.cli(&["volume", "restore", "b"]).fails(), &["default", "not in the backend map"]);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(trashed(&root).len(), 1);
    remap(&daemon, &json!({ "default": { "path": root, "trash": "24h" }, "other": other }));
    until_gone(&daemon, &root, SOON);
}
