//! How an operation runs: in a task of its own, one at a time for each volume, with a limit on how long its caller
//! waits.
//!
//! An operation is never cut off half-way: when its caller was answered that it took too long, the task goes on and
//! finds out by its [`CommitPoint`] that nothing must come of it. It is never decided twice what a caller was told: either
//! the caller gives up first, or the operation reaches its point of no return first. A caller whose connection broke
//! was told nothing: the operation is carried through as if the caller still waited, and as long.

use std::collections::HashMap;
use std::future::Future;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::error::Error;
use crate::model::volume::VolumeName;

const WANTED: u8 = 0;
const DECIDED: u8 = 1;
const ABANDONED: u8 = 2;

/// The one decision between an operation and its caller: did the operation reach its point of no return while the
/// caller still waited?
#[derive(Debug, Default)]
pub(super) struct CommitPoint {
    state: AtomicU8,
    deserted: AtomicBool,
    given_up: Notify,
}

impl CommitPoint {
    /// Whether the caller's connection broke, so that nobody will ever read the answer.
    pub(super) fn deserted(&self) -> bool {
        self.deserted.load(Ordering::Acquire)
    }

    /// Whether the caller was not told yet that nothing was done.
    pub(super) fn wanted(&self) -> bool {
        self.state.load(Ordering::Acquire) != ABANDONED
    }

    /// The operation's point of no return: true exactly when the caller has not given up, and cannot from now on be
    /// told that nothing was done.
    pub(super) fn decide(&self) -> bool {
        self.state.compare_exchange(WANTED, DECIDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
            || self.state.load(Ordering::Acquire) == DECIDED
    }

    /// The caller gives up: true exactly when the operation has not decided, and never will.
    fn abandon(&self) -> bool {
        let first =
            self.state.compare_exchange(WANTED, ABANDONED, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if first {
            self.given_up.notify_waiters();
        }
        first
    }

    /// Resolves when the caller has given up.
    async fn abandoned(&self) {
        let notified = self.given_up.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if self.wanted() {
            notified.await;
        }
    }
}

/// Runs an operation in its own task and waits for it at most for `limit`.
///
/// After nine tenths of it the operation is asked to stop where it still can: the caller is then told that it took
/// too long and that nothing was done. An operation past its point of no return has the rest of the time to answer;
/// if it does not, the outcome is [`Error::Unknown`].
pub(super) async fn run<T, F>(limit: Duration, work: impl FnOnce(Arc<CommitPoint>) -> F) -> Result<T, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let started = Instant::now();
    let commit_point = Arc::new(CommitPoint::default());
    let patience = started + limit.mul_f64(0.9);
    let mut task = tokio::spawn(work(Arc::clone(&commit_point)));
    let mut waiting = Waiting { commit_point: Arc::clone(&commit_point), patience, over: false };
    let in_time = timeout_at(patience, &mut task).await;
    waiting.over = true;
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
            // The transport logs it and answers for every room alike.
            Ok(panic) => resume_unwind(panic),
            Err(_) => Err(Error::Stopping),
        },
    }
}

/// That a caller waits. Dropped before that is over, as it is when the client disconnects, it leaves the operation
/// the time that it would have had.
struct Waiting {
    commit_point: Arc<CommitPoint>,
    patience: Instant,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        self.commit_point.deserted.store(true, Ordering::Release);
        let (commit_point, patience) = (Arc::clone(&self.commit_point), self.patience);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move {
                tokio::time::sleep_until(patience).await;
                commit_point.abandon();
            })),
            Err(_) => drop(commit_point.abandon()),
        }
    }
}

/// One lock for each volume's name, kept only while somebody holds it or waits for it.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<VolumeName, Arc<tokio::sync::Mutex<()>>>>);

/// The right to act on one volume; given back when dropped.
pub(super) struct Held {
    locks: Arc<Locks>,
    name: VolumeName,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits, in the order of calls, until the volume is free; gives up when the caller does.
    pub(super) async fn hold(
        self: &Arc<Self>,
        name: &VolumeName,
        commit_point: &CommitPoint,
    ) -> Result<Held, Error> {
        // From here on `Held` cleans up, also when this future is dropped while it waits.
        let mut held = Held { locks: Arc::clone(self), name: name.clone(), guard: None };
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

    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeName, Arc<tokio::sync::Mutex<()>>>> {
        // The map is whole after every statement under this lock, so a panic elsewhere did not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut map = self.locks.map();
        // Others hold a clone while they wait; new ones are made under the map's lock only.
        if map.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> VolumeName {
        VolumeName::parse(text).unwrap()
    }

    #[test]
    fn a_claim_is_decided_once() {
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

    #[tokio::test]
    async fn one_volume_is_held_once_and_others_are_free() {
        let locks = Arc::new(Locks::default());
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
        let locks = Arc::new(Locks::default());
        let _first = locks.hold(&name("a"), &CommitPoint::default()).await.unwrap();
        let commit_point = CommitPoint::default();
        commit_point.abandon();
        assert!(matches!(locks.hold(&name("a"), &commit_point).await, Err(Error::Abandoned)));
        assert_eq!(locks.map().len(), 1);
    }
}
