//! Chooses the backend of a new volume, and words the error for a host that may not use it.

use std::sync::Arc;

use super::rights::permit;
use super::{Error, InForce, Service};
use crate::backend::Backend;
use crate::host::Caller;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::options::Options;
use crate::model::right::Right;
use crate::model::volume::VolumeName;

impl Service {
    /// Returns the backend of a new volume: the one that the options name; else, of those open to the host, `default`
    /// or the only one.
    ///
    /// A backend that is closed to the host looks like one that does not exist, unless the host knows a volume there:
    /// then the error says that its rights were narrowed.
    pub(super) fn choose_backend(
        &self,
        in_force: &InForce,
        caller: &Caller,
        options: &Options,
    ) -> Result<Arc<Backend>, Error> {
        let right = if options.adopt == Some(true) { Right::Adopt } else { Right::Create };
        let usable = |backend: &Backend| permit(in_force, caller, right, backend.name(), options).is_ok();
        let known =
            || in_force.map.iter().filter(|backend| usable(backend)).map(|b| b.name().clone()).collect();
        let is_open =
            |name: &BackendName| caller.is_operator() || in_force.access.is_open(name, &caller.host);
        let backend = match &options.backend {
            Some(name) => match in_force.map.get(name) {
                Some(backend) if is_open(name) || self.knows_volume_on(&caller.host, name) => backend,
                None if caller.is_operator() => {
                    return Err(Error::NoSuchBackend { name: name.clone(), known: known() });
                }
                _ => return Err(Error::BackendOutOfSight { name: name.clone(), known: known() }),
            },
            None => match in_force.map.default_for_create(|backend| is_open(backend.name())) {
                Some(backend) => backend,
                None if in_force.map.iter().any(|backend| is_open(backend.name()))
                    || caller.is_operator() =>
                {
                    return Err(Error::BackendNotSaid { known: known() });
                }
                None => {
                    let listed = in_force.access.is_listed(&caller.host);
                    return Err(Error::NothingOpen { host: caller.host.clone(), right, listed });
                }
            },
        };
        permit(in_force, caller, right, backend.name(), options)?;
        if backend.settings().draining {
            return Err(Error::Draining(backend.name().clone()));
        }
        Ok(Arc::clone(backend))
    }

    /// Returns the error for a name that belongs to a volume which the host may not see. A host that may create nothing
    /// gets the same error for every name.
    pub(super) fn taken_out_of_sight(
        &self,
        in_force: &InForce,
        caller: &Caller,
        name: VolumeName,
        options: &Options,
    ) -> Error {
        let right = if options.adopt == Some(true) { Right::Adopt } else { Right::Create };
        let may = |backend: &Arc<Backend>| permit(in_force, caller, right, backend.name(), options).is_ok();
        match self.choose_backend(in_force, caller, options) {
            Err(error) if !in_force.map.iter().any(may) => error,
            _ => Error::NameTaken(name),
        }
    }

    /// Returns true if the host created or ever mounted a volume on that backend.
    fn knows_volume_on(&self, host: &HostName, backend: &BackendName) -> bool {
        let view = self.catalog.view();
        view.volumes.values().any(|volume| volume.backend == *backend && volume.known_to.contains(host))
    }
}
