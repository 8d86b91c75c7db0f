//! Catalogs without a service, whatever their engine: read whole, or made of a whole view.
//!
//! Nothing here changes a catalog that holds something, or that is being served.

#[cfg(not(feature = "etcd"))]
use super::NoEtcd;
use super::{Credentials, Location, OpenError, View, sqlite};
#[cfg(not(feature = "etcd"))]
use crate::model::location::Cluster;

/// Reads a catalog. The embedded engine refuses while a service has it; a shared one is read as it was at one moment.
pub(crate) fn read(location: &Location, credentials: &Credentials) -> Result<View, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(sqlite::read(path)?),
        #[cfg(feature = "etcd")]
        Location::Etcd(cluster) => Ok(super::etcd::read(cluster, credentials)?),
        #[cfg(not(feature = "etcd"))]
        Location::Etcd(cluster) => without(cluster, credentials),
    }
}

/// Reads a catalog, also while a service has it: what was durable at one moment.
pub(crate) fn peek(location: &Location, credentials: &Credentials) -> Result<View, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(sqlite::peek(path)?),
        Location::Etcd(_) => read(location, credentials),
    }
}

/// The right to make a catalog where there is none, or an empty one.
pub(crate) enum NewCatalog {
    /// In a file.
    Sqlite(sqlite::NewCatalog),
    /// In a cluster.
    #[cfg(feature = "etcd")]
    Etcd(Box<super::etcd::NewCatalog>),
}

impl NewCatalog {
    /// Claims a place where no catalog is.
    pub(crate) fn if_missing(location: &Location, credentials: &Credentials) -> Result<Self, OpenError> {
        match location {
            Location::Sqlite(path) => Ok(Self::Sqlite(sqlite::NewCatalog::if_missing(path)?)),
            #[cfg(feature = "etcd")]
            Location::Etcd(cluster) => {
                Ok(Self::Etcd(super::etcd::NewCatalog::if_missing(cluster, credentials)?.into()))
            }
            #[cfg(not(feature = "etcd"))]
            Location::Etcd(cluster) => without(cluster, credentials),
        }
    }

    /// Claims a place where no catalog is, or one without a record.
    pub(crate) fn if_empty(location: &Location, credentials: &Credentials) -> Result<Self, OpenError> {
        match location {
            Location::Sqlite(path) => Ok(Self::Sqlite(sqlite::NewCatalog::if_empty(path)?)),
            #[cfg(feature = "etcd")]
            Location::Etcd(cluster) => {
                Ok(Self::Etcd(super::etcd::NewCatalog::if_empty(cluster, credentials)?.into()))
            }
            #[cfg(not(feature = "etcd"))]
            Location::Etcd(cluster) => without(cluster, credentials),
        }
    }

    /// Makes the catalog. What was cut off is no catalog.
    pub(crate) fn fill(self, view: &View) -> Result<(), OpenError> {
        match self {
            Self::Sqlite(claim) => Ok(claim.fill(view)?),
            #[cfg(feature = "etcd")]
            Self::Etcd(claim) => Ok(claim.fill(view)?),
        }
    }
}

#[cfg(not(feature = "etcd"))]
fn without<T>(cluster: &Cluster, _credentials: &Credentials) -> Result<T, OpenError> {
    Err(NoEtcd(cluster.clone()).into())
}
