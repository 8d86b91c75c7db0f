//! The doctor: finds what is wrong on this machine between its engine and its volumes, with the remedies.
//!
//! On a Docker host it needs only the host's bundle; on the storage host it also checks the configuration and
//! the service. The checks run one after the other, and each runs even if an earlier one failed; one that
//! then cannot be made is reported as skipped. The doctor never changes anything, on this machine or on
//! another: it only reads files, and asks the service for Capabilities, List and Get, never for an Activate,
//! which would begin a new activation. No check waits for ever.

pub(crate) mod clock;
pub(crate) mod directory;
pub(crate) mod engine;
pub(crate) mod filesystem;
pub(crate) mod mountpoints;
pub(crate) mod plugin;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod space;
pub(crate) mod storage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Paths;
use crate::discovery::lint::SearchDirs;

/// The time limit for everything on this machine: the engine, the service's admin socket, a file system.
pub const LOCAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The names of all checks, in the order in which they are made.
pub const CHECKS: [&str; 18] = [
    "configuration",
    "service",
    "catalog",
    "reload",
    "server-certificate",
    "cloned-host",
    "backend",
    "spec-file",
    "certificates",
    "engine",
    "managed-plugin",
    "proxy",
    "address",
    "clock",
    "mountpoint",
    "space",
    "setuid",
    "journal",
];

/// The result of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Everything is as it should be.
    Ok,
    /// Nothing is wrong, but it is worth knowing.
    Note,
    /// It works, but not well, or not for long.
    Warning,
    /// It does not work.
    Wrong,
    /// It could not be checked, because something before it is wrong.
    Skipped,
}

impl Verdict {
    /// Returns the word for it, for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Wrong => "wrong",
            Self::Skipped => "skipped",
        }
    }
}

/// A finding of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's name, such as `address`.
    pub check: &'static str,
    /// The subject of the check: a plugin, a file, an address, a path.
    pub subject: String,
    /// The result.
    pub verdict: Verdict,
    /// The description of the finding.
    pub message: String,
    /// The remedy, if one is known.
    pub remedy: Option<String>,
}

impl Finding {
    fn new(
        check: &'static str,
        subject: impl Into<String>,
        verdict: Verdict,
        message: impl Into<String>,
    ) -> Self {
        Self { check, subject: subject.into(), verdict, message: message.into(), remedy: None }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// The address of this machine's engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Docker {
    /// The default socket, which need not exist.
    Default(PathBuf),
    /// A socket that a user named, so it must exist.
    Explicit(PathBuf),
    /// An address that is not a socket of this machine.
    Remote(String),
}

/// The subject of an examination.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The plugin's name on this machine; `None` if it must be found out.
    pub plugin: Option<String>,
    /// The directories in which the engine looks for plugins.
    pub dirs: SearchDirs,
    /// The address of the engine.
    pub docker: Docker,
    /// The default paths of a service on this machine.
    pub paths: Paths,
    /// The argument of `--config`.
    pub config: Option<PathBuf>,
    /// The argument of `--socket`.
    pub socket: Option<PathBuf>,
}

/// Makes all checks, in the order in which a call of the engine depends on their subjects.
#[must_use]
pub fn examine(scope: &Scope) -> Vec<Finding> {
    let mut findings = Vec::new();
    let storage = storage::examine(scope, &mut findings);
    let plugin = plugin::examine(scope, storage.as_ref(), &mut findings);
    engine::examine(scope, &plugin, &mut findings);
    let seen = service::examine(&plugin, &mut findings);
    clock::examine(&plugin, seen.as_ref(), &mut findings);
    mountpoints::examine(&plugin, seen.as_ref(), &mut findings);
    findings
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
