//! The JSON of the volume protocol: what requests hold, and what answers look like.
//!
//! Names of fields and their shapes are those of Docker's volume plugin protocol. Nothing here knows the service.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::path::Path;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::model::timestamp::rfc3339;
use crate::volume::VolumeInfo;

#[derive(Deserialize)]
pub(super) struct CreateRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    pub(super) name: String,
    #[serde(rename = "Opts", default)]
    pub(super) options: Option<RawOptions>,
}

/// Options as they came. Each name is accepted only once, because JSON would let a later value silently win
/// over an earlier one.
pub(super) struct RawOptions(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for RawOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Each;

        impl<'de> Visitor<'de> for Each {
            type Value = RawOptions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object in Opts, of options whose values are texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawOptions, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    let value = text(value, || format!("the option {:?}", cut(&name)))?;
                    match pairs.entry(name) {
                        Entry::Vacant(place) => {
                            place.insert(value);
                        }
                        Entry::Occupied(place) => {
                            let name = cut(place.key());
                            return Err(A::Error::custom(format_args!("the option {name:?} is given twice")));
                        }
                    }
                }
                Ok(RawOptions(pairs))
            }
        }

        deserializer.deserialize_map(Each)
    }
}

/// Reads a value that must be a text. serde would say what was found, but not where. The JSON parser adds
/// line and column.
fn text<E: serde::de::Error>(value: Value, what: impl FnOnce() -> String) -> Result<String, E> {
    let found = match value {
        Value::String(text) => return Ok(text),
        Value::Number(number) => format!("(\"{number}\"), and this is the number {number}"),
        Value::Bool(flag) => format!("(\"{flag}\"), and this is {flag}"),
        Value::Null => "and this is null".into(),
        Value::Array(_) => "and this is a list".into(),
        Value::Object(_) => "and this is an object".into(),
    };
    Err(E::custom(format_args!("{} takes a text {found}", what())))
}

fn cut(name: &str) -> String {
    name.chars().take(100).collect()
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(Value::deserialize(deserializer)?, || "Name".into())
}

fn id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    text(Value::deserialize(deserializer)?, || "ID".into())
}

#[derive(Deserialize)]
pub(super) struct NameRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    pub(super) name: String,
}

#[derive(Deserialize)]
pub(super) struct MountRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    pub(super) name: String,
    #[serde(rename = "ID", default, deserialize_with = "id")]
    pub(super) id: String,
}

#[derive(Serialize)]
pub(super) struct EmptyReply {}

#[derive(Serialize)]
pub(super) struct MountpointReply<'a> {
    #[serde(rename = "Mountpoint")]
    pub(super) mountpoint: &'a Path,
}

#[derive(Serialize)]
pub(super) struct Volume<'a> {
    #[serde(rename = "Name")]
    pub(super) name: &'a str,
    #[serde(rename = "Mountpoint")]
    pub(super) mountpoint: &'a Path,
    #[serde(rename = "CreatedAt")]
    pub(super) created_at: String,
    #[serde(rename = "Status", skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<Status<'a>>,
}

/// The fields that `docker volume inspect` shows of a volume beside its path.
#[derive(Serialize)]
pub(super) struct Status<'a> {
    pub(super) backend: &'a str,
    /// The backend's ID. With it a host can check that the directory at the mountpoint is really that
    /// backend.
    pub(super) backend_id: Option<String>,
    pub(super) backend_state: &'a str,
    pub(super) mounts: usize,
    /// The hosts that have the volume mounted. A host that may neither mount nor remove it sees only itself.
    pub(super) mounted_by: Vec<&'a str>,
}

#[derive(Serialize)]
pub(super) struct GetReply<'a> {
    #[serde(rename = "Volume")]
    pub(super) volume: Volume<'a>,
}

pub(super) fn wire<'a>(seen: &'a VolumeInfo, status: Option<Status<'a>>) -> Volume<'a> {
    Volume {
        name: seen.volume.name.as_str(),
        mountpoint: &seen.mountpoint,
        created_at: rfc3339(seen.volume.created_at),
        status,
    }
}
