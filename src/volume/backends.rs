//! How backends come into force: their identities, what the configuration says of them, and looking after them while
//! the service runs.
//!
//! A backend gets an identity by itself only in an empty directory, and only where the catalog remembers none for it:
//! an empty directory under a name that is known is an unmounted share.

use std::future::pending;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::backend_tasks::Rounds;
use super::error::Error;
use super::step::step;
use super::trash::is_scarce;
use super::{InForce, Service};
use crate::backend::{Backend, Expect, Health};
use crate::catalog::{BackendRecord, BackendState, CatalogError, Change, News, Refusal};
use crate::error::chain;
use crate::model::backend::{BackendId, BackendName};

/// How often each backend is looked after.
const ROUND: Duration = Duration::from_secs(5);

/// How often it is written down when hosts were last seen.
const SEEN: Duration = Duration::from_secs(60);

/// How long the end of the service waits until that is written down.
const AT_THE_END: Duration = Duration::from_secs(2);

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
            rounds.spawn(async move { service.places.run(service.look_after(&backend)).await });
        }
        let all = async { while rounds.join_next().await.is_some() {} };
        if timeout(patience, all).await.is_err() {
            log::warn!("some backends do not answer yet: volumes on the others are served");
        }
        rounds.detach_all();
    }

    /// Looks after the backends for as long as the service runs.
    pub async fn keep_up(self: Arc<Self>) {
        let mut rounds = Rounds::default();
        let mut ticks = tokio::time::interval(ROUND);
        let mut written = tokio::time::Instant::now();
        let mut news = self.news.clone();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                // What an instance that was lost left half-done is looked at at once.
                there_are_news = changed(&mut news) => if !there_are_news { news = None },
            }
            self.note_lost();
            rounds.begin(
                &self,
                |_| true,
                |service, backend| async move { service.look_after(&backend).await },
            );
            if written.elapsed() >= SEEN {
                written = tokio::time::Instant::now();
                // A catalog that does not answer keeps nobody from looking after the backends.
                let service = Arc::clone(&self);
                tokio::spawn(async move { service.write_seen().await });
            }
        }
    }

    /// Writes down what the end of the service would lose: when hosts were last seen, and each backend's copy of the
    /// catalog. A catalog or a backend that does not answer is not waited for long.
    pub async fn write_last(self: &Arc<Self>) {
        if timeout(AT_THE_END, self.write_seen()).await.is_err() {
            log::warn!("when hosts were last seen is not written down: the catalog does not answer");
        }
        self.last_copies().await;
    }

    /// Writes down when hosts were last seen. Nothing hangs on it, so that a failure is only logged.
    pub async fn write_seen(&self) {
        if self.is_shared() && self.catalog.fault().is_some() {
            // It is kept until the catalog answers again.
            return;
        }
        let noted = std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if !noted.is_empty() {
            let seen = Change::Seen(noted.into_iter().map(|(host, noted)| (host, noted.at)).collect());
            self.submit_logged(seen, "when hosts were last seen could not be written").await;
        }
    }

    pub(super) async fn look_after(self: &Arc<Self>, backend: &Arc<Backend>) {
        let before = backend.health();
        let mending = self.mending(backend.name());
        if mending.is_done() && mending.is_due() {
            self.mark_unmended(backend.name());
        }
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
        let came = !matches!(*before, Health::Online(_)) && matches!(*now, Health::Online(_));
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
                // The refusal words what is wrong with it, and becomes the backend's state.
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

    /// Chooses an identity for a new backend, and returns what is recorded: another instance may have been first.
    async fn introduce(&self, backend: &Backend) -> Result<Arc<BackendRecord>, Error> {
        let record = BackendRecord {
            id: BackendId::random(),
            state: BackendState::Initialising,
            mountpoints: backend.settings().mountpoints.clone(),
        };
        let introduce = Change::Introduce(backend.name().clone(), record.clone());
        match self.catalog.submit(introduce).await {
            Ok(_) => {
                self.mending(backend.name()).choose(record.id);
                Ok(Arc::new(record))
            }
            Err(CatalogError::Refused(Refusal::Known(known))) => Ok(known),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the identity that was chosen, where the directory is still empty, and records that it was. One that another
    /// instance chose is never written here: that one's directory may be another one, and they would pass for the same.
    pub(super) async fn initialise(&self, backend: &Arc<Backend>, id: BackendId) -> Result<Expect, Error> {
        let name = backend.name().clone();
        let ours = !self.is_shared() || self.mending(&name).chose(id);
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
        // Another instance may have been quicker; and the operator may have chosen otherwise, which counts.
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

    /// Keeps where hosts see a backend, for the time when it is not in the map. Only what this process was told and did
    /// not record yet: instances whose maps differ would write in turns for ever.
    async fn remember_mountpoints(&self, backend: &Backend) {
        let (name, mountpoints) = (backend.name(), &backend.settings().mountpoints);
        let recorded = || self.recorded.lock().unwrap_or_else(PoisonError::into_inner);
        if recorded().get(name) == Some(mountpoints) {
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
        recorded().insert(name.clone(), mountpoints.clone());
    }
}

/// Waits for news of other instances; whether there may be more.
async fn changed(news: &mut Option<watch::Receiver<News>>) -> bool {
    match news {
        Some(news) => news.changed().await.is_ok(),
        None => pending().await,
    }
}

/// Tells the log when a backend comes or goes, once.
fn log_change(name: &BackendName, before: &Health, now: &Health) {
    match (before, now) {
        (Health::Online(_), Health::Online(_)) => {}
        (_, Health::Online(_)) => log::info!("backend {name} is online"),
        (Health::Offline { reason: was, .. }, Health::Offline { reason, .. }) if was == reason => {}
        (_, Health::Offline { reason, .. }) => log::warn!("backend {name:?} is offline: {reason}"),
        (_, Health::Unknown) => {}
    }
}
