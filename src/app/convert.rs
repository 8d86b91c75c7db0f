//! Conversions from the configuration's types to those of the other modules.

use crate::backend;
use crate::catalog::{CandidateName, Instance};
use crate::config::{self, Config, HostPattern, Live};
use crate::host::access::{Access, Hosts};
use crate::transport::{Listen, MonitoringAccess};
use crate::volume::InForce;

/// Returns the volume service's part of a configuration. Backends keep their known state from `before`.
pub(super) fn to_volumes(config: &Config, before: &backend::Map) -> InForce {
    let Live { insecure: _, advertise: _, tls: _, spec: _, map: _, backends, hosts, limits } = &config.live;
    let settings = backends.iter().map(|(name, entry)| (name.clone(), entry.settings.clone()));
    let open_to = backends.iter().filter_map(|(name, entry)| {
        let patterns = entry.hosts.as_ref()?.iter().map(HostPattern::as_str);
        Some((name.clone(), Hosts::new(patterns)))
    });
    InForce {
        map: backend::Map::build(before, settings.collect()),
        access: Access::new(hosts.clone(), open_to.collect()),
        limits: limits.clone(),
    }
}

pub(super) fn to_transport(listen: &config::Listen) -> Listen {
    match listen {
        config::Listen::Https(address) => Listen::Https(*address),
        config::Listen::Http(address) => Listen::Http(*address),
        config::Listen::Unix(path) => Listen::Unix(path.clone()),
    }
}

/// Returns the address for monitoring, if there is one.
pub(super) fn to_monitoring(config: &Config) -> Option<Listen> {
    let access = match config.boot.metrics_clients {
        config::MetricsClients::Verified => MonitoringAccess::Verified,
        config::MetricsClients::Anyone => MonitoringAccess::Anyone,
    };
    match config.boot.metrics.as_ref()? {
        config::Listen::Https(address) => Some(Listen::Monitoring(*address, access)),
        config::Listen::Http(address) => Some(Listen::Monitoring(*address, MonitoringAccess::Plain)),
        // The configuration refuses it.
        config::Listen::Unix(_) => None,
    }
}

/// Returns the name that this machine asks for.
pub(super) fn candidate_name(config: &Config) -> CandidateName {
    CandidateName { name: config.boot.node.clone(), configured: config.boot.node_configured }
}

/// Returns what a shared catalog needs to know of this instance.
pub(super) fn instance(config: &Config) -> Instance {
    Instance {
        candidate_name: candidate_name(config),
        credentials: config.boot.etcd.clone(),
        spool: config.boot.spool.clone(),
        request: config.live.limits.request,
    }
}
