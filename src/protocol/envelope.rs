//! The shared part of all protocols: reading a request and its JSON, and the form of answers and errors.
//!
//! It requires no headers: engines send no Content-Type, and an empty Host header or none. Bodies are bounded
//! in size and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use warp::reply::{Reply as _, Response};
use warp::{Filter, Rejection};

use super::paths;
use crate::error::{chain, nearest};
use crate::host::Caller;
use crate::transport::{AccessWatch, CloseWithoutAnswer};
use crate::volume::{Blame, CountedMount, Error};

/// The media type of every answer.
pub const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// A request, before its body is read.
pub struct Request {
    /// The HTTP method.
    pub method: Method,
    /// The path, without a query.
    pub path: String,
    /// The caller; every transport provides it.
    pub caller: Option<Caller>,
    /// Tells whether the caller still has access.
    pub access: Option<AccessWatch>,
    /// The body.
    pub body: BodyStream,
}

/// A body that has not arrived yet.
pub type BodyStream = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, warp::Error>> + Send>>;

/// Returns a filter that splits any request into its parts.
pub fn parts() -> impl Filter<Extract = (Request,), Error = Rejection> + Clone + Send + Sync + 'static {
    let body = warp::body::stream().map(boxed);
    let of_connection = warp::ext::optional::<Caller>().and(warp::ext::optional::<AccessWatch>());
    warp::method().and(warp::path::full()).and(of_connection).and(body).map(
        |method, path: warp::path::FullPath, caller, access, body| Request {
            method,
            path: path.as_str().to_owned(),
            caller,
            access,
            body,
        },
    )
}

fn boxed(body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send + 'static) -> BodyStream {
    Box::pin(body.map_ok(|mut part| {
        let length = part.remaining();
        part.copy_to_bytes(length)
    }))
}

/// Reasons why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// The body has more bytes than allowed.
    TooLarge,
    /// The body did not arrive in time.
    Stalled,
    /// Other large bodies took all the memory for the whole time limit.
    Crowded,
    /// The connection broke, or its caller lost access.
    Broken,
}

/// The size up to which a body does not wait for others. Engines send some hundred bytes.
const SMALL_BODY: usize = 16 * 1024;

/// The memory for all larger bodies together, in KiB.
const BUDGET_KIB: u32 = 64 * 1024;

/// The memory for the large bodies of all connections together. It always suffices for one body.
#[derive(Debug, Clone)]
pub struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        // This constant is far below the maximum number of permits of a semaphore.
        Self(Arc::new(Semaphore::new(BUDGET_KIB as usize)))
    }
}

impl BodyBudget {
    /// Waits for memory for a body that may become as large as `most`.
    async fn reserve(&self, most: u64) -> Option<OwnedSemaphorePermit> {
        let needed = u32::try_from(most.div_ceil(1024)).unwrap_or(BUDGET_KIB).min(BUDGET_KIB);
        // This fails only if the semaphore is closed, and nothing closes it.
        Arc::clone(&self.0).acquire_many_owned(needed).await.ok()
    }
}

/// A body, with the memory that is reserved for it until it is dropped.
#[derive(Debug)]
pub struct Collected {
    /// The body.
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

/// The time for which the rest of a refused body is still read from the wire.
const LINGER: Duration = Duration::from_secs(2);

/// Reads a body while its sender has access.
pub async fn collect(
    body: BodyStream,
    most: u64,
    limit: Duration,
    access: Option<AccessWatch>,
    room: &BodyBudget,
) -> Result<Collected, BodyError> {
    let lost = async {
        match &access {
            Some(access) => access.lost().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        taken = read(body, most, limit, room) => taken,
        () = lost => Err(BodyError::Broken),
    }
}

async fn read(
    mut body: BodyStream,
    most: u64,
    limit: Duration,
    room: &BodyBudget,
) -> Result<Collected, BodyError> {
    let waiting = AtomicBool::new(false);
    let whole = async {
        let (mut bytes, mut reserved) = (BytesMut::new(), None);
        while let Some(part) = body.next().await {
            let part = part.map_err(|_| BodyError::Broken)?;
            if (bytes.len() + part.len()) as u64 > most {
                return Err(BodyError::TooLarge);
            }
            if reserved.is_none() && bytes.len() + part.len() > SMALL_BODY {
                waiting.store(true, Ordering::Relaxed);
                reserved = room.reserve(most).await;
                waiting.store(false, Ordering::Relaxed);
            }
            bytes.extend_from_slice(&part);
        }
        Ok(Collected { bytes: bytes.freeze(), _room: reserved })
    };
    let late = || if waiting.load(Ordering::Relaxed) { BodyError::Crowded } else { BodyError::Stalled };
    let taken = tokio::time::timeout(limit, whole).await.unwrap_or_else(|_| Err(late()));
    if matches!(taken, Err(BodyError::TooLarge | BodyError::Crowded)) {
        // The rest is read because a socket that is closed while bytes still come is reset, and the answer is
        // lost.
        let rest = async { while let Some(Ok(_)) = body.next().await {} };
        let _ = tokio::time::timeout(LINGER.min(limit), rest).await;
    }
    taken
}

/// Reads a body's JSON object. serde would also accept an array of the right values, but that is a caller's
/// mistake.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorReply> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ErrorReply::new(
            StatusCode::BAD_REQUEST,
            "the request's body is not understood: it takes a JSON object, which begins with {",
        ));
    }
    serde_json::from_slice(body).map_err(|error| {
        ErrorReply::new(StatusCode::BAD_REQUEST, format!("the request's body is not understood: {error}"))
    })
}

/// The answer to a request.
pub enum Answer {
    /// This JSON, with status 200.
    Json(Bytes),
    /// This JSON, part by part as the caller reads it, with status 200.
    Parts(Parts),
    /// This JSON of a Mount. The mount is undone unless the answer is sent.
    Mounted(Bytes, Box<CountedMount>),
    /// An error.
    Error(ErrorReply),
    /// No answer: the connection is closed.
    None,
    /// No answer, because the truth is not known, for this reason.
    Unknown(String),
}

/// A JSON text in parts. If a part cannot be made, the answer breaks off.
pub type Parts = std::pin::Pin<Box<dyn Stream<Item = serde_json::Result<Bytes>> + Send + Sync>>;

/// The status and text of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    status: StatusCode,
    text: String,
}

impl ErrorReply {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    pub(super) fn internal(text: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text)
    }

    pub(super) fn path(path: &str) -> Self {
        let known: Vec<_> = paths().collect();
        let hint = nearest(path, known.iter().map(String::as_str))
            .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        let shown: String = path.chars().take(200).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            format!("there is no {shown}{hint}; it takes POST to {}", known.join(", ")),
        )
    }

    pub(super) fn method(method: &Method) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("the plugin protocol takes POST only, not {method}"),
        )
    }

    pub(super) fn too_large(most: u64) -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the request's body has more than {most} bytes (limits.body_bytes)"),
        )
    }

    pub(super) fn crowded() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!(
                "too many requests with bodies of more than {} KiB came at once, and none of them ended within the \
                 time for a request (limits.request): try again",
                SMALL_BODY / 1024
            ),
        )
    }

    pub(super) fn stalled() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "the request's body did not arrive in time (limits.request)")
    }

    pub(super) fn empty(verb: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            format!(
                "{verb} takes a JSON object in the request's body, which is empty: an engine that has lost the \
                 answer to a call repeats it like this; try again"
            ),
        )
    }
}

impl Answer {
    /// Returns the answer with this value.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::Json(bytes.into()),
            Err(error) => Self::unwritten(&error),
        }
    }

    /// Returns the error in place of an answer that JSON cannot hold. Of our answers only a path that is not
    /// UTF-8 is such a case.
    pub(super) fn unwritten(error: &serde_json::Error) -> Self {
        ErrorReply::internal(&format!("the answer cannot be written as JSON: {error}")).into()
    }

    /// Returns the answer for a result. The service words its own errors, and the status says who can fix
    /// them.
    pub fn of<T: Serialize>(result: Result<T, Error>) -> Self {
        match result {
            Ok(value) => Self::json(&value),
            Err(error) => error.into(),
        }
    }

    /// Returns what the log must say of an answer: a failure of volhost that the caller cannot fix.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Error(ErrorReply { status: StatusCode::INTERNAL_SERVER_ERROR, text }) => Some(text.clone()),
            Self::Unknown(why) => Some(format!("a request is left without an answer: {why}")),
            Self::Error(_) | Self::Json(_) | Self::Parts(_) | Self::Mounted(..) | Self::None => None,
        }
    }

    pub(super) fn into_response(self) -> Response {
        match self {
            Self::Json(bytes) => response(StatusCode::OK, bytes),
            Self::Parts(parts) => {
                let mut response = warp::reply::stream(parts).into_response();
                response
                    .headers_mut()
                    .insert(http::header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
                response
            }
            Self::Mounted(bytes, counted) => {
                counted.hand_over();
                response(StatusCode::OK, bytes)
            }
            Self::Error(ErrorReply { status, text }) => {
                response(status, serde_json::json!({ "Err": text }).to_string().into())
            }
            Self::None | Self::Unknown(_) => {
                let mut response = response(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new());
                response.extensions_mut().insert(CloseWithoutAnswer);
                response
            }
        }
    }
}

impl From<ErrorReply> for Answer {
    fn from(refusal: ErrorReply) -> Self {
        Self::Error(refusal)
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        let text = chain(&error);
        let status = match error.blame() {
            Blame::Caller => StatusCode::BAD_REQUEST,
            Blame::Rights => StatusCode::FORBIDDEN,
            Blame::Service => StatusCode::INTERNAL_SERVER_ERROR,
            Blame::Unknown => return Self::Unknown(text),
        };
        ErrorReply::new(status, text).into()
    }
}

fn response(status: StatusCode, body: Bytes) -> Response {
    let reply = http::Response::builder().status(status).header("Content-Type", CONTENT_TYPE).body(body);
    // This cannot fail: the builder gets valid constants.
    reply
        .map_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response(), warp::reply::Reply::into_response)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const MOST: u64 = 1 << 20;

    /// Returns a body of that size that ends, or goes on for ever.
    fn body(size: usize, ends: bool) -> BodyStream {
        let parts =
            stream::iter([Ok(Bytes::from(vec![b' '; size / 2])), Ok(Bytes::from(vec![b' '; size / 2]))]);
        if ends { Box::pin(parts) } else { Box::pin(parts.chain(stream::pending())) }
    }

    async fn collected(body: BodyStream, most: u64, room: &BodyBudget) -> Result<Collected, BodyError> {
        collect(body, most, Duration::from_secs(20), None, room).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_body_waits_for_room_and_a_small_one_does_not() {
        let room = BodyBudget::default();
        let mut large = Vec::new();
        for _ in 0..64 {
            large.push(collected(body(SMALL_BODY + 2, true), MOST, &room).await.unwrap());
        }
        assert_eq!(collected(body(SMALL_BODY + 2, true), MOST, &room).await.unwrap_err(), BodyError::Crowded);
        assert_eq!(collected(body(SMALL_BODY, true), MOST, &room).await.unwrap().bytes.len(), SMALL_BODY);
        assert_eq!(collected(body(SMALL_BODY, false), MOST, &room).await.unwrap_err(), BodyError::Stalled);
        // Each body holds its memory until it is dropped, also one that does not end.
        large.pop();
        assert_eq!(
            collected(body(SMALL_BODY + 2, false), MOST, &room).await.unwrap_err(),
            BodyError::Stalled
        );
        assert!(collected(body(SMALL_BODY + 2, true), MOST, &room).await.is_ok());
        // A body that may be larger than all the memory takes all of it.
        assert_eq!(
            collected(body(SMALL_BODY + 2, true), 1 << 40, &room).await.unwrap_err(),
            BodyError::Crowded
        );
        drop(large);
        let _all = collected(body(SMALL_BODY + 2, true), 1 << 40, &room).await.unwrap();
        assert_eq!(collected(body(SMALL_BODY + 2, true), MOST, &room).await.unwrap_err(), BodyError::Crowded);
    }
}
