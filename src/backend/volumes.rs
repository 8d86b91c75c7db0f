//! The way of a volume's directory: made in `.volhost/new`, renamed to its name, renamed to `.volhost/trash`.
//!
//! Every step is one rename or one rmdir, made durable before it is answered; only a directory that is made is made
//! durable apart, by [`Staged::sync`]. Nothing here deletes data: that is [`Root::purge`]. What a step means for the catalog is the caller's business.

use std::ffi::CStr;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Gid, Stat, StatxAttributes, StatxFlags, Uid};
use rustix::io::Errno;

use crate::backend::directory::{Handle, NEW, Root, TRASH, Widened, open_beneath};
use crate::backend::error::{BackendError, Effect};
use crate::backend::name_folding::occupied;
use crate::model::options::{Mode, Ownership};
use crate::model::volume::{VolumeId, VolumeName};

/// What stands under a volume's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeState {
    /// A real directory.
    Directory,
    /// Nothing.
    Missing,
    /// This, which is no directory.
    NotADirectory(&'static str),
}

/// A directory that was just made in `.volhost/new`.
#[derive(Debug)]
pub struct Staged(Handle);

impl Staged {
    /// Makes it durable with its owner and mode. Its entry in `.volhost/new` need not be: the caller renames it, which
    /// makes the new one durable, or finds out after a crash that it is gone.
    pub fn sync(&self) -> Result<(), BackendError> {
        self.0.sync()
    }
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
    /// Makes volhost's own directories while there is space for them: a removal that is to free space must not need
    /// any. What cannot be made now is made, or refused with the reason, when it is needed.
    pub fn prepare(&self) {
        for name in [NEW, TRASH] {
            if let Err(error) = self.house_made(name) {
                log::debug!("backend {}: {}", self.backend, crate::error::chain(&error));
            }
        }
    }

    /// What stands under a volume's name.
    pub fn volume_state(&self, name: &VolumeName) -> Result<VolumeState, BackendError> {
        Ok(match self.dir.stat(name.as_str())? {
            None => VolumeState::Missing,
            Some(stat) if is_directory(&stat) => VolumeState::Directory,
            Some(stat) => VolumeState::NotADirectory(kind(FileType::from_raw_mode(stat.st_mode))),
        })
    }

    /// Makes a volume's directory in `.volhost/new`: empty, with exactly this owner and mode whatever the umask, and
    /// not durable yet. When it fails, it is taken back.
    pub fn stage(&self, id: VolumeId, uid: u32, gid: u32, mode: Mode) -> Result<Staged, BackendError> {
        let new = self.house_made(NEW)?;
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
            own(&made, uid, gid, mode)?;
            Ok(Staged(made))
        });
        made.inspect_err(|_| {
            // What cannot be taken back is an empty directory that the caller's recovery finds among the staged ones.
            let _ = rustix::fs::unlinkat(&new.fd, &*name, AtFlags::REMOVEDIR);
        })
    }

    /// Gives a directory that an earlier process staged its owner and mode, durably: a power cut may have come between.
    ///
    /// [`BackendError::Missing`] when nothing is staged.
    pub fn stage_again(&self, id: VolumeId, uid: u32, gid: u32, mode: Mode) -> Result<(), BackendError> {
        let new = self.house_made(NEW)?;
        match new.open(&id.to_string()) {
            Ok(Some(made)) => {
                own(&made, uid, gid, mode)?;
                made.sync()
            }
            Ok(None) => Err(BackendError::Missing { path: new.path.join(id.to_string()) }),
            // It was made readable for us: one that is not has the mode that was asked for.
            Err(BackendError::Io { source: Errno::ACCESS, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Renames a staged directory to its volume's name, durably.
    ///
    /// That it is gone from `.volhost/new` is not waited for. Where a file system has a journal the two are one; where
    /// it has none, a power cut may leave the directory under both names, and then the repetition of this call by
    /// whoever finds it there finds it done.
    ///
    /// [`BackendError::Occupied`] when something stands there, [`BackendError::Missing`] when nothing is staged.
    pub fn publish(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let staged = id.to_string();
        let Some(new) = self.meta_dir(NEW)? else {
            return Err(BackendError::Missing { path: self.path().join(".volhost/new").join(staged) });
        };
        rename(&new, &staged, &self.dir, name.as_str())?;
        self.dir.sync()
    }

    /// Takes a staged directory back, if it is there. Only an empty one: never recursive.
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
    /// [`BackendError::Missing`] when there is none; a link, a file or a mount point under that name is refused.
    pub fn trash(&self, name: &VolumeName, id: VolumeId) -> Result<(), BackendError> {
        let trash = self.house_made(TRASH)?;
        rename_durably(&self.dir, name.as_str(), &trash, &id.to_string())
    }

    /// Renames a trashed directory back to a volume's name.
    ///
    /// [`BackendError::Occupied`] when something stands there, [`BackendError::Missing`] when it is not in the trash.
    pub fn untrash(&self, id: VolumeId, name: &VolumeName) -> Result<(), BackendError> {
        let trashed = id.to_string();
        let Some(trash) = self.meta_dir(TRASH)? else {
            return Err(BackendError::Missing { path: self.path().join(".volhost/trash").join(trashed) });
        };
        rename_durably(&trash, &trashed, &self.dir, name.as_str())
    }

    /// Returns true if a volume's directory lies in the trash, or did until its deletion began.
    pub fn is_trashed(&self, id: VolumeId) -> Result<bool, BackendError> {
        Ok(self.is_in_trash(id)? || self.is_marked(id)?)
    }

    /// Returns true if a removed volume's deletion has begun: what is left of it is not the volume.
    pub fn is_deleting(&self, id: VolumeId) -> Result<bool, BackendError> {
        Ok(self.is_marked(id)? && !self.is_in_trash(id)?)
    }

    fn is_in_trash(&self, id: VolumeId) -> Result<bool, BackendError> {
        let Some(trash) = self.meta_dir(TRASH)? else { return Ok(false) };
        Ok(trash.stat(&id.to_string())?.is_some_and(|stat| is_directory(&stat)))
    }

    /// The directories being made.
    pub fn staged(&self) -> Result<Listing, BackendError> {
        self.listing(NEW)
    }

    /// The removed volumes' directories.
    pub fn trashed(&self) -> Result<Listing, BackendError> {
        self.listing(TRASH)
    }

    /// The owner and mode of a volume's directory; `None` if there is none.
    pub fn ownership(&self, name: &VolumeName) -> Result<Option<Ownership>, BackendError> {
        let stat = self.dir.stat(name.as_str())?.filter(is_directory);
        Ok(stat.map(|stat| Ownership {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: Mode::from_bits(stat.st_mode),
        }))
    }

    fn listing(&self, name: &str) -> Result<Listing, BackendError> {
        let mut listing = Listing::default();
        let Some(dir) = self.meta_dir(name)? else { return Ok(listing) };
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
pub(super) fn identity(name: &CStr) -> Option<VolumeId> {
    let text = name.to_str().ok()?;
    text.parse().ok().filter(|id: &VolumeId| id.to_string() == text)
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What stands where a directory should, in words.
pub(super) fn kind(of: FileType) -> &'static str {
    match of {
        FileType::Symlink => "a symbolic link",
        FileType::RegularFile => "a file",
        FileType::Directory => "a directory",
        _ => "a special file",
    }
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

/// Renames a real directory, never over anything. Durable once the parents are.
fn rename(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), BackendError> {
    let source = from.path.join(old);
    let Some(before) = from.stat(old)? else { return Err(BackendError::Missing { path: source }) };
    if !is_directory(&before) {
        return Err(BackendError::NotADirectory { path: source });
    }
    if is_mount_point(from, old)? {
        return Err(BackendError::MountPoint { path: source });
    }
    let renamed = match rename_onto_nothing(from, old, to, new) {
        Err(Errno::ACCESS) => rename_read_only(from, old, to, new),
        result => result,
    };
    if let Err(errno) = renamed {
        // A server may have done it and lost its answer, and then refuse the repetition: what tells is whether the
        // very directory stands under its new name.
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

/// The same, and makes both parents durable.
pub(super) fn rename_durably(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), BackendError> {
    rename(from, old, to, new)?;
    // When this fails the rename stands, but may not outlast a crash: the error says that the effect is unknown. The
    // new name first: where a file system has no journal, a power cut between the two must not leave neither.
    to.sync()?;
    from.sync()
}

fn rename_onto_nothing(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), Errno> {
    crate::files::rename_dir_no_replace(&from.fd, old, &to.fd, new)
}

/// Renames a directory whose mode does not let its owner write, which the kernel demands of all but root.
fn rename_read_only(from: &Handle, old: &str, to: &Handle, new: &str) -> Result<(), Errno> {
    let Some(widened) = Widened::open(&from.fd, old, rustix::fs::Mode::WUSR)? else {
        return Err(Errno::ACCESS);
    };
    let renamed = rename_onto_nothing(from, old, to, new);
    widened.restore()?;
    renamed
}

/// The user that this process runs as.
fn us() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(super) fn same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
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
        // The call that comes next says the same.
        Err(Errno::NOENT) => Ok(false),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;
    use crate::backend::tests::{Mounted, is_root, made, me, mode, open, volume};

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
            root.stage(id, uid, gid, mode(text)).unwrap();
            let name = volume(&format!("v{text}"));
            root.publish(id, &name).unwrap();
            root.trash(&name, id).unwrap();
            root.untrash(id, &name).unwrap();
            let made = std::fs::metadata(dir.path().join(name.as_str())).unwrap();
            assert_eq!(format!("{:04o}", made.mode() & 0o7777), text);
            assert_eq!((made.uid(), made.gid()), (uid, gid));
            // What is inherited from the directory above is not asked for.
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
        root.stage(id, uid, gid, mode("0755")).unwrap();
        let again = root.stage(id, uid, gid, mode("0755"));
        assert!(matches!(again, Err(BackendError::Occupied { .. })));
        assert_eq!(root.staged().unwrap().volumes, [id]);
    }

    #[test]
    fn publishing_never_replaces_anything() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = VolumeId::random();
        let (uid, gid) = me();
        root.stage(id, uid, gid, mode("0755")).unwrap();
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
        root.stage(id, uid, gid, mode("0755")).unwrap();
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
        let refused = root.stage(id, 0, 0, mode("0755"));
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
            let staged = root.stage(id, uid, gid, mode("0755")).map(drop);
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
