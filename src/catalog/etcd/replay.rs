//! Carrying out what the spool kept, exactly once: each entry in a transaction that also stores its number, in one key
//! that only this instance writes.
//!
//! An entry that the cluster refuses, however well it answers, must hold up neither the others nor a start: it is set
//! aside.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::TxnOp;

use super::client::CallErrorKind;
use super::core::Core;
use super::outbox::{Entry, Outbox};
use super::replica::STALE_LIMIT;
use super::txn::{Attempt, Planned, Transaction, ask, first_pair, own_key_deleted, plan, revision, same};
use crate::catalog::{Change, Freshness};
use crate::error::chain;

/// How long after a failure it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// The key that tells how far the spool was carried out.
pub(super) struct OutboxProgress {
    /// At which revision it was written last; 0 if never.
    pub(super) revision: i64,
}

/// Carries out what there is, and what comes, for as long as the catalog is served.
pub(super) async fn keep_up(core: Arc<Core>, mut place: OutboxProgress) {
    loop {
        empty(&core, &mut place).await;
        core.outbox.wait_for_entry().await;
    }
}

/// Why an entry is not recorded yet.
enum RecordError {
    /// Nothing tells that it will not be in a while.
    Passing(String),
    /// As it is, it will never be.
    Refused(String),
}

/// Carries out what there is. Waits for the cluster as long as it takes.
pub(super) async fn empty(core: &Core, place: &mut OutboxProgress) {
    let mut count = 0_usize;
    while let Some((number, entry)) = core.outbox.first() {
        core.client.health.back().await;
        let left = entry.sent.clone().map(|(slot, numbers)| Attempt::resume(&core.txn, slot, numbers, &()));
        let (mut left, mut took_effect) = (left, false);
        if let Some(attempt) = &mut left {
            took_effect = attempt.end().await.is_some();
        }
        count += usize::from(record(core, place, number, &entry, took_effect).await);
        // Only now: the slot's number told, until here, that the entry was carried out.
        if let Some(attempt) = left {
            attempt.settle().await;
        }
    }
    if count > 0 {
        log::info!("{count} requests that were answered while etcd was out of reach are recorded");
    }
}

/// Carries an entry out, or sets it aside: false then.
async fn record(
    core: &Core,
    place: &mut OutboxProgress,
    number: u64,
    entry: &Entry,
    took_effect: bool,
) -> bool {
    let change = entry.change();
    let (mut tries, mut stale) = (0, 0);
    loop {
        let transaction = if took_effect { Ok(None) } else { decide(core, &change).await };
        let done = match transaction {
            Ok(transaction) => carry_out(core, place, number, transaction).await,
            Err(error) => Err(error),
        };
        let why = match done {
            Ok(true) => {
                passed(core, number).await;
                return true;
            }
            // Somebody else changed the same rows: the view is made up_to_date, and it is decided anew.
            Ok(false) => {
                stale += 1;
                if stale % STALE_LIMIT == 0 {
                    core.replica.doubt(&change).await;
                }
                match core.replica.sync().await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            }
            Err(RecordError::Refused(why)) => match set_aside(core, place, number, entry, &why).await {
                Ok(Some(recorded)) => return recorded,
                Ok(None) => continue,
                Err(RecordError::Passing(why) | RecordError::Refused(why)) => why,
            },
            Err(RecordError::Passing(why)) => why,
        };
        if tries == 0 {
            log::warn!("what host {} was answered is not recorded yet: {why}", entry.host);
        }
        tries += 1;
        tokio::time::sleep(PAUSE).await;
        core.client.health.back().await;
    }
}

/// Takes an entry out that the cluster has.
async fn passed(core: &Core, number: u64) {
    core.outbox.mark_recorded(number);
    if core.outbox.len() == 0
        && let Err(error) = core.outbox.with_disk(Outbox::clear_file).await
    {
        log::warn!("{} cannot be emptied: {error}", core.outbox.path().display());
    }
}

/// What an entry changes at present; nothing, where what it was of is gone by what is known for certain.
async fn decide(core: &Core, change: &Change) -> Result<Option<Transaction>, RecordError> {
    let mut up_to_date = false;
    if change.footprint(&core.replica.memory.view()).freshness == Freshness::Always {
        core.replica.sync().await.map_err(|error| RecordError::Passing(chain(&error)))?;
        up_to_date = true;
    }
    loop {
        let planned = plan(&core.replica.memory, &core.client.keys, core.txn.owner(), change)
            .map_err(|error| RecordError::Refused(chain(&error)))?;
        match planned {
            Planned::Write(_, transaction) => return Ok(Some(transaction)),
            // Neither is ever refused.
            Planned::Nothing(_) | Planned::Refused(_) | Planned::Moving(_) if up_to_date => return Ok(None),
            // The cluster answers again before the watch has told what others did meanwhile.
            Planned::Nothing(_) | Planned::Refused(_) | Planned::Moving(_) => {
                core.replica.sync().await.map_err(|error| RecordError::Passing(chain(&error)))?;
                up_to_date = true;
            }
        }
    }
}

/// Sets an entry aside that the cluster refused, where it refuses nothing else, for the others to go on. Returns whether
/// it turned out to be recorded; nothing, where that is not known, and it is to be tried again.
async fn set_aside(
    core: &Core,
    place: &mut OutboxProgress,
    number: u64,
    entry: &Entry,
    refused: &str,
) -> Result<Option<bool>, RecordError> {
    // It may have been sent before, and not answered. By this nothing of it takes effect from now on.
    let before = number.saturating_sub(1);
    let (ended, value) = write(core, place, before, Transaction::default()).await?;
    if !ended {
        let recorded = value == number.to_string();
        if recorded {
            passed(core, number).await;
        }
        return Ok(recorded.then_some(true));
    }
    core.outbox.with_disk(move |outbox| outbox.set_aside(number)).await.map_err(|error| {
        RecordError::Passing(format!(
            "{refused}; and {} cannot be written: {error}",
            core.outbox.path().display()
        ))
    })?;
    log::error!(
        "host {} was answered, and the catalog {} refuses to record it: {refused}. It is kept in {}, and tried again \
         when volhost is started next: {:?}",
        entry.host,
        core.client.location,
        core.outbox.path().display(),
        entry.change()
    );
    Ok(Some(false))
}

/// Whether it is done: false, where its conditions do not hold.
async fn carry_out(
    core: &Core,
    place: &mut OutboxProgress,
    number: u64,
    transaction: Option<Transaction>,
) -> Result<bool, RecordError> {
    let transaction = transaction.unwrap_or_default();
    let (steps, before) = (transaction.steps.clone(), place.revision);
    let (succeeded, value) = write(core, place, number, transaction).await?;
    // It may have been sent before, and not answered.
    let done = succeeded || (place.revision != before && value == number.to_string());
    if done {
        core.replica.memory.committed(place.revision, steps);
    }
    Ok(done)
}

/// Sends a transaction that also writes how far the spool was carried out. Returns whether it took effect, and what is
/// written there now.
async fn write(
    core: &Core,
    place: &mut OutboxProgress,
    number: u64,
    transaction: Transaction,
) -> Result<(bool, String), RecordError> {
    let Transaction { mut compares, mut writes, steps: _ } = transaction;
    let (key, number) = (core.client.keys.outbox_progress(core.client.me), number.to_string());
    compares.push(same(key.clone(), place.revision));
    writes.push(TxnOp::put(core.client.keys.head(), core.txn.number(), None));
    let response = match ask(&core.client, &key, compares, writes, &number).await {
        Ok(response) => response,
        // It was answered: that is no sign of a cluster out of reach.
        Err(error) if error.kind == CallErrorKind::Refused => return Err(RecordError::Refused(error.text)),
        Err(error) => {
            core.client.health.unanswered(&error);
            return Err(RecordError::Passing(error.text));
        }
    };
    if response.succeeded() {
        place.revision = revision(&response);
        return Ok((true, number));
    }
    match first_pair(&response) {
        Some(pair) => {
            place.revision = pair.mod_revision();
            Ok((false, String::from_utf8_lossy(pair.value()).into_owned()))
        }
        None if place.revision > 0 => Err(RecordError::Passing(own_key_deleted().text)),
        None => Ok((false, String::new())),
    }
}
