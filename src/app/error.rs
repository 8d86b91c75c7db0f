//! The errors that keep the service from starting.

use std::path::PathBuf;

use crate::catalog::{self, CatalogError};
use crate::config::Faults;
use crate::files::Unfinished;
use crate::pki::PkiError;
use crate::transport::{BindError, TlsError};

/// Why the service did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error("the configuration has {} fault{}", .0.iter().count(), if .0.iter().count() == 1 { "" } else { "s" })]
    Configuration(Faults),
    /// Certificates that the configuration names cannot be served with.
    #[error("{path} cannot be served with", path = .path.display())]
    Tls {
        /// The file that is at fault.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TlsError,
    },
    /// The clients of somebody else's authority would be let in, all of them.
    #[error(
        "{path} holds an authority that is not volhost's own, which makes the field \"hosts\" mandatory: name the hosts that may call, such as \"hosts\": {{\"web1\": {{}}}}, or all that it ever signs by \"hosts\": {{\"*\": {{}}}}",
        path = .path.display()
    )]
    Authority {
        /// The file that holds it.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("{path} cannot be read", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file that was in force and is not there any more.
    #[error(
        "{path} is gone, and was in force: put it back; if it is to be made anew, `volhost reload --force`",
        path = .path.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// Files cannot be read.
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
    /// Our own certificates cannot be made or used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The catalog cannot be opened.
    #[error(transparent)]
    Open(#[from] catalog::OpenError),
    /// The catalog cannot be written.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A directory that volhost keeps by itself cannot be made.
    #[error("{path} cannot be made", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be served.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The operating system refuses what every service needs.
    #[error("the service cannot be started: {what}")]
    System {
        /// What was refused.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl ServeError {
    /// Returns true if the configuration is to blame.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Open(error) => error.is_configuration(),
            Self::Configuration(_)
            | Self::Tls { .. }
            | Self::Authority { .. }
            | Self::Pki(PkiError::NoCaGiven { .. })
            | Self::Bind(BindError::Inherited { .. }) => true,
            // No regular file, or too large: no later start will find it better.
            Self::Read { source, .. } | Self::Pki(PkiError::Io { source, .. }) => {
                matches!(source.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::FileTooLarge)
            }
            Self::Gone { .. }
            | Self::Unfinished(_)
            | Self::Pki(_)
            | Self::Catalog(_)
            | Self::Directory { .. }
            | Self::Bind(_)
            | Self::System { .. } => false,
        }
    }
}
