//! The table of verbs: the path, the request and the reply of each.
//!
//! A new verb is one row here, its handler and its route in `admin::handlers`, and the command that asks it. The routes
//! have the order of this table.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::wire;

/// A request that an operator can make: a `POST` to the path, answered with the reply.
pub(crate) trait Verb {
    const PATH: &'static str;
    type Request: Request;
    type Reply: Serialize + DeserializeOwned;
}

/// The body of a request.
pub(crate) trait Request: Serialize + DeserializeOwned + Send {
    /// Reads it from JSON.
    fn parse(body: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(body)
    }
}

impl Request for wire::Nothing {
    /// Any body will do, or none: people call such verbs with `curl`.
    fn parse(_body: &[u8]) -> serde_json::Result<Self> {
        Ok(Self {})
    }
}

impl Request for wire::BackendInit {}
impl Request for wire::BackendName {}
impl Request for wire::HostAdd {}
impl Request for wire::HostName {}
impl Request for wire::MountRelease {}
impl Request for wire::ReloadAsked {}
impl Request for wire::RolloverEnd {}
impl Request for wire::VolumeCreate {}
impl Request for wire::VolumeName {}
impl Request for wire::VolumeRemove {}
impl Request for wire::VolumeRestore {}

macro_rules! verbs {
    ($($verb:ident $path:literal: $request:ty => $reply:ty;)*) => {
        $(
            pub(crate) enum $verb {}

            impl Verb for $verb {
                const PATH: &'static str = $path;
                type Request = $request;
                type Reply = $reply;
            }
        )*

        /// The paths of all verbs, in the order of the table.
        #[cfg(test)]
        pub(crate) const PATHS: &[&str] = &[$($path),*];
    };
}

verbs! {
    Status "/status": wire::Nothing => wire::Status;
    // Answered once everything has been read.
    Reload "/reload": wire::ReloadAsked => Vec<wire::Reload>;
    VolumeLs "/volume/ls": wire::Nothing => Vec<wire::Volume>;
    VolumeTrash "/volume/trash": wire::Nothing => Vec<wire::Trashed>;
    VolumeCreate "/volume/create": wire::VolumeCreate => wire::Volume;
    VolumeInspect "/volume/inspect": wire::VolumeName => wire::VolumeDetail;
    VolumeRm "/volume/rm": wire::VolumeRemove => wire::Done;
    VolumeRestore "/volume/restore": wire::VolumeRestore => wire::Volume;
    MountLs "/mount/ls": wire::Nothing => Vec<wire::Mount>;
    MountRelease "/mount/release": wire::MountRelease => wire::Released;
    BackendLs "/backend/ls": wire::Nothing => Vec<wire::Backend>;
    BackendInit "/backend/init": wire::BackendInit => wire::Done;
    BackendAdopt "/backend/adopt": wire::BackendName => wire::Done;
    HostLs "/host/ls": wire::Nothing => Vec<wire::Host>;
    HostAdd "/host/add": wire::HostAdd => wire::HostAdded;
    HostRenew "/host/renew": wire::HostAdd => wire::HostAdded;
    HostRevoke "/host/revoke": wire::HostName => wire::HostRevoked;
    RolloverStatus "/pki/rollover/status": wire::Nothing => wire::Rollover;
    RolloverStart "/pki/rollover/start": wire::Nothing => wire::Rollover;
    RolloverFinish "/pki/rollover/finish": wire::RolloverEnd => wire::RolloverEnded;
    RolloverAbort "/pki/rollover/abort": wire::RolloverEnd => wire::RolloverEnded;
}
