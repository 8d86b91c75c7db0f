//! Faults of the service, in words for people: each with its remedy and, where one helps, the command.
//!
//! Read from memory. The worst comes first.

use time::{Duration, OffsetDateTime};

use crate::admin::Facts;
use crate::catalog::View;
use crate::error::counted;
use crate::model::timestamp::rfc3339;
use crate::volume::BackendInfo;

/// How long before its end a certificate is told of.
const CERTIFICATE_WARNING: Duration = Duration::days(14);

/// The share of a backend that must be free, in percent; below it the trash is emptied early.
const FREE_WARNING: u64 = 10;

/// How bad a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Something does not work.
    Wrong,
    /// Something will not work, or needs a decision.
    Warning,
}

impl Severity {
    /// Returns the class of the page's style.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Wrong => "wrong",
            Self::Warning => "warning",
        }
    }
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub severity: Severity,
    pub what: String,
    pub remedy: String,
    pub command: Option<&'static str>,
}

impl Fault {
    fn new(severity: Severity, what: String, remedy: &str, command: Option<&'static str>) -> Self {
        Self { severity, what, remedy: remedy.into(), command }
    }
}

/// The places in which faults are looked for.
pub(super) struct Sources<'a> {
    pub facts: &'a Facts,
    pub view: &'a View,
    pub backends: &'a [BackendInfo],
    pub catalog_fault: Option<String>,
    pub is_stopping: bool,
    pub log_lines_dropped: u64,
    pub now: OffsetDateTime,
    /// True if hosts may be named.
    pub names: bool,
}

/// Returns every fault, the worst first.
pub(super) fn all(sources: &Sources<'_>) -> Vec<Fault> {
    use Severity::{Warning, Wrong};
    let Sources { facts, view, backends, catalog_fault, is_stopping, log_lines_dropped, now, names } =
        sources;
    let mut faults = Vec::new();
    if *is_stopping {
        faults.push(Fault::new(
            Wrong,
            "The service is stopping".into(),
            "Requests in flight are finished.",
            None,
        ));
    }
    if let Some(fault) = catalog_fault {
        let what = format!("Changes cannot be recorded: {fault}");
        let remedy = "Until that is mended, volumes are listed and inspected, and nothing is created, mounted or removed.";
        faults.push(Fault::new(Wrong, what, remedy, Some("volhost status")));
    }
    for backend in backends.iter().filter(|backend| backend.usage.is_none()) {
        let what = format!("Backend {} is {}", backend.name, backend.state);
        let reason = backend.reason.clone().unwrap_or_default();
        faults.push(Fault { severity: Wrong, what, remedy: reason, command: Some("volhost backend ls") });
    }
    for (which, end) in
        [("server's certificate", facts.server_certificate_expires), ("client CA", facts.client_ca_expires)]
    {
        let Some(end) = end.filter(|end| *end - *now < CERTIFICATE_WARNING) else { continue };
        let (severity, word) = if end < *now { (Wrong, "expired") } else { (Warning, "expires") };
        let what = format!("The {which} {word} on {}", rfc3339(end));
        faults.push(Fault::new(
            severity,
            what,
            "Afterwards no engine can connect: put another one in its place.",
            None,
        ));
    }
    for reload in facts.reloads.iter().filter(|reload| !reload.faults.is_empty()) {
        let what = format!("{}: a changed file was rejected", capitalised(reload.unit));
        let remedy =
            format!("What was in force stays, and a restart would fail. {}", reload.faults.join(" "));
        faults.push(Fault { severity: Wrong, what, remedy, command: Some("volhost check") });
    }
    for backend in *backends {
        let Some(free) = backend.usage.and_then(|usage| percent(usage.free_bytes, usage.total_bytes)) else {
            continue;
        };
        if free < FREE_WARNING {
            let what = format!("Backend {} has {free} % of its space free", backend.name);
            faults.push(Fault::new(
                Warning,
                what,
                "The trash is emptied early, the oldest volumes first.",
                None,
            ));
        }
    }
    for trouble in facts.troubles.values() {
        faults.push(Fault::new(Warning, capitalised(trouble), "", None));
    }
    let cloned: Vec<_> =
        view.hosts.iter().filter(|(_, host)| host.cloned.is_some()).map(|(name, _)| name).collect();
    if !cloned.is_empty() {
        let named: Vec<_> = cloned.iter().map(|name| name.as_str()).collect();
        let what = match *names {
            true => format!("Several machines use the certificate of {}", named.join(", ")),
            false => "Several machines use the certificate of one host".into(),
        };
        faults.push(Fault::new(
            Warning,
            what,
            "Give each a certificate of its own.",
            Some("volhost host ls"),
        ));
    }
    let stale = view.stale_count();
    if stale > 0 {
        let what = format!("{} of engines that were started again since", counted(stale, "mount"));
        let remedy = "They keep volumes from being removed. Release them once no container there uses them.";
        faults.push(Fault::new(Warning, what, remedy, Some("volhost mount ls --stale")));
    }
    if !facts.needs_restart.is_empty() {
        let what = format!("A restart is needed for what changed in {}", facts.needs_restart.join(", "));
        faults.push(Fault::new(Warning, what, "Containers that run do not notice a restart.", None));
    }
    if *log_lines_dropped > 0 {
        let what = format!(
            "{} of the log were dropped",
            counted(usize::try_from(*log_lines_dropped).unwrap_or(usize::MAX), "line")
        );
        faults.push(Fault::new(Warning, what, "The standard error does not take them fast enough.", None));
    }
    faults.sort_by_key(|fault| fault.severity);
    faults
}

/// Returns a part in percent of the whole, rounded down; `None` of nothing.
pub(super) fn percent(part: u64, whole: u64) -> Option<u64> {
    u64::try_from(u128::from(part) * 100 / u128::from(whole).max(1)).ok().filter(|_| whole > 0)
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_and_numbers_are_words_for_people() {
        assert_eq!(percent(1, 3), Some(33));
        assert_eq!(percent(u64::MAX, u64::MAX), Some(100));
        assert_eq!(percent(0, 0), None);
        assert_eq!((counted(1, "mount"), counted(2, "mount")), ("1 mount".to_owned(), "2 mounts".to_owned()));
        assert_eq!(capitalised("über"), "Über");
    }
}
