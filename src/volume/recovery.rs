//! What a crash, a failure or an unmounted share left half-done is finished or undone here, before the backend takes
//! new work.
//!
//! Nothing is deleted but empty staging directories of volumes that were never recorded. What belongs to nothing known
//! is reported and left.
//!
//! Where several instances serve the catalog, what looks half-done may be another one's work. So nothing is moved but
//! under a claim, which nobody gets while an instance that lives is at it; a staged directory without a record may be
//! a create that is about to be recorded, and is removed only when it stayed so for much longer than any create takes.
//! What was passed over for either reason is looked at again by itself.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use time::OffsetDateTime;
use tokio::sync::MutexGuard;

use super::create::ownership;
use super::error::Error;
use super::recovery_state::{Left, RecoveryState, is_abandoned};
use super::{DirectoryLock, Service};
use crate::backend::{Backend, BackendError, Expect, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Volume};
use crate::error::chain;
use crate::model::backend::BackendName;
use crate::model::volume::{VolumeId, VolumeName};

impl Service {
    /// Makes sure that the backend is the one the catalog knows and that nothing on it is half-done, and returns what
    /// an operation on it has to expect.
    pub(super) async fn ready(self: &Arc<Self>, backend: &Arc<Backend>) -> Result<Expect, Error> {
        self.note_lost();
        let mending = self.mending(backend.name());
        if mending.is_done()
            && let Some(expect) = self.established(backend.name())
        {
            return Ok(expect);
        }
        // Whose turn it is may hang in it.
        backend.answers()?;
        let _turn = self.turn(&mending).await?;
        let expect = self.identify(backend).await?;
        let damage = mending.damage.load(Ordering::Acquire);
        if mending.mended.load(Ordering::Acquire) != damage {
            let left = self.mend(backend, expect, &mending).await?;
            mending.leave(left);
            mending.mended.store(damage, Ordering::Release);
            // What came back may have removed volumes that are due.
            self.purge.notify_one();
        }
        Ok(expect)
    }

    /// Waits until nobody else gives the backend an identity or mends it.
    pub(super) async fn turn<'a>(&self, mending: &'a RecoveryState) -> Result<MutexGuard<'a, ()>, Error> {
        let limit = self.in_force.load().request;
        let turn = tokio::time::timeout(limit, mending.turn.lock()).await;
        turn.map_err(|_| self.too_long(limit))
    }

    /// Has the backend looked through again before its next operation.
    pub(super) fn mark_unmended(&self, backend: &BackendName) {
        self.mending(backend).damage.fetch_add(1, Ordering::AcqRel);
    }

    /// An operation whose outcome is not known, or could not be undone, is decided when the backend answers again.
    pub(super) fn leave_to_recovery(&self, moving: &DirectoryLock, name: &VolumeName, error: &BackendError) {
        log::error!(
            "an operation on volume {name} was cut off and will be finished or undone when backend {} answers: {}",
            moving.backend,
            chain(error)
        );
        moving.leave_half_done();
    }

    pub(super) fn mending(&self, backend: &BackendName) -> Arc<RecoveryState> {
        let mut mending = self.mending.lock().unwrap_or_else(PoisonError::into_inner);
        match mending.get(backend) {
            Some(known) => Arc::clone(known),
            None => Arc::clone(mending.entry(backend.clone()).or_default()),
        }
    }

    /// Looks through the backend once; returns what has to be left.
    async fn mend(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        expect: Expect,
        mending: &RecoveryState,
    ) -> Result<Left, Error> {
        let look = |root: &crate::backend::Root| {
            root.prepare();
            Ok((root.staged()?, root.trashed()?, root.deleting()?))
        };
        let (staged, trashed, deleting) = backend.run(expect, look).await?;
        // Whatever lies there was moved by someone whose record, where there is one, is known after this.
        self.sync().await?;
        for stray in staged.strays.iter().chain(&trashed.strays).chain(&deleting.strays) {
            log::warn!("backend {}: {} is not volhost's and is left alone", backend.name(), stray.display());
        }
        let found = staged.volumes.iter().chain(&trashed.volumes).chain(&deleting.volumes).copied().collect();
        let (names, removed) = (self.names_of(backend.name(), &found), self.catalog.view().trash.clone());
        let mut left = Left::default();
        for id in staged.volumes {
            if self.is_shared() && !names.contains_key(&id) {
                let since = mending.unrecorded_since(id);
                if !is_abandoned(since) {
                    left.unrecorded.insert(id, since);
                    continue;
                }
            }
            // Whoever moves it now knows what becomes of it; once it is ours, a fresh look tells the truth.
            let Some(_moving) = self.take_up_moving(backend, id, &mut left).await? else { continue };
            let volume = if names.contains_key(&id) {
                self.still(&names, id)
            } else {
                // It may have been recorded since.
                self.still(&self.names_of(backend.name(), &HashSet::from([id])), id)
            };
            self.mend_staged(backend, expect, id, volume).await?;
        }
        for id in deleting.volumes.into_iter().filter(|id| !trashed.volumes.contains(id)) {
            self.mend_deleting(backend, id, self.still(&names, id).as_deref()).await;
        }
        for id in trashed.volumes {
            if !names.contains_key(&id) {
                if !removed.contains_key(&id) && !self.moving_now(id) {
                    log::warn!(
                        "backend {}: .volhost/trash/{id} belongs to no volume that the catalog knows, and is left",
                        backend.name()
                    );
                }
                continue;
            }
            let Some(moving) = self.take_up_moving(backend, id, &mut left).await? else { continue };
            let Some(volume) = self.still(&names, id) else { continue };
            match self.mend_trashed(backend, expect, &volume).await {
                Ok(true) => {}
                Ok(false) => drop(left.displaced.insert(id)),
                // This instance was taken for lost meanwhile, and the volume removed by another one.
                Err(Error::Catalog(CatalogError::Refused(Refusal::NoSuchVolume))) => {
                    self.follow_record(&moving, backend, expect, &volume).await;
                }
                Err(error) => return Err(error),
            }
        }
        for (id, name) in &names {
            let hidden = || self.still(&names, *id).filter(is_half_made);
            if hidden().is_some()
                && !left.elsewhere.contains(id)
                && let Some(_moving) = self.take_up_moving(backend, *id, &mut left).await?
                && let Some(volume) = hidden()
            {
                log::debug!("volume {name} is recorded, and its directory was being moved");
                self.mend_hidden(backend, expect, &volume).await?;
            }
        }
        Ok(left)
    }

    /// Claims a volume's directory to mend it; where somebody else moves it, that is noted.
    async fn take_up_moving(
        self: &Arc<Self>,
        backend: &Backend,
        id: VolumeId,
        left: &mut Left,
    ) -> Result<Option<DirectoryLock>, Error> {
        let moving = self.claimed(backend.name(), id).await?;
        // Who moves it in this process has it looked at again by itself.
        if moving.is_none() && !self.moving_now(id) {
            left.elsewhere.insert(id);
        }
        Ok(moving)
    }

    /// The names, as a first look gives them, of a backend's volumes that have one of these identities or are half-made.
    fn names_of(&self, backend: &BackendName, found: &HashSet<VolumeId>) -> HashMap<VolumeId, VolumeName> {
        let view = self.catalog.view();
        let concerned = |volume: &&Arc<Volume>| {
            volume.backend == *backend && (is_half_made(volume) || found.contains(&volume.id))
        };
        view.volumes.values().filter(concerned).map(|volume| (volume.id, volume.name.clone())).collect()
    }

    /// The volume with that identity as the catalog has it now.
    fn still(&self, names: &HashMap<VolumeId, VolumeName>, id: VolumeId) -> Option<Arc<Volume>> {
        let view = self.catalog.view();
        names.get(&id).and_then(|name| view.volumes.get(name)).filter(|volume| volume.id == id).cloned()
    }

    /// A staged directory: its volume is recorded, and gets it; or it never was, and the directory goes.
    pub(super) async fn mend_staged(
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
        // One that is confirmed was answered: its owner may be another by now.
        let ownership = volume.unconfirmed.then(|| ownership(backend, &volume));
        let finish = move |root: &crate::backend::Root| {
            if let Some((uid, gid, mode)) = ownership {
                root.stage_again(id, uid, gid, mode)?;
            }
            root.publish(id, &name)
        };
        match backend.run(expect, finish).await {
            Ok(()) => {
                self.catalog.submit(Change::Publish(volume.name.clone(), id)).await?;
                log::info!("finished the create of volume {}, which was cut off", volume.name);
            }
            Err(error @ (BackendError::Occupied { .. } | BackendError::Ownership { .. })) => {
                // Never answered, and its name is somebody's, or it cannot be given to whom it was made for: the create
                // is undone. First the record goes: one without a staged directory would be taken for a volume whose
                // directory is the stranger's.
                self.catalog.submit(take_back(&volume)).await?;
                log::warn!("undid the create of volume {}, which was cut off: {error}", volume.name);
                self.drop_staged(backend, expect, id).await?;
            }
            // Its create was finished since we looked.
            Err(BackendError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Removes a staged directory that belongs to no volume, if it is empty; whether it did.
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

    /// A trashed directory whose volume still stands: its removal was never recorded, or its restoration was. Returns
    /// whether it is back; it is not while something else stands under its name.
    pub(super) async fn mend_trashed(
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

    /// A directory whose deletion had begun, whatever the catalog in force says of it: it may be an older one. What is left
    /// is never restored. A removed volume is deleted on; of anything else it is told.
    async fn mend_deleting(&self, backend: &Backend, id: VolumeId, volume: Option<&Volume>) {
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
            None if self.moving_now(id) => {}
            None => log::warn!(
                "backend {}: .volhost/deleting-{id} is what is left of a volume that the catalog does not know and whose \
                 deletion had begun; it is left: `rm -r` frees its space",
                backend.name()
            ),
        }
    }

    /// A volume that is recorded but not visible, or not confirmed, with nothing staged or trashed any more: a rename
    /// whose outcome was not known did happen, or what was to be renamed is gone.
    async fn mend_hidden(
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
        // Left half-done since the first look: the next one decides.
        let Some(state) = backend.run(expect, look).await? else { return Ok(()) };
        let name = volume.name.clone();
        match state {
            VolumeState::Directory => {
                self.catalog.submit(Change::Publish(name, volume.id)).await?;
                log::info!("volume {} is whole: what was cut off had been done", volume.name);
            }
            VolumeState::Missing | VolumeState::NotADirectory(_) => {
                self.catalog.submit(take_back(volume)).await?;
                log::warn!(
                    "volume {} was being made and has no directory: its record is taken back",
                    volume.name
                );
            }
        }
        Ok(())
    }
}

/// Whether a volume's directory may not be under its name: its create or its restoration was not finished, as far as
/// the catalog knows.
pub(super) fn is_half_made(volume: &Arc<Volume>) -> bool {
    !volume.visible || volume.unconfirmed
}

/// Takes back the record of a volume whose create was never answered: also one that a catalog opened after a crash
/// shows as visible.
fn take_back(volume: &Volume) -> Change {
    let (name, id) = (volume.name.clone(), volume.id);
    if volume.visible {
        Change::Remove { name, id, at: OffsetDateTime::now_utc(), keep: false }
    } else {
        Change::Withdraw(name, id)
    }
}
