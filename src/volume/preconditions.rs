//! The precondition of an operation on a volume: nothing about the volume is half-done. If something is, it is
//! recovered first, or waited for while another instance is working on it.
//!
//! `recovery` makes the decisions.

use std::sync::Arc;

use super::Service;
use super::consistency::PeerBackoff;
use super::error::Error;
use crate::backend::{Backend, Expect, VolumeState};
use crate::catalog::Volume;
use crate::model::volume::VolumeName;

impl Service {
    /// Returns the volume of that name once nothing about it is half-done; `None` if there is none. Waits a while for
    /// another instance that is making it.
    pub(super) async fn recovered(self: &Arc<Self>, name: &VolumeName) -> Result<Option<Arc<Volume>>, Error> {
        let mut backoff = PeerBackoff::new();
        loop {
            match self.recovered_now(name).await {
                // Another instance is working on it, or on a volume that got this name since the last look.
                Err(Error::RecoveryPending(_))
                    if self.is_shared() && !self.is_displaced(name) && backoff.wait().await =>
                {
                    self.sync().await?;
                }
                recovered => return recovered,
            }
        }
    }

    async fn recovered_now(self: &Arc<Self>, name: &VolumeName) -> Result<Option<Arc<Volume>>, Error> {
        self.recovery.note_lost_peers(&self.in_force.load().map);
        let now = || self.catalog.view().volumes.get(name).cloned();
        let Some(mut volume) = now() else { return Ok(None) };
        if !volume.visible && self.is_shared() {
            // Another instance may have finished it.
            self.sync().await?;
            match now() {
                Some(fresh) => volume = fresh,
                None => return Ok(None),
            }
        }
        let recovery = self.recovery.of(&volume.backend);
        let is_half_done = |volume: &Arc<Volume>| !volume.visible || recovery.is_displaced(volume.id);
        if is_half_done(&volume) {
            recovery.require();
        }
        if recovery.is_done() {
            return Ok(Some(volume));
        }
        let backend = match self.backend_of(&volume) {
            Ok(backend) => backend,
            // Without its backend nobody can know whether the volume becomes whole.
            Err(unmapped) if !volume.visible => return Err(unmapped),
            // A volume that was whole counts as whole, whatever has happened to its directory.
            Err(_) => return Ok(Some(volume)),
        };
        self.ready(&backend).await?;
        match now() {
            Some(volume) if is_half_done(&volume) => Err(Error::RecoveryPending(name.clone())),
            recovered => Ok(recovered),
        }
    }

    /// Returns true if the last recovery found something other than the volume's directory under its name.
    fn is_displaced(&self, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| self.recovery.of(&volume.backend).is_displaced(volume.id))
    }

    /// Returns true if the last recovery found another instance moving the volume's directory.
    pub(super) fn is_elsewhere(&self, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| self.recovery.of(&volume.backend).is_elsewhere(volume.id))
    }

    /// Returns true if another instance finished a volume that this one was making or restoring. It does so when it
    /// takes this instance for lost; the directory is then no longer where this one was to take it from.
    pub(super) async fn is_whole(&self, backend: &Backend, expect: Expect, volume: &Volume) -> bool {
        let (id, name) = (volume.id, volume.name.clone());
        if !self.is_shared() || self.sync().await.is_err() {
            return false;
        }
        // Nobody has finished a record that is still hidden.
        let view = self.catalog.view();
        if !view.volumes.get(&name).is_some_and(|now| now.id == id && now.visible) {
            return false;
        }
        let look = move |root: &crate::backend::Root| {
            let elsewhere = root.is_staged(id)? || root.is_trashed(id)?;
            Ok(!elsewhere && root.volume_state(&name)? == VolumeState::Directory)
        };
        backend.run(expect, look).await.unwrap_or(false)
    }
}
