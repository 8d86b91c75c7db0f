//! The confirmation of new volumes: behind the answer to their Creates, the root of their backend is flushed once for all
//! of them, and their records then say that the directories are durable.
//!
//! Until then a record is *unconfirmed*. A power cut may take its directory, and recovery makes that again, empty. Nothing
//! is lost by it: whoever flushes a file in the directory makes its parents durable with it on ext4 with a journal, XFS and
//! btrfs, and NFS servers make a directory durable before they answer. A backend whose storage promises less has the
//! setting `durable_directories`: then Create waits, and nothing comes here.
//!
//! A volume must never be confirmed by a flush that was prepared after its directory got its name, because the kernel
//! reports an error of writing back only to who had the directory open then. So a Create joins a batch before the rename,
//! and the batch is flushed through the handle of the first Create in it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::Service;
use super::backend_tasks::BackendTasks;
use super::step::step;
use crate::backend::{Backend, BackendError, Expect, Flush, Root};
use crate::catalog::{CatalogError, Change, MAX_CONFIRMED};
use crate::error::chain;
use crate::model::backend::BackendName;
use crate::model::volume::{VolumeId, VolumeName};

/// How long Creates are collected before their backend is flushed.
const FLUSH_DELAY: Duration = Duration::from_millis(100);

/// The pause before a flush that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The new volumes of this process that are not confirmed yet.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    /// The batch that a Create joins now.
    open: Mutex<HashMap<BackendName, Arc<Batch>>>,
    wake: Notify,
}

/// The Creates on one backend since its last flush.
#[derive(Debug)]
struct Batch {
    expect: Expect,
    flush: Flush,
    renamed: Mutex<Vec<(VolumeName, VolumeId)>>,
}

/// The place of one Create in a batch, which is not flushed before it is given up.
#[derive(Debug)]
pub(super) struct BatchPlace(Arc<Batch>);

impl BatchPlace {
    /// Adds the volume, whose directory has its name now.
    pub(super) fn renamed(self, name: &VolumeName, id: VolumeId) {
        self.0.renamed().push((name.clone(), id));
    }
}

impl Batch {
    fn renamed(&self) -> MutexGuard<'_, Vec<(VolumeName, VolumeId)>> {
        // The list is whole after every statement under this lock.
        self.renamed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Confirmations {
    /// Joins the backend's batch. Called before the directory is renamed.
    pub(super) fn join(
        &self,
        backend: &BackendName,
        expect: Expect,
        root: &Root,
    ) -> Result<BatchPlace, BackendError> {
        let mut open = self.open();
        let batch = match open.entry(backend.clone()) {
            Entry::Occupied(batch) => Arc::clone(batch.get()),
            Entry::Vacant(none) => {
                let batch = Batch { expect, flush: root.later_flush()?, renamed: Mutex::default() };
                self.wake.notify_one();
                Arc::clone(none.insert(Arc::new(batch)))
            }
        };
        Ok(BatchPlace(batch))
    }

    fn is_idle(&self) -> bool {
        self.open().is_empty()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<BackendName, Arc<Batch>>> {
        // The map is whole after every statement under this lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Volumes of one backend that are to be flushed.
struct Unflushed {
    expect: Expect,
    volumes: Vec<(VolumeName, VolumeId)>,
    /// The flush that was prepared for them; `None` once it has failed.
    flush: Option<Flush>,
}

impl Service {
    /// Confirms new volumes for as long as the service runs.
    pub async fn keep_confirming(self: Arc<Self>) {
        let mut tasks = BackendTasks::default();
        loop {
            if self.confirmations.is_idle() {
                self.confirmations.wake.notified().await;
            }
            tokio::time::sleep(FLUSH_DELAY).await;
            self.confirmations.open().retain(|backend, _| {
                let is_mapped = self.in_force.load().map.get(backend).is_some();
                if !is_mapped {
                    // Its volumes stay unconfirmed; recovery looks at them when it is mapped again.
                    self.recovery.require(backend);
                }
                is_mapped
            });
            tasks.begin(
                &self,
                |backend| self.confirmations.open().contains_key(backend.name()),
                |service, backend| async move { service.confirm(backend.name()).await },
            );
        }
    }

    /// Confirms the new volumes of now, at the end of the service. What cannot be confirmed within `limit` is left to the
    /// recovery of the next start.
    pub(super) async fn confirm_last(&self, limit: Duration) {
        let backends: Vec<_> = self.confirmations.open().keys().cloned().collect();
        let all = async {
            for backend in backends {
                self.confirm(&backend).await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            log::debug!("new volumes are confirmed by the next start");
        }
    }

    /// Flushes the backend's batch and confirms its volumes.
    async fn confirm(&self, backend: &BackendName) {
        let Some(mut batch) = self.confirmations.open().remove(backend) else { return };
        // The Creates in it are renaming their directories right now.
        let batch = loop {
            match Arc::try_unwrap(batch) {
                Ok(batch) => break batch,
                Err(shared) => batch = shared,
            }
            tokio::time::sleep(FLUSH_DELAY / 10).await;
        };
        let Batch { expect, flush, renamed } = batch;
        let volumes = renamed.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut unflushed = Unflushed { expect, volumes, flush: Some(flush) };
        let mut said = false;
        while !unflushed.volumes.is_empty() {
            let Some(mapped) = self.in_force.load().map.get(backend).cloned() else {
                self.recovery.require(backend);
                return;
            };
            match unflushed.flush_on(&mapped).await {
                Ok(()) => break,
                Err(error) => {
                    if !said {
                        log::error!(
                            "{} new volumes on backend {backend} may lose their directories, which are empty, in a power \
                             cut; that is tried again: {}",
                            unflushed.volumes.len(),
                            chain(&error)
                        );
                        said = true;
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
            }
        }
        step("create:flushed");
        for part in unflushed.volumes.chunks(MAX_CONFIRMED) {
            while let Err(error) = self.catalog.submit(Change::Confirm(part.to_vec())).await {
                if matches!(error, CatalogError::Closed) {
                    return;
                }
                log::debug!("{} volumes cannot be confirmed yet: {}", part.len(), chain(&error));
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

impl Unflushed {
    /// Makes the volumes' directories durable.
    async fn flush_on(&mut self, backend: &Backend) -> Result<(), BackendError> {
        match self.flush.take() {
            Some(flush) => backend.run(self.expect, move |_| flush.run()).await,
            // The kernel has reported the error and would not report it again: each directory is flushed by itself.
            None => {
                let names: Vec<_> = self.volumes.iter().map(|(name, _)| name.clone()).collect();
                backend.run(self.expect, move |root| root.flush_volumes(&names)).await
            }
        }
    }
}
