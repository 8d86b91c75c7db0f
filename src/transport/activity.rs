//! Records what a connection is doing, from the bytes it carries, so that a watchdog can tell an idle peer
//! from a stalled one.
//!
//! Engines keep idle connections for a long time, and lose a request when the server closes a connection just
//! as they use it. So a connection may be idle for very long, but a request or an answer that has begun must
//! make progress. This module only records; the caller of [`Activity::overdue`] acts.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Limits on how long a connection may stay in each phase.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timeouts {
    /// The time from the first byte of a request's head to its last.
    pub(super) head: Duration,
    /// The time for which an answer cannot be written because the peer does not read.
    pub(super) write: Duration,
    /// The time between requests, and before the first one: an engine may open a connection that it needs
    /// only later.
    pub(super) idle: Duration,
}

/// The present activity of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    progress: Mutex<Progress>,
    /// Notified at each request. A task that waits for the first request may be woken by any of them.
    begun: Notify,
}

#[derive(Debug)]
struct Progress {
    phase: Phase,
    since: Instant,
    /// The time since which no byte of an answer could be written.
    blocked: Option<Instant>,
    /// The time since which the connection is expected to end after its present request.
    ending: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request is known. The first bytes of a next request that came during the present one stay in the
    /// HTTP parser, where this module does not see them. Such a connection counts as idle; the only
    /// consequence is that it may be evicted.
    Idle,
    /// A request has begun, and its head is not complete.
    Head,
    /// A request is being served. The service's own limits apply.
    Busy,
}

impl Activity {
    pub(super) fn new() -> Self {
        let opened = Instant::now();
        let progress = Progress { phase: Phase::Idle, since: opened, blocked: None, ending: None };
        Self { opened, progress: Mutex::new(progress), begun: Notify::new() }
    }

    /// Waits until the first request is being served, or until the connection has reached this age.
    pub(super) async fn first_request(&self, age: Duration) {
        let _ = tokio::time::timeout_at((self.opened + age).into(), self.begun.notified()).await;
    }

    /// Returns the time since which the connection has been idle; `None` if it is not idle.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        let progress = self.progress();
        (progress.phase == Phase::Idle && progress.blocked.is_none()).then_some(progress.since)
    }

    /// Records that a request is being served, until [`end_request`](Self::end_request).
    pub(super) fn begin_request(&self) {
        self.progress().enter(Phase::Busy);
        self.begun.notify_one();
    }

    /// Records that the request has been answered.
    pub(super) fn end_request(&self) {
        self.progress().enter(Phase::Idle);
    }

    /// Records that the connection is expected to end soon.
    pub(super) fn expect_end(&self) {
        self.progress().ending.get_or_insert_with(Instant::now);
    }

    /// Returns why the connection has been in its phase for too long; `None` if it has not.
    pub(super) fn overdue(&self, bounds: &Timeouts) -> Option<&'static str> {
        let progress = self.progress();
        let over = |since: Instant, bound: Duration| since.elapsed() > bound;
        if progress.blocked.is_some_and(|since| over(since, bounds.write)) {
            return Some("it does not read its answer");
        }
        match progress.phase {
            Phase::Head if over(progress.since, bounds.head) => Some("it began a request and did not go on"),
            Phase::Idle if over(progress.since, bounds.idle) => Some("it was idle for very long"),
            Phase::Idle
                if progress.ending.is_some_and(|since| over(since.max(progress.since), bounds.head)) =>
            {
                Some("it did not end when it was to")
            }
            _ => None,
        }
    }

    fn received(&self) {
        let mut progress = self.progress();
        if progress.phase == Phase::Idle {
            progress.enter(Phase::Head);
        }
    }

    fn blocked(&self) {
        self.progress().blocked.get_or_insert_with(Instant::now);
    }

    fn written(&self) {
        self.progress().blocked = None;
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.since = Instant::now();
    }
}

/// A stream that records what passes through it. It wraps the TLS stream, so that each byte is a byte of
/// HTTP.
#[derive(Debug)]
pub(super) struct ActivityStream<S> {
    stream: S,
    activity: Arc<Activity>,
    /// True if the last write had to wait. It saves taking the lock for writes that did not wait.
    blocked: bool,
}

impl<S> ActivityStream<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, blocked: false }
    }

    fn note<T>(&mut self, result: Poll<T>) -> Poll<T> {
        match (&result, self.blocked) {
            (Poll::Pending, false) => {
                self.blocked = true;
                self.activity.blocked();
            }
            (Poll::Ready(_), true) => {
                self.blocked = false;
                self.activity.written();
            }
            _ => {}
        }
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ActivityStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ActivityStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(context);
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(context);
        self.note(result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn bounds(head: u64, write: u64, idle: u64) -> Timeouts {
        let after = Duration::from_millis;
        Timeouts { head: after(head), write: after(write), idle: after(idle) }
    }

    const NEVER: u64 = 3_600_000;

    #[tokio::test]
    async fn a_head_that_has_begun_is_told_from_idle() {
        let (mut peer, ours) = tokio::io::duplex(64);
        let activity = Arc::new(Activity::new());
        let mut watched = ActivityStream::new(ours, Arc::clone(&activity));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(activity.overdue(&bounds(0, 0, NEVER)), None);
        assert_eq!(activity.overdue(&bounds(0, 0, 1)), Some("it was idle for very long"));
        peer.write_all(b"POST").await.unwrap();
        watched.read_exact(&mut [0; 4]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(activity.idle_since().is_none());
        assert_eq!(activity.overdue(&bounds(NEVER, 0, 0)), None);
        assert_eq!(activity.overdue(&bounds(1, 0, 0)), Some("it began a request and did not go on"));
        activity.begin_request();
        assert_eq!(activity.overdue(&bounds(0, 0, 0)), None, "a request that is served has its own limits");
        activity.end_request();
        assert!(activity.idle_since().is_some());
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_noticed() {
        let (mut peer, ours) = tokio::io::duplex(8);
        let activity = Arc::new(Activity::new());
        let mut watched = ActivityStream::new(ours, Arc::clone(&activity));
        let writing = tokio::spawn(async move { watched.write_all(&[0; 16]).await });
        while activity.idle_since().is_some() {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(activity.overdue(&bounds(0, 1, NEVER)), Some("it does not read its answer"));
        peer.read_exact(&mut [0; 16]).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(activity.overdue(&bounds(0, 1, NEVER)), None);
    }
}
