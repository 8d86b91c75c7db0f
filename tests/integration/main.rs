//! volhost as its users meet it: the real program, real sockets, real certificates, real engines.
//!
//! One binary, one file per subject; `harness` holds the processes they start. Nothing here looks inside the
//! library, except `layout`, which reads its sources as text, `readme`, which compares the README with its tables, and
//! `crash` and `storm`, which take the names of its durable steps. Run it all with `tests/run`, which installs what the
//! tests need; most of them need root.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a failed expectation is a failed test, in the harness as well as in a test function"
)]

mod addresses;
mod backends;
mod bad_days;
mod clones;
mod commands;
mod compose;
mod crash;
mod doctor;
mod engine;
mod etcd;
mod etcd_outages;
mod faults;
mod fleet;
mod fuzz;
mod gluster;
mod harness;
mod history;
mod hostile;
mod hosts;
mod hosts_join;
mod layout;
mod lint;
mod monitoring;
mod names;
mod podman;
mod power;
mod published;
mod readme;
mod recovery;
#[cfg(feature = "etcd")]
mod recovery_etcd;
mod reload;
mod reload_files;
mod rollover;
mod serve;
mod shaky;
#[cfg(feature = "etcd")]
mod shared_pki;
mod storm;
mod swarm;
mod systemd;
mod threads;
#[cfg(feature = "etcd")]
mod three_nodes;
mod tour;
mod traces;
mod transports;
mod trash;
mod wire;
