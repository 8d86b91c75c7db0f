//! Create: a new volume, or an existing directory that becomes one.
//!
//! Stage → record → rename → visible. What fails before the record is undone by rmdir; what fails after it is undone in
//! the reverse order; what cannot be undone now is left to `recovery`.
//!
//! # What waits for the disk
//!
//! The record decides, and the directory follows it.
//!
//! 1. The directory is made in `.volhost/new`, with its owner and mode. Nothing is durable yet.
//! 2. The record is committed, *unconfirmed* and with the directory's identity: the one flush that a Create waits for.
//! 3. The directory is renamed, the volume is visible, and the Create is answered.
//! 4. Behind the answer, [`confirmation`](super::confirmation) flushes the backend's root and confirms the record.
//!
//! A power cut before the last step leaves an unconfirmed record. Its directory is under its name, or staged, or gone;
//! recovery confirms it, renames it, or makes it again. That loses nothing, because an answered volume whose directory a
//! power cut can take has never held anything durable. The directory's identity tells it from a foreign one that got the
//! name before recovery. A directory without a record is removed.
//!
//! On a backend with `durable_directories` a Create also waits for its directory, twice: for its owner and mode beside the
//! record, and for its name after the rename.
//!
//! Both steps usually run on one backend thread: it makes the directory, queues the record and waits a moment for it. A
//! backend has few threads, and its storage may be well while the catalog's is not. So if the record takes longer, or
//! others wait for a thread, the thread is given back, and the rename runs as a second operation.

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::confirmation::Confirmations;
use super::consistency::PeerBackoff;
use super::error::Error;
use super::host_limits::room_for_volume;
use super::operation::CommitPoint;
use super::rights::{in_sight, permit};
use super::step::step;
use super::{DirectoryLock, InForce, Service, log_done};
use crate::backend::{Adoptable, Backend, BackendError, Expect, NameFolding, Root, VolumeState};
use crate::catalog::{CatalogError, Change, Refusal, Submitted, Unconfirmed, View, Volume};
use crate::error::chain;
use crate::host::Caller;
use crate::model::mounts::Ledger;
use crate::model::options::{Options, Ownership};
use crate::model::right::Right;
use crate::model::volume::{VolumeId, VolumeName};

/// How long the backend thread that made a directory waits for its record before it goes on with the rename itself. A
/// backend has few threads: a slower catalog must be waited for without one.
const RECORD_ON_THREAD_TIMEOUT: Duration = Duration::from_millis(20);

/// The number of times that a directory without a volume may be found under the name before it counts as foreign:
/// another instance may have made and removed a volume between two looks.
const MAX_FOREIGN: u32 = 2;

impl Service {
    /// Creates a volume, or answers a repetition (`/VolumeDriver.Create`).
    ///
    /// Idempotent for the same options: those given now are compared with those given at creation. A host that has the
    /// right may `adopt` an existing directory.
    pub async fn create(
        self: &Arc<Self>,
        caller: &Caller,
        name: VolumeName,
        options: Options,
    ) -> Result<Arc<Volume>, Error> {
        let (service, caller) = (Arc::clone(self), caller.clone());
        self.operate(|commit_point| async move {
            let _held = service.locks.volumes.hold(&name, &commit_point).await?;
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
        let (mut backoff, mut foreign_found) = (PeerBackoff::new(), 0);
        loop {
            if exists() {
                // The volume may be whole or need recovery, or another instance may have removed it.
                self.sync().await?;
                if self.is_out_of_sight(&in_force, caller, &name) {
                    return Err(self.taken_out_of_sight(&in_force, caller, name, &options));
                }
                if let Some(existing) = self.recovered(&name).await? {
                    return repeated(&in_force, &self.catalog.view(), caller, &existing, &options);
                }
            }
            match self.create_new(commit_point, &in_force, caller, name.clone(), options.clone()).await {
                Err(error @ (Error::Exists(_) | Error::Backend(BackendError::Occupied { .. })))
                    if self.is_shared() =>
                {
                    self.sync().await?;
                    // Another instance has made it since we looked, and it may be gone again. If no volume is found
                    // several times in a row, a foreign directory has the name.
                    let made = exists() || matches!(error, Error::Exists(_));
                    foreign_found += u32::from(!made);
                    if foreign_found > MAX_FOREIGN || !backoff.wait().await {
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
        room_for_volume(in_force, &self.catalog.view(), caller)?;
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
            // Known once the directory is made; that of an adopted volume is there already.
            unconfirmed: None,
            name,
        };
        if !commit_point.wanted() {
            return Err(Error::Abandoned);
        }
        self.refuse_twin(&backend, expect, &volume.name).await?;
        step("create:begun");
        let Some(lock) = self.lock_directory_locally(backend.name(), volume.id) else {
            return Err(Error::RecoveryPending(volume.name.clone()));
        };
        if adopt {
            self.adopt(&backend, expect, &volume).await?;
        } else {
            self.make(Arc::clone(commit_point), &lock, &backend, expect, &volume).await?;
        }
        let outcome = self.show(&lock, &volume).await?;
        step("create:done");
        log_done(if adopt { "adopted" } else { "created" }, &volume.name, caller);
        if !adopt && backend.settings().durable_directories {
            // Nobody waits for it: if it fails, the next recovery confirms the volume.
            drop(self.catalog.submit(Change::Confirm(vec![(volume.name.clone(), volume.id)])));
        }
        Ok(outcome.after.unwrap_or_else(|| Arc::new(Volume { visible: true, ..volume })))
    }

    /// Records an existing directory as the volume.
    async fn adopt(&self, backend: &Backend, expect: Expect, volume: &Volume) -> Result<(), Error> {
        let name = volume.name.clone();
        let here = |other: &VolumeName| {
            let view = self.catalog.view();
            view.volumes.get(other).is_some_and(|other| other.backend == volume.backend)
        };
        let view = self.catalog.view();
        let alike =
            view.volumes.keys().filter(|other| NameFolding::LOOSE.is_same(other, &name) && here(other));
        let alike: Vec<_> = alike.cloned().collect();
        let backend_name = backend.name().clone();
        match backend.run(expect, move |root| root.adoptable(&name, &alike)).await? {
            Adoptable::Directory { same } => {
                if let Some(other) = same.into_iter().find(here) {
                    return Err(Error::SameDirectory {
                        name: volume.name.clone(),
                        other,
                        backend: backend_name,
                        folding: backend.name_folding(expect).await?,
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
        self.catalog.submit(Change::Insert(volume.clone())).await.map_err(insert_error)?;
        step("adopt:recorded");
        Ok(())
    }

    /// Makes a new directory for the volume: staged and recorded, then renamed.
    async fn make(
        &self,
        commit_point: Arc<CommitPoint>,
        lock: &DirectoryLock,
        backend: &Arc<Backend>,
        expect: Expect,
        volume: &Volume,
    ) -> Result<(), Error> {
        let rename = Rename {
            backend: Arc::clone(backend),
            expect,
            id: volume.id,
            name: volume.name.clone(),
            confirmations: Arc::clone(&self.confirmations),
        };
        let renamed = match self.prepare(commit_point, lock, rename.clone(), volume).await? {
            Prepared::Renamed(renamed) => renamed,
            Prepared::Recorded => backend.run(expect, move |root| rename.run(root)).await,
        };
        if let Err(error) = renamed {
            if matches!(error, BackendError::Missing { .. }) && self.is_whole(backend, expect, volume).await {
                log::info!("another instance finished the create of volume {} for this one", volume.name);
                return Ok(());
            }
            if error.effect_unknown() {
                self.leave_to_recovery(lock, &volume.name, &error);
            } else if self.undo_record(lock, volume).await {
                self.undo_stage(lock, backend, expect, volume).await;
            }
            return Err(error.into());
        }
        Ok(())
    }

    /// Stages the directory and records the volume. If the record is durable soon, the same backend thread also renames
    /// the directory. A failure before the rename is undone here.
    async fn prepare(
        &self,
        commit_point: Arc<CommitPoint>,
        lock: &DirectoryLock,
        rename: Rename,
        volume: &Volume,
    ) -> Result<Prepared, Error> {
        let (backend, expect, id) = (Arc::clone(&rename.backend), rename.expect, volume.id);
        let ownership = ownership(&backend, volume);
        let (report, reported) = oneshot::channel();
        let (catalog, wanted, mut record) =
            (Arc::clone(&self.catalog), Arc::clone(&commit_point), volume.clone());
        let work = move |root: &Root| {
            let staged = match root.volume_state(&record.name)? {
                VolumeState::Missing => root.stage(id, ownership)?,
                VolumeState::Directory | VolumeState::NotADirectory(_) => {
                    return Err(root.occupied(&record.name));
                }
            };
            step("create:staged");
            if !wanted.wanted() {
                return Ok(());
            }
            record.unconfirmed = Some(Arc::new(Unconfirmed { directory: Some(staged.id()?) }));
            let mut recorded = catalog.submit_blocking(Change::Insert(record));
            let durable = if rename.is_durable() { staged.sync() } else { Ok(()) };
            // This is one of the runtime's threads for blocking work, which may wait for a future. Others need it if the
            // backend is crowded.
            let recorded_soon = if rename.backend.is_crowded() {
                (&mut recorded).now_or_never()
            } else {
                Handle::current().block_on(timeout(RECORD_ON_THREAD_TIMEOUT, &mut recorded)).ok()
            };
            match recorded_soon {
                Some(Ok(_)) if durable.is_ok() && wanted.wanted() => {
                    step("create:recorded");
                    let _ = report.send(ThreadReport::Renaming);
                    rename.run(root)
                }
                Some(outcome) => {
                    let _ = report.send(ThreadReport::Recording(Box::pin(ready(outcome))));
                    durable
                }
                None => {
                    let _ = report.send(ThreadReport::Recording(recorded));
                    durable
                }
            }
        };
        let done = backend.run_in_place(expect, work).await;
        let recorded = match reported.await {
            Ok(ThreadReport::Renaming) => return Ok(Prepared::Renamed(done)),
            Ok(ThreadReport::Recording(record)) => Some(record.await),
            Err(_not_queued) => None,
        };
        match (recorded, done) {
            (Some(Ok(_)), Ok(())) if commit_point.wanted() => {
                step("create:recorded");
                Ok(Prepared::Recorded)
            }
            (Some(Ok(_)), staged) => {
                if self.undo_record(lock, volume).await {
                    self.undo_stage(lock, &backend, expect, volume).await;
                }
                Err(staged.map_or_else(Error::from, |()| Error::Abandoned))
            }
            (Some(Err(error)), _) => {
                self.undo_stage(lock, &backend, expect, volume).await;
                Err(insert_error(error))
            }
            (None, Ok(())) => {
                self.undo_stage(lock, &backend, expect, volume).await;
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
                // The record may have been queued all the same.
                self.leave_to_recovery(lock, &volume.name, &error);
                Err(error.into())
            }
            (None, Err(error)) => {
                // Staging undoes its own failed steps, but on failing storage the undoing may have failed too.
                self.undo_stage(lock, &backend, expect, volume).await;
                Err(error.into())
            }
        }
    }

    /// Withdraws the record. If that fails, the staged directory must stay: without it, recovery would take whatever
    /// stands under the name for the volume's directory.
    async fn undo_record(&self, lock: &DirectoryLock, volume: &Volume) -> bool {
        let withdraw = Change::Withdraw(volume.name.clone(), volume.id);
        let undone = self.catalog.submit(withdraw).await;
        if let Err(error) = &undone {
            log::error!(
                "the create of volume {} failed, and its record cannot be taken back: it will be finished or undone \
                 later: {}",
                volume.name,
                chain(error)
            );
            lock.leave_half_done();
        }
        undone.is_ok()
    }

    async fn undo_stage(&self, lock: &DirectoryLock, backend: &Backend, expect: Expect, volume: &Volume) {
        let id = volume.id;
        if let Err(error) = backend.run(expect, move |root| root.unstage(id)).await {
            self.leave_to_recovery(lock, &volume.name, &error);
        }
    }
}

/// How far [`Service::prepare`] came.
enum Prepared {
    /// The directory is staged and recorded, both durably.
    Recorded,
    /// The directory was renamed as well, with this result.
    Renamed(Result<(), BackendError>),
}

/// The backend thread's report once the record is queued.
enum ThreadReport {
    /// The thread renames; its result is the rename's.
    Renaming,
    /// The thread does not rename; this is the record's outcome.
    Recording(Submitted),
}

/// The rename of a staged and recorded directory to its volume's name.
#[derive(Clone)]
struct Rename {
    backend: Arc<Backend>,
    expect: Expect,
    id: VolumeId,
    name: VolumeName,
    confirmations: Arc<Confirmations>,
}

impl Rename {
    /// Returns true if the directory is durable before the Create is answered.
    fn is_durable(&self) -> bool {
        self.backend.settings().durable_directories
    }

    fn run(&self, root: &Root) -> Result<(), BackendError> {
        let Self { backend, expect, id, name, confirmations } = self;
        if self.is_durable() {
            root.publish(*id, name)?;
            root.flush()?;
        } else {
            let place = confirmations.join(backend.name(), *expect, root)?;
            root.publish(*id, name)?;
            place.renamed(name, *id);
        }
        step("create:renamed");
        Ok(())
    }
}

/// Returns the owner and mode of a volume's directory: from the options, or else from the backend's settings.
pub(super) fn ownership(backend: &Backend, volume: &Volume) -> Ownership {
    // Without `..`, so that a new option is considered here.
    let Options { backend: _, uid, gid, mode, adopt: _, access: _ } = volume.options;
    let usual = backend.settings();
    Ownership {
        uid: uid.unwrap_or(usual.uid),
        gid: gid.unwrap_or(usual.gid),
        mode: mode.unwrap_or(usual.mode),
    }
}

/// Returns the answer to a Create of a name that exists.
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

/// Returns the error of a record that was refused; the name may have been taken since we looked.
fn insert_error(error: CatalogError) -> Error {
    match error {
        CatalogError::Refused(Refusal::Exists(volume)) => Error::Exists(volume.name.clone()),
        other => other.into(),
    }
}
