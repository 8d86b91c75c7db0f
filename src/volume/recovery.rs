//! Recovery: what a crash, a failure or an unmounted share left half-done is finished or undone before the backend takes
//! new work.
//!
//! Nothing is deleted but empty staging directories of volumes that were never recorded. What belongs to nothing known is
//! reported and left.
//!
//! If several instances serve the catalog, what looks half-done may be another one's work. So nothing is moved without a
//! claim, which nobody gets while a live instance is working on it. A staged directory without a record may belong to a
//! create that is about to be recorded; it is removed only after much longer than any create takes. What was left for
//! either reason is looked at again later.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::sync::MutexGuard;

use super::create::ownership;
use super::error::Error;
use super::recovery_state::{BackendRecovery, Leftovers, is_abandoned};
use super::{DirectoryLock, Service};
use crate::backend::{Backend, BackendError, Expect, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Volume};
use crate::error::chain;
use crate::model::backend::BackendName;
use crate::model::volume::{VolumeId, VolumeName};

impl Service {
    /// Makes sure that the backend is the one that the catalog knows and that nothing on it is half-done. Returns the
    /// identity that an operation has to expect.
    pub(super) async fn ready(self: &Arc<Self>, backend: &Arc<Backend>) -> Result<Expect, Error> {
        self.recovery.note_lost_peers(&self.in_force.load().map);
        let recovery = self.recovery.of(backend.name());
        if recovery.is_done()
            && let Some(expect) = self.established(backend.name())
        {
            return Ok(expect);
        }
        // Whoever has the turn may hang in the storage.
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
        let limit = self.in_force.load().request;
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

    /// Goes through the backend once. Returns what has to be left.
    async fn recover(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        recovery: &BackendRecovery,
    ) -> Result<Leftovers, Error> {
        let look = |root: &crate::backend::Root| {
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
            // Whoever moves it now decides about it. Once it is claimed, the view tells what is true.
            let Some(_lock) = self.lock_for_recovery(backend, id, &mut left).await? else { continue };
            let volume = if names.contains_key(&id) {
                self.current(&names, id)
            } else {
                // It may have been recorded since.
                self.current(&self.names_of(backend.name(), &HashSet::from([id])), id)
            };
            self.recover_staged(backend, expect, id, volume).await?;
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
                // This instance was taken for lost meanwhile, and the volume removed by another one.
                Err(Error::Catalog(CatalogError::Refused(Refusal::NoSuchVolume))) => {
                    self.follow_record(&lock, backend, expect, &volume).await;
                }
                Err(error) => return Err(error),
            }
        }
        for (id, name) in &names {
            let hidden = || self.current(&names, *id).filter(is_half_made);
            if hidden().is_some()
                && !left.elsewhere.contains(id)
                && let Some(_lock) = self.lock_for_recovery(backend, *id, &mut left).await?
                && let Some(volume) = hidden()
            {
                log::debug!("volume {name} is recorded, and its directory was being moved");
                self.recover_hidden(backend, expect, &volume).await?;
            }
        }
        Ok(left)
    }

    /// Claims a volume's directory. Notes in `left` if another instance is moving it.
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

    /// The names of a backend's volumes that are half-made or have one of these identities, as the view shows them now.
    fn names_of(&self, backend: &BackendName, found: &HashSet<VolumeId>) -> HashMap<VolumeId, VolumeName> {
        let view = self.catalog.view();
        let concerned = |volume: &&Arc<Volume>| {
            volume.backend == *backend && (is_half_made(volume) || found.contains(&volume.id))
        };
        view.volumes.values().filter(concerned).map(|volume| (volume.id, volume.name.clone())).collect()
    }

    /// The volume with that identity as the view shows it now.
    fn current(&self, names: &HashMap<VolumeId, VolumeName>, id: VolumeId) -> Option<Arc<Volume>> {
        let view = self.catalog.view();
        names.get(&id).and_then(|name| view.volumes.get(name)).filter(|volume| volume.id == id).cloned()
    }

    /// Recovers a staged directory: its volume gets it, or it is removed if none was ever recorded.
    pub(super) async fn recover_staged(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        id: VolumeId,
        volume: Option<Arc<Volume>>,
    ) -> Result<(), Error> {
        let Some(volume) = volume else {
            if self.drop_staged(backend, expect, id).await? {
                log::info!("undid a create that was cut off before it was recorded ({id})");
            }
            return Ok(());
        };
        let name = volume.name.clone();
        // A confirmed volume was answered, and its directory may have another owner by now.
        let ownership = volume.unconfirmed.then(|| ownership(backend, &volume));
        let finish = move |root: &crate::backend::Root| {
            if let Some(ownership) = ownership {
                root.stage_again(id, ownership)?;
            }
            root.publish(id, &name)
        };
        match backend.run(expect, finish).await {
            Ok(()) => {
                self.catalog.submit(Change::Publish(volume.name.clone(), id)).await?;
                log::info!("finished the create of volume {}, which was cut off", volume.name);
            }
            Err(error @ (BackendError::Occupied { .. } | BackendError::Ownership { .. })) => {
                // The create was never answered, and its name is taken, or the directory cannot have the owner that was
                // asked for: it is undone. The record goes first: without a staged directory it would be taken for a
                // volume whose directory is the foreign one.
                self.catalog.submit(withdrawal(&volume)).await?;
                log::warn!("undid the create of volume {}, which was cut off: {error}", volume.name);
                self.drop_staged(backend, expect, id).await?;
            }
            // Its create was finished since we looked.
            Err(BackendError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
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

    /// Puts a trashed directory back whose volume stands: its removal was never recorded, or its restoration was. Returns
    /// false while something else stands under its name.
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

    /// Recovers a directory whose deletion had begun. What is left of it is never restored, whatever the catalog says, which
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

    /// Recovers a volume that is recorded but hidden or unconfirmed, with nothing staged or trashed any more: a rename whose
    /// outcome was not known did happen, or what was to be renamed is gone.
    async fn recover_hidden(
        &self,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<(), Error> {
        let (id, name) = (volume.id, volume.name.clone());
        let look = move |root: &crate::backend::Root| {
            let elsewhere = root.staged()?.volumes.contains(&id) || root.trashed()?.volumes.contains(&id);
            Ok((!elsewhere).then_some(root.volume_state(&name)?))
        };
        // It was left half-done after the first look: the next recovery decides.
        let Some(state) = backend.run(expect, look).await? else { return Ok(()) };
        let name = volume.name.clone();
        match state {
            VolumeState::Directory => {
                self.catalog.submit(Change::Publish(name, volume.id)).await?;
                log::info!("volume {} is whole: what was cut off had been done", volume.name);
            }
            VolumeState::Missing | VolumeState::NotADirectory(_) => {
                self.catalog.submit(withdrawal(volume)).await?;
                log::warn!(
                    "volume {} was being made and has no directory: its record is taken back",
                    volume.name
                );
            }
        }
        Ok(())
    }
}

/// Returns true if a volume's directory may not be under its name: as far as the catalog knows, its create or its
/// restoration was not finished.
pub(super) fn is_half_made(volume: &Arc<Volume>) -> bool {
    !volume.visible || volume.unconfirmed
}

/// The change that withdraws a volume whose create was never answered. A catalog that was opened after a crash shows such
/// a volume as visible.
fn withdrawal(volume: &Volume) -> Change {
    let (name, id) = (volume.name.clone(), volume.id);
    if volume.visible {
        Change::Remove { name, id, at: OffsetDateTime::now_utc(), keep: false }
    } else {
        Change::Withdraw(name, id)
    }
}
