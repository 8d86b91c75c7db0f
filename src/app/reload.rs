//! Reloads: three units, each all or nothing on its own, so that a slip in the map cannot stop a revocation.
//!
//! A reload reads and checks first and swaps last. Reading is done by a thread of its own for each unit, which may
//! hang; what is read is put in force here, one after the other, from memory. One that is rejected changes nothing, is
//! logged with every fault, and stays on the board until that unit is good again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::convert::to_volumes;
use super::node_name;
use super::readers::{Ask, How, Part, Turns};
use super::spec::{self, SpecFile};
use super::tls::{self, Outcome, ReadList, Tls, worded};
use super::watchdog::status_line;
use crate::admin::status::Reloaded;
use crate::admin::{Board, Issuing};
use crate::catalog::Catalog;
use crate::config::watch::{FileSnapshot, Unit, Watcher};
use crate::config::{self, Config, Fault, Loaded, Paths, Rejected};
use crate::error::chain;
use crate::files::{self, Unfinished};
use crate::model::host::HostName;
use crate::model::limits::Limits;
use crate::process::systemd;
use crate::transport::Server;
use crate::volume::Service;

/// How often it is looked whether the spec file is still there, and whether files are still followed.
const LOOK: Duration = Duration::from_secs(5);

/// How long new backends are waited for before the next unit has its turn.
const BRING_UP: Duration = Duration::from_millis(200);

/// How long the catalog is waited for, which may be out of reach, to record a certificate.
const RECORD: Duration = Duration::from_secs(1);

/// What a reload needs to know and may change.
pub(super) struct Reloader {
    pub(super) paths: Paths,
    pub(super) file: Option<PathBuf>,
    /// The configuration in force. A reload replaces its live part.
    pub(super) config: Config,
    /// The files that the configuration in force was read from.
    pub(super) in_force: Vec<FileSnapshot>,
    /// The machine's hostname, as it was last looked at.
    pub(super) hostname: Option<HostName>,
    pub(super) tls: Tls,
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) service: Arc<Service>,
    pub(super) limits: Arc<ArcSwap<Limits>>,
    pub(super) issuing: Arc<ArcSwap<Issuing>>,
    pub(super) server: Arc<Server>,
    pub(super) board: Arc<Board>,
    pub(super) watcher: Watcher,
    /// The units whose files are not in force as they stand.
    pub(super) rejected: BTreeSet<Unit>,
    /// The real addresses served.
    pub(super) listening: Vec<String>,
}

/// What is to be read again.
pub(super) struct Asked {
    pub(super) units: &'static [Unit],
    /// The operator means what would be refused otherwise.
    pub(super) forced: bool,
    /// Told when it is done, where somebody waits.
    pub(super) done: Option<oneshot::Sender<()>>,
}

impl Asked {
    /// By somebody who does not wait.
    pub(super) fn of(units: &'static [Unit]) -> Self {
        Self { units, forced: false, done: None }
    }
}

/// What a thread read.
enum Read {
    Config(Box<ReadConfig>),
    Tls(Option<Box<tls::Read>>),
    List(ReadList),
    Spec(SpecFile),
}

/// A configuration as it was read, with what only a look at other files can say of it.
struct ReadConfig {
    loaded: Result<Loaded, Rejected>,
    /// The machine's hostname, where the configuration names no `node`.
    hostname: Option<HostName>,
    needs_restart: Vec<&'static str>,
    fault: Option<Fault>,
    /// The certificates, where the configuration cannot come into force without them.
    certificates: Option<tls::Read>,
}

/// What is to be followed, as it was when it was last read.
pub(super) fn followed(files: &[FileSnapshot], tls: &Tls) -> BTreeMap<Unit, Vec<FileSnapshot>> {
    let (certificates, list) = tls.followed();
    BTreeMap::from([(Unit::Config, files.to_vec()), (Unit::Tls, certificates), (Unit::Crl, list)])
}

impl Reloader {
    /// Does what is asked for until nobody can ask any more.
    pub(super) async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Asked>) {
        let (mut turns, mut read) = Turns::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut busy = false;
        loop {
            let due = turns.due();
            let overdue = async {
                match due {
                    Some(due) => sleep_until(Instant::from_std(due)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                more = asked.recv() => match more {
                    Some(asked) => self.asked(&mut turns, asked),
                    None => return,
                },
                // The sender of what was read lives in `turns`.
                Some((part, read)) = read.recv() => self.ended(&mut turns, part, read).await,
                () = overdue => self.give_up(&mut turns),
                _ = looks.tick() => self.look(&mut turns),
            }
            if busy != turns.is_busy() {
                busy = turns.is_busy();
                if busy { systemd::reloading() } else { systemd::ready(&status_line(&self.board.read())) }
            }
            turns.tell();
        }
    }

    fn asked(&mut self, turns: &mut Turns<Read>, asked: Asked) {
        let Asked { units, forced, done } = asked;
        let how = How { forced, ..How::default() };
        let begun: Vec<_> =
            units.iter().map(|unit| (Part::Unit(*unit), self.ask(turns, Part::Unit(*unit), how))).collect();
        if let Some(done) = done {
            turns.wait(&begun, done);
        }
    }

    /// Has a part read, now or after the read under way.
    fn ask(&mut self, turns: &mut Turns<Read>, part: Part, how: How) -> Ask {
        let ask = turns.ask(part, how);
        if let Ask::Begin(how) = ask
            && let Err(error) = self.begin(turns, part, how)
        {
            self.unread(part, &error);
        }
        ask
    }

    /// Has another part read for the sake of the one that was just read; who waits for that one waits for both.
    fn then(&mut self, turns: &mut Turns<Read>, part: Part, next: Part, how: How) {
        let ask = self.ask(turns, next, how);
        turns.wait_on(part, next, ask);
    }

    fn begin(&self, turns: &mut Turns<Read>, part: Part, how: How) -> Result<(), Unfinished> {
        match part {
            Part::Unit(Unit::Config) => turns.begin(part, how, self.read_config(how.forced)),
            Part::Unit(Unit::Tls) => {
                let reading = self.tls.reading(&self.config, how.forced, how.with_list);
                turns.begin(part, how, move || Read::Tls(reading.map(|reading| Box::new(reading.read()))))
            }
            Part::Unit(Unit::Crl) => match self.tls.list_to_read() {
                Some(path) => turns.begin(part, how, move || Read::List(ReadList::read(path.as_deref()))),
                None => {
                    let reading = self.tls.reading(&self.config, how.forced, true);
                    turns.begin(part, how, move || Read::Tls(reading.map(|reading| Box::new(reading.read()))))
                }
            },
            Part::Spec => {
                let (config, paths) = (self.config.clone(), self.paths.clone());
                let listening = self.listening.clone();
                turns.begin(part, how, move || Read::Spec(spec::put(&config, &paths, &listening, how.mend)))
            }
        }
    }

    /// How the configuration is read, with what is in force at this moment.
    fn read_config(&self, forced: bool) -> impl FnOnce() -> Read + Send + use<> {
        let (paths, file, boot) = (self.paths.clone(), self.file.clone(), self.config.boot.clone());
        let in_force = if forced { Vec::new() } else { self.in_force.clone() };
        let ours_only = self.tls.trusts_ours_only();
        let client_ca = self.config.live.tls.client_ca.clone();
        let certificates = self.tls.reading(&self.config, forced, true);
        move || {
            let mut loaded = config::reload(&paths, file.as_deref(), &in_force);
            let (mut hostname, mut needs_restart, mut fault, mut read) = (None, Vec::new(), None, None);
            if let Ok(loaded) = &mut loaded {
                // The certificates are a unit of their own: only others than those in force are looked at.
                if !ours_only || loaded.config.live.tls.client_ca != client_ca {
                    fault = tls::fault_of_client_ca(loaded);
                }
                if !loaded.config.boot.node_configured {
                    hostname = Some(loaded.config.boot.node.clone());
                    loaded.config.boot.node.clone_from(&boot.node);
                }
                needs_restart = boot.changed(&loaded.config.boot);
                loaded.config.boot = boot;
                if fault.is_none() && loaded.config.live.hosts.is_none() && !ours_only {
                    // The list of hosts must not go before somebody else's authority is gone.
                    read = certificates.map(|reading| reading.with(&loaded.config).read());
                }
            }
            Read::Config(Box::new(ReadConfig { loaded, hostname, needs_restart, fault, certificates: read }))
        }
    }

    /// Puts in force what was read, or tells why not.
    async fn ended(&mut self, turns: &mut Turns<Read>, part: Part, read: Option<Read>) {
        if let Some(how) = turns.ended(part) {
            if let Part::Unit(unit) = part {
                self.board.trouble(unit.as_str(), None);
            }
            // Parsing a large list takes its time.
            tokio::task::block_in_place(|| match read {
                None => self.unread(part, &Unfinished::BrokeOff),
                Some(Read::Config(read)) => self.put_config_in_force(turns, *read, how),
                Some(Read::Tls(read)) => self.put_certificates_in_force(turns, part, read, how),
                Some(Read::List(read)) => self.put_list_in_force(turns, read, how),
                Some(Read::Spec(file)) => self.tell_spec(file),
            });
            if matches!(part, Part::Unit(Unit::Config | Unit::Tls)) {
                self.record().await;
            }
            if part == Part::Unit(Unit::Config) {
                // New backends come into force before anybody asks for them.
                self.service.bring_up(BRING_UP).await;
            }
        }
        if let Some(how) = turns.again(part)
            && let Err(error) = self.begin(turns, part, how)
        {
            self.unread(part, &error);
        }
    }

    fn give_up(&mut self, turns: &mut Turns<Read>) {
        for (part, why) in turns.give_up() {
            let told = format!("{}: {}", part.as_str(), chain(&why));
            self.board.trouble(part.as_str(), Some(&told));
            self.unread(part, &why);
        }
    }

    /// Looks at what tells nothing by itself: whether the spec file is still there, and whether files are followed.
    fn look(&mut self, turns: &mut Turns<Read>) {
        if turns.is_idle(Part::Spec) {
            self.ask(turns, Part::Spec, How { mend: true, ..How::default() });
        }
        for unit in Unit::ALL {
            // One that hangs has told so.
            let held_up = self.watcher.held_up(unit).filter(|_| !turns.hangs(Part::Unit(unit)));
            let told = held_up.map(|why| format!("{}: changes go unnoticed: {}", unit.as_str(), chain(&why)));
            let key = format!("{} followed", unit.as_str());
            if self.board.trouble(&key, told.as_deref())
                && let Some(told) = told
            {
                log::warn!("{told}");
            }
        }
    }

    /// A part could not be read.
    fn unread(&mut self, part: Part, why: &Unfinished) {
        match part {
            Part::Unit(unit) => self.tell(unit, vec![chain(why)]),
            Part::Spec => log::warn!("the spec file could not be looked at: {}", chain(why)),
        }
    }

    /// Tells what became of a unit, in the log and on the board.
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
        self.board.reloaded(Reloaded { at: OffsetDateTime::now_utc(), unit: word, faults });
    }

    fn put_config_in_force(&mut self, turns: &mut Turns<Read>, read: ReadConfig, how: How) {
        let part = Part::Unit(Unit::Config);
        let files = match &read.loaded {
            Ok(loaded) => loaded.files.clone(),
            Err(rejected) => rejected.files.clone(),
        };
        match self.swap_config(read, how.forced) {
            Ok(certificates_too) => {
                self.tell(Unit::Config, Vec::new());
                self.in_force.clone_from(&files);
                // The server's certificate holds its names before anybody is told them.
                let next = if certificates_too { Part::Unit(Unit::Tls) } else { Part::Spec };
                self.then(turns, part, next, How { forced: how.forced, ..How::default() });
            }
            Err(faults) => self.tell(Unit::Config, faults),
        }
        self.watcher.set_files(Unit::Config, files);
    }

    /// Checks and swaps; answers whether the certificates are to be read anew for it.
    fn swap_config(&mut self, read: ReadConfig, forced: bool) -> Result<bool, Vec<String>> {
        let ReadConfig { loaded, hostname, needs_restart, fault, certificates } = read;
        let loaded = loaded.map_err(|Rejected { faults, files: _ }| {
            faults.iter().map(ToString::to_string).collect::<Vec<_>>()
        })?;
        if let Some(fault) = fault {
            return Err(vec![fault.to_string()]);
        }
        if let Some(hostname) = hostname {
            self.note_hostname(hostname);
        }
        let new = loaded.config;
        let changed = self.config.live.changed(&new.live);
        if let Some(certificates) = certificates
            && let Outcome::Bad(error) = self.tls.put_in_force(certificates, &new, forced)
        {
            return Err(vec![worded(&error)]);
        }
        if new.live.hosts.is_none() && !self.tls.trusts_ours_only() {
            let told = "the certificates in force let in hosts of somebody else's authority: without \"hosts\" all of them";
            return Err(vec![told.into()]);
        }
        if !needs_restart.is_empty() {
            log::warn!("a restart is needed for what changed in {}", needs_restart.join(", "));
        }
        self.limits.store(Arc::new(new.live.limits.clone()));
        self.catalog.limit_requests(new.live.limits.request);
        let before = self.service.in_force();
        self.service.put_in_force(to_volumes(&new, &before.map));
        self.service.look_at_clones();
        self.config = new;
        self.board.update(|facts| {
            facts.needs_restart = needs_restart.iter().map(ToString::to_string).collect();
        });
        // A list of hosts may be what the certificates were waiting for.
        Ok(["tls", "advertise"].iter().any(|field| changed.contains(field))
            || self.rejected.contains(&Unit::Tls))
    }

    /// Tells once that the machine was given another hostname, which changes nothing.
    fn note_hostname(&mut self, hostname: HostName) {
        if self.hostname.as_ref() != Some(&hostname) {
            if hostname != self.config.boot.node {
                log::warn!("{}", node_name::told(&self.config.boot.node, &hostname));
            }
            self.hostname = Some(hostname);
        }
    }

    /// Puts certificates in force that were read for `part`: for themselves, or for a list that came with them.
    fn put_certificates_in_force(
        &mut self,
        turns: &mut Turns<Read>,
        part: Part,
        read: Option<Box<tls::Read>>,
        how: How,
    ) {
        let outcome = match read {
            Some(read) => self.tls.put_in_force(*read, &self.config, how.forced),
            None => Outcome::Good,
        };
        let good = matches!(outcome, Outcome::Good);
        let fault = match outcome {
            Outcome::Good => None,
            Outcome::Bad(error) => Some(error),
            Outcome::WithList => {
                return self.then(turns, part, part, How { with_list: true, ..how });
            }
        };
        let unit = if part == Part::Unit(Unit::Crl) { Unit::Crl } else { Unit::Tls };
        self.after_certificates();
        self.tell(unit, fault.iter().map(worded).collect());
        // A list that came before its authority is good with it, and the other way round.
        let other = if unit == Unit::Crl { Unit::Tls } else { Unit::Crl };
        if good && self.rejected.contains(&other) {
            self.then(turns, part, Part::Unit(other), how);
        }
        self.then(turns, part, Part::Spec, How::default());
    }

    fn put_list_in_force(&mut self, turns: &mut Turns<Read>, read: ReadList, how: How) {
        let outcome = self.tls.put_list_in_force(read, how.forced);
        self.after_certificates();
        self.tell(Unit::Crl, outcome.err().iter().map(worded).collect());
        // An authority that came before its list is good with it.
        if self.rejected.contains(&Unit::Tls) {
            let how = How { with_list: true, ..how };
            self.then(turns, Part::Unit(Unit::Crl), Part::Unit(Unit::Tls), how);
        }
    }

    fn after_certificates(&self) {
        self.server.recheck();
        self.issuing.store(Arc::new(Issuing {
            plugin: self.config.boot.name.clone(),
            advertise: spec::advertised(&self.config, &self.listening),
            ours: self.tls.is_ours(),
            node: self.config.boot.node.clone(),
        }));
        self.board.update(|facts| facts.server_certificate_expires = self.tls.expires());
        let (certificates, list) = self.tls.followed();
        self.watcher.set_files(Unit::Tls, certificates);
        self.watcher.set_files(Unit::Crl, list);
    }

    /// Records this machine's certificate. A catalog that is out of reach holds up no reload.
    async fn record(&self) {
        let Some(client) = self.tls.client().cloned() else { return };
        let catalog = Arc::clone(&self.catalog);
        let recorded = tokio::spawn(async move {
            if let Err(error) = tls::record(&client, &*catalog).await {
                log::warn!("this machine's certificate could not be recorded: {}", chain(&error));
            }
        });
        // It goes on beside the next reloads.
        let _ = timeout(RECORD, recorded).await;
    }

    /// Writes the spec file at the start.
    pub(super) fn write_spec(&self) {
        let (config, paths, listening) = (self.config.clone(), self.paths.clone(), self.listening.clone());
        match files::within(move || spec::put(&config, &paths, &listening, false)) {
            Ok(file) => self.tell_spec(file),
            Err(why) => log::warn!("no spec file was written: {}", chain(&why)),
        }
    }

    /// Tells what became of the spec file, once. What keeps it from being written is no reason not to serve.
    fn tell_spec(&self, file: SpecFile) {
        let SpecFile { fact, done, fault, is_trouble } = file;
        if let Some(done) = done {
            log::info!("{done}");
        }
        let mut is_news = self.board.trouble(Part::Spec.as_str(), fault.as_deref().filter(|_| is_trouble));
        self.board.update(|facts| {
            is_news |= facts.spec != fact;
            facts.spec.clone_from(&fact);
        });
        if let Some(fault) = fault.filter(|_| is_news) {
            log::warn!("{fault}");
        }
    }
}
