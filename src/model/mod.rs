//! The vocabulary of the whole crate: names and IDs, options, mounts, rights, mount points, the catalog's location,
//! times.
//!
//! Rules and conversions without I/O. This module uses no other one.

pub mod backend;
pub mod backend_settings;
pub mod host;
pub mod limits;
pub mod location;
pub(crate) mod mountpoints;
pub mod mounts;
pub(crate) mod network;
pub mod options;
pub(crate) mod right;
pub(crate) mod timestamp;
pub mod volume;
