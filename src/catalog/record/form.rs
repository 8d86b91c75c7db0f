//! The JSON of each record, version 1.
//!
//! Forms hold texts and numbers; [`load`](super::load) gives them their meaning.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::catalog::entities::{
    BackendRecord, BackendState, Certificate, CertificateUse, Cloned, Host, Removed, Volume,
};
use crate::catalog::rules::recorded_time;
use crate::model::mountpoints::Mountpoints;
use crate::model::mounts::Mount;

/// The version of all present records.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub(super) struct V1;

impl TryFrom<u64> for V1 {
    type Error = String;

    fn try_from(found: u64) -> Result<Self, String> {
        if found == 1 { Ok(Self) } else { Err(format!("the version {found} is not known")) }
    }
}

impl From<V1> for u64 {
    fn from(V1: V1) -> Self {
        1
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeForm<'a> {
    pub(super) v: V1,
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) backend: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) options: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) created_at: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) adopted: bool,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub(super) known_to: Vec<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unconfirmed: bool,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<Cow<'a, str>>,
}

impl<'a> VolumeForm<'a> {
    pub(super) fn of(volume: &'a Volume) -> Self {
        let Volume {
            id,
            name: _,
            backend,
            options,
            created_at,
            adopted,
            known_to,
            mounts: _,
            visible: _,
            unconfirmed,
        } = volume;
        Self {
            v: V1,
            id: id.to_string().into(),
            backend: backend.as_str().into(),
            options: options.given().map(|(name, value)| (name.into(), value.into())).collect(),
            created_at: written(*created_at),
            adopted: *adopted,
            known_to: known_to.iter().map(|host| host.as_str().into()).collect(),
            unconfirmed: unconfirmed.is_some(),
            directory: unconfirmed
                .as_ref()
                .and_then(|unconfirmed| unconfirmed.directory.map(|directory| directory.to_string().into())),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MountForm<'a> {
    pub(super) v: V1,
    pub(super) count: u32,
    #[serde(borrow)]
    pub(super) since: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub(super) unmounts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<IpAddr>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field over so")]
fn is_none(number: &u32) -> bool {
    *number == 0
}

impl MountForm<'_> {
    pub(super) fn of(mount: &Mount) -> Self {
        // The key holds the other fields.
        let Mount { host: _, id: _, activation: _, count, since, unmounts, address } = mount;
        Self { v: V1, count: *count, since: written(*since), unmounts: *unmounts, address: *address }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemovedForm<'a> {
    pub(super) v: V1,
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) at: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) expired: bool,
    #[serde(borrow)]
    pub(super) volume: VolumeForm<'a>,
}

impl<'a> RemovedForm<'a> {
    pub(super) fn of(removed: &'a Removed) -> Self {
        let Removed { volume, at, expired } = removed;
        Self {
            v: V1,
            name: volume.name.as_str().into(),
            at: written(*at),
            expired: *expired,
            volume: VolumeForm::of(volume),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HostForm<'a> {
    pub(super) v: V1,
    pub(super) activation: u64,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub(super) certificates: Vec<CertificateForm<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) revoked_at: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) last_seen: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) last_issuer: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) machine: Option<Uuid>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) renamed: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    pub(super) used: Vec<UsedForm<'a>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) cloned: Option<ClonedForm<'a>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) certain_from: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsedForm<'a> {
    #[serde(borrow)]
    pub(super) serial: Cow<'a, str>,
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClonedForm<'a> {
    #[serde(borrow)]
    pub(super) serial: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) since: Cow<'a, str>,
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CertificateForm<'a> {
    #[serde(borrow)]
    pub(super) serial: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) issuer: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub(super) issued_at: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) not_after: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) revoked: bool,
}

impl<'a> HostForm<'a> {
    pub(super) fn of(host: &'a Host) -> Self {
        let Host {
            activation,
            certificates,
            revoked_at,
            last_seen,
            last_issuer,
            machine,
            renamed,
            used,
            cloned,
            certain_from,
        } = host;
        let used = used.iter().map(|CertificateUse { serial, addresses }| UsedForm {
            serial: serial.as_str().into(),
            addresses: addresses.clone(),
        });
        let cloned = cloned.as_ref().map(|Cloned { serial, since, addresses }| ClonedForm {
            serial: serial.as_str().into(),
            since: written(*since),
            addresses: addresses.clone(),
        });
        Self {
            v: V1,
            activation: activation.0,
            certificates: certificates
                .iter()
                .map(|Certificate { serial, issuer, issued_at, not_after, revoked }| CertificateForm {
                    serial: serial.as_str().into(),
                    issuer: issuer.as_deref().map(Into::into),
                    issued_at: written(*issued_at),
                    not_after: written(*not_after),
                    revoked: *revoked,
                })
                .collect(),
            revoked_at: revoked_at.map(written),
            last_seen: last_seen.map(written),
            last_issuer: last_issuer.as_deref().map(Into::into),
            machine: *machine,
            renamed: renamed.as_ref().map(|name| name.as_str().into()),
            used: used.collect(),
            cloned,
            certain_from: certain_from.0,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendForm<'a> {
    pub(super) v: V1,
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    pub(super) state: StateForm,
    pub(super) mountpoint: Cow<'a, Path>,
    #[serde(borrow, default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) mountpoint_by_host: BTreeMap<Cow<'a, str>, Cow<'a, Path>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StateForm {
    Initialising,
    Established,
}

impl<'a> BackendForm<'a> {
    pub(super) fn of(backend: &'a BackendRecord) -> Self {
        let BackendRecord { id, state, mountpoints: Mountpoints { usual, by_host } } = backend;
        Self {
            v: V1,
            id: id.to_string().into(),
            state: match state {
                BackendState::Initialising => StateForm::Initialising,
                BackendState::Established => StateForm::Established,
            },
            mountpoint: usual.into(),
            mountpoint_by_host: by_host
                .iter()
                .map(|(host, path)| (host.as_str().into(), path.into()))
                .collect(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Returns a time as RFC 3339 in UTC with milliseconds.
fn written(at: OffsetDateTime) -> Cow<'static, str> {
    let at = recorded_time(at);
    let (date, time) = (at.date(), at.time());
    let (year, month, day) = (date.year(), u8::from(date.month()), date.day());
    let (hour, minute, second, milli) = time.as_hms_milli();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z").into()
}
