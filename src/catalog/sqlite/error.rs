//! Why a catalog's file is not opened or made: each reason with its remedy.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::ErrorCode;

use crate::catalog::record::InvalidRow;

/// Why a catalog's file was not opened. The file, and the log beside it, are as they were.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its directory is missing and cannot be made.
    #[error("the directory {} of the catalog cannot be made; make it, or name another place as \"catalog\"",
        .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It lies where SQLite does not work.
    #[error("the catalog {} would lie on {kind}, where file locks cannot be relied on; \
        name a place on a local file system as \"catalog\"", .path.display())]
    Shared {
        /// The file, or its directory.
        path: PathBuf,
        /// What its file system is called.
        kind: &'static str,
    },
    /// Another process has it.
    #[error("the catalog {} is in use by {holder}; stop that, or give this volhost a catalog of its own",
        .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who holds it, for a message.
        holder: String,
    },
    /// The system refused.
    #[error("the catalog {} cannot be {doing}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, after "cannot be".
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It may be read, but not written.
    #[error("the catalog {} cannot be written; give its file and directory to the user volhost runs as, and look \
        whether the file system is mounted read-only", .path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// Something else than a file has its name.
    #[error("the catalog {} is not a regular file; move it away, or name another place as \"catalog\"",
        .path.display())]
    NotAFile {
        /// What has its name.
        path: PathBuf,
    },
    /// A file of no bytes, which volhost never makes: what was in it is lost.
    #[error("the catalog {} is an empty file, which is what a failed copy or a full disk leaves; put a backup in its \
        place, or move it away and run `volhost catalog rebuild`", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// It is not there, and is not to be made.
    #[error("there is no catalog {}: `volhost serve` makes one, `volhost catalog rebuild` makes a lost one again",
        .path.display())]
    Missing {
        /// The file that is missing.
        path: PathBuf,
    },
    /// It is there, and nothing is to take its place.
    #[error("there is a catalog {} already{}; to have another in its place, move it away, with any {}-wal beside it",
        .path.display(), if *.filled { " and it is not empty" } else { "" }, .path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// Whether it was looked into.
        filled: bool,
    },
    /// A record cannot be written down.
    #[error("the catalog {} cannot be written", .path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Which record, and why.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its log is there, and it is not.
    #[error("the catalog {} is missing, but {} is there: it was moved or removed without its log; bring it back, or \
        move the log away and run `volhost catalog rebuild`", .path.display(), .log.display())]
    Headless {
        /// The file that is missing.
        path: PathBuf,
        /// What lies beside it.
        log: PathBuf,
    },
    /// Another file took its place while it was in use.
    #[error("the catalog {} was replaced by another file while volhost uses it; move that away, with any {}-wal beside \
        it, and volhost writes its own there again by itself; or restart volhost to use that one", .path.display(),
        .path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// The file system that it lay on is gone.
    #[error("the catalog {} lies on a file system that is not mounted there any more; mount it again",
        .path.display())]
    Elsewhere {
        /// The file.
        path: PathBuf,
    },
    /// Another program's file.
    #[error("{} is not a catalog of volhost: {why}; name another place as \"catalog\"", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was found.
        why: &'static str,
    },
    /// A later volhost's file.
    #[error("the catalog {} has schema {found}, and this volhost knows up to {known}: it was used by a newer volhost; \
        run that one", .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The latest schema known here.
        known: usize,
    },
    /// A damaged file.
    #[error("the catalog {} is damaged; put a backup in its place, or move it away and run `volhost \
        catalog rebuild`",
        .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// A record that is not understood.
    #[error("the catalog {} holds a record that is not understood; nothing was changed", .path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Which, and why.
        #[source]
        source: InvalidRow,
    },
    /// SQLite failed for another reason.
    #[error("the catalog {} cannot be opened", .path.display())]
    Engine {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

impl OpenError {
    /// Returns the reason that an error of SQLite stands for: a damaged file, or a failure of the engine.
    pub(super) fn of_engine(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        match source.sqlite_error_code() {
            // `Unknown` stands for a missing table or column: an unreadable page looks the same.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) => {
                Self::Damaged { path, source: source.into() }
            }
            _ => Self::Engine { path, source },
        }
    }
}
