//! Spec files: by them an engine finds a plugin that has no socket of its own in the engine's directories.
//!
//! [`spec`] knows their forms, [`store`] writes them, [`lint`] finds what is wrong with those that lie there. A file that volhost did not write is another's, and nothing here
//! replaces or removes it unless an operator says so.

pub mod lint;
pub(crate) mod spec;
pub(crate) mod store;

use std::path::{Path, PathBuf};

pub use self::spec::{Address, Format, InvalidPluginName, PluginName, Rendering, Spec, TlsFiles};
pub use self::store::{Presence, Shown, SpecError, Store, Written};

/// Where an engine of this user looks for spec files.
///
/// Below any `root` other than `/`, and for root, that is `ROOT/etc/docker/plugins`. A rootless engine looks there
/// too, but as its own mount namespace has it, and in `~/.local/lib/docker/plugins`; it does not read
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
