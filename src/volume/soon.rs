//! Waiting for a change on a thread that has something else to do.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::catalog::{CatalogError, Outcome, Submitted};

/// What became of a change, where that is known within `patience`; else the change, which goes on. Blocks.
pub(super) fn soon(
    mut change: Submitted,
    patience: Duration,
) -> Result<Result<Outcome, CatalogError>, Submitted> {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let until = Instant::now() + patience;
    loop {
        if let Poll::Ready(outcome) = change.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Ok(outcome);
        }
        match until.checked_duration_since(Instant::now()) {
            Some(left) => thread::park_timeout(left),
            None => return Err(change),
        }
    }
}
