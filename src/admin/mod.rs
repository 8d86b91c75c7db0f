//! The admin socket: the operator's requests to the running service, as JSON over HTTP on a Unix socket.
//!
//! Whoever can open the socket is the operator; nothing else is checked. This module converts between the wire and the
//! domain, and decides nothing about volumes. It never serves engines.

pub(crate) mod client;
mod enrolment;
mod handlers;
mod rollover;
pub(crate) mod status;
mod views;
pub(crate) mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use warp::Filter;
use warp::reply::{Reply as _, Response};

use self::enrolment::EnrolmentError;
pub(crate) use self::enrolment::{Enrolment, Issuing, certificate};
use self::handlers::ROUTES;
pub(crate) use self::status::{Facts, ServiceStatus};
use self::wire::Failure;
use crate::catalog::CatalogError;
use crate::error::{chain, nearest};
use crate::host::Caller;
use crate::volume::{Blame, Service};

/// The most bytes of a request's body.
const BODY_BYTES: u64 = 1 << 20;

/// Serves the admin socket.
pub(crate) struct Admin {
    service: Arc<Service>,
    status: Arc<ServiceStatus>,
    enrolment: Enrolment,
    operator: Caller,
    counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    reload: Reload,
}

/// Counters that are not about volumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// The number of open connections.
    pub connections: usize,
    /// The number of log lines that were dropped.
    pub log_lines_dropped: u64,
}

/// Reads everything that can be reloaded, and returns true once that is done, or false if nobody can do it any more.
/// The outcome is in the status. With `true`, files that are worse than those in force are put in force too.
pub(crate) type Reload = Box<dyn Fn(bool) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// The answer to a request that was refused or failed.
#[derive(Debug)]
struct HttpError {
    status: StatusCode,
    error: String,
}

type JsonResult = Result<Vec<u8>, HttpError>;

impl Admin {
    /// Returns an admin service that acts as `operator`, a caller of this machine.
    pub(crate) fn new(
        service: Arc<Service>,
        status: Arc<ServiceStatus>,
        enrolment: Enrolment,
        operator: Caller,
        counts: impl Fn() -> Counts + Send + Sync + 'static,
        reload: Reload,
    ) -> Arc<Self> {
        Arc::new(Self { service, status, enrolment, operator, counts: Arc::new(counts), reload })
    }

    /// Returns the one filter that takes every request.
    pub(crate) fn filter(
        self: Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
        warp::method()
            .and(warp::path::full())
            .and(warp::body::content_length_limit(BODY_BYTES))
            .and(warp::body::bytes())
            .then(move |method, path: warp::path::FullPath, body: Bytes| {
                let admin = Arc::clone(&self);
                async move { respond(admin.answer(&method, path.as_str(), &body).await) }
            })
    }

    async fn answer(&self, method: &Method, path: &str, body: &[u8]) -> JsonResult {
        if method != Method::POST {
            return Err(HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "the admin socket takes POST only"));
        }
        match ROUTES.iter().find(|route| route.path == path) {
            Some(route) => (route.run)(self, body).await,
            None => Err(HttpError::unknown(path)),
        }
    }
}

impl HttpError {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn unknown(path: &str) -> Self {
        let hint = nearest(path, ROUTES.iter().map(|route| route.path))
            .map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        Self::new(StatusCode::NOT_FOUND, format!("the admin socket has no {path}{hint}"))
    }
}

impl From<crate::volume::Error> for HttpError {
    fn from(error: crate::volume::Error) -> Self {
        let status = match error.blame() {
            Blame::Caller => StatusCode::BAD_REQUEST,
            Blame::Rights => StatusCode::FORBIDDEN,
            Blame::Service | Blame::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, chain(&error))
    }
}

impl From<EnrolmentError> for HttpError {
    fn from(error: EnrolmentError) -> Self {
        match &error {
            EnrolmentError::Catalog(CatalogError::Refused(_)) => refuse(error),
            EnrolmentError::Catalog(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)),
            _ => refuse(error),
        }
    }
}

/// Returns the answer for an error that the request itself caused.
fn refuse(error: impl std::error::Error + 'static) -> HttpError {
    HttpError::new(StatusCode::BAD_REQUEST, chain(&error))
}

fn json(value: &impl Serialize) -> JsonResult {
    serde_json::to_vec(value).map_err(|error| {
        HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer cannot be written as JSON: {error}"),
        )
    })
}

fn respond(answer: JsonResult) -> Response {
    match answer {
        Ok(bytes) => warp::reply::with_header(bytes, "Content-Type", "application/json").into_response(),
        Err(HttpError { status, error }) => {
            warp::reply::with_status(warp::reply::json(&Failure { error }), status).into_response()
        }
    }
}
