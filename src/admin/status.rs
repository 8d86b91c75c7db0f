//! The facts of `volhost status` besides the volumes: the app updates them, the admin socket reads them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

/// The facts of a running service that belong to no module.
#[derive(Debug, Default)]
pub(crate) struct ServiceStatus(Mutex<Facts>);

/// The content of the status.
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
    /// The time when the service was ready.
    pub since: Option<OffsetDateTime>,
    /// The outcome of the latest reload of each unit, the latest last.
    pub reloads: Vec<Reloaded>,
    /// Changed settings that take effect only after a restart.
    pub needs_restart: Vec<String>,
    /// The path of the spec file, or the reason why there is none.
    pub spec: Option<String>,
    /// The faults of published or followed files, by name.
    pub troubles: BTreeMap<String, String>,
    /// When the server's certificate expires.
    pub server_certificate_expires: Option<OffsetDateTime>,
    /// When the first CA in the file expires whose clients are accepted.
    pub client_ca_expires: Option<OffsetDateTime>,
}

/// The outcome of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reloaded {
    /// When it ended.
    pub at: OffsetDateTime,
    /// The unit that was read: `configuration`, `certificates` or `crl`.
    pub unit: &'static str,
    /// Its faults; empty if it was applied.
    pub faults: Vec<String>,
}

impl ServiceStatus {
    /// Changes the facts.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts());
    }

    /// Records the outcome of a reload.
    pub(crate) fn reloaded(&self, reloaded: Reloaded) {
        let mut facts = self.facts();
        facts.reloads.retain(|earlier| earlier.unit != reloaded.unit);
        facts.reloads.push(reloaded);
    }

    /// Records what is wrong with something, or with `None` that it is well again. Returns true if that changed
    /// anything.
    pub(crate) fn trouble(&self, name: &str, what: Option<&str>) -> bool {
        let mut facts = self.facts();
        let before = match &what {
            Some(what) => facts.troubles.insert(name.into(), (*what).to_owned()),
            None => facts.troubles.remove(name),
        };
        before.as_deref() != what
    }

    /// Returns the present facts.
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
    /// Returns the reload to show: a rejected one that is still wrong, else the latest.
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
        let status = ServiceStatus::default();
        let reload = |unit, faults: &[&str]| Reloaded {
            at: OffsetDateTime::UNIX_EPOCH,
            unit,
            faults: faults.iter().map(ToString::to_string).collect(),
        };
        status.reloaded(reload("configuration", &["backends.json:1:1: …"]));
        status.reloaded(reload("crl", &[]));
        assert_eq!(status.read().last_reload().unwrap().unit, "configuration");
        status.reloaded(reload("configuration", &[]));
        assert!(status.read().last_reload().unwrap().faults.is_empty());
    }
}
