//! What a change was decided by: the rows that the rules looked at, so that an engine which shares its store with
//! others can make the decision hold only while they are as they were.
//!
//! Pure. Two views that agree on the premises of a change decide it alike and write the same; that is tested with
//! random views beside the rules.

use super::{MountKey, RowKey};
use crate::catalog::Change;
use crate::catalog::view::View;
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
        let volume = |name: &VolumeName| Premise::Same(RowKey::Volume(name.clone()));
        let host = |name: &HostName| Premise::Same(RowKey::Host(name.clone()));
        match change {
            Change::Insert(inserted) => vec![volume(&inserted.name)],
            Change::Publish(name, _) | Change::Withdraw(name, _) => vec![volume(name)],
            Change::Remove { name, id, .. } => {
                vec![volume(name), Premise::Unused(name.clone()), Premise::Same(RowKey::Removed(*id))]
            }
            Change::Unrestore { name, id, .. } => vec![volume(name), Premise::Same(RowKey::Removed(*id))],
            Change::Restore(id) => {
                let name = self.trash.get(id).map(|removed| volume(&removed.volume.name));
                [Premise::Same(RowKey::Removed(*id))].into_iter().chain(name).collect()
            }
            Change::Expire { id, .. } | Change::Forget(id) => vec![Premise::Same(RowKey::Removed(*id))],
            Change::Mount { name, host: called, id, .. } => {
                let by = self.name_now(called);
                let mut premises = vec![volume(name), host(by)];
                premises.extend((by != called).then(|| host(called)));
                premises.push(mount(name, by, id, self.activation(by)));
                let Some(volume) = self.volumes.get(name) else { return premises };
                match volume.mounts.newest(by, id, None) {
                    // A repetition stands on what is repeated alone.
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
                premises
            }
            Change::TakeBack { name, volume: _, counted } => {
                let entry = mount(name, &counted.host, &counted.id, counted.activation);
                vec![volume(name), host(&counted.host), entry]
            }
            // Entries of activations between the one that is taken and the present one are known: whoever knows an
            // activation knows all that was counted before it began. Those that are older than the one that is taken
            // have no say; and they may be more than an engine can name.
            Change::Unmount { name, host: called, id, meant } => {
                let by = self.name_now(called);
                let mut premises = vec![volume(name), host(by), mount(name, by, id, self.activation(by))];
                premises.extend((by != called).then(|| host(called)));
                let until = meant.as_ref().map(|meant| meant.activation);
                let taken = self.volumes.get(name).and_then(|volume| volume.mounts.newest(by, id, until));
                let taken = taken.map(|taken| mount(name, by, id, taken.activation));
                premises.extend(taken.filter(|taken| !premises.contains(taken)));
                premises
            }
            Change::Release { name, host: by, id, alive_too } => {
                let mut premises = vec![volume(name), host(by)];
                let ledger = self.volumes.get(name).into_iter().flat_map(|volume| volume.mounts.iter());
                let released = ledger.filter(|entry| self.releases(entry, by, id.as_ref(), *alive_too));
                premises
                    .extend(released.map(|entry| Premise::Same(RowKey::Mount(MountKey::of(name, entry)))));
                premises
            }
            // Whether the present activation has a mount is told by all ledgers: an engine makes its view fresh first.
            Change::Activate(called) => {
                let by = self.name_now(called);
                [called].into_iter().chain((by != called).then_some(by)).map(host).collect()
            }
            Change::Issue(name, _)
            | Change::Revoke(name, _)
            | Change::Connected(name, _)
            | Change::Called { host: name, .. }
            | Change::NotCloned(name) => vec![host(name)],
            Change::Name(machine, name) => {
                let kept = self.name_of(*machine);
                let earlier =
                    self.hosts.iter().filter(|(_, known)| known.renamed.is_some() && known.renamed == kept);
                let names = earlier.map(|(earlier, _)| earlier).chain(&kept).chain([name]);
                let mut premises: Vec<_> = names.map(host).collect();
                premises.push(Premise::SameMounts(None));
                premises
            }
            Change::Seen(hosts) => hosts.iter().map(|(name, _)| host(name)).collect(),
            Change::Backend(name, _) | Change::Introduce(name, _) => {
                vec![Premise::Same(RowKey::Backend(name.clone())), Premise::SameBackends]
            }
        }
    }
}

fn mount(volume: &VolumeName, host: &HostName, id: &MountId, activation: Activation) -> Premise {
    let (volume, host, id) = (volume.clone(), host.clone(), id.clone());
    Premise::Same(RowKey::Mount(MountKey { volume, host, id, activation }))
}
