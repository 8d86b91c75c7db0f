//! Why an operation on a volume was refused, in words for the caller.
//!
//! The protocols have no error messages of their own: they send this text with the status that belongs to its
//! [`Blame`].

use std::time::Duration;

use super::holders::Holders;
use crate::backend::{Adoptable, BackendError, NameFolding};
use crate::catalog::CatalogError;
use crate::host::access::Denied;
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::options::{Difference, InvalidOptions};
use crate::model::right::Right;
use crate::model::volume::{InvalidMountId, InvalidVolumeName, VolumeName};

/// Why an operation was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is no volume name.
    #[error(transparent)]
    Name(#[from] InvalidVolumeName),
    /// The text is no mount ID.
    #[error(transparent)]
    MountId(#[from] InvalidMountId),
    /// An option is unknown or not understood.
    #[error(transparent)]
    Options(#[from] InvalidOptions),
    /// There is no such volume, or this host may not see it.
    #[error("no such volume: {0:?}")]
    NoSuchVolume(String),
    /// The trash has nothing of that name or ID.
    #[error("no removed volume {0:?}: `volhost volume ls --trash` lists them")]
    NotInTrash(String),
    /// The removed volume's data is being deleted, or is due for deletion now.
    #[error("removed volume {0} is being deleted: its data may be gone in part")]
    BeingDeleted(VolumeName),
    /// The name belongs to a volume that the host may not see.
    #[error("the name {0} is taken by a volume that this host may not use: choose another one")]
    NameTaken(VolumeName),
    /// The volume exists with other options.
    #[error("volume {name} exists with other options: {}", list(.differences))]
    Different {
        /// The volume.
        name: VolumeName,
        /// The options that differ.
        differences: Vec<Difference>,
    },
    /// A volume of that name exists, so it cannot be created or restored.
    #[error("volume {0} exists already")]
    Exists(VolumeName),
    /// The map has no such backend, or none that this host may use.
    #[error("there is no backend {name}{}", choices(.known))]
    NoSuchBackend {
        /// The backend that was asked for.
        name: BackendName,
        /// The backends that the host may use.
        known: Vec<BackendName>,
    },
    /// A host named a backend that is not in the map, or not open to it. The host is not told which.
    #[error("backend {name} does not exist or is not open to this host{}", choices(.known))]
    BackendOutOfSight {
        /// The backend that was asked for.
        name: BackendName,
        /// The backends that the host may use.
        known: Vec<BackendName>,
    },
    /// No backend is open to the host, whether or not the map has any.
    #[error("host {host} may not {right} {}: {}", object(*.right), nothing_open(*.listed))]
    NothingOpen {
        /// The host.
        host: HostName,
        /// The right that it needs.
        right: Right,
        /// True if the configuration lists the host.
        listed: bool,
    },
    /// The options name no backend, and there is no default.
    #[error(
        "no backend that this host may use is called `default`: say which one by -o backend=NAME{}",
        choices(.known)
    )]
    BackendNotSaid {
        /// The backends that the host may use.
        known: Vec<BackendName>,
    },
    /// The backend takes no new volumes.
    #[error("backend {0} is draining: it takes no new volumes; choose another one by -o backend=NAME")]
    Draining(BackendName),
    /// The host lacks the right.
    #[error("host {host} may not {right} {} on backend {backend}: {why}{}", object(*.right), instead(*.right))]
    Forbidden {
        /// The host.
        host: HostName,
        /// The right that it lacks.
        right: Right,
        /// The backend.
        backend: BackendName,
        /// Why the host lacks it.
        why: Denied,
    },
    /// The host has as many volumes as it may have.
    #[error(
        "host {host} has created or mounted {limit} volumes, as many as limits.volumes_per_host allows: remove some, or \
         raise the limit in volhost.json"
    )]
    TooManyVolumes {
        /// The host.
        host: HostName,
        /// `limits.volumes_per_host`.
        limit: usize,
    },
    /// The host has as many mounts as it may have.
    #[error(
        "host {host} has {limit} mounts, as many as limits.mounts_per_host allows: `volhost mount ls --host {host}` lists \
         them, `volhost mount release` ends what is stale; or raise the limit in volhost.json"
    )]
    TooManyMounts {
        /// The host.
        host: HostName,
        /// `limits.mounts_per_host`.
        limit: usize,
    },
    /// The directory to adopt is not there.
    #[error("backend {backend} has no directory {name} to adopt{}", instead_of_it(.found))]
    NothingToAdopt {
        /// The backend.
        backend: BackendName,
        /// The directory's name.
        name: VolumeName,
        /// What is there instead.
        found: Adoptable,
    },
    /// The name is another spelling of another volume's directory.
    #[error(
        "{name} is the same directory as volume {other} on backend {backend}{}: choose another name",
        storage(*.folding)
    )]
    SameDirectory {
        /// The name that was asked for.
        name: VolumeName,
        /// The volume that has the directory.
        other: VolumeName,
        /// The backend of both.
        backend: BackendName,
        /// How its storage folds names.
        folding: NameFolding,
    },
    /// Hosts use the volume.
    #[error(
        "volume {name} is in use by {holders}; `volhost mount ls` shows it, `volhost mount release` ends what is stale"
    )]
    Mounted {
        /// The volume.
        name: VolumeName,
        /// The hosts and mounts that use it.
        holders: Holders,
    },
    /// The volume is exclusive, and another host uses it.
    #[error(
        "volume {name} is exclusive and in use by {holders}; once no container there uses it, or that host is gone for \
         good, `{}` frees it",
        holders.release(.name.as_str())
    )]
    Exclusive {
        /// The volume.
        name: VolumeName,
        /// The hosts and mounts that use it.
        holders: Holders,
    },
    /// The volume is exclusive, and another machine with this host's certificate uses it.
    #[error(
        "volume {name} is exclusive and mounted by host {host} from {held}, and {host} is cloned: its certificate is used \
         from {addresses} in turn, so that this call may be another machine's. If those are one machine's, list them as \
         \"addresses\" of {host} in the \"hosts\" of volhost.json; else give one of the machines a certificate of its \
         own by `volhost host renew {host}`, or better a name of its own by `volhost host add`"
    )]
    Cloned {
        /// The volume.
        name: VolumeName,
        /// The host.
        host: HostName,
        /// The addresses that have it mounted.
        held: String,
        /// The addresses that use the host's certificate.
        addresses: String,
    },
    /// The volume's backend has left the map.
    #[error(
        "volume {name} lies on backend {backend}, which is not in the backend map: put it back to use the volume"
    )]
    Unmapped {
        /// The volume.
        name: VolumeName,
        /// Its backend.
        backend: BackendName,
    },
    /// The volume's directory is gone.
    #[error("volume {name} has no directory on backend {backend}: {path} is gone; was it moved by hand?")]
    DirectoryGone {
        /// The volume.
        name: VolumeName,
        /// Its backend.
        backend: BackendName,
        /// Where the directory should be.
        path: String,
    },
    /// Something else stands where the volume's directory should.
    #[error(
        "volume {name} has no directory on backend {backend}: {path} is {found}, which volhost does not follow or use; \
         put the directory back in its place"
    )]
    NotADirectory {
        /// The volume.
        name: VolumeName,
        /// Its backend.
        backend: BackendName,
        /// Where the directory should be.
        path: String,
        /// The kind of thing that stands there.
        found: &'static str,
    },
    /// An earlier operation on the volume is unfinished and cannot be finished now.
    #[error(
        "an earlier operation on volume {0} was cut off and is not mended yet: volhost's log or `volhost backend ls` says why"
    )]
    RecoveryPending(VolumeName),
    /// The backend has no identity, or not the one that the catalog knows.
    #[error("backend {backend:?} is offline: {reason}")]
    Identity {
        /// The backend.
        backend: BackendName,
        /// The fault and its remedy.
        reason: String,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The catalog refused or failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The operation took longer than a request may take, and was given up.
    #[error("this took longer than {}, the limit of a request, and was given up: {}", humantime::format_duration(*.limit), slow(.catalog.as_deref()))]
    TooLong {
        /// `limits.request`.
        limit: Duration,
        /// The catalog's fault, if one is known.
        catalog: Option<String>,
    },
    /// Nobody waits for the answer.
    #[error("the caller has gone")]
    Abandoned,
    /// The operation may or may not have been done.
    #[error("whether this was done is not known")]
    Unknown,
    /// The service is stopping.
    #[error("volhost is stopping")]
    Stopping,
}

/// Who can do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The caller can, by asking for something else.
    Caller,
    /// The operator can, by giving the host the right or more room.
    Rights,
    /// The people who run volhost or its storage can.
    Service,
    /// The outcome is not known, so no answer is sent.
    Unknown,
}

impl Error {
    /// Returns who can do something about the error.
    #[must_use]
    pub fn blame(&self) -> Blame {
        match self {
            Self::Name(_)
            | Self::MountId(_)
            | Self::Options(_)
            | Self::NoSuchVolume(_)
            | Self::NotInTrash(_)
            | Self::BeingDeleted(_)
            | Self::Different { .. }
            | Self::Exists(_)
            | Self::NoSuchBackend { .. }
            | Self::BackendOutOfSight { .. }
            | Self::BackendNotSaid { .. }
            | Self::Draining(_)
            | Self::NothingToAdopt { .. }
            | Self::SameDirectory { .. }
            | Self::Mounted { .. }
            | Self::Exclusive { .. }
            | Self::Cloned { .. } => Blame::Caller,
            Self::NameTaken(_)
            | Self::Forbidden { .. }
            | Self::NothingOpen { .. }
            | Self::TooManyVolumes { .. }
            | Self::TooManyMounts { .. } => Blame::Rights,
            Self::Backend(
                BackendError::Occupied { .. }
                | BackendError::MountPoint { .. }
                | BackendError::Foreign { .. },
            ) => Blame::Caller,
            Self::Catalog(CatalogError::Refused(_)) => Blame::Caller,
            Self::Unmapped { .. }
            | Self::DirectoryGone { .. }
            | Self::NotADirectory { .. }
            | Self::RecoveryPending(_)
            | Self::Identity { .. }
            | Self::Backend(_)
            | Self::Catalog(_)
            | Self::TooLong { .. }
            | Self::Abandoned
            | Self::Stopping => Blame::Service,
            Self::Unknown => Blame::Unknown,
        }
    }
}

fn object(right: Right) -> &'static str {
    match right {
        Right::Create | Right::Mount | Right::Remove => "volumes",
        Right::Adopt => "directories",
    }
}

/// Returns who can do it instead of the host.
fn instead(right: Right) -> &'static str {
    match right {
        Right::Adopt => {
            "; the operator may, by `volhost volume create -o adopt=true NAME` on the storage host"
        }
        Right::Create | Right::Mount | Right::Remove => "",
    }
}

fn nothing_open(listed: bool) -> &'static str {
    if listed {
        "no backend is open to it (`hosts` of the backends, and its `backends` in the `hosts` of the configuration)"
    } else {
        "the `hosts` of the configuration name neither it nor \"*\""
    }
}

/// Returns what may have taken so long.
fn slow(catalog: Option<&str>) -> String {
    match catalog {
        Some(fault) => format!("the catalog takes no changes at present: {fault}"),
        None => "`volhost backend ls` shows which backend does not answer".into(),
    }
}

fn instead_of_it(found: &Adoptable) -> String {
    match found {
        Adoptable::ListedAs(listed) => format!(": its storage takes that name for {listed}"),
        Adoptable::NotADirectory(kind) => {
            format!(": {kind} stands there, which volhost does not follow or use")
        }
        Adoptable::Directory { .. } | Adoptable::Missing => String::new(),
    }
}

fn storage(folding: NameFolding) -> String {
    if folding.is_exact() { String::new() } else { format!(", whose storage {folding}") }
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn choices(known: &[BackendName]) -> String {
    if known.is_empty() {
        return "; this host may use none".into();
    }
    let names: Vec<_> = known.iter().map(BackendName::as_str).collect();
    match &*names {
        [only] => format!("; there is only {only}"),
        names => format!("; there are {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_too_long_is_the_catalogs_fault_where_that_has_one() {
        let limit = Duration::from_secs(20);
        let told =
            |catalog: Option<&str>| Error::TooLong { limit, catalog: catalog.map(str::to_owned) }.to_string();
        assert_eq!(
            told(None),
            "this took longer than 20s, the limit of a request, and was given up: `volhost backend ls` shows which \
             backend does not answer"
        );
        assert_eq!(
            told(Some("no space left")),
            "this took longer than 20s, the limit of a request, and was given up: the catalog takes no changes at \
             present: no space left"
        );
    }

    #[test]
    fn a_catalog_out_of_reach_is_ours_to_mend_and_named() {
        let error = Error::from(CatalogError::Unreachable {
            location: "etcd://127.0.0.1:2379/volhost".into(),
            why: std::sync::Arc::new("no member answers".into()),
        });
        assert_eq!(error.blame(), Blame::Service);
        assert_eq!(
            crate::error::chain(&error),
            "the catalog etcd://127.0.0.1:2379/volhost is out of reach: no member answers; what was known before is \
             still shown"
        );
    }

    #[test]
    fn backends_that_can_be_chosen_are_listed() {
        let known = ["fast", "slow"].map(|name| BackendName::parse(name).unwrap()).to_vec();
        assert_eq!(
            Error::BackendNotSaid { known }.to_string(),
            "no backend that this host may use is called `default`: say which one by -o backend=NAME; there are fast, slow"
        );
        assert_eq!(
            Error::NoSuchBackend { name: BackendName::parse("x").unwrap(), known: Vec::new() }.to_string(),
            "there is no backend x; this host may use none"
        );
        let known = vec![BackendName::parse("fast").unwrap()];
        assert_eq!(
            Error::NoSuchBackend { name: BackendName::parse("x").unwrap(), known }.to_string(),
            "there is no backend x; there is only fast"
        );
    }
}
