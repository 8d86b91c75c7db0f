//! The processes of a test: volhost itself ([`Daemon`]), machines ([`Host`]), Docker Engines on them ([`Engine`]), and
//! clusters of etcd ([`Cluster`]) with the instances of volhost that share one ([`Fleet`]).
//!
//! Everything here dies with the test, also with one that is killed: each process is started so that the kernel ends
//! it with its parent, and whatever a machine mounted or linked lies in namespaces that end with its first process.
//! Only a directory below the temporary directory and a control group can be left over, and the next run sweeps them.

pub(crate) mod authority;
pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod engine;
pub(crate) mod etcd;
pub(crate) mod fleet;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod machine;
pub(crate) mod network_disk;
pub(crate) mod random;
pub(crate) mod relay;
pub(crate) mod state;
pub(crate) mod storage;
pub(crate) mod systemd;
pub(crate) mod wait;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Once;

use tempfile::TempDir;

pub(crate) use self::daemon::Daemon;
pub(crate) use self::engine::Engine;
pub(crate) use self::etcd::Cluster;
pub(crate) use self::fleet::Fleet;
pub(crate) use self::host::Host;

const PREFIX: &str = "volhost-test-";

/// A directory of a test's own, with a short path (a Unix socket's has 107 bytes at most), removed with it.
pub(crate) fn scratch() -> TempDir {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(sweep);
    let free = rustix::fs::statvfs(std::env::temp_dir()).expect("the temporary directory is there");
    // Backends with less than a tenth free have their trash emptied before its time, as volhost promises.
    assert!(
        free.f_bavail.saturating_mul(100) >= free.f_blocks.saturating_mul(12),
        "less than 12 % of the file system of {} is free: make room there, many tests fail without",
        std::env::temp_dir().display()
    );
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .rand_bytes(4)
        .tempdir()
        .expect("a temporary directory can be made")
}

/// Removes the directories of runs whose process is gone.
fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test process may be sweeping the same one.
            let _ = std::fs::remove_dir_all(entry.path());
            if let Some(name) = name.to_str() {
                remove_control_group(name);
            }
        }
    }
}

/// Removes the control group of a machine that is gone, in each hierarchy that there is.
pub(crate) fn remove_control_group(name: &str) {
    let name = name.trim_start_matches('/');
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([root.to_path_buf()]) {
        remove_empty(&hierarchy.join(name));
    }
}

/// Removes a tree of control groups, whose files go with their directory.
fn remove_empty(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    // What is left by a kernel that is slow to forget a process is swept by the next run.
    let _ = std::fs::remove_dir(group);
}

/// A command that the kernel kills with the thread that starts it. So nothing that is to outlive a helper thread may
/// be started from it.
pub(crate) fn mortal(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The children of a process.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The process that the way into a machine ([`Host::command`]) led to; the way itself, where both have ended already.
pub(crate) fn inner(way: &mut Child) -> u32 {
    wait::until("a process on its machine", wait::SOON, || match way.try_wait() {
        Ok(None) => children(way.id()).first().copied(),
        _ => Some(way.id()),
    })
}

/// Sends a signal, by the name that `kill` knows it by, to a process that the test started.
pub(crate) fn signal(name: &str, pid: u32) {
    let sent = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
    assert!(sent.is_ok_and(|status| status.success()), "cannot send {name} to process {pid}");
}

/// Notes which version of an engine a test has met, in the file that `tests/engines` names: the columns of its table.
pub(crate) fn report_version(engine: &str, version: &str) {
    let Some(path) = std::env::var_os("VOLHOST_TEST_VERSIONS") else { return };
    let file = File::options().create(true).append(true).open(path);
    let line = format!("{engine} {version}\n");
    file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the file of versions can be written");
}

/// Prints a log that helps to understand a failed test.
pub(crate) fn print_log(title: &str, path: &Path) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| format!("cannot be read: {e}\n"));
    let lines: Vec<_> = text.lines().collect();
    let last = lines.len().saturating_sub(200);
    eprintln!(
        "--- {title}, the last {} of {} lines\n{}\n---",
        lines.len() - last,
        lines.len(),
        lines[last..].join("\n")
    );
}
