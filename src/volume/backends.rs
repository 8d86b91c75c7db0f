//! How backends come into force: their identities, what the configuration says of them, and the periodic check of each.
//!
//! A backend is given an identity automatically only in an empty directory, and only if the catalog remembers none for
//! it: an empty directory of a backend that is known is an unmounted share.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::backend_tasks::BackendTasks;
use super::error::Error;
use super::expiry::is_scarce;
use super::step::step;
use super::{InForce, Service};
use crate::backend::{Backend, Expect, Health};
use crate::catalog::{BackendRecord, BackendState, CatalogError, Change, Refusal};
use crate::error::chain;
use crate::model::backend::{BackendId, BackendName};

/// How often each backend is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How often the times when hosts were last seen are written down.
const LAST_SEEN_INTERVAL: Duration = Duration::from_secs(60);

/// How long the end of the service waits for those times to be written.
const LAST_SEEN_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

impl Service {
    /// Puts another configuration in force. Operations under way end with the one that they began with.
    pub fn put_in_force(&self, in_force: InForce) {
        self.in_force.store(Arc::new(in_force));
        self.trash.wake();
    }

    /// Checks each backend once: its identity, its health, and what a crash left on it. Returns when all are done or after
    /// `limit`; the check of a backend that hangs then goes on.
    pub async fn bring_up(self: &Arc<Self>, limit: Duration) {
        let backends: Vec<_> = self.in_force.load().map.iter().cloned().collect();
        let mut checks = tokio::task::JoinSet::new();
        for backend in backends {
            let service = Arc::clone(self);
            checks.spawn(async move { service.upkeep.slots.run(service.check_backend(&backend)).await });
        }
        let all = async { while checks.join_next().await.is_some() {} };
        if timeout(limit, all).await.is_err() {
            log::warn!("some backends do not answer yet: volumes on the others are served");
        }
        checks.detach_all();
    }

    /// Checks the backends for as long as the service runs.
    pub async fn keep_up(self: Arc<Self>) {
        let mut checks = BackendTasks::default();
        let mut ticks = tokio::time::interval(CHECK_INTERVAL);
        let mut written = tokio::time::Instant::now();
        let mut peers = self.recovery.subscribe_to_peers();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // What a lost instance left half-done is recovered at once.
                () = peers.changed() => {}
            }
            self.recovery.note_lost_peers(&self.in_force.load().map);
            checks.begin(
                &self,
                |_| true,
                |service, backend| async move { service.check_backend(&backend).await },
            );
            if written.elapsed() >= LAST_SEEN_INTERVAL {
                written = tokio::time::Instant::now();
                // In a task, because a catalog that does not answer must not hold up the checks.
                let service = Arc::clone(&self);
                tokio::spawn(async move { service.write_seen().await });
            }
        }
    }

    /// Writes what the end of the service would lose: when hosts were last seen, and each backend's copy of the catalog.
    /// Waits only briefly for a catalog or a backend that does not answer.
    pub async fn write_last(self: &Arc<Self>) {
        if timeout(LAST_SEEN_SHUTDOWN_TIMEOUT, self.write_seen()).await.is_err() {
            log::warn!("when hosts were last seen is not written down: the catalog does not answer");
        }
        self.last_copies().await;
    }

    pub(super) async fn check_backend(self: &Arc<Self>, backend: &Arc<Backend>) {
        let before = backend.health();
        let recovery = self.recovery.of(backend.name());
        if recovery.is_done() && recovery.is_retry_due() {
            recovery.require();
        }
        // The probe of a known backend comes first: recovery can wait, and may hang.
        let known = self.established(backend.name());
        let now = match known {
            Some(expect) => backend.probe(expect).await,
            None => {
                self.make_ready(backend).await;
                backend.probe(self.established(backend.name()).unwrap_or(Expect::Unknown)).await
            }
        };
        log_change(backend.name(), &before, &now);
        let came = !matches!(*before, Health::Online(_)) && matches!(*now, Health::Online(_));
        if came || is_scarce(&now) {
            self.trash.wake();
        }
        if known.is_some() {
            self.make_ready(backend).await;
        }
        self.remember_mountpoints(backend).await;
    }

    async fn make_ready(self: &Arc<Self>, backend: &Arc<Backend>) {
        if let Err(error) = self.ready(backend).await {
            log::debug!("backend {}: {}", backend.name(), chain(&error));
        }
    }

    /// The identity of a backend whose identity file is known to have been written.
    pub(super) fn established(&self, name: &BackendName) -> Option<Expect> {
        let view = self.catalog.view();
        let record = view.backends.get(name)?;
        (record.state == BackendState::Established).then_some(Expect::This(record.id))
    }

    /// The identity to expect of a backend. A new backend in an empty directory is given one here.
    pub(super) async fn identify(&self, backend: &Arc<Backend>) -> Result<Expect, Error> {
        let known = || self.catalog.view().backends.get(backend.name()).cloned();
        let mut record = known();
        if record.as_ref().is_none_or(|record| record.state == BackendState::Initialising) {
            // Another instance may have come further: an empty directory may be an unmounted share by now.
            self.sync().await?;
            record = known();
        }
        if record.is_none() {
            let look = |root: &crate::backend::Root| Ok(root.identity()?.is_none() && root.is_empty()?);
            if !backend.run(Expect::Nothing, look).await? {
                // This is refused; the refusal tells what is wrong, and becomes the backend's state.
                return backend.run(Expect::Unknown, |_| Ok(Expect::Unknown)).await.map_err(Error::from);
            }
            record = Some(self.introduce(backend).await?);
            step("identity:chosen");
        }
        match record.as_deref() {
            Some(BackendRecord { id, state: BackendState::Established, .. }) => Ok(Expect::This(*id)),
            Some(BackendRecord { id, state: BackendState::Initialising, .. }) => {
                self.initialise(backend, *id).await
            }
            None => Ok(Expect::Unknown),
        }
    }

    /// Chooses an identity for a new backend. Returns what is recorded, which may be another instance's choice.
    async fn introduce(&self, backend: &Backend) -> Result<Arc<BackendRecord>, Error> {
        let record = BackendRecord {
            id: BackendId::random(),
            state: BackendState::Initialising,
            mountpoints: backend.settings().mountpoints.clone(),
        };
        let introduce = Change::Introduce(backend.name().clone(), record.clone());
        match self.catalog.submit(introduce).await {
            Ok(_) => {
                self.upkeep.recorded.choose(backend.name(), record.id);
                Ok(Arc::new(record))
            }
            Err(CatalogError::Refused(Refusal::Known(known))) => Ok(known),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the chosen identity if the directory is still empty, and records that it was written. An identity that
    /// another instance chose is never written here: its directory may be another one, and the two would pass for the
    /// same.
    pub(super) async fn initialise(&self, backend: &Arc<Backend>, id: BackendId) -> Result<Expect, Error> {
        let name = backend.name().clone();
        let ours = !self.is_shared() || self.upkeep.recorded.has_chosen(&name, id);
        let write = move |root: &crate::backend::Root| match root.identity()? {
            None if !ours => Ok(false),
            None if root.is_empty()? => root.write_identity(id, &name).map(|()| true),
            _ => Ok(true),
        };
        if !backend.run(Expect::Nothing, write).await? {
            return Err(Error::Identity {
                backend: backend.name().clone(),
                reason: format!(
                    "another instance is giving it the identity {id}, which {} does not have; is that the same \
                     storage? where that instance was lost, `volhost backend init {}` begins anew",
                    backend.settings().path.display(),
                    backend.name()
                ),
            });
        }
        step("identity:written");
        let expect = Expect::This(id);
        backend.run(expect, |_| Ok(())).await?;
        // Another instance may have been quicker, or the operator may have chosen another identity.
        let is_open =
            |known: &Arc<BackendRecord>| known.id == id && known.state == BackendState::Initialising;
        self.sync().await?;
        if !self.catalog.view().backends.get(backend.name()).is_some_and(is_open) {
            return self.established(backend.name()).ok_or_else(|| Error::Identity {
                backend: backend.name().clone(),
                reason: "another instance is giving it an identity: it is looked at again soon".into(),
            });
        }
        self.record_backend(backend, id, BackendState::Established).await?;
        log::info!("backend {} is {} from now on", backend.name(), id);
        Ok(expect)
    }

    pub(super) async fn record_backend(
        &self,
        backend: &Backend,
        id: BackendId,
        state: BackendState,
    ) -> Result<(), Error> {
        let mountpoints = backend.settings().mountpoints.clone();
        let record = BackendRecord { id, state, mountpoints };
        self.catalog.submit(Change::Backend(backend.name().clone(), Some(record))).await?;
        Ok(())
    }

    /// Records where hosts see a backend, for when it is not in the map any more.
    async fn remember_mountpoints(&self, backend: &Backend) {
        let (name, mountpoints) = (backend.name(), &backend.settings().mountpoints);
        if self.upkeep.recorded.has_mountpoints(name, mountpoints) {
            return;
        }
        let Some(record) = self.catalog.view().backends.get(name).cloned() else { return };
        if record.mountpoints != *mountpoints {
            let record = BackendRecord { mountpoints: mountpoints.clone(), ..(*record).clone() };
            let change = Change::Backend(name.clone(), Some(record));
            if let Err(error) = self.catalog.submit(change).await {
                log::warn!("where hosts see backend {name} could not be written yet: {}", chain(&error));
                return;
            }
        }
        self.upkeep.recorded.set_mountpoints(name, mountpoints);
    }
}

/// Logs once when a backend comes or goes.
fn log_change(name: &BackendName, before: &Health, now: &Health) {
    match (before, now) {
        (Health::Online(_), Health::Online(_)) => {}
        (_, Health::Online(_)) => log::info!("backend {name} is online"),
        (Health::Offline { reason: was, .. }, Health::Offline { reason, .. }) if was == reason => {}
        (_, Health::Offline { reason, .. }) => log::warn!("backend {name:?} is offline: {reason}"),
        (_, Health::Unknown) => {}
    }
}
