//! From a configuration to a running service: build → bind → run, reload and drain.
//!
//! This is the only module that uses every other one; it has its own parts for TLS, spec files and reloads. A fault of
//! the configuration ends the program before any socket is bound; anything that a crash left half-done on the backends
//! is recovered before any request is taken.

pub(crate) mod certificates;
mod config_unit;
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

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use self::config_unit::ConfigUnit;
use self::convert::{instance, to_monitoring, to_transport, to_volumes};
pub use self::error::ServeError;
use self::reload::{ReloadRequest, Reloader, Running, issuing};
use self::spec::SpecWriter;
use self::tls::Tls;
use self::watchdog::{Watchdog, status_line};
use crate::admin::{self, Admin, Enrolment, ServiceStatus};
use crate::backend;
use crate::catalog::{self, Catalog, Location};
use crate::config::watch::{Unit, Watcher};
use crate::config::{self, Config, Fault, Faults, Loaded, Paths};
use crate::error::chain;
use crate::files::{READ_TIMEOUT, within};
use crate::host::{Caller, Via};
use crate::model::host::HostName;
use crate::monitoring::{self, Monitoring};
use crate::process::clock::Clock;
use crate::process::log::{self as process_log, Log};
pub use crate::process::signal::survive_file_size_limit;
use crate::process::signal::{self, EarlyReload, Signal};
use crate::process::systemd::{self, Inheritance};
use crate::process::{Drain, rlimit, threads};
use crate::protocol::{self, Protocols};
use crate::transport::{self, Bound, Listen, Revocation, Server};
use crate::volume::Service;

/// How long requests in flight may take when the service ends.
const DRAIN: Duration = Duration::from_secs(20);

/// How long the start waits for backends; then it serves without those that do not answer.
const BRING_UP: Duration = Duration::from_secs(5);

/// The number of files that may be open besides connections over the network: the catalog, backends, Unix sockets.
const FILES_BESIDE: u64 = 1024;

/// An event that the running service must act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// A signal was received.
    Signal(Signal),
    /// A watched file has changed: read it again.
    Changed(Unit),
}

impl From<Signal> for Event {
    fn from(signal: Signal) -> Self {
        Self::Signal(signal)
    }
}

/// How often the server's certificate is checked for renewal.
const RENEWAL: Duration = Duration::from_secs(6 * 3600);

/// How often the clock is checked for having been set.
const CLOCK: Duration = Duration::from_secs(10);

/// Serves until a signal ends it. Prints one `listening on ADDRESS` line for each listener, then `ready`.
pub fn serve(paths: &Paths, file: Option<&Path>) -> Result<(), ServeError> {
    let inheritance = Inheritance::take()
        .map_err(|source| ServeError::System { what: "systemd's sockets cannot be taken", source })?;
    // Dropped last: it waits a moment for the lines logged until then.
    let _log = Log::start().map_err(|source| ServeError::System { what: "no thread for the log", source })?;
    let early =
        signal::survive_reload().map_err(|source| ServeError::System { what: "no signals", source })?;
    threads::require(threads_needed())
        .map_err(|source| ServeError::System { what: "too few threads", source })?;
    let mut loaded = read(paths, file)?;
    if let Some(file) = loaded.missing_file() {
        log::info!("no configuration: there is no {}, the defaults hold", file.display());
    }
    let needed = loaded.config.live.limits.connections as u64 + FILES_BESIDE;
    if let Some(files) = rlimit::raise_limit().filter(|files| *files < needed) {
        log::warn!(
            "{files} files may be open at most (LimitNOFILE), too few for limits.connections and the rest: {needed}"
        );
    }
    // A shared catalog may answer late, so faults of the certificates are reported before the catalog is asked, unless
    // only the catalog knows the name that they are for. A catalog that is not shared is locked first: a second service
    // on the same files ends before it has changed any.
    let shared = matches!(loaded.config.boot.catalog, Location::Etcd(_));
    let first =
        (shared && loaded.config.boot.node_configured).then(|| Tls::prepare(&loaded.config)).transpose()?;
    let monitoring = monitoring::Prepared::new();
    let catalog = catalog::open(&loaded.config.boot.catalog, &instance(&loaded.config))?;
    let catalog = monitoring.timed(catalog);
    let node = node_name::find(&mut loaded.config, &*catalog);
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
            node_name::record(&node, &*catalog).await?;
            let start = Start { paths, file, loaded, tls, catalog: Arc::clone(&catalog), monitoring };
            start.build(inheritance, &early).await?.run().await
        };
        let result = served.await;
        catalog.close().await;
        result
    });
    // Threads that hang in a backend's storage are not waited for: the next start examines what they did.
    runtime.shutdown_background();
    result
}

/// Returns the number of threads that the service needs: the runtime's workers, and those for signals, the catalog,
/// followed files, reads and backends.
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

/// Does the same as [`load`], but distinguishes a wrong configuration from files that do not answer.
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

/// The mode of a backend's directory that volhost makes. Users of this machine must not reach the files in volumes,
/// some of which may be set-user-ID; engines pass as root, or as the user that volhost runs as.
const BACKEND_MODE: u32 = 0o710;

/// Makes the directory of the backend that exists if there is no map.
fn make_default_backend(paths: &Paths, config: &Config) -> Result<(), ServeError> {
    let own = paths.volumes();
    let needed = !config.live.map.exists()
        && config.live.backends.values().any(|backend| backend.settings.path == own);
    if needed {
        crate::files::make_dir(&own, BACKEND_MODE)
            .map_err(|source| ServeError::Directory { path: own, source })?;
    }
    Ok(())
}

/// The parts that a service is built from.
struct Start<'a> {
    paths: &'a Paths,
    file: Option<&'a Path>,
    loaded: Loaded,
    tls: Tls,
    catalog: Arc<dyn Catalog>,
    monitoring: monitoring::Prepared,
}

/// A service that is bound to its addresses and not serving yet.
struct App {
    front: Front,
    service: Arc<Service>,
    status: Arc<ServiceStatus>,
    drain: Drain,
    reloader: Reloader,
    requests: mpsc::UnboundedReceiver<ReloadRequest>,
    triggers: Triggers,
}

/// The listeners, and the handlers that they pass requests to.
struct Front {
    server: Arc<Server>,
    bound: Vec<Bound>,
    protocols: Arc<Protocols>,
    admin: Arc<Admin>,
    monitoring: Arc<Monitoring>,
}

/// The events on which the running service acts on its own.
struct Triggers {
    events: mpsc::UnboundedReceiver<Event>,
    reloads: mpsc::UnboundedSender<ReloadRequest>,
    watchdog: Watchdog,
}

impl Start<'_> {
    async fn build(self, inheritance: Inheritance, early: &EarlyReload) -> Result<App, ServeError> {
        let Self { paths, file, loaded, tls, catalog, monitoring } = self;
        let (sender, events) =
            signal::listen(early).map_err(|source| ServeError::System { what: "no signals", source })?;
        let config = &loaded.config;
        if let Some(client) = tls.client() {
            tls::record(client, &*catalog).await?;
        }

        let service =
            Arc::new(Service::new(Arc::clone(&catalog), to_volumes(config, &backend::Map::default())));
        service.bring_up(BRING_UP).await;
        service.look_at_clones();

        let mut listen: Vec<_> = config.boot.listen.iter().map(to_transport).collect();
        listen.push(Listen::Admin(config.boot.admin.clone()));
        listen.extend(to_monitoring(config));
        let bound = transport::bind(&listen, inheritance.sockets).await?;
        let listening: Vec<_> = addresses(&bound).collect();

        let drain = Drain::new();
        let limits = Arc::new(ArcSwap::from_pointee(config.live.limits.clone()));
        let (seen, handshakes) = (Arc::clone(&service), monitoring.counters.clone());
        let server = Server::new(transport::Setup {
            node: config.boot.node.clone(),
            limits: Arc::clone(&limits),
            tls: tls.state(),
            revocation: Arc::new(Recorded(Arc::clone(&catalog))),
            on_request: Arc::new(move |caller, certified| seen.note_seen(caller, certified)),
            on_handshake: Arc::new(move |result| handshakes.handshake(result)),
            drain: drain.clone(),
        });

        let global = config.boot.scope == config::Scope::Global;
        let request_limits = Arc::clone(&limits);
        let settings = move || {
            let limits = request_limits.load();
            protocol::Settings { body_bytes: limits.body_bytes, request: limits.request, global }
        };
        let answers = monitoring.counters.clone();
        let on_answer = Arc::new(move |rpc, code, took| answers.answered(rpc, code, took));
        let protocols = Protocols::new(Arc::clone(&service), settings, on_answer);

        let status = Arc::new(ServiceStatus::default());
        let issuing = issuing(config, spec::advertised(config, &listening), &tls);
        let running = Running {
            catalog: Arc::clone(&catalog),
            volumes: Arc::clone(&service),
            server: Arc::clone(&server),
            status: Arc::clone(&status),
            limits,
            issuing: Arc::new(ArcSwap::from_pointee(issuing)),
            counters: monitoring.counters.clone(),
        };
        let (reloads, requests) = mpsc::unbounded_channel();
        let admin = admin(&running, config, &tls, &sender, reloads.clone());
        status.update(|facts| {
            facts.name.clone_from(&config.boot.name);
            facts.node = config.boot.node.to_string();
            facts.listening.clone_from(&listening);
            facts.catalog = catalog.location().into();
            facts.server_certificate_expires = tls.expires();
            facts.client_ca_expires = tls.client_ca_expires();
        });
        let monitoring =
            monitoring.serving(Arc::clone(&service), Arc::clone(&status), Arc::clone(&server), drain.clone());

        let watcher = Watcher::start(reload::followed(&loaded.files, &tls), move |unit| {
            // Nobody listens any more if the process is ending.
            let _ = sender.send(Event::Changed(unit));
        })
        .map_err(|source| ServeError::System { what: "files cannot be followed", source })?;
        let spec = SpecWriter::new(paths.clone(), listening, Arc::clone(&status));
        let config = ConfigUnit::new(paths.clone(), file.map(Into::into), loaded);
        let reloader = Reloader::new(config, tls, spec, running, watcher);
        let watchdog = Watchdog::new(inheritance.watchdog, catalog, Arc::clone(&status));
        Ok(App {
            front: Front { server, bound, protocols, admin, monitoring },
            service,
            status,
            drain,
            reloader,
            requests,
            triggers: Triggers { events, reloads, watchdog },
        })
    }
}

impl App {
    async fn run(self) -> Result<(), ServeError> {
        let Self { front, service, status, drain, reloader, requests, triggers } = self;
        let addresses: Vec<_> = addresses(&front.bound).collect();
        let monitoring: Vec<_> = monitoring_addresses(&front.bound).collect();
        let server = Arc::clone(&front.server);
        front.serve();
        tokio::task::block_in_place(|| reloader.write_spec());
        tokio::spawn(Arc::clone(&service).keep_up());
        tokio::spawn(Arc::clone(&service).keep_confirming());
        tokio::spawn(Arc::clone(&service).keep_trash());
        tokio::spawn(Arc::clone(&service).keep_copies());
        tokio::spawn(sockets::keep(server, Arc::clone(&status)));
        status.update(|facts| facts.since = Some(OffsetDateTime::now_utc()));
        announce(&addresses, &monitoring);
        systemd::ready(&status_line(&status.read()));

        tokio::spawn(reloader.run(requests));
        triggers.run().await;

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

impl Front {
    fn serve(self) {
        let Self { server, bound, protocols, admin, monitoring } = self;
        for bound in bound {
            let server = Arc::clone(&server);
            match bound.listen() {
                Listen::Admin(_) => {
                    tokio::spawn(server.run(bound, warp::service(Arc::clone(&admin).filter())))
                }
                Listen::Monitoring(..) => {
                    tokio::spawn(server.run(bound, warp::service(Arc::clone(&monitoring).filter())))
                }
                Listen::Https(_) | Listen::Http(_) | Listen::Unix(_) => {
                    tokio::spawn(server.run(bound, warp::service(Arc::clone(&protocols).filter())))
                }
            };
        }
    }
}

impl Triggers {
    /// Reloads units and gives signs of life until a signal ends the service.
    async fn run(self) {
        let Self { mut events, reloads, mut watchdog } = self;
        let mut renewal = tokio::time::interval(RENEWAL);
        renewal.tick().await;
        let (clock, mut clock_checks) = (Clock::default(), tokio::time::interval(CLOCK));
        loop {
            let units: &[Unit] = tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Signal(Signal::Reload)) => &Unit::ALL,
                    Some(Event::Changed(Unit::Config)) => &[Unit::Config],
                    Some(Event::Changed(Unit::Tls)) => &[Unit::Tls],
                    Some(Event::Changed(Unit::Crl)) => &[Unit::Crl],
                    Some(Event::Signal(Signal::Terminate)) | None => return,
                },
                // Reading our own certificates renews those that are due.
                _ = renewal.tick() => &[Unit::Tls],
                // After the clock was set, one of our certificates may be too old, or not yet valid.
                _ = clock_checks.tick() => if clock.look().set_by.is_some() { &[Unit::Tls] } else { &[] },
                () = watchdog.due() => {
                    watchdog.beat();
                    &[]
                }
            };
            if !units.is_empty() {
                // The receiver ends only by a panic, which was logged.
                let _ = reloads.send(ReloadRequest::of(units));
            }
        }
    }
}

/// Revocations as the catalog records them.
struct Recorded(Arc<dyn Catalog>);

impl Revocation for Recorded {
    fn refused(&self, host: &HostName, serial: &str) -> bool {
        self.0.view().is_revoked(host, serial)
    }
}

/// Returns the addresses that engines are served at, with their real ports.
fn addresses(bound: &[Bound]) -> impl Iterator<Item = String> + '_ {
    let for_engines = |bound: &&Bound| !matches!(bound.listen(), Listen::Admin(_) | Listen::Monitoring(..));
    bound.iter().filter(for_engines).map(Bound::address)
}

/// Returns the address for monitoring, with its real port.
fn monitoring_addresses(bound: &[Bound]) -> impl Iterator<Item = String> + '_ {
    bound.iter().filter(|bound| matches!(bound.listen(), Listen::Monitoring(..))).map(Bound::address)
}

/// Returns the server of the admin socket.
fn admin(
    running: &Running,
    config: &Config,
    tls: &Tls,
    events: &mpsc::UnboundedSender<Event>,
    reloads: mpsc::UnboundedSender<ReloadRequest>,
) -> Arc<Admin> {
    let Running { catalog, volumes, server, status, limits: _, issuing, counters: _ } = running;
    let (issuing, rechecked, events) = (Arc::clone(issuing), Arc::clone(server), events.clone());
    let enrolment = Enrolment {
        catalog: Arc::clone(catalog),
        pki: tls.pki().clone(),
        issuing: Arc::new(move || admin::Issuing::clone(&issuing.load())),
        changed: Arc::new(move || {
            rechecked.recheck();
            let _ = events.send(Event::Changed(Unit::Tls));
        }),
        signing: tokio::sync::Mutex::default(),
    };
    if let Some(events) = catalog.peer_events() {
        tokio::spawn(revocations::follow(events, Arc::clone(&enrolment.changed)));
    }
    let operator = Caller { host: config.boot.node.clone(), via: Via::Admin, address: None };
    let counted = Arc::clone(server);
    let counts = move || admin::Counts {
        connections: counted.connections().values().sum(),
        log_lines_dropped: process_log::dropped(),
    };
    let reload = reload_by(reloads, server, status);
    Admin::new(Arc::clone(volumes), Arc::clone(status), enrolment, operator, counts, reload)
}

/// Returns the function that reloads everything, for a caller that waits for it.
fn reload_by(
    reloads: mpsc::UnboundedSender<ReloadRequest>,
    server: &Arc<Server>,
    status: &Arc<ServiceStatus>,
) -> admin::Reload {
    let (server, status) = (Arc::clone(server), Arc::clone(status));
    Box::new(move |forced| {
        let (done, wait) = oneshot::channel();
        // If nobody reloads any more, `done` is dropped, which ends the wait.
        let _ = reloads.send(ReloadRequest { units: &Unit::ALL, forced, done: Some(done) });
        let (server, status) = (Arc::clone(&server), Arc::clone(&status));
        Box::pin(async move {
            // A directory that hangs is not waited for longer than files are.
            let _ = tokio::time::timeout(READ_TIMEOUT, sockets::mend(&server, &status)).await;
            wait.await.is_ok()
        })
    })
}

/// Prints where the service listens, and that it is ready. The service goes on if that cannot be written.
fn announce(addresses: &[String], monitoring: &[String]) {
    let engines = addresses.iter().map(|address| format!("listening on {address}\n"));
    let monitoring = monitoring.iter().map(|address| format!("metrics at {address}/metrics\n"));
    let lines = engines.chain(monitoring).collect::<String>();
    let tell = move || {
        // Without the lock of the standard library, which would hold up the end of the process.
        let told = std::io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
        if let Err(error) = told.and_then(|mut out| out.write_all(format!("{lines}ready\n").as_bytes())) {
            log::warn!("the addresses could not be told on the standard output: {error}");
        }
    };
    // It may be a pipe that nobody reads, so nothing here waits for it.
    if let Err(error) = std::thread::Builder::new().name("announcement".into()).spawn(tell) {
        log::warn!("the addresses could not be told on the standard output: {error}");
    }
}
