//! The errors of opening or making a shared catalog, each with its remedy.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::catalog::record::{InvalidRow, Unwritable};

/// Why a shared catalog was not opened, or not made. Nothing in it was changed, unless an import was under way.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of the credentials cannot be read.
    #[error("{} cannot be read, which \"etcd\" names as \"{field}\"", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The field of `etcd`.
        field: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The credentials are not understood.
    #[error("the certificates or the user that \"etcd\" names cannot be used")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
    /// The cluster refuses this instance, or its access to these keys.
    #[error(
        "the catalog {location} does not let this instance in: look at \"user\", \"password_file\" and \"cert\" of \
         \"etcd\", and at the rights of that user to keys that begin with {root}"
    )]
    Refused {
        /// The catalog's location.
        location: String,
        /// The prefix of its keys.
        root: String,
        /// The cluster's answer.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No member answers.
    #[error("the catalog {location} is out of reach: {why}")]
    Unreachable {
        /// The catalog's location.
        location: String,
        /// The last attempt, and its result.
        why: String,
    },
    /// Another program has keys below its prefix.
    #[error(
        "the catalog {location}: {key} is none of volhost's keys; choose another prefix, or delete what is there"
    )]
    Foreign {
        /// The catalog's location.
        location: String,
        /// The key.
        key: String,
    },
    /// A newer volhost made it.
    #[error(
        "the catalog {location} has the format {found}, and this volhost knows 1: it was made by a newer volhost; \
         run that one"
    )]
    Newer {
        /// The catalog's location.
        location: String,
        /// Its format.
        found: u64,
    },
    /// A record is not understood.
    #[error("the catalog {location} is not opened")]
    Row {
        /// The catalog's location.
        location: String,
        /// The record, and the reason.
        #[source]
        source: InvalidRow,
    },
    /// An import has not finished.
    #[error(
        "the catalog {location} is being imported, or an import was interrupted and it is not whole: if no import is \
         running any more, run that `volhost catalog import` or `volhost catalog rebuild` again"
    )]
    HalfImported {
        /// The catalog's location.
        location: String,
    },
    /// Another import began while this one was under way. It deletes what this one wrote.
    #[error(
        "the catalog {location} is being imported by another process, which began later: this import was given up"
    )]
    Overtaken {
        /// The catalog's location.
        location: String,
    },
    /// There is no catalog, and none is to be made.
    #[error(
        "there is no catalog {location}: `volhost serve` makes one, `volhost catalog rebuild` makes a lost one again"
    )]
    Missing {
        /// The catalog's location.
        location: String,
    },
    /// Its keys would be among those of another catalog.
    #[error(
        "the catalog {location} would lie among the keys of another one, which begin with {outer}; name a prefix that is \
         not below that one"
    )]
    Nested {
        /// The catalog's location.
        location: String,
        /// The prefix of the other catalog's keys.
        outer: String,
    },
    /// There is a catalog already, which is not to be replaced.
    #[error(
        "there is a catalog {location} already{}; to have another in its place, name another prefix, or delete every \
         key that begins with {root}",
        if *.filled { " and it is not empty" } else { "" }
    )]
    Taken {
        /// The catalog's location.
        location: String,
        /// The prefix of its keys.
        root: String,
        /// True if it is known to have records.
        filled: bool,
    },
    /// Instances serve it.
    #[error(
        "the catalog {location} is in use by volhost on {nodes}; stop that (one that was killed counts for {} s)",
        super::keys::TTL
    )]
    Served {
        /// The catalog's location.
        location: String,
        /// The instances' names.
        nodes: String,
    },
    /// Another machine with this one's name serves it.
    #[error(
        "the catalog {location} is served by another machine called {node} (instance {id}): two machines of one name \
         would share their mounts; set \"node\" to a name of its own on one of them, or stop that one"
    )]
    Namesake {
        /// The catalog's location.
        location: String,
        /// The name.
        node: String,
        /// The other machine's instance.
        id: uuid::Uuid,
    },
    /// The machine that this one is a copy of serves it.
    #[error(
        "the catalog {location} is served by {node}, of which this machine is a copy: give this one a \"node\" of its \
         own, and delete {} here, which was copied with it",
        .outbox.display()
    )]
    Copied {
        /// The catalog's location.
        location: String,
        /// The other machine's name.
        node: String,
        /// The file that says which instance this is.
        outbox: PathBuf,
    },
    /// This machine has only a default hostname.
    #[error(
        "this machine's hostname is {node}, as on every machine without a name, and the catalog {location} is for \
         several machines: set \"node\" to a name of its own"
    )]
    Nameless {
        /// The catalog's location.
        location: String,
        /// The hostname.
        node: String,
    },
    /// A record cannot be encoded.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// The outbox, or its directory, cannot be used.
    #[error("{} cannot be {doing}: volhost keeps there what it answers while etcd is out of reach", .path.display())]
    Outbox {
        /// The file or directory.
        path: PathBuf,
        /// The attempted operation, as a participle.
        doing: &'static str,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Another process has the outbox.
    #[error("{} is in use by another volhost; each instance needs its own", .path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// The outbox's file is not understood.
    #[error("{} is not understood at line {line}: {fault}; if what it holds can be given up, move it away", .path.display())]
    OutboxText {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The fault in that line.
        fault: String,
    },
    /// The runtime cannot be started, or a thread failed.
    #[error("the catalog cannot be served")]
    System(#[source] io::Error),
}

impl OpenError {
    /// Returns true if the cause is the configuration.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Credentials { .. }
                | Self::Unusable(_)
                | Self::Refused { .. }
                | Self::Nested { .. }
                | Self::Nameless { .. }
        )
    }
}
