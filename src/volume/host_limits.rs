//! Refuses what would give a host more volumes or mounts than `limits` allows.
//!
//! The limits stop a host that runs wild, not one that counts closely: requests of a host that are carried out at the
//! same moment, or through several instances, may pass a limit together.

use super::{Error, InForce};
use crate::catalog::View;
use crate::host::Caller;

/// Refuses another new volume of a host that has as many as it may. The operator has no limit.
pub(super) fn room_for_volume(in_force: &InForce, view: &View, caller: &Caller) -> Result<(), Error> {
    let limit = in_force.limits.volumes_per_host;
    if caller.is_operator() || view.counts_of_host(view.name_now(&caller.host)).volumes < limit {
        return Ok(());
    }
    Err(Error::TooManyVolumes { host: caller.host.clone(), limit })
}

/// Refuses another mount of a host that has as many as it may. A repetition of a mount needs no room.
pub(super) fn room_for_mount(in_force: &InForce, view: &View, caller: &Caller) -> Result<(), Error> {
    let limit = in_force.limits.mounts_per_host;
    if view.counts_of_host(view.name_now(&caller.host)).mounts < limit {
        return Ok(());
    }
    Err(Error::TooManyMounts { host: caller.host.clone(), limit })
}
