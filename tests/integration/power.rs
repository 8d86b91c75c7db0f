//! Power cuts: volhost serves on a machine of its own, whose disk forgets what was not flushed.
//!
//! One recording of a disk under load is cut at many moments; a machine boots on what is left of each, and every promise
//! is looked at: each answered change is there, each file that was fsynced is whole, nothing is half-made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem::discriminant;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::http::{Client, Target};
use crate::harness::machine::Machine;
use crate::harness::network_disk::{Image, NetworkDisk, Recording};
use crate::harness::random::{Random, seed, setting};
use crate::harness::scratch;
use crate::harness::wait::{run, until};

/// How many callers there are, each with volumes of its own. One shell is left for what looks on.
const CALLERS: usize = 3;

const NAMES: u64 = 3;

const SERVE: &str = "
mount -t KIND -o OPTIONS /dev/vda /mnt || exit
mkdir -p /mnt/root/etc/volhost
cat >/mnt/root/etc/volhost/volhost.json <<'END'
{\"listen\": [\"http://0.0.0.0:7000\"], \"insecure\": true, \"spec\": null, \"hosts\": {\"anonymous\": {}}}
END
volhost serve --root /mnt/root >/tmp/out 2>/tmp/log </dev/null &
until grep -q ready /tmp/out || ! kill -0 $!; do sleep 0.1; done
cat /tmp/out
grep -q ready /tmp/out || cat /tmp/log
";

const VOLUMES: &str = "/mnt/root/var/lib/volhost/volumes";

/// One operation on a volume.
#[derive(Debug, Clone, PartialEq)]
enum Op {
    Create {
        mode: u64,
    },
    /// A file of this number is written and fsynced.
    Write(u64),
    Mount,
    Unmount,
    Remove,
    Restore,
}

/// An operation and the moments of the recording at which it was begun and had been answered.
#[derive(Debug)]
struct Done {
    volume: String,
    op: Op,
    begun: usize,
    answered: usize,
}

/// The state of a volume: absent, there or removed.
#[derive(Debug, Clone, Default, PartialEq)]
struct Volume {
    there: bool,
    removed: bool,
    mounted: bool,
    mode: u64,
    files: BTreeSet<u64>,
}

impl Volume {
    fn after(&self, op: &Op) -> Self {
        let mut volume = self.clone();
        match op {
            Op::Create { mode } => volume = Self { there: true, mode: *mode, ..Self::default() },
            Op::Write(file) => drop(volume.files.insert(*file)),
            Op::Mount => volume.mounted = true,
            Op::Unmount => volume.mounted = false,
            Op::Remove => (volume.there, volume.removed) = (false, true),
            Op::Restore => (volume.there, volume.removed) = (true, false),
        }
        volume
    }

    /// Returns an operation that may be done next.
    fn choose(&self, random: &mut Random) -> Op {
        if !self.there {
            let restore = self.removed && random.below(3) == 0;
            return if restore {
                Op::Restore
            } else {
                Op::Create { mode: random.pick(&[0o700, 0o750, 0o711]) }
            };
        }
        match random.below(6) {
            0 | 1 => Op::Write(random.below(1000)),
            2 if !self.mounted => Op::Remove,
            _ if self.mounted => Op::Unmount,
            _ => Op::Mount,
        }
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_answered_on_ext4() {
    cuts("ext4", "data=ordered");
}

#[test]
#[ignore = "tests/power runs it"]
fn a_power_cut_loses_nothing_that_was_answered_on_ext4_with_writeback() {
    cuts("ext4", "data=writeback");
}

#[test]
#[ignore = "tests/power runs it"]
fn a_power_cut_loses_nothing_that_was_answered_on_xfs() {
    cuts("xfs", "defaults");
}

#[test]
#[ignore = "tests/power runs it"]
fn a_power_cut_loses_nothing_that_was_answered_on_btrfs() {
    cuts("btrfs", "defaults");
}

/// Records a disk of that file system under load, and looks at what is left of it after some cuts.
fn cuts(kind: &str, options: &str) {
    let seed = seed("VOLHOST_POWER_SEED");
    eprintln!("VOLHOST_POWER_SEED={seed}");
    let load = Duration::from_secs(setting("VOLHOST_POWER_SECONDS").unwrap_or(15));
    let cuts = setting("VOLHOST_POWER_CUTS").unwrap_or(3);
    let serve = SERVE.replace("KIND", kind).replace("OPTIONS", options);
    let (recording, first, history) = record(image(kind), &serve, load, seed);
    eprintln!("{} events on the disk, {} operations", recording.len(), history.len());
    assert!(history.len() > 20, "the load was too small: {history:?}");
    let mut random = Random::new(seed);
    let mut answers = by_doubt(&history, &recording, &mut random).into_iter().cycle();
    for cut in 0..cuts {
        let (at, left, what) = if cut % 2 == 0 {
            let done = answers.next().unwrap();
            let what = format!("when {:?} of {} had been answered", done.op, done.volume);
            (done.answered, recording.cut_to_promise(done.answered), what)
        } else {
            let span = (recording.len() - first) as u64;
            let at = first + usize::try_from(random.below(span)).unwrap();
            (at, recording.cut(at, &mut random), "at any moment".to_owned())
        };
        let faults = faults(left, &serve, &history, at);
        assert!(
            faults.is_empty(),
            "VOLHOST_POWER_SEED={seed}, cut {cut} {what}, after {at} of {} events:\n{}",
            recording.len(),
            faults.join("\n")
        );
    }
}

/// Returns the operations in the order in which power is cut at the moment of their answers, where an answer that does not
/// wait for the disk is found out. The kinds of operation take turns, in each of which comes first what saw the fewest
/// flushes between its beginning and its answer: what saw none cannot be durable.
fn by_doubt<'a>(history: &'a [Done], recording: &Recording, random: &mut Random) -> Vec<&'a Done> {
    let mut sorted: Vec<_> = history
        .iter()
        .map(|done| (recording.flushes(done.begun..done.answered), random.next(), done))
        .collect();
    sorted.sort_by_key(|(flushes, chance, _)| (*flushes, *chance));
    let mut turns = HashMap::<_, usize>::new();
    let mut in_turns: Vec<_> = sorted
        .into_iter()
        .map(|(_, _, done)| {
            let turn = turns.entry(discriminant(&done.op)).or_default();
            *turn += 1;
            (*turn, done)
        })
        .collect();
    in_turns.sort_by_key(|(turn, _)| *turn);
    in_turns.into_iter().map(|(_, done)| done).collect()
}

/// Returns an empty file system.
fn image(kind: &str) -> Image {
    let dir = scratch();
    let file = dir.path().join("disk");
    std::fs::File::create(&file).unwrap().set_len(320 << 20).unwrap();
    let mut make = std::process::Command::new(format!("mkfs.{kind}"));
    make.arg("-q").arg(&file);
    run(&make).ok();
    Image::read_file(&file).unwrap()
}

/// Lets callers work on a machine until its power is cut. Returns the recording, the event at which the load began, and
/// what was done.
fn record(image: Image, serve: &str, load: Duration, seed: u64) -> (Recording, usize, Vec<Done>) {
    let disk = NetworkDisk::serve(image);
    let machine = Machine::boot(&disk);
    let said = machine.script(0, serve).unwrap();
    assert!(said.ends_with("ready"), "{said}");
    machine.script(0, "sync").unwrap();
    let first = disk.events();
    let history = Mutex::new(Vec::new());
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (disk, machine, history, over) = (&disk, &machine, &history, &over);
            scope.spawn(move || work(caller, disk, machine, history, over, seed));
        }
        std::thread::sleep(load);
        over.store(true, Ordering::Relaxed);
    });
    machine.cut();
    (disk.into_recording(), first, history.into_inner().unwrap())
}

fn work(
    caller: usize,
    disk: &NetworkDisk,
    machine: &Machine,
    history: &Mutex<Vec<Done>>,
    over: &AtomicBool,
    seed: u64,
) {
    let mut random = Random::new(seed ^ ((caller as u64 + 1) << 32));
    let mut volumes = vec![Volume::default(); usize::try_from(NAMES).unwrap()];
    let mut client = connect(machine.service());
    while !over.load(Ordering::Relaxed) {
        let number = usize::try_from(random.below(NAMES)).unwrap();
        let name = format!("v{caller}-{number}");
        let op = volumes[number].choose(&mut random);
        let begun = disk.events();
        carry_out(&op, &name, caller, &mut client, machine);
        let answered = disk.events();
        volumes[number] = volumes[number].after(&op);
        history.lock().unwrap().push(Done { volume: name, op, begun, answered });
    }
}

fn connect(address: SocketAddr) -> Client {
    until("the service on an emulated machine", Duration::from_secs(60), || {
        let mut client = Client::connect(&Target::Tcp(address)).ok()?;
        client.call("/Plugin.Activate", &json!({})).is_ok_and(|answer| answer.status == 200).then_some(client)
    })
}

fn carry_out(op: &Op, name: &str, caller: usize, client: &mut Client, machine: &Machine) {
    let mut call = |verb: &str, body: Value| {
        let answer = client.call(&format!("/VolumeDriver.{verb}"), &body).unwrap();
        assert_eq!(answer.status, 200, "{op:?} of {name}: {}", answer.err());
    };
    match op {
        Op::Create { mode } => call("Create", json!({"Name": name, "Opts": {"mode": format!("{mode:04o}")}})),
        Op::Mount => call("Mount", json!({"Name": name, "ID": "one"})),
        Op::Unmount => call("Unmount", json!({"Name": name, "ID": "one"})),
        Op::Remove => call("Remove", json!({"Name": name})),
        Op::Write(file) => {
            let script = format!(
                "yes {file} | dd of={VOLUMES}/{name}/{file} bs=1024 count=20 conv=fsync 2>/dev/null && echo whole"
            );
            assert_eq!(machine.script(caller, &script).as_deref(), Some("whole"), "{op:?} of {name}");
        }
        Op::Restore => {
            let script = format!("volhost --root /mnt/root volume restore {name}");
            assert_eq!(machine.script(caller, &script).as_deref(), Some(name), "{op:?}");
        }
    }
}

/// Boots on what a cut left, and returns each broken promise.
fn faults(left: Image, serve: &str, history: &[Done], at: usize) -> Vec<String> {
    let disk = NetworkDisk::serve(left);
    let machine = Machine::boot(&disk);
    let said = machine.script(0, serve).unwrap();
    if !said.ends_with("ready") {
        return vec![format!("it does not serve again:\n{said}")];
    }
    let ask = |words: &str| machine.script(0, &format!("volhost --root /mnt/root {words}")).unwrap();
    let mut faults = Vec::new();
    let checked = ask("check --catalog; echo $?");
    if checked.lines().next_back() != Some("0") {
        faults.push(format!("the catalog and the directories differ:\n{checked}"));
    }
    let half_made = machine.script(0, &format!("ls -A {VOLUMES}/.volhost/new 2>/dev/null")).unwrap();
    if !half_made.is_empty() {
        faults.push(format!("left half-made: {half_made}"));
    }
    let found = found(&machine, &ask, &mut faults);
    for (name, told) in expected(history, at) {
        let volume = found.get(&name).cloned().unwrap_or_default();
        if !told.iter().any(|told| agrees(told, &volume)) {
            faults.push(format!("{name} is {volume:?}, and may be one of {told:?}"));
        }
    }
    faults
}

/// Returns the volumes that a machine has. A directory that is not as its volume's options say is a fault.
fn found(
    machine: &Machine,
    ask: &impl Fn(&str) -> String,
    faults: &mut Vec<String>,
) -> BTreeMap<String, Volume> {
    let list = |words: &str| -> Vec<Value> { serde_json::from_str(&ask(words)).unwrap() };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = BTreeMap::<String, Volume>::new();
    for removed in list("volume ls --trash --json") {
        found.entry(text(&removed["name"])).or_default().removed = true;
    }
    for volume in list("volume ls --json") {
        let name = text(&volume["name"]);
        let mode = u64::from_str_radix(&text(&volume["options"]["mode"]), 8).unwrap_or_default();
        let mounted = volume["mounts"] != 0;
        let directory = format!("{VOLUMES}/{name}");
        // The sum of each file, to be compared with that of what was written to it.
        let script = format!(
            "stat -c %a {directory}; cd {directory} && for file in *; do [ -e $file ] && echo $file $(md5sum <$file) $(yes $file | dd bs=1024 count=20 2>/dev/null | md5sum); done"
        );
        let listed = machine.script(0, &script).unwrap();
        let mut lines = listed.lines();
        let of_directory = u64::from_str_radix(lines.next().unwrap_or_default(), 8).unwrap_or_default();
        let whole = lines.filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words.get(1) == words.get(3)).then(|| words[0].parse().unwrap())
        });
        let files = whole.collect();
        if mode != of_directory {
            faults.push(format!(
                "{name}: its options say mode {mode:o}, and its directory has {of_directory:o}"
            ));
        }
        found.insert(name, Volume { there: true, removed: false, mounted, mode, files });
    }
    found
}

/// Returns what each volume may be after a cut: what was answered holds, and one operation that was under way may.
fn expected(history: &[Done], at: usize) -> BTreeMap<String, Vec<Volume>> {
    let mut expected = BTreeMap::<String, Vec<Volume>>::new();
    for done in history.iter().filter(|done| done.begun <= at) {
        let told = expected.entry(done.volume.clone()).or_insert_with(|| vec![Volume::default()]);
        let before = told.pop().unwrap_or_default();
        let after = before.after(&done.op);
        // The last operation of a volume may be under way: an earlier one had been answered when it was begun.
        *told = if done.answered <= at { vec![after] } else { vec![before, after] };
    }
    expected
}

/// Returns true if a volume is as it is said to be. A file that nobody was told of may be there as well.
fn agrees(told: &Volume, found: &Volume) -> bool {
    if !told.there {
        return !found.there && (!told.removed || found.removed);
    }
    found.there
        && told.mode == found.mode
        && told.mounted == found.mounted
        && told.files.is_subset(&found.files)
}
