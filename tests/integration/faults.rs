//! Promise 1 without a crash: the storage fails under an operation, or the catalog's disk is full, and then what was
//! answered holds, what was refused was not done, and when the fault is over everything works without a restart.
//!
//! Which request of the storage fails is varied through all of them beside `volume::Service`; here the real program
//! meets the most telling ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::harness::Daemon;
use crate::harness::disk::{names, tree, without_top};
use crate::harness::http::{Answer, Client};
use crate::harness::wait::{SOON, until};
use volhost_test_fuse::{FuseFs, Op, can_mount};

fn call(client: &mut Client, rpc: &str, name: &str) -> Answer {
    client.call(&format!("/VolumeDriver.{rpc}"), &json!({ "Name": name, "ID": "one" })).unwrap()
}

#[track_caller]
fn ok(client: &mut Client, rpc: &str, name: &str) {
    let answer = call(client, rpc, name);
    assert_eq!(answer.status, 200, "{rpc} of {name}: {}", answer.err());
}

/// What goes wrong: in which requests, whether they are done all the same, and what is answered to them.
type Fault = (Op, bool, i32);

const FAULTS: [Fault; 6] = [
    (Op::Rename, true, libc::EIO),
    (Op::Rename, true, libc::ENOENT),
    (Op::Rename, false, libc::EIO),
    (Op::Fsyncdir, false, libc::EIO),
    (Op::Mkdir, true, libc::EIO),
    (Op::Rmdir, true, libc::ENOENT),
];

#[test]
fn an_answer_that_the_storage_loses_leaves_nothing_half_made() {
    if !can_mount() {
        return;
    }
    let setup = Daemon::setup();
    let (backing, root) = (setup.root().join("backing"), setup.root().join("volumes"));
    for directory in [&backing, &root] {
        fs::create_dir_all(directory).unwrap();
    }
    let storage = FuseFs::mount(&backing, &root).unwrap();
    let mut daemon = setup.backends(&json!({ "default": root })).start();
    let mut client = daemon.tls();
    ok(&mut client, "Create", "kept");
    fs::write(root.join("kept/file"), "precious").unwrap();
    for (number, (op, lost, errno)) in FAULTS.into_iter().enumerate() {
        let name = format!("db{number}");
        let go_wrong = || {
            if lost {
                storage.control().lose_answer_once(op, errno);
            } else {
                storage.control().fail_once(op, errno);
            }
        };
        let what = |operation: &str| format!("{operation} of {name} with {op:?}, lost {lost}, {errno}");

        go_wrong();
        let answer = call(&mut client, "Create", &name);
        storage.control().behave();
        settled(&daemon, &mut client, &root, &what("Create"));
        let made = daemon.volumes().contains(&name);
        assert!(made || answer.status >= 400, "{}: answered and not there", what("Create"));
        ok(&mut client, "Create", &name);
        ok(&mut client, "Mount", &name);
        ok(&mut client, "Unmount", &name);
        fs::write(root.join(&name).join("file"), &name).unwrap();

        go_wrong();
        let answer = call(&mut client, "Remove", &name);
        storage.control().behave();
        settled(&daemon, &mut client, &root, &what("Remove"));
        // Nobody who was told of a failure may lose data.
        let there = daemon.volumes().contains(&name);
        assert_eq!(there, answer.status >= 400, "{}: {}", what("Remove"), answer.err());
        let data = fs::read_to_string(root.join(&name).join("file"));
        assert_eq!(data.is_ok_and(|data| data == name), there, "{}", what("Remove"));
        ok(&mut client, "Remove", &name);

        go_wrong();
        let answer = daemon.cli(&["volume", "restore", &name]);
        storage.control().behave();
        settled(&daemon, &mut client, &root, &what("restore"));
        let back = daemon.volumes().contains(&name);
        assert!(back || answer.code != Some(0), "{}", what("restore"));
        if !back {
            daemon.cli(&["volume", "restore", &name]).ok();
        }
        assert_eq!(fs::read_to_string(root.join(&name).join("file")).unwrap(), name);
        daemon.restart();
        client = daemon.tls();
        daemon.agrees_with(&root);
        assert_eq!(fs::read_to_string(root.join(&name).join("file")).unwrap(), name);
    }
    assert_eq!(fs::read_to_string(root.join("kept/file")).unwrap(), "precious");
    daemon.kill9();
}

/// Fails unless the next operation on the backend finds everything mended, without a restart.
#[track_caller]
fn settled(daemon: &Daemon<'_>, client: &mut Client, root: &Path, what: &str) {
    ok(client, "Mount", "kept");
    ok(client, "Unmount", "kept");
    if let Some(why) = daemon.disagreement(root) {
        panic!("{what}: {why}");
    }
}

/// A small file system, unmounted with the test.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&at).unwrap();
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&at).status();
        assert!(mounted.unwrap().success());
        Self(at)
    }

    fn fill(&self) {
        let _ = fs::write(self.0.join("filler"), vec![1; 64 << 20]).unwrap_err();
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_under_the_catalog_changes_nothing_that_was_answered() {
    if !can_mount() {
        return;
    }
    let setup = Daemon::setup();
    let root = setup.root().join("disk/volumes");
    fs::create_dir_all(&root).unwrap();
    let disk = Small::mount(setup.root().join("catalog"), "4m");
    let mut config = setup.standard();
    config["catalog"] = json!(format!("sqlite:{}", disk.0.join("catalog.db").display()));
    let mut daemon = setup.config(&config).backends(&json!({ "default": root })).start();
    let mut client = daemon.tls();
    for name in ["db", "mounted", "removed"] {
        ok(&mut client, "Create", name);
        fs::write(root.join(name).join("file"), name).unwrap();
    }
    ok(&mut client, "Mount", "mounted");
    ok(&mut client, "Remove", "removed");
    let data = without_top(&tree(&root.join("db")));

    for round in 0..2 {
        disk.fill();
        // The catalog's log may have room left: what is answered is done, until something is refused.
        let mut made: Vec<_> = daemon.volumes();
        let refused = (0..20_000).map(|number| format!("r{round}-{number}")).find_map(|name| {
            let answer = call(&mut client, "Create", &name);
            if answer.status == 200 {
                made.push(name);
                return None;
            }
            Some((name, answer))
        });
        let (refused, answer) = refused.expect("the disk is never full");
        assert_eq!(answer.status, 500);
        assert!(answer.err().contains("catalog") && answer.err().contains("full"), "{}", answer.err());
        until("the log to tell", SOON, || {
            daemon.log().contains("cannot be written: database or disk is full").then_some(())
        });
        made.sort();
        for _ in 0..2 {
            for (rpc, name) in
                [("Create", &*refused), ("Remove", "db"), ("Mount", "db"), ("Unmount", "mounted")]
            {
                let answer = call(&mut client, rpc, name);
                assert_eq!(answer.status, 500, "{rpc} of {name} on a full disk: {}", answer.err());
            }
            daemon.cli(&["volume", "restore", "removed"]).fails();
            daemon.cli(&["volume", "rm", "--now", "--yes", "removed"]).fails();
            ok(&mut client, "Get", "db");
            ok(&mut client, "List", "");
            assert_eq!(daemon.volumes(), made);
            daemon.agrees_with(&root);
            daemon.has_mounts(&[("mounted", "node1", false)]);
            assert_eq!(without_top(&tree(&root.join("db"))), data);
        }
        if round == 1 {
            // Nor does a kill bring back what was refused.
            daemon.restart();
            client = daemon.tls();
            disk.empty();
            assert_eq!(daemon.volumes(), made);
            daemon.has_mounts(&[("mounted", "node1", false)]);
        } else {
            disk.empty();
        }
        for (rpc, name) in [("Create", &*refused), ("Mount", "db"), ("Unmount", "db"), ("Remove", &refused)] {
            ok(&mut client, rpc, name);
        }
        daemon.agrees_with(&root);
        daemon.cli(&["check", "--catalog"]).ok();
        assert_eq!(daemon.status()["catalog_fault"], json!(null));
    }
    ok(&mut client, "Unmount", "mounted");
    daemon.cli(&["volume", "restore", "removed"]).ok();
    assert_eq!(fs::read_to_string(root.join("removed/file")).unwrap(), "removed");
    assert!(names(&root).contains("db"));
    daemon.kill9();
}
