//! The stored form of a catalog: one versioned JSON text under each key, the same for every engine.
//!
//! A record says `"v": 1`. A record of a later volhost is refused rather than half understood, and so is every field
//! and every text that this one would not have written, because a record that is read is written back one day. This
//! module only converts; it stores nothing.

mod form;
mod load;

use std::borrow::Cow;
use std::error::Error;

use serde::Serialize;

use self::form::{BackendForm, HostForm, MountForm, RemovedForm, VolumeForm};
pub use self::load::{InvalidRow, Loader};
use super::rules::{MountKey, RowKey, Write};

/// The table of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Volumes; the key is the name.
    Volumes,
    /// Ledger entries; the key is volume, host, ID and activation.
    Mounts,
    /// Removed volumes; the key is the identity.
    Removed,
    /// Hosts; the key is the name.
    Hosts,
    /// Backends; the key is the name.
    Backends,
}

impl Table {
    /// Every table.
    pub const ALL: [Self; 5] = [Self::Volumes, Self::Mounts, Self::Removed, Self::Hosts, Self::Backends];

    /// Returns the table's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Volumes => "volumes",
            Self::Mounts => "mounts",
            Self::Removed => "removed",
            Self::Hosts => "hosts",
            Self::Backends => "backends",
        }
    }

    /// Returns the names of a key's parts.
    #[must_use]
    pub fn key(self) -> &'static [&'static str] {
        match self {
            Self::Volumes | Self::Hosts | Self::Backends => &["name"],
            Self::Removed => &["id"],
            Self::Mounts => &["volume", "host", "id", "activation"],
        }
    }
}

/// A [`Write`] in its stored form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// The table that it belongs to.
    pub table: Table,
    /// The key, with the parts that [`Table::key`] names.
    pub key: Vec<Cow<'a, str>>,
    /// The record; `None` deletes the key.
    pub record: Option<String>,
}

/// Why a change cannot be stored.
#[derive(Debug, thiserror::Error)]
#[error("the record of {row} cannot be written")]
pub struct Unwritable {
    row: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Returns the stored form of a write.
pub fn encode(write: &Write) -> Result<Row<'_>, Unwritable> {
    let (table, key, record) = match write {
        Write::Volume(name, volume) => {
            let record = volume.as_ref().map(|volume| json(&VolumeForm::of(volume)));
            (Table::Volumes, vec![name.as_str().into()], record)
        }
        Write::Mount(key, mount) => {
            let record = mount.as_ref().map(|mount| json(&MountForm::of(mount)));
            (Table::Mounts, mount_key(key), record)
        }
        Write::Removed(id, removed) => {
            let record = removed.as_ref().map(|removed| json(&RemovedForm::of(removed)));
            (Table::Removed, vec![id.to_string().into()], record)
        }
        Write::Host(name, host) => {
            (Table::Hosts, vec![name.as_str().into()], Some(json(&HostForm::of(host))))
        }
        Write::Backend(name, backend) => {
            let record = backend.as_ref().map(|backend| json(&BackendForm::of(backend)));
            (Table::Backends, vec![name.as_str().into()], record)
        }
    };
    let record =
        record.transpose().map_err(|source| Unwritable { row: place(table, &key), source: source.into() })?;
    Ok(Row { table, key, record })
}

/// Returns where a record is stored: its table, and its key's parts.
#[must_use]
pub fn key(row: &RowKey) -> (Table, Vec<Cow<'_, str>>) {
    match row {
        RowKey::Volume(name) => (Table::Volumes, vec![name.as_str().into()]),
        RowKey::Mount(key) => (Table::Mounts, mount_key(key)),
        RowKey::Removed(id) => (Table::Removed, vec![id.to_string().into()]),
        RowKey::Host(name) => (Table::Hosts, vec![name.as_str().into()]),
        RowKey::Backend(name) => (Table::Backends, vec![name.as_str().into()]),
    }
}

fn mount_key(key: &MountKey) -> Vec<Cow<'_, str>> {
    let MountKey { volume, host, id, activation } = key;
    vec![volume.as_str().into(), host.as_str().into(), id.as_str().into(), activation.0.to_string().into()]
}

/// Returns `table/key`, as messages name a row.
fn place(table: Table, key: &[impl AsRef<str>]) -> String {
    key.iter().fold(table.name().to_owned(), |text, part| text + "/" + part.as_ref())
}

fn json(record: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys and records of version 1, as they were first written: every later version must understand them.
    const VERSION_1: &[(Table, &[&str], &str)] = &[
        (
            Table::Volumes,
            &["db"],
            r#"{"v":1,"id":"0b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"fast","options":{"backend":"fast","mode":"0750","uid":"70"},"created_at":"2026-01-02T03:04:05.678Z","adopted":true,"known_to":["anonymous","web1"]}"#,
        ),
        (
            Table::Volumes,
            &["plain"],
            r#"{"v":1,"id":"1b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"default","created_at":"2026-01-02T03:04:05.000Z"}"#,
        ),
        (
            Table::Volumes,
            &["unconfirmed"],
            r#"{"v":1,"id":"4b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"default","created_at":"2026-01-02T03:04:05.000Z","unconfirmed":true}"#,
        ),
        (
            Table::Volumes,
            &["new"],
            r#"{"v":1,"id":"5b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"default","created_at":"2026-01-02T03:04:05.000Z","unconfirmed":true,"directory":"12@1790000000.123456789"}"#,
        ),
        (
            Table::Mounts,
            &["db", "web1", "fc63179f", "3"],
            r#"{"v":1,"count":2,"since":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            Table::Removed,
            &["2b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e"],
            r#"{"v":1,"name":"db","at":"2026-01-02T03:04:05.678Z","volume":{"v":1,"id":"2b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","backend":"fast","created_at":"2026-01-02T03:04:05.678Z"}}"#,
        ),
        (
            Table::Hosts,
            &["web1"],
            r#"{"v":1,"activation":3,"certificates":[{"serial":"a1","issued_at":"2026-01-02T03:04:05.678Z","not_after":"2036-01-02T03:04:05.678Z","revoked":true}],"revoked_at":"2026-01-02T03:04:05.678Z","last_seen":"2026-01-02T03:04:05.678Z"}"#,
        ),
        (
            Table::Hosts,
            &["web2"],
            r#"{"v":1,"activation":0,"certificates":[{"serial":"a2","issuer":"O=volhost, CN=a CA","issued_at":"2026-01-02T03:04:05.678Z","not_after":"2036-01-02T03:04:05.678Z"}],"last_issuer":"O=volhost, CN=a CA"}"#,
        ),
        (Table::Hosts, &["anonymous"], r#"{"v":1,"activation":0}"#),
        (
            Table::Hosts,
            &["web3"],
            r#"{"v":1,"activation":4,"used":[{"serial":"a3","addresses":["10.0.0.1","fd00::1"]}],"cloned":{"serial":"a2","since":"2026-01-02T03:04:05.678Z","addresses":["10.0.0.1","10.0.0.2"]},"certain_from":2}"#,
        ),
        (
            Table::Hosts,
            &["store1"],
            r#"{"v":1,"activation":0,"machine":"5b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e"}"#,
        ),
        (Table::Hosts, &["store0"], r#"{"v":1,"activation":0,"renamed":"store1"}"#),
        (
            Table::Mounts,
            &["db", "web3", "fc63179f", "3"],
            r#"{"v":1,"count":2,"since":"2026-01-02T03:04:05.678Z","address":"10.0.0.1"}"#,
        ),
        (
            Table::Backends,
            &["fast"],
            r#"{"v":1,"id":"3b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e","state":"established","mountpoint":"/mnt/fast"}"#,
        ),
    ];

    #[test]
    fn version_1_is_read_and_written_to_the_letter() {
        let mut loader = Loader::default();
        for (table, key, record) in VERSION_1 {
            loader.take(*table, key, record).unwrap();
        }
        let view = loader.finish().unwrap();
        let writes: Vec<_> = view.records().collect();
        assert_eq!(writes.len(), VERSION_1.len());
        for write in &writes {
            let row = encode(write).unwrap();
            let (_, _, record) = VERSION_1
                .iter()
                .find(|(table, key, _)| *table == row.table && row.key.iter().eq(key.iter()))
                .unwrap_or_else(|| panic!("{row:?} was not there"));
            assert_eq!(row.record.as_deref(), Some(*record));
        }
    }

    #[test]
    fn equal_names_share_their_text() {
        let mut loader = Loader::default();
        for (table, key, record) in VERSION_1 {
            loader.take(*table, key, record).unwrap();
        }
        let view = loader.finish().unwrap();
        let volume = view.volume("db").unwrap();
        let removed = view.removed("db").unwrap();
        assert_eq!(volume.backend.as_str().as_ptr(), removed.volume.backend.as_str().as_ptr());
        assert_eq!(
            volume.backend.as_str().as_ptr(),
            volume.options.backend.as_ref().unwrap().as_str().as_ptr()
        );
        let mount = volume.mounts.iter().next().unwrap();
        assert_eq!(volume.known_to[1].as_str().as_ptr(), mount.host.as_str().as_ptr());
    }

    #[test]
    fn what_is_not_understood_is_refused_and_named() {
        let id = "2b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e";
        let volume = |rest: &str| {
            format!(r#"{{"v":1,"id":"{id}","backend":"fast","created_at":"2026-01-02T03:04:05.678Z"{rest}}}"#)
        };
        let mount = r#"{"v":1,"count":1,"since":"2026-01-02T03:04:05.678Z"}"#;
        let cases: &[(Table, &[&str], String, &str)] = &[
            (Table::Volumes, &["db"], r#"{"v":2,"tags":[]}"#.into(), "row volumes/db has the version 2"),
            (Table::Volumes, &["db"], volume(r#","tags":[]"#), "unknown field `tags`"),
            (Table::Volumes, &["db"], volume("").replace(r#""v":1,"#, ""), "missing field `v`"),
            (
                Table::Volumes,
                &["db"],
                volume("").replace("fast", "../fast"),
                "volumes/db has a backend that is not",
            ),
            (
                Table::Volumes,
                &["db"],
                volume("").replace("2026", "x"),
                "volumes/db has a created_at that is not",
            ),
            (Table::Volumes, &["db"], volume(r#","options":{"size":"1"}"#), "unknown option \"size\""),
            (Table::Volumes, &["../db"], volume(""), "row volumes/../db has a name that is not"),
            (Table::Volumes, &["db"], String::new(), "row volumes/db is not understood"),
            (Table::Volumes, &[], volume(""), "row volumes has a key of 0 parts"),
            (Table::Mounts, &["db"], mount.into(), "row mounts/db has a key of 1 parts"),
            (Table::Mounts, &["db", "web1", "x", "03"], mount.into(), "\"03\" would be \"3\""),
            (Table::Mounts, &["db", "WEB1", "x", "3"], mount.into(), "\"WEB1\" would be \"web1\""),
            (
                Table::Mounts,
                &["db", "web1", "x", "3"],
                mount.replace(":1,\"s", ":0,\"s"),
                "a count that is not",
            ),
            (
                Table::Mounts,
                &["db", "web1", "x", "3"],
                mount.into(),
                "mounts/db is a mount of a volume that is not",
            ),
            (
                Table::Removed,
                &["3b9e4a1c-9d0f-4d1b-8a55-0c6f4f1c2d3e"],
                format!(r#"{{"v":1,"name":"db","at":"2026-01-02T03:04:05.678Z","volume":{}}}"#, volume("")),
                "is not the key's",
            ),
            (
                Table::Backends,
                &["fast"],
                r#"{"v":18446744073709551615}"#.into(),
                "backends/fast has the version",
            ),
        ];
        for (table, key, record, expected) in cases {
            let mut loader = Loader::default();
            let error =
                loader.take(*table, key, record).and_then(|()| loader.finish().map(drop)).unwrap_err();
            let text = crate::error::chain(&error);
            assert!(text.contains(expected), "{text}");
        }
    }
}
