//! Compares a catalog with the backends that were examined.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AllFacts, Facts, Finding, Findings, Kind};
use crate::catalog::entities::Volume;
use crate::catalog::view::View;
use crate::model::volume::VolumeId;

/// Returns the differences between a catalog and the backends that were examined, sorted.
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

/// Returns how a volume's directory differs from its options; `None` if it does not, or if nobody looked.
fn changed(volume: &Volume, facts: &Facts) -> Option<String> {
    let changed = volume.options.changed(*facts.owners.get(&volume.name)?);
    (!changed.is_empty()).then(|| changed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
