//! Backends: named directories, on local or shared storage, which hold the volumes.
//!
//! A [`Map`] is immutable and holds all of them; a reload builds the next one from it. A [`Backend`] runs work on its
//! [`Root`], which is opened for that one operation, checked through the same handle (is it mounted, is it the expected
//! backend?), and closed afterwards, so that shares can be unmounted and come back.
//!
//! Nothing here knows the catalog: the caller passes the identity that it expects. The runtime's threads never wait for
//! storage, no backend uses up what another needs, and no path outside a root is touched.
//!
//! Below the root, each module uses those before it: `layout` (names), `handle` (directories by handle),
//! `name_folding`, `rename`, `root`, then `identity`, `adoptable`, `volumes`, `deleting`, `purge` and `copies`.

mod adoptable;
mod copies;
mod deleting;
mod error;
mod handle;
mod health;
mod identity;
mod layout;
mod limiter;
mod name_folding;
mod purge;
mod purge_walk;
mod rename;
mod root;
mod volumes;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::model::timestamp;
use time::OffsetDateTime;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

pub use self::adoptable::Adoptable;
pub use self::copies::StoredCopy;
pub use self::error::{BackendError, Effect};
pub use self::health::Health;
pub use self::identity::{Expect, Identity, identity_at};
pub use self::limiter::{QUEUE, SLOTS};
pub use self::name_folding::NameFolding;
pub use self::purge::PurgeProgress;
pub use self::purge_walk::PurgePass;
pub use self::root::{Root, Usage};
pub use self::volumes::{Flush, Listing, Staged, VolumeState};
use crate::model::backend::BackendName;
use crate::model::backend_settings::BackendSettings;

/// The most threads that one backend can hold when its storage hangs: those of its operations and of one probe.
pub const THREADS_PER_BACKEND: usize = SLOTS + 1;

/// The value for the runtime's `max_blocking_threads`: enough for a hundred backends that hang at once, and for
/// everything else that blocks. Threads are started when they are needed, so a high number costs nothing.
pub const BLOCKING_THREADS: usize = 100 * THREADS_PER_BACKEND + 300;

/// How long a probe may take before the backend counts as not answering.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// All backends, by name. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Map(BTreeMap<BackendName, Arc<Backend>>);

impl Map {
    /// Builds a map of these settings. Backends with the same name and path as in `previous` keep their known health
    /// and their operations under way.
    #[must_use]
    pub fn build(previous: &Self, settings: BTreeMap<BackendName, BackendSettings>) -> Self {
        let backends = settings.into_iter().map(|(name, settings)| {
            let state =
                previous.get(&name).filter(|before| before.settings.path == settings.path).map_or_else(
                    || Arc::new(State::new(limiter::STALL_TIMEOUT, PROBE_TIMEOUT)),
                    |before| Arc::clone(&before.state),
                );
            (name.clone(), Arc::new(Backend { name, settings, state }))
        });
        Self(backends.collect())
    }

    /// Returns the backend of that name.
    #[must_use]
    pub fn get(&self, name: &BackendName) -> Option<&Arc<Backend>> {
        self.0.get(name)
    }

    /// Returns all backends, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.0.values()
    }

    /// Returns the backend for a volume whose Create names none, out of those that are `open` to the caller: `default`,
    /// else the only one. `None` if the caller must name one.
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

/// A backend: its settings, and the state that survives a reload which does not change its path.
#[derive(Debug)]
pub struct Backend {
    name: BackendName,
    settings: BackendSettings,
    state: Arc<State>,
}

/// The state of a backend, kept while its path stays the same.
#[derive(Debug)]
struct State {
    limiter: Arc<limiter::Limiter>,
    health: health::Cell,
    probe: Arc<Semaphore>,
    probe_since: Mutex<Option<(Instant, OffsetDateTime)>>,
    probe_timeout: Duration,
}

impl State {
    fn new(stall: Duration, probe_timeout: Duration) -> Self {
        Self {
            limiter: limiter::Limiter::new(stall),
            health: health::Cell::new(),
            probe: Arc::new(Semaphore::new(1)),
            probe_since: Mutex::new(None),
            probe_timeout,
        }
    }

    fn set_probe_since(&self, since: Option<(Instant, OffsetDateTime)>) {
        *self.probe_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl Backend {
    /// Returns the backend's name.
    #[must_use]
    pub fn name(&self) -> &BackendName {
        &self.name
    }

    /// Returns its entry in the map.
    #[must_use]
    pub fn settings(&self) -> &BackendSettings {
        &self.settings
    }

    /// Returns its last known state. Never blocks.
    #[must_use]
    pub fn health(&self) -> Arc<Health> {
        self.state.health.load()
    }

    /// Runs blocking work on the root, off the runtime, after checking that the root is the expected one.
    ///
    /// Dropping the future does not stop work that has begun, which keeps its slot until it ends; work that has not begun
    /// is never run. Fails at once with [`BackendError::Busy`] or [`BackendError::Offline`] if the storage is known to
    /// hang. Otherwise it waits without a limit: the caller sets one.
    pub async fn run<T: Send + 'static>(
        &self,
        expect: Expect,
        work: impl FnOnce(&Root) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (_, work) = self.admit(expect, work).await?;
        tokio::task::spawn_blocking(work).await.map_err(|error| self.interrupted(&error))?
    }

    /// As [`run`](Self::run), for a task that does nothing else meanwhile: if no other operation is at the backend, the
    /// work is done on the task's own thread, which saves the way to another thread and back.
    ///
    /// The runtime gives the thread's other tasks to a new thread meanwhile. So a backend that hangs takes as many threads
    /// as with `run`.
    pub async fn run_in_place<T: Send + 'static>(
        &self,
        expect: Expect,
        work: impl FnOnce(&Root) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (is_alone, work) = self.admit(expect, work).await?;
        if is_alone && Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread {
            return tokio::task::block_in_place(work);
        }
        tokio::task::spawn_blocking(work).await.map_err(|error| self.interrupted(&error))?
    }

    /// Waits for a slot. Returns true if no other operation has one, and the work with all that belongs to it.
    async fn admit<T, W: FnOnce(&Root) -> Result<T, BackendError>>(
        &self,
        expect: Expect,
        work: W,
    ) -> Result<(bool, impl FnOnce() -> Result<T, BackendError> + use<T, W>), BackendError> {
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
        let (is_alone, visit) = (slot.is_alone(), self.visit(expect));
        let work = move || {
            // The slot is held until the work ends, even if nobody waits for it any more.
            let _slot = slot;
            visit.open().and_then(|root| {
                let result = work(&root);
                if let Err(error) = &result {
                    visit.failed(error);
                }
                result
            })
        };
        Ok((is_alone, work))
    }

    /// Returns how its storage folds names. Asks the storage only if that is not known.
    pub async fn name_folding(&self, expect: Expect) -> Result<NameFolding, BackendError> {
        match &*self.health() {
            Health::Online(usage) => Ok(usage.name_folding),
            Health::Unknown | Health::Offline { .. } => self.run(expect, Root::name_folding).await,
        }
    }

    /// Returns true if operations wait for a slot. A slot should then not be held longer than necessary.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.state.limiter.has_queue()
    }

    /// Fails while the storage is known to hang, without accessing it.
    pub fn answers(&self) -> Result<(), BackendError> {
        match self.hung_probe() {
            Some(reason) => Err(BackendError::Offline { backend: self.name.clone(), reason }),
            None => Ok(()),
        }
    }

    /// Checks that the backend is there, and returns its refreshed health. There is one probe at a time: while another
    /// is under way, the storage is not accessed. A probe that takes too long sets the backend offline, and brings it
    /// back when it ends after all.
    pub async fn probe(&self, expect: Expect) -> Arc<Health> {
        if let Ok(permit) = self.state.probe.clone().try_acquire_owned() {
            let visit = self.visit(expect);
            self.state.set_probe_since(Some((Instant::now(), OffsetDateTime::now_utc())));
            let ended = ProbeEnded { state: Arc::clone(&self.state), _permit: permit };
            let probe = tokio::task::spawn_blocking(move || {
                let seen = visit.look().and_then(|root| root.usage());
                // Before the health changes, so that a caller who sees it online is not refused an operation.
                ended.state.set_probe_since(None);
                visit.note(&seen);
            });
            let _ = tokio::time::timeout(self.state.probe_timeout, probe).await;
        }
        if let Some(reason) = self.hung_probe() {
            self.state.health.offline(&reason);
        }
        self.health()
    }

    /// Returns why the backend is offline, if the probe under way takes too long.
    fn hung_probe(&self) -> Option<String> {
        let since = *self.state.probe_since.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, at) = since.filter(|(began, _)| began.elapsed() >= self.state.probe_timeout)?;
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

/// Lets the next probe begin, however this one ended.
struct ProbeEnded {
    state: Arc<State>,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for ProbeEnded {
    fn drop(&mut self) {
        self.state.set_probe_since(None);
    }
}

/// An opening of a root, on a blocking thread.
struct Visit {
    name: BackendName,
    path: PathBuf,
    require_mount: bool,
    expect: Expect,
    state: Arc<State>,
}

impl Visit {
    /// Opens and checks the root for an operation, and notes what this shows about the backend's health.
    fn open(&self) -> Result<Root, BackendError> {
        let root = self.look().inspect_err(|error| self.note(&Err(error.clone())))?;
        // Probes keep the free space up to date; another call for each operation would gain nothing.
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
            // If nothing is expected, the root need not be the right one.
            Ok(_) if self.expect == Expect::Nothing => {}
            Ok(usage) => self.state.health.online(*usage),
            Err(BackendError::Offline { reason, .. }) => self.state.health.offline(reason),
            Err(error) => self.state.health.offline(&crate::error::chain(error)),
        }
    }

    /// Notes an error which means that the storage went away during the work.
    fn failed(&self, error: &BackendError) {
        if let Some(errno) = error.storage_gone() {
            self.state.health.offline(&format!("{} does not answer: {errno}", self.path.display()));
        }
    }
}
