//! Slots, by which the outcome of a transaction that was not answered can be found out, and the transaction repeated or
//! made impossible.
//!
//! Each transaction under way has a slot: a key that only this instance writes, and that is never deleted. The transaction
//! compares the slot's revision and stores its own number there. So of everything sent with one slot at one revision, at
//! most one transaction takes effect, however late, and the number in the slot says which.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

/// The largest number of transactions that one instance has under way. One transaction can write all slots.
pub(crate) const SLOTS: usize = 64;

/// A slot, held by its user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: usize,
    /// The revision of its last write; 0 if there was none.
    pub(crate) revision: i64,
}

/// The slots that are free.
pub(crate) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

impl Slots {
    /// Takes the revisions at which the slots were last written.
    pub(crate) fn new(revisions: impl IntoIterator<Item = i64>) -> Self {
        let free: Vec<_> =
            revisions.into_iter().enumerate().map(|(number, revision)| Slot { number, revision }).collect();
        Self { permits: Semaphore::new(free.len()), free: Mutex::new(free) }
    }

    /// Waits for a free slot. The caller gives it back, with its revision then.
    pub(crate) async fn take(&self) -> Slot {
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

    /// Gives back a slot in which nothing is under way.
    pub(crate) fn give_back(&self, slot: Slot) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(slot);
        self.permits.add_permits(1);
    }
}
