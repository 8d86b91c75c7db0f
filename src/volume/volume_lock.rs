//! Locks of volume names: one operation at a time works on a name in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::error::Error;
use super::operation::CommitPoint;
use crate::model::volume::VolumeName;

/// The lock of each volume's name, kept while somebody holds it or waits for it.
#[derive(Debug, Default)]
pub(super) struct VolumeLocks(Mutex<HashMap<VolumeName, Arc<tokio::sync::Mutex<()>>>>);

/// The right to act on the volume of one name, released when dropped.
pub(super) struct VolumeLock {
    locks: Arc<VolumeLocks>,
    name: VolumeName,
    guard: Option<OwnedMutexGuard<()>>,
}

impl VolumeLocks {
    /// Waits in the order of calls until the volume is free. Gives up when the caller does.
    pub(super) async fn hold(
        self: &Arc<Self>,
        name: &VolumeName,
        commit_point: &CommitPoint,
    ) -> Result<VolumeLock, Error> {
        // From here on `VolumeLock` cleans up, even if this future is dropped while it waits.
        let mut held = VolumeLock { locks: Arc::clone(self), name: name.clone(), guard: None };
        let lock = Arc::clone(self.map().entry(name.clone()).or_default());
        tokio::select! {
            biased;
            () = commit_point.abandoned() => Err(Error::Abandoned),
            guard = lock.lock_owned() => {
                held.guard = Some(guard);
                if commit_point.wanted() { Ok(held) } else { Err(Error::Abandoned) }
            }
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<VolumeName, Arc<tokio::sync::Mutex<()>>>> {
        // The map is whole after every statement under this lock, so a panic elsewhere did not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VolumeLock {
    fn drop(&mut self) {
        self.guard = None;
        let mut map = self.locks.map();
        // Waiters hold a clone; new clones are made only under the map's lock.
        if map.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn name(text: &str) -> VolumeName {
        VolumeName::parse(text).unwrap()
    }

    #[tokio::test]
    async fn one_volume_is_held_once_and_others_are_free() {
        let locks = Arc::new(VolumeLocks::default());
        let commit_point = CommitPoint::default();
        let first = locks.hold(&name("a"), &commit_point).await.unwrap();
        let _other = locks.hold(&name("b"), &commit_point).await.unwrap();
        let a = name("a");
        let again = locks.hold(&a, &commit_point);
        tokio::pin!(again);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut again).await.is_err());
        drop(first);
        drop(again.await.unwrap());
        assert_eq!(locks.map().len(), 1, "only `b` is still held");
    }

    #[tokio::test]
    async fn an_abandoned_operation_leaves_the_queue_of_a_held_volume() {
        let locks = Arc::new(VolumeLocks::default());
        let _first = locks.hold(&name("a"), &CommitPoint::default()).await.unwrap();
        let commit_point = CommitPoint::default();
        commit_point.abandon();
        assert!(matches!(locks.hold(&name("a"), &commit_point).await, Err(Error::Abandoned)));
        assert_eq!(locks.map().len(), 1);
    }
}
