//! One connection, from its first request to its last.
//!
//! A connection never serves a request of a caller who is no longer let in, never answers what must not be answered,
//! and never ends silently because a handler panicked.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
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

use super::activity::{Activity, Watched};
use super::credential::{Chain, Credential};
use super::registry::Key;
use super::tls::{Revocation, State};
use super::{CloseWithoutAnswer, NEWCOMER, Server};
use crate::error::chain;
use crate::host::identity::IdentityError;
use crate::host::{Caller, Via};

/// The largest head of a request, in bytes; engines send a few hundred. Of header lines hyper takes 100 at most.
const HEAD_BYTES: usize = 64 * 1024;
/// What every answer of the plugin protocol is, errors included.
const CONTENT_TYPE: HeaderValue = HeaderValue::from_static("application/vnd.docker.plugins.v1.2+json");

/// What is known of one connection by everyone who must know.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) caller: Caller,
    pub(super) key: Key,
    pub(super) activity: Arc<Activity>,
    /// The peer's address or credentials, for the log.
    peer: String,
    /// What let the caller in, over TLS.
    credential: Option<Credential>,
    order: watch::Sender<Order>,
}

/// What a connection is told to do. It only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Serve,
    Finish,
    Refuse,
    Abort,
}

/// The word that a request's caller is still let in, found in the request's extensions. A body may take long to
/// arrive: whoever reads it stops when the caller is shut out meanwhile.
#[derive(Debug, Clone)]
pub struct LetIn(Arc<Connection>);

impl LetIn {
    /// Waits until the caller is no longer let in, which may be for ever.
    pub async fn lost(&self) {
        let mut orders = self.0.order.subscribe();
        // The sender lives in the connection, and that in `self`: this cannot fail.
        let _ = orders.wait_for(|order| *order == Order::Refuse).await;
    }
}

/// Chains and what a new state thinks of them, so that each is verified once and not for each connection.
pub(super) type Verdicts = HashMap<Chain, Result<(), Refused>>;

/// Why a caller who was let in no longer is.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Refused {
    #[error("its certificate is not accepted any more")]
    Certificate(#[source] rustls::Error),
    #[error("its name is not accepted any more")]
    Name(#[source] IdentityError),
    #[error("its certificate (serial {0}) was revoked")]
    Revoked(String),
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

    /// Has the connection end: at once when it is idle, else after the request it has. Whether that was news to it.
    pub(super) fn finish(&self) -> bool {
        self.activity.end();
        self.tell(Order::Finish)
    }

    /// As [`finish`](Self::finish), because its caller is no longer let in: a request that has not arrived in full is
    /// not waited for.
    pub(super) fn refuse(&self) -> bool {
        self.activity.end();
        self.tell(Order::Refuse)
    }

    /// Has the connection end at once. Whether that was news to it.
    pub(super) fn abort(&self) -> bool {
        self.tell(Order::Abort)
    }

    fn tell(&self, order: Order) -> bool {
        self.order.send_if_modified(|current| {
            let forward = *current < order;
            if forward {
                *current = order;
            }
            forward
        })
    }

    /// Whether its caller is still let in.
    pub(super) fn check(
        &self,
        state: Option<&State>,
        revocation: &dyn Revocation,
        verdicts: &mut Verdicts,
    ) -> Result<(), Refused> {
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

/// Serves a connection until it ends, is told to end, or the drain's deadline passes.
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
    let io = TokioIo::new(Watched::new(stream, Arc::clone(&connection.activity)));
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
        // The buffer alone bounds only heads that are not complete yet when it is full.
        .max_header_size(HEAD_BYTES)
        .serve_connection(io, handler);
    let mut http = pin!(http);
    let mut orders = connection.order.subscribe();
    // What was ordered since the connection got its place counts, too.
    orders.mark_changed();
    let mut drained = pin!(async {
        server.drain.started().await;
        // Who has just come would lose the request that it came for.
        connection.activity.first_request(NEWCOMER).await;
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
            // The sender lives in `connection`: this cannot fail before the loop ends.
            Ok(()) = orders.changed() => match *orders.borrow_and_update() {
                Order::Serve => {}
                Order::Finish | Order::Refuse => http.as_mut().graceful_shutdown(),
                Order::Abort => break "dropped".to_owned(),
            },
        }
    };
    log::debug!("{connection}: {end}");
}

/// A handler's future that is polled at least once. hyper drops an answer unpolled if it sees first that the client has
/// disconnected; the handler still gets the request, and can begin what must not be lost.
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
        // When the runtime itself is going away, nothing can begin any more.
        if !self.begun && tokio::runtime::Handle::try_current().is_ok() {
            let _ = self.answer.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Nothing is answered, and the connection closed: hyper ends a connection whose service fails without a word.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer")]
struct Closed;

async fn answer<S, B>(
    server: Arc<Server>,
    connection: Arc<Connection>,
    mut service: S,
    mut request: Request<Incoming>,
) -> Result<Response<Answer<B>>, Closed>
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
    if let Some(header) = browser_header(request.headers()) {
        server.log_limit.warn("browser", &connection, || {
            format!("{connection}: a request was refused: a browser sent it, by its header {header}")
        });
        let response = from_browser(header).map(Either::Right);
        return Ok(response.map(|body| Answer { body: Box::pin(body), busy }));
    }
    let mut caller = connection.caller.clone();
    if caller.via != Via::Admin {
        let certified = connection.credential.as_ref().map(Credential::certified);
        if let Some(now) = (server.on_seen)(&caller, certified) {
            caller.host = now;
        }
    }
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(LetIn(Arc::clone(&connection)));
    let (method, uri) = (request.method().clone(), request.uri().clone());
    if request.uri().path_and_query().is_none() {
        // CONNECT names a host and no path, which is more than warp can bear.
        *request.uri_mut() = Uri::from_static("/");
    }
    let call = async move {
        poll_fn(|context| service.poll_ready(context)).await?;
        service.call(request).await
    };
    // A handler's state that a panic left half-changed is the handler's own to guard; nothing here outlives it.
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
    Ok(response.map(|body| Answer { body: Box::pin(body), busy }))
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(without a message)")
}

/// The header by which a browser says that a page has it send this request. Browsers send one of them with each POST,
/// whatever the page wants; engines, and whoever else calls a plugin, send none. Without this look a page could use a plain
/// address of its reader's machine, or a TLS one with a certificate that the browser has.
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

/// Says that a request is served, until it is dropped.
struct Busy(Arc<Activity>);

impl Busy {
    fn begin(connection: &Connection) -> Self {
        connection.activity.begin();
        Self(Arc::clone(&connection.activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rest();
    }
}

/// An answer's body: the request is served until hyper has taken all of it and drops it.
struct Answer<B> {
    body: Pin<Box<Either<B, Full<Bytes>>>>,
    #[expect(dead_code, reason = "it is held for its drop")]
    busy: Busy,
}

impl<B> Body for Answer<B>
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
