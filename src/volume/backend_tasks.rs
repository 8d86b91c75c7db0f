//! Work that is done for each backend again and again, in a task of its own for each.
//!
//! A backend whose task has not ended, because its storage hangs, gets no second one; the others get theirs.

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

/// How many backends are worked on at once. Each takes a thread, of which the system may give few.
const AT_ONCE: usize = 64;

/// How long a backend keeps its place: one that hangs must not hold up those that do not.
const ITS_TURN: Duration = Duration::from_secs(2);

/// The places of the backends that are worked on, whatever the work is.
#[derive(Debug)]
pub(super) struct Places(Semaphore);

impl Default for Places {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Places {
    /// Does the work once there is a place for it.
    pub(super) async fn run(&self, work: impl Future<Output = ()>) {
        // It is never closed; were it, the work would be done all the same.
        let place = self.0.acquire().await;
        let mut work = pin!(work);
        if timeout(ITS_TURN, &mut work).await.is_err() {
            drop(place);
            work.await;
        }
    }
}

/// The tasks of one kind of work that have not ended.
#[derive(Debug, Default)]
pub(super) struct Rounds(HashMap<BackendName, JoinHandle<()>>);

impl Rounds {
    /// Begins the work for each backend of the map that is `wanted` and has none under way.
    pub(super) fn begin<F>(
        &mut self,
        service: &Arc<Service>,
        wanted: impl Fn(&Arc<Backend>) -> bool,
        work: impl Fn(Arc<Service>, Arc<Backend>) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.0.retain(|_, round| !round.is_finished());
        for backend in service.in_force.load().map.iter() {
            if !self.0.contains_key(backend.name()) && wanted(backend) {
                let (at, work) = (Arc::clone(service), work(Arc::clone(service), Arc::clone(backend)));
                let round = tokio::spawn(async move { at.places.run(work).await });
                self.0.insert(backend.name().clone(), round);
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
    async fn so_many_at_once_and_one_that_hangs_gives_its_place_up() {
        let places = Arc::new(Places::default());
        let (now, most, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = async || {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
            now.fetch_sub(1, Ordering::Relaxed);
            done.fetch_add(1, Ordering::Relaxed);
        };
        futures_util::future::join_all((0..10 * AT_ONCE).map(|_| places.run(work()))).await;
        assert_eq!((most.load(Ordering::Relaxed), done.load(Ordering::Relaxed)), (AT_ONCE, 10 * AT_ONCE));
        for _ in 0..2 * AT_ONCE {
            let places = Arc::clone(&places);
            tokio::spawn(async move { places.run(pending()).await });
        }
        tokio::task::yield_now().await;
        places.run(work()).await;
        assert_eq!(done.load(Ordering::Relaxed), 10 * AT_ONCE + 1);
    }
}
