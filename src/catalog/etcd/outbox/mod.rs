//! The outbox: Unmounts and Activates that were answered while the cluster was out of reach, in a file on this machine. An
//! entry is durable before its request is answered.
//!
//! The file also says which instance this is, so that the next process finds the keys that this one left in the cluster.
//! It must never remove an entry before the cluster has it.
//!
//! An entry that the cluster always refuses is set aside: its line stays, the other entries go on without it, and the next
//! start tries it again.
//!
//! Reading the entries never waits for the disk. Changing the file does: call it through [`Outbox::with_disk`] on a thread
//! that also runs other tasks.

mod entries;
mod file;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use uuid::Uuid;

use self::entries::Entries;
pub(super) use self::entries::{Answered, Entry};
use self::file::{Opened, OutboxFile};
use super::error::OpenError;
use crate::model::host::HostName;

/// The largest number of entries, which take some thirty megabytes.
const MAX_ENTRIES: usize = 100_000;

/// The outbox of an instance.
pub(super) struct Outbox {
    path: PathBuf,
    /// Held until the process ends.
    lock: File,
    /// Locked during a disk operation, and before `entries`.
    file: Mutex<OutboxFile>,
    /// The entries in the file. Never locked during a disk operation.
    entries: Mutex<Entries>,
    /// The number of entries that wait.
    length: watch::Sender<usize>,
    /// Held by the task whose blocking thread waits for `file`, so that a disk that hangs blocks only one thread.
    disk_turn: Arc<tokio::sync::Mutex<()>>,
}

impl Outbox {
    /// Opens the outbox in a directory, and returns it with the ID of this instance. Makes the directory and the outbox if
    /// they are missing.
    pub(super) fn open(dir: &Path, prefix: &str) -> Result<(Self, Uuid), OpenError> {
        let Opened { path, lock, file, instance, entries } = file::open(dir, prefix)?;
        let outbox = Self {
            path,
            lock,
            length: watch::Sender::new(entries.waiting.len()),
            file: Mutex::new(file),
            entries: Mutex::new(entries),
            disk_turn: Arc::default(),
        };
        Ok((outbox, instance))
    }

    /// Returns an identity of the lock file that no other file of any machine has before this machine is rebooted; `None`
    /// if the system does not provide one.
    pub(super) fn lock_identity(&self) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let file = self.lock.metadata().ok()?;
        Some(format!("{} {} {}", boot.trim(), file.dev(), file.ino()))
    }

    /// Runs work that changes the file on a thread that may wait for the disk.
    pub(super) async fn with_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = Arc::clone(&self.disk_turn).lock_owned().await;
        let outbox = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let done = work(&outbox);
            drop(turn);
            done
        });
        // Work that has not begun when the catalog is closed is cancelled.
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
            if entries.len() >= MAX_ENTRIES {
                return Err(io::Error::other(format!("it holds {MAX_ENTRIES} already")));
            }
            entries.next
        };
        file.append(number, &entry)?;
        let mut entries = self.entries();
        entries.next = number + 1;
        entries.waiting.push_back((number, entry));
        self.publish_length(&entries);
        Ok(())
    }

    /// Cuts off what stands in the file after the entries. If a failed [`keep`](Self::keep) could not cut off its line, the
    /// next start would find it.
    pub(super) fn truncate(&self) -> io::Result<()> {
        self.file().truncate()
    }

    /// Returns the oldest entry that waits, and its number.
    pub(super) fn first(&self) -> Option<(u64, Entry)> {
        self.entries().waiting.front().cloned()
    }

    /// Returns the number of entries that wait. Those that were set aside do not count.
    pub(super) fn len(&self) -> usize {
        *self.length.borrow()
    }

    /// Waits until an entry waits.
    pub(super) async fn wait_for_entry(&self) {
        // The sender lives as long as `self`.
        let _ = self.length.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Waits until no entry waits.
    pub(super) async fn wait_until_empty(&self) {
        // The sender lives as long as `self`.
        let _ = self.length.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits until no Activate of a host waits.
    pub(super) async fn wait_for_activation(&self, host: &HostName) {
        let mut length = self.length.subscribe();
        let is = |entry: &Entry| entry.request == Answered::Activate && entry.host == *host;
        while self.entries().waiting.iter().any(|(_, entry)| is(entry)) {
            // The sender lives as long as `self`.
            let _ = length.changed().await;
        }
    }

    /// Removes the waiting entries up to this number from memory, because the cluster has them. Their lines stay until
    /// [`clear_file`](Self::clear_file).
    pub(super) fn mark_recorded(&self, number: u64) {
        let mut entries = self.entries();
        entries.remove_up_to(number);
        self.publish_length(&entries);
    }

    /// Removes the lines of all recorded entries if no entry waits. If that fails, the next start finds entries that the
    /// cluster has, and removes them.
    pub(super) fn clear_file(&self) -> io::Result<()> {
        let mut file = self.file();
        let entries = {
            let entries = self.entries();
            if !entries.waiting.is_empty() || file.is_empty() {
                return Ok(());
            }
            entries.clone()
        };
        if entries.aside.is_empty() { file.clear() } else { file.rewrite(&entries) }
    }

    /// Sets an entry aside, durably. The caller has made sure that no transaction of it can take effect any more.
    pub(super) fn set_aside(&self, number: u64) -> io::Result<()> {
        let mut file = self.file();
        let mut entries = self.entries().clone();
        if !entries.set_aside(number) {
            return Ok(());
        }
        file.rewrite(&entries)?;
        self.replace(entries);
        Ok(())
    }

    /// Removes, durably, the entries that took effect before the previous process ended: all up to this number, and those
    /// whose number is in their slot. To be called before the slots are written, because that erases the numbers. The
    /// entries that were set aside wait again, behind all others.
    pub(super) fn remove_recorded(
        &self,
        number: u64,
        slots: &HashMap<usize, String>,
    ) -> Result<(), OpenError> {
        let mut file = self.file();
        let mut entries = self.entries().clone();
        let before = entries.waiting.len();
        entries.remove_up_to(number);
        entries.remove_in_slots(slots);
        let changed = entries.waiting.len() < before || !entries.aside.is_empty();
        entries.requeue_aside();
        if changed {
            file.rewrite(&entries).map_err(|source| OpenError::Outbox {
                path: self.path.clone(),
                doing: "written",
                source,
            })?;
        }
        self.replace(entries);
        Ok(())
    }

    /// Forgets the slots of all entries. The caller has written all slots, so that no transaction of an earlier process can
    /// take effect any more.
    pub(super) fn forget_slots(&self) {
        // The file may still have the slots, which does no harm: no slot will ever contain these numbers again.
        for (_, entry) in &mut self.entries().waiting {
            entry.sent = None;
        }
    }

    /// Blocks every write to the file, as a disk that hangs does, until the result is dropped.
    #[cfg(test)]
    pub(super) fn hang_disk(&self) -> MutexGuard<'_, OutboxFile> {
        self.file()
    }

    /// Makes every write to the file fail from now on, as on a full disk.
    #[cfg(test)]
    pub(super) fn fill_disk(&self) {
        self.file().fill_disk();
    }

    fn file(&self) -> MutexGuard<'_, OutboxFile> {
        // Its length is that of the durable lines after every statement under this lock.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // They are whole after every statement under this lock.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the entries. The caller holds the lock of `file`, so that no entry was added meanwhile.
    fn replace(&self, new: Entries) {
        let mut entries = self.entries();
        *entries = new;
        self.publish_length(&entries);
    }

    fn publish_length(&self, entries: &Entries) {
        self.length.send_replace(entries.waiting.len());
    }
}

#[cfg(test)]
mod tests {
    use super::entries::unmount_of;
    use super::*;
    use crate::catalog::Change;

    #[test]
    fn entries_are_found_again_and_a_line_that_was_cut_off_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, me) = Outbox::open(dir.path(), "store/volhost").unwrap();
        assert!(matches!(Outbox::open(dir.path(), "store/volhost"), Err(OpenError::Locked { .. })));
        outbox.keep(unmount_of("x")).unwrap();
        outbox.keep(unmount_of("y")).unwrap();
        drop(outbox);
        let path = dir.path().join("store%2Fvolhost.jsonl");
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&*whole, br#"{"n":3,"volu"#].concat()).unwrap();

        let (outbox, same) = Outbox::open(dir.path(), "store/volhost").unwrap();
        assert_eq!((me, outbox.len()), (same, 2));
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(outbox.first(), Some((1, unmount_of("x"))));
        outbox.mark_recorded(1);
        assert_eq!(outbox.first(), Some((2, unmount_of("y"))));
        outbox.keep(Entry { request: Answered::Activate, ..unmount_of("z") }).unwrap();
        outbox.mark_recorded(2);
        assert!(
            matches!(outbox.first().unwrap().1.change(), Change::Activate(host) if host.as_str() == "web1")
        );
        outbox.mark_recorded(3);
        outbox.clear_file().unwrap();
        assert_eq!(outbox.len(), 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1, "the entries are gone");
        outbox.keep(unmount_of("z")).unwrap();
        assert_eq!(outbox.first().unwrap().0, 4, "a number is used once");
    }

    #[test]
    fn an_entry_that_took_effect_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(unmount_of("x")).unwrap();
        outbox.keep(Entry { sent: None, ..unmount_of("y") }).unwrap();
        outbox.remove_recorded(0, &HashMap::from([(7, "b.1".into()), (8, "a.1".into())])).unwrap();
        assert_eq!(outbox.len(), 2);
        drop(outbox);
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.remove_recorded(0, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(outbox.first(), Some((2, Entry { sent: None, ..unmount_of("y") })));
        drop(outbox);
        // The slots contain other numbers by then.
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.remove_recorded(0, &HashMap::from([(7, "c.0".into())])).unwrap();
        assert_eq!((outbox.len(), outbox.first().unwrap().0), (1, 2));
        outbox.keep(unmount_of("z")).unwrap();
        outbox.forget_slots();
        assert_eq!(outbox.first(), Some((2, Entry { sent: None, ..unmount_of("y") })));
        drop(outbox);
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.remove_recorded(2, &HashMap::new()).unwrap();
        assert_eq!((outbox.len(), outbox.first()), (1, Some((3, unmount_of("z")))));
    }

    #[test]
    fn an_entry_that_was_set_aside_waits_again_after_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, me) = Outbox::open(dir.path(), "volhost").unwrap();
        for id in ["x", "y", "z"] {
            outbox.keep(unmount_of(id)).unwrap();
        }
        let path = dir.path().join("volhost.jsonl");
        let lines = || std::fs::read_to_string(&path).unwrap().lines().count() - 1;
        outbox.set_aside(1).unwrap();
        assert_eq!((outbox.len(), outbox.first().unwrap().0, lines()), (2, 2, 3));
        outbox.keep(unmount_of("v")).unwrap();
        outbox.mark_recorded(3);
        outbox.clear_file().unwrap();
        assert_eq!((outbox.first().unwrap().0, lines()), (4, 4));
        outbox.mark_recorded(4);
        outbox.clear_file().unwrap();
        assert_eq!((outbox.first(), lines()), (None, 1));
        drop(outbox);
        let (outbox, same) = Outbox::open(dir.path(), "volhost").unwrap();
        assert_eq!((same, outbox.len()), (me, 0));
        // The entry has a new number, above those that the cluster has, and its slot was settled before.
        outbox.remove_recorded(4, &HashMap::from([(7, "a.1".into())])).unwrap();
        assert_eq!(outbox.first(), Some((5, Entry { sent: None, ..unmount_of("x") })));
        outbox.set_aside(5).unwrap();
        assert_eq!((outbox.first(), lines()), (None, 1));
    }

    #[test]
    fn a_disk_that_hangs_does_not_block_readers() {
        let dir = tempfile::tempdir().unwrap();
        let (outbox, _) = Outbox::open(dir.path(), "volhost").unwrap();
        outbox.keep(unmount_of("x")).unwrap();
        let held = outbox.hang_disk();
        let (answer, answered) = std::sync::mpsc::channel();
        std::thread::scope(|threads| {
            threads.spawn(|| answer.send((outbox.len(), outbox.first().map(|(number, _)| number))));
            let seen = answered.recv_timeout(std::time::Duration::from_secs(20));
            drop(held);
            assert_eq!(seen, Ok((1, Some(1))));
        });
    }
}
