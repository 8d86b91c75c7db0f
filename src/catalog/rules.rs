//! The rules by which a change makes one view from another, and which records each change touches.
//!
//! Pure: no I/O, no clock, no engine. A change that is refused leaves the view as it was.

use std::sync::Arc;

use imbl::OrdMap;
use time::{OffsetDateTime, UtcOffset};

use super::view::{BackendRecord, Certificate, Host, Removed, View, Volume};
use super::{Change, Outcome, Refusal};
use crate::backend::name::BackendName;
use crate::host::name::HostName;
use crate::volume::mounts::{Activation, Ledger, Mount};
use crate::volume::name::{MountId, VolumeId, VolumeName};

/// A record to be stored, or, where there is no value, to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// A volume, without its mounts and without whether it is visible.
    Volume(VolumeName, Option<Arc<Volume>>),
    /// One entry of a volume's ledger.
    Mount(MountKey, Option<Mount>),
    /// A removed volume.
    Removed(VolumeId, Option<Arc<Removed>>),
    /// A host; no change deletes one.
    Host(HostName, Arc<Host>),
    /// A backend.
    Backend(BackendName, Option<Arc<BackendRecord>>),
}

/// What tells a ledger's entry from all others in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MountKey {
    /// The volume's name.
    pub volume: VolumeName,
    /// The host that uses it.
    pub host: HostName,
    /// The engine's ID.
    pub id: MountId,
    /// Under which of the host's activations.
    pub activation: Activation,
}

impl MountKey {
    fn of(volume: &VolumeName, mount: &Mount) -> Self {
        Self {
            volume: volume.clone(),
            host: mount.host.clone(),
            id: mount.id.clone(),
            activation: mount.activation,
        }
    }
}

/// What a change did, and the records that must be durable before anyone is told.
type Decision = Result<(Outcome, Vec<Write>), Refusal>;

/// A time as a record keeps it: UTC, to the millisecond, within the years that RFC 3339 can write.
#[must_use]
pub fn moment(at: OffsetDateTime) -> OffsetDateTime {
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
            Change::Expire(id) => self.expire(id),
            Change::Forget(id) => self.forget(id),
            Change::Mount { name, volume, host, id, at } => self.mount(&name, volume, host, &id, at),
            Change::Unmount { name, host, id } => Ok(self.unmount(&name, &host, &id)),
            Change::Release { name, host, id, alive_too } => {
                self.release(&name, &host, id.as_ref(), alive_too)
            }
            Change::Activate(host) => Ok(self.activate(host)),
            Change::Issue(host, certificate) => Ok(self.issue(host, certificate)),
            Change::Revoke(host, at) => Ok(self.revoke(host, at)),
            Change::Seen(hosts) => Ok(self.seen(hosts)),
            Change::Backend(name, record) => self.backend(name, record),
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
        let Volume { id, name, backend, mut options, created_at, adopted, known_to, mounts: _, visible: _ } =
            volume;
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
        };
        let (after, write) = self.store(volume);
        Ok((Outcome { after: Some(after), ..Outcome::default() }, vec![write]))
    }

    fn publish(&mut self, name: &VolumeName, id: VolumeId) -> Decision {
        let before = self.meant(name, id)?;
        let mut volume = Volume::clone(&before);
        volume.visible = true;
        let (after, _nothing_of_it_is_recorded) = self.store(volume);
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, vec![]))
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

    fn expire(&mut self, id: VolumeId) -> Decision {
        let removed = self.trash.get(&id).ok_or(Refusal::NotInTrash)?;
        let expired = Arc::new(Removed { expired: true, ..Removed::clone(removed) });
        self.trash.insert(id, Arc::clone(&expired));
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
        host: HostName,
        id: &MountId,
        at: OffsetDateTime,
    ) -> Decision {
        let before = self.visible(name, volume)?;
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
        let mount = volume.mounts.mount(&host, id, activation, moment(at)).clone();
        if mount.count == 1 {
            *self.live.entry(host).or_default() += 1;
        }
        let key = MountKey::of(name, &mount);
        let (after, write) = self.store(volume);
        let writes =
            newly_known.then_some(write).into_iter().chain([Write::Mount(key, Some(mount))]).collect();
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, writes))
    }

    fn unmount(&mut self, name: &VolumeName, host: &HostName, id: &MountId) -> (Outcome, Vec<Write>) {
        let Some(before) = self.volumes.get(name).map(Arc::clone) else { return Default::default() };
        let mut volume = Volume::clone(&before);
        let Some(taken) = volume.mounts.unmount(host, id) else {
            let after = Some(Arc::clone(&before));
            return (Outcome { before: Some(before), after, ..Outcome::default() }, vec![]);
        };
        let key = MountKey::of(name, &taken);
        let left = (taken.count > 1).then(|| Mount { count: taken.count - 1, ..taken.clone() });
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
        let present = self.activation(host);
        let mut volume = Volume::clone(&before);
        let released = volume.mounts.release(|mount| {
            mount.host == *host
                && id.is_none_or(|id| mount.id == *id)
                && (alive_too || mount.activation < present)
        });
        for mount in &released {
            self.died(mount);
        }
        let writes = released.iter().map(|mount| Write::Mount(MountKey::of(name, mount), None)).collect();
        let (after, _only_its_ledger_changed) = self.store(volume);
        let outcome = Outcome { before: Some(before), after: Some(after), released, ..Outcome::default() };
        Ok((outcome, writes))
    }

    fn activate(&mut self, name: HostName) -> (Outcome, Vec<Write>) {
        if self.live.remove(&name).is_none() {
            return Default::default();
        }
        let mut host = self.host(&name);
        host.activation = Activation(host.activation.0.saturating_add(1));
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    fn issue(&mut self, name: HostName, certificate: Certificate) -> (Outcome, Vec<Write>) {
        let mut host = self.host(&name);
        if host.certificates.iter().any(|known| known.serial == certificate.serial) {
            return Default::default();
        }
        host.certificates.reserve_exact(1);
        host.certificates.push(Certificate {
            issued_at: moment(certificate.issued_at),
            not_after: moment(certificate.not_after),
            ..certificate
        });
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    fn revoke(&mut self, name: HostName, at: OffsetDateTime) -> (Outcome, Vec<Write>) {
        let mut host = self.host(&name);
        for certificate in &mut host.certificates {
            certificate.revoked = true;
        }
        host.revoked_at = Some(moment(at));
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    fn seen(&mut self, hosts: Vec<(HostName, OffsetDateTime)>) -> (Outcome, Vec<Write>) {
        let mut writes = Vec::new();
        for (name, at) in hosts {
            let mut host = self.host(&name);
            let at = Some(moment(at));
            // Reports may overtake each other: a host's time never goes back.
            if at > host.last_seen {
                host.last_seen = at;
                writes.push(self.store_host(name, host));
            }
        }
        (Outcome::default(), writes)
    }

    fn backend(&mut self, name: BackendName, record: Option<BackendRecord>) -> Decision {
        let Some(record) = record else {
            let known = self.backends.remove(&name).is_some();
            let writes = known.then_some(Write::Backend(name, None)).into_iter().collect();
            return Ok((Outcome::default(), writes));
        };
        let holder = self.backends.iter().find(|(other, known)| **other != name && known.id == record.id);
        if let Some((holder, _)) = holder {
            return Err(Refusal::IdentityTaken(holder.clone()));
        }
        if self.backends.get(&name).is_some_and(|known| **known == record) {
            return Ok(Default::default());
        }
        let record = Arc::new(record);
        self.backends.insert(name.clone(), Arc::clone(&record));
        Ok((Outcome::default(), vec![Write::Backend(name, Some(record))]))
    }

    fn meant(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volumes.get(name).filter(|volume| volume.id == id).map(Arc::clone).ok_or(Refusal::NoSuchVolume)
    }

    fn visible(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.meant(name, id)
            .and_then(|volume| if volume.visible { Ok(volume) } else { Err(Refusal::NoSuchVolume) })
    }

    fn hidden(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.meant(name, id)
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
        let volume = Arc::new(Volume { visible: false, ..volume.clone() });
        let removed = Arc::new(Removed { at: moment(at), expired: false, volume });
        self.trash.insert(removed.volume.id, Arc::clone(&removed));
        writes.push(Write::Removed(removed.volume.id, Some(Arc::clone(&removed))));
        removed
    }

    fn host(&self, name: &HostName) -> Host {
        self.hosts.get(name).map(|host| Host::clone(host)).unwrap_or_default()
    }

    fn store_host(&mut self, name: HostName, host: Host) -> Write {
        let host = Arc::new(host);
        self.hosts.insert(name.clone(), Arc::clone(&host));
        Write::Host(name, host)
    }

    /// Counts a ledger's entry out, where it was of its host's present activation.
    fn died(&mut self, mount: &Mount) {
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

/// The name as `map` holds it already, so that equal names share their text.
fn known<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>, name: K) -> K {
    map.get_key_value(&name).map_or(name, |(known, _)| known.clone())
}
