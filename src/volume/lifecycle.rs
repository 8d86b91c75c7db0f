//! How backends come into force: their identities, what the configuration says of them, and looking after them while
//! the service runs.
//!
//! A backend gets an identity by itself only in an empty directory, and only where the catalog remembers none for it:
//! an empty directory under a name that is known is an unmounted share.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::error::Error;
use super::rounds::Rounds;
use super::step::step;
use super::trash::is_scarce;
use super::{InForce, Service};
use crate::backend::name::{BackendId, BackendName};
use crate::backend::{Backend, Expect, Health};
use crate::catalog::{BackendRecord, BackendState, Change};
use crate::error::chain;

/// How often each backend is looked after.
const ROUND: Duration = Duration::from_secs(5);

/// How often it is written down when hosts were last seen.
const SEEN: Duration = Duration::from_secs(60);

impl Service {
    /// Puts another part of the configuration in force. Operations under way end as they began.
    pub fn put_in_force(&self, in_force: InForce) {
        self.in_force.store(Arc::new(in_force));
        self.purge.notify_one();
    }

    /// Looks after each backend once: identity, health, and what a crash left on it. Returns when all are done or
    /// `patience` is over; a backend that hangs is looked after on.
    pub async fn bring_up(self: &Arc<Self>, patience: Duration) {
        let backends: Vec<_> = self.in_force.load().map.iter().cloned().collect();
        let mut rounds = tokio::task::JoinSet::new();
        for backend in backends {
            let service = Arc::clone(self);
            rounds.spawn(async move { service.look_after(&backend).await });
        }
        let all = async { while rounds.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            log::warn!("some backends do not answer yet: volumes on the others are served");
        }
        rounds.detach_all();
    }

    /// Looks after the backends for as long as the service runs.
    pub async fn keep_up(self: Arc<Self>) {
        let mut rounds = Rounds::default();
        let mut ticks = tokio::time::interval(ROUND);
        let mut written = tokio::time::Instant::now();
        loop {
            ticks.tick().await;
            rounds.begin(
                &self,
                |_| true,
                |service, backend| async move { service.look_after(&backend).await },
            );
            if written.elapsed() >= SEEN {
                written = tokio::time::Instant::now();
                self.write_seen().await;
            }
        }
    }

    /// Writes down when hosts were last seen. Nothing hangs on it, so that a failure is only logged.
    pub async fn write_seen(&self) {
        let noted = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if !noted.is_empty() {
            let seen = Change::Seen(noted.into_iter().map(|(host, noted)| (host, noted.at)).collect());
            self.submit_logged(seen, "when hosts were last seen could not be written").await;
        }
    }

    async fn look_after(self: &Arc<Self>, backend: &Arc<Backend>) {
        let before = backend.health();
        // One that may hang is probed first: what it was left with can wait, whether it answers cannot.
        let known = self.established(backend.name());
        let now = match known {
            Some(expect) => backend.probe(expect).await,
            None => {
                self.make_ready(backend).await;
                backend.probe(self.established(backend.name()).unwrap_or(Expect::Unknown)).await
            }
        };
        log_change(backend.name(), &before, &now);
        let came = !matches!(*before, Health::Online { .. }) && matches!(*now, Health::Online { .. });
        if came || is_scarce(&now) {
            self.purge.notify_one();
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

    /// The identity of a backend whose file is known to have been written.
    pub(super) fn established(&self, name: &BackendName) -> Option<Expect> {
        let view = self.catalog.view();
        let record = view.backends.get(name)?;
        (record.state == BackendState::Established).then_some(Expect::This(record.id))
    }

    /// What to expect of a backend; a new one in an empty directory gets its identity here.
    pub(super) async fn identify(&self, backend: &Arc<Backend>) -> Result<Expect, Error> {
        let record = self.catalog.view().backends.get(backend.name()).cloned();
        match record.as_deref() {
            Some(BackendRecord { id, state: BackendState::Established, .. }) => Ok(Expect::This(*id)),
            Some(BackendRecord { id, state: BackendState::Initialising, .. }) => {
                self.initialise(backend, *id).await
            }
            None => {
                let look = |root: &crate::backend::Root| Ok(root.identity()?.is_none() && root.is_empty()?);
                if backend.run(Expect::Nothing, look).await? {
                    let id = BackendId::random();
                    self.record_backend(backend, id, BackendState::Initialising).await?;
                    step("identity:chosen");
                    self.initialise(backend, id).await
                } else {
                    // The refusal words what is wrong with it, and becomes the backend's state.
                    backend.run(Expect::Unknown, |_| Ok(Expect::Unknown)).await.map_err(Error::from)
                }
            }
        }
    }

    /// Writes the identity that was chosen, where the directory is still empty, and records that it was.
    pub(super) async fn initialise(&self, backend: &Arc<Backend>, id: BackendId) -> Result<Expect, Error> {
        let name = backend.name().clone();
        let write = move |root: &crate::backend::Root| match root.identity()? {
            None if root.is_empty()? => root.write_identity(id, &name),
            _ => Ok(()),
        };
        backend.run(Expect::Nothing, write).await?;
        step("identity:written");
        let expect = Expect::This(id);
        backend.run(expect, |_| Ok(())).await?;
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

    /// Keeps where hosts see a backend, for the time when it is not in the map.
    async fn remember_mountpoints(&self, backend: &Backend) {
        let record = self.catalog.view().backends.get(backend.name()).cloned();
        if let Some(record) = record
            && record.mountpoints != backend.settings().mountpoints
        {
            let record =
                BackendRecord { mountpoints: backend.settings().mountpoints.clone(), ..(*record).clone() };
            let change = Change::Backend(backend.name().clone(), Some(record));
            self.submit_logged(change, "a backend's mountpoints could not be written").await;
        }
    }
}

/// Tells the log when a backend comes or goes, once.
fn log_change(name: &BackendName, before: &Health, now: &Health) {
    match (before, now) {
        (Health::Online { .. }, Health::Online { .. }) => {}
        (_, Health::Online { .. }) => log::info!("backend {name} is online"),
        (Health::Offline { reason: was, .. }, Health::Offline { reason, .. }) if was == reason => {}
        (_, Health::Offline { reason, .. }) => log::warn!("backend {name:?} is offline: {reason}"),
        (_, Health::Unknown) => {}
    }
}
