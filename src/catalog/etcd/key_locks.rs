//! The order of this instance's changes: two changes that access the same thing are decided one after the other, in the
//! order of their submission; all others run at the same time.
//!
//! It orders nothing among instances, whose transactions are ordered by the revisions of the rows.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::catalog::{Access, Footprint};
use crate::model::host::HostName;
use crate::model::volume::{VolumeId, VolumeName};

/// The unit that a change locks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Cell {
    /// A volume and its ledger.
    Volume(VolumeName),
    /// A host.
    Host(HostName),
    /// An entry of the trash.
    Trash(VolumeId),
    /// The backends.
    Backends,
    /// The right to move a volume's directory.
    Directory(VolumeId),
}

/// Returns the cells that a change locks, each for reading or for writing.
pub(super) fn cells(footprint: Footprint) -> Vec<(Cell, Access)> {
    let Footprint { volumes, removed, hosts, host_access, backend, directory: _, freshness: _ } = footprint;
    let volumes = volumes.into_iter().map(|name| (Cell::Volume(name), Access::Write));
    let removed = removed.map(|id| (Cell::Trash(id), Access::Write));
    let hosts = hosts.into_iter().map(|name| (Cell::Host(name), host_access));
    let backends = backend.map(|_| (Cell::Backends, Access::Write));
    volumes.chain(removed).chain(hosts).chain(backends).collect()
}

type Locks = HashMap<Cell, Arc<RwLock<()>>>;

/// The locks of all cells that are in use, each with its queue.
#[derive(Debug, Default)]
pub(super) struct KeyLocks(Arc<Mutex<Locks>>);

enum Guard {
    Reads(#[expect(dead_code, reason = "it is held, not looked at")] OwnedRwLockReadGuard<()>),
    Writes(#[expect(dead_code, reason = "it is held, not looked at")] OwnedRwLockWriteGuard<()>),
}

type Waiting = Pin<Box<dyn Future<Output = Guard> + Send>>;

/// A position in the queues of several cells. Dropping it releases the locks, or leaves the queues.
pub(super) struct QueuedLocks {
    locks: Arc<Mutex<Locks>>,
    cells: Vec<Cell>,
    waiting: Vec<Waiting>,
    held: Vec<Guard>,
}

impl KeyLocks {
    /// Enters the queues of all these cells at once.
    pub(super) fn queue(&self, cells: Vec<(Cell, Access)>) -> QueuedLocks {
        let mut turn = QueuedLocks {
            locks: Arc::clone(&self.0),
            cells: Vec::new(),
            waiting: Vec::new(),
            held: Vec::new(),
        };
        let mut locks = lock(&self.0);
        for (cell, access) in cells {
            // A cell that is listed twice would wait for itself.
            if turn.cells.contains(&cell) {
                continue;
            }
            let of_cell = Arc::clone(locks.entry(cell.clone()).or_default());
            turn.cells.push(cell);
            let mut waiting: Waiting = match access {
                Access::Read => Box::pin(async move { Guard::Reads(of_cell.read_owned().await) }),
                Access::Write => Box::pin(async move { Guard::Writes(of_cell.write_owned().await) }),
            };
            // The first poll enters the lock's queue, which is served in order.
            match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(guard) => turn.held.push(guard),
                Poll::Pending => turn.waiting.push(waiting),
            }
        }
        turn
    }
}

impl QueuedLocks {
    /// Waits until all locks are held.
    pub(super) async fn acquired(&mut self) {
        for waiting in self.waiting.drain(..) {
            self.held.push(waiting.await);
        }
    }
}

impl Drop for QueuedLocks {
    fn drop(&mut self) {
        let mut locks = lock(&self.locks);
        self.waiting.clear();
        self.held.clear();
        for cell in &self.cells {
            // Each one that waits or holds has a clone; clones are made only under this lock.
            if locks.get(cell).is_some_and(|of_cell| Arc::strong_count(of_cell) == 1) {
                locks.remove(cell);
            }
        }
    }
}

fn lock(locks: &Mutex<Locks>) -> MutexGuard<'_, Locks> {
    // The map is whole after every statement under this lock.
    locks.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(name: &str) -> Cell {
        Cell::Volume(VolumeName::parse(name).unwrap())
    }

    #[tokio::test]
    async fn locks_are_granted_in_the_order_of_queueing() {
        let order = KeyLocks::default();
        let both = || vec![(cell("a"), Access::Write), (cell("b"), Access::Write)];
        let mut first = order.queue(both());
        let mut second = order.queue(vec![(cell("b"), Access::Write)]);
        let mut third = order.queue(both());
        let mut other = order.queue(vec![(cell("c"), Access::Write), (cell("c"), Access::Write)]);
        other.acquired().await;
        first.acquired().await;
        let waits = |turn: &mut QueuedLocks| {
            let mut acquired = Box::pin(turn.acquired());
            acquired.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending()
        };
        let (task, done) = (Arc::new(Mutex::new(Vec::new())), tokio::sync::mpsc::unbounded_channel::<()>());
        drop(done);
        let said = Arc::clone(&task);
        let later = tokio::spawn(async move {
            third.acquired().await;
            said.lock().unwrap().push("third");
        });
        assert!(waits(&mut order.queue(vec![(cell("a"), Access::Read)])));
        let said = Arc::clone(&task);
        let sooner = tokio::spawn(async move {
            second.acquired().await;
            said.lock().unwrap().push("second");
        });
        tokio::task::yield_now().await;
        assert!(task.lock().unwrap().is_empty());
        drop(first);
        sooner.await.unwrap();
        later.await.unwrap();
        assert_eq!(*task.lock().unwrap(), ["second", "third"]);
        drop(other);
        assert!(lock(&order.0).is_empty(), "cells that nobody accesses are kept");
    }

    #[tokio::test]
    async fn readers_share() {
        let order = KeyLocks::default();
        let host = || Cell::Host(HostName::parse("web1").unwrap());
        let mut one = order.queue(vec![(host(), Access::Read)]);
        let mut other = order.queue(vec![(host(), Access::Read)]);
        one.acquired().await;
        other.acquired().await;
    }
}
