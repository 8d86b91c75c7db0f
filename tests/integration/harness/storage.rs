//! Storage that tests mount, fill, pull out and break: disks in files, memory, bind mounts, and the file system that
//! misbehaves on command.
//!
//! Every mount lies in a mount namespace that the test's thread and what it starts have for themselves, so that
//! nothing of it is seen outside, and all of it ends with them, also when the test is killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Daemon;
use super::http::Answer;
use super::scratch;
use super::wait::{SOON, run, until};
use volhost_test_fuse::{Control, FuseFs, Op};

/// A directory of the test's own, and everything mounted below it. To be made before the daemon that uses it, which
/// then sees the same mounts, and to be dropped after it.
pub(crate) struct Storage {
    dir: TempDir,
}

impl Storage {
    /// An empty one.
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: run tests/run as root");
        #[expect(unsafe_code, reason = "a thread gets mounts of its own in no other way")]
        // SAFETY: what makes unshare unsound is file descriptors or memory that are no longer shared; this unshares
        // mounts, and with them the thread's working directory and root, on which no memory depends.
        let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
        unshared.expect("root may have mounts of its own");
        let dir = scratch();
        run(Command::new("mount").args(["--make-rprivate", "/"])).ok();
        // A mount point itself, so that what is mounted below it can be unmounted in one go.
        run(Command::new("mount").arg("--bind").args([dir.path(), dir.path()])).ok();
        Self { dir }
    }

    /// A path below it.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.dir.path().join(relative)
    }

    /// A directory below it, made where it is missing.
    pub(crate) fn dir(&self, relative: &str) -> PathBuf {
        let path = self.path(relative);
        std::fs::create_dir_all(&path).expect("the directory can be made");
        path
    }

    /// A new disk of that many MiB with a file system (`ext4`, `xfs`) on it, not mounted yet.
    pub(crate) fn disk(&self, name: &str, kind: &str, mib: u64) -> Disk {
        let image = self.path(&format!("{name}.img"));
        let file = std::fs::File::create(&image).expect("the image can be made");
        file.set_len(mib << 20).expect("an image may be sparse");
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image)).ok();
        Disk { image }
    }

    /// Mounts a file system in memory.
    pub(crate) fn tmpfs(&self, at: &Path) {
        self.tmpfs_of(at, 100_000);
    }

    /// Mounts a file system in memory that can hold so many files.
    pub(crate) fn tmpfs_of(&self, at: &Path, inodes: usize) {
        let options = format!("mode=0755,size=64m,nr_inodes={inodes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at)).ok();
    }

    /// Shows a directory (or file) at another place.
    pub(crate) fn bind(&self, from: &Path, at: &Path) {
        run(Command::new("mount").arg("--bind").args([from, at])).ok();
    }

    /// The file system that misbehaves on command, mounted at `NAME`, its files in `NAME.behind`.
    pub(crate) fn shaky(&self, name: &str) -> Shaky {
        let (behind, at) = (self.dir(&format!("{name}.behind")), self.dir(name));
        Shaky { fs: FuseFs::mount(&behind, &at).expect("root can mount FUSE"), behind }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--recursive", "--lazy"]).arg(self.dir.path()).status();
    }
}

/// A disk in a file.
pub(crate) struct Disk {
    image: PathBuf,
}

impl Disk {
    /// Mounts it.
    pub(crate) fn mount(&self, at: &Path) {
        run(Command::new("mount").args(["-o", "loop"]).args([&*self.image, at])).ok();
    }
}

/// Unmounts, which succeeds only when nobody holds anything open there.
#[track_caller]
///
/// The service has a handle of a backend for a moment after a Create, until it is flushed.
pub(crate) fn unmount(at: &Path) {
    let done = until("nobody uses the mount", Duration::from_secs(5), || {
        let done = run(Command::new("umount").arg(at));
        (!done.stderr.contains("busy")).then_some(done)
    });
    done.ok();
}

/// A mounted file system that misbehaves on command.
pub(crate) struct Shaky {
    fs: FuseFs,
    behind: PathBuf,
}

impl Shaky {
    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        self.fs.path()
    }

    /// Where its files lie: what is looked at there neither hangs nor fails.
    pub(crate) fn behind(&self) -> &Path {
        &self.behind
    }

    /// How it behaves.
    pub(crate) fn control(&self) -> &Control {
        self.fs.control()
    }

    /// Lets everything hang until the guard is dropped. To be made after the daemon, which could not be killed while
    /// it hangs.
    pub(crate) fn hang(&self) -> Hanging<'_> {
        self.control().hang(true);
        Hanging(self.control())
    }

    /// The same for requests of one kind.
    pub(crate) fn hang_on(&self, op: Op) -> Hanging<'_> {
        self.control().hang_on(op, true);
        Hanging(self.control())
    }
}

/// That a file system hangs.
pub(crate) struct Hanging<'a>(&'a Control);

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.behave();
    }
}

/// Sends one request of the volume protocol over the Unix socket, on a connection of its own.
#[track_caller]
pub(crate) fn rpc(daemon: &Daemon<'_>, verb: &str, body: &Value) -> Answer {
    daemon.unix().call(&format!("/VolumeDriver.{verb}"), body).expect("volhost answers")
}

/// Sends one that has to succeed.
#[track_caller]
pub(crate) fn done(daemon: &Daemon<'_>, verb: &str, body: &Value) -> Value {
    let answer = rpc(daemon, verb, body);
    assert_eq!(answer.status, 200, "{verb} {body}: {}", answer.err());
    answer.json()
}

/// Sends one that has to be refused with this status; says why it was.
#[track_caller]
pub(crate) fn refused(daemon: &Daemon<'_>, verb: &str, body: &Value, status: u16) -> String {
    let answer = rpc(daemon, verb, body);
    assert_eq!(answer.status, status, "{verb} {body}: {}", String::from_utf8_lossy(&answer.body));
    let err = answer.err();
    assert!(!err.is_empty(), "{verb} {body} was refused without a word");
    err
}

/// Creates a volume with options.
#[track_caller]
pub(crate) fn create(daemon: &Daemon<'_>, name: &str, options: &Value) {
    done(daemon, "Create", &json!({ "Name": name, "Opts": options }));
}

/// Fails unless all of these words stand in the text.
#[track_caller]
pub(crate) fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

/// A backend's row of `backend ls`.
#[track_caller]
pub(crate) fn backend(daemon: &Daemon<'_>, name: &str) -> Value {
    let rows = daemon.cli(&["backend", "ls", "--json"]).json();
    let rows = rows.as_array().expect("a list");
    rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("no {name} in {rows:?}"))
}

/// Waits until a backend is in this state; returns its row.
#[track_caller]
pub(crate) fn until_backend(daemon: &Daemon<'_>, name: &str, state: &str) -> Value {
    until(&format!("backend {name} to be {state}"), SOON, || {
        Some(backend(daemon, name)).filter(|row| row["state"] == state)
    })
}

/// Replaces the backend map, and waits until it is in force.
#[track_caller]
pub(crate) fn remap(daemon: &Daemon<'_>, map: &Value) {
    let path = daemon.path("etc/volhost/backends.json");
    std::fs::write(path, map.to_string()).expect("the map can be written");
    let wanted: Vec<_> = map.as_object().expect("a map").keys().cloned().collect();
    until("the new map to be in force", SOON, || {
        let rows = daemon.cli(&["backend", "ls", "--json"]).json();
        let rows = rows.as_array().expect("a list").iter();
        let mapped = rows.filter(|row| row["state"] != "unmapped").filter_map(|row| row["name"].as_str());
        (mapped.collect::<Vec<_>>() == wanted).then_some(())
    });
}

/// What lies in a directory, by name, sorted.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
