//! Recovery: whatever a crash, a failure or an unmounted share left half-done is finished or undone before the backend
//! takes new work.
//!
//! Nothing is deleted except empty staging directories of volumes that were never recorded. Anything that belongs to no
//! known volume is reported and left.
//!
//! If several instances serve the catalog, work that looks half-done may be another instance's. So nothing is moved
//! without its directory lock, which nobody gets while a live instance is working on it. A staged directory without a
//! record may belong to a Create that is about to be recorded; it is removed only after much longer than any Create
//! takes. Anything left for either reason is looked at again later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::MutexGuard;

use super::create::ownership;
use super::error::Error;
use super::recovery_state::{BackendRecovery, Leftovers, is_abandoned};
use super::{DirectoryLock, Service};
use crate::backend::{Backend, BackendError, Expect, Root, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Volume};
use crate::error::chain;
use crate::model::backend::BackendName;
use crate::model::volume::{VolumeId, VolumeName};

impl Service {
    /// Makes sure that the backend is the one that the catalog knows and that nothing on it is half-done. Returns the
    /// identity that an operation must expect.
    pub(super) async fn ready(self: &Arc<Self>, backend: &Arc<Backend>) -> Result<Expect, Error> {
        self.recovery.note_lost_peers(&self.in_force.load().map);
        let recovery = self.recovery.of(backend.name());
        if recovery.is_done()
            && let Some(expect) = self.established(backend.name())
        {
            return Ok(expect);
        }
        // The holder of the turn may hang in the storage.
        backend.answers()?;
        let _turn = self.turn(&recovery).await?;
        let expect = self.identify(backend).await?;
        if let Some(required) = recovery.pending() {
            let leftovers = self.recover(backend, expect, &recovery).await?;
            recovery.finish(required, leftovers);
            // A backend that came back may hold removed volumes that are due.
            self.trash.wake();
        }
        Ok(expect)
    }

    /// Waits until nobody else gives the backend an identity or recovers it.
    pub(super) async fn turn<'a>(&self, recovery: &'a BackendRecovery) -> Result<MutexGuard<'a, ()>, Error> {
        let limit = self.in_force.load().limits.request;
        let turn = tokio::time::timeout(limit, recovery.turn().lock()).await;
        turn.map_err(|_| self.too_long(limit))
    }

    /// Leaves an operation to recovery whose outcome is not known, or which could not be undone.
    pub(super) fn leave_to_recovery(&self, lock: &DirectoryLock, name: &VolumeName, error: &BackendError) {
        log::error!(
            "an operation on volume {name} was cut off and will be finished or undone when backend {} answers: {}",
            lock.backend,
            chain(error)
        );
        lock.leave_half_done();
    }

    /// Recovers the backend once. Returns what had to be left.
    async fn recover(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        recovery: &BackendRecovery,
    ) -> Result<Leftovers, Error> {
        let look = |root: &Root| {
            root.prepare();
            Ok((root.staged()?, root.trashed()?, root.deleting()?))
        };
        let (staged, trashed, deleting) = backend.run(expect, look).await?;
        // After this the view has the record, if there is one, of whatever was found.
        self.sync().await?;
        for stray in staged.strays.iter().chain(&trashed.strays).chain(&deleting.strays) {
            log::warn!("backend {}: {} is not volhost's and is left alone", backend.name(), stray.display());
        }
        let found = staged.volumes.iter().chain(&trashed.volumes).chain(&deleting.volumes).copied().collect();
        let (names, removed) = (self.names_of(backend.name(), &found), self.catalog.view().trash.clone());
        let mut left = Leftovers::default();
        for id in staged.volumes {
            if self.is_shared() && !names.contains_key(&id) {
                let since = recovery.unrecorded_since(id);
                if !is_abandoned(since) {
                    left.unrecorded.insert(id, since);
                    continue;
                }
            }
            // Whoever moves it now decides about it. Once we have the lock, the view is up to date.
            let Some(_lock) = self.lock_for_recovery(backend, id, &mut left).await? else { continue };
            let volume = if names.contains_key(&id) {
                self.current(&names, id)
            } else {
                // It may have been recorded meanwhile.
                self.current(&self.names_of(backend.name(), &HashSet::from([id])), id)
            };
            if !self.recover_staged(backend, expect, id, volume).await? {
                left.displaced.insert(id);
            }
        }
        for id in deleting.volumes.into_iter().filter(|id| !trashed.volumes.contains(id)) {
            self.recover_deleting(backend, id, self.current(&names, id).as_deref()).await;
        }
        for id in trashed.volumes {
            if !names.contains_key(&id) {
                if !removed.contains_key(&id) && !self.locks.directories.is_locked(id) {
                    log::warn!(
                        "backend {}: .volhost/trash/{id} belongs to no volume that the catalog knows, and is left",
                        backend.name()
                    );
                }
                continue;
            }
            let Some(lock) = self.lock_for_recovery(backend, id, &mut left).await? else { continue };
            let Some(volume) = self.current(&names, id) else { continue };
            match self.recover_trashed(backend, expect, &volume).await {
                Ok(true) => {}
                Ok(false) => drop(left.displaced.insert(id)),
                // Another instance took this one for lost meanwhile, and removed the volume.
                Err(Error::Catalog(CatalogError::Refused(Refusal::NoSuchVolume))) => {
                    self.follow_record(&lock, backend, expect, &volume).await;
                }
                Err(error) => return Err(error),
            }
        }
        for (id, name) in &names {
            let hidden = || self.current(&names, *id).filter(is_unfinished);
            if hidden().is_some()
                && !left.displaced.contains(id)
                && !left.elsewhere.contains(id)
                && let Some(_lock) = self.lock_for_recovery(backend, *id, &mut left).await?
                && let Some(volume) = hidden()
            {
                log::debug!("volume {name} is recorded, and its directory was being moved");
                if !self.recover_hidden(backend, expect, &volume).await? {
                    left.displaced.insert(*id);
                }
            }
        }
        Ok(left)
    }

    /// Locks a volume's directory. Notes in `left` if another instance is moving it.
    async fn lock_for_recovery(
        self: &Arc<Self>,
        backend: &Backend,
        id: VolumeId,
        left: &mut Leftovers,
    ) -> Result<Option<DirectoryLock>, Error> {
        let lock = self.lock_directory(backend.name(), id).await?;
        // An operation of this process requires recovery itself if it has to.
        if lock.is_none() && !self.locks.directories.is_locked(id) {
            left.elsewhere.insert(id);
        }
        Ok(lock)
    }

    /// Returns the names of a backend's volumes that are half-made or have one of these IDs, as the view shows them
    /// now.
    fn names_of(&self, backend: &BackendName, found: &HashSet<VolumeId>) -> HashMap<VolumeId, VolumeName> {
        let view = self.catalog.view();
        let concerned = |volume: &&Arc<Volume>| {
            volume.backend == *backend && (is_unfinished(volume) || found.contains(&volume.id))
        };
        view.volumes.values().filter(concerned).map(|volume| (volume.id, volume.name.clone())).collect()
    }

    /// Returns the volume with that ID as the view shows it now.
    fn current(&self, names: &HashMap<VolumeId, VolumeName>, id: VolumeId) -> Option<Arc<Volume>> {
        let view = self.catalog.view();
        names.get(&id).and_then(|name| view.volumes.get(name)).filter(|volume| volume.id == id).cloned()
    }

    /// Recovers a staged directory: its volume gets it, or it is removed if none was ever recorded. Returns false if the
    /// volume cannot get it now.
    pub(super) async fn recover_staged(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        id: VolumeId,
        volume: Option<Arc<Volume>>,
    ) -> Result<bool, Error> {
        let Some(volume) = volume else {
            if self.drop_staged(backend, expect, id).await? {
                log::info!("undid a create that was cut off before it was recorded ({id})");
            }
            return Ok(true);
        };
        let name = volume.name.clone();
        // A confirmed directory may have another owner by now.
        let ownership = volume.unconfirmed.is_some().then(|| ownership(backend, &volume));
        let finish = move |root: &Root| {
            if let Some(ownership) = ownership {
                root.stage_again(id, ownership)?;
            }
            root.publish(id, &name)?;
            root.flush()
        };
        match backend.run(expect, finish).await {
            Ok(()) => {
                self.finish_create(&volume).await?;
                log::info!("finished the create of volume {}, which was cut off", volume.name);
            }
            // Its Create failed in this process: it was never answered. The record goes first: without a staged directory,
            // the foreign directory would be taken for the volume's.
            Err(error @ (BackendError::Occupied { .. } | BackendError::Ownership { .. }))
                if !volume.visible =>
            {
                self.catalog.submit(Change::Withdraw(volume.name.clone(), id)).await?;
                log::warn!("undid the create of volume {}, which was cut off: {error}", volume.name);
                self.drop_staged(backend, expect, id).await?;
            }
            Err(error @ (BackendError::Occupied { .. } | BackendError::Ownership { .. })) => {
                log::error!(
                    "volume {} was created just before a crash, and its directory, .volhost/new/{id}, cannot get its name: \
                     {error}; the volume comes back when it can, or remove it",
                    volume.name
                );
                return Ok(false);
            }
            // The Create was finished since we looked.
            Err(BackendError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Shows and confirms a volume whose directory has its name durably.
    async fn finish_create(&self, volume: &Volume) -> Result<(), CatalogError> {
        self.catalog.submit(Change::Publish(volume.name.clone(), volume.id)).await?;
        self.catalog.submit(Change::Confirm(vec![(volume.name.clone(), volume.id)])).await?;
        Ok(())
    }

    /// Removes a staged directory that belongs to no volume. Returns false if it is not empty, and leaves it.
    async fn drop_staged(&self, backend: &Backend, expect: Expect, id: VolumeId) -> Result<bool, Error> {
        match backend.run(expect, move |root| root.unstage(id)).await {
            Ok(()) => Ok(true),
            Err(BackendError::NotEmpty { path }) => {
                log::warn!("{} belongs to no volume and is not empty: it is left", path.display());
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a trashed directory back if its volume exists: the removal was never recorded, or the restoration was.
    /// Returns false while something else stands under the volume's name.
    pub(super) async fn recover_trashed(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Arc<Volume>,
    ) -> Result<bool, Error> {
        let (id, name) = (volume.id, volume.name.clone());
        match backend.run(expect, move |root| root.untrash(id, &name)).await {
            Ok(()) => {
                self.catalog.submit(Change::Publish(volume.name.clone(), id)).await?;
                log::info!("put the directory of volume {} back: its removal was cut off", volume.name);
            }
            Err(BackendError::Occupied { path, .. }) => {
                log::error!(
                    "volume {} is in .volhost/trash/{id}, and {} is taken: move that away, then the volume comes back",
                    volume.name,
                    path.display()
                );
                return Ok(false);
            }
            // It was put back or restored since we looked.
            Err(BackendError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    /// Recovers a directory whose deletion had begun. Its remains are never restored, whatever the catalog says, which
    /// may be an older one. The deletion of a removed volume continues; anything else is logged.
    async fn recover_deleting(&self, backend: &Backend, id: VolumeId, volume: Option<&Volume>) {
        if let Some(volume) = volume {
            log::error!(
                "volume {} stands in the catalog, but its deletion had begun: what is left of it, in \
                 .volhost/deleting-{id}, is not put back; bring the volume back from a backup under its name, or remove \
                 it, and the rest is deleted",
                volume.name
            );
            return;
        }
        match self.catalog.view().trash.get(&id).cloned() {
            Some(removed) if removed.expired => {}
            Some(removed) => match self.catalog.submit(Change::Expire { id, removed: removed.at }).await {
                Ok(_) => {
                    log::info!(
                        "the deletion of removed volume {} had begun: it goes on",
                        removed.volume.name
                    );
                }
                Err(error) => log::warn!(
                    "the deletion of removed volume {} had begun, which cannot be recorded yet: {}",
                    removed.volume.name,
                    chain(&error)
                ),
            },
            None if self.locks.directories.is_locked(id) => {}
            None => log::warn!(
                "backend {}: .volhost/deleting-{id} is what is left of a volume that the catalog does not know and whose \
                 deletion had begun; it is left: `rm -r` frees its space",
                backend.name()
            ),
        }
    }

    /// Recovers a volume that is recorded but hidden or unconfirmed, with nothing staged or trashed any more. Returns false
    /// if a foreign directory has its name.
    ///
    /// Its directory may be there, durable or not: a rename with an unknown outcome did happen, or a flush was not
    /// confirmed. It may be gone. If the volume was hidden, its Create was never answered, and the record is withdrawn;
    /// after a crash it may have been answered, and a power cut took the directory, which is made again.
    async fn recover_hidden(
        &self,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<bool, Error> {
        let (id, name) = (volume.id, volume.name.clone());
        let made = volume.unconfirmed.as_ref().and_then(|unconfirmed| unconfirmed.directory);
        let look = move |root: &Root| {
            if root.is_staged(id)? || root.is_in_trash(id)? {
                return Ok(None);
            }
            Ok(Some(match root.volume_state(&name)? {
                VolumeState::Directory => {
                    let found = root.directory_id(&name)?;
                    if made.is_none_or(|made| made.may_be(&found)) {
                        // A process that was killed may have left it in the kernel's memory only.
                        root.flush()?;
                        Found::Own
                    } else {
                        Found::Foreign
                    }
                }
                _ if root.is_deleting(id)? => Found::Remains,
                VolumeState::Missing => Found::Nothing,
                VolumeState::NotADirectory(_) => Found::File,
            }))
        };
        // It became half-done after the first look: the next recovery decides.
        let Some(found) = backend.run(expect, look).await? else { return Ok(true) };
        let name = &volume.name;
        match found {
            Found::Own => {
                self.finish_create(volume).await?;
                log::debug!("volume {name} is whole");
            }
            // An older catalog came back; what is left of the volume is reported.
            Found::Remains => {}
            Found::Nothing | Found::File if !volume.visible => {
                self.catalog.submit(Change::Withdraw(name.clone(), id)).await?;
                log::warn!("volume {name} was being made and has no directory: its record is taken back");
            }
            Found::Nothing => return self.make_again(backend, expect, volume).await,
            Found::Foreign | Found::File => {
                log::error!(
                    "volume {name} was created just before a crash, which took its directory, and something else has its \
                     name, {}: move that away, then the volume comes back, empty, or remove the volume",
                    self.path(volume).display()
                );
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Makes the directory of an unconfirmed volume again. Nothing in it was durable, so it was empty. Returns false if it
    /// cannot be made now.
    async fn make_again(
        &self,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<bool, Error> {
        let (id, name, ownership) = (volume.id, volume.name.clone(), ownership(backend, volume));
        let make = move |root: &Root| {
            root.stage(id, ownership)?.sync()?;
            root.publish(id, &name)?;
            root.flush()
        };
        match backend.run(expect, make).await {
            Ok(()) => {
                self.finish_create(volume).await?;
                log::warn!(
                    "made the directory of volume {} again, empty: the volume was created just before a power cut",
                    volume.name
                );
                Ok(true)
            }
            Err(error) if error.storage_gone().is_some() => Err(error.into()),
            Err(error) => {
                log::error!(
                    "volume {} was created just before a power cut, and its directory cannot be made again: {error}",
                    volume.name
                );
                Ok(false)
            }
        }
    }
}

/// The entry under the name of a volume that is hidden or unconfirmed.
enum Found {
    /// The directory that was made for it, or one that cannot be told from that.
    Own,
    /// Another directory.
    Foreign,
    /// Something else than a directory.
    File,
    /// Nothing, because the deletion of the volume had begun.
    Remains,
    Nothing,
}

/// Returns true if a volume's directory may not be under its name, or not durably: as far as the catalog knows, its Create
/// or its restoration was not finished.
fn is_unfinished(volume: &Arc<Volume>) -> bool {
    !volume.visible || volume.unconfirmed.is_some()
}
