//! The watch: what all instances wrote, in the order of revisions, taken into the memory.
//!
//! It is begun anew where it breaks off, at the revision that was reached; where that lies before the cluster's last
//! compaction, the catalog is read whole again. It never skips an event.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{Error, GetOptions, WatchOptions};
use tokio::time::{Instant, timeout_at};

use super::core::Core;
use super::error::OpenError;
use super::load::{LARGEST, Reader, RetryLimit};
use super::members::{ANSWER, CallError, Kind};
use super::replica::Head;
use super::watch_health::WatchFault;
use super::{read_index, session};
use crate::error::chain;

/// How long after the watch broke off it is begun anew.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a watch that begins behind may say nothing before it is begun anew. What it missed may come in one message,
/// of which nothing is known before its end: begun anew meanwhile, it would begin with the same message again.
const SILENCE: Duration = Duration::from_secs(30);

/// The longest that this becomes where it is in vain.
const LONGEST_SILENCE: Duration = Duration::from_secs(30 * 60);

/// How long after a catalog could not be read whole that is tried again, at first and at most: it is a burden.
const READ_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// Why a watch ended.
enum End {
    /// It broke off, or is behind.
    Broken(String),
    /// It told what this volhost does not understand.
    NotUnderstood,
    /// What it should tell is not kept any more.
    Compacted,
    /// What it should tell is more than is taken in at once.
    TooLarge,
    /// The cluster's history is not the one that is known.
    OtherHistory,
    /// What it told does not make what the cluster holds.
    Doubted,
}

/// Watches for as long as the catalog is served.
pub(super) async fn run(core: Arc<Core>) {
    let mut silence = SILENCE;
    loop {
        match follow(&core, &mut silence).await {
            End::Broken(why) => {
                log::debug!("the watch of the catalog {}: {why}", core.location);
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            // Once what it is is gone, the history has it still: only what stands there now can be understood.
            End::NotUnderstood => tokio::time::sleep(READ_AGAIN.0).await,
            End::Compacted => {
                log::info!("the catalog {} is read whole again: its history was compacted", core.location);
            }
            End::TooLarge => {
                log::info!("the catalog {} is read whole again: too much was missed", core.location);
            }
            End::OtherHistory => {
                log::info!("the catalog {} is read whole again: its history is another one", core.location);
            }
            End::Doubted => {}
        }
        read_again(&core).await;
    }
}

/// Reads the catalog whole, where the watch cannot tell what happened; until that succeeds.
async fn read_again(core: &Core) {
    let reader = Reader {
        members: &core.members,
        keys: &core.keys,
        location: &core.location,
        patience: RetryLimit::Endless,
    };
    let (mut pause, mut ended) = (READ_AGAIN.0, false);
    loop {
        let other_history = core.other_history.load(Ordering::Acquire);
        if other_history && !ended {
            ended = session::end(core).await;
        }
        match reader.read().await {
            // It changed while it was read, or what it brought back has not ended yet.
            Ok(_) if core.other_history.load(Ordering::Acquire) && !(other_history && ended) => {}
            Ok(snapshot) => {
                core.replica.replace(snapshot, !other_history);
                core.other_history.store(false, Ordering::Release);
                core.doubted.store(false, Ordering::Release);
                core.watch_recovered(WatchFault::NotUnderstood);
                return;
            }
            Err(OpenError::Row { source, .. }) => {
                core.watch_failed(WatchFault::NotUnderstood, &chain(&source));
            }
            Err(error @ (OpenError::Foreign { .. } | OpenError::HalfImported { .. })) => {
                core.watch_failed(WatchFault::NotUnderstood, &chain(&error));
            }
            Err(error) => core.health.ill(&chain(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(READ_AGAIN.1);
    }
}

/// Watches until that ends. `silence` is for how long it may say nothing while it is behind what was done before it began.
async fn follow(core: &Core, silence: &mut Duration) -> End {
    if core.other_history.load(Ordering::Acquire) {
        return End::OtherHistory;
    }
    if core.doubted.load(Ordering::Acquire) {
        return End::Doubted;
    }
    let (reached, head) = core.replica.look(|_, known| (known.reached, known.head.clone()));
    match head_at(core, reached).await {
        Ok(found) if found == head => {}
        // Another history has come as far, or not so far.
        Ok(_) | Err(CallError { kind: Kind::Ahead, .. }) => {
            core.history_changed(reached);
            return End::OtherHistory;
        }
        Err(CallError { kind: Kind::Compacted, .. }) => return End::Compacted,
        Err(trouble) => return End::Broken(trouble.text),
    }
    let done_before = match read_index::head(core).await {
        Ok((head, _)) => head.map_or(0, |(at, _)| at),
        Err(trouble) => return End::Broken(trouble.text),
    };
    let from = reached + 1;
    let options = WatchOptions::new().with_range(core.keys.end_of_common()).with_start_revision(from);
    let root = core.keys.root();
    let begun = core.members.ask(ANSWER, async move |client| {
        client.watch_client().max_decoding_message_size(LARGEST).watch(root, Some(options)).await
    });
    let mut stream = match begun.await {
        Ok(stream) => stream,
        Err(trouble) => return End::Broken(trouble.text),
    };
    // The first message says that the watch was begun: a member that is frozen does not even say that.
    let (mut is_begun, mut heard_at) = (false, Instant::now());
    loop {
        let is_behind = core.replica.look(|_, known| known.reached) < done_before;
        if !is_behind {
            *silence = SILENCE;
        }
        let message = async {
            if is_begun {
                Ok(stream.message().await)
            } else {
                timeout_at(heard_at + ANSWER, stream.message()).await
            }
        };
        let heard = tokio::select! {
            heard = message => heard,
            () = core.watch_anew.notified() => {
                if core.is_read_again() {
                    return End::Broken("it tells of another history, or not what the cluster holds".into());
                }
                if !is_behind {
                    return End::Broken("it is behind".into());
                }
                if heard_at.elapsed() < *silence {
                    continue;
                }
                *silence = (2 * *silence).min(LONGEST_SILENCE);
                core.members.suspect();
                return End::Broken("its member does not tell what was done before it began".into());
            }
        };
        let message = match heard {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return End::Broken("its member ended it".into()),
            // The number is that of gRPC's status code for what is larger than the limit.
            Ok(Err(Error::GRpcStatus(status))) if status.code() as i32 == 11 => return End::TooLarge,
            Ok(Err(error)) => return End::Broken(error.to_string()),
            Err(_) => {
                core.members.suspect();
                return End::Broken("its member does not begin it".into());
            }
        };
        (is_begun, heard_at) = (true, Instant::now());
        if message.canceled() {
            // A watch below a compaction ends with that revision, and with no reason.
            return if message.compact_revision() > 0 || message.cancel_reason().contains("compacted") {
                End::Compacted
            } else {
                End::Broken(message.cancel_reason().to_owned())
            };
        }
        match core.replica.heard(message.events()) {
            Ok(true) => {}
            Ok(false) => {
                core.history_changed(core.replica.look(|_, known| known.reached));
                return End::OtherHistory;
            }
            // What a newer volhost wrote would be lost by the next change: nothing is changed from now on.
            Err(error) => {
                core.watch_failed(WatchFault::NotUnderstood, &chain(&error));
                return End::NotUnderstood;
            }
        }
    }
}

/// The key that every transaction writes, as it was at a revision: its own revision and value.
async fn head_at(core: &Core, revision: i64) -> Result<Option<Head>, CallError> {
    let (key, options) = (core.keys.head(), GetOptions::new().with_revision(revision));
    let got = core
        .members
        .ask(ANSWER, async move |client| client.kv_client().get(key, Some(options)).await)
        .await?;
    Ok(got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())))
}
