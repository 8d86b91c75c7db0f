//! The right to move a volume's directory: one operation at a time, in this process and among all instances that serve
//! the catalog.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Service;
use super::error::Error;
use super::recovery_state::BackendRecovery;
use crate::catalog::{Catalog, CatalogError, Change, DistributedLock, Outcome, Volume};
use crate::model::backend::BackendName;
use crate::model::volume::VolumeId;

/// The volumes whose directories operations of this process are moving. Recovery leaves them alone.
#[derive(Debug, Default)]
pub(super) struct DirectoryLocks(Mutex<HashSet<VolumeId>>);

impl DirectoryLocks {
    /// Returns true if an operation of this process is moving the volume's directory.
    pub(super) fn is_locked(&self, id: VolumeId) -> bool {
        self.locked().contains(&id)
    }

    fn locked(&self) -> MutexGuard<'_, HashSet<VolumeId>> {
        // The set is whole after every statement under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to move one volume's directory, given back when dropped.
pub(super) struct DirectoryLock {
    id: VolumeId,
    pub(super) backend: BackendName,
    locks: Arc<DirectoryLocks>,
    catalog: Arc<dyn Catalog>,
    recovery: Arc<BackendRecovery>,
    is_half_done: AtomicBool,
    /// The claim that keeps other instances away.
    among_instances: Mutex<Option<DistributedLock>>,
}

impl DirectoryLock {
    /// Leaves to recovery what can be neither finished nor undone now.
    pub(super) fn leave_half_done(&self) {
        self.is_half_done.store(true, Ordering::Release);
    }

    /// Claims the directory against other instances, once more where it was claimed before: that claim may have been
    /// lost while this process stood still. Returns false if another instance has the claim; once it is granted, the
    /// view is up to date.
    pub(super) async fn lock_among_instances(&self) -> Result<bool, Error> {
        self.unlock_among_instances();
        let locked = self.catalog.try_lock(self.id).await?;
        let granted = locked.is_some();
        *self.among_instances.lock().unwrap_or_else(PoisonError::into_inner) = locked;
        Ok(granted)
    }

    fn unlock_among_instances(&self) {
        let lock = self.among_instances.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(lock);
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        self.unlock_among_instances();
        self.locks.locked().remove(&self.id);
        // Not before: recovery skips a locked directory, and would then count the backend as recovered.
        if self.is_half_done.load(Ordering::Acquire) || std::thread::panicking() {
            self.recovery.require();
        }
    }
}

impl Service {
    /// Locks a volume's directory within this process; `None` if it is locked already. That is enough for a volume that
    /// is just being made or restored: its hidden record keeps other instances away.
    pub(super) fn lock_directory_locally(
        &self,
        backend: &BackendName,
        id: VolumeId,
    ) -> Option<DirectoryLock> {
        self.locks.directories.locked().insert(id).then(|| DirectoryLock {
            id,
            backend: backend.clone(),
            locks: Arc::clone(&self.locks.directories),
            catalog: Arc::clone(&self.catalog),
            recovery: self.recovery.of(backend),
            is_half_done: AtomicBool::new(false),
            among_instances: Mutex::new(None),
        })
    }

    /// Locks a volume's directory against other instances as well; `None` if somebody else is moving it. Once it is
    /// granted, the view is up to date: whatever was read from it before has to be read again.
    pub(super) async fn lock_directory(
        &self,
        backend: &BackendName,
        id: VolumeId,
    ) -> Result<Option<DirectoryLock>, Error> {
        let Some(lock) = self.lock_directory_locally(backend, id) else { return Ok(None) };
        Ok(lock.lock_among_instances().await?.then_some(lock))
    }

    /// Makes a volume visible whose directory stands under its name now. If the catalog refuses, recovery has to do it:
    /// otherwise the volume would stay hidden for as long as this process lives.
    pub(super) async fn show(&self, lock: &DirectoryLock, volume: &Volume) -> Result<Outcome, CatalogError> {
        let shown = self.catalog.submit(Change::Publish(volume.name.clone(), volume.id)).await;
        shown.inspect_err(|_| lock.leave_half_done())
    }
}
