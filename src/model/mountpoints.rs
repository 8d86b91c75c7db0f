//! Where hosts see a backend: each host may have the same share mounted elsewhere.
//!
//! Paths as the configuration gave them; nothing here examines them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::host::HostName;

/// The path of a backend's root on every host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mountpoints {
    /// The path on hosts that `by_host` does not list.
    pub usual: PathBuf,
    /// The paths on single hosts.
    pub by_host: BTreeMap<HostName, PathBuf>,
}

impl Mountpoints {
    /// Returns the path on this host.
    #[must_use]
    pub fn on(&self, host: &HostName) -> &Path {
        self.by_host.get(host).unwrap_or(&self.usual)
    }
}

impl From<PathBuf> for Mountpoints {
    /// Returns the same path for every host.
    fn from(usual: PathBuf) -> Self {
        Self { usual, by_host: BTreeMap::new() }
    }
}
