//! The rules of mounts: how a volume's ledger counts, and what is refused because of it.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use super::{Decision, MountKey, Write, interned, recorded_time};
use crate::catalog::entities::Volume;
use crate::catalog::view::View;
use crate::catalog::{Outcome, Refusal, UnmountTarget};
use crate::model::host::HostName;
use crate::model::mounts::{Ledger, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

impl View {
    pub(super) fn mount(
        &mut self,
        name: &VolumeName,
        volume: VolumeId,
        (host, address): (HostName, Option<IpAddr>),
        id: &MountId,
        at: OffsetDateTime,
        again: bool,
    ) -> Decision {
        let before = self.visible(name, volume)?;
        let exclusive = before.options.is_exclusive();
        let elsewhere = exclusive
            && self.is_cloned(&host)
            && before.mounts.iter().any(|mount| mount.host == host && mount.address != address);
        // A Mount by another machine is no repetition, whatever its ID.
        let repeats = |entry: &Mount| !elsewhere || entry.address == address;
        if !before.mounts.newest(&host, id, None).is_some_and(repeats) {
            if again {
                return Err(Refusal::NotMounted(before));
            }
            if exclusive && before.mounts.hosts().any(|holder| *holder != host) {
                return Err(Refusal::Held(before));
            }
            if elsewhere {
                return Err(Refusal::Cloned(before));
            }
        }
        let host = interned(&self.hosts, host);
        let activation = self.activation(&host);
        let mut volume = Volume::clone(&before);
        let newly_known = match volume.known_to.binary_search(&host) {
            Ok(_) => false,
            Err(place) => {
                volume.known_to.reserve_exact(1);
                volume.known_to.insert(place, host.clone());
                true
            }
        };
        let mount = volume.mounts.mount((&host, address), id, activation, recorded_time(at));
        if mount.count == 1 {
            self.count_mount(&mount);
        }
        let key = MountKey::of(name, &mount);
        let (after, write) = self.store(volume);
        let writes =
            newly_known.then_some(write).into_iter().chain([Write::Mount(key, Some(mount))]).collect();
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, writes))
    }

    pub(super) fn unmount(
        &mut self,
        name: &VolumeName,
        host: &HostName,
        id: &MountId,
        target: Option<&UnmountTarget>,
    ) -> (Outcome, Vec<Write>) {
        let until = target.map(|target| target.activation);
        let of = target.and_then(|target| target.volume);
        self.count_down(name, of, |mounts| mounts.unmount(host, id, until))
    }

    pub(super) fn take_back(
        &mut self,
        name: &VolumeName,
        volume: VolumeId,
        counted: &Mount,
    ) -> (Outcome, Vec<Write>) {
        self.count_down(name, Some(volume), |mounts| mounts.take_back(counted))
    }

    /// Lets `take` count down an entry in the ledger of the volume of that name; the volume's ID must be `of` if that
    /// is given. `take` returns the entry as it was before.
    fn count_down(
        &mut self,
        name: &VolumeName,
        of: Option<VolumeId>,
        take: impl FnOnce(&mut Ledger) -> Option<Mount>,
    ) -> (Outcome, Vec<Write>) {
        let Some(before) = self.volumes.get(name).map(Arc::clone) else { return Default::default() };
        let mut volume = Volume::clone(&before);
        let other = of.is_some_and(|id| id != before.id);
        let Some(taken) = (!other).then(|| take(&mut volume.mounts)).flatten() else {
            let after = Some(Arc::clone(&before));
            return (Outcome { before: Some(before), after, ..Outcome::default() }, vec![]);
        };
        let key = MountKey::of(name, &taken);
        let left = volume.mounts.get(&taken).cloned();
        if left.is_none() {
            self.uncount_mount(&taken);
        }
        let (after, _only_its_ledger_changed) = self.store(volume);
        let outcome =
            Outcome { before: Some(before), after: Some(after), released: vec![taken], ..Outcome::default() };
        (outcome, vec![Write::Mount(key, left)])
    }

    pub(super) fn release(
        &mut self,
        name: &VolumeName,
        host: &HostName,
        id: Option<&MountId>,
        alive_too: bool,
    ) -> Decision {
        let before = self.volumes.get(name).map(Arc::clone).ok_or(Refusal::NoSuchVolume)?;
        let mut volume = Volume::clone(&before);
        let released = volume.mounts.release(|mount| self.is_released_by(mount, host, id, alive_too));
        for mount in &released {
            self.uncount_mount(mount);
        }
        let writes = released.iter().map(|mount| Write::Mount(MountKey::of(name, mount), None)).collect();
        let (after, _only_its_ledger_changed) = self.store(volume);
        let outcome = Outcome { before: Some(before), after: Some(after), released, ..Outcome::default() };
        Ok((outcome, writes))
    }

    /// Returns true if a release deletes this entry of the ledger.
    pub(super) fn is_released_by(
        &self,
        mount: &Mount,
        host: &HostName,
        id: Option<&MountId>,
        alive_too: bool,
    ) -> bool {
        mount.host == *host && id.is_none_or(|id| mount.id == *id) && (alive_too || self.stale(mount))
    }
}
