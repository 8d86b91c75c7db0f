//! The page for people: what is wrong first, then backends, hosts and volumes in use.
//!
//! It has no script, loads nothing and changes nothing. Every name is escaped by the template.

use askama::Template;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use humansize::{BINARY, format_size};
use time::OffsetDateTime;

use super::faults::{self, Fault, Severity, Sources, percent};
use crate::admin::ServiceStatus;
use crate::catalog::View;
use crate::error::counted;
use crate::model::timestamp::rfc3339;
use crate::process::{Drain, log};
use crate::volume::Service;

/// The page's style, which stands in it.
const CSS: &str = include_str!("page.css");

/// The most volumes in use that the page names.
const MAX_VOLUMES: usize = 50;

/// The most hosts that the page names of one volume.
const MAX_HOSTS: usize = 8;

#[derive(Template)]
#[template(path = "page.html", config = "src/monitoring/askama.toml")]
struct Page {
    css: &'static str,
    node: String,
    version: &'static str,
    since: String,
    now: String,
    verdict: Verdict,
    faults: Vec<Fault>,
    backends: Vec<Backend>,
    /// `None` if names are not shown.
    hosts: Option<Vec<Host>>,
    host_count: String,
    /// `None` if names are not shown.
    volumes: Option<InUse>,
    volume_count: String,
    mount_count: String,
}

/// The whole in one sentence.
struct Verdict {
    title: String,
    class: &'static str,
}

struct Backend {
    name: String,
    state: &'static str,
    class: &'static str,
    space: Option<Space>,
    volumes: usize,
    mounts: usize,
    removed: usize,
}

struct Space {
    percent: u64,
    total: String,
    free: String,
}

struct Host {
    name: String,
    last_seen: String,
    mounts: usize,
    stale: usize,
    certificate: String,
}

struct InUse {
    rows: Vec<Volume>,
    more: bool,
}

struct Volume {
    name: String,
    backend: String,
    mounts: usize,
    hosts: String,
}

/// Returns the page. `names` is true if volumes and hosts may be named.
pub(super) fn render(
    service: &Service,
    status: &ServiceStatus,
    drain: &Drain,
    names: bool,
) -> Result<String, askama::Error> {
    let (view, facts, now) = (service.view(), status.read(), OffsetDateTime::now_utc());
    let infos = service.backends();
    let sources = Sources {
        facts: &facts,
        view: &view,
        backends: &infos,
        catalog_fault: service.catalog_fault(),
        is_stopping: drain.is_started(),
        log_lines_dropped: log::dropped(),
        now,
        names,
    };
    let faults = faults::all(&sources);
    let backends = infos.iter().map(|info| Backend {
        name: info.name.to_string(),
        state: info.state,
        class: if info.usage.is_some() { "good" } else { "wrong" },
        space: info.usage.and_then(|usage| {
            Some(Space {
                percent: 100 - percent(usage.free_bytes, usage.total_bytes)?.min(100),
                total: format_size(usage.total_bytes, BINARY),
                free: format_size(usage.free_bytes, BINARY),
            })
        }),
        volumes: info.volumes,
        mounts: view.counts_of_backend(&info.name).mounts,
        removed: view.trash.count_of(&info.name),
    });
    let backends = backends.collect();
    let page = Page {
        css: CSS,
        version: concat!("volhost ", env!("CARGO_PKG_VERSION")),
        since: facts.since.map(rfc3339).unwrap_or_default(),
        now: rfc3339(now),
        verdict: verdict(&faults),
        faults,
        backends,
        hosts: names.then(|| hosts(service, &view)),
        host_count: counted(view.hosts.len(), "host"),
        volumes: names.then(|| in_use(&view)),
        volume_count: counted(view.volumes.len(), "volume"),
        mount_count: counted(view.mount_count(), "mount"),
        node: facts.node,
    };
    page.render()
}

fn verdict(faults: &[Fault]) -> Verdict {
    let wrong = faults.iter().filter(|fault| fault.severity == Severity::Wrong).count();
    match (wrong, faults.len()) {
        (0, 0) => Verdict { title: "All is well".into(), class: "good" },
        (0, warnings) => Verdict { title: counted(warnings, "warning"), class: "warning" },
        (1, _) => Verdict { title: "1 thing is wrong".into(), class: "wrong" },
        (many, _) => Verdict { title: format!("{many} things are wrong"), class: "wrong" },
    }
}

fn hosts(service: &Service, view: &View) -> Vec<Host> {
    let host = |name| {
        let counts = view.counts_of_host(name);
        let newest = view.hosts.get(name).and_then(|host| host.certificates.last());
        Host {
            name: name.to_string(),
            last_seen: service.last_seen(name).map_or_else(|| "never".into(), rfc3339),
            mounts: counts.mounts,
            stale: counts.stale,
            certificate: match newest {
                Some(certificate) if certificate.revoked => "revoked".into(),
                Some(certificate) => rfc3339(certificate.not_after),
                None => "–".into(),
            },
        }
    };
    view.hosts.keys().map(host).collect()
}

fn in_use(view: &View) -> InUse {
    let mounted = view.volumes.values().filter(|volume| volume.visible && !volume.mounts.is_empty());
    let mut rows: Vec<_> = mounted
        .take(if view.mount_count() > 0 { MAX_VOLUMES + 1 } else { 0 })
        .map(|volume| {
            let mut hosts: Vec<_> =
                volume.mounts.hosts().take(MAX_HOSTS + 1).map(ToString::to_string).collect();
            if hosts.len() > MAX_HOSTS {
                hosts.truncate(MAX_HOSTS);
                hosts.push("…".into());
            }
            Volume {
                name: volume.name.to_string(),
                backend: volume.backend.to_string(),
                mounts: volume.mounts.len(),
                hosts: hosts.join(", "),
            }
        })
        .collect();
    let more = rows.len() > MAX_VOLUMES;
    rows.truncate(MAX_VOLUMES);
    InUse { rows, more }
}

/// Returns the policy by which a browser takes nothing but this page's own style.
pub(super) fn content_security_policy() -> String {
    let style = STANDARD.encode(digest(&SHA256, CSS.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}
