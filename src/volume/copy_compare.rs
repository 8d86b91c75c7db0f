//! Compares a copy of the catalog with a view.

use std::io::BufRead;

use crate::catalog::record::Loader;
use crate::catalog::text::{self, Whole};
use crate::catalog::{Host, View, Volume, Write};
use crate::model::mounts::Ledger;

/// Reads a copy of this view; `None` if the text is not one. Holds one record at a time, however large the copy is.
pub(super) fn copy_of(input: impl BufRead, view: &View) -> Option<Whole> {
    let (mut records, mut reader, mut is_same) = (view.records(), Loader::default(), true);
    let whole = text::read(input, |table, key, record| {
        let key: Vec<_> = key.iter().map(String::as_str).collect();
        let found = reader.read(table, &key, record)?;
        is_same &= records.next().is_some_and(|record| is_same_record(&found, record));
        Ok(())
    });
    whole.ok().filter(|_| is_same && records.next().is_none())
}

/// Returns true if a record that was read equals the view's.
fn is_same_record(found: &Write, record: Write) -> bool {
    match (found, record) {
        (Write::Volume(name, found), Write::Volume(other, Some(volume))) => {
            // Compare as records are read: mounts are separate records, and visibility is not recorded.
            let volume = Volume { mounts: Ledger::default(), visible: true, ..Volume::clone(&volume) };
            *name == other && found.as_deref() == Some(&volume)
        }
        (Write::Host(name, found), Write::Host(other, host)) => *name == other && is_same_host(found, &host),
        (found, record) => *found == record,
    }
}

/// Returns true if two views have the same records.
pub(super) fn is_same(one: &View, other: &View) -> bool {
    let hosts =
        || {
            one.hosts.len() == other.hosts.len()
                && one.hosts.iter().zip(&other.hosts).all(|((name, host), (other_name, other))| {
                    name == other_name && is_same_host(host, other)
                })
        };
    one.volumes == other.volumes && one.trash == other.trash && one.backends == other.backends && hosts()
}

/// Returns true if two records of a host are the same. A change of the other fields, such as the time of
/// its last request or the addresses of a cloned host, is not worth a copy.
fn is_same_host(one: &Host, other: &Host) -> bool {
    // Without `..`: whoever adds a field decides here if its change is worth a copy.
    let Host {
        activation,
        certificates,
        revoked_at,
        last_seen: _,
        last_issuer: _,
        machine,
        renamed,
        used: _,
        cloned,
        certain_from,
    } = one;
    *activation == other.activation
        && *certificates == other.certificates
        && *revoked_at == other.revoked_at
        && *machine == other.machine
        && *renamed == other.renamed
        && cloned.is_some() == other.cloned.is_some()
        && *certain_from == other.certain_from
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use imbl::OrdMap;
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;
    use crate::catalog::record::Table;
    use crate::catalog::trash::Trash;
    use crate::catalog::{Cloned, Removed};
    use crate::model::host::HostName;

    const ROWS: &[(Table, &[&str], &str)] = &[
        (
            Table::Volumes,
            &["db"],
            r#"{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-000000000001","backend":"fast","created_at":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            Table::Mounts,
            &["db", "web1", "c1", "3"],
            r#"{"v":1,"count":2,"since":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            Table::Volumes,
            &["old"],
            r#"{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-000000000002","backend":"fast","created_at":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            Table::Removed,
            &["0b9e4a1c-9d0f-4d1b-8a55-000000000003"],
            r#"{"v":1,"name":"gone","at":"2026-01-02T03:04:05.678Z","volume":{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-000000000003","backend":"fast","created_at":"2026-01-02T03:04:05.678Z"}}"#,
        ),
        (Table::Hosts, &["web1"], r#"{"v":1,"activation":3}"#),
        (
            Table::Backends,
            &["fast"],
            r#"{"v":1,"id":"3b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","state":"established","mountpoint":"/mnt/fast"}"#,
        ),
    ];

    fn sample() -> View {
        let mut loader = Loader::default();
        for (table, key, record) in ROWS {
            loader.take(*table, key, record).unwrap();
        }
        loader.finish().unwrap()
    }

    fn is_copy(text: &str, view: &View) -> bool {
        copy_of(text.as_bytes(), view).is_some()
    }

    /// Returns the first record of a table, to be changed.
    fn first<K: Ord + Clone, V: Clone>(table: &mut OrdMap<K, Arc<V>>) -> &mut V {
        let name = table.keys().next().unwrap().clone();
        Arc::make_mut(table.get_mut(&name).unwrap())
    }

    #[test]
    fn a_copy_is_the_same_whenever_hosts_were_seen_and_while_volumes_are_made() {
        let (mut view, at) = (sample(), OffsetDateTime::UNIX_EPOCH);
        let text = text::compose(&view, Some(at)).unwrap();
        assert_eq!(copy_of(text.as_bytes(), &view).unwrap().at, Some(at));
        first(&mut view.hosts).last_seen = Some(OffsetDateTime::now_utc());
        first(&mut view.volumes).visible ^= true;
        assert!(is_copy(&text, &view));
    }

    #[test]
    fn a_copy_that_is_not_whole_or_differs_in_a_record_is_none() {
        type Difference = fn(&mut View);

        let view = sample();
        let text = text::compose(&view, None).unwrap();
        assert!(!is_copy("", &view));
        assert!(!is_copy(text.trim_end(), &view), "cut off");
        assert!(!is_copy(&text.replace("web1", "web9"), &view), "altered");
        let changes: &[(&str, Difference)] = &[
            ("a volume less", |view| drop(view.volumes.remove("old"))),
            ("a volume's record", |view| first(&mut view.volumes).unconfirmed = Some(Arc::default())),
            ("a mount less", |view| first(&mut view.volumes).mounts = Ledger::default()),
            ("a removed volume less", |view| view.trash = Trash::default()),
            ("a removed volume's record", |view| {
                let removed = Removed::clone(view.trash.values().next().unwrap());
                view.trash.insert(Arc::new(Removed { expired: !removed.expired, ..removed }));
            }),
            ("a host less", |view| view.hosts.clear()),
            ("a host's record", |view| first(&mut view.hosts).activation.0 += 1),
            ("a host's machine", |view| first(&mut view.hosts).machine = Some(Uuid::nil())),
            ("a host's new name", |view| {
                first(&mut view.hosts).renamed = Some(HostName::parse("web2").unwrap());
            }),
            ("a host that is cloned", |view| {
                let since = OffsetDateTime::UNIX_EPOCH;
                let cloned = Cloned { serial: "1f".into(), since, addresses: Vec::new() };
                first(&mut view.hosts).cloned = Some(cloned);
            }),
            ("a host that is cloned no more", |view| first(&mut view.hosts).certain_from.0 = 2),
            ("a backend less", |view| view.backends.clear()),
        ];
        for (what, change) in changes {
            let mut other = view.clone();
            change(&mut other);
            let text_of_other = text::compose(&other, None).unwrap();
            assert!(!is_copy(&text, &other) && !is_copy(&text_of_other, &view), "{what}");
        }
    }
}
