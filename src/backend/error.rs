//! Why an operation on a backend failed, and whether it may have had its effect all the same.
//!
//! The volume service decides what a caller is told and what recovery has to examine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::model::backend::{BackendId, BackendName};

/// Why an operation on a backend failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackendError {
    /// The backend's root cannot be used: it is missing, not mounted, or not the expected one. Nothing was done.
    #[error("backend {:?} is offline: {reason}", .backend.as_str())]
    Offline {
        /// The backend.
        backend: BackendName,
        /// The fault and its remedy.
        reason: String,
    },
    /// As many operations as the backend may have at once are waiting for its storage, and none ends. Nothing was done.
    #[error(
        "backend {:?} does not answer: {waiting} operations wait for it, the longest for {}",
        .backend.as_str(), seconds(.longest)
    )]
    Busy {
        /// The backend.
        backend: BackendName,
        /// The number of operations that are under way or queued.
        waiting: usize,
        /// How long the oldest of them has been under way.
        longest: Duration,
    },
    /// The name is taken. Nothing was done.
    #[error("{} exists already{}", .path.display(), occupant(*.directory, .listed.as_deref()))]
    Occupied {
        /// The path that is taken.
        path: PathBuf,
        /// True if it is a real directory, which a volume could adopt.
        directory: bool,
        /// The path under which the entry is listed, if the storage takes that and `path` for the same.
        listed: Option<PathBuf>,
    },
    /// The directory to be moved or opened is missing. Nothing was done.
    #[error("{} does not exist", .path.display())]
    Missing {
        /// What is missing.
        path: PathBuf,
    },
    /// Something that is not a directory stands where one is needed; a symbolic link is never followed. Nothing was
    /// done.
    #[error("{} is not a directory; volhost follows no symbolic link below a backend", .path.display())]
    NotADirectory {
        /// The path of the entry.
        path: PathBuf,
    },
    /// Another file system is mounted there. Nothing was done.
    #[error("{} is a mount point: unmount it first (findmnt shows what it is)", .path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
    },
    /// Another user owns the directory and does not let this process write into it. The kernel requires that for moving
    /// it to another parent, except from root. Nothing was done.
    #[error(
        "{} belongs to user {owner}, and only that user and root may move it: give it to the user that volhost runs as \
         (`chown {us} {}` as root; in a container of a rootless engine, `chown 0` of the volume's directory) and try again",
        .path.display(), .path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The user that owns it.
        owner: u32,
        /// The user that this process runs as.
        us: u32,
    },
    /// A directory that must be empty is not. Nothing was done.
    #[error("{} is not empty", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The storage does not give a directory the requested owner or mode. The directory was removed again.
    #[error(
        "{} cannot be given owner {uid}:{gid} and mode {mode:04o}: the storage made it {found}; where it maps owners \
         (root_squash, vfat, CIFS), set the backend's uid, gid and mode to those",
        .path.display()
    )]
    Ownership {
        /// The directory.
        path: PathBuf,
        /// The requested user.
        uid: u32,
        /// The requested group.
        gid: u32,
        /// The requested mode.
        mode: u32,
        /// The owner and mode that it got, as `UID:GID MODE`.
        found: String,
        /// The storage's error, if it returned one.
        #[source]
        source: Option<Errno>,
    },
    /// The root holds another backend's identity already. Nothing was done.
    #[error(
        "{} holds a backend already (id {found}): `volhost backend adopt {}` takes it over",
        .path.display(), .backend.as_str()
    )]
    Identified {
        /// The backend whose identity was to be written.
        backend: BackendName,
        /// Its root.
        path: PathBuf,
        /// The identity found there.
        found: BackendId,
    },
    /// The operating system refused a call.
    #[error("cannot {what} {}{}", .path.display(), afterwards(*.effect))]
    Io {
        /// The attempted action, as a verb.
        what: &'static str,
        /// The path that it concerned.
        path: PathBuf,
        /// The effect that the operation may have had all the same.
        effect: Effect,
        /// The operating system's error.
        #[source]
        source: Errno,
    },
    /// The work ended without a result: it panicked, or the program is stopping.
    #[error("an operation on backend {:?} broke off", .backend.as_str())]
    Interrupted {
        /// The backend.
        backend: BackendName,
    },
}

/// The possible effect of a failed call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It certainly had no lasting effect.
    None,
    /// It may have been done, or may not be durable: look again once the backend answers.
    Unknown,
}

impl BackendError {
    /// Returns true if the operation may have had its effect although it failed. If false, the name or directory
    /// concerned is certainly as before.
    #[must_use]
    pub fn effect_unknown(&self) -> bool {
        match self {
            Self::Io { effect, .. } => *effect == Effect::Unknown,
            Self::Interrupted { .. } => true,
            Self::Offline { .. }
            | Self::Busy { .. }
            | Self::Occupied { .. }
            | Self::Missing { .. }
            | Self::NotADirectory { .. }
            | Self::MountPoint { .. }
            | Self::Foreign { .. }
            | Self::NotEmpty { .. }
            | Self::Ownership { .. }
            | Self::Identified { .. } => false,
        }
    }

    /// Returns the error of a refused call that certainly had no effect.
    pub(super) fn io(what: &'static str, path: &Path, source: Errno) -> Self {
        match source {
            Errno::LOOP | Errno::NOTDIR => Self::NotADirectory { path: path.into() },
            Errno::XDEV => Self::MountPoint { path: path.into() },
            _ => Self::Io { what, path: path.into(), effect: Effect::None, source },
        }
    }

    /// Returns the error of a refused call that may have had its effect.
    pub(super) fn uncertain(what: &'static str, path: &Path, source: Errno) -> Self {
        Self::Io { what, path: path.into(), effect: Effect::Unknown, source }
    }

    /// Returns the operating system's error if it means that the storage itself is gone, rather than one entry on it.
    pub(crate) fn storage_gone(&self) -> Option<Errno> {
        let Self::Io { source, .. } = self else { return None };
        let gone = [
            Errno::STALE,
            Errno::NOTCONN,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::SHUTDOWN,
            Errno::TIMEDOUT,
            Errno::NXIO,
            Errno::NODEV,
            Errno::REMOTEIO,
        ];
        gone.contains(source).then_some(*source)
    }
}

fn occupant(directory: bool, listed: Option<&Path>) -> String {
    match listed {
        Some(listed) => {
            format!(" as {}, from which this storage does not tell it apart: choose another name", listed.display())
        }
        None if directory => {
            " and is no volume of this catalog: `volhost volume create -o adopt=true` on the storage host makes it one"
                .into()
        }
        None => " and is not a directory".into(),
    }
}

fn afterwards(effect: Effect) -> &'static str {
    match effect {
        Effect::None => "",
        Effect::Unknown => " (it may have been done)",
    }
}

fn seconds(duration: &Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording_names_the_backend_the_cause_and_the_remedy() {
        let backend = BackendName::parse("fast").unwrap();
        let offline = BackendError::Offline {
            backend: backend.clone(),
            reason: "/mnt/fast/volumes does not exist; is the share mounted?".into(),
        };
        assert_eq!(
            offline.to_string(),
            "backend \"fast\" is offline: /mnt/fast/volumes does not exist; is the share mounted?"
        );
        let busy = BackendError::Busy { backend, waiting: 80, longest: Duration::from_millis(65_400) };
        assert_eq!(
            busy.to_string(),
            "backend \"fast\" does not answer: 80 operations wait for it, the longest for 1m 5s"
        );
        let occupied = BackendError::Occupied { path: "/srv/db".into(), directory: true, listed: None };
        assert!(occupied.to_string().contains("-o adopt=true"), "{occupied}");
    }

    #[test]
    fn who_may_not_move_a_directory_is_told_who_can_mend_that() {
        let error = BackendError::Foreign { path: "/srv/db".into(), owner: 999, us: 1000 };
        assert_eq!(
            error.to_string(),
            "/srv/db belongs to user 999, and only that user and root may move it: give it to the user that volhost \
             runs as (`chown 1000 /srv/db` as root; in a container of a rootless engine, `chown 0` of the volume's \
             directory) and try again"
        );
        assert!(!error.effect_unknown());
    }

    #[test]
    fn an_error_never_repeats_its_source() {
        let error = BackendError::uncertain("rename", Path::new("/srv/db"), Errno::IO);
        assert_eq!(error.to_string(), "cannot rename /srv/db (it may have been done)");
        assert!(error.effect_unknown());
        assert!(crate::error::chain(&error).contains("Input/output error"));
        assert!(!BackendError::io("rename", Path::new("/srv/db"), Errno::NOSPC).effect_unknown());
    }
}
