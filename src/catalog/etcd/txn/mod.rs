//! Transactions: planned on the memory, sent in a slot, until their outcome is known.
//!
//! It must never take a lost answer for a transaction that was not made.

mod attempt;
mod plan;
mod slots;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

pub(crate) use self::attempt::{Attempt, Sent, ask, first_pair, own_key_deleted, probe, revision};
pub(crate) use self::plan::{
    Owner, Planned, RELEASED_AT_ONCE, Transaction, claim_directory, plan, release_claim, same,
};
pub(crate) use self::slots::{SLOTS, Slot, Slots};
use super::client::Client;

/// What all transactions of this instance share.
pub(crate) struct Transactions {
    client: Arc<Client>,
    pub(super) slots: Slots,
    /// The ID of this process, which distinguishes its transactions from those of the previous process.
    run: Uuid,
    numbers: AtomicU64,
}

impl Transactions {
    pub(crate) fn new(client: Arc<Client>, slots: Slots, run: Uuid) -> Self {
        Self { client, slots, run, numbers: AtomicU64::new(1) }
    }

    /// Returns a number that no other transaction of any instance has.
    pub(crate) fn number(&self) -> String {
        format!("{}.{}", self.run.simple(), self.numbers.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the owner of claims written now.
    pub(crate) fn owner(&self) -> Owner {
        Owner { me: self.client.me, lease: self.client.lease.id() }
    }
}
