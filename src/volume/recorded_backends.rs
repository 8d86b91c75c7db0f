//! The facts about backends that this process itself recorded in the catalog.
//!
//! Instances that share a catalog may have different maps. So each writes only what it has learnt itself and has not
//! written yet; otherwise they would overwrite each other for ever.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::backend::{BackendId, BackendName};
use crate::model::mountpoints::Mountpoints;

/// The identities that this process chose, and the mountpoints that it recorded.
#[derive(Debug, Default)]
pub(super) struct RecordedBackends(Mutex<HashMap<BackendName, OwnRecord>>);

#[derive(Debug, Default)]
struct OwnRecord {
    chosen: Option<BackendId>,
    mountpoints: Option<Mountpoints>,
}

impl RecordedBackends {
    /// Notes that this process chose the identity of a backend that had none: nobody else writes it to the storage.
    pub(super) fn choose(&self, backend: &BackendName, id: BackendId) {
        self.all().entry(backend.clone()).or_default().chosen = Some(id);
    }

    /// Returns true if this process chose that identity.
    pub(super) fn has_chosen(&self, backend: &BackendName, id: BackendId) -> bool {
        self.all().get(backend).is_some_and(|own| own.chosen == Some(id))
    }

    pub(super) fn set_mountpoints(&self, backend: &BackendName, mountpoints: &Mountpoints) {
        self.all().entry(backend.clone()).or_default().mountpoints = Some(mountpoints.clone());
    }

    /// Returns true if these mountpoints were the last that this process recorded.
    pub(super) fn has_mountpoints(&self, backend: &BackendName, mountpoints: &Mountpoints) -> bool {
        self.all().get(backend).is_some_and(|own| own.mountpoints.as_ref() == Some(mountpoints))
    }

    fn all(&self) -> MutexGuard<'_, HashMap<BackendName, OwnRecord>> {
        // The map is whole after every statement under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
