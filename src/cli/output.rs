//! The small files that commands read and write.
//!
//! A written file is complete or does not exist, and never replaces an existing file unasked.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;

use crate::model::timestamp;
use time::OffsetDateTime;

use super::Error;
use crate::files;

/// The maximum size of a request or certificate: they have about 1 kB each.
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

/// Refuses an existing file before any work is done for it.
pub(super) fn must_be_free(path: &Path, force: bool) -> Result<(), Error> {
    // A dangling symlink counts as an existing file.
    if !force && path.symlink_metadata().is_ok() {
        let path = path.display();
        return Err(Error::Refused(format!("{path} exists: name another file, or give --force")));
    }
    Ok(())
}

/// Writes a file. Replaces an existing one only with `force`.
pub(super) fn write(path: &Path, content: &[u8], mode: u32, force: bool) -> Result<(), Error> {
    let failed = |source| Error::File { path: path.into(), doing: "written", source };
    Pending::begin(path, mode, force).and_then(|file| file.finish(content)).map_err(failed)
}

/// A file that has a temporary name until it is complete. A drop before that removes it.
pub(super) struct Pending {
    path: PathBuf,
    /// The temporary path. It is unique, because several commands may write to one directory at the same
    /// time.
    waiting: PathBuf,
    file: File,
    mode: u32,
    replace: bool,
}

impl Pending {
    /// Makes the file, empty and readable only for its owner, beside its final path.
    pub(super) fn begin(path: &Path, mode: u32, replace: bool) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", files::unique_name()));
        let waiting = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&waiting)?;
        Ok(Self { path: path.into(), waiting, file, mode, replace })
    }

    /// Writes the content, and renames the file durably to its final name. If another file has taken that
    /// name meanwhile, it is an error, unless it may be replaced.
    pub(super) fn finish(mut self, content: &[u8]) -> io::Result<()> {
        // The umask must not change the mode.
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
        // After the rename the temporary file does not exist, so this fails and that is fine.
        let _ = std::fs::remove_file(&self.waiting);
    }
}

/// Returns a time in the form of results.
pub(super) fn written(at: OffsetDateTime) -> String {
    // The year of every record and certificate is within the range of RFC 3339.
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
