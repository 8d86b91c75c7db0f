//! Get and List: what a host sees of the volumes, answered from the catalog.

use std::future::ready;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::rights::{in_sight, permit};
use super::{Error, InForce, Service};
use crate::backend::{self, Health};
use crate::catalog::{View, Volume};
use crate::host::Caller;
use crate::model::host::HostName;
use crate::model::right::Right;
use crate::model::volume::VolumeName;

/// A volume as a host sees it.
#[derive(Debug, Clone)]
pub struct VolumeInfo {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Its directory, as the asking host sees it.
    pub mountpoint: PathBuf,
    /// The state of its backend: `online`, `offline` or `unmapped`.
    pub backend_state: &'static str,
}

impl Service {
    /// Returns the volume, if it exists and this host may see it (`/VolumeDriver.Get`). A known volume is returned
    /// without waiting; a missing one is reported only when the catalog has confirmed that it is missing.
    pub async fn inspect(&self, caller: &Caller, name: &str) -> Result<VolumeInfo, Error> {
        self.retry_after_sync(|| ready(self.known(caller, name))).await
    }

    fn known(&self, caller: &Caller, name: &str) -> Result<VolumeInfo, Error> {
        let view = self.catalog.view();
        let in_force = self.in_force.load();
        match view.volumes.get(name) {
            Some(volume) if volume.visible && in_sight(&in_force.access, &view, caller, volume) => {
                Ok(volume_info(&view, &in_force.map, volume, &caller.host))
            }
            _ => {
                VolumeName::parse(name)?;
                Err(Error::NoSuchVolume(name.into()))
            }
        }
    }

    /// Returns true if there is a volume of that name that this host may not see.
    pub(super) fn is_out_of_sight(&self, in_force: &InForce, caller: &Caller, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| !in_sight(&in_force.access, &view, caller, volume))
    }

    /// Returns true if a host may know which hosts have a volume mounted: a host that may mount or remove it learns that
    /// from the errors of either.
    #[must_use]
    pub fn may_know_holders(&self, caller: &Caller, volume: &Volume) -> bool {
        let in_force = self.in_force.load();
        [Right::Mount, Right::Remove]
            .into_iter()
            .any(|right| permit(&in_force, caller, right, &volume.backend, &volume.options).is_ok())
    }

    /// Returns true if there is a volume of that name, visible or being made.
    pub async fn exists(&self, name: &VolumeName) -> Result<bool, Error> {
        let exists = || self.catalog.view().volumes.contains_key(name);
        if exists() {
            return Ok(true);
        }
        self.sync().await?;
        Ok(exists())
    }

    /// Returns the volumes that this host may see at this moment (`/VolumeDriver.List`).
    pub async fn list(&self, caller: &Caller) -> List {
        self.refresh().await;
        List {
            view: self.catalog.view(),
            in_force: self.in_force.load_full(),
            caller: caller.clone(),
            last_shown: None,
        }
    }
}

/// A list of volumes that is read in parts. It keeps the state of the moment when it was requested, however long the
/// reading takes.
#[derive(Debug)]
pub struct List {
    view: Arc<View>,
    in_force: Arc<InForce>,
    caller: Caller,
    last_shown: Option<VolumeName>,
}

impl List {
    /// Passes the next volumes to `show` in the order of names, until it returns false. Returns true if any may be
    /// left. Never waits.
    pub fn more(&mut self, mut show: impl FnMut(VolumeInfo) -> bool) -> bool {
        let last = self.last_shown.take();
        let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (name, volume) in self.view.volumes.range::<_, VolumeName>((from, Bound::Unbounded)) {
            if volume.visible
                && in_sight(&self.in_force.access, &self.view, &self.caller, volume)
                && !show(volume_info(&self.view, &self.in_force.map, volume, &self.caller.host))
            {
                self.last_shown = Some(name.clone());
                return true;
            }
        }
        false
    }
}

pub(super) fn volume_info(
    view: &View,
    map: &backend::Map,
    volume: &Arc<Volume>,
    host: &HostName,
) -> VolumeInfo {
    let volume = Arc::clone(volume);
    let (root, backend_state) = match map.get(&volume.backend) {
        Some(backend) => (Some(backend.settings().mountpoints.on(host)), state_word(&backend.health())),
        None => (view.backends.get(&volume.backend).map(|record| record.mountpoints.on(host)), "unmapped"),
    };
    VolumeInfo { mountpoint: root.unwrap_or(Path::new("")).join(volume.name.as_str()), backend_state, volume }
}

/// Returns the word for a mapped backend's state. A backend that was not checked yet counts as offline.
pub(super) fn state_word(health: &Health) -> &'static str {
    match health {
        Health::Online(_) => "online",
        Health::Offline { .. } | Health::Unknown => "offline",
    }
}
