//! The ledger of a volume's mounts: who uses it, counted for each host, ID and activation.
//!
//! Engines repeat a live mount's ID (`docker cp`), reuse IDs after a crash and lose counts when they are killed. So a
//! ledger never guesses: only an Unmount or the operator lowers a count. An entry's count is never 0.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use equivalent::{Comparable, Equivalent};
use imbl::OrdSet;
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

/// An entry's place in its ledger, in the order of host, ID and activation. No other entry has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place<'a>(&'a HostName, &'a MountId, Activation);

impl Mount {
    fn place(&self) -> Place<'_> {
        Place(&self.host, &self.id, self.activation)
    }
}

/// An entry of a ledger, ordered by its place alone. Ledgers of successive views share it.
#[derive(Debug, Clone)]
struct Entry(Arc<Mount>);

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.0.place() == other.0.place()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.place().cmp(&other.0.place())
    }
}

impl Comparable<Entry> for Place<'_> {
    fn compare(&self, entry: &Entry) -> Ordering {
        self.cmp(&entry.0.place())
    }
}

impl Equivalent<Entry> for Place<'_> {
    fn equivalent(&self, entry: &Entry) -> bool {
        *self == entry.0.place()
    }
}

/// The place after the last entry that this host can have.
struct After<'a>(&'a HostName);

impl Comparable<Entry> for After<'_> {
    fn compare(&self, entry: &Entry) -> Ordering {
        if entry.0.host <= *self.0 { Ordering::Greater } else { Ordering::Less }
    }
}

impl Equivalent<Entry> for After<'_> {
    fn equivalent(&self, _: &Entry) -> bool {
        false
    }
}

/// The mounts of one volume, in the order of host, ID and activation. A copy shares its structure, and a count copies a
/// few nodes, however many mounts there are.
#[derive(Debug, Clone, Default)]
pub struct Ledger(OrdSet<Entry>);

impl PartialEq for Ledger {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl Eq for Ledger {}

impl Ledger {
    /// Returns a ledger of recorded mounts, without entries whose count is 0.
    #[must_use]
    pub fn from_records(mounts: impl IntoIterator<Item = Mount>) -> Self {
        let counted = mounts.into_iter().filter(|mount| mount.count > 0);
        Self(counted.map(|mount| Entry(Arc::new(mount))).collect())
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

    /// Returns the entries, in the order of host, ID and activation.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter().map(|entry| &*entry.0)
    }

    /// Returns the hosts that have the volume mounted, each once and in order. A host's entries are passed over at
    /// once, however many there are.
    pub fn hosts(&self) -> impl Iterator<Item = &HostName> {
        let first = self.0.get_min().map(|entry| &entry.0.host);
        std::iter::successors(first, |host| self.0.get_next(&After(host)).map(|entry| &entry.0.host))
    }

    /// Counts one Mount and returns its updated entry. `address` becomes the entry's if it has none.
    pub fn mount(
        &mut self,
        (host, address): (&HostName, Option<IpAddr>),
        id: &MountId,
        activation: Activation,
        now: OffsetDateTime,
    ) -> Mount {
        let known = self.0.get(&Place(host, id, activation)).map(|entry| Mount::clone(&entry.0));
        let mut mount = known.unwrap_or_else(|| Mount {
            host: host.clone(),
            id: id.clone(),
            activation,
            count: 0,
            since: now,
            unmounts: 0,
            address: None,
        });
        mount.count = mount.count.saturating_add(1);
        mount.address = mount.address.or(address);
        self.put(mount.clone());
        mount
    }

    /// Returns the entry on which an Unmount counts: the one with this host and ID and the newest activation, at most
    /// `until` if that is given.
    #[must_use]
    pub fn newest(&self, host: &HostName, id: &MountId, until: Option<Activation>) -> Option<&Mount> {
        let last = Place(host, id, until.unwrap_or(Activation(u64::MAX)));
        self.0.get_prev(&last).map(|entry| &*entry.0).filter(|mount| mount.host == *host && mount.id == *id)
    }

    /// Counts one Unmount on the [`newest`](Self::newest) entry. Returns the entry as it was before; `None` if the mount is
    /// unknown.
    pub fn unmount(&mut self, host: &HostName, id: &MountId, until: Option<Activation>) -> Option<Mount> {
        let before = self.newest(host, id, until)?.clone();
        self.count_down(Mount { unmounts: before.unmounts.saturating_add(1), ..before.clone() });
        Some(before)
    }

    /// Takes back a Mount whose answer the engine did not get. `counted` is its entry right after that Mount. Returns
    /// the entry as it was before this call; `None` if nothing is taken back.
    ///
    /// An Unmount that was counted on the entry since then may have been for this very Mount. Then nothing is taken
    /// back: a count that is too high is shown to the operator, and one that is too low loses data.
    pub fn take_back(&mut self, counted: &Mount) -> Option<Mount> {
        let same = |mount: &Mount| mount.since == counted.since && mount.unmounts == counted.unmounts;
        let before = self.get(counted).filter(|mount| same(mount))?.clone();
        self.count_down(before.clone());
        Some(before)
    }

    /// Returns the entry of the same host, ID and activation as `mount`.
    #[must_use]
    pub fn get(&self, mount: &Mount) -> Option<&Mount> {
        self.0.get(&mount.place()).map(|entry| &*entry.0)
    }

    /// Stores an entry with a count that is lower by one, and removes it once that is 0.
    fn count_down(&mut self, mut mount: Mount) {
        mount.count = mount.count.saturating_sub(1);
        if mount.count == 0 {
            self.0.remove(&mount.place());
        } else {
            self.put(mount);
        }
    }

    /// Stores an entry in place of the one with the same host, ID and activation. Its count must not be 0.
    pub fn put(&mut self, mount: Mount) {
        self.0.insert(Entry(Arc::new(mount)));
    }

    /// Removes the entry with this host, ID and activation, and returns it.
    pub fn remove(&mut self, host: &HostName, id: &MountId, activation: Activation) -> Option<Mount> {
        self.0.remove(&Place(host, id, activation)).map(|entry| Arc::unwrap_or_clone(entry.0))
    }

    /// Removes every entry that `which` chooses, and returns them.
    pub fn release(&mut self, mut which: impl FnMut(&Mount) -> bool) -> Vec<Mount> {
        let released: Vec<_> = self.iter().filter(|mount| which(mount)).cloned().collect();
        for mount in &released {
            self.0.remove(&mount.place());
        }
        released
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

    fn is_held(ledger: &Ledger, by: &HostName) -> bool {
        ledger.hosts().any(|host| host == by)
    }

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn docker_cp_repeats_a_live_id_without_releasing_it() {
        let mut ledger = Ledger::default();
        ledger.mount((&host("web1"), None), &id("x"), Activation(1), NOW);
        assert_eq!(ledger.mount((&host("web1"), None), &id("x"), Activation(1), NOW).count, 2);
        ledger.unmount(&host("web1"), &id("x"), None);
        assert!(is_held(&ledger, &host("web1")), "the container still runs");
        ledger.unmount(&host("web1"), &id("x"), None);
        assert!(ledger.is_empty());
    }

    #[test]
    fn a_restarted_engine_counts_afresh_beside_its_stale_mounts() {
        let mut ledger = Ledger::default();
        ledger.mount((&host("web1"), None), &id("x"), Activation(1), NOW);
        assert_eq!(ledger.mount((&host("web1"), None), &id("x"), Activation(2), NOW).count, 1);
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
        ledger.mount((&web1, None), &x, Activation(1), NOW);
        let lost = ledger.mount((&web1, None), &x, Activation(1), NOW);
        let lost_too = ledger.mount((&web1, None), &x, Activation(1), NOW);
        assert_eq!(ledger.take_back(&lost).unwrap().count, 3);
        assert_eq!(ledger.take_back(&lost_too).unwrap().count, 2, "the one before was no Unmount");

        let lost = ledger.mount((&web1, None), &x, Activation(1), NOW);
        ledger.unmount(&web1, &x, None);
        assert_eq!(ledger.take_back(&lost), None, "the engine may have unmounted it");
        assert!(is_held(&ledger, &web1), "the live mount was taken");

        ledger.unmount(&web1, &x, None);
        ledger.mount((&web1, None), &x, Activation(1), NOW + time::Duration::SECOND);
        assert_eq!(ledger.take_back(&lost), None, "this entry is another one");
    }

    #[test]
    fn an_unmount_of_another_host_takes_nothing() {
        let mut ledger = Ledger::default();
        ledger.mount((&host("web1"), None), &id("one-constant"), Activation(0), NOW);
        assert_eq!(ledger.unmount(&host("web2"), &id("one-constant"), None), None);
        assert!(is_held(&ledger, &host("web1")));
    }

    #[test]
    fn each_host_is_told_once_and_in_order() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.hosts().next(), None);
        for (by, number) in (0..100).flat_map(|number| ["web2", "web1", "web10"].map(|by| (by, number))) {
            ledger.mount((&host(by), None), &id(&format!("c{number}")), Activation(number % 3), NOW);
        }
        assert_eq!(ledger.len(), 300);
        assert_eq!(ledger.hosts().map(HostName::as_str).collect::<Vec<_>>(), ["web1", "web10", "web2"]);
    }

    #[test]
    fn ledgers_are_equal_if_all_of_their_entries_are() {
        let mut one = Ledger::default();
        one.mount((&host("web1"), None), &id("x"), Activation(1), NOW);
        let mut other = one.clone();
        assert_eq!(one, other);
        other.mount((&host("web1"), None), &id("x"), Activation(1), NOW);
        assert_ne!(one, other, "the same places with other counts");
        one.mount((&host("web1"), None), &id("x"), Activation(1), NOW);
        assert_eq!(one, other);
        let known = other.iter().next().unwrap().clone();
        other.put(Mount { host: host("web2"), ..known });
        assert_ne!(one, other);
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
                    ledger.mount((&name, None), &mount_id, Activation(activation), NOW);
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
