//! Carrying out what the spool kept, exactly once: each entry in a transaction that also stores its number, in one key
//! that only this instance writes.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::TxnOp;

use super::core::Core;
use super::plan::{Planned, Transaction, plan, same};
use super::transact::{Attempt, ask, first_pair, ousted, revision};
use crate::error::chain;

/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// The key that tells how far the spool was carried out.
pub(super) struct Place {
    /// At which revision it was written last; 0 if never.
    pub(super) revision: i64,
}

/// Carries out what there is, and what comes, for as long as the catalog is served.
pub(super) async fn keep_up(core: Arc<Core>, mut place: Place) {
    loop {
        empty(&core, &mut place).await;
        core.spool.more().await;
    }
}

/// Carries out what there is. Waits for the cluster as long as it takes.
pub(super) async fn empty(core: &Core, place: &mut Place) {
    let mut count = 0_usize;
    while let Some((number, entry)) = core.spool.first() {
        core.health.back().await;
        let left = entry.sent.clone().map(|(slot, numbers)| Attempt::resume(core, slot, numbers, &()));
        let (mut left, mut took_effect) = (left, false);
        if let Some(attempt) = &mut left {
            took_effect = attempt.end().await.is_some();
        }
        let mut tries = 0;
        loop {
            let what = if took_effect { Ok(None) } else { change(core, &entry.change()) };
            let done = match what {
                Ok(transaction) => carry_out(core, place, number, transaction).await,
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => break,
                // Somebody else changed the same rows: the view is made fresh, and it is decided anew.
                Ok(false) => {
                    let _ = core.sync().await;
                }
                Err(why) => {
                    if tries == 0 {
                        log::warn!("what host {} was answered is not recorded yet: {why}", entry.host);
                    }
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                    core.health.back().await;
                }
            }
        }
        core.spool.done(number);
        // Only now: the slot's number told, until here, that the entry was carried out.
        if let Some(attempt) = left {
            attempt.settle().await;
        }
        count += 1;
    }
    if count > 0 {
        log::info!("{count} requests that were answered while etcd was out of reach are recorded");
    }
}

/// What an entry changes at present; nothing, where what it was of is gone.
fn change(core: &Core, change: &crate::catalog::Change) -> Result<Option<Transaction>, String> {
    match plan(&core.memory, &core.keys, core.owner(), change).map_err(|error| chain(&error))? {
        Planned::Write(_, transaction) => Ok(Some(transaction)),
        // Neither is ever refused.
        Planned::Nothing(_) | Planned::Refused(_) | Planned::Elsewhere(_) => Ok(None),
    }
}

/// Whether it is done: false, where its conditions do not hold.
async fn carry_out(
    core: &Core,
    place: &mut Place,
    number: u64,
    transaction: Option<Transaction>,
) -> Result<bool, String> {
    let Transaction { mut compares, mut writes, steps } = transaction.unwrap_or_default();
    let (key, number) = (core.keys.spool(core.me), number.to_string());
    compares.push(same(key.clone(), place.revision));
    writes.push(TxnOp::put(core.keys.head(), core.number(), None));
    let response = match ask(core, &key, compares, writes, &number).await {
        Ok(response) => response,
        Err(trouble) => {
            core.health.unanswered(&trouble);
            return Err(trouble.text);
        }
    };
    if response.succeeded() {
        place.revision = revision(&response);
        core.memory.committed(place.revision, steps);
        return Ok(true);
    }
    match first_pair(&response) {
        // It was sent before, and not answered.
        Some(pair) if pair.mod_revision() != place.revision => {
            place.revision = pair.mod_revision();
            let done = pair.value() == number.as_bytes();
            if done {
                core.memory.committed(place.revision, steps);
            }
            Ok(done)
        }
        None if place.revision > 0 => Err(ousted().text),
        _ => Ok(false),
    }
}
