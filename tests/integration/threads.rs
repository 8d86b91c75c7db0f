//! Threads: how many are made, and what happens where the system gives few.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use serde_json::json;

use crate::harness::wait::{self, Said};
use crate::harness::{Daemon, scratch};

/// A user that no other process belongs to: the limit counts all threads of a user.
const NOBODY: u32 = 64_321;

/// Starts volhost as that user with at most so many threads, and ends it after two seconds.
fn serve_with(threads: u32) -> Said {
    let dir = scratch();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), open).unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc/volhost")).unwrap();
    let socket = format!("unix:{}", root.join("plugin.sock").display());
    let config = json!({ "node": "node1", "listen": ["https://127.0.0.1:0", socket] });
    fs::write(root.join("etc/volhost/volhost.json"), config.to_string()).unwrap();
    let mut all = vec![root.clone()];
    while let Some(path) = all.pop() {
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        all.extend(fs::read_dir(&path).into_iter().flatten().map(|entry| entry.unwrap().path()));
    }
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={threads}")).args(["setpriv", "--clear-groups", "--bounding-set=-all"]);
    command.args([format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")]);
    command.args(["timeout", "--signal=TERM", "--kill-after=10", "3", env!("CARGO_BIN_EXE_volhost")]);
    command.arg("--root").arg(&root).arg("serve").current_dir("/");
    wait::run(&command)
}

#[test]
fn too_few_threads_are_an_error_before_anything_is_served_or_enough() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    // `timeout` is one of them.
    for threads in [2, 3, 5, 7, 9, 11, 13, 16, 20, 24, 30, 60] {
        let said = serve_with(threads);
        let told = format!("{threads} threads: {:?}\n{}\n{}", said.code, said.stdout, said.stderr);
        assert!(!said.stderr.contains("panicked"), "{told}");
        if said.stdout.contains("ready") {
            // It served until it was told to end.
            assert_eq!(said.code, Some(124), "{told}");
        } else {
            assert_eq!(said.code, Some(1), "{told}");
            assert!(said.stderr.contains("thread"), "{told}");
        }
    }
    assert!(serve_with(100).stdout.contains("ready"));
}

#[test]
fn many_backends_do_not_make_a_thread_each() {
    let setup = Daemon::setup();
    let mut map = serde_json::Map::new();
    for number in 0..400 {
        let directory = setup.root().join(format!("srv/b{number}"));
        fs::create_dir_all(&directory).unwrap();
        map.insert(format!("b{number}"), directory.to_str().unwrap().into());
    }
    let mut daemon = setup.backends(&map.into()).start();
    let wait_until_online = |daemon: &Daemon<'_>| {
        wait::until("every backend", wait::SOON, || {
            let backends = daemon.status()["backends"].as_array().unwrap().clone();
            backends.iter().all(|backend| backend["state"] == "online").then_some(())
        });
    };
    wait_until_online(&daemon);
    // The first start writes each backend's identity. A disk that takes long for that counts as one that hangs, and such
    // backends have threads of their own.
    assert!(daemon.terminate().success());
    daemon.start_again();
    wait_until_online(&daemon);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
    let threads: usize = threads.trim().parse().unwrap();
    assert!(threads < 300, "{threads} threads for 400 backends");
}
