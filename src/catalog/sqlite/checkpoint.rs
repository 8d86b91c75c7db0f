//! The thread that moves the log into the file in the background (a checkpoint).
//!
//! It has its own connection, so that a commit need not wait for it. Commits wait a moment only if the log grows faster
//! than the thread moves it, until the log is emptied.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, io};

use rusqlite::Connection;

use crate::error::chain;

/// The number of written records after which the log is moved.
const AFTER_ROWS: usize = 1000;

/// How long records stay in the log at most when few are written.
const AFTER: Duration = Duration::from_secs(60);

/// The size in bytes above which the log is emptied.
const LOG_BOUND: u64 = 64 << 20;

/// The writer's handle to the thread.
#[derive(Debug)]
pub(super) struct Checkpoints {
    wake: SyncSender<()>,
    thread: JoinHandle<()>,
    /// The number of records written since the thread was last woken.
    rows: usize,
}

impl Checkpoints {
    pub(super) fn start(connection: Connection, log: PathBuf, location: String) -> io::Result<Self> {
        // One place suffices: a thread that is about to wake sees everything written until then.
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("catalog-log".into())
            .spawn(move || run(connection, &log, &location, &woken))?;
        Ok(Self { wake, thread, rows: 0 })
    }

    /// Counts the records that a commit wrote.
    pub(super) fn wrote(&mut self, rows: usize) {
        self.rows += rows;
        if self.rows >= AFTER_ROWS && self.wake.try_send(()).is_ok() {
            self.rows = 0;
        }
    }

    /// Ends the thread and closes its connection.
    pub(super) fn stop(self) {
        let Self { wake, thread, rows: _ } = self;
        drop(wake);
        // A panic of the thread was reported when it happened; the log can be moved without the thread.
        let _ = thread.join();
    }
}

fn run(connection: Connection, log: &Path, location: &str, woken: &Receiver<()>) {
    let mut failing = false;
    while !matches!(woken.recv_timeout(AFTER), Err(RecvTimeoutError::Disconnected)) {
        match checkpoint(&connection, log) {
            Ok(()) => failing = false,
            Err(error) if failing => log::debug!("the log of {location}: {}", chain(&error)),
            Err(error) => {
                failing = true;
                // Nothing is lost: the log is read together with the file, and grows until this succeeds.
                log::warn!(
                    "the log of the catalog {location} cannot be moved into it yet: {}",
                    chain(&error)
                );
            }
        }
    }
    // If closing fails, the writer's own close tidies up.
    let _ = connection.close();
}

fn checkpoint(connection: &Connection, log: &Path) -> rusqlite::Result<()> {
    move_log(connection)?;
    if fs::metadata(log).is_ok_and(|found| found.len() > LOG_BOUND) {
        // Little is left to move now, so commits wait only for that.
        empty_log(connection)?;
    }
    Ok(())
}

/// Moves what can be moved without waiting for a reader or writer.
fn move_log(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// Moves everything and truncates the log. Returns true if a reader prevented it.
pub(super) fn empty_log(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
}
