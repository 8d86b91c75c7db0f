//! The ledger of a volume's mounts: who uses it, counted for each host, ID and activation.
//!
//! Engines repeat a live mount's ID (`docker cp`), reuse IDs after a crash and lose counts when they are killed. So a
//! ledger never guesses: only an Unmount or the operator lowers a count. An entry's count is never 0.

use std::net::IpAddr;

use time::OffsetDateTime;

use crate::model::host::HostName;
use crate::model::volume::MountId;

/// The number of an engine's Activate, counted for each host. A higher one means that the engine was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Activation(pub u64);

/// One host's use of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The host whose engine mounted it.
    pub host: HostName,
    /// The ID that the engine gave.
    pub id: MountId,
    /// The host's activation in which it was mounted.
    pub activation: Activation,
    /// The number of Mounts that were not followed by an Unmount, at least 1.
    pub count: u32,
    /// When the first of them was answered.
    pub since: OffsetDateTime,
    /// The number of Unmounts that were counted on this entry. Taking a Mount back is not one of them.
    pub unmounts: u32,
    /// The network address from which the first of them came, if that is known.
    pub address: Option<IpAddr>,
}

/// The mounts of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ledger(Vec<Mount>);

impl Ledger {
    /// Returns a ledger of recorded mounts, without entries whose count is 0.
    #[must_use]
    pub fn from_records(mounts: impl IntoIterator<Item = Mount>) -> Self {
        Self(mounts.into_iter().filter(|mount| mount.count > 0).collect())
    }

    /// Returns true if no host has the volume mounted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the entries, in the order in which they were first mounted.
    pub fn iter(&self) -> std::slice::Iter<'_, Mount> {
        self.0.iter()
    }

    /// Returns true if `host` has the volume mounted.
    #[must_use]
    pub fn held_by(&self, host: &HostName) -> bool {
        self.0.iter().any(|mount| mount.host == *host)
    }

    /// Counts one Mount and returns its updated entry.
    pub fn mount(
        &mut self,
        host: &HostName,
        id: &MountId,
        activation: Activation,
        now: OffsetDateTime,
    ) -> &mut Mount {
        let same = |mount: &Mount| mount.host == *host && mount.id == *id && mount.activation == activation;
        let index = match self.0.iter().position(same) {
            Some(index) => index,
            None => {
                self.0.push(Mount {
                    host: host.clone(),
                    id: id.clone(),
                    activation,
                    count: 0,
                    since: now,
                    unmounts: 0,
                    address: None,
                });
                self.0.len() - 1
            }
        };
        #[expect(clippy::indexing_slicing, reason = "the index was found in, or just pushed to, this vector")]
        let mount = &mut self.0[index];
        mount.count = mount.count.saturating_add(1);
        mount
    }

    /// Returns the entry on which an Unmount counts: the one with this host and ID and the newest activation, at most
    /// `until` if that is given.
    #[must_use]
    pub fn newest(&self, host: &HostName, id: &MountId, until: Option<Activation>) -> Option<&Mount> {
        self.find(host, id, until).map(|(_, mount)| mount)
    }

    fn find(&self, host: &HostName, id: &MountId, until: Option<Activation>) -> Option<(usize, &Mount)> {
        self.0
            .iter()
            .enumerate()
            .filter(|(_, mount)| mount.host == *host && mount.id == *id)
            .filter(|(_, mount)| until.is_none_or(|until| mount.activation <= until))
            .max_by_key(|(_, mount)| mount.activation)
    }

    /// Counts one Unmount on the [`newest`](Self::newest) entry. Returns the entry as it was before; `None` if the mount is
    /// unknown.
    pub fn unmount(&mut self, host: &HostName, id: &MountId, until: Option<Activation>) -> Option<Mount> {
        let (index, before) = self.find(host, id, until).map(|(index, mount)| (index, mount.clone()))?;
        if let Some(left) = self.count_down(index) {
            left.unmounts = left.unmounts.saturating_add(1);
        }
        Some(before)
    }

    /// Takes back a Mount whose answer the engine did not get. `counted` is its entry right after that Mount. Returns
    /// the entry as it was before this call; `None` if nothing is taken back.
    ///
    /// An Unmount that was counted on the entry since then may have been for this very Mount. Then nothing is taken
    /// back: a count that is too high is shown to the operator, and one that is too low loses data.
    pub fn take_back(&mut self, counted: &Mount) -> Option<Mount> {
        let Mount { host, id, activation, count: _, since, unmounts, address: _ } = counted;
        let same = |mount: &Mount| {
            mount.host == *host
                && mount.id == *id
                && mount.activation == *activation
                && mount.since == *since
                && mount.unmounts == *unmounts
        };
        let index = self.0.iter().position(same)?;
        let before = self.0.get(index).cloned();
        self.count_down(index);
        before
    }

    /// Lowers an entry's count by one. Returns the entry; `None` if that removed it.
    fn count_down(&mut self, index: usize) -> Option<&mut Mount> {
        if self.0.get(index)?.count <= 1 {
            self.0.remove(index);
            return None;
        }
        let mount = self.0.get_mut(index)?;
        mount.count -= 1;
        Some(mount)
    }

    /// Adds a recorded entry. There must be none with the same host, ID and activation.
    pub fn put(&mut self, mount: Mount) {
        self.0.push(mount);
    }

    /// Removes every entry that `which` chooses, and returns them.
    pub fn release(&mut self, mut which: impl FnMut(&Mount) -> bool) -> Vec<Mount> {
        self.0.extract_if(.., |mount| which(mount)).collect()
    }
}

impl<'a> IntoIterator for &'a Ledger {
    type Item = &'a Mount;
    type IntoIter = std::slice::Iter<'a, Mount>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn host(name: &str) -> HostName {
        HostName::parse(name).unwrap()
    }

    fn id(text: &str) -> MountId {
        MountId::parse(text).unwrap()
    }

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn docker_cp_repeats_a_live_id_without_releasing_it() {
        let mut ledger = Ledger::default();
        ledger.mount(&host("web1"), &id("x"), Activation(1), NOW);
        assert_eq!(ledger.mount(&host("web1"), &id("x"), Activation(1), NOW).count, 2);
        ledger.unmount(&host("web1"), &id("x"), None);
        assert!(ledger.held_by(&host("web1")), "the container still runs");
        ledger.unmount(&host("web1"), &id("x"), None);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_restarted_engine_counts_afresh_beside_its_stale_mounts() {
        let mut ledger = Ledger::default();
        ledger.mount(&host("web1"), &id("x"), Activation(1), NOW);
        assert_eq!(ledger.mount(&host("web1"), &id("x"), Activation(2), NOW).count, 1);
        let taken = ledger.unmount(&host("web1"), &id("x"), None).unwrap();
        assert_eq!(taken.activation, Activation(2), "the newest activation is unmounted first");
        assert_eq!(ledger.len(), 1);
        let released = ledger.release(|mount| mount.activation < Activation(2));
        assert_eq!(released.len(), 1);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_mount_is_taken_back_unless_it_may_have_been_unmounted() {
        let (web1, x) = (host("web1"), id("x"));
        let mut ledger = Ledger::default();
        ledger.mount(&web1, &x, Activation(1), NOW);
        let lost = ledger.mount(&web1, &x, Activation(1), NOW).clone();
        let lost_too = ledger.mount(&web1, &x, Activation(1), NOW).clone();
        assert_eq!(ledger.take_back(&lost).unwrap().count, 3);
        assert_eq!(ledger.take_back(&lost_too).unwrap().count, 2, "the one before was no Unmount");

        let lost = ledger.mount(&web1, &x, Activation(1), NOW).clone();
        ledger.unmount(&web1, &x, None);
        assert_eq!(ledger.take_back(&lost), None, "the engine may have unmounted it");
        assert!(ledger.held_by(&web1), "the live mount was taken");

        ledger.unmount(&web1, &x, None);
        ledger.mount(&web1, &x, Activation(1), NOW + time::Duration::SECOND);
        assert_eq!(ledger.take_back(&lost), None, "this entry is another one");
    }

    #[test]
    fn an_unmount_of_another_host_takes_nothing() {
        let mut ledger = Ledger::default();
        ledger.mount(&host("web1"), &id("one-constant"), Activation(0), NOW);
        assert_eq!(ledger.unmount(&host("web2"), &id("one-constant"), None), None);
        assert!(ledger.held_by(&host("web1")));
    }

    proptest! {
        /// Compares with a map of counts: after any history, the ledger holds exactly the mounts that were not undone.
        #[test]
        fn counts_are_exact(steps in proptest::collection::vec((any::<bool>(), 0u8..3, 0u8..3, 0u64..3), 0..200)) {
            let mut ledger = Ledger::default();
            let mut model: BTreeMap<(u8, u8, u64), u32> = BTreeMap::new();
            let mut activation = 0;
            for (mounts, h, i, bump) in steps {
                activation += u64::from(bump == 2);
                let (name, mount_id) = (host(&format!("h{h}")), id(&format!("i{i}")));
                if mounts {
                    ledger.mount(&name, &mount_id, Activation(activation), NOW);
                    *model.entry((h, i, activation)).or_default() += 1;
                } else {
                    let newest = model.range((h, i, 0)..=(h, i, u64::MAX)).next_back().map(|(key, _)| *key);
                    let taken = ledger.unmount(&name, &mount_id, None);
                    prop_assert_eq!(taken.map(|mount| mount.activation.0), newest.map(|key| key.2));
                    if let Some(key) = newest {
                        let count = model.get_mut(&key).unwrap();
                        *count -= 1;
                        if *count == 0 { model.remove(&key); }
                    }
                }
            }
            let held: BTreeMap<_, _> = ledger.iter()
                .map(|m| ((m.host.to_string(), m.id.to_string(), m.activation.0), m.count)).collect();
            let expected: BTreeMap<_, _> = model.into_iter()
                .map(|((h, i, a), count)| ((format!("h{h}"), format!("i{i}"), a), count)).collect();
            prop_assert_eq!(held, expected);
        }
    }
}
