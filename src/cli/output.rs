//! The small files that commands are given and leave behind.
//!
//! One that is left is whole or not there, and never takes an existing file's place unasked.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

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
    let absolute = std::path::absolute(path).map_err(failed)?;
    let write = if force { files::replace } else { files::create };
    write(&absolute, content, mode).map_err(failed)
}

/// A time as results tell it.
pub(super) fn written(at: OffsetDateTime) -> String {
    // Whatever has a record or a certificate lies within the years that RFC 3339 can write.
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_default()
}
