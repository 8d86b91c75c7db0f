//! Whether this instance hears what others do, and whether what is known is what the cluster holds. While it does not hear,
//! nothing is decided on what is known, however well the cluster answers, and it is told why.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use tokio::time::timeout;

use super::core::{Core, ELSEWHERE, STALE};
use crate::catalog::Change;

/// Why what others do is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WatchFault {
    /// Another instance has this one's name: what is counted under it is that one's.
    Namesake,
    /// It is told and not understood.
    NotUnderstood,
    /// It is not told in time.
    Behind,
}

/// What is in the way at present, with what is to be said of it: the gravest first.
#[derive(Debug, Default)]
pub(super) struct WatchHealth(Mutex<Vec<(WatchFault, String)>>);

impl Core {
    /// The cluster does not hold what the memory was made of: it was restored from a snapshot. Everything is read again.
    pub(super) fn history_changed(&self, revision: i64) {
        if !self.other_history.swap(true, Ordering::AcqRel) {
            log::error!(
                "the catalog {} has another history at revision {revision}: was etcd restored from a snapshot? what was \
                 recorded since that is lost; `volhost check --catalog` compares it with the directories",
                self.location
            );
        }
        self.watch_anew.notify_one();
    }

    /// What is known is not what the cluster holds, and no event is going to tell: everything is read again. Waits until
    /// that is done, or takes long.
    pub(super) async fn doubt(&self, change: &Change) {
        log::error!(
            "what is known of the catalog {} is not what it holds, as {STALE} attempts at {change:?} showed: it is read \
             whole again",
            self.location
        );
        let mut settled = self.replica.settled();
        self.doubted.store(true, Ordering::Release);
        self.watch_anew.notify_one();
        let _ = timeout(ELSEWHERE, settled.changed()).await;
    }

    /// What others do is not known, for this reason.
    pub(super) fn watch_failed(&self, reason: WatchFault, why: &str) {
        // The list is whole after every statement under this lock, which is held until others are told of it.
        let mut reasons = self.watch_health.0.lock().unwrap_or_else(PoisonError::into_inner);
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
    pub(super) fn watch_recovered(&self, reason: WatchFault) {
        let mut reasons = self.watch_health.0.lock().unwrap_or_else(PoisonError::into_inner);
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
