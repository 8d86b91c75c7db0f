//! Docker's plugin protocol: JSON over `POST /PROTOCOL.VERB`.
//!
//! [`PROTOCOLS`] lists every protocol served; the routes and the answer to `/Plugin.Activate` are derived from it.
//! This room alone words the JSON that engines get. It decides nothing about volumes.
//!
//! An answer is never an `Err` with status 200 (podman takes that for success), and where the truth cannot be known
//! the connection is closed without an answer: dockerd takes any answered error to a Get for "no such volume" and
//! erases its own labels and options of it.

pub mod envelope;
pub(crate) mod volume;

use std::panic::resume_unwind;
use std::sync::Arc;

use bytes::Bytes;
use warp::Filter;
use warp::reply::Response;

use self::envelope::{Answer, Refusal};
use crate::host::Caller;
use crate::transport::LetIn;
use crate::volume::Service;

/// A protocol: the name that engines know it by, and what answers its verbs.
pub struct Protocol {
    /// The name in `Implements` and before the dot of a path.
    pub name: &'static str,
    /// Its verbs.
    pub verbs: &'static [Verb],
}

/// One verb of a protocol.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    /// What stands behind the dot of a path.
    pub name: &'static str,
    /// What it does.
    pub call: Call,
    /// What an empty body stands for: engines repeat a call with an empty body when the first attempt used it up.
    pub empty: Empty,
    /// Whether it changes something, and so is carried through although its client has gone.
    pub lasting: bool,
}

/// How an empty body is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// As `{}`: the verb has no arguments.
    Arguments,
    /// As a mistake of the caller.
    Mistake,
    /// As a repetition whose arguments were lost: any answer could be taken for the truth, so there is none.
    Lost,
}

/// What a verb does, protocol by protocol.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// A verb of the volume protocol.
    Volume(volume::Call),
}

/// The protocols served, in the order in which Activate lists them.
pub const PROTOCOLS: &[Protocol] = &[volume::PROTOCOL];

const ACTIVATE: &str = "/Plugin.Activate";

/// What answers requests.
pub struct Protocols {
    service: Arc<Service>,
    settings: Arc<dyn Fn() -> Settings + Send + Sync>,
    activation: Bytes,
    room: envelope::Room,
}

/// What the configuration says of requests.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The most bytes that a body may have.
    pub body_bytes: u64,
    /// How long a body may take to arrive.
    pub request: std::time::Duration,
    /// What `/VolumeDriver.Capabilities` answers: whether a volume's name means the same on every host.
    pub global: bool,
}

impl Protocols {
    /// Answers from a service, under settings that may change between requests.
    pub fn new(service: Arc<Service>, settings: impl Fn() -> Settings + Send + Sync + 'static) -> Arc<Self> {
        let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
        let activation = serde_json::json!({ "Implements": names }).to_string().into();
        Arc::new(Self { service, settings: Arc::new(settings), activation, room: envelope::Room::default() })
    }

    /// The one filter that takes every request and answers it.
    pub fn filter(
        self: Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
        envelope::parts().then(move |parts| {
            let protocols = Arc::clone(&self);
            async move { protocols.answer(parts).await.into_response() }
        })
    }

    async fn answer(&self, request: envelope::Request) -> Answer {
        let envelope::Request { method, path, caller, let_in, body } = request;
        let Some(caller) = caller else {
            return Refusal::ours("this connection has no caller").into();
        };
        let verb = match route(&path) {
            Some(Route::Activate) if method == http::Method::POST => return self.activate(&caller),
            Some(Route::Verb(verb)) if method == http::Method::POST => verb,
            Some(_) => return Refusal::method(&method).into(),
            None => return Refusal::path(&path).into(),
        };
        let request = PendingRequest {
            verb,
            caller,
            let_in,
            body,
            settings: (self.settings)(),
            room: self.room.clone(),
        };
        if verb.lasting {
            request.carried_through(Arc::clone(&self.service)).await
        } else {
            request.answer(&self.service).await
        }
    }

    /// Answered from a constant: the activation is recorded behind the answer, which waits for nothing.
    fn activate(&self, caller: &Caller) -> Answer {
        if caller.begins_activations() {
            self.service.activate(&caller.host);
        }
        Answer::Json(self.activation.clone())
    }
}

/// A request whose verb is known and whose body is still to arrive.
struct PendingRequest {
    verb: Verb,
    caller: Caller,
    let_in: Option<LetIn>,
    body: envelope::BodyStream,
    settings: Settings,
    room: envelope::Room,
}

impl PendingRequest {
    async fn answer(self, service: &Arc<Service>) -> Answer {
        let Self { verb, caller, let_in, body, settings, room } = self;
        let lost = |refusal: Refusal| if verb.empty == Empty::Lost { Answer::None } else { refusal.into() };
        let Settings { body_bytes, request, global } = settings;
        // It keeps its room until the request is answered.
        let body = match envelope::collect(body, body_bytes, request, let_in, &room).await {
            Ok(body) => body,
            Err(envelope::Body::TooLarge) => return Refusal::too_large(body_bytes).into(),
            Err(envelope::Body::Stalled) => return lost(Refusal::stalled()),
            Err(envelope::Body::Crowded) => return lost(Refusal::crowded()),
            Err(envelope::Body::Broken) => return Answer::None,
        };
        let body = match (verb.empty, body.bytes.trim_ascii().is_empty()) {
            (_, false) => &body.bytes[..],
            (Empty::Arguments, true) => b"{}",
            (Empty::Mistake, true) => return Refusal::empty(verb.name).into(),
            (Empty::Lost, true) => return Answer::None,
        };
        let answer = match verb.call {
            Call::Volume(call) => call.answer(service, &caller, body, global).await,
        };
        if let Some(failure) = answer.failure() {
            service.log_limit().log(log::Level::Error, &failure, &caller.host, || failure.clone());
        }
        answer
    }

    /// Answers in a task of its own. A request's future is dropped as soon as the client is seen to have gone, which
    /// may be before anybody looked at the body that had come in whole: the operation begins all the same, and learns
    /// only then that nobody waits.
    async fn carried_through(self, service: Arc<Service>) -> Answer {
        let (waiting, gone) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            tokio::select! {
                // What has come in begins before anything else is looked at.
                biased;
                answer = self.answer(&service) => answer,
                _ = gone => Answer::None,
            }
        });
        let answered = task.await;
        drop(waiting);
        match answered.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(answer) => answer,
            // The transport logs it and answers.
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_stopping)) => Answer::None,
        }
    }
}

enum Route {
    Activate,
    Verb(Verb),
}

fn route(path: &str) -> Option<Route> {
    if path == ACTIVATE {
        return Some(Route::Activate);
    }
    let (protocol, verb) = path.strip_prefix('/')?.split_once('.')?;
    let protocol = PROTOCOLS.iter().find(|known| known.name == protocol)?;
    protocol.verbs.iter().find(|known| known.name == verb).copied().map(Route::Verb)
}

/// Every path that is answered, for hints.
fn paths() -> impl Iterator<Item = String> {
    let verbs = PROTOCOLS
        .iter()
        .flat_map(|protocol| protocol.verbs.iter().map(|verb| format!("/{}.{}", protocol.name, verb.name)));
    std::iter::once(ACTIVATE.to_owned()).chain(verbs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_has_its_path_and_no_other() {
        assert_eq!(
            paths().collect::<Vec<_>>(),
            [
                "/Plugin.Activate",
                "/VolumeDriver.Capabilities",
                "/VolumeDriver.Create",
                "/VolumeDriver.Get",
                "/VolumeDriver.List",
                "/VolumeDriver.Path",
                "/VolumeDriver.Mount",
                "/VolumeDriver.Unmount",
                "/VolumeDriver.Remove",
            ]
        );
        for path in paths() {
            assert!(route(&path).is_some(), "{path}");
        }
        for path in [
            "",
            "/",
            "/VolumeDriver",
            "/VolumeDriver.",
            "/VolumeDriver.get",
            "/Plugin.Get",
            "//VolumeDriver.Get",
        ] {
            assert!(route(path).is_none(), "{path}");
        }
    }
}
