//! Promise 1, step by step: the program is killed at each durable step of each operation in turn, started again, and
//! what it then says and what lies on disk must be what was answered, and nothing half-made.
//!
//! A debug build with `VOLHOST_STOP_AT` in its environment kills itself at the step of that name.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use volhost::volume::STEPS;

use crate::harness::Daemon;
use crate::harness::disk::{Tree, names, tree, without_top};
use crate::harness::http::Answer;
use crate::harness::wait::{SOON, until};

/// What may be true of the volume `db`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// There is no such volume, no directory and nothing removed.
    Nothing,
    /// A directory of that name with data, which is no volume.
    Directory,
    /// A volume that was just made.
    Empty,
    /// A volume with data.
    Data,
    /// The same, mounted once.
    Mounted,
    /// The same, removed.
    Removed,
}

/// What is asked for and not answered, because the process dies.
enum Ask {
    Rpc(&'static str, Value),
    Cli(&'static [&'static str]),
    Start,
}

/// One step: what was before, what was asked, what must be true in the end, and what the log must say of it.
struct Case {
    before: State,
    ask: Ask,
    after: State,
    log: Option<&'static str>,
}

/// The case of a step. A step that is not here fails the test: it has to be thought about.
fn case(step: &str) -> Case {
    use State::{Data, Directory, Empty, Mounted, Nothing, Removed};
    let rpc = |rpc: &'static str| Ask::Rpc(rpc, json!({ "Name": "db", "ID": "one" }));
    let (before, ask, after, log) = match step {
        "create:begun" => (Nothing, rpc("Create"), Nothing, None),
        "create:staged" => (Nothing, rpc("Create"), Nothing, Some("undid a create that was cut off")),
        "create:recorded" => (Nothing, rpc("Create"), Empty, Some("finished the create of volume db")),
        "create:renamed" | "create:done" | "create:flushed" => (Nothing, rpc("Create"), Empty, None),
        "adopt:recorded" => {
            (Directory, Ask::Cli(&["volume", "create", "-o", "adopt=true", "db"]), Data, None)
        }
        "mount:checked" => (Data, rpc("Mount"), Data, None),
        "mount:recorded" => (Data, rpc("Mount"), Mounted, None),
        "unmount:recorded" => (Mounted, rpc("Unmount"), Data, None),
        "remove:begun" => (Data, rpc("Remove"), Data, None),
        "remove:trashed" => (Data, rpc("Remove"), Data, Some("put the directory of volume db back")),
        "remove:recorded" => (Data, rpc("Remove"), Removed, None),
        "restore:recorded" => (
            Removed,
            Ask::Cli(&["volume", "restore", "db"]),
            Data,
            Some("put the directory of volume db back"),
        ),
        "restore:renamed" => (Removed, Ask::Cli(&["volume", "restore", "db"]), Data, None),
        "purge:recorded" | "purge:marked" | "purge:deleted" | "purge:forgotten" => {
            (Data, Ask::Cli(&["volume", "rm", "--now", "--yes", "db"]), Nothing, None)
        }
        "identity:chosen" | "identity:written" => (Nothing, Ask::Start, Nothing, None),
        unknown => panic!("the step {unknown} has no case here: say what recovery makes of it"),
    };
    Case { before, ask, after, log }
}

/// A daemon, its one backend, and what no operation on `db` may change.
struct Scene {
    daemon: Daemon<'static>,
    root: PathBuf,
    step: &'static str,
    /// What the volumes with data hold.
    data: Tree,
    /// What is beside the backend.
    outside: Tree,
}

impl Scene {
    /// Dies at the step.
    fn killed(step: &'static str) -> (Self, Case) {
        let setup = Daemon::setup();
        let root = setup.root().join("disk/volumes");
        fs::create_dir_all(&root).unwrap();
        fill(&root.parent().unwrap().join("outside"));
        let mut daemon = setup.backends(&json!({ "default": root })).prepare();
        let case = case(step);
        if !matches!(case.ask, Ask::Start) {
            daemon.start_again();
        }
        let mut scene = Self { daemon, root, step, data: Tree::new(), outside: Tree::new() };
        scene.data = tree(&scene.root.parent().unwrap().join("outside"));
        scene.outside = scene.data.clone();
        if let Ask::Start = case.ask {
            let status = scene.daemon.start_with(&[("VOLHOST_STOP_AT", step)]);
            assert_eq!(status.unwrap_err().signal(), Some(9), "{step}");
            return (scene, case);
        }
        scene.make_bystanders();
        scene.reach(case.before);
        scene.daemon.kill9();
        scene.daemon.start_with(&[("VOLHOST_STOP_AT", step)]).unwrap();
        match &case.ask {
            Ask::Rpc(rpc, body) => {
                let answer = scene.daemon.tls().call(&format!("/VolumeDriver.{rpc}"), body);
                // The flush comes behind the answer.
                let is_behind = step == "create:flushed";
                assert_eq!(answer.is_ok(), is_behind, "{step}: {rpc} was answered: {answer:?}");
            }
            Ask::Cli(words) if step.starts_with("purge:") => {
                // Answered or not: the data goes in the background.
                scene.daemon.cli(words);
            }
            Ask::Cli(words) => {
                scene.daemon.cli(words).fails();
            }
            Ask::Start => unreachable!("it was started above"),
        }
        let status = scene.daemon.wait_for_end();
        assert_eq!(status.signal(), Some(9), "{step}: {status}");
        (scene, case)
    }

    fn call(&self, rpc: &str, name: &str, id: &str) -> Answer {
        let body = json!({ "Name": name, "ID": id });
        self.daemon.unix().call(&format!("/VolumeDriver.{rpc}"), &body).unwrap()
    }

    #[track_caller]
    fn ok(&self, rpc: &str, name: &str, id: &str) -> Answer {
        let answer = self.call(rpc, name, id);
        assert_eq!(answer.status, 200, "{}: {rpc} of {name}: {}", self.step, answer.err());
        answer
    }

    /// A volume that is mounted, one that is not and one that was removed, all with data.
    fn make_bystanders(&self) {
        for name in ["mounted", "idle", "removed"] {
            self.ok("Create", name, "");
            fill(&self.root.join(name));
        }
        self.ok("Mount", "mounted", "other");
        self.ok("Remove", "removed", "");
    }

    fn reach(&self, state: State) {
        if state == State::Nothing {
            return;
        }
        if state == State::Directory {
            fs::create_dir(self.root.join("db")).unwrap();
        } else {
            self.ok("Create", "db", "");
        }
        if state != State::Empty {
            fill(&self.root.join("db"));
        }
        match state {
            State::Mounted => drop(self.ok("Mount", "db", "one")),
            State::Removed => drop(self.ok("Remove", "db", "")),
            State::Nothing | State::Directory | State::Empty | State::Data => {}
        }
    }

    /// Whether what volhost says and what lies on disk is this state, and otherwise why not.
    fn differs(&self, state: State) -> Option<String> {
        let mut volumes = self.daemon.volumes();
        volumes.retain(|name| name == "db");
        let mut trash = self.daemon.trash();
        trash.retain(|_, name| name == "db");
        let trashed: Vec<_> = trash.into_keys().collect();
        let mounts = self.daemon.mounts();
        let mounts: Vec<_> = mounts.iter().filter(|mount| mount.volume == "db").collect();
        let directory = self.root.join("db");
        let held = directory.exists().then(|| tree(&directory));
        let empty = held.as_ref().is_some_and(|held| held.len() == 1);
        let whole = held.as_ref().is_some_and(|held| self.is_whole(held));
        let kept = trashed.first().is_some_and(|id| {
            let kept = self.root.join(".volhost/trash").join(id);
            kept.exists() && self.is_whole(&tree(&kept))
        });
        let one_mount = mounts.len() == 1 && mounts[0].id == "one" && mounts[0].count == 1;
        let right = match state {
            State::Nothing => volumes.is_empty() && held.is_none() && trashed.is_empty(),
            State::Directory => unreachable!("nothing ends so"),
            State::Empty => volumes.len() == 1 && empty && mounts.is_empty() && trashed.is_empty(),
            State::Data => volumes.len() == 1 && whole && mounts.is_empty() && trashed.is_empty(),
            State::Mounted => volumes.len() == 1 && whole && one_mount && trashed.is_empty(),
            State::Removed => volumes.is_empty() && held.is_none() && trashed.len() == 1 && kept,
        };
        (!right).then(|| {
            format!(
                "{}: not {state:?}: {volumes:?}, trashed {trashed:?}, {mounts:?}, the directory holds {:?}",
                self.step,
                held.map(|held| held.into_keys().collect::<Vec<_>>())
            )
        })
    }

    fn is_whole(&self, held: &Tree) -> bool {
        without_top(held) == without_top(&self.data)
    }

    /// Fails unless the state is this one, soon, and everything else is as it was.
    fn is(&self, state: State) {
        let wrong = || self.differs(state).or_else(|| self.daemon.disagreement(&self.root));
        if self.step.starts_with("purge:") {
            // Data is deleted in the background; everything else is true before the first answer.
            let what = format!("{}: {:?}", self.step, wrong());
            until(&what, 2 * SOON, || wrong().is_none().then_some(()));
        } else {
            assert_eq!(wrong(), None, "{}", self.step);
        }
        assert_eq!(tree(&self.root.parent().unwrap().join("outside")), self.outside, "{}", self.step);
    }

    fn bystanders_are_as_they_were(&self) {
        for name in ["mounted", "idle"] {
            assert!(self.is_whole(&tree(&self.root.join(name))), "{}: {name} was changed", self.step);
        }
        let mounts = self.daemon.mounts();
        let mount = mounts.iter().find(|mount| mount.volume == "mounted");
        assert!(mount.is_some_and(|mount| mount.id == "other" && mount.count == 1), "{mounts:?}");
        assert_eq!(self.call("Remove", "mounted", "").status, 400, "{}", self.step);
        self.daemon.cli(&["volume", "restore", "removed"]).ok();
        assert!(self.is_whole(&tree(&self.root.join("removed"))), "{}", self.step);
    }

    /// Goes on working with the volume, as an engine would that asks again.
    fn works_on(&self, state: State) {
        if state == State::Mounted {
            assert_eq!(self.call("Remove", "db", "").status, 400, "{}", self.step);
            self.ok("Unmount", "db", "one");
        }
        self.ok("Create", "db", "");
        let answer = self.ok("Mount", "db", "two");
        let place = answer.json()["Mountpoint"].as_str().map(PathBuf::from);
        assert_eq!(place, Some(self.root.join("db")), "{}", self.step);
        if matches!(state, State::Nothing | State::Empty | State::Removed) {
            assert_eq!(names(&self.root.join("db")).len(), 0, "{}", self.step);
        }
        self.ok("Unmount", "db", "two");
        self.ok("Remove", "db", "");
        // What was adopted is forgotten, and its directory left.
        if self.step.starts_with("adopt:") {
            assert!(self.is_whole(&tree(&self.root.join("db"))), "{}", self.step);
            fs::remove_dir_all(self.root.join("db")).unwrap();
        }
        self.daemon.agrees_with(&self.root);
        if state == State::Removed {
            let ids = self.daemon.trash();
            let data = |id: &&String| names(&self.root.join(".volhost/trash").join(id)).len() > 1;
            let id = ids.keys().find(data).unwrap_or_else(|| panic!("no data in {ids:?}"));
            self.daemon.cli(&["volume", "restore", id]).ok();
            assert!(self.is_whole(&tree(&self.root.join("db"))), "{}", self.step);
        }
    }
}

/// What a power cut may take that a kill leaves: a directory that was not durable yet when its record was.
#[test]
fn a_create_that_lost_its_directory_with_the_power_gets_it_again() {
    for away in [false, true] {
        let (mut scene, _) = Scene::killed("create:recorded");
        let new = scene.root.join(".volhost/new");
        let staged = names(&new);
        assert_eq!(staged.len(), 1, "{staged:?}");
        fs::remove_dir(new.join(staged.iter().next().unwrap())).unwrap();
        let elsewhere = scene.root.with_extension("away");
        if away {
            fs::rename(&scene.root, &elsewhere).unwrap();
        }
        scene.daemon.start_again();
        if away {
            scene.ok("Get", "db", "");
            fs::rename(&elsewhere, &scene.root).unwrap();
            scene.ok("Create", "another", "");
            scene.ok("Remove", "another", "");
        }
        let log = scene.daemon.log();
        assert!(log.contains("made the directory of volume db again, empty"), "{log}");
        scene.is(State::Empty);
        scene.bystanders_are_as_they_were();
        scene.works_on(State::Empty);
    }
}

/// Data of all kinds.
fn fill(directory: &Path) {
    fs::create_dir_all(directory.join("deep/er")).unwrap();
    fs::write(directory.join("deep/er/file"), "precious").unwrap();
    fs::write(directory.join("large"), vec![42; 100_000]).unwrap();
    symlink("/nowhere", directory.join("link")).unwrap();
}

#[test]
fn what_a_kill_at_any_step_leaves_is_finished_or_undone_by_the_next_start() {
    for step in STEPS {
        let (mut scene, case) = Scene::killed(step);
        let before = scene.daemon.log().len();
        scene.daemon.start_again();
        let log = scene.daemon.log()[before..].to_owned();
        if let Some(said) = case.log {
            assert!(log.contains(said), "{step}: the log does not say {said:?}:\n{log}");
        }
        scene.is(case.after);
        if !matches!(case.ask, Ask::Start) {
            scene.bystanders_are_as_they_were();
        }
        scene.works_on(case.after);
    }
}

#[test]
fn what_a_kill_at_any_step_leaves_on_a_backend_that_is_away_is_mended_when_it_comes_back() {
    for step in STEPS {
        let (mut scene, case) = Scene::killed(step);
        let away = scene.root.with_extension("away");
        fs::rename(&scene.root, &away).unwrap();
        let left = tree(&away);
        scene.daemon.start_again();
        scene.ok("List", "", "");
        let refusal = scene.call("Create", "another", "");
        assert_eq!(refusal.status, 500, "{step}");
        assert!(refusal.err().contains("offline"), "{step}: {}", refusal.err());
        if !matches!(case.ask, Ask::Start) {
            for name in ["mounted", "idle"] {
                scene.ok("Get", name, "");
            }
            for (rpc, name) in [("Mount", "idle"), ("Remove", "idle")] {
                assert_eq!(scene.call(rpc, name, "x").status, 500, "{step}: {rpc}");
            }
        }
        assert_eq!(tree(&away), left, "{step}: something was changed");
        assert!(!scene.root.exists(), "{step}: a backend was made where none is");

        fs::rename(&away, &scene.root).unwrap();
        // The first operation that needs the backend finds it again; nobody has to wait for a round.
        scene.ok("Create", "another", "");
        scene.ok("Remove", "another", "");
        if let Some(said) = case.log {
            until(said, SOON, || scene.daemon.log().contains(said).then_some(()));
        }
        scene.is(case.after);
        if !matches!(case.ask, Ask::Start) {
            scene.bystanders_are_as_they_were();
        }
        scene.works_on(case.after);
    }
}
