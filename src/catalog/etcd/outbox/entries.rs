//! The entries of an outbox: each is a request that was answered and is not in the cluster yet.

use std::collections::{HashMap, VecDeque};

use crate::catalog::etcd::txn::Slot;
use crate::catalog::{Change, UnmountTarget};
use crate::model::host::HostName;
use crate::model::volume::{MountId, VolumeName};

/// A request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) host: HostName,
    pub(crate) request: Answered,
    /// The slot in which it was already sent, and the numbers of its transactions, if their outcome is unknown.
    pub(crate) sent: Option<(Slot, Vec<String>)>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answered {
    /// An Unmount, with what the view said when it was answered.
    Unmount { volume: VolumeName, id: MountId, target: UnmountTarget },
    /// The start of the host's engine.
    Activate,
}

impl Entry {
    /// Returns the change that records the request.
    pub(crate) fn change(&self) -> Change {
        let host = self.host.clone();
        match self.request.clone() {
            Answered::Unmount { volume: name, id, target } => {
                Change::Unmount { name, host, id, target: Some(target) }
            }
            Answered::Activate => Change::Activate(host),
        }
    }
}

/// All entries, by their numbers.
#[derive(Clone)]
pub(super) struct Entries {
    /// The number of the next entry. A number is used once.
    pub(super) next: u64,
    /// The entries that wait, the oldest first.
    pub(super) waiting: VecDeque<(u64, Entry)>,
    /// The entries that were set aside.
    pub(super) aside: Vec<(u64, Entry)>,
}

impl Entries {
    pub(super) fn new() -> Self {
        Self { next: 1, waiting: VecDeque::new(), aside: Vec::new() }
    }

    /// Returns the number of entries, including those that were set aside.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + self.aside.len()
    }

    /// Removes the waiting entries up to this number, because the cluster has them.
    pub(super) fn remove_up_to(&mut self, number: u64) {
        // The oldest are in front.
        while self.waiting.front().is_some_and(|(of, _)| *of <= number) {
            self.waiting.pop_front();
        }
        self.next = self.next.max(number + 1);
    }

    /// Removes the waiting entries that took effect, which is so if the slot in which an entry was sent has one of its
    /// numbers.
    pub(super) fn remove_in_slots(&mut self, slots: &HashMap<usize, String>) {
        self.waiting.retain(|(_, entry)| {
            !entry.sent.as_ref().is_some_and(|(slot, numbers)| {
                slots.get(&slot.number).is_some_and(|number| numbers.contains(number))
            })
        });
    }

    /// Sets a waiting entry aside. Returns false if there is none of this number.
    pub(super) fn set_aside(&mut self, number: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|(of, _)| *of == number) else { return false };
        let Some((_, entry)) = self.waiting.remove(at) else { return false };
        self.aside.push((number, Entry { sent: None, ..entry }));
        true
    }

    /// Makes the entries that were set aside wait again, behind all others.
    pub(super) fn requeue_aside(&mut self) {
        for (_, entry) in std::mem::take(&mut self.aside) {
            let number = self.next;
            self.next += 1;
            self.waiting.push_back((number, entry));
        }
    }
}

/// An Unmount of the mount with this ID.
#[cfg(test)]
pub(super) fn unmount_of(id: &str) -> Entry {
    Entry {
        host: HostName::parse("web1").unwrap(),
        request: Answered::Unmount {
            volume: VolumeName::parse("db").unwrap(),
            id: MountId::parse(id).unwrap(),
            target: UnmountTarget { volume: None, activation: crate::model::mounts::Activation(3) },
        },
        sent: Some((Slot { number: 7, revision: 99 }, vec!["a.1".into()])),
    }
}
