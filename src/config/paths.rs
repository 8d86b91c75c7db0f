//! The default paths of everything that volhost keeps.
//!
//! Nothing here touches the file system: a path need not exist.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

/// The default directories; every default path lies below one of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    /// The configuration and the keys: `/etc/volhost`.
    pub etc: PathBuf,
    /// The catalog and the default backend: `/var/lib/volhost`.
    pub state: PathBuf,
    /// The admin socket: `/run/volhost`.
    pub run: PathBuf,
    /// Where engines look for spec files: `/etc/docker/plugins`.
    pub spec: PathBuf,
}

/// Why there are no default directories.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// A user other than root has no home directory in the environment.
    #[error("HOME is not set to an absolute path: set it, or give --root DIR")]
    NoHome,
    /// The directory given by `--root` cannot be used.
    #[error("--root {root:?} cannot be made an absolute path")]
    Root {
        /// The given directory.
        root: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

impl Paths {
    /// Returns the directories of this process: `root` is `--root`, and `variable` looks up a variable of the
    /// environment.
    ///
    /// Below `--root` the names are those of the system, whoever calls. Without it root has the system's own
    /// directories, and every other user has `$XDG_CONFIG_HOME/volhost`, `$XDG_DATA_HOME/volhost` (volumes are the
    /// user's data, and the catalog belongs beside them), `$XDG_RUNTIME_DIR/volhost` (without one, `run` beside the
    /// catalog) and the directory where a rootless engine looks, which no XDG variable moves. XDG variables that are
    /// not absolute are ignored, as their specification demands.
    pub fn new(
        root: Option<&Path>,
        euid_is_root: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, PathsError> {
        if let Some(root) = root {
            let absolute = std::path::absolute(root);
            return absolute
                .map(|root| Self::below(&root))
                .map_err(|source| PathsError::Root { root: root.into(), source });
        }
        if euid_is_root {
            return Ok(Self::below(Path::new("/")));
        }
        let directory = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = directory("HOME").ok_or(PathsError::NoHome)?;
        let own =
            |name, otherwise: &str| directory(name).unwrap_or_else(|| home.join(otherwise)).join("volhost");
        let state = own("XDG_DATA_HOME", ".local/share");
        Ok(Self {
            etc: own("XDG_CONFIG_HOME", ".config"),
            run: directory("XDG_RUNTIME_DIR").map_or_else(|| state.join("run"), |run| run.join("volhost")),
            state,
            spec: home.join(".local/lib/docker/plugins"),
        })
    }

    /// Returns the directories of this process, from its user and its environment.
    pub fn of_this_process(root: Option<&Path>) -> Result<Self, PathsError> {
        Self::new(root, rustix::process::geteuid().is_root(), |name| std::env::var_os(OsStr::new(name)))
    }

    fn below(root: &Path) -> Self {
        Self {
            etc: root.join("etc/volhost"),
            state: root.join("var/lib/volhost"),
            run: root.join("run/volhost"),
            spec: root.join("etc/docker/plugins"),
        }
    }

    /// Returns the configuration's path, unless `--config` names another.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.etc.join("volhost.json")
    }

    /// Returns the backend map's path, unless the configuration names another.
    #[must_use]
    pub fn map(&self) -> PathBuf {
        self.etc.join("backends.json")
    }

    /// Returns the directory of volhost's own CA, certificates and keys.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.etc.join("pki")
    }

    /// Returns the catalog's path, unless the configuration names another.
    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.state.join("catalog.db")
    }

    /// Returns the directory for the outbox of a shared catalog that is out of reach.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.state.join("spool")
    }

    /// Returns the directory of the backend `default` if there is no map.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.state.join("volumes")
    }

    /// Returns the admin socket's path, unless the configuration names another.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.run.join("admin.sock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(root: Option<&str>, is_root: bool, variables: &[(&str, &str)]) -> Result<Paths, PathsError> {
        Paths::new(root.map(Path::new), is_root, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn root_has_the_directories_of_the_system() {
        let paths = paths(None, true, &[("HOME", "/root"), ("XDG_CONFIG_HOME", "/x")]).unwrap();
        assert_eq!(paths.config(), Path::new("/etc/volhost/volhost.json"));
        assert_eq!(paths.map(), Path::new("/etc/volhost/backends.json"));
        assert_eq!(paths.pki(), Path::new("/etc/volhost/pki"));
        assert_eq!(paths.catalog(), Path::new("/var/lib/volhost/catalog.db"));
        assert_eq!(paths.volumes(), Path::new("/var/lib/volhost/volumes"));
        assert_eq!(paths.spool(), Path::new("/var/lib/volhost/spool"));
        assert_eq!(paths.admin(), Path::new("/run/volhost/admin.sock"));
        assert_eq!(paths.spec, Path::new("/etc/docker/plugins"));
    }

    #[test]
    fn another_user_has_directories_of_their_own() {
        let home = ("HOME", "/home/u");
        let plain = paths(None, false, &[home, ("XDG_RUNTIME_DIR", "/run/user/1000")]).unwrap();
        assert_eq!(plain.config(), Path::new("/home/u/.config/volhost/volhost.json"));
        assert_eq!(plain.catalog(), Path::new("/home/u/.local/share/volhost/catalog.db"));
        assert_eq!(plain.admin(), Path::new("/run/user/1000/volhost/admin.sock"));
        assert_eq!(plain.spec, Path::new("/home/u/.local/lib/docker/plugins"));
        let moved =
            paths(None, false, &[home, ("XDG_CONFIG_HOME", "/c"), ("XDG_DATA_HOME", "relative")]).unwrap();
        assert_eq!(moved.etc, Path::new("/c/volhost"));
        assert_eq!(moved.state, Path::new("/home/u/.local/share/volhost"), "a relative one is to be ignored");
        assert_eq!(moved.run, Path::new("/home/u/.local/share/volhost/run"));
        assert!(matches!(paths(None, false, &[]), Err(PathsError::NoHome)));
    }

    #[test]
    fn everything_lies_below_the_given_root() {
        for is_root in [true, false] {
            let paths = paths(Some("/tmp/trial"), is_root, &[]).unwrap();
            assert_eq!(paths.etc, Path::new("/tmp/trial/etc/volhost"));
            assert_eq!(paths.state, Path::new("/tmp/trial/var/lib/volhost"));
            assert_eq!(paths.run, Path::new("/tmp/trial/run/volhost"));
            assert_eq!(paths.spec, Path::new("/tmp/trial/etc/docker/plugins"));
        }
        let relative = paths(Some("trial"), true, &[]).unwrap();
        assert_eq!(relative.etc, std::env::current_dir().unwrap().join("trial/etc/volhost"));
        assert!(matches!(paths(Some(""), true, &[]), Err(PathsError::Root { .. })));
    }
}
