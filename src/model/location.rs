//! Where a catalog lies, as the configuration names it: `sqlite:/var/lib/volhost/catalog.db`, or
//! `etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/volhost`.
//!
//! This module only parses and names; it reads no file and contacts no cluster.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The engine of a catalog, and where the engine stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// The embedded engine, in the file of this absolute path.
    Sqlite(PathBuf),
    /// The shared engine, in an etcd cluster.
    Etcd(Cluster),
}

/// An etcd cluster, and the part of it that is a catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Its members as `HOST:PORT`, at least one, in the order in which they are tried.
    pub members: Vec<String>,
    /// The prefix of all keys of the catalog, without slashes around it: `volhost`, or `store/volhost`.
    pub prefix: String,
}

/// The error for a catalog that needs a feature which this program was built without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this volhost was built without etcd, which the catalog {0} needs: install one that was built with it, by `cargo \
     build --release --features etcd`"
)]
pub struct NoEtcd(pub Cluster);

/// Credentials for the etcd cluster: the configuration's `etcd`. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The authorities that sign the members' certificates, in PEM. If it is given, members are called by TLS.
    pub ca: Option<PathBuf>,
    /// This instance's certificate and its chain, in PEM.
    pub cert: Option<PathBuf>,
    /// Its key, in PEM.
    pub key: Option<PathBuf>,
    /// The user of etcd's own authentication.
    pub user: Option<String>,
    /// The file that holds the user's password, in its first line.
    pub password_file: Option<PathBuf>,
}

/// Why a text names no catalog.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLocation {
    /// The path is missing or relative: it would mean another file wherever volhost is started.
    #[error("{0:?} names no catalog: its path must be absolute, as in sqlite:/var/lib/volhost/catalog.db")]
    Relative(String),
    /// The path can only be that of a directory.
    #[error("{0:?} names a directory: a catalog is one file, as in sqlite:/var/lib/volhost/catalog.db")]
    Directory(String),
    /// The members or the prefix of a cluster are not understood.
    #[error(
        "{text:?} names no catalog: {fault}, as in etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/volhost"
    )]
    Cluster {
        /// The text as it was given.
        text: String,
        /// What is wrong with it.
        fault: String,
    },
    /// No such engine.
    #[error("{text:?} names no catalog: the engine {scheme:?} is not known{}; it takes sqlite:/ABSOLUTE/PATH or \
         etcd://HOST:PORT,HOST:PORT,HOST:PORT/PREFIX",
        did_you_mean(.scheme))]
    UnknownEngine {
        /// The text as it was given.
        text: String,
        /// The part before its colon.
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
    /// Parses `sqlite:/ABSOLUTE/PATH` or `etcd://HOST:PORT,HOST:PORT/PREFIX`.
    pub fn parse(text: &str) -> Result<Self, InvalidLocation> {
        let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
        match scheme {
            "sqlite" if !Path::new(rest).is_absolute() => Err(InvalidLocation::Relative(text.into())),
            "sqlite" if rest.ends_with('/') || rest.ends_with("/.") || rest.ends_with("/..") => {
                Err(InvalidLocation::Directory(text.into()))
            }
            // One leading slash, however many were written (`sqlite:///var/…` is customary in other programs).
            "sqlite" => Ok(Self::Sqlite(Path::new("/").join(rest.trim_start_matches('/')))),
            "etcd" => cluster(rest)
                .map(Self::Etcd)
                .map_err(|fault| InvalidLocation::Cluster { text: text.into(), fault }),
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
            Self::Etcd(cluster) => cluster.fmt(f),
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}/{}", self.members.join(","), self.prefix)
    }
}

/// Parses what follows `etcd:`.
fn cluster(text: &str) -> Result<Cluster, String> {
    let rest = text.strip_prefix("//").ok_or("its members follow two slashes")?;
    let (members, prefix) = rest.split_once('/').ok_or("it has no prefix for the catalog's keys")?;
    let members = members.split(',').map(member).collect::<Result<Vec<_>, _>>()?;
    if let Some(twice) =
        members.iter().enumerate().find(|(at, member)| members.iter().take(*at).any(|m| m == *member))
    {
        return Err(format!("the member {} is there twice", twice.1));
    }
    let prefix = prefix.trim_end_matches('/');
    let plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    if prefix.is_empty() {
        return Err("it has no prefix for the catalog's keys".into());
    }
    if !prefix.split('/').all(plain) {
        return Err("its prefix takes letters, digits, `.`, `_`, `-` and single slashes".into());
    }
    Ok(Cluster { members, prefix: prefix.into() })
}

/// Parses one `HOST:PORT`; an IPv6 address stands between brackets.
fn member(text: &str) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("the member {text:?} has no port"))?;
    let port: u16 =
        port.parse().map_err(|_| format!("the member {text:?} has no port between 1 and 65535"))?;
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match bracketed {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
    };
    if good && port > 0 {
        Ok(format!("{host}:{port}"))
    } else {
        Err(format!("the member {text:?} is no HOST:PORT"))
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
    fn members_and_a_prefix_name_a_shared_catalog() {
        let text = "etcd://10.0.0.1:2379,etcd-2.example:2379,[fd00::3]:2379/store/volhost";
        for text in [text, &format!("{text}/")] {
            let Location::Etcd(cluster) = Location::parse(text).unwrap() else { panic!("{text}") };
            assert_eq!(cluster.members, ["10.0.0.1:2379", "etcd-2.example:2379", "[fd00::3]:2379"]);
            assert_eq!(cluster.prefix, "store/volhost");
        }
        assert_eq!(Location::parse(text).unwrap().to_string(), text);
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
            ("etcd://10.0.0.1:2379", "has no prefix"),
            ("etcd://10.0.0.1:2379/", "has no prefix"),
            ("etcd:10.0.0.1:2379/volhost", "follow two slashes"),
            ("etcd://10.0.0.1/volhost", "\"10.0.0.1\" has no port"),
            ("etcd://10.0.0.1:0/volhost", "is no HOST:PORT"),
            ("etcd://10.0.0.1:99999/volhost", "no port between"),
            ("etcd://10.0.0.1:2379,/volhost", "the member \"\" has no port"),
            ("etcd://a:1,b:1,a:1/volhost", "the member a:1 is there twice"),
            ("etcd://user@a:1/volhost", "is no HOST:PORT"),
            ("etcd://a:1/vol//host", "single slashes"),
            ("etcd://a:1/vol host", "its prefix takes"),
        ];
        for (text, expected) in cases {
            let error = Location::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
