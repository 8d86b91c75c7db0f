//! Reloads: three units, each all or nothing on its own, so that a slip in the map cannot stop a revocation.
//!
//! A reload reads and checks first and swaps last. A separate thread reads each unit, and may hang; the units that were
//! read are put in force here, one after the other, from memory. A unit that is rejected changes nothing, is logged
//! with every fault, and stays in the status until it is good again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::config_unit::{ConfigRead, ConfigUnit};
use super::convert::to_volumes;
use super::readers::{Admission, Part, ReadMode, ReadScheduler};
use super::spec::{SpecOutcome, SpecWriter};
use super::tls::{self, CertificatesRead, CrlRead, Outcome, Tls, worded};
use super::watchdog::status_line;
use crate::admin::status::Reloaded;
use crate::admin::{Issuing, ServiceStatus};
use crate::catalog::Catalog;
use crate::config::snapshot::FileSnapshot;
use crate::config::watch::{Unit, Watcher};
use crate::config::{Advertise, Boot, Config};
use crate::error::chain;
use crate::files::Unfinished;
use crate::model::limits::Limits;
use crate::monitoring::Counters;
use crate::process::systemd;
use crate::transport::Server;
use crate::volume::Service;

/// How often the spec file is checked, and whether files are still followed.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// How long to wait for new backends before the next unit has its turn.
const BRING_UP: Duration = Duration::from_millis(200);

/// How long to wait for the catalog, which may be out of reach, to record a certificate.
const RECORD_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads the units again and puts them in force.
pub(super) struct Reloader {
    config: ConfigUnit,
    tls: Tls,
    spec: SpecWriter,
    service: Running,
    watcher: Watcher,
    /// The units whose files are not in force.
    rejected: BTreeSet<Unit>,
}

/// The parts of the running service that a reload changes.
pub(super) struct Running {
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) volumes: Arc<Service>,
    pub(super) server: Arc<Server>,
    pub(super) status: Arc<ServiceStatus>,
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) issuing: Arc<ArcSwap<Issuing>>,
    pub(super) counters: Counters,
}

/// A request to read units again.
pub(super) struct ReloadRequest {
    pub(super) units: &'static [Unit],
    /// True to accept what would otherwise be refused.
    pub(super) forced: bool,
    /// Signalled when it is done; `None` if nobody waits.
    pub(super) done: Option<oneshot::Sender<()>>,
}

impl ReloadRequest {
    /// Returns a request for which nobody waits.
    pub(super) fn of(units: &'static [Unit]) -> Self {
        Self { units, forced: false, done: None }
    }
}

/// The result of a reading thread.
enum Read {
    Config(Box<ConfigRead>),
    /// `None` if no address is served over TLS.
    Tls(Option<Box<CertificatesRead>>),
    List(CrlRead),
    Spec(SpecOutcome),
}

/// Returns the files to follow, in the state in which they were last read.
pub(super) fn followed(files: &[FileSnapshot], tls: &Tls) -> BTreeMap<Unit, Vec<FileSnapshot>> {
    let (certificates, list) = tls.followed();
    BTreeMap::from([(Unit::Config, files.to_vec()), (Unit::Tls, certificates), (Unit::Crl, list)])
}

impl Running {
    /// Puts the configuration's live part in force.
    fn apply(&self, config: &Config, needs_restart: &[&'static str]) {
        self.limits.store(Arc::new(config.live.limits.clone()));
        self.catalog.limit_requests(config.live.limits.request);
        let before = self.volumes.in_force();
        self.volumes.put_in_force(to_volumes(config, &before.map));
        self.volumes.look_at_clones();
        self.status.update(|facts| {
            facts.needs_restart = needs_restart.iter().map(ToString::to_string).collect();
        });
    }

    /// Records this machine's certificate. A catalog that is out of reach does not hold up the reload.
    async fn record(&self, tls: &Tls) {
        let Some(client) = tls.client().cloned() else { return };
        let catalog = Arc::clone(&self.catalog);
        let recorded = tokio::spawn(async move {
            if let Err(error) = tls::record(&client, &*catalog).await {
                log::warn!("this machine's certificate could not be recorded: {}", chain(&error));
            }
        });
        // The recording goes on beside the next reloads.
        let _ = timeout(RECORD_TIMEOUT, recorded).await;
    }
}

impl Reloader {
    pub(super) fn new(
        config: ConfigUnit,
        tls: Tls,
        spec: SpecWriter,
        service: Running,
        watcher: Watcher,
    ) -> Self {
        Self { config, tls, spec, service, watcher, rejected: BTreeSet::new() }
    }

    /// Writes the spec file at the start.
    pub(super) fn write_spec(&self) {
        self.spec.write(self.config.config());
    }

    /// Serves requests until their last sender is gone.
    pub(super) async fn run(mut self, mut requests: mpsc::UnboundedReceiver<ReloadRequest>) {
        let (mut scheduler, mut read) = ReadScheduler::new();
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut busy = false;
        loop {
            let due = scheduler.due();
            let overdue = async {
                match due {
                    Some(due) => sleep_until(Instant::from_std(due)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.recv() => match request {
                    Some(request) => self.serve(&mut scheduler, request),
                    None => return,
                },
                // The sender of results lives in `scheduler`.
                Some((part, read)) = read.recv() => self.ended(&mut scheduler, part, read).await,
                () = overdue => self.give_up(&mut scheduler),
                _ = checks.tick() => self.check(&mut scheduler),
            }
            if busy != scheduler.is_busy() {
                busy = scheduler.is_busy();
                if busy {
                    systemd::reloading();
                } else {
                    systemd::ready(&status_line(&self.service.status.read()));
                }
            }
            scheduler.tell();
        }
    }

    fn serve(&mut self, scheduler: &mut ReadScheduler<Read>, request: ReloadRequest) {
        let ReloadRequest { units, forced, done } = request;
        let how = ReadMode { forced, ..ReadMode::default() };
        let begun: Vec<_> = units
            .iter()
            .map(|unit| (Part::Unit(*unit), self.ask(scheduler, Part::Unit(*unit), how)))
            .collect();
        if let Some(done) = done {
            scheduler.wait(&begun, done);
        }
    }

    /// Requests a read of a part: now, or after the read under way.
    fn ask(&mut self, scheduler: &mut ReadScheduler<Read>, part: Part, how: ReadMode) -> Admission {
        let ask = scheduler.ask(part, how);
        if let Admission::Begin(how) = ask
            && let Err(error) = self.begin(scheduler, part, how)
        {
            self.unread(part, &error);
        }
        ask
    }

    /// Requests a read of another part because of the one that was just read; callers that wait for that one wait for
    /// both.
    fn then(&mut self, scheduler: &mut ReadScheduler<Read>, part: Part, next: Part, how: ReadMode) {
        let ask = self.ask(scheduler, next, how);
        scheduler.wait_on(part, next, ask);
    }

    fn begin(
        &self,
        scheduler: &mut ReadScheduler<Read>,
        part: Part,
        how: ReadMode,
    ) -> Result<(), Unfinished> {
        match part {
            Part::Unit(Unit::Config) => {
                let job = self.config.job(&self.tls, how.forced);
                scheduler.begin(part, how, move || Read::Config(Box::new(job())))
            }
            Part::Unit(Unit::Tls) => self.begin_tls(scheduler, part, how, how.with_list),
            Part::Unit(Unit::Crl) => match self.tls.list_to_read() {
                Some(path) => scheduler.begin(part, how, move || Read::List(CrlRead::read(path.as_deref()))),
                None => self.begin_tls(scheduler, part, how, true),
            },
            Part::Spec => {
                let job = self.spec.job(self.config.config(), how.mend);
                scheduler.begin(part, how, move || Read::Spec(job()))
            }
        }
    }

    fn begin_tls(
        &self,
        scheduler: &mut ReadScheduler<Read>,
        part: Part,
        how: ReadMode,
        with_list: bool,
    ) -> Result<(), Unfinished> {
        let reader = self.tls.reader(self.config.config(), how.forced, with_list);
        scheduler.begin(part, how, move || Read::Tls(reader.map(|reader| Box::new(reader.read()))))
    }

    /// Puts the result of a read in force, or reports why not.
    async fn ended(&mut self, scheduler: &mut ReadScheduler<Read>, part: Part, read: Option<Read>) {
        if let Some(how) = scheduler.ended(part) {
            if let Part::Unit(unit) = part {
                self.service.status.trouble(unit.as_str(), None);
            }
            // Parsing a large list takes time.
            tokio::task::block_in_place(|| match read {
                None => self.unread(part, &Unfinished::BrokeOff),
                Some(Read::Config(read)) => self.put_config_in_force(scheduler, *read, how),
                Some(Read::Tls(read)) => self.put_certificates_in_force(scheduler, part, read, how),
                Some(Read::List(read)) => self.put_list_in_force(scheduler, read, how),
                Some(Read::Spec(outcome)) => self.spec.tell(outcome),
            });
            if matches!(part, Part::Unit(Unit::Config | Unit::Tls)) {
                self.service.record(&self.tls).await;
            }
            if part == Part::Unit(Unit::Config) {
                // New backends come into force before anybody asks for them.
                self.service.volumes.bring_up(BRING_UP).await;
            }
        }
        if let Some(how) = scheduler.again(part)
            && let Err(error) = self.begin(scheduler, part, how)
        {
            self.unread(part, &error);
        }
    }

    fn give_up(&mut self, scheduler: &mut ReadScheduler<Read>) {
        for (part, why) in scheduler.give_up() {
            let told = format!("{}: {}", part.as_str(), chain(&why));
            self.service.status.trouble(part.as_str(), Some(&told));
            self.unread(part, &why);
        }
    }

    /// Checks what reports no changes by itself: whether the spec file is still there, and whether files are followed.
    fn check(&mut self, scheduler: &mut ReadScheduler<Read>) {
        if scheduler.is_idle(Part::Spec) {
            self.ask(scheduler, Part::Spec, ReadMode { mend: true, ..ReadMode::default() });
        }
        for unit in Unit::ALL {
            // A read that hangs has already been reported.
            let held_up = self.watcher.held_up(unit).filter(|_| !scheduler.hangs(Part::Unit(unit)));
            let told = held_up.map(|why| format!("{}: changes go unnoticed: {}", unit.as_str(), chain(&why)));
            let key = format!("{} followed", unit.as_str());
            if self.service.status.trouble(&key, told.as_deref())
                && let Some(told) = told
            {
                log::warn!("{told}");
            }
        }
    }

    /// Reports that a part could not be read.
    fn unread(&mut self, part: Part, why: &Unfinished) {
        match part {
            Part::Unit(unit) => self.tell(unit, vec![chain(why)]),
            Part::Spec => log::warn!("the spec file could not be looked at: {}", chain(why)),
        }
    }

    /// Reports the outcome of a unit's reload, in the log and in the status.
    fn tell(&mut self, unit: Unit, faults: Vec<String>) {
        let word = unit.as_str();
        if faults.is_empty() {
            log::info!("reload: {word} applied");
            self.rejected.remove(&unit);
        } else {
            log::error!("reload: {word} rejected, what was in force stays so");
            faults.iter().for_each(|fault| log::error!("{fault}"));
            self.rejected.insert(unit);
        }
        self.service.counters.reloaded(word, faults.is_empty());
        self.service.status.reloaded(Reloaded { at: OffsetDateTime::now_utc(), unit: word, faults });
    }

    fn put_config_in_force(&mut self, scheduler: &mut ReadScheduler<Read>, read: ConfigRead, how: ReadMode) {
        let part = Part::Unit(Unit::Config);
        let files = read.files();
        match self.swap_config(read, how.forced) {
            Ok(certificates_too) => {
                self.tell(Unit::Config, Vec::new());
                self.config.set_files(files.clone());
                // The server's certificate must hold its names before anybody is told them.
                let next = if certificates_too { Part::Unit(Unit::Tls) } else { Part::Spec };
                self.then(scheduler, part, next, ReadMode { forced: how.forced, ..ReadMode::default() });
            }
            Err(faults) => self.tell(Unit::Config, faults),
        }
        self.watcher.set_files(Unit::Config, files);
    }

    /// Checks the configuration and swaps it. Returns true if the certificates must be read again.
    fn swap_config(&mut self, read: ConfigRead, forced: bool) -> Result<bool, Vec<String>> {
        let (new, findings) = self.config.check(read)?;
        if let Some(certificates) = findings.certificates
            && let Outcome::Bad(error) = self.tls.put_in_force(certificates, &new, forced)
        {
            return Err(vec![worded(&error)]);
        }
        if new.live.hosts.is_none() && !self.tls.trusts_ours_only() {
            let told = "the certificates in force let in hosts of somebody else's authority: without \"hosts\" all of them";
            return Err(vec![told.into()]);
        }
        let needs_restart = findings.needs_restart;
        if !needs_restart.is_empty() {
            log::warn!("a restart is needed for what changed in {}", needs_restart.join(", "));
        }
        let changed = self.config.config().live.changed(&new.live);
        self.service.apply(&new, &needs_restart);
        self.config.replace(new.live);
        // The certificates may have been waiting for a list of hosts.
        Ok(["tls", "advertise"].iter().any(|field| changed.contains(field))
            || self.rejected.contains(&Unit::Tls))
    }

    /// Puts certificates in force that were read for `part`: for themselves, or for a list that came with them.
    fn put_certificates_in_force(
        &mut self,
        scheduler: &mut ReadScheduler<Read>,
        part: Part,
        read: Option<Box<CertificatesRead>>,
        how: ReadMode,
    ) {
        let outcome = match read {
            Some(read) => self.tls.put_in_force(*read, self.config.config(), how.forced),
            None => Outcome::Good,
        };
        let good = matches!(outcome, Outcome::Good);
        let fault = match outcome {
            Outcome::Good => None,
            Outcome::Bad(error) => Some(error),
            Outcome::WithList => {
                return self.then(scheduler, part, part, ReadMode { with_list: true, ..how });
            }
        };
        let unit = if part == Part::Unit(Unit::Crl) { Unit::Crl } else { Unit::Tls };
        self.after_certificates();
        self.tell(unit, fault.iter().map(worded).collect());
        // A list that came before its authority is good together with it, and the other way round.
        let other = if unit == Unit::Crl { Unit::Tls } else { Unit::Crl };
        if good && self.rejected.contains(&other) {
            self.then(scheduler, part, Part::Unit(other), how);
        }
        self.then(scheduler, part, Part::Spec, ReadMode::default());
    }

    fn put_list_in_force(&mut self, scheduler: &mut ReadScheduler<Read>, read: CrlRead, how: ReadMode) {
        let outcome = self.tls.put_list_in_force(read, how.forced);
        self.after_certificates();
        self.tell(Unit::Crl, outcome.err().iter().map(worded).collect());
        // An authority that came before its list is good together with it.
        if self.rejected.contains(&Unit::Tls) {
            let how = ReadMode { with_list: true, ..how };
            self.then(scheduler, Part::Unit(Unit::Crl), Part::Unit(Unit::Tls), how);
        }
    }

    fn after_certificates(&self) {
        let config = self.config.config();
        self.service.server.recheck();
        self.service.issuing.store(Arc::new(issuing(config, self.spec.advertised(config), &self.tls)));
        self.service.status.update(|facts| {
            facts.server_certificate_expires = self.tls.expires();
            facts.client_ca_expires = self.tls.client_ca_expires();
        });
        let (certificates, list) = self.tls.followed();
        self.watcher.set_files(Unit::Tls, certificates);
        self.watcher.set_files(Unit::Crl, list);
    }
}

/// Returns what the admin socket needs to know to issue certificates.
pub(super) fn issuing(config: &Config, advertise: Option<Advertise>, tls: &Tls) -> Issuing {
    let Boot { name, node, .. } = &config.boot;
    Issuing { plugin: name.clone(), advertise, ours: tls.is_ours(), node: node.clone() }
}
