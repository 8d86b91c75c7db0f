//! Carries out the entries of the outbox, each exactly once: its transaction also stores its number, in one key that only
//! this instance writes.
//!
//! An entry that a healthy cluster refuses must block neither the other entries nor a start: it is set aside.

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

/// The pause after a failure, before the entry is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// The key that says up to which entry the outbox was carried out.
pub(super) struct OutboxProgress {
    /// The revision of its last write; 0 if there was none.
    pub(super) revision: i64,
}

/// Carries out every entry, for as long as the catalog is served.
pub(super) async fn keep_up(core: Arc<Core>, mut progress: OutboxProgress) {
    loop {
        drain(&core, &mut progress).await;
        core.outbox.wait_for_entry().await;
    }
}

/// Why an entry is not recorded yet.
enum RecordError {
    /// Another attempt may succeed.
    Transient(String),
    /// The cluster will never take the entry as it is.
    Refused(String),
}

/// Carries out entries until none waits. Waits for the cluster as long as it takes.
pub(super) async fn drain(core: &Core, progress: &mut OutboxProgress) {
    let mut count = 0_usize;
    while let Some((number, entry)) = core.outbox.first() {
        core.client.health.back().await;
        let attempt =
            entry.sent.clone().map(|(slot, numbers)| Attempt::resume(&core.txn, slot, numbers, &()));
        let (mut attempt, mut took_effect) = (attempt, false);
        if let Some(sent) = &mut attempt {
            took_effect = sent.end().await.is_some();
        }
        count += usize::from(record(core, progress, number, &entry, took_effect).await);
        // Not earlier: until here, only the number in the slot showed that the entry had taken effect.
        if let Some(attempt) = attempt {
            attempt.settle().await;
        }
    }
    if count > 0 {
        log::info!("{count} requests that were answered while etcd was out of reach are recorded");
    }
}

/// Carries out an entry, or sets it aside. Returns true if the cluster has it.
async fn record(
    core: &Core,
    progress: &mut OutboxProgress,
    number: u64,
    entry: &Entry,
    took_effect: bool,
) -> bool {
    let change = entry.change();
    let (mut failures, mut stale_attempts) = (0, 0);
    loop {
        let transaction = if took_effect { Ok(None) } else { decide(core, &change).await };
        let done = match transaction {
            Ok(transaction) => carry_out(core, progress, number, transaction).await,
            Err(error) => Err(error),
        };
        let why = match done {
            Ok(true) => {
                recorded(core, number).await;
                return true;
            }
            // Another instance changed the same rows: the view is brought up to date, and the entry is decided again.
            Ok(false) => {
                stale_attempts += 1;
                if stale_attempts % STALE_LIMIT == 0 {
                    core.replica.doubt(&change).await;
                }
                match core.replica.sync().await {
                    Ok(()) => continue,
                    Err(error) => error.to_string(),
                }
            }
            Err(RecordError::Refused(why)) => match set_aside(core, progress, number, entry, &why).await {
                Ok(Some(recorded)) => return recorded,
                Ok(None) => continue,
                Err(RecordError::Transient(why) | RecordError::Refused(why)) => why,
            },
            Err(RecordError::Transient(why)) => why,
        };
        if failures == 0 {
            log::warn!("what host {} was answered is not recorded yet: {why}", entry.host);
        }
        failures += 1;
        tokio::time::sleep(PAUSE).await;
        core.client.health.back().await;
    }
}

/// Removes an entry that the cluster has.
async fn recorded(core: &Core, number: u64) {
    core.outbox.mark_recorded(number);
    if core.outbox.len() == 0
        && let Err(error) = core.outbox.with_disk(Outbox::clear_file).await
    {
        log::warn!("{} cannot be emptied: {error}", core.outbox.path().display());
    }
}

/// Returns the transaction for an entry; `None` if a view that is up to date shows that there is nothing to write.
async fn decide(core: &Core, change: &Change) -> Result<Option<Transaction>, RecordError> {
    let mut up_to_date = false;
    if change.footprint(&core.replica.memory.view()).freshness == Freshness::Always {
        core.replica.sync().await.map_err(|error| RecordError::Transient(chain(&error)))?;
        up_to_date = true;
    }
    loop {
        let planned = plan(&core.replica.memory, &core.client.keys, core.txn.owner(), change)
            .map_err(|error| RecordError::Refused(chain(&error)))?;
        match planned {
            Planned::Write(_, transaction) => return Ok(Some(transaction)),
            // The rules never refuse an Unmount or an Activate, and neither needs the directory.
            Planned::Nothing(_) | Planned::Refused(_) | Planned::Moving(_) if up_to_date => return Ok(None),
            // The cluster may answer again before the watch has delivered what other instances did meanwhile.
            Planned::Nothing(_) | Planned::Refused(_) | Planned::Moving(_) => {
                core.replica.sync().await.map_err(|error| RecordError::Transient(chain(&error)))?;
                up_to_date = true;
            }
        }
    }
}

/// Sets aside an entry that the cluster refused, if the cluster takes another transaction. Returns false if the entry was
/// set aside, true if it turned out to be recorded, and `None` if the entry is to be tried again.
async fn set_aside(
    core: &Core,
    progress: &mut OutboxProgress,
    number: u64,
    entry: &Entry,
    refused: &str,
) -> Result<Option<bool>, RecordError> {
    // The entry may have been sent before and not answered. After this write no transaction of it can take effect.
    let before = number.saturating_sub(1);
    let (written, value) = write(core, progress, before, Transaction::default()).await?;
    if !written {
        let is_recorded = value == number.to_string();
        if is_recorded {
            recorded(core, number).await;
        }
        return Ok(is_recorded.then_some(true));
    }
    core.outbox.with_disk(move |outbox| outbox.set_aside(number)).await.map_err(|error| {
        RecordError::Transient(format!(
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

/// Sends the transaction of an entry. Returns true if it took effect, false if its conditions do not hold.
async fn carry_out(
    core: &Core,
    progress: &mut OutboxProgress,
    number: u64,
    transaction: Option<Transaction>,
) -> Result<bool, RecordError> {
    let transaction = transaction.unwrap_or_default();
    let (steps, before) = (transaction.steps.clone(), progress.revision);
    let (succeeded, value) = write(core, progress, number, transaction).await?;
    // It may have taken effect when it was sent before and not answered.
    let done = succeeded || (progress.revision != before && value == number.to_string());
    if done {
        core.replica.memory.committed(progress.revision, steps);
    }
    Ok(done)
}

/// Sends a transaction that also writes this number as the outbox's progress. Returns true if it took effect, and the
/// number that the progress has now.
async fn write(
    core: &Core,
    progress: &mut OutboxProgress,
    number: u64,
    transaction: Transaction,
) -> Result<(bool, String), RecordError> {
    let Transaction { mut compares, mut writes, steps: _ } = transaction;
    let (key, number) = (core.client.keys.outbox_progress(core.client.me), number.to_string());
    compares.push(same(key.clone(), progress.revision));
    writes.push(TxnOp::put(core.client.keys.head(), core.txn.number(), None));
    let response = match ask(&core.client, &key, compares, writes, &number).await {
        Ok(response) => response,
        // The cluster answered, so it does not count as out of reach.
        Err(error) if error.kind == CallErrorKind::Refused => return Err(RecordError::Refused(error.text)),
        Err(error) => {
            core.client.health.unanswered(&error);
            return Err(RecordError::Transient(error.text));
        }
    };
    if response.succeeded() {
        progress.revision = revision(&response);
        return Ok((true, number));
    }
    match first_pair(&response) {
        Some(pair) => {
            progress.revision = pair.mod_revision();
            Ok((false, String::from_utf8_lossy(pair.value()).into_owned()))
        }
        None if progress.revision > 0 => Err(RecordError::Transient(own_key_deleted().text)),
        None => Ok((false, String::new())),
    }
}
