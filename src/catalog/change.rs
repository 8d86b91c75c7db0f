//! Changes of a catalog: every [`Change`], what it concerns, and its outcome.
//!
//! Adding a change takes a variant, its [`Footprint`], and its rule in [`View::apply`](super::View). The footprint is the
//! only other place that names every variant: locks, conditions and freshness follow from it.

use std::net::IpAddr;
use std::sync::Arc;

use uuid::Uuid;

use super::{BackendRecord, Certificate, Removed, View, Volume};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// A change to the catalog, decided and made durable as one.
#[derive(Debug, Clone)]
pub enum Change {
    /// Records a volume that is not visible yet and that nobody mounts. Refused when the name is taken.
    Insert(Volume),
    /// Makes an inserted volume visible, once its directory stands durably under its name. That it is visible is not
    /// recorded: what a catalog held when it was opened is. That it is no longer `unconfirmed` is, but nobody waits for
    /// that: see [`Change::may_follow`].
    Publish(VolumeName, VolumeId),
    /// Takes back an insertion that never became visible. Refused as `Exists` once it did.
    Withdraw(VolumeName, VolumeId),
    /// Deletes a visible volume; refused while any host has a mount. `keep` says whether its directory went to the
    /// trash and can be restored; an adopted volume is only forgotten.
    Remove {
        /// The volume's name.
        name: VolumeName,
        /// The volume that was target: another one of that name is not removed.
        id: VolumeId,
        /// When it is removed.
        at: time::OffsetDateTime,
        /// True if the trash keeps its directory.
        keep: bool,
    },
    /// Brings a removed volume back, not visible until it is published. Refused when the name is taken.
    Restore(VolumeId),
    /// Takes back a restoration that never became visible: the volume is in the trash again, as if it had never left
    /// it. Refused as `Exists` once it was visible.
    Unrestore {
        /// The volume's name.
        name: VolumeName,
        /// The volume that was restored.
        id: VolumeId,
        /// When it had been removed: what the [`Restore`](Change::Restore) told in its [`Outcome::trashed`].
        at: time::OffsetDateTime,
    },
    /// Has a removed volume deleted now rather than when its time is over. Refused as `NotInTrash` where it is another
    /// removal that the volume is in the trash by.
    Expire {
        /// The volume.
        id: VolumeId,
        /// When it was removed.
        removed: time::OffsetDateTime,
    },
    /// Forgets a removed volume whose directory is gone for good.
    Forget(VolumeId),
    /// Counts one Mount of a visible volume under the host's present activation, and remembers that the host knows
    /// the volume.
    Mount {
        /// The volume's name.
        name: VolumeName,
        /// The volume that was meant.
        volume: VolumeId,
        /// Whose engine mounts it.
        host: HostName,
        /// The engine's ID.
        id: MountId,
        /// From where it called, over a network.
        address: Option<IpAddr>,
        /// When.
        at: time::OffsetDateTime,
        /// True if it is counted only as a repetition: refused as `NotMounted` unless this host and ID are counted
        /// already. A repetition is not refused for another host's mounts.
        again: bool,
    },
    /// Takes back a Mount of which its engine heard nothing; see [`Ledger::take_back`]. Changes nothing where the entry
    /// is another one by now.
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
    /// Counts one Unmount on the newest activation with this host and ID. What is not known changes nothing.
    Unmount {
        /// The volume's name.
        name: VolumeName,
        /// Whose engine unmounts it.
        host: HostName,
        /// The engine's ID.
        id: MountId,
        /// The mount that it was about when it was answered; `None` if it is decided before its answer.
        target: Option<UnmountTarget>,
    },
    /// Takes mounts out by the operator's word.
    Release {
        /// The volume's name.
        name: VolumeName,
        /// Whose mounts.
        host: HostName,
        /// The one to take out; `None` takes out all.
        id: Option<MountId>,
        /// True if mounts that may be alive are taken out as well.
        alive_too: bool,
    },
    /// Begins a new activation of a host: mounts of earlier ones are stale from now on. Changes nothing while the
    /// present activation has no mount.
    Activate(HostName),
    /// Records a certificate that was issued to a host.
    Issue(HostName, Certificate),
    /// Revokes every certificate that the host has so far.
    Revoke(HostName, time::OffsetDateTime),
    /// Notes when hosts were last seen; several at once, because nothing waits for it.
    Seen(Vec<(HostName, time::OffsetDateTime)>),
    /// Notes that a host connected with a certificate of this issuer. Changes nothing for a host that is not known.
    Connected(HostName, String),
    /// Notes from where a host's certificate is used, which may show that several machines use it, or that they do not
    /// any more.
    Called {
        /// The host.
        host: HostName,
        /// The certificate's serial number.
        serial: String,
        /// The address.
        from: IpAddr,
        /// When.
        at: time::OffsetDateTime,
    },
    /// Records that the addresses by which a host was taken for cloned are one machine's.
    NotCloned(HostName),
    /// Names the machine that serves the catalog. What it held under another name, its mounts among it, goes along.
    Name(Uuid, HostName),
    /// Records what is known of a backend, or forgets it.
    Backend(BackendName, Option<BackendRecord>),
    /// Records a backend that the catalog does not know yet. Refused when it does, by then.
    Introduce(BackendName, BackendRecord),
}

/// The mount that an Unmount was about. An Unmount that is decided after its answer must not take a later mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmountTarget {
    /// The volume, if there was one of that name.
    pub volume: Option<VolumeId>,
    /// The host's activation: mounts of later ones are others.
    pub activation: Activation,
}

/// The things that a change concerns. Engines derive from it the locks that they take, the conditions under which a decision
/// holds, and how fresh the view must be. A new change is described here, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footprint {
    /// The volume that it reads and changes, with its mounts.
    pub(crate) volume: Option<VolumeName>,
    /// The removed volume that it puts into the trash or takes out.
    pub(crate) removed: Option<VolumeId>,
    pub(crate) hosts: Vec<HostName>,
    pub(crate) host_access: Access,
    pub(crate) backend: Option<BackendName>,
    pub(crate) directory: DirectoryUse,
    pub(crate) freshness: Freshness,
}

/// The use that a change makes of something: it reads or writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// The effect of a change on the directory of a volume, which one instance at a time may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirectoryUse {
    /// Nothing.
    None,
    /// This instance moves it from now on, and the volume is hidden until it is shown or withdrawn.
    BeginMove(VolumeId),
    /// This instance has moved it.
    EndMove(VolumeId),
    /// No other instance may be moving it.
    Unmoved(VolumeId),
}

/// The freshness that a decision needs of its view, if several instances serve the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    /// The premises of the decision tell whether it still holds. Only a refusal has none, and needs a fresh view.
    ForRefusal,
    /// A decision that there is nothing to do has no premises either, and needs a fresh view like a refusal.
    ForNothingToDo,
    /// The decision depends on more than its premises.
    Always,
}

impl Change {
    /// Returns what this change concerns. The view resolves names that the change does not tell itself.
    pub(crate) fn footprint(&self, view: &View) -> Footprint {
        let nothing = Footprint {
            volume: None,
            removed: None,
            hosts: Vec::new(),
            host_access: Access::Read,
            backend: None,
            directory: DirectoryUse::None,
            freshness: Freshness::ForRefusal,
        };
        let of_volume = |name: &VolumeName| Footprint { volume: Some(name.clone()), ..nothing.clone() };
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
            Self::Withdraw(name, id) => {
                Footprint { directory: DirectoryUse::EndMove(*id), ..of_volume(name) }
            }
            Self::Remove { name, id, .. } => {
                Footprint { removed: Some(*id), directory: DirectoryUse::Unmoved(*id), ..of_volume(name) }
            }
            Self::Restore(id) => Footprint {
                volume: view.trash.get(id).map(|removed| removed.volume.name.clone()),
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
            // It takes out the mounts that the operator was shown.
            Self::Release { name, host, .. } => {
                Footprint { freshness: Freshness::Always, ..of_mount(name, host) }
            }
            // All ledgers together tell whether the present activation has a mount.
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

    /// Returns true if what this change records may become durable after its answer: in the same transaction as the next
    /// change that is durable, and soon if there is none. A catalog opened after a crash may then show the
    /// volume as unconfirmed, and whoever knows where it lies confirms it once more.
    #[must_use]
    pub fn may_follow(&self) -> bool {
        matches!(self, Self::Publish(..))
    }
}

/// The outcome of a change.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The volume as it was before, where the change concerns one that existed.
    pub before: Option<Arc<Volume>>,
    /// The volume as it is now, where there is one.
    pub after: Option<Arc<Volume>>,
    /// The mounts that an `Unmount`, a `TakeBack` or a `Release` took out or counted down, as they were before.
    pub released: Vec<Mount>,
    /// The entry of the trash that the change put in (`Remove`, `Unrestore`) or took out (`Restore`, `Forget`).
    pub trashed: Option<Arc<Removed>>,
    /// True if the host is cloned from now on, false if it is not any more; `None` if that is as before.
    pub cloned: Option<bool>,
}

/// Why a change was refused by the rules. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// The name belongs to a volume already, visible or being made; or what should be taken back is visible.
    #[error("volume {} exists already", .0.name)]
    Exists(Arc<Volume>),
    /// No such volume, or another one of that name.
    #[error("no such volume")]
    NoSuchVolume,
    /// No removed volume of that identity.
    #[error("no such removed volume")]
    NotInTrash,
    /// The removed volume is to be deleted, or is being deleted: what came back would not be whole.
    #[error("removed volume {} is being deleted", .0.volume.name)]
    Expired(Arc<Removed>),
    /// Hosts use the volume.
    #[error("volume {} is mounted", .0.name)]
    Mounted(Arc<Volume>),
    /// The volume is for one host at a time, and another one uses it.
    #[error("volume {} is exclusive and mounted by another host", .0.name)]
    Held(Arc<Volume>),
    /// The host has not mounted the volume with that ID, so that nothing is repeated.
    #[error("volume {} is not mounted by that host and ID", .0.name)]
    NotMounted(Arc<Volume>),
    /// The volume is for one host at a time, and another machine with this host's certificate may use it.
    #[error("volume {} is exclusive and mounted from another address of a cloned host", .0.name)]
    Cloned(Arc<Volume>),
    /// Another instance moves the volume's directory, or did until now: where it stands is to be looked at again.
    #[error("volume {} is being moved by another instance", .0.name)]
    Moving(Arc<Volume>),
    /// The backend's identity belongs to another backend's name.
    #[error("this identity belongs to backend {0:?}")]
    IdentityTaken(BackendName),
    /// The catalog knows the backend already.
    #[error("the backend is known already, as {}", .0.id)]
    Known(Arc<BackendRecord>),
}
