//! The rules of mounts: how a volume's ledger counts, and what is refused because of it.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
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
            if exclusive && before.mounts.iter().any(|mount| mount.host != host) {
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
        let mount = volume.mounts.mount(&host, id, activation, recorded_time(at));
        mount.address = mount.address.or(address);
        let mount = mount.clone();
        if mount.count == 1 {
            volume.mounts = in_order_of_reading(volume.mounts);
            *self.live.entry(host).or_default() += 1;
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
        let is_left = |mount: &&Mount| {
            mount.activation == taken.activation && mount.host == taken.host && mount.id == taken.id
        };
        let left = volume.mounts.iter().find(is_left).cloned();
        if left.is_none() {
            self.uncount_live(&taken);
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
            self.uncount_live(mount);
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

    /// Subtracts a ledger's entry from `live` if it belongs to its host's present activation.
    pub(in crate::catalog) fn uncount_live(&mut self, mount: &Mount) {
        if mount.activation != self.activation(&mount.host) {
            return;
        }
        match self.live.get_mut(&mount.host) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                self.live.remove(&mount.host);
            }
        }
    }

    /// Recounts `live` from the ledgers and the hosts.
    pub(in crate::catalog) fn recount_live(&mut self) {
        let mut live: OrdMap<HostName, u32> = OrdMap::new();
        for mount in self.volumes.values().flat_map(|volume| volume.mounts.iter()) {
            if mount.activation == self.activation(&mount.host) {
                *live.entry(mount.host.clone()).or_default() += 1;
            }
        }
        self.live = live;
    }
}

/// Returns the ledger in the order in which a restart reads it: by the time of the first Mount, then by name if the
/// times are equal or a clock went back.
pub(in crate::catalog) fn in_order_of_reading(ledger: Ledger) -> Ledger {
    fn place(mount: &Mount) -> impl Ord + '_ {
        (mount.since, &mount.host, &mount.id, mount.activation)
    }
    if ledger.iter().is_sorted_by_key(place) {
        return ledger;
    }
    let mut mounts: Vec<_> = ledger.iter().cloned().collect();
    mounts.sort_by(|a, b| place(a).cmp(&place(b)));
    Ledger::from_records(mounts)
}
