//! Where everything lies in the cluster: `/PREFIX/volumes/NAME`, `/PREFIX/mounts/VOLUME/HOST/ID/ACTIVATION` and so on,
//! one key for each record, beside those by which instances know of each other.
//!
//! Only converts. A part of a key that holds a slash or a percent sign is written with percent signs, so that each key
//! can be taken apart again.

use std::borrow::Cow;

use uuid::Uuid;

use crate::catalog::record::{self, Table};
use crate::catalog::{Cluster, RowKey};
use crate::model::host::HostName;
use crate::model::volume::{VolumeId, VolumeName};

/// How long a key under an instance's lease outlives the instance, in seconds.
pub(super) const TTL: i64 = 15;

/// The keys of one catalog.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// `/PREFIX/`.
    root: String,
}

/// A key, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A record's: its table and its key's parts.
    Row(Table, Vec<String>),
    /// That an instance moves a volume's directory.
    Claim(VolumeId),
    /// That an instance serves.
    Instance(Uuid),
    /// What only those who write it read again.
    Own,
    /// Changed by every transaction.
    Head,
    /// What the keys hold.
    Format,
    /// That a catalog is being made of a text.
    Import,
    /// Nothing that this volhost would have written.
    Unknown,
}

impl Keys {
    pub(super) fn of(cluster: &Cluster) -> Self {
        Self { root: format!("/{}/", cluster.prefix) }
    }

    /// What all keys begin with.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Behind the last key that can be.
    pub(super) fn end(&self) -> String {
        behind(&self.root)
    }

    /// Behind the last key that concerns all instances: what only its writer reads again comes after it.
    pub(super) fn end_of_common(&self) -> String {
        format!("{}~", self.root)
    }

    /// The keys of the catalogs that this one would lie in: those below each shorter prefix.
    pub(super) fn outer(&self) -> impl Iterator<Item = Self> + '_ {
        let ends = self.root.match_indices('/').skip(1).map(|(end, _)| end + 1);
        ends.filter_map(|end| self.root.get(..end).filter(|outer| outer.len() < self.root.len()))
            .map(|outer| Self { root: outer.into() })
    }

    pub(super) fn head(&self) -> String {
        format!("{}head", self.root)
    }

    pub(super) fn format(&self) -> String {
        format!("{}format", self.root)
    }

    pub(super) fn import(&self) -> String {
        format!("{}import", self.root)
    }

    pub(super) fn claim(&self, id: VolumeId) -> String {
        format!("{}moving/{id}", self.root)
    }

    /// The range of all claims.
    pub(super) fn all_claims(&self) -> (String, String) {
        self.all("moving")
    }

    /// The range of all instances that serve.
    pub(super) fn all_instances(&self) -> (String, String) {
        self.all("instances")
    }

    /// The range of all instances' slots.
    pub(super) fn all_slots(&self) -> (String, String) {
        self.all("~slots")
    }

    /// The range of what tells how far all instances' spools were carried out.
    pub(super) fn all_outbox_progress(&self) -> (String, String) {
        self.all("~spools")
    }

    /// The ranges of all records, table by table.
    pub(super) fn tables(&self) -> [(String, String); Table::ALL.len()] {
        Table::ALL.map(|table| self.all(table.name()))
    }

    /// The range of all keys of a kind.
    fn all(&self, kind: &str) -> (String, String) {
        let first = format!("{}{kind}/", self.root);
        let end = behind(&first);
        (first, end)
    }

    pub(super) fn instances(&self) -> String {
        format!("{}instances/", self.root)
    }

    pub(super) fn instance(&self, id: Uuid) -> String {
        format!("{}{id}", self.instances())
    }

    /// What all slots of an instance begin with.
    pub(super) fn slots(&self, instance: Uuid) -> String {
        format!("{}~slots/{instance}/", self.root)
    }

    pub(super) fn slot(&self, instance: Uuid, number: usize) -> String {
        format!("{}{number:02}", self.slots(instance))
    }

    /// Which instance has a name.
    pub(super) fn node(&self, name: &str) -> String {
        format!("{}~nodes/{name}", self.root)
    }

    /// How far an instance's spool was carried out.
    pub(super) fn outbox_progress(&self, instance: Uuid) -> String {
        format!("{}~spools/{instance}", self.root)
    }

    pub(super) fn row(&self, table: Table, parts: &[Cow<'_, str>]) -> String {
        let mut key = format!("{}{}", self.root, table.name());
        for part in parts {
            key.push('/');
            push_escaped(&mut key, part);
        }
        key
    }

    pub(super) fn of_row(&self, row: &RowKey) -> String {
        let (table, parts) = record::key(row);
        self.row(table, &parts)
    }

    pub(super) fn backends(&self) -> (String, String) {
        self.all(Table::Backends.name())
    }

    /// The range of all hosts.
    pub(super) fn all_hosts(&self) -> (String, String) {
        self.all(Table::Hosts.name())
    }

    /// The range of all mounts.
    pub(super) fn all_mounts(&self) -> (String, String) {
        self.all(Table::Mounts.name())
    }

    /// The range of all mounts of a volume.
    pub(super) fn mounts(&self, volume: &VolumeName) -> (String, String) {
        let first = self.row(Table::Mounts, &[volume.as_str().into()]) + "/";
        let end = behind(&first);
        (first, end)
    }

    /// The ranges of all mounts of a volume by other hosts.
    pub(super) fn mounts_of_others(&self, volume: &VolumeName, host: &HostName) -> [(String, String); 2] {
        let (first, end) = self.mounts(volume);
        let own = self.row(Table::Mounts, &[volume.as_str().into(), host.as_str().into()]) + "/";
        let behind_own = behind(&own);
        [(first, own), (behind_own, end)]
    }

    /// Takes a key apart.
    pub(super) fn parse(&self, key: &[u8]) -> Key {
        let Some(rest) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(&self.root)) else {
            return Key::Unknown;
        };
        match rest {
            "head" => return Key::Head,
            "format" => return Key::Format,
            "import" => return Key::Import,
            _ => {}
        }
        let Some((kind, rest)) = rest.split_once('/') else { return Key::Unknown };
        match kind {
            "moving" => rest.parse().map_or(Key::Unknown, Key::Claim),
            "instances" => rest.parse().map_or(Key::Unknown, Key::Instance),
            "~slots" | "~spools" | "~nodes" => Key::Own,
            _ => {
                let Some(table) = Table::ALL.into_iter().find(|table| table.name() == kind) else {
                    return Key::Unknown;
                };
                let parts: Option<Vec<_>> = rest.split('/').map(unescaped).collect();
                match parts {
                    Some(parts) if parts.len() == table.key().len() => Key::Row(table, parts),
                    _ => Key::Unknown,
                }
            }
        }
    }
}

/// The end of the range of all keys that begin with `first`, which ends with a slash.
fn behind(first: &str) -> String {
    let stem = first.strip_suffix('/').unwrap_or(first);
    // The character that follows the slash.
    format!("{stem}0")
}

fn push_escaped(key: &mut String, part: &str) {
    for character in part.chars() {
        match character {
            '/' => key.push_str("%2F"),
            '%' => key.push_str("%25"),
            plain => key.push(plain),
        }
    }
}

fn unescaped(part: &str) -> Option<String> {
    let mut text = String::with_capacity(part.len());
    let mut rest = part;
    while let Some((plain, escaped)) = rest.split_once('%') {
        text.push_str(plain);
        if let Some(after) = escaped.strip_prefix("2F") {
            text.push('/');
            rest = after;
        } else if let Some(after) = escaped.strip_prefix("25") {
            text.push('%');
            rest = after;
        } else {
            return None;
        }
    }
    text.push_str(rest);
    Some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> Keys {
        Keys::of(&Cluster { members: vec!["a:1".into()], prefix: "store/volhost".into() })
    }

    proptest! {
        #[test]
        fn every_part_comes_back(volume in "[a-z]{1,4}", id in "[^\\p{Cc}]{1,12}") {
            let parts = [volume.clone().into(), "web1".into(), id.clone().into(), "3".into()];
            let key = keys().row(Table::Mounts, &parts);
            let expected = vec![volume, "web1".into(), id, "3".into()];
            prop_assert_eq!(keys().parse(key.as_bytes()), Key::Row(Table::Mounts, expected));
        }
    }

    #[test]
    fn ranges_hold_what_they_should_and_nothing_else() {
        let keys = keys();
        let (volume, host) = (VolumeName::parse("db").unwrap(), HostName::parse("web1").unwrap());
        let of = |volume: &str, host: &str| {
            keys.row(Table::Mounts, &[volume.into(), host.into(), "x".into(), "0".into()])
        };
        let within = |(first, end): &(String, String), key: &String| first <= key && key < end;
        let all = keys.mounts(&volume);
        let others = keys.mounts_of_others(&volume, &host);
        for by in ["web1", "web0", "web10", "web1.example", "web1-a", "a", "z"] {
            assert!(within(&all, &of("db", by)), "{by}");
            let in_others = others.iter().any(|range| within(range, &of("db", by)));
            assert_eq!(in_others, by != "web1", "{by}");
            for other in ["d", "db1", "db-x", "db.x", "dc"] {
                assert!(!within(&all, &of(other, by)), "{other}");
            }
        }
        let backends = keys.backends();
        assert!(within(&backends, &keys.row(Table::Backends, &["fast".into()])));
        assert!(!within(&backends, &keys.row(Table::Hosts, &["fast".into()])));
    }

    #[test]
    fn what_is_not_ours_is_not_taken_for_a_record() {
        let keys = keys();
        for key in [
            "volumes",
            "volumes/",
            "volumes/a/b",
            "mounts/db/web1/x",
            "mounts/db/web1/%2/0",
            "other/x",
            "moving/x",
        ] {
            let parsed = keys.parse(format!("/store/volhost/{key}").as_bytes());
            let empty = Key::Row(Table::Volumes, vec![String::new()]);
            assert!(parsed == Key::Unknown || (key == "volumes/" && parsed == empty), "{key}: {parsed:?}");
        }
        assert_eq!(keys.parse(b"/store/volhosts/volumes/db"), Key::Unknown);
        assert_eq!(keys.parse(b"\xff"), Key::Unknown);
        assert_eq!(keys.parse(keys.head().as_bytes()), Key::Head);
        assert_eq!(keys.parse(keys.slot(Uuid::nil(), 3).as_bytes()), Key::Own);
    }
}
