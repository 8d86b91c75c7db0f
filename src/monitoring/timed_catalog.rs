//! A catalog that measures how long its engine takes.
//!
//! It changes nothing of what the engine does.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;
use uuid::Uuid;

use crate::catalog::{Catalog, CatalogFuture, Change, DistributedLock, PeerEvents, Submitted, View};
use crate::model::volume::VolumeId;

/// The histograms of a catalog's operations.
#[derive(Debug, Clone)]
pub(super) struct CatalogTimes {
    /// From a change to its durable outcome.
    pub change: Histogram,
    /// From asking for the latest changes of other instances to having them.
    pub sync: Histogram,
}

/// Another catalog, measured.
pub(super) struct TimedCatalog {
    inner: Arc<dyn Catalog>,
    times: CatalogTimes,
}

impl TimedCatalog {
    pub(super) fn new(inner: Arc<dyn Catalog>, times: CatalogTimes) -> Self {
        Self { inner, times }
    }
}

/// Observes the time until a future is ready. One that is dropped before that is not observed.
fn timed<T>(
    began: Instant,
    future: impl Future<Output = T> + Send + 'static,
    times: &Histogram,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    let times = times.clone();
    Box::pin(async move {
        let outcome = future.await;
        times.observe(began.elapsed().as_secs_f64());
        outcome
    })
}

impl Catalog for TimedCatalog {
    fn view(&self) -> Arc<View> {
        self.inner.view()
    }

    fn submit(&self, change: Change) -> Submitted {
        timed(Instant::now(), self.inner.submit(change), &self.times.change)
    }

    fn submit_blocking(&self, change: Change) -> Submitted {
        timed(Instant::now(), self.inner.submit_blocking(change), &self.times.change)
    }

    fn is_idle(&self) -> bool {
        self.inner.is_idle()
    }

    fn sync(&self) -> CatalogFuture<()> {
        if !self.inner.is_shared() {
            return self.inner.sync();
        }
        timed(Instant::now(), self.inner.sync(), &self.times.sync)
    }

    fn try_lock(&self, id: VolumeId) -> CatalogFuture<Option<DistributedLock>> {
        self.inner.try_lock(id)
    }

    fn is_shared(&self) -> bool {
        self.inner.is_shared()
    }

    fn limit_requests(&self, limit: Duration) {
        self.inner.limit_requests(limit);
    }

    fn peer_events(&self) -> Option<watch::Receiver<PeerEvents>> {
        self.inner.peer_events()
    }

    fn machine(&self) -> Uuid {
        self.inner.machine()
    }

    fn location(&self) -> &str {
        self.inner.location()
    }

    fn fault(&self) -> Option<Arc<String>> {
        self.inner.fault()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.inner.close()
    }
}
