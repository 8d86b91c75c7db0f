//! The limiter of each backend's concurrent operations, so that a backend that hangs cannot use up the threads of the
//! others.
//!
//! An operation that hangs in the kernel cannot be cancelled: it holds its slot until the call returns, even if nobody
//! waits for it any more. Nothing here blocks a thread of the runtime.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The number of operations of one backend that run at once.
pub const SLOTS: usize = 16;

/// The number of operations of one backend that may wait for a slot. Waiting takes no thread; the number only bounds
/// memory.
pub const QUEUE: usize = 4096;

/// If all slots are taken and nothing began or ended for this long, the backend counts as not answering, and no further
/// operation waits for it.
pub(super) const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The slots of one backend.
#[derive(Debug)]
pub(super) struct Limiter {
    slots: Arc<Semaphore>,
    queued: AtomicUsize,
    stall: Duration,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug)]
struct UnderWay {
    next: u64,
    began: BTreeMap<u64, Instant>,
    last_event: Instant,
}

/// The error if no slot is free and none will be soon.
#[derive(Debug)]
pub(super) struct Full {
    pub(super) waiting: usize,
    pub(super) longest: Duration,
    /// True if nothing began or ended for too long; false if there are too many operations at once.
    pub(super) stalled: bool,
}

/// The right to run one operation, held until the operation ends.
#[derive(Debug)]
pub(super) struct Slot {
    limiter: Arc<Limiter>,
    number: u64,
    permit: Option<OwnedSemaphorePermit>,
}

impl Limiter {
    pub(super) fn new(stall: Duration) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(SLOTS)),
            queued: AtomicUsize::new(0),
            stall,
            under_way: Mutex::new(UnderWay { next: 0, began: BTreeMap::new(), last_event: Instant::now() }),
        })
    }

    /// Waits for a slot while the backend makes progress and the queue is not too long.
    pub(super) async fn enter(self: &Arc<Self>) -> Result<Slot, Full> {
        if let Ok(permit) = self.slots.clone().try_acquire_owned() {
            return Ok(self.begin(permit));
        }
        let queued = Queued::join(self);
        if queued.ahead >= QUEUE {
            return Err(self.full());
        }
        let mut acquire = std::pin::pin!(self.slots.clone().acquire_owned());
        loop {
            if self.stalled() {
                return Err(self.full());
            }
            match tokio::time::timeout(self.stall / 4, &mut acquire).await {
                Ok(Ok(permit)) => return Ok(self.begin(permit)),
                // The semaphore is never closed; if it were, nothing could enter.
                Ok(Err(_closed)) => return Err(self.full()),
                Err(_elapsed) => {}
            }
        }
    }

    /// Returns true if somebody waits for a slot.
    pub(super) fn has_queue(&self) -> bool {
        self.queued.load(Ordering::Relaxed) > 0
    }

    fn begin(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Slot {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let number = under_way.next;
        under_way.next += 1;
        under_way.last_event = Instant::now();
        let now = under_way.last_event;
        under_way.began.insert(number, now);
        drop(under_way);
        Slot { limiter: Arc::clone(self), number, permit: Some(permit) }
    }

    fn stalled(&self) -> bool {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner).stalled(self.stall)
    }

    fn full(&self) -> Full {
        let under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Without the caller, which has counted itself and does not wait.
        let queued = self.queued.load(Ordering::Relaxed).saturating_sub(1);
        Full {
            waiting: under_way.began.len() + queued,
            longest: under_way.began.values().next().map(Instant::elapsed).unwrap_or_default(),
            stalled: under_way.stalled(self.stall),
        }
    }
}

impl Slot {
    /// Returns true if no other operation has a slot.
    pub(super) fn is_alone(&self) -> bool {
        self.limiter.under_way.lock().unwrap_or_else(PoisonError::into_inner).began.len() == 1
    }
}

impl UnderWay {
    fn stalled(&self, limit: Duration) -> bool {
        self.began.len() >= SLOTS && self.last_event.elapsed() >= limit
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut under_way = self.limiter.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.began.remove(&self.number);
        under_way.last_event = Instant::now();
        drop(under_way);
        // The next one may enter only now, so that `began` never holds more entries than there are slots.
        self.permit.take();
    }
}

/// A place in the queue, left when the caller enters or goes away.
struct Queued<'limiter> {
    limiter: &'limiter Limiter,
    ahead: usize,
}

impl<'limiter> Queued<'limiter> {
    fn join(limiter: &'limiter Limiter) -> Self {
        let ahead = limiter.queued.fetch_add(1, Ordering::Relaxed);
        Self { limiter, ahead }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.limiter.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_queued_operation_enters_when_one_ends() {
        let limiter = Limiter::new(Duration::from_secs(60));
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            slots.push(limiter.enter().await.unwrap());
        }
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.enter().await.map(drop).is_ok() }
        });
        while limiter.queued.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(limiter.has_queue());
        slots.pop();
        assert!(waiting.await.unwrap());
        assert!(!limiter.has_queue());
    }

    #[tokio::test]
    async fn nobody_waits_for_a_backend_without_progress() {
        let limiter = Limiter::new(Duration::from_millis(50));
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            slots.push(limiter.enter().await.unwrap());
        }
        let full = limiter.enter().await.unwrap_err();
        assert_eq!(full.waiting, SLOTS);
        assert!(full.longest >= Duration::from_millis(50));
        slots.clear();
        assert!(limiter.enter().await.is_ok());
        assert_eq!(limiter.queued.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn callers_that_go_away_leave_the_queue() {
        let limiter = Limiter::new(Duration::from_secs(60));
        let mut slots = Vec::new();
        for _ in 0..SLOTS {
            slots.push(limiter.enter().await.unwrap());
        }
        let gone = tokio::time::timeout(Duration::from_millis(20), limiter.enter()).await;
        assert!(gone.is_err());
        assert_eq!(limiter.queued.load(Ordering::Relaxed), 0);
        drop(slots);
        for _ in 0..SLOTS {
            assert!(limiter.enter().await.is_ok());
        }
    }
}
