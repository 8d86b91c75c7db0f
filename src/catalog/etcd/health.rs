//! Whether the cluster answers: as long as it may be an election, one waits; after that everybody is told at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::members::{ANSWER, Trouble};

/// How long the cluster may fail to answer at most before it counts as out of reach. A member that is lost, with an
/// election and another member to be found, takes less.
const PATIENCE: Duration = Duration::from_secs(8);

/// Which part of a request's limit that may be: who is refused is to be told why within the limit.
const SHARE: f64 = 0.4;

/// What is known of the cluster's health.
pub(super) struct Health {
    location: String,
    patience: Duration,
    answer: Duration,
    times: Mutex<Times>,
    /// Whether what the cluster holds is not understood, however well it answers.
    stuck: AtomicBool,
    fault: watch::Sender<Option<Arc<String>>>,
}

/// Since when what is the case.
#[derive(Default)]
struct Times {
    /// When the first of the questions was asked that were not answered since a quorum answered.
    failing: Option<Instant>,
    /// When a quorum answered last.
    well: Option<Instant>,
}

impl Health {
    /// `request` is how long a request may take.
    pub(super) fn new(location: String, request: Duration) -> Self {
        let patience = PATIENCE.min(request.mul_f64(SHARE));
        Self {
            location,
            patience,
            // Within it another member is asked as well.
            answer: ANSWER.min(patience / 2),
            times: Mutex::default(),
            stuck: AtomicBool::new(false),
            fault: watch::Sender::new(None),
        }
    }

    /// How long a member may take to answer before the next one is asked.
    pub(super) fn answer(&self) -> Duration {
        self.answer
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
        *self.times.lock().unwrap_or_else(PoisonError::into_inner) =
            Times { failing: None, well: Some(Instant::now()) };
        let over = self.fault.send_if_modified(|fault| fault.take().is_some());
        if over {
            log::info!("the catalog {} answers again", self.location);
        }
    }

    /// A question was not answered in a way that counts.
    pub(super) fn unanswered(&self, trouble: &Trouble) {
        self.ill_since(trouble.asked, &trouble.text);
    }

    /// No answer came that counts.
    pub(super) fn ill(&self, why: &str) {
        self.ill_since(Instant::now(), why);
    }

    fn ill_since(&self, asked: Instant, why: &str) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever was answered meanwhile asked the same cluster.
        let asked = times.well.map_or(asked, |well| well.max(asked));
        let since = times.failing.map_or(asked, |failing| failing.min(asked));
        times.failing = Some(since);
        drop(times);
        if since.elapsed() < self.patience {
            log::debug!("the catalog {}: {why}", self.location);
            return;
        }
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
