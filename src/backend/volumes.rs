//! The way of a volume's directory: made in `.volhost/new`, renamed to its name, renamed to `.volhost/trash`.
//!
//! Every step is one rename or one rmdir, made durable before it is answered. Nothing here deletes data: that is
//! [`Root::purge`]. What a step means for the catalog is the caller's business.

use std::ffi::CStr;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, RenameFlags, Stat, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

use crate::backend::directory::{Handle, NEW, Root, TRASH, open_beneath};
use crate::backend::error::{BackendError, Effect};
use crate::volume::name::{VolumeId, VolumeName};
use crate::volume::options::Mode;

/// What stands under a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// A real directory.
    Directory,
    /// Nothing.
    Missing,
    /// A file, a symbolic link or something else that is no directory.
    NotADirectory,
}

/// What lies in `.volhost/new` or `.volhost/trash`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The directories named by a volume's identity, sorted.
    pub volumes: Vec<VolumeId>,
    /// Whatever else lies there: not ours, and left alone.
    pub strays: Vec<PathBuf>,
}

impl Root {
    /// What stands under a volume's name.
    pub fn volume_state(&self, name: &VolumeName) -> Result<VolumeState, BackendError> {
        Ok(match self.dir.stat(name.as_str())? {
            None => VolumeState::Missing,
            Some(stat) if is_directory(&stat) => VolumeState::Directory,
            Some(_) => VolumeState::NotADirectory,
        })
    }

    /// Makes a volume's directory in `.volhost/new`: empty, durable, with exactly this owner and mode whatever the
    /// umask. When it fails, it is taken back.
    pub fn stage(&self, id: VolumeId, uid: u32, gid: u32, mode: Mode) -> Result<(), BackendError> {
        let new = self.house_made(NEW)?;
        let name = id.to_string();
        let path = new.path.join(&name);
        match rustix::fs::mkdirat(&new.fd, &*name, rustix::fs::Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(BackendError::Occupied { path, directory: true }),
            Err(errno) => return Err(BackendError::io("make", &path, errno)),
        }
        let made = new.open(&name).and_then(|made| {
            let made = made.ok_or(BackendError::Missing { path })?;
            own(&made, uid, gid, mode)?;
            made.sync()?;
            new.sync()
        });
        made.inspect_err(|_| {
            // What cannot be taken back is an empty directory that the caller's recovery finds among the staged ones.
            let _ = rustix::fs::unlinkat(&new.fd, &*name, AtFlags::REMOVEDIR);
        })
    }

    /// Renames a staged directory to its volume's name.
    ///
    /// [`BackendError::Occupied`] when something stands there, [`BackendError::Missing`] when nothing is staged.
    pub fn publish(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let staged = id.to_string();
        let Some(new) = self.house(NEW)? else {
            return Err(BackendError::Missing { path: self.path().join(".volhost/new").join(staged) });
        };
        rename(&new, &staged, &self.dir, name.as_str())
    }

    /// Takes a staged directory back, if it is there. Only an empty one: never recursive.
    pub fn unstage(&self, id: VolumeId) -> Result<(), BackendError> {
        let Some(new) = self.house(NEW)? else { return Ok(()) };
        let name = id.to_string();
        match rustix::fs::unlinkat(&new.fd, &*name, AtFlags::REMOVEDIR) {
            Ok(()) => new.sync(),
            Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(BackendError::NotEmpty { path: new.path.join(name) }),
            Err(errno) => Err(moved("remove", new.path.join(name), errno)),
        }
    }

    /// Renames a volume's directory into `.volhost/trash`.
    ///
    /// [`BackendError::Missing`] when there is none; a link, a file or a mount point under that name is refused.
    pub fn trash(&self, name: &VolumeName, id: VolumeId) -> Result<(), BackendError> {
        let trash = self.house_made(TRASH)?;
        rename(&self.dir, name.as_str(), &trash, &id.to_string())
    }

    /// Renames a trashed directory back to a volume's name.
    ///
    /// [`BackendError::Occupied`] when something stands there, [`BackendError::Missing`] when it is not in the trash.
    pub fn untrash(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let trashed = id.to_string();
        let Some(trash) = self.house(TRASH)? else {
            return Err(BackendError::Missing { path: self.path().join(".volhost/trash").join(trashed) });
        };
        rename(&trash, &trashed, &self.dir, name.as_str())
    }

    /// The directories being made.
    pub fn staged(&self) -> Result<Listing, BackendError> {
        self.listing(NEW)
    }

    /// The removed volumes' directories.
    pub fn trashed(&self) -> Result<Listing, BackendError> {
        self.listing(TRASH)
    }

    fn listing(&self, name: &str) -> Result<Listing, BackendError> {
        let mut listing = Listing::default();
        let Some(dir) = self.house(name)? else { return Ok(listing) };
        dir.for_each(|name, kind| {
            let id = identity(name);
            // Some file systems do not tell an entry's kind in a listing.
            let directory = match (id, kind) {
                (Some(id), FileType::Unknown) => {
                    dir.stat(&id.to_string())?.is_some_and(|stat| is_directory(&stat))
                }
                (_, kind) => kind == FileType::Directory,
            };
            match id {
                Some(id) if directory => listing.volumes.push(id),
                _ => listing.strays.push(dir.path.join(&*name.to_string_lossy())),
            }
            Ok(true)
        })?;
        listing.volumes.sort_unstable();
        listing.strays.sort_unstable();
        Ok(listing)
    }
}

/// The identity that an entry is named by: only in the one spelling that we write.
fn identity(name: &CStr) -> Option<VolumeId> {
    let text = name.to_str().ok()?;
    text.parse().ok().filter(|id: &VolumeId| id.to_string() == text)
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Gives a new directory its owner and mode, and looks whether the storage took them.
fn own(dir: &Handle, uid: u32, gid: u32, mode: Mode) -> Result<(), BackendError> {
    let look = || rustix::fs::fstat(&dir.fd).map_err(|errno| BackendError::io("examine", &dir.path, errno));
    let refused = |stat: &Stat, source| BackendError::Ownership {
        path: dir.path.clone(),
        uid,
        gid,
        mode: mode.bits(),
        found: format!("{}:{} {:04o}", stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
        source,
    };
    let made = look()?;
    let owner = (made.st_uid != uid).then(|| Uid::from_raw(uid));
    let group = (made.st_gid != gid).then(|| Gid::from_raw(gid));
    if owner.is_some() || group.is_some() {
        rustix::fs::fchown(&dir.fd, owner, group).map_err(|errno| refused(&made, Some(errno)))?;
    }
    // After the owner: changing that clears set-user-ID and set-group-ID bits.
    let bits = rustix::fs::Mode::from_raw_mode(mode.bits());
    rustix::fs::fchmod(&dir.fd, bits).map_err(|errno| refused(&made, Some(errno)))?;
    let now = look()?;
    if (now.st_uid, now.st_gid, now.st_mode & 0o7777) != (uid, gid, mode.bits()) {
        return Err(refused(&now, None));
    }
    Ok(())
}

/// Renames a real directory, never over anything, and makes both parents durable.
fn rename(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), BackendError> {
    let source = from.path.join(old);
    let Some(before) = from.stat(old)? else { return Err(BackendError::Missing { path: source }) };
    if !is_directory(&before) {
        return Err(BackendError::NotADirectory { path: source });
    }
    if is_mount_point(from, old)? {
        return Err(BackendError::MountPoint { path: source });
    }
    if let Err(errno) = rename_onto_nothing(from, old, to, new) {
        // A server may have done it and lost its answer, and then refuse the repetition: what tells is whether the
        // very directory stands under its new name.
        let done = to.stat(new).is_ok_and(|now| now.is_some_and(|now| same(&now, &before)));
        if !done {
            return Err(match errno {
                Errno::EXIST | Errno::NOTEMPTY => occupied(to, new),
                Errno::NOENT => BackendError::Missing { path: source },
                Errno::BUSY | Errno::XDEV => BackendError::MountPoint { path: source },
                errno => moved("rename", source, errno),
            });
        }
    }
    // When this fails the rename stands, but may not outlast a crash: the error says that the effect is unknown.
    from.sync()?;
    to.sync()
}

fn rename_onto_nothing(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), Errno> {
    match rustix::fs::renameat_with(&from.fd, old, &to.fd, new, RenameFlags::NOREPLACE) {
        // NFS, Ceph and GlusterFS know no flags here. Between this look and the rename only somebody who writes into
        // the backend's root could put an empty directory there, and the rename would replace no more than that.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            match rustix::fs::statat(&to.fd, new, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(Errno::NOENT) => rustix::fs::renameat(&from.fd, old, &to.fd, new),
                Err(errno) => Err(errno),
            }
        }
        result => result,
    }
}

fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn occupied(dir: &Handle, name: &str) -> BackendError {
    let directory = dir.stat(name).is_ok_and(|stat| stat.is_some_and(|stat| is_directory(&stat)));
    BackendError::Occupied { path: dir.path.join(name), directory }
}

fn is_mount_point(dir: &Handle, name: &str) -> Result<bool, BackendError> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(&dir.fd, name, flags, StatxFlags::TYPE) {
        Ok(stat) if stat.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) => {
            Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
        }
        // Kernels before 5.8 do not tell; opening it without leave to cross a mount point does.
        Ok(_) | Err(Errno::NOSYS) => {
            let opened =
                open_beneath(&dir.fd, name, rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY);
            Ok(opened.is_err_and(|errno| errno == Errno::XDEV))
        }
        Err(errno) => Err(BackendError::io("examine", &dir.path.join(name), errno)),
    }
}

/// An error of a call that moves or removes: whether it may have been done depends on whether the kernel refused it
/// or the storage failed under it.
fn moved(what: &'static str, path: PathBuf, source: Errno) -> BackendError {
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
