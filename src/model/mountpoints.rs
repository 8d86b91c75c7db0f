//! Where hosts see a backend: the same share may be mounted elsewhere on each of them.
//!
//! Vocabulary: paths as the configuration gave them, which nothing here looks at.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::model::host::HostName;

/// The path of one backend's root on every host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mountpoints {
    /// On the hosts of which nothing else is said.
    pub usual: PathBuf,
    /// On single hosts.
    pub by_host: BTreeMap<HostName, PathBuf>,
}

impl Mountpoints {
    /// The path on this host.
    #[must_use]
    pub fn on(&self, host: &HostName) -> &Path {
        self.by_host.get(host).unwrap_or(&self.usual)
    }
}

impl From<PathBuf> for Mountpoints {
    /// The same path everywhere.
    fn from(usual: PathBuf) -> Self {
        Self { usual, by_host: BTreeMap::new() }
    }
}
