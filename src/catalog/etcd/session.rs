//! This instance among the others: a lease that ends some seconds after the instance does, and with it everything that
//! holds only while it lives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use etcd_client::{Compare, PutOptions, Txn, TxnOp};
use tokio::time::timeout;

use super::core::Core;
use super::members::{ANSWER, Kind, Members, Trouble};

/// For how long a claim outlives the instance that made it, in seconds.
pub(super) const TTL: i64 = 15;

/// How often it is said that the instance lives.
const BEAT: Duration = Duration::from_secs(4);

/// Asks for a lease.
pub(super) async fn grant(members: &Members) -> Result<i64, Trouble> {
    let granted =
        members.ask(ANSWER, async move |client| client.lease_client().grant(TTL, None).await).await?;
    Ok(granted.id())
}

/// Keeps the lease for as long as the catalog is served, and gets another one where it is gone.
pub(super) async fn keep(core: Arc<Core>, node: String) {
    loop {
        let lease = core.lease.load(Ordering::Acquire);
        let alive = match beat(&core, lease).await {
            Ok(()) => true,
            Err(Trouble { kind: Kind::LeaseGone, .. }) => false,
            // Whether it is gone is not known: it is not while the cluster has no quorum.
            Err(trouble) => {
                log::debug!("the lease of this instance: {}", trouble.text);
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        if !alive && let Err(trouble) = renew(&core, &node).await {
            log::debug!("no lease for this instance: {}", trouble.text);
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let _ = timeout(BEAT, core.lease_gone.notified()).await;
    }
}

/// Says that this instance lives.
async fn beat(core: &Core, lease: i64) -> Result<(), Trouble> {
    // What comes back could keep the lease alive further; one message now and then does, too.
    core.members
        .ask(ANSWER, async move |client| client.lease_client().keep_alive(lease).await)
        .await
        .map(drop)
}

/// Gets another lease. What the last one held is for others to mend by now.
async fn renew(core: &Core, node: &str) -> Result<(), Trouble> {
    let lease = grant(&core.members).await?;
    appear(core, lease, node, None).await?;
    if core.lease.swap(lease, Ordering::AcqRel) != 0 {
        log::warn!(
            "the catalog {}: this instance was away for longer than {TTL} s; what it had begun is mended by others",
            core.location
        );
    }
    Ok(())
}

/// Ends what holds while this instance lives, at once.
pub(super) async fn leave(core: &Core) {
    let lease = core.lease.load(Ordering::Acquire);
    let left = core.members.ask(ANSWER, async move |client| client.lease_client().revoke(lease).await).await;
    if let Err(trouble) = left {
        log::debug!("the lease of this instance ends by itself: {}", trouble.text);
    }
}

/// Is there for the others to see, unless this condition does not hold.
pub(super) async fn appear(
    core: &Core,
    lease: i64,
    node: &str,
    condition: Option<Compare>,
) -> Result<bool, Trouble> {
    let (key, value) = (core.keys.instance(core.me), serde_json::json!({ "node": node }).to_string());
    let put = TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
    let appear = Txn::new().when(Vec::from_iter(condition)).and_then([put]);
    let answer = core.members.ask(ANSWER, async move |client| client.kv_client().txn(appear).await).await?;
    Ok(answer.succeeded())
}
