//! This instance among the others: a lease that ends some seconds after the instance does, and with it everything that
//! holds only while it lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::core::Core;
use super::members::{ANSWER, CallError, Kind, Members};
use super::presence::Presence;
use super::watch_health::WatchFault;

/// For how long a claim outlives the instance that made it, in seconds.
pub(super) const TTL: i64 = 15;

/// A lease that there never is: what is written with it is refused until there is another one. With 0 it would be
/// written without a lease, and would not end with the instance.
pub(super) const NONE: i64 = -1;

/// How often it is said that the instance lives.
const BEAT: Duration = Duration::from_secs(4);

/// Asks for a lease.
pub(super) async fn grant(members: &Members) -> Result<i64, CallError> {
    let granted =
        members.ask(ANSWER, async move |client| client.lease_client().grant(TTL, None).await).await?;
    Ok(granted.id())
}

/// Keeps the lease for as long as the catalog is served, and gets another one where it is gone.
pub(super) async fn keep(core: Arc<Core>, presence: Presence) {
    loop {
        let lease = core.lease.load(Ordering::Acquire);
        let alive = match beat(&core, lease).await {
            Ok(()) => true,
            Err(CallError { kind: Kind::LeaseGone, .. }) => false,
            // Whether it is gone is not known: it is not while the cluster has no quorum.
            Err(trouble) => {
                log::debug!("the lease of this instance: {}", trouble.text);
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        if !alive && let Err(trouble) = renew(&core, &presence).await {
            log::debug!("no lease for this instance: {}", trouble.text);
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let _ = timeout(BEAT, core.lease_gone.notified()).await;
    }
}

/// Says that this instance lives.
async fn beat(core: &Core, lease: i64) -> Result<(), CallError> {
    // What comes back could keep the lease alive further; one message now and then does, too.
    core.members
        .ask(ANSWER, async move |client| client.lease_client().keep_alive(lease).await)
        .await
        .map(drop)
}

/// Gets another lease. What the last one held is for others to mend by now.
async fn renew(core: &Core, presence: &Presence) -> Result<(), CallError> {
    let lease = grant(&core.members).await?;
    if !presence.appear(&core.members, &core.keys, lease, None).await? {
        let why = core.namesake(&presence.serving.node);
        core.watch_failed(WatchFault::Namesake, &why);
        // It holds nothing, and would count on for a while.
        let _ = core.members.ask(ANSWER, async move |client| client.lease_client().revoke(lease).await).await;
        return Err(CallError { kind: Kind::Refused, text: why, asked: Instant::now() });
    }
    core.watch_recovered(WatchFault::Namesake);
    if core.lease.swap(lease, Ordering::AcqRel) != NONE {
        log::warn!(
            "the catalog {}: this instance was away for longer than {TTL} s; what it had begun is mended by others",
            core.location
        );
    }
    Ok(())
}

/// Ends what holds while this instance lives, at once.
pub(super) async fn leave(core: &Core) {
    if let Err(trouble) = revoke(core, core.lease.load(Ordering::Acquire)).await {
        log::debug!("the lease of this instance ends by itself: {}", trouble.text);
    }
}

/// Ends what a history that came back has of this instance's: claims that it has given back since, whose lease it would
/// keep for ever. The next lease holds nothing. Returns whether that is done.
pub(super) async fn end(core: &Core) -> bool {
    let lease = core.lease.load(Ordering::Acquire);
    match revoke(core, lease).await {
        Ok(()) | Err(CallError { kind: Kind::LeaseGone, .. }) => {
            // Where it is another one by now, that is of the history that there is.
            let _ = core.lease.compare_exchange(lease, NONE, Ordering::AcqRel, Ordering::Acquire);
            core.lease_gone.notify_one();
            true
        }
        Err(trouble) => {
            log::debug!("the lease of this instance: {}", trouble.text);
            false
        }
    }
}

async fn revoke(core: &Core, lease: i64) -> Result<(), CallError> {
    core.members.ask(ANSWER, async move |client| client.lease_client().revoke(lease).await).await.map(drop)
}
