//! Changes of a catalog: every [`Change`], what it concerns, and its outcome.
//!
//! A new change needs a variant, its [`Footprint`], its rule in [`View::apply`](super::View), and an arm in
//! [`View::premises`](super::View) if it depends on more rows than those of its footprint. The compiler asks for each.
//! Locks, conditions and freshness follow from the footprint.

use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use super::{BackendRecord, Certificate, Removed, View, Volume};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// A change to the catalog, decided and made durable as a whole.
#[derive(Debug, Clone)]
pub enum Change {
    /// Records a volume that is not visible yet and that nobody has mounted. Refused if the name is taken.
    Insert(Volume),
    /// Makes an inserted or restored volume visible, once its directory has its name. Visibility is not recorded: every
    /// volume of a catalog that is opened is visible.
    Publish(VolumeName, VolumeId),
    /// Records of volumes, at most [`MAX_CONFIRMED`], that their directories are durable. Nobody waits for it: see
    /// [`Change::may_follow`]. A volume that no longer exists is skipped.
    Confirm(Vec<(VolumeName, VolumeId)>),
    /// Takes back an insertion that never became visible. Refused as `Exists` if it has become visible.
    Withdraw(VolumeName, VolumeId),
    /// Removes a visible volume; refused while any host has it mounted. `keep` says whether its directory went to the
    /// trash and can be restored; an adopted volume is only forgotten.
    Remove {
        /// The volume's name.
        name: VolumeName,
        /// The volume to remove: a later one of the same name is not removed.
        id: VolumeId,
        /// The time of the removal.
        at: time::OffsetDateTime,
        /// True if the trash keeps its directory.
        keep: bool,
    },
    /// Brings a removed volume back, hidden until it is published. Refused if the name is taken.
    Restore(VolumeId),
    /// Takes back a restoration that never became visible: the volume is in the trash again, as if it had never left
    /// it. Refused as `Exists` if it has become visible.
    Unrestore {
        /// The volume's name.
        name: VolumeName,
        /// The volume that was restored.
        id: VolumeId,
        /// The time of the removal, from the [`Outcome::trashed`] of the [`Restore`](Change::Restore).
        at: time::OffsetDateTime,
    },
    /// Marks a removed volume for deletion now, before its retention time is over. Refused as `NotInTrash` if the
    /// volume was restored and removed again meanwhile.
    Expire {
        /// The volume.
        id: VolumeId,
        /// The time of the removal.
        removed: time::OffsetDateTime,
    },
    /// Forgets a removed volume whose directory is gone for good.
    Forget(VolumeId),
    /// Counts one Mount of a visible volume under the host's present activation, and records that the host knows the
    /// volume.
    Mount {
        /// The volume's name.
        name: VolumeName,
        /// The volume to mount: a later one of the same name is not mounted.
        volume: VolumeId,
        /// The host whose engine mounts it.
        host: HostName,
        /// The engine's ID.
        id: MountId,
        /// The address that the host called from; `None` if it did not call over a network.
        address: Option<IpAddr>,
        /// The time of the Mount.
        at: time::OffsetDateTime,
        /// True if the Mount may only repeat an earlier one: refused as `NotMounted` unless this host and ID are
        /// counted already. A repetition is not refused because of another host's mounts.
        again: bool,
    },
    /// Takes back a Mount whose answer did not reach its engine; see [`Ledger::take_back`]. Changes nothing if the
    /// ledger's entry has changed since.
    ///
    /// [`Ledger::take_back`]: crate::model::mounts::Ledger::take_back
    TakeBack {
        /// The volume's name.
        name: VolumeName,
        /// The volume that was mounted.
        volume: VolumeId,
        /// The ledger's entry as it was right after that Mount.
        counted: Mount,
    },
    /// Counts one Unmount on the newest activation with this host and ID. Changes nothing if there is no such mount.
    Unmount {
        /// The volume's name.
        name: VolumeName,
        /// The host whose engine unmounts it.
        host: HostName,
        /// The engine's ID.
        id: MountId,
        /// The mount that the Unmount was about when it was answered; `None` if it is decided before its answer.
        target: Option<UnmountTarget>,
    },
    /// Deletes mounts at the operator's request.
    Release {
        /// The volume's name.
        name: VolumeName,
        /// The host whose mounts are deleted.
        host: HostName,
        /// The mount to delete; `None` deletes all of the host's mounts.
        id: Option<MountId>,
        /// True if mounts that may be alive are deleted as well.
        alive_too: bool,
    },
    /// Begins a new activation of a host: mounts of earlier activations are stale from now on. Changes nothing if the
    /// present activation has no mount.
    Activate(HostName),
    /// Records a certificate that was issued to a host.
    Issue(HostName, Certificate),
    /// Revokes every certificate that the host has so far.
    Revoke(HostName, time::OffsetDateTime),
    /// Records when hosts were last seen; several at once, because nobody waits for it.
    Seen(Vec<(HostName, time::OffsetDateTime)>),
    /// Records that a host connected with a certificate of this issuer. Changes nothing for an unknown host.
    Connected(HostName, String),
    /// Records the address that a host's certificate was used from. This may show that several machines use the
    /// certificate, or that they no longer do.
    Called {
        /// The host.
        host: HostName,
        /// The certificate's serial number.
        serial: String,
        /// The address.
        from: IpAddr,
        /// The time of the call.
        at: time::OffsetDateTime,
    },
    /// Records that the addresses which made a host look cloned belong to one machine.
    NotCloned(HostName),
    /// Names the machine that serves the catalog. Everything recorded under its former name, mounts included, moves
    /// along.
    Name(Uuid, HostName),
    /// Records what is known of a backend, or forgets the backend.
    Backend(BackendName, Option<BackendRecord>),
    /// Records a backend that the catalog does not know yet. Refused if the catalog has come to know it meanwhile.
    Introduce(BackendName, BackendRecord),
}

/// The largest number of volumes in a [`Change::Confirm`]: a shared engine writes them in one transaction.
pub const MAX_CONFIRMED: usize = 50;

/// The mount that an Unmount was about. An Unmount that is decided after its answer must not count down a later mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmountTarget {
    /// The volume of that name at that time, if there was one.
    pub volume: Option<VolumeId>,
    /// The host's activation at that time: mounts of later activations are not counted down.
    pub activation: Activation,
}

/// The subjects of a change. Engines derive from it the locks that they take, the conditions under which a decision
/// holds, and how fresh the view must be. A new change is described here, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// The volumes that the change reads and writes, with their mounts.
    pub(crate) volumes: Vec<VolumeName>,
    /// The removed volume that the change puts into the trash or takes out.
    pub(crate) removed: Option<VolumeId>,
    pub(crate) hosts: Vec<HostName>,
    pub(crate) host_access: Access,
    pub(crate) backend: Option<BackendName>,
    pub(crate) directory: DirectoryUse,
    pub(crate) freshness: Freshness,
}

/// The kind of access of a change: it reads or writes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The effect of a change on a volume's directory, which only one instance at a time may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirectoryUse {
    /// The change has no effect on a directory.
    None,
    /// This instance moves the directory from now on, and the volume is hidden until it is shown or withdrawn.
    BeginMove(VolumeId),
    /// This instance has moved the directory.
    EndMove(VolumeId),
    /// No other instance may be moving the directory.
    Unmoved(VolumeId),
}

/// How fresh the view of a decision must be if several instances serve the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The premises of the decision tell whether it still holds. A refusal has no premises, so it needs a fresh view.
    ForRefusal,
    /// A decision that there is nothing to do has no premises either, so it needs a fresh view like a refusal.
    ForNothingToDo,
    /// The decision depends on more than its premises, so it always needs a fresh view.
    Always,
}

impl Change {
    /// Returns what this change concerns. The view resolves names that the change itself does not contain.
    pub(crate) fn footprint(&self, view: &View) -> Footprint {
        let nothing = Footprint {
            volumes: Vec::new(),
            removed: None,
            hosts: Vec::new(),
            host_access: Access::Read,
            backend: None,
            directory: DirectoryUse::None,
            freshness: Freshness::ForRefusal,
        };
        let of_volume = |name: &VolumeName| Footprint { volumes: vec![name.clone()], ..nothing.clone() };
        let of_mount = |name: &VolumeName, host: &HostName| Footprint {
            hosts: vec![host.clone()],
            host_access: Access::Read,
            ..of_volume(name)
        };
        let of_hosts =
            |hosts: Vec<HostName>| Footprint { hosts, host_access: Access::Write, ..nothing.clone() };
        match self {
            Self::Insert(volume) => {
                Footprint { directory: DirectoryUse::BeginMove(volume.id), ..of_volume(&volume.name) }
            }
            Self::Publish(name, id) => Footprint {
                directory: DirectoryUse::EndMove(*id),
                freshness: Freshness::ForNothingToDo,
                ..of_volume(name)
            },
            Self::Confirm(volumes) => {
                Footprint { volumes: volumes.iter().map(|(name, _)| name.clone()).collect(), ..nothing }
            }
            Self::Withdraw(name, id) => {
                Footprint { directory: DirectoryUse::EndMove(*id), ..of_volume(name) }
            }
            Self::Remove { name, id, .. } => {
                Footprint { removed: Some(*id), directory: DirectoryUse::Unmoved(*id), ..of_volume(name) }
            }
            Self::Restore(id) => Footprint {
                volumes: view.trash.get(id).map(|removed| removed.volume.name.clone()).into_iter().collect(),
                removed: Some(*id),
                directory: DirectoryUse::BeginMove(*id),
                ..nothing
            },
            Self::Unrestore { name, id, .. } => {
                Footprint { removed: Some(*id), directory: DirectoryUse::EndMove(*id), ..of_volume(name) }
            }
            Self::Expire { id, .. } => Footprint { removed: Some(*id), ..nothing },
            Self::Forget(id) => {
                Footprint { removed: Some(*id), directory: DirectoryUse::Unmoved(*id), ..nothing }
            }
            Self::Mount { name, volume, host, .. } => {
                Footprint { directory: DirectoryUse::Unmoved(*volume), ..of_mount(name, host) }
            }
            Self::TakeBack { name, counted, .. } => {
                Footprint { freshness: Freshness::ForNothingToDo, ..of_mount(name, &counted.host) }
            }
            Self::Unmount { name, host, .. } => {
                Footprint { freshness: Freshness::ForNothingToDo, ..of_mount(name, host) }
            }
            // The decision depends on every mount that the operator was shown.
            Self::Release { name, host, .. } => {
                Footprint { freshness: Freshness::Always, ..of_mount(name, host) }
            }
            // Only all ledgers together tell whether the present activation has a mount.
            Self::Activate(host) => {
                Footprint { freshness: Freshness::Always, ..of_hosts(vec![host.clone()]) }
            }
            Self::Issue(host, _)
            | Self::Revoke(host, _)
            | Self::Connected(host, _)
            | Self::Called { host, .. }
            | Self::NotCloned(host) => of_hosts(vec![host.clone()]),
            Self::Seen(hosts) => of_hosts(hosts.iter().map(|(host, _)| host.clone()).collect()),
            Self::Name(machine, name) => {
                let earlier = view.name_of(*machine).into_iter();
                let hosts = earlier.chain([name.clone()]).collect();
                Footprint { freshness: Freshness::Always, ..of_hosts(hosts) }
            }
            Self::Backend(name, _) | Self::Introduce(name, _) => {
                Footprint { backend: Some(name.clone()), freshness: Freshness::Always, ..nothing }
            }
        }
    }

    /// Returns true if this change may become durable after its answer: in the same transaction as the next durable
    /// change, or soon if there is none. A catalog that is opened after a crash may then show the volume as
    /// unconfirmed, and whoever finds its directory confirms it again.
    #[must_use]
    pub fn may_follow(&self) -> bool {
        matches!(self, Self::Publish(..) | Self::Confirm(_))
    }
}

/// The outcome of a change.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The volume before the change, if the change concerns one that existed.
    pub before: Option<Arc<Volume>>,
    /// The volume after the change, if it exists then.
    pub after: Option<Arc<Volume>>,
    /// The mounts that an `Unmount`, a `TakeBack` or a `Release` deleted or counted down, as they were before.
    pub released: Vec<Mount>,
    /// The entry that the change put into the trash (`Remove`, `Unrestore`) or took out of it (`Restore`, `Forget`).
    pub trashed: Option<Arc<Removed>>,
    /// True if the host is cloned from now on, false if it no longer is; `None` if this did not change.
    pub cloned: Option<bool>,
}

/// Why the rules refused a change. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The name belongs to a volume already, visible or being made; or the volume to be taken back is visible.
    #[error("volume {} exists already", .0.name)]
    Exists(Arc<Volume>),
    /// There is no such volume, or another one has that name.
    #[error("no such volume")]
    NoSuchVolume,
    /// The trash has no volume of that ID.
    #[error("no such removed volume")]
    NotInTrash,
    /// The removed volume is being deleted or is about to be: it could not be restored whole.
    #[error("removed volume {} is being deleted", .0.volume.name)]
    Expired(Arc<Removed>),
    /// Hosts use the volume.
    #[error("volume {} is mounted", .0.name)]
    Mounted(Arc<Volume>),
    /// The volume is for one host at a time, and another host uses it.
    #[error("volume {} is exclusive and mounted by another host", .0.name)]
    Held(Arc<Volume>),
    /// The host has not mounted the volume with that ID, so there is nothing to repeat.
    #[error("volume {} is not mounted by that host and ID", .0.name)]
    NotMounted(Arc<Volume>),
    /// The volume is for one host at a time, and another machine with this host's certificate may use it.
    #[error("volume {} is exclusive and mounted from another address of a cloned host", .0.name)]
    Cloned(Arc<Volume>),
    /// Another instance is moving the volume's directory, or was until now: look again where the directory stands.
    #[error("volume {} is being moved by another instance", .0.name)]
    Moving(Arc<Volume>),
    /// The backend's identity belongs to another backend's name.
    #[error("this identity belongs to backend {0:?}")]
    IdentityTaken(BackendName),
    /// The catalog knows the backend already.
    #[error("the backend is known already, as {}", .0.id)]
    Known(Arc<BackendRecord>),
}
