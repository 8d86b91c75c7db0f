//! Backends: named directories, on local or shared storage, under which volumes lie.
//!
//! A [`Map`] is immutable and names them all; a reload builds the next one from it. A [`Backend`] runs work on its
//! [`Root`], which is opened for that one operation, checked (is it mounted, is it the expected backend?) through the
//! same handle, and closed afterwards, so that shares can be unmounted and come back.
//!
//! This room never knows the catalog: the caller passes the identity it expects. It never waits for storage on the
//! runtime's threads, never lets one backend use up what another needs, and never touches a path outside a root.

mod copies;
mod directory;
mod error;
mod health;
mod identity;
mod limiter;
mod name_folding;
mod purge;
mod volumes;

#[cfg(test)]
#[path = "../../tests/integration/harness/fuse.rs"]
pub(crate) mod fuse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::timestamp;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::task::JoinError;

pub use self::copies::Kept;
pub use self::directory::{Root, Usage};
pub use self::error::{BackendError, Effect};
pub use self::health::Health;
pub use self::identity::{Expect, Identity, identity_at};
pub use self::limiter::{QUEUE, SLOTS};
pub use self::name_folding::{Adoptable, Naming};
pub use self::purge::{Pass, Progress};
pub use self::volumes::{Listing, Staged, VolumeState};
use crate::model::backend::{BackendName, BackendSettings};

/// The most threads that one backend can hold when its storage hangs: its operations and one probe.
pub const THREADS_PER_BACKEND: usize = SLOTS + 1;

/// What the runtime's `max_blocking_threads` should be: enough for a hundred backends that hang at once and everything
/// else that blocks. Threads are made when they are needed, so that the number costs nothing.
pub const BLOCKING_THREADS: usize = 100 * THREADS_PER_BACKEND + 300;

/// How long a probe waits before the backend counts as one that does not answer.
const PROBE: Duration = Duration::from_secs(5);

/// All backends, by name. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Map(BTreeMap<BackendName, Arc<Backend>>);

impl Map {
    /// The map of these settings. Backends whose name and path are as in `previous` keep what is known of their
    /// health, and their operations under way count on.
    #[must_use]
    pub fn build(previous: &Self, settings: BTreeMap<BackendName, BackendSettings>) -> Self {
        let backends = settings.into_iter().map(|(name, settings)| {
            let state =
                previous.get(&name).filter(|before| before.settings.path == settings.path).map_or_else(
                    || Arc::new(State::new(limiter::STALL, PROBE)),
                    |before| Arc::clone(&before.state),
                );
            (name.clone(), Arc::new(Backend { name, settings, state }))
        });
        Self(backends.collect())
    }

    /// The backend of that name.
    #[must_use]
    pub fn get(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.0.get(name)
    }

    /// All backends, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.0.values()
    }

    /// The backend for a volume whose Create names none, of those that are `open` to the caller: `default`, else the
    /// only one. `None` if the caller must name one.
    #[must_use]
    pub fn default_for_create(&self, open: impl Fn(&Backend) -> bool) -> Option<&Arc<Backend>> {
        let mut all = self.0.values().filter(|backend| open(backend));
        let mut named = self.0.values().filter(|backend| open(backend));
        let named = named.find(|backend| backend.name.as_str() == BackendName::DEFAULT);
        match (named, all.next(), all.next()) {
            (Some(backend), _, _) | (None, Some(backend), None) => Some(backend),
            _ => None,
        }
    }
}

/// One backend: its settings, and what survives a reload that leaves its path alone.
#[derive(Debug)]
pub struct Backend {
    name: BackendName,
    settings: BackendSettings,
    state: Arc<State>,
}

/// What is kept while a backend's path stays the same.
#[derive(Debug)]
struct State {
    limiter: Arc<limiter::Limiter>,
    health: health::Cell,
    probe: Arc<Semaphore>,
    probe_since: Mutex<Option<(Instant, OffsetDateTime)>>,
    patience: Duration,
}

impl State {
    fn new(stall: Duration, patience: Duration) -> Self {
        Self {
            limiter: limiter::Limiter::new(stall),
            health: health::Cell::new(),
            probe: Arc::new(Semaphore::new(1)),
            probe_since: Mutex::new(None),
            patience,
        }
    }

    fn set_probe_since(&self, since: Option<(Instant, OffsetDateTime)>) {
        *self.probe_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Backend {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &BackendName {
        &self.name
    }

    /// Its entry in the map.
    #[must_use]
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Its state as it was last seen. Never blocks.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.state.health.load()
    }

    /// Runs blocking work on the root, off the runtime, once the root was found to be the expected one.
    ///
    /// Dropping the future does not stop work that has begun: it keeps its slot until it ends. Work that has not
    /// begun is then never run. Fails at once with [`BackendError::Busy`] or [`BackendError::Offline`] when the
    /// storage is known to hang; waits otherwise, without limit: the caller sets one.
    pub async fn run<T: Send + 'static>(
        &self,
        expect: Expect,
        work: impl FnOnce(&Root) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.answers()?;
        let slot = self.state.limiter.enter().await.map_err(|full| {
            let limiter::Full { waiting, longest, stalled } = full;
            if stalled {
                let path = self.settings.path.display();
                self.state
                    .health
                    .offline(&format!("{path} does not answer: {waiting} operations wait for it"));
            }
            BackendError::Busy { backend: self.name.clone(), waiting, longest }
        })?;
        let visit = self.visit(expect);
        let work = move || {
            // The slot ends with the work, not with whoever waits for it.
            let _slot = slot;
            visit.open().and_then(|root| {
                let result = work(&root);
                if let Err(error) = &result {
                    visit.failed(error);
                }
                result
            })
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| self.interrupted(&error))?
    }

    /// How its storage tells names apart; asked only where that is not known.
    pub async fn naming(&self, expect: Expect) -> Result<Naming, BackendError> {
        match &*self.health() {
            Health::Online(usage) => Ok(usage.naming),
            Health::Unknown | Health::Offline { .. } => self.run(expect, Root::naming).await,
        }
    }

    /// Whether operations wait for one of its slots, so that none should be held longer than its work takes.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.state.limiter.has_queue()
    }

    /// Refuses, without asking the storage, while it is known to hang.
    pub fn answers(&self) -> Result<(), BackendError> {
        match self.hung_probe() {
            Some(reason) => Err(BackendError::Offline { backend: self.name.clone(), reason }),
            None => Ok(()),
        }
    }

    /// Looks whether the backend is there and refreshes its health, which is returned. One probe at a time: while
    /// another is under way, nothing is asked. A probe that does not come back in time leaves the backend offline,
    /// and brings it back when it ends after all.
    pub async fn probe(&self, expect: Expect) -> Arc<Health> {
        if let Ok(permit) = self.state.probe.clone().try_acquire_owned() {
            let visit = self.visit(expect);
            self.state.set_probe_since(Some((Instant::now(), OffsetDateTime::now_utc())));
            let ended = ProbeEnded { state: Arc::clone(&self.state), _permit: permit };
            let probe = tokio::task::spawn_blocking(move || {
                let seen = visit.look().and_then(|root| root.usage());
                // Before the health tells of it, so that whoever reads the health finds operations let through.
                ended.state.set_probe_since(None);
                visit.note(&seen);
            });
            let _ = tokio::time::timeout(self.state.patience, probe).await;
        }
        if let Some(reason) = self.hung_probe() {
            self.state.health.offline(&reason);
        }
        self.health()
    }

    /// What is wrong when the probe under way has been so for too long.
    fn hung_probe(&self) -> Option<String> {
        let since = *self.state.probe_since.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, at) = since.filter(|(began, _)| began.elapsed() >= self.state.patience)?;
        let at = timestamp::rfc3339(at);
        Some(format!("{} does not answer since {at}", self.settings.path.display()))
    }

    fn visit(&self, expect: Expect) -> Visit {
        Visit {
            name: self.name.clone(),
            path: self.settings.path.clone(),
            require_mount: self.settings.require_mount,
            expect,
            state: Arc::clone(&self.state),
        }
    }

    fn interrupted(&self, error: &JoinError) -> BackendError {
        log::error!("an operation on backend {:?} broke off: {error}", self.name.as_str());
        BackendError::Interrupted { backend: self.name.clone() }
    }
}

/// Frees the way for the next probe, however this one ended.
struct ProbeEnded {
    state: Arc<State>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for ProbeEnded {
    fn drop(&mut self) {
        self.state.set_probe_since(None);
    }
}

/// One opening of a root, on a blocking thread.
struct Visit {
    name: BackendName,
    path: PathBuf,
    require_mount: bool,
    expect: Expect,
    state: Arc<State>,
}

impl Visit {
    /// Opens and checks the root for an operation, and notes what that says about the backend's health.
    fn open(&self) -> Result<Root, BackendError> {
        let root = self.look().inspect_err(|error| self.note(&Err(error.clone())))?;
        // The free space is the probe's to keep fresh; one more call for each operation would buy nothing.
        if !matches!(*self.state.health.load(), Health::Online(_)) {
            self.note(&root.usage());
        }
        Ok(root)
    }

    /// Opens and checks the root.
    fn look(&self) -> Result<Root, BackendError> {
        let root = Root::open(&self.name, &self.path, self.require_mount)?;
        root.check(self.expect)?;
        Ok(root)
    }

    fn note(&self, seen: &Result<Usage, BackendError>) {
        match seen {
            // Where nothing is expected, being there says nothing about being the right one.
            Ok(_) if self.expect == Expect::Nothing => {}
            Ok(usage) => self.state.health.online(*usage),
            Err(BackendError::Offline { reason, .. }) => self.state.health.offline(reason),
            Err(error) => self.state.health.offline(&crate::error::chain(error)),
        }
    }

    /// Notes an error that says that the storage went away under the work.
    fn failed(&self, error: &BackendError) {
        if let Some(errno) = error.storage_gone() {
            self.state.health.offline(&format!("{} does not answer: {errno}", self.path.display()));
        }
    }
}
