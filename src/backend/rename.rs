//! Renames a directory below a root: durably, and never over an existing entry.

use std::path::PathBuf;

use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use crate::backend::error::{BackendError, Effect};
use crate::backend::handle::{Handle, TemporaryMode, is_directory, open_beneath, same};
use crate::backend::name_folding::occupied;
use crate::files::rename_dir_no_replace;

/// Renames a real directory, never over an existing entry. It is durable once both parents are.
pub(super) fn rename(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), BackendError> {
    let source = from.path.join(old);
    let Some(before) = from.stat(old)? else { return Err(BackendError::Missing { path: source }) };
    if !is_directory(&before) {
        return Err(BackendError::NotADirectory { path: source });
    }
    if is_mount_point(from, old)? {
        return Err(BackendError::MountPoint { path: source });
    }
    let renamed = match rename_dir_no_replace(&from.fd, old, &to.fd, new) {
        Err(Errno::ACCESS) => rename_read_only(from, old, to, new),
        result => result,
    };
    if let Err(errno) = renamed {
        // A server may have done it, lost its answer, and refused the repetition. It was done if the very same
        // directory stands under the new name.
        let done = to.stat(new).is_ok_and(|now| now.is_some_and(|now| same(&now, &before)));
        if !done {
            return Err(match errno {
                Errno::EXIST | Errno::NOTEMPTY => occupied(to, new),
                Errno::NOENT => BackendError::Missing { path: source },
                Errno::BUSY | Errno::XDEV => BackendError::MountPoint { path: source },
                Errno::ACCESS if before.st_uid != us() => {
                    BackendError::Foreign { path: source, owner: before.st_uid, us: us() }
                }
                errno => moved("rename", source, errno),
            });
        }
    }
    Ok(())
}

/// Renames as [`rename`] does, and makes both parents durable.
pub(super) fn rename_durably(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), BackendError> {
    rename(from, old, to, new)?;
    // If this fails, the rename may not outlast a crash: the error says that its effect is unknown. The new name comes
    // first: on a file system without a journal, a power cut between the two must not leave neither name.
    to.sync()?;
    from.sync()
}

/// Renames a directory whose mode does not let its owner write; the kernel demands that of everyone except root.
fn rename_read_only(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), Errno> {
    let Some(temporary) = TemporaryMode::open(&from.fd, old, rustix::fs::Mode::WUSR)? else {
        return Err(Errno::ACCESS);
    };
    let renamed = rename_dir_no_replace(&from.fd, old, &to.fd, new);
    temporary.restore()?;
    renamed
}

/// Returns the user that this process runs as.
fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn is_mount_point(dir: &Handle, name: &str) -> Result<bool, BackendError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(&dir.fd, name, flags, StatxFlags::TYPE) {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // Kernels before 5.8 do not report it. Then an attempt to open the directory without crossing a mount point
        // does.
        Ok(_) | Err(Errno::NOSYS) => {
            let opened =
                open_beneath(&dir.fd, name, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY);
            Ok(opened.is_err_and(|errno| errno == Errno::XDEV))
        }
        // The next call reports the same.
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(BackendError::io("examine", &dir.path.join(name), errno)),
    }
}

/// Returns the error of a call that moves or removes. Its effect is unknown unless the kernel refused the call.
pub(super) fn moved(what: &'static str, path: PathBuf, source: Errno) -> BackendError {
    let refusals = [
        Errno::ACCESS,
        Errno::PERM,
        Errno::ROFS,
        Errno::NOSPC,
        Errno::DQUOT,
        Errno::INVAL,
        Errno::ISDIR,
        Errno::NOTDIR,
        Errno::LOOP,
        Errno::MLINK,
        Errno::NAMETOOLONG,
        Errno::NOSYS,
        Errno::OPNOTSUPP,
        Errno::BUSY,
        Errno::NOMEM,
    ];
    let effect = if refusals.contains(&source) { Effect::None } else { Effect::Unknown };
    BackendError::Io { what, path, effect, source }
}
