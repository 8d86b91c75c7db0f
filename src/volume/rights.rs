//! The rules on which volumes a host may see and use.

use super::{Error, InForce};
use crate::catalog::{View, Volume};
use crate::host::Caller;
use crate::host::access::{Access, AccessRequest};
use crate::model::backend::BackendName;
use crate::model::options::Options;
use crate::model::right::Right;

/// Returns true if a host may see a volume: its backend is open to the host, or the host created or ever mounted it,
/// under its present name or an earlier one.
pub(super) fn in_sight(access: &Access, view: &View, caller: &Caller, volume: &Volume) -> bool {
    caller.is_operator()
        || access.is_open(&volume.backend, &caller.host)
        || volume.known_to.iter().any(|known| *known == caller.host || *view.name_now(known) == caller.host)
}

/// Refuses an operation that a host has no right to. A host may still see a volume that it may not use any more.
pub(super) fn permit(
    in_force: &InForce,
    caller: &Caller,
    right: Right,
    backend: &BackendName,
    options: &Options,
) -> Result<(), Error> {
    if caller.is_operator() {
        return Ok(());
    }
    let ask = AccessRequest { host: &caller.host, backend, right, exclusive: options.is_exclusive() };
    in_force.access.check(ask).map_err(|why| Error::Forbidden {
        host: caller.host.clone(),
        right,
        backend: backend.clone(),
        why,
    })
}
