//! Serves one connection, from its first request to its last.
//!
//! A connection never serves a request of a caller whose access was taken away, never answers where an answer
//! is forbidden, and never ends without a log message because a handler panicked.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tower_service::Service;

use super::activity::{Activity, ActivityStream};
use super::credential::{AccessLost, Credential, Verdicts};
use super::tls::{Revocation, State};
use super::{CloseWithoutAnswer, FIRST_REQUEST_GRACE, Server};
use crate::error::chain;
use crate::host::{Caller, Via};
use crate::model::host::HostName;

/// The maximum size of a request's head, in bytes; engines send a few hundred. hyper accepts at most 100
/// header lines.
const HEAD_BYTES: usize = 64 * 1024;
/// The media type of every answer of the plugin protocol, errors included.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");

/// The key under which connections are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A host that proved its name.
    Host(HostName),
    /// A peer without a name, by address.
    Peer(IpAddr),
    /// A Unix socket for engines.
    Unix,
    /// The admin socket.
    Admin,
    /// A client of an address for monitoring, by its own address.
    Monitor(IpAddr),
}

impl Key {
    /// The kinds of listeners.
    pub(super) const LISTENERS: [&str; 5] = ["https", "http", "unix", "admin", "metrics"];

    /// Returns the kind of listener that such connections come by.
    pub(super) fn listener(&self) -> &'static str {
        let [https, http, unix, admin, metrics] = Self::LISTENERS;
        match self {
            Self::Host(_) => https,
            Self::Peer(_) => http,
            Self::Unix => unix,
            Self::Admin => admin,
            Self::Monitor(_) => metrics,
        }
    }

    pub(super) fn is_network(&self) -> bool {
        matches!(self, Self::Host(_) | Self::Peer(_) | Self::Monitor(_))
    }
}

/// The facts about one connection, shared by its own task, the registry and the watchdog.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) caller: Caller,
    pub(super) key: Key,
    pub(super) activity: Arc<Activity>,
    /// The peer's address or credentials, for the log.
    peer: String,
    /// The caller's certificates, over TLS.
    credential: Option<Credential>,
    order: watch::Sender<Order>,
}

/// The order that a connection was given. An order is only replaced by a later one in this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Serve,
    Finish,
    Refuse,
    Abort,
}

/// Tells whether a request's caller still has access; it is in the request's extensions. A body may take long
/// to arrive, and its reader must stop when the caller loses access meanwhile.
#[derive(Debug, Clone)]
pub struct AccessWatch(Arc<Connection>);

impl AccessWatch {
    /// Waits until the caller loses access, which may be for ever.
    pub async fn lost(&self) {
        let mut orders = self.0.order.subscribe();
        // This cannot fail: `self` holds the connection, which holds the sender.
        let _ = orders.wait_for(|order| *order == Order::Refuse).await;
    }
}

impl Connection {
    pub(super) fn new(caller: Caller, key: Key, peer: String, credential: Option<Credential>) -> Arc<Self> {
        Arc::new(Self {
            caller,
            key,
            activity: Arc::new(Activity::new()),
            peer,
            credential,
            order: watch::Sender::new(Order::Serve),
        })
    }

    /// Returns the connection of a client that monitors and has not proved who it is.
    pub(super) fn of_anonymous_monitor(address: IpAddr, peer: SocketAddr) -> Arc<Self> {
        let caller = Caller { host: HostName::anonymous(), via: Via::Tcp, address: Some(address) };
        Self::new(caller, Key::Monitor(address), peer.to_string(), None)
    }

    /// Ends the connection: at once if it is idle, else after its present request. Returns true if it had no
    /// such order yet.
    pub(super) fn finish(&self) -> bool {
        self.activity.expect_end();
        self.give(Order::Finish)
    }

    /// Does the same as [`finish`](Self::finish), but does not wait for a request that has not arrived in
    /// full, because the caller has lost its access.
    pub(super) fn refuse(&self) -> bool {
        self.activity.expect_end();
        self.give(Order::Refuse)
    }

    /// Ends the connection at once. Returns true if it had no such order yet.
    pub(super) fn abort(&self) -> bool {
        self.give(Order::Abort)
    }

    fn give(&self, order: Order) -> bool {
        self.order.send_if_modified(|current| {
            let forward = *current < order;
            if forward {
                *current = order;
            }
            forward
        })
    }

    /// Checks that the caller still has access.
    pub(super) fn check(
        &self,
        state: Option<&State>,
        revocation: &dyn Revocation,
        verdicts: &mut Verdicts,
    ) -> Result<(), AccessLost> {
        match (&self.credential, state) {
            (Some(credential), Some(state)) => credential.check(state, revocation, verdicts),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection of {} ({})", self.caller.host, self.peer)
    }
}

/// Serves a connection until it ends, is ordered to end, or the drain's deadline passes.
pub(super) async fn serve<IO, S, B>(server: Arc<Server>, connection: Arc<Connection>, stream: IO, service: S)
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: std::error::Error + 'static,
    S::Future: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    log::debug!("{connection}: open");
    let io = TokioIo::new(ActivityStream::new(stream, Arc::clone(&connection.activity)));
    let handler = {
        let (server, connection) = (Arc::clone(&server), Arc::clone(&connection));
        service_fn(move |request| {
            let answer = answer(Arc::clone(&server), Arc::clone(&connection), service.clone(), request);
            PolledAtLeastOnce { answer: Box::pin(answer), begun: false }
        })
    };
    let http = http1::Builder::new()
        // The watchdog does this better: hyper's own limit would also close idle connections.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES)
        // `max_buf_size` bounds only a head that is incomplete when the buffer is full.
        .max_header_size(HEAD_BYTES)
        .serve_connection(io, handler);
    let mut http = pin!(http);
    let mut orders = connection.order.subscribe();
    // Orders that were given since the registry admitted the connection count, too.
    orders.mark_changed();
    let mut drained = pin!(async {
        server.drain.started().await;
        // A client that has just connected would lose the request that it connected for.
        connection.activity.first_request(FIRST_REQUEST_GRACE).await;
        connection.finish();
        server.drain.expired().await;
    });
    let end = loop {
        tokio::select! {
            result = http.as_mut() => break match result {
                Ok(()) => "ended".to_owned(),
                Err(error) => chain(&error),
            },
            () = drained.as_mut() => break "dropped: the deadline of the drain has passed".to_owned(),
            // This cannot fail before the loop ends: `connection` holds the sender.
            Ok(()) = orders.changed() => match *orders.borrow_and_update() {
                Order::Serve => {}
                Order::Finish | Order::Refuse => http.as_mut().graceful_shutdown(),
                Order::Abort => break "dropped".to_owned(),
            },
        }
    };
    log::debug!("{connection}: {end}");
}

/// A handler's future that is polled at least once. hyper drops an answer's future unpolled if it sees first
/// that the client has disconnected. With this wrapper the handler gets the request all the same, and can
/// begin an operation that must not be lost.
struct PolledAtLeastOnce<F: Future> {
    answer: Pin<Box<F>>,
    begun: bool,
}

impl<F: Future> Future for PolledAtLeastOnce<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.begun = true;
        self.answer.as_mut().poll(context)
    }
}

impl<F: Future> Drop for PolledAtLeastOnce<F> {
    fn drop(&mut self) {
        // If the runtime itself is shutting down, no operation can begin any more.
        if !self.begun && tokio::runtime::Handle::try_current().is_ok() {
            let _ = self.answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Closes the connection without an answer: hyper sends nothing if the service fails.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
struct Closed;

async fn answer<S, B>(
    server: Arc<Server>,
    connection: Arc<Connection>,
    mut service: S,
    mut request: Request<Incoming>,
) -> Result<Response<TrackedBody<B>>, Closed>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Error: std::error::Error + 'static,
    B: Body<Data = Bytes>,
{
    let busy = Busy::begin(&connection);
    if let Err(refused) = server.check(&connection, &mut Verdicts::new()) {
        if connection.refuse() {
            log::warn!("{connection}: closed with a request unanswered: {}", chain(&refused));
        }
        return Err(Closed);
    }
    // Whoever monitors is no host, and may use a browser: nothing that it can ask for changes anything.
    let monitors = matches!(connection.key, Key::Monitor(_));
    if let Some(header) = browser_header(request.headers()).filter(|_| !monitors) {
        server.log_limit.warn("browser", &connection, || {
            format!("{connection}: a request was refused: a browser sent it, by its header {header}")
        });
        let response = from_browser(header).map(Either::Right);
        return Ok(response.map(|body| TrackedBody { body: Box::pin(body), busy }));
    }
    let mut caller = connection.caller.clone();
    if caller.via != Via::Admin && !monitors {
        let certified = connection.credential.as_ref().map(Credential::certificate_id);
        if let Some(now) = (server.on_request)(&caller, certified) {
            caller.host = now;
        }
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(AccessWatch(Arc::clone(&connection)));
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if request.uri().path_and_query().is_none() {
        // The URI of a CONNECT has a host and no path, and warp cannot handle that.
        *request.uri_mut() = Uri::from_static("/");
    }
    let call = async move {
        poll_fn(|context| service.poll_ready(context)).await?;
        service.call(request).await
    };
    // A handler must itself guard state that a panic leaves half-changed; nothing in this function outlives
    // the panic.
    let response = match AssertUnwindSafe(call).catch_unwind().await {
        Ok(Ok(response)) if response.extensions().get::<CloseWithoutAnswer>().is_some() => {
            log::debug!("{connection}: {method} {uri}: closed without an answer, as its handler asked");
            return Err(Closed);
        }
        Ok(Ok(response)) => response.map(Either::Left),
        Ok(Err(error)) => {
            log::error!("{connection}: {method} {uri}: closed without an answer: {}", chain(&error));
            return Err(Closed);
        }
        Err(panic) => {
            log::error!("{connection}: {method} {uri}: the handler panicked: {}", message(&*panic));
            internal_error().map(Either::Right)
        }
    };
    Ok(response.map(|body| TrackedBody { body: Box::pin(body), busy }))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(without a message)")
}

/// Returns the header that shows that a web page in a browser sent this request. Browsers add one of these
/// headers to each POST, and a page cannot prevent it; engines and other callers of plugins send none.
/// Without this check a page could use a plain address on its reader's machine, or a TLS address with a
/// certificate that the browser has.
fn browser_header(headers: &HeaderMap) -> Option<&HeaderName> {
    headers.keys().find(|name| **name == header::ORIGIN || name.as_str().starts_with("sec-fetch-"))
}

fn from_browser(header: &HeaderName) -> Response<Full<Bytes>> {
    let body = format!(
        r#"{{"Err": "a browser sent this request, by its header {header}: volhost serves engines and no web page; a proxy between must not add that header"}}"#
    );
    error(StatusCode::FORBIDDEN, body)
}

fn internal_error() -> Response<Full<Bytes>> {
    let body = r#"{"Err": "volhost failed in a way it should not: its log says how; please report it"}"#;
    error(StatusCode::INTERNAL_SERVER_ERROR, body)
}

fn error(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
    response
}

/// Marks the connection as busy with a request until it is dropped.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(connection: &Connection) -> Self {
        connection.activity.begin_request();
        Self(Arc::clone(&connection.activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

/// An answer's body. The request counts as being served until hyper has taken the whole body and drops it.
struct TrackedBody<B> {
    body: Pin<Box<Either<B, Full<Bytes>>>>,
    #[expect(dead_code, reason = "it is held for its drop")]
    busy: Busy,
}

impl<B> Body for TrackedBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.body.as_mut().poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
