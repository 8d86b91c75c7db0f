//! Slots: by them a transaction that was sent and not answered can be asked for, sent again, or made impossible.
//!
//! Each transaction has a slot of its own while it is under way: a key that only this instance writes and that is never
//! deleted. It compares the slot's revision and stores its own number there. So of all that is sent with one slot at one
//! revision at most one takes effect, however late; and the number in the slot tells which one.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

/// How many transactions one instance has under way at most. One transaction can write all slots.
pub(super) const SLOTS: usize = 64;

/// A slot, held by who uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) number: usize,
    /// The revision at which it was written last; 0 if never.
    pub(super) revision: i64,
}

/// The slots that are free.
pub(super) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

impl Slots {
    /// All slots, with the revisions at which they were written last.
    pub(super) fn new(revisions: impl IntoIterator<Item = i64>) -> Self {
        let free: Vec<_> =
            revisions.into_iter().enumerate().map(|(number, revision)| Slot { number, revision }).collect();
        Self { permits: Semaphore::new(free.len()), free: Mutex::new(free) }
    }

    /// Waits for a free slot. Whoever takes it gives it back, with its revision then.
    pub(super) async fn take(&self) -> Slot {
        loop {
            if let Ok(permit) = self.permits.acquire().await {
                permit.forget();
            }
            // There are as many as there are permits.
            if let Some(slot) = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop() {
                return slot;
            }
        }
    }

    /// Gives a slot back of which nothing is under way any more.
    pub(super) fn give_back(&self, slot: Slot) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.permits.add_permits(1);
    }
}
