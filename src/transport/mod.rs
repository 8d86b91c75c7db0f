//! Turns sockets into requests: one accept loop for every kind of address, the TLS handshake, limits, and the
//! caller in each request's extensions.
//!
//! The accept loop only accepts; everything that a peer can delay happens in its connection's own task and is
//! bounded. This room never reads a request's body, and it words only two answers: the one after a panic, and
//! the one to a browser.
//!
//! # How long things may take
//!
//! | what | bound |
//! |---|---|
//! | a TLS handshake | `limits.handshake` |
//! | a request's head, from its first byte | `limits.handshake` |
//! | a request's body, and its service | the protocol's own, by `limits.request` |
//! | an answer that the peer does not read | `limits.request` without a byte taken |
//! | when the service ends: a handshake, and then the first request of a connection | 2 s each |
//! | a connection between requests, or before the first | 15 minutes, less only when there is no room |
//!
//! Idle connections are kept, because an engine loses the request that it sends just as we close. For the
//! same reason a connection that was opened and not used yet is treated like any idle one: Go's HTTP client
//! opens connections before it needs them. TCP keep-alive detects peers that have vanished.
//!
//! # Who has access, and for how long
//!
//! The handshake verifies a certificate. Before each request, its revocation by name and its expiry are
//! checked again, and after a reload the whole chain. A watchdog checks all connections every half second,
//! and at once after [`Server::recheck`]. If a caller has lost its access, its connection ends after the
//! present request if that has arrived in full, else at once.

mod activity;
pub(crate) mod bind;
mod chain_cache;
mod connection;
mod credential;
mod crl;
mod handshake;
pub(crate) mod listen;
mod registry;
pub(crate) mod tcp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod tls;
pub(crate) mod unix;

use std::collections::BTreeMap;
use std::fmt;
use std::future::pending;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tower_service::Service;

use self::activity::Timeouts;
use self::bind::{Accepted, canonical};
pub use self::bind::{BindError, Bound, SocketStatus, bind};
pub use self::connection::AccessWatch;
use self::connection::{Connection, Key};
use self::credential::{AccessLost, Verdicts};
pub use self::crl::CrlError;
pub use self::handshake::HandshakeResult;
use self::handshake::Handshakes;
pub use self::listen::{Listen, MonitoringAccess};
use self::registry::Registry;
pub use self::tls::{NobodyRevoked, Revocation, TlsError};
use crate::error::chain;
use crate::error::log_limit::LogLimit;
use crate::host::{Caller, CertificateId, Via};
use crate::model::host::HostName;
use crate::model::limits::Limits;
use crate::process::Drain;
use crate::process::drain::Guard;

/// The interval at which the watchdog checks all connections.
const WATCHDOG_INTERVAL: Duration = Duration::from_millis(500);
/// The time that a new connection has for its handshake and its first request when the service ends.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(2);
/// The time for which a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// A response extension that makes the transport close the connection and send nothing of the response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseWithoutAnswer;

/// A function that is called at each request with its caller and the data of the caller's certificate.
/// Returns the caller's present name if it differs from the certificate's.
pub type OnRequest = Arc<dyn Fn(&Caller, Option<CertificateId<'_>>) -> Option<HostName> + Send + Sync>;

/// A function that is called with the result of each TLS handshake.
pub type OnHandshake = Arc<dyn Fn(HandshakeResult) + Send + Sync>;

/// The parts of a [`Server`].
pub struct Setup {
    /// This machine's own name: the host of every caller on a Unix socket.
    pub node: HostName,
    /// The limits in force.
    pub limits: Arc<ArcSwap<Limits>>,
    /// The certificates and CAs for TLS; needed if an `https` address is served.
    pub tls: Option<Arc<ArcSwap<tls::State>>>,
    /// The certificates and hosts that are refused by name.
    pub revocation: Arc<dyn Revocation>,
    /// Called with each request's caller, except the operator, and with the data of its certificate if it has
    /// one. It must return quickly.
    pub on_request: OnRequest,
    /// Called with the result of each TLS handshake. It must return quickly.
    pub on_handshake: OnHandshake,
    /// The shutdown of the service.
    pub drain: Drain,
}

/// A server of bound sockets. One server has all of them, so that limits count across them.
pub struct Server {
    node: HostName,
    limits: Arc<ArcSwap<Limits>>,
    tls: Option<Arc<ArcSwap<tls::State>>>,
    revocation: Arc<dyn Revocation>,
    on_request: OnRequest,
    on_handshake: OnHandshake,
    drain: Drain,
    registry: Arc<Registry>,
    handshakes: Handshakes,
    log_limit: LogLimit,
    recheck: Notify,
    watchdog_started: AtomicBool,
    idle: Duration,
    /// Channels to the accept loops of sockets that have a file, which ask for a check of that file.
    sockets: Mutex<Vec<mpsc::UnboundedSender<oneshot::Sender<SocketStatus>>>>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Server {
    /// Returns a server that serves nothing yet.
    #[must_use]
    pub fn new(setup: Setup) -> Arc<Self> {
        Arc::new(Self::with_idle(setup, IDLE_TIMEOUT))
    }

    fn with_idle(setup: Setup, idle: Duration) -> Self {
        let Setup { node, limits, tls, revocation, on_request, on_handshake, drain } = setup;
        Self {
            node,
            limits,
            tls,
            revocation,
            on_request,
            on_handshake,
            drain,
            registry: Arc::default(),
            handshakes: Handshakes::default(),
            log_limit: LogLimit::default(),
            recheck: Notify::new(),
            watchdog_started: AtomicBool::new(false),
            idle,
            sockets: Mutex::default(),
        }
    }

    /// Accepts connections until the drain starts, and serves each in its own task with a clone of `service`. An address
    /// for monitoring is served until the process ends.
    ///
    /// Every request has a [`Caller`] in its extensions. Returns when the socket is closed; the connections
    /// that are left finish on their own, and [`Drain::drained`] waits for them.
    pub async fn run<S, B>(self: Arc<Self>, mut bound: Bound, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: std::error::Error + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        // Whoever monitors is told that the service ends for as long as it does, and is not waited for.
        let monitors = matches!(bound.listen(), Listen::Monitoring(..));
        let guard = || (!monitors).then(|| self.drain.guard());
        let _guard = guard();
        if !self.watchdog_started.swap(true, Ordering::Relaxed) {
            tokio::spawn(Arc::clone(&self).watchdog());
        }
        let listen = Arc::new(bound.listen().clone());
        let (asked, mut looks) = mpsc::unbounded_channel();
        if bound.has_file() {
            self.sockets.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        }
        let mut ending =
            std::pin::pin!(async { if monitors { pending().await } else { self.drain.started().await } });
        loop {
            let accepted = tokio::select! {
                biased;
                () = ending.as_mut() => break,
                // This cannot fail: the sender lives as long as the loop.
                Some(told) = looks.recv() => {
                    let (look, before) = bound.repair().await;
                    // Nobody can connect to the old socket any more, but some connections may wait on it.
                    while let Some(Some(Ok((stream, _)))) =
                        before.as_ref().map(|before| before.accept().now_or_never())
                    {
                        let (server, listen) = (Arc::clone(&self), Arc::clone(&listen));
                        let (service, guard) = (service.clone(), guard());
                        let accepted = Accepted::Unix(stream);
                        tokio::spawn(async move { server.handle(&listen, accepted, service, guard).await });
                    }
                    // The asking task may have gone.
                    let _ = told.send(look);
                    continue;
                }
                accepted = bound.accept() => accepted,
            };
            match accepted {
                Ok(accepted) => {
                    let (server, listen) = (Arc::clone(&self), Arc::clone(&listen));
                    let (service, guard) = (service.clone(), guard());
                    tokio::spawn(async move { server.handle(&listen, accepted, service, guard).await });
                }
                Err(error) if concerns_one(&error) => log::debug!("{listen}: a connection failed: {error}"),
                Err(error) => {
                    self.log_limit.warn("accept", "", || {
                        format!("{listen}: no connection can be accepted: {error}; is the limit of open files (LimitNOFILE) high enough?")
                    });
                    self.registry.make_room();
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        log::debug!("{listen}: closed");
    }

    /// Makes the watchdog check all connections now instead of at the next tick. Call it when certificates
    /// were replaced or revoked.
    pub fn recheck(&self) {
        self.recheck.notify_one();
    }

    /// Checks the files of all served Unix sockets, and makes a missing one again.
    pub async fn repair_sockets(&self) -> Vec<SocketStatus> {
        let asked = self.sockets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut looks = Vec::new();
        for asked in asked {
            let (told, look) = oneshot::channel();
            // A socket that is no longer served needs no check.
            if asked.send(told).is_ok()
                && let Ok(look) = look.await
            {
                looks.push(look);
            }
        }
        looks
    }

    /// Returns the number of connections of each host, without those of the admin socket.
    #[must_use]
    pub fn connections(&self) -> BTreeMap<HostName, usize> {
        self.registry.by_host()
    }

    /// Returns the number of connections by the kind of their listener.
    #[must_use]
    pub fn connections_by_listener(&self) -> Vec<(&'static str, usize)> {
        self.registry.by_listener()
    }

    async fn handle<S, B>(
        self: Arc<Self>,
        listen: &Listen,
        accepted: Accepted,
        service: S,
        guard: Option<Guard>,
    ) where
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: std::error::Error + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match (listen, accepted) {
            (Listen::Monitoring(_, MonitoringAccess::Plain), Accepted::Tcp(stream, peer)) => {
                tcp::prepare(&stream);
                let connection = Connection::of_anonymous_monitor(canonical(peer), peer);
                self.serve(connection, stream, service).await;
            }
            (Listen::Https(_) | Listen::Monitoring(..), Accepted::Tcp(stream, peer)) => {
                tcp::prepare(&stream);
                if let Some((connection, stream)) = self.handshake(listen, stream, peer).await {
                    self.serve(connection, stream, service).await;
                }
            }
            (Listen::Http(_), Accepted::Tcp(stream, peer)) => {
                tcp::prepare(&stream);
                let caller =
                    Caller { host: HostName::anonymous(), via: Via::Tcp, address: Some(canonical(peer)) };
                let key = Key::Peer(canonical(peer));
                let connection = Connection::new(caller, key, peer.to_string(), None);
                self.serve(connection, stream, service).await;
            }
            (Listen::Unix(_), Accepted::Unix(stream)) => {
                let caller = Caller { host: self.node.clone(), via: Via::Unix, address: None };
                let connection = Connection::new(caller, Key::Unix, peer_process(&stream), None);
                self.serve(connection, stream, service).await;
            }
            (Listen::Admin(_), Accepted::Unix(stream)) => {
                let caller = Caller { host: self.node.clone(), via: Via::Admin, address: None };
                let connection = Connection::new(caller, Key::Admin, peer_process(&stream), None);
                self.serve(connection, stream, service).await;
            }
            (Listen::Https(_) | Listen::Http(_) | Listen::Monitoring(..), Accepted::Unix(_))
            | (Listen::Unix(_) | Listen::Admin(_), Accepted::Tcp(..)) => {
                // `Bound` never combines these kinds.
                log::error!("{listen} is served on a socket of another kind: a connection was closed");
            }
        }
        drop(guard);
    }

    /// Admits a connection to the registry and serves it.
    async fn serve<IO, S, B>(self: Arc<Self>, connection: Arc<Connection>, stream: IO, service: S)
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: std::error::Error + 'static,
        S::Future: Send + 'static,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.registry.admit(&connection, &self.limits.load()) {
            Ok(_admitted) => connection::serve(self, connection, stream, service).await,
            Err(full) => {
                let client = match connection.key {
                    Key::Peer(address) | Key::Monitor(address) => address.to_string(),
                    Key::Host(_) | Key::Unix | Key::Admin => connection.caller.host.to_string(),
                };
                self.log_limit.warn("full", client, || format!("{connection}: refused: {full}"));
            }
        }
    }

    /// Checks that the connection's caller still has access.
    fn check(&self, connection: &Connection, verdicts: &mut Verdicts) -> Result<(), AccessLost> {
        let state = self.tls.as_ref().map(|tls| tls.load());
        connection.check(state.as_deref().map(|state| &**state), &*self.revocation, verdicts)
    }

    /// Ends connections that stall or whose caller has lost its access, until the service has ended.
    async fn watchdog(self: Arc<Self>) {
        let mut ended = std::pin::pin!(self.drain.drained());
        loop {
            tokio::select! {
                _ = ended.as_mut() => return,
                () = tokio::time::sleep(WATCHDOG_INTERVAL) => {}
                () = self.recheck.notified() => {}
            }
            let limits = self.limits.load_full();
            let bounds = Timeouts { head: limits.handshake, write: limits.request, idle: self.idle };
            let mut verdicts = Verdicts::new();
            for (number, connection) in self.registry.all().into_iter().enumerate() {
                if let Some(why) = connection.activity.overdue(&bounds) {
                    if connection.abort() {
                        log::debug!("{connection}: closed: {why}");
                    }
                } else if let Err(refused) = self.check(&connection, &mut verdicts)
                    && connection.refuse()
                {
                    log::warn!("{connection}: closed: {}", chain(&refused));
                }
                // After a reload each certificate costs a verification, so other tasks get a turn in between.
                if number % 32 == 31 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Returns true if accepting failed for one connection only, so that the next can be accepted at once.
fn concerns_one(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// Describes the process at the other end of a Unix socket, for the log.
fn peer_process(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(peer) => {
            let pid = peer.pid().map(|pid| format!(", pid {pid}")).unwrap_or_default();
            format!("unix: uid {}{pid}", peer.uid())
        }
        Err(_) => "unix".into(),
    }
}
