//! The durable record of what exists: volumes, their mounts, removed volumes, hosts and backend identities.
//!
//! # How a catalog works
//!
//! A catalog is a [`View`], which is immutable and answers every read from memory, and a way to
//! [`submit`](Catalog::submit) a [`Change`]. The rules of a change (what is refused, how counts change) are pure
//! functions on the view, in [`rules`]; an engine only makes their [`Write`]s durable and orders them. One writer at a
//! time decides. A change that was answered `Ok` is durable; a change that was answered with an error left nothing; and
//! the next view shows exactly the durable changes. Readers take no lock that a writer can hold. The one exception is a
//! change that records only what can be found out again ([`Change::may_follow`]): it is shown and answered at once, and
//! becomes durable with the next change.
//!
//! A catalog is opened once, before anything is served. Either it was read completely and every row was understood, or
//! it is not opened and its files stay as they were. Times are kept to the millisecond, in memory as in the record, so
//! a restart changes nothing that a caller could have seen.
//!
//! This module never touches a volume's directory. Of a backend it knows only the name and the identity.

mod change;
pub(crate) mod clones;
#[cfg(test)]
mod contract;
mod counts;
mod entities;
#[cfg(feature = "etcd")]
pub mod etcd;
pub(crate) mod node_name;
pub(crate) mod offline;
pub(crate) mod reconcile;
pub mod record;
mod rows;
pub(crate) mod rules;
pub mod sqlite;
pub mod text;
pub(crate) mod trash;
pub(crate) mod view;

use std::future::{Future, ready};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

pub(crate) use self::change::Footprint;
#[cfg(feature = "etcd")]
pub(crate) use self::change::{Access, DirectoryUse, Freshness};
pub use self::change::{Change, MAX_CONFIRMED, Outcome, Refusal, UnmountTarget};
pub use self::counts::{BackendCounts, HostCounts};
pub use self::entities::{
    BackendRecord, BackendState, Certificate, CertificateUse, Cloned, Host, Removed, Unconfirmed, Volume,
};
pub use self::node_name::{CandidateName, NodeName};
pub use self::rules::{MountKey, Premise, RowKey, Write};
pub use self::view::View;
pub use crate::model::location::{Cluster, Credentials, InvalidLocation, Location, NoEtcd};
use crate::model::volume::VolumeId;

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// The rules refuse it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be made durable. Nothing was changed.
    #[error("the catalog {location} could not be written")]
    Write {
        /// Where the catalog lies.
        location: String,
        /// The engine's error.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A shared catalog does not answer. Nothing was changed, and anything that is not in memory is unknown.
    #[error("the catalog {location} is out of reach: {why}; what was known before is still shown")]
    Unreachable {
        /// Where the catalog lies.
        location: String,
        /// What was tried, and how it failed.
        why: Arc<String>,
    },
    /// The catalog is being closed.
    #[error("the catalog is closed: volhost is stopping")]
    Closed,
}

/// The answer of a catalog that may have to wait for other instances.
pub type CatalogFuture<T> = Pin<Box<dyn Future<Output = Result<T, CatalogError>> + Send>>;

/// The outcome of a submitted change. The change was queued when [`Catalog::submit`] returned, whether or not this is
/// awaited.
pub type Submitted = CatalogFuture<Outcome>;

/// A lock among all instances that serve the catalog, released when dropped. Only its holder may move the volume's
/// directory. The default value is a lock that needs no release.
#[derive(Default)]
pub struct DistributedLock(Option<Box<dyn FnOnce() + Send>>);

impl DistributedLock {
    /// Returns a lock that calls `release` when it is dropped.
    #[must_use]
    pub fn new(release: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(release)))
    }
}

impl Drop for DistributedLock {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

impl std::fmt::Debug for DistributedLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DistributedLock")
    }
}

/// Counts of what other instances did. A reader that saw an earlier count has something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerEvents {
    /// Changes of a host's certificates and revocations.
    pub certificate_changes: u64,
    /// Instances that ended, each of which may have left operations half-done. Also counted when an end may have been
    /// missed.
    pub lost_instances: u64,
}

/// A catalog engine.
pub trait Catalog: Send + Sync + 'static {
    /// Returns what exists now. Never blocks and never waits for a writer.
    fn view(&self) -> Arc<View>;

    /// Queues a change at once, in the order of calls, and returns its outcome.
    fn submit(&self, change: Change) -> Submitted;

    /// As [`submit`](Self::submit), on a thread that may block: an engine may make the change durable right there, which
    /// saves two wake-ups, and returns a finished outcome then.
    fn submit_blocking(&self, change: Change) -> Submitted {
        self.submit(change)
    }

    /// Returns true if [`submit_blocking`](Self::submit_blocking) would make a change durable right there, as far as can be
    /// told.
    fn is_idle(&self) -> bool {
        false
    }

    /// Makes sure that the view shows every change that any instance answered before this call. Call it before refusing
    /// something, or saying that it does not exist, because of the view. A catalog that only this process changes is
    /// always up to date.
    fn sync(&self) -> CatalogFuture<()> {
        Box::pin(ready(Ok(())))
    }

    /// Locks a volume's directory against other instances; `None` while another instance has the lock. It is needed
    /// before the directory is moved for any other reason than an [`Insert`](Change::Insert) or a
    /// [`Restore`](Change::Restore), which hold the lock themselves until the volume is visible. When the lock is
    /// granted, the view is as fresh as after a [`sync`](Self::sync). The locks of an instance end with it.
    fn try_lock(&self, _id: VolumeId) -> CatalogFuture<Option<DistributedLock>> {
        Box::pin(ready(Ok(Some(DistributedLock::default()))))
    }

    /// Returns true if other instances may serve this catalog as well.
    fn is_shared(&self) -> bool {
        false
    }

    /// Sets how long a request may take from now on. A caller that waits for a shared catalog which does not answer
    /// gets an error before that time is over.
    fn limit_requests(&self, _limit: Duration) {}

    /// Returns the counts of what other instances did; `None` if there can be no other instances.
    fn peer_events(&self) -> Option<watch::Receiver<PeerEvents>> {
        None
    }

    /// Returns the ID of this machine among those that serve the catalog; nil if no other machine can serve it.
    fn machine(&self) -> Uuid {
        Uuid::nil()
    }

    /// Returns where the catalog lies, as the configuration names it (`sqlite:/var/lib/volhost/catalog.db`).
    fn location(&self) -> &str;

    /// Returns why changes cannot be made durable at present, for the operator; `None` as long as no fault is known.
    fn fault(&self) -> Option<Arc<String>>;

    /// Waits until every queued change is durable, then closes the files. Later changes are refused as `Closed`.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Why a catalog was not opened or created. Existing data is unchanged, unless an import was under way.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded engine cannot open it.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// The shared engine cannot open it.
    #[cfg(feature = "etcd")]
    #[error(transparent)]
    Etcd(#[from] etcd::OpenError),
    /// The configuration names an engine that this program was built without.
    #[cfg(not(feature = "etcd"))]
    #[error(transparent)]
    NoEtcd(#[from] NoEtcd),
}

impl OpenError {
    /// Returns true if the error comes from the configuration.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            #[cfg(feature = "etcd")]
            Self::Etcd(error) => error.is_configuration(),
            #[cfg(not(feature = "etcd"))]
            Self::NoEtcd(_) => true,
        }
    }
}

/// What a shared catalog needs to know of this instance, besides where the catalog lies.
#[derive(Debug, Clone)]
pub struct Instance {
    /// The name that this machine asks for among the instances.
    pub candidate_name: CandidateName,
    /// The credentials for the cluster.
    pub credentials: Credentials,
    /// The directory on this machine that holds what is answered while the catalog is out of reach.
    pub spool: PathBuf,
    /// How long a request may take. A caller that waits for a catalog which does not answer gets an error before that.
    pub request: Duration,
}

/// Opens a catalog, or creates an empty one if there is none. Blocks until everything in it was read, so it must be
/// called before anything is served.
pub fn open(location: &Location, instance: &Instance) -> Result<Arc<dyn Catalog>, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(Arc::new(sqlite::open(path)?)),
        #[cfg(feature = "etcd")]
        Location::Etcd(cluster) => Ok(Arc::new(etcd::open(cluster, instance)?)),
        #[cfg(not(feature = "etcd"))]
        Location::Etcd(cluster) => {
            let Instance { candidate_name: _, credentials: _, spool: _, request: _ } = instance;
            Err(NoEtcd(cluster.clone()).into())
        }
    }
}
