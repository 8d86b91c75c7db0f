//! Where a catalog lies, as the configuration names it: `sqlite:/var/lib/volhost/catalog.db`.
//!
//! Only names and parses; it looks at no file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The engine of a catalog, and where it keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The embedded engine, in the file of this absolute path.
    Sqlite(PathBuf),
}

/// Why a text names no catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLocation {
    /// The path is missing or relative: it would mean another file wherever volhost is started.
    #[error("{0:?} names no catalog: its path must be absolute, as in sqlite:/var/lib/volhost/catalog.db")]
    Relative(String),
    /// The path can only be a directory's.
    #[error("{0:?} names a directory: a catalog is one file, as in sqlite:/var/lib/volhost/catalog.db")]
    Directory(String),
    /// A shared catalog, which this program was not built with.
    #[error("{0:?}: this build keeps its catalog in sqlite only, as in sqlite:/var/lib/volhost/catalog.db")]
    NoEtcd(String),
    /// No such engine.
    #[error("{text:?} names no catalog: the engine {scheme:?} is not known{}; it takes sqlite:/ABSOLUTE/PATH",
        did_you_mean(.scheme))]
    UnknownEngine {
        /// The text as it was given.
        text: String,
        /// What stands before its colon.
        scheme: String,
    },
}

/// The engines' schemes.
const SCHEMES: [&str; 2] = ["sqlite", "etcd"];

fn did_you_mean(scheme: &str) -> String {
    crate::error::nearest(scheme, SCHEMES)
        .map_or_else(String::new, |near| format!(" (did you mean {near:?}?)"))
}

impl Location {
    /// Reads `sqlite:/ABSOLUTE/PATH`.
    pub fn parse(text: &str) -> Result<Self, InvalidLocation> {
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "sqlite" if !Path::new(rest).is_absolute() => Err(InvalidLocation::Relative(text.into())),
            "sqlite" if rest.ends_with('/') || rest.ends_with("/.") || rest.ends_with("/..") => {
                Err(InvalidLocation::Directory(text.into()))
            }
            // One leading slash, however many were written (`sqlite:///var/…` is a habit of other programs).
            "sqlite" => Ok(Self::Sqlite(Path::new("/").join(rest.trim_start_matches('/')))),
            "etcd" => Err(InvalidLocation::NoEtcd(text.into())),
            "" => Err(InvalidLocation::Relative(text.into())),
            scheme => Err(InvalidLocation::UnknownEngine { text: text.into(), scheme: scheme.into() }),
        }
    }
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        Self::parse(text)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absolute_path_names_an_embedded_catalog() {
        for text in ["sqlite:/var/lib/volhost/catalog.db", "sqlite:///var/lib/volhost/catalog.db"] {
            let location = Location::parse(text).unwrap();
            assert_eq!(location, Location::Sqlite("/var/lib/volhost/catalog.db".into()));
            assert_eq!(location.to_string(), "sqlite:/var/lib/volhost/catalog.db");
        }
    }

    #[test]
    fn everything_else_is_refused_with_what_to_write_instead() {
        let cases = [
            ("sqlite:catalog.db", "must be absolute"),
            ("sqlite:", "must be absolute"),
            ("/var/lib/volhost/catalog.db", "must be absolute, as in sqlite:/"),
            ("", "must be absolute"),
            ("sqlite:/var/lib/volhost/", "names a directory"),
            ("sqlite:/", "names a directory"),
            ("sqlite:/var/..", "names a directory"),
            ("sqllite:/x", "the engine \"sqllite\" is not known (did you mean \"sqlite\"?)"),
            ("postgres://x", "the engine \"postgres\" is not known; it takes sqlite:/"),
            ("etcd://10.0.0.1:2379", "this build keeps its catalog in sqlite only"),
        ];
        for (text, expected) in cases {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
