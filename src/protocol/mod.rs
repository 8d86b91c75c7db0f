//! Docker's plugin protocol: JSON over `POST /PROTOCOL.VERB`.
//!
//! [`PROTOCOLS`] lists every protocol served; the routes and the answer to `/Plugin.Activate` are derived
//! from it. This room alone words the JSON that engines get. It makes no decisions about volumes.
//!
//! An answer is never an `Err` with status 200, because podman takes that for success. If the truth cannot be
//! known, the connection is closed without an answer: dockerd takes any answered error to a Get for "no such
//! volume" and erases its own labels and options of it.

pub mod envelope;
pub(crate) mod volume;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use warp::Filter;
use warp::reply::Response;

use self::envelope::{Answer, ErrorReply};
use crate::host::Caller;
use crate::transport::{AccessWatch, CloseWithoutAnswer};
use crate::volume::Service;

/// A protocol: the name that engines know it by, and its verbs.
pub struct Protocol {
    /// The name in `Implements` and before the dot of a path.
    pub name: &'static str,
    /// Its verbs.
    pub verbs: &'static [Verb],
}

/// One verb of a protocol.
#[derive(Debug, Clone, Copy)]
pub struct Verb {
    /// The part after the dot of a path.
    pub name: &'static str,
    /// The operation.
    pub call: Call,
    /// The meaning of an empty body: engines repeat a call with an empty body if the first attempt used the
    /// body up.
    pub empty: EmptyBody,
    /// True if the verb changes something. Such a call is carried out even if its client disconnects.
    pub survives_disconnect: bool,
}

/// The meaning of an empty body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmptyBody {
    /// It means `{}`: the verb has no arguments.
    Arguments,
    /// It is a mistake of the caller.
    Mistake,
    /// It is a repetition whose arguments were lost. Any answer could be taken for the truth, so none is
    /// given.
    Lost,
}

/// The operation of a verb, by protocol.
#[derive(Debug, Clone, Copy)]
pub enum Call {
    /// A verb of the volume protocol.
    Volume(volume::Call),
}

/// The protocols served, in the order in which Activate lists them.
pub const PROTOCOLS: &[Protocol] = &[volume::PROTOCOL];

const ACTIVATE: &str = "/Plugin.Activate";

/// The handler of all requests.
pub struct Protocols {
    service: Arc<Service>,
    settings: Arc<dyn Fn() -> Settings + Send + Sync>,
    activation: Bytes,
    room: envelope::BodyBudget,
    on_answer: OnAnswer,
}

/// A function that is called with each answered request: its place in [`rpcs`], if it has one, the answer's status, if
/// there is an answer, and how long it took. It must return quickly.
pub type OnAnswer = Arc<dyn Fn(Option<usize>, Option<StatusCode>, Duration) + Send + Sync>;

/// The settings that requests need.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// The maximum size of a body, in bytes.
    pub body_bytes: u64,
    /// The time in which a body must arrive.
    pub request: Duration,
    /// The scope in the answer to `/VolumeDriver.Capabilities`: true if a volume's name means the same on
    /// every host.
    pub global: bool,
}

impl Protocols {
    /// Returns a handler that answers from a service. The settings may change between requests.
    pub fn new(
        service: Arc<Service>,
        settings: impl Fn() -> Settings + Send + Sync + 'static,
        on_answer: OnAnswer,
    ) -> Arc<Self> {
        let names: Vec<_> = PROTOCOLS.iter().map(|protocol| protocol.name).collect();
        let activation = serde_json::json!({ "Implements": names }).to_string().into();
        Arc::new(Self {
            service,
            settings: Arc::new(settings),
            activation,
            room: envelope::BodyBudget::default(),
            on_answer,
        })
    }

    /// Returns the one filter that takes and answers every request.
    pub fn filter(
        self: Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
        envelope::parts().then(move |parts: envelope::Request| {
            let protocols = Arc::clone(&self);
            async move {
                let (began, found) = (Instant::now(), route(&parts.path));
                let (rpc, route) = found.unzip();
                let response = protocols.answer(parts, route).await.into_response();
                let is_answered = response.extensions().get::<CloseWithoutAnswer>().is_none();
                (protocols.on_answer)(rpc, is_answered.then(|| response.status()), began.elapsed());
                response
            }
        })
    }

    async fn answer(&self, request: envelope::Request, route: Option<Route>) -> Answer {
        let envelope::Request { method, path, caller, access, body } = request;
        let Some(caller) = caller else {
            return ErrorReply::internal("this connection has no caller").into();
        };
        let verb = match route {
            Some(Route::Activate) if method == http::Method::POST => return self.activate(&caller),
            Some(Route::Verb(verb)) if method == http::Method::POST => verb,
            Some(_) => return ErrorReply::method(&method).into(),
            None => return ErrorReply::path(&path).into(),
        };
        let request = PendingRequest {
            verb,
            caller,
            access,
            body,
            settings: (self.settings)(),
            room: self.room.clone(),
        };
        if verb.survives_disconnect {
            request.answer_detached(Arc::clone(&self.service)).await
        } else {
            request.answer(&self.service).await
        }
    }

    /// Answers from a constant, without waiting: the activation is recorded after the answer.
    fn activate(&self, caller: &Caller) -> Answer {
        if caller.begins_activations() {
            self.service.activate(&caller.host);
        }
        Answer::Json(self.activation.clone())
    }
}

/// A request whose verb is known and whose body has not arrived yet.
struct PendingRequest {
    verb: Verb,
    caller: Caller,
    access: Option<AccessWatch>,
    body: envelope::BodyStream,
    settings: Settings,
    room: envelope::BodyBudget,
}

impl PendingRequest {
    async fn answer(self, service: &Arc<Service>) -> Answer {
        let Self { verb, caller, access, body, settings, room } = self;
        let lost =
            |refusal: ErrorReply| if verb.empty == EmptyBody::Lost { Answer::None } else { refusal.into() };
        let Settings { body_bytes, request, global } = settings;
        // The body holds its memory until the request is answered.
        let body = match envelope::collect(body, body_bytes, request, access, &room).await {
            Ok(body) => body,
            Err(envelope::BodyError::TooLarge) => return ErrorReply::too_large(body_bytes).into(),
            Err(envelope::BodyError::Stalled) => return lost(ErrorReply::stalled()),
            Err(envelope::BodyError::Crowded) => return lost(ErrorReply::crowded()),
            Err(envelope::BodyError::Broken) => return Answer::None,
        };
        let body = match (verb.empty, body.bytes.trim_ascii().is_empty()) {
            (_, false) => &body.bytes[..],
            (EmptyBody::Arguments, true) => b"{}",
            (EmptyBody::Mistake, true) => return ErrorReply::empty(verb.name).into(),
            (EmptyBody::Lost, true) => return Answer::None,
        };
        let answer = match verb.call {
            Call::Volume(call) => call.answer(service, &caller, body, global).await,
        };
        if let Some(failure) = answer.failure() {
            service.log_limit().log(log::Level::Error, &failure, &caller.host, || failure.clone());
        }
        answer
    }

    /// Answers in a separate task. hyper drops a request's future as soon as it sees that the client has
    /// disconnected, which may happen before a body that has arrived in full is read. In its own task the
    /// operation begins all the same, and only then learns that nobody waits for it.
    async fn answer_detached(self, service: Arc<Service>) -> Answer {
        let (waiting, gone) = tokio::sync::oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            tokio::select! {
                // A request that has arrived begins before the disconnect is checked.
                biased;
                answer = self.answer(&service) => answer,
                _ = gone => Answer::None,
            }
        });
        let answered = task.await;
        drop(waiting);
        match answered.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(answer) => answer,
            // The transport logs the panic and answers.
            Err(Ok(panic)) => resume_unwind(panic),
            Err(Err(_stopping)) => Answer::None,
        }
    }
}

enum Route {
    Activate,
    Verb(Verb),
}

/// Returns the route of a path, with its place in [`rpcs`].
fn route(path: &str) -> Option<(usize, Route)> {
    if path == ACTIVATE {
        return Some((0, Route::Activate));
    }
    let named = path.strip_prefix('/')?.split_once('.')?;
    verbs().zip(1..).find_map(|((protocol, verb), place)| {
        ((protocol.name, verb.name) == named).then_some((place, Route::Verb(*verb)))
    })
}

/// Returns every verb with its protocol.
fn verbs() -> impl Iterator<Item = (&'static Protocol, &'static Verb)> {
    PROTOCOLS.iter().flat_map(|protocol| protocol.verbs.iter().map(move |verb| (protocol, verb)))
}

/// Returns the names of all RPCs, such as `VolumeDriver.Mount`, in a fixed order.
pub fn rpcs() -> impl Iterator<Item = String> {
    paths().map(|path| path.trim_start_matches('/').to_owned())
}

/// Returns every path that is answered, for hints.
fn paths() -> impl Iterator<Item = String> {
    let verbs = verbs().map(|(protocol, verb)| format!("/{}.{}", protocol.name, verb.name));
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
        for (number, path) in paths().enumerate() {
            assert_eq!(route(&path).map(|(place, _)| place), Some(number), "{path}");
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
