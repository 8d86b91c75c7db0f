//! Merges copies of a catalog, and the directories on the backends, into one catalog.

use std::collections::BTreeSet;
use std::sync::Arc;

use time::OffsetDateTime;

use super::{AllFacts, Facts, Finding, Findings, Kind, compare};
use crate::catalog::entities::{BackendRecord, BackendState, Host, Removed, Volume};
use crate::catalog::rules::recorded_time;
use crate::catalog::view::View;
use crate::model::mounts::Ledger;
use crate::model::volume::VolumeId;

/// A copy of the catalog, to be merged.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The place where it was found, for messages.
    pub label: String,
    /// When it was made.
    pub at: Option<OffsetDateTime>,
    /// What it holds.
    pub view: View,
}

/// Merges copies and the facts of the backends into one catalog; returns it with the decisions taken and the
/// contradictions found.
///
/// The newest copy is used as a whole. An older one adds what the newest never knew and what still exists: volumes and
/// removed volumes whose directories are there, hosts, backends, and revocations, which no copy takes back.
#[must_use]
pub(crate) fn merge(
    mut sources: Vec<Source>,
    mut facts: AllFacts,
    now: OffsetDateTime,
) -> (View, Vec<Finding>) {
    sources.sort_by(|one, other| other.at.cmp(&one.at).then_with(|| one.label.cmp(&other.label)));
    let mut findings = Findings::default();
    let mut older = sources.into_iter();
    let mut view = older.next().map(|source| source.view).unwrap_or_default();
    let older: Vec<_> = older.collect();
    for source in &older {
        add_older_identities(&mut view, source, &mut findings);
    }
    take_identities(&mut view, &mut facts, &mut findings);
    for source in &older {
        add_older(&mut view, source, &facts, &mut findings);
    }
    discard_removed(&mut view, &facts, now, &mut findings);
    expire_deleting(&mut view, &facts, &mut findings);
    view.recount();
    findings.0.extend(compare(&view, &facts));
    (view, findings.sorted())
}

fn add_older_identities(view: &mut View, source: &Source, findings: &mut Findings) {
    let label = &source.label;
    for (name, backend) in &source.view.backends {
        match view.backends.get(name) {
            None if view.backends.values().any(|known| known.id == backend.id) => {}
            None => {
                view.backends.insert(name.clone(), Arc::clone(backend));
                findings.add(name, Kind::Older, &backend.id, format!("the identity is from {label}"));
            }
            Some(newer) if newer.id != backend.id => {
                let what = format!("{label} has {} for this backend; the newer identity holds", backend.id);
                findings.add(name, Kind::Conflict, &newer.id, what);
            }
            Some(_) => {}
        }
    }
}

fn add_older(view: &mut View, source: &Source, facts: &AllFacts, findings: &mut Findings) {
    let label = &source.label;
    let known: BTreeSet<VolumeId> =
        view.volumes.values().map(|v| v.id).chain(view.trash.keys().copied()).collect();
    for (name, volume) in source.view.volumes.iter().filter(|(_, volume)| !known.contains(&volume.id)) {
        let there = facts.get(&volume.backend).is_some_and(|facts| facts.directories.contains(name));
        match view.volumes.get(name) {
            // A volume that no newer copy knows and that has no directory was removed since.
            None if !there => {}
            None => {
                view.volumes.insert(name.clone(), Arc::clone(volume));
                findings.add(&volume.backend, Kind::Older, name, format!("the volume is from {label}"));
            }
            Some(newer) if newer.backend != volume.backend && there => {
                let what =
                    format!("{label} has a volume of this name here; the newer, on {}, holds", newer.backend);
                findings.add(&volume.backend, Kind::Conflict, name, what);
            }
            Some(_) => {}
        }
    }
    for (id, removed) in source.view.trash.iter().filter(|(id, _)| !known.contains(id)) {
        let backend = &removed.volume.backend;
        if facts.get(backend).is_some_and(|facts| facts.is_removed(*id)) {
            view.trash.insert(Arc::clone(removed));
            let what = format!("the removed volume {} is from {label}", removed.volume.name);
            findings.add(backend, Kind::Older, id, what);
        }
    }
    for (name, older) in &source.view.hosts {
        let (merged, told) = match view.hosts.get(name) {
            None => (Host::clone(older), format!("the host is from {label}")),
            Some(newer) => (with_revocations(newer, older), format!("revocations are from {label}")),
        };
        if view.hosts.get(name).is_none_or(|newer| **newer != merged) {
            view.hosts.insert(name.clone(), Arc::new(merged));
            findings.0.push(Finding { backend: None, kind: Kind::Older, name: name.to_string(), what: told });
        }
    }
}

/// Returns the newer copy's host, completed with the certificates and revocations that only the older copy knows: a
/// revocation holds for good.
fn with_revocations(newer: &Host, older: &Host) -> Host {
    let mut host = newer.clone();
    host.activation = newer.activation.max(older.activation);
    host.revoked_at = newer.revoked_at.max(older.revoked_at);
    for certificate in &older.certificates {
        match host.certificates.iter_mut().find(|known| known.serial == certificate.serial) {
            Some(known) => known.revoked |= certificate.revoked,
            None => host.certificates.push(certificate.clone()),
        }
    }
    host.certificates.sort_by_key(|certificate| certificate.issued_at);
    host
}

/// Records the identities of backends that no copy knows. Drops the facts of directories that are not the backend known
/// by their name.
fn take_identities(view: &mut View, facts: &mut AllFacts, findings: &mut Findings) {
    facts.retain(|name, Facts { id, mountpoints, .. }| {
        let Some(id) = *id else { return false };
        let holder = view.backends.iter().find(|(_, known)| known.id == id).map(|(name, _)| name.clone());
        match (holder, view.backends.get(name)) {
            (Some(holder), _) if holder == *name => return true,
            (Some(holder), _) => {
                let what = format!("its identity is known as backend {holder}: call it so in the map");
                findings.add(name, Kind::Conflict, &id, what);
            }
            (None, Some(known)) => {
                let what = format!(
                    "it is another backend than the copies know ({}): mount that, or `volhost backend adopt {name}`",
                    known.id
                );
                findings.add(name, Kind::Conflict, &id, what);
            }
            (None, None) => {
                let state = BackendState::Established;
                let record = BackendRecord { id, state, mountpoints: mountpoints.clone() };
                view.backends.insert(name.clone(), Arc::new(record));
                return true;
            }
        }
        false
    });
}

/// Moves volumes whose directories lie in the trash to the catalog's trash: they were removed after the copy was made.
/// They can be restored from there, and their retention time begins now.
fn discard_removed(view: &mut View, facts: &AllFacts, now: OffsetDateTime, findings: &mut Findings) {
    let is_removed =
        |volume: &&Arc<Volume>| facts.get(&volume.backend).is_some_and(|facts| facts.is_removed(volume.id));
    let removed: Vec<_> = view.volumes.values().filter(is_removed).cloned().collect();
    for volume in removed {
        view.volumes.remove(&volume.name);
        let expired = facts.get(&volume.backend).is_some_and(|facts| facts.is_deleting(volume.id));
        let what = if expired {
            "its deletion has begun: it cannot be restored, and the service deletes the rest".into()
        } else {
            format!("its directory is in the trash: `volhost volume restore {}` brings it back", volume.id)
        };
        findings.add(&volume.backend, Kind::RemovedSince, &volume.name, what);
        let volume =
            Volume { mounts: Ledger::default(), visible: false, unconfirmed: None, ..Volume::clone(&volume) };
        let volume = Arc::new(volume);
        view.trash.insert(Arc::new(Removed { volume, at: recorded_time(now), expired }));
    }
}

/// Marks removed volumes whose deletion has begun since the copy was made as expired: they cannot be restored, and
/// their deletion goes on.
fn expire_deleting(view: &mut View, facts: &AllFacts, findings: &mut Findings) {
    let is_deleting = |removed: &&Arc<Removed>| {
        !removed.expired
            && facts.get(&removed.volume.backend).is_some_and(|facts| facts.is_deleting(removed.volume.id))
    };
    let begun: Vec<_> = view.trash.values().filter(is_deleting).cloned().collect();
    for removed in begun {
        let what = format!(
            "the deletion of the removed volume {} has begun: it cannot be restored, and the service deletes the rest",
            removed.volume.name
        );
        findings.add(&removed.volume.backend, Kind::Deleting, &removed.volume.id, what);
        view.trash.insert(Arc::new(Removed { expired: true, ..Removed::clone(&removed) }));
    }
}
