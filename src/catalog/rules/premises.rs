//! What a change was decided by: the rows that the rules looked at, so that an engine which shares its store with
//! others can make the decision hold only while they are as they were.
//!
//! Pure. Two views that agree on the premises of a change decide it alike and write the same; that is tested with
//! random views beside the rules.

use super::{MountKey, RowKey};
use crate::catalog::view::View;
use crate::catalog::{Change, Footprint};
use crate::model::host::HostName;
use crate::model::mounts::Activation;
use crate::model::volume::{MountId, VolumeName};

/// Something that a decision stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Premise {
    /// The row is as the view has it; or, where the view has none, there is none.
    Same(RowKey),
    /// Nobody mounts the volume.
    Unused(VolumeName),
    /// No host but this one mounts the volume.
    UnusedByOthers(VolumeName, HostName),
    /// No mount of the volume was added or changed; of any volume, where none is said.
    SameMounts(Option<VolumeName>),
    /// No backend was added or changed.
    SameBackends,
}

impl View {
    /// What the decision of a change by this view stands on. Only for a change that this view does not refuse: a
    /// refusal is told by a view that is known to be fresh.
    #[must_use]
    pub fn premises(&self, change: &Change) -> Vec<Premise> {
        let same = |row: RowKey| Premise::Same(row);
        let host = |name: &HostName| Premise::Same(RowKey::Host(name.clone()));
        let Footprint { volume, removed, hosts, host_access: _, backend, directory: _, freshness: _ } =
            change.footprint(self);
        let mut premises: Vec<_> = volume.map(|name| same(RowKey::Volume(name))).into_iter().collect();
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
                    // A repetition depends on the mount that it repeats and on nothing else.
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
            // Entries of activations between the one that is taken and the present one are known: whoever knows an
            // activation knows all that was counted before it began. Older entries than the one that is taken have no
            // say, and there may be more of them than an engine can name.
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
                let released = ledger.filter(|entry| self.releases(entry, by, id.as_ref(), *alive_too));
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
            // The rows of its footprint are all that such a change depends on.
            _ => {}
        }
        premises
    }
}

fn mount(volume: &VolumeName, host: &HostName, id: &MountId, activation: Activation) -> Premise {
    let (volume, host, id) = (volume.clone(), host.clone(), id.clone());
    Premise::Same(RowKey::Mount(MountKey { volume, host, id, activation }))
}
