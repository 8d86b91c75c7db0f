//! The configuration and the backend map: read, checked and typed, or refused with a list of everything that is wrong.
//!
//! [`load()`] reads both files at once, so that one run reports the faults of both. The result needs no further check:
//! names are names, paths are absolute, durations are durations and every default is filled in. Only a restart changes
//! [`Boot`]; a reload puts [`Live`] in force; [`watch`] tells when to reload.
//!
//! This module opens no socket, makes no directory and writes no file, and it never looks into a backend: a backend's
//! path need not exist.

pub(crate) mod address;
mod backends;
mod boot;
mod catalog;
mod directories;
pub(crate) mod fault;
pub mod fields;
mod json;
mod live;
mod load;
mod node;
mod parse;
pub(crate) mod paths;
pub(crate) mod pattern;
pub(crate) mod snapshot;
mod surroundings;
mod walk;
pub(crate) mod watch;

pub use self::address::{Advertise, Listen};
pub use self::boot::{Boot, MetricsClients, Scope};
pub use self::fault::{Fault, Faults};
pub use self::live::{KeyPair, Live, MapEntry, SpecFormat, SpecSettings, TlsFiles};
pub use self::load::{Loaded, Rejected, load, reload, served};
pub use self::paths::Paths;
pub use self::pattern::HostPattern;

/// The whole configuration, including the backend map.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The part that only a restart puts in force.
    pub boot: Boot,
    /// The part that a reload puts in force.
    pub live: Live,
}

/// Returns the names of the fields that differ.
fn differing(fields: &[(&'static str, bool)]) -> Vec<&'static str> {
    fields.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect()
}

#[cfg(test)]
pub(crate) mod tests;
