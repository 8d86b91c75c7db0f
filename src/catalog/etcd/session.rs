//! Keeps this instance present among the others: renews its lease, and replaces it when it is lost.
//!
//! A key written under the lease ends some seconds after the instance does. It must never be renewed for an instance
//! whose name another one has taken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::client::{self, CallError, CallErrorKind, Client, NO_LEASE};
use super::keys::TTL;
use super::presence::Presence;
use super::replica::{Fault, Replica};

/// How often the lease is renewed.
const BEAT: Duration = Duration::from_secs(4);

/// Keeps the lease alive for as long as the catalog is served, and replaces it when it is lost.
pub(super) async fn keep(client: Arc<Client>, replica: Arc<Replica>, presence: Presence) {
    loop {
        let alive = match client::keep_alive(&client.members, client.lease.id()).await {
            Ok(()) => true,
            Err(CallError { kind: CallErrorKind::LeaseGone, .. }) => false,
            // It may still exist: leases do not expire while the cluster has no quorum.
            Err(error) => {
                log::debug!("the lease of this instance: {}", error.text);
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        if !alive && let Err(error) = replace(&client, &replica, &presence).await {
            log::debug!("no lease for this instance: {}", error.text);
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        client.lease.await_loss(BEAT).await;
    }
}

/// Obtains another lease and appears under it. The claims under the last one have ended; other instances recover their
/// volumes.
async fn replace(client: &Client, replica: &Replica, presence: &Presence) -> Result<(), CallError> {
    let lease = client::grant(&client.members).await?;
    if !presence.appear(&client.members, &client.keys, lease, None).await? {
        let why = namesake(client, &presence.serving.node);
        replica.fail(Fault::Namesake, &why);
        // It holds nothing; unrevoked it would count for its 15 s.
        let _ = client::revoke(&client.members, lease).await;
        return Err(CallError { kind: CallErrorKind::Refused, text: why, asked: Instant::now() });
    }
    replica.recover(Fault::Namesake);
    if client.lease.replace(lease) != NO_LEASE {
        log::warn!(
            "the catalog {}: this instance was away for longer than {TTL} s; what it had begun is mended by others",
            client.location
        );
    }
    Ok(())
}

/// Ends the lease of an instance that stops, so that nobody waits for it to expire.
pub(super) async fn leave(client: &Client) {
    if let Err(error) = client::revoke(&client.members, client.lease.id()).await {
        log::debug!("the lease of this instance ends by itself: {}", error.text);
    }
}

/// The fault of an instance whose name was taken while it was cut off.
fn namesake(client: &Client, node: &str) -> String {
    format!(
        "another instance took the name {node} while this one was cut off from the catalog {}: stop one of them, or set \
         \"node\" to another name there",
        client.location
    )
}
