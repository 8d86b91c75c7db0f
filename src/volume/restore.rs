//! Restore: a removed volume's directory comes back from the trash.
//!
//! The record comes first, then the rename. If it is cut off between them, `recovery` finishes it, because the volume's
//! directory lies in the trash while its record stands. `remove` tells how a directory follows its record when several
//! instances serve the catalog.

use std::future::ready;
use std::sync::Arc;

use time::OffsetDateTime;

use super::error::Error;
use super::operation::CommitPoint;
use super::step::step;
use super::{Service, log_done};
use crate::backend::BackendError;
use crate::catalog::{CatalogError, Change, Refusal, Removed, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::volume::VolumeId;

impl Service {
    /// Brings a removed volume back under its name: the last one removed of that name, or the one with that identity. A
    /// volume whose data is being deleted is refused, because it would not be whole.
    pub async fn restore(self: &Arc<Self>, caller: &Caller, wanted: &str) -> Result<Arc<Volume>, Error> {
        let removed = self.find_removed(wanted).await?;
        let (service, caller) = (Arc::clone(self), caller.clone());
        self.operate(|commit_point| async move {
            let _held = service.locks.volumes.hold(&removed.volume.name, &commit_point).await?;
            service.restore_held(&commit_point, &caller, &removed.volume).await
        })
        .await
    }

    async fn restore_held(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        volume: &Arc<Volume>,
    ) -> Result<Arc<Volume>, Error> {
        let (id, name) = (volume.id, volume.name.clone());
        let backend = self.backend_of(volume)?;
        let expect = self.ready(&backend).await?;
        self.refuse_twin(&backend, expect, &name).await?;
        if !commit_point.wanted() {
            return Err(Error::Abandoned);
        }
        let lock = self.lock_directory_locally(backend.name(), id);
        // Only once it is locked, so that nobody in this process can begin to delete it afterwards.
        if self.is_being_deleted(&backend, expect, id).await? {
            return Err(Error::BeingDeleted(name));
        }
        let Some(lock) = lock else { return Err(Error::RecoveryPending(name)) };
        let removed = match self.catalog.submit(Change::Restore(id)).await {
            Ok(outcome) => outcome.trashed.map_or_else(OffsetDateTime::now_utc, |removed| removed.at),
            Err(CatalogError::Refused(Refusal::Exists(_))) => return Err(Error::Exists(name)),
            Err(CatalogError::Refused(Refusal::NotInTrash)) => {
                return Err(Error::NotInTrash(name.to_string()));
            }
            Err(CatalogError::Refused(Refusal::Expired(_))) => return Err(Error::BeingDeleted(name)),
            Err(error) => return Err(error.into()),
        };
        step("restore:recorded");
        let directory = name.clone();
        let renamed = match backend.run(expect, move |root| root.untrash(id, &directory)).await {
            Err(BackendError::Missing { .. }) if self.is_whole(&backend, expect, volume).await => Ok(()),
            renamed => renamed,
        };
        if let Err(error) = renamed {
            if error.effect_unknown() {
                self.leave_to_recovery(&lock, &name, &error);
            } else if let Err(failed) =
                self.catalog.submit(Change::Unrestore { name: name.clone(), id, at: removed }).await
            {
                log::error!("volume {name} was not restored, but its record stays: {}", chain(&failed));
                lock.leave_half_done();
            }
            return Err(error.into());
        }
        step("restore:renamed");
        let outcome = match self.show(&lock, volume).await {
            Ok(outcome) => outcome,
            Err(error) => {
                if matches!(error, CatalogError::Refused(Refusal::NoSuchVolume)) {
                    // Others took this instance for lost, finished the restoration, and removed the volume again.
                    self.follow_record(&lock, &backend, expect, volume).await;
                }
                return Err(error.into());
            }
        };
        log_done("restored", &name, caller);
        Ok(outcome.after.unwrap_or_else(|| Arc::clone(volume)))
    }

    /// The removed volume that a name or an identity stands for.
    pub(super) async fn find_removed(&self, wanted: &str) -> Result<Arc<Removed>, Error> {
        self.retry_after_sync(|| {
            let view = self.catalog.view();
            let by_id = wanted.parse::<VolumeId>().ok().and_then(|id| view.trash.get(&id));
            let found = by_id.or_else(|| view.removed(wanted)).cloned();
            ready(found.ok_or_else(|| Error::NotInTrash(wanted.into())))
        })
        .await
    }
}
