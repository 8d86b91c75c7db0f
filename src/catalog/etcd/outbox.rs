//! What was answered while the cluster was out of reach, Unmounts and Activates: a file on this machine, a line for each,
//! durable before it is answered.
//!
//! The file also says which instance this is: what it left in the cluster is found again by that. It is never read by
//! two processes at once, and no line is taken out before the cluster has it.
//!
//! An entry that the cluster takes in no form is set aside: its line stays, the others go on without it, and the next
//! start tries it again.
//!
//! Looking never waits for the disk; what changes the file does, and is called through [`Outbox::with_disk`] where others
//! run on the same thread.

use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use super::error::OpenError;
use super::txn::Slot;
use crate::catalog::{Change, UnmountTarget};
use crate::files;
use crate::model::host::HostName;
use crate::model::mounts::Activation;
use crate::model::volume::{MountId, VolumeName};

/// How many entries are kept at most: some thirty megabytes.
const MOST: usize = 100_000;

/// Something that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) host: HostName,
    pub(super) what: Answered,
    /// In which slot it was sent already, as which transactions, where it is not known what became of them.
    pub(super) sent: Option<(Slot, Vec<String>)>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// An Unmount, and what was known when it was answered.
    Unmount { volume: VolumeName, id: MountId, target: UnmountTarget },
    /// That the host's engine was started.
    Activate,
}

impl Entry {
    pub(super) fn change(&self) -> Change {
        let host = self.host.clone();
        match self.what.clone() {
            Answered::Unmount { volume: name, id, target } => {
                Change::Unmount { name, host, id, target: Some(target) }
            }
            Answered::Activate => Change::Activate(host),
        }
    }
}

/// The spool of an instance.
pub(super) struct Outbox {
    path: PathBuf,
    /// Held until the process ends.
    lock: File,
    /// Held while the disk works, by one at a time, and taken before `entries`.
    file: Mutex<OutboxFile>,
    /// What the file holds. Never held while the disk works.
    entries: Mutex<Entries>,
    /// How many entries wait.
    waiting: watch::Sender<usize>,
    /// Held by who waits for `file` on a thread of its own: one thread is enough for a disk that hangs.
    turn: Arc<tokio::sync::Mutex<()>>,
}

pub(super) struct OutboxFile {
    file: File,
    /// The file's first line.
    head: Vec<u8>,
    /// How long the file is with the entries that are durable.
    length: u64,
}

#[derive(Clone)]
struct Entries {
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

impl Outbox {
    /// Opens the spool in a directory, which is made where it is missing; beside it which instance this is.
    pub(super) fn open(dir: &Path, prefix: &str) -> Result<(Self, Uuid), OpenError> {
        let path = dir.join(format!("{}.jsonl", file_name(prefix)));
        let failed = |doing| {
            let path = path.clone();
            move |source| OpenError::Outbox { path, doing, source }
        };
        files::make_dir(dir, 0o700).map_err(|source| OpenError::Outbox {
            path: dir.into(),
            doing: "made",
            source,
        })?;
        let lock = lock(&path)?;
        take_over(&dir.join(format!("{}.jsonl", prefix.replace('/', "_"))), &path)?;
        if files::read(&path).map_err(failed("read"))?.is_none_or(|text| text.is_empty()) {
            let head = Head { volhost: "spool".into(), v: 1, instance: Uuid::new_v4() };
            let text = serde_json::to_string(&head).map_err(io::Error::other).map_err(failed("written"))?;
            files::replace(&path, format!("{text}\n").as_bytes(), 0o600).map_err(failed("written"))?;
        }
        let text = files::read(&path).map_err(failed("read"))?.unwrap_or_default();
        let Read { head, instance, waiting, aside, next, length } = read(&path, &text)?;
        let mut file = OutboxFile { file: open_to_write(&path).map_err(failed("opened"))?, head, length };
        // A line that was cut off was not answered.
        file.cut_off().map_err(failed("written"))?;
        let outbox = Self {
            path,
            lock,
            waiting: watch::Sender::new(waiting.len()),
            file: Mutex::new(file),
            entries: Mutex::new(Entries { next, waiting, aside }),
            turn: Arc::default(),
        };
        Ok((outbox, instance))
    }

    /// What this process has locked, told from every other file of any machine until that is started again. Unknown
    /// where the system does not tell.
    pub(super) fn lock_identity(&self) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let file = self.lock.metadata().ok()?;
        Some(format!("{} {} {}", boot.trim(), file.dev(), file.ino()))
    }

    /// Does what changes the file on a thread that may wait for the disk.
    pub(super) async fn with_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let outbox = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&outbox);
            drop(turn);
            done
        });
        // It is not begun any more where the catalog is closed.
        done.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps an entry, durably.
    pub(super) fn keep(&self, entry: Entry) -> io::Result<()> {
        let mut file = self.file();
        let number = {
            let entries = self.entries();
            if entries.waiting.len() + entries.aside.len() >= MOST {
                return Err(io::Error::other(format!("it holds {MOST} already")));
            }
            entries.next
        };
        file.append(line(number, &entry, false)?.as_bytes())?;
        let mut entries = self.entries();
        entries.next = number + 1;
        entries.waiting.push_back((number, entry));
        self.tell(&entries);
        Ok(())
    }

    /// Has the file hold no more than the entries. What could not be kept, and not be cut off again, would be found by the
    /// next start.
    pub(super) fn cut_off(&self) -> io::Result<()> {
        self.file().cut_off()
    }

    /// The oldest entry, with its number.
    pub(super) fn first(&self) -> Option<(u64, Entry)> {
        self.entries().waiting.front().cloned()
    }

    /// How many entries wait. Nothing waits for those that were set aside.
    pub(super) fn len(&self) -> usize {
        *self.waiting.borrow()
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
        let is = |entry: &Entry| entry.what == Answered::Activate && entry.host == *host;
        while self.entries().waiting.iter().any(|(_, entry)| is(entry)) {
            // The sender lives as long as `self`.
            let _ = waiting.changed().await;
        }
    }

    /// The cluster has all entries up to this number, but those that were set aside.
    pub(super) fn done(&self, number: u64) {
        let mut entries = self.entries();
        entries.pass(number);
        self.tell(&entries);
    }

    /// Takes the lines of all entries out, if none waits. Where that fails, the next start finds entries that the cluster
    /// has, and passes over them.
    pub(super) fn empty(&self) -> io::Result<()> {
        let mut file = self.file();
        let entries = {
            let entries = self.entries();
            if !entries.waiting.is_empty() || file.length <= file.head.len() as u64 {
                return Ok(());
            }
            entries.clone()
        };
        if entries.aside.is_empty() { file.empty() } else { file.rewrite(&self.path, &entries) }
    }

    /// Sets an entry aside, durably. Nothing that was sent of it may take effect any more.
    pub(super) fn set_aside(&self, number: u64) -> io::Result<()> {
        let mut file = self.file();
        let mut entries = self.entries().clone();
        let Some(at) = entries.waiting.iter().position(|(of, _)| *of == number) else { return Ok(()) };
        let Some((_, entry)) = entries.waiting.remove(at) else { return Ok(()) };
        entries.aside.push((number, Entry { sent: None, ..entry }));
        file.rewrite(&self.path, &entries)?;
        self.put(entries);
        Ok(())
    }

    /// Takes out, durably, what took effect before the process before this one ended: all up to this number, and what
    /// the slots tell. To be told before these are written: afterwards nothing tells it any more. What was set aside
    /// waits again, behind all others.
    pub(super) fn pass_over(&self, number: u64, slots: &HashMap<usize, String>) -> Result<(), OpenError> {
        let mut file = self.file();
        let mut entries = self.entries().clone();
        let before = entries.waiting.len();
        entries.pass(number);
        entries.waiting.retain(|(_, entry)| {
            !entry.sent.as_ref().is_some_and(|(slot, numbers)| {
                slots.get(&slot.number).is_some_and(|number| numbers.contains(number))
            })
        });
        let changed = entries.waiting.len() < before || !entries.aside.is_empty();
        for (_, entry) in std::mem::take(&mut entries.aside) {
            let number = entries.next;
            entries.next += 1;
            entries.waiting.push_back((number, entry));
        }
        if changed {
            file.rewrite(&self.path, &entries).map_err(|source| OpenError::Outbox {
                path: self.path.clone(),
                doing: "written",
                source,
            })?;
        }
        self.put(entries);
        Ok(())
    }

    /// Nothing that was sent before this process began takes effect from now on: all slots were written since.
    pub(super) fn forget_slots(&self) {
        // The file may tell of them still: no slot will ever hold their numbers again.
        for (_, entry) in &mut self.entries().waiting {
            entry.sent = None;
        }
    }

    /// Holds up what is written to it, as a disk that hangs does, until this is dropped.
    #[cfg(test)]
    pub(super) fn hang(&self) -> MutexGuard<'_, OutboxFile> {
        self.file()
    }

    /// Has nothing written to it any more.
    #[cfg(test)]
    pub(super) fn fill(&self) {
        self.file().file = open_to_write(Path::new("/dev/full")).unwrap();
    }

    fn file(&self) -> MutexGuard<'_, OutboxFile> {
        // What it says of the file is true after every statement under this lock.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // They are whole after every statement under this lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other entries in the place of those that were. The caller holds `file`, so that none came meanwhile.
    fn put(&self, new: Entries) {
        let mut entries = self.entries();
        *entries = new;
        self.tell(&entries);
    }

    fn tell(&self, entries: &Entries) {
        self.waiting.send_replace(entries.waiting.len());
    }
}

impl Entries {
    /// The cluster has all entries up to this number, but those that were set aside.
    fn pass(&mut self, number: u64) {
        // The oldest are in front.
        while self.waiting.front().is_some_and(|(of, _)| *of <= number) {
            self.waiting.pop_front();
        }
        self.next = self.next.max(number + 1);
    }
}

impl OutboxFile {
    /// Writes a line behind the others, durably, or nothing.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        // What a write left that failed, and could not be cut off then, would spoil this line, too.
        self.cut_off()?;
        let written = self.file.write_all_at(line, self.length).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Nothing of it may be found by the next start: it is answered with an error. Where this fails, it is done
            // before the next line.
            let _ = self.cut_off();
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Cuts off what stands behind the entries.
    fn cut_off(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() == self.length {
            return Ok(());
        }
        self.file.set_len(self.length)?;
        self.file.sync_data()
    }

    /// Takes all entries out, durably.
    fn empty(&mut self) -> io::Result<()> {
        let head = self.head.len() as u64;
        self.file.set_len(head)?;
        self.length = head;
        self.file.sync_data()
    }

    /// Has the file hold these entries, or what it held.
    fn rewrite(&mut self, path: &Path, entries: &Entries) -> io::Result<()> {
        let mut text = self.head.clone();
        for (number, entry) in &entries.aside {
            text.extend(line(*number, entry, true)?.into_bytes());
        }
        for (number, entry) in &entries.waiting {
            text.extend(line(*number, entry, false)?.into_bytes());
        }
        files::replace(path, &text, 0o600)?;
        self.file = open_to_write(path)?;
        self.length = text.len() as u64;
        Ok(())
    }
}

/// The file's name for a prefix, without its extension: another one for each. A prefix takes no `%`.
fn file_name(prefix: &str) -> String {
    prefix.replace('_', "%5F").replace('/', "%2F")
}

/// Takes the only right to a spool, until the file is closed.
fn lock(outbox: &Path) -> Result<File, OpenError> {
    let path = outbox.with_extension("lock");
    let failed = |doing| {
        let path = path.clone();
        move |source| OpenError::Outbox { path, doing, source }
    };
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = options.open(&path).map_err(failed("opened"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { path }),
        Err(TryLockError::Error(source)) => Err(failed("locked")(source)),
    }
}

/// Takes the spool over that an older volhost has kept under another name, which several prefixes had in common: it is
/// that of the first one that is served again.
fn take_over(before: &Path, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Outbox { path: before.into(), doing: "renamed", source };
    if before == path || path.try_exists().map_err(failed)? || !before.try_exists().map_err(failed)? {
        return Ok(());
    }
    // That one may run still.
    let _lock = lock(before)?;
    files::rename(before, path).map_err(failed)?;
    // Nobody waits for it: whoever finds it held gives up.
    let _ = std::fs::remove_file(before.with_extension("lock"));
    log::info!("{} is {} from now on", before.display(), path.display());
    Ok(())
}

fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn line(n: u64, entry: &Entry, aside: bool) -> io::Result<String> {
    let Entry { host, what, sent } = entry;
    let unmount = match what {
        Answered::Unmount { volume, id, target: UnmountTarget { volume: of, activation } } => {
            Some(UnmountLine {
                volume: volume.to_string(),
                id: id.to_string(),
                of: of.map(|of| of.to_string()),
                activation: activation.0,
            })
        }
        Answered::Activate => None,
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
    let fault = |line: usize, fault: String| OpenError::OutboxText { path: path.into(), line, fault };
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let first = lines.next().unwrap_or_default();
    let head: Head = serde_json::from_slice(first).map_err(|error| fault(1, error.to_string()))?;
    if head.volhost != "spool" || head.v != 1 {
        return Err(fault(1, format!("it is no spool of version 1, but {} {}", head.volhost, head.v)));
    }
    let (mut waiting, mut aside, mut next) = (VecDeque::new(), Vec::new(), 1);
    let mut length = first.len() as u64;
    let mut lines = lines.enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        // After a loss of power the file may be as long as it was to be without what it was to hold. That is so of the last
        // line alone, which was not answered: all others were durable before it was begun.
        if line.contains(&0) && lines.peek().is_none() {
            log::warn!(
                "{}: line {} was not written whole, and not answered: it is left out",
                path.display(),
                at + 2
            );
            break;
        }
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
        Some(UnmountLine { volume, id, of, activation }) => Answered::Unmount {
            volume: VolumeName::parse(&volume).map_err(|error| error.to_string())?,
            id: MountId::parse(&id).map_err(|error| error.to_string())?,
            target: UnmountTarget {
                volume: of.map(|of| of.parse()).transpose().map_err(|error| format!("of: {error}"))?,
                activation: Activation(activation),
            },
        },
        None => Answered::Activate,
    };
    let host = HostName::parse_or_anonymous(&host).map_err(|error| error.to_string())?;
    let sent = sent.map(|SentLine { slot: number, revision, numbers }| (Slot { number, revision }, numbers));
    Ok((n, Entry { host, what, sent }, aside))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn entry_of(id: &str) -> Entry {
        Entry {
            host: HostName::parse("web1").unwrap(),
            what: Answered::Unmount {
                volume: VolumeName::parse("db").unwrap(),
                id: MountId::parse(id).unwrap(),
                target: UnmountTarget { volume: None, activation: Activation(3) },
            },
            sent: Some((Slot { number: 7, revision: 99 }, vec!["a.1".into()])),
        }
    }

    #[test]
    fn what_was_kept_is_found_again_and_what_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, me) = Outbox::open(dir.path(), "store/volhost").unwrap();
        assert!(matches!(Outbox::open(dir.path(), "store/volhost"), Err(OpenError::Locked { .. })));
        outbox.keep(entry_of("x")).unwrap();
        outbox.keep(entry_of("y")).unwrap();
        drop(outbox);
        let path = dir.path().join("store%2Fvolhost.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&*whole, br#"{"n":3,"volu"#].concat()).unwrap();

        let (outbox, same) = Outbox::open(dir.path(), "store/volhost").unwrap();
        assert_eq!((me, outbox.len()), (same, 2));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(outbox.first(), Some((1, entry_of("x"))));
        outbox.done(1);
        assert_eq!(outbox.first(), Some((2, entry_of("y"))));
        outbox.keep(Entry { what: Answered::Activate, ..entry_of("z") }).unwrap();
        outbox.done(2);
        assert!(
            matches!(outbox.first().unwrap().1.change(), Change::Activate(host) if host.as_str() == "web1")
        );
        outbox.done(3);
        outbox.empty().unwrap();
        assert_eq!(outbox.len(), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "the entries are gone");
        outbox.keep(entry_of("z")).unwrap();
        assert_eq!(outbox.first().unwrap().0, 4, "a number is used once");
    }

    #[test]
    fn what_took_effect_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(entry_of("x")).unwrap();
        outbox.keep(Entry { sent: None, ..entry_of("y") }).unwrap();
        outbox.pass_over(0, &HashMap::from([(7, "b.1".into()), (8, "a.1".into())])).unwrap();
        assert_eq!(outbox.len(), 2);
        drop(outbox);
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.pass_over(0, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(outbox.first(), Some((2, Entry { sent: None, ..entry_of("y") })));
        drop(outbox);
        // The slots hold something else by then.
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.pass_over(0, &HashMap::from([(7, "c.0".into())])).unwrap();
        assert_eq!((outbox.len(), outbox.first().unwrap().0), (1, 2));
        outbox.keep(entry_of("z")).unwrap();
        outbox.forget_slots();
        assert_eq!(outbox.first(), Some((2, Entry { sent: None, ..entry_of("y") })));
        drop(outbox);
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.pass_over(2, &HashMap::new()).unwrap();
        assert_eq!((outbox.len(), outbox.first()), (1, Some((3, entry_of("z")))));
    }

    #[test]
    fn what_was_set_aside_waits_again_after_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, me) = Outbox::open(dir.path(), "volhost").unwrap();
        for id in ["x", "y", "z"] {
            outbox.keep(entry_of(id)).unwrap();
        }
        let path = dir.path().join("volhost.jsonl");
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count() - 1;
        outbox.set_aside(1).unwrap();
        assert_eq!((outbox.len(), outbox.first().unwrap().0, lines()), (2, 2, 3));
        outbox.keep(entry_of("v")).unwrap();
        outbox.done(3);
        outbox.empty().unwrap();
        assert_eq!((outbox.first().unwrap().0, lines()), (4, 4));
        outbox.done(4);
        outbox.empty().unwrap();
        assert_eq!((outbox.first(), lines()), (None, 1));
        drop(outbox);
        let (outbox, same) = Outbox::open(dir.path(), "volhost").unwrap();
        assert_eq!((same, outbox.len()), (me, 0));
        // It is none of those that the cluster has, and what was in its slot was found out before.
        outbox.pass_over(4, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(outbox.first(), Some((5, Entry { sent: None, ..entry_of("x") })));
        outbox.set_aside(5).unwrap();
        assert_eq!((outbox.first(), lines()), (None, 1));
    }

    #[test]
    fn what_a_failed_write_left_is_gone_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(entry_of("x")).unwrap();
        // What the disk took of a line before it was full, and could not cut off again.
        let path = dir.path().join("volhost.jsonl");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"n":2,"host":"we"#).unwrap();
        outbox.keep(entry_of("y")).unwrap();
        drop(outbox);
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        assert_eq!(outbox.first(), Some((1, entry_of("x"))));
        outbox.done(1);
        assert_eq!(outbox.first(), Some((2, entry_of("y"))));
    }

    #[test]
    fn a_last_line_whose_beginning_never_reached_the_disk_was_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(entry_of("x")).unwrap();
        drop(outbox);
        let path = dir.path().join("volhost.jsonl");
        let whole = std::fs::read(&path).unwrap();
        let torn = [&[0; 100][..], b"\"activation\":3}}\n"].concat();
        std::fs::write(&path, [&*whole, &torn].concat()).unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        assert_eq!((outbox.len(), std::fs::read(&path).unwrap()), (1, whole.clone()));
        drop(outbox);
        // In front of what was answered later nothing is torn: that is something else.
        let entry = whole.split_inclusive(|byte| *byte == b'\n').nth(1).unwrap();
        std::fs::write(&path, [&*whole, &torn, entry].concat()).unwrap();
        let Err(error) = Outbox::open(dir.path(), "volhost") else { panic!("it was taken") };
        assert!(error.to_string().contains("at line 3"), "{error}");
    }

    #[test]
    fn no_two_prefixes_share_a_spool() {
        let dir = tempfile::tempdir().unwrap();
        let prefixes = ["a/b", "a_b", "a.b", "a/b_c", "a_b/c", "a.b_c"];
        let spools = prefixes.map(|prefix| Outbox::open(dir.path(), prefix).unwrap());
        let instances: std::collections::HashSet<_> = spools.iter().map(|(_, me)| *me).collect();
        assert_eq!(instances.len(), prefixes.len());
    }

    #[test]
    fn the_spool_of_a_volhost_of_before_is_found_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, me) = Outbox::open(dir.path(), "x").unwrap();
        outbox.keep(entry_of("x")).unwrap();
        drop(outbox);
        let old = dir.path().join("a_b.jsonl");
        std::fs::rename(dir.path().join("x.jsonl"), &old).unwrap();
        // That one still runs.
        let running = File::create(old.with_extension("lock")).unwrap();
        running.lock().unwrap();
        let Err(error) = Outbox::open(dir.path(), "a/b") else { panic!("two have it") };
        assert!(matches!(&error, OpenError::Locked { path } if path.ends_with("a_b.lock")), "{error}");
        drop(running);
        let (outbox, same) = Outbox::open(dir.path(), "a/b").unwrap();
        assert_eq!((outbox.first(), same), (Some((1, entry_of("x"))), me));
        assert!(!old.exists());
        let (outbox, other) = Outbox::open(dir.path(), "a_b").unwrap();
        assert!(outbox.len() == 0 && other != me);
    }

    #[test]
    fn a_disk_that_hangs_keeps_nobody_from_looking() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(entry_of("x")).unwrap();
        let held = outbox.hang();
        let (told, heard) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| told.send((outbox.len(), outbox.first().map(|(number, _)| number))));
            let seen = heard.recv_timeout(std::time::Duration::from_secs(20));
            drop(held);
            assert_eq!(seen, Ok((1, Some(1))));
        });
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
            let Err(error) = Outbox::open(dir.path(), "volhost") else { panic!("{text} was taken") };
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
