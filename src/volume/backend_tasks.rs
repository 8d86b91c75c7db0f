//! Repeated work on backends, in one task for each backend.
//!
//! A backend whose task is still running because its storage hangs gets no second one; the other backends get theirs.

use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Service;
use crate::backend::Backend;
use crate::model::backend::BackendName;

/// The number of backends that are worked on at once. Each takes a thread, and the system may have few.
const SLOTS: usize = 64;

/// How long a backend keeps its slot: a backend that hangs must not hold up the others.
const SLOT_TIMEOUT: Duration = Duration::from_secs(2);

/// Slots that limit how many backends are worked on at once, whatever the work is.
#[derive(Debug)]
pub(super) struct BackendSlots(Semaphore);

impl Default for BackendSlots {
    fn default() -> Self {
        Self(Semaphore::new(SLOTS))
    }
}

impl BackendSlots {
    /// Does the work once a slot is free.
    pub(super) async fn run(&self, work: impl Future<Output = ()>) {
        // The semaphore is never closed; if it were, the work would be done without a slot.
        let slot = self.0.acquire().await;
        let mut work = pin!(work);
        if timeout(SLOT_TIMEOUT, &mut work).await.is_err() {
            drop(slot);
            work.await;
        }
    }
}

/// The tasks of one kind of work, by backend.
#[derive(Debug, Default)]
pub(super) struct BackendTasks(HashMap<BackendName, JoinHandle<()>>);

impl BackendTasks {
    /// Begins the work on each backend of the map that is `wanted` and has no such work under way.
    pub(super) fn begin<F>(
        &mut self,
        service: &Arc<Service>,
        wanted: impl Fn(&Arc<Backend>) -> bool,
        work: impl Fn(Arc<Service>, Arc<Backend>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|_, task| !task.is_finished());
        for backend in service.in_force.load().map.iter() {
            if !self.0.contains_key(backend.name()) && wanted(backend) {
                let (at, work) = (Arc::clone(service), work(Arc::clone(service), Arc::clone(backend)));
                let task = tokio::spawn(async move { at.upkeep.slots.run(work).await });
                self.0.insert(backend.name().clone(), task);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn so_many_at_once_and_one_that_hangs_gives_its_slot_up() {
        let slots = Arc::new(BackendSlots::default());
        let (now, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = async || {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        };
        futures_util::future::join_all((0..10 * SLOTS).map(|_| slots.run(work()))).await;
        assert_eq!((most.load(Ordering::Relaxed), done.load(Ordering::Relaxed)), (SLOTS, 10 * SLOTS));
        for _ in 0..2 * SLOTS {
            let slots = Arc::clone(&slots);
            tokio::spawn(async move { slots.run(pending()).await });
        }
        tokio::task::yield_now().await;
        slots.run(work()).await;
        assert_eq!(done.load(Ordering::Relaxed), 10 * SLOTS + 1);
    }
}
