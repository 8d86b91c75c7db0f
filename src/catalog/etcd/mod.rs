//! The shared engine: a catalog in an etcd cluster, which any number of instances serve at once.
//!
//! # How a change becomes durable
//!
//! Each record is a key. The rules decide a change on the replica's view. It is sent as one transaction, with the condition
//! that the rows that the rules read still have the known revisions. If they do not, the view is brought up to date and
//! the change is decided again. A change is shown and answered only after the cluster has committed it. Two changes of one
//! instance that touch the same volume or host are decided in the order of their submission; all others run at the same
//! time.
//!
//! # How an instance learns what others did
//!
//! A watch delivers every instance's writes in the order of revisions. It is a little late, so nothing is refused, and no
//! volume is said not to exist, before the view is up to date: every transaction writes the key `head`, whose latest
//! revision a quorum reports and the watch must reach. An instance that does not receive or understand what others write
//! decides nothing.
//!
//! # What ends with an instance
//!
//! A volume that is not visible yet, and the right to move a directory, are keys under the instance's lease. If the
//! instance ends, or is cut off for longer than the lease, they vanish: its volumes are then visible and unconfirmed to
//! the others, as they are to the embedded engine after a crash, and are recovered in the same way.
//!
//! # When a member does not answer
//!
//! Another one is asked. What was sent may still take effect, so it is sent again in the same slot until its outcome is
//! known. While no quorum answers, no change begins; Unmounts are kept in the outbox and carried out exactly once; reads go
//! on from memory.
//!
//! # The parts
//!
//! Each uses only those above it.
//! - [`client`]: the cluster's members, their health, the lease; [`keys`]: where everything lies.
//! - [`replica`]: the memory, the watch, whether the memory can be trusted.
//! - [`txn`]: plans and slots; sends a transaction until its outcome is known.
//! - [`session`] and [`presence`]: keep the lease alive; no two instances have one name.
//! - [`outbox`]: the requests that were answered and are not in the cluster yet.
//! - [`core`]: a change, from its plan to its outcome, with [`key_locks`] for the order; [`dir_locks`]: the right to move a
//!   directory; [`replay`]: carries out the outbox.
//! - [`open`]: starts all of them; [`offline`]: a catalog that no instance serves.
//!
//! It must never answer a change that is durable neither in the cluster nor in the outbox, and never take a lost answer for
//! a transaction that was not made.

mod client;
mod core;
mod dir_locks;
mod error;
mod key_locks;
mod keys;
mod offline;
mod open;
mod outbox;
mod presence;
mod replay;
mod replica;
mod session;
#[cfg(test)]
mod tests;
mod txn;

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::timeout;
use uuid::Uuid;

use self::client::ANSWER;
use self::core::{Core, queue};
use self::dir_locks::DirLocks;
pub use self::error::OpenError;
pub use self::offline::{NewCatalog, read};
pub use self::open::open;
use super::{Catalog, CatalogError, CatalogFuture, Change, DistributedLock, PeerEvents, Submitted, View};

/// How long closing waits for changes under way.
const CLOSING: Duration = Duration::from_secs(5);

/// A catalog in a cluster. Dropping it waits for changes under way, as [`close`](Catalog::close) does; the keys under the
/// lease end some seconds later.
pub struct Etcd {
    core: Arc<Core>,
    dir_locks: Arc<DirLocks>,
    /// The number of changes under way.
    under_way: Arc<Sender<usize>>,
    /// True once the catalog is being closed.
    closing: Sender<bool>,
    /// Runs every task, so that a change goes on when nobody waits for it any more.
    runtime: Option<Runtime>,
}

impl Etcd {
    /// Runs a question to its end, whether or not anybody waits for it.
    fn run<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, CatalogError>> + Send + 'static,
    ) -> CatalogFuture<T> {
        let Some(runtime) = self.runtime.as_ref().filter(|_| !*self.closing.borrow()) else {
            return Box::pin(ready(Err(CatalogError::Closed)));
        };
        let (answer, answered) = oneshot::channel();
        self.under_way.send_modify(|count| *count += 1);
        let ended = UnderWay(Arc::clone(&self.under_way));
        runtime.spawn(async move {
            // The caller may have stopped waiting; the change stands all the same.
            let _ = answer.send(question.await);
            drop(ended);
        });
        Box::pin(async move { answered.await.unwrap_or(Err(CatalogError::Closed)) })
    }
}

/// Counts as under way until it is dropped, also by a panic.
struct UnderWay(Arc<Sender<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Catalog for Etcd {
    fn view(&self) -> Arc<View> {
        self.core.replica.memory.view()
    }

    fn submit(&self, change: Change) -> Submitted {
        let core = Arc::clone(&self.core);
        // It is queued now, in the order of calls.
        let mut turn = queue(&core, &change);
        self.run(async move {
            core.wait_for_turn(&mut turn, &change).await;
            core.carry_out(change).await
        })
    }

    fn sync(&self) -> CatalogFuture<()> {
        let core = Arc::clone(&self.core);
        self.run(async move { core.replica.sync().await })
    }

    fn try_lock(&self, id: crate::model::volume::VolumeId) -> CatalogFuture<Option<DistributedLock>> {
        let locks = Arc::clone(&self.dir_locks);
        self.run(async move { locks.try_lock(id).await })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn limit_requests(&self, limit: Duration) {
        self.core.client.health.limit_requests(limit);
    }

    fn peer_events(&self) -> Option<Receiver<PeerEvents>> {
        Some(self.core.replica.memory.peer_events())
    }

    fn machine(&self) -> Uuid {
        self.core.client.me
    }

    fn location(&self) -> &str {
        &self.core.client.location
    }

    fn fault(&self) -> Option<Arc<String>> {
        match (self.core.client.health.fault(), self.core.outbox.len()) {
            (fault, 0) => fault,
            (Some(fault), kept) => {
                Some(Arc::new(format!("{fault}; {kept} answered requests are kept until it is back")))
            }
            (None, kept) => Some(Arc::new(format!("{kept} answered requests are not recorded yet"))),
        }
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.closing.send_replace(true);
        let (core, mut under_way) = (Arc::clone(&self.core), self.under_way.subscribe());
        let Some(runtime) = &self.runtime else { return Box::pin(ready(())) };
        let closed = runtime.spawn(async move {
            if timeout(CLOSING, under_way.wait_for(|count| *count == 0)).await.is_err() {
                log::warn!(
                    "the catalog {} does not answer: changes under way are given up",
                    core.client.location
                );
            }
            session::leave(&core.client).await;
        });
        Box::pin(async move {
            // The task ends; it reports errors to the log.
            let _ = closed.await;
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let closed = self.closing.send_replace(true);
        let Some(runtime) = self.runtime.take() else { return };
        let mut under_way = self.under_way.subscribe();
        // A separate thread waits, because the thread that drops this may be one that must not block.
        let end = std::thread::Builder::new().name("etcd-end".into()).spawn(move || {
            // `close` has waited for the changes already.
            if !closed {
                let waited =
                    async { timeout(CLOSING, under_way.wait_for(|count| *count == 0)).await.is_ok() };
                runtime.block_on(waited);
            }
            runtime.shutdown_timeout(ANSWER);
        });
        // If the thread cannot be started, the runtime was dropped with its closure, and there is nothing to wait for.
        let Ok(end) = end else { return };
        // The thread does not panic, and nothing could be done if it did.
        let _ = end.join();
    }
}
