//! The end of the service: one cancellation, one deadline, and all work that must be done before it.
//!
//! Everyone who accepts work shares a [`Drain`]. When it is started, new work is refused; work under way holds a
//! [`Guard`] and finishes. After the deadline, unfinished work is not waited for any more. A drain never runs twice and
//! never goes back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// A handle to the service's one drain. Clones are the same drain.
#[derive(Debug, Clone)]
pub struct Drain(Arc<State>);

#[derive(Debug)]
struct State {
    /// The deadline; `None` while the service runs.
    deadline: watch::Sender<Option<Instant>>,
    /// The number of guards that are held.
    held: watch::Sender<usize>,
}

/// Work that a drain waits for. The work is done when it is dropped.
#[derive(Debug)]
pub struct Guard(Arc<State>);

impl Drain {
    /// Returns a drain that is not started.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(State { deadline: watch::Sender::new(None), held: watch::Sender::new(0) }))
    }

    /// Starts draining: work under way may take until `patience` from now. A later call changes nothing.
    pub fn start(&self, patience: Duration) {
        self.0.deadline.send_if_modified(|deadline| {
            let first = deadline.is_none();
            if first {
                *deadline = Some(Instant::now() + patience);
            }
            first
        });
    }

    /// Returns true if it was started.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.0.deadline.borrow().is_some()
    }

    /// Waits until it is started.
    pub async fn started(&self) {
        self.deadline().await;
    }

    /// Waits until it was started and its deadline has passed.
    pub async fn expired(&self) {
        let deadline = self.deadline().await;
        tokio::time::sleep_until(deadline).await;
    }

    /// Takes part in the drain: [`drained`](Self::drained) waits for the guard, up to the deadline.
    #[must_use]
    pub fn guard(&self) -> Guard {
        self.0.held.send_modify(|held| *held += 1);
        Guard(Arc::clone(&self.0))
    }

    /// Waits until the drain was started and nobody holds a guard, or the deadline and a moment for the last guards to
    /// be dropped have passed. Returns the number of guards that are still held.
    pub async fn drained(&self) -> usize {
        let deadline = self.deadline().await;
        let mut held = self.0.held.subscribe();
        let moment = Duration::from_millis(500);
        let done = tokio::time::timeout_at(deadline + moment, held.wait_for(|held| *held == 0)).await.is_ok();
        if done { 0 } else { *self.0.held.borrow() }
    }

    async fn deadline(&self) -> Instant {
        let mut deadline = self.0.deadline.subscribe();
        loop {
            if let Some(deadline) = *deadline.borrow_and_update() {
                return deadline;
            }
            if deadline.changed().await.is_err() {
                // The sender lives in `self`, so this cannot be reached; if it were, waiting for ever is right.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.held.send_modify(|held| *held = held.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_waits_for_the_last_guard() {
        let drain = Drain::new();
        let (one, two) = (drain.guard(), drain.guard());
        assert!(!drain.is_started());
        drain.start(Duration::from_secs(60));
        assert!(drain.is_started());
        drain.started().await;
        let waiting = tokio::spawn({
            let drain = drain.clone();
            async move { drain.drained().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(two);
        assert_eq!(waiting.await.unwrap(), 0);
    }

    #[tokio::test]
    async fn past_the_deadline_nobody_is_waited_for() {
        let drain = Drain::new();
        let _late = drain.guard();
        drain.start(Duration::from_millis(20));
        drain.start(Duration::from_secs(3600));
        drain.expired().await;
        assert_eq!(drain.drained().await, 1);
    }
}
