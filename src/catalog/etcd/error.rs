//! Why a shared catalog was not opened, and what to do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::catalog::record::{InvalidRow, Unwritable};

/// Why a shared catalog was not opened, or not made. Nothing of it was changed, unless an import was under way.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of the credentials cannot be read.
    #[error("{} cannot be read, which \"etcd\" names as \"{field}\"", .path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// The field of `etcd`.
        field: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The credentials are not understood.
    #[error("the certificates or the user that \"etcd\" names cannot be used")]
    Unusable(#[source] Box<dyn Error + Send + Sync>),
    /// The cluster does not let this instance in, or not to these keys.
    #[error(
        "the catalog {location} does not let this instance in: look at \"user\", \"password_file\" and \"cert\" of \
         \"etcd\", and at the rights of that user to keys that begin with {root}"
    )]
    Refused {
        /// Where the catalog lies.
        location: String,
        /// What its keys begin with.
        root: String,
        /// What the cluster said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// No member answers.
    #[error("the catalog {location} is out of reach: {why}")]
    Unreachable {
        /// Where the catalog lies.
        location: String,
        /// What was tried, and what became of it.
        why: String,
    },
    /// Something else has its keys.
    #[error(
        "the catalog {location}: {key} is none of volhost's keys; choose another prefix, or delete what is there"
    )]
    Foreign {
        /// Where the catalog lies.
        location: String,
        /// The key.
        key: String,
    },
    /// A later volhost made it.
    #[error(
        "the catalog {location} has the format {found}, and this volhost knows 1: it was made by a newer volhost; \
         run that one"
    )]
    Newer {
        /// Where the catalog lies.
        location: String,
        /// Its format.
        found: u64,
    },
    /// A record is not understood.
    #[error("the catalog {location} is not opened")]
    Row {
        /// Where the catalog lies.
        location: String,
        /// Which record, and why.
        #[source]
        source: InvalidRow,
    },
    /// An import did not come to its end.
    #[error(
        "the catalog {location} is being imported, or that was cut off and it is not whole: where nobody is at it any \
         more, run that `volhost catalog import` or `volhost catalog rebuild` again"
    )]
    HalfImported {
        /// Where the catalog lies.
        location: String,
    },
    /// Another import began while this one was under way. What this one wrote is cleared away by that one.
    #[error(
        "the catalog {location} is being imported by somebody else, who began later: this import was given up"
    )]
    Overtaken {
        /// Where the catalog lies.
        location: String,
    },
    /// It is not there, and is not to be made.
    #[error(
        "there is no catalog {location}: `volhost serve` makes one, `volhost catalog rebuild` makes a lost one again"
    )]
    Missing {
        /// Where it would lie.
        location: String,
    },
    /// Its keys would lie among those of another catalog.
    #[error(
        "the catalog {location} would lie among the keys of another one, which begin with {outer}; name a prefix that is \
         not below that one"
    )]
    Nested {
        /// Where it would lie.
        location: String,
        /// What the other catalog's keys begin with.
        outer: String,
    },
    /// It is there, and nothing is to take its place.
    #[error(
        "there is a catalog {location} already{}; to have another in its place, name another prefix, or delete every \
         key that begins with {root}",
        if *.filled { " and it is not empty" } else { "" }
    )]
    Taken {
        /// Where it lies.
        location: String,
        /// What its keys begin with.
        root: String,
        /// Whether it was looked into.
        filled: bool,
    },
    /// Instances serve it.
    #[error(
        "the catalog {location} is in use by volhost on {nodes}; stop that (one that was killed counts for {} s)",
        super::keys::TTL
    )]
    Served {
        /// Where it lies.
        location: String,
        /// The instances' names.
        nodes: String,
    },
    /// Another machine of this one's name serves it.
    #[error(
        "the catalog {location} is served by another machine called {node} (instance {id}): two machines of one name \
         would share their mounts; set \"node\" to a name of its own on one of them, or stop that one"
    )]
    Namesake {
        /// Where it lies.
        location: String,
        /// The name.
        node: String,
        /// Which instance it is.
        id: uuid::Uuid,
    },
    /// A machine of which this one is a copy serves it.
    #[error(
        "the catalog {location} is served by {node}, of which this machine is a copy: give this one a \"node\" of its \
         own, and delete {} here, which was copied with it",
        .outbox.display()
    )]
    Copied {
        /// Where it lies.
        location: String,
        /// The other one's name.
        node: String,
        /// What says which instance this is.
        outbox: PathBuf,
    },
    /// Nobody named this machine.
    #[error(
        "this machine's hostname is {node}, as that of every machine that nobody named, and the catalog {location} is \
         for several machines: set \"node\" to a name of its own"
    )]
    Nameless {
        /// Where it lies.
        location: String,
        /// The hostname.
        node: String,
    },
    /// A record cannot be written down.
    #[error(transparent)]
    Unwritable(#[from] Unwritable),
    /// The directory for what is answered while the cluster is out of reach cannot be used.
    #[error("{} cannot be {doing}: volhost keeps there what it answers while etcd is out of reach", .path.display())]
    Outbox {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, after "cannot be".
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another process has that directory.
    #[error("{} is in use by another volhost; each instance needs its own", .path.display())]
    Locked {
        /// The lock's file.
        path: PathBuf,
    },
    /// The file in that directory is not understood.
    #[error("{} is not understood at line {line}: {fault}; if what it holds can be given up, move it away", .path.display())]
    OutboxText {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        fault: String,
    },
    /// The system refuses a thread.
    #[error("the catalog cannot be served")]
    System(#[source] io::Error),
}

impl OpenError {
    /// Whether the configuration is to blame.
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
