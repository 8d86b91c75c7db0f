//! What catalogs and directories say of each other: the differences between them, and one catalog made from copies.
//!
//! Pure: the caller has looked at the backends. Nothing here deletes, and nothing that only a directory tells of
//! becomes a volume: it is found, and the operator may adopt it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use time::OffsetDateTime;

use super::entities::{BackendRecord, BackendState, Host, Removed, Volume};
use super::rules::moment;
use super::view::View;
use crate::model::backend::{BackendId, BackendName};
use crate::model::mountpoints::Mountpoints;
use crate::model::mounts::Ledger;
use crate::model::options::Ownership;
use crate::model::volume::{VolumeId, VolumeName};

/// What lies on a backend that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Its identity, where it has one.
    pub id: Option<BackendId>,
    /// Where hosts see it.
    pub mountpoints: Mountpoints,
    /// The directories that bear a volume's name.
    pub directories: BTreeSet<VolumeName>,
    /// What bears a volume's name and is no directory, and what it is.
    pub others: BTreeMap<VolumeName, &'static str>,
    /// The owners and modes of those directories that were asked for.
    pub owners: BTreeMap<VolumeName, Ownership>,
    /// The directories being made.
    pub staged: BTreeSet<VolumeId>,
    /// The directories in the trash.
    pub trashed: BTreeSet<VolumeId>,
    /// The directories whose deletion has begun: what is left of removed volumes.
    pub deleting: BTreeSet<VolumeId>,
}

impl Facts {
    /// Returns true if all that is left of a removed volume is what its deletion has not got to.
    fn is_deleting(&self, id: VolumeId) -> bool {
        self.deleting.contains(&id) && !self.trashed.contains(&id)
    }

    /// Returns true if a volume was removed, as its directory tells.
    fn is_removed(&self, id: VolumeId) -> bool {
        self.trashed.contains(&id) || self.deleting.contains(&id)
    }
}

/// The backends that were looked at.
pub(crate) type AllFacts = BTreeMap<BackendName, Facts>;

/// What kind of difference there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A volume without a directory.
    Missing,
    /// A volume whose directory has another owner or mode than its options said: worth knowing, and no fault.
    Owner,
    /// A directory that belongs to no volume: it can be adopted.
    Found,
    /// A directory being made or removed, of a volume that exists: the next start of the service settles it.
    HalfDone,
    /// A directory in `.volhost/new` or `.volhost/trash` that belongs to nothing known.
    Leftover,
    /// A removed volume whose directory is not in the trash.
    NotInTrash,
    /// What is left of a volume whose deletion has begun, of which the catalog does not know that.
    Deleting,
    /// A record that came from an older copy than the rest.
    Older,
    /// A volume that was removed since the copy was made.
    RemovedSince,
    /// Copies, or a copy and a backend, that contradict each other.
    Conflict,
}

impl Kind {
    /// Returns true if something is to be mended.
    #[must_use]
    pub fn is_fault(self) -> bool {
        self != Self::Owner
    }

    /// Its word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Owner => "owner",
            Self::Found => "found",
            Self::HalfDone => "half-done",
            Self::Leftover => "leftover",
            Self::NotInTrash => "not in trash",
            Self::Deleting => "being deleted",
            Self::Older => "older copy",
            Self::RemovedSince => "removed since",
            Self::Conflict => "conflict",
        }
    }
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The backend it concerns; none for what is the catalog's alone.
    pub backend: Option<BackendName>,
    /// What kind it is.
    pub kind: Kind,
    /// The volume, host or identity it is about.
    pub name: String,
    /// What it means, and what can be done.
    pub what: String,
}

/// Tells how a catalog and the backends that were looked at differ, sorted.
#[must_use]
pub(crate) fn compare(view: &View, facts: &AllFacts) -> Vec<Finding> {
    let mut findings = Findings::default();
    let by_id: BTreeMap<VolumeId, &Arc<Volume>> = view.volumes.values().map(|v| (v.id, v)).collect();
    for (backend, facts) in facts {
        for volume in view.volumes.values().filter(|volume| volume.backend == *backend) {
            let between = facts.staged.contains(&volume.id) || facts.trashed.contains(&volume.id);
            let stands = facts.directories.contains(&volume.name);
            if between || (volume.unconfirmed && !stands) {
                let what = "its directory is being made or removed, or was when that was cut off: a start of the \
                            service finishes or undoes it";
                findings.add(backend, Kind::HalfDone, &volume.name, what);
            } else if !stands && facts.is_deleting(volume.id) {
                let what = format!(
                    "the deletion of the volume had begun, and what is left of it, in .volhost/deleting-{}, is not put \
                     back: bring it back from a backup under this name, or remove the volume",
                    volume.id
                );
                findings.add(backend, Kind::Deleting, &volume.name, what);
            } else if let Some(found) = facts.others.get(&volume.name) {
                let what = format!(
                    "{found} stands in the place of its directory, which volhost does not follow or use: put the \
                     directory back, or remove the volume"
                );
                findings.add(backend, Kind::Missing, &volume.name, what);
            } else if let Some(changed) = changed(volume, facts) {
                let what = format!(
                    "its directory is not as its options said: {changed}; an engine that copies an image's files up \
                     gives it the image's (`volume-nocopy` keeps it)"
                );
                findings.add(backend, Kind::Owner, &volume.name, what);
            } else if !stands {
                let what = "the volume has no directory: bring it back from a backup under this name, or remove the \
                            volume";
                findings.add(backend, Kind::Missing, &volume.name, what);
            }
        }
        for name in &facts.directories {
            if view.volumes.get(name).is_some_and(|volume| volume.backend == *backend) {
                continue;
            }
            let what = match view.volumes.get(name) {
                Some(taken) => format!(
                    "the directory belongs to no volume, and a volume of this name is on backend {}: rename the \
                     directory to adopt it",
                    taken.backend
                ),
                None => format!(
                    "the directory belongs to no volume: `volhost volume create -o adopt=true -o backend={backend} \
                     {name}` makes it one"
                ),
            };
            findings.add(backend, Kind::Found, name, what);
        }
        for (place, ids) in [("new", &facts.staged), ("trash", &facts.trashed)] {
            for id in ids.iter().filter(|id| !by_id.contains_key(id)) {
                if place == "trash" && view.trash.contains_key(id) {
                    continue;
                }
                let what =
                    format!(".volhost/{place}/{id} belongs to nothing that the catalog knows, and is left");
                findings.add(backend, Kind::Leftover, id, what);
            }
        }
        for id in facts.deleting.iter().filter(|id| !facts.trashed.contains(id)) {
            if by_id.get(id).is_none_or(|volume| facts.directories.contains(&volume.name))
                && !view.trash.contains_key(id)
            {
                let what = format!(
                    ".volhost/deleting-{id} is what is left of a volume whose deletion had begun and that the catalog \
                     does not know: `rm -r` frees its space"
                );
                findings.add(backend, Kind::Leftover, id, what);
            }
        }
        for removed in view.trash.of(backend) {
            let id = removed.volume.id;
            if !facts.is_removed(id) {
                let what = format!(
                    "the removed volume {} has no directory to be restored from",
                    removed.volume.name
                );
                findings.add(backend, Kind::NotInTrash, &id, what);
            } else if facts.is_deleting(id) && !removed.expired {
                let what = format!(
                    "the deletion of the removed volume {} has begun: it cannot be restored, and the service deletes the \
                     rest",
                    removed.volume.name
                );
                findings.add(backend, Kind::Deleting, &id, what);
            }
        }
    }
    findings.sorted()
}

/// What a volume's directory has otherwise than its options said.
fn changed(volume: &Volume, facts: &Facts) -> Option<String> {
    let changed = volume.options.changed(*facts.owners.get(&volume.name)?);
    (!changed.is_empty()).then(|| changed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

/// A copy of the catalog, to be merged.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// Where it was found, for messages.
    pub label: String,
    /// When it was made.
    pub at: Option<OffsetDateTime>,
    /// What it holds.
    pub view: View,
}

/// Makes one catalog of copies and of what lies on the backends; tells what was decided, and what does not fit.
///
/// The newest copy holds as a whole. An older one adds what the newest never knew and what still stands: volumes and
/// removed volumes whose directories are there, hosts and backends; and revocations, which no copy takes back.
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
    view.count_live();
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

/// A host as the newer copy has it, with what only an older one knows of its certificates: what was revoked stays so.
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

/// Records the identities of backends that no copy knows, and leaves out of the facts what is not the backend that is
/// known by that name.
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

/// A volume whose directory lies in the trash was removed since the copy was made: it goes there too, from where it
/// can be restored, and its time begins now.
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
        let volume = Volume {
            mounts: Ledger::default(),
            visible: false,
            unconfirmed: false,
            ..Volume::clone(&volume)
        };
        let volume = Arc::new(volume);
        view.trash.insert(Arc::new(Removed { volume, at: moment(now), expired }));
    }
}

/// A removed volume whose deletion has begun since the copy was made cannot be restored, and is deleted on.
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

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, backend: &BackendName, kind: Kind, name: &impl ToString, what: impl Into<String>) {
        let (backend, name, what) = (Some(backend.clone()), name.to_string(), what.into());
        self.0.push(Finding { backend, kind, name, what });
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Certificate, Change};
    use crate::model::host::HostName;
    use crate::model::options::Options;
    use crate::model::volume::MountId;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_800_000_000 + seconds).unwrap()
    }

    fn backend() -> BackendName {
        BackendName::parse("fast").unwrap()
    }

    fn name(text: &str) -> VolumeName {
        VolumeName::parse(text).unwrap()
    }

    /// A catalog with one backend and these volumes, and what lies on the backend then.
    fn world(volumes: &[&str]) -> (View, Facts) {
        let mut view = View::default();
        let id = BackendId::random();
        let record = BackendRecord {
            id,
            state: BackendState::Established,
            mountpoints: std::path::PathBuf::from("/mnt/fast").into(),
        };
        view.apply(Change::Backend(backend(), Some(record))).unwrap();
        let mut facts = Facts { id: Some(id), ..Facts::default() };
        for volume in volumes {
            create(&mut view, volume);
            facts.directories.insert(name(volume));
        }
        (view, facts)
    }

    /// A volume as its create records it first.
    fn volume(text: &str) -> Volume {
        Volume {
            id: VolumeId::random(),
            name: name(text),
            backend: backend(),
            options: Options::default(),
            created_at: at(0),
            adopted: false,
            known_to: vec![],
            mounts: Ledger::default(),
            visible: false,
            unconfirmed: true,
        }
    }

    fn create(view: &mut View, text: &str) -> VolumeId {
        let volume = volume(text);
        let id = volume.id;
        view.apply(Change::Insert(volume)).unwrap();
        view.apply(Change::Publish(name(text), id)).unwrap();
        id
    }

    fn source(view: &View, seconds: i64) -> Source {
        Source { label: format!("copy-{seconds}"), at: Some(at(seconds)), view: view.clone() }
    }

    fn kinds(findings: &[Finding]) -> Vec<(Kind, &str)> {
        findings.iter().map(|finding| (finding.kind, &*finding.name)).collect()
    }

    #[test]
    fn every_difference_is_told_once() {
        let (mut view, mut facts) = world(&["db", "web", "half", "gone"]);
        let half = view.volumes["half"].id;
        let gone = view.volumes["gone"].id;
        facts.directories.remove(&name("web"));
        facts.directories.remove(&name("half"));
        facts.directories.insert(name("stranger"));
        facts.staged.insert(half);
        let (stray, other) = (VolumeId::random(), VolumeId::random());
        facts.staged.insert(stray);
        facts.trashed.insert(other);
        view.apply(Change::Remove { name: name("gone"), id: gone, at: at(1), keep: true }).unwrap();
        facts.directories.remove(&name("gone"));
        let (stray, other, gone) = (stray.to_string(), other.to_string(), gone.to_string());
        // The record of a create that was cut off, and one whose directory stands.
        for text in ["cut-off", "done"] {
            view.apply(Change::Insert(volume(text))).unwrap();
        }
        facts.directories.insert(name("done"));
        let mut expected = vec![
            (Kind::HalfDone, "cut-off"),
            (Kind::Missing, "web"),
            (Kind::Found, "stranger"),
            (Kind::HalfDone, "half"),
            (Kind::Leftover, &*stray),
            (Kind::Leftover, &*other),
            (Kind::NotInTrash, &*gone),
        ];
        expected.sort();
        let findings = compare(&view, &AllFacts::from([(backend(), facts)]));
        assert_eq!(kinds(&findings), expected);
        assert_eq!(compare(&view, &AllFacts::new()), [], "what was not looked at is not judged");
    }

    #[test]
    fn the_newest_copy_holds_and_an_older_one_adds_what_still_stands() {
        let (older, mut facts) = world(&["db", "removed", "only-there"]);
        let mut newer = older.clone();
        for volume in ["removed", "only-there"] {
            let id = newer.volumes[volume].id;
            newer.apply(Change::Remove { name: name(volume), id, at: at(5), keep: false }).unwrap();
        }
        create(&mut newer, "web");
        facts.directories.remove(&name("removed"));
        facts.directories.insert(name("web"));
        facts.directories.insert(name("stranger"));
        let sources = vec![source(&older, 10), source(&newer, 20)];
        let (view, findings) = merge(sources, AllFacts::from([(backend(), facts)]), at(30));
        let names: Vec<_> = view.volumes.keys().map(VolumeName::as_str).collect();
        assert_eq!(names, ["db", "only-there", "web"]);
        assert_eq!(kinds(&findings), [(Kind::Found, "stranger"), (Kind::Older, "only-there")]);
        assert_eq!(view.backends, newer.backends);
    }

    #[test]
    fn a_revocation_in_any_copy_holds() {
        let (mut older, facts) = world(&[]);
        let host = HostName::parse("web1").unwrap();
        let certificate = |serial: &str| Certificate {
            serial: serial.into(),
            issuer: None,
            issued_at: at(1),
            not_after: at(1000),
            revoked: false,
        };
        older.apply(Change::Issue(host.clone(), certificate("a1"))).unwrap();
        let mut newer = older.clone();
        older.apply(Change::Revoke(host.clone(), at(2))).unwrap();
        newer.apply(Change::Issue(host.clone(), certificate("b2"))).unwrap();
        let sources = vec![source(&older, 10), source(&newer, 20)];
        let (view, _) = merge(sources, AllFacts::from([(backend(), facts)]), at(30));
        assert!(view.is_revoked(&host, "a1") && view.is_revoked(&host, "unknown"));
        assert!(!view.is_revoked(&host, "b2"));
    }

    #[test]
    fn a_volume_removed_since_the_copy_goes_to_the_trash_and_frees_its_name() {
        let (mut copy, mut facts) = world(&["db"]);
        let id = copy.volumes["db"].id;
        let (host, mount) = (HostName::parse("web1").unwrap(), MountId::parse("c1").unwrap());
        copy.apply(Change::Mount {
            name: name("db"),
            volume: id,
            host,
            id: mount,
            address: None,
            at: at(1),
            again: false,
        })
        .unwrap();
        // Another volume has the name since.
        facts.trashed.insert(id);
        let (view, findings) = merge(vec![source(&copy, 10)], AllFacts::from([(backend(), facts)]), at(30));
        assert!(view.volumes.is_empty());
        assert_eq!(view.trash[&id].at, at(30));
        assert_eq!(kinds(&findings), [(Kind::Found, "db"), (Kind::RemovedSince, "db")]);
    }

    #[test]
    fn what_is_half_deleted_is_never_whole_whichever_copy_is_taken() {
        let (older, mut facts) = world(&["db", "web", "twice"]);
        let ids = ["db", "web", "twice"].map(|text| older.volumes[text].id);
        facts.directories.clear();
        facts.deleting.extend(ids);
        // Of this one an earlier deletion left something, and what is in the trash is whole.
        facts.trashed.insert(ids[2]);
        let unknown = VolumeId::random();
        facts.deleting.insert(unknown);
        let mut newer = older.clone();
        newer.apply(Change::Remove { name: name("web"), id: ids[1], at: at(5), keep: true }).unwrap();
        let all = AllFacts::from([(backend(), facts)]);
        let (web, twice, unknown) = (ids[1].to_string(), ids[2].to_string(), unknown.to_string());
        let mut expected = [
            (Kind::Deleting, "db"),
            (Kind::Deleting, &*web),
            (Kind::HalfDone, "twice"),
            (Kind::Leftover, &*unknown),
        ];
        expected.sort();
        assert_eq!(kinds(&compare(&newer, &all)), expected);
        let (view, findings) = merge(vec![source(&newer, 10)], all.clone(), at(30));
        assert!(view.volumes.is_empty() && view.trash.len() == 3);
        assert_eq!(ids.map(|id| view.trash[&id].expired), [true, true, false]);
        let mut expected = [
            (Kind::Leftover, &*unknown),
            (Kind::RemovedSince, "db"),
            (Kind::RemovedSince, "twice"),
            (Kind::Deleting, &*web),
        ];
        expected.sort();
        assert_eq!(kinds(&findings), expected);
        assert!(
            findings
                .iter()
                .all(|finding| finding.name != "db" || finding.what.contains("cannot be restored"))
        );
        assert_eq!(kinds(&compare(&view, &all)), [(Kind::Leftover, &*unknown)]);
        // An older copy's removed volume of which something is left is taken over, and deleted on.
        let mut latest = newer.clone();
        latest.apply(Change::Forget(ids[1])).unwrap();
        let (view, _) = merge(vec![source(&newer, 10), source(&latest, 20)], all, at(30));
        assert!(view.trash.get(&ids[1]).is_some_and(|removed| removed.expired), "{twice}");
    }

    #[test]
    fn the_wrong_disk_is_no_backend_and_says_nothing_of_volumes() {
        let (copy, mut facts) = world(&["db"]);
        let wrong = BackendId::random();
        facts = Facts { id: Some(wrong), directories: BTreeSet::from([name("other")]), ..facts };
        let all = AllFacts::from([(backend(), facts)]);
        let (view, findings) = merge(vec![source(&copy, 10)], all.clone(), at(30));
        assert_eq!((&view.volumes, &view.backends), (&copy.volumes, &copy.backends));
        assert_eq!(kinds(&findings), [(Kind::Conflict, &*wrong.to_string())]);
        // Without any copy, the identity is what the backend says.
        let (view, findings) = merge(vec![], all, at(30));
        assert_eq!(view.backends[&backend()].id, wrong);
        assert_eq!(kinds(&findings), [(Kind::Found, "other")]);
    }
}
