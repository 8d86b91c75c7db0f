//! A storm of kills: clients work as fast as they can, the service is killed -9 at random moments and started again,
//! and after each start a model says what may be true and what may not. In some of its lives the hosts have not the
//! right to mount: then a Mount is refused, unless it repeats one that is counted, and the client sends an Unmount after
//! a refusal, as Docker Engine 20.10 does.
//!
//! The seed is printed; `VOLHOST_SEED` repeats its choices (not the scheduling of threads), and
//! `VOLHOST_STORM_SECONDS` makes the storm longer.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use volhost::volume::STEPS;

use crate::harness::Daemon;
use crate::harness::disk::{tree, without_top};
use crate::harness::http::{Answer, Client, Target};
use crate::harness::random::{Random, seed, setting};
use crate::harness::wait::SOON;

/// How long the storm lasts, where `VOLHOST_STORM_SECONDS` does not say otherwise.
const STORM: Duration = Duration::from_secs(60);

/// How long the service lives between its start and the kill at most.
const LIFE: u64 = 1200;

/// How many clients there are; each has volumes of its own, and all mount the shared one.
const CLIENTS: usize = 4;

/// How many volumes each client has.
const VOLUMES: u64 = 3;

/// The volume that everybody mounts and nobody can remove, because one mount stays.
const SHARED: &str = "shared";

/// What may be true of one volume's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct World {
    /// What its directory holds, if there is a volume: a token, or zero while nothing was written.
    data: Option<u64>,
    /// How often each ID has mounted it.
    mounts: BTreeMap<String, u64>,
    /// What the removed volumes of that name hold, the latest at the end.
    trash: Vec<u64>,
}

/// What a client asks for.
#[derive(Debug, Clone)]
enum Ask {
    Create,
    Mount(String),
    Unmount(String),
    Remove,
    Restore,
}

impl World {
    /// What the request makes of this world, and whether it is answered well by a service that lets hosts mount or not.
    fn after(&self, ask: &Ask, may_mount: bool) -> (Self, bool) {
        let mut world = self.clone();
        let answered = match ask {
            Ask::Create => {
                world.data = world.data.or(Some(0));
                true
            }
            Ask::Mount(id) => {
                let answered = world.data.is_some() && (may_mount || world.mounts.contains_key(id));
                if answered {
                    *world.mounts.entry(id.clone()).or_default() += 1;
                }
                answered
            }
            Ask::Unmount(id) => {
                if let Some(count) = world.mounts.get_mut(id) {
                    *count -= 1;
                }
                world.mounts.retain(|_, count| *count > 0);
                true
            }
            Ask::Remove if world.mounts.is_empty() => {
                world.trash.extend(world.data.take());
                true
            }
            Ask::Remove => false,
            Ask::Restore if world.data.is_none() && !world.trash.is_empty() => {
                world.data = world.trash.pop();
                true
            }
            Ask::Restore => false,
        };
        (world, answered)
    }
}

/// What one client knows of its names: for each every world that its history allows.
type Knowledge = BTreeMap<String, Vec<World>>;

/// Whether clients may work, and where.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// Where to connect, for each client; nothing while the service is down.
    targets: Vec<Target>,
    admin: PathBuf,
    /// Whether the hosts have the right to mount.
    may_mount: bool,
    generation: u64,
    waiting: usize,
    over: bool,
}

impl Gate {
    /// Waits until there is a service of a later generation than the one given; nothing when the storm is over.
    fn pass(&self, client: usize, generation: &mut u64) -> Option<(Target, PathBuf, bool)> {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.over && state.generation == *generation {
            state = self.changed.wait(state).unwrap();
        }
        if state.over {
            return None;
        }
        *generation = state.generation;
        Some((state.targets[client].clone(), state.admin.clone(), state.may_mount))
    }

    fn open(&self, targets: Vec<Target>, admin: PathBuf, may_mount: bool) {
        let mut state = self.state.lock().unwrap();
        let generation = state.generation + 1;
        *state = GateState { targets, admin, may_mount, generation, waiting: 0, over: false };
        self.changed.notify_all();
    }

    /// Waits until every client has noticed that the service is gone.
    fn wait_for_all(&self) {
        let mut state = self.state.lock().unwrap();
        let end = Instant::now() + 2 * SOON;
        while state.waiting < CLIENTS {
            assert!(Instant::now() < end, "a client did not notice that the service is gone, or died");
            state = self.changed.wait_timeout(state, Duration::from_millis(100)).unwrap().0;
        }
    }

    fn end(&self) {
        self.state.lock().unwrap().over = true;
        self.changed.notify_all();
    }
}

/// One client: its names, what it knows of them, and how it mounts the shared volume.
struct Worker {
    number: usize,
    random: Random,
    root: PathBuf,
    token: u64,
    /// The volume and the ID of a Mount that was refused a moment ago.
    refused: Option<(String, String)>,
    knowledge: Arc<Mutex<Knowledge>>,
    /// The requests that were answered, and those that were not.
    counts: Arc<Mutex<(u64, u64)>>,
}

impl Worker {
    fn work(mut self, gate: &Gate) {
        let mut generation = 0;
        while let Some((target, admin, may_mount)) = gate.pass(self.number, &mut generation) {
            // Whatever fails here fails because the service is gone.
            let connected = Client::connect(&target)
                .and_then(|client| Ok((client, Client::connect(&Target::Unix(admin))?)));
            let Ok((mut client, mut admin)) = connected else { continue };
            while self.step(&mut client, &mut admin, may_mount) {}
        }
    }

    /// One request; `false` when it was not answered.
    fn step(&mut self, client: &mut Client, admin: &mut Client, may_mount: bool) -> bool {
        let own = format!("c{}-{}", self.number, self.random.below(VOLUMES));
        let id = format!("m{}-{}", self.number, self.random.below(2));
        let shared = self.random.below(6) == 0;
        let ask = match self.random.below(12) {
            0..=2 => Ask::Create,
            3..=4 => Ask::Mount(id),
            5..=7 => Ask::Unmount(id),
            8..=10 => Ask::Remove,
            _ if shared => Ask::Remove,
            _ => Ask::Restore,
        };
        let name = if shared { SHARED.to_owned() } else { own };
        let (name, ask) = match self.refused.take() {
            Some((volume, id)) => (volume, Ask::Unmount(id)),
            None => (name, ask),
        };
        let answer = send(&ask, &name, client, admin);
        let answered = answer.is_ok();
        if let (Ask::Mount(id), Ok(Answer { status: 403, .. })) = (&ask, &answer) {
            self.refused = Some((name.clone(), id.clone()));
        }
        let shared_knowledge = Arc::clone(&self.knowledge);
        let mut knowledge = shared_knowledge.lock().unwrap();
        let worlds = knowledge.get_mut(&name).expect("all names are known");
        learn(worlds, &name, &ask, may_mount, answer.ok().as_ref());
        if answered && matches!(ask, Ask::Create) && !shared {
            self.write_token(&name, worlds);
        }
        drop(knowledge);
        let mut counts = self.counts.lock().unwrap();
        if answered {
            counts.0 += 1;
        } else {
            counts.1 += 1;
        }
        answered
    }

    /// Gives a volume that was just made its data, as a container would.
    fn write_token(&mut self, name: &str, worlds: &mut [World]) {
        let file = self.root.join(name).join("token");
        if !file.exists() {
            self.token += 1;
            let token = self.token * 100 + self.number as u64;
            fs::write(&file, token.to_string()).unwrap_or_else(|e| panic!("{name} was made, but: {e}"));
            for world in worlds {
                world.data = Some(token);
            }
        }
    }
}

fn send(ask: &Ask, name: &str, client: &mut Client, admin: &mut Client) -> io::Result<Answer> {
    let rpc = |verb: &str| format!("/VolumeDriver.{verb}");
    match ask {
        Ask::Create => client.call(&rpc("Create"), &json!({ "Name": name })),
        Ask::Mount(id) => client.call(&rpc("Mount"), &json!({ "Name": name, "ID": id })),
        Ask::Unmount(id) => client.call(&rpc("Unmount"), &json!({ "Name": name, "ID": id })),
        Ask::Remove => client.call(&rpc("Remove"), &json!({ "Name": name })),
        Ask::Restore => admin.call(RESTORE, &json!({ "name": name })),
    }
}

/// The admin socket's way to restore a volume: a process for each call would be too slow for a storm.
const RESTORE: &str = "/volume/restore";

/// What a request and its answer, or its lack, say of the worlds that are possible.
fn learn(worlds: &mut Vec<World>, name: &str, ask: &Ask, may_mount: bool, answer: Option<&Answer>) {
    let before = std::mem::take(worlds);
    for world in &before {
        let (after, well) = world.after(ask, may_mount);
        match answer {
            // Not answered: done or not.
            None => worlds.extend([world.clone(), after]),
            Some(answer) if (answer.status == 200) == well && answer.status < 500 => worlds.push(after),
            Some(_) => {}
        }
    }
    worlds.dedup();
    assert!(
        !worlds.is_empty(),
        "{ask:?} of {name} was answered {:?}, which fits none of {before:?}",
        answer.map(|answer| (answer.status, answer.json()))
    );
}

/// What is true of a name, as the service and the disk tell it.
fn observe(daemon: &Daemon<'_>, root: &Path) -> BTreeMap<String, World> {
    let mut seen: BTreeMap<String, World> = BTreeMap::new();
    for name in daemon.volumes() {
        seen.entry(name.clone()).or_default().data = Some(token(&root.join(&name)));
    }
    for mount in daemon.mounts() {
        assert!(!mount.stale, "{mount:?}: no engine was started again");
        *seen.entry(mount.volume).or_default().mounts.entry(mount.id).or_default() += mount.count;
    }
    for (id, name) in daemon.trash() {
        seen.entry(name).or_default().trash.push(token(&root.join(".volhost/trash").join(id)));
    }
    seen
}

fn token(directory: &Path) -> u64 {
    match fs::read_to_string(directory.join("token")) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{} holds {text:?}", directory.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => panic!("{}: {e}", directory.display()),
    }
}

/// Fails unless what is true is one of the worlds that the history allows, and forgets the others.
fn check(knowledge: &Mutex<Knowledge>, seen: &BTreeMap<String, World>, number: usize) {
    for (name, worlds) in &mut *knowledge.lock().unwrap() {
        let mut actual = seen.get(name).cloned().unwrap_or_default();
        if name == SHARED {
            // Each client tells of its own mounts only.
            actual.mounts.retain(|id, _| id.starts_with(&format!("m{number}-")));
            actual.mounts.insert(ANCHOR.into(), 1);
        }
        // The list of removed volumes is not in the order of the model.
        let sorted = |world: &World| {
            let mut world = world.clone();
            world.trash.sort_unstable();
            world
        };
        let before = worlds.clone();
        worlds.retain(|world| sorted(world) == sorted(&actual));
        assert!(!worlds.is_empty(), "{name} is {actual:?}, but its history allows only {before:?}");
        worlds.truncate(1);
    }
}

/// The mount that keeps the shared volume from being removed.
const ANCHOR: &str = "anchor";

#[test]
fn nothing_answered_is_lost_in_a_storm_of_kills() {
    let seed = seed("VOLHOST_SEED");
    let length = setting("VOLHOST_STORM_SECONDS").map_or(STORM, Duration::from_secs);
    eprintln!("VOLHOST_SEED={seed}, for {length:?}");
    let mut random = Random::new(seed);

    let setup = Daemon::setup();
    let root = setup.root().join("disk/volumes");
    let outside = setup.root().join("disk/outside");
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("deep/file"), "untouched").unwrap();
    let untouched = tree(&outside);
    let mut configuration = setup.standard();
    let mut daemon = setup.backends(&json!({ "default": root })).start();
    let identities = [
        daemon.identity(),
        daemon.add_host("web2", &["--advertise", "https://127.0.0.1:7443"], &outside.with_extension("web2")),
    ];
    let mut client = daemon.tls();
    let mut ok = |rpc: &str, body: &Value| {
        let answer = client.call(&format!("/VolumeDriver.{rpc}"), body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.err());
    };
    ok("Create", &json!({ "Name": SHARED }));
    ok("Mount", &json!({ "Name": SHARED, "ID": ANCHOR }));
    fs::write(root.join(SHARED).join("token"), "7").unwrap();
    fs::write(root.join(SHARED).join("large"), vec![7; 1_000_000]).unwrap();
    let shared = tree(&root.join(SHARED));

    let gate = Arc::new(Gate::default());
    let counts = Arc::new(Mutex::new((0, 0)));
    let mut known = Vec::new();
    let mut threads = Vec::new();
    for number in 0..CLIENTS {
        let anchored = World { data: Some(7), mounts: [(ANCHOR.to_owned(), 1)].into(), trash: Vec::new() };
        let own = (0..VOLUMES).map(|volume| (format!("c{number}-{volume}"), vec![World::default()]));
        let knowledge: Knowledge = own.chain([(SHARED.to_owned(), vec![anchored])]).collect();
        let knowledge = Arc::new(Mutex::new(knowledge));
        known.push(Arc::clone(&knowledge));
        let worker = Worker {
            number,
            random: Random::new(random.next()),
            root: root.clone(),
            token: 0,
            refused: None,
            knowledge,
            counts: Arc::clone(&counts),
        };
        let gate = Arc::clone(&gate);
        threads.push(std::thread::spawn(move || worker.work(&gate)));
    }

    let begun = Instant::now();
    let mut kills = 0;
    let mut stopping: Option<&str> = None;
    let mut may_mount = true;
    while begun.elapsed() < length {
        let tls = |identity: usize| Target::Tls(daemon.tcp("https"), identities[identity].clone());
        let targets = vec![tls(0), Target::Unix(daemon.socket()), tls(1), tls(0)];
        gate.open(targets, daemon.path("run/volhost/admin.sock"), may_mount);
        std::thread::sleep(Duration::from_millis(random.below(LIFE)));
        if stopping.is_some() {
            // It may not have come to that step, and then is killed like the others.
            std::thread::sleep(Duration::from_millis(LIFE / 4));
        }
        daemon.kill9();
        kills += 1;
        gate.wait_for_all();

        // Some die at a durable step, which a kill at a random moment seldom meets.
        stopping =
            (random.below(3) == 0).then(|| STEPS[usize::try_from(random.below(STEPS.len() as u64)).unwrap()]);
        may_mount = random.below(3) > 0;
        let mount = may_mount.then_some("mount");
        let rights: Vec<_> = ["create", "remove"].into_iter().chain(mount).collect();
        configuration["hosts"] = json!({ "*": { "rights": rights } });
        daemon.put("etc/volhost/volhost.json", &configuration.to_string());
        let environment: Vec<_> = stopping.iter().map(|step| ("VOLHOST_STOP_AT", *step)).collect();
        daemon.start_with(&environment).unwrap();
        let seen = observe(&daemon, &root);
        daemon.agrees_with(&root);
        for (number, knowledge) in known.iter().enumerate() {
            check(knowledge, &seen, number);
        }
        assert!(seen.keys().all(|name| name == SHARED || name.starts_with('c')), "{seen:?}");
        assert_eq!(seen[SHARED].mounts.get(ANCHOR), Some(&1));
        assert_eq!(without_top(&tree(&root.join(SHARED))), without_top(&shared));
    }
    gate.end();
    for thread in threads {
        thread.join().expect("each client's answers fit its history");
    }
    assert_eq!(tree(&outside), untouched, "something outside the backend was touched");
    let (answered, unanswered) = *counts.lock().unwrap();
    eprintln!("{kills} kills, {answered} requests answered, {unanswered} not");
    assert!(answered > kills, "hardly anything was asked: {answered} answers, {kills} kills");
}
