//! Small files of our own, whole or not at all: the lock that serialises their writers, and writing that leaves the
//! old content or the new one, whatever happens. And reading what others wrote, which may be anything.
//!
//! For keys, certificates, configuration and spec files; below a backend no more than [`rename_to_free`] is used.

mod time_limit;

use std::ffi::OsString;
use std::fs::{DirBuilder, File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

pub(crate) use self::time_limit::{PATIENCE, Unfinished, Waiting, start, within};

/// The exclusive right to write what a lock file stands for, until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    // The lock belongs to the open file and ends when it is closed.
    _file: File,
}

impl Lock {
    /// Waits until no other process holds the lock file, which is made where it is missing. Its directory must exist.
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

/// Makes a directory and those above it that are missing, each with exactly this mode, whatever the umask. One that
/// exists keeps its mode.
pub(crate) fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    // Closed to others until it has its mode.
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

/// Reads a regular file of at most so many bytes, and waits for nobody but the storage that it lies on.
///
/// Symbolic links are followed. What is no regular file is an error: a pipe would wait for its writer, and a device may
/// never end. So is a larger file, of which no more than that many bytes are read.
pub(crate) fn read_at_most(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let _told = time_limit::Told::new(path);
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
    // One more tells that the file has grown meanwhile.
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    io::Read::by_ref(&mut file).take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > most { Err(larger()) } else { Ok(bytes) }
}

/// Opens a regular file for reading. Nothing else is opened, because opening alone can wait, or have an effect.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    must_be_regular(&std::fs::metadata(path)?)?;
    // Another file may have taken its place since.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
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

/// Reads a file that need not exist; a regular one, as [`read_at_most`] does, of any size.
#[cfg(any(test, feature = "etcd"))]
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    found(read_at_most(path, usize::MAX))
}

/// Reads a file that need not exist, as [`read_at_most`] does.
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
    write(path, content, mode, |from, to| Ok(rename_to_free(CWD, from, CWD, to)?))
}

/// Writes a file in place of the one that may be there. The caller holds the lock that its other writers take.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write(path, content, mode, |from, to| std::fs::rename(from, to))
}

/// Gives a file another name in its directory, durably; one that must be free. The caller holds the lock that its
/// other writers take.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    rename_to_free(CWD, from, CWD, to)?;
    sync_parent(to)
}

/// Removes a file, durably.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    sync_parent(path)
}

/// Makes a file's name durable, or that it is gone.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        // That of a bare name is written as nothing.
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent.unwrap_or(Path::new("/")),
    };
    match File::open(parent)?.sync_all() {
        // Some network file systems know no such call: what they answered is durable.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

/// Gives a file another name, relative to open directories. A name that is taken stays as it is: the error is `EXIST`.
///
/// File systems without `RENAME_NOREPLACE` (NFS, Ceph, GlusterFS) refuse a hard link where the name is taken, which is as
/// safe. A crash between the link and the removal of the old name leaves both; called again, this removes the old one.
pub(crate) fn rename_to_free<P: Arg + Copy>(
    from_dir: impl AsFd,
    from: P,
    to_dir: impl AsFd,
    to: P,
) -> Result<(), Errno> {
    let (from_dir, to_dir) = (from_dir.as_fd(), to_dir.as_fd());
    let file = |dir, name| {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
    };
    let linked = match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())
        }
        Err(Errno::EXIST) => Err(Errno::EXIST),
        done => return done,
    };
    match linked {
        Ok(()) => {}
        // By a call before this one, or by this one on a server whose first answer was lost.
        Err(Errno::EXIST) if file(from_dir, from)? == file(to_dir, to)? => {}
        // Hard links are unknown, too: to exFAT, say, which no two machines have at the same time.
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => {
            return match file(to_dir, to) {
                Err(Errno::NOENT) => rustix::fs::renameat(from_dir, from, to_dir, to),
                Err(errno) => Err(errno),
                Ok(_) => Err(Errno::EXIST),
            };
        }
        refused => return refused,
    }
    rustix::fs::unlinkat(from_dir, from, AtFlags::empty())
}

/// Removes what a process left that was killed while it wrote this file. The caller holds the lock that the file's other
/// writers take. A leftover that cannot be removed stays: the next write of the file says why.
pub(crate) fn sweep(path: &Path) {
    if let Some(temporary) = temporary(path) {
        let _ = std::fs::remove_file(temporary);
    }
}

/// The name that a file is written under first. It begins with a dot and ends in nothing that an engine reads.
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
    // One name suffices under the lock, and what a crash left there is swept away by the next attempt.
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
        // The first error is the one to tell; a leftover is swept away by the next attempt.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use volhost_test_fuse::{FuseFs, Op};

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

    /// As on NFS: by a hard link.
    #[test]
    fn a_name_that_is_taken_stays_where_no_rename_spares_it() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a file system");
            return;
        }
        let (backing, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let storage = FuseFs::mount(backing.path(), at.path()).unwrap();
        storage.control().refuse_rename_flags(true);
        let (path, other) = (at.path().join("key"), at.path().join("other"));
        create(&path, b"first", 0o600).unwrap();
        assert_eq!(create(&path, b"second", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"first"[..]));
        // What a crash between the two steps leaves.
        std::fs::hard_link(&path, &other).unwrap();
        rename(&path, &other).unwrap();
        assert_eq!((read(&path).unwrap(), read(&other).unwrap().as_deref()), (None, Some(&b"first"[..])));
        // exFAT knows neither.
        storage.control().fail_once(Op::Link, libc::EPERM);
        rename(&other, &path).unwrap();
        create(&other, b"other", 0o600).unwrap();
        storage.control().fail_once(Op::Link, libc::EPERM);
        assert_eq!(rename(&path, &other).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&other).unwrap().as_deref(), Some(&b"other"[..]));
        assert_eq!(std::fs::read_dir(at.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_directory_has_the_mode_that_was_said_and_keeps_the_one_that_it_had() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // More than any umask in use leaves.
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
