//! From the configuration's types to those of the rooms. Every field is named, so that none is forgotten.

use crate::backend;
use crate::catalog::{Instance, Named};
use crate::config::{self, Config};
use crate::host::access::{Access, Hosts};
use crate::transport::{Limits, Listen};
use crate::volume::InForce;

/// What the configuration says of volumes.
pub(super) fn in_force(config: &Config, before: &backend::Map) -> InForce {
    let settings = config.backends.iter().map(|(name, backend)| (name.clone(), to_backend(backend)));
    let open_to = config
        .backends
        .iter()
        .filter_map(|(name, backend)| Some((name.clone(), Hosts::new(patterns(backend.hosts.as_ref()?)))));
    InForce {
        map: backend::Map::build(before, settings.collect()),
        access: Access::new(config.hosts.clone(), open_to.collect()),
        request: config.limits.request,
    }
}

fn patterns<'a>(hosts: impl IntoIterator<Item = &'a config::HostPattern>) -> impl Iterator<Item = &'a str> {
    hosts.into_iter().map(config::HostPattern::as_str)
}

fn to_backend(settings: &config::BackendSettings) -> backend::Settings {
    let config::BackendSettings {
        path,
        mountpoints,
        draining,
        require_mount,
        trash,
        uid,
        gid,
        mode,
        hosts: _, // The rules of access know it.
    } = settings;
    backend::Settings {
        path: path.clone(),
        mountpoints: mountpoints.clone(),
        draining: *draining,
        require_mount: *require_mount,
        trash: *trash,
        uid: *uid,
        gid: *gid,
        mode: *mode,
    }
}

pub(super) fn to_limits(config: &Config) -> Limits {
    let config::Limits { connections, connections_per_host, body_bytes, handshake, request } = &config.limits;
    Limits {
        connections: *connections,
        connections_per_host: *connections_per_host,
        handshake: *handshake,
        request: *request,
        body_bytes: *body_bytes as u64,
    }
}

pub(super) fn to_transport(listen: &config::Listen) -> Listen {
    match listen {
        config::Listen::Https(address) => Listen::Https(*address),
        config::Listen::Http(address) => Listen::Http(*address),
        config::Listen::Unix(path) => Listen::Unix(path.clone()),
    }
}

/// What this machine would be called.
pub(super) fn named(config: &Config) -> Named {
    Named { name: config.node.clone(), configured: config.node_configured }
}

/// What a shared catalog needs to know of this instance.
pub(super) fn instance(config: &Config) -> Instance {
    Instance {
        named: named(config),
        credentials: config.etcd.clone(),
        spool: config.spool.clone(),
        request: config.limits.request,
    }
}
