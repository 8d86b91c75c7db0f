//! Slots: with them the outcome of an unanswered transaction can be found out, and the transaction can be repeated or
//! prevented.
//!
//! Each transaction under way has a slot: a key that only this instance writes, and that is never deleted. The transaction
//! compares the slot's revision and stores its own number there. So of everything sent with one slot at one revision, at
//! most one transaction takes effect, however late, and the number in the slot says which.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Semaphore;

/// The largest number of transactions that one instance has under way. One transaction can write all slots.
pub(crate) const SLOTS: usize = 64;

/// A slot; its user owns it until it is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) number: usize,
    /// The revision of its last write; 0 if there was none.
    pub(crate) revision: i64,
}

/// The free slots of this instance.
pub(crate) struct Slots {
    free: Mutex<Vec<Slot>>,
    permits: Semaphore,
}

impl Slots {
    /// `revisions` are those at which the slots were last written, in the order of the slots' numbers.
    pub(crate) fn new(revisions: impl IntoIterator<Item = i64>) -> Self {
        let free: Vec<_> =
            revisions.into_iter().enumerate().map(|(number, revision)| Slot { number, revision }).collect();
        Self { permits: Semaphore::new(free.len()), free: Mutex::new(free) }
    }

    /// Waits for a free slot. The caller gives it back, with the revision of its last write.
    pub(crate) async fn take(&self) -> Slot {
        loop {
            if let Ok(permit) = self.permits.acquire().await {
                permit.forget();
            }
            // There are as many free slots as permits.
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
