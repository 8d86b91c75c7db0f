//! Renames without ever replacing: a taken name stays as it is, and the error is `EXIST`.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// Renames a file, relative to open directories.
///
/// File systems without `RENAME_NOREPLACE` (NFS, Ceph, GlusterFS) refuse a hard link if the name is taken, which is as
/// safe. A crash between the link and the removal of the old name leaves both; a second call removes the old one.
pub(crate) fn rename_file_no_replace<P: Arg + Copy>(
    from_dir: impl AsFd,
    from: P,
    to_dir: impl AsFd,
    to: P,
) -> Result<(), Errno> {
    let (from_dir, to_dir) = (from_dir.as_fd(), to_dir.as_fd());
    let linked = match atomically(from_dir, from, to_dir, to) {
        None => rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty()),
        // The kernel reports this before it asks the file system.
        Some(Err(Errno::EXIST)) => Err(Errno::EXIST),
        Some(done) => return done,
    };
    let file = |dir, name| {
        rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| (stat.st_dev, stat.st_ino))
    };
    match linked {
        Ok(()) => {}
        // An earlier call linked it, or this one did on a server whose first answer was lost.
        Err(Errno::EXIST) if file(from_dir, from)? == file(to_dir, to)? => {}
        // Hard links are unknown as well, as on exFAT, which no two machines have mounted at the same time.
        Err(Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP) => {
            return check_and_rename(from_dir, from, to_dir, to);
        }
        refused => return refused,
    }
    rustix::fs::unlinkat(from_dir, from, AtFlags::empty())
}

/// Renames a directory, relative to open directories.
///
/// A directory has no hard links. On file systems without `RENAME_NOREPLACE` the name is checked first. If somebody
/// puts a directory there between the check and the rename, only an empty one can be replaced.
pub(crate) fn rename_dir_no_replace<P: Arg + Copy>(
    from_dir: impl AsFd,
    from: P,
    to_dir: impl AsFd,
    to: P,
) -> Result<(), Errno> {
    let (from_dir, to_dir) = (from_dir.as_fd(), to_dir.as_fd());
    atomically(from_dir, from, to_dir, to).unwrap_or_else(|| check_and_rename(from_dir, from, to_dir, to))
}

/// Renames by `RENAME_NOREPLACE`. Returns `None` if the file system does not support it.
fn atomically<P: Arg>(
    from_dir: BorrowedFd<'_>,
    from: P,
    to_dir: BorrowedFd<'_>,
    to: P,
) -> Option<Result<(), Errno>> {
    match rustix::fs::renameat_with(from_dir, from, to_dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => None,
        done => Some(done),
    }
}

fn check_and_rename<P: Arg + Copy>(
    from_dir: BorrowedFd<'_>,
    from: P,
    to_dir: BorrowedFd<'_>,
    to: P,
) -> Result<(), Errno> {
    match rustix::fs::statat(to_dir, to, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => rustix::fs::renameat(from_dir, from, to_dir, to),
        Err(errno) => Err(errno),
        Ok(_) => Err(Errno::EXIST),
    }
}
