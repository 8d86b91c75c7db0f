//! The lease that this instance's claims and its presence end with, some seconds after the instance does.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::call::CallError;
use super::members::{ANSWER, Members};
use crate::catalog::etcd::keys::TTL;

/// The ID of no lease: a write with it is refused until there is a lease. With 0 the key would be written without a
/// lease, and would not end with the instance.
pub(crate) const NO_LEASE: i64 = -1;

/// The present lease.
pub(crate) struct Lease {
    id: AtomicI64,
    gone: Notify,
}

impl Lease {
    pub(super) fn none() -> Self {
        Self { id: AtomicI64::new(NO_LEASE), gone: Notify::new() }
    }

    pub(crate) fn id(&self) -> i64 {
        self.id.load(Ordering::Acquire)
    }

    /// Replaces the lease, and returns the ID of the one before.
    pub(crate) fn replace(&self, id: i64) -> i64 {
        self.id.swap(id, Ordering::AcqRel)
    }

    /// Asks for another lease in the place of this one, unless that has happened already.
    pub(super) fn lost(&self, id: i64) {
        let _ = self.id.compare_exchange(id, NO_LEASE, Ordering::AcqRel, Ordering::Acquire);
        self.ask_for_another();
    }

    /// Wakes the task that keeps the lease alive, because a call was told that the lease is gone.
    pub(super) fn ask_for_another(&self) {
        self.gone.notify_one();
    }

    /// Waits until somebody asks for another lease, at most for this long.
    pub(crate) async fn await_loss(&self, limit: Duration) {
        let _ = timeout(limit, self.gone.notified()).await;
    }
}

/// Obtains a lease from the cluster. It holds nothing yet.
pub(crate) async fn grant(members: &Members) -> Result<i64, CallError> {
    let granted =
        members.ask(ANSWER, async move |client| client.lease_client().grant(TTL, None).await).await?;
    Ok(granted.id())
}

/// Renews a lease.
pub(crate) async fn keep_alive(members: &Members, id: i64) -> Result<(), CallError> {
    // The stream of answers could keep the lease alive by itself; one message now and then does, too.
    members.ask(ANSWER, async move |client| client.lease_client().keep_alive(id).await).await.map(drop)
}

/// Ends a lease, and with it every key written under it.
pub(crate) async fn revoke(members: &Members, id: i64) -> Result<(), CallError> {
    members.ask(ANSWER, async move |client| client.lease_client().revoke(id).await).await.map(drop)
}
