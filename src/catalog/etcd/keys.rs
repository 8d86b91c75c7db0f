//! The keys of a catalog in the cluster: one for each record (`/PREFIX/volumes/NAME`,
//! `/PREFIX/mounts/VOLUME/HOST/ID/ACTIVATION` and so on), and those through which instances know of each other.
//!
//! It only converts. A slash or a percent sign in a part of a key is percent-encoded, so that each key can be parsed.

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

/// A parsed key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A record: its table, and the parts of its key.
    Row(Table, Vec<String>),
    /// An instance's right to move a volume's directory.
    Claim(VolumeId),
    /// An instance that serves the catalog.
    Instance(Uuid),
    /// A key that only its writer reads: a slot, a node's name or an outbox's progress.
    Private,
    /// The key that every transaction writes.
    Head,
    /// The format of the records.
    Format,
    /// An import that is under way.
    Import,
    /// A key that this volhost does not write.
    Unknown,
}

impl Keys {
    pub(super) fn new(cluster: &Cluster) -> Self {
        Self { root: format!("/{}/", cluster.prefix) }
    }

    /// Returns the prefix of all keys.
    pub(super) fn root(&self) -> &str {
        &self.root
    }

    /// Returns the end of the range of all keys.
    pub(super) fn end(&self) -> String {
        range_end(&self.root)
    }

    /// Returns the end of the range of the keys that all instances read. The private keys come after it.
    pub(super) fn end_of_shared(&self) -> String {
        format!("{}~", self.root)
    }

    /// Returns the keys of each catalog that could contain this one: those with each shorter prefix.
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

    /// Returns the range of all claims.
    pub(super) fn all_claims(&self) -> (String, String) {
        self.all("moving")
    }

    /// Returns the range of all instances that serve.
    pub(super) fn all_instances(&self) -> (String, String) {
        self.all("instances")
    }

    /// Returns the range of all instances' slots.
    pub(super) fn all_slots(&self) -> (String, String) {
        self.all("~slots")
    }

    /// Returns the range of the progress of all instances' outboxes.
    pub(super) fn all_outbox_progress(&self) -> (String, String) {
        self.all("~spools")
    }

    /// Returns the ranges of all records, table by table.
    pub(super) fn tables(&self) -> [(String, String); Table::ALL.len()] {
        Table::ALL.map(|table| self.all(table.name()))
    }

    /// Returns the range of all keys of a kind.
    fn all(&self, kind: &str) -> (String, String) {
        let first = format!("{}{kind}/", self.root);
        let end = range_end(&first);
        (first, end)
    }

    pub(super) fn instances(&self) -> String {
        format!("{}instances/", self.root)
    }

    pub(super) fn instance(&self, id: Uuid) -> String {
        format!("{}{id}", self.instances())
    }

    /// Returns the prefix of all slots of an instance.
    pub(super) fn slots(&self, instance: Uuid) -> String {
        format!("{}~slots/{instance}/", self.root)
    }

    pub(super) fn slot(&self, instance: Uuid, number: usize) -> String {
        format!("{}{number:02}", self.slots(instance))
    }

    /// Returns the key that says which instance has a name.
    pub(super) fn node(&self, name: &str) -> String {
        format!("{}~nodes/{name}", self.root)
    }

    /// Returns the key that says up to which entry an instance's outbox was carried out.
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

    /// Returns the range of all hosts.
    pub(super) fn all_hosts(&self) -> (String, String) {
        self.all(Table::Hosts.name())
    }

    /// Returns the range of all mounts.
    pub(super) fn all_mounts(&self) -> (String, String) {
        self.all(Table::Mounts.name())
    }

    /// Returns the range of all mounts of a volume.
    pub(super) fn mounts(&self, volume: &VolumeName) -> (String, String) {
        let first = self.row(Table::Mounts, &[volume.as_str().into()]) + "/";
        let end = range_end(&first);
        (first, end)
    }

    /// Returns the ranges of all mounts of a volume by hosts other than this one.
    pub(super) fn mounts_of_others(&self, volume: &VolumeName, host: &HostName) -> [(String, String); 2] {
        let (first, end) = self.mounts(volume);
        let own = self.row(Table::Mounts, &[volume.as_str().into(), host.as_str().into()]) + "/";
        let after_own = range_end(&own);
        [(first, own), (after_own, end)]
    }

    /// Parses a key.
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
            "~slots" | "~spools" | "~nodes" => Key::Private,
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

/// Returns the end of the range of all keys that begin with `first`, which ends with a slash.
fn range_end(first: &str) -> String {
    let stem = first.strip_suffix('/').unwrap_or(first);
    // `0` is the character after the slash.
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
        Keys::new(&Cluster { members: vec!["a:1".into()], prefix: "store/volhost".into() })
    }

    proptest! {
        #[test]
        fn every_part_is_parsed_back(volume in "[a-z]{1,4}", id in "[^\\p{Cc}]{1,12}") {
            let parts = [volume.clone().into(), "web1".into(), id.clone().into(), "3".into()];
            let key = keys().row(Table::Mounts, &parts);
            let expected = vec![volume, "web1".into(), id, "3".into()];
            prop_assert_eq!(keys().parse(key.as_bytes()), Key::Row(Table::Mounts, expected));
        }
    }

    #[test]
    fn each_range_has_exactly_its_keys() {
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
    fn a_key_of_another_program_is_no_record() {
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
        assert_eq!(keys.parse(keys.slot(Uuid::nil(), 3).as_bytes()), Key::Private);
    }
}
