//! The metrics: what is counted while the service runs, and what a scrape reads from memory.
//!
//! A scrape waits for nothing and costs the same however many volumes and mounts there are.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use time::OffsetDateTime;

use super::process::Process;
use super::timed_catalog::CatalogTimes;
use crate::admin::ServiceStatus;
use crate::catalog::View;
use crate::model::host::HostName;
use crate::protocol;
use crate::transport::HandshakeResult;
use crate::volume::Service;

/// The bounds of the histograms' buckets, in seconds: from a Get that is answered from memory to `limits.request`.
const BUCKETS: [f64; 15] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 20.0];

/// The prefix of every name but those of the process.
const PREFIX: &str = "volhost";

type Labels = Vec<(&'static str, String)>;

/// Counters that increase while the service runs. Copies count together.
#[derive(Clone)]
pub(crate) struct Counters {
    requests: Requests,
    handshakes: Family<Labels, Counter>,
    reloads: Family<Labels, Counter>,
    catalog: CatalogTimes,
}

/// Counts of engines' requests. Every request counts here, so nothing is looked up by a label.
#[derive(Clone)]
struct Requests {
    /// By RPC, and there by the answer's code as [`CODES`] has it; then those of other codes, and of no answer.
    codes: Arc<[Vec<Counter>]>,
    /// By RPC.
    seconds: Arc<[Histogram]>,
}

/// The codes of answers that have a counter of their own. Those of other answers are counted together, and so are
/// requests that got no answer.
const CODES: [u16; 8] = [200, 400, 403, 404, 405, 413, 500, 503];

impl Requests {
    fn new(total: &Family<Labels, Counter>, seconds: &Family<Labels, Histogram, fn() -> Histogram>) -> Self {
        let rpcs = || protocol::rpcs().chain(std::iter::once("other".to_owned()));
        let counters = |rpc: String| {
            let counter = |code: &str| {
                let labels = vec![("rpc", rpc.clone()), ("code", code.to_owned())];
                total.get_or_create_owned(&labels)
            };
            CODES
                .map(|code| counter(&code.to_string()))
                .into_iter()
                .chain(["other", "none"].map(counter))
                .collect()
        };
        Self {
            codes: rpcs().map(counters).collect(),
            seconds: rpcs().map(|rpc| seconds.get_or_create_owned(&vec![("rpc", rpc)])).collect(),
        }
    }

    fn answered(&self, rpc: Option<usize>, code: Option<StatusCode>, took: Duration) {
        let rpc = rpc.unwrap_or(self.codes.len() - 1);
        let code = match code {
            Some(code) => CODES.iter().position(|known| *known == code.as_u16()).unwrap_or(CODES.len()),
            None => CODES.len() + 1,
        };
        if let Some(counter) = self.codes.get(rpc).and_then(|codes| codes.get(code)) {
            counter.inc();
        }
        if let Some(seconds) = self.seconds.get(rpc) {
            seconds.observe(took.as_secs_f64());
        }
    }
}

impl Counters {
    /// Returns counters that are 0, and the registry that encodes them.
    pub(super) fn new() -> (Self, Registry) {
        let mut whole = Registry::default();
        let registry = whole.sub_registry_with_prefix(PREFIX);
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        let total = Family::<Labels, Counter>::default();
        let seconds = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let catalog_seconds = Family::<Labels, Histogram, fn() -> Histogram>::new_with_constructor(histogram);
        let (handshakes, reloads) = <(Family<Labels, Counter>, Family<Labels, Counter>)>::default();
        registry.register(
            "requests",
            "Requests of engines, by their RPC and the answer's HTTP status",
            total.clone(),
        );
        registry.register("request_seconds", "Time from a request's head to its answer", seconds.clone());
        registry.register("handshakes", "TLS handshakes, by their result", handshakes.clone());
        registry.register("reloads", "Reloads of a unit, by their result", reloads.clone());
        registry.register(
            "catalog_seconds",
            "Time that the catalog took: from a change to its durable outcome, or to hear of other instances' changes",
            catalog_seconds.clone(),
        );
        let times = |op: &str| catalog_seconds.get_or_create_owned(&vec![("op", op.to_owned())]);
        let counters = Self {
            requests: Requests::new(&total, &seconds),
            handshakes,
            reloads,
            catalog: CatalogTimes { change: times("change"), sync: times("sync") },
        };
        for result in HandshakeResult::ALL {
            let _ = counters.handshakes.get_or_create(&vec![("result", result.as_str().to_owned())]);
        }
        (counters, whole)
    }

    /// Counts an answered request. `rpc` is its place in [`protocol::rpcs`], `code` the answer's status if there was an
    /// answer.
    pub(crate) fn answered(&self, rpc: Option<usize>, code: Option<StatusCode>, took: Duration) {
        self.requests.answered(rpc, code, took);
    }

    /// Counts a TLS handshake.
    pub(crate) fn handshake(&self, result: HandshakeResult) {
        self.handshakes.get_or_create(&vec![("result", result.as_str().to_owned())]).inc();
    }

    /// Counts a reload of a unit.
    pub(crate) fn reloaded(&self, unit: &str, applied: bool) {
        let result = if applied { "applied" } else { "rejected" };
        let labels = vec![("unit", unit.to_owned()), ("result", result.to_owned())];
        self.reloads.get_or_create(&labels).inc();
    }

    pub(super) fn catalog(&self) -> CatalogTimes {
        self.catalog.clone()
    }
}

/// The running service, as a scrape reads it.
pub(super) struct Present {
    pub service: Arc<Service>,
    pub status: Arc<ServiceStatus>,
    /// Returns the number of connections by kind of listener.
    pub connections: Box<dyn Fn() -> Vec<(&'static str, usize)> + Send + Sync>,
}

impl fmt::Debug for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Present")
    }
}

/// Writes gauges one after the other.
struct Gauges<'a>(DescriptorEncoder<'a>);

impl Gauges<'_> {
    /// Writes a gauge without labels.
    fn one(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        let encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    /// Writes a gauge with a value for each set of labels.
    fn family<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut encoder = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a count or size of more than 2^53 is shown rounded")]
fn number(count: usize) -> f64 {
    count as f64
}

fn unix_time(at: OffsetDateTime) -> f64 {
    at.unix_timestamp_nanos() as f64 / 1e9
}

impl Collector for Present {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauges = Gauges(encoder);
        let (view, facts) = (self.service.view(), self.status.read());
        let catalog = facts.catalog.split_once(':').map_or("", |(engine, _)| engine);
        gauges.family(
            "build_info",
            "The version of the program and the kind of its catalog",
            [([("version", env!("CARGO_PKG_VERSION")), ("catalog", catalog)], 1.0)],
        )?;
        gauges.family(
            "connections",
            "Open connections, by kind of listener",
            (self.connections)()
                .into_iter()
                .map(|(listener, count)| ([("listener", listener)], number(count))),
        )?;
        self.backends(&mut gauges, &view)?;
        gauges.one(
            "stale_mounts",
            "Mounts of engines that were started again since",
            number(view.stale_count()),
        )?;
        gauges.one(
            "rejected_reload",
            "1 while a unit's latest reload was rejected and what was in force before stays so",
            f64::from(facts.reloads.iter().any(|reload| !reload.faults.is_empty())),
        )?;
        let up = self.service.catalog_fault().is_none();
        gauges.one("catalog_up", "1 while changes can be made durable in the catalog", f64::from(up))?;
        gauges.family(
            "certificate_expiry_seconds",
            "When a certificate of this service expires, as Unix time",
            [("server", facts.server_certificate_expires), ("client_ca", facts.client_ca_expires)]
                .into_iter()
                .filter_map(|(which, at)| Some(([("which", which)], unix_time(at?)))),
        )?;
        self.hosts(&mut gauges, &view)
    }
}

impl Present {
    fn backends(&self, gauges: &mut Gauges<'_>, view: &View) -> fmt::Result {
        let backends = self.service.backends();
        let label = |name: &str| [("backend", name.to_owned())];
        let of_each = |value: &dyn Fn(&crate::volume::BackendInfo) -> usize| -> Vec<_> {
            backends.iter().map(|backend| (label(backend.name.as_str()), number(value(backend)))).collect()
        };
        gauges.family("volumes", "Volumes of a backend", of_each(&|backend| backend.volumes))?;
        gauges.family(
            "mounts",
            "Mounts of a backend's volumes: a host, an ID and an activation of an engine",
            of_each(&|backend| view.counts_of_backend(&backend.name).mounts),
        )?;
        gauges.family(
            "removed_volumes",
            "Removed volumes that a backend's trash keeps",
            of_each(&|backend| view.trash.count_of(&backend.name)),
        )?;
        gauges.family(
            "backend_up",
            "1 while a backend is online",
            of_each(&|backend| usize::from(backend.usage.is_some())),
        )?;
        let bytes = backends.iter().flat_map(|backend| {
            let usage = backend.usage.iter();
            usage.flat_map(move |usage| {
                [("total", usage.total_bytes), ("free", usage.free_bytes)].map(|(kind, bytes)| {
                    let labels = [("backend", backend.name.to_string()), ("kind", kind.to_owned())];
                    (labels, number(usize::try_from(bytes).unwrap_or(usize::MAX)))
                })
            })
        });
        gauges.family("backend_bytes", "The size of a backend's file system and what is free of it", bytes)
    }

    fn hosts(&self, gauges: &mut Gauges<'_>, view: &View) -> fmt::Result {
        let label = |name: &HostName| [("host", name.to_string())];
        gauges.family(
            "host_certificate_expiry_seconds",
            "When the newest certificate of a host expires, as Unix time",
            view.hosts.iter().filter_map(|(name, host)| {
                let newest =
                    host.certificates.iter().filter(|one| !one.revoked).map(|one| one.not_after).max();
                Some((label(name), unix_time(newest?)))
            }),
        )?;
        gauges.family(
            "host_last_seen_seconds",
            "When a host last sent a request, as Unix time",
            view.hosts
                .keys()
                .filter_map(|name| Some((label(name), unix_time(self.service.last_seen(name)?)))),
        )?;
        let cloned = view.hosts.values().filter(|host| host.cloned.is_some()).count();
        gauges.one("cloned_hosts", "Hosts of which several machines use one certificate", number(cloned))
    }
}

/// The formats of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// Returns the format that a request's `Accept` asks for: OpenMetrics only if it names it.
    pub(super) fn of(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub(super) fn encode(self, registry: &Registry) -> Result<String, fmt::Error> {
        let mut out = String::new();
        match self {
            Self::OpenMetrics => text::encode(&mut out, registry)?,
            Self::Text => prometheus_text::encode(&mut out, registry)?,
        }
        Ok(out)
    }
}

/// Adds what a scrape reads to the registry.
pub(super) fn register(registry: &mut Registry, present: Present) {
    registry.sub_registry_with_prefix(PREFIX).register_collector(Box::new(present));
    registry.register_collector(Box::new(Process));
}
