//! The volume protocol: its verbs, and the operation of the service that each calls.
//!
//! [`wire`] has the JSON of requests and answers, [`list`] the answer to List. This module decides nothing about volumes.
//! `CreatedAt` is valid or absent, never empty, and no list holds a null: both break dockerd's decoding.

mod list;
mod wire;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::json;

use self::list::list;
use self::wire::{
    CreateRequest, EmptyReply, GetReply, MountRequest, MountpointReply, NameRequest, RawOptions, Status, wire,
};
use super::envelope::{Answer, decode};
use super::{EmptyBody, Protocol, Verb};
use crate::error::chain;
use crate::host::Caller;
use crate::model::host::HostName;
use crate::model::options::Options;
use crate::model::volume::{MountId, VolumeName};
use crate::volume::{Error, Service, VolumeInfo};

/// The protocol's entry in [`PROTOCOLS`](super::PROTOCOLS).
pub(crate) const PROTOCOL: Protocol = Protocol {
    name: "VolumeDriver",
    verbs: &[
        query("Capabilities", Call::Capabilities, EmptyBody::Arguments),
        mutation("Create", Call::Create, EmptyBody::Mistake),
        query("Get", Call::Get, EmptyBody::Lost),
        query("List", Call::List, EmptyBody::Arguments),
        query("Path", Call::Path, EmptyBody::Mistake),
        mutation("Mount", Call::Mount, EmptyBody::Mistake),
        mutation("Unmount", Call::Unmount, EmptyBody::Mistake),
        mutation("Remove", Call::Remove, EmptyBody::Mistake),
    ],
};

const fn query(name: &'static str, call: Call, empty: EmptyBody) -> Verb {
    Verb { name, call: super::Call::Volume(call), empty, survives_disconnect: false }
}

const fn mutation(name: &'static str, call: Call, empty: EmptyBody) -> Verb {
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

fn status<'a>(service: &Service, caller: &Caller, seen: &'a VolumeInfo) -> Status<'a> {
    let volume = &seen.volume;
    let all = service.may_know_holders(caller, volume);
    let told = volume.mounts.hosts().filter(|host| all || **host == caller.host);
    Status {
        backend: volume.backend.as_str(),
        backend_id: service.backend_id(&volume.backend).map(|id| id.to_string()),
        backend_state: seen.backend_state,
        mounts: volume.mounts.len(),
        mounted_by: told.map(HostName::as_str).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::Pin;

    use super::*;
    use crate::backend;
    use crate::catalog::{self, Catalog, CatalogError, Change};
    use crate::host::Via;
    use crate::host::access::Access;
    use crate::model::limits::Limits;
    use crate::volume::InForce;

    /// Returns a configuration without backends that is open to every host.
    pub(super) fn no_backends() -> InForce {
        InForce { map: backend::Map::default(), access: Access::default(), limits: Limits::default() }
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

        fn sync(&self) -> catalog::CatalogFuture<()> {
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
}
