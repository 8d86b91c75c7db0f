//! The directories in which an engine looks for plugins, and the paths there that it tries.
//!
//! The order is dockerd's (moby, `pkg/plugins/discovery.go`): a socket wins over every spec file, an earlier directory over
//! a later one, and in a directory the order is `N.spec`, `N/N.spec`, `N.json`, `N/N.json`. This module reads no file.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use crate::discovery::default_dir;

/// The directories in which an engine looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchDirs {
    /// The directories of sockets.
    pub sockets: Vec<PathBuf>,
    /// The directories of spec files, in the engine's order.
    pub specs: Vec<PathBuf>,
    /// True if a user named them: then each must exist.
    pub explicit: bool,
}

impl SearchDirs {
    /// Returns the directories in which an engine of this user looks: see
    /// [`default_dir`].
    #[must_use]
    pub fn of_engine(root: &Path, is_root: bool, home: Option<&Path>) -> Self {
        let own = default_dir(root, is_root, home);
        let system = root.join("etc/docker/plugins");
        let specs =
            if own == system { vec![system, root.join("usr/lib/docker/plugins")] } else { vec![system, own] };
        Self { sockets: vec![root.join(SOCKETS)], specs, explicit: false }
    }

    /// Returns only these directories. One that ends in `run/docker/plugins` is for sockets, as an engine's
    /// is.
    #[must_use]
    pub fn named(dirs: &[PathBuf]) -> Self {
        let (sockets, specs) = dirs.iter().cloned().partition(|dir| dir.ends_with(SOCKETS));
        Self { sockets, specs, explicit: true }
    }
}

const SOCKETS: &str = "run/docker/plugins";

impl SearchDirs {
    /// Returns each directory with the extensions that count there.
    pub(super) fn each(&self) -> impl Iterator<Item = (&PathBuf, &'static [&'static str])> {
        let sockets = self.sockets.iter().map(|dir| (dir, &["sock"][..]));
        sockets.chain(self.specs.iter().map(|dir| (dir, &["spec", "json"][..])))
    }

    /// Returns each path at which an engine looks for a plugin, in the engine's order, with its extension.
    pub(super) fn candidates(&self, name: &str) -> Vec<(PathBuf, &'static str)> {
        let mut paths = Vec::new();
        for (dir, endings) in self.each() {
            for ending in endings {
                let file = format!("{name}.{ending}");
                paths.push((dir.join(&file), *ending));
                paths.push((dir.join(name).join(file), *ending));
            }
        }
        paths
    }
}

/// Adds every plugin name that a file in a directory may stand for: N of `N.EXTENSION` and of
/// `N/N.EXTENSION`.
pub(super) fn collect_names(dir: &Path, names: &mut BTreeSet<String>) -> io::Result<()> {
    let is_one = |ending: &str| ["sock", "spec", "json"].contains(&ending);
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        // A client cannot ask an engine for a name that is not UTF-8.
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        match file.rsplit_once('.') {
            Some((name, ending)) if is_one(ending) => names.extend([name.to_owned()]),
            // A plugin's name may have dots in it.
            _ if path.is_dir() => names.extend([file.to_owned()]),
            _ => {}
        }
    }
    Ok(())
}
