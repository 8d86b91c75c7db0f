//! Deleting for good what was removed: when its time is over, when it was asked for, or the oldest first when space or
//! inodes run out.
//!
//! Only this part of the service deletes data, and only data whose removal was recorded. Before the first entry goes, the
//! directory on the backend is marked as one whose deletion has begun. It is never restored from then on, whatever
//! catalog is in force. The record says so as well, unless the catalog has no room for that: deleting may be what makes
//! room.
//!
//! Data goes in small slices with pauses, so that live volumes get their share of the storage; the backend's identity is
//! checked before each slice. The record goes last, so that a deletion continues after a restart. The removed volumes of
//! a backend take turns: one that is large, or still written to, does not hold up the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::Service;
use super::backend_tasks::BackendTasks;
use super::error::Error;
use super::expiry::is_scarce;
use super::step::step;
use crate::backend::{Backend, BackendError, Expect, PurgePass, PurgeProgress, Root};
use crate::catalog::{CatalogError, Change, Refusal, Removed};
use crate::error::chain;
use crate::model::volume::VolumeId;

/// How many entries go before a pause.
const SLICE_ENTRIES: usize = 256;

/// The pause: with [`SLICE_ENTRIES`] it bounds the rate to about 5,000 entries a second for each backend.
const SLICE_PAUSE: Duration = Duration::from_millis(50);

/// How many slices of one volume go before the others have their turn.
const TURN_SLICES: u32 = 16;

/// After how many turns a volume is slow: while space is scarce, the next oldest is then deleted beside it.
const SLOW_TURNS: u32 = 60;

/// After how many passes that found new entries a volume counts as written to.
const WRITTEN_TO_PASSES: usize = 3;

/// How far this process has got with deleting one volume.
#[derive(Debug, Default)]
pub(super) struct PurgeWork {
    pass: PurgePass,
    turns: u32,
}

impl PurgeWork {
    fn is_slow(&self) -> bool {
        self.turns >= SLOW_TURNS
    }
}

/// How a turn of deleting one volume ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PurgeTurn {
    /// Nothing is left, or nothing is to be deleted.
    Done,
    /// Entries are left for another turn.
    Unfinished,
    /// Entries are left that cannot be removed for now; the trash knows the reason.
    Blocked,
}

impl Service {
    /// Empties the trash for as long as the service runs.
    pub async fn keep_trash(self: Arc<Self>) {
        let mut purges = BackendTasks::default();
        loop {
            let is_due = |backend: &Arc<Backend>| {
                !self.trash.due(backend, &self.catalog.view(), |_| false, 1).is_empty()
            };
            purges.begin(&self, is_due, |service, backend| async move { service.purge_due(&backend).await });
            let pause = self.trash.time_to_next(&self.in_force.load().map, &self.catalog.view());
            self.trash.wait(pause).await;
        }
    }

    /// Deletes what is due on one backend, one turn of each volume after the other, until nothing is due.
    async fn purge_due(self: &Arc<Self>, backend: &Arc<Backend>) {
        let mut under_way: HashMap<VolumeId, PurgeWork> = HashMap::new();
        loop {
            let slow = |removed: &Removed| under_way.get(&removed.volume.id).is_some_and(PurgeWork::is_slow);
            let round = self.trash.due(backend, &self.catalog.view(), slow, usize::MAX);
            under_way.retain(|id, _| round.iter().any(|removed| removed.volume.id == *id));
            if round.is_empty() {
                break;
            }
            for removed in round {
                // The clock, the map or the free space may have changed during a long round.
                let in_force = self.in_force.load_full();
                let Some(backend) = in_force.map.get(backend.name()) else { return };
                if !self.trash.is_still_due(backend, &removed) {
                    continue;
                }
                let id = removed.volume.id;
                match self.purge_turn(backend, &removed, under_way.entry(id).or_default()).await {
                    Ok(PurgeTurn::Unfinished) => {}
                    Ok(PurgeTurn::Done | PurgeTurn::Blocked) | Err(Error::NotInTrash(_)) => {
                        under_way.remove(&id);
                    }
                    // Another instance is working on it, or should be: the other volumes do not wait for that.
                    Err(error @ Error::RecoveryPending(_)) if self.is_shared() => {
                        log::debug!("removed volume {} has to wait: {}", removed.volume.name, chain(&error));
                        let reason = "another instance is at work on it";
                        self.trash.block_briefly(&self.catalog.view(), &removed, reason.into());
                    }
                    // Nothing is wrong with this volume: the backend is away, or somebody has its directory.
                    Err(
                        error @ (Error::RecoveryPending(_)
                        | Error::TooLong { .. }
                        | Error::Catalog(_)
                        | Error::Backend(BackendError::Offline { .. } | BackendError::Busy { .. })),
                    ) => {
                        log::debug!("the trash of backend {} has to wait: {}", backend.name(), chain(&error));
                        // Without a wake-up: what is still due would be tried again at once, and again.
                        return;
                    }
                    Err(error) => self.trash.block(&self.catalog.view(), &removed, chain(&error)),
                }
            }
        }
        // What became due just after the last look would otherwise wait for the next round.
        self.trash.wake();
    }

    /// Deletes some slices of a removed volume, and the volume with the last of them.
    pub(super) async fn purge_turn(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        removed: &Removed,
        work: &mut PurgeWork,
    ) -> Result<PurgeTurn, Error> {
        let (id, name) = (removed.volume.id, &removed.volume.name);
        // So a volume that is being restored is not deleted, one that is being deleted is not restored, and no two
        // instances delete the same one.
        let Some(_lock) = self.lock_directory(backend.name(), id).await? else {
            return Err(Error::RecoveryPending(name.clone()));
        };
        let now = self.catalog.view().trash.get(&id).cloned();
        // It may have been restored and removed again.
        let Some(now) = now.filter(|now| now.at == removed.at) else { return Ok(PurgeTurn::Done) };
        let expect = self.ready(backend).await?;
        if !now.expired {
            self.record_begun(removed).await?;
        }
        step("purge:recorded");
        work.turns = work.turns.saturating_add(1);
        // More than once only if an earlier deletion that no record knew of had left something.
        while backend.run(expect, move |root| root.mark_deleting(id)).await? {
            step("purge:marked");
            match self.purge_slices(backend, expect, removed, work).await? {
                PurgeTurn::Done => {}
                turn @ (PurgeTurn::Unfinished | PurgeTurn::Blocked) => return Ok(turn),
            }
        }
        step("purge:deleted");
        match self.catalog.submit(Change::Forget(id)).await {
            // Refused if another instance was quicker.
            Ok(_) | Err(CatalogError::Refused(Refusal::NotInTrash)) => {}
            Err(error) => return Err(error.into()),
        }
        step("purge:forgotten");
        self.trash.unblock(id);
        log::info!(
            "deleted volume {name}, removed at {}, for good",
            crate::model::timestamp::rfc3339(removed.at)
        );
        if is_scarce(&backend.health()) {
            // The free space has changed.
            backend.probe(expect).await;
        }
        Ok(PurgeTurn::Done)
    }

    /// Deletes up to [`TURN_SLICES`] slices of what is marked.
    async fn purge_slices(
        &self,
        backend: &Backend,
        expect: Expect,
        removed: &Removed,
        work: &mut PurgeWork,
    ) -> Result<PurgeTurn, Error> {
        let id = removed.volume.id;
        for _ in 0..TURN_SLICES {
            let mut pass = work.pass.clone();
            let slice =
                move |root: &Root| root.purge(id, SLICE_ENTRIES, &mut pass).map(|progress| (progress, pass));
            let (progress, pass) = backend.run(expect, slice).await?;
            work.pass = pass;
            match progress {
                PurgeProgress::Done => return Ok(PurgeTurn::Done),
                PurgeProgress::More { .. } if work.pass.again >= WRITTEN_TO_PASSES => {
                    work.pass = PurgePass::default();
                    let reason = "something is written into it: is the volume still in use?";
                    self.trash.block_briefly(&self.catalog.view(), removed, reason.into());
                    return Ok(PurgeTurn::Blocked);
                }
                PurgeProgress::More { .. } => tokio::time::sleep(SLICE_PAUSE).await,
                PurgeProgress::Blocked { path, reason } => {
                    self.trash.block(&self.catalog.view(), removed, format!("{}: {reason}", path.display()));
                    return Ok(PurgeTurn::Blocked);
                }
            }
        }
        Ok(PurgeTurn::Unfinished)
    }

    /// Records that deleting a volume begins. If the catalog has no room for that, the mark on the backend is enough and
    /// deleting goes on: it may be what makes room. Not so if other instances go by the record, because one of them might
    /// begin to restore what is being deleted here.
    async fn record_begun(&self, removed: &Removed) -> Result<(), Error> {
        match self.catalog.submit(Change::Expire { id: removed.volume.id, removed: removed.at }).await {
            Ok(_) => Ok(()),
            // It was restored meanwhile, and perhaps removed again.
            Err(CatalogError::Refused(Refusal::NotInTrash)) => {
                Err(Error::NotInTrash(removed.volume.name.to_string()))
            }
            Err(CatalogError::Write { .. }) if !self.is_shared() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns true if deleting a removed volume's data has begun, or is to begin now.
    pub(super) async fn is_being_deleted(
        &self,
        backend: &Backend,
        expect: Expect,
        id: VolumeId,
    ) -> Result<bool, Error> {
        let is_expired = self.catalog.view().trash.get(&id).is_some_and(|removed| removed.expired);
        Ok(is_expired || backend.run(expect, move |root| root.is_deleting(id)).await?)
    }
}
