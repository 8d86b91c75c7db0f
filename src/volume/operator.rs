//! Requests that only the operator may make: backends and their identities, the trash, and the release of mounts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::error::Error;
use super::expiry::expires_at;
use super::inspect::state_word;
use super::operation::CommitPoint;
use super::{Service, VolumeInfo};
use crate::backend::{Backend, BackendError, Expect, Health, Usage, VolumeState};
use crate::catalog::{BackendState, CatalogError, Change, Refusal, Removed};
use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::options::Ownership;
use crate::model::volume::{MountId, VolumeName};

/// How long an operator waits for a look at a volume's directory.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// A backend's state and contents.
#[derive(Debug, Clone)]
pub struct BackendInfo {
    /// Its name.
    pub name: BackendName,
    /// Its directory; for an unmapped backend, where hosts last saw it.
    pub path: PathBuf,
    /// `online`, `offline` or `unmapped`.
    pub state: &'static str,
    /// True if it takes no new volumes.
    pub draining: bool,
    /// Why it is not online.
    pub reason: Option<String>,
    /// The number of volumes on it.
    pub volumes: usize,
    /// The usage of its file system, if it is online.
    pub usage: Option<Usage>,
}

/// A removed volume.
#[derive(Debug, Clone)]
pub struct TrashedInfo {
    /// The volume and when it was removed.
    pub removed: Arc<Removed>,
    /// When it will be deleted; `None` if that is never, or while its backend is not in the map.
    pub expires_at: Option<OffsetDateTime>,
    /// Why it could not be deleted so far.
    pub blocked: Option<String>,
}

/// The mounts to release.
#[derive(Debug, Clone)]
pub struct Release {
    /// The volume; `None` means all volumes.
    pub volume: Option<VolumeName>,
    /// This host's.
    pub host: HostName,
    /// The mount's ID; `None` means all IDs.
    pub id: Option<MountId>,
    /// True to release mounts that may be alive as well.
    pub alive_too: bool,
}

/// The mounts that a release takes, and those of that host and ID that it leaves, with their volumes.
#[derive(Debug, Clone, Default)]
pub struct Released {
    /// The mounts that were released.
    pub released: Vec<(VolumeName, Mount)>,
    /// The mounts that may be alive and stay.
    pub kept: Vec<(VolumeName, Mount)>,
}

impl Service {
    /// Returns every backend of the map, and those outside it that still have volumes, by name.
    #[must_use]
    pub fn backends(&self) -> Vec<BackendInfo> {
        let (view, in_force) = (self.catalog.view(), self.in_force.load());
        let mapped = in_force.map.iter().map(|backend| {
            let health = backend.health();
            let (reason, usage) = match &*health {
                Health::Online(usage) => (None, Some(*usage)),
                Health::Offline { reason, .. } => (Some(reason.clone()), None),
                Health::Unknown => (Some("it has not answered yet".into()), None),
            };
            BackendInfo {
                name: backend.name().clone(),
                path: backend.settings().path.clone(),
                state: state_word(&health),
                draining: backend.settings().draining,
                reason,
                volumes: view.counts_of_backend(backend.name()).volumes,
                usage,
            }
        });
        let unmapped = view.backends_in_use().filter(|(name, _)| in_force.map.get(name).is_none()).map(
            |(name, counts)| BackendInfo {
                name: name.clone(),
                path: view
                    .backends
                    .get(name)
                    .map(|record| record.mountpoints.usual.clone())
                    .unwrap_or_default(),
                state: "unmapped",
                draining: true,
                reason: Some("it is not in the backend map".into()),
                volumes: counts.volumes,
                usage: None,
            },
        );
        let mut all: Vec<_> = mapped.chain(unmapped).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Returns what stands in the place of a volume's directory now, and who owns it; `None` if its backend does not
    /// answer soon.
    pub async fn look_at_directory(&self, info: &VolumeInfo) -> Option<(VolumeState, Option<Ownership>)> {
        let backend = self.backend_of(&info.volume).ok()?;
        let expect = self.established(backend.name())?;
        let name = info.volume.name.clone();
        let look = move |root: &crate::backend::Root| Ok((root.volume_state(&name)?, root.ownership(&name)?));
        tokio::time::timeout(LOOK_TIMEOUT, backend.run(expect, look)).await.ok()?.ok()
    }

    /// Gives a backend's directory an identity. `force` replaces an identity that the catalog has recorded; the volumes
    /// of that one then have no directory any more.
    pub async fn init_backend(self: &Arc<Self>, name: &BackendName, force: bool) -> Result<BackendId, Error> {
        self.identified(name, move |service, commit_point, backend| async move {
            service.init_in_turn(&commit_point, &backend, force).await
        })
        .await
    }

    async fn init_in_turn(
        &self,
        commit_point: &CommitPoint,
        backend: &Arc<Backend>,
        force: bool,
    ) -> Result<BackendId, Error> {
        let name = backend.name();
        self.sync().await?;
        let remembered = self.catalog.view().backends.get(name).cloned();
        if let Some(record) = remembered.filter(|record| record.state == BackendState::Established && !force)
        {
            return Err(Error::Identity {
                backend: name.clone(),
                reason: format!(
                    "the catalog remembers it as {}; is its share mounted at {}? `--force` gives that one up",
                    record.id,
                    backend.settings().path.display()
                ),
            });
        }
        let id = BackendId::random();
        let named = name.clone();
        backend
            .run(Expect::Nothing, move |root| match root.identity()? {
                None => Ok(()),
                Some(found) => Err(BackendError::Identified {
                    backend: named,
                    path: root.path().into(),
                    found: found.id,
                }),
            })
            .await?;
        if !commit_point.decide() {
            return Err(Error::Abandoned);
        }
        self.record_backend(backend, id, BackendState::Initialising).await?;
        let named = name.clone();
        backend.run(Expect::Nothing, move |root| root.write_identity(id, &named)).await?;
        self.record_backend(backend, id, BackendState::Established).await?;
        Ok(id)
    }

    /// Records in the catalog the identity that a backend's directory already has.
    pub async fn adopt_backend(self: &Arc<Self>, name: &BackendName) -> Result<BackendId, Error> {
        self.identified(name, |service, commit_point, backend| async move {
            service.adopt_in_turn(&commit_point, &backend).await
        })
        .await
    }

    async fn adopt_in_turn(
        &self,
        commit_point: &CommitPoint,
        backend: &Arc<Backend>,
    ) -> Result<BackendId, Error> {
        let name = backend.name();
        let Some(found) = backend.run(Expect::Nothing, crate::backend::Root::identity).await? else {
            return Err(Error::Identity {
                backend: name.clone(),
                reason: format!(
                    "{} has no .volhost/backend.json to adopt; is the share mounted? `volhost backend init {name}` \
                     makes it a backend",
                    backend.settings().path.display()
                ),
            });
        };
        if !commit_point.decide() {
            return Err(Error::Abandoned);
        }
        self.record_backend(backend, found.id, BackendState::Established).await?;
        Ok(found.id)
    }

    /// Runs `identify` on a backend of the map while nobody else gives it an identity or recovers it, and then recovers
    /// it.
    async fn identified<F>(
        self: &Arc<Self>,
        name: &BackendName,
        identify: impl FnOnce(Arc<Self>, Arc<CommitPoint>, Arc<Backend>) -> F + Send + 'static,
    ) -> Result<BackendId, Error>
    where
        F: Future<Output = Result<BackendId, Error>> + Send + 'static,
    {
        let (service, name) = (Arc::clone(self), name.clone());
        self.operate(|commit_point| async move {
            let backend = service.mapped(&name)?;
            let recovery = service.recovery.of(&name);
            let turn = service.turn(&recovery).await?;
            let id = identify(Arc::clone(&service), commit_point, Arc::clone(&backend)).await?;
            drop(turn);
            service.take_up(&backend).await;
            Ok(id)
        })
        .await
    }

    /// Returns the removed volumes in the order of their removal.
    #[must_use]
    pub fn trash(&self) -> Vec<TrashedInfo> {
        let (view, in_force) = (self.catalog.view(), self.in_force.load());
        let mut all: Vec<_> = view
            .trash
            .values()
            .map(|removed| TrashedInfo {
                removed: Arc::clone(removed),
                expires_at: in_force
                    .map
                    .get(&removed.volume.backend)
                    .and_then(|backend| expires_at(removed, backend)),
                blocked: self.trash.blocked(removed).map(|blocked| blocked.reason),
            })
            .collect();
        all.sort_by_key(|trashed| trashed.removed.at);
        all
    }

    /// Marks a removed volume, given by name or ID, for deletion now instead of when its time is over.
    pub async fn expire(&self, wanted: &str) -> Result<Arc<Removed>, Error> {
        let removed = self.find_removed(wanted).await?;
        self.catalog.submit(Change::Expire { id: removed.volume.id, removed: removed.at }).await.map_err(
            |error| match error {
                CatalogError::Refused(Refusal::NotInTrash) => Error::NotInTrash(wanted.into()),
                error => error.into(),
            },
        )?;
        self.trash.unblock(removed.volume.id);
        self.trash.wake();
        Ok(removed)
    }

    /// Returns what [`release`](Self::release) would do.
    pub async fn would_release(&self, release: &Release) -> Result<Released, Error> {
        // Mounts that this view does not show would be neither listed nor released.
        self.sync().await?;
        let view = self.catalog.view();
        let volumes: Vec<_> = match &release.volume {
            Some(name) => {
                vec![view.volumes.get(name).ok_or_else(|| Error::NoSuchVolume(name.to_string()))?]
            }
            None => view.volumes.values().collect(),
        };
        let of_host = volumes.into_iter().flat_map(|volume| {
            let mounts = volume.mounts.iter().filter(|mount| {
                mount.host == release.host && release.id.as_ref().is_none_or(|id| mount.id == *id)
            });
            mounts.map(|mount| (volume.name.clone(), mount.clone()))
        });
        let (released, kept) = of_host.partition(|(_, mount)| release.alive_too || view.stale(mount));
        Ok(Released { released, kept })
    }

    /// Releases mounts, one volume after the other. If one fails, those before it stay released.
    pub async fn release(&self, release: &Release) -> Result<Released, Error> {
        let Released { released: mut planned, kept } = self.would_release(release).await?;
        planned.dedup_by(|(one, _), (other, _)| one == other);
        let mut released = Vec::new();
        for (name, _) in planned {
            let Release { volume: _, host, id, alive_too } = release.clone();
            let change = Change::Release { name: name.clone(), host, id, alive_too };
            for mount in self.catalog.submit(change).await?.released {
                let Mount { host, id, count, .. } = &mount;
                log::info!("released mount {id} ({count} times) of volume {name} by host {host}");
                released.push((name.clone(), mount));
            }
        }
        Ok(Released { released, kept })
    }

    fn mapped(&self, name: &BackendName) -> Result<Arc<Backend>, Error> {
        let in_force = self.in_force.load();
        in_force.map.get(name).cloned().ok_or_else(|| Error::NoSuchBackend {
            name: name.clone(),
            known: in_force.map.iter().map(|backend| backend.name().clone()).collect(),
        })
    }

    /// Recovers a backend whose identity was just set, so that it takes work at once.
    async fn take_up(self: &Arc<Self>, backend: &Arc<Backend>) {
        self.recovery.require(backend.name());
        if let Err(error) = self.ready(backend).await {
            log::warn!("backend {}: {}", backend.name(), crate::error::chain(&error));
        }
    }
}
