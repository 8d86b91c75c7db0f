//! Reads and writes small files. A write is whole or not at all: a lock serialises the writers of our own files, and
//! whatever happens, a write leaves the old content or the new one. A read takes care, because other programs' files
//! may be anything.
//!
//! For keys, certificates, configuration and spec files; code below a backend uses only the renaming and
//! [`unique_name`].

mod no_replace;
mod time_limit;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, OFlags};
use rustix::io::Errno;

pub(crate) use self::no_replace::{rename_dir_no_replace, rename_file_no_replace};
pub(crate) use self::time_limit::{READ_TIMEOUT, ReaderThread, Unfinished, start, within};

/// The exclusive right to write the files that a lock file protects, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    // The lock belongs to the open file and ends when it is closed.
    _file: File,
}

impl Lock {
    /// Waits until no other process holds the lock file. Creates the file if it is missing; its directory must exist.
    pub(crate) fn acquire(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                done => return Ok(done.map(|()| Self { _file: file })?),
            }
        }
    }
}

/// Creates a directory and its missing parents, each with exactly this mode, whatever the umask. An existing directory
/// keeps its mode.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    // Closed to other users until it has its mode.
    let make = || DirBuilder::new().mode(mode & 0o700).create(dir);
    let made = match make() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match dir.parent() {
            Some(parent) => make_dir(parent, mode).and_then(|()| make()),
            None => Err(error),
        },
        made => made,
    };
    match made {
        Ok(()) => std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)),
        // Another process may have made it meanwhile.
        Err(_) if dir.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// The most bytes of a file that holds certificates, a key, a password or a spec: such files have a few kB.
pub(crate) const SMALL: usize = 1 << 20;

/// Reads a regular file of at most `most` bytes. Waits for nothing but the storage that the file lies on.
///
/// Follows symbolic links. Anything but a regular file is an error: a pipe would wait for its writer, and a device may
/// never end. A larger file is an error as well, of which no more than `most` bytes are read.
pub(crate) fn read_at_most(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let _mark = time_limit::ReadingMark::new(path);
    let mut file = open_regular(path)?;
    let larger = || {
        let what = format!("it is larger than {} MiB, more than any file of its kind", most >> 20);
        io::Error::new(io::ErrorKind::FileTooLarge, what)
    };
    let most_bytes = u64::try_from(most).unwrap_or(u64::MAX);
    let size = file.metadata()?.len();
    if size > most_bytes {
        return Err(larger());
    }
    // One more byte shows that the file has grown meanwhile.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    io::Read::by_ref(&mut file).take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > most { Err(larger()) } else { Ok(bytes) }
}

/// Opens a regular file for reading. Opening anything else could wait, or have an effect.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    must_be_regular(&std::fs::metadata(path)?)?;
    // Another file may have taken its place since.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    must_be_regular(&file.metadata()?)?;
    Ok(file)
}

fn must_be_regular(found: &Metadata) -> io::Result<()> {
    if found.is_file() {
        return Ok(());
    }
    let what = format!("it is {}, and no regular file", kind(found.file_type()));
    Err(io::Error::new(io::ErrorKind::InvalidInput, what))
}

fn kind(found: FileType) -> &'static str {
    if found.is_dir() {
        "a directory"
    } else if found.is_fifo() {
        "a pipe"
    } else if found.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Reads a regular file of any size, as [`read_at_most`] does; `None` if it does not exist.
#[cfg(any(test, feature = "etcd"))]
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    found(read_at_most(path, usize::MAX))
}

/// Reads a file of at most [`SMALL`] bytes, as [`read_at_most`] does; `None` if it does not exist.
pub(crate) fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    found(read_at_most(path, SMALL))
}

fn found(read: io::Result<Vec<u8>>) -> io::Result<Option<Vec<u8>>> {
    match read {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file under a name that must be free. The caller holds the lock that its other writers take.
pub(crate) fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |from, to| Ok(rename_file_no_replace(CWD, from, CWD, to)?))
}

/// Writes a file, replacing an existing one. The caller holds the lock that its other writers take.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |from, to| std::fs::rename(from, to))
}

/// Renames a file durably, to a name that must be free. The caller holds the lock that its other writers take.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rename_file_no_replace(CWD, from, CWD, to)?;
    sync_parent(to)
}

/// Removes a file, durably.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    sync_parent(path)
}

/// Makes the creation or removal of a file durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        // The parent of a bare name is the empty path.
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent.unwrap_or(Path::new("/")),
    };
    match File::open(parent)?.sync_all() {
        // Some network file systems do not have this call: whatever they confirmed is durable.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Returns a name that no other file has, in this process, another one or on another machine.
pub(crate) fn unique_name() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Removes the temporary file of a process that was killed while it wrote this file. The caller holds the lock that the
/// file's other writers take. A leftover that cannot be removed stays: the next write of the file reports why.
pub(crate) fn sweep(path: &Path) {
    if let Some(temporary) = temporary(path) {
        let _ = std::fs::remove_file(temporary);
    }
}

/// Returns the name under which a file is written first. Engines do not read it: it begins with a dot and ends in
/// `.new`.
fn temporary(path: &Path) -> Option<PathBuf> {
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".new");
    Some(path.parent()?.join(name))
}

fn write(
    path: &Path,
    content: &[u8],
    mode: u32,
    rename: impl FnOnce(&Path, &Path) -> io::Result<()>,
) -> io::Result<()> {
    let Some(temporary) = temporary(path) else { return Err(io::ErrorKind::InvalidInput.into()) };
    // One name suffices under the lock, and the next attempt removes what a crash left there.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let done = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        // The umask may have narrowed the mode.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        rename(&temporary, path)?;
        sync_parent(path)
    })();
    if done.is_err() {
        // The first error is reported; the next attempt removes a leftover.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use volhost_test_fuse::{Op, ScratchFs};

    #[test]
    fn a_created_file_takes_nobodys_place_and_a_replaced_one_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, b"first", 0o600).unwrap();
        assert_eq!(create(&path, b"second", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"first"[..]));
        replace(&path, b"third", 0o644).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"third"[..]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        let other = dir.path().join("other");
        create(&other, b"other", 0o600).unwrap();
        assert_eq!(rename(&path, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        remove(&other).unwrap();
        rename(&path, &other).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        remove(&other).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a temporary file was left");
    }

    /// Checks storage like NFS, where a hard link stands in for the rename.
    #[test]
    fn a_name_that_is_taken_stays_where_no_rename_spares_it() {
        let Some(storage) = ScratchFs::mount() else { return };
        storage.control().refuse_rename_flags(true);
        let (path, other) = (storage.at().join("key"), storage.at().join("other"));
        create(&path, b"first", 0o600).unwrap();
        assert_eq!(create(&path, b"second", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"first"[..]));
        // A crash between the two steps leaves this.
        std::fs::hard_link(&path, &other).unwrap();
        rename(&path, &other).unwrap();
        assert_eq!((read(&path).unwrap(), read(&other).unwrap().as_deref()), (None, Some(&b"first"[..])));
        // exFAT supports neither.
        storage.control().fail_once(Op::Link, libc::EPERM);
        rename(&other, &path).unwrap();
        create(&other, b"other", 0o600).unwrap();
        storage.control().fail_once(Op::Link, libc::EPERM);
        assert_eq!(rename(&path, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&other).unwrap().as_deref(), Some(&b"other"[..]));
        assert_eq!(std::fs::read_dir(storage.at()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_has_the_mode_that_was_said_and_keeps_the_one_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // More bits than any common umask leaves.
        for said in [0o777, 0o711, 0o700] {
            let deep = dir.path().join(format!("{said:o}/deep"));
            make_dir(&deep, said).unwrap();
            assert_eq!((mode(&deep), mode(deep.parent().unwrap())), (said, said));
            make_dir(&deep, 0o755).unwrap();
            assert_eq!(mode(&deep), said, "it was there already");
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(make_dir(&dir.path().join("file"), 0o755).is_err());
        assert!(make_dir(&dir.path().join("file/below"), 0o755).is_err());
    }

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_at_most(&path, 4).unwrap(), b"four");
        assert_eq!(read_at_most(&path, 3).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert_eq!(read_small(&link).unwrap().as_deref(), Some(&b"four"[..]));
        assert_eq!(read_small(&dir.path().join("absent")).unwrap(), None);

        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let others = [(&*pipe, "a pipe"), (&socket, "a socket"), (dir.path(), "a directory")];
        for (path, kind) in others.into_iter().chain([(Path::new("/dev/zero"), "a device")]) {
            let error = read_at_most(path, SMALL).unwrap_err();
            assert!(error.to_string().contains(kind), "{error}");
        }
    }

    #[test]
    fn what_a_crash_left_under_the_temporary_name_is_swept_away() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".key.new"), "half").unwrap();
        create(&dir.path().join("key"), b"whole", 0o600).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::write(dir.path().join(".key.new"), "half").unwrap();
        sweep(&dir.path().join("key"));
        sweep(&dir.path().join("other"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
