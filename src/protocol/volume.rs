//! The volume protocol: its wire types, and which operation answers which verb.
//!
//! Field names and shapes are those of Docker's volume plugin protocol. `CreatedAt` is filled or absent, never empty,
//! and no list holds a null: both break dockerd's decoding.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

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
    options: Option<Pairs>,
}

/// Options as they came, each at most once: JSON would let a later one silently win over an earlier one.
struct Pairs(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of options, whose values are texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, String>()? {
                    match pairs.entry(name) {
                        Entry::Vacant(place) => {
                            place.insert(value);
                        }
                        Entry::Occupied(place) => {
                            let name: String = place.key().chars().take(100).collect();
                            return Err(A::Error::custom(format_args!("the option {name:?} is given twice")));
                        }
                    }
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Each)
    }
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
    status: Option<Status<'a>>,
}

/// What `docker volume inspect` shows of a volume beside its place.
#[derive(Serialize)]
struct Status<'a> {
    backend: &'a str,
    backend_state: &'a str,
    mounts: usize,
    mounted_by: Vec<&'a str>,
}

#[derive(Serialize)]
struct Listed<'a> {
    #[serde(rename = "Volumes")]
    volumes: Vec<Volume<'a>>,
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
    let pairs = options.iter().flat_map(|Pairs(pairs)| pairs).map(|(name, value)| (&**name, &**value));
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
    Answer::json(&Listed { volumes: seen.iter().map(|seen| wire(seen, None)).collect() })
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

fn wire<'a>(seen: &'a Seen, status: Option<Status<'a>>) -> Volume<'a> {
    Volume {
        name: seen.volume.name.as_str(),
        mountpoint: &seen.mountpoint,
        created_at: rfc3339(seen.volume.created_at),
        status,
    }
}

fn status(seen: &Seen) -> Status<'_> {
    let volume = &seen.volume;
    let mut mounted_by: Vec<_> = volume.mounts.iter().map(|mount| mount.host.as_str()).collect();
    mounted_by.sort_unstable();
    mounted_by.dedup();
    Status {
        backend: volume.backend.as_str(),
        backend_state: seen.backend_state,
        mounts: volume.mounts.len(),
        mounted_by,
    }
}
