//! The copies of the catalog that every backend keeps, from which a lost catalog can be rebuilt.
//!
//! No request waits for them: a backend that hangs, is full or is not there has an older copy.
//!
//! Of several instances that serve the catalog, one at a time writes a backend's copy. It claims the backend's identity, as
//! it would a volume's; the claim brings the view up to date, so that no older copy follows a newer one. What another
//! instance wrote already is not written again.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use time::OffsetDateTime;

use super::backend_tasks::BackendTasks;
use super::copy_compare::{copy_of, is_same};
use super::{Error, Service};
use crate::backend::{Backend, BackendError, Expect, Root, StoredCopy, VolumeState};
use crate::catalog::record::{Loader, Table};
use crate::catalog::text::{self, Whole};
use crate::catalog::{DistributedLock, View, Volume};
use crate::error::chain;
use crate::model::backend::BackendName;

/// How often changes are copied.
const COPY_INTERVAL: Duration = Duration::from_secs(120);

/// How long the end of the service waits for the last copies.
const COPY_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The view that was last written to a backend, and the time that its copy bears.
type LatestCopy = Option<(Arc<View>, OffsetDateTime)>;

/// What this process last wrote to each backend. Only the holder of a backend's lock writes to it.
#[derive(Debug, Default)]
pub(super) struct CatalogCopies(Mutex<HashMap<BackendName, Arc<tokio::sync::Mutex<LatestCopy>>>>);

impl CatalogCopies {
    fn of(&self, name: &BackendName) -> Arc<tokio::sync::Mutex<LatestCopy>> {
        // The map is whole after every statement under this lock.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(name.clone()).or_default())
    }
}

impl Service {
    /// Copies the catalog's changes to the backends for as long as the service runs.
    pub async fn keep_copies(self: Arc<Self>) {
        let mut copies = BackendTasks::default();
        let mut ticks = tokio::time::interval(COPY_INTERVAL);
        loop {
            ticks.tick().await;
            copies.begin(
                &self,
                |_| true,
                |service, backend| async move { service.copy_logged(&backend).await },
            );
        }
    }

    /// Copies the catalog as it is at the end of the service to each backend that answers.
    pub async fn last_copies(self: &Arc<Self>) {
        let mut copies = tokio::task::JoinSet::new();
        for backend in self.in_force.load().map.iter() {
            let (service, backend) = (Arc::clone(self), Arc::clone(backend));
            copies.spawn(async move { service.upkeep.slots.run(service.copy_logged(&backend)).await });
        }
        let all = async { while copies.join_next().await.is_some() {} };
        if tokio::time::timeout(COPY_SHUTDOWN_TIMEOUT, all).await.is_err() {
            log::warn!("not every backend has a copy of the catalog's last changes: some do not answer");
        }
    }

    async fn copy_logged(&self, backend: &Arc<Backend>) {
        match self.copy(backend).await {
            Ok(true) => log::debug!("backend {} has a copy of the catalog", backend.name()),
            Ok(false) => {}
            // That the backend is offline, or the catalog out of reach, was logged when it happened.
            Err(
                error @ (Error::Backend(BackendError::Offline { .. } | BackendError::Busy { .. })
                | Error::Catalog(_)),
            ) => {
                log::debug!("no copy of the catalog: {}", chain(&error));
            }
            Err(error) => {
                log::warn!("backend {} has no new copy of the catalog: {}", backend.name(), chain(&error));
            }
        }
    }

    /// Copies the catalog to a backend if anything changed since the last copy. Returns true if it did.
    pub(super) async fn copy(&self, backend: &Arc<Backend>) -> Result<bool, Error> {
        let name = backend.name();
        let Some(expect) = self.established(name) else { return Ok(false) };
        let latest = self.upkeep.copies.of(name);
        let mut latest = latest.lock().await;
        let is_copied = |view: &View| latest.as_ref().is_some_and(|(copied, _)| is_same(copied, view));
        if is_copied(&self.catalog.view()) {
            return Ok(false);
        }
        let Some(_lock) = self.lock_copying(expect).await? else { return Ok(false) };
        let view = self.catalog.view();
        if is_copied(&view) {
            return Ok(false);
        }
        let (copied, shared) = (Arc::clone(&view), self.is_shared());
        // If others write as well, what this process wrote last says nothing about what lies there.
        let known = latest.as_ref().map(|(_, at)| *at).filter(|_| !shared);
        let write = move |root: &Root| match shared
            .then(|| time_of_same_copy(root, &copied))
            .transpose()?
            .flatten()
        {
            Some(at) => Ok((at, false)),
            None => Ok((write(root, &copied, known, expect)?, true)),
        };
        let (at, written) = backend.run(expect, write).await?;
        *latest = Some((view, at));
        Ok(written)
    }

    /// Claims a backend for writing its copy; `None` while another instance writes to it, or the catalog does not answer.
    async fn lock_copying(&self, backend: Expect) -> Result<Option<DistributedLock>, Error> {
        if !self.is_shared() {
            return Ok(Some(DistributedLock::default()));
        }
        let Expect::This(id) = backend else { return Ok(None) };
        if self.catalog.fault().is_some() {
            return Ok(None);
        }
        Ok(self.catalog.try_lock(id.lock_key()).await?)
    }
}

/// The time of the newest copy on a backend, if it has the same records as the view.
fn time_of_same_copy(root: &Root, view: &View) -> Result<Option<OffsetDateTime>, BackendError> {
    let mut newest = true;
    let copies =
        root.copies(|input| if std::mem::take(&mut newest) { copy_of(input, view) } else { None })?;
    let first = copies.into_iter().next().filter(StoredCopy::is_newest);
    Ok(first.and_then(|copy| copy.content.flatten()?.at))
}

/// Writes a copy and returns its time. `known` is the time of the newest copy there, if this process wrote it.
fn write(
    root: &Root,
    view: &View,
    known: Option<OffsetDateTime>,
    expect: Expect,
) -> Result<OffsetDateTime, BackendError> {
    let (mut newest, mut keep) = (known, None);
    if known.is_none() {
        let copies = root.copies(|input| unknown_volumes(input, view))?;
        for (number, StoredCopy { path, content }) in copies.into_iter().enumerate() {
            let Some((whole, unknown)) = content.flatten() else { continue };
            newest = newest.max(whole.at);
            // Only the newest copy would be lost.
            if number == 0 && knows_more(root, &unknown, view, expect)? {
                log::warn!(
                    "{} is a copy of a catalog that knew volumes which this one does not: it is kept beside the new \
                     one, for `volhost catalog rebuild`",
                    path.display()
                );
                keep = Some(whole.at.map_or(0, OffsetDateTime::unix_timestamp).to_string());
            }
        }
    }
    // A clock that went back must not make this copy look older than the one before.
    let now = OffsetDateTime::now_utc();
    let at = newest.map_or(now, |newest| now.max(newest + Duration::from_millis(1)));
    let write = |out: &mut dyn io::Write| {
        text::lines(view, Some(at)).try_for_each(|line| {
            // The catalog has written these records before, so this does not fail.
            let line = line.map_err(|error| {
                log::error!("the catalog cannot be copied: {}", chain(&error));
                io::ErrorKind::InvalidData
            })?;
            out.write_all(line.as_bytes())
        })
    };
    root.write_copy(keep.as_deref(), write, |input| text::read(input, |_, _, _| Ok(())).is_ok())?;
    Ok(at)
}

/// Reads of a copy only the backends, and the volumes that this catalog does not know.
fn unknown_volumes(input: &mut dyn BufRead, view: &View) -> Option<(Whole, View)> {
    let mut unknown = Loader::default();
    let whole = text::read(input, |table, key, record| {
        let key: Vec<_> = key.iter().map(String::as_str).collect();
        let is_unknown = match table {
            Table::Volumes => {
                let mut one = Loader::default();
                one.take(table, &key, record)?;
                !one.finish()?.volumes.values().all(|volume| is_known(volume, view))
            }
            Table::Backends => true,
            Table::Mounts | Table::Removed | Table::Hosts => false,
        };
        if is_unknown {
            unknown.take(table, &key, record)?;
        }
        Ok(())
    });
    Some((whole.ok()?, unknown.finish().ok()?))
}

/// Returns true if a catalog has a volume, or has it in its trash.
fn is_known(volume: &Volume, view: &View) -> bool {
    view.trash.contains_key(&volume.id)
        || view.volumes.get(&volume.name).is_some_and(|known| known.id == volume.id)
}

/// Returns true if a copy found here tells of volumes that the catalog has lost: it does not know them, and their
/// directories stand. Such a copy is another catalog's, or this one's before it was begun again.
fn knows_more(root: &Root, unknown: &View, view: &View, expect: Expect) -> Result<bool, BackendError> {
    for volume in unknown.volumes.values() {
        let here =
            unknown.backends.get(&volume.backend).is_some_and(|record| Expect::This(record.id) == expect);
        // The directory of an adopted volume stays when that is removed.
        if here && !volume.adopted && root.volume_state(&volume.name)? == VolumeState::Directory {
            // A volume that was removed and made again since is no loss; one that was adopted again lost its record.
            if view.volumes.get(&volume.name).is_none_or(|again| again.adopted) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
