//! The settings of one backend, as the map has them.

use std::path::PathBuf;
use std::time::Duration;

use super::mountpoints::Mountpoints;
use super::options::Mode;

/// The settings of one backend, except the hosts that may use it: the rules of access hold those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSettings {
    /// The backend's directory, absolute; may lead through symbolic links.
    pub path: PathBuf,
    /// The paths under which hosts see it.
    pub mountpoints: Mountpoints,
    /// True if new volumes are refused.
    pub draining: bool,
    /// True if `path` must lie on a mounted file system other than that of `/`.
    pub require_mount: bool,
    /// How long removed volumes are kept; zero deletes them at once.
    pub trash: Duration,
    /// The user that owns new volumes' directories, unless Create says otherwise.
    pub uid: u32,
    /// The group that owns new volumes' directories, unless Create says otherwise.
    pub gid: u32,
    /// The mode of new volumes' directories, unless Create says otherwise.
    pub mode: Mode,
}
