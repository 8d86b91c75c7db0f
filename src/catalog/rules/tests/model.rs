//! A simpler model of the rules, which the tests compare with them.

use std::collections::{BTreeMap, BTreeSet};

use super::steps::{Step, backend_id, backend_name, host_name, id, volume_id, volume_name};
use crate::catalog::contract::kept;
use crate::catalog::entities::Volume;
use crate::catalog::view::View;

/// The state that the rules act on, in its simplest form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Model {
    volumes: BTreeMap<u8, Simple>,
    trash: BTreeMap<u8, Trashed>,
    activations: BTreeMap<u8, u64>,
    certificates: BTreeMap<u8, Vec<(u8, bool)>>,
    revoked: BTreeMap<u8, i64>,
    seen: BTreeMap<u8, i64>,
    backends: BTreeMap<u8, u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Trashed {
    name: u8,
    at: i64,
    expired: bool,
    volume: Simple,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Simple {
    id: u8,
    visible: bool,
    adopted: bool,
    exclusive: bool,
    known_to: BTreeSet<u8>,
    /// The entries by (host, ID, activation).
    mounts: BTreeMap<(u8, u8, u64), Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    count: u32,
    since: i64,
    unmounts: u32,
}

impl Model {
    pub(super) fn apply(&mut self, step: &Step) -> Result<(), &'static str> {
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
            // Whether a directory is durable concerns no other rule.
            Step::Confirm { volumes: _ } => {}
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
                    let volume = Simple { visible: false, ..volume };
                    self.trash.insert(id, Trashed { name, at, expired: false, volume });
                }
            }
            Step::Restore { id } => {
                let Trashed { name, at: _, expired, volume } =
                    self.trash.get(&id).cloned().ok_or("not in trash")?;
                if expired {
                    return Err("expired");
                }
                if self.volumes.contains_key(&name) {
                    return Err("exists");
                }
                self.trash.remove(&id);
                self.volumes.insert(name, volume);
            }
            Step::Unrestore { name, id, at } => {
                meant(self, name, id, false)?;
                let volume = self.volumes.remove(&name).unwrap();
                self.trash.insert(id, Trashed { name, at, expired: false, volume });
            }
            Step::Expire { id, at } => {
                let removed = self.trash.get_mut(&id).filter(|removed| removed.at == at);
                removed.ok_or("not in trash")?.expired = true;
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
                    let chosen =
                        *by == host && mount.is_none_or(|m| *id == m) && (alive_too || *activation < present);
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
            Step::Introduce { name, .. } if self.backends.contains_key(&name) => return Err("known"),
            Step::Backend { name, id: Some(id) } | Step::Introduce { name, id } => {
                if self.backends.iter().any(|(other, known)| *other != name && *known == id) {
                    return Err("identity taken");
                }
                self.backends.insert(name, id);
            }
            Step::Connected { .. } | Step::Called { .. } | Step::NotCloned { .. } | Step::Name { .. } => {
                unreachable!("only `any_step` makes it")
            }
        }
        Ok(())
    }

    fn activation(&self, host: u8) -> u64 {
        self.activations.get(&host).copied().unwrap_or_default()
    }

    /// Fails if the view differs from the model.
    pub(super) fn assert_told_by(&self, view: &View) {
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
                let at = (0..9).find(|second| kept(*second) == removed.at).unwrap();
                let (expired, volume) = (removed.expired, simple(&removed.volume));
                told.trash.insert(n, Trashed { name, at, expired, volume });
            }
            if let Some(record) = view.backends.get(&backend_name(n)) {
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
