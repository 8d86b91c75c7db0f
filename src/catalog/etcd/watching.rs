//! The watch: what all instances wrote, in the order of revisions, taken into the memory.
//!
//! It is begun anew where it breaks off, at the revision that was reached; where that lies before the cluster's last
//! compaction, the catalog is read whole again. It never skips an event.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{GetOptions, WatchOptions};
use tokio::time::timeout;

use super::core::Core;
use super::load::{Patience, Reader};
use super::members::{ANSWER, Kind, Trouble};
use super::memory::Head;
use crate::error::chain;

/// How long after the watch broke off it is begun anew.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a watch ended.
enum End {
    /// It broke off, or is behind.
    Broken(String),
    /// It told what this volhost does not understand.
    NotUnderstood,
    /// What it should tell is not kept any more.
    Compacted,
    /// The cluster's history is not the one that is known.
    OtherHistory,
    /// What it told does not make what the cluster holds.
    Doubted,
}

/// Watches for as long as the catalog is served.
pub(super) async fn watch(core: Arc<Core>) {
    loop {
        match follow(&core).await {
            End::Broken(why) => {
                log::debug!("the watch of the catalog {}: {why}", core.location);
                tokio::time::sleep(PAUSE).await;
            }
            End::NotUnderstood => tokio::time::sleep(Duration::from_secs(1)).await,
            End::Compacted => {
                log::info!("the catalog {} is read whole again: its history was compacted", core.location);
                read_again(&core, true).await;
            }
            End::OtherHistory => {
                log::info!("the catalog {} is read whole again: its history is another one", core.location);
                read_again(&core, false).await;
            }
            End::Doubted => read_again(&core, true).await,
        }
    }
}

/// Reads the catalog whole, where the watch cannot tell what happened.
async fn read_again(core: &Core, same_history: bool) {
    let reader = Reader {
        members: &core.members,
        keys: &core.keys,
        location: &core.location,
        patience: Patience::Endless,
    };
    match reader.read().await {
        Ok(snapshot) => {
            core.memory.replace(snapshot, same_history);
            core.other_history.store(false, Ordering::Release);
            core.doubted.store(false, Ordering::Release);
        }
        Err(error) => {
            core.health.ill(&chain(&error));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

async fn follow(core: &Core) -> End {
    if core.other_history.load(Ordering::Acquire) {
        return End::OtherHistory;
    }
    if core.doubted.load(Ordering::Acquire) {
        return End::Doubted;
    }
    let (reached, head) = core.memory.look(|_, known| (known.reached, known.head.clone()));
    match head_at(core, reached).await {
        Ok(found) if found == head => {}
        // Another history has come as far, or not so far.
        Ok(_) | Err(Trouble { kind: Kind::Ahead, .. }) => {
            core.history_changed(reached);
            return End::OtherHistory;
        }
        Err(Trouble { kind: Kind::Compacted, .. }) => return End::Compacted,
        Err(trouble) => return End::Broken(trouble.text),
    }
    let from = reached + 1;
    let options = WatchOptions::new().with_range(core.keys.end_of_common()).with_start_revision(from);
    let root = core.keys.root();
    let begun =
        core.members.ask(ANSWER, async move |client| client.watch_client().watch(root, Some(options)).await);
    let mut stream = match begun.await {
        Ok(stream) => stream,
        Err(trouble) => return End::Broken(trouble.text),
    };
    // The first message says that the watch was begun: a member that is frozen does not even say that.
    let mut patience = Some(ANSWER);
    loop {
        let message = async {
            match patience {
                Some(patience) => timeout(patience, stream.message()).await,
                None => Ok(stream.message().await),
            }
        };
        let heard = tokio::select! {
            heard = message => heard,
            () = core.watch_anew.notified() => return End::Broken("it is behind".into()),
        };
        let message = match heard {
            Ok(Ok(Some(message))) => message,
            Ok(Ok(None)) => return End::Broken("its member ended it".into()),
            Ok(Err(error)) => return End::Broken(error.to_string()),
            Err(_) => {
                core.members.suspect();
                return End::Broken("its member does not begin it".into());
            }
        };
        patience = None;
        if message.canceled() {
            // A watch below a compaction ends with that revision, and with no reason.
            return if message.compact_revision() > 0 || message.cancel_reason().contains("compacted") {
                End::Compacted
            } else {
                End::Broken(message.cancel_reason().to_owned())
            };
        }
        match core.memory.heard(message.events()) {
            Ok(true) => {}
            Ok(false) => {
                core.history_changed(core.memory.look(|_, known| known.reached));
                return End::OtherHistory;
            }
            // What a newer volhost wrote would be lost by the next change: nothing is changed from now on.
            Err(error) => {
                core.health.stuck(&chain(&error));
                return End::NotUnderstood;
            }
        }
        core.health.unstuck();
    }
}

/// The key that every transaction writes, as it was at a revision: its own revision and value.
async fn head_at(core: &Core, revision: i64) -> Result<Option<Head>, Trouble> {
    let (key, options) = (core.keys.head(), GetOptions::new().with_revision(revision));
    let got = core
        .members
        .ask(ANSWER, async move |client| client.kv_client().get(key, Some(options)).await)
        .await?;
    Ok(got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())))
}
