//! The rules of the machines that serve the catalog: their names, and what moves along when one is renamed.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::{MountKey, Write};
use crate::catalog::Outcome;
use crate::catalog::entities::Volume;
use crate::catalog::view::View;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::MountId;

impl View {
    pub(super) fn name_machine(&mut self, machine: Uuid, name: &HostName) -> (Outcome, Vec<Write>) {
        let kept = self.name_of(machine);
        if kept.as_ref() == Some(name) {
            return Default::default();
        }
        let mut host = self.host(name);
        host.machine = Some(machine);
        host.renamed = None;
        let before = host.activation;
        if let Some(kept) = &kept {
            host.activation = before.max(self.activation(kept));
        }
        let activation = host.activation;
        // This write comes first: an instance that reads the rows one by one counts mounts by their host's activation.
        let mut writes = vec![self.store_host(name.clone(), host)];
        if let Some(kept) = &kept {
            self.move_mounts((kept, self.activation(kept)), (name, before), activation, &mut writes);
            for (earlier, of_earlier) in self.hosts.clone() {
                // The machine's engine calls with the certificate of an earlier name until it is restarted.
                if earlier == *kept || of_earlier.renamed.as_ref() == Some(kept) {
                    if earlier == *name {
                        continue;
                    }
                    let mut gone = self.host(&earlier);
                    gone.machine = None;
                    gone.renamed = Some(name.clone());
                    writes.push(self.store_host(earlier, gone));
                }
            }
        }
        self.recount();
        (Outcome::default(), writes)
    }

    /// Moves all mounts of the host `from` to the host `to`, whose activation is `activation` from now on. Each host
    /// comes with its activation until now: mounts of that activation become mounts of the new one.
    fn move_mounts(
        &mut self,
        (from, of_from): (&HostName, Activation),
        (to, of_to): (&HostName, Activation),
        activation: Activation,
        writes: &mut Vec<Write>,
    ) {
        let concerns = |mount: &Mount| mount.host == *from || mount.host == *to;
        let concerned: Vec<_> =
            self.volumes.values().filter(|volume| volume.mounts.iter().any(concerns)).cloned().collect();
        for volume in concerned {
            let mut volume = Volume::clone(&volume);
            let before = volume.mounts.release(concerns);
            let mut after: BTreeMap<(MountId, Activation), Mount> = BTreeMap::new();
            for mount in &before {
                let present = if mount.host == *from { of_from } else { of_to };
                let at = if mount.activation >= present { activation } else { mount.activation };
                let moved = Mount { host: to.clone(), activation: at, ..mount.clone() };
                after
                    .entry((mount.id.clone(), at))
                    .and_modify(|same| {
                        same.count = same.count.saturating_add(moved.count);
                        same.unmounts = same.unmounts.saturating_add(moved.unmounts);
                        same.since = same.since.min(moved.since);
                    })
                    .or_insert(moved);
            }
            for mount in &before {
                let stays = mount.host == *to && after.contains_key(&(mount.id.clone(), mount.activation));
                if !stays {
                    writes.push(Write::Mount(MountKey::of(&volume.name, mount), None));
                }
            }
            for mount in after.values().filter(|mount| !before.contains(mount)) {
                writes.push(Write::Mount(MountKey::of(&volume.name, mount), Some(mount.clone())));
            }
            after.into_values().for_each(|mount| volume.mounts.put(mount));
            self.store(volume);
        }
    }
}
