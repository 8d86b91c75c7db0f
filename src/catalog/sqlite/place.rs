//! The place of a catalog's file: its directory, what kind of file system that is, and who has it open.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock, statfs};

use super::error::OpenError;
use super::presence::Identity;
use crate::files;

/// Makes the directory, and those above it that are missing, so that only their owner can enter them.
pub(super) fn make_directory(directory: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = directory.ancestors().take_while(|path| !path.exists()).collect();
    files::make_dir(directory, 0o700)?;
    for parent in missing.iter().filter_map(|path| path.parent()) {
        sync_directory(parent)?;
    }
    Ok(())
}

/// Makes what was created, renamed or removed in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The path with `suffix` at the end of its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Refuses a path on a file system of other machines or of a program.
pub(super) fn refuse_shared(path: &Path) -> Result<(), OpenError> {
    let found = statfs(path).map_err(|errno| OpenError::Io {
        path: path.into(),
        doing: "looked at",
        source: errno.into(),
    })?;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "these numbers have 32 bits, whatever the type's width"
    )]
    match shared(found.f_type as u32) {
        Some(kind) => Err(OpenError::Shared { path: path.into(), kind }),
        None => Ok(()),
    }
}

/// What the file system of this `f_type` is called, if it is one that machines share or that a program serves: file
/// locks and shared memory, which SQLite's log needs, are not to be relied on there.
fn shared(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "NFS",
        0x0000_517B => "SMB",
        0xFF53_4D42 => "CIFS",
        0xFE53_4D42 => "SMB2",
        0x00C3_6400 => "CephFS",
        0x6573_5546 => "FUSE (GlusterFS, sshfs, virtiofs, s3fs and the like)",
        0x0102_1997 => "9p",
        0x5346_414F | 0x6B41_4653 => "AFS",
        0x0BD0_0BD0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x7461_636F => "OCFS2",
        0x0116_1970 => "GFS2",
        0x2003_0528 => "OrangeFS",
        0xAAD7_AAEA => "PanFS",
        0x7375_7245 => "Coda",
        0x0000_564C => "NCP",
        0x786F_4256 => "a VirtualBox share",
        0xBACB_ACBC => "a VMware share",
        _ => return None,
    })
}

/// How long a lock is waited for: a process that was killed has it until the system has cleared up after it.
const PATIENCE: Duration = Duration::from_secs(1);

/// That this process alone has a catalog's file open. Given up when it is dropped, or when the process ends in
/// whatever way.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    held: Identity,
    _file: File,
}

impl Lock {
    /// Takes the lock of the catalog at `path`: on a file beside it, because SQLite's own file must stay as it is
    /// until it was found to be a catalog.
    pub(super) fn take(path: &Path) -> Result<Self, OpenError> {
        let lock = beside(path, ".lock");
        let failed = |source| OpenError::Io { path: lock.clone(), doing: "locked", source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&lock).map_err(failed)?;
        let patience = Instant::now() + PATIENCE;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < patience => {
                    std::thread::sleep(PATIENCE / 20);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(OpenError::Locked { path: path.into(), holder: holder(&mut file) });
                }
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        // The number is only for whoever comes second: on a full disk it may be missing.
        let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        let held = Identity::of(&file.metadata().map_err(failed)?);
        Ok(Self { path: lock, held, _file: file })
    }

    /// Whether who comes second still finds it.
    pub(super) fn is_in_place(&self) -> bool {
        self.held.is_at(&self.path)
    }
}

/// Who holds a lock, for a message.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let pid = file.take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse::<u32>().ok());
    let Some(pid) = pid else { return "another process".into() };
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match name.trim() {
        "" => format!("process {pid}"),
        name => format!("process {pid} ({name})"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn file_systems_of_other_machines_are_known_by_their_numbers() {
        for magic in [0x6969, 0xFF53_4D42, 0xFE53_4D42, 0x00C3_6400, 0x6573_5546, 0x0102_1997, 0x0BD0_0BD0] {
            assert!(shared(magic).is_some(), "{magic:#x}");
        }
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs, f2fs, bcachefs.
        for magic in [
            0xEF53,
            0x5846_5342,
            0x9123_683E,
            0x0102_1994,
            0x794C_7630,
            0x2FC1_2FC1,
            0xF2F5_2010,
            0xCA45_1A4E,
        ] {
            assert_eq!(shared(magic), None, "{magic:#x}");
        }
    }

    #[test]
    fn a_local_directory_is_not_refused() {
        let directory = tempfile::tempdir().unwrap();
        refuse_shared(directory.path()).unwrap();
    }

    #[test]
    fn directories_are_made_for_their_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b");
        make_directory(&deep).unwrap();
        for made in [deep.as_path(), deep.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
        make_directory(&deep).unwrap();
    }

    #[test]
    fn a_lock_names_its_holder_and_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("catalog.db");
        let lock = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(lock);
        Lock::take(&path).unwrap();
    }
}
