//! Mount and Unmount: the uses of a volume, counted durably before the engine is told where it lies.
//!
//! A Mount of an ID that its host has mounted already, in whichever activation, is a **repetition**: it is counted
//! again and answered from memory, even if the host has lost its rights or the backend is offline. Refusing it would
//! gain nothing, since the host has the volume, and engines that send an Unmount after a failed Mount would lose the
//! live mount; see `ignored_unmounts`.
//!
//! A count must never be too low: another host would get an exclusive volume, or a volume would be removed under a
//! container. A count that is too high is shown to the operator.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use super::consistency::PeerBackoff;
use super::error::Error;
use super::host_limits::room_for_mount;
use super::ignored_unmounts::MountAttempt;
use super::inspect::volume_info;
use super::operation::CommitPoint;
use super::rights::{in_sight, permit};
use super::step::step;
use super::{Holders, InForce, Service, VolumeInfo};
use crate::backend::{Root, VolumeState};
use crate::catalog::clones;
use crate::catalog::{CatalogError, Change, Outcome, Refusal, Submitted, View, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::right::Right;
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// The pause before another attempt to take a mount back.
const TAKE_BACK_PAUSE: Duration = Duration::from_secs(1);

/// A counted Mount whose answer has not been handed over. If it is dropped before that, because the client has gone,
/// the Mount is taken back: nobody would ever unmount it.
pub struct CountedMount {
    service: Arc<Service>,
    /// The ledger's entry right after this Mount; every counted Mount has one.
    entry: Option<Mount>,
    is_repetition: bool,
    info: VolumeInfo,
    is_handed_over: bool,
}

impl CountedMount {
    /// Returns the volume right after this Mount.
    #[must_use]
    pub fn info(&self) -> &VolumeInfo {
        &self.info
    }

    /// Marks the answer as handed over: whoever gets it will unmount.
    pub fn hand_over(mut self) {
        self.is_handed_over = true;
    }
}

impl Drop for CountedMount {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_handed_over {
            return;
        }
        let Some(entry) = self.entry.take() else { return };
        let (service, volume) = (Arc::clone(&self.service), Arc::clone(&self.info.volume));
        let is_repetition = self.is_repetition;
        service.log_limit.warn("no answer", &entry.host, || {
            let (name, host) = (&volume.name, &entry.host);
            format!("a mount of volume {name} by host {host} has nobody to answer and is taken back")
        });
        runtime.spawn(async move {
            // If the engine gets no answer, it may send an Unmount, which counts for this Mount. Then there is nothing
            // left to take back.
            if is_repetition {
                tokio::time::sleep(service.ignored_unmounts.window()).await;
            }
            service.take_back(&volume, entry).await;
        });
    }
}

/// Returns the error for an exclusive volume that a cloned host may not mount.
fn cloned_error(volume: &Volume, view: &View, host: &HostName) -> Error {
    let clones = view.hosts.get(host).and_then(|host| host.cloned.as_ref());
    let mut held: Vec<_> = volume.mounts.iter().map(|mount| clones::address_text(mount.address)).collect();
    held.dedup();
    Error::Cloned {
        name: volume.name.clone(),
        host: host.clone(),
        held: held.join(", "),
        addresses: clones.map(|cloned| cloned.addresses().join(", ")).unwrap_or_default(),
    }
}

impl Service {
    /// Counts one Mount and returns where the volume lies (`/VolumeDriver.Mount`).
    ///
    /// Unless it is a repetition, the backend must be online and the directory there. A Mount whose caller has given up
    /// or gone away is taken back, because nobody would unmount it.
    pub async fn mount(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
        id: MountId,
    ) -> Result<CountedMount, Error> {
        let attempt = MountAttempt::new(self, &name, &caller.host, &id);
        let (service, caller, failing) = (Arc::clone(self), caller.clone(), attempt.clone());
        let mounted = self
            .operate(|commit_point| async move {
                let mounted = service.mount_any(&commit_point, &caller, &name, &id).await;
                // The caller may have gone, and then cannot note the failure below.
                mounted.inspect_err(|_| failing.failed())
            })
            .await;
        mounted.inspect_err(|_| attempt.failed())
    }

    async fn mount_any(
        self: &Arc<Self>,
        commit_point: &Arc<CommitPoint>,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<CountedMount, Error> {
        // Like an Unmount, a repetition waits neither for a backend nor for an operation that does.
        if let Some(counted) = self.mount_again(commit_point, caller, name, id).await? {
            return Ok(counted);
        }
        let _held = self.locks.volumes.hold(name, commit_point).await?;
        match self.mount_held(commit_point, caller, name, id).await {
            // It may repeat a Mount that another instance counted.
            Err(error) if self.is_shared() && commit_point.wanted() && self.sync().await.is_ok() => {
                self.mount_again(commit_point, caller, name, id).await?.ok_or(error)
            }
            mounted => mounted,
        }
    }

    /// Returns true if the host has mounted the volume with this ID, in whichever activation.
    pub(super) fn is_counted(&self, name: &VolumeName, host: &HostName, id: &MountId) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| volume.mounts.newest(host, id, None).is_some())
    }

    /// Counts a repetition; `None` if the Mount is not one. It is counted even if its caller has gone: an engine may send
    /// an Unmount for it.
    async fn mount_again(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<Option<CountedMount>, Error> {
        if !self.is_counted(name, &caller.host, id) {
            return Ok(None);
        }
        let Some(volume) = self.catalog.view().volumes.get(name).cloned() else { return Ok(None) };
        match self.catalog.submit(self.count(&volume, caller, id, true)).await {
            Ok(outcome) => self.counted(commit_point, caller, id, volume, outcome, true).await.map(Some),
            // The earlier mount ended meanwhile, or another instance has changed the volume.
            Err(CatalogError::Refused(
                Refusal::NotMounted(_) | Refusal::NoSuchVolume | Refusal::Moving(_),
            )) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn mount_held(
        self: &Arc<Self>,
        commit_point: &Arc<CommitPoint>,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<CountedMount, Error> {
        let in_force = self.in_force.load_full();
        let missing = || Error::NoSuchVolume(name.to_string());
        let mut backoff = PeerBackoff::new();
        let (volume, outcome) = loop {
            let look = || self.count_if_mountable(commit_point, &in_force, caller, name, id);
            let (volume, counted) = self.retry_after_sync(look).await?;
            let Some(counted) = counted else { return Err(Error::Abandoned) };
            match counted.await {
                Ok(outcome) => break (volume, outcome),
                // Another instance began to move the directory after it was looked at.
                Err(CatalogError::Refused(Refusal::Moving(_))) if backoff.wait().await => {}
                Err(CatalogError::Refused(Refusal::Moving(_))) => {
                    return Err(Error::RecoveryPending(name.clone()));
                }
                // The volume is gone, and another one has its name.
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) if self.is_another(name, volume.id) => {}
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) => return Err(missing()),
                Err(CatalogError::Refused(Refusal::Held(now))) => {
                    let holders = Holders::of(&now, &self.catalog.view());
                    return Err(Error::Exclusive { name: name.clone(), holders });
                }
                Err(CatalogError::Refused(Refusal::Cloned(now))) => {
                    return Err(cloned_error(&now, &self.catalog.view(), &caller.host));
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.counted(commit_point, caller, id, volume, outcome, false).await
    }

    /// Returns the change that counts one Mount.
    fn count(&self, volume: &Volume, caller: &Caller, id: &MountId, again: bool) -> Change {
        let in_force = self.in_force.load();
        Change::Mount {
            name: volume.name.clone(),
            volume: volume.id,
            host: caller.host.clone(),
            id: id.clone(),
            address: caller.address.map(|from| in_force.access.address_of(&caller.host, from)),
            at: OffsetDateTime::now_utc(),
            again,
        }
    }

    /// Returns the answer to a recorded Mount. If the caller has already been told that it took too long, takes the
    /// Mount back.
    async fn counted(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        id: &MountId,
        volume: Arc<Volume>,
        outcome: Outcome,
        again: bool,
    ) -> Result<CountedMount, Error> {
        step("mount:recorded");
        let is_repetition = again
            || outcome.before.is_some_and(|before| before.mounts.newest(&caller.host, id, None).is_some());
        let mounted = outcome.after.unwrap_or(volume);
        let mut counted = CountedMount {
            service: Arc::clone(self),
            entry: mounted.mounts.newest(&caller.host, id, None).cloned(),
            is_repetition,
            info: volume_info(&self.catalog.view(), &self.in_force.load().map, &mounted, &caller.host),
            is_handed_over: false,
        };
        if commit_point.decide() {
            return Ok(counted);
        }
        // A first Mount is taken back while the volume is still locked, so that a Remove which waits finds no mount.
        if let Some(entry) = counted.entry.take_if(|_| !is_repetition) {
            self.log_limit.warn("too late", &caller.host, || {
                let (name, host) = (&mounted.name, &caller.host);
                format!("a mount of volume {name} by host {host} came too late and is taken back")
            });
            self.take_back(&mounted, entry).await;
        }
        Err(Error::Abandoned)
    }

    /// Returns true if the name belongs to a volume other than this.
    fn is_another(&self, name: &VolumeName, id: VolumeId) -> bool {
        self.catalog.view().volumes.get(name).is_some_and(|now| now.visible && now.id != id)
    }

    /// Submits the count of a Mount, if this host may mount the volume and its directory is there, and returns the volume
    /// with the outcome to wait for; `None` if nobody wants the Mount any more.
    ///
    /// The backend's thread that finds the directory submits the count, and commits it as well if the catalog is idle.
    async fn count_if_mountable(
        self: &Arc<Self>,
        commit_point: &Arc<CommitPoint>,
        in_force: &InForce,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<(Arc<Volume>, Option<Submitted>), Error> {
        let missing = || Error::NoSuchVolume(name.to_string());
        let (mut gone, mut backoff) = (None, PeerBackoff::new());
        loop {
            if self.is_out_of_sight(in_force, caller, name) {
                return Err(missing());
            }
            let volume = self.recovered(name).await?.ok_or_else(missing)?;
            if !in_sight(&in_force.access, &self.catalog.view(), caller, &volume) {
                return Err(missing());
            }
            permit(in_force, caller, Right::Mount, &volume.backend, &volume.options)?;
            room_for_mount(in_force, &self.catalog.view(), caller)?;
            let backend = self.backend_of(&volume)?;
            let expect = self.ready(&backend).await?;
            let (directory, commit_point) = (name.clone(), Arc::clone(commit_point));
            let (catalog, count) = (Arc::clone(&self.catalog), self.count(&volume, caller, id, false));
            let look = move |root: &Root| match root.volume_state(&directory)? {
                VolumeState::Directory => {
                    step("mount:checked");
                    let is_wanted = commit_point.wanted() && !commit_point.deserted();
                    Ok(Ok(is_wanted.then(|| catalog.submit_blocking(count))))
                }
                state @ (VolumeState::Missing | VolumeState::NotADirectory(_)) => Ok(Err(state)),
            };
            match backend.run_in_place(expect, look).await? {
                Ok(counted) => return Ok((volume, counted)),
                Err(state) => {
                    // It may be left in the trash, another instance may be moving it, or the volume may be gone.
                    if gone == Some(volume.id) && !(self.is_elsewhere(name) && backoff.wait().await) {
                        self.sync().await?;
                        if self.catalog.view().volumes.get(name).is_some_and(|now| now.id == volume.id) {
                            if self.is_elsewhere(name) {
                                return Err(Error::RecoveryPending(name.clone()));
                            }
                            return Err(self.no_directory(&volume, state));
                        }
                    }
                    gone = Some(volume.id);
                    self.recovery.require(&volume.backend);
                }
            }
        }
    }

    /// Returns the error for a volume whose directory is not in its place.
    fn no_directory(&self, volume: &Volume, state: VolumeState) -> Error {
        let (name, backend) = (volume.name.clone(), volume.backend.clone());
        let path = self.path(volume).display().to_string();
        match state {
            VolumeState::NotADirectory(found) => Error::NotADirectory { name, backend, path, found },
            VolumeState::Missing | VolumeState::Directory => Error::DirectoryGone { name, backend, path },
        }
    }

    /// Takes back a mount that nobody was told of. Tries until it succeeds, because no engine will ever end the mount.
    async fn take_back(&self, volume: &Volume, counted: Mount) {
        let (name, id, host) = (volume.name.clone(), counted.id.clone(), counted.host.clone());
        let change = Change::TakeBack { name: name.clone(), volume: volume.id, counted };
        loop {
            match self.catalog.submit(change.clone()).await {
                Ok(outcome) => {
                    if outcome.released.is_empty() {
                        log::info!(
                            "mount {id} of volume {name} by host {host} was ended before it was taken back"
                        );
                    }
                    return;
                }
                // The next start does not know of this mount: the operator must release it.
                Err(CatalogError::Closed) => {
                    log::error!("mount {id} of volume {name} by host {host} stays: nobody uses it");
                    return;
                }
                Err(error) => {
                    self.log_limit.warn("not taken back", &host, || {
                        let why = chain(&error);
                        format!("mount {id} of volume {name} by host {host} cannot be taken back yet: {why}")
                    });
                    tokio::time::sleep(TAKE_BACK_PAUSE).await;
                }
            }
        }
    }

    /// Submits a change that is done even if nobody waits for it. If the catalog is idle, a task of its own makes it durable
    /// on this thread, while the runtime gives the thread's other tasks to another one.
    fn submit_in_task(&self, change: Change) -> Submitted {
        let may_block = Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread;
        if !(may_block && self.catalog.is_idle()) {
            return self.catalog.submit(change);
        }
        let catalog = Arc::clone(&self.catalog);
        let task = tokio::spawn(async move { block_in_place(|| catalog.submit_blocking(change)).await });
        Box::pin(async move { task.await.unwrap_or(Err(CatalogError::Closed)) })
    }

    /// Counts one Unmount (`/VolumeDriver.Unmount`). An unknown volume or ID succeeds and is logged. Never waits for a
    /// backend, nor for an operation that waits for one.
    pub async fn unmount(&self, caller: &Caller, name: &VolumeName, id: &MountId) -> Result<(), Error> {
        if self.ignored_unmounts.take(name, &caller.host, id) {
            self.log_limit.warn("ignored unmount", &caller.host, || {
                let host = &caller.host;
                format!("host {host} unmounted volume {name} with ID {id} after a Mount of it failed: nothing is taken")
            });
            return Ok(());
        }
        let unmount =
            Change::Unmount { name: name.clone(), host: caller.host.clone(), id: id.clone(), target: None };
        let limit = self.in_force.load().limits.request;
        let outcome = match tokio::time::timeout(limit, self.submit_in_task(unmount)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(Error::Unknown),
        };
        step("unmount:recorded");
        if outcome.released.is_empty() {
            self.log_limit.warn("unknown unmount", &caller.host, || {
                let host = &caller.host;
                format!("host {host} unmounted volume {name} with ID {id}, which is not among its mounts: nothing to do")
            });
        }
        Ok(())
    }
}
