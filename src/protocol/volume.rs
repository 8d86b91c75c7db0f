//! The volume protocol: its wire types, and which operation answers which verb.
//!
//! Field names and shapes are those of Docker's volume plugin protocol. `CreatedAt` is filled or absent, never empty,
//! and no list holds a null: both break dockerd's decoding.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::envelope::{Answer, decode};
use super::{Empty, Protocol, Verb};
use crate::host::Caller;
use crate::volume::error::rfc3339;
use crate::volume::name::{MountId, VolumeName};
use crate::volume::options::Options;
use crate::volume::{Error, Seen, Service};

/// The protocol's entry in the list.
pub const PROTOCOL: Protocol = Protocol {
    name: "VolumeDriver",
    verbs: &[
        asking("Capabilities", Call::Capabilities, Empty::Arguments),
        changing("Create", Call::Create, Empty::Mistake),
        asking("Get", Call::Get, Empty::Lost),
        asking("List", Call::List, Empty::Arguments),
        asking("Path", Call::Path, Empty::Mistake),
        changing("Mount", Call::Mount, Empty::Mistake),
        changing("Unmount", Call::Unmount, Empty::Mistake),
        changing("Remove", Call::Remove, Empty::Mistake),
    ],
};

const fn asking(name: &'static str, call: Call, empty: Empty) -> Verb {
    Verb { name, call: super::Call::Volume(call), empty, lasting: false }
}

const fn changing(name: &'static str, call: Call, empty: Empty) -> Verb {
    Verb { name, call: super::Call::Volume(call), empty, lasting: true }
}

/// The verbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// What the driver can do: answered from a constant.
    Capabilities,
    /// A new volume.
    Create,
    /// One volume.
    Get,
    /// All volumes that the host may see.
    List,
    /// Where a volume lies.
    Path,
    /// A use of a volume begins.
    Mount,
    /// A use of a volume ends.
    Unmount,
    /// A volume goes.
    Remove,
}

#[derive(Deserialize)]
struct Create {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "Opts", default)]
    options: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Named {
    #[serde(rename = "Name", default)]
    name: String,
}

#[derive(Deserialize)]
struct Mounting {
    #[serde(rename = "Name", default)]
    name: String,
    #[serde(rename = "ID", default)]
    id: String,
}

#[derive(Serialize)]
struct Done {}

#[derive(Serialize)]
struct Mountpoint<'a> {
    #[serde(rename = "Mountpoint")]
    mountpoint: &'a Path,
}

#[derive(Serialize)]
struct Volume<'a> {
    #[serde(rename = "Name")]
    name: &'a str,
    #[serde(rename = "Mountpoint")]
    mountpoint: &'a Path,
    #[serde(rename = "CreatedAt")]
    created_at: String,
    #[serde(rename = "Status", skip_serializing_if = "Option::is_none")]
    status: Option<Map<String, Value>>,
}

#[derive(Serialize)]
struct Got<'a> {
    #[serde(rename = "Volume")]
    volume: Volume<'a>,
}

impl Call {
    /// Answers the verb. `body` is a JSON text that is not empty; `global` is the scope that Capabilities tells.
    pub(super) async fn answer(
        self,
        service: &Arc<Service>,
        caller: &Caller,
        body: &[u8],
        global: bool,
    ) -> Answer {
        let answered = match self {
            Self::Capabilities => Ok(capabilities(global)),
            Self::Create => create(service, caller, body).await,
            Self::Get => Ok(get(service, caller, body)),
            Self::List => Ok(list(service, caller)),
            Self::Path => path(service, caller, body),
            Self::Mount => mount(service, caller, body).await,
            Self::Unmount => unmount(service, caller, body).await,
            Self::Remove => remove(service, caller, body).await,
        };
        answered.unwrap_or_else(std::convert::identity)
    }
}

fn capabilities(global: bool) -> Answer {
    let scope = if global { "global" } else { "local" };
    Answer::json(&json!({ "Capabilities": { "Scope": scope } }))
}

async fn create(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let Create { name, options } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    let pairs = options.iter().flatten().map(|(name, value)| (&**name, &**value));
    let options = Options::parse(pairs).map_err(Error::from)?;
    service.create(caller, name, options).await?;
    Ok(Answer::json(&Done {}))
}

/// Whatever goes wrong in here must not be answered: it would cost an engine its labels.
fn get(service: &Service, caller: &Caller, body: &[u8]) -> Answer {
    let answered = catch_unwind(AssertUnwindSafe(|| {
        let Named { name } = decode(body)?;
        let seen = service.inspect(caller, &name)?;
        Ok::<_, Answer>(Answer::json(&Got { volume: wire(&seen, Some(status(&seen))) }))
    }));
    match answered {
        Ok(answer) => answer.unwrap_or_else(std::convert::identity),
        Err(_panic) => {
            log::error!("a Get broke off and is left without an answer");
            Answer::None
        }
    }
}

fn list(service: &Service, caller: &Caller) -> Answer {
    let mut seen = Vec::new();
    service.list(caller, |volume| seen.push(volume));
    let volumes: Vec<_> = seen.iter().map(|seen| wire(seen, None)).collect();
    Answer::json(&json!({ "Volumes": volumes }))
}

fn path(service: &Service, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let Named { name } = decode(body)?;
    let seen = service.inspect(caller, &name)?;
    Ok(Answer::json(&Mountpoint { mountpoint: &seen.mountpoint }))
}

async fn mount(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let (name, id) = mounting(body)?;
    let counted = service.mount(caller, name, id).await?;
    Ok(match Answer::json(&Mountpoint { mountpoint: &counted.seen().mountpoint }) {
        Answer::Json(bytes) => Answer::Mounted(bytes, Box::new(counted)),
        // A path that cannot be told is no mount, either.
        other => other,
    })
}

async fn unmount(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let (name, id) = mounting(body)?;
    service.unmount(caller, &name, &id).await?;
    Ok(Answer::json(&Done {}))
}

async fn remove(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let Named { name } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    service.remove(caller, name).await?;
    Ok(Answer::json(&Done {}))
}

fn mounting(body: &[u8]) -> Result<(VolumeName, MountId), Answer> {
    let Mounting { name, id } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    let id = MountId::parse(&id).map_err(Error::from)?;
    Ok((name, id))
}

fn wire(seen: &Seen, status: Option<Map<String, Value>>) -> Volume<'_> {
    Volume {
        name: seen.volume.name.as_str(),
        mountpoint: &seen.mountpoint,
        created_at: rfc3339(seen.volume.created_at),
        status,
    }
}

/// What `docker volume inspect` shows of a volume beside its place.
fn status(seen: &Seen) -> Map<String, Value> {
    let mut hosts: Vec<_> = seen.volume.mounts.iter().map(|mount| mount.host.as_str()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    let mut status = Map::new();
    status.insert("backend".into(), seen.volume.backend.as_str().into());
    status.insert("backend_state".into(), seen.backend_state.into());
    status.insert("mounts".into(), seen.volume.mounts.len().into());
    status.insert("mounted_by".into(), hosts.into());
    status
}
