//! The watchdog's sign of life and the status line, for the service manager.
//!
//! A sign of life is given only from where the service does its work: by the main loop, in each of its rounds, if the
//! catalog's writer has answered since the last one, through a task that one of the runtime's workers ran. A separate
//! thread must never give it, because it would go on while everything else stands still.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::task::JoinHandle;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::admin::ServiceStatus;
use crate::admin::status::Facts;
use crate::catalog::{Catalog, CatalogError, Change};
use crate::error::chain;
use crate::process::systemd;

/// How many rounds the loop makes, and how many probes it sends, within the watchdog's time.
const ROUNDS: u32 = 4;

/// Probes the catalog again and again, and gives signs of life.
pub(super) struct Watchdog {
    catalog: Arc<dyn Catalog>,
    status: Arc<ServiceStatus>,
    /// `None` if there is no watchdog.
    rounds: Option<Interval>,
    probe: Option<Probe>,
}

/// A probe of the catalog that waits for its answer.
struct Probe {
    asked: Instant,
    answer: JoinHandle<Result<(), CatalogError>>,
    /// True once the log has reported that it takes long.
    told: bool,
}

/// The state of a probe.
#[derive(Debug)]
enum ProbeOutcome {
    /// The catalog answered.
    Answer,
    /// It has not answered for this long.
    Silence(Duration),
    /// It cannot answer any more.
    End(String),
}

impl Watchdog {
    /// Returns a watchdog that gives a sign of life within this time; with `None` it never does.
    pub(super) fn new(
        watchdog: Option<Duration>,
        catalog: Arc<dyn Catalog>,
        status: Arc<ServiceStatus>,
    ) -> Self {
        let rounds = watchdog.filter(|time| !time.is_zero()).map(|time| {
            let mut rounds = interval(time / ROUNDS);
            rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
            rounds
        });
        Self { catalog, status, rounds, probe: None }
    }

    /// Waits until it is time for [`beat`](Self::beat); for ever without a watchdog. Safe to drop while waiting.
    pub(super) async fn due(&mut self) {
        match &mut self.rounds {
            Some(rounds) => drop(rounds.tick().await),
            None => pending().await,
        }
    }

    /// Gives a sign of life if the catalog has answered, and probes it again.
    pub(super) fn beat(&mut self) {
        if let Some(probe) = &mut self.probe {
            match probe.look() {
                ProbeOutcome::Answer => {
                    if probe.told {
                        log::info!("the catalog answers again, after {:?}", probe.asked.elapsed());
                        systemd::status(&status_line(&self.status.read()));
                    }
                    systemd::alive();
                }
                ProbeOutcome::Silence(time) => {
                    if !probe.told {
                        let text = format!("the catalog has not answered for {} s", time.as_secs());
                        log::error!("{text}: no sign of life to the watchdog until it does");
                        systemd::status(&text);
                        probe.told = true;
                    }
                    return;
                }
                ProbeOutcome::End(why) => {
                    log::error!("the catalog answers no more, and so no sign of life to the watchdog: {why}");
                }
            }
        }
        self.probe = Some(Probe::ask(&*self.catalog));
    }
}

impl Probe {
    /// Submits a change of nothing: it waits behind every queued change, for the catalog's only writer.
    fn ask(catalog: &dyn Catalog) -> Self {
        let submitted = catalog.submit(Change::Seen(Vec::new()));
        let answer = tokio::spawn(async move { submitted.await.map(drop) });
        Self { asked: Instant::now(), answer, told: false }
    }

    fn look(&mut self) -> ProbeOutcome {
        match (&mut self.answer).now_or_never() {
            None => ProbeOutcome::Silence(self.asked.elapsed()),
            // An unreachable shared catalog is an answer as well: a restart of this process would repair nothing, and
            // would lose what it knows.
            Some(Ok(Ok(()) | Err(CatalogError::Unreachable { .. }))) => ProbeOutcome::Answer,
            Some(Ok(Err(error))) => ProbeOutcome::End(chain(&error)),
            Some(Err(error)) => ProbeOutcome::End(chain(&error)),
        }
    }
}

/// Returns the state of the service in one line, for `systemctl status`.
pub(super) fn status_line(facts: &Facts) -> String {
    let rejected = facts.reloads.iter().rev().find_map(|reload| Some((reload.unit, reload.faults.first()?)));
    match rejected {
        Some((unit, fault)) => {
            format!("{unit} rejected, what was in force stays so: {fault} (`volhost status` tells all)")
        }
        None => format!("serving on {}", facts.listening.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::admin::status::Reloaded;
    use crate::catalog::sqlite;

    #[tokio::test]
    async fn the_catalogs_writer_answers_and_its_end_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let catalog: Arc<dyn Catalog> = Arc::new(sqlite::open(&dir.path().join("catalog.db")).unwrap());
        let answered = async |mut probe: Probe| loop {
            match probe.look() {
                ProbeOutcome::Silence(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                found => return found,
            }
        };
        assert!(matches!(answered(Probe::ask(&*catalog)).await, ProbeOutcome::Answer));
        catalog.close().await;
        let found = answered(Probe::ask(&*catalog)).await;
        assert!(matches!(&found, ProbeOutcome::End(why) if why.contains("closed")), "{found:?}");
    }

    #[tokio::test]
    async fn a_shared_catalog_out_of_reach_is_no_reason_to_be_killed() {
        let out_of_reach = CatalogError::Unreachable {
            location: "etcd://127.0.0.1:2379/volhost".into(),
            why: Arc::new("no member answers".into()),
        };
        let answer = tokio::spawn(async { Err(out_of_reach) });
        while !answer.is_finished() {
            tokio::task::yield_now().await;
        }
        let mut probe = Probe { asked: Instant::now(), answer, told: false };
        assert!(matches!(probe.look(), ProbeOutcome::Answer));
    }

    #[test]
    fn a_fault_is_shown_before_anything_else() {
        let mut facts = Facts { listening: vec!["https://127.0.0.1:7443".into()], ..Facts::default() };
        assert_eq!(status_line(&facts), "serving on https://127.0.0.1:7443");
        let reload = |unit, faults: &[&str]| Reloaded {
            at: OffsetDateTime::UNIX_EPOCH,
            unit,
            faults: faults.iter().map(ToString::to_string).collect(),
        };
        facts.reloads = vec![reload("configuration", &["volhost.json:1:2: no", "more"]), reload("crl", &[])];
        let line = status_line(&facts);
        assert!(
            line.starts_with("configuration rejected") && line.contains("volhost.json:1:2: no"),
            "{line}"
        );
    }
}
