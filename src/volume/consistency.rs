//! Consistency among instances: each has its own view of the catalog, which may lag behind.
//!
//! Nothing is refused, or said not to exist, because of a stale view. Whatever is found is answered at once; if
//! something is missing or in the way, the view is first brought up to date and examined again. While only this process
//! changes the catalog, none of this costs anything.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Service;
use super::error::Error;
use super::operation::{self, CommitPoint};

/// How long a list waits for an up-to-date view. It is answered in any case: some engines forget volumes that a list
/// leaves out.
const LIST_SYNC_TIMEOUT: Duration = Duration::from_secs(1);

/// How long an operation waits for another instance that is working on the volume.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

impl Service {
    /// Returns true if other instances may change the catalog.
    pub(super) fn is_shared(&self) -> bool {
        self.catalog.is_shared()
    }

    /// Brings the view up to date: afterwards it shows everything that any instance answered before this call.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        if !self.is_shared() {
            return Ok(());
        }
        let limit = self.in_force.load().limits.request;
        match timeout(limit, self.catalog.sync()).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(self.too_long(limit)),
        }
    }

    /// Brings the view up to date for a list. Waits for a second at most and never fails: if the catalog does not answer,
    /// the list shows what was known before.
    pub async fn refresh(&self) {
        if self.is_shared() && !matches!(timeout(LIST_SYNC_TIMEOUT, self.catalog.sync()).await, Ok(Ok(()))) {
            log::debug!("a list is told as it was known before: the catalog does not answer");
        }
    }

    /// Returns what `look` finds in the view. If that is a refusal, calls it again with an up-to-date view.
    pub(super) async fn retry_after_sync<T, F>(&self, mut look: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        match look().await {
            Err(error) if self.is_shared() && is_by_view(&error) => {
                self.sync().await?;
                look().await
            }
            found => found,
        }
    }

    /// Runs an operation in its own task for as long as a request may take: see [`operation::run`].
    pub(super) async fn operate<T, F>(&self, work: impl FnOnce(Arc<CommitPoint>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let limit = self.in_force.load().limits.request;
        operation::run(limit, work).await.map_err(|error| match error {
            Error::TooLong { limit, .. } => self.too_long(limit),
            error => error,
        })
    }

    /// Returns the error of an operation that took too long, with its reason if one is known.
    pub(super) fn too_long(&self, limit: Duration) -> Error {
        Error::TooLong { limit, catalog: self.catalog_fault() }
    }
}

/// The waiting time for another instance that is working on a volume; each wait is a little longer.
pub(super) struct PeerBackoff {
    deadline: Instant,
    pause: Duration,
}

impl PeerBackoff {
    pub(super) fn new() -> Self {
        Self { deadline: Instant::now() + PEER_TIMEOUT, pause: Duration::from_millis(20) }
    }

    /// Waits and returns true, or returns false if the time is over.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.deadline {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PEER_TIMEOUT / 10);
        true
    }
}

/// Returns true if an operation was refused because of the view's content.
fn is_by_view(error: &Error) -> bool {
    match error {
        Error::NoSuchVolume(_)
        | Error::NotInTrash(_)
        | Error::BeingDeleted(_)
        | Error::NameTaken(_)
        | Error::Different { .. }
        | Error::Exists(_)
        | Error::Forbidden { .. }
        | Error::Mounted { .. }
        | Error::Exclusive { .. }
        | Error::Cloned { .. }
        | Error::TooManyVolumes { .. }
        | Error::TooManyMounts { .. }
        | Error::Unmapped { .. } => true,
        Error::Name(_)
        | Error::MountId(_)
        | Error::Options(_)
        | Error::NoSuchBackend { .. }
        | Error::BackendOutOfSight { .. }
        | Error::NothingOpen { .. }
        | Error::BackendNotSaid { .. }
        | Error::Draining(_)
        | Error::NothingToAdopt { .. }
        // The view was up to date when this was refused.
        | Error::SameDirectory { .. }
        | Error::Identity { .. }
        | Error::Backend(_)
        // Recovery has brought the view up to date before this.
        | Error::DirectoryGone { .. }
        | Error::NotADirectory { .. }
        | Error::RecoveryPending(_)
        // The catalog's decision was true when it was made.
        | Error::Catalog(_)
        | Error::TooLong { .. }
        | Error::Abandoned
        | Error::Unknown
        | Error::Stopping => false,
    }
}
