//! Remove and restore: a volume's directory goes to the trash under the volume's identity, and comes back from there.
//!
//! Data is never deleted here, and never moved on the word of a caller who is then told that nothing was done.

use std::sync::Arc;

use time::OffsetDateTime;

use super::error::Error;
use super::name::{VolumeId, VolumeName};
use super::operation::{self, Claim};
use super::step::step;
use super::{Holders, Moving, Service, in_sight, log_done, permit};
use crate::backend::{Backend, BackendError, Expect};
use crate::catalog::{CatalogError, Change, Refusal, Removed, Volume};
use crate::host::Caller;
use crate::host::right::Right;

impl Service {
    /// Removes a volume (`/VolumeDriver.Remove`). An unknown name succeeds; a mounted volume is refused with its
    /// holders. An adopted volume is forgotten and its directory left.
    ///
    /// Returns the identity under which the trash keeps it, if it does.
    pub async fn remove(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
    ) -> Result<Option<VolumeId>, Error> {
        let (service, caller) = (Arc::clone(self), caller.clone());
        let limit = self.in_force.load().request;
        operation::run(limit, |claim| async move {
            let _held = service.locks.hold(&name, &claim).await?;
            service.remove_held(&claim, &caller, &name).await
        })
        .await
    }

    async fn remove_held(
        self: &Arc<Self>,
        claim: &Claim,
        caller: &Caller,
        name: &VolumeName,
    ) -> Result<Option<VolumeId>, Error> {
        let in_force = self.in_force.load_full();
        let volume = match self.settled(name).await? {
            Some(volume) if in_sight(&in_force.access, caller, &volume) => volume,
            _ => {
                log::info!(
                    "host {} removed volume {name}, which is unknown to it: nothing to do",
                    caller.host
                );
                return Ok(None);
            }
        };
        permit(&in_force, caller, Right::Remove, &volume.backend, &volume.options)?;
        if !volume.mounts.is_empty() {
            return Err(self.in_use(&volume));
        }
        if volume.adopted {
            self.record_removal(claim, &volume, false).await?;
            log_done("forgot the adopted", name, caller);
            return Ok(None);
        }
        let backend = self.backend_of(&volume)?;
        let expect = self.ready(&backend).await?;
        if !claim.wanted() {
            return Err(Error::Abandoned);
        }
        step("remove:begun");
        let Some(moving) = self.moving(backend.name(), volume.id) else {
            return Err(Error::NotMended(volume.name.clone()));
        };
        let id = volume.id;
        let directory = name.clone();
        let keep = match backend.run(expect, move |root| root.trash(&directory, id)).await {
            Ok(()) => true,
            Err(BackendError::Missing { path }) => {
                log::warn!(
                    "volume {name} is removed without a directory: {} is gone already",
                    path.display()
                );
                false
            }
            Err(error) => {
                if error.effect_unknown() {
                    self.leave_to_recovery(&moving, name, &error);
                }
                return Err(error.into());
            }
        };
        step("remove:trashed");
        if let Err(error) = self.record_removal(claim, &volume, keep).await {
            if keep {
                self.put_back(&moving, &backend, expect, &volume).await;
            }
            return Err(error);
        }
        step("remove:recorded");
        log_done("removed", name, caller);
        self.purge.notify_one();
        Ok(keep.then_some(id))
    }

    fn in_use(&self, volume: &Volume) -> Error {
        let holders = Holders::of(volume, &self.catalog.view());
        Error::Mounted { name: volume.name.clone(), holders }
    }

    /// The removal becomes true here, or the caller was told before that it did not.
    async fn record_removal(&self, claim: &Claim, volume: &Volume, keep: bool) -> Result<(), Error> {
        if !claim.decide() {
            return Err(Error::Abandoned);
        }
        let remove =
            Change::Remove { name: volume.name.clone(), id: volume.id, at: OffsetDateTime::now_utc(), keep };
        match self.catalog.submit(remove).await {
            Ok(_) => Ok(()),
            // It was mounted after our look: the catalog decides.
            Err(CatalogError::Refused(Refusal::Mounted(now))) => Err(self.in_use(&now)),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory of a volume whose removal was not recorded goes back to its name.
    async fn put_back(&self, moving: &Moving, backend: &Backend, expect: Expect, volume: &Volume) {
        let (id, name) = (volume.id, volume.name.clone());
        if let Err(error) = backend.run(expect, move |root| root.untrash(id, &name)).await {
            self.leave_to_recovery(moving, &volume.name, &error);
        }
    }

    /// Brings a removed volume back under its name: the latest one removed of that name, or the one with that
    /// identity. Not one whose data is being deleted: what came back would not be whole.
    pub async fn restore(self: &Arc<Self>, caller: &Caller, wanted: &str) -> Result<Arc<Volume>, Error> {
        let removed = self.find_removed(wanted)?;
        let (service, caller) = (Arc::clone(self), caller.clone());
        let limit = self.in_force.load().request;
        operation::run(limit, |claim| async move {
            let _held = service.locks.hold(&removed.volume.name, &claim).await?;
            service.restore_held(&claim, &caller, &removed.volume).await
        })
        .await
    }

    async fn restore_held(
        self: &Arc<Self>,
        claim: &Claim,
        caller: &Caller,
        volume: &Arc<Volume>,
    ) -> Result<Arc<Volume>, Error> {
        let (id, name) = (volume.id, volume.name.clone());
        let backend = self.backend_of(volume)?;
        let expect = self.ready(&backend).await?;
        if !claim.wanted() {
            return Err(Error::Abandoned);
        }
        let Some(moving) = self.moving(backend.name(), id) else {
            return Err(if self.is_being_deleted(id) {
                Error::BeingDeleted(name)
            } else {
                Error::NotMended(name)
            });
        };
        if self.is_being_deleted(id) {
            return Err(Error::BeingDeleted(name));
        }
        let removed = match self.catalog.submit(Change::Restore(id)).await {
            Ok(outcome) => outcome.trashed.map_or_else(OffsetDateTime::now_utc, |removed| removed.at),
            Err(CatalogError::Refused(Refusal::Exists(_))) => return Err(Error::Exists(name)),
            Err(CatalogError::Refused(Refusal::NotInTrash)) => {
                return Err(Error::NotInTrash(name.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        step("restore:recorded");
        let directory = name.clone();
        if let Err(error) = backend.run(expect, move |root| root.untrash(id, &directory)).await {
            if error.effect_unknown() {
                self.leave_to_recovery(&moving, &name, &error);
            } else if let Err(failed) =
                self.catalog.submit(Change::Unrestore { name: name.clone(), id, at: removed }).await
            {
                log::error!(
                    "volume {name} was not restored, but its record stays: {}",
                    crate::error::chain(&failed)
                );
                moving.leave_half_done();
            }
            return Err(error.into());
        }
        step("restore:renamed");
        let outcome = self.catalog.submit(Change::Publish(name.clone(), id)).await?;
        log_done("restored", &name, caller);
        Ok(outcome.after.unwrap_or_else(|| Arc::clone(volume)))
    }

    /// The removed volume that an operator means by a name or an identity.
    pub(super) fn find_removed(&self, wanted: &str) -> Result<Arc<Removed>, Error> {
        let view = self.catalog.view();
        let by_id = wanted.parse::<VolumeId>().ok().and_then(|id| view.trash.get(&id));
        by_id.or_else(|| view.removed(wanted)).cloned().ok_or_else(|| Error::NotInTrash(wanted.into()))
    }
}
