//! The small files that commands are given and leave behind.
//!
//! One that is left is whole or not there, and never takes an existing file's place unasked.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use crate::model::timestamp;
use time::OffsetDateTime;

use super::Error;
use crate::files;

/// The largest request or certificate that is read: they are about 1 kB each.
const LARGEST_PEM: u64 = 1 << 20;

/// Reads a request or a certificate.
pub(super) fn read_pem(path: &Path) -> Result<String, Error> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(LARGEST_PEM).read_to_string(&mut text)?;
        Ok(text)
    };
    read().map_err(|source| Error::File { path: path.into(), doing: "read", source })
}

/// Refuses a file that is there, before any work is done for it.
pub(super) fn must_be_free(path: &Path, force: bool) -> Result<(), Error> {
    // A dangling symlink is something too.
    if !force && path.symlink_metadata().is_ok() {
        let path = path.display();
        return Err(Error::Refused(format!("{path} exists: name another file, or give --force")));
    }
    Ok(())
}

/// Writes a file, in the place of another only if that is wanted.
pub(super) fn write(path: &Path, content: &[u8], mode: u32, force: bool) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.into(), doing: "written", source };
    Pending::begin(path, mode, force).and_then(|file| file.finish(content)).map_err(failed)
}

/// A file that has another name until it is complete. Dropped before, it is removed.
pub(super) struct Pending {
    path: PathBuf,
    /// Nobody else has it: commands may write to one directory at the same time.
    waiting: PathBuf,
    file: File,
    mode: u32,
    replace: bool,
}

impl Pending {
    /// Makes the file, empty and for its owner alone, beside the place that it is to have.
    pub(super) fn begin(path: &Path, mode: u32, replace: bool) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", files::unique_name()));
        let waiting = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&waiting)?;
        Ok(Self { path: path.into(), waiting, file, mode, replace })
    }

    /// Writes its content and gives it its name, durably. A name that is taken meanwhile is an error, unless it is to be
    /// replaced.
    pub(super) fn finish(mut self, content: &[u8]) -> io::Result<()> {
        // The umask has no say in it.
        self.file.set_permissions(Permissions::from_mode(self.mode))?;
        self.file.write_all(content)?;
        self.file.sync_all()?;
        if self.replace {
            std::fs::rename(&self.waiting, &self.path)?;
        } else {
            files::rename_file_no_replace(CWD, &self.waiting, CWD, &self.path)?;
        }
        files::sync_parent(&self.path)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Once renamed it is not there any more, which is as good.
        let _ = std::fs::remove_file(&self.waiting);
    }
}

/// A time as results tell it.
pub(super) fn written(at: OffsetDateTime) -> String {
    // Whatever has a record or a certificate lies within the years that RFC 3339 can write.
    timestamp::rfc3339(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_takes_no_other_files_place() {
        let directory = tempfile::tempdir().unwrap();
        let (path, beside) = (directory.path().join("ca.csr"), directory.path().join(".ca.csr.new"));
        std::fs::write(&beside, "somebody else's").unwrap();
        write(&path, b"one", 0o644, false).unwrap();
        assert!(write(&path, b"two", 0o644, false).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write(&path, b"three", 0o600, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read(&beside).unwrap(), b"somebody else's");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
