//! Spec files: with one an engine finds a plugin that has no socket in the engine's directories.
//!
//! [`spec`] renders them, [`store`] writes them, [`lint`] finds the faults of existing ones. This room never
//! replaces or removes a file that volhost did not write, unless an operator demands it.

mod error;
pub mod lint;
mod record;
pub(crate) mod spec;
pub(crate) mod store;

use std::path::{Path, PathBuf};

pub use self::error::SpecError;
pub use self::spec::{Address, Format, InvalidPluginName, PluginName, RenderError, Spec, TlsFiles};
pub use self::store::{Presence, Preview, Store, Written};

/// Returns the directory in which an engine of this user looks for spec files.
///
/// It is `ROOT/etc/docker/plugins` for root, and for everybody if `root` is not `/`. A rootless engine looks
/// there too, but in its own mount namespace, and in `~/.local/lib/docker/plugins`; it does not read
/// `$XDG_CONFIG_HOME`.
#[must_use]
pub fn default_dir(root: &Path, is_root: bool, home: Option<&Path>) -> PathBuf {
    match home {
        Some(home) if !is_root && root == Path::new("/") => home.join(".local/lib/docker/plugins"),
        _ => root.join("etc/docker/plugins"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_files_go_where_the_users_engine_looks() {
        let home = Some(Path::new("/home/u"));
        for (root, is_root, home, dir) in [
            ("/", true, home, "/etc/docker/plugins"),
            ("/", false, home, "/home/u/.local/lib/docker/plugins"),
            ("/", false, None, "/etc/docker/plugins"),
            ("/tmp/trial", false, home, "/tmp/trial/etc/docker/plugins"),
            ("/tmp/trial", true, home, "/tmp/trial/etc/docker/plugins"),
        ] {
            assert_eq!(default_dir(Path::new(root), is_root, home), Path::new(dir));
        }
    }
}
