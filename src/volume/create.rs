//! Create: a new volume, or an existing directory made one.
//!
//! Stage → record → rename → visible. What fails before the record is undone by rmdir; what fails after it is taken
//! back in the reverse order; what cannot be taken back now is left to [`super::recover`].
//!
//! # What waits for the disk
//!
//! 1. The directory is made, and then its record is queued: *unconfirmed*, and not visible. Both become durable at the
//!    same time, and both are waited for.
//! 2. The directory is renamed, and its new parent becomes durable.
//! 3. The volume is visible and answered. That its record is confirmed is stored with the catalog's next change.
//!
//! So no order is needed between the two of the first step. What a power cut leaves of them is undone, because nothing
//! was answered: a directory without a record is removed; an unconfirmed record whose directory is nowhere on the
//! backend, when that is online and the right one, is taken back. An unconfirmed record whose directory stands under
//! its name is confirmed: it may have been answered. Nothing that was answered can lack its directory: the rename was
//! durable before. And a rename only ever moves a directory that has its owner and mode durably.
//!
//! Mostly both steps are one visit to the backend, on one thread of its own: it makes the directory, queues the record,
//! and waits a moment for that. A backend has few such threads, and its storage may be well while the catalog's is not:
//! where the record takes longer, or others wait for a thread, it is given back, and the rename is a visit of its own.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::oneshot;

use super::consistency::Backoff;
use super::error::Error;
use super::operation::CommitPoint;
use super::soon::soon;
use super::step::step;
use super::{DirectoryLock, InForce, Service, in_sight, log_done, permit};
use crate::backend::{Adoptable, Backend, BackendError, Expect, Naming, Root, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Submitted, View, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::Ledger;
use crate::model::options::{Mode, Options};
use crate::model::right::Right;
use crate::model::volume::{VolumeId, VolumeName};

/// How long the thread that made a directory waits for its record, so that it can go on with the rename itself. It is
/// one of the few that the backend has: a catalog that takes longer is waited for without it.
const A_MOMENT: Duration = Duration::from_millis(20);

/// How often a directory of that name may be found where no volume has it, before it counts as a stranger's: another
/// instance may have made and removed one between two looks.
const STRANGERS: u32 = 2;

impl Service {
    /// Creates a volume, or answers a repetition (`/VolumeDriver.Create`).
    ///
    /// Idempotent for the same options: those given are compared with those given at creation. Who has the right may
    /// `adopt` an existing directory.
    pub async fn create(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
        options: Options,
    ) -> Result<Arc<Volume>, Error> {
        let (service, caller) = (Arc::clone(self), caller.clone());
        self.operate(|commit_point| async move {
            let _held = service.locks.hold(&name, &commit_point).await?;
            service.create_held(&commit_point, &caller, name, options).await
        })
        .await
    }

    async fn create_held(
        self: &Arc<Self>,
        commit_point: &Arc<CommitPoint>,
        caller: &Caller,
        name: VolumeName,
        options: Options,
    ) -> Result<Arc<Volume>, Error> {
        let in_force = self.in_force.load_full();
        let exists = || self.catalog.view().volumes.contains_key(&name);
        let (mut backoff, mut strangers) = (Backoff::new(), 0);
        loop {
            if exists() {
                // Either it is whole, or an earlier operation on it was cut off and can perhaps be mended now; and
                // another instance may have removed it.
                self.sync().await?;
                if self.is_out_of_sight(&in_force, caller, &name) {
                    return Err(self.taken_out_of_sight(&in_force, caller, name, &options));
                }
                if let Some(existing) = self.settled(&name).await? {
                    return repeated(&in_force, &self.catalog.view(), caller, &existing, &options);
                }
            }
            match self.create_new(commit_point, &in_force, caller, name.clone(), options.clone()).await {
                Err(error @ (Error::Exists(_) | Error::Backend(BackendError::Occupied { .. })))
                    if self.is_shared() =>
                {
                    self.sync().await?;
                    // Another instance made it since we looked, and it may be gone again. Where nobody did, time and
                    // again, a stranger's directory has the name.
                    let made = exists() || matches!(error, Error::Exists(_));
                    strangers += u32::from(!made);
                    if strangers > STRANGERS || !backoff.wait().await {
                        return Err(error);
                    }
                }
                created => return created,
            }
        }
    }

    async fn create_new(
        self: &Arc<Self>,
        commit_point: &Arc<CommitPoint>,
        in_force: &InForce,
        caller: &Caller,
        name: VolumeName,
        options: Options,
    ) -> Result<Arc<Volume>, Error> {
        let adopt = options.adopt == Some(true);
        let backend = self.choose_backend(in_force, caller, &options)?;
        let expect = self.ready(&backend).await?;
        let volume = Volume {
            id: VolumeId::random(),
            backend: backend.name().clone(),
            options,
            created_at: OffsetDateTime::now_utc(),
            adopted: adopt,
            known_to: vec![caller.host.clone()],
            mounts: Ledger::default(),
            visible: false,
            // The directory of an adopted one stands there already.
            unconfirmed: !adopt,
            name,
        };
        if !commit_point.wanted() {
            return Err(Error::Abandoned);
        }
        self.refuse_twin(&backend, expect, &volume.name).await?;
        step("create:begun");
        let Some(moving) = self.moving(backend.name(), volume.id) else {
            return Err(Error::NotMended(volume.name.clone()));
        };
        if adopt {
            self.adopt(&backend, expect, &volume).await?;
        } else {
            self.make(Arc::clone(commit_point), &moving, &backend, expect, &volume).await?;
        }
        let outcome = self.show(&moving, &volume).await?;
        step("create:done");
        log_done(if adopt { "adopted" } else { "created" }, &volume.name, caller);
        Ok(outcome.after.unwrap_or_else(|| Arc::new(Volume { visible: true, unconfirmed: false, ..volume })))
    }

    /// An existing directory becomes the volume: only the record is new.
    async fn adopt(&self, backend: &Backend, expect: Expect, volume: &Volume) -> Result<(), Error> {
        let name = volume.name.clone();
        let here = |other: &VolumeName| {
            let view = self.catalog.view();
            view.volumes.get(other).is_some_and(|other| other.backend == volume.backend)
        };
        let view = self.catalog.view();
        let alike = view.volumes.keys().filter(|other| Naming::LOOSE.is_same(other, &name) && here(other));
        let alike: Vec<_> = alike.cloned().collect();
        let backend_name = backend.name().clone();
        match backend.run(expect, move |root| root.adoptable(&name, &alike)).await? {
            Adoptable::Directory { same } => {
                if let Some(other) = same.into_iter().find(here) {
                    return Err(Error::SameDirectory {
                        name: volume.name.clone(),
                        other,
                        backend: backend_name,
                        naming: backend.naming(expect).await?,
                    });
                }
            }
            found => {
                return Err(Error::NothingToAdopt {
                    backend: backend_name,
                    name: volume.name.clone(),
                    found,
                });
            }
        }
        self.catalog.submit(Change::Insert(volume.clone())).await.map_err(taken)?;
        step("adopt:recorded");
        Ok(())
    }

    /// A new directory becomes the volume: staged and recorded, then renamed.
    async fn make(
        &self,
        commit_point: Arc<CommitPoint>,
        moving: &DirectoryLock,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<(), Error> {
        let renamed = match self.begin(commit_point, moving, backend, expect, volume).await? {
            Begun::Renamed(renamed) => renamed,
            Begun::Recorded => {
                let (id, name) = (volume.id, volume.name.clone());
                backend.run(expect, move |root| rename(root, id, &name)).await
            }
        };
        if let Err(error) = renamed {
            if matches!(error, BackendError::Missing { .. }) && self.is_whole(backend, expect, volume).await {
                log::info!("another instance finished the create of volume {} for this one", volume.name);
                return Ok(());
            }
            if error.effect_unknown() {
                self.leave_to_recovery(moving, &volume.name, &error);
            } else if self.undo_record(moving, volume).await {
                self.undo_stage(moving, backend, expect, volume).await;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Stages and records; where the record is durable soon, also renames: one way to the backend's thread and back
    /// then does for all. What fails before the rename is undone here.
    async fn begin(
        &self,
        commit_point: Arc<CommitPoint>,
        moving: &DirectoryLock,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<Begun, Error> {
        let id = volume.id;
        let (uid, gid, mode) = ownership(backend, volume);
        let (tell, told) = oneshot::channel();
        let (catalog, wanted, record) =
            (Arc::clone(&self.catalog), Arc::clone(&commit_point), volume.clone());
        let visited = Arc::clone(backend);
        let work = move |root: &Root| {
            let staged = match root.volume_state(&record.name)? {
                VolumeState::Missing => root.stage(id, uid, gid, mode)?,
                VolumeState::Directory | VolumeState::NotADirectory(_) => {
                    return Err(root.occupied(&record.name));
                }
            };
            step("create:staged");
            if !wanted.wanted() {
                return Ok(());
            }
            let name = record.name.clone();
            let recorded = catalog.submit(Change::Insert(record));
            let durable = staged.sync();
            let patience = if visited.is_crowded() { Duration::ZERO } else { A_MOMENT };
            match soon(recorded, patience) {
                Ok(Ok(_)) if durable.is_ok() && wanted.wanted() => {
                    step("create:recorded");
                    let _ = tell.send(Told::Renaming);
                    rename(root, id, &name)
                }
                Ok(recorded) => {
                    let _ = tell.send(Told::Recording(Box::pin(ready(recorded))));
                    durable
                }
                Err(recording) => {
                    let _ = tell.send(Told::Recording(recording));
                    durable
                }
            }
        };
        let done = backend.run(expect, work).await;
        let recorded = match told.await {
            Ok(Told::Renaming) => return Ok(Begun::Renamed(done)),
            Ok(Told::Recording(record)) => Some(record.await),
            Err(_not_queued) => None,
        };
        match (recorded, done) {
            (Some(Ok(_)), Ok(())) if commit_point.wanted() => {
                step("create:recorded");
                Ok(Begun::Recorded)
            }
            (Some(Ok(_)), staged) => {
                if self.undo_record(moving, volume).await {
                    self.undo_stage(moving, backend, expect, volume).await;
                }
                Err(staged.map_or_else(Error::from, |()| Error::Abandoned))
            }
            (Some(Err(error)), _) => {
                self.undo_stage(moving, backend, expect, volume).await;
                Err(taken(error))
            }
            (None, Ok(())) => {
                self.undo_stage(moving, backend, expect, volume).await;
                Err(Error::Abandoned)
            }
            (
                None,
                Err(
                    error @ (BackendError::Occupied { .. }
                    | BackendError::Offline { .. }
                    | BackendError::Busy { .. }),
                ),
            ) => Err(error.into()),
            (None, Err(error @ BackendError::Interrupted { .. })) => {
                // The record may have been queued.
                self.leave_to_recovery(moving, &volume.name, &error);
                Err(error.into())
            }
            (None, Err(error)) => {
                // Staging takes back what it began, but storage that fails once may have failed at that too.
                self.undo_stage(moving, backend, expect, volume).await;
                Err(error.into())
            }
        }
    }

    /// Takes the record back. Where that fails, the staged directory must stay with it: a record without one would be
    /// taken for a volume whose directory is whatever stands under its name.
    async fn undo_record(&self, moving: &DirectoryLock, volume: &Volume) -> bool {
        let withdraw = Change::Withdraw(volume.name.clone(), volume.id);
        let undone = self.catalog.submit(withdraw).await;
        if let Err(error) = &undone {
            log::error!(
                "the create of volume {} failed, and its record cannot be taken back: it will be finished or undone \
                 later: {}",
                volume.name,
                chain(error)
            );
            moving.leave_half_done();
        }
        undone.is_ok()
    }

    async fn undo_stage(&self, moving: &DirectoryLock, backend: &Backend, expect: Expect, volume: &Volume) {
        let id = volume.id;
        if let Err(error) = backend.run(expect, move |root| root.unstage(id)).await {
            self.leave_to_recovery(moving, &volume.name, &error);
        }
    }

    /// The backend that a new volume goes to: the one named; else, of those open to the host, `default` or the only one.
    ///
    /// A backend that is closed to the host looks like one that does not exist, unless the host has to do with a volume
    /// there: then its rights were narrowed, which it is told.
    fn choose_backend(
        &self,
        in_force: &InForce,
        caller: &Caller,
        options: &Options,
    ) -> Result<Arc<Backend>, Error> {
        let right = if options.adopt == Some(true) { Right::Adopt } else { Right::Create };
        let usable = |backend: &Backend| permit(in_force, caller, right, backend.name(), options).is_ok();
        let known =
            || in_force.map.iter().filter(|backend| usable(backend)).map(|b| b.name().clone()).collect();
        let is_open =
            |name: &BackendName| caller.is_operator() || in_force.access.is_open(name, &caller.host);
        let backend = match &options.backend {
            Some(name) => match in_force.map.get(name) {
                Some(backend) if is_open(name) || self.knows_volume_on(&caller.host, name) => backend,
                None if caller.is_operator() => {
                    return Err(Error::NoSuchBackend { name: name.clone(), known: known() });
                }
                _ => return Err(Error::BackendOutOfSight { name: name.clone(), known: known() }),
            },
            None => match in_force.map.default_for_create(|backend| is_open(backend.name())) {
                Some(backend) => backend,
                None if in_force.map.iter().any(|backend| is_open(backend.name()))
                    || caller.is_operator() =>
                {
                    return Err(Error::BackendNotSaid { known: known() });
                }
                None => {
                    let listed = in_force.access.is_listed(&caller.host);
                    return Err(Error::NothingOpen { host: caller.host.clone(), right, listed });
                }
            },
        };
        permit(in_force, caller, right, backend.name(), options)?;
        if backend.settings().draining {
            return Err(Error::Draining(backend.name().clone()));
        }
        Ok(Arc::clone(backend))
    }

    /// The error of a name that is a volume's out of the host's sight. A host that may create nothing gets the one that
    /// it gets for any name.
    fn taken_out_of_sight(
        &self,
        in_force: &InForce,
        caller: &Caller,
        name: VolumeName,
        options: &Options,
    ) -> Error {
        let right = if options.adopt == Some(true) { Right::Adopt } else { Right::Create };
        let may = |backend: &Arc<Backend>| permit(in_force, caller, right, backend.name(), options).is_ok();
        match self.choose_backend(in_force, caller, options) {
            Err(error) if !in_force.map.iter().any(may) => error,
            _ => Error::NameTaken(name),
        }
    }

    /// Returns true if the host created or ever mounted a volume on that backend.
    fn knows_volume_on(&self, host: &HostName, backend: &BackendName) -> bool {
        let view = self.catalog.view();
        view.volumes.values().any(|volume| volume.backend == *backend && volume.known_to.contains(host))
    }
}

/// How far [`Service::begin`] came.
enum Begun {
    /// The directory is staged and recorded, both durably.
    Recorded,
    /// The same, and what became of its rename.
    Renamed(Result<(), BackendError>),
}

/// What the backend's thread tells once the record is queued.
enum Told {
    /// It renames: whatever its work returns is the rename's.
    Renaming,
    /// It does not; this becomes of the record.
    Recording(Submitted),
}

/// Gives a staged and recorded directory its name, durably.
fn rename(root: &Root, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
    root.publish(id, name)?;
    step("create:renamed");
    Ok(())
}

/// The user, group and mode of a volume's directory.
pub(super) fn ownership(backend: &Backend, volume: &Volume) -> (u32, u32, Mode) {
    let (asked, usual) = (&volume.options, backend.settings());
    (asked.uid.unwrap_or(usual.uid), asked.gid.unwrap_or(usual.gid), asked.mode.unwrap_or(usual.mode))
}

/// The answer to a Create of a name that exists.
fn repeated(
    in_force: &InForce,
    view: &View,
    caller: &Caller,
    existing: &Arc<Volume>,
    asked: &Options,
) -> Result<Arc<Volume>, Error> {
    if !in_sight(&in_force.access, view, caller, existing) {
        return Err(Error::NameTaken(existing.name.clone()));
    }
    permit(in_force, caller, Right::Create, &existing.backend, &existing.options)?;
    let differences = existing.options.differences(asked, &existing.backend);
    if differences.is_empty() {
        Ok(Arc::clone(existing))
    } else {
        Err(Error::Different { name: existing.name.clone(), differences })
    }
}

/// A name that was taken between our look and our record belongs to somebody else now.
fn taken(error: CatalogError) -> Error {
    match error {
        CatalogError::Refused(Refusal::Exists(volume)) => Error::Exists(volume.name.clone()),
        other => other.into(),
    }
}
