//! The record of the spec files that volhost wrote: the paths and contents, in a file beside the catalog.
//!
//! It tells our own files from foreign ones. This module never touches a spec file, except that it removes temporary files
//! that a killed process left.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::error::{SpecError, failed};
use crate::files::{self, Lock};

/// The content of each file that volhost wrote. While a file is being replaced, both the old and the new
/// content.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) files: BTreeMap<PathBuf, Vec<String>>,
}

/// The file that holds the record. It need not exist.
#[derive(Debug, Clone)]
pub(super) struct RecordFile {
    path: PathBuf,
}

impl RecordFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Returns the content of the record; an empty one if it does not exist.
    pub(super) fn read(&self) -> Result<Record, SpecError> {
        match files::read_small(&self.path).map_err(failed("read", &self.path))? {
            Some(text) => serde_json::from_slice(&text)
                .map_err(|source| SpecError::Record { path: self.path.clone(), source }),
            None => Ok(Record::default()),
        }
    }

    pub(super) fn write(&self, record: &Record) -> Result<(), SpecError> {
        let text = serde_json::to_vec_pretty(record)
            .map_err(|error| failed("write", &self.path)(io::Error::other(error)))?;
        files::replace(&self.path, &text, 0o600).map_err(failed("write", &self.path))
    }

    /// Removes the temporary files that a killed process left beside the record, the files in it, and `more`.
    /// The caller holds the lock.
    pub(super) fn sweep<'a>(&self, record: &'a Record, more: impl IntoIterator<Item = &'a PathBuf>) {
        files::sweep(&self.path);
        record.files.keys().chain(more).for_each(|path| files::sweep(path));
    }

    /// Keeps other processes from writing with the same record while it is held.
    pub(super) fn lock(&self) -> Result<Lock, SpecError> {
        if let Some(dir) = self.path.parent() {
            files::make_dir(dir, 0o700).map_err(failed("make", dir))?;
        }
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        Lock::acquire(&path).map_err(failed("lock", &path))
    }
}
