//! Whether this instance hears what others do. While it does not, nothing is decided on what is known, however well the
//! cluster answers, and it is told why.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::core::Core;

/// Why what others do is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Deaf {
    /// It is told and not understood.
    NotUnderstood,
    /// It is not told in time.
    Behind,
}

/// What is in the way at present, with what is to be said of it: the gravest first.
#[derive(Debug, Default)]
pub(super) struct Hearing(Mutex<Vec<(Deaf, String)>>);

impl Core {
    /// What others do is not known, for this reason.
    pub(super) fn deaf(&self, reason: Deaf, why: &str) {
        // The list is whole after every statement under this lock, which is held until others are told of it.
        let mut reasons = self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.retain(|(known, _)| *known != reason);
        reasons.push((reason, why.to_owned()));
        reasons.sort_by_key(|(reason, _)| *reason);
        if let Some((_, why)) = reasons.first() {
            self.health.stuck(why);
        }
    }

    /// Whether what is known is not what the cluster holds, and is about to be read again.
    pub(super) fn is_read_again(&self) -> bool {
        self.other_history.load(Ordering::Acquire) || self.doubted.load(Ordering::Acquire)
    }

    /// It is not for this reason that what others do is not known.
    pub(super) fn not_deaf(&self, reason: Deaf) {
        let mut reasons = self.hearing.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = reasons.len();
        reasons.retain(|(known, _)| *known != reason);
        if reasons.len() == before {
            return;
        }
        match reasons.first() {
            Some((_, why)) => self.health.stuck(why),
            None => {
                self.health.unstuck();
                self.health.well();
            }
        }
    }
}
