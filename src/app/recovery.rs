//! Recovery without a service: exporting and importing the catalog, rebuilding a lost one, and comparing it with the
//! backends' directories.
//!
//! Nothing below a backend is changed here, and no catalog that holds records is changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::convert::to_volumes;
use crate::backend::{self, Backend, BackendError, Expect, Root, StoredCopy};
use crate::catalog::offline::{self, NewCatalog};
use crate::catalog::reconcile::{self, AllFacts, Facts, Finding, Source};
use crate::catalog::record::Unwritable;
use crate::catalog::text::{self, InvalidText};
use crate::catalog::{OpenError, View};
use crate::config::Config;
use crate::model::backend::{BackendId, BackendName};
use crate::model::volume::VolumeName;

/// How long a backend may take to be examined.
const BACKEND_TIMEOUT: Duration = Duration::from_secs(60);

/// The time between two comparisons: a difference caused by an operation under way is gone in the second.
const AGAIN: Duration = Duration::from_millis(500);

/// Why the catalog was not exported, imported, rebuilt or compared. Nothing was changed, except that a shared catalog
/// may be half-imported, which no service accepts.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The catalog cannot be read or created.
    #[error(transparent)]
    Catalog(#[from] OpenError),
    /// A record cannot be stored.
    #[error(transparent)]
    Record(#[from] Unwritable),
    /// The file to be imported is invalid.
    #[error("{} cannot be imported", .path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line and its fault.
        #[source]
        source: InvalidText,
    },
    /// No backend has anything that a catalog could be rebuilt from.
    #[error(
        "no backend of the map is there with its identity (.volhost/backend.json), so that nothing can be rebuilt; are \
         the shares mounted? `volhost serve` begins anew"
    )]
    Nothing,
    /// The threads that examine backends cannot be started.
    #[error("the backends cannot be looked at")]
    System(#[source] std::io::Error),
}

impl RecoveryError {
    /// Returns true if the error comes from the configuration.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Catalog(error) => error.is_configuration(),
            Self::Record(_) | Self::Text { .. } | Self::Nothing | Self::System(_) => false,
        }
    }
}

/// The number of records of each kind in a catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// The volumes.
    pub volumes: usize,
    /// The mounts.
    pub mounts: usize,
    /// The removed volumes.
    pub removed: usize,
    /// The hosts.
    pub hosts: usize,
    /// The backends.
    pub backends: usize,
}

impl Counts {
    fn of(view: &View) -> Self {
        Self {
            volumes: view.volumes.len(),
            mounts: view.mount_count(),
            removed: view.trash.len(),
            hosts: view.hosts.len(),
            backends: view.backends.len(),
        }
    }
}

/// A copy or a backend that was examined, with the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The backend.
    pub backend: BackendName,
    /// The copy; `None` if the backend itself could not be examined.
    pub path: Option<PathBuf>,
    /// When the copy was made.
    pub at: Option<OffsetDateTime>,
    /// Why it was not used; `None` if it was.
    pub reason: Option<String>,
}

/// The outcome of a rebuild.
#[derive(Debug)]
pub struct Rebuilt {
    /// The content of the catalog now.
    pub counts: Counts,
    /// The copies and backends that were examined.
    pub looked: Vec<Examined>,
    /// The decisions taken, and the contradictions found.
    pub findings: Vec<Finding>,
}

/// The outcome of a comparison of the catalog with the backends.
#[derive(Debug)]
pub struct Compared {
    /// The number of backends that were examined.
    pub backends: usize,
    /// The content of the catalog.
    pub counts: Counts,
    /// The backends that could not be examined, with the reason.
    pub unseen: Vec<Examined>,
    /// The differences.
    pub findings: Vec<Finding>,
}

/// Returns the catalog as text.
pub fn export(config: &Config) -> Result<String, RecoveryError> {
    Ok(text::compose(&offline::read(&config.boot.catalog, &config.boot.etcd)?, None)?)
}

/// Creates a catalog from an exported text, or from a backend's copy.
pub fn import(config: &Config, path: &Path, text: &str) -> Result<Counts, RecoveryError> {
    let parsed =
        text::parse(text.as_bytes()).map_err(|source| RecoveryError::Text { path: path.into(), source })?;
    NewCatalog::if_empty(&config.boot.catalog, &config.boot.etcd)?.fill(&parsed.view)?;
    Ok(Counts::of(&parsed.view))
}

/// Rebuilds a lost catalog from the backends' copies and directories.
pub fn rebuild(config: &Config) -> Result<Rebuilt, RecoveryError> {
    let claim = NewCatalog::if_missing(&config.boot.catalog, &config.boot.etcd)?;
    let (mut facts, copies, mut looked) = look_at_all(config, |_| Expect::Nothing, |_| Vec::new())?;
    let mut sources = Vec::new();
    for (backend, StoredCopy { path, content }) in copies {
        let identity = facts.get(&backend).and_then(|facts| facts.id);
        let (at, reason) = match usable(content, identity) {
            Ok(parsed) => {
                let label = path.display().to_string();
                sources.push(Source { label, at: parsed.at, view: parsed.view });
                (parsed.at, None)
            }
            Err(reason) => (None, Some(reason)),
        };
        looked.push(Examined { backend, path: Some(path), at, reason });
    }
    // An empty mount point says nothing about the backend that should be there.
    facts.retain(|name, facts| {
        let reason = "it has no .volhost/backend.json: is the share mounted?";
        let here = facts.id.is_some();
        if !here {
            let (backend, reason) = (name.clone(), Some(reason.into()));
            looked.push(Examined { backend, path: None, at: None, reason });
        }
        here
    });
    if facts.is_empty() {
        return Err(RecoveryError::Nothing);
    }
    let (view, findings) = reconcile::merge(sources, facts, OffsetDateTime::now_utc());
    claim.fill(&view)?;
    Ok(Rebuilt { counts: Counts::of(&view), looked, findings })
}

/// Compares the catalog with the backends' directories, even while a service has it open.
pub fn compare(config: &Config) -> Result<Compared, RecoveryError> {
    let look = || -> Result<_, RecoveryError> {
        let view = offline::peek(&config.boot.catalog, &config.boot.etcd)?;
        let expect = |name: &BackendName| {
            view.backends.get(name).map_or(Expect::Unknown, |record| Expect::This(record.id))
        };
        let said = |name: &BackendName| {
            let volumes = view.volumes.values().filter(|volume| volume.backend == *name);
            let said = volumes.filter(|volume| volume.options.say_ownership());
            said.map(|volume| volume.name.clone()).collect()
        };
        let (facts, _, unseen) = look_at_all(config, expect, said)?;
        let findings = reconcile::compare(&view, &facts);
        Ok(Compared { backends: facts.len(), counts: Counts::of(&view), unseen, findings })
    };
    let first = look()?;
    if first.findings.is_empty() {
        return Ok(first);
    }
    // A difference that an operation under way caused between the two looks is none.
    std::thread::sleep(AGAIN);
    let mut second = look()?;
    second.findings.retain(|finding| first.findings.contains(finding));
    Ok(second)
}

/// Returns the content of a copy if it is whole and its catalog knew the backend that it lies on.
fn usable(copy: Option<CopyRead>, identity: Option<BackendId>) -> Result<text::Parsed, String> {
    let parsed = copy.ok_or("it cannot be read")?.map_err(|error| crate::error::chain(&error))?;
    let knows = parsed.view.backends.values().any(|record| Some(record.id) == identity);
    if knows { Ok(parsed) } else { Err("it is of a catalog that does not know this backend".into()) }
}

type CopyRead = Result<text::Parsed, InvalidText>;

type LookedAt = (AllFacts, Vec<(BackendName, StoredCopy<CopyRead>)>, Vec<Examined>);

/// The number of backends that are examined at once. Each takes a thread, and the system may have few.
const AT_ONCE: usize = 64;

/// Examines every backend of the map, many at once; one that hangs is given up. `said` names the volumes of a backend
/// whose owners are wanted.
fn look_at_all(
    config: &Config,
    expect: impl Fn(&BackendName) -> Expect,
    said: impl Fn(&BackendName) -> Vec<VolumeName>,
) -> Result<LookedAt, RecoveryError> {
    crate::process::threads::require(4).map_err(RecoveryError::System)?;
    let map = to_volumes(config, &backend::Map::default()).map;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(backend::BLOCKING_THREADS)
        .build()
        .map_err(RecoveryError::System)?;
    let seen = runtime.block_on(async {
        let mut looks = tokio::task::JoinSet::new();
        let places = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
        for backend in map.iter() {
            let (backend, expect, said) = (Arc::clone(backend), expect(backend.name()), said(backend.name()));
            let places = Arc::clone(&places);
            looks.spawn(async move {
                // The semaphore is never closed; if it were, the work would be done without a slot.
                let _place = places.acquire().await;
                (backend.name().clone(), look_at(&backend, expect, said).await)
            });
        }
        looks.join_all().await
    });
    runtime.shutdown_background();
    let (mut facts, mut copies, mut unseen) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, seen) in seen {
        match seen {
            Ok((of_backend, kept)) => {
                copies.extend(kept.into_iter().map(|kept| (name.clone(), kept)));
                facts.insert(name, of_backend);
            }
            Err(reason) => {
                unseen.push(Examined { backend: name, path: None, at: None, reason: Some(reason) });
            }
        }
    }
    copies.sort_by(|(one, _), (other, _)| one.cmp(other));
    unseen.sort_by(|one, other| one.backend.cmp(&other.backend));
    Ok((facts, copies, unseen))
}

async fn look_at(
    backend: &Backend,
    expect: Expect,
    said: Vec<VolumeName>,
) -> Result<(Facts, Vec<StoredCopy<CopyRead>>), String> {
    let mountpoints = backend.settings().mountpoints.clone();
    let look = |root: &Root| -> Result<_, BackendError> {
        let (directories, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
            root.entries()?.into_iter().partition(|(_, other)| other.is_none());
        let mut owners = BTreeMap::new();
        for name in said {
            owners.extend(root.ownership(&name)?.map(|found| (name, found)));
        }
        let facts = Facts {
            id: root.identity()?.map(|identity| identity.id),
            mountpoints,
            directories: directories.into_keys().collect(),
            others: others.into_iter().filter_map(|(name, other)| Some((name, other?))).collect(),
            owners,
            staged: root.staged()?.volumes.into_iter().collect(),
            trashed: root.trashed()?.volumes.into_iter().collect(),
            deleting: root.deleting()?.volumes.into_iter().collect(),
        };
        Ok((facts, root.copies(|input| text::parse(input))?))
    };
    match tokio::time::timeout(BACKEND_TIMEOUT, backend.run(expect, look)).await {
        Ok(done) => done.map_err(|error| crate::error::chain(&error)),
        Err(_) => Err(format!("it does not answer within {} s", BACKEND_TIMEOUT.as_secs())),
    }
}
