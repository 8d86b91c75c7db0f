//! Deleting for good what was removed: when its time is over, when it was asked for, or the oldest first when space
//! runs out.
//!
//! The only place that deletes data, and only what a Remove was recorded for. It goes in small slices with pauses, so
//! that live volumes keep their storage's attention; the backend's identity is checked before each; and what was
//! begun is taken up again after a restart, because the record goes last.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use time::OffsetDateTime;

use super::Service;
use super::error::Error;
use super::name::VolumeId;
use super::step::step;
use crate::backend::name::BackendName;
use crate::backend::{Backend, Health, Progress};
use crate::catalog::{Change, Removed};
use crate::error::chain;

/// How often the trash is looked through when nothing was removed meanwhile.
const ROUND: Duration = Duration::from_secs(30);

/// How many entries go before a pause.
const SLICE: usize = 256;

/// The pause: with [`SLICE`] it bounds the rate to about 5,000 entries a second for each backend.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a volume that could not be deleted is left alone.
const RETRY: Duration = Duration::from_secs(600);

/// Below one part in this many, space runs out.
const SCARCE: u64 = 10;

/// Why a removed volume could not be deleted.
#[derive(Debug, Clone)]
pub(super) struct Blocked {
    /// What stands in the way.
    pub(super) reason: String,
    /// When that was found.
    at: Instant,
}

impl Service {
    /// Empties the trash for as long as the service runs.
    pub async fn keep_trash(self: Arc<Self>) {
        let mut purges: HashMap<BackendName, tokio::task::JoinHandle<()>> = HashMap::new();
        loop {
            purges.retain(|_, purge| !purge.is_finished());
            for backend in self.in_force.load().map.iter() {
                if !purges.contains_key(backend.name()) && self.next_due(backend).is_some() {
                    let (service, backend) = (Arc::clone(&self), Arc::clone(backend));
                    let name = backend.name().clone();
                    purges.insert(name, tokio::spawn(async move { service.purge_due(&backend).await }));
                }
            }
            // A notification that comes while nobody waits is kept, so that no removal is overlooked.
            let _ = tokio::time::timeout(ROUND, self.purge.notified()).await;
        }
    }

    /// Deletes what is due on one backend, one volume after the other.
    async fn purge_due(self: &Arc<Self>, backend: &Arc<Backend>) {
        while let Some(removed) = self.next_due(backend) {
            if let Err(error) = self.purge_volume(backend, &removed).await {
                self.block(&removed, chain(&error));
            }
        }
        // What became due just after the last look would else wait for the next round.
        self.purge.notify_one();
    }

    /// The next removed volume to delete: the oldest that is due, or the oldest at all while space is scarce.
    fn next_due(&self, backend: &Backend) -> Option<Arc<Removed>> {
        let now = OffsetDateTime::now_utc();
        let scarce = is_scarce(&backend.health());
        let view = self.catalog.view();
        view.trash
            .values()
            .filter(|removed| removed.volume.backend == *backend.name())
            .filter(|removed| !self.is_blocked(removed.volume.id))
            .filter(|removed| scarce || expires_at(removed, backend).is_some_and(|at| at <= now))
            .min_by_key(|removed| removed.at)
            .cloned()
    }

    async fn purge_volume(self: &Arc<Self>, backend: &Arc<Backend>, removed: &Removed) -> Result<(), Error> {
        let (id, name) = (removed.volume.id, &removed.volume.name);
        // A volume that is being restored is not deleted, and one that is being deleted is not restored.
        let Some(_moving) = self.moving(id) else { return Err(Error::NotMended(name.clone())) };
        if !self.catalog.view().trash.contains_key(&id) {
            return Ok(());
        }
        let expect = self.ready(backend).await?;
        loop {
            match backend.run(expect, move |root| root.purge(id, SLICE)).await? {
                Progress::Done => break,
                Progress::More { .. } => tokio::time::sleep(PAUSE).await,
                Progress::Blocked { path, reason } => {
                    self.block(removed, format!("{}: {reason}", path.display()));
                    return Ok(());
                }
            }
        }
        step("purge:deleted");
        self.catalog.submit(Change::Forget(id)).await?;
        step("purge:forgotten");
        log::info!("deleted volume {name}, removed at {}, for good", super::error::rfc3339(removed.at));
        // Whether space is still scarce is a matter of what is free now.
        backend.probe(expect).await;
        Ok(())
    }

    fn block(&self, removed: &Removed, reason: String) {
        log::warn!("removed volume {} cannot be deleted yet: {reason}", removed.volume.name);
        let blocked = Blocked { reason, at: Instant::now() };
        self.blocked.lock().unwrap_or_else(PoisonError::into_inner).insert(removed.volume.id, blocked);
    }

    fn is_blocked(&self, id: VolumeId) -> bool {
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.get(&id).is_some_and(|blocked| blocked.at.elapsed() < RETRY)
    }
}

/// When a removed volume is to be deleted; nothing, where that is beyond what can be written.
pub(super) fn expires_at(removed: &Removed, backend: &Backend) -> Option<OffsetDateTime> {
    if removed.expired {
        return Some(removed.at);
    }
    removed.at.checked_add(backend.settings().trash.try_into().ok()?)
}

fn is_scarce(health: &Health) -> bool {
    match health {
        Health::Online { total_bytes, free_bytes } => free_bytes.saturating_mul(SCARCE) < *total_bytes,
        Health::Offline { .. } | Health::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_scarce_below_a_tenth() {
        assert!(is_scarce(&Health::Online { total_bytes: 1000, free_bytes: 99 }));
        assert!(!is_scarce(&Health::Online { total_bytes: 1000, free_bytes: 100 }));
        assert!(!is_scarce(&Health::Online { total_bytes: 0, free_bytes: 0 }));
        assert!(!is_scarce(&Health::Unknown));
    }
}
