//! The health of the cluster: if it answers, and if it takes changes. A request waits as long as an election may last;
//! after that, every request is refused at once, with the reason.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::call::CallError;
use super::members::ANSWER;

/// How long the cluster may fail to answer before it counts as out of reach. The loss of a member, with an election and
/// the search for another member, takes less.
const ELECTION: Duration = Duration::from_secs(8);

/// The share of a request's limit that waiting may take, so that a refused request gets its reason within the limit.
const SHARE: f64 = 0.4;

/// The cluster's health, as this instance sees it.
pub(crate) struct Health {
    location: String,
    limit: Mutex<Limit>,
    times: Mutex<Times>,
    reach: watch::Sender<Reach>,
}

/// Why requests are refused, if they are.
#[derive(Default)]
struct Reach {
    /// The cluster counts as out of reach for this reason, or the replica cannot be trusted.
    fault: Option<Arc<String>>,
    /// The replica cannot be trusted, however well the cluster answers.
    untrusted: bool,
    /// The cluster answers reads, but takes no change.
    writes_hang: bool,
}

/// How long a request may take.
struct Limit {
    now: Duration,
    /// A longer limit, and when it comes into force.
    later: Option<(Instant, Duration)>,
}

#[derive(Default)]
struct Times {
    /// When the first call was made that is unanswered since a quorum last answered.
    failing: Option<Instant>,
    /// When a quorum last answered.
    well: Option<Instant>,
    /// When a change was last taken.
    taken: Option<Instant>,
}

impl Health {
    /// `request` is how long a request may take.
    pub(super) fn new(location: String, request: Duration) -> Self {
        Self {
            location,
            limit: Mutex::new(Limit { now: request, later: None }),
            times: Mutex::default(),
            reach: watch::Sender::default(),
        }
    }

    /// Changes how long a request may take. A longer limit comes into force when the requests of the shorter one have
    /// ended.
    pub(crate) fn limit_requests(&self, to: Duration) {
        let mut limit = self.limit();
        let now = limit.at_present();
        *limit = if to <= now {
            Limit { now: to, later: None }
        } else {
            Limit { now, later: Some((Instant::now() + now, to)) }
        };
    }

    /// Returns how long the cluster may fail to answer before it counts as out of reach.
    fn grace(&self) -> Duration {
        ELECTION.min(self.limit().at_present().mul_f64(SHARE))
    }

    /// Returns how long a member may take to answer before the next one is asked.
    pub(crate) fn answer(&self) -> Duration {
        // There is time to ask a second member before the cluster counts as out of reach.
        ANSWER.min(self.grace() / 2)
    }

    /// Returns why requests are refused, if they are.
    pub(crate) fn fault(&self) -> Option<Arc<String>> {
        self.reach.borrow().fault.clone()
    }

    /// Refuses every change from now on, because the replica cannot be trusted.
    pub(crate) fn distrust(&self, why: &str) {
        let mut new = false;
        self.reach.send_modify(|reach| {
            new = !std::mem::replace(&mut reach.untrusted, true);
            reach.fault = Some(Arc::new(why.to_owned()));
        });
        if new {
            log::error!(
                "the catalog {}: {why}; what is known is still shown, and no change is taken in",
                self.location
            );
        }
    }

    /// Takes changes again, because the replica is trusted.
    pub(crate) fn trust(&self) {
        self.reach.send_modify(|reach| reach.untrusted = false);
        self.well();
    }

    /// Records that a quorum answered.
    pub(crate) fn well(&self) {
        if self.reach.borrow().untrusted {
            return;
        }
        {
            let mut times = self.times();
            (times.failing, times.well) = (None, Some(Instant::now()));
        }
        let over = self
            .reach
            .send_if_modified(|reach| !reach.untrusted && !reach.writes_hang && reach.fault.take().is_some());
        if over {
            log::info!("the catalog {} answers again", self.location);
        }
    }

    /// Records that a quorum carried out a transaction, or compared its conditions.
    pub(crate) fn taken(&self) {
        self.times().taken = Some(Instant::now());
        self.reach.send_if_modified(|reach| std::mem::take(&mut reach.writes_hang));
        self.well();
    }

    /// Records that a change first sent at `begun` is not taken yet. Returns true if the time to wait for that is over.
    /// If no other change was taken since, either, the cluster counts as out of reach until one is.
    pub(crate) fn not_taken(&self, begun: Instant, why: &str) -> bool {
        if begun.elapsed() < self.grace() {
            return false;
        }
        if self.times().taken.is_none_or(|taken| taken < begun) {
            self.reach.send_if_modified(|reach| !std::mem::replace(&mut reach.writes_hang, true));
            // If the cluster is out of reach altogether, that has been said.
            if self.fault().is_none() {
                self.count_out(&format!("no change is taken in: {why}"));
            }
        }
        true
    }

    /// Waits until no change is taken.
    pub(crate) async fn writes_hang(&self) {
        // The sender lives as long as `self`.
        let _ = self.reach.subscribe().wait_for(|reach| reach.writes_hang).await;
    }

    /// Records a call that brought no usable answer.
    pub(crate) fn unanswered(&self, error: &CallError) {
        self.ill_since(error.asked, &error.text);
    }

    /// Records that no usable answer came.
    pub(crate) fn ill(&self, why: &str) {
        self.ill_since(Instant::now(), why);
    }

    fn ill_since(&self, asked: Instant, why: &str) {
        let mut times = self.times();
        // An answer to another call after this one was made came from the same cluster.
        let asked = times.well.map_or(asked, |well| well.max(asked));
        let since = times.failing.map_or(asked, |failing| failing.min(asked));
        times.failing = Some(since);
        drop(times);
        if since.elapsed() < self.grace() {
            log::debug!("the catalog {}: {why}", self.location);
            return;
        }
        self.count_out(why);
    }

    /// Makes the cluster count as out of reach.
    fn count_out(&self, why: &str) {
        let mut new = false;
        self.reach.send_if_modified(|reach| {
            new = reach.fault.is_none();
            if reach.fault.as_deref().is_none_or(|known| known != why) {
                reach.fault = Some(Arc::new(why.to_owned()));
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

    /// Waits until requests are refused, and returns why.
    pub(crate) async fn out_of_reach(&self) -> Arc<String> {
        let mut reach = self.reach.subscribe();
        // The sender lives as long as `self`.
        match reach.wait_for(|reach| reach.fault.is_some()).await {
            Ok(reach) => reach.fault.clone().unwrap_or_default(),
            Err(_) => Arc::default(),
        }
    }

    /// Waits until requests are not refused.
    pub(crate) async fn back(&self) {
        // The sender lives as long as `self`.
        let _ = self.reach.subscribe().wait_for(|reach| reach.fault.is_none()).await;
    }
}

impl Limit {
    fn at_present(&self) -> Duration {
        match self.later {
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
        assert_eq!((health.grace(), health.answer()), (Duration::from_secs(4), ANSWER));
        health.limit_requests(short);
        assert_eq!(health.grace(), short.mul_f64(SHARE));
        health.limit_requests(long);
        assert_eq!(health.grace(), short.mul_f64(SHARE), "those that have begun are told in time");
        let until = Instant::now() + Duration::from_secs(60);
        while health.grace() != long.mul_f64(SHARE) {
            assert!(Instant::now() < until, "the longer limit is never in force");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
