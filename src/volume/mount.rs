//! Mount and Unmount: who uses a volume, counted durably before the engine is told where it lies.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::error::Error;
use super::fresh::Patience;
use super::name::{MountId, VolumeId, VolumeName};
use super::operation::Claim;
use super::step::step;
use super::{Holders, InForce, Seen, Service, in_sight, permit, seen};
use crate::backend::VolumeState;
use crate::catalog::{CatalogError, Change, Refusal, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::host::right::Right;

/// How long after a failure it is tried again to take a late mount back.
const TAKE_BACK: Duration = Duration::from_secs(1);

/// A counted Mount whose answer has not been handed over. Dropped before it is, as it is when the client has gone, the
/// Mount is taken back: nobody would ever unmount it.
pub struct Counted {
    service: Arc<Service>,
    caller: Caller,
    id: MountId,
    seen: Seen,
    handed_over: bool,
}

impl Counted {
    /// The volume as it was mounted.
    #[must_use]
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// The answer is on its way: whoever gets it unmounts.
    pub fn hand_over(mut self) {
        self.handed_over = true;
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.handed_over {
            return;
        }
        let (service, caller, id) = (Arc::clone(&self.service), self.caller.clone(), self.id.clone());
        let name = self.seen.volume.name.clone();
        service.limiter.warn("no answer", &caller.host, || {
            format!("a mount of volume {name} by host {} has nobody to answer and is taken back", caller.host)
        });
        runtime.spawn(async move { service.take_back(&caller, &name, &id).await });
    }
}

impl Service {
    /// Counts one Mount and tells where the volume lies (`/VolumeDriver.Mount`).
    ///
    /// The backend must be online and the directory there. A Mount whose caller has given up or gone away is
    /// taken back: nobody would unmount it.
    pub async fn mount(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
        id: MountId,
    ) -> Result<Counted, Error> {
        let (service, caller) = (Arc::clone(self), caller.clone());
        self.operate(|claim| async move {
            let _held = service.locks.hold(&name, &claim).await?;
            service.mount_held(&claim, &caller, &name, &id).await
        })
        .await
    }

    async fn mount_held(
        self: &Arc<Self>,
        claim: &Claim,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<Counted, Error> {
        let in_force = self.in_force.load_full();
        let missing = || Error::NoSuchVolume(name.to_string());
        let mut patience = Patience::new();
        let (volume, outcome) = loop {
            let volume = self.certain(|| self.mountable(&in_force, caller, name)).await?;
            step("mount:checked");
            if !claim.wanted() || claim.deserted() {
                return Err(Error::Abandoned);
            }
            let mount = Change::Mount {
                name: name.clone(),
                volume: volume.id,
                host: caller.host.clone(),
                id: id.clone(),
                at: OffsetDateTime::now_utc(),
            };
            match self.catalog.submit(mount).await {
                Ok(outcome) => break (volume, outcome),
                // Its directory was looked at before another instance began to move it.
                Err(CatalogError::Refused(Refusal::Moving(_))) if patience.wait().await => {}
                Err(CatalogError::Refused(Refusal::Moving(_))) => return Err(Error::NotMended(name.clone())),
                // What was looked at is gone, and its name another volume's.
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) if self.is_another(name, volume.id) => {}
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) => return Err(missing()),
                Err(CatalogError::Refused(Refusal::Held(now))) => {
                    let holders = Holders::of(&now, &self.catalog.view());
                    return Err(Error::Exclusive { name: name.clone(), holders });
                }
                Err(error) => return Err(error.into()),
            }
        };
        step("mount:recorded");
        let mounted = outcome.after.unwrap_or(volume);
        let seen = seen(&self.catalog.view(), &in_force.map, &mounted, &caller.host);
        let counted = Counted {
            service: Arc::clone(self),
            caller: caller.clone(),
            id: id.clone(),
            seen,
            handed_over: false,
        };
        if claim.decide() {
            return Ok(counted);
        }
        self.limiter.warn("too late", &caller.host, || {
            format!("a mount of volume {name} by host {} came too late and is taken back", caller.host)
        });
        counted.hand_over();
        self.take_back(caller, name, id).await;
        Err(Error::Abandoned)
    }

    /// Whether the name is another volume's than this.
    fn is_another(&self, name: &VolumeName, id: VolumeId) -> bool {
        self.catalog.view().volumes.get(name).is_some_and(|now| now.visible && now.id != id)
    }

    /// The volume, if this host may mount it and its directory is there.
    async fn mountable(
        self: &Arc<Self>,
        in_force: &InForce,
        caller: &Caller,
        name: &VolumeName,
    ) -> Result<Arc<Volume>, Error> {
        let missing = || Error::NoSuchVolume(name.to_string());
        let (mut gone, mut patience) = (None, Patience::new());
        loop {
            let volume = self.settled(name).await?.ok_or_else(missing)?;
            if !in_sight(&in_force.access, caller, &volume) {
                return Err(missing());
            }
            permit(in_force, caller, Right::Mount, &volume.backend, &volume.options)?;
            let backend = self.backend_of(&volume)?;
            let expect = self.ready(&backend).await?;
            let directory = name.clone();
            match backend.run(expect, move |root| root.volume_state(&directory)).await? {
                VolumeState::Directory => return Ok(volume),
                VolumeState::Missing | VolumeState::NotADirectory => {
                    // It may have been left in the trash, or another instance may be moving it right now; or the
                    // volume is no more.
                    if gone == Some(volume.id) && !(self.is_elsewhere(name) && patience.wait().await) {
                        self.sync().await?;
                        if self.catalog.view().volumes.get(name).is_some_and(|now| now.id == volume.id) {
                            if self.is_elsewhere(name) {
                                return Err(Error::NotMended(name.clone()));
                            }
                            return Err(Error::DirectoryGone {
                                name: name.clone(),
                                backend: volume.backend.clone(),
                                path: self.path(&volume).display().to_string(),
                            });
                        }
                    }
                    gone = Some(volume.id);
                    self.mark_unmended(&volume.backend);
                }
            }
        }
    }

    /// Takes a mount back of which nobody was told, however often it must be tried: no engine will ever end it. The
    /// volume is held meanwhile.
    async fn take_back(&self, caller: &Caller, name: &VolumeName, id: &MountId) {
        loop {
            match self.unmount(caller, name, id).await {
                Ok(()) => return,
                // The next start knows nothing of it: the operator's word is needed then.
                Err(Error::Catalog(CatalogError::Closed)) => {
                    log::error!("mount {id} of volume {name} by host {} stays: nobody uses it", caller.host);
                    return;
                }
                // It is queued, and done as soon as the catalog answers.
                Err(Error::Unknown) => return,
                Err(error) => {
                    self.limiter.warn("not taken back", &caller.host, || {
                        let (host, why) = (&caller.host, chain(&error));
                        format!("mount {id} of volume {name} by host {host} cannot be taken back yet: {why}")
                    });
                    tokio::time::sleep(TAKE_BACK).await;
                }
            }
        }
    }

    /// Counts one Unmount (`/VolumeDriver.Unmount`). A volume or ID that is not known succeeds and is logged. Never
    /// waits for a backend, nor for an operation that does.
    pub async fn unmount(&self, caller: &Caller, name: &VolumeName, id: &MountId) -> Result<(), Error> {
        let unmount =
            Change::Unmount { name: name.clone(), host: caller.host.clone(), id: id.clone(), meant: None };
        let limit = self.in_force.load().request;
        // The catalog has queued it when `submit` returns, so that it is done also when nobody waits for it.
        let outcome = match tokio::time::timeout(limit, self.catalog.submit(unmount)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(Error::Unknown),
        };
        step("unmount:recorded");
        if outcome.released.is_empty() {
            self.limiter.warn("unknown unmount", &caller.host, || {
                let host = &caller.host;
                format!("host {host} unmounted volume {name} with ID {id}, which is not among its mounts: nothing to do")
            });
        }
        Ok(())
    }

    /// Waits for changes that nobody needs to wait for, and logs those that failed.
    pub(super) async fn submit_logged(&self, change: Change, what: &str) {
        if let Err(error) = self.catalog.submit(change).await {
            log::error!("{what}: {}", chain(&error));
        }
    }
}
