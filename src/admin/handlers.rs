//! The handler of each verb, and the table that leads requests to them.

use std::future::Future;
use std::pin::Pin;

use http::StatusCode;
use time::OffsetDateTime;

use super::wire::verb::{self, Request as _};
use super::wire::{self, Verb};
use super::{Admin, HttpError, JsonResult, json, refuse, views};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::options::Options;
use crate::model::volume::{MountId, VolumeName};
use crate::volume::{Error, Release, Released};

/// The service's side of a verb.
trait Handle: Verb {
    fn handle(
        admin: &Admin,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Reply, HttpError>> + Send;
}

type Answered<'a> = Pin<Box<dyn Future<Output = JsonResult> + Send + 'a>>;

/// The path of a verb and its handler.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) run: for<'a> fn(&'a Admin, &'a [u8]) -> Answered<'a>,
}

/// The routes of all verbs, in the order of the table of verbs. A test compares the two.
pub(super) const ROUTES: &[Route] = &[
    route::<verb::Status>(),
    route::<verb::Reload>(),
    route::<verb::VolumeLs>(),
    route::<verb::VolumeTrash>(),
    route::<verb::VolumeCreate>(),
    route::<verb::VolumeInspect>(),
    route::<verb::VolumeRm>(),
    route::<verb::VolumeRestore>(),
    route::<verb::MountLs>(),
    route::<verb::MountRelease>(),
    route::<verb::BackendLs>(),
    route::<verb::BackendInit>(),
    route::<verb::BackendAdopt>(),
    route::<verb::HostLs>(),
    route::<verb::HostAdd>(),
    route::<verb::HostRenew>(),
    route::<verb::HostRevoke>(),
    route::<verb::RolloverStatus>(),
    route::<verb::RolloverStart>(),
    route::<verb::RolloverFinish>(),
    route::<verb::RolloverAbort>(),
];

const fn route<V: Handle>() -> Route {
    Route { path: V::PATH, run: run::<V> }
}

fn run<'a, V: Handle>(admin: &'a Admin, body: &'a [u8]) -> Answered<'a> {
    Box::pin(async move {
        let request = V::Request::parse(body).map_err(|error| {
            HttpError::new(StatusCode::BAD_REQUEST, format!("the request is not understood: {error}"))
        })?;
        json(&V::handle(admin, request).await?)
    })
}

impl Handle for verb::Status {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<wire::Status, HttpError> {
        Ok(views::status(&admin.service, &admin.status, (admin.counts)()))
    }
}

impl Handle for verb::Reload {
    async fn handle(admin: &Admin, request: wire::ReloadAsked) -> Result<Vec<wire::Reload>, HttpError> {
        if (admin.reload)(request.force).await {
            return Ok(views::reloads(&admin.status));
        }
        Err(HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "nothing is read again any more: the service is stopping, or its log says why; restart it",
        ))
    }
}

impl Handle for verb::VolumeLs {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<Vec<wire::Volume>, HttpError> {
        admin.service.refresh().await;
        Ok(views::volumes(&admin.service))
    }
}

impl Handle for verb::VolumeTrash {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<Vec<wire::Trashed>, HttpError> {
        admin.service.refresh().await;
        Ok(views::trash(&admin.service))
    }
}

impl Handle for verb::VolumeCreate {
    async fn handle(admin: &Admin, request: wire::VolumeCreate) -> Result<wire::Volume, HttpError> {
        let wire::VolumeCreate { name, options } = request;
        let name = VolumeName::parse(&name).map_err(refuse)?;
        let options = Options::parse(options.iter().map(|(k, v)| (&**k, &**v))).map_err(refuse)?;
        let volume = admin.service.create(&admin.operator, name, options).await?;
        Ok(views::volume(&admin.service, &volume))
    }
}

impl Handle for verb::VolumeInspect {
    async fn handle(admin: &Admin, request: wire::VolumeName) -> Result<wire::VolumeDetail, HttpError> {
        let seen = admin.service.inspect(&admin.operator, &request.name).await?;
        let found = admin.service.look_at_directory(&seen).await;
        Ok(views::detail(&admin.service, &seen, found))
    }
}

impl Handle for verb::VolumeRm {
    async fn handle(admin: &Admin, request: wire::VolumeRemove) -> Result<wire::Done, HttpError> {
        let wire::VolumeRemove { name, now } = request;
        let known = match VolumeName::parse(&name) {
            Ok(volume) if admin.service.exists(&volume).await? => Some(volume),
            _ => None,
        };
        let trashed = match known {
            Some(volume) => {
                let id = admin.service.remove(&admin.operator, volume).await?;
                if !now {
                    let kept = if id.is_some() { "; `volhost volume restore` brings it back" } else { "" };
                    return done(format!("removed volume {name}{kept}"));
                }
                let Some(id) = id else { return done(format!("removed volume {name}")) };
                id.to_string()
            }
            None if now => name.clone(),
            None => return Err(Error::NoSuchVolume(name).into()),
        };
        match admin.service.expire(&trashed).await {
            Ok(removed) => {
                done(format!("deleting the data of volume {} in the background", removed.volume.name))
            }
            // A backend that keeps no trash may have deleted it already.
            Err(Error::NotInTrash(_)) if trashed != name => done(format!("deleted volume {name}")),
            Err(error) => Err(error.into()),
        }
    }
}

impl Handle for verb::VolumeRestore {
    async fn handle(admin: &Admin, request: wire::VolumeRestore) -> Result<wire::Volume, HttpError> {
        let volume = admin.service.restore(&admin.operator, &request.name).await?;
        Ok(views::volume(&admin.service, &volume))
    }
}

impl Handle for verb::MountLs {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<Vec<wire::Mount>, HttpError> {
        admin.service.refresh().await;
        Ok(views::mounts(&admin.service))
    }
}

impl Handle for verb::MountRelease {
    async fn handle(admin: &Admin, request: wire::MountRelease) -> Result<wire::Released, HttpError> {
        let wire::MountRelease { volume, host, id, all, dry_run } = request;
        let release = Release {
            volume: volume.map(|name| VolumeName::parse(&name)).transpose().map_err(refuse)?,
            host: HostName::parse_or_anonymous(&host).map_err(refuse)?,
            id: id.map(|id| MountId::parse(&id)).transpose().map_err(refuse)?,
            alive_too: all,
        };
        let Released { released, kept } = if dry_run {
            admin.service.would_release(&release).await?
        } else {
            admin.service.release(&release).await?
        };
        let view = admin.service.view();
        let wire = |mounts: &[_]| mounts.iter().map(|(name, m)| views::mount(&view, name, m)).collect();
        Ok(wire::Released { released: wire(&released), kept: wire(&kept) })
    }
}

impl Handle for verb::BackendLs {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<Vec<wire::Backend>, HttpError> {
        admin.service.refresh().await;
        Ok(views::backends(&admin.service))
    }
}

impl Handle for verb::BackendInit {
    async fn handle(admin: &Admin, request: wire::BackendInit) -> Result<wire::Done, HttpError> {
        let name = BackendName::parse(&request.name).map_err(refuse)?;
        let id = admin.service.init_backend(&name, request.force).await?;
        done(format!("backend {name} is {id} from now on"))
    }
}

impl Handle for verb::BackendAdopt {
    async fn handle(admin: &Admin, request: wire::BackendName) -> Result<wire::Done, HttpError> {
        let name = BackendName::parse(&request.name).map_err(refuse)?;
        let id = admin.service.adopt_backend(&name).await?;
        done(format!("backend {name} is {id} from now on"))
    }
}

impl Handle for verb::HostLs {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<Vec<wire::Host>, HttpError> {
        admin.service.refresh().await;
        Ok(views::hosts(&admin.service))
    }
}

impl Handle for verb::HostAdd {
    async fn handle(admin: &Admin, request: wire::HostAdd) -> Result<wire::HostAdded, HttpError> {
        Ok(admin.enrolment.add(request).await?)
    }
}

impl Handle for verb::HostRenew {
    async fn handle(admin: &Admin, request: wire::HostAdd) -> Result<wire::HostAdded, HttpError> {
        Ok(admin.enrolment.renew(request).await?)
    }
}

impl Handle for verb::HostRevoke {
    async fn handle(admin: &Admin, request: wire::HostName) -> Result<wire::HostRevoked, HttpError> {
        Ok(admin.enrolment.revoke(&request).await?)
    }
}

impl Handle for verb::RolloverStatus {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<wire::Rollover, HttpError> {
        Ok(admin.enrolment.rollover(&last_seen(admin)).await?)
    }
}

impl Handle for verb::RolloverStart {
    async fn handle(admin: &Admin, _: wire::Nothing) -> Result<wire::Rollover, HttpError> {
        Ok(admin.enrolment.start(&last_seen(admin)).await?)
    }
}

impl Handle for verb::RolloverFinish {
    async fn handle(admin: &Admin, request: wire::RolloverEnd) -> Result<wire::RolloverEnded, HttpError> {
        Ok(admin.enrolment.finish(request).await?)
    }
}

impl Handle for verb::RolloverAbort {
    async fn handle(admin: &Admin, request: wire::RolloverEnd) -> Result<wire::RolloverEnded, HttpError> {
        Ok(admin.enrolment.abort(request).await?)
    }
}

/// Returns a function that tells when a host last sent a request.
fn last_seen(admin: &Admin) -> impl Fn(&HostName) -> Option<OffsetDateTime> + '_ {
    |host| admin.service.last_seen(host)
}

fn done(done: String) -> Result<wire::Done, HttpError> {
    Ok(wire::Done { done })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routes_are_those_of_the_verbs_in_the_same_order() {
        let routes: Vec<_> = ROUTES.iter().map(|route| route.path).collect();
        assert_eq!(
            routes,
            verb::PATHS,
            "ROUTES (left) and the table of verbs (right) differ in rows or order"
        );
    }
}
