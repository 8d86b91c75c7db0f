//! The stored form of a catalog: one versioned JSON text under each key, the same for every engine.
//!
//! A record says `"v": 1`. What a later volhost wrote is refused rather than half understood, and so is every field
//! and every text that this one would not have written, because a record that is read is one day written back. Only
//! converts; stores nothing.

mod form;
mod load;

use std::borrow::Cow;
use std::error::Error;

use serde::Serialize;

use self::form::{BackendForm, HostForm, MountForm, RemovedForm, VolumeForm};
pub use self::load::{InvalidRow, Loader};
use super::rules::{MountKey, Write};

/// What a key belongs to.
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
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Volumes, Self::Mounts, Self::Removed, Self::Hosts, Self::Backends];

    /// The table's name.
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

    /// The names of a key's parts.
    #[must_use]
    pub fn key(self) -> &'static [&'static str] {
        match self {
            Self::Volumes | Self::Hosts | Self::Backends => &["name"],
            Self::Removed => &["id"],
            Self::Mounts => &["volume", "host", "id", "activation"],
        }
    }
}

/// A [`Write`] as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<'a> {
    /// Where.
    pub table: Table,
    /// Under which key: as many parts as [`Table::key`] names.
    pub key: Vec<Cow<'a, str>>,
    /// The record; `None` deletes the key.
    pub record: Option<String>,
}

/// Why a change cannot be written down.
#[derive(Debug, thiserror::Error)]
#[error("the record of {row} cannot be written")]
pub struct Unwritable {
    row: String,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

/// Writes a record down.
pub fn encode(write: &Write) -> Result<Row<'_>, Unwritable> {
    let (table, key, record) = match write {
        Write::Volume(name, volume) => {
            let record = volume.as_ref().map(|volume| json(&VolumeForm::of(volume)));
            (Table::Volumes, vec![name.as_str().into()], record)
        }
        Write::Mount(MountKey { volume, host, id, activation }, mount) => {
            let key = vec![
                volume.as_str().into(),
                host.as_str().into(),
                id.as_str().into(),
                activation.0.to_string().into(),
            ];
            let record = mount.as_ref().map(|mount| json(&MountForm::of(mount)));
            (Table::Mounts, key, record)
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

/// `table/key`, as messages name a row.
fn place(table: Table, key: &[impl AsRef<str>]) -> String {
    key.iter().fold(table.name().to_owned(), |text, part| text + "/" + part.as_ref())
}

fn json(record: &impl Serialize) -> Result<String, serde_json::Error> {
    serde_json::to_string(record)
}
