//! What other instances did: several may serve one catalog, each with a view of its own, which may lag behind.
//!
//! Nothing is refused, or said not to exist, because of a view that may be old. What is found is told at once; what is
//! missing, or stands in the way, is looked at once more in a view that is fresh. Where only this process changes the
//! catalog, none of this costs anything.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::Service;
use super::error::Error;
use super::operation::{self, CommitPoint};

/// How long a list waits to be fresh. It is told in any case: some engines forget what a list leaves out.
const LISTED: Duration = Duration::from_secs(1);

/// How long is waited for another instance that is at work on a volume.
const AT_WORK: Duration = Duration::from_secs(5);

impl Service {
    /// Whether other instances may change what this one knows.
    pub(super) fn is_shared(&self) -> bool {
        self.catalog.is_shared()
    }

    /// Makes sure that the view shows everything that any instance answered before.
    pub(super) async fn sync(&self) -> Result<(), Error> {
        if !self.is_shared() {
            return Ok(());
        }
        let limit = self.in_force.load().request;
        match timeout(limit, self.catalog.sync()).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(self.too_long(limit)),
        }
    }

    /// Has the view show what other instances did, for a list: waits a moment at most and never fails. What was known
    /// before is told where the catalog does not answer.
    pub async fn refresh(&self) {
        if self.is_shared() && !matches!(timeout(LISTED, self.catalog.sync()).await, Ok(Ok(()))) {
            log::debug!("a list is told as it was known before: the catalog does not answer");
        }
    }

    /// What `look` finds. What it refuses because of the view is refused only once that was fresh.
    pub(super) async fn certain<T, F>(&self, mut look: impl FnMut() -> F) -> Result<T, Error>
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

    /// Runs an operation in a task of its own, for as long as a request may take: see [`operation::run`].
    pub(super) async fn operate<T, F>(&self, work: impl FnOnce(Arc<CommitPoint>) -> F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let limit = self.in_force.load().request;
        operation::run(limit, work).await.map_err(|error| match error {
            Error::TooLong { limit, .. } => self.too_long(limit),
            error => error,
        })
    }

    /// That something took too long, with what is known of the reason.
    pub(super) fn too_long(&self, limit: Duration) -> Error {
        Error::TooLong { limit, catalog: self.catalog_fault() }
    }

    /// Has every backend looked through again when another instance was lost since the last call: what it had begun is
    /// finished or undone by those that are left.
    pub(super) fn note_lost(&self) {
        let Some(news) = &self.news else { return };
        let lost = news.borrow().lost;
        if self.lost.swap(lost, Ordering::AcqRel) != lost {
            for backend in self.in_force.load().map.iter() {
                self.mark_unmended(backend.name());
            }
        }
    }
}

/// Waiting for another instance, a little longer each time.
pub(super) struct Backoff {
    until: Instant,
    pause: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { until: Instant::now() + AT_WORK, pause: Duration::from_millis(20) }
    }

    /// Waits; whether it is worth it to look again.
    pub(super) async fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(AT_WORK / 10);
        true
    }
}

/// Whether an operation was refused because of what the view shows.
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
        // Whoever refused it asked the catalog for that.
        | Error::SameDirectory { .. }
        | Error::Identity { .. }
        | Error::Backend(_)
        // Whoever mended last asked the catalog for that.
        | Error::DirectoryGone { .. }
        | Error::NotADirectory { .. }
        | Error::NotMended(_)
        // The catalog refuses only what is true when it decides.
        | Error::Catalog(_)
        | Error::TooLong { .. }
        | Error::Abandoned
        | Error::Unknown
        | Error::Stopping => false,
    }
}
