//! `doctor`: what is wrong on this machine with the way from its engine to its volumes, and what mends it.
//!
//! On a Docker host nothing is needed but the host's bundle; on the storage host the configuration and the service are
//! looked at too. The checks are made one after the other, and each goes on where the one before failed; what cannot be
//! checked then is said to be skipped. Nothing here changes anything, on this machine or on another: files are only
//! read, and the service is asked for Capabilities, List and Get, never for an Activate, which would begin a new
//! activation. No check waits for ever.

pub(crate) mod clock;
pub(crate) mod engine;
pub(crate) mod filesystem;
pub(crate) mod look;
pub(crate) mod mountpoints;
pub(crate) mod plugin;
pub(crate) mod proxy;
pub(crate) mod service;
pub(crate) mod space;
pub(crate) mod storage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Paths;
use crate::discovery::lint::Places;

/// How long anything on this machine has to answer: the engine, the service's admin socket, a file system.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The words of all checks, in the order in which they are made.
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

/// What came of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
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
    /// The word for it, for people and programs.
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

/// What one check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The check's word, such as `address`.
    pub check: &'static str,
    /// What was checked: a plugin, a file, an address, a path.
    pub subject: String,
    /// What came of it.
    pub verdict: Verdict,
    /// What was found.
    pub message: String,
    /// What mends it.
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

/// Where the engine of this machine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Docker {
    /// At the usual socket, which need not be there.
    Usual(PathBuf),
    /// At a socket that somebody named, so that it must be there.
    Named(PathBuf),
    /// At an address that is no socket of this machine.
    Elsewhere(String),
}

/// What is to be examined.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The plugin's name on this machine; without one it is found out.
    pub plugin: Option<String>,
    /// Where the engine looks for plugins.
    pub places: Places,
    /// The engine.
    pub docker: Docker,
    /// The default paths of a service of this machine.
    pub paths: Paths,
    /// `--config`.
    pub config: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
}

/// Makes all checks, in the order in which an engine's call needs what they are about.
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
