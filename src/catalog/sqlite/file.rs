//! Opens a catalog's file: creates an empty catalog, or makes sure that the file is a whole one.
//!
//! Nothing is written before the last row was understood: a file that is refused stays, with its log, byte for byte as
//! it was. SQLite's locks belong to the process, so nothing in this process may open the file by another way once
//! SQLite has it open.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::error::OpenError;
use super::lock::Lock;
use super::place::{beside, make_directory, refuse_shared, sync_directory};
use super::presence::Presence;
use super::rows::{load, store};
use super::schema::{self, APPLICATION_ID, APPLICATION_ID_AT, HEADER, MAGIC, MIGRATIONS};
use crate::catalog::View;
use crate::catalog::record::Table;

/// A file that was read and is a catalog.
pub(super) struct Opened {
    /// What it holds.
    pub view: View,
    /// The connection that writes.
    pub writer: Connection,
    /// The connection that moves the log into the file.
    pub checkpointer: Connection,
    /// The paths and identities of its files.
    pub presence: Presence,
}

/// Opens the file, or creates it; returns it with the lock that keeps other processes away.
pub(super) fn open(path: &Path) -> Result<(Opened, Lock), OpenError> {
    let path = real_path(path)?;
    let lock = Lock::take(&path)?;
    Ok((open_locked(&path, &lock)?, lock))
}

/// Opens the file of that real path. The caller holds its lock.
pub(super) fn open_locked(path: &Path, _: &Lock) -> Result<Opened, OpenError> {
    let tell = |doing| {
        let path = path.to_path_buf();
        move |source| OpenError::Io { path, doing, source }
    };
    match fs::symlink_metadata(path) {
        Ok(found) => examine(path, &found)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, &View::default())?,
        Err(error) => return Err(tell("looked at")(error)),
    }
    refuse_shared(path)?;
    let (log, index) = (beside(path, "-wal"), beside(path, "-shm"));
    let (had_log, had_index) = (log.exists(), index.exists());
    let opened = read_whole(path);
    // Opening creates these two files even if it fails; a file that is refused must not get a log that was not there
    // before. A log with content, as after a migration, is part of the file.
    if opened.is_err() && !had_log && fs::metadata(&log).is_ok_and(|found| found.len() == 0) {
        let _ = fs::remove_file(log);
        if !had_index {
            let _ = fs::remove_file(index);
        }
    }
    opened
}

/// Lets SQLite open the file, and prepares the connections once everything in it was understood.
pub(super) fn read_whole(path: &Path) -> Result<Opened, OpenError> {
    let mut writer = connect(path)?;
    let view = read(path, &mut writer)?;
    let prepared = prepare(&writer).and_then(|()| {
        let checkpointer = Connection::open_with_flags(path, FLAGS)?;
        prepare(&checkpointer)?;
        // From here on the last connection may tidy up when it is closed.
        writer.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(checkpointer)
    });
    match prepared {
        Ok(checkpointer) => Ok(Opened { view, writer, checkpointer, presence: Presence::note(path)? }),
        Err(source) => Err(OpenError::Engine { path: path.into(), source }),
    }
}

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Returns the file's path without symbolic links, so that it has one lock and one log under all its names. Creates its
/// directory.
pub(super) fn real_path(path: &Path) -> Result<PathBuf, OpenError> {
    let tell = |source| OpenError::Io { path: path.into(), doing: "found", source };
    let no_file = || tell(io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"));
    if path.is_symlink() {
        return fs::canonicalize(path).map_err(tell);
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Err(no_file()) };
    make_directory(directory).map_err(|source| OpenError::Directory { path: directory.into(), source })?;
    let directory = fs::canonicalize(directory).map_err(tell)?;
    refuse_shared(&directory)?;
    Ok(directory.join(name))
}

/// Examines a file before SQLite does. SQLite would take an empty file for a new catalog, and another program's file
/// for its own.
fn examine(path: &Path, found: &fs::Metadata) -> Result<(), OpenError> {
    let path = || path.to_path_buf();
    if !found.is_file() {
        return Err(OpenError::NotAFile { path: path() });
    }
    if found.len() == 0 {
        return Err(OpenError::Empty { path: path() });
    }
    let mut header = Vec::with_capacity(HEADER);
    File::open(path())
        .and_then(|file| file.take(HEADER as u64).read_to_end(&mut header))
        .map_err(|source| OpenError::Io { path: path(), doing: "read", source })?;
    if !header.starts_with(MAGIC) {
        return Err(OpenError::Foreign {
            path: path(),
            why: "it is no SQLite file, or its beginning is lost",
        });
    }
    let Some(id) = header.get(APPLICATION_ID_AT).filter(|_| header.len() == HEADER) else {
        return Err(OpenError::Damaged { path: path(), source: "it ends within its header".into() });
    };
    if id != APPLICATION_ID.to_be_bytes() {
        return Err(OpenError::Foreign { path: path(), why: "it is another program's SQLite file" });
    }
    Ok(())
}

/// Creates a catalog with the records of a view.
pub(super) fn create(path: &Path, view: &View) -> Result<(), OpenError> {
    refuse_log(path)?;
    prepare_new(path, view)?;
    put_in_place(path)
}

/// Refuses a log without its file: it may hold answered changes.
fn refuse_log(path: &Path) -> Result<(), OpenError> {
    for log in ["-wal", "-journal"].map(|suffix| beside(path, suffix)) {
        // An empty log holds nothing: a refused file may leave one behind.
        if fs::symlink_metadata(&log).is_ok_and(|found| found.len() > 0) {
            return Err(OpenError::Headless { path: path.into(), log });
        }
    }
    Ok(())
}

/// Writes the new file under another name, so that a half-written one never has the catalog's name.
pub(super) fn prepare_new(path: &Path, view: &View) -> Result<(), OpenError> {
    let new = beside(path, ".new");
    let tell = |source| OpenError::Io { path: path.into(), doing: "made", source };
    // An earlier start left these half-written; because of the lock, no other process is working on them.
    for left in [beside(&new, "-journal"), new.clone()] {
        remove_if_there(&left).map_err(tell)?;
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(tell)?;
    fill(&new, view).map_err(|source| OpenError::Unwritable { path: path.into(), source })?;
    File::open(&new).and_then(|file| file.sync_all()).map_err(tell)
}

/// Gives a prepared file its name. No log may remain beside it, because SQLite would take it for this file's log.
pub(super) fn put_in_place(path: &Path) -> Result<(), OpenError> {
    refuse_log(path)?;
    let tell = |source| OpenError::Io { path: path.into(), doing: "made", source };
    // An empty log and its index hold nothing.
    for left in ["-wal", "-shm"].map(|suffix| beside(path, suffix)) {
        remove_if_there(&left).map_err(tell)?;
    }
    fs::rename(beside(path, ".new"), path).map_err(tell)?;
    path.parent().map_or(Ok(()), sync_directory).map_err(tell)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn fill(new: &Path, view: &View) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut connection = Connection::open_with_flags(new, FLAGS)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    let transaction = connection.transaction()?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    schema::migrate(&transaction, MIGRATIONS, 0)?;
    store(&transaction, view.records())?;
    transaction.commit()?;
    connection.close().map_err(|(_, error)| error.into())
}

/// Lets SQLite open a file, in such a way that it writes nothing by itself.
fn connect(path: &Path) -> Result<Connection, OpenError> {
    let connection = Connection::open_with_flags(path, FLAGS).and_then(|connection| {
        // Closing the last connection would move the log into the file, even into a file that is refused.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.busy_timeout(BUSY)?;
        connection.is_readonly("main").map(|read_only| (connection, read_only))
    });
    match connection {
        Ok((connection, false)) => Ok(connection),
        Ok((_, true)) => Err(OpenError::ReadOnly { path: path.into() }),
        Err(source) => Err(OpenError::of_engine(path, source)),
    }
}

/// How long a connection waits for another one: one of the two here, or an operator's `sqlite3`.
pub(super) const BUSY: Duration = Duration::from_secs(30);

/// Reads everything, and migrates an older schema once everything was understood.
fn read(path: &Path, connection: &mut Connection) -> Result<View, OpenError> {
    let engine = |source| OpenError::of_engine(path, source);
    let found = schema::version(connection).map_err(engine)?;
    let known = MIGRATIONS.len();
    let from = match usize::try_from(found) {
        Ok(0) | Err(_) => {
            let source = format!("it says schema {found}, which no catalog has").into();
            return Err(OpenError::Damaged { path: path.into(), source });
        }
        Ok(from) if from > known => return Err(OpenError::Newer { path: path.into(), found, known }),
        Ok(from) => from,
    };
    let check: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(engine)?;
    if check != "ok" {
        return Err(OpenError::Damaged { path: path.into(), source: check.into() });
    }
    let migrates = from < known;
    let behavior = if migrates { TransactionBehavior::Immediate } else { TransactionBehavior::Deferred };
    let transaction = connection.transaction_with_behavior(behavior).map_err(engine)?;
    if migrates {
        schema::migrate(&transaction, MIGRATIONS, from).map_err(engine)?;
    }
    let view = load(path, &transaction)?;
    transaction.commit().map_err(engine)?;
    if migrates {
        log::info!("the catalog {} was brought from schema {from} to {known}", path.display());
    }
    Ok(view)
}

/// Sets the options that a serving connection needs.
fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidParameterName(format!("journal_mode stays {mode}")));
    }
    // A commit returns when the data is on the disk, and does not itself move pages out of the log.
    connection.pragma_update(None, "synchronous", "FULL")?;
    let _: i64 = connection.query_row("PRAGMA wal_autocheckpoint = 0", [], |row| row.get(0))?;
    connection.set_prepared_statement_cache_capacity(2 * Table::ALL.len());
    Ok(())
}
