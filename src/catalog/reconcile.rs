//! Compares catalogs with the directories on backends, and merges copies of a catalog into one.
//!
//! Pure: the caller has examined the backends. Nothing here deletes anything, and a directory without a record never
//! becomes a volume: it is reported, and the operator may adopt it.

mod compare;
mod merge;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::compare::compare;
pub(crate) use self::merge::{Source, merge};
use crate::model::backend::{BackendId, BackendName};
use crate::model::mountpoints::Mountpoints;
use crate::model::options::Ownership;
use crate::model::volume::{VolumeId, VolumeName};

/// What was found on a backend that was examined.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The identity; `None` if the backend has none.
    pub id: Option<BackendId>,
    /// The paths under which hosts see it.
    pub mountpoints: Mountpoints,
    /// The directories whose names are valid volume names.
    pub directories: BTreeSet<VolumeName>,
    /// Entries with a valid volume name that are not directories, and their kind.
    pub others: BTreeMap<VolumeName, &'static str>,
    /// The owners and modes of the directories that were asked for.
    pub owners: BTreeMap<VolumeName, Ownership>,
    /// The directories that are being made.
    pub staged: BTreeSet<VolumeId>,
    /// The directories in the trash.
    pub trashed: BTreeSet<VolumeId>,
    /// The directories whose deletion has begun: remains of removed volumes.
    pub deleting: BTreeSet<VolumeId>,
}

impl Facts {
    /// Returns true if only the remains of an unfinished deletion are left of a removed volume.
    fn is_deleting(&self, id: VolumeId) -> bool {
        self.deleting.contains(&id) && !self.trashed.contains(&id)
    }

    /// Returns true if the volume's directory shows that it was removed.
    fn is_removed(&self, id: VolumeId) -> bool {
        self.trashed.contains(&id) || self.deleting.contains(&id)
    }
}

/// The facts of every backend that was examined.
pub(crate) type AllFacts = BTreeMap<BackendName, Facts>;

/// The kinds of differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A volume without a directory.
    Missing,
    /// A volume whose directory has another owner or mode than its options gave it: worth knowing, but not a fault.
    Owner,
    /// A directory that belongs to no volume: it can be adopted.
    Found,
    /// A directory of an existing volume that is being made or removed: the next start of the service finishes or
    /// undoes it.
    HalfDone,
    /// A directory in `.volhost/new` or `.volhost/trash` that belongs to no known volume.
    Leftover,
    /// A removed volume whose directory is not in the trash.
    NotInTrash,
    /// Remains of a volume whose deletion has begun, although the catalog does not say so.
    Deleting,
    /// A record that came from an older copy than the rest.
    Older,
    /// A volume that was removed after the copy was made.
    RemovedSince,
    /// Copies, or a copy and a backend, that contradict each other.
    Conflict,
}

impl Kind {
    /// Returns true if something needs repair.
    #[must_use]
    pub fn is_fault(self) -> bool {
        self != Self::Owner
    }

    /// Returns the word for it in tables and JSON.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Owner => "owner",
            Self::Found => "found",
            Self::HalfDone => "half-done",
            Self::Leftover => "leftover",
            Self::NotInTrash => "not in trash",
            Self::Deleting => "being deleted",
            Self::Older => "older copy",
            Self::RemovedSince => "removed since",
            Self::Conflict => "conflict",
        }
    }
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The backend concerned; `None` if the difference concerns only the catalog.
    pub backend: Option<BackendName>,
    /// What kind it is.
    pub kind: Kind,
    /// The volume, host or identity concerned.
    pub name: String,
    /// What it means, and what the operator can do.
    pub what: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, backend: &BackendName, kind: Kind, name: &impl ToString, what: impl Into<String>) {
        let (backend, name, what) = (Some(backend.clone()), name.to_string(), what.into());
        self.0.push(Finding { backend, kind, name, what });
    }

    fn sorted(mut self) -> Vec<Finding> {
        self.0.sort();
        self.0.dedup();
        self.0
    }
}
