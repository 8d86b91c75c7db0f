//! The machine that a configuration is read on: its defaults depend on it.

use super::Paths;
use super::backends::Owner;

/// Facts about the machine and the program that defaults depend on.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    pub(super) paths: Paths,
    pub(super) hostname: String,
    /// The owner of new volumes when the map names none.
    pub(super) owner: Owner,
    /// True if this program was built with etcd's client.
    pub(super) etcd: bool,
}

impl Surroundings {
    pub(super) fn here(paths: &Paths) -> Self {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let owner = match uid.is_root() {
            true => Owner { uid: 0, gid: 0 },
            false => Owner { uid: uid.as_raw(), gid: gid.as_raw() },
        };
        Self { paths: paths.clone(), hostname, owner, etcd: cfg!(feature = "etcd") }
    }
}
