//! The rules by which a change makes one view from another, and which records each change touches.
//!
//! Pure: no I/O, no clock, no engine. A change that is refused leaves the view as it was. Here: volumes and their mounts;
//! the rules of hosts and backends stand in a file of their own.

mod hosts;
mod machines;
mod premises;
mod write;

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use time::{OffsetDateTime, UtcOffset};

pub use self::premises::Premise;
pub use self::write::{MountKey, RowKey, Write};
use super::entities::{Removed, Volume};
use super::view::View;
use super::{Change, Outcome, Refusal, UnmountTarget};
use crate::model::host::HostName;
use crate::model::mounts::{Ledger, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// What a change did, and the records that must be durable before anyone is told.
type Decision = Result<(Outcome, Vec<Write>), Refusal>;

/// A time as a record keeps it: UTC, to the millisecond, within the years that RFC 3339 can write.
#[must_use]
pub(crate) fn moment(at: OffsetDateTime) -> OffsetDateTime {
    let first = OffsetDateTime::new_utc(
        time::Date::from_ordinal_date(0, 1).unwrap_or(time::Date::MIN),
        time::Time::MIDNIGHT,
    );
    let utc = at.checked_to_offset(UtcOffset::UTC).unwrap_or(first).max(first);
    utc.replace_millisecond(utc.millisecond()).unwrap_or(utc)
}

impl View {
    /// Makes this view the next one by a change.
    ///
    /// Returns what the change did and the records that it touches, in the order in which they are to be written; none
    /// when nothing of it needs to be durable. A refusal leaves the view as it was.
    pub fn apply(&mut self, change: Change) -> Result<(Outcome, Vec<Write>), Refusal> {
        match change {
            Change::Insert(volume) => self.insert(volume),
            Change::Publish(name, id) => self.publish(&name, id),
            Change::Withdraw(name, id) => self.withdraw(&name, id),
            Change::Remove { name, id, at, keep } => self.remove(&name, id, at, keep),
            Change::Restore(id) => self.restore(id),
            Change::Unrestore { name, id, at } => self.unrestore(&name, id, at),
            Change::Expire { id, removed } => self.expire(id, removed),
            Change::Forget(id) => self.forget(id),
            Change::Mount { name, volume, host, id, address, at, again } => {
                let host = self.name_now(&host).clone();
                self.mount(&name, volume, (host, address), &id, at, again)
            }
            Change::TakeBack { name, volume, counted } => Ok(self.take_back(&name, volume, &counted)),
            Change::Unmount { name, host, id, target } => {
                let host = self.name_now(&host).clone();
                Ok(self.unmount(&name, &host, &id, target.as_ref()))
            }
            Change::Release { name, host, id, alive_too } => {
                self.release(&name, &host, id.as_ref(), alive_too)
            }
            Change::Activate(host) => Ok(self.activate(self.name_now(&host).clone())),
            Change::Issue(host, certificate) => Ok(self.issue(host, certificate)),
            Change::Revoke(host, at) => Ok(self.revoke(host, at)),
            Change::Seen(hosts) => Ok(self.seen(hosts)),
            Change::Connected(host, issuer) => Ok(self.connected(host, issuer)),
            Change::Called { host, serial, from, at } => Ok(self.called(host, &serial, from, at)),
            Change::NotCloned(host) => Ok(self.not_cloned(host)),
            Change::Name(machine, host) => Ok(self.name_machine(machine, &host)),
            Change::Backend(name, record) => self.backend(name, record),
            Change::Introduce(name, record) => match self.backends.get(&name) {
                Some(known) => Err(Refusal::Known(Arc::clone(known))),
                None => self.backend(name, Some(record)),
            },
        }
    }

    /// Every record of this view: what a store must hold to be opened as this view, all volumes visible.
    pub fn records(&self) -> impl Iterator<Item = Write> + '_ {
        let volumes = self.volumes.iter().flat_map(|(name, volume)| {
            let mounts = volume.mounts.iter().map(|m| Write::Mount(MountKey::of(name, m), Some(m.clone())));
            std::iter::once(Write::Volume(name.clone(), Some(Arc::clone(volume)))).chain(mounts)
        });
        let removed = self.trash.iter().map(|(id, removed)| Write::Removed(*id, Some(Arc::clone(removed))));
        let hosts = self.hosts.iter().map(|(name, host)| Write::Host(name.clone(), Arc::clone(host)));
        let backends =
            self.backends.iter().map(|(name, b)| Write::Backend(name.clone(), Some(Arc::clone(b))));
        volumes.chain(removed).chain(hosts).chain(backends)
    }

    fn insert(&mut self, volume: Volume) -> Decision {
        if let Some(taken) = self.volumes.get(&volume.name) {
            return Err(Refusal::Exists(Arc::clone(taken)));
        }
        let Volume {
            id,
            name,
            backend,
            mut options,
            created_at,
            adopted,
            known_to,
            mounts: _,
            visible: _,
            unconfirmed,
        } = volume;
        // Thousands of volumes name the same few backends and hosts: they share the texts that the view holds already.
        options.backend = options.backend.map(|backend| known(&self.backends, backend));
        let mut known_to: Vec<_> = known_to.into_iter().map(|host| known(&self.hosts, host)).collect();
        known_to.sort_unstable();
        known_to.dedup();
        known_to.shrink_to_fit();
        let volume = Volume {
            id,
            name,
            backend: known(&self.backends, backend),
            options,
            created_at: moment(created_at),
            adopted,
            known_to,
            mounts: Ledger::default(),
            visible: false,
            unconfirmed,
        };
        let (after, write) = self.store(volume);
        Ok((Outcome { after: Some(after), ..Outcome::default() }, vec![write]))
    }

    fn publish(&mut self, name: &VolumeName, id: VolumeId) -> Decision {
        let before = self.volume_with_id(name, id)?;
        let mut volume = Volume::clone(&before);
        volume.visible = true;
        volume.unconfirmed = false;
        let (after, write) = self.store(volume);
        // That it is visible is not recorded.
        let writes = before.unconfirmed.then_some(write).into_iter().collect();
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, writes))
    }

    fn withdraw(&mut self, name: &VolumeName, id: VolumeId) -> Decision {
        let before = self.hidden(name, id)?;
        self.volumes.remove(name);
        let writes = vec![Write::Volume(name.clone(), None)];
        Ok((Outcome { before: Some(before), ..Outcome::default() }, writes))
    }

    fn remove(&mut self, name: &VolumeName, id: VolumeId, at: OffsetDateTime, keep: bool) -> Decision {
        let before = self.visible(name, id)?;
        if !before.mounts.is_empty() {
            return Err(Refusal::Mounted(before));
        }
        self.volumes.remove(name);
        let mut writes = vec![Write::Volume(name.clone(), None)];
        // The directory of an adopted volume was never ours to delete, so it must not enter the trash.
        let trashed = (keep && !before.adopted).then(|| self.discard(&before, at, &mut writes));
        Ok((Outcome { before: Some(before), trashed, ..Outcome::default() }, writes))
    }

    fn restore(&mut self, id: VolumeId) -> Decision {
        let removed = self.trash.get(&id).map(Arc::clone).ok_or(Refusal::NotInTrash)?;
        if removed.expired {
            return Err(Refusal::Expired(removed));
        }
        if let Some(taken) = self.volumes.get(&removed.volume.name) {
            return Err(Refusal::Exists(Arc::clone(taken)));
        }
        self.trash.remove(&id);
        let mut volume = Volume::clone(&removed.volume);
        volume.visible = false;
        let (after, write) = self.store(volume);
        let before = Some(Arc::clone(&removed.volume));
        let outcome = Outcome { before, after: Some(after), trashed: Some(removed), ..Outcome::default() };
        Ok((outcome, vec![write, Write::Removed(id, None)]))
    }

    fn unrestore(&mut self, name: &VolumeName, id: VolumeId, at: OffsetDateTime) -> Decision {
        let before = self.hidden(name, id)?;
        self.volumes.remove(name);
        let mut writes = vec![Write::Volume(name.clone(), None)];
        let trashed = Some(self.discard(&before, at, &mut writes));
        Ok((Outcome { before: Some(before), trashed, ..Outcome::default() }, writes))
    }

    fn expire(&mut self, id: VolumeId, at: OffsetDateTime) -> Decision {
        let removed = self.trash.get(&id).filter(|removed| removed.at == at).ok_or(Refusal::NotInTrash)?;
        let expired = Arc::new(Removed { expired: true, ..Removed::clone(removed) });
        self.trash.insert(Arc::clone(&expired));
        let outcome = Outcome { trashed: Some(Arc::clone(&expired)), ..Outcome::default() };
        Ok((outcome, vec![Write::Removed(id, Some(expired))]))
    }

    fn forget(&mut self, id: VolumeId) -> Decision {
        let removed = self.trash.remove(&id).ok_or(Refusal::NotInTrash)?;
        let before = Some(Arc::clone(&removed.volume));
        let outcome = Outcome { before, trashed: Some(removed), ..Outcome::default() };
        Ok((outcome, vec![Write::Removed(id, None)]))
    }

    fn mount(
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
        // Another machine's Mount repeats nothing, whatever its ID.
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
        let host = known(&self.hosts, host);
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
        let mount = volume.mounts.mount(&host, id, activation, moment(at));
        mount.address = mount.address.or(address);
        let mount = mount.clone();
        if mount.count == 1 {
            volume.mounts = ordered(volume.mounts);
            *self.live.entry(host).or_default() += 1;
        }
        let key = MountKey::of(name, &mount);
        let (after, write) = self.store(volume);
        let writes =
            newly_known.then_some(write).into_iter().chain([Write::Mount(key, Some(mount))]).collect();
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, writes))
    }

    fn unmount(
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

    fn take_back(&mut self, name: &VolumeName, volume: VolumeId, counted: &Mount) -> (Outcome, Vec<Write>) {
        self.count_down(name, Some(volume), |mounts| mounts.take_back(counted))
    }

    /// Has `take` count an entry down in the ledger of the volume of that name, which must be `of` where that is said.
    /// `take` returns the entry as it was before.
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
            self.died(&taken);
        }
        let (after, _only_its_ledger_changed) = self.store(volume);
        let outcome =
            Outcome { before: Some(before), after: Some(after), released: vec![taken], ..Outcome::default() };
        (outcome, vec![Write::Mount(key, left)])
    }

    fn release(
        &mut self,
        name: &VolumeName,
        host: &HostName,
        id: Option<&MountId>,
        alive_too: bool,
    ) -> Decision {
        let before = self.volumes.get(name).map(Arc::clone).ok_or(Refusal::NoSuchVolume)?;
        let mut volume = Volume::clone(&before);
        let released = volume.mounts.release(|mount| self.releases(mount, host, id, alive_too));
        for mount in &released {
            self.died(mount);
        }
        let writes = released.iter().map(|mount| Write::Mount(MountKey::of(name, mount), None)).collect();
        let (after, _only_its_ledger_changed) = self.store(volume);
        let outcome = Outcome { before: Some(before), after: Some(after), released, ..Outcome::default() };
        Ok((outcome, writes))
    }

    /// Whether a release takes an entry of the volume's ledger.
    fn releases(&self, mount: &Mount, host: &HostName, id: Option<&MountId>, alive_too: bool) -> bool {
        mount.host == *host && id.is_none_or(|id| mount.id == *id) && (alive_too || self.stale(mount))
    }

    fn volume_with_id(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volumes.get(name).filter(|volume| volume.id == id).map(Arc::clone).ok_or(Refusal::NoSuchVolume)
    }

    fn visible(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volume_with_id(name, id)
            .and_then(|volume| if volume.visible { Ok(volume) } else { Err(Refusal::NoSuchVolume) })
    }

    fn hidden(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volume_with_id(name, id)
            .and_then(|volume| if volume.visible { Err(Refusal::Exists(volume)) } else { Ok(volume) })
    }

    /// Puts a volume under its name, and returns it with what would record it.
    fn store(&mut self, volume: Volume) -> (Arc<Volume>, Write) {
        let volume = Arc::new(volume);
        self.volumes.insert(volume.name.clone(), Arc::clone(&volume));
        let write = Write::Volume(volume.name.clone(), Some(Arc::clone(&volume)));
        (volume, write)
    }

    /// Puts a volume, which has no mounts, into the trash.
    fn discard(&mut self, volume: &Volume, at: OffsetDateTime, writes: &mut Vec<Write>) -> Arc<Removed> {
        let volume = Arc::new(Volume { visible: false, unconfirmed: false, ..volume.clone() });
        let removed = Arc::new(Removed { at: moment(at), expired: false, volume });
        self.trash.insert(Arc::clone(&removed));
        writes.push(Write::Removed(removed.volume.id, Some(Arc::clone(&removed))));
        removed
    }

    /// Counts a ledger's entry out, where it was of its host's present activation.
    pub(super) fn died(&mut self, mount: &Mount) {
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

    /// Counts anew what `live` holds, from the ledgers and the hosts.
    pub(super) fn count_live(&mut self) {
        let mut live: OrdMap<HostName, u32> = OrdMap::new();
        for mount in self.volumes.values().flat_map(|volume| volume.mounts.iter()) {
            if mount.activation == self.activation(&mount.host) {
                *live.entry(mount.host.clone()).or_default() += 1;
            }
        }
        self.live = live;
    }
}

/// The ledger in the order in which it will be read back: by the time of the first Mount, and by name where that is the
/// same or a clock went back.
pub(super) fn ordered(ledger: Ledger) -> Ledger {
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

/// The name as `map` holds it already, so that equal names share their text.
fn known<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>, name: K) -> K {
    map.get_key_value(&name).map_or(name, |(known, _)| known.clone())
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::catalog::contract::{at, backend, host, kept, mount_id, name, volume};
    use crate::catalog::entities::{BackendRecord, BackendState, Certificate};
    use crate::catalog::record::{Loader, Table, encode};
    use crate::model::backend::BackendId;
    use crate::model::mounts::Activation;
    use crate::model::options::{Options, Sharing};

    /// A change in small numbers, so that random ones meet.
    #[derive(Debug, Clone)]
    enum Step {
        Insert { name: u8, id: u8, adopted: bool, exclusive: bool, by: u8 },
        Publish { name: u8, id: u8 },
        Withdraw { name: u8, id: u8 },
        Remove { name: u8, id: u8, at: i64, keep: bool },
        Restore { id: u8 },
        Unrestore { name: u8, id: u8, at: i64 },
        Forget { id: u8 },
        Mount { name: u8, id: u8, host: u8, mount: u8, at: i64, again: bool },
        TakeBack { name: u8, id: u8, host: u8, mount: u8, activation: u64, since: i64, unmounts: u32 },
        Unmount { name: u8, host: u8, mount: u8 },
        Release { name: u8, host: u8, mount: Option<u8>, alive_too: bool },
        Activate { host: u8 },
        Issue { host: u8, serial: u8 },
        Revoke { host: u8, at: i64 },
        Seen { hosts: Vec<(u8, i64)> },
        Backend { name: u8, id: Option<u8> },
        Called { host: u8, serial: u8, from: u8 },
        NotCloned { host: u8 },
        Name { machine: u8, host: u8 },
    }

    /// Any step, those among them that the model does not know.
    fn any_step() -> impl Strategy<Value = Step> {
        let (n, h) = (0u8..2, 0u8..3);
        prop_oneof![
            16 => step(),
            4 => (h.clone(), 0u8..3, n.clone())
                .prop_map(|(host, serial, from)| Step::Called { host, serial, from }),
            1 => h.clone().prop_map(|host| Step::NotCloned { host }),
            2 => (n, h).prop_map(|(machine, host)| Step::Name { machine, host }),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let (n, h, t) = (0u8..2, 0u8..3, 0i64..4);
        prop_oneof![
            4 => (n.clone(), n.clone(), any::<(bool, bool)>(), h.clone()).prop_map(
                |(name, id, (adopted, exclusive), by)| Step::Insert { name, id, adopted, exclusive, by }
            ),
            4 => (n.clone(), n.clone()).prop_map(|(name, id)| Step::Publish { name, id }),
            1 => (n.clone(), n.clone()).prop_map(|(name, id)| Step::Withdraw { name, id }),
            2 => (n.clone(), n.clone(), t.clone(), any::<bool>())
                .prop_map(|(name, id, at, keep)| Step::Remove { name, id, at, keep }),
            2 => n.clone().prop_map(|id| Step::Restore { id }),
            1 => (n.clone(), n.clone(), t.clone()).prop_map(|(name, id, at)| Step::Unrestore { name, id, at }),
            1 => n.clone().prop_map(|id| Step::Forget { id }),
            8 => (n.clone(), n.clone(), h.clone(), n.clone(), t.clone(), proptest::bool::weighted(0.2)).prop_map(
                |(name, id, host, mount, at, again)| Step::Mount { name, id, host, mount, at, again }
            ),
            4 => (n.clone(), n.clone(), h.clone(), n.clone(), 0u64..2, t.clone(), 0u32..2).prop_map(
                |(name, id, host, mount, activation, since, unmounts)| {
                    Step::TakeBack { name, id, host, mount, activation, since, unmounts }
                }
            ),
            6 => (n.clone(), h.clone(), n.clone())
                .prop_map(|(name, host, mount)| Step::Unmount { name, host, mount }),
            2 => (n.clone(), h.clone(), proptest::option::of(n.clone()), any::<bool>())
                .prop_map(|(name, host, mount, alive_too)| Step::Release { name, host, mount, alive_too }),
            2 => h.clone().prop_map(|host| Step::Activate { host }),
            2 => (h.clone(), 0u8..4).prop_map(|(host, serial)| Step::Issue { host, serial }),
            1 => (h.clone(), t.clone()).prop_map(|(host, at)| Step::Revoke { host, at }),
            1 => proptest::collection::vec((h, t), 0..3).prop_map(|hosts| Step::Seen { hosts }),
            1 => (n.clone(), proptest::option::of(n)).prop_map(|(name, id)| Step::Backend { name, id }),
        ]
    }

    fn volume_name(n: u8) -> VolumeName {
        name(&format!("v{n}"))
    }

    fn volume_id(n: u8) -> VolumeId {
        format!("00000000-0000-4000-8000-00000000000{n}").parse().unwrap()
    }

    fn backend_id(n: u8) -> BackendId {
        format!("00000000-0000-4000-9000-00000000000{n}").parse().unwrap()
    }

    fn host_name(n: u8) -> HostName {
        if n == 0 { HostName::anonymous() } else { host(&format!("h{n}")) }
    }

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn id(n: u8) -> MountId {
        mount_id(&format!("i{n}"))
    }

    impl Step {
        fn change(&self) -> Change {
            match *self {
                Self::Insert { name, id, adopted, exclusive, by } => Change::Insert(Volume {
                    id: volume_id(id),
                    adopted,
                    options: Options {
                        access: exclusive.then_some(Sharing::Exclusive),
                        ..Options::default()
                    },
                    known_to: vec![host_name(by)],
                    unconfirmed: !adopted,
                    ..volume(volume_name(name).as_str())
                }),
                Self::Publish { name, id } => Change::Publish(volume_name(name), volume_id(id)),
                Self::Withdraw { name, id } => Change::Withdraw(volume_name(name), volume_id(id)),
                Self::Remove { name, id, at: then, keep } => {
                    Change::Remove { name: volume_name(name), id: volume_id(id), at: at(then), keep }
                }
                Self::Restore { id } => Change::Restore(volume_id(id)),
                Self::Unrestore { name, id, at: then } => {
                    Change::Unrestore { name: volume_name(name), id: volume_id(id), at: at(then) }
                }
                Self::Forget { id } => Change::Forget(volume_id(id)),
                Self::Mount { name, id: volume, host, mount, at: then, again } => Change::Mount {
                    name: volume_name(name),
                    volume: volume_id(volume),
                    host: host_name(host),
                    id: id(mount),
                    address: Some(address(mount)),
                    at: at(then),
                    again,
                },
                Self::TakeBack { name, id: volume, host, mount, activation, since, unmounts } => {
                    Change::TakeBack {
                        name: volume_name(name),
                        volume: volume_id(volume),
                        counted: Mount {
                            host: host_name(host),
                            id: id(mount),
                            activation: Activation(activation),
                            count: 1,
                            since: kept(since),
                            unmounts,
                            address: None,
                        },
                    }
                }
                Self::Unmount { name, host, mount } => Change::Unmount {
                    name: volume_name(name),
                    host: host_name(host),
                    id: id(mount),
                    target: None,
                },
                Self::Release { name, host, mount, alive_too } => Change::Release {
                    name: volume_name(name),
                    host: host_name(host),
                    id: mount.map(id),
                    alive_too,
                },
                Self::Activate { host } => Change::Activate(host_name(host)),
                Self::Issue { host, serial } => Change::Issue(
                    host_name(host),
                    Certificate {
                        serial: format!("{serial}"),
                        issuer: (serial % 2 == 0).then(|| "CN=a CA".into()),
                        issued_at: at(0),
                        not_after: at(9),
                        revoked: false,
                    },
                ),
                Self::Revoke { host, at: then } => Change::Revoke(host_name(host), at(then)),
                Self::Seen { ref hosts } => {
                    Change::Seen(hosts.iter().map(|(host, then)| (host_name(*host), at(*then))).collect())
                }
                Self::Called { host, serial, from } => Change::Called {
                    host: host_name(host),
                    serial: serial.to_string(),
                    from: address(from),
                    at: at(5),
                },
                Self::NotCloned { host } => Change::NotCloned(host_name(host)),
                Self::Name { machine, host } => {
                    Change::Name(uuid::Uuid::from_u128(machine.into()), host_name(host))
                }
                Self::Backend { name, id } => Change::Backend(
                    backend(&format!("b{name}")),
                    id.map(|id| BackendRecord {
                        id: backend_id(id),
                        state: BackendState::Established,
                        mountpoints: std::path::PathBuf::from("/mnt").into(),
                    }),
                ),
            }
        }
    }

    /// What the rules are about, told as simply as it can be.
    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    struct Model {
        volumes: BTreeMap<u8, Simple>,
        trash: BTreeMap<u8, (u8, i64, Simple)>,
        activations: BTreeMap<u8, u64>,
        certificates: BTreeMap<u8, Vec<(u8, bool)>>,
        revoked: BTreeMap<u8, i64>,
        seen: BTreeMap<u8, i64>,
        backends: BTreeMap<u8, u8>,
    }

    #[derive(Debug, Clone, PartialEq, Eq, Default)]
    struct Simple {
        id: u8,
        visible: bool,
        adopted: bool,
        exclusive: bool,
        known_to: BTreeSet<u8>,
        /// (host, ID, activation) to the entry.
        mounts: BTreeMap<(u8, u8, u64), Entry>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Entry {
        count: u32,
        since: i64,
        unmounts: u32,
    }

    impl Model {
        fn apply(&mut self, step: &Step) -> Result<(), &'static str> {
            let meant = |model: &Self, name: u8, id: u8, visible: bool| match model.volumes.get(&name) {
                Some(volume) if volume.id == id && volume.visible == visible => Ok(()),
                Some(volume) if volume.id == id && !visible => Err("exists"),
                _ => Err("no such volume"),
            };
            match *step {
                Step::Insert { name, id, adopted, exclusive, by } => {
                    if self.volumes.contains_key(&name) {
                        return Err("exists");
                    }
                    let known_to = BTreeSet::from([by]);
                    let mounts = BTreeMap::new();
                    let simple = Simple { id, visible: false, adopted, exclusive, known_to, mounts };
                    self.volumes.insert(name, simple);
                }
                Step::Publish { name, id } => match self.volumes.get_mut(&name) {
                    Some(volume) if volume.id == id => volume.visible = true,
                    _ => return Err("no such volume"),
                },
                Step::Withdraw { name, id } => {
                    meant(self, name, id, false)?;
                    self.volumes.remove(&name);
                }
                Step::Remove { name, id, at, keep } => {
                    meant(self, name, id, true)?;
                    if !self.volumes[&name].mounts.is_empty() {
                        return Err("mounted");
                    }
                    let volume = self.volumes.remove(&name).unwrap();
                    if keep && !volume.adopted {
                        self.trash.insert(id, (name, at, Simple { visible: false, ..volume }));
                    }
                }
                Step::Restore { id } => {
                    let (name, _, volume) = self.trash.get(&id).cloned().ok_or("not in trash")?;
                    if self.volumes.contains_key(&name) {
                        return Err("exists");
                    }
                    self.trash.remove(&id);
                    self.volumes.insert(name, volume);
                }
                Step::Unrestore { name, id, at } => {
                    meant(self, name, id, false)?;
                    let volume = self.volumes.remove(&name).unwrap();
                    self.trash.insert(id, (name, at, volume));
                }
                Step::Forget { id } => {
                    self.trash.remove(&id).ok_or("not in trash")?;
                }
                Step::Mount { name, id, host, mount, at, again } => {
                    meant(self, name, id, true)?;
                    let activation = self.activation(host);
                    let volume = self.volumes.get_mut(&name).unwrap();
                    let repeats = volume.mounts.keys().any(|(by, id, _)| (*by, *id) == (host, mount));
                    if again && !repeats {
                        return Err("not mounted");
                    }
                    if !repeats && volume.exclusive && volume.mounts.keys().any(|(by, ..)| *by != host) {
                        return Err("held");
                    }
                    volume.known_to.insert(host);
                    let new = Entry { count: 0, since: at, unmounts: 0 };
                    volume.mounts.entry((host, mount, activation)).or_insert(new).count += 1;
                }
                Step::Unmount { name, host, mount } => {
                    let Some(volume) = self.volumes.get_mut(&name) else { return Ok(()) };
                    let range = (host, mount, 0)..=(host, mount, u64::MAX);
                    if let Some((_, entry)) = volume.mounts.range_mut(range).next_back() {
                        entry.count -= 1;
                        entry.unmounts += 1;
                    }
                    volume.mounts.retain(|_, entry| entry.count > 0);
                }
                Step::TakeBack { name, id, host, mount, activation, since, unmounts } => {
                    let Some(volume) = self.volumes.get_mut(&name).filter(|volume| volume.id == id) else {
                        return Ok(());
                    };
                    if let Some(entry) = volume.mounts.get_mut(&(host, mount, activation))
                        && (entry.since, entry.unmounts) == (since, unmounts)
                    {
                        entry.count -= 1;
                    }
                    volume.mounts.retain(|_, entry| entry.count > 0);
                }
                Step::Release { name, host, mount, alive_too } => {
                    let present = self.activation(host);
                    let volume = self.volumes.get_mut(&name).ok_or("no such volume")?;
                    volume.mounts.retain(|(by, id, activation), _| {
                        let chosen = *by == host
                            && mount.is_none_or(|m| *id == m)
                            && (alive_too || *activation < present);
                        !chosen
                    });
                }
                Step::Activate { host } => {
                    let present = self.activation(host);
                    let live = |volume: &Simple| volume.mounts.keys().any(|k| (k.0, k.2) == (host, present));
                    if self.volumes.values().any(live) {
                        self.activations.insert(host, present + 1);
                    }
                }
                Step::Issue { host, serial } => {
                    let certificates = self.certificates.entry(host).or_default();
                    if !certificates.iter().any(|(known, _)| *known == serial) {
                        certificates.push((serial, false));
                    }
                }
                Step::Revoke { host, at } => {
                    for (_, revoked) in self.certificates.entry(host).or_default() {
                        *revoked = true;
                    }
                    self.revoked.insert(host, at);
                }
                Step::Seen { ref hosts } => {
                    for (host, at) in hosts {
                        let seen = self.seen.entry(*host).or_insert(*at);
                        *seen = (*seen).max(*at);
                    }
                }
                Step::Backend { name, id: None } => {
                    self.backends.remove(&name);
                }
                Step::Backend { name, id: Some(id) } => {
                    if self.backends.iter().any(|(other, known)| *other != name && *known == id) {
                        return Err("identity taken");
                    }
                    self.backends.insert(name, id);
                }
                Step::Called { .. } | Step::NotCloned { .. } | Step::Name { .. } => {
                    unreachable!("it is not known")
                }
            }
            Ok(())
        }

        fn activation(&self, host: u8) -> u64 {
            self.activations.get(&host).copied().unwrap_or_default()
        }

        /// Fails where the view tells anything else.
        fn assert_told_by(&self, view: &View) {
            let simple = |volume: &Volume| Simple {
                id: (0..9).find(|n| volume_id(*n) == volume.id).unwrap(),
                visible: volume.visible,
                adopted: volume.adopted,
                exclusive: volume.options.is_exclusive(),
                known_to: (0..9).filter(|n| volume.known_to.contains(&host_name(*n))).collect(),
                mounts: volume
                    .mounts
                    .iter()
                    .map(|m| {
                        let by = (0..9).find(|n| host_name(*n) == m.host).unwrap();
                        let mount = (0..9).find(|n| id(*n) == m.id).unwrap();
                        assert_eq!(view.stale(m), m.activation.0 < self.activation(by));
                        let since = (0..9).find(|second| kept(*second) == m.since).unwrap();
                        let entry = Entry { count: m.count, since, unmounts: m.unmounts };
                        ((by, mount, m.activation.0), entry)
                    })
                    .collect(),
            };
            let mut told = Self::default();
            for n in 0..9 {
                if let Some(volume) = view.volume(volume_name(n).as_str()) {
                    told.volumes.insert(n, simple(volume));
                }
                if let Some(removed) = view.trash.get(&volume_id(n)) {
                    let name = (0..9).find(|n| volume_name(*n) == removed.volume.name).unwrap();
                    let then = (0..9).find(|second| kept(*second) == removed.at).unwrap();
                    told.trash.insert(n, (name, then, simple(&removed.volume)));
                }
                if let Some(record) = view.backends.get(&backend(&format!("b{n}"))) {
                    told.backends.insert(n, (0..9).find(|n| backend_id(*n) == record.id).unwrap());
                }
                let name = host_name(n);
                assert_eq!(view.activation(&name).0, self.activation(n));
                let recorded = self.certificates.get(&n).cloned().unwrap_or_default();
                for serial in 0u8..6 {
                    let certificate = recorded.iter().find(|(known, _)| *known == serial);
                    let expected = certificate.map_or(self.revoked.contains_key(&n), |(_, revoked)| *revoked);
                    assert_eq!(view.is_revoked(&name, &serial.to_string()), expected);
                }
                let seen = view.hosts.get(&name).and_then(|host| host.last_seen);
                assert_eq!(seen, self.seen.get(&n).map(|second| kept(*second)));
            }
            assert_eq!(told.volumes, self.volumes);
            assert_eq!(told.trash, self.trash);
            assert_eq!(told.backends, self.backends);
            assert_eq!(view.volumes.len() + view.trash.len(), self.volumes.len() + self.trash.len());
        }
    }

    fn kind(refusal: &Refusal) -> &'static str {
        match refusal {
            Refusal::Exists(_) => "exists",
            Refusal::NoSuchVolume => "no such volume",
            Refusal::NotInTrash => "not in trash",
            Refusal::Mounted(_) => "mounted",
            Refusal::Held(_) => "held",
            Refusal::NotMounted(_) => "not mounted",
            Refusal::IdentityTaken(_) => "identity taken",
            Refusal::Expired(_) => "expired",
            Refusal::Known(_) => "known",
            Refusal::Moving(_) => "moving",
            Refusal::Cloned(_) => "cloned",
        }
    }

    /// A store of the simplest kind.
    type Store = BTreeMap<(&'static str, Vec<String>), String>;

    fn write(store: &mut Store, write: &Write) {
        let row = encode(write).unwrap();
        let key = (row.table.name(), row.key.into_iter().map(Cow::into_owned).collect());
        match row.record {
            Some(record) => drop(store.insert(key, record)),
            None => assert!(store.remove(&key).is_some(), "a row that is not there was to be deleted"),
        }
    }

    fn load(store: &Store) -> View {
        let mut loader = Loader::default();
        for ((table, key), record) in store.iter().rev() {
            let table = Table::ALL.into_iter().find(|known| known.name() == *table).unwrap();
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            loader.take(table, &key, record).unwrap();
        }
        loader.finish().unwrap()
    }

    /// The view as a restart would show it.
    fn restarted(view: &View) -> View {
        let mut view = view.clone();
        view.volumes = view
            .volumes
            .into_iter()
            .map(|(name, volume)| (name, Arc::new(Volume { visible: true, ..Volume::clone(&volume) })))
            .collect();
        view
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn the_rules_are_the_models_and_the_records_are_the_view(
            steps in proptest::collection::vec(step(), 0..120)
        ) {
            let (mut view, mut model, mut store) = (View::default(), Model::default(), Store::new());
            for step in &steps {
                let before = view.clone();
                let expected = model.apply(step);
                match view.apply(step.change()) {
                    Ok((_, writes)) => {
                        prop_assert_eq!(expected, Ok(()), "{:?} was not refused", step);
                        writes.iter().for_each(|record| write(&mut store, record));
                    }
                    Err(refusal) => {
                        prop_assert_eq!(expected, Err(kind(&refusal)), "{:?}", step);
                        prop_assert_eq!(&view, &before, "a refusal changed something");
                    }
                }
                model.assert_told_by(&view);
                prop_assert_eq!(load(&store), restarted(&view), "after {:?}", step);
            }
            let mut whole = Store::new();
            view.records().for_each(|record| write(&mut whole, &record));
            prop_assert_eq!(whole, store);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn the_records_of_any_steps_are_the_view(steps in proptest::collection::vec(any_step(), 0..80)) {
            let (mut view, mut store) = (View::default(), Store::new());
            for step in &steps {
                let before = view.clone();
                match view.apply(step.change()) {
                    Ok((_, writes)) => writes.iter().for_each(|record| write(&mut store, record)),
                    Err(_) => prop_assert_eq!(&view, &before, "a refusal changed something"),
                }
                prop_assert_eq!(load(&store), restarted(&view), "after {:?}", step);
            }
        }
    }

    #[test]
    fn a_machine_that_is_named_anew_takes_its_mounts_along() {
        let (old, new) = (host("old"), host("new"));
        let machine = uuid::Uuid::from_u128(7);
        let mut view = View::default();
        let made = volume("db");
        let mounted = |by: &str, id: &str| crate::catalog::contract::mount(&made, by, id);
        let count = |view: &View, by: &HostName, id: &str, stale| {
            let mounts = view.volume("db").unwrap().mounts.iter();
            mounts
                .filter(|m| m.host == *by && m.id.as_str() == id && view.stale(m) == stale)
                .map(|m| m.count)
                .sum::<u32>()
        };
        for change in [
            Change::Insert(made.clone()),
            Change::Publish(made.name.clone(), made.id),
            Change::Name(machine, old.clone()),
            mounted("old", "dead"),
            Change::Activate(old.clone()),
            mounted("old", "live"),
            mounted("old", "both"),
            mounted("new", "both"),
            mounted("web1", "other"),
            Change::Name(machine, new.clone()),
        ] {
            view.apply(change).unwrap();
        }
        assert_eq!(count(&view, &new, "dead", true), 1);
        assert_eq!((count(&view, &new, "live", false), count(&view, &new, "both", false)), (1, 2));
        assert_eq!(count(&view, &host("web1"), "other", false), 1);
        assert!(!view.volume("db").unwrap().mounts.held_by(&old));
        assert_eq!((view.name_of(machine), view.name_now(&old)), (Some(new.clone()), &new));
        // Its engine goes on with the certificate of the old name.
        let unmount =
            |id| Change::Unmount { name: name("db"), host: old.clone(), id: mount_id(id), target: None };
        assert_eq!(view.apply(unmount("live")).unwrap().0.released.len(), 1);
        view.apply(mounted("old", "again")).unwrap();
        assert_eq!(count(&view, &new, "again", false), 1);
        view.apply(Change::Activate(old.clone())).unwrap();
        assert_eq!((count(&view, &new, "again", true), count(&view, &new, "both", true)), (1, 2));
        // It may be called again as it was.
        view.apply(Change::Name(machine, old.clone())).unwrap();
        assert_eq!((count(&view, &old, "again", true), view.name_now(&new)), (1, &old));
        assert!(!view.volume("db").unwrap().mounts.held_by(&new));
    }

    #[test]
    fn of_a_cloned_host_nothing_is_stale_and_an_exclusive_volume_stays_where_it_is() {
        let web1 = host("web1");
        let mut view = View::default();
        let options = Options { access: Some(Sharing::Exclusive), ..Options::default() };
        let made = Volume { options, ..volume("db") };
        let mounted = |from: u8, id: &str| Change::Mount {
            name: name("db"),
            volume: made.id,
            host: web1.clone(),
            id: mount_id(id),
            address: Some(address(from)),
            at: at(1),
            again: false,
        };
        let called = |serial: &str, from: u8| Change::Called {
            host: web1.clone(),
            serial: serial.into(),
            from: address(from),
            at: at(2),
        };
        let stale = |view: &View| view.volume("db").unwrap().mounts.iter().filter(|m| view.stale(m)).count();
        let release =
            |alive_too| Change::Release { name: name("db"), host: web1.clone(), id: None, alive_too };
        for change in [
            Change::Insert(made.clone()),
            Change::Publish(name("db"), made.id),
            called("a", 1),
            mounted(1, "x"),
        ] {
            view.apply(change).unwrap();
        }
        // The clone's first call makes what is alive look stale, until the first one calls again.
        view.apply(called("a", 2)).unwrap();
        view.apply(Change::Activate(web1.clone())).unwrap();
        assert_eq!(stale(&view), 1);
        assert_eq!(view.apply(called("a", 1)).unwrap().0.cloned, Some(true));
        assert!(view.is_cloned(&web1));
        view.apply(Change::Activate(web1.clone())).unwrap();
        assert_eq!(stale(&view), 0);
        assert!(view.apply(release(false)).unwrap().0.released.is_empty());
        assert!(matches!(view.apply(mounted(2, "y")), Err(Refusal::Cloned(_))));
        view.apply(mounted(1, "y")).unwrap();
        // Counted before, and repeated: a refusal would have the engine take the live one away.
        view.apply(mounted(1, "x")).unwrap();
        // Another certificate in use is the end of it; what is stale of before, nobody knows.
        assert_eq!(view.apply(called("b", 2)).unwrap().0.cloned, Some(false));
        view.apply(Change::Activate(web1.clone())).unwrap();
        view.apply(mounted(2, "z")).unwrap();
        view.apply(Change::Activate(web1.clone())).unwrap();
        let mounts = view.volume("db").unwrap().mounts.iter();
        let told: Vec<_> = mounts.map(|m| (m.id.to_string(), view.stale(m))).collect();
        assert!(told.contains(&("x".into(), false)) && told.contains(&("z".into(), true)), "{told:?}");
    }

    /// The step at which each row was last written.
    type Revisions = BTreeMap<RowKey, usize>;

    fn write_revisions(revisions: &mut Revisions, writes: &[Write], step: usize) {
        for write in writes {
            if write.deletes() {
                revisions.remove(&write.key());
            } else {
                revisions.insert(write.key(), step);
            }
        }
    }

    /// Whether a premise of a view that knows `seen` still holds by `truth`, as a store of revisions tells it.
    fn holds(premise: &Premise, seen: &Revisions, truth: &Revisions, reached: usize) -> bool {
        let mounts = |of: &VolumeName, but: Option<&HostName>| {
            truth
                .keys()
                .any(|row| matches!(row, RowKey::Mount(key) if key.volume == *of && Some(&key.host) != but))
        };
        match premise {
            Premise::Same(row) => seen.get(row) == truth.get(row),
            Premise::Unused(volume) => !mounts(volume, None),
            Premise::UnusedByOthers(volume, host) => !mounts(volume, Some(host)),
            Premise::SameMounts(of) => truth.iter().all(|(row, at)| match row {
                RowKey::Mount(key) if of.as_ref().is_none_or(|of| key.volume == *of) => *at <= reached,
                _ => true,
            }),
            Premise::SameBackends => {
                truth.iter().all(|(row, at)| !matches!(row, RowKey::Backend(_)) || *at <= reached)
            }
        }
    }

    /// Whether the two views show and hide the same volumes: what instances tell each other by keys of their own.
    fn shown_alike(one: &View, other: &View) -> bool {
        let hidden = |view: &View| -> Vec<_> {
            view.volumes.values().filter(|volume| !volume.visible).map(|volume| volume.id).collect()
        };
        hidden(one) == hidden(other)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn a_decision_of_a_view_behind_holds_as_long_as_its_premises_do(
            steps in proptest::collection::vec(any_step(), 0..60),
            others in proptest::collection::vec(any_step(), 0..4),
            last in any_step(),
        ) {
            let (mut behind, mut seen) = (View::default(), Revisions::new());
            for (at, step) in steps.iter().enumerate() {
                if let Ok((_, writes)) = behind.apply(step.change()) {
                    write_revisions(&mut seen, &writes, at);
                }
            }
            let (mut truth, mut revisions) = (behind.clone(), seen.clone());
            for (at, step) in others.iter().enumerate() {
                if let Ok((_, writes)) = truth.apply(step.change()) {
                    write_revisions(&mut revisions, &writes, steps.len() + at);
                }
            }
            let change = last.change();
            // These stand on more than rows, and are decided on a view that was made fresh.
            if matches!(change, Change::Activate(_) | Change::Release { .. } | Change::Name(..))
                || !shown_alike(&behind, &truth) {
                return Ok(());
            }
            let premises = behind.premises(&change);
            let Ok((_, decided)) = behind.clone().apply(change.clone()) else { return Ok(()) };
            if decided.is_empty() || !premises.iter().all(|premise| {
                holds(premise, &seen, &revisions, steps.len().saturating_sub(1))
            }) {
                return Ok(());
            }
            // As they are stored: a volume that is written carries its ledger along, whose entries are rows of their own.
            let stored = |writes: Vec<Write>| -> Vec<_> {
                writes.iter().map(|write| format!("{:?}", encode(write).unwrap())).collect()
            };
            let told = truth.apply(change.clone()).ok().map(|(_, writes)| stored(writes));
            prop_assert_eq!(told, Some(stored(decided)), "{:?} after {:?}", change, others);
        }
    }

    #[test]
    fn what_need_not_be_durable_asks_for_no_write() {
        let mut view = View::default();
        let made = volume("db");
        let unknown =
            Change::Unmount { name: name("db"), host: host("web1"), id: mount_id("x"), target: None };
        for (change, writes) in [
            (unknown.clone(), 0),
            (Change::Activate(host("web1")), 0),
            (Change::Insert(made.clone()), 1),
            (Change::Publish(made.name.clone(), made.id), 1),
            (Change::Publish(made.name.clone(), made.id), 0),
            (unknown.clone(), 0),
            // The host that made it is known already; another one is not.
            (crate::catalog::contract::mount(&made, "web1", "x"), 1),
            (crate::catalog::contract::mount(&made, "web2", "x"), 2),
            (crate::catalog::contract::mount(&made, "web2", "x"), 1),
            (unknown, 1),
            (Change::Activate(host("web1")), 0),
            (Change::Activate(host("web2")), 1),
            (Change::Seen(vec![(host("web1"), at(1)), (host("web2"), at(1))]), 2),
            (Change::Seen(vec![(host("web1"), at(1)), (host("web2"), at(0))]), 0),
            (Change::Connected(host("web1"), "CN=one".into()), 1),
            (Change::Connected(host("web1"), "CN=one".into()), 0),
            (Change::Connected(host("web1"), "CN=two".into()), 1),
            (Change::Connected(host("web9"), "CN=one".into()), 0),
        ] {
            assert_eq!(view.apply(change.clone()).unwrap().1.len(), writes, "{change:?}");
        }
    }

    #[test]
    fn times_outside_the_record_are_brought_within() {
        let before_christ = time::Date::MIN.midnight().assume_utc();
        assert_eq!(moment(before_christ).year(), 0);
        let last = time::Date::MAX.with_hms_nano(23, 59, 59, 999_999_999).unwrap().assume_utc();
        assert_eq!(moment(last).year(), 9999);
        let east = at(0).to_offset(UtcOffset::from_hms(2, 0, 0).unwrap());
        assert_eq!((moment(east), moment(east).offset()), (kept(0), UtcOffset::UTC));
    }
}
