//! Storage that hangs, refuses and forgets: what waits for it, what does not, and what is left afterwards.
//!
//! The storage is a file system of the test's own, which misbehaves on command.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::storage::{
    Shaky, Storage, backend, create, done, names, refused, remap, rpc, says, until_backend,
};
use crate::harness::wait::{SOON, run, until};
use crate::harness::{Daemon, signal};
use volhost_test_fuse::Op;

/// `limits.request` of these tests.
const LIMIT: Duration = Duration::from_secs(3);

/// What needs nothing from a backend that hangs is answered well within this, also on a busy machine; what waits for
/// it is not.
const QUICKLY: Duration = Duration::from_secs(2);

/// volhost with a backend `good` and a backend `shaky`, and a limit of 3 s for each request.
fn serve(storage: &Storage, shaky: &Shaky, trash: &str) -> Daemon<'static> {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["limits"] = json!({ "request": "3s" });
    let map = json!({ "good": storage.dir("good"), "shaky": { "path": shaky.path(), "trash": trash } });
    setup.config(&config).backends(&map).start()
}

pub(crate) fn named(name: &str) -> Value {
    json!({ "Name": name })
}

pub(crate) fn mounting(name: &str, id: &str) -> Value {
    json!({ "Name": name, "ID": id })
}

fn on(backend: &str, name: &str) -> Value {
    json!({ "Name": name, "Opts": { "backend": backend } })
}

#[track_caller]
fn quick<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    let took = start.elapsed();
    assert!(took < QUICKLY, "{what} took {took:?} while another backend hangs");
    result
}

/// Everything that has no need of the backend that hangs: `kept` is a volume there, with a mount `held`.
fn the_rest_works(daemon: &Daemon<'_>, turn: usize) {
    quick("Get", || done(daemon, "Get", &named("kept")));
    quick("Path", || done(daemon, "Path", &named("kept")));
    quick("List", || done(daemon, "List", &json!({})));
    quick("Activate", || daemon.unix().call("/Plugin.Activate", &json!({})).unwrap());
    quick("Unmount there", || done(daemon, "Unmount", &mounting("kept", &format!("held{turn}"))));
    let name = format!("good{turn}");
    quick("Create", || done(daemon, "Create", &on("good", &name)));
    quick("Mount", || done(daemon, "Mount", &mounting(&name, "one")));
    quick("Unmount", || done(daemon, "Unmount", &mounting(&name, "one")));
    quick("Remove", || done(daemon, "Remove", &named(&name)));
    quick("an unknown name's Get", || refused(daemon, "Get", &named("unknown"), 400));
    // A process is started for each of these.
    for words in [&["backend", "ls"][..], &["status"], &["volume", "ls"], &["mount", "ls"]] {
        quick(&words.join(" "), || daemon.cli(words).ok());
    }
}

#[test]
fn a_backend_that_hangs_holds_up_nothing_else_and_nothing_refused_is_done_later() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    let many = 21;
    done(&daemon, "Create", &on("shaky", "kept"));
    for turn in 0..2 {
        done(&daemon, "Mount", &mounting("kept", &format!("held{turn}")));
    }
    for at in 0..many {
        for kind in ["doomed", "mounted"] {
            done(&daemon, "Create", &on("shaky", &format!("{kind}{at}")));
            fs::write(shaky.behind().join(format!("{kind}{at}/data")), "kept").unwrap();
        }
    }
    let hanging = shaky.hang();
    std::thread::scope(|scope| {
        let mut stuck = Vec::new();
        for at in 0..=many {
            let mut requests = vec![
                ("Create", on("shaky", &format!("new{at}"))),
                ("Remove", named(&format!("doomed{at}"))),
                ("Mount", mounting(&format!("mounted{at}"), "stuck")),
            ];
            if at == many {
                // 64 in all: the last is a second one for a volume that another request holds.
                requests = vec![("Mount", mounting("doomed0", "stuck"))];
            }
            for (verb, body) in requests {
                let mut client = daemon.unix();
                stuck.push(scope.spawn(move || {
                    let start = Instant::now();
                    let answer = client.call(&format!("/VolumeDriver.{verb}"), &body).unwrap();
                    (verb, answer, start.elapsed())
                }));
            }
        }
        assert_eq!(stuck.len(), 64);
        assert!(shaky.control().wait_for_hanging(4, SOON), "nothing hangs");
        the_rest_works(&daemon, 0);
        for request in stuck {
            let (verb, answer, took) = request.join().unwrap();
            assert_eq!(answer.status, 500, "{verb}: {}", answer.err());
            // The error says which backend, or where that is to be seen.
            says(&answer.err(), &["backend"]);
            assert!(took < LIMIT + QUICKLY, "{verb} took {took:?}");
        }
    });
    // In time it is known to be gone; requests then fail at once, and say why.
    let row = until_backend(&daemon, "shaky", "offline");
    says(row["reason"].as_str().unwrap(), &["does not answer"]);
    for (verb, body) in
        [("Create", on("shaky", "x")), ("Mount", mounting("kept", "two")), ("Remove", named("kept"))]
    {
        // `kept` is mounted still, which is the first thing that is wrong with its Remove.
        let status = if verb == "Remove" { 400 } else { 500 };
        quick(verb, || refused(&daemon, verb, &body, status));
    }
    says(&refused(&daemon, "Create", &on("shaky", "x"), 500), &["shaky", "does not answer"]);
    the_rest_works(&daemon, 1);

    drop(hanging);
    until_backend(&daemon, "shaky", "online");
    until("what was cut off to be settled", SOON, || {
        let rows = daemon.cli(&["volume", "ls", "--json"]).json();
        let settled = rows.as_array().unwrap().iter().all(|row| row["state"] == "online");
        // A Remove that was cut off while it renamed puts back what it moved.
        let house = shaky.behind().join(".volhost");
        let quiet = names(&house.join("new")).is_empty() && names(&house.join("trash")).is_empty();
        (settled && quiet).then_some(())
    });
    daemon.has_mounts(&[]);
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "--filter", "backend=shaky", "-q"]).ok(), "");
    for at in 0..many {
        for kind in ["doomed", "mounted"] {
            let data = shaky.behind().join(format!("{kind}{at}/data"));
            assert_eq!(fs::read_to_string(&data).unwrap(), "kept");
        }
        done(&daemon, "Mount", &mounting(&format!("mounted{at}"), "one"));
        done(&daemon, "Remove", &named(&format!("doomed{at}")));
        // Done after all or not: a repetition is answered the same.
        done(&daemon, "Create", &on("shaky", &format!("new{at}")));
    }
    assert_eq!(daemon.mounts().len(), many);
}

#[test]
fn what_the_operator_asks_of_a_backend_that_hangs_ends_in_time_too() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "db"));
    done(&daemon, "Remove", &named("db"));
    done(&daemon, "Create", &on("shaky", "live"));
    let hanging = shaky.hang();
    let commands: [&[&str]; 5] = [
        &["backend", "adopt", "shaky"],
        &["backend", "init", "--force", "shaky"],
        &["volume", "restore", "db"],
        &["volume", "rm", "live"],
        &["volume", "create", "-o", "backend=shaky", "new"],
    ];
    std::thread::scope(|scope| {
        let asked = commands.map(|words| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_volhost"));
            command.arg("--root").arg(daemon.path("")).args(words);
            scope.spawn(move || {
                let start = Instant::now();
                let err = run(&command).fails();
                (err, start.elapsed())
            })
        });
        for (words, asked) in commands.iter().zip(asked) {
            let (err, took) = asked.join().unwrap();
            assert!(took < LIMIT + QUICKLY, "{words:?} took {took:?}: {err}");
            says(&err, &["backend"]);
        }
    });
    drop(hanging);
    until_backend(&daemon, "shaky", "online");
    assert_eq!(
        done(&daemon, "Mount", &mounting("live", "one"))["Mountpoint"],
        json!(shaky.path().join("live"))
    );
}

#[test]
fn a_backend_of_which_a_part_hangs_answers_in_time() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "db"));
    let hanging = shaky.hang_on(Op::Mkdir);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..40)
            .map(|at| {
                let mut client = daemon.unix();
                scope.spawn(move || {
                    let start = Instant::now();
                    let body = on("shaky", &format!("v{at}"));
                    (client.call("/VolumeDriver.Create", &body).unwrap().status, start.elapsed())
                })
            })
            .collect();
        for asked in asked {
            let (status, took) = asked.join().unwrap();
            assert!(status == 500 && took < LIMIT + QUICKLY, "{status} after {took:?}");
        }
    });
    // Every slot is taken by a call that hangs.
    for _ in 0..3 {
        let start = Instant::now();
        let err = refused(&daemon, "Mount", &mounting("db", "one"), 500);
        says(&err, &["backend"]);
        assert!(start.elapsed() < LIMIT + QUICKLY, "{:?}", start.elapsed());
        done(&daemon, "Create", &on("good", "good"));
    }
    drop(hanging);
    until("a mount to succeed", SOON, || {
        (rpc(&daemon, "Mount", &mounting("db", "one")).status == 200).then_some(())
    });
    daemon.has_mounts(&[("db", "node1", false)]);
    for at in 0..40 {
        done(&daemon, "Create", &on("shaky", &format!("v{at}")));
    }
    assert!(names(&shaky.behind().join(".volhost/new")).is_empty());
}

#[test]
fn the_service_ends_in_time_although_a_backend_hangs() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let mut daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "kept"));
    let hanging = shaky.hang();
    let mut client = daemon.unix();
    let request =
        std::thread::spawn(move || client.call("/VolumeDriver.Create", &on("shaky", "new")).unwrap());
    assert!(shaky.control().wait_for_hanging(1, SOON));
    let start = Instant::now();
    signal("TERM", daemon.pid());
    let status = format!("/proc/{}/status", daemon.pid());
    until("the process's end", Duration::from_secs(25), || {
        // A thread that the kernel holds in a call to this file system cannot be killed; what counts is that the
        // program has ended.
        let text = fs::read_to_string(&status).unwrap_or_default();
        (text.is_empty() || text.contains("State:\tZ")).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    assert_eq!(request.join().unwrap().status, 500, "the request in flight was answered");
    drop(hanging);
    // Whatever is sent to it now comes too late.
    assert_eq!(daemon.terminate().code(), Some(0), "{}", daemon.log());
    // The next start makes out what became of it.
    daemon.start_again();
    done(&daemon, "Create", &on("shaky", "new"));
    assert!(names(&shaky.behind().join(".volhost/new")).is_empty());
}

#[test]
fn a_service_starts_although_a_backend_hangs_and_takes_it_up_later() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let mut daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "kept"));
    for turn in 0..2 {
        done(&daemon, "Mount", &mounting("kept", &format!("held{turn}")));
    }
    daemon.kill9();
    let hanging = shaky.hang();
    daemon.start_again();
    the_rest_works(&daemon, 0);
    let start = Instant::now();
    for (verb, body) in [("Mount", mounting("kept", "two")), ("Create", on("shaky", "new"))] {
        says(&refused(&daemon, verb, &body, 500), &["backend"]);
    }
    assert!(start.elapsed() < 2 * LIMIT + QUICKLY, "{:?}", start.elapsed());
    the_rest_works(&daemon, 1);
    // It is soon known to hang, although it was never seen to answer.
    until("the backend's state to be told", SOON, || {
        backend(&daemon, "shaky")["reason"].as_str()?.contains("does not answer").then_some(())
    });
    quick("Mount there", || refused(&daemon, "Mount", &mounting("kept", "two"), 500));
    // A map in which the hanging backend stays is put in force all the same.
    let (good, late) = (storage.dir("good"), storage.dir("late"));
    remap(&daemon, &json!({ "good": good, "late": late, "shaky": shaky.path() }));
    quick("a new backend's Create", || done(&daemon, "Create", &on("late", "late")));
    drop(hanging);
    until_backend(&daemon, "shaky", "online");
    done(&daemon, "Mount", &mounting("kept", "two"));
}

#[test]
fn storage_without_rename_flags_and_directory_fsync_serves() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    shaky.control().refuse_rename_flags(true);
    shaky.control().refuse_fsyncdir(true);
    let mut daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "db"));
    fs::write(shaky.path().join("db/data"), "kept").unwrap();
    done(&daemon, "Mount", &mounting("db", "one"));
    done(&daemon, "Unmount", &mounting("db", "one"));
    done(&daemon, "Remove", &named("db"));
    done(&daemon, "Create", &on("shaky", "db"));
    says(&daemon.cli(&["volume", "restore", "db"]).fails(), &["db", "exists already"]);
    done(&daemon, "Remove", &named("db"));
    let oldest = daemon.cli(&["volume", "ls", "--trash", "-q"]).ok();
    daemon.cli(&["volume", "restore", oldest.lines().next().unwrap()]).ok();
    assert_eq!(fs::read_to_string(shaky.path().join("db/data")).unwrap(), "kept");
    // Nor is anything replaced without the flag.
    fs::create_dir(shaky.behind().join("taken")).unwrap();
    says(&refused(&daemon, "Create", &on("shaky", "taken"), 400), &["exists already"]);
    daemon.restart();
    assert_eq!(fs::read_to_string(shaky.path().join("db/data")).unwrap(), "kept");
    done(&daemon, "Mount", &mounting("db", "one"));
    assert!(shaky.control().seen(Op::Rename) > 0 && shaky.control().seen(Op::Fsyncdir) > 0);
}

#[test]
fn storage_that_refuses_owners_says_so_and_keeps_nothing() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    shaky.control().refuse_chown(true);
    let asked = json!({ "Name": "db", "Opts": { "backend": "shaky", "uid": "1000" } });
    let err = refused(&daemon, "Create", &asked, 500);
    says(&err, &["1000:0", "root_squash", "Operation not permitted"]);
    assert_eq!(names(shaky.behind()), [".volhost"]);
    assert!(names(&shaky.behind().join(".volhost/new")).is_empty());
    assert!(daemon.volumes().is_empty());
    assert_eq!(backend(&daemon, "shaky")["state"], "online");
    // What needs no change of owner is made, also under that name.
    done(&daemon, "Create", &on("shaky", "db"));
}

#[test]
fn a_share_whose_server_forgot_it_is_offline_and_recovers() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    done(&daemon, "Create", &on("shaky", "db"));
    shaky.control().stale(true);
    for (verb, body) in
        [("Create", on("shaky", "new")), ("Mount", mounting("db", "one")), ("Remove", named("db"))]
    {
        says(&refused(&daemon, verb, &body, 500), &["shaky"]);
    }
    let row = until_backend(&daemon, "shaky", "offline");
    says(row["reason"].as_str().unwrap(), &["mount the share again"]);
    assert_eq!(done(&daemon, "Get", &named("db"))["Volume"]["Status"]["backend_state"], "offline");
    shaky.control().behave();
    until_backend(&daemon, "shaky", "online");
    done(&daemon, "Mount", &mounting("db", "one"));
    done(&daemon, "Create", &on("shaky", "new"));
    assert_eq!(names(shaky.behind()), [".volhost", "db", "new"]);
}

#[test]
fn an_answer_that_is_lost_neither_loses_nor_doubles_a_volume() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let daemon = serve(&storage, &shaky, "24h");
    let settled = |name: &str| {
        until("the volume to be settled", SOON, || {
            let answer = rpc(&daemon, "Mount", &mounting(name, "look"));
            (answer.status == 200).then_some(())
        });
        done(&daemon, "Unmount", &mounting(name, "look"));
    };
    for (op, errno) in [
        (Op::Rename, libc::EIO),
        (Op::Rename, libc::ESTALE),
        (Op::Fsyncdir, libc::EIO),
        (Op::Mkdir, libc::EIO),
        (Op::Setattr, libc::EIO),
    ] {
        for lost in [true, false] {
            let fail = |op, errno| {
                if lost {
                    shaky.control().lose_answer_once(op, errno);
                } else {
                    shaky.control().fail_once(op, errno);
                }
            };
            fail(op, errno);
            let made = rpc(&daemon, "Create", &on("shaky", "db"));
            shaky.control().behave();
            // Whatever was answered, a repetition makes it true.
            until("the create to be settled", SOON, || {
                (rpc(&daemon, "Create", &on("shaky", "db")).status == 200).then_some(())
            });
            settled("db");
            fs::write(shaky.behind().join("db/data"), "kept").unwrap();
            fail(op, errno);
            let gone = rpc(&daemon, "Remove", &named("db"));
            shaky.control().behave();
            if gone.status == 200 {
                refused(&daemon, "Get", &named("db"), 400);
            } else {
                settled("db");
                assert_eq!(
                    fs::read_to_string(shaky.behind().join("db/data")).unwrap(),
                    "kept",
                    "{op:?} {errno} lost={lost}: the Create was answered {}, the Remove {}",
                    made.status,
                    gone.err()
                );
                done(&daemon, "Remove", &named("db"));
            }
            assert!(names(&shaky.behind().join(".volhost/new")).is_empty(), "{op:?} {errno} {lost}");
            assert_eq!(names(shaky.behind()), [".volhost"], "{op:?} {errno} {lost}");
        }
    }
    let removed = daemon.cli(&["volume", "ls", "--trash", "-q"]).ok();
    let mut removed: Vec<_> = removed.lines().map(str::to_owned).collect();
    removed.sort();
    assert_eq!(removed, names(&shaky.behind().join(".volhost/trash")));
    assert_eq!(removed.len(), 10);
}

#[test]
fn a_catalog_on_a_network_file_system_is_refused() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let setup = Daemon::setup();
    let mut config = setup.standard();
    let path = shaky.path().join("catalog.db");
    config["catalog"] = json!(format!("sqlite:{}", path.display()));
    let (status, log) = setup.config(&config).refused(|| {
        assert!(names(shaky.behind()).is_empty(), "{:?}", names(shaky.behind()));
    });
    assert_eq!(status.code(), Some(1), "{log}");
    says(&log, &["the catalog", shaky.path().to_str().unwrap(), "FUSE", "a local file system"]);
    create_elsewhere(&storage);
}

/// The same configuration with the catalog on a disk is fine.
fn create_elsewhere(storage: &Storage) {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["catalog"] = json!(format!("sqlite:{}", storage.path("catalog.db").display()));
    create(&setup.config(&config).start(), "db", &json!({}));
}

/// A command that has to fail; what it says.
#[track_caller]
fn fails(daemon: &Daemon<'_>, words: &[&str]) -> String {
    let said = daemon.cli(words);
    assert_eq!(said.code, Some(1), "{said:?}");
    said.stderr
}

/// Two volumes of one directory: the removal of one would delete the data of the other.
#[test]
fn storage_that_does_not_tell_upper_case_from_lower_keeps_volumes_apart() {
    let storage = Storage::new();
    let shaky = storage.shaky("folding");
    shaky.control().fold_case(true);
    let daemon = Daemon::setup().backends(&json!({ "default": shaky.path() })).start();
    let data = shaky.behind().join("db/data");
    create(&daemon, "db", &json!({}));
    fs::write(&data, "db").unwrap();
    let adopt = |name: &str| {
        let words = ["volume", "create", "-o", "adopt=true", name];
        words.map(str::to_owned)
    };
    let words = ["DB is the same directory as volume db", "does not tell upper case from lower"];
    let told = refused(&daemon, "Create", &named("DB"), 400);
    assert!(!told.contains("adopt"), "{told}");
    says(&told, &words);
    says(&fails(&daemon, &adopt("DB").each_ref().map(|word| &**word)), &words);

    // A directory that nobody made a volume yet.
    fs::create_dir(shaky.behind().join("Stray")).unwrap();
    let told = refused(&daemon, "Create", &named("stray"), 400);
    assert!(!told.contains("adopt"), "{told}");
    says(&told, &["/stray exists already as ", "/Stray", "choose another name"]);
    let told = fails(&daemon, &adopt("stray").each_ref().map(|word| &**word));
    says(&told, &["no directory stray to adopt", "takes that name for Stray"]);
    daemon.cli(&adopt("Stray").each_ref().map(|word| &**word)).ok();

    // A name is free again when its volume is removed, and then the removed one cannot come back beside the new one.
    done(&daemon, "Remove", &named("db"));
    create(&daemon, "DB", &json!({}));
    says(
        &fails(&daemon, &["volume", "restore", "db"]),
        &["db is the same directory as volume DB", "does not tell upper case from lower"],
    );
    done(&daemon, "Remove", &named("DB"));
    daemon.cli(&["volume", "restore", "db"]).ok();
    assert_eq!(fs::read_to_string(&data).unwrap(), "db");

    assert_eq!(backend(&daemon, "default")["names"], "case-insensitive");
    assert_eq!(daemon.status()["backends"][0]["names"], "case-insensitive");
    says(&daemon.cli(&["backend", "ls"]).ok(), &["default takes different names for one: case-insensitive"]);
}

#[test]
fn of_two_volumes_that_share_a_directory_a_removal_leaves_it() {
    let storage = Storage::new();
    let shaky = storage.shaky("folding");
    let daemon = Daemon::setup().backends(&json!({ "default": shaky.path() })).start();
    create(&daemon, "web", &json!({}));
    create(&daemon, "WEB", &json!({}));
    assert_eq!(backend(&daemon, "default")["names"], "exact");
    fs::write(shaky.behind().join("web/data"), "kept").unwrap();
    daemon.await_durable(&["web", "WEB"]);
    // As when the backend is moved to a share that folds case.
    fs::remove_dir(shaky.behind().join("WEB")).unwrap();
    shaky.control().fold_case(true);
    until("the storage to be known for what it is", SOON, || {
        (backend(&daemon, "default")["names"] == "case-insensitive").then_some(())
    });
    done(&daemon, "Mount", &mounting("web", "c1"));
    done(&daemon, "Remove", &named("WEB"));
    assert_eq!(fs::read_to_string(shaky.behind().join("web/data")).unwrap(), "kept");
    done(&daemon, "Unmount", &mounting("web", "c1"));
    done(&daemon, "Mount", &mounting("web", "c2"));
}
