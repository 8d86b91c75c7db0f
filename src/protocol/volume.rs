//! The volume protocol: its wire types, and the operation of each verb.
//!
//! Field names and shapes are those of Docker's volume plugin protocol. `CreatedAt` is valid or absent, never
//! empty, and no list holds a null: both break dockerd's decoding.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::envelope::{Answer, decode};
use super::{EmptyBody, Protocol, Verb};
use crate::error::chain;
use crate::host::Caller;
use crate::model::options::Options;
use crate::model::timestamp::rfc3339;
use crate::model::volume::{MountId, VolumeName};
use crate::volume::{Error, List, Service, VolumeInfo};

/// The protocol's entry in [`PROTOCOLS`](super::PROTOCOLS).
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "VolumeDriver",
    verbs: &[
        asking("Capabilities", Call::Capabilities, EmptyBody::Arguments),
        changing("Create", Call::Create, EmptyBody::Mistake),
        asking("Get", Call::Get, EmptyBody::Lost),
        asking("List", Call::List, EmptyBody::Arguments),
        asking("Path", Call::Path, EmptyBody::Mistake),
        changing("Mount", Call::Mount, EmptyBody::Mistake),
        changing("Unmount", Call::Unmount, EmptyBody::Mistake),
        changing("Remove", Call::Remove, EmptyBody::Mistake),
    ],
};

const fn asking(name: &'static str, call: Call, empty: EmptyBody) -> Verb {
    Verb { name, call: super::Call::Volume(call), empty, survives_disconnect: false }
}

const fn changing(name: &'static str, call: Call, empty: EmptyBody) -> Verb {
    Verb { name, call: super::Call::Volume(call), empty, survives_disconnect: true }
}

/// The verbs of the volume protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Returns the driver's scope, from a constant.
    Capabilities,
    /// Creates a volume.
    Create,
    /// Returns one volume.
    Get,
    /// Returns all volumes that the host may see.
    List,
    /// Returns the path of a volume.
    Path,
    /// Begins a use of a volume.
    Mount,
    /// Ends a use of a volume.
    Unmount,
    /// Removes a volume.
    Remove,
}

#[derive(Deserialize)]
struct CreateRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    name: String,
    #[serde(rename = "Opts", default)]
    options: Option<RawOptions>,
}

/// Options as they came. Each name is accepted only once, because JSON would let a later value silently win
/// over an earlier one.
struct RawOptions(BTreeMap<String, String>);

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
struct NameRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    name: String,
}

#[derive(Deserialize)]
struct MountRequest {
    #[serde(rename = "Name", default, deserialize_with = "name")]
    name: String,
    #[serde(rename = "ID", default, deserialize_with = "id")]
    id: String,
}

#[derive(Serialize)]
struct EmptyReply {}

#[derive(Serialize)]
struct MountpointReply<'a> {
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

/// The fields that `docker volume inspect` shows of a volume beside its path.
#[derive(Serialize)]
struct Status<'a> {
    backend: &'a str,
    /// The backend's ID. With it a host can check that the directory at the mountpoint is really that
    /// backend.
    backend_id: Option<String>,
    backend_state: &'a str,
    mounts: usize,
    /// The hosts that have the volume mounted. A host that may neither mount nor remove it sees only itself.
    mounted_by: Vec<&'a str>,
}

#[derive(Serialize)]
struct GetReply<'a> {
    #[serde(rename = "Volume")]
    volume: Volume<'a>,
}

impl Call {
    /// Answers the verb. `body` is a JSON text that is not empty; `global` is the scope that Capabilities
    /// returns.
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
            Self::Get => Ok(get(service, caller, body).await),
            Self::List => Ok(list(service, caller).await),
            Self::Path => path(service, caller, body).await,
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
    let CreateRequest { name, options } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    let pairs = options.iter().flat_map(|RawOptions(pairs)| pairs).map(|(name, value)| (&**name, &**value));
    let options = Options::parse(pairs).map_err(Error::from)?;
    service.create(caller, name, options).await?;
    Ok(Answer::json(&EmptyReply {}))
}

/// Answers a Get. A failure in here must not be answered: dockerd would erase its labels of the volume.
async fn get(service: &Service, caller: &Caller, body: &[u8]) -> Answer {
    let answered = AssertUnwindSafe(async {
        let NameRequest { name } = decode(body)?;
        let seen = inspect(service, caller, &name).await?;
        Ok::<_, Answer>(Answer::json(&GetReply { volume: wire(&seen, Some(status(service, caller, &seen))) }))
    });
    match answered.catch_unwind().await {
        Ok(answer) => answer.unwrap_or_else(std::convert::identity),
        Err(_panic) => {
            log::error!("a Get broke off and is left without an answer");
            Answer::None
        }
    }
}

/// Returns the volume. That the volume does not exist may be answered; that the catalog cannot be reached may
/// not, because an engine would take any error for the end of the volume.
async fn inspect(service: &Service, caller: &Caller, name: &str) -> Result<VolumeInfo, Error> {
    service.inspect(caller, name).await.map_err(|error| match error {
        Error::Catalog(_) | Error::TooLong { .. } => {
            service.log_limit().warn("not known", &caller.host, || {
                format!("whether there is a volume {name:?} is not known: {}", chain(&error))
            });
            Error::Unknown
        }
        error => error,
    })
}

/// The size of one part of a long list, in bytes: it bounds the time and memory that one request takes at
/// once. A shorter list is answered in one piece.
const PART_BYTES: usize = 64 * 1024;

async fn list(service: &Service, caller: &Caller) -> Answer {
    let mut told = ListWriter { list: service.list(caller).await, any: false };
    let mut text = br#"{"Volumes":["#.to_vec();
    match told.part(&mut text) {
        Ok(false) => Answer::Json(text.into()),
        Ok(true) => {
            let rest = stream::unfold(Some(told), |told| async move {
                let mut told = told?;
                let mut text = Vec::new();
                Some(match told.part(&mut text) {
                    Ok(more) => (Ok(text.into()), more.then_some(told)),
                    // The answer has begun, so it breaks off; no client takes it for a whole one.
                    Err(error) => (Err(error), None),
                })
            });
            Answer::Parts(Box::pin(stream::once(async { Ok(text.into()) }).chain(rest)))
        }
        Err(error) => Answer::unwritten(&error),
    }
}

/// Writes a list as JSON, part by part.
struct ListWriter {
    list: List,
    any: bool,
}

impl ListWriter {
    /// Writes volumes until the part is full, and the end after the last volume. Returns true if volumes may
    /// be left.
    fn part(&mut self, text: &mut Vec<u8>) -> serde_json::Result<bool> {
        let mut written = Ok(());
        let any = &mut self.any;
        let more = self.list.more(|seen| {
            if std::mem::replace(any, true) {
                text.push(b',');
            }
            written = serde_json::to_writer(&mut *text, &wire(&seen, None));
            written.is_ok() && text.len() < PART_BYTES
        });
        written?;
        if !more {
            text.extend_from_slice(b"]}");
        }
        Ok(more)
    }
}

async fn path(service: &Service, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let NameRequest { name } = decode(body)?;
    let seen = inspect(service, caller, &name).await?;
    Ok(Answer::json(&MountpointReply { mountpoint: &seen.mountpoint }))
}

async fn mount(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let (name, id) = decode_mount(body)?;
    let counted = service.mount(caller, name, id).await?;
    Ok(match Answer::json(&MountpointReply { mountpoint: &counted.info().mountpoint }) {
        Answer::Json(bytes) => Answer::Mounted(bytes, Box::new(counted)),
        // If the path cannot be written as JSON, the mount is undone.
        other => other,
    })
}

async fn unmount(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let (name, id) = decode_mount(body)?;
    service.unmount(caller, &name, &id).await?;
    Ok(Answer::json(&EmptyReply {}))
}

async fn remove(service: &Arc<Service>, caller: &Caller, body: &[u8]) -> Result<Answer, Answer> {
    let NameRequest { name } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    service.remove(caller, name).await?;
    Ok(Answer::json(&EmptyReply {}))
}

fn decode_mount(body: &[u8]) -> Result<(VolumeName, MountId), Answer> {
    let MountRequest { name, id } = decode(body)?;
    let name = VolumeName::parse(&name).map_err(Error::from)?;
    let id = MountId::parse(&id).map_err(Error::from)?;
    Ok((name, id))
}

fn wire<'a>(seen: &'a VolumeInfo, status: Option<Status<'a>>) -> Volume<'a> {
    Volume {
        name: seen.volume.name.as_str(),
        mountpoint: &seen.mountpoint,
        created_at: rfc3339(seen.volume.created_at),
        status,
    }
}

fn status<'a>(service: &Service, caller: &Caller, seen: &'a VolumeInfo) -> Status<'a> {
    let volume = &seen.volume;
    let all = service.may_know_holders(caller, volume);
    let told = volume.mounts.iter().filter(|mount| all || mount.host == caller.host);
    let mut mounted_by: Vec<_> = told.map(|mount| mount.host.as_str()).collect();
    mounted_by.sort_unstable();
    mounted_by.dedup();
    Status {
        backend: volume.backend.as_str(),
        backend_id: service.backend_id(&volume.backend).map(|id| id.to_string()),
        backend_state: seen.backend_state,
        mounts: volume.mounts.len(),
        mounted_by,
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::Pin;
    use std::time::Duration;

    use super::*;
    use crate::backend;
    use crate::catalog::{self, Catalog, CatalogError, Change, sqlite};
    use crate::host::Via;
    use crate::host::access::Access;
    use crate::model::backend::BackendName;
    use crate::model::host::HostName;
    use crate::model::mounts::Ledger;
    use crate::model::volume::VolumeId;
    use crate::volume::InForce;

    /// Returns a configuration without backends that is open to every host.
    fn no_backends() -> InForce {
        InForce { map: backend::Map::default(), access: Access::default(), request: Duration::from_secs(20) }
    }

    /// A shared catalog that knows nothing, and is out of reach or broken.
    struct Away {
        broken: bool,
    }

    impl Catalog for Away {
        fn view(&self) -> Arc<catalog::View> {
            Arc::default()
        }

        fn submit(&self, _: Change) -> catalog::Submitted {
            Box::pin(ready(Err(CatalogError::Closed)))
        }

        fn sync(&self) -> catalog::Asked<()> {
            assert!(!self.broken, "on purpose");
            let why = Arc::new("no member answers".into());
            Box::pin(ready(Err(CatalogError::Unreachable { location: "the test's".into(), why })))
        }

        fn is_shared(&self) -> bool {
            true
        }

        fn location(&self) -> &str {
            "the test's"
        }

        fn fault(&self) -> Option<Arc<String>> {
            None
        }

        fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            Box::pin(ready(()))
        }
    }

    #[tokio::test]
    async fn what_cannot_be_known_is_left_without_an_answer() {
        let caller = Caller { host: HostName::parse("node1").unwrap(), via: Via::Tls, address: None };
        let service = |broken| Arc::new(Service::new(Arc::new(Away { broken }), no_backends()));
        for (call, broken) in [(Call::Get, false), (Call::Path, false), (Call::Get, true)] {
            let answer = call.answer(&service(broken), &caller, br#"{"Name":"db"}"#, false).await;
            assert!(matches!(answer, Answer::None | Answer::Unknown(_)), "{call:?}");
        }
        let wrong = Call::Get.answer(&service(true), &caller, br#"{"Name":"a b"}"#, false).await;
        assert!(
            !matches!(wrong, Answer::None | Answer::Unknown(_)),
            "what is no name is answered without the catalog"
        );
        let Answer::Json(list) = Call::List.answer(&service(false), &caller, b"{}", false).await else {
            panic!("a list is never refused");
        };
        assert_eq!(&list[..], br#"{"Volumes":[]}"#);
    }

    /// Makes each of `counts` volumes in turn and lists them each time. Returns the number of parts and the
    /// names.
    async fn listed(counts: impl IntoIterator<Item = usize>) -> Vec<(usize, Vec<String>)> {
        let dir = tempfile::tempdir().unwrap();
        let catalog: Arc<dyn Catalog> = Arc::new(sqlite::open(&dir.path().join("catalog.db")).unwrap());
        let service = Service::new(Arc::clone(&catalog), no_backends());
        let caller = Caller { host: HostName::parse("node1").unwrap(), via: Via::Admin, address: None };
        let mut made = 0;
        let mut all = Vec::new();
        for count in counts {
            while made < count {
                let name = VolumeName::parse(&format!("volume-{made:06}")).unwrap();
                let id = VolumeId::random();
                let volume = catalog::Volume {
                    id,
                    name: name.clone(),
                    backend: BackendName::parse("default").unwrap(),
                    options: Options::default(),
                    created_at: time::OffsetDateTime::UNIX_EPOCH,
                    adopted: false,
                    known_to: vec![caller.host.clone()],
                    mounts: Ledger::default(),
                    visible: false,
                    unconfirmed: false,
                };
                drop(catalog.submit(Change::Insert(volume)));
                let published = catalog.submit(Change::Publish(name, id));
                made += 1;
                if made == count {
                    published.await.unwrap();
                }
            }
            let parts: Vec<_> = match list(&service, &caller).await {
                Answer::Json(text) => vec![text],
                Answer::Parts(parts) => parts.map(Result::unwrap).collect().await,
                _ => panic!("a list is never refused"),
            };
            let text = parts.concat();
            let answer: Value = serde_json::from_slice(&text).unwrap();
            let names = answer["Volumes"].as_array().unwrap().iter();
            let names = names.map(|volume| volume["Name"].as_str().unwrap().to_owned()).collect();
            all.push((parts.len(), names));
        }
        all
    }

    #[tokio::test]
    async fn a_list_is_whole_in_however_many_parts_it_is_told() {
        // Counts around those at which a part is full: the end then comes in a part of its own.
        let counts: Vec<_> = [0, 1].into_iter().chain(730..760).chain([5000]).collect();
        let lists = listed(counts.iter().copied()).await;
        for ((parts, names), count) in lists.iter().zip(&counts) {
            let expected: Vec<_> = (0..*count).map(|number| format!("volume-{number:06}")).collect();
            assert_eq!(*names, expected, "{count} volumes in {parts} parts");
        }
        assert_eq!(lists[0].0, 1, "a short list is answered whole");
        assert!(
            lists.iter().any(|(parts, _)| *parts == 2),
            "{:?}",
            lists.iter().map(|(p, _)| p).collect::<Vec<_>>()
        );
        assert!(lists.last().unwrap().0 > 4);
    }
}
