//! The place of a catalog's file: its directory, and the kind of file system that it is on.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;

use super::error::OpenError;
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

#[cfg(test)]
mod tests {
    use std::fs;
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
}
