//! The premises of a decision: the rows that the rules looked at. An engine that shares its store makes a decision hold
//! only while these rows are unchanged.
//!
//! Pure. Two views that agree on the premises of a change decide it alike and write the same; a test beside the rules
//! checks this with random views.

use super::{MountKey, RowKey};
use crate::catalog::view::View;
use crate::catalog::{Change, Footprint};
use crate::model::host::HostName;
use crate::model::mounts::Activation;
use crate::model::volume::{MountId, VolumeName};

/// A condition that a decision depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Premise {
    /// The row is as the view has it; if the view has no such row, there is none.
    Same(RowKey),
    /// No host has the volume mounted.
    Unused(VolumeName),
    /// No host but this one has the volume mounted.
    UnusedByOthers(VolumeName, HostName),
    /// No mount of the volume was added or changed; `None` means no mount of any volume.
    SameMounts(Option<VolumeName>),
    /// No backend was added or changed.
    SameBackends,
}

impl View {
    /// Returns the premises of this view's decision on a change. Only for a change that this view does not refuse: a
    /// refusal needs a view that is known to be fresh.
    #[must_use]
    pub fn premises(&self, change: &Change) -> Vec<Premise> {
        let same = |row: RowKey| Premise::Same(row);
        let host = |name: &HostName| Premise::Same(RowKey::Host(name.clone()));
        let Footprint { volumes, removed, hosts, host_access: _, backend, directory: _, freshness: _ } =
            change.footprint(self);
        let mut premises: Vec<_> = volumes.into_iter().map(|name| same(RowKey::Volume(name))).collect();
        premises.extend(removed.map(|id| same(RowKey::Removed(id))));
        premises.extend(hosts.iter().map(host));
        if let Some(name) = backend {
            premises.extend([same(RowKey::Backend(name)), Premise::SameBackends]);
        }
        match change {
            Change::Remove { name, .. } => premises.push(Premise::Unused(name.clone())),
            Change::Mount { name, host: called, id, .. } => {
                let by = self.name_now(called);
                premises.extend((by != called).then(|| host(by)));
                premises.push(mount(name, by, id, self.activation(by)));
                let Some(volume) = self.volumes.get(name) else { return premises };
                match volume.mounts.newest(by, id, None) {
                    // A repetition depends only on the mount that it repeats.
                    Some(entry) => {
                        let entry = mount(name, by, id, entry.activation);
                        premises.extend((!premises.contains(&entry)).then_some(entry));
                    }
                    None if volume.options.is_exclusive() => {
                        premises.push(Premise::UnusedByOthers(name.clone(), by.clone()));
                        if self.is_cloned(by) {
                            premises.push(Premise::SameMounts(Some(name.clone())));
                        }
                    }
                    None => {}
                }
            }
            Change::TakeBack { name, volume: _, counted } => {
                premises.push(mount(name, &counted.host, &counted.id, counted.activation));
            }
            // Entries of activations between the counted one and the present one need no premise: a view that knows an
            // activation knows everything that was counted before it began. Entries older than the counted one do not
            // affect the decision, and there may be more of them than an engine can name.
            Change::Unmount { name, host: called, id, target } => {
                let by = self.name_now(called);
                premises.extend((by != called).then(|| host(by)));
                premises.push(mount(name, by, id, self.activation(by)));
                let until = target.as_ref().map(|target| target.activation);
                let taken = self.volumes.get(name).and_then(|volume| volume.mounts.newest(by, id, until));
                let taken = taken.map(|taken| mount(name, by, id, taken.activation));
                premises.extend(taken.filter(|taken| !premises.contains(taken)));
            }
            Change::Release { name, host: by, id, alive_too } => {
                let ledger = self.volumes.get(name).into_iter().flat_map(|volume| volume.mounts.iter());
                let released = ledger.filter(|entry| self.is_released_by(entry, by, id.as_ref(), *alive_too));
                premises.extend(released.map(|entry| same(RowKey::Mount(MountKey::of(name, entry)))));
            }
            Change::Activate(called) => {
                let by = self.name_now(called);
                premises.extend((by != called).then(|| host(by)));
            }
            Change::Name(machine, _) => {
                let kept = self.name_of(*machine);
                let earlier =
                    self.hosts.iter().filter(|(_, known)| known.renamed.is_some() && known.renamed == kept);
                premises.extend(earlier.map(|(earlier, _)| host(earlier)));
                premises.push(Premise::SameMounts(None));
            }
            // Such a change depends only on the rows of its footprint.
            Change::Insert(_)
            | Change::Publish(..)
            | Change::Confirm(_)
            | Change::Withdraw(..)
            | Change::Restore(_)
            | Change::Unrestore { .. }
            | Change::Expire { .. }
            | Change::Forget(_)
            | Change::Issue(..)
            | Change::Revoke(..)
            | Change::Seen(_)
            | Change::Connected(..)
            | Change::Called { .. }
            | Change::NotCloned(_)
            | Change::Backend(..)
            | Change::Introduce(..) => {}
        }
        premises
    }
}

fn mount(volume: &VolumeName, host: &HostName, id: &MountId, activation: Activation) -> Premise {
    let (volume, host, id) = (volume.clone(), host.clone(), id.clone());
    Premise::Same(RowKey::Mount(MountKey { volume, host, id, activation }))
}
