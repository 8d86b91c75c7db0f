//! Random changes for the tests of the rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;

use crate::catalog::Change;
use crate::catalog::contract::{at, backend, host, kept, mount_id, name, volume};
use crate::catalog::entities::{BackendRecord, BackendState, Certificate, Volume};
use crate::model::backend::{BackendId, BackendName};
use crate::model::host::HostName;
use crate::model::mounts::{Activation, Mount};
use crate::model::options::{Options, Sharing};
use crate::model::volume::{MountId, VolumeId, VolumeName};

/// A change in small numbers, so that random changes affect each other.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Insert { name: u8, id: u8, adopted: bool, exclusive: bool, by: u8 },
    Publish { name: u8, id: u8 },
    Confirm { volumes: Vec<(u8, u8)> },
    Withdraw { name: u8, id: u8 },
    Remove { name: u8, id: u8, at: i64, keep: bool },
    Restore { id: u8 },
    Unrestore { name: u8, id: u8, at: i64 },
    Expire { id: u8, at: i64 },
    Forget { id: u8 },
    Mount { name: u8, id: u8, host: u8, mount: u8, at: i64, again: bool },
    TakeBack { name: u8, id: u8, host: u8, mount: u8, activation: u64, since: i64, unmounts: u32 },
    Unmount { name: u8, host: u8, mount: u8 },
    Release { name: u8, host: u8, mount: Option<u8>, alive_too: bool },
    Activate { host: u8 },
    Issue { host: u8, serial: u8 },
    Revoke { host: u8, at: i64 },
    Seen { hosts: Vec<(u8, i64)> },
    Backend { name: u8, id: Option<u8> },
    Introduce { name: u8, id: u8 },
    Connected { host: u8, issuer: u8 },
    Called { host: u8, serial: u8, from: u8 },
    NotCloned { host: u8 },
    Name { machine: u8, host: u8 },
}

/// Defines [`kind`] with one arm for each variant of [`Change`], so that a new variant does not compile until it is
/// named here. A test then fails until a step makes it.
macro_rules! kinds {
    ($($variant:ident)*) => {
        /// The variants of [`Change`].
        const KINDS: &[&str] = &[$(stringify!($variant)),*];

        /// Returns the name of the change's variant.
        fn kind(change: &Change) -> &'static str {
            match change {
                $(Change::$variant { .. } => stringify!($variant),)*
            }
        }
    };
}

kinds! {
    Insert Publish Confirm Withdraw Remove Restore Unrestore Expire Forget Mount TakeBack Unmount Release Activate Issue Revoke
    Seen Connected Called NotCloned Name Backend Introduce
}

#[test]
fn every_change_is_made_by_a_step() {
    let mut runner = TestRunner::deterministic();
    let step = any_step();
    let made: BTreeSet<_> =
        (0..4000).map(|_| kind(&step.new_tree(&mut runner).unwrap().current().change())).collect();
    let missing: Vec<_> = KINDS.iter().filter(|kind| !made.contains(*kind)).collect();
    assert!(missing.is_empty(), "no step of `any_step` makes the changes {missing:?}");
}

/// Any step, including those that the model does not know.
pub(super) fn any_step() -> impl Strategy<Value = Step> {
    let (n, h) = (0u8..2, 0u8..3);
    prop_oneof![
        16 => step(),
        2 => (h.clone(), n.clone()).prop_map(|(host, issuer)| Step::Connected { host, issuer }),
        4 => (h.clone(), 0u8..3, n.clone())
            .prop_map(|(host, serial, from)| Step::Called { host, serial, from }),
        1 => h.clone().prop_map(|host| Step::NotCloned { host }),
        2 => (n, h).prop_map(|(machine, host)| Step::Name { machine, host }),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (n, h, t) = (0u8..2, 0u8..3, 0i64..4);
    prop_oneof![
        4 => (n.clone(), n.clone(), any::<(bool, bool)>(), h.clone()).prop_map(
            |(name, id, (adopted, exclusive), by)| Step::Insert { name, id, adopted, exclusive, by }
        ),
        4 => (n.clone(), n.clone()).prop_map(|(name, id)| Step::Publish { name, id }),
        2 => proptest::collection::vec((n.clone(), n.clone()), 0..3)
            .prop_map(|volumes| Step::Confirm { volumes }),
        1 => (n.clone(), n.clone()).prop_map(|(name, id)| Step::Withdraw { name, id }),
        2 => (n.clone(), n.clone(), t.clone(), any::<bool>())
            .prop_map(|(name, id, at, keep)| Step::Remove { name, id, at, keep }),
        2 => n.clone().prop_map(|id| Step::Restore { id }),
        1 => (n.clone(), n.clone(), t.clone()).prop_map(|(name, id, at)| Step::Unrestore { name, id, at }),
        1 => (n.clone(), t.clone()).prop_map(|(id, at)| Step::Expire { id, at }),
        1 => n.clone().prop_map(|id| Step::Forget { id }),
        8 => (n.clone(), n.clone(), h.clone(), n.clone(), t.clone(), proptest::bool::weighted(0.2)).prop_map(
            |(name, id, host, mount, at, again)| Step::Mount { name, id, host, mount, at, again }
        ),
        4 => (n.clone(), n.clone(), h.clone(), n.clone(), 0u64..2, t.clone(), 0u32..2).prop_map(
            |(name, id, host, mount, activation, since, unmounts)| {
                Step::TakeBack { name, id, host, mount, activation, since, unmounts }
            }
        ),
        6 => (n.clone(), h.clone(), n.clone())
            .prop_map(|(name, host, mount)| Step::Unmount { name, host, mount }),
        2 => (n.clone(), h.clone(), proptest::option::of(n.clone()), any::<bool>())
            .prop_map(|(name, host, mount, alive_too)| Step::Release { name, host, mount, alive_too }),
        2 => h.clone().prop_map(|host| Step::Activate { host }),
        2 => (h.clone(), 0u8..4).prop_map(|(host, serial)| Step::Issue { host, serial }),
        1 => (h.clone(), t.clone()).prop_map(|(host, at)| Step::Revoke { host, at }),
        1 => proptest::collection::vec((h, t), 0..3).prop_map(|hosts| Step::Seen { hosts }),
        1 => (n.clone(), proptest::option::of(n.clone())).prop_map(|(name, id)| Step::Backend { name, id }),
        1 => (n.clone(), n).prop_map(|(name, id)| Step::Introduce { name, id }),
    ]
}

pub(super) fn volume_name(n: u8) -> VolumeName {
    name(&format!("v{n}"))
}

pub(super) fn volume_id(n: u8) -> VolumeId {
    format!("00000000-0000-4000-8000-00000000000{n}").parse().unwrap()
}

pub(super) fn backend_id(n: u8) -> BackendId {
    format!("00000000-0000-4000-9000-00000000000{n}").parse().unwrap()
}

pub(super) fn backend_name(n: u8) -> BackendName {
    backend(&format!("b{n}"))
}

fn backend_record(id: u8) -> BackendRecord {
    BackendRecord {
        id: backend_id(id),
        state: BackendState::Established,
        mountpoints: std::path::PathBuf::from("/mnt").into(),
    }
}

pub(super) fn host_name(n: u8) -> HostName {
    if n == 0 { HostName::anonymous() } else { host(&format!("h{n}")) }
}

pub(super) fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

pub(super) fn id(n: u8) -> MountId {
    mount_id(&format!("i{n}"))
}

impl Step {
    pub(super) fn change(&self) -> Change {
        match *self {
            Self::Insert { name, id, adopted, exclusive, by } => Change::Insert(Volume {
                id: volume_id(id),
                adopted,
                options: Options { access: exclusive.then_some(Sharing::Exclusive), ..Options::default() },
                known_to: vec![host_name(by)],
                unconfirmed: (!adopted).then(std::sync::Arc::default),
                ..volume(volume_name(name).as_str())
            }),
            Self::Publish { name, id } => Change::Publish(volume_name(name), volume_id(id)),
            Self::Confirm { ref volumes } => Change::Confirm(
                volumes.iter().map(|(name, id)| (volume_name(*name), volume_id(*id))).collect(),
            ),
            Self::Withdraw { name, id } => Change::Withdraw(volume_name(name), volume_id(id)),
            Self::Remove { name, id, at: then, keep } => {
                Change::Remove { name: volume_name(name), id: volume_id(id), at: at(then), keep }
            }
            Self::Restore { id } => Change::Restore(volume_id(id)),
            Self::Unrestore { name, id, at: then } => {
                Change::Unrestore { name: volume_name(name), id: volume_id(id), at: at(then) }
            }
            Self::Expire { id, at: then } => Change::Expire { id: volume_id(id), removed: kept(then) },
            Self::Forget { id } => Change::Forget(volume_id(id)),
            Self::Mount { name, id: volume, host, mount, at: then, again } => Change::Mount {
                name: volume_name(name),
                volume: volume_id(volume),
                host: host_name(host),
                id: id(mount),
                address: Some(address(mount)),
                at: at(then),
                again,
            },
            Self::TakeBack { name, id: volume, host, mount, activation, since, unmounts } => {
                Change::TakeBack {
                    name: volume_name(name),
                    volume: volume_id(volume),
                    counted: Mount {
                        host: host_name(host),
                        id: id(mount),
                        activation: Activation(activation),
                        count: 1,
                        since: kept(since),
                        unmounts,
                        address: None,
                    },
                }
            }
            Self::Unmount { name, host, mount } => Change::Unmount {
                name: volume_name(name),
                host: host_name(host),
                id: id(mount),
                target: None,
            },
            Self::Release { name, host, mount, alive_too } => Change::Release {
                name: volume_name(name),
                host: host_name(host),
                id: mount.map(id),
                alive_too,
            },
            Self::Activate { host } => Change::Activate(host_name(host)),
            Self::Issue { host, serial } => Change::Issue(
                host_name(host),
                Certificate {
                    serial: format!("{serial}"),
                    issuer: (serial % 2 == 0).then(|| "CN=a CA".into()),
                    issued_at: at(0),
                    not_after: at(9),
                    revoked: false,
                },
            ),
            Self::Revoke { host, at: then } => Change::Revoke(host_name(host), at(then)),
            Self::Seen { ref hosts } => {
                Change::Seen(hosts.iter().map(|(host, then)| (host_name(*host), at(*then))).collect())
            }
            Self::Called { host, serial, from } => Change::Called {
                host: host_name(host),
                serial: serial.to_string(),
                from: address(from),
                at: at(5),
            },
            Self::NotCloned { host } => Change::NotCloned(host_name(host)),
            Self::Name { machine, host } => {
                Change::Name(uuid::Uuid::from_u128(machine.into()), host_name(host))
            }
            Self::Backend { name, id } => Change::Backend(backend_name(name), id.map(backend_record)),
            Self::Introduce { name, id } => Change::Introduce(backend_name(name), backend_record(id)),
            Self::Connected { host, issuer } => Change::Connected(host_name(host), format!("CN=CA {issuer}")),
        }
    }
}
