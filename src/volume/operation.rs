//! Runs an operation in its own task, with a limit on how long its caller waits.
//!
//! An operation is never cut off half-way. When its caller has been told that it took too long, the task goes on and
//! learns from its [`CommitPoint`] that it must have no effect. The commit point is decided once: either the caller
//! gives up first, or the operation reaches its point of no return first. A caller whose connection broke was told
//! nothing: the operation then goes on for as long as if the caller still waited.

use std::future::Future;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::error::Error;

const WANTED: u8 = 0;
const DECIDED: u8 = 1;
const ABANDONED: u8 = 2;

/// The decision between an operation and its caller: which came first, the operation's point of no return or the end of
/// the caller's time.
#[derive(Debug, Default)]
pub(super) struct CommitPoint {
    state: AtomicU8,
    is_deserted: AtomicBool,
    given_up: Notify,
}

impl CommitPoint {
    /// Returns true if the caller's connection broke, so that nobody will read the answer.
    pub(super) fn deserted(&self) -> bool {
        self.is_deserted.load(Ordering::Acquire)
    }

    /// Returns false once the caller has been told that nothing was done.
    pub(super) fn wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) != ABANDONED
    }

    /// Marks the operation's point of no return. Returns true if the caller has not given up; from then on it cannot be
    /// told that nothing was done.
    pub(super) fn decide(&self) -> bool {
        self.state.compare_exchange(WANTED, DECIDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
            || self.state.load(Ordering::Acquire) == DECIDED
    }

    /// Gives the operation up for the caller. Returns true if the operation had not decided; from then on it cannot.
    pub(super) fn abandon(&self) -> bool {
        let first =
            self.state.compare_exchange(WANTED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            self.given_up.notify_waiters();
        }
        first
    }

    /// Resolves when the caller has given up.
    pub(super) async fn abandoned(&self) {
        let notified = self.given_up.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.wanted() {
            notified.await;
        }
    }
}

/// Runs an operation in its own task and waits for it for at most `limit`.
///
/// After nine tenths of `limit` an operation that has not reached its point of no return is given up: the caller is told
/// that it took too long and that nothing was done. An operation past that point has the rest of the time to answer; if
/// it does not, the result is [`Error::Unknown`].
pub(super) async fn run<T, F>(limit: Duration, work: impl FnOnce(Arc<CommitPoint>) -> F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let started = Instant::now();
    let commit_point = Arc::new(CommitPoint::default());
    let give_up_at = started + limit.mul_f64(0.9);
    let mut task = tokio::spawn(work(Arc::clone(&commit_point)));
    let mut caller =
        WaitingCaller { commit_point: Arc::clone(&commit_point), give_up_at, is_answered: false };
    let in_time = timeout_at(give_up_at, &mut task).await;
    caller.is_answered = true;
    let joined = match in_time {
        Ok(joined) => joined,
        Err(_) if commit_point.abandon() => return Err(Error::TooLong { limit, catalog: None }),
        Err(_) => match timeout_at(started + limit, &mut task).await {
            Ok(joined) => joined,
            Err(_) => return Err(Error::Unknown),
        },
    };
    match joined {
        Ok(result) => result,
        Err(failed) => match failed.try_into_panic() {
            // The transport logs panics of the whole program and answers for them.
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Error::Stopping),
        },
    }
}

/// Stands for a waiting caller. If it is dropped unanswered, because the client disconnected, it gives the operation up
/// at the time when the caller would have done so.
struct WaitingCaller {
    commit_point: Arc<CommitPoint>,
    give_up_at: Instant,
    is_answered: bool,
}

impl Drop for WaitingCaller {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        self.commit_point.is_deserted.store(true, Ordering::Release);
        let (commit_point, give_up_at) = (Arc::clone(&self.commit_point), self.give_up_at);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep_until(give_up_at).await;
                commit_point.abandon();
            })),
            Err(_) => drop(commit_point.abandon()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_point_is_decided_once() {
        let commit_point = CommitPoint::default();
        assert!(commit_point.decide() && commit_point.decide() && commit_point.wanted());
        assert!(!commit_point.abandon(), "the caller must wait for what was decided");
        let commit_point = CommitPoint::default();
        assert!(commit_point.abandon() && !commit_point.wanted());
        assert!(!commit_point.decide(), "the caller was told that nothing was done");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_operation_is_answered_in_time_and_finds_out() {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let result: Result<(), Error> = run(Duration::from_secs(20), |commit_point| async move {
            tokio::time::sleep(Duration::from_secs(60)).await;
            sender.send(commit_point.decide()).unwrap();
            Ok(())
        })
        .await;
        assert!(matches!(result, Err(Error::TooLong { .. })));
        assert!(!receiver.await.unwrap(), "the operation went on and learnt that nobody waits");
    }

    #[tokio::test(start_paused = true)]
    async fn past_the_point_of_no_return_the_outcome_is_waited_for_or_unknown() {
        let limit = Duration::from_secs(20);
        let decided = |seconds| {
            move |commit_point: Arc<CommitPoint>| async move {
                assert!(commit_point.decide());
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(seconds)
            }
        };
        assert!(matches!(run(limit, decided(19)).await, Ok(19)));
        assert!(matches!(run(limit, decided(21)).await, Err(Error::Unknown)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_operation_whose_client_disconnects_goes_on_as_long_as_if_it_waited() {
        let (early, mut at_once) = tokio::sync::oneshot::channel();
        let (late, mut in_the_end) = tokio::sync::oneshot::channel();
        let operation = run(Duration::from_secs(20), |commit_point| async move {
            while !commit_point.deserted() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            early.send(commit_point.wanted()).unwrap();
            commit_point.abandoned().await;
            late.send(commit_point.decide()).unwrap();
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), operation).await.is_err());
        assert!((&mut at_once).await.unwrap(), "the operation is to be carried through");
        tokio::time::sleep(Duration::from_secs(16)).await;
        assert!(in_the_end.try_recv().is_err(), "it was given up before its time");
        assert!(!(&mut in_the_end).await.unwrap(), "nobody waits for ever");
    }
}
