//! Catalogs without a service, for every engine: reading one as a whole, or creating one from a whole view.
//!
//! Nothing here changes a catalog that holds records or that is being served.

#[cfg(not(feature = "etcd"))]
use super::NoEtcd;
use super::{Credentials, Location, OpenError, View, sqlite};
#[cfg(not(feature = "etcd"))]
use crate::model::location::Cluster;

/// Reads a catalog. The embedded engine refuses while a service has the file open; a shared catalog is read as it was
/// at one moment.
pub(crate) fn read(location: &Location, credentials: &Credentials) -> Result<View, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(sqlite::read(path)?),
        #[cfg(feature = "etcd")]
        Location::Etcd(cluster) => Ok(super::etcd::read(cluster, credentials)?),
        #[cfg(not(feature = "etcd"))]
        Location::Etcd(cluster) => without(cluster, credentials),
    }
}

/// Reads a catalog, even while a service has it open: what was durable at one moment.
pub(crate) fn peek(location: &Location, credentials: &Credentials) -> Result<View, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(sqlite::peek(path)?),
        Location::Etcd(_) => read(location, credentials),
    }
}

/// The reserved right to create a catalog where there is none, or in the place of an empty one.
pub(crate) enum NewCatalog {
    /// In a file.
    Sqlite(sqlite::NewCatalog),
    /// In a cluster.
    #[cfg(feature = "etcd")]
    Etcd(Box<super::etcd::NewCatalog>),
}

impl NewCatalog {
    /// Reserves a location that has no catalog; refused if it has one.
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

    /// Reserves a location that has no catalog or one without records; refused if it has records.
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

    /// Creates the catalog with the records of `view`. If this is cut off, the location holds no catalog.
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
