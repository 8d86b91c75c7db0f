//! Bad days: what the operator and the engines see while something is wrong, that nothing answered is lost, and that
//! it is over when its cause is.
//!
//! Every test goes the same way: a service in use ([`Day`]); the bad thing happens, really; what is seen; the cause
//! goes; the service, the same process, is whole again. The README's table of bad days has a row for each, also for
//! those that other files tell.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::storage::{
    Storage, backend, create, done, names, refused, rpc, says, unmount, until_backend,
};
use crate::harness::wait::{SOON, run, until};

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
    fn is_over(mut self) {
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

#[test]
fn a_catalog_that_is_removed_is_made_anew_from_memory() {
    let losses: [Loss; 6] = [
        ("its files removed", |directory| {
            for file in names(directory) {
                fs::remove_file(directory.join(file)).unwrap();
            }
        }),
        ("its file removed", |directory| fs::remove_file(directory.join("catalog.db")).unwrap()),
        ("its log removed", |directory| fs::remove_file(directory.join("catalog.db-wal")).unwrap()),
        ("its lock removed", |directory| fs::remove_file(directory.join("catalog.db.lock")).unwrap()),
        ("its directory removed", |directory| fs::remove_dir_all(directory).unwrap()),
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
        says(&day.daemon.log(), &["was removed, moved or replaced", "made anew from memory"]);
        let mut day = day;
        day.daemon.restart();
        day.pid = day.daemon.pid();
        assert!(day.daemon.volumes().contains(&"at-once".to_owned()), "{what}: an answered Create was lost");
        // And without anything being asked, it is there soon.
        lose(&directory);
        until("the catalog to be made anew", SOON, || directory.join("catalog.db").exists().then_some(()));
        day.other_backend_works();
        day.is_over();
    }
}
