//! Who moves a volume's directory: one operation at a time, in this process and among all that serve the catalog.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Service;
use super::error::Error;
use crate::catalog::{CatalogError, Change, Claimed, Outcome, Volume};
use crate::model::backend::BackendName;
use crate::model::volume::VolumeId;

impl Service {
    /// Keeps others in this process from moving a volume's directory until the guard is dropped; nothing, while
    /// somebody else moves it. Enough only for a volume that is just being made or restored: its record keeps other
    /// instances away.
    pub(super) fn moving(self: &Arc<Self>, backend: &BackendName, id: VolumeId) -> Option<DirectoryLock> {
        self.moving_set().insert(id).then(|| DirectoryLock {
            service: Arc::clone(self),
            backend: backend.clone(),
            id,
            half_done: AtomicBool::new(false),
            claimed: Mutex::new(None),
        })
    }

    /// Keeps everybody from moving a volume's directory, other instances as well; nothing, while somebody else moves
    /// it. Granted, the view is fresh: what was known of the volume before has to be looked at again.
    pub(super) async fn claimed(
        self: &Arc<Self>,
        backend: &BackendName,
        id: VolumeId,
    ) -> Result<Option<DirectoryLock>, Error> {
        let Some(moving) = self.moving(backend, id) else { return Ok(None) };
        Ok(moving.claim_again().await?.then_some(moving))
    }

    /// Shows a volume whose directory has come to its name. Where the catalog does not take that, it would stay hidden
    /// from everybody for as long as this process lives: recovery sees to it.
    pub(super) async fn show(
        &self,
        moving: &DirectoryLock,
        volume: &Volume,
    ) -> Result<Outcome, CatalogError> {
        let shown = self.catalog.submit(Change::Publish(volume.name.clone(), volume.id)).await;
        shown.inspect_err(|_| moving.leave_half_done())
    }

    /// Whether somebody in this process moves a volume's directory.
    pub(super) fn moving_now(&self, id: VolumeId) -> bool {
        self.moving_set().contains(&id)
    }

    fn moving_set(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        // The set is whole after every statement under this lock.
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// That an operation is moving a volume's directory.
pub(super) struct DirectoryLock {
    service: Arc<Service>,
    /// Where it lies.
    pub(super) backend: BackendName,
    id: VolumeId,
    half_done: AtomicBool,
    /// The claim against other instances.
    claimed: Mutex<Option<Claimed>>,
}

impl DirectoryLock {
    /// What was begun can neither be finished nor undone now: recovery decides it.
    pub(super) fn leave_half_done(&self) {
        self.half_done.store(true, Ordering::Release);
    }

    /// Claims the directory against other instances, anew where it was claimed before: such a claim may have been lost
    /// while this process stood still. Granted, the view is fresh.
    pub(super) async fn claim_again(&self) -> Result<bool, Error> {
        self.give_back();
        let claimed = self.service.catalog.claim(self.id).await?;
        let granted = claimed.is_some();
        *self.claimed.lock().unwrap_or_else(PoisonError::into_inner) = claimed;
        Ok(granted)
    }

    fn give_back(&self) {
        let claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(claimed);
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        self.give_back();
        self.service.moving_set().remove(&self.id);
        // Only now: recovery passes over what is being moved, and would take it for looked at.
        if self.half_done.load(Ordering::Acquire) || std::thread::panicking() {
            self.service.mark_unmended(&self.backend);
        }
    }
}
