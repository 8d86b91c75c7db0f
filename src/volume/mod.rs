//! What volumes do: the service that every protocol and the admin socket ask.
//!
//! It alone knows both the catalog (what exists) and the backends (where it lies), and it alone orders their effects,
//! so that a crash at any step leaves something that `recovery` can finish or undo:
//!
//! - Create: make `.volhost/new/UUID` → record the volume, unconfirmed → both are durable → rename the directory to its
//!   name, durably → visible, answer; the confirmation follows. What waits for the disk, and why no more, is told in
//!   `create`.
//! - Remove: rename the directory to `.volhost/trash/UUID` → record the removal → answer.
//! - Mount: look at the directory → record the mount → answer.
//! - Undoing uses rmdir and rename, never a recursive delete; only `trash` deletes, and only what was removed.
//!
//! Get, List, Path and Unmount never wait for a backend: they are answered from the catalog.
//!
//! Several instances may serve one catalog and the same storage: `consistency` tells what may be refused, `directory_lock` who moves
//! a directory, `remove` how a directory follows its record, and `recovery` what is mended of an instance that was lost.

mod backend_tasks;
mod backends;
mod consistency;
mod copies;
mod create;
mod directory_lock;
pub(crate) mod error;
mod holders;
mod ignored_unmounts;
mod last_seen;
mod mount;
mod operation;
mod operator;
mod preconditions;
mod recovery;
mod recovery_state;
mod remove;
mod restore;
mod same_directory;
mod soon;
mod step;
#[cfg(test)]
mod tests;
mod trash;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::ready;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::watch;

use self::directory_lock::DirectoryLock;
pub use self::error::{Blame, Error};
pub use self::holders::Holders;
use self::ignored_unmounts::Forgiven;
use self::last_seen::Noted;
pub use self::mount::Counted;
use self::operation::Locks;
pub use self::operator::{BackendInfo, Release, Released, TrashedInfo};
use self::recovery_state::RecoveryState;
pub use self::step::STEPS;
use self::trash::Blocked;
use crate::backend::{self, Backend, Health};
use crate::catalog::{Catalog, Change, News, View, Volume};
use crate::error::log_limit::LogLimit;
use crate::host::Caller;
use crate::host::access::{Access, Ask};
use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::mountpoints::Mountpoints;
use crate::model::options::Options;
use crate::model::right::Right;
use crate::model::volume::{VolumeId, VolumeName};
use crate::process::clock::Clock;

/// What the configuration says of volumes: the backend map, and who may use what.
#[derive(Debug)]
pub struct InForce {
    /// The backend map.
    pub map: backend::Map,
    /// Which hosts may use which backend.
    pub access: Access,
    /// How long a request may take.
    pub request: Duration,
}

/// The volumes.
pub struct Service {
    catalog: Arc<dyn Catalog>,
    in_force: ArcSwap<InForce>,
    locks: Arc<Locks>,
    /// Volumes whose directories operations are moving right now: recovery leaves them alone.
    moving: Mutex<HashSet<VolumeId>>,
    /// What is known of each backend about things left half-made.
    mending: Mutex<HashMap<BackendName, Arc<RecoveryState>>>,
    /// Removed volumes that could not be deleted so far.
    blocked: Mutex<HashMap<VolumeId, Blocked>>,
    seen: Mutex<BTreeMap<HostName, Noted>>,
    forgiven: Forgiven,
    purge: tokio::sync::Notify,
    /// Looked at by the trash.
    clock: Clock,
    copied: copies::Copied,
    /// Of the backends that are worked on.
    places: backend_tasks::Places,
    /// What other instances did, where there are any.
    news: Option<watch::Receiver<News>>,
    /// How many of them were lost, as far as the backends were looked through for it.
    lost: AtomicU64,
    /// Where hosts see each backend, as this process last recorded it.
    recorded: Mutex<HashMap<BackendName, Mountpoints>>,
    log_limit: LogLimit,
}

/// A volume as a host sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The volume.
    pub volume: Arc<Volume>,
    /// Its directory, as the host that asks sees it.
    pub mountpoint: PathBuf,
    /// The state of its backend: `online`, `offline` or `unmapped`.
    pub backend_state: &'static str,
}

impl Service {
    /// A service of what the catalog holds, with nothing in force yet.
    #[must_use]
    pub fn new(catalog: Arc<dyn Catalog>, in_force: InForce) -> Self {
        Self {
            news: catalog.news(),
            lost: AtomicU64::new(0),
            recorded: Mutex::default(),
            catalog,
            in_force: ArcSwap::from_pointee(in_force),
            locks: Arc::default(),
            moving: Mutex::default(),
            mending: Mutex::default(),
            blocked: Mutex::default(),
            seen: Mutex::default(),
            forgiven: Forgiven::default(),
            purge: tokio::sync::Notify::new(),
            clock: Clock::default(),
            copied: copies::Copied::default(),
            log_limit: LogLimit::default(),
            places: backend_tasks::Places::default(),
        }
    }

    /// Bounds the log lines that hosts can cause at will.
    #[must_use]
    pub fn log_limit(&self) -> &LogLimit {
        &self.log_limit
    }

    /// The configuration's part in force now.
    #[must_use]
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    /// The catalog as it is now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.catalog.view()
    }

    /// Why the catalog cannot be written at present.
    #[must_use]
    pub fn catalog_fault(&self) -> Option<String> {
        self.catalog.fault().as_deref().cloned()
    }

    /// The volume, if it exists and this host may see it (`/VolumeDriver.Get`). What is known is told without waiting;
    /// that there is none is told only when the catalog says so.
    pub async fn inspect(&self, caller: &Caller, name: &str) -> Result<Seen, Error> {
        self.certain(|| ready(self.known(caller, name))).await
    }

    fn known(&self, caller: &Caller, name: &str) -> Result<Seen, Error> {
        let view = self.catalog.view();
        let in_force = self.in_force.load();
        match view.volumes.get(name) {
            Some(volume) if volume.visible && in_sight(&in_force.access, &view, caller, volume) => {
                Ok(seen(&view, &in_force.map, volume, &caller.host))
            }
            _ => {
                VolumeName::parse(name)?;
                Err(Error::NoSuchVolume(name.into()))
            }
        }
    }

    /// Returns true if there is a volume of that name that this host may not see.
    fn is_out_of_sight(&self, in_force: &InForce, caller: &Caller, name: &VolumeName) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| !in_sight(&in_force.access, &view, caller, volume))
    }

    /// Returns true if a host may know which hosts have a volume mounted: the one that may mount or remove it, whom the
    /// error of either tells.
    #[must_use]
    pub fn may_know_holders(&self, caller: &Caller, volume: &Volume) -> bool {
        let in_force = self.in_force.load();
        [Right::Mount, Right::Remove]
            .into_iter()
            .any(|right| permit(&in_force, caller, right, &volume.backend, &volume.options).is_ok())
    }

    /// Whether there is a volume of that name, visible or being made.
    pub async fn exists(&self, name: &VolumeName) -> Result<bool, Error> {
        let exists = || self.catalog.view().volumes.contains_key(name);
        if exists() {
            return Ok(true);
        }
        self.sync().await?;
        Ok(exists())
    }

    /// The volumes that this host may see, as they are at this moment (`/VolumeDriver.List`).
    pub async fn list(&self, caller: &Caller) -> List {
        self.refresh().await;
        List {
            view: self.catalog.view(),
            in_force: self.in_force.load_full(),
            caller: caller.clone(),
            shown: None,
        }
    }

    /// An engine was started: mounts of its earlier activations are stale from now on. Returns at once; the catalog
    /// orders it before every later change.
    pub fn activate(self: &Arc<Self>, host: &HostName) {
        let recorded = self.catalog.submit(Change::Activate(host.clone()));
        let (service, host) = (Arc::clone(self), host.clone());
        tokio::spawn(async move {
            if let Err(error) = recorded.await {
                service.log_limit.log(log::Level::Error, "activation", &host, || {
                    let why = crate::error::chain(&error);
                    format!("the activation of host {host} could not be recorded: {why}")
                });
            }
        });
    }

    /// When a host last sent a request, as far as this process or the catalog knows.
    #[must_use]
    pub fn last_seen(&self, host: &HostName) -> Option<OffsetDateTime> {
        let recorded = self.catalog.view().hosts.get(host).and_then(|host| host.last_seen);
        let noted = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(host).map(|noted| noted.at);
        noted.max(recorded)
    }

    /// Where a volume's directory lies on this machine; for an unmapped backend, where hosts saw it last.
    #[must_use]
    pub fn path(&self, volume: &Volume) -> PathBuf {
        match self.in_force.load().map.get(&volume.backend) {
            Some(backend) => backend.settings().path.join(volume.name.as_str()),
            None => {
                let view = self.catalog.view();
                let record = view.backends.get(&volume.backend);
                let usual = record.map(|record| record.mountpoints.usual.clone()).unwrap_or_default();
                usual.join(volume.name.as_str())
            }
        }
    }

    /// The identity that the catalog remembers for a backend.
    #[must_use]
    pub fn backend_id(&self, backend: &BackendName) -> Option<BackendId> {
        self.catalog.view().backends.get(backend).map(|record| record.id)
    }

    /// The backend of a volume, or why it cannot be worked on.
    fn backend_of(&self, volume: &Volume) -> Result<Arc<Backend>, Error> {
        self.in_force
            .load()
            .map
            .get(&volume.backend)
            .cloned()
            .ok_or_else(|| Error::Unmapped { name: volume.name.clone(), backend: volume.backend.clone() })
    }
}

/// A list of volumes, told in parts. It is of the moment when it was asked for, however long the telling takes.
#[derive(Debug)]
pub struct List {
    view: Arc<View>,
    in_force: Arc<InForce>,
    caller: Caller,
    /// The last one that was told.
    shown: Option<VolumeName>,
}

impl List {
    /// Shows the next volumes, in the order of names, for as long as `show` takes more; whether any may be left. Never
    /// waits.
    pub fn more(&mut self, mut show: impl FnMut(Seen) -> bool) -> bool {
        let shown = self.shown.take();
        let from = shown.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        for (name, volume) in self.view.volumes.range::<_, VolumeName>((from, Bound::Unbounded)) {
            if volume.visible
                && in_sight(&self.in_force.access, &self.view, &self.caller, volume)
                && !show(seen(&self.view, &self.in_force.map, volume, &self.caller.host))
            {
                self.shown = Some(name.clone());
                return true;
            }
        }
        false
    }
}

/// Whether a host may see a volume: its backend is open to the host, or the host created or ever mounted it, under this
/// name or one that it had before.
fn in_sight(access: &Access, view: &View, caller: &Caller, volume: &Volume) -> bool {
    caller.is_operator()
        || access.is_open(&volume.backend, &caller.host)
        || volume.known_to.iter().any(|known| *known == caller.host || *view.name_now(known) == caller.host)
}

/// Refuses what a host has not the right to do. A volume may stay in sight of a host that may not use it any more.
fn permit(
    in_force: &InForce,
    caller: &Caller,
    right: Right,
    backend: &BackendName,
    options: &Options,
) -> Result<(), Error> {
    if caller.is_operator() {
        return Ok(());
    }
    let ask = Ask { host: &caller.host, backend, right, exclusive: options.is_exclusive() };
    in_force.access.judge(ask).map_err(|why| Error::Forbidden {
        host: caller.host.clone(),
        right,
        backend: backend.clone(),
        why,
    })
}

fn seen(view: &View, map: &backend::Map, volume: &Arc<Volume>, host: &HostName) -> Seen {
    let volume = Arc::clone(volume);
    let (root, backend_state) = match map.get(&volume.backend) {
        Some(backend) => (Some(backend.settings().mountpoints.on(host)), state_word(&backend.health())),
        None => (view.backends.get(&volume.backend).map(|record| record.mountpoints.on(host)), "unmapped"),
    };
    Seen { mountpoint: root.unwrap_or(Path::new("")).join(volume.name.as_str()), backend_state, volume }
}

/// The word for a mapped backend's state. One that was not asked yet counts as offline until it answers.
fn state_word(health: &Health) -> &'static str {
    match health {
        Health::Online(_) => "online",
        Health::Offline { .. } | Health::Unknown => "offline",
    }
}

/// Names the steps of an operation in the log at one place, in one form.
fn log_done(what: &str, name: &VolumeName, caller: &Caller) {
    log::info!("{what} volume {name} for host {}", caller.host);
}
