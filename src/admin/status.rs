//! What `volhost status` tells beside the volumes: kept up to date by the app, read by the admin socket.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

/// The facts of a running service that no room owns.
#[derive(Debug, Default)]
pub(crate) struct Board(Mutex<Facts>);

/// What is on the board.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// The plugin's name.
    pub name: String,
    /// This machine's host name.
    pub node: String,
    /// The addresses served.
    pub listening: Vec<String>,
    /// Where the catalog lies.
    pub catalog: String,
    /// When the service was ready.
    pub since: Option<OffsetDateTime>,
    /// What became of the latest reload of each kind, the latest last.
    pub reloads: Vec<Reloaded>,
    /// Settings that hold only after a restart.
    pub needs_restart: Vec<String>,
    /// Where the spec file is, or why it is not there.
    pub spec: Option<String>,
    /// What is wrong with what is published or followed, each under a name of its own.
    pub troubles: BTreeMap<String, String>,
    /// When the server's certificate expires.
    pub server_certificate_expires: Option<OffsetDateTime>,
}

/// What became of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// When.
    pub at: OffsetDateTime,
    /// What was read: `configuration`, `certificates` or `crl`.
    pub unit: &'static str,
    /// Its faults; empty when it was applied.
    pub faults: Vec<String>,
}

impl Board {
    /// Changes what is on the board.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts());
    }

    /// Notes what became of a reload.
    pub(crate) fn reloaded(&self, reloaded: Reloaded) {
        let mut facts = self.facts();
        facts.reloads.retain(|earlier| earlier.unit != reloaded.unit);
        facts.reloads.push(reloaded);
    }

    /// Notes what is wrong with something, or that nothing is any more. Returns true if that is news.
    pub(crate) fn trouble(&self, name: &str, what: Option<&str>) -> bool {
        let mut facts = self.facts();
        let before = match &what {
            Some(what) => facts.troubles.insert(name.into(), (*what).to_owned()),
            None => facts.troubles.remove(name),
        };
        before.as_deref() != what
    }

    /// What is on the board now.
    #[must_use]
    pub(crate) fn read(&self) -> Facts {
        self.facts().clone()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        // The facts are whole after every statement under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// The reload to show: one that was rejected and is still wrong, else the latest.
    #[must_use]
    pub(crate) fn last_reload(&self) -> Option<&Reloaded> {
        self.reloads.iter().rev().find(|reload| !reload.faults.is_empty()).or_else(|| self.reloads.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_reload_stays_in_sight_until_that_unit_is_good_again() {
        let board = Board::default();
        let reload = |unit, faults: &[&str]| Reloaded {
            at: OffsetDateTime::UNIX_EPOCH,
            unit,
            faults: faults.iter().map(ToString::to_string).collect(),
        };
        board.reloaded(reload("configuration", &["backends.json:1:1: …"]));
        board.reloaded(reload("crl", &[]));
        assert_eq!(board.read().last_reload().unwrap().unit, "configuration");
        board.reloaded(reload("configuration", &[]));
        assert!(board.read().last_reload().unwrap().faults.is_empty());
    }
}
