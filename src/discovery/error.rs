//! The errors of writing, reading and removing spec files.

use std::io;
use std::path::{Path, PathBuf};

use super::spec::{Format, PluginName, RenderError};

/// Reasons why a spec file was not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The spec file cannot be rendered in this format.
    #[error("there is no .{} file for the plugin {name}", format.extension())]
    Render {
        /// The name of the plugin.
        name: PluginName,
        /// The requested format.
        format: Format,
        /// The cause.
        #[source]
        source: RenderError,
    },
    /// The existing file is not one that volhost wrote.
    #[error(
        "{} exists and is not what volhost wrote there: look at it, and if it may go, `volhost spec write --force` replaces it and `volhost spec remove --force` removes it",
        path.display()
    )]
    Foreign {
        /// The path of the file.
        path: PathBuf,
    },
    /// The record cannot be read, so no file is known to be ours.
    #[error(
        "{} cannot be read as the record of the spec files that volhost wrote: move it away, then `volhost spec write --force`",
        path.display()
    )]
    Record {
        /// The path of the record.
        path: PathBuf,
        /// The error of the JSON parser.
        #[source]
        source: serde_json::Error,
    },
    /// The file system reported an error.
    #[error("could not {did} {}", path.display())]
    Io {
        /// The verb of the failed operation.
        did: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Returns the error for a failed operation on a file.
pub(super) fn failed(did: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpecError + use<> {
    let path = path.to_owned();
    move |source| SpecError::Io { did, path, source }
}
