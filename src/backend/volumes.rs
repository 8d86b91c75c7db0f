//! The life of a volume's directory: made in `.volhost/new`, renamed to its name, renamed to `.volhost/trash`.
//!
//! Every step is one rename or one rmdir and is durable when it returns, except for a new directory: [`Staged::sync`] makes
//! its owner and mode durable, and [`Root::flush`] or a [`Flush`] its name. Nothing here deletes data; [`Root::purge`] does. What a step means for the catalog is the caller's
//! business.

use std::ffi::CStr;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Stat, Uid};
use rustix::io::Errno;

use crate::backend::error::BackendError;
use crate::backend::handle::{Handle, is_directory, kind};
use crate::backend::layout::{META_DIR, NEW, TRASH};
use crate::backend::rename::{moved, rename, rename_durably};
use crate::backend::root::Root;
use crate::model::directory::DirectoryId;
use crate::model::options::{Mode, Ownership};
use crate::model::volume::{VolumeId, VolumeName};

/// The kind of entry under a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// A real directory.
    Directory,
    /// Nothing.
    Missing,
    /// Something that is not a directory; holds its kind.
    NotADirectory(&'static str),
}

/// A directory that was just made in `.volhost/new`.
#[derive(Debug)]
pub struct Staged(Handle);

/// A flush that was prepared by [`Root::later_flush`].
///
/// The kernel reports an error of writing back once for each open file description, and only if that was open when the
/// error happened. So this shares the root's description, which was opened before anything was done in it.
#[derive(Debug)]
pub struct Flush(Handle);

impl Flush {
    /// Makes everything durable that was done in the root.
    pub fn run(&self) -> Result<(), BackendError> {
        self.0.sync()
    }
}

impl Staged {
    /// Returns the directory's identity.
    pub fn id(&self) -> Result<DirectoryId, BackendError> {
        self.0.directory_id("")
    }

    /// Makes the directory durable with its owner and mode. Its entry in `.volhost/new` need not be durable: the caller
    /// renames it, which makes the new entry durable, or finds it gone after a crash.
    pub fn sync(&self) -> Result<(), BackendError> {
        self.0.sync()
    }
}

/// The entries of `.volhost/new` or `.volhost/trash`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The directories named by a volume's ID, sorted.
    pub volumes: Vec<VolumeId>,
    /// All other entries. They are not volhost's and are left alone.
    pub strays: Vec<PathBuf>,
}

impl Root {
    /// Makes volhost's own directories while there is space for them, because a removal that is to free space must not
    /// need any. A directory that cannot be made now is made when it is needed, or refused with the reason.
    pub fn prepare(&self) {
        for name in [NEW, TRASH] {
            if let Err(error) = self.meta_dir_made(name) {
                log::debug!("backend {}: {}", self.backend, crate::error::chain(&error));
            }
        }
    }

    /// Returns the kind of entry under a volume's name.
    pub fn volume_state(&self, name: &VolumeName) -> Result<VolumeState, BackendError> {
        Ok(match self.dir.stat(name.as_str())? {
            None => VolumeState::Missing,
            Some(stat) if is_directory(&stat) => VolumeState::Directory,
            Some(stat) => VolumeState::NotADirectory(kind(FileType::from_raw_mode(stat.st_mode))),
        })
    }

    /// Makes a volume's directory in `.volhost/new`: empty, with exactly this owner and mode whatever the umask, and not
    /// durable yet. A directory that cannot be given them is removed again.
    pub fn stage(&self, id: VolumeId, ownership: Ownership) -> Result<Staged, BackendError> {
        let new = self.meta_dir_made(NEW)?;
        let name = id.to_string();
        let path = new.path.join(&name);
        match rustix::fs::mkdirat(&new.fd, &*name, rustix::fs::Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(BackendError::Occupied { path, directory: true, listed: None }),
            Err(errno) => {
                // A server may have made it and lost its answer.
                let _ = rustix::fs::unlinkat(&new.fd, &*name, AtFlags::REMOVEDIR);
                return Err(moved("make", path, errno));
            }
        }
        let made = new.open(&name).and_then(|made| {
            let made = made.ok_or(BackendError::Missing { path })?;
            set_ownership(&made, ownership)?;
            Ok(Staged(made))
        });
        made.inspect_err(|_| {
            // If this fails, the caller's recovery finds an empty directory among the staged ones.
            let _ = rustix::fs::unlinkat(&new.fd, &*name, AtFlags::REMOVEDIR);
        })
    }

    /// Gives a directory that an earlier process staged its owner and mode durably: a power cut may have undone them.
    ///
    /// Returns [`BackendError::Missing`] if nothing is staged.
    pub fn stage_again(&self, id: VolumeId, ownership: Ownership) -> Result<(), BackendError> {
        let new = self.meta_dir_made(NEW)?;
        match new.open(&id.to_string()) {
            Ok(Some(made)) => {
                set_ownership(&made, ownership)?;
                made.sync()
            }
            Ok(None) => Err(BackendError::Missing { path: new.path.join(id.to_string()) }),
            // It was made readable for this process. If it is not, it already has the requested mode.
            Err(BackendError::Io { source: Errno::ACCESS, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Renames a staged directory to its volume's name. That is durable after a [`flush`](Self::flush).
    ///
    /// Nothing waits until it is durably gone from `.volhost/new`. A file system with a journal does both at once;
    /// without one, a power cut may leave the directory under both names, and a repetition of this call then finds it
    /// done.
    ///
    /// Returns [`BackendError::Occupied`] if something stands there, [`BackendError::Missing`] if nothing is staged.
    pub fn publish(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let staged = id.to_string();
        let Some(new) = self.meta_dir(NEW)? else {
            return Err(BackendError::Missing { path: self.path().join(META_DIR).join(NEW).join(staged) });
        };
        rename(&new, &staged, &self.dir, name.as_str())
    }

    /// Makes the names in the root durable.
    pub fn flush(&self) -> Result<(), BackendError> {
        self.dir.sync()
    }

    /// Returns a flush of the root that also reports errors of everything done in it since this root was opened.
    pub fn later_flush(&self) -> Result<Flush, BackendError> {
        let path = self.dir.path.clone();
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.dir.fd, 0)
            .map_err(|errno| BackendError::io("open", &path, errno))?;
        Ok(Flush(Handle { fd, path }))
    }

    /// Makes volumes' directories durable after a flush has failed: each with its owner and mode, then their names. One that
    /// is gone is skipped.
    pub fn flush_volumes(&self, names: &[VolumeName]) -> Result<(), BackendError> {
        for name in names {
            if let Some(directory) = self.dir.open(name.as_str())? {
                directory.sync()?;
            }
        }
        self.flush()
    }

    /// Returns the identity of what stands under a volume's name.
    pub fn directory_id(&self, name: &VolumeName) -> Result<DirectoryId, BackendError> {
        self.dir.directory_id(name.as_str())
    }

    /// Returns true if a volume's directory is staged.
    pub fn is_staged(&self, id: VolumeId) -> Result<bool, BackendError> {
        self.is_in(NEW, id)
    }

    /// Returns true if a volume's directory lies in the trash under its own name.
    pub fn is_in_trash(&self, id: VolumeId) -> Result<bool, BackendError> {
        self.is_in(TRASH, id)
    }

    /// Removes a staged directory if it is there and empty: never recursively.
    pub fn unstage(&self, id: VolumeId) -> Result<(), BackendError> {
        let Some(new) = self.meta_dir(NEW)? else { return Ok(()) };
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
    /// Returns [`BackendError::Missing`] if there is none; a link, a file or a mount point under that name is refused.
    pub fn trash(&self, name: &VolumeName, id: VolumeId) -> Result<(), BackendError> {
        let trash = self.meta_dir_made(TRASH)?;
        rename_durably(&self.dir, name.as_str(), &trash, &id.to_string())
    }

    /// Renames a trashed directory back to a volume's name.
    ///
    /// Returns [`BackendError::Occupied`] if something stands there, [`BackendError::Missing`] if it is not in the
    /// trash.
    pub fn untrash(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let trashed = id.to_string();
        let Some(trash) = self.meta_dir(TRASH)? else {
            return Err(BackendError::Missing { path: self.path().join(META_DIR).join(TRASH).join(trashed) });
        };
        rename_durably(&trash, &trashed, &self.dir, name.as_str())
    }

    /// Returns the directories being made.
    pub fn staged(&self) -> Result<Listing, BackendError> {
        self.listing(NEW)
    }

    /// Returns the removed volumes' directories.
    pub fn trashed(&self) -> Result<Listing, BackendError> {
        self.listing(TRASH)
    }

    /// Returns the owner and mode of a volume's directory; `None` if there is none.
    pub fn ownership(&self, name: &VolumeName) -> Result<Option<Ownership>, BackendError> {
        let stat = self.dir.stat(name.as_str())?.filter(is_directory);
        Ok(stat.map(|stat| Ownership {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: Mode::from_bits(stat.st_mode),
        }))
    }

    fn is_in(&self, meta_dir: &str, id: VolumeId) -> Result<bool, BackendError> {
        let Some(dir) = self.meta_dir(meta_dir)? else { return Ok(false) };
        Ok(dir.stat(&id.to_string())?.is_some_and(|stat| is_directory(&stat)))
    }

    fn listing(&self, name: &str) -> Result<Listing, BackendError> {
        let mut listing = Listing::default();
        let Some(dir) = self.meta_dir(name)? else { return Ok(listing) };
        dir.for_each(|name, kind| {
            let id = identity(name);
            // Some file systems do not give an entry's kind in a listing.
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

/// Returns the ID that an entry's name holds, if it is spelled as volhost spells it.
pub(super) fn identity(name: &CStr) -> Option<VolumeId> {
    let text = name.to_str().ok()?;
    text.parse().ok().filter(|id: &VolumeId| id.to_string() == text)
}

/// Gives a new directory its owner and mode, and checks that the storage took them.
fn set_ownership(dir: &Handle, ownership: Ownership) -> Result<(), BackendError> {
    let Ownership { uid, gid, mode } = ownership;
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
    // After the owner: changing that clears the set-user-ID and set-group-ID bits.
    let bits = rustix::fs::Mode::from_raw_mode(mode.bits());
    rustix::fs::fchmod(&dir.fd, bits).map_err(|errno| refused(&made, Some(errno)))?;
    let now = look()?;
    if (now.st_uid, now.st_gid, now.st_mode & 0o7777) != (uid, gid, mode.bits()) {
        return Err(refused(&now, None));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;
    use crate::backend::tests::{Mounted, is_root, made, me, mode, open, owned, volume};

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_staged_directory_has_exactly_the_owner_and_mode_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (uid, gid) = if is_root() { (1234, 4321) } else { me() };
        for text in ["0755", "0777", "2770", "1777", "0000", "7777"] {
            let id = VolumeId::random();
            root.stage(id, owned(uid, gid, mode(text))).unwrap();
            let name = volume(&format!("v{text}"));
            root.publish(id, &name).unwrap();
            root.trash(&name, id).unwrap();
            root.untrash(id, &name).unwrap();
            let made = std::fs::metadata(dir.path().join(name.as_str())).unwrap();
            assert_eq!(format!("{:04o}", made.mode() & 0o7777), text);
            assert_eq!((made.uid(), made.gid()), (uid, gid));
            // A mode inherited from the directory above was not asked for.
            let above = dir.path().join(".volhost/new");
            std::fs::set_permissions(above, std::fs::Permissions::from_mode(0o2700)).unwrap();
        }
        let own = std::fs::metadata(dir.path().join(".volhost")).unwrap();
        assert_eq!(own.mode() & 0o7777, 0o700);
    }

    #[test]
    fn a_directory_is_staged_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = VolumeId::random();
        let (uid, gid) = me();
        root.stage(id, owned(uid, gid, mode("0755"))).unwrap();
        let again = root.stage(id, owned(uid, gid, mode("0755")));
        assert!(matches!(again, Err(BackendError::Occupied { .. })));
        assert_eq!(root.staged().unwrap().volumes, [id]);
    }

    #[test]
    fn publishing_never_replaces_anything() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = VolumeId::random();
        let (uid, gid) = me();
        root.stage(id, owned(uid, gid, mode("0755"))).unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        std::fs::write(dir.path().join("file"), "kept").unwrap();
        symlink("/nowhere", dir.path().join("link")).unwrap();
        for (name, adoptable) in [("directory", true), ("file", false), ("link", false)] {
            let error = root.publish(id, &volume(name)).unwrap_err();
            let BackendError::Occupied { path, directory, listed: None } = error else {
                panic!("{name}: {error}")
            };
            assert_eq!((path, directory), (dir.path().join(name), adoptable));
        }
        assert_eq!(read(&dir.path().join("file")), "kept");
        assert_eq!(root.staged().unwrap().volumes, [id]);
        let missing = root.publish(VolumeId::random(), &volume("db"));
        assert!(matches!(missing, Err(BackendError::Missing { .. })));
    }

    #[test]
    fn only_an_empty_staged_directory_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = VolumeId::random();
        root.unstage(id).unwrap();
        let (uid, gid) = me();
        root.stage(id, owned(uid, gid, mode("0755"))).unwrap();
        let data = dir.path().join(".volhost/new").join(id.to_string()).join("data");
        std::fs::write(&data, "kept").unwrap();
        assert!(matches!(root.unstage(id), Err(BackendError::NotEmpty { .. })));
        assert_eq!(read(&data), "kept");
        std::fs::remove_file(&data).unwrap();
        root.unstage(id).unwrap();
        root.unstage(id).unwrap();
        assert_eq!(root.staged().unwrap(), Listing::default());
    }

    #[test]
    fn the_trash_gives_back_what_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert_eq!(root.volume_state(&volume("db")).unwrap(), VolumeState::Missing);
        assert_eq!(root.trashed().unwrap().volumes, [id]);
        made(&root, "db");
        assert!(matches!(
            root.untrash(id, &volume("db")),
            Err(BackendError::Occupied { directory: true, .. })
        ));
        root.untrash(id, &volume("back")).unwrap();
        assert_eq!(read(&dir.path().join("back/data")), "db");
        assert!(matches!(root.untrash(id, &volume("twice")), Err(BackendError::Missing { .. })));
        assert!(matches!(root.trash(&volume("none"), id), Err(BackendError::Missing { .. })));
    }

    #[test]
    fn what_is_no_directory_is_not_trashed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        std::fs::write(other.path().join("data"), "kept").unwrap();
        symlink(other.path(), dir.path().join("link")).unwrap();
        std::fs::write(dir.path().join("file"), "kept").unwrap();
        for (name, kind) in [("link", "a symbolic link"), ("file", "a file")] {
            assert_eq!(root.volume_state(&volume(name)).unwrap(), VolumeState::NotADirectory(kind));
            let refused = root.trash(&volume(name), VolumeId::random());
            assert!(matches!(refused, Err(BackendError::NotADirectory { .. })), "{name}");
        }
        assert_eq!(read(&dir.path().join("link/data")), "kept");
        assert_eq!(root.trashed().unwrap(), Listing::default());
    }

    #[test]
    fn a_mount_point_is_not_trashed() {
        if !is_root() {
            return;
        }
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        let id = made(&root, "db");
        for mounted in [Mounted::tmpfs, |at: &Path| Mounted::bind(at, at)] {
            let _mounted = mounted(&dir.path().join("db"));
            let refused = root.trash(&volume("db"), id);
            assert!(matches!(refused, Err(BackendError::MountPoint { .. })), "{refused:?}");
            assert_eq!(root.volume_state(&volume("db")).unwrap(), VolumeState::Directory);
        }
        let _mounted = Mounted::bind(other.path(), &dir.path().join(".volhost"));
        let refused = root.stage(id, owned(0, 0, mode("0755")));
        assert!(matches!(refused, Err(BackendError::MountPoint { .. })), "{refused:?}");
    }

    #[test]
    fn our_own_directories_may_be_no_links() {
        for link in [".volhost", ".volhost/new", ".volhost/trash"] {
            let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let root = open(dir.path());
            if link != ".volhost" {
                std::fs::create_dir(dir.path().join(".volhost")).unwrap();
            }
            symlink(other.path(), dir.path().join(link)).unwrap();
            let id = VolumeId::random();
            let (uid, gid) = me();
            let staged = root.stage(id, owned(uid, gid, mode("0755"))).map(drop);
            std::fs::create_dir(dir.path().join("db")).unwrap();
            let trashed = root.trash(&volume("db"), id);
            assert_eq!(staged.is_err(), link != ".volhost/trash", "{link}: {staged:?}");
            assert_eq!(trashed.is_err(), link != ".volhost/new", "{link}: {trashed:?}");
            for result in [staged, trashed] {
                assert!(matches!(result, Ok(()) | Err(BackendError::NotADirectory { .. })), "{result:?}");
            }
            assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0, "{link} was followed");
        }
    }

    #[test]
    fn strays_are_told_apart_and_left() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        root.trash(&volume("db"), id).unwrap();
        let trash = dir.path().join(".volhost/trash");
        let file = trash.join(VolumeId::random().to_string());
        let directory = trash.join("photos");
        let shouted = trash.join(VolumeId::random().to_string().to_uppercase());
        std::fs::write(&file, "").unwrap();
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(&shouted).unwrap();
        let mut strays = vec![file, directory, shouted];
        strays.sort();
        assert_eq!(root.trashed().unwrap(), Listing { volumes: vec![id], strays });
    }
}
