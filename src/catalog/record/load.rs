//! Reads stored rows back into a view.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::model::timestamp;
use serde::Deserialize;
use time::OffsetDateTime;

use super::form::{
    BackendForm, CertificateForm, ClonedForm, HostForm, MountForm, RemovedForm, StateForm, UsedForm, V1,
    VolumeForm,
};
use super::{Table, place};
use crate::catalog::entities::{
    BackendRecord, BackendState, Certificate, CertificateUse, Cloned, Host, Removed, Unconfirmed, Volume,
};
use crate::catalog::rules::{MountKey, RowKey, Write, recorded_time};
use crate::catalog::view::View;
use crate::model::backend::{BackendId, BackendName};
use crate::model::directory::DirectoryId;
use crate::model::host::HostName;
use crate::model::mountpoints::Mountpoints;
use crate::model::mounts::{Activation, Ledger, Mount};
use crate::model::options::Options;
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// Why a stored row cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRow {
    /// A later volhost wrote it.
    #[error(
        "row {row} has the version {found}, and this volhost knows 1: it was written by a newer volhost; run that one"
    )]
    Newer {
        /// The row, as `table/key`.
        row: String,
        /// Its version.
        found: u64,
    },
    /// It is not JSON as this volhost writes it.
    #[error("row {row} is not understood")]
    Malformed {
        /// The row, as `table/key`.
        row: String,
        /// The parser's error.
        #[source]
        source: serde_json::Error,
    },
    /// One of its texts has no valid meaning.
    #[error("row {row} has a {field} that is not understood")]
    Value {
        /// The row, as `table/key`.
        row: String,
        /// The field, or the part of the key.
        field: &'static str,
        /// Why it is invalid.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The key has a wrong number of parts.
    #[error("row {row} has a key of {parts} parts")]
    Key {
        /// The row, as `table/key`.
        row: String,
        /// The number of its parts.
        parts: usize,
    },
    /// It is a mount of a volume that does not exist.
    #[error("row {row} is a mount of a volume that is not there")]
    Orphan {
        /// The row, as `table/key`.
        row: String,
    },
}

/// Builds a view from stored rows in any order.
#[derive(Debug, Default)]
pub struct Loader {
    volumes: BTreeMap<VolumeName, Volume>,
    mounts: BTreeMap<VolumeName, Vec<Mount>>,
    view: View,
    hosts: HashMap<String, HostName>,
    backends: HashMap<String, BackendName>,
}

impl Loader {
    /// Adds one row.
    pub fn take(&mut self, table: Table, key: &[&str], record: &str) -> Result<(), InvalidRow> {
        match self.read(table, key, record)? {
            Write::Volume(name, volume) => {
                if let Some(volume) = volume {
                    self.volumes.insert(name, Arc::unwrap_or_clone(volume));
                }
            }
            Write::Mount(key, mount) => self.mounts.entry(key.volume).or_default().extend(mount),
            other => self.view.put(other),
        }
        Ok(())
    }

    /// Reads one row and returns the write that would store it. A volume is visible and has no mounts.
    pub fn read(&mut self, table: Table, key: &[&str], record: &str) -> Result<Write, InvalidRow> {
        let at = At { table, key };
        Ok(match (table, key) {
            (Table::Volumes, [name]) => {
                let name: VolumeName = at.read("name", name, VolumeName::parse)?;
                let volume = self.volume(&at, name.clone(), at.json(record)?)?;
                Write::Volume(name, Some(Arc::new(Volume { visible: true, ..volume })))
            }
            (Table::Mounts, [volume, host, id, activation]) => {
                let MountForm { v: V1, count, since, unmounts, address } = at.json(record)?;
                let mount = Mount {
                    host: self.host(&at, "host", host)?,
                    id: at.read("id", id, MountId::parse)?,
                    activation: Activation(at.exactly("activation", activation, u64::from_str)?),
                    count: at.read("count", "", |_| if count > 0 { Ok(count) } else { Err("it is 0") })?,
                    since: at.time("since", &since)?,
                    unmounts,
                    address,
                };
                let volume = at.read("volume", volume, VolumeName::parse)?;
                Write::Mount(MountKey::of(&volume, &mount), Some(mount))
            }
            (Table::Removed, [id]) => {
                let RemovedForm { v: V1, name, at: removed_at, expired, volume } = at.json(record)?;
                let id: VolumeId = at.exactly("id", id, VolumeId::from_str)?;
                let name = at.read("name", &name, VolumeName::parse)?;
                let volume = self.volume(&at, name, volume)?;
                if volume.id != id {
                    let source = format!("{} is not the key's", volume.id).into();
                    return Err(InvalidRow::Value { row: at.to_string(), field: "volume.id", source });
                }
                let removed = Removed { at: at.time("at", &removed_at)?, expired, volume: Arc::new(volume) };
                Write::Removed(id, Some(Arc::new(removed)))
            }
            (Table::Hosts, [name]) => {
                let name = self.host(&at, "name", name)?;
                let record: HostForm<'_> = at.json(record)?;
                let renamed = record.renamed.as_deref().map(|name| self.host(&at, "renamed", name));
                let host = Host { renamed: renamed.transpose()?, ..host(&at, record)? };
                Write::Host(name, Arc::new(host))
            }
            (Table::Backends, [name]) => {
                let name = self.backend(&at, "name", name)?;
                let BackendForm { v: V1, id, state, mountpoint, mountpoint_by_host } = at.json(record)?;
                let state = match state {
                    StateForm::Initialising => BackendState::Initialising,
                    StateForm::Established => BackendState::Established,
                };
                let id = at.read("id", &id, BackendId::from_str)?;
                let by_host = mountpoint_by_host.into_iter().map(|(host, path)| {
                    Ok((self.host(&at, "mountpoint_by_host", &host)?, path.into_owned()))
                });
                let by_host = by_host.collect::<Result<_, InvalidRow>>()?;
                let mountpoints = Mountpoints { usual: mountpoint.into_owned(), by_host };
                Write::Backend(name, Some(Arc::new(BackendRecord { id, state, mountpoints })))
            }
            (_, key) => return Err(InvalidRow::Key { row: at.to_string(), parts: key.len() }),
        })
    }

    /// Reads the key of one row.
    pub fn read_key(&mut self, table: Table, key: &[&str]) -> Result<RowKey, InvalidRow> {
        let at = At { table, key };
        Ok(match (table, key) {
            (Table::Volumes, [name]) => RowKey::Volume(at.read("name", name, VolumeName::parse)?),
            (Table::Mounts, [volume, host, id, activation]) => RowKey::Mount(MountKey {
                volume: at.read("volume", volume, VolumeName::parse)?,
                host: self.host(&at, "host", host)?,
                id: at.read("id", id, MountId::parse)?,
                activation: Activation(at.exactly("activation", activation, u64::from_str)?),
            }),
            (Table::Removed, [id]) => RowKey::Removed(at.exactly("id", id, VolumeId::from_str)?),
            (Table::Hosts, [name]) => RowKey::Host(self.host(&at, "name", name)?),
            (Table::Backends, [name]) => RowKey::Backend(self.backend(&at, "name", name)?),
            (_, key) => return Err(InvalidRow::Key { row: at.to_string(), parts: key.len() }),
        })
    }

    /// Returns the view of all rows that were added. Every volume is visible.
    pub fn finish(self) -> Result<View, InvalidRow> {
        let Self { mut volumes, mounts, mut view, hosts: _, backends: _ } = self;
        for (name, mounts) in mounts {
            let Some(volume) = volumes.get_mut(&name) else {
                return Err(InvalidRow::Orphan { row: format!("mounts/{name}") });
            };
            volume.mounts = Ledger::from_records(mounts);
        }
        view.volumes = volumes.into_iter().map(|(name, volume)| (name, Arc::new(volume))).collect();
        view.recount();
        Ok(view)
    }

    fn volume(
        &mut self,
        at: &At<'_>,
        name: VolumeName,
        record: VolumeForm<'_>,
    ) -> Result<Volume, InvalidRow> {
        let VolumeForm { v: V1, id, backend, options, created_at, adopted, known_to, unconfirmed, directory } =
            record;
        let directory = directory.map(|id| at.read("directory", &id, DirectoryId::from_str)).transpose()?;
        let pairs = options.iter().map(|(name, value)| (&**name, &**value));
        let mut options = at.read("options", "", |_| Options::parse(pairs))?;
        if let Some(backend) = &mut options.backend {
            *backend = self.backend(at, "options", backend.as_str())?;
        }
        let mut known_to =
            known_to.iter().map(|host| self.host(at, "known_to", host)).collect::<Result<Vec<_>, _>>()?;
        known_to.sort_unstable();
        known_to.dedup();
        known_to.shrink_to_fit();
        Ok(Volume {
            id: at.read("id", &id, VolumeId::from_str)?,
            name,
            backend: self.backend(at, "backend", &backend)?,
            options,
            created_at: at.time("created_at", &created_at)?,
            adopted,
            known_to,
            mounts: Ledger::default(),
            visible: false,
            unconfirmed: unconfirmed.then(|| Arc::new(Unconfirmed { directory })),
        })
    }

    /// Parses a host's name; equal names share one allocation.
    fn host(&mut self, at: &At<'_>, field: &'static str, text: &str) -> Result<HostName, InvalidRow> {
        if let Some(name) = self.hosts.get(text) {
            return Ok(name.clone());
        }
        let name = at.exactly(field, text, HostName::parse_or_anonymous)?;
        self.hosts.insert(text.into(), name.clone());
        Ok(name)
    }

    /// Parses a backend's name; equal names share one allocation.
    fn backend(&mut self, at: &At<'_>, field: &'static str, text: &str) -> Result<BackendName, InvalidRow> {
        if let Some(name) = self.backends.get(text) {
            return Ok(name.clone());
        }
        let name = at.read(field, text, BackendName::parse)?;
        self.backends.insert(text.into(), name.clone());
        Ok(name)
    }
}

/// The row being read, for error messages.
struct At<'a> {
    table: Table,
    key: &'a [&'a str],
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&place(self.table, self.key))
    }
}

impl At<'_> {
    fn json<'a, T: Deserialize<'a>>(&self, record: &'a str) -> Result<T, InvalidRow> {
        serde_json::from_str(record).map_err(|source| {
            // A newer record has unknown fields; its version explains more than the name of the first such field.
            match serde_json::from_str(record) {
                Ok(VersionAlone { v: found }) if found > 1 => {
                    InvalidRow::Newer { row: self.to_string(), found }
                }
                _ => InvalidRow::Malformed { row: self.to_string(), source },
            }
        })
    }

    fn read<T, E>(
        &self,
        field: &'static str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, InvalidRow>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        parse(text).map_err(|source| InvalidRow::Value {
            row: self.to_string(),
            field,
            source: source.into(),
        })
    }

    /// Parses a text that must be spelled exactly as volhost writes it: a part of a key with another spelling would
    /// never be overwritten or deleted.
    fn exactly<T: fmt::Display, E>(
        &self,
        field: &'static str,
        text: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<T, InvalidRow>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let value = self.read(field, text, parse)?;
        let spelling = value.to_string();
        let same =
            |_: &str| if spelling == text { Ok(()) } else { Err(format!("{text:?} would be {spelling:?}")) };
        self.read(field, text, same)?;
        Ok(value)
    }

    fn time(&self, field: &'static str, text: &str) -> Result<OffsetDateTime, InvalidRow> {
        self.read(field, text, timestamp::parse).map(recorded_time)
    }
}

fn host(at: &At<'_>, record: HostForm<'_>) -> Result<Host, InvalidRow> {
    let HostForm {
        v: V1,
        activation,
        certificates,
        revoked_at,
        last_seen,
        last_issuer,
        machine,
        // The caller parses it, so that names share their allocations.
        renamed: _,
        used,
        cloned,
        certain_from,
    } = record;
    let cloned = cloned.map(|ClonedForm { serial, since, addresses }| {
        Ok(Cloned { serial: serial.into_owned(), since: at.time("cloned", &since)?, addresses })
    });
    let used = used
        .into_iter()
        .map(|UsedForm { serial, addresses }| CertificateUse { serial: serial.into_owned(), addresses });
    let time = |field, text: Option<Cow<'_, str>>| text.map(|text| at.time(field, &text)).transpose();
    Ok(Host {
        activation: Activation(activation),
        certificates: certificates
            .into_iter()
            .map(|CertificateForm { serial, issuer, issued_at, not_after, revoked }| {
                Ok(Certificate {
                    serial: serial.into_owned(),
                    issuer: issuer.map(Cow::into_owned),
                    issued_at: at.time("issued_at", &issued_at)?,
                    not_after: at.time("not_after", &not_after)?,
                    revoked,
                })
            })
            .collect::<Result<_, _>>()?,
        revoked_at: time("revoked_at", revoked_at)?,
        last_seen: time("last_seen", last_seen)?,
        last_issuer: last_issuer.map(Cow::into_owned),
        machine,
        renamed: None,
        used: used.collect(),
        cloned: cloned.transpose()?,
        certain_from: Activation(certain_from),
    })
}

/// The version of a record, when nothing else of it may be known.
#[derive(Deserialize)]
struct VersionAlone {
    v: u64,
}
