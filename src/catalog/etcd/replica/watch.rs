//! The watch: applies to the memory what all instances write, in the order of revisions.
//!
//! When the watch breaks off, it restarts at the revision that the memory has reached. If that revision was compacted, the
//! catalog is read whole. It must never skip an event.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Error, GetOptions, WatchOptions};
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::memory::Head;
use super::state::{Fault, Reload};
use super::{Replica, load, read_index};
use crate::catalog::etcd::client::{ANSWER, CallError, CallErrorKind, LARGEST};
use crate::catalog::etcd::error::OpenError;
use crate::error::chain;

/// The pause before a watch that broke off is restarted.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a watch that starts behind may be silent before it is restarted. All events that it missed may come in one
/// message, which is delivered only when it is complete: a watch that is restarted meanwhile starts with the same message.
const SILENCE: Duration = Duration::from_secs(30);

/// The upper limit of that time, which doubles each time it was too short.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 60);

/// The first and the longest pause between attempts to read a catalog whole, which is a load on the cluster.
const READ_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Why a watch ended.
enum End {
    /// It broke off, or is behind.
    Broken(String),
    /// It delivered a record that this volhost does not understand.
    NotUnderstood,
    /// The events that it should start with were compacted.
    Compacted,
    /// The events that it missed do not fit in one message.
    TooLarge,
    /// The catalog has to be read whole for this reason.
    Reload(Reload),
}

/// Watches for as long as the catalog is served.
pub(super) async fn run(replica: Arc<Replica>) {
    let mut silence = SILENCE;
    loop {
        match follow(&replica, &mut silence).await {
            End::Broken(why) => {
                log::debug!("the watch of the catalog {}: {why}", replica.client.location);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // The history contains that record even after the record was replaced. The present records may be understood.
            End::NotUnderstood => tokio::time::sleep(READ_AGAIN.0).await,
            End::Compacted => {
                log::info!(
                    "the catalog {} is read whole again: its history was compacted",
                    replica.client.location
                );
            }
            End::TooLarge => {
                log::info!(
                    "the catalog {} is read whole again: too much was missed",
                    replica.client.location
                );
            }
            End::Reload(Reload::OtherHistory) => {
                log::info!(
                    "the catalog {} is read whole again: its history is another one",
                    replica.client.location
                );
            }
            End::Reload(Reload::Doubted) => {}
        }
        read_again(&replica).await;
    }
}

/// Reads the catalog whole; tries again until that succeeds.
async fn read_again(replica: &Replica) {
    let Replica { client, memory, state, .. } = replica;
    let (mut pause, mut ended) = (READ_AGAIN.0, false);
    let other_history = || state.needs_reload() == Some(Reload::OtherHistory);
    loop {
        let restored = other_history();
        if restored && !ended {
            ended = client.end_lease().await;
        }
        match load::read(&client.reader()).await {
            // The history changed while it was read, or the claims that the restore revived have not ended yet.
            Ok(_) if other_history() && !(restored && ended) => {}
            Ok(snapshot) => {
                memory.replace(snapshot, !restored);
                state.reloaded();
                replica.recover(Fault::NotUnderstood);
                return;
            }
            Err(OpenError::Row { source, .. }) => replica.fail(Fault::NotUnderstood, &chain(&source)),
            Err(error @ (OpenError::Foreign { .. } | OpenError::HalfImported { .. })) => {
                replica.fail(Fault::NotUnderstood, &chain(&error));
            }
            Err(error) => client.health.ill(&chain(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(READ_AGAIN.1);
    }
}

/// Runs one watch to its end. `silence` is how long it may be silent while it has not delivered all that was written before
/// it started.
async fn follow(replica: &Replica, silence: &mut Duration) -> End {
    let Replica { client, memory, state, .. } = replica;
    if let Some(why) = state.needs_reload() {
        return End::Reload(why);
    }
    let (reached, head) = memory.look(|_, rows| (rows.reached, rows.head.clone()));
    match head_at(replica, reached).await {
        Ok(found) if found == head => {}
        // Another history: it has another transaction at that revision, or has not reached it.
        Ok(_) | Err(CallError { kind: CallErrorKind::Ahead, .. }) => {
            replica.history_changed(reached);
            return End::Reload(Reload::OtherHistory);
        }
        Err(CallError { kind: CallErrorKind::Compacted, .. }) => return End::Compacted,
        Err(error) => return End::Broken(error.text),
    }
    let latest_before = match read_index::head(replica).await {
        Ok((head, _)) => head.map_or(0, |(at, _)| at),
        Err(error) => return End::Broken(error.text),
    };
    let from = reached + 1;
    let options = WatchOptions::new().with_range(client.keys.end_of_shared()).with_start_revision(from);
    let root = client.keys.root();
    let watch = client.members.ask(ANSWER, async move |client| {
        client.watch_client().max_decoding_message_size(LARGEST).watch(root, Some(options)).await
    });
    let mut stream = match watch.await {
        Ok(stream) => stream,
        Err(error) => return End::Broken(error.text),
    };
    // The first message confirms the watch; a frozen member does not send even that.
    let (mut confirmed, mut last_message) = (false, Instant::now());
    loop {
        let is_behind = memory.look(|_, rows| rows.reached) < latest_before;
        if !is_behind {
            *silence = SILENCE;
        }
        let message = async {
            if confirmed {
                Ok(stream.message().await)
            } else {
                timeout_at(last_message + ANSWER, stream.message()).await
            }
        };
        let received = tokio::select! {
            received = message => received,
            () = state.restarted() => {
                if state.needs_reload().is_some() {
                    return End::Broken("it tells of another history, or not what the cluster holds".into());
                }
                if !is_behind {
                    return End::Broken("it is behind".into());
                }
                if last_message.elapsed() < *silence {
                    continue;
                }
                *silence = (2 * *silence).min(LONGEST_SILENCE);
                client.members.suspect();
                return End::Broken("its member does not tell what was done before it began".into());
            }
        };
        let message = match received {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return End::Broken("its member ended it".into()),
            // The message is larger than the limit.
            Ok(Err(Error::GRpcStatus(status))) if status.code() == Code::OutOfRange => return End::TooLarge,
            Ok(Err(error)) => return End::Broken(error.to_string()),
            Err(_) => {
                client.members.suspect();
                return End::Broken("its member does not begin it".into());
            }
        };
        (confirmed, last_message) = (true, Instant::now());
        if message.canceled() {
            // A watch that starts before a compaction ends with that revision, and gives no reason.
            return if message.compact_revision() > 0 || message.cancel_reason().contains("compacted") {
                End::Compacted
            } else {
                End::Broken(message.cancel_reason().to_owned())
            };
        }
        match memory.apply_events(message.events()) {
            Ok(true) => {}
            Ok(false) => {
                replica.history_changed(memory.look(|_, rows| rows.reached));
                return End::Reload(Reload::OtherHistory);
            }
            // Writing over a newer volhost's record would drop its new fields: no change is made from now on.
            Err(error) => {
                replica.fail(Fault::NotUnderstood, &chain(&error));
                return End::NotUnderstood;
            }
        }
    }
}

/// Returns the key `head`, which every transaction writes, as it was at a revision.
async fn head_at(replica: &Replica, revision: i64) -> Result<Option<Head>, CallError> {
    let Replica { client, .. } = replica;
    let (key, options) = (client.keys.head(), GetOptions::new().with_revision(revision));
    let got = client
        .members
        .ask(ANSWER, async move |client| client.kv_client().get(key, Some(options)).await)
        .await?;
    Ok(got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())))
}
