//! What was answered while the cluster was out of reach, Unmounts and Activates: a file on this machine, a line for each,
//! durable before it is answered.
//!
//! The file also says which instance this is: what it left in the cluster is found again by that. It is never read by
//! two processes at once, and no line is taken out before the cluster has it.
//!
//! An entry that the cluster takes in no form is set aside: its line stays, the others go on without it, and the next
//! start tries it again.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::error::OpenError;
use super::slots::Slot;
use crate::catalog::{Change, Meant};
use crate::files;
use crate::host::name::HostName;
use crate::volume::mounts::Activation;
use crate::volume::name::{MountId, VolumeName};

/// How many entries are kept at most: some thirty megabytes.
const MOST: usize = 100_000;

/// Something that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) host: HostName,
    pub(super) what: What,
    /// In which slot it was sent already, as which transactions, where it is not known what became of them.
    pub(super) sent: Option<(Slot, Vec<String>)>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// An Unmount, and what was known when it was answered.
    Unmount { volume: VolumeName, id: MountId, meant: Meant },
    /// That the host's engine was started.
    Activate,
}

impl Entry {
    pub(super) fn change(&self) -> Change {
        let host = self.host.clone();
        match self.what.clone() {
            What::Unmount { volume: name, id, meant } => {
                Change::Unmount { name, host, id, meant: Some(meant) }
            }
            What::Activate => Change::Activate(host),
        }
    }
}

/// The spool of an instance.
pub(super) struct Spool {
    path: PathBuf,
    /// Held until the process ends.
    _lock: File,
    kept: Mutex<Kept>,
    /// How many entries wait.
    waiting: watch::Sender<usize>,
}

struct Kept {
    file: File,
    /// The file's first line.
    head: Vec<u8>,
    /// How long the file is with the entries that are durable.
    length: u64,
    next: u64,
    waiting: VecDeque<(u64, Entry)>,
    /// Those that were set aside.
    aside: Vec<(u64, Entry)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    volhost: String,
    v: u64,
    instance: Uuid,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    n: u64,
    host: String,
    /// None for an Activate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unmount: Option<UnmountLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<SentLine>,
    /// Whether it was set aside.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    aside: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnmountLine {
    volume: String,
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    activation: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SentLine {
    slot: usize,
    revision: i64,
    numbers: Vec<String>,
}

impl Spool {
    /// Opens the spool in a directory, which is made where it is missing; beside it which instance this is.
    pub(super) fn open(dir: &Path, prefix: &str) -> Result<(Self, Uuid), OpenError> {
        let path = dir.join(format!("{}.jsonl", prefix.replace('/', "_")));
        let failed = |path: &Path, doing| {
            let path = path.to_path_buf();
            move |source| OpenError::Spool { path, doing, source }
        };
        files::make_dir(dir).map_err(failed(dir, "made"))?;
        let lock_path = path.with_extension("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed(&lock_path, "opened"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked { path: lock_path }),
            Err(TryLockError::Error(source)) => return Err(failed(&lock_path, "locked")(source)),
        }
        if files::read(&path).map_err(failed(&path, "read"))?.is_none_or(|text| text.is_empty()) {
            let head = Head { volhost: "spool".into(), v: 1, instance: Uuid::new_v4() };
            let text =
                serde_json::to_string(&head).map_err(io::Error::other).map_err(failed(&path, "written"))?;
            files::replace(&path, format!("{text}\n").as_bytes(), 0o600).map_err(failed(&path, "written"))?;
        }
        let text = files::read(&path).map_err(failed(&path, "read"))?.unwrap_or_default();
        let Read { head, instance, waiting, aside, next, length } = read(&path, &text)?;
        let file = append_to(&path).map_err(failed(&path, "opened"))?;
        // A line that was cut off was not answered.
        file.set_len(length).and_then(|()| file.sync_data()).map_err(failed(&path, "written"))?;
        let count = watch::Sender::new(waiting.len());
        let kept = Mutex::new(Kept { file, head, length, next, waiting, aside });
        Ok((Self { path, _lock: lock, kept, waiting: count }, instance))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps an entry, durably.
    pub(super) fn keep(&self, entry: Entry) -> io::Result<()> {
        let mut kept = self.kept();
        if kept.waiting.len() + kept.aside.len() >= MOST {
            return Err(io::Error::other(format!("it holds {MOST} already")));
        }
        let number = kept.next;
        let line = line(number, &entry, false)?;
        let before = kept.length;
        let written = kept.file.write_all(line.as_bytes()).and_then(|()| kept.file.sync_data());
        if let Err(error) = written {
            // Nothing of it may be found by the next start: it is answered with an error.
            kept.file.set_len(before)?;
            kept.file.sync_data()?;
            return Err(error);
        }
        kept.length += line.len() as u64;
        kept.next += 1;
        kept.waiting.push_back((number, entry));
        self.waiting.send_replace(kept.waiting.len());
        Ok(())
    }

    /// The oldest entry, with its number.
    pub(super) fn first(&self) -> Option<(u64, Entry)> {
        self.kept().waiting.front().cloned()
    }

    /// How many entries wait. Nothing waits for those that were set aside.
    pub(super) fn len(&self) -> usize {
        self.kept().waiting.len()
    }

    /// Waits for an entry.
    pub(super) async fn more(&self) {
        // The sender lives as long as `self`.
        let _ = self.waiting.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Waits until there is no entry.
    pub(super) async fn emptied(&self) {
        // The sender lives as long as `self`.
        let _ = self.waiting.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits until it is recorded that a host's engine was started.
    pub(super) async fn started(&self, host: &HostName) {
        let mut waiting = self.waiting.subscribe();
        let is = |entry: &Entry| entry.what == What::Activate && entry.host == *host;
        while self.kept().waiting.iter().any(|(_, entry)| is(entry)) {
            // The sender lives as long as `self`.
            let _ = waiting.changed().await;
        }
    }

    /// The cluster has all entries up to this number, but those that were set aside.
    pub(super) fn done(&self, number: u64) {
        let mut kept = self.kept();
        kept.pass(number);
        if kept.waiting.is_empty() && kept.length > kept.head.len() as u64 {
            // Where that fails, the next start finds entries that the cluster has, and passes over them.
            let emptied = if kept.aside.is_empty() {
                let head = kept.head.len() as u64;
                kept.file.set_len(head).and_then(|()| kept.file.sync_data()).map(|()| kept.length = head)
            } else {
                kept.rewrite(&self.path)
            };
            if let Err(error) = emptied {
                log::warn!("{} cannot be emptied: {error}", self.path.display());
            }
        }
        self.waiting.send_replace(kept.waiting.len());
    }

    /// Sets an entry aside, durably. Nothing that was sent of it may take effect any more.
    pub(super) fn set_aside(&self, number: u64) -> io::Result<()> {
        let mut kept = self.kept();
        let Some(at) = kept.waiting.iter().position(|(of, _)| *of == number) else { return Ok(()) };
        let Some((_, entry)) = kept.waiting.remove(at) else { return Ok(()) };
        kept.aside.push((number, Entry { sent: None, ..entry.clone() }));
        let written = kept.rewrite(&self.path);
        if written.is_err() {
            kept.aside.pop();
            kept.waiting.insert(at, (number, entry));
        }
        self.waiting.send_replace(kept.waiting.len());
        written
    }

    /// Takes out, durably, what took effect before the process before this one ended: all up to this number, and what
    /// the slots tell. To be told before these are written: afterwards nothing tells it any more. What was set aside
    /// waits again, behind all others.
    pub(super) fn pass_over(&self, number: u64, slots: &HashMap<usize, String>) -> Result<(), OpenError> {
        let mut kept = self.kept();
        let before = kept.waiting.len();
        kept.pass(number);
        kept.waiting.retain(|(_, entry)| {
            !entry.sent.as_ref().is_some_and(|(slot, numbers)| {
                slots.get(&slot.number).is_some_and(|number| numbers.contains(number))
            })
        });
        let changed = kept.waiting.len() < before || !kept.aside.is_empty();
        for (_, entry) in std::mem::take(&mut kept.aside) {
            let number = kept.next;
            kept.next += 1;
            kept.waiting.push_back((number, entry));
        }
        let written = if changed { kept.rewrite(&self.path) } else { Ok(()) };
        self.waiting.send_replace(kept.waiting.len());
        written.map_err(|source| OpenError::Spool { path: self.path.clone(), doing: "written", source })
    }

    /// Nothing that was sent before this process began takes effect from now on: all slots were written since.
    pub(super) fn forget_slots(&self) {
        // The file may tell of them still: no slot will ever hold their numbers again.
        for (_, entry) in &mut self.kept().waiting {
            entry.sent = None;
        }
    }

    /// Has nothing written to it any more.
    #[cfg(test)]
    pub(super) fn fill(&self) {
        self.kept().file = append_to(Path::new("/dev/full")).unwrap();
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // It is whole after every statement under this lock.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// The cluster has all entries up to this number, but those that were set aside.
    fn pass(&mut self, number: u64) {
        self.waiting.retain(|(of, _)| *of > number);
        self.next = self.next.max(number + 1);
    }

    /// Has the file hold what is in memory, or what it held.
    fn rewrite(&mut self, path: &Path) -> io::Result<()> {
        let mut text = self.head.clone();
        for (number, entry) in &self.aside {
            text.extend(line(*number, entry, true)?.into_bytes());
        }
        for (number, entry) in &self.waiting {
            text.extend(line(*number, entry, false)?.into_bytes());
        }
        files::replace(path, &text, 0o600)?;
        self.file = append_to(path)?;
        self.length = text.len() as u64;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

fn line(n: u64, entry: &Entry, aside: bool) -> io::Result<String> {
    let Entry { host, what, sent } = entry;
    let unmount = match what {
        What::Unmount { volume, id, meant: Meant { volume: of, activation } } => Some(UnmountLine {
            volume: volume.to_string(),
            id: id.to_string(),
            of: of.map(|of| of.to_string()),
            activation: activation.0,
        }),
        What::Activate => None,
    };
    let sent = sent.as_ref().map(|(Slot { number, revision }, numbers)| SentLine {
        slot: *number,
        revision: *revision,
        numbers: numbers.clone(),
    });
    let line = Line { n, host: host.to_string(), unmount, sent, aside };
    Ok(serde_json::to_string(&line).map_err(io::Error::other)? + "\n")
}

/// What the file holds.
struct Read {
    head: Vec<u8>,
    instance: Uuid,
    waiting: VecDeque<(u64, Entry)>,
    aside: Vec<(u64, Entry)>,
    next: u64,
    /// How long all whole lines are.
    length: u64,
}

fn read(path: &Path, text: &[u8]) -> Result<Read, OpenError> {
    let fault = |line: usize, fault: String| OpenError::SpoolText { path: path.into(), line, fault };
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let first = lines.next().unwrap_or_default();
    let head: Head = serde_json::from_slice(first).map_err(|error| fault(1, error.to_string()))?;
    if head.volhost != "spool" || head.v != 1 {
        return Err(fault(1, format!("it is no spool of version 1, but {} {}", head.volhost, head.v)));
    }
    let (mut waiting, mut aside, mut next) = (VecDeque::new(), Vec::new(), 1);
    let mut length = first.len() as u64;
    for (at, line) in lines.enumerate() {
        let (number, entry, is_aside) = entry(line).map_err(|what| fault(at + 2, what))?;
        if is_aside {
            aside.push((number, entry));
        } else {
            waiting.push_back((number, entry));
        }
        next = next.max(number + 1);
        length += line.len() as u64;
    }
    Ok(Read { head: first.into(), instance: head.instance, waiting, aside, next, length })
}

/// An entry with its number, and whether it was set aside.
fn entry(line: &[u8]) -> Result<(u64, Entry, bool), String> {
    let Line { n, host, unmount, sent, aside } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let what = match unmount {
        Some(UnmountLine { volume, id, of, activation }) => What::Unmount {
            volume: VolumeName::parse(&volume).map_err(|error| error.to_string())?,
            id: MountId::parse(&id).map_err(|error| error.to_string())?,
            meant: Meant {
                volume: of.map(|of| of.parse()).transpose().map_err(|error| format!("of: {error}"))?,
                activation: Activation(activation),
            },
        },
        None => What::Activate,
    };
    let host = HostName::parse_or_anonymous(&host).map_err(|error| error.to_string())?;
    let sent = sent.map(|SentLine { slot: number, revision, numbers }| (Slot { number, revision }, numbers));
    Ok((n, Entry { host, what, sent }, aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry_of(id: &str) -> Entry {
        Entry {
            host: HostName::parse("web1").unwrap(),
            what: What::Unmount {
                volume: VolumeName::parse("db").unwrap(),
                id: MountId::parse(id).unwrap(),
                meant: Meant { volume: None, activation: Activation(3) },
            },
            sent: Some((Slot { number: 7, revision: 99 }, vec!["a.1".into()])),
        }
    }

    #[test]
    fn what_was_kept_is_found_again_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, me) = Spool::open(dir.path(), "store/volhost").unwrap();
        assert!(matches!(Spool::open(dir.path(), "store/volhost"), Err(OpenError::Locked { .. })));
        spool.keep(entry_of("x")).unwrap();
        spool.keep(entry_of("y")).unwrap();
        drop(spool);
        let path = dir.path().join("store_volhost.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&*whole, br#"{"n":3,"volu"#].concat()).unwrap();

        let (spool, same) = Spool::open(dir.path(), "store/volhost").unwrap();
        assert_eq!((me, spool.len()), (same, 2));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(spool.first(), Some((1, entry_of("x"))));
        spool.done(1);
        assert_eq!(spool.first(), Some((2, entry_of("y"))));
        spool.keep(Entry { what: What::Activate, ..entry_of("z") }).unwrap();
        spool.done(2);
        assert!(
            matches!(spool.first().unwrap().1.change(), Change::Activate(host) if host.as_str() == "web1")
        );
        spool.done(3);
        assert_eq!(spool.len(), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "the entries are gone");
        spool.keep(entry_of("z")).unwrap();
        assert_eq!(spool.first().unwrap().0, 4, "a number is used once");
    }

    #[test]
    fn what_took_effect_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, _) = Spool::open(dir.path(), "volhost").unwrap();
        spool.keep(entry_of("x")).unwrap();
        spool.keep(Entry { sent: None, ..entry_of("y") }).unwrap();
        spool.pass_over(0, &HashMap::from([(7, "b.1".into()), (8, "a.1".into())])).unwrap();
        assert_eq!(spool.len(), 2);
        drop(spool);
        let (spool, _) = Spool::open(dir.path(), "volhost").unwrap();
        spool.pass_over(0, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(spool.first(), Some((2, Entry { sent: None, ..entry_of("y") })));
        drop(spool);
        // The slots hold something else by then.
        let (spool, _) = Spool::open(dir.path(), "volhost").unwrap();
        spool.pass_over(0, &HashMap::from([(7, "c.0".into())])).unwrap();
        assert_eq!((spool.len(), spool.first().unwrap().0), (1, 2));
        spool.keep(entry_of("z")).unwrap();
        spool.forget_slots();
        assert_eq!(spool.first(), Some((2, Entry { sent: None, ..entry_of("y") })));
        drop(spool);
        let (spool, _) = Spool::open(dir.path(), "volhost").unwrap();
        spool.pass_over(2, &HashMap::new()).unwrap();
        assert_eq!((spool.len(), spool.first()), (1, Some((3, entry_of("z")))));
    }

    #[test]
    fn what_was_set_aside_waits_again_after_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (spool, me) = Spool::open(dir.path(), "volhost").unwrap();
        for id in ["x", "y", "z"] {
            spool.keep(entry_of(id)).unwrap();
        }
        let path = dir.path().join("volhost.jsonl");
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count() - 1;
        spool.set_aside(1).unwrap();
        assert_eq!((spool.len(), spool.first().unwrap().0, lines()), (2, 2, 3));
        spool.keep(entry_of("v")).unwrap();
        spool.done(3);
        assert_eq!((spool.first().unwrap().0, lines()), (4, 4));
        spool.done(4);
        assert_eq!((spool.first(), lines()), (None, 1));
        drop(spool);
        let (spool, same) = Spool::open(dir.path(), "volhost").unwrap();
        assert_eq!((same, spool.len()), (me, 0));
        // It is none of those that the cluster has, and what was in its slot was found out before.
        spool.pass_over(4, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(spool.first(), Some((5, Entry { sent: None, ..entry_of("x") })));
        spool.set_aside(5).unwrap();
        assert_eq!((spool.first(), lines()), (None, 1));
    }

    #[test]
    fn what_is_not_understood_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volhost.jsonl");
        for (text, expected) in [
            ("x\n", "at line 1"),
            (
                "{\"volhost\":\"spool\",\"v\":2,\"instance\":\"6f2b0e0e-8c4b-4b57-9a50-0d8f4e6f0001\"}\n",
                "version 1",
            ),
            (
                "{\"volhost\":\"spool\",\"v\":1,\"instance\":\"6f2b0e0e-8c4b-4b57-9a50-0d8f4e6f0001\"}\n{\"n\":1}\n",
                "at line 2",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let Err(error) = Spool::open(dir.path(), "volhost") else { panic!("{text} was taken") };
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
