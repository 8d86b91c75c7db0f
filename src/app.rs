//! From a configuration to a running service: build → bind → run, reload and drain.
//!
//! The only file that names every room, with its own parts for TLS, spec files and reloads. What is wrong with the
//! configuration ends the program before any socket is bound; what is found on the backends after a crash is mended
//! before any request is taken.

pub(crate) mod certificates;
mod convert;
mod error;
mod node_name;
mod readers;
pub mod recovery;
mod reload;
mod revocations;
mod sockets;
pub(crate) mod spec;
mod tls;
mod watchdog;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use self::convert::{in_force, instance, to_limits, to_transport};
pub use self::error::ServeError;
use self::reload::{Asked, Reloader};
use self::tls::Tls;
use self::watchdog::{Watchdog, status_line};
use crate::admin::{self, Admin, Board, Enrolment, Issuing};
use crate::backend;
use crate::catalog::{self, Catalog, Location};
use crate::config::watch::{Unit, Watcher};
use crate::config::{self, Config, Fault, Faults, Loaded, Paths};
use crate::error::chain;
use crate::files::{PATIENCE, within};
use crate::host::{Caller, Via};
use crate::model::host::HostName;
use crate::process::clock::Clock;
use crate::process::log::{self as process_log, Log};
pub use crate::process::signal::survive_file_size_limit;
use crate::process::signal::{self, EarlyReload, Signal};
use crate::process::systemd::{self, Inheritance};
use crate::process::{Drain, rlimit, threads};
use crate::protocol::{self, Protocols};
use crate::transport::{self, Bound, Listen, Revocation, Server};
use crate::volume::Service;

/// How long requests in flight have to finish when the service ends.
const DRAIN: Duration = Duration::from_secs(20);

/// How long the start waits for backends before it serves without those that do not answer.
const BRING_UP: Duration = Duration::from_secs(5);

/// How many files may be open beside connections over the network: the catalog, backends, Unix sockets.
const FILES_BESIDE: u64 = 1024;

/// What can be read again.
const EVERYTHING: [Unit; 3] = Unit::ALL;

/// Something that the running service must act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A signal was received.
    Signal(Signal),
    /// A watched file changed: read it again.
    Changed(Unit),
}

impl From<Signal> for Event {
    fn from(signal: Signal) -> Self {
        Self::Signal(signal)
    }
}

/// How often it is looked whether the server's certificate is to be made anew.
const RENEWAL: Duration = Duration::from_secs(6 * 3600);

/// How often it is looked whether the clock was set.
const CLOCK: Duration = Duration::from_secs(10);

/// Serves until a signal ends it. Prints one `listening on ADDRESS` line for each listener, then `ready`.
pub fn serve(paths: &Paths, file: Option<&Path>) -> Result<(), ServeError> {
    let inheritance = Inheritance::take()
        .map_err(|source| ServeError::System { what: "systemd's sockets cannot be taken", source })?;
    // Dropped last: it waits a moment for what is said until then.
    let _log = Log::start().map_err(|source| ServeError::System { what: "no thread for the log", source })?;
    let early =
        signal::survive_reload().map_err(|source| ServeError::System { what: "no signals", source })?;
    threads::require(threads_needed())
        .map_err(|source| ServeError::System { what: "too few threads", source })?;
    let mut loaded = read(paths, file)?;
    if let Some(file) = loaded.missing_file() {
        log::info!("no configuration: there is no {}, the defaults hold", file.display());
    }
    let needed = loaded.config.limits.connections as u64 + FILES_BESIDE;
    if let Some(files) = rlimit::raise_limit().filter(|files| *files < needed) {
        log::warn!(
            "{files} files may be open at most (LimitNOFILE), too few for limits.connections and the rest: {needed}"
        );
    }
    // A shared catalog may be long in answering, and what is wrong with the certificates is told before; unless it takes
    // the catalog to know for which name they are. The lock of one that is not shared comes first: a second service on
    // the same files ends before it has changed any.
    let shared = matches!(loaded.config.catalog, Location::Etcd(_));
    let first =
        (shared && loaded.config.node_configured).then(|| Tls::prepare(&loaded.config)).transpose()?;
    let catalog = catalog::open(&loaded.config.catalog, &instance(&loaded.config))?;
    let naming = node_name::find(&mut loaded.config, &*catalog);
    let tls = first.map_or_else(|| Tls::prepare(&loaded.config), Ok)?;
    make_default_backend(paths, &loaded.config)?;

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("volhost")
        .max_blocking_threads(backend::BLOCKING_THREADS)
        .build()
        .map_err(|source| ServeError::System { what: "no threads", source })?;
    let result = runtime.block_on(async {
        let served = async {
            node_name::record(&naming, &*catalog).await?;
            App::build(paths, file, loaded, tls, Arc::clone(&catalog), inheritance, &early).await?.run().await
        };
        let result = served.await;
        catalog.close().await;
        result
    });
    // Threads that hang in the storage of a backend are not waited for: what they did is looked at by the next start.
    runtime.shutdown_background();
    result
}

/// How many threads the service cannot do without: the runtime's workers, and those for signals, the catalog, followed
/// files, reads and backends.
fn threads_needed() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 16
}

/// Reads and checks the configuration, with the checks that need our certificates.
pub fn load(paths: &Paths, file: Option<&Path>) -> Result<Loaded, Faults> {
    read(paths, file).map_err(|error| match error {
        ServeError::Configuration(faults) => faults,
        error => Faults::from(Fault {
            file: file.map_or_else(|| paths.config(), Path::to_path_buf),
            line: 0,
            column: 0,
            field: String::new(),
            what: chain(&error),
            hint: None,
        }),
    })
}

/// The same for the start, which tells a configuration that is wrong from files that do not answer.
fn read(paths: &Paths, file: Option<&Path>) -> Result<Loaded, ServeError> {
    let (paths, file) = (paths.clone(), file.map(Path::to_path_buf));
    let read = move || {
        let loaded = config::load(&paths, file.as_deref())?;
        match tls::fault_of_client_ca(&loaded).or_else(|| tls::fault_of_shared_ca(&loaded)) {
            Some(fault) => Err(Faults::from(fault)),
            None => Ok(loaded),
        }
    };
    within(read)?.map_err(ServeError::Configuration)
}

/// The mode of a backend's directory that volhost makes: users of this machine must not come to the files in volumes,
/// of which some may be set-user-ID. Engines pass as root, or as the user that volhost runs as.
const BACKEND_MODE: u32 = 0o710;

/// The backend that exists without any map is a directory of ours, made where it is missing.
fn make_default_backend(paths: &Paths, config: &Config) -> Result<(), ServeError> {
    let own = paths.volumes();
    let needed = !config.map.exists() && config.backends.values().any(|backend| backend.path == own);
    if needed {
        crate::files::make_dir(&own, BACKEND_MODE)
            .map_err(|source| ServeError::Directory { path: own, source })?;
    }
    Ok(())
}

/// A service that is bound to its addresses and not serving yet.
struct App {
    server: Arc<Server>,
    bound: Vec<Bound>,
    protocols: Arc<Protocols>,
    admin: Arc<Admin>,
    service: Arc<Service>,
    board: Arc<Board>,
    drain: Drain,
    reloader: Reloader,
    reloads: mpsc::UnboundedSender<Asked>,
    asked: mpsc::UnboundedReceiver<Asked>,
    events: mpsc::UnboundedReceiver<Event>,
    watchdog: Watchdog,
}

impl App {
    async fn build(
        paths: &Paths,
        file: Option<&Path>,
        loaded: Loaded,
        tls: Tls,
        catalog: Arc<dyn Catalog>,
        inheritance: Inheritance,
        early: &EarlyReload,
    ) -> Result<Self, ServeError> {
        let (sender, events) =
            signal::listen(early).map_err(|source| ServeError::System { what: "no signals", source })?;
        let config = &loaded.config;
        if let Some(client) = tls.client() {
            tls::record(client, &*catalog).await?;
        }

        let service =
            Arc::new(Service::new(Arc::clone(&catalog), in_force(config, &backend::Map::default())));
        service.bring_up(BRING_UP).await;
        service.look_at_clones();

        let mut listen: Vec<_> = config.listen.iter().map(to_transport).collect();
        listen.push(Listen::Admin(config.admin.clone()));
        let bound = transport::bind(&listen, inheritance.sockets).await?;

        let drain = Drain::new();
        let limits = Arc::new(ArcSwap::from_pointee(to_limits(config)));
        let seen = Arc::clone(&service);
        let server = Server::new(transport::Setup {
            node: config.node.clone(),
            limits: Arc::clone(&limits),
            tls: tls.state(),
            revocation: Arc::new(Recorded(Arc::clone(&catalog))),
            on_seen: Arc::new(move |caller, certified| seen.note_seen(caller, certified)),
            drain: drain.clone(),
        });

        let board = Arc::new(Board::default());
        let global = config.scope == config::Scope::Global;
        let request_limits = Arc::clone(&limits);
        let protocols = Protocols::new(Arc::clone(&service), move || {
            let limits = request_limits.load();
            protocol::Settings { body_bytes: limits.body_bytes, request: limits.request, global }
        });
        let issuing = Arc::new(ArcSwap::from_pointee(issuing(config, &bound, &tls)));
        let desk = desk(&catalog, &tls, &issuing, &server, &sender);
        if let Some(news) = catalog.news() {
            tokio::spawn(revocations::follow(news, Arc::clone(&desk.changed)));
        }
        let operator = Caller { host: config.node.clone(), via: Via::Admin, address: None };
        let counted = Arc::clone(&server);
        let counts = move || admin::Counts {
            connections: counted.connections().values().sum(),
            log_lines_dropped: process_log::dropped(),
        };
        let (reloads, asked) = mpsc::unbounded_channel();
        let reload = reload_by(reloads.clone(), &server, &board);
        let admin = Admin::new(Arc::clone(&service), Arc::clone(&board), desk, operator, counts, reload);
        board.update(|facts| {
            facts.name.clone_from(&config.name);
            facts.node = config.node.to_string();
            facts.listening = addresses(&bound).collect();
            facts.catalog = catalog.location().into();
            facts.server_certificate_expires = tls.expires();
        });

        let watcher = Watcher::start(reload::followed(&loaded.files, &tls), move |unit| {
            // Nobody listens any more only while the process ends.
            let _ = sender.send(Event::Changed(unit));
        })
        .map_err(|source| ServeError::System { what: "files cannot be followed", source })?;
        let reloader = Reloader {
            paths: paths.clone(),
            file: file.map(Into::into),
            booted: loaded.config.clone(),
            hostname: None,
            config: loaded.config,
            in_force: loaded.files,
            rejected: BTreeSet::new(),
            tls,
            catalog: Arc::clone(&catalog),
            service: Arc::clone(&service),
            limits,
            issuing,
            server: Arc::clone(&server),
            board: Arc::clone(&board),
            watcher,
            listening: addresses(&bound).collect(),
        };
        let watchdog = Watchdog::new(inheritance.watchdog, catalog, Arc::clone(&board));
        Ok(Self {
            server,
            bound,
            protocols,
            admin,
            service,
            board,
            drain,
            reloader,
            reloads,
            asked,
            events,
            watchdog,
        })
    }

    async fn run(self) -> Result<(), ServeError> {
        let Self {
            server,
            bound,
            protocols,
            admin,
            service,
            board,
            drain,
            reloader,
            reloads,
            asked,
            mut events,
            mut watchdog,
        } = self;
        let addresses: Vec<_> = addresses(&bound).collect();
        let looked_after = Arc::clone(&server);
        for bound in bound {
            let server = Arc::clone(&server);
            if matches!(bound.listen(), Listen::Admin(_)) {
                tokio::spawn(server.run(bound, warp::service(Arc::clone(&admin).filter())));
            } else {
                tokio::spawn(server.run(bound, warp::service(Arc::clone(&protocols).filter())));
            }
        }
        tokio::task::block_in_place(|| reloader.write_spec());
        tokio::spawn(Arc::clone(&service).keep_up());
        tokio::spawn(Arc::clone(&service).keep_trash());
        tokio::spawn(Arc::clone(&service).keep_copies());
        tokio::spawn(sockets::keep(looked_after, Arc::clone(&board)));
        board.update(|facts| facts.since = Some(OffsetDateTime::now_utc()));
        announce(&addresses);
        systemd::ready(&status_line(&board.read()));

        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.tick().await;
        let (clock, mut looks) = (Clock::default(), tokio::time::interval(CLOCK));
        tokio::spawn(reloader.run(asked));
        loop {
            let units: &[Unit] = tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Signal(Signal::Reload)) => &EVERYTHING,
                    Some(Event::Changed(Unit::Config)) => &[Unit::Config],
                    Some(Event::Changed(Unit::Tls)) => &[Unit::Tls],
                    Some(Event::Changed(Unit::Crl)) => &[Unit::Crl],
                    Some(Event::Signal(Signal::Terminate)) | None => break,
                },
                // Making our own certificates anew, where it is time, is part of reading them.
                _ = renewal.tick() => &[Unit::Tls],
                // A clock that was set may make a certificate of ours too old, or too new.
                _ = looks.tick() => if clock.look().set_by.is_some() { &[Unit::Tls] } else { &[] },
                () = watchdog.due() => {
                    watchdog.beat();
                    &[]
                }
            };
            if !units.is_empty() {
                // The receiver ends only by a panic, which was logged.
                let _ = reloads.send(Asked::of(units));
            }
        }
        let draining = format!("draining: requests in flight have {} s", DRAIN.as_secs());
        log::info!("{draining}");
        systemd::stopping(&draining);
        drain.start(DRAIN);
        let unfinished = drain.drained().await;
        if unfinished > 0 {
            log::warn!("{unfinished} connections did not finish in time");
        }
        service.write_last().await;
        Ok(())
    }
}

/// Revocations as the catalog records them.
struct Recorded(Arc<dyn Catalog>);

impl Revocation for Recorded {
    fn refused(&self, host: &HostName, serial: &str) -> bool {
        self.0.view().is_revoked(host, serial)
    }
}

/// The addresses that engines are served at, with their real ports.
fn addresses(bound: &[Bound]) -> impl Iterator<Item = String> + '_ {
    bound.iter().filter(|bound| !matches!(bound.listen(), Listen::Admin(_))).map(Bound::address)
}

fn issuing(config: &Config, bound: &[Bound], tls: &Tls) -> Issuing {
    let listening: Vec<_> = addresses(bound).collect();
    Issuing {
        plugin: config.name.clone(),
        advertise: spec::advertised(config, &listening),
        ours: tls.is_ours(),
        node: config.node.clone(),
    }
}

/// Reloads everything, for somebody who waits for it.
fn reload_by(
    reloads: mpsc::UnboundedSender<Asked>,
    server: &Arc<Server>,
    board: &Arc<Board>,
) -> admin::Reload {
    let (server, board) = (Arc::clone(server), Arc::clone(board));
    Box::new(move |forced| {
        let (done, wait) = oneshot::channel();
        // Where nobody reloads any more `done` is dropped, which ends the wait.
        let _ = reloads.send(Asked { units: &EVERYTHING, forced, done: Some(done) });
        let (server, board) = (Arc::clone(&server), Arc::clone(&board));
        Box::pin(async move {
            // A directory that hangs is not waited for longer than files are.
            let _ = tokio::time::timeout(PATIENCE, sockets::look_after(&server, &board)).await;
            wait.await.is_ok()
        })
    })
}

fn desk(
    catalog: &Arc<dyn Catalog>,
    tls: &Tls,
    issuing: &Arc<ArcSwap<Issuing>>,
    server: &Arc<Server>,
    events: &mpsc::UnboundedSender<Event>,
) -> Enrolment {
    let (issuing, server, events) = (Arc::clone(issuing), Arc::clone(server), events.clone());
    Enrolment {
        catalog: Arc::clone(catalog),
        pki: tls.pki().clone(),
        issuing: Arc::new(move || Issuing::clone(&issuing.load())),
        changed: Arc::new(move || {
            server.recheck();
            let _ = events.send(Event::Changed(Unit::Tls));
        }),
        signing: tokio::sync::Mutex::default(),
    }
}

/// Tells who started the service where it listens, and that it is ready. That nobody reads it, or that it cannot be
/// written, changes nothing: whoever asked for it may live on well, and so does the service.
fn announce(addresses: &[String]) {
    let lines = addresses.iter().map(|address| format!("listening on {address}\n")).collect::<String>();
    let tell = move || {
        // Without the lock of the standard library, on which the end of the process would wait.
        let told = std::io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
        if let Err(error) = told.and_then(|mut out| out.write_all(format!("{lines}ready\n").as_bytes())) {
            log::warn!("the addresses could not be told on the standard output: {error}");
        }
    };
    // It may be a pipe that nobody reads, for which nothing here waits.
    if let Err(error) = std::thread::Builder::new().name("announcement".into()).spawn(tell) {
        log::warn!("the addresses could not be told on the standard output: {error}");
    }
}
