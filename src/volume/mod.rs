//! The service for volumes, which every protocol and the admin socket call.
//!
//! It alone knows both the catalog (what exists) and the backends (where it lies), and it alone orders their effects,
//! so that a crash at any step leaves something that `recovery` can finish or undo:
//!
//! - Create: make `.volhost/new/UUID` → record the volume, unconfirmed → rename the directory to its name → visible,
//!   answer; the flush of the directory and the confirmation follow. `create` tells why that loses nothing.
//! - Remove: rename the directory to `.volhost/trash/UUID` → record the removal → answer.
//! - Mount: check the directory → record the mount → answer.
//! - Undoing uses rmdir and rename, never a recursive delete; only `purge` deletes, and only removed volumes.
//!
//! Get, List, Path and Unmount are answered from the catalog and never wait for a backend.
//!
//! Several instances may serve one catalog and the same storage: `consistency` tells what may be refused,
//! `directory_lock` who moves a directory, `remove` how a directory follows its record, and `recovery` what happens to
//! the work of a lost instance.
//!
//! `Service` has the requests as methods, one file each. What it has to remember between requests lies in parts with
//! their own state: `directory_lock`, `recovery_state`, `confirmation`, `trash`, `last_seen`, `ignored_unmounts`
//! and `upkeep`.

mod backend_tasks;
mod backends;
mod choose_backend;
mod confirmation;
mod consistency;
mod copies;
mod copy_compare;
mod create;
mod directory_lock;
pub(crate) mod error;
mod expiry;
mod holders;
mod host_limits;
mod ignored_unmounts;
mod inspect;
mod last_seen;
mod mount;
mod operation;
mod operator;
mod preconditions;
mod purge;
mod recorded_backends;
mod recovery;
mod recovery_state;
mod remove;
mod restore;
mod rights;
mod same_directory;
mod step;
#[cfg(test)]
mod tests;
mod trash;
mod upkeep;
mod volume_lock;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;

use self::confirmation::Confirmations;
use self::directory_lock::{DirectoryLock, DirectoryLocks};
pub use self::error::{Blame, Error};
pub use self::holders::Holders;
use self::ignored_unmounts::IgnoredUnmounts;
pub use self::inspect::{List, VolumeInfo};
use self::last_seen::LastSeen;
pub use self::mount::CountedMount;
pub use self::operator::{BackendInfo, Release, Released, TrashedInfo};
use self::recovery_state::Recovery;
pub use self::step::STEPS;
use self::trash::Trash;
use self::upkeep::Upkeep;
use self::volume_lock::VolumeLocks;
use crate::backend::{self, Backend};
use crate::catalog::{Catalog, Change, View, Volume};
use crate::error::log_limit::LogLimit;
use crate::host::Caller;
use crate::host::access::Access;
use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::limits::Limits;
use crate::model::volume::VolumeName;

/// The configuration of volumes that is in force.
#[derive(Debug)]
pub struct InForce {
    /// The backend map.
    pub map: backend::Map,
    /// The hosts that may use each backend.
    pub access: Access,
    /// The limits, of which operations heed `request` and those of one host's volumes and mounts.
    pub limits: Limits,
}

/// The volumes.
pub struct Service {
    catalog: Arc<dyn Catalog>,
    in_force: ArcSwap<InForce>,
    locks: Locks,
    recovery: Recovery,
    confirmations: Arc<Confirmations>,
    trash: Trash,
    upkeep: Upkeep,
    last_seen: LastSeen,
    ignored_unmounts: IgnoredUnmounts,
    log_limit: LogLimit,
}

/// The locks that operations of this process hold.
#[derive(Debug, Default)]
struct Locks {
    volumes: Arc<VolumeLocks>,
    directories: Arc<DirectoryLocks>,
}

impl Service {
    /// Returns a service for the volumes of a catalog.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, in_force: InForce) -> Self {
        Self {
            recovery: Recovery::new(catalog.peer_events()),
            catalog,
            in_force: ArcSwap::from_pointee(in_force),
            locks: Locks::default(),
            confirmations: Arc::default(),
            trash: Trash::default(),
            upkeep: Upkeep::default(),
            last_seen: LastSeen::default(),
            ignored_unmounts: IgnoredUnmounts::default(),
            log_limit: LogLimit::default(),
        }
    }

    /// Returns the limit for log lines that hosts can cause at will.
    #[must_use]
    pub fn log_limit(&self) -> &LogLimit {
        &self.log_limit
    }

    /// Returns the configuration that is in force now.
    #[must_use]
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// Returns the catalog's content at this moment.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.catalog.view()
    }

    /// Returns why the catalog cannot be written at present; `None` if it can.
    #[must_use]
    pub fn catalog_fault(&self) -> Option<String> {
        self.catalog.fault().as_deref().cloned()
    }

    /// Records that an engine was started: mounts of its earlier activations are stale from now on. Returns at once;
    /// the catalog orders it before every later change.
    pub fn activate(self: &Arc<Self>, host: &HostName) {
        let recorded = self.catalog.submit(Change::Activate(host.clone()));
        let (service, host) = (Arc::clone(self), host.clone());
        tokio::spawn(async move {
            if let Err(error) = recorded.await {
                service.log_limit.log(log::Level::Error, "activation", &host, || {
                    let why = crate::error::chain(&error);
                    format!("the activation of host {host} could not be recorded: {why}")
                });
            }
        });
    }

    /// Returns where a volume's directory lies on this machine; for an unmapped backend, where hosts last saw it.
    #[must_use]
    pub fn path(&self, volume: &Volume) -> PathBuf {
        match self.in_force.load().map.get(&volume.backend) {
            Some(backend) => backend.settings().path.join(volume.name.as_str()),
            None => {
                let view = self.catalog.view();
                let record = view.backends.get(&volume.backend);
                let usual = record.map(|record| record.mountpoints.usual.clone()).unwrap_or_default();
                usual.join(volume.name.as_str())
            }
        }
    }

    /// Returns the identity that the catalog has recorded for a backend.
    #[must_use]
    pub fn backend_id(&self, backend: &BackendName) -> Option<BackendId> {
        self.catalog.view().backends.get(backend).map(|record| record.id)
    }

    /// Returns the backend of a volume, if the map has it.
    fn backend_of(&self, volume: &Volume) -> Result<Arc<Backend>, Error> {
        self.in_force
            .load()
            .map
            .get(&volume.backend)
            .cloned()
            .ok_or_else(|| Error::Unmapped { name: volume.name.clone(), backend: volume.backend.clone() })
    }
}

/// Logs a finished operation in the form that all operations share.
fn log_done(what: &str, name: &VolumeName, caller: &Caller) {
    log::info!("{what} volume {name} for host {}", caller.host);
}
