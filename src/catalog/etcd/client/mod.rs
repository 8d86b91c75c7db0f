//! The cluster as this instance calls it: its members, whether they answer, where the catalog's keys lie, and the lease
//! that this instance's claims end with.
//!
//! It knows no record and no volume. It never repeats a call by itself, because only the caller knows whether that is safe.

mod call;
mod health;
mod lease;
mod members;
mod reader;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use uuid::Uuid;

pub(crate) use self::call::{CallError, CallErrorKind};
pub(crate) use self::health::Health;
pub(crate) use self::lease::{Lease, NO_LEASE, grant, keep_alive, revoke};
pub(crate) use self::members::{ANSWER, Members};
pub(crate) use self::reader::{Format, LARGEST, Reader, RetryLimit, State};
use super::error::OpenError;
use super::keys::Keys;
use crate::catalog::{CatalogError, Cluster, Credentials};

/// How often the credentials' files are read, to see whether they have changed.
const FOLLOW: Duration = Duration::from_secs(1);

/// How long reading them may take before a warning is logged.
const SLOW: Duration = Duration::from_secs(10);

/// One cluster, one catalog in it, and this instance.
pub(crate) struct Client {
    /// The catalog's location, as messages show it.
    pub(crate) location: String,
    pub(crate) keys: Keys,
    /// The ID of this instance, which is its own for as long as its outbox exists.
    pub(crate) me: Uuid,
    pub(crate) members: Members,
    pub(crate) health: Health,
    pub(crate) lease: Lease,
}

impl Client {
    /// Reads the credentials; calls nobody. `request` is how long a request may take.
    pub(crate) fn new(
        cluster: &Cluster,
        credentials: &Credentials,
        me: Uuid,
        request: Duration,
    ) -> Result<Self, OpenError> {
        let location = cluster.to_string();
        Ok(Self {
            keys: Keys::new(cluster),
            me,
            members: Members::new(cluster, credentials)?,
            health: Health::new(location.clone(), request),
            lease: Lease::none(),
            location,
        })
    }

    /// Returns a reader that asks until it is answered.
    pub(crate) fn reader(&self) -> Reader<'_> {
        let Self { location, keys, members, .. } = self;
        Reader { members, keys, location, retry: RetryLimit::Endless }
    }

    /// The error of a request while the cluster is out of reach.
    pub(crate) fn unreachable(&self, why: Arc<String>) -> CatalogError {
        CatalogError::Unreachable { location: self.location.clone(), why }
    }

    /// The error of a change that the cluster did not take.
    pub(crate) fn failed(&self, why: String) -> CatalogError {
        CatalogError::Write {
            location: self.location.clone(),
            source: Arc::from(Box::<dyn std::error::Error + Send + Sync>::from(why)),
        }
    }

    /// Ends the lease, and with it every claim of this instance. Returns true if it has ended.
    ///
    /// After a restore, the cluster holds claims again that this instance has released. Its lease, kept alive, would
    /// keep them forever.
    pub(crate) async fn end_lease(&self) -> bool {
        let id = self.lease.id();
        match revoke(&self.members, id).await {
            Ok(()) | Err(CallError { kind: CallErrorKind::LeaseGone, .. }) => {
                self.lease.lost(id);
                true
            }
            Err(error) => {
                log::debug!("the lease of this instance: {}", error.text);
                false
            }
        }
    }

    /// Waits until the lease `gone` was replaced.
    pub(crate) async fn renew_lease(&self, gone: i64) -> Result<(), CatalogError> {
        while self.lease.id() == gone {
            self.lease.ask_for_another();
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
                why = self.health.out_of_reach() => return Err(self.unreachable(why)),
            }
        }
        Ok(())
    }
}

/// Takes up changed credentials, for as long as the catalog is served.
pub(crate) async fn follow_credentials(client: Arc<Client>) {
    let mut said = false;
    loop {
        tokio::time::sleep(FOLLOW).await;
        let Ok(followed) = timeout(SLOW, client.members.reload_credentials()).await else {
            if !said {
                log::warn!(
                    "what \"etcd\" names could not be read within {} s: its storage does not answer; what it held before \
                     is used on",
                    SLOW.as_secs()
                );
            }
            said = true;
            continue;
        };
        match followed {
            Ok(true) => {
                log::info!(
                    "what \"etcd\" names has changed: the catalog {} is called with it",
                    client.location
                );
                said = false;
            }
            Ok(false) => said = false,
            Err(error) if !said => {
                log::warn!("{}; what it held before is used on", crate::error::chain(&error));
                said = true;
            }
            Err(_) => {}
        }
    }
}
