//! The file of an outbox: JSON lines, the first of which says which instance this is; each other line is an entry.
//!
//! It must never be used by two processes at once, and a line that is not understood is never dropped.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::entries::{Answered, Entries, Entry};
use crate::catalog::UnmountTarget;
use crate::catalog::etcd::error::OpenError;
use crate::catalog::etcd::txn::Slot;
use crate::files;
use crate::model::host::HostName;
use crate::model::mounts::Activation;
use crate::model::volume::{MountId, VolumeName};

/// An outbox's file, open for writing.
pub(crate) struct OutboxFile {
    path: PathBuf,
    file: File,
    /// The first line.
    head: Vec<u8>,
    /// The length of the durable lines.
    length: u64,
}

/// An outbox's file that was opened, and its content.
pub(super) struct Opened {
    pub(super) path: PathBuf,
    /// Keeps other processes out until it is closed.
    pub(super) lock: File,
    pub(super) file: OutboxFile,
    pub(super) instance: Uuid,
    pub(super) entries: Entries,
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
    /// `None` for an Activate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unmount: Option<UnmountLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sent: Option<SentLine>,
    /// True if the entry was set aside.
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

/// Opens the file of the outbox for a prefix. Makes the directory and the file if they are missing.
pub(super) fn open(dir: &Path, prefix: &str) -> Result<Opened, OpenError> {
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
    adopt_old_name(&dir.join(format!("{}.jsonl", prefix.replace('/', "_"))), &path)?;
    if files::read(&path).map_err(failed("read"))?.is_none_or(|text| text.is_empty()) {
        let head = Head { volhost: "spool".into(), v: 1, instance: Uuid::new_v4() };
        let text = serde_json::to_string(&head).map_err(io::Error::other).map_err(failed("written"))?;
        files::replace(&path, format!("{text}\n").as_bytes(), 0o600).map_err(failed("written"))?;
    }
    let text = files::read(&path).map_err(failed("read"))?.unwrap_or_default();
    let Content { head, instance, entries, length } = parse(&path, &text)?;
    let file = open_to_write(&path).map_err(failed("opened"))?;
    let mut file = OutboxFile { path: path.clone(), file, head, length };
    // A line that was cut off was not answered.
    file.truncate().map_err(failed("written"))?;
    Ok(Opened { path, lock, file, instance, entries })
}

impl OutboxFile {
    /// Appends the line of an entry, durably. If that fails, the file has nothing of it.
    pub(super) fn append(&mut self, number: u64, entry: &Entry) -> io::Result<()> {
        let line = line(number, entry, false)?;
        // The rest of a write that failed, and could not be cut off then, would spoil this line, too.
        self.truncate()?;
        let written =
            self.file.write_all_at(line.as_bytes(), self.length).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // The next start must find nothing of the line, because the request is answered with an error. If this fails,
            // it is done before the next line.
            let _ = self.truncate();
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Cuts off everything after the durable lines.
    pub(super) fn truncate(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() == self.length {
            return Ok(());
        }
        self.file.set_len(self.length)?;
        self.file.sync_data()
    }

    /// Returns true if the file has no entry.
    pub(super) fn is_empty(&self) -> bool {
        self.length <= self.head.len() as u64
    }

    /// Removes all entries, durably.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        let head = self.head.len() as u64;
        self.file.set_len(head)?;
        self.length = head;
        self.file.sync_data()
    }

    /// Replaces all entries by these, atomically.
    pub(super) fn rewrite(&mut self, entries: &Entries) -> io::Result<()> {
        let mut text = self.head.clone();
        for (number, entry) in &entries.aside {
            text.extend(line(*number, entry, true)?.into_bytes());
        }
        for (number, entry) in &entries.waiting {
            text.extend(line(*number, entry, false)?.into_bytes());
        }
        files::replace(&self.path, &text, 0o600)?;
        self.file = open_to_write(&self.path)?;
        self.length = text.len() as u64;
        Ok(())
    }

    /// Makes every write fail from now on, as on a full disk.
    #[cfg(test)]
    pub(super) fn fill_disk(&mut self) {
        self.file = open_to_write(Path::new("/dev/full")).unwrap();
    }
}

/// Returns the file's name for a prefix, without its extension: a different one for each prefix. A prefix has no `%`.
fn file_name(prefix: &str) -> String {
    prefix.replace('_', "%5F").replace('/', "%2F")
}

/// Locks an outbox, until the returned file is closed.
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

/// Renames the file of an older volhost, whose name several prefixes had in common. It becomes the file of the first of
/// these prefixes that is served again.
fn adopt_old_name(old: &Path, path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Outbox { path: old.into(), doing: "renamed", source };
    if old == path || path.try_exists().map_err(failed)? || !old.try_exists().map_err(failed)? {
        return Ok(());
    }
    // The older volhost may still be running.
    let _lock = lock(old)?;
    files::rename(old, path).map_err(failed)?;
    // No process waits for the lock: one that finds it taken gives up.
    let _ = std::fs::remove_file(old.with_extension("lock"));
    log::info!("{} is {} from now on", old.display(), path.display());
    Ok(())
}

fn open_to_write(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// Returns the line of an entry.
fn line(n: u64, entry: &Entry, aside: bool) -> io::Result<String> {
    let Entry { host, request, sent } = entry;
    let unmount = match request {
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

/// The content of the file.
struct Content {
    head: Vec<u8>,
    instance: Uuid,
    entries: Entries,
    /// The length of all whole lines.
    length: u64,
}

fn parse(path: &Path, text: &[u8]) -> Result<Content, OpenError> {
    let fault = |line: usize, fault: String| OpenError::OutboxText { path: path.into(), line, fault };
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let first = lines.next().unwrap_or_default();
    let head: Head = serde_json::from_slice(first).map_err(|error| fault(1, error.to_string()))?;
    if head.volhost != "spool" || head.v != 1 {
        return Err(fault(1, format!("it is no spool of version 1, but {} {}", head.volhost, head.v)));
    }
    let mut entries = Entries::new();
    let mut length = first.len() as u64;
    let mut lines = lines.enumerate().peekable();
    while let Some((at, line)) = lines.next() {
        // After a power failure the file may have its new length without its new content. Only the last line can be
        // affected, which was not answered: all others were durable before it was begun.
        if line.contains(&0) && lines.peek().is_none() {
            log::warn!(
                "{}: line {} was not written whole, and not answered: it is left out",
                path.display(),
                at + 2
            );
            break;
        }
        let (number, entry, is_aside) = parse_line(line).map_err(|what| fault(at + 2, what))?;
        if is_aside {
            entries.aside.push((number, entry));
        } else {
            entries.waiting.push_back((number, entry));
        }
        entries.next = entries.next.max(number + 1);
        length += line.len() as u64;
    }
    Ok(Content { head: first.into(), instance: head.instance, entries, length })
}

/// Returns the entry of a line, its number, and true if it was set aside.
fn parse_line(line: &[u8]) -> Result<(u64, Entry, bool), String> {
    let Line { n, host, unmount, sent, aside } =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let request = match unmount {
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
    Ok((n, Entry { host, request, sent }, aside))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::super::entries::unmount_of;
    use super::*;

    /// Makes an outbox with one entry, and returns its instance.
    fn with_one_entry(dir: &Path, prefix: &str) -> Uuid {
        let mut opened = open(dir, prefix).unwrap();
        opened.file.append(1, &unmount_of("x")).unwrap();
        opened.instance
    }

    #[test]
    fn the_rest_of_a_failed_write_is_gone_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut opened = open(dir.path(), "volhost").unwrap();
        opened.file.append(1, &unmount_of("x")).unwrap();
        // A part of a line that was written before the disk was full, and could not be cut off.
        let mut file = OpenOptions::new().append(true).open(&opened.path).unwrap();
        file.write_all(br#"{"n":2,"host":"we"#).unwrap();
        opened.file.append(2, &unmount_of("y")).unwrap();
        drop(opened);
        let opened = open(dir.path(), "volhost").unwrap();
        assert_eq!(opened.entries.waiting, [(1, unmount_of("x")), (2, unmount_of("y"))]);
    }

    #[test]
    fn a_last_line_whose_beginning_never_reached_the_disk_was_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        with_one_entry(dir.path(), "volhost");
        let path = dir.path().join("volhost.jsonl");
        let whole = std::fs::read(&path).unwrap();
        let torn = [&[0; 100][..], b"\"activation\":3}}\n"].concat();
        std::fs::write(&path, [&*whole, &torn].concat()).unwrap();
        let opened = open(dir.path(), "volhost").unwrap();
        assert_eq!((opened.entries.len(), std::fs::read(&path).unwrap()), (1, whole.clone()));
        drop(opened);
        // A power failure cannot damage a line before one that was answered later: this is another fault.
        let entry = whole.split_inclusive(|byte| *byte == b'\n').nth(1).unwrap();
        std::fs::write(&path, [&*whole, &torn, entry].concat()).unwrap();
        let Err(error) = open(dir.path(), "volhost") else { panic!("it was opened") };
        assert!(error.to_string().contains("at line 3"), "{error}");
    }

    #[test]
    fn no_two_prefixes_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let prefixes = ["a/b", "a_b", "a.b", "a/b_c", "a_b/c", "a.b_c"];
        let all = prefixes.map(|prefix| open(dir.path(), prefix).unwrap());
        let instances: std::collections::HashSet<_> = all.iter().map(|opened| opened.instance).collect();
        assert_eq!(instances.len(), prefixes.len());
    }

    #[test]
    fn the_file_of_an_older_volhost_is_found_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let instance = with_one_entry(dir.path(), "x");
        let old = dir.path().join("a_b.jsonl");
        std::fs::rename(dir.path().join("x.jsonl"), &old).unwrap();
        // The older volhost is still running.
        let running = File::create(old.with_extension("lock")).unwrap();
        running.lock().unwrap();
        let Err(error) = open(dir.path(), "a/b") else { panic!("two have it") };
        assert!(matches!(&error, OpenError::Locked { path } if path.ends_with("a_b.lock")), "{error}");
        drop(running);
        let opened = open(dir.path(), "a/b").unwrap();
        assert_eq!((opened.entries.waiting, opened.instance), ([(1, unmount_of("x"))].into(), instance));
        assert!(!old.exists());
        let other = open(dir.path(), "a_b").unwrap();
        assert!(other.entries.len() == 0 && other.instance != instance);
    }

    #[test]
    fn a_file_that_is_not_understood_stays_as_it_is() {
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
            let Err(error) = open(dir.path(), "volhost") else { panic!("{text} was accepted") };
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
