//! Whether the cluster answers: as long as it may be an election, one waits; after that everybody is told at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::members::{ANSWER, CallError};

/// How long the cluster may fail to answer at most before it counts as out of reach. A member that is lost, with an
/// election and another member to be found, takes less.
const PATIENCE: Duration = Duration::from_secs(8);

/// Which part of a request's limit that may be: who is refused is to be told why within the limit.
const SHARE: f64 = 0.4;

/// What is known of the cluster's health.
pub(super) struct Health {
    location: String,
    limit: Mutex<Limit>,
    times: Mutex<Times>,
    /// Whether what the cluster holds is not understood, however well it answers.
    stuck: AtomicBool,
    /// Whether no change is taken in, however well questions are answered.
    hangs: watch::Sender<bool>,
    fault: watch::Sender<Option<Arc<String>>>,
}

/// How long a request may take.
struct Limit {
    now: Duration,
    /// What it is from then on.
    soon: Option<(Instant, Duration)>,
}

/// Since when what is the case.
#[derive(Default)]
struct Times {
    /// When the first of the questions was asked that were not answered since a quorum answered.
    failing: Option<Instant>,
    /// When a quorum answered last.
    well: Option<Instant>,
    /// When a change was taken in last.
    taken_in: Option<Instant>,
}

impl Health {
    /// `request` is how long a request may take.
    pub(super) fn new(location: String, request: Duration) -> Self {
        Self {
            location,
            limit: Mutex::new(Limit { now: request, soon: None }),
            times: Mutex::default(),
            stuck: AtomicBool::new(false),
            hangs: watch::Sender::new(false),
            fault: watch::Sender::new(None),
        }
    }

    /// How long a request may take from now on.
    pub(super) fn limit_requests(&self, to: Duration) {
        let mut limit = self.limit();
        let now = limit.at_present();
        *limit = if to <= now {
            Limit { now: to, soon: None }
        } else {
            // Requests that began before end within what was in force for them.
            Limit { now, soon: Some((Instant::now() + now, to)) }
        };
    }

    /// How long the cluster may fail to answer before it counts as out of reach.
    fn patience(&self) -> Duration {
        PATIENCE.min(self.limit().at_present().mul_f64(SHARE))
    }

    /// How long a member may take to answer before the next one is asked.
    pub(super) fn answer(&self) -> Duration {
        // Within the patience another member is asked as well.
        ANSWER.min(self.patience() / 2)
    }

    /// Why the cluster counts as out of reach, if it does.
    pub(super) fn fault(&self) -> Option<Arc<String>> {
        self.fault.borrow().clone()
    }

    /// What others wrote is not understood: nothing is decided on what is known from now on.
    pub(super) fn stuck(&self, why: &str) {
        if !self.stuck.swap(true, Ordering::AcqRel) {
            log::error!(
                "the catalog {}: {why}; what is known is still shown, and no change is taken in",
                self.location
            );
        }
        self.fault.send_replace(Some(Arc::new(why.to_owned())));
    }

    /// What others wrote is understood.
    pub(super) fn unstuck(&self) {
        self.stuck.store(false, Ordering::Release);
    }

    /// A quorum answered.
    pub(super) fn well(&self) {
        if self.stuck.load(Ordering::Acquire) {
            return;
        }
        {
            let mut times = self.times();
            (times.failing, times.well) = (None, Some(Instant::now()));
        }
        if *self.hangs.borrow() {
            return;
        }
        let over = self.fault.send_if_modified(|fault| fault.take().is_some());
        if over {
            log::info!("the catalog {} answers again", self.location);
        }
    }

    /// A quorum took a change in, or would have, had its conditions held.
    pub(super) fn taken_in(&self) {
        self.times().taken_in = Some(Instant::now());
        self.hangs.send_if_modified(std::mem::take);
        self.well();
    }

    /// A change that was sent first at this time is not taken in yet. Returns whether that is as long as one waits. Where
    /// no other one was taken in since, either, the cluster counts as out of reach until one is.
    pub(super) fn not_taken_in(&self, begun: Instant, why: &str) -> bool {
        if begun.elapsed() < self.patience() {
            return false;
        }
        if self.times().taken_in.is_none_or(|taken_in| taken_in < begun) {
            self.hangs.send_if_modified(|hangs| !std::mem::replace(hangs, true));
            // Where the cluster is gone as a whole, that is told already.
            if self.fault.borrow().is_none() {
                self.count_out(&format!("no change is taken in: {why}"));
            }
        }
        true
    }

    /// Resolves as soon as no change is taken in.
    pub(super) async fn hangs(&self) {
        // The sender lives as long as `self`.
        let _ = self.hangs.subscribe().wait_for(|hangs| *hangs).await;
    }

    /// A question was not answered in a way that counts.
    pub(super) fn unanswered(&self, trouble: &CallError) {
        self.ill_since(trouble.asked, &trouble.text);
    }

    /// No answer came that counts.
    pub(super) fn ill(&self, why: &str) {
        self.ill_since(Instant::now(), why);
    }

    fn ill_since(&self, asked: Instant, why: &str) {
        let mut times = self.times();
        // Whoever was answered meanwhile asked the same cluster.
        let asked = times.well.map_or(asked, |well| well.max(asked));
        let since = times.failing.map_or(asked, |failing| failing.min(asked));
        times.failing = Some(since);
        drop(times);
        if since.elapsed() < self.patience() {
            log::debug!("the catalog {}: {why}", self.location);
            return;
        }
        self.count_out(why);
    }

    /// The cluster counts as out of reach from now on.
    fn count_out(&self, why: &str) {
        let new = self.fault.send_if_modified(|fault| {
            let new = fault.is_none();
            if fault.as_deref().is_none_or(|known| known != why) {
                *fault = Some(Arc::new(why.to_owned()));
            }
            new
        });
        if new {
            log::error!(
                "the catalog {} is out of reach: {why}; what is known is still shown, Unmounts are kept until it is \
                 back, and other changes are refused",
                self.location
            );
        }
    }

    fn limit(&self) -> MutexGuard<'_, Limit> {
        // It is whole after every statement under this lock.
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn times(&self) -> MutexGuard<'_, Times> {
        // It is whole after every statement under this lock.
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves as soon as the cluster counts as out of reach, with the reason.
    pub(super) async fn out_of_reach(&self) -> Arc<String> {
        let mut fault = self.fault.subscribe();
        // The sender lives as long as `self`.
        match fault.wait_for(Option::is_some).await {
            Ok(fault) => fault.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }

    /// Resolves as soon as the cluster does not count as out of reach.
    pub(super) async fn back(&self) {
        // The sender lives as long as `self`.
        let _ = self.fault.subscribe().wait_for(Option::is_none).await;
    }
}

impl Limit {
    fn at_present(&self) -> Duration {
        match self.soon {
            Some((from, limit)) if from <= Instant::now() => limit,
            _ => self.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_limit_is_in_force_once_no_request_has_the_shorter_one() {
        let [short, long] = [Duration::from_secs(2), Duration::from_secs(10)];
        let health = Health::new("etcd".into(), long);
        assert_eq!((health.patience(), health.answer()), (Duration::from_secs(4), ANSWER));
        health.limit_requests(short);
        assert_eq!(health.patience(), short.mul_f64(SHARE));
        health.limit_requests(long);
        assert_eq!(health.patience(), short.mul_f64(SHARE), "those that have begun are told in time");
        let until = Instant::now() + Duration::from_secs(60);
        while health.patience() != long.mul_f64(SHARE) {
            assert!(Instant::now() < until, "the longer limit is never in force");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
