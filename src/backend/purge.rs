//! Deleting a trashed volume's tree: in bounded steps, with few handles, never through a link or a mount point.
//!
//! The only recursive deletion in volhost, and only below `.volhost/trash`. The tree may be in use by a container
//! that was not stopped, so that names can change under the walk at any time: every entry is removed, or opened,
//! relative to the handle of the directory it was listed in, and no handle ever leads upwards.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::backend::directory::{Root, TRASH, Widened, open_beneath};
use crate::backend::error::BackendError;
use crate::volume::name::VolumeId;

/// How deep the walk goes, one handle a level. What lies deeper is first moved up to the volume's own directory.
const DEPTH: usize = 16;

/// How far a purge has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of the volume is left.
    Done,
    /// The budget was used up; call again.
    More {
        /// How many entries were removed. May be none where deep directories were only moved up.
        removed: usize,
    },
    /// Something cannot be removed.
    Blocked {
        /// What stands in the way: a mount point, an immutable file.
        path: PathBuf,
        /// Why it cannot be removed, and what to do about it.
        reason: String,
    },
}

impl Root {
    /// Deletes a trashed volume's tree, trying at most `budget` entries, at least one. What is left is taken up by the
    /// next call, also by one after a restart.
    pub fn purge(&self, id: VolumeId, budget: usize) -> Result<Progress, BackendError> {
        let Some(trash) = self.house(TRASH)? else { return Ok(Progress::Done) };
        let name = id.to_string();
        let fd = match open_to_empty(&trash.fd, &*name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Progress::Done),
            Err(errno) => return blocked(trash.path.join(name), errno),
        };
        let top = rustix::io::fcntl_dupfd_cloexec(&fd, 0)
            .map_err(|errno| BackendError::io("open", &trash.path.join(&name), errno))?;
        // An identity's text holds no NUL.
        let name = CString::new(name).unwrap_or_default();
        let mut walk = Walk {
            trash: &trash.fd,
            trash_path: &trash.path,
            top,
            levels: vec![Level::new(fd, name).map_err(|errno| BackendError::io("list", &trash.path, errno))?],
            left: budget.max(1),
            removed: 0,
            moved: false,
            blocked: None,
        };
        walk.run()?;
        let Walk { levels, removed, moved, blocked, .. } = walk;
        match blocked {
            Some((path, reason)) if removed == 0 && !moved => Ok(Progress::Blocked { path, reason }),
            None if levels.is_empty() => trash.sync().map(|()| Progress::Done),
            // Where something is blocked but other entries went, there may be more that can go.
            Some(_) | None => Ok(Progress::More { removed }),
        }
    }
}

/// A walk down a tree, the deepest directory last.
struct Walk<'trash> {
    trash: &'trash OwnedFd,
    trash_path: &'trash Path,
    /// The volume's own directory, to which deep ones are moved.
    top: OwnedFd,
    levels: Vec<Level>,
    left: usize,
    removed: usize,
    moved: bool,
    blocked: Option<(PathBuf, String)>,
}

/// One directory being emptied.
struct Level {
    /// Its name in the directory above.
    name: CString,
    entries: Dir,
    /// Whether this pass over the entries removed or moved any: then another may find more.
    progress: bool,
    /// Whether something in it cannot be removed.
    stuck: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { name, entries: Dir::new(fd)?, progress: false, stuck: false })
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.entries.fd()
    }
}

impl Walk<'_> {
    /// Walks until the budget is used up or the first level is left.
    fn run(&mut self) -> Result<(), BackendError> {
        while self.left > 0 {
            let Some(level) = self.levels.last_mut() else { break };
            match level.entries.read() {
                None => self.leave()?,
                Some(Err(errno)) => return Err(BackendError::io("list", &self.path(None), errno)),
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if let Err(errno) = self.take(&entry) {
                        self.refused(name, errno)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes one entry, or goes down into it.
    fn take(&mut self, entry: &DirEntry) -> Result<(), Errno> {
        let name = entry.file_name();
        let Some(level) = self.levels.last() else { return Ok(()) };
        let parent = level.fd()?;
        let kind = match entry.file_type() {
            // Some file systems do not tell it in a listing.
            FileType::Unknown => {
                FileType::from_raw_mode(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        if kind != FileType::Directory {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            self.gone();
            return Ok(());
        }
        // Refuses a mount point, also one of the same file system.
        let child = open_to_empty(parent, name)?;
        if self.levels.len() < DEPTH {
            self.levels.push(Level::new(child, name.into())?);
            return Ok(());
        }
        drop(child);
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) => self.gone(),
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                // A name that nothing there has; a passing over the top finds it.
                let up = VolumeId::random().to_string();
                rustix::fs::renameat(parent, name, &self.top, &*up)?;
                self.left = self.left.saturating_sub(1);
                self.moved = true;
                for level in &mut self.levels {
                    level.progress = true;
                }
            }
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Goes up from a directory whose entries were all tried, and removes it.
    fn leave(&mut self) -> Result<(), BackendError> {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        let parent = match self.levels.last() {
            Some(above) => above.fd(),
            None => Ok(self.trash.as_fd()),
        };
        let removed =
            parent.and_then(|parent| rustix::fs::unlinkat(parent, &*level.name, AtFlags::REMOVEDIR));
        match removed {
            Ok(()) => self.gone(),
            // Entries came, or the listing left some out because others went.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.progress => {
                level.entries.rewind();
                level.progress = false;
                self.levels.push(level);
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.stuck => {
                if let Some(above) = self.levels.last_mut() {
                    above.stuck = true;
                }
            }
            Err(errno) => self.refused(&level.name, errno)?,
        }
        Ok(())
    }

    fn gone(&mut self) {
        self.removed += 1;
        self.left = self.left.saturating_sub(1);
        if let Some(level) = self.levels.last_mut() {
            level.progress = true;
        }
    }

    /// Notes an entry that could not be removed, and goes on with the others; an error where the storage failed.
    fn refused(&mut self, name: &CStr, errno: Errno) -> Result<(), BackendError> {
        // Somebody else removed it.
        if errno == Errno::NOENT {
            return Ok(());
        }
        self.left = self.left.saturating_sub(1);
        let path = self.path(Some(name));
        if let Progress::Blocked { path, reason } = blocked(path, errno)? {
            self.blocked.get_or_insert((path, reason));
            if let Some(level) = self.levels.last_mut() {
                level.stuck = true;
            }
        }
        Ok(())
    }

    fn path(&self, name: Option<&CStr>) -> PathBuf {
        let names = self.levels.iter().map(|level| &*level.name).chain(name);
        let mut path = self.trash_path.to_path_buf();
        path.extend(names.map(|name| OsStr::from_bytes(name.to_bytes())));
        path
    }
}

/// Opens a directory of the tree, and gives a process without root's rights those it needs to empty it.
fn open_to_empty(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    if !rustix::process::geteuid().is_root() {
        Widened::open(&parent, name, Mode::RWXU)?;
    }
    open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Tells what cannot be removed, and is skipped, from storage that fails.
fn blocked(path: PathBuf, errno: Errno) -> Result<Progress, BackendError> {
    let reason = match errno {
        Errno::XDEV | Errno::BUSY => {
            "it is a mount point or in use: unmount it (findmnt shows what it is)".into()
        }
        Errno::PERM => format!("{errno}: is it immutable? `chattr -i` mends that"),
        Errno::NOTDIR | Errno::ISDIR | Errno::LOOP => "it changed while it was being removed".into(),
        Errno::NOTEMPTY | Errno::EXIST => "something is written into it: is the volume still in use?".into(),
        Errno::ACCESS | Errno::ROFS => errno.to_string(),
        errno => return Err(BackendError::uncertain("remove", &path, errno)),
    };
    Ok(Progress::Blocked { path, reason })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use crate::backend::tests::{Mounted, is_root, made, open, volume};

    /// A trashed volume and its directory.
    fn trashed(root: &Root) -> (VolumeId, PathBuf) {
        let id = made(root, "db");
        root.trash(&volume("db"), id).unwrap();
        (id, root.path().join(".volhost/trash").join(id.to_string()))
    }

    #[test]
    fn a_purge_keeps_to_its_budget_and_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for number in 0..20 {
            std::fs::create_dir_all(top.join(format!("{number}/inner"))).unwrap();
            std::fs::write(top.join(format!("{number}/inner/file")), "x").unwrap();
        }
        // The file that `made` wrote, twenty times three, and the directory itself.
        let mut left = 1 + 20 * 3 + 1_usize;
        loop {
            // Another opening each time, as after a restart.
            match open(dir.path()).purge(id, 10).unwrap() {
                Progress::More { removed } => {
                    assert_eq!(removed, 10);
                    left -= removed;
                }
                Progress::Done => break,
                blocked @ Progress::Blocked { .. } => panic!("{blocked:?}"),
            }
        }
        assert!(left <= 10, "{left} entries went in the last call");
        assert!(!top.exists());
        assert_eq!(root.purge(id, 10).unwrap(), Progress::Done);
    }

    #[test]
    fn a_deep_tree_is_purged_with_few_handles() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let mut handle: OwnedFd = std::fs::File::open(&top).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&handle, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&handle, "e", Mode::RWXU).unwrap();
            handle = open_beneath(&handle, "d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        let mut calls = 0;
        while root.purge(id, 500).unwrap() != Progress::Done {
            calls += 1;
            assert!(calls < 100, "no end in sight");
        }
        assert!(!top.exists());
    }

    #[test]
    fn links_and_special_files_are_removed_and_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("precious"), "kept").unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        symlink(other.path(), top.join("link")).unwrap();
        symlink("/nowhere", top.join("dangling")).unwrap();
        std::fs::hard_link(other.path().join("precious"), top.join("hard")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, top.join("fifo"), Mode::RUSR).unwrap();
        std::fs::write(top.join(OsStr::from_bytes(b"\xff\n..")), "").unwrap();
        assert_eq!(root.purge(id, 100).unwrap(), Progress::Done);
        assert_eq!(std::fs::read_to_string(other.path().join("precious")).unwrap(), "kept");
    }

    #[test]
    fn a_mount_point_inside_blocks_and_keeps_its_data() {
        if !is_root() {
            return;
        }
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("precious"), "kept").unwrap();
        let root = open(dir.path());
        let mounts: [&dyn Fn(&Path) -> Mounted; 2] = [&|at| Mounted::bind(other.path(), at), &|at| {
            let mounted = Mounted::tmpfs(at);
            std::fs::write(at.join("precious"), "kept").unwrap();
            mounted
        }];
        for mount in mounts {
            let (id, top) = trashed(&root);
            let at = top.join("a/b/mounted");
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(top.join("a/file"), "").unwrap();
            let mounted = mount(&at);
            let mut last = root.purge(id, 100).unwrap();
            while matches!(last, Progress::More { .. }) {
                last = root.purge(id, 100).unwrap();
            }
            let Progress::Blocked { path, reason } = last else { panic!("{last:?}") };
            assert_eq!(path, at);
            assert!(reason.contains("mount point"), "{reason}");
            assert_eq!(std::fs::read_to_string(at.join("precious")).unwrap(), "kept");
            assert!(!top.join("a/file").exists(), "what can go was kept");
            drop(mounted);
            assert_eq!(root.purge(id, 100).unwrap(), Progress::Done);
        }
        let (id, top) = trashed(&root);
        let mounted = Mounted::bind(other.path(), &top);
        assert!(matches!(root.purge(id, 100).unwrap(), Progress::Blocked { path, .. } if path == top));
        drop(mounted);
        let file = top.join("mounted");
        std::fs::write(&file, "").unwrap();
        let mounted = Mounted::bind(&other.path().join("precious"), &file);
        while matches!(root.purge(id, 100).unwrap(), Progress::More { .. }) {}
        assert!(matches!(root.purge(id, 100).unwrap(), Progress::Blocked { path, .. } if path == file));
        drop(mounted);
        assert_eq!(root.purge(id, 100).unwrap(), Progress::Done);
        assert_eq!(std::fs::read_to_string(other.path().join("precious")).unwrap(), "kept");
    }

    #[test]
    fn directories_without_rights_are_purged_all_the_same() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for closed in ["a/b", "a", ""] {
            let directory = top.join(closed);
            std::fs::create_dir_all(top.join("a/b")).unwrap();
            std::fs::write(directory.join("file"), "").unwrap();
            let mode = if closed.is_empty() { 0 } else { 0o555 };
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(root.purge(id, 100).unwrap(), Progress::Done);
        assert!(!top.exists());
    }

    #[test]
    fn an_immutable_file_blocks_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let file = top.join("data");
        let attribute =
            |change| Command::new("chattr").arg(change).arg(&file).status().is_ok_and(|s| s.success());
        if !attribute("+i") {
            eprintln!("skipped: this file system or user knows no immutable files");
            return;
        }
        let progress = root.purge(id, 100).unwrap();
        assert!(attribute("-i"));
        let Progress::Blocked { path, reason } = progress else { panic!("{progress:?}") };
        assert_eq!(path, file);
        assert!(reason.contains("chattr -i"), "{reason}");
        assert_eq!(root.purge(id, 100).unwrap(), Progress::Done);
    }
}
