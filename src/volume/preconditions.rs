//! What an operation may take for settled about a volume: nothing is half-done about it, or what is half-done is mended
//! first, or waited for where another instance is at it.
//!
//! Decides nothing; it asks [`super::recover`] to mend.

use std::sync::Arc;

use super::Service;
use super::consistency::Backoff;
use super::error::Error;
use super::recovery::is_half_made;
use crate::backend::{Backend, Expect, VolumeState};
use crate::catalog::Volume;
use crate::model::volume::VolumeName;

impl Service {
    /// The volume of that name once nothing about it is half-done: nothing, when there is none. An instance that is
    /// making it is waited for, a while.
    pub(super) async fn settled(self: &Arc<Self>, name: &VolumeName) -> Result<Option<Arc<Volume>>, Error> {
        let mut backoff = Backoff::new();
        loop {
            match self.settled_now(name).await {
                // Another instance is at it, or at one that got this name since the last look.
                Err(Error::NotMended(_))
                    if self.is_shared() && !self.is_displaced(name) && backoff.wait().await =>
                {
                    self.sync().await?;
                }
                settled => return settled,
            }
        }
    }

    async fn settled_now(self: &Arc<Self>, name: &VolumeName) -> Result<Option<Arc<Volume>>, Error> {
        self.note_lost();
        let now = || self.catalog.view().volumes.get(name).cloned();
        let Some(mut volume) = now() else { return Ok(None) };
        if is_half_made(&volume) && self.is_shared() {
            // Another instance may have finished it.
            self.sync().await?;
            match now() {
                Some(fresh) => volume = fresh,
                None => return Ok(None),
            }
        }
        let mending = self.mending(&volume.backend);
        let is_unsettled = |volume: &Arc<Volume>| is_half_made(volume) || mending.is_displaced(volume.id);
        if is_unsettled(&volume) {
            self.mark_unmended(&volume.backend);
        }
        if mending.is_done() {
            return Ok(Some(volume));
        }
        let backend = match self.backend_of(&volume) {
            Ok(backend) => backend,
            // Whether it is going to be whole is known only where its backend is mapped.
            Err(unmapped) if is_half_made(&volume) => return Err(unmapped),
            // Whether the directory of one that was whole still is so, need not be known here.
            Err(_) => return Ok(Some(volume)),
        };
        self.ready(&backend).await?;
        match now() {
            Some(volume) if is_unsettled(&volume) => Err(Error::NotMended(name.clone())),
            settled => Ok(settled),
        }
    }

    /// Whether what stands under that volume's name is not its directory, as far as the last look told.
    fn is_displaced(&self, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| self.mending(&volume.backend).is_displaced(volume.id))
    }

    /// Whether another instance is moving the directory of that volume, as far as the last look told.
    pub(super) fn is_elsewhere(&self, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| self.mending(&volume.backend).is_elsewhere(volume.id))
    }

    /// Whether a volume that this instance was making or restoring is whole without it: its directory is not where it
    /// was to be taken from, because another instance took this one for lost and finished what it had begun.
    pub(super) async fn is_whole(&self, backend: &Backend, expect: Expect, volume: &Volume) -> bool {
        let (id, name) = (volume.id, volume.name.clone());
        if !self.is_shared() || self.sync().await.is_err() {
            return false;
        }
        // A record that is still hidden is still this instance's: nobody else finished it.
        let view = self.catalog.view();
        if !view.volumes.get(&name).is_some_and(|now| now.id == id && now.visible) {
            return false;
        }
        let look = move |root: &crate::backend::Root| {
            let elsewhere = root.staged()?.volumes.contains(&id) || root.is_trashed(id)?;
            Ok(!elsewhere && root.volume_state(&name)? == VolumeState::Directory)
        };
        backend.run(expect, look).await.unwrap_or(false)
    }
}
