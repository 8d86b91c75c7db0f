//! The durable record of what exists: volumes, their mounts, removed volumes, hosts and backend identities.
//!
//! # How a catalog lives
//!
//! A catalog is a [`View`], which is immutable and answers every read from memory, and a way to
//! [`submit`](Catalog::submit) a [`Change`]. The rules of a change (what is refused, what becomes of a count) are pure
//! functions on the view, in [`rules`]; an engine only makes their [`Write`]s durable and orders them. One writer at a
//! time decides; a change that was answered `Ok` is durable; one that was answered with an error left nothing; and
//! the next view shows exactly the durable changes. Readers take no lock that a writer can hold. The one exception is a
//! change that tells nothing which could not be found out again ([`Change::may_follow`]): it is shown and answered at
//! once, and becomes durable with the next one.
//!
//! A catalog is opened once, before anything is served, and then stays whole: what it holds was read completely and
//! every row of it understood, or it was not opened and its files are as they were. Times are kept to the millisecond,
//! in memory as in the record, so that a restart changes nothing that a caller could have seen.
//!
//! This room never touches a volume's directory and knows no backend but its name and identity.

pub(crate) mod clones;
#[cfg(test)]
mod contract;
#[cfg(feature = "etcd")]
pub mod etcd;
pub(crate) mod node_name;
pub(crate) mod offline;
pub(crate) mod reconcile;
pub mod record;
mod rows;
pub(crate) mod rules;
pub mod sqlite;
pub mod text;
pub(crate) mod trash;
pub(crate) mod view;

use std::future::{Future, ready};
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

pub use self::clones::{Cloned, Used};
pub use self::node_name::{Named, Naming};
pub use self::rules::{MountKey, Premise, RowKey, Write};
pub use self::view::{BackendRecord, BackendState, Certificate, Host, Removed, View, Volume};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
pub use crate::model::location::{Cluster, Credentials, InvalidLocation, Location, NoEtcd};
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
        /// The volume that was meant: another one of that name is not removed.
        id: VolumeId,
        /// When it is removed.
        at: time::OffsetDateTime,
        /// Whether the trash keeps its directory.
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
        /// Whether it is counted only as a repetition: refused as `NotMounted` unless this host and ID are counted
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
        /// What was known when it was answered, where it is decided later than that.
        meant: Option<Meant>,
    },
    /// Takes mounts out by the operator's word.
    Release {
        /// The volume's name.
        name: VolumeName,
        /// Whose mounts.
        host: HostName,
        /// Which of them; all when not said.
        id: Option<MountId>,
        /// Whether also those that may be alive.
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

/// What an Unmount was of. Decided later than it was answered, it must not meet what came after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meant {
    /// The volume, where there was one of that name.
    pub volume: Option<VolumeId>,
    /// The host's activation: mounts of later ones are others.
    pub activation: Activation,
}

impl Change {
    /// Whether what this change records may become durable after it was answered: no later than the next change that
    /// is, in the same transaction, and soon where there is none. A catalog opened after a crash may then show the
    /// volume as unconfirmed, and whoever knows where it lies confirms it once more.
    #[must_use]
    pub fn may_follow(&self) -> bool {
        matches!(self, Self::Publish(..))
    }
}

/// What a change did.
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
    /// Whether the host is cloned, where that is new.
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

/// Why a change was not made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CatalogError {
    /// By the rules.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be made durable. Nothing was changed.
    #[error("the catalog {location} could not be written")]
    Write {
        /// Where the catalog lies.
        location: String,
        /// What the engine said.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// A shared catalog does not answer. Nothing was changed, and what is not in memory is not known.
    #[error("the catalog {location} is out of reach: {why}; what was known before is still shown")]
    Unreachable {
        /// Where the catalog lies.
        location: String,
        /// What was tried, and what became of it.
        why: Arc<String>,
    },
    /// The catalog is being closed.
    #[error("the catalog is closed: volhost is stopping")]
    Closed,
}

/// A change under way. It was queued when [`Catalog::submit`] returned, whether or not this is awaited.
pub type Submitted = Pin<Box<dyn Future<Output = Result<Outcome, CatalogError>> + Send>>;

/// A question to the catalog that may have to wait for others.
pub type Asked<T> = Pin<Box<dyn Future<Output = Result<T, CatalogError>> + Send>>;

/// That no other instance moves a volume's directory; given back when dropped.
#[derive(Default)]
pub struct Claimed(Option<Box<dyn FnOnce() + Send>>);

impl Claimed {
    /// A claim that is given back by this.
    #[must_use]
    pub fn until(release: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(release)))
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

impl std::fmt::Debug for Claimed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Claimed")
    }
}

/// What other instances did, counted: whoever saw an earlier number has something to look after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct News {
    /// Changes of a host's certificates and revocations.
    pub hosts: u64,
    /// Instances that ended without having finished what they had begun, and claims that were left half-done.
    pub lost: u64,
}

/// A catalog engine.
pub trait Catalog: Send + Sync + 'static {
    /// What exists now. Never blocks and never waits for a writer.
    fn view(&self) -> Arc<View>;

    /// Queues a change at once, in the order of calls, and returns what becomes of it.
    fn submit(&self, change: Change) -> Submitted;

    /// Makes sure that the view shows everything that was answered before this call, by whichever instance: to be asked
    /// before anything is refused, or said not to exist, because of the view. Where only this process changes the
    /// catalog, that is so already.
    fn sync(&self) -> Asked<()> {
        Box::pin(ready(Ok(())))
    }

    /// Claims the moving of a volume's directory against other instances, before it is moved for any other reason than
    /// an [`Insert`](Change::Insert) or a [`Restore`](Change::Restore), which claim it themselves until the volume is
    /// visible. `None` while another instance moves it. Granted, the view is as fresh as after a
    /// [`sync`](Self::sync). An instance that ended has no claims.
    fn claim(&self, _id: VolumeId) -> Asked<Option<Claimed>> {
        Box::pin(ready(Ok(Some(Claimed::default()))))
    }

    /// Whether other instances may serve this catalog, too.
    fn is_shared(&self) -> bool {
        false
    }

    /// Says how long a request may take from now on: whoever waits for a shared catalog that does not answer is told so
    /// before.
    fn limit_requests(&self, _limit: Duration) {}

    /// What other instances did; nothing, where there are none.
    fn news(&self) -> Option<watch::Receiver<News>> {
        None
    }

    /// Which machine this is, among those that serve the catalog. One that no other machine serves needs no telling.
    fn machine(&self) -> Uuid {
        Uuid::nil()
    }

    /// Where the catalog lies, as the configuration names it (`sqlite:/var/lib/volhost/catalog.db`).
    fn location(&self) -> &str;

    /// Why changes cannot be made durable at present, for the operator; nothing, as far as is known, while they can.
    fn fault(&self) -> Option<Arc<String>>;

    /// Waits until everything queued is durable and closes the files. Later changes are refused as `Closed`.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Why a catalog was not opened, or not made. What stands there is as it was, unless an import was under way.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The embedded engine's reasons.
    #[error(transparent)]
    Sqlite(#[from] sqlite::OpenError),
    /// The shared engine's reasons.
    #[cfg(feature = "etcd")]
    #[error(transparent)]
    Etcd(#[from] etcd::OpenError),
    /// The configuration names an engine that this program was built without.
    #[cfg(not(feature = "etcd"))]
    #[error(transparent)]
    NoEtcd(#[from] NoEtcd),
}

impl OpenError {
    /// Whether the configuration is to blame.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Sqlite(_) => false,
            #[cfg(feature = "etcd")]
            Self::Etcd(error) => error.is_configuration(),
            #[cfg(not(feature = "etcd"))]
            Self::NoEtcd(_) => true,
        }
    }
}

/// What a shared catalog needs to know of this instance, beside where it lies.
#[derive(Debug, Clone)]
pub struct Instance {
    /// What this machine is called among the instances.
    pub named: Named,
    /// By what it is let in.
    pub credentials: Credentials,
    /// The directory on this machine for what is answered while the catalog is out of reach.
    pub spool: PathBuf,
    /// How long a request may take: who waits for a catalog that does not answer is told so before.
    pub request: Duration,
}

/// Opens a catalog, making an empty one where there is none. Blocks until everything in it was read: to be called
/// before anything is served.
pub fn open(location: &Location, instance: &Instance) -> Result<Arc<dyn Catalog>, OpenError> {
    match location {
        Location::Sqlite(path) => Ok(Arc::new(sqlite::open(path)?)),
        #[cfg(feature = "etcd")]
        Location::Etcd(cluster) => Ok(Arc::new(etcd::open(cluster, instance)?)),
        #[cfg(not(feature = "etcd"))]
        Location::Etcd(cluster) => {
            let Instance { named: _, credentials: _, spool: _, request: _ } = instance;
            Err(NoEtcd(cluster.clone()).into())
        }
    }
}
