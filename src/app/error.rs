//! The errors that prevent the service from starting.

use std::path::PathBuf;

use crate::catalog::{self, CatalogError};
use crate::config::Faults;
use crate::files::Unfinished;
use crate::pki::PkiError;
use crate::transport::{BindError, TlsError};

/// Why the service did not start, or failed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration is wrong.
    #[error("the configuration has {} fault{}", .0.iter().count(), if .0.iter().count() == 1 { "" } else { "s" })]
    Configuration(Faults),
    /// The configured certificates cannot be used for serving.
    #[error("{path} cannot be served with", path = .path.display())]
    Tls {
        /// The faulty file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TlsError,
    },
    /// All clients of an authority that is not volhost's own would be let in.
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
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file that was in force is missing.
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
    /// A directory that volhost maintains itself cannot be made.
    #[error("{path} cannot be made", path = .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// An address cannot be served.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The operating system refuses something that every service needs.
    #[error("the service cannot be started: {what}")]
    System {
        /// The refused action.
        what: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl ServeError {
    /// Returns true if the error comes from the configuration.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        match self {
            Self::Open(error) => error.is_configuration(),
            Self::Configuration(_)
            | Self::Tls { .. }
            | Self::Authority { .. }
            | Self::Pki(PkiError::NoCaGiven { .. })
            | Self::Bind(BindError::Inherited { .. }) => true,
            // A file that is not regular, or too large: a later start will not find it better.
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
