//! Remove: a volume's directory goes to the trash under the volume's identity.
//!
//! Nothing is deleted here, and nothing is moved for a caller who is then told that nothing was done.
//!
//! # Several instances on one catalog
//!
//! A Remove claims the volume's directory against the others, checks once more that nobody has it mounted, renames the
//! directory to the trash, and only then records the removal. An instance that stands still for long enough is taken for
//! lost, and loses its claim: another one puts the directory back, and the first goes on without knowing. So the record
//! decides, and the directory follows it:
//!
//! - The removal was recorded: the directory should still be in the trash. If it was put back, it is claimed again and
//!   goes to the trash once more, unless its name or its entry in the trash is another volume's by then.
//! - The removal was refused or not recorded: the directory is claimed again, and goes back to its name only if the volume
//!   still stands in an up-to-date view. If another instance removed the volume, the directory stays in the trash, which
//!   is that instance's by then. If a later volume has the name, and the directory that was moved is that one's, it gets
//!   it back before the trash is believed to hold the first one's.
//! - Whoever brings a directory back from the trash, for a Restore or in recovery, and then learns that the volume was
//!   removed again, moves it to the trash once more in the same way.
//! - What cannot be claimed or looked at now is left to `recovery`, of whichever instance.
//!
//! In each of these orders the directory has one of its two names at any time. Whoever dies in between leaves what a
//! Remove that was cut off leaves.

use std::sync::Arc;

use time::OffsetDateTime;

use super::consistency::PeerBackoff;
use super::error::Error;
use super::operation::CommitPoint;
use super::rights::{in_sight, permit};
use super::step::step;
use super::{DirectoryLock, Holders, InForce, Service, log_done};
use crate::backend::{Backend, BackendError, Expect, Root, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::right::Right;
use crate::model::volume::{VolumeId, VolumeName};

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
        self.operate(|commit_point| async move {
            let _held = service.locks.volumes.hold(&name, &commit_point).await?;
            service.remove_held(&commit_point, &caller, &name).await
        })
        .await
    }

    async fn remove_held(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        name: &VolumeName,
    ) -> Result<Option<VolumeId>, Error> {
        let in_force = self.in_force.load_full();
        let mut backoff = PeerBackoff::new();
        let (volume, backend, expect, lock) = loop {
            let volume = match self.retry_after_sync(|| self.removable(&in_force, caller, name)).await {
                Err(Error::NoSuchVolume(_)) => {
                    self.log_limit.log(log::Level::Info, "unknown remove", &caller.host, || {
                        format!(
                            "host {} removed volume {name}, which is unknown to it: nothing to do",
                            caller.host
                        )
                    });
                    return Ok(None);
                }
                found => found?,
            };
            if volume.adopted {
                self.record_removal(commit_point, &volume, false).await?;
                log_done("forgot the adopted", name, caller);
                return Ok(None);
            }
            let backend = self.backend_of(&volume)?;
            let expect = self.ready(&backend).await?;
            if let Some((other, folding)) = self.twin(&backend, expect, name).await? {
                // Its directory is also the other volume's, whose data must stay.
                log::warn!(
                    "the directory of volume {name} is left: it is that of volume {other}, because the storage of backend \
                     {} {folding}",
                    backend.name()
                );
                self.record_removal(commit_point, &volume, false).await?;
                log_done("forgot", name, caller);
                return Ok(None);
            }
            if !commit_point.wanted() {
                return Err(Error::Abandoned);
            }
            // A useless claim is given back before the wait: another instance may need the directory.
            let claimed =
                self.lock_directory(backend.name(), volume.id).await?.filter(|_| self.is_unused(&volume));
            match claimed {
                Some(lock) => break (volume, backend, expect, lock),
                // Another instance is working on it, or has changed it since we looked.
                None if self.is_shared() && backoff.wait().await => self.sync().await?,
                None => return Err(Error::RecoveryPending(name.clone())),
            }
        };
        step("remove:begun");
        let id = volume.id;
        let directory = name.clone();
        let trash = move |root: &Root| match root.trash(&directory, id) {
            // A restoration was cut off: the directory is still where it has to go.
            Err(BackendError::Missing { .. }) if root.is_trashed(id)? => Ok(TrashedWhen::Before),
            done => done.map(|()| TrashedWhen::Now),
        };
        let trashed = match backend.run(expect, trash).await {
            Ok(trashed) => Some(trashed),
            Err(BackendError::Missing { path }) => {
                log::warn!(
                    "volume {name} is removed without a directory: {} is gone already",
                    path.display()
                );
                None
            }
            Err(error) => {
                if error.effect_unknown() {
                    self.leave_to_recovery(&lock, name, &error);
                }
                return Err(error.into());
            }
        };
        step("remove:trashed");
        let keep = trashed.is_some();
        if let Err(error) = self.record_removal(commit_point, &volume, keep).await {
            if let Some(trashed) = trashed
                && self.put_back(&lock, &backend, expect, &volume, trashed).await == RecordFate::Removed
            {
                log::info!("volume {name} was removed by another instance meanwhile");
                return Ok(self.catalog.view().trash.contains_key(&id).then_some(id));
            }
            return Err(error);
        }
        step("remove:recorded");
        if keep {
            self.follow_record(&lock, &backend, expect, &volume).await;
        }
        if trashed == Some(TrashedWhen::Before) {
            // Its deletion may have begun, which the record then has to say.
            self.recovery.require(backend.name());
        }
        log_done("removed", name, caller);
        self.trash.wake();
        Ok(keep.then_some(id))
    }

    /// The volume, if this host sees it and may remove it, and nobody uses it.
    async fn removable(
        self: &Arc<Self>,
        in_force: &InForce,
        caller: &Caller,
        name: &VolumeName,
    ) -> Result<Arc<Volume>, Error> {
        if self.is_out_of_sight(in_force, caller, name) {
            return Err(Error::NoSuchVolume(name.to_string()));
        }
        let volume = self
            .recovered(name)
            .await?
            .filter(|volume| in_sight(&in_force.access, &self.catalog.view(), caller, volume))
            .ok_or_else(|| Error::NoSuchVolume(name.to_string()))?;
        permit(in_force, caller, Right::Remove, &volume.backend, &volume.options)?;
        if !volume.mounts.is_empty() {
            return Err(self.in_use(&volume));
        }
        Ok(volume)
    }

    /// Returns true if an up-to-date view shows the volume unchanged and not mounted.
    fn is_unused(&self, volume: &Volume) -> bool {
        !self.is_shared()
            || self.catalog.view().volumes.get(&volume.name).is_some_and(|now| {
                now.id == volume.id && now.visible && !now.unconfirmed && now.mounts.is_empty()
            })
    }

    fn in_use(&self, volume: &Volume) -> Error {
        let holders = Holders::of(volume, &self.catalog.view());
        Error::Mounted { name: volume.name.clone(), holders }
    }

    /// Records the removal, which is the operation's point of no return.
    async fn record_removal(
        &self,
        commit_point: &CommitPoint,
        volume: &Volume,
        keep: bool,
    ) -> Result<(), Error> {
        if !commit_point.decide() {
            return Err(Error::Abandoned);
        }
        let remove =
            Change::Remove { name: volume.name.clone(), id: volume.id, at: OffsetDateTime::now_utc(), keep };
        match self.catalog.submit(remove).await {
            Ok(_) => Ok(()),
            // Another instance was quicker, and no directory has to follow.
            Err(CatalogError::Refused(Refusal::NoSuchVolume)) if !keep => Ok(()),
            // It was mounted after we looked: the catalog decides.
            Err(CatalogError::Refused(Refusal::Mounted(now))) => Err(self.in_use(&now)),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory of a volume whose removal was not recorded goes back to its name, where the volume still stands.
    async fn put_back(
        self: &Arc<Self>,
        lock: &DirectoryLock,
        backend: &Backend,
        expect: Expect,
        volume: &Volume,
        trashed: TrashedWhen,
    ) -> RecordFate {
        let (id, name) = (volume.id, volume.name.clone());
        let mut backoff = PeerBackoff::new();
        loop {
            match lock.lock_among_instances().await {
                Ok(true) => break,
                // Another instance puts it back, or deletes it for good.
                Ok(false) if backoff.wait().await => {}
                Ok(false) => {
                    lock.leave_half_done();
                    return RecordFate::Unknown;
                }
                Err(error) => {
                    log::error!(
                        "the directory of volume {name} is in the trash and goes back when the catalog answers: {}",
                        chain(&error)
                    );
                    lock.leave_half_done();
                    return RecordFate::Unknown;
                }
            }
        }
        let view = self.catalog.view();
        let is_in_trash = view.trash.contains_key(&id);
        match view.volumes.get(&name) {
            Some(now) if now.id == id => {}
            // The trash may still tell of the one that was meant although its directory was gone from there.
            Some(later)
                if later.backend == *backend.name() && (trashed == TrashedWhen::Now || !is_in_trash) =>
            {
                return self.give_to(later, backend, expect, id).await;
            }
            _ if is_in_trash => return RecordFate::Removed,
            _ => {
                log::error!("volume {name} was forgotten by another instance: .volhost/trash/{id} is left");
                return RecordFate::Unknown;
            }
        }
        match backend.run(expect, move |root| root.untrash(id, &name)).await {
            Ok(()) => {}
            // Another instance put it back already.
            Err(BackendError::Missing { .. }) if self.is_shared() => {}
            Err(error) => self.leave_to_recovery(lock, &volume.name, &error),
        }
        RecordFate::Recorded
    }

    /// Gives a directory back to a later volume of the same name. The volume `id` was removed, deleted and made again while
    /// this instance stood still; what it then moved to the trash as `id` is the later volume's directory.
    async fn give_to(
        self: &Arc<Self>,
        later: &Arc<Volume>,
        backend: &Backend,
        expect: Expect,
        id: VolumeId,
    ) -> RecordFate {
        let name = later.name.clone();
        let mut backoff = PeerBackoff::new();
        loop {
            match self.lock_directory(backend.name(), later.id).await {
                Ok(Some(_lock)) => {
                    let give = move |root: &Root| match root.volume_state(&name)? {
                        VolumeState::Missing => root.untrash(id, &name),
                        VolumeState::Directory | VolumeState::NotADirectory(_) => Ok(()),
                    };
                    return match backend.run(expect, give).await {
                        Ok(()) => RecordFate::Removed,
                        Err(error) => {
                            log::error!(
                                "the directory of volume {} is in .volhost/trash/{id}: move it back under its name: {}",
                                later.name,
                                chain(&error)
                            );
                            RecordFate::Unknown
                        }
                    };
                }
                Ok(None) if backoff.wait().await => {}
                Ok(None) | Err(_) => {
                    log::error!(
                        "the directory of volume {} may be in .volhost/trash/{id}: where it has none, move that back \
                         under its name",
                        later.name
                    );
                    return RecordFate::Unknown;
                }
            }
        }
    }

    /// Makes sure that the directory of a volume whose removal was recorded is in the trash: an instance that took this one
    /// for lost may have put it back.
    pub(super) async fn follow_record(
        &self,
        lock: &DirectoryLock,
        backend: &Backend,
        expect: Expect,
        volume: &Volume,
    ) {
        if !self.is_shared() {
            return;
        }
        let (id, name) = (volume.id, &volume.name);
        let mut backoff = PeerBackoff::new();
        loop {
            match backend.run(expect, move |root| root.is_trashed(id)).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    log::warn!("whether volume {name} is in the trash could not be seen: {}", chain(&error));
                    return;
                }
            }
            match lock.lock_among_instances().await {
                Ok(true) => break,
                Ok(false) if backoff.wait().await => {}
                Ok(false) | Err(_) => {
                    log::error!(
                        "volume {name} is removed, and its directory is not in the trash: if {} stands there, an \
                         adopted volume gets it back",
                        self.path(volume).display()
                    );
                    return;
                }
            }
        }
        let view = self.catalog.view();
        // It was deleted or restored meanwhile, or a later volume has the name.
        if !view.trash.contains_key(&id) || view.volumes.contains_key(name) {
            return;
        }
        let directory = name.clone();
        match backend.run(expect, move |root| root.trash(&directory, id)).await {
            Ok(()) => {
                log::warn!("volume {name} was put back while it was removed, and is in the trash again");
            }
            Err(BackendError::Missing { .. }) => {}
            Err(error) => {
                log::error!("volume {name} is removed, and yet not in the trash: {}", chain(&error));
            }
        }
    }
}

/// When a volume's directory came to the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TrashedWhen {
    /// By this operation: whatever stood under the name lies there now.
    Now,
    /// Before it.
    Before,
}

/// What became of the record of a volume whose removal this instance could not record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecordFate {
    /// It stands.
    Recorded,
    /// Another instance removed it, and its directory is where that one left it.
    Removed,
    /// That cannot be told now.
    Unknown,
}
