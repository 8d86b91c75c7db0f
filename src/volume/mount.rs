//! Mount and Unmount: who uses a volume, counted durably before the engine is told where it lies.
//!
//! A Mount of an ID that its host has mounted already, under whichever activation, is a **repetition**: it is counted
//! again and answered from memory, whatever the rights or the backend have become. A refusal would gain nothing, since
//! the host has the volume, and lose the live mount to engines that send an Unmount after it; see [`super::forgiven`].
//!
//! Must never count a mount too low: then another host gets an exclusive volume, or a volume is removed under a
//! container. A count that is too high is shown to the operator.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::consistency::Backoff;
use super::error::Error;
use super::ignored_unmounts::Attempt;
use super::operation::CommitPoint;
use super::step::step;
use super::{Holders, InForce, Seen, Service, in_sight, permit, seen};
use crate::backend::VolumeState;
use crate::catalog::clones;
use crate::catalog::{CatalogError, Change, Outcome, Refusal, View, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::right::Right;
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// How long after a failure it is tried again to take a late mount back.
const TAKE_BACK: Duration = Duration::from_secs(1);

/// A counted Mount whose answer has not been handed over. Dropped before it is, as it is when the client has gone, the
/// Mount is taken back: nobody would ever unmount it.
pub struct Counted {
    service: Arc<Service>,
    /// The ledger's entry as it was right after this Mount; `None` only for a volume without one, which cannot be.
    entry: Option<Mount>,
    /// Whether the host had mounted the volume with this ID before.
    again: bool,
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
        let Some(entry) = self.entry.take() else { return };
        let (service, volume, again) = (Arc::clone(&self.service), Arc::clone(&self.seen.volume), self.again);
        service.log_limit.warn("no answer", &entry.host, || {
            let (name, host) = (&volume.name, &entry.host);
            format!("a mount of volume {name} by host {host} has nobody to answer and is taken back")
        });
        runtime.spawn(async move {
            // An Unmount that the engine sends because it heard nothing is of this Mount: it takes what else would be
            // taken back here.
            if again {
                tokio::time::sleep(service.forgiven.window()).await;
            }
            service.take_back(&volume, entry).await;
        });
    }
}

/// Why an exclusive volume is not given to a host that is cloned.
fn cloned(volume: &Volume, view: &View, host: &HostName) -> Error {
    let clones = view.hosts.get(host).and_then(|host| host.cloned.as_ref());
    let mut held: Vec<_> = volume.mounts.iter().map(|mount| clones::told(mount.address)).collect();
    held.dedup();
    Error::Cloned {
        name: volume.name.clone(),
        host: host.clone(),
        held: held.join(", "),
        addresses: clones.map(|cloned| cloned.addresses().join(", ")).unwrap_or_default(),
    }
}

impl Service {
    /// Counts one Mount and tells where the volume lies (`/VolumeDriver.Mount`).
    ///
    /// The backend must be online and the directory there, unless it is a repetition. A Mount whose caller has given up
    /// or gone away is taken back: nobody would unmount it.
    pub async fn mount(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
        id: MountId,
    ) -> Result<Counted, Error> {
        let attempt = Attempt::new(self, &name, &caller.host, &id);
        let (service, caller, failing) = (Arc::clone(self), caller.clone(), attempt.clone());
        let mounted = self
            .operate(|commit_point| async move {
                let mounted = service.mount_any(&commit_point, &caller, &name, &id).await;
                // The caller may have gone and hear nothing of it.
                mounted.inspect_err(|_| failing.failed())
            })
            .await;
        mounted.inspect_err(|_| attempt.failed())
    }

    async fn mount_any(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<Counted, Error> {
        // As an Unmount, it waits for no backend, nor for an operation that does.
        if let Some(counted) = self.mount_again(commit_point, caller, name, id).await? {
            return Ok(counted);
        }
        let _held = self.locks.hold(name, commit_point).await?;
        match self.mount_held(commit_point, caller, name, id).await {
            // It may be a repetition of what another instance counted.
            Err(error) if self.is_shared() && commit_point.wanted() && self.sync().await.is_ok() => {
                self.mount_again(commit_point, caller, name, id).await?.ok_or(error)
            }
            mounted => mounted,
        }
    }

    /// Returns true if the host has mounted the volume with this ID, under whichever activation.
    pub(super) fn is_counted(&self, name: &VolumeName, host: &HostName, id: &MountId) -> bool {
        let view = self.catalog.view();
        view.volumes.get(name).is_some_and(|volume| volume.mounts.newest(host, id, None).is_some())
    }

    /// Counts a repetition; `None` where the Mount is none. It is counted also when its caller has gone: an engine may
    /// send an Unmount for it.
    async fn mount_again(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<Option<Counted>, Error> {
        if !self.is_counted(name, &caller.host, id) {
            return Ok(None);
        }
        let Some(volume) = self.catalog.view().volumes.get(name).cloned() else { return Ok(None) };
        match self.catalog.submit(self.count(&volume, caller, id, true)).await {
            Ok(outcome) => self.counted(commit_point, caller, id, volume, outcome, true).await.map(Some),
            // It ended meanwhile; another instance may tell of the volume otherwise.
            Err(CatalogError::Refused(
                Refusal::NotMounted(_) | Refusal::NoSuchVolume | Refusal::Moving(_),
            )) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn mount_held(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        name: &VolumeName,
        id: &MountId,
    ) -> Result<Counted, Error> {
        let in_force = self.in_force.load_full();
        let missing = || Error::NoSuchVolume(name.to_string());
        let mut backoff = Backoff::new();
        let (volume, outcome) = loop {
            let volume = self.certain(|| self.mountable(&in_force, caller, name)).await?;
            step("mount:checked");
            if !commit_point.wanted() || commit_point.deserted() {
                return Err(Error::Abandoned);
            }
            match self.catalog.submit(self.count(&volume, caller, id, false)).await {
                Ok(outcome) => break (volume, outcome),
                // Its directory was looked at before another instance began to move it.
                Err(CatalogError::Refused(Refusal::Moving(_))) if backoff.wait().await => {}
                Err(CatalogError::Refused(Refusal::Moving(_))) => return Err(Error::NotMended(name.clone())),
                // What was looked at is gone, and its name another volume's.
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) if self.is_another(name, volume.id) => {}
                Err(CatalogError::Refused(Refusal::NoSuchVolume)) => return Err(missing()),
                Err(CatalogError::Refused(Refusal::Held(now))) => {
                    let holders = Holders::of(&now, &self.catalog.view());
                    return Err(Error::Exclusive { name: name.clone(), holders });
                }
                Err(CatalogError::Refused(Refusal::Cloned(now))) => {
                    return Err(cloned(&now, &self.catalog.view(), &caller.host));
                }
                Err(error) => return Err(error.into()),
            }
        };
        self.counted(commit_point, caller, id, volume, outcome, false).await
    }

    /// The change that counts one Mount.
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

    /// What a Mount that was recorded is answered with. One whose caller was told already that it took too long is
    /// taken back.
    async fn counted(
        self: &Arc<Self>,
        commit_point: &CommitPoint,
        caller: &Caller,
        id: &MountId,
        volume: Arc<Volume>,
        outcome: Outcome,
        again: bool,
    ) -> Result<Counted, Error> {
        step("mount:recorded");
        let again = again
            || outcome.before.is_some_and(|before| before.mounts.newest(&caller.host, id, None).is_some());
        let mounted = outcome.after.unwrap_or(volume);
        let mut counted = Counted {
            service: Arc::clone(self),
            entry: mounted.mounts.newest(&caller.host, id, None).cloned(),
            again,
            seen: seen(&self.catalog.view(), &self.in_force.load().map, &mounted, &caller.host),
            handed_over: false,
        };
        if commit_point.decide() {
            return Ok(counted);
        }
        // The volume is held until a first Mount is taken back, so that a Remove which waits for it finds no mount.
        if let Some(entry) = counted.entry.take_if(|_| !again) {
            self.log_limit.warn("too late", &caller.host, || {
                let (name, host) = (&mounted.name, &caller.host);
                format!("a mount of volume {name} by host {host} came too late and is taken back")
            });
            self.take_back(&mounted, entry).await;
        }
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
        let (mut gone, mut backoff) = (None, Backoff::new());
        loop {
            if self.is_out_of_sight(in_force, caller, name) {
                return Err(missing());
            }
            let volume = self.settled(name).await?.ok_or_else(missing)?;
            if !in_sight(&in_force.access, &self.catalog.view(), caller, &volume) {
                return Err(missing());
            }
            permit(in_force, caller, Right::Mount, &volume.backend, &volume.options)?;
            let backend = self.backend_of(&volume)?;
            let expect = self.ready(&backend).await?;
            let directory = name.clone();
            match backend.run(expect, move |root| root.volume_state(&directory)).await? {
                VolumeState::Directory => return Ok(volume),
                state @ (VolumeState::Missing | VolumeState::NotADirectory(_)) => {
                    // It may have been left in the trash, or another instance may be moving it right now; or the
                    // volume is no more.
                    if gone == Some(volume.id) && !(self.is_elsewhere(name) && backoff.wait().await) {
                        self.sync().await?;
                        if self.catalog.view().volumes.get(name).is_some_and(|now| now.id == volume.id) {
                            if self.is_elsewhere(name) {
                                return Err(Error::NotMended(name.clone()));
                            }
                            return Err(self.no_directory(&volume, state));
                        }
                    }
                    gone = Some(volume.id);
                    self.mark_unmended(&volume.backend);
                }
            }
        }
    }

    /// The error of a volume whose directory is not in its place.
    fn no_directory(&self, volume: &Volume, state: VolumeState) -> Error {
        let (name, backend) = (volume.name.clone(), volume.backend.clone());
        let path = self.path(volume).display().to_string();
        match state {
            VolumeState::NotADirectory(found) => Error::NotADirectory { name, backend, path, found },
            VolumeState::Missing | VolumeState::Directory => Error::DirectoryGone { name, backend, path },
        }
    }

    /// Takes a mount back of which nobody was told, however often it must be tried: no engine will ever end it.
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
                // The next start knows nothing of it: the operator's word is needed then.
                Err(CatalogError::Closed) => {
                    log::error!("mount {id} of volume {name} by host {host} stays: nobody uses it");
                    return;
                }
                Err(error) => {
                    self.log_limit.warn("not taken back", &host, || {
                        let why = chain(&error);
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
        if self.forgiven.take(name, &caller.host, id) {
            self.log_limit.warn("forgiven", &caller.host, || {
                let host = &caller.host;
                format!("host {host} unmounted volume {name} with ID {id} after a Mount of it failed: nothing is taken")
            });
            return Ok(());
        }
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
            self.log_limit.warn("unknown unmount", &caller.host, || {
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
