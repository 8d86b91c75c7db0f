//! Bad days: what the operator and the engines see while something is wrong, that nothing answered is lost, and that
//! it is over when its cause is.
//!
//! Every test goes the same way: a service in use ([`Day`]); the bad thing happens, really; what is seen; the cause
//! goes; the service, the same process, is whole again. The table in docs/operations/bad-days.md has a row for each, also for
//! those that other files tell.

use std::fs;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::engine::show_spec;
use crate::harness::authority::{Authority, from_now};
use crate::harness::http::{Client, Identity, Target};
use crate::harness::storage::{Storage, backend, create, done, names, refused, rpc, says, until_backend};
use crate::harness::wait::{SOON, run, until};
use crate::harness::{Daemon, Engine, Host};

/// A service in use: backends `default` and `other`; volumes `kept` (mounted by `held`), `idle` and `elsewhere` (on
/// `other`), each with data; `gone` in the trash.
struct Day<'a> {
    daemon: Daemon<'a>,
    root: PathBuf,
    pid: u32,
}

fn named(name: &str) -> Value {
    json!({ "Name": name })
}

fn mounting(name: &str, id: &str) -> Value {
    json!({ "Name": name, "ID": id })
}

impl<'a> Day<'a> {
    /// Furnishes a service whose backend `default` is `root`.
    fn begin(daemon: Daemon<'a>, root: &Path) -> Self {
        for (name, backend) in
            [("kept", "default"), ("idle", "default"), ("elsewhere", "other"), ("gone", "default")]
        {
            create(&daemon, name, &json!({ "backend": backend }));
            let path = done(&daemon, "Path", &named(name))["Mountpoint"].as_str().unwrap().to_owned();
            fs::write(Path::new(&path).join("data"), name).unwrap();
        }
        done(&daemon, "Mount", &mounting("kept", "held"));
        done(&daemon, "Remove", &named("gone"));
        let pid = daemon.pid();
        Self { daemon, root: root.to_path_buf(), pid }
    }

    /// With the catalog in a directory of its own, and both backends beside it.
    fn with_catalog_in(storage: &Storage, directory: &Path) -> Self {
        let setup = Daemon::setup();
        let mut config = setup.standard();
        config["catalog"] = json!(format!("sqlite:{}", directory.join("catalog.db").display()));
        let (root, other) = (storage.dir("default"), storage.dir("other"));
        let daemon = setup.config(&config).backends(&json!({ "default": root, "other": other })).start();
        Self::begin(daemon, &root)
    }

    /// Engines and operators see what they saw before: of a volume that exists nobody is ever told otherwise.
    #[track_caller]
    fn is_told(&self) {
        for name in ["kept", "idle", "elsewhere"] {
            let path = done(&self.daemon, "Get", &named(name))["Volume"]["Mountpoint"].clone();
            assert_eq!(done(&self.daemon, "Path", &named(name))["Mountpoint"], path);
        }
        let list = done(&self.daemon, "List", &json!({}));
        let told: Vec<_> =
            list["Volumes"].as_array().unwrap().iter().map(|row| row["Name"].clone()).collect();
        for name in ["elsewhere", "idle", "kept"] {
            assert!(told.contains(&json!(name)), "{list}");
        }
        assert!(self.daemon.mounts().iter().any(|mount| mount.volume == "kept" && mount.id == "held"));
        assert_eq!(self.daemon.trash().into_values().collect::<Vec<_>>(), ["gone"]);
    }

    /// What is done on the other backend goes on as if nothing were wrong.
    #[track_caller]
    fn other_backend_works(&self) {
        create(&self.daemon, "aside", &json!({ "backend": "other" }));
        for verb in ["Mount", "Unmount"] {
            done(&self.daemon, verb, &mounting("aside", "one"));
            done(&self.daemon, verb, &mounting("elsewhere", "one"));
        }
        done(&self.daemon, "Remove", &named("aside"));
        let removed = self.daemon.trash().into_iter().find(|(_, name)| name == "aside").unwrap().0;
        self.daemon.cli(&["volume", "rm", "--now", "--yes", &removed]).ok();
        until("the volume to be deleted", SOON, || (self.daemon.trash().len() == 1).then_some(()));
    }

    /// The same process serves everything again, has lost nothing, and left nothing half-made; so does the next one.
    #[track_caller]
    fn ends_well(mut self) {
        assert_eq!(self.daemon.pid(), self.pid, "the service was started again");
        for restarted in [false, true] {
            if restarted {
                self.daemon.restart();
            }
            self.is_told();
            create(&self.daemon, "later", &json!({ "backend": "default" }));
            done(&self.daemon, "Mount", &mounting("later", "one"));
            done(&self.daemon, "Unmount", &mounting("later", "one"));
            done(&self.daemon, "Remove", &named("later"));
            self.daemon.cli(&["volume", "restore", "later"]).ok();
            self.daemon.cli(&["volume", "rm", "--now", "--yes", "later"]).ok();
            until("the volume to be deleted", SOON, || (self.daemon.trash().len() == 1).then_some(()));
            for name in ["kept", "idle"] {
                assert_eq!(fs::read_to_string(self.root.join(name).join("data")).unwrap(), name);
            }
            assert_eq!(self.daemon.status()["catalog_fault"], json!(null));
            self.daemon.cli(&["check", "--catalog"]).ok();
            assert!(names(&self.root.join(".volhost/new")).is_empty());
        }
        self.daemon.cli(&["volume", "restore", "gone"]).ok();
        assert_eq!(fs::read_to_string(self.root.join("gone/data")).unwrap(), "gone");
    }
}

/// The way in which a catalog goes away under the service.
type Loss = (&'static str, fn(&Path));

/// Removes a file that the service may remove as well, once it sees what becomes of the others.
fn remove(file: &Path) {
    if let Err(e) = fs::remove_file(file) {
        assert_eq!(e.kind(), io::ErrorKind::NotFound, "{}: {e}", file.display());
    }
}

#[test]
fn a_catalog_that_is_removed_is_rebuilt_from_memory() {
    let losses: [Loss; 6] = [
        ("its files removed", |directory| {
            for file in names(directory) {
                remove(&directory.join(file));
            }
        }),
        ("its file removed", |directory| fs::remove_file(directory.join("catalog.db")).unwrap()),
        ("its log removed", |directory| fs::remove_file(directory.join("catalog.db-wal")).unwrap()),
        ("its lock removed", |directory| fs::remove_file(directory.join("catalog.db.lock")).unwrap()),
        ("its directory removed", |directory| {
            // The service may make files in it anew while it is being emptied.
            until("the directory to be removed", SOON, || {
                let failure = fs::remove_dir_all(directory).map_err(|e| e.kind()).err();
                assert!(matches!(failure, None | Some(io::ErrorKind::DirectoryNotEmpty)), "{failure:?}");
                failure.is_none().then_some(())
            });
        }),
        ("its directory moved away", |directory| {
            let _ = fs::remove_dir_all(directory.with_extension("away"));
            fs::rename(directory, directory.with_extension("away")).unwrap();
        }),
    ];
    for (what, lose) in losses {
        let storage = Storage::new();
        let directory = storage.dir("state");
        let day = Day::with_catalog_in(&storage, &directory);
        lose(&directory);
        // The first thing that is answered now must be there after a kill.
        create(&day.daemon, "at-once", &json!({ "backend": "default" }));
        // The log follows the answer.
        until("the log to tell", SOON, || day.daemon.log().contains("was rebuilt from memory").then_some(()));
        says(&day.daemon.log(), &["was removed, moved or replaced"]);
        let mut day = day;
        day.daemon.restart();
        day.pid = day.daemon.pid();
        assert!(day.daemon.volumes().contains(&"at-once".to_owned()), "{what}: an answered Create was lost");
        // And without anything being asked, it is there soon.
        lose(&directory);
        until("the catalog to be made anew", SOON, || directory.join("catalog.db").exists().then_some(()));
        day.other_backend_works();
        day.ends_well();
    }
}

#[test]
fn a_catalog_that_is_removed_from_a_full_disk_is_made_anew_when_there_is_room() {
    let storage = Storage::new();
    let directory = storage.dir("state");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&directory)).ok();
    let mut day = Day::with_catalog_in(&storage, &directory);
    let filler = directory.join("filler");
    let mut refusals = 0;
    // With a little more room each time, so that each step of making it anew fails once.
    for (round, room) in (0..=160_u64).step_by(8).enumerate() {
        let _ = fs::write(&filler, vec![1; 4 << 20]).unwrap_err();
        for file in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
            remove(&directory.join(file));
        }
        let file = fs::File::options().write(true).open(&filler).unwrap();
        file.set_len(file.metadata().unwrap().len().saturating_sub(room << 10)).unwrap();
        drop(file);
        let name = format!("r{round}");
        let new = json!({ "Name": name, "Opts": { "backend": "default" } });
        let answer = rpc(&day.daemon, "Create", &new);
        if answer.status != 200 {
            refusals += 1;
            says(&answer.err(), &["the catalog"]);
            assert!(!day.daemon.volumes().contains(&name), "{name} was refused and is there");
        }
        day.is_told();
        fs::remove_file(&filler).unwrap();
        until("the catalog to be made anew", SOON, || {
            (rpc(&day.daemon, "Create", &new).status == 200).then_some(())
        });
        if round % 5 == 0 {
            day.daemon.restart();
            day.pid = day.daemon.pid();
        }
        assert_eq!(day.daemon.volumes().iter().filter(|name| name.starts_with('r')).count(), round + 1);
    }
    assert!((2..20).contains(&refusals), "{refusals} were refused");
    day.ends_well();
}

#[test]
fn another_file_in_the_catalogs_place_is_not_touched() {
    let storage = Storage::new();
    let directory = storage.dir("state");
    let day = Day::with_catalog_in(&storage, &directory);
    let path = directory.join("catalog.db");
    // A backup that somebody restored, while the service runs.
    let backup = directory.join("backup.db");
    fs::copy(&path, &backup).unwrap();
    let held = fs::read(&backup).unwrap();
    fs::rename(&backup, &path).unwrap();
    for _ in 0..2 {
        for (verb, body) in [
            ("Create", named("new")),
            ("Mount", mounting("idle", "new")),
            ("Unmount", mounting("kept", "held")),
            ("Remove", named("idle")),
        ] {
            let err = refused(&day.daemon, verb, &body, 500);
            says(&err, &["catalog.db was replaced by another file", "move that away"]);
        }
        day.is_told();
    }
    says(day.daemon.status()["catalog_fault"].as_str().unwrap(), &["was replaced by another file"]);
    says(&day.daemon.cli(&["status"]).ok(), &["catalog fault", "move that away"]);
    assert_eq!(fs::read(&path).unwrap(), held, "somebody's file was written");

    fs::rename(&path, &backup).unwrap();
    until("the catalog to be made anew", SOON, || {
        day.daemon.status()["catalog_fault"].is_null().then_some(())
    });
    assert_eq!(fs::read(&backup).unwrap(), held);
    day.other_backend_works();
    day.ends_well();
}

#[test]
fn a_catalog_whose_file_system_is_unmounted_waits_for_it() {
    let storage = Storage::new();
    let (disk, directory) = (storage.dir("disk"), storage.dir("state"));
    storage.tmpfs(&disk);
    storage.bind(&disk, &directory);
    let day = Day::with_catalog_in(&storage, &directory);
    run(Command::new("umount").arg("--lazy").arg(&directory)).ok();
    for _ in 0..2 {
        for (verb, body) in [("Create", named("new")), ("Remove", named("idle"))] {
            let err = refused(&day.daemon, verb, &body, 500);
            says(&err, &["catalog", "not mounted there any more", "mount it again"]);
        }
        day.is_told();
    }
    says(day.daemon.status()["catalog_fault"].as_str().unwrap(), &["mount it again"]);
    assert!(names(&directory).is_empty(), "written below the mount point: {:?}", names(&directory));
    storage.bind(&disk, &directory);
    until("the catalog to be written again", SOON, || {
        (rpc(&day.daemon, "Mount", &mounting("idle", "new")).status == 200).then_some(())
    });
    done(&day.daemon, "Unmount", &mounting("idle", "new"));
    day.ends_well();
}

/// A service in use whose backend `default` is a disk.
fn on_a_disk(storage: &Storage, mib: u64) -> Day<'static> {
    let (root, other) = (storage.dir("default"), storage.dir("other"));
    storage.disk("default", "ext4", mib).mount(&root);
    let daemon = Daemon::setup().backends(&json!({ "default": root, "other": other })).start();
    Day::begin(daemon, &root)
}

#[test]
fn a_backend_that_is_remounted_read_only_is_still_read() {
    let storage = Storage::new();
    let day = on_a_disk(&storage, 32);
    let remount = |how: &str| {
        run(Command::new("mount").args(["-o", &format!("remount,{how}")]).arg(&day.root)).ok();
    };
    remount("ro");
    for _ in 0..2 {
        let new = json!({ "Name": "new", "Opts": { "backend": "default" } });
        for (verb, body) in [("Create", new), ("Remove", named("idle"))] {
            let err = refused(&day.daemon, verb, &body, 500);
            says(&err, &[day.root.to_str().unwrap(), "Read-only file system"]);
        }
        says(&day.daemon.cli(&["volume", "restore", "gone"]).fails(), &["Read-only file system"]);
        // What is there can be read, so that containers that only read can be started.
        done(&day.daemon, "Mount", &mounting("idle", "reader"));
        done(&day.daemon, "Unmount", &mounting("idle", "reader"));
        refused(&day.daemon, "Get", &named("new"), 400);
        day.is_told();
        day.other_backend_works();
    }
    remount("rw");
    day.ends_well();
}

#[test]
fn a_full_backend_lets_the_others_be_and_gives_room_by_its_trash() {
    let storage = Storage::new();
    let day = on_a_disk(&storage, 64);
    create(&day.daemon, "old", &json!({ "backend": "default" }));
    fs::write(day.root.join("old/data"), vec![1; 20 << 20]).unwrap();
    let mut filler = fs::File::create(day.root.join("idle/filler")).unwrap();
    for size in [1 << 20, 1024] {
        while filler.write_all(&vec![1; size]).and_then(|()| filler.sync_all()).is_ok() {}
    }
    drop(filler);
    // What is in the trash goes for room first; that gives room for a volume or two.
    let new = |number: usize| json!({ "Name": format!("n{number}"), "Opts": { "backend": "default" } });
    let mut made = 0;
    let err = until("the disk to be full", 2 * SOON, || {
        let answer = rpc(&day.daemon, "Create", &new(made));
        made += usize::from(answer.status == 200);
        (answer.status == 500 && day.daemon.trash().is_empty()).then(|| answer.err())
    });
    says(&err, &[day.root.to_str().unwrap(), "No space left on device"]);
    until("the operator to see it", SOON, || {
        (backend(&day.daemon, "default")["free_bytes"].as_u64()? < 1 << 20).then_some(())
    });
    for name in ["kept", "idle", "old"] {
        done(&day.daemon, "Get", &named(name));
        done(&day.daemon, "Mount", &mounting(name, "one"));
        done(&day.daemon, "Unmount", &mounting(name, "one"));
    }
    create(&day.daemon, "aside", &json!({ "backend": "other" }));
    // A volume that is removed now is deleted as soon as its room is needed, which is at once.
    done(&day.daemon, "Remove", &named("old"));
    until("there to be room again", 2 * SOON, || {
        (rpc(&day.daemon, "Create", &new(made)).status == 200).then_some(())
    });
    assert!(names(&day.root.join(".volhost/new")).is_empty());
    day.daemon.cli(&["check", "--catalog"]).ok();
    assert_eq!(fs::read_to_string(day.root.join("kept/data")).unwrap(), "kept");
    assert_eq!(day.daemon.pid(), day.pid);
}

/// What stands in a backend's place, how it gets there, and what is said of it.
type Stranger<'a> = (&'a str, &'a dyn Fn(), &'a [&'a str]);

#[test]
fn a_backends_directory_that_is_replaced_is_not_taken_for_it() {
    let storage = Storage::new();
    let (root, other) = (storage.dir("default"), storage.dir("other"));
    let daemon = Daemon::setup().backends(&json!({ "default": root, "other": other })).start();
    let day = Day::begin(daemon, &root);
    let (away, clone) = (storage.path("away"), storage.path("clone"));
    let copy = |from: &Path, to: &Path| {
        run(Command::new("cp").arg("-a").args([from, to])).ok();
    };
    copy(&root, &clone);
    create(&day.daemon, "late", &json!({ "backend": "default" }));
    day.daemon.await_durable(&["late"]);

    let strangers: [Stranger<'_>; 4] = [
        ("nothing", &|| {}, &["does not exist", "is the share mounted?"]),
        ("an empty directory", &|| fs::create_dir(&root).unwrap(), &["has no .volhost/backend.json"]),
        (
            "a directory with files",
            &|| {
                fs::create_dir_all(root.join("kept")).unwrap();
                fs::write(root.join("kept/data"), "somebody's").unwrap();
            },
            &["has no .volhost/backend.json"],
        ),
        (
            "another backend",
            &|| copy(&other, &root),
            &["holds another backend", "volhost backend adopt default"],
        ),
    ];
    for (what, put, words) in strangers {
        fs::rename(&root, &away).unwrap();
        put();
        let before = root.exists().then(|| names(&root));
        for (verb, body) in [
            ("Create", json!({ "Name": "new", "Opts": { "backend": "default" } })),
            ("Mount", mounting("idle", "one")),
            ("Remove", named("idle")),
        ] {
            let err = refused(&day.daemon, verb, &body, 500);
            says(&err, &["backend \"default\" is offline"]);
            says(&err, words);
        }
        let row = until_backend(&day.daemon, "default", "offline");
        says(row["reason"].as_str().unwrap(), words);
        says(&day.daemon.log(), &["backend \"default\" is offline"]);
        day.is_told();
        day.other_backend_works();
        assert_eq!(root.exists().then(|| names(&root)), before, "{what} was changed");
        let _ = fs::remove_dir_all(&root);
        fs::rename(&away, &root).unwrap();
        done(&day.daemon, "Mount", &mounting("idle", "one"));
        done(&day.daemon, "Unmount", &mounting("idle", "one"));
    }

    // A copy with the identity is the backend, as when a disk was replaced; what it lacks is told.
    fs::rename(&root, &away).unwrap();
    fs::rename(&clone, &root).unwrap();
    done(&day.daemon, "Mount", &mounting("idle", "one"));
    done(&day.daemon, "Unmount", &mounting("idle", "one"));
    says(
        &refused(&day.daemon, "Mount", &mounting("late", "one"), 500),
        &["late", "is gone", "moved by hand"],
    );
    says(&day.daemon.cli(&["check", "--catalog"]).fails(), &["differ"]);
    done(&day.daemon, "Get", &named("late"));
    fs::rename(&root, &clone).unwrap();
    fs::rename(&away, &root).unwrap();
    done(&day.daemon, "Mount", &mounting("late", "one"));
    done(&day.daemon, "Unmount", &mounting("late", "one"));
    day.ends_well();
}

#[test]
fn out_of_file_descriptors_what_needs_none_is_answered() {
    let storage = Storage::new();
    let (root, other) = (storage.dir("default"), storage.dir("other"));
    let daemon = Daemon::setup().backends(&json!({ "default": root, "other": other })).start();
    let day = Day::begin(daemon, &root);
    let limit = |soft: u64| {
        let limits = format!("--nofile={soft}:");
        run(Command::new("prlimit").args(["--pid", &day.pid.to_string(), &limits])).ok();
    };
    let mut engine = day.daemon.tls();
    let mut call = |verb: &str, body: &Value, status: u16| {
        let answer = engine.call(&format!("/VolumeDriver.{verb}"), body).unwrap();
        assert_eq!(answer.status, status, "{verb} {body}: {}", answer.err());
        answer.err()
    };
    call("Mount", &mounting("idle", "before"), 200);
    // From now on nothing can be opened, and no connection be accepted.
    limit(3);
    for _ in 0..2 {
        call("Get", &named("kept"), 200);
        call("List", &json!({}), 200);
        let new = json!({ "Name": "new", "Opts": { "backend": "default" } });
        for (verb, body) in
            [("Create", new), ("Mount", mounting("kept", "one")), ("Remove", named("elsewhere"))]
        {
            says(&call(verb, &body, 500), &["Too many open files", "LimitNOFILE"]);
        }
        call("Get", &named("new"), 400);
    }
    call("Unmount", &mounting("idle", "before"), 200);
    // Whoever comes now waits until there is room again.
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| day.daemon.cli(&["status"]))).collect();
        until("the log to tell it", SOON, || {
            let log = day.daemon.log();
            (log.contains("no connection can be accepted") && log.contains("(LimitNOFILE)")).then_some(())
        });
        std::thread::sleep(Duration::from_secs(1));
        assert!(day.daemon.log().matches("no connection can be accepted").count() <= 3, "the log is flooded");
        limit(1024);
        for status in waiting {
            status.join().unwrap().ok();
        }
    });
    until_backend(&day.daemon, "default", "online");
    until_backend(&day.daemon, "other", "online");
    day.other_backend_works();
    day.ends_well();
}

/// Memory of a process that is or was resident at the most, in KiB.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn ten_thousand_connections_are_served_and_more_take_the_place_of_idle_ones() {
    const FILES: u64 = 16_384;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let enough = |limit: Option<u64>| limit.map(|limit| limit.max(FILES));
    setrlimit(Resource::Nofile, Rlimit { current: enough(current), maximum: enough(maximum) }).unwrap();

    let storage = Storage::new();
    let (root, other) = (storage.dir("default"), storage.dir("other"));
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["limits"] = json!({ "connections": 8000, "connections_per_host": 8000 });
    config["listen"].as_array_mut().unwrap().push("http://127.0.0.1:0".into());
    let daemon = setup.config(&config).backends(&json!({ "default": root, "other": other })).start();
    let day = Day::begin(daemon, &root);
    let before = peak(day.pid);

    let (http, socket) = (day.daemon.tcp("http"), day.daemon.socket());
    let (tls, identity) = (day.daemon.tcp("https"), day.daemon.identity());
    let over_tcp = || {
        let stream = TcpStream::connect(http).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Client::over(stream)
    };
    let over_unix = || {
        let stream = UnixStream::connect(&socket).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Client::over(stream)
    };
    let works = |client: &mut Client| {
        client.call("/VolumeDriver.Path", &named("kept")).is_ok_and(|answer| answer.status == 200)
    };
    let mut clients: Vec<Client> = Vec::with_capacity(10_000);
    for number in 0..10_000 {
        let mut client = match number % 10 {
            0..7 => over_tcp(),
            7 => Client::connect(&Target::Tls(tls, identity.clone())).unwrap(),
            _ => over_unix(),
        };
        assert!(works(&mut client), "connection {number}");
        clients.push(client);
    }
    assert_eq!(day.daemon.status()["connections"], json!(10_000));
    let each = (peak(day.pid) - before) / 10_000;
    assert!(each < 64, "a connection takes {each} KiB");
    // All of them, again: none was closed for another.
    for (number, client) in clients.iter_mut().enumerate() {
        assert!(works(client), "connection {number}, for the second time");
    }
    // More than the limit: the longest idle ones make room, those of this machine's socket not among them.
    let mut late: Vec<_> = (0..500).map(|_| over_tcp()).collect();
    assert!(late.iter_mut().all(works));
    let (mut left, mut local) = (0, 0);
    for (number, mut client) in clients.into_iter().enumerate() {
        let served = works(&mut client);
        left += usize::from(served && number % 10 < 8);
        local += usize::from(served && number % 10 >= 8);
    }
    assert_eq!((left, local), (7500, 2000));
    assert!(late.iter_mut().all(works));
    drop(late);
    until("the connections to be forgotten", SOON, || {
        (day.daemon.status()["connections"].as_u64()? < 10).then_some(())
    });
    day.other_backend_works();
    day.ends_well();
}

/// Debian's libfaketime, where the machine's architecture has it.
fn libfaketime() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    found
        .map(|directory| directory.join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("libfaketime is installed: see tests/run")
}

#[test]
fn a_clock_that_jumps_deletes_nothing_and_shuts_nobody_out_for_good() {
    let storage = Storage::new();
    let (root, other, set) = (storage.dir("default"), storage.dir("other"), storage.path("clock"));
    let mut daemon = Daemon::setup().backends(&json!({ "default": root, "other": other })).prepare();
    let set_to = |offset: &str| {
        let new = set.with_extension("new");
        fs::write(&new, format!("{offset}\n")).unwrap();
        fs::rename(&new, &set).unwrap();
    };
    set_to("+0d");
    let (library, file) = (libfaketime(), set.to_str().unwrap().to_owned());
    // Only the wall clock is another one, and its offset is read at each look.
    let faked = [
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", &*file),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    daemon.start_with(&faked).unwrap();
    let day = Day::begin(daemon, &root);
    let year = |text: &Value| text.as_str().unwrap()[..4].parse::<i32>().unwrap();
    let expires = || year(&day.daemon.status()["server_certificate_expires"]);
    let (this_year, expired) = (year(&day.daemon.status()["since"]), expires());

    // Two years forward: the trash is long past its day, and the server's certificate past its end.
    set_to("+730d");
    until("the jump to be noticed", 2 * SOON, || {
        day.daemon.log().contains("the clock was set forward by").then_some(())
    });
    until("the server's certificate to be made anew", SOON, || (expires() > expired).then_some(()));
    day.is_told();
    create(&day.daemon, "future", &json!({ "backend": "default" }));
    done(&day.daemon, "Mount", &mounting("future", "one"));
    done(&day.daemon, "Unmount", &mounting("future", "one"));
    let created = done(&day.daemon, "Get", &named("future"))["Volume"]["CreatedAt"].clone();
    assert!((this_year + 1..=this_year + 2).contains(&year(&created)), "{created}");
    done(&day.daemon, "Remove", &named("future"));
    // It was looked at then, and is now, because something was put there.
    std::thread::sleep(Duration::from_secs(2));
    let kept: Vec<_> = day.daemon.trash().into_values().collect();
    assert!(kept.contains(&"gone".to_owned()) && kept.contains(&"future".to_owned()), "{kept:?}");
    assert!(day.root.join(".volhost/trash").join(day.daemon.trash().keys().next().unwrap()).exists());

    // And back, as when somebody sets it right: what was made meanwhile lies in the future.
    set_to("+0d");
    until("the jump back to be noticed", 2 * SOON, || {
        day.daemon.log().contains("the clock was set back by").then_some(())
    });
    // The certificate of the future is replaced, so that hosts whose clock was right all the time get in.
    let mut engine = until("a certificate for today", SOON, || {
        Client::connect(&Target::Tls(day.daemon.tcp("https"), day.daemon.identity())).ok()
    });
    assert_eq!(engine.call("/VolumeDriver.List", &json!({})).unwrap().status, 200);
    assert_eq!(expires(), expired);
    // What is to be deleted now does not wait for the day of its removal.
    let (id, _) = day.daemon.trash().into_iter().find(|(_, name)| name == "future").unwrap();
    day.daemon.cli(&["volume", "rm", "--now", "--yes", &id]).ok();
    until("the volume to be deleted", SOON, || (day.daemon.trash().len() == 1).then_some(()));

    set_to("-400d");
    day.other_backend_works();
    set_to("+0d");
    day.other_backend_works();
    day.ends_well();
}

#[test]
fn expired_certificates_are_told_and_replaced_while_serving() {
    let storage = Storage::new();
    let (root, other) = (storage.dir("default"), storage.dir("other"));
    let ca = Authority::new("the company's CA");
    let setup = Daemon::setup();
    let mut config = setup.standard();
    let file = |name: &str| setup.path("tls").join(name);
    config["tls"] =
        json!({ "cert": file("server.crt"), "key": file("server.key"), "client_ca": file("ca.crt") });
    config["hosts"] = json!({ "*": {} });
    let good = ca.server();
    let daemon = setup
        .config(&config)
        .backends(&json!({ "default": root, "other": other }))
        .file("tls/server.crt", &good.cert)
        .file("tls/server.key", &good.key)
        .file("tls/ca.crt", &ca.pem())
        .start();
    let day = Day::begin(daemon, &root);
    let hosts = day.daemon.path("hosts");
    let web1 = ca.client("web1", 1).keep(&hosts, "web1", &ca.pem());
    let works = |client: &mut Client| {
        client.call("/VolumeDriver.Path", &named("kept")).is_ok_and(|answer| answer.status == 200)
    };
    let mut open = day.daemon.connect(&web1).unwrap();
    assert!(works(&mut open));

    // A host's own.
    let ended = from_now(-3);
    let late = ca.expired("web2", ended);
    let web2 = late.keep(&hosts, "web2", &ca.pem());
    let lets_in =
        |identity: &Identity| day.daemon.connect(identity).is_ok_and(|mut client| works(&mut client));
    assert!(!lets_in(&web2));
    let day_of_end = format!(" {} ", ended.day());
    until("the log to tell it", SOON, || {
        let log = day.daemon.log();
        let line = log.lines().find(|line| line.contains("its certificate has expired"))?;
        says(
            line,
            &["127.0.0.1", "volhost host renew", "it ended on", &day_of_end, &ended.year().to_string()],
        );
        Some(())
    });
    assert!(lets_in(&ca.client("web2", 2).keep(&hosts, "web2-new", &ca.pem())));

    // The server's: whoever comes anew refuses it, who is there stays.
    let old = ca.server_until(ended);
    day.daemon.put("tls/server.key", &old.key);
    day.daemon.put("tls/server.crt", &old.cert);
    // A good one is not replaced by it unasked.
    until("the refusal", SOON, || {
        day.daemon.cli(&["status"]).ok().contains("every engine would refuse it").then_some(())
    });
    day.daemon.cli(&["reload", "--force"]).ok();
    until("the certificate to be in force", SOON, || {
        day.daemon.log().contains("the server certificate expired on").then_some(())
    });
    until("new connections to fail", SOON, || (!lets_in(&web1)).then_some(()));
    until("the log to tell it", SOON, || {
        day.daemon.log().contains("does not trust our server certificate (CertificateExpired)").then_some(())
    });
    assert!(works(&mut open));
    let told = day.daemon.status()["server_certificate_expires"].as_str().unwrap().to_owned();
    assert!(told.starts_with(&ended.date().to_string()), "{told}");
    says(&day.daemon.cli(&["status"]).ok(), &["certificate   EXPIRED"]);
    day.is_told();

    let new = ca.server();
    day.daemon.put("tls/server.crt", &new.cert);
    day.daemon.put("tls/server.key", &new.key);
    until("new connections to be good", SOON, || lets_in(&web1).then_some(()));
    assert!(works(&mut open));
    assert!(!day.daemon.cli(&["status"]).ok().contains("EXPIRED"));
    day.other_backend_works();
    day.ends_well();
}

#[test]
fn an_engine_that_asks_while_the_service_is_down_goes_on_by_itself() {
    let web1 = Host::new("web1");
    let mut daemon = Daemon::setup().on(&web1).start();
    show_spec(&web1, &daemon);
    let engine = Engine::start(&web1);
    engine.ok(&["volume", "create", "-d", "volhost", "--label", "tier=gold", "db"]);
    engine.ok(&["volume", "create", "-d", "local", "plain"]);
    engine.run(&["-v", "db:/x"], "echo hello > /x/file");
    engine.sleeper("web", &["-v", "db:/x"]);
    let running = || engine.ok(&["exec", "web", "cat", "/x/file"]);
    let told = daemon.mounts();
    assert_eq!((told.len(), &*running()), (1, "hello"));

    assert_eq!(daemon.terminate().code(), Some(0));
    // What runs goes on, and what is not volhost's works.
    assert_eq!(running(), "hello");
    engine.run(&["-v", "plain:/x"], "true");
    let mut listed: Vec<_> = engine.ok(&["volume", "ls", "-q"]).lines().map(str::to_owned).collect();
    listed.sort();
    assert_eq!(listed, ["db", "plain"]);
    // After its attempts the engine gives up, and says whose fault it is.
    says(&engine.fails(&["volume", "inspect", "db"]), &["volhost", "connection refused"]);
    let run_it = ["run", "--rm", "--network=none", "-v", "db:/x", "box", "cat", "/x/file"];
    says(&engine.fails(&run_it), &["connection refused"]);

    // Who asks shortly before it is back is answered, as if nothing had been.
    let answered = std::thread::scope(|scope| {
        let asking = scope.spawn(|| engine.docker(&run_it));
        std::thread::sleep(Duration::from_secs(2));
        daemon.start_again();
        asking.join().unwrap()
    });
    assert_eq!(answered.ok(), "hello");
    let volume = engine.inspect("db");
    assert_eq!(volume["Labels"], json!({ "tier": "gold" }), "{volume}");
    assert_eq!(running(), "hello");
    assert_eq!(daemon.mounts(), told, "the mount of the container that went on is another one");
    engine.ok(&["rm", "-f", "web"]);
    daemon.has_mounts(&[]);
    engine.ok(&["volume", "create", "-d", "volhost", "new"]);
    engine.ok(&["volume", "rm", "new", "db"]);
    assert!(daemon.volumes().is_empty());
    daemon.cli(&["check", "--catalog"]).ok();
}
