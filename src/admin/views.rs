//! Conversions from the domain to the admin socket's JSON.

use std::collections::{BTreeMap, BTreeSet};

use time::OffsetDateTime;

use super::status::{Reloaded, ServiceStatus};
use super::{Counts, wire};
use crate::backend::VolumeState;
use crate::catalog;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::options::Ownership;
use crate::model::timestamp::rfc3339;
use crate::model::volume::VolumeName;
use crate::volume::{BackendInfo, Service, TrashedInfo, VolumeInfo};

pub(super) fn status(service: &Service, status: &ServiceStatus, counts: Counts) -> wire::Status {
    let (view, facts) = (service.view(), status.read());
    let Counts { connections, log_lines_dropped } = counts;
    let reload = facts.last_reload().map(reloaded);
    wire::Status {
        version: env!("CARGO_PKG_VERSION").into(),
        name: facts.name,
        node: facts.node,
        listening: facts.listening,
        catalog: facts.catalog,
        catalog_fault: service.catalog_fault(),
        volumes: view.volumes.len(),
        mounts: view.mount_count(),
        backends: backends(service),
        connections,
        since: facts.since.map(rfc3339).unwrap_or_default(),
        last_reload: reload,
        needs_restart: facts.needs_restart,
        spec: facts.spec,
        server_certificate_expires: facts.server_certificate_expires.map(rfc3339),
        log_lines_dropped,
        troubles: facts.troubles.into_values().collect(),
        cloned_hosts: view
            .hosts
            .iter()
            .filter(|(_, host)| host.cloned.is_some())
            .map(|(name, _)| name.to_string())
            .collect(),
    }
}

/// Returns the outcome of the latest reload of each unit.
pub(super) fn reloads(status: &ServiceStatus) -> Vec<wire::Reload> {
    status.read().reloads.iter().map(reloaded).collect()
}

fn reloaded(Reloaded { at, unit, faults }: &Reloaded) -> wire::Reload {
    wire::Reload {
        at: rfc3339(*at),
        unit: (*unit).into(),
        result: if faults.is_empty() { "applied" } else { "rejected" }.into(),
        faults: faults.clone(),
    }
}

pub(super) fn volumes(service: &Service) -> Vec<wire::Volume> {
    let states = service
        .backends()
        .into_iter()
        .map(|backend| (backend.name, backend.state))
        .collect::<BTreeMap<_, _>>();
    let view = service.view();
    let state = |volume: &catalog::Volume| states.get(&volume.backend).copied().unwrap_or("unmapped");
    view.volumes.values().map(|volume| wire_volume(service, volume, state(volume))).collect()
}

pub(super) fn volume(service: &Service, volume: &catalog::Volume) -> wire::Volume {
    let states = service.backends();
    let state = states
        .iter()
        .find(|backend| backend.name == volume.backend)
        .map_or("unmapped", |backend| backend.state);
    wire_volume(service, volume, state)
}

pub(super) fn detail(
    service: &Service,
    seen: &VolumeInfo,
    found: Option<(VolumeState, Option<Ownership>)>,
) -> wire::VolumeDetail {
    let (view, volume) = (service.view(), &seen.volume);
    let directory = |(state, owner): (VolumeState, Option<Ownership>)| wire::Directory {
        kind: match state {
            VolumeState::Directory => "directory",
            VolumeState::Missing => "nothing",
            VolumeState::NotADirectory(kind) => kind,
        }
        .into(),
        uid: owner.map(|owner| owner.uid),
        gid: owner.map(|owner| owner.gid),
        mode: owner.map(|owner| owner.mode.to_string()),
        changed: owner
            .map(|owner| volume.options.changed(owner).iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
    };
    wire::VolumeDetail {
        volume: wire_volume(service, volume, seen.backend_state),
        id: volume.id.to_string(),
        adopted: volume.adopted,
        durable: volume.unconfirmed.is_none(),
        known_to: volume.known_to.iter().map(ToString::to_string).collect(),
        mounted_by: volume.mounts.iter().map(|entry| mount(&view, &volume.name, entry)).collect(),
        directory: found.map(directory),
    }
}

fn wire_volume(service: &Service, volume: &catalog::Volume, backend_state: &str) -> wire::Volume {
    wire::Volume {
        name: volume.name.to_string(),
        backend: volume.backend.to_string(),
        path: service.path(volume).display().to_string(),
        created_at: rfc3339(volume.created_at),
        options: volume.options.given().map(|(name, value)| (name.to_owned(), value)).collect(),
        state: if volume.visible { backend_state } else { "pending" }.into(),
        mounts: volume.mounts.len(),
    }
}

pub(super) fn trash(service: &Service) -> Vec<wire::Trashed> {
    let wire = |TrashedInfo { removed, expires_at, blocked }: TrashedInfo| wire::Trashed {
        name: removed.volume.name.to_string(),
        id: removed.volume.id.to_string(),
        backend: removed.volume.backend.to_string(),
        removed_at: rfc3339(removed.at),
        expires_at: expires_at.map(rfc3339),
        blocked,
    };
    service.trash().into_iter().map(wire).collect()
}

pub(super) fn mounts(service: &Service) -> Vec<wire::Mount> {
    let view = service.view();
    let of = |volume: &'_ catalog::Volume| {
        volume.mounts.iter().map(|entry| mount(&view, &volume.name, entry)).collect::<Vec<_>>()
    };
    view.volumes.values().flat_map(|volume| of(volume)).collect()
}

pub(super) fn mount(view: &catalog::View, volume: &VolumeName, entry: &Mount) -> wire::Mount {
    wire::Mount {
        volume: volume.to_string(),
        host: entry.host.to_string(),
        id: entry.id.to_string(),
        count: entry.count,
        since: rfc3339(entry.since),
        stale: view.stale(entry),
        address: entry.address.filter(|address| !address.is_unspecified()).map(|address| address.to_string()),
    }
}

pub(super) fn backends(service: &Service) -> Vec<wire::Backend> {
    let wire =
        |BackendInfo { name, path, state, draining, reason, volumes, usage }: BackendInfo| wire::Backend {
            name: name.to_string(),
            path: path.display().to_string(),
            state: state.into(),
            draining,
            reason,
            volumes,
            total_bytes: usage.map(|usage| usage.total_bytes),
            free_bytes: usage.map(|usage| usage.free_bytes),
            names: usage.map(|usage| usage.name_folding.word().into()),
        };
    service.backends().into_iter().map(wire).collect()
}

/// Returns every host that has a certificate, was seen, or has mounts.
pub(super) fn hosts(service: &Service) -> Vec<wire::Host> {
    let view = service.view();
    let names: BTreeSet<_> = view.hosts.keys().chain(view.hosts_in_use()).collect();
    let wire = |name: &HostName| {
        let host = view.hosts.get(name);
        let latest = host.and_then(|host| host.certificates.last());
        wire::Host {
            serial: latest.map(|certificate| certificate.serial.clone()),
            expires: latest.map(|certificate| rfc3339(certificate.not_after)),
            last_seen: service.last_seen(name).map(|at: OffsetDateTime| rfc3339(at)),
            mounts: view.counts_of_host(name).mounts,
            revoked: match latest {
                Some(certificate) => certificate.revoked,
                None => host.is_some_and(|host| host.revoked_at.is_some()),
            },
            cloned: host.is_some_and(|host| host.cloned.is_some()),
            addresses: host.map(|host| host.addresses()).unwrap_or_default(),
            name: name.to_string(),
        }
    };
    // A machine that serves the catalog has a record even if it never called.
    let is_host =
        |row: &wire::Host| row.serial.is_some() || row.last_seen.is_some() || row.mounts > 0 || row.revoked;
    names.into_iter().map(wire).filter(is_host).collect()
}
