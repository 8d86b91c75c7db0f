//! The admin socket: what an operator asks of the running service, as JSON over HTTP on a Unix socket.
//!
//! Whoever can open the socket is the operator; nothing else is asked. This room converts between the wire and the
//! domain, and decides nothing about volumes. It never serves engines.

pub(crate) mod client;
mod enrolment;
mod rollover;
pub(crate) mod status;
mod views;
pub(crate) mod wire;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use warp::Filter;
use warp::reply::{Reply as _, Response};

use self::enrolment::DeskError;
pub(crate) use self::enrolment::{Desk, Issuing, certificate};
pub(crate) use self::status::Board;
use self::wire::{Failure, verb};
use crate::catalog::CatalogError;
use crate::error::{chain, nearest};
use crate::host::Caller;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::options::Options;
use crate::model::volume::{MountId, VolumeName};
use crate::volume::{Blame, Release, Released, Service};

/// The most bytes of a request's body.
const BODY_BYTES: u64 = 1 << 20;

/// What answers the admin socket.
pub(crate) struct Admin {
    service: Arc<Service>,
    board: Arc<Board>,
    desk: Desk,
    operator: Caller,
    counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    reload: Reload,
}

/// What is counted outside of the volumes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    /// How many connections are open.
    pub connections: usize,
    /// How many lines of the log were dropped.
    pub log_lines_dropped: u64,
}

/// Has everything read again that can be reloaded, and answers when that is done, with whether it was; what became of it
/// is on the board. The operator's word makes it put in force also what is worse than what was.
pub(crate) type Reload = Box<dyn Fn(bool) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

/// Why a request was not done.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    error: String,
}

type Answer = Result<Vec<u8>, Refusal>;

impl Admin {
    /// Answers for `operator`, who is this machine's; `counts` tells what is counted elsewhere.
    pub(crate) fn new(
        service: Arc<Service>,
        board: Arc<Board>,
        desk: Desk,
        operator: Caller,
        counts: impl Fn() -> Counts + Send + Sync + 'static,
        reload: Reload,
    ) -> Arc<Self> {
        Arc::new(Self { service, board, desk, operator, counts: Arc::new(counts), reload })
    }

    /// The one filter that takes every request and answers it.
    pub(crate) fn filter(
        self: Arc<Self>,
    ) -> impl Filter<Extract = (Response,), Error = warp::Rejection> + Clone + Send + Sync + 'static {
        warp::method()
            .and(warp::path::full())
            .and(warp::body::content_length_limit(BODY_BYTES))
            .and(warp::body::bytes())
            .then(move |method, path: warp::path::FullPath, body: Bytes| {
                let admin = Arc::clone(&self);
                async move { respond(admin.answer(&method, path.as_str(), &body).await) }
            })
    }

    async fn answer(&self, method: &Method, path: &str, body: &[u8]) -> Answer {
        if method != Method::POST {
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "the admin socket takes POST only"));
        }
        if matches!(
            path,
            verb::VOLUME_LS | verb::VOLUME_TRASH | verb::MOUNT_LS | verb::BACKEND_LS | verb::HOST_LS
        ) {
            self.service.refresh().await;
        }
        match path {
            verb::STATUS => json(&views::status(&self.service, &self.board, (self.counts)())),
            verb::RELOAD => self.reload(&decode(body)?).await,
            verb::VOLUME_LS => json(&views::volumes(&self.service)),
            verb::VOLUME_TRASH => json(&views::trash(&self.service)),
            verb::VOLUME_CREATE => self.volume_create(decode(body)?).await,
            verb::VOLUME_INSPECT => self.volume_inspect(&decode(body)?).await,
            verb::VOLUME_RM => self.volume_rm(decode(body)?).await,
            verb::VOLUME_RESTORE => self.volume_restore(&decode(body)?).await,
            verb::MOUNT_LS => json(&views::mounts(&self.service)),
            verb::MOUNT_RELEASE => self.mount_release(decode(body)?).await,
            verb::BACKEND_LS => json(&views::backends(&self.service)),
            verb::BACKEND_INIT => self.backend_init(&decode(body)?).await,
            verb::BACKEND_ADOPT => self.backend_adopt(&decode(body)?).await,
            verb::HOST_LS => json(&views::hosts(&self.service)),
            verb::HOST_ADD => json(&self.desk.add(decode(body)?).await?),
            verb::HOST_RENEW => json(&self.desk.renew(decode(body)?).await?),
            verb::HOST_REVOKE => json(&self.desk.revoke(&decode(body)?).await?),
            verb::ROLLOVER_STATUS => json(&self.desk.rollover(&self.seen()).await?),
            verb::ROLLOVER_START => json(&self.desk.start(&self.seen()).await?),
            verb::ROLLOVER_FINISH => json(&self.desk.finish(decode(body)?).await?),
            verb::ROLLOVER_ABORT => json(&self.desk.abort(decode(body)?).await?),
            unknown => Err(Refusal::unknown(unknown)),
        }
    }

    /// When each host last sent a request.
    fn seen(&self) -> impl Fn(&HostName) -> Option<OffsetDateTime> + '_ {
        |host| self.service.last_seen(host)
    }

    async fn reload(&self, request: &wire::ReloadAsked) -> Answer {
        if (self.reload)(request.force).await {
            return json(&views::reloads(&self.board));
        }
        Err(Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing is read again any more: the service is stopping, or its log says why; restart it",
        ))
    }

    async fn volume_create(&self, request: wire::VolumeCreate) -> Answer {
        let wire::VolumeCreate { name, options } = request;
        let name = VolumeName::parse(&name).map_err(refuse)?;
        let options = Options::parse(options.iter().map(|(k, v)| (&**k, &**v))).map_err(refuse)?;
        let volume = self.service.create(&self.operator, name, options).await?;
        json(&views::volume(&self.service, &volume))
    }

    async fn volume_inspect(&self, request: &wire::VolumeName) -> Answer {
        let seen = self.service.inspect(&self.operator, &request.name).await?;
        let found = self.service.look_at_directory(&seen).await;
        json(&views::detail(&self.service, &seen, found))
    }

    async fn volume_rm(&self, request: wire::VolumeRemove) -> Answer {
        let wire::VolumeRemove { name, now } = request;
        let known = match VolumeName::parse(&name) {
            Ok(volume) if self.service.exists(&volume).await? => Some(volume),
            _ => None,
        };
        let trashed = match known {
            Some(volume) => {
                let id = self.service.remove(&self.operator, volume).await?;
                if !now {
                    let kept = if id.is_some() { "; `volhost volume restore` brings it back" } else { "" };
                    return done(format!("removed volume {name}{kept}"));
                }
                let Some(id) = id else { return done(format!("removed volume {name}")) };
                id.to_string()
            }
            None if now => name.clone(),
            None => return Err(crate::volume::Error::NoSuchVolume(name).into()),
        };
        match self.service.expire(&trashed).await {
            Ok(removed) => {
                done(format!("deleting the data of volume {} in the background", removed.volume.name))
            }
            // A backend that keeps no trash may have been quicker.
            Err(crate::volume::Error::NotInTrash(_)) if trashed != name => {
                done(format!("deleted volume {name}"))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn volume_restore(&self, request: &wire::VolumeRestore) -> Answer {
        let volume = self.service.restore(&self.operator, &request.name).await?;
        json(&views::volume(&self.service, &volume))
    }

    async fn mount_release(&self, request: wire::MountRelease) -> Answer {
        let wire::MountRelease { volume, host, id, all, dry_run } = request;
        let release = Release {
            volume: volume.map(|name| VolumeName::parse(&name)).transpose().map_err(refuse)?,
            host: HostName::parse_or_anonymous(&host).map_err(refuse)?,
            id: id.map(|id| MountId::parse(&id)).transpose().map_err(refuse)?,
            alive_too: all,
        };
        let Released { released, kept } = if dry_run {
            self.service.would_release(&release).await?
        } else {
            self.service.release(&release).await?
        };
        let view = self.service.view();
        let wire = |mounts: &[_]| mounts.iter().map(|(name, m)| views::mount(&view, name, m)).collect();
        json(&wire::Released { released: wire(&released), kept: wire(&kept) })
    }

    async fn backend_init(&self, request: &wire::BackendInit) -> Answer {
        let name = BackendName::parse(&request.name).map_err(refuse)?;
        let id = self.service.init_backend(&name, request.force).await?;
        done(format!("backend {name} is {id} from now on"))
    }

    async fn backend_adopt(&self, request: &wire::BackendName) -> Answer {
        let name = BackendName::parse(&request.name).map_err(refuse)?;
        let id = self.service.adopt_backend(&name).await?;
        done(format!("backend {name} is {id} from now on"))
    }
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into() }
    }

    fn unknown(path: &str) -> Self {
        const VERBS: [&str; 21] = [
            verb::STATUS,
            verb::RELOAD,
            verb::VOLUME_LS,
            verb::VOLUME_TRASH,
            verb::VOLUME_CREATE,
            verb::VOLUME_INSPECT,
            verb::VOLUME_RM,
            verb::VOLUME_RESTORE,
            verb::MOUNT_LS,
            verb::MOUNT_RELEASE,
            verb::BACKEND_LS,
            verb::BACKEND_INIT,
            verb::BACKEND_ADOPT,
            verb::HOST_LS,
            verb::HOST_ADD,
            verb::HOST_RENEW,
            verb::HOST_REVOKE,
            verb::ROLLOVER_STATUS,
            verb::ROLLOVER_START,
            verb::ROLLOVER_FINISH,
            verb::ROLLOVER_ABORT,
        ];
        let hint = nearest(path, VERBS).map_or_else(String::new, |near| format!(" (did you mean {near}?)"));
        Self::new(StatusCode::NOT_FOUND, format!("the admin socket has no {path}{hint}"))
    }
}

impl From<crate::volume::Error> for Refusal {
    fn from(error: crate::volume::Error) -> Self {
        let status = match error.blame() {
            Blame::Caller => StatusCode::BAD_REQUEST,
            Blame::Rights => StatusCode::FORBIDDEN,
            Blame::Service | Blame::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, chain(&error))
    }
}

impl From<DeskError> for Refusal {
    fn from(error: DeskError) -> Self {
        match &error {
            DeskError::Catalog(CatalogError::Refused(_)) => refuse(error),
            DeskError::Catalog(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)),
            _ => refuse(error),
        }
    }
}

/// An error of the request's own making.
fn refuse(error: impl std::error::Error + 'static) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, chain(&error))
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the request is not understood: {error}"))
    })
}

fn done(done: String) -> Answer {
    json(&wire::Done { done })
}

fn json(value: &impl Serialize) -> Answer {
    serde_json::to_vec(value).map_err(|error| {
        Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer cannot be written as JSON: {error}"),
        )
    })
}

fn respond(answer: Answer) -> Response {
    match answer {
        Ok(bytes) => warp::reply::with_header(bytes, "Content-Type", "application/json").into_response(),
        Err(Refusal { status, error }) => {
            warp::reply::with_status(warp::reply::json(&Failure { error }), status).into_response()
        }
    }
}
