//! Random histories: clients on several hosts work on a few volumes by all instances at once, while instances and the
//! cluster are broken and mended. What everybody was answered is written down; then an order is looked for in which
//! volumes that are never lost, doubled or split would have answered so.
//!
//! `model` says what a volume's name stands for and what an operation makes of it, `check` looks for the order, `judge`
//! says what may be late or old, `consequences` what an Unmount after a failed Mount takes, `generate` and `faults` make
//! a run out of a seed, `client` asks, `ending` looks at what is left.
//!
//! The seed is printed and repeats what is asked and what is broken when; the answers' times are the machine's.
//! `tests/history` runs longer histories, by `VOLHOST_HISTORY_SEED` and `VOLHOST_HISTORY_SECONDS`. A history that has
//! no explanation is kept as JSON below `target/tmp`, and `VOLHOST_HISTORY_FILE` checks it again.

mod check;
mod client;
mod consequences;
mod ending;
mod faults;
mod generate;
mod judge;
mod model;
mod record;
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use self::client::{Doors, Scene};
use self::faults::{Stage, Weather, blows};
use self::generate::Plan;
use self::judge::{Limits, complaints};
use self::record::{Answer, History, named};
use crate::harness::random::{Random, seed, setting};
use crate::harness::{Cluster, Daemon, Fleet, Host};

/// How many clients there are, each a host of its own.
const CLIENTS: usize = 6;

/// What a run is.
struct Run {
    seed: u64,
    length: Duration,
    weather: Weather,
    /// How long a client rests between two requests at most, in microseconds.
    pause: u64,
    limits: Limits,
}

impl Run {
    /// Has the clients work, breaks and mends, and checks what they were answered. `stage` is given the scene.
    fn play(&self, stage: &mut Stage<'_, '_>, root: &Path) {
        let Self { seed, length, weather, pause, limits } = self;
        eprintln!("VOLHOST_HISTORY_SEED={seed}, for {length:?}");
        let mut random = Random::new(*seed);
        let scene = stage.scene;
        stage.open();
        let mut history = Kept { history: History::default(), path: place(*seed) };
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let plan = Plan::new(Random::new(random.next()), client, weather.instances, *pause);
                scope.spawn(move || scene.work(client, plan, weather.instances));
            }
            // However this ends, the clients must.
            let _over = Over(scene);
            let begun = Instant::now();
            for blow in blows(Random::new(random.next()), *weather) {
                if begun.elapsed() + blow.rest + blow.lasts > *length {
                    std::thread::sleep(length.saturating_sub(begun.elapsed()));
                    break;
                }
                stage.suffer(blow);
            }
        });
        history.history.records = std::mem::take(&mut scene.records.lock().expect("the clients have ended"));
        history.history.troubles.clone_from(&stage.troubles);
        let begun = Instant::now();
        let quiet = loop {
            let wrong = ending::disagreement(stage.instances, stage.etcd.as_deref(), root);
            match wrong {
                Some(_) if begun.elapsed() < ending::QUIET => std::thread::sleep(Duration::from_millis(200)),
                wrong => break wrong,
            }
        };
        let calm = begun.elapsed();
        for (instance, daemon) in stage.instances.iter().enumerate() {
            history.history.endings.extend(ending::endings(daemon, instance, scene.now()));
        }
        // Also when checking takes so long that it is ended from outside.
        history.history.keep(&history.path);
        let begun = Instant::now();
        let mut found = complaints(&history.history, limits);
        if let Some(wrong) = quiet {
            found.insert(0, format!("after {:?} without a request: {wrong}", ending::QUIET));
        }
        eprintln!("{}; calm after {calm:?}; checked in {:?}", told(&history.history), begun.elapsed());
        assert!(
            found.is_empty(),
            "seed {seed}: {} complaints, the first ones:\n{}",
            found.len(),
            first(&found)
        );
        let _ = std::fs::remove_file(&history.path);
        history.history = History::default();
    }
}

/// A history that is kept for reading when its test fails.
struct Kept {
    history: History,
    path: PathBuf,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.history.records.is_empty() {
            self.history.keep(&self.path);
            eprintln!("the history is kept: VOLHOST_HISTORY_FILE={}", self.path.display());
        }
    }
}

/// That the clients end when this does.
struct Over<'s, 'a>(&'s Scene<'a>);

impl Drop for Over<'_, '_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn place(seed: u64) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{seed}.jsonl"))
}

fn first(found: &[String]) -> String {
    found.iter().take(10).map(|complaint| format!("- {complaint}\n")).collect()
}

/// A history in numbers.
fn told(history: &History) -> String {
    let count = |wanted: fn(&Answer) -> bool| history.records.iter().filter(|r| wanted(&r.answer)).count();
    format!(
        "{} requests: {} done, {} found or listed, {} refused, {} failed, {} not answered, {} not sent; {} faults",
        history.records.len(),
        count(|answer| *answer == Answer::Done),
        count(|answer| matches!(answer, Answer::Found(_) | Answer::Listed(_))),
        count(|answer| matches!(answer, Answer::Refused(..))),
        count(|answer| matches!(answer, Answer::Failed(_))),
        count(|answer| matches!(answer, Answer::Lost(_))),
        count(|answer| matches!(answer, Answer::Unsent(_))),
        history.troubles.len(),
    )
}

/// The length of a run: what `VOLHOST_HISTORY_SECONDS` says, or this.
fn length(usual: u64) -> Duration {
    Duration::from_secs(setting("VOLHOST_HISTORY_SECONDS").unwrap_or(usual))
}

/// The limits of instances that share a catalog.
const SHARED: Limits = Limits {
    old: 2_000_000,
    late: 10_000_000,
    recovery: 12_000_000,
    reconnect: 5_000_000,
    shared: true,
    one_moment: false,
};

/// The limits of an instance that has its catalog for itself: nothing is old and nothing late, but what a kill cut off.
const ALONE: Limits =
    Limits { old: 0, late: 100_000, recovery: 100_000, reconnect: 0, shared: false, one_moment: true };

#[test]
fn one_instance_answers_as_if_one_thing_happened_after_the_other_while_it_is_killed() {
    let setup = Daemon::setup();
    let root = setup.root().join("disk/volumes");
    std::fs::create_dir_all(&root).unwrap();
    let mut daemon = [setup.backends(&json!({ "default": root })).start()];
    let identity = |client| {
        let (name, directory) = (named('h', client), daemon[0].path(&named('h', client)));
        daemon[0].add_host(&name, &["--advertise", "https://127.0.0.1:7443"], &directory)
    };
    let identities = (0..CLIENTS).map(identity).collect();
    let scene = Scene::new(Doors::new(Vec::new(), identities, 1));
    let run = Run {
        seed: seed("VOLHOST_HISTORY_SEED"),
        length: length(12),
        weather: Weather { instances: 1, members: 0, rest: 1500, lasts: 300 },
        pause: 4000,
        limits: ALONE,
    };
    let mut stage =
        Stage { instances: &mut daemon, etcd: None, machines: None, scene: &scene, troubles: Vec::new() };
    run.play(&mut stage, &root);
}

/// Instances on machines of their own, as many as are named, which join the one that the cluster is on.
fn instances_that_share(names: &[&str], run: &Run) {
    let center = Host::new("center");
    let machines: Vec<_> = names.iter().map(|name| Host::new(name)).collect();
    for machine in &machines {
        machine.join(&center);
    }
    let machines: Vec<_> = machines.iter().collect();
    let mut fleet = Fleet::of(Cluster::three().on(&center).start(), names.len()).on(&machines).start();
    let root = fleet.volumes();
    let identities = (0..CLIENTS).map(|client| fleet.identity(&named('h', client))).collect();
    let scene = Scene::new(Doors::new(machines.clone(), identities, names.len()));
    let Fleet { instances, etcd, .. } = &mut fleet;
    let mut stage = Stage {
        instances,
        etcd: Some(etcd),
        machines: Some((&center, machines)),
        scene: &scene,
        troubles: Vec::new(),
    };
    run.play(&mut stage, &root);
}

#[test]
#[cfg_attr(not(feature = "etcd"), ignore = "takes the feature etcd")]
fn two_instances_answer_as_one_while_they_and_their_catalog_break() {
    let run = Run {
        seed: seed("VOLHOST_HISTORY_SEED"),
        length: length(30),
        weather: Weather { instances: 2, members: 3, rest: 4000, lasts: 4000 },
        pause: 4000,
        limits: SHARED,
    };
    instances_that_share(&["store1", "store2"], &run);
}

/// A longer history, in which things are broken for longer, so that leases end and elections are held.
#[test]
#[ignore = "takes minutes: tests/history runs it"]
fn three_instances_answer_as_one_for_minutes() {
    let run = Run {
        seed: seed("VOLHOST_HISTORY_SEED"),
        length: length(300),
        weather: Weather { instances: 3, members: 3, rest: 20_000, lasts: 15_000 },
        pause: 8000,
        limits: SHARED,
    };
    instances_that_share(&["store1", "store2", "store3"], &run);
}

/// Checks a history again that was kept.
#[test]
#[ignore = "takes the history that VOLHOST_HISTORY_FILE names"]
fn a_kept_history_has_an_explanation() {
    let path = std::env::var_os("VOLHOST_HISTORY_FILE").expect("VOLHOST_HISTORY_FILE names a kept history");
    let history = History::read(Path::new(&path));
    let limits = if history.records.iter().any(|record| record.instance > 0) { SHARED } else { ALONE };
    let found = complaints(&history, &limits);
    eprintln!("{}", told(&history));
    assert!(found.is_empty(), "{} complaints, the first ones:\n{}", found.len(), first(&found));
}
