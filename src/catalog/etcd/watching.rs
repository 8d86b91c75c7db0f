//! The watch: what all instances wrote, in the order of revisions, taken into the memory.
//!
//! It is begun anew where it breaks off, at the revision that was reached; where that lies before the cluster's last
//! compaction, the catalog is read whole again. It never skips an event.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::WatchOptions;
use tokio::time::timeout;

use super::core::Core;
use super::load::{Patience, Reader};
use super::members::ANSWER;
use crate::error::chain;

/// How long after the watch broke off it is begun anew.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a watch ended.
enum End {
    /// It broke off, or is behind.
    Broken(String),
    /// What it should tell is not kept any more, or never was in this history.
    Compacted,
}

/// Watches for as long as the catalog is served.
pub(super) async fn watch(core: Arc<Core>) {
    loop {
        match follow(&core).await {
            End::Broken(why) => {
                log::debug!("the watch of the catalog {}: {why}", core.location);
                tokio::time::sleep(PAUSE).await;
            }
            End::Compacted => {
                log::info!(
                    "the catalog {} is read whole again: its history is another one, or was compacted",
                    core.location
                );
                let reader = Reader {
                    members: &core.members,
                    keys: &core.keys,
                    location: &core.location,
                    patience: Patience::Endless,
                };
                match reader.read().await {
                    Ok(snapshot) => core.memory.replace(snapshot),
                    Err(error) => {
                        core.health.ill(&chain(&error));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    }
}

async fn follow(core: &Core) -> End {
    if core.other_history.swap(false, Ordering::AcqRel) {
        return End::Compacted;
    }
    let from = core.memory.look(|_, known| known.reached) + 1;
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
                core.members.suspect().await;
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
        if let Err(error) = core.memory.heard(message.events()) {
            // What a newer volhost wrote would be lost by the next change: nothing is changed from now on.
            core.health.ill(&format!("{}; no change is taken in", chain(&error)));
            return End::Broken(chain(&error));
        }
    }
}
