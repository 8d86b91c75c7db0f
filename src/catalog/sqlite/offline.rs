//! A catalog's file without a service: reading it as a whole, or creating it from a whole view.
//!
//! Nothing here changes a catalog that holds records.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::error::OpenError;
use super::file::{self, BUSY};
use super::lock::Lock;
use super::place::beside;
use super::rows;
use super::schema::{self, MIGRATIONS};
use crate::catalog::View;

/// Reads the catalog in the file at `path`; refused as [`OpenError::Locked`] while a service has it open, and as
/// [`OpenError::Missing`] if there is none.
pub fn read(path: &Path) -> Result<View, OpenError> {
    exists(path)?;
    let (opened, _lock) = file::open(path)?;
    Ok(close(opened))
}

/// Closes an opened file, and returns what it held.
fn close(opened: file::Opened) -> View {
    let file::Opened { view, writer, checkpointer, presence: _ } = opened;
    // A failure here loses nothing: whoever opens the file next reads the log.
    let _ = checkpointer.close();
    let _ = writer.close();
    view
}

/// Reads the catalog in the file at `path`, even while a service has it open: what was durable at one moment.
pub fn peek(path: &Path) -> Result<View, OpenError> {
    match read(path) {
        Err(OpenError::Locked { .. }) => {}
        done => return done,
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let engine = |source| OpenError::of_engine(path, source);
    let mut connection = Connection::open_with_flags(path, flags).map_err(engine)?;
    connection.busy_timeout(BUSY).map_err(engine)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Deferred).map_err(engine)?;
    let found = schema::version(&transaction).map_err(engine)?;
    if usize::try_from(found).is_ok_and(|found| found > MIGRATIONS.len()) {
        return Err(OpenError::Newer { path: path.into(), found, known: MIGRATIONS.len() });
    }
    rows::load(path, &transaction)
}

/// The reserved right to create a catalog where there is none, or in the place of an empty one.
#[derive(Debug)]
pub struct NewCatalog {
    path: PathBuf,
    lock: Lock,
}

impl NewCatalog {
    /// Reserves a file that does not exist; refused if it exists.
    pub fn if_missing(path: &Path) -> Result<Self, OpenError> {
        let path = file::real_path(path)?;
        let lock = Lock::take(&path)?;
        if fs::symlink_metadata(&path).is_ok() {
            return Err(OpenError::Taken { path, filled: false });
        }
        Ok(Self { path, lock })
    }

    /// Reserves a file that does not exist or holds a catalog without records; refused if it has records.
    pub fn if_empty(path: &Path) -> Result<Self, OpenError> {
        let path = file::real_path(path)?;
        let lock = Lock::take(&path)?;
        match exists(&path) {
            Ok(()) => {
                if close(file::open_locked(&path, &lock)?) != View::default() {
                    return Err(OpenError::Taken { path, filled: true });
                }
            }
            Err(OpenError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { path, lock })
    }

    /// Creates the file, whole or not at all.
    pub fn fill(self, view: &View) -> Result<(), OpenError> {
        let Self { path, lock } = self;
        file::create(&path, view)?;
        drop(lock);
        Ok(())
    }
}

fn exists(path: &Path) -> Result<(), OpenError> {
    let log = beside(path, "-wal");
    match fs::symlink_metadata(path) {
        Err(_) if fs::metadata(&log).is_ok_and(|found| found.len() > 0) => {
            Err(OpenError::Headless { path: path.into(), log })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(OpenError::Missing { path: path.into() })
        }
        Err(source) => Err(OpenError::Io { path: path.into(), doing: "looked at", source }),
        Ok(_) => Ok(()),
    }
}
