//! Metrics, health and a page of the running service, for monitoring systems and people, over HTTP on an address of their
//! own.
//!
//! Nothing here changes anything, or waits for storage or for the catalog. Only the page may look at all volumes.

mod faults;
mod health;
mod metrics;
mod page;
mod process;
mod timed_catalog;

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderValue, Method, StatusCode, header};
use prometheus_client::registry::Registry;
use warp::Filter;
use warp::reply::{Reply as _, Response};

pub(crate) use self::metrics::Counters;
use self::metrics::{Format, Present};
use self::timed_catalog::TimedCatalog;
use crate::admin::ServiceStatus;
use crate::catalog::Catalog;
use crate::host::{Caller, Via};
use crate::process::Drain;
use crate::transport::Server;
use crate::volume::Service;

/// The counters of a service, before anything is served.
pub(crate) struct Prepared {
    /// The counters that the other rooms increase.
    pub counters: Counters,
    registry: Registry,
}

impl Prepared {
    /// Returns counters that are 0.
    pub(crate) fn new() -> Self {
        let (counters, registry) = Counters::new();
        Self { counters, registry }
    }

    /// Returns a catalog that does what `catalog` does and measures it.
    pub(crate) fn timed(&self, catalog: Arc<dyn Catalog>) -> Arc<dyn Catalog> {
        Arc::new(TimedCatalog::new(catalog, self.counters.catalog()))
    }

    /// Returns what answers for a running service.
    pub(crate) fn serving(
        self,
        service: Arc<Service>,
        status: Arc<ServiceStatus>,
        server: Arc<Server>,
        drain: Drain,
    ) -> Arc<Monitoring> {
        let mut registry = self.registry;
        let connections = Box::new(move || server.connections_by_listener());
        let present = Present { service: Arc::clone(&service), status: Arc::clone(&status), connections };
        metrics::register(&mut registry, present);
        Arc::new(Monitoring { registry, service, status, drain })
    }
}

/// Answers monitoring systems.
pub(crate) struct Monitoring {
    registry: Registry,
    service: Arc<Service>,
    status: Arc<ServiceStatus>,
    drain: Drain,
}

impl Monitoring {
    /// Returns the filter that takes and answers every request.
    pub(crate) fn filter(
        self: Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = Infallible> + Clone + Send + Sync + 'static {
        let read = warp::method().and_then(|method: Method| async move {
            if method == Method::GET || method == Method::HEAD { Ok(()) } else { Err(warp::reject()) }
        });
        let read = read.untuple_one();
        let (scraped, asked, shown) = (Arc::clone(&self), Arc::clone(&self), Arc::clone(&self));
        let metrics = warp::path!("metrics")
            .and(warp::header::optional::<String>("accept"))
            .map(move |accept: Option<String>| scraped.metrics(accept.as_deref()));
        let healthz = warp::path!("healthz").map(|| text(StatusCode::OK, "ok\n".into()));
        let readyz = warp::path!("readyz").map(move || asked.ready());
        let page = warp::path::end().and(warp::ext::get::<Caller>()).then(move |caller: Caller| {
            let monitoring = Arc::clone(&shown);
            async move { monitoring.page(&caller).await }
        });
        let routes = metrics.or(healthz).unify().or(readyz).unify().or(page).unify();
        read.and(routes)
            .recover(|refused: warp::Rejection| async move { Ok::<_, Infallible>(refusal(&refused)) })
            .unify()
    }

    fn metrics(&self, accept: Option<&str>) -> Response {
        let format = Format::of(accept);
        match format.encode(&self.registry) {
            Ok(body) => {
                warp::reply::with_header(body, header::CONTENT_TYPE, format.content_type()).into_response()
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("no metrics: {error}\n")),
        }
    }

    /// Returns the page. It names volumes and hosts only to clients that proved themselves, or on this machine.
    async fn page(&self, caller: &Caller) -> Response {
        let names = caller.via == Via::Tls || caller.address.is_some_and(|address| address.is_loopback());
        let (service, status, drain) =
            (Arc::clone(&self.service), Arc::clone(&self.status), self.drain.clone());
        // It may look at all volumes.
        let rendered =
            tokio::task::spawn_blocking(move || page::render(&service, &status, &drain, names)).await;
        let page = match rendered {
            Ok(Ok(page)) => page,
            Ok(Err(error)) => return text(StatusCode::INTERNAL_SERVER_ERROR, format!("no page: {error}\n")),
            Err(_panic) => {
                return text(StatusCode::INTERNAL_SERVER_ERROR, "no page: the log says why\n".into());
            }
        };
        let mut response = warp::reply::html(page).into_response();
        let headers = response.headers_mut();
        if let Ok(policy) = HeaderValue::try_from(page::content_security_policy()) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-store"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn ready(&self) -> Response {
        let why = health::not_ready(&self.service, &self.status, &self.drain);
        if why.is_empty() {
            text(StatusCode::OK, "ready\n".into())
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, why.iter().map(|why| format!("{why}\n")).collect())
        }
    }
}

fn refusal(refused: &warp::Rejection) -> Response {
    if refused.is_not_found() {
        text(StatusCode::NOT_FOUND, "there are /, /metrics, /healthz and /readyz, for GET\n".into())
    } else {
        text(StatusCode::BAD_REQUEST, "the request is not understood\n".into())
    }
}

fn text(status: StatusCode, body: String) -> Response {
    warp::reply::with_status(body, status).into_response()
}
