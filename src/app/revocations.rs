//! Follows the certificates that other instances of a shared catalog issue and revoke.

use std::sync::Arc;

use tokio::sync::watch;

use crate::catalog::PeerEvents;

/// Calls `changed` whenever another instance has issued or revoked certificates, as this one does after doing so
/// itself: a connection must not outlive its host's revocation, whichever instance made it. Ends with the catalog.
pub(super) async fn follow(mut events: watch::Receiver<PeerEvents>, changed: Arc<dyn Fn() + Send + Sync>) {
    let mut certificate_changes = events.borrow_and_update().certificate_changes;
    while events.changed().await.is_ok() {
        let now = events.borrow_and_update().certificate_changes;
        if std::mem::replace(&mut certificate_changes, now) != now {
            changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn only_news_of_hosts_have_connections_looked_at() {
        let (events, told) = watch::channel(PeerEvents::default());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let count: Arc<dyn Fn() + Send + Sync> = Arc::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let following = tokio::spawn(follow(told, count));
        for (certificate_changes, lost_instances, expected) in [(0, 1, 0), (1, 1, 1), (1, 2, 1), (3, 2, 2)] {
            // By then the task has begun, and has seen the earlier events, because it has nothing else to do.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            events.send_replace(PeerEvents { certificate_changes, lost_instances });
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            assert_eq!(calls.load(Ordering::Relaxed), expected, "{certificate_changes} {lost_instances}");
        }
        drop(events);
        following.await.unwrap();
    }
}
