//! The words that every room uses: names and IDs, options, mounts, rights, mount points, the catalog's location, times.
//!
//! Rules and conversions without I/O. This room uses no other one.

pub mod backend;
pub mod host;
pub mod location;
pub mod mountpoints;
pub mod mounts;
pub mod network;
pub mod options;
pub mod right;
pub mod timestamp;
pub mod volume;
