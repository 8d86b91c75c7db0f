//! Deleting a removed volume's tree: in bounded steps, with few handles, never through a link or a mount point.
//!
//! The only recursive deletion in volhost. A directory is first renamed from `.volhost/trash/ID` to
//! `.volhost/deleting-ID`, durably: the name is the mark that its deletion has begun, and only what bears it is ever
//! deleted. Whatever becomes of the catalog, what is half-deleted is told from what is whole. The mark lies beside the
//! trash and not in it because a rename needs room for the new name: on a full disk a directory of few entries has it, a
//! full trash may not.
//!
//! Nothing here needs space otherwise. An entry that cannot be removed is passed over and reported, and the others go.
//!
//! The tree may be in use by a container that was not stopped, so that names can change under the walk at any time:
//! every entry is removed, or opened, relative to the handle of the directory it was listed in, and no handle ever
//! leads upwards.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::volumes::{Listing, identity, is_directory, rename_durably};
use crate::backend::directory::{Root, TRASH, Widened, open_beneath};
use crate::backend::error::BackendError;
use crate::model::volume::VolumeId;

/// What the name of a directory in `.volhost` begins with whose deletion has begun; the volume's identity follows.
const DELETING: &str = "deleting-";

/// How many levels of directories are open at once. What lies deeper is moved up to the volume's own directory, which
/// keeps the walk short; where there is no room for that, the handles of upper levels are closed, and they are opened
/// again from the volume's own directory downwards.
const DEPTH: usize = 16;

/// How far a purge has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of the volume is left.
    Done,
    /// The budget was used up; call again.
    More {
        /// How many entries were removed. May be none where entries were only moved up or passed over.
        removed: usize,
    },
    /// What is left cannot be removed.
    Blocked {
        /// What stands in the way: a mount point, an immutable file.
        path: PathBuf,
        /// Why it cannot be removed, and what to do about it.
        reason: String,
    },
}

/// Where a purge is in its way through the tree: kept from one call to the next, so that entries that cannot be removed
/// are tried once in each pass and hide none of those behind them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// How many entries could not be removed. The next call meets them again, in this order, before any other.
    refused: usize,
    /// The first of them.
    blocked: Option<(PathBuf, String)>,
    /// True if an entry was removed.
    removed: bool,
    /// True if a directory was moved up.
    moved: bool,
    /// How many passes went through the whole tree, removed something, and yet did not empty it.
    pub again: usize,
}

impl Pass {
    fn has_effect(&self) -> bool {
        self.removed || self.moved
    }
}

impl Root {
    /// Marks a removed volume's directory as one whose deletion has begun, durably. Returns false if the volume has
    /// nothing left to delete.
    pub fn mark_deleting(&self, id: VolumeId) -> Result<bool, BackendError> {
        let Some(home) = self.home()? else { return Ok(false) };
        if home.stat(&marked(id))?.is_some() {
            return Ok(true);
        }
        let Some(trash) = self.meta_dir(TRASH)? else { return Ok(false) };
        match rename_durably(&trash, &id.to_string(), &home, &marked(id)) {
            Ok(()) => Ok(true),
            Err(BackendError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_marked(&self, id: VolumeId) -> Result<bool, BackendError> {
        let Some(home) = self.home()? else { return Ok(false) };
        Ok(home.stat(&marked(id))?.is_some())
    }

    /// The removed volumes whose deletion has begun.
    pub fn deleting(&self) -> Result<Listing, BackendError> {
        let mut listing = Listing::default();
        let Some(home) = self.home()? else { return Ok(listing) };
        home.for_each(|name, _| {
            let id = name.to_bytes().strip_prefix(DELETING.as_bytes());
            if let Some(id) = id.and_then(|id| identity(&CString::new(id).ok()?)) {
                match home.stat(&marked(id))? {
                    Some(stat) if is_directory(&stat) => listing.volumes.push(id),
                    _ => listing.strays.push(home.path.join(marked(id))),
                }
            }
            Ok(true)
        })?;
        listing.volumes.sort_unstable();
        listing.strays.sort_unstable();
        Ok(listing)
    }

    /// Deletes the tree of a volume that is [marked](Self::mark_deleting), trying at most `budget` entries, at least
    /// one. What is left is taken up by the next call with the same `pass`, or with a new one, as after a restart.
    pub fn purge(&self, id: VolumeId, budget: usize, pass: &mut Pass) -> Result<Progress, BackendError> {
        let Some(home) = self.home()? else { return Ok(Progress::Done) };
        let name = marked(id);
        let fd = match open_to_empty(&home.fd, &*name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Progress::Done),
            Err(errno) => {
                let path = home.path.join(name);
                return Ok(Progress::Blocked { reason: reason(&path, errno)?, path });
            }
        };
        let top = rustix::io::fcntl_dupfd_cloexec(&fd, 0)
            .map_err(|errno| BackendError::io("open", &home.path.join(&name), errno))?;
        // The text of an identity holds no NUL.
        let name = CString::new(name).unwrap_or_default();
        let mut walk = Walk {
            home: &home.fd,
            home_path: &home.path,
            top,
            levels: vec![Level::new(fd, name).map_err(|errno| BackendError::io("list", &home.path, errno))?],
            left: budget.max(1),
            skip: pass.refused,
            removed: 0,
            pass,
        };
        let blocked = walk.run()?;
        let Walk { levels, removed, .. } = walk;
        match blocked {
            Some((path, reason)) => Ok(Progress::Blocked { path, reason }),
            None if levels.is_empty() => home.sync().map(|()| Progress::Done),
            None => Ok(Progress::More { removed }),
        }
    }
}

/// A walk down a tree, the deepest directory last.
struct Walk<'purge> {
    home: &'purge OwnedFd,
    home_path: &'purge Path,
    /// The volume's own directory, to which deep ones are moved and from which closed ones are opened again.
    top: OwnedFd,
    levels: Vec<Level>,
    left: usize,
    /// How many entries that are met next were refused earlier in this pass.
    skip: usize,
    removed: usize,
    pass: &'purge mut Pass,
}

/// One directory being emptied.
struct Level {
    /// Its name in the directory above.
    name: CString,
    /// `None` while it is closed.
    entries: Option<Dir>,
    /// Where the listing stands.
    at: Option<i64>,
    /// True if something in it was left.
    stuck: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { name, entries: Some(Dir::new(fd)?), at: None, stuck: false })
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.entries.as_ref().ok_or(Errno::BADF)?.fd()
    }

    /// Opens a closed level again by a handle of its directory, and goes on where its listing stood.
    fn reopen(&mut self, fd: impl AsFd) -> Result<(), Errno> {
        if self.entries.is_some() {
            return Ok(());
        }
        let mut entries = Dir::read_from(fd)?;
        if let Some(at) = self.at {
            entries.seek(at)?;
        }
        self.entries = Some(entries);
        Ok(())
    }
}

impl Walk<'_> {
    /// Walks until the budget is used up, the first level is gone, or a pass ends without any effect: then it returns
    /// what stands in the way.
    fn run(&mut self) -> Result<Option<(PathBuf, String)>, BackendError> {
        while self.left > 0 {
            let Some(level) = self.levels.last_mut() else { break };
            let Some(entries) = &mut level.entries else {
                self.reopen()?;
                continue;
            };
            match entries.read() {
                // A directory that somebody removed lists nothing.
                None | Some(Err(Errno::NOENT)) => {
                    if let Some(blocked) = self.leave()? {
                        return Ok(Some(blocked));
                    }
                }
                Some(Err(errno)) => {
                    let path = self.path(None);
                    let Some(level) = self.levels.pop() else { break };
                    if self.levels.is_empty() {
                        return Ok(Some((path.clone(), reason(&path, errno)?)));
                    }
                    self.refused(&level.name, errno)?;
                }
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    level.at = Some(entry.offset());
                    if let Err(errno) = self.take(&entry) {
                        self.refused(entry.file_name(), errno)?;
                    }
                }
            }
        }
        Ok(None)
    }

    /// Removes one entry, or goes down into it.
    fn take(&mut self, entry: &DirEntry) -> Result<(), Errno> {
        let name = entry.file_name();
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let parent = level.fd()?;
        let kind = match entry.file_type() {
            // Some file systems do not tell it in a listing.
            FileType::Unknown => {
                FileType::from_raw_mode(rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        if kind != FileType::Directory {
            if self.skip > 0 {
                self.skip -= 1;
                level.stuck = true;
                return Ok(());
            }
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            self.gone();
            return Ok(());
        }
        // Refuses a mount point, also one of the same file system.
        let child = open_to_empty(parent, name)?;
        if depth >= DEPTH {
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.gone();
                    return Ok(());
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            // A name that nothing there has. That needs room for an entry, which a full disk may not have.
            let up = crate::files::unique_name();
            match rustix::fs::renameat(parent, name, &self.top, &*up) {
                Ok(()) => {
                    self.left = self.left.saturating_sub(1);
                    self.pass.moved = true;
                    return Ok(());
                }
                Err(Errno::NOENT) => return Err(Errno::NOENT),
                Err(_) => {}
            }
        }
        self.levels.push(Level::new(child, name.into())?);
        // The first level stays open: from there the others are opened again.
        if depth > DEPTH
            && let Some(closed) = self.levels.get_mut(depth - DEPTH)
        {
            closed.entries = None;
        }
        Ok(())
    }

    /// Goes up from a directory whose entries were all tried, and removes it. Returns what stands in the way if that was
    /// the end of a pass that had no effect.
    fn leave(&mut self) -> Result<Option<(PathBuf, String)>, BackendError> {
        let Some(level) = self.levels.pop() else { return Ok(None) };
        let is_closed = match self.levels.last() {
            Some(above) => above.entries.is_none(),
            None => return self.leave_top(level),
        };
        if is_closed && !self.reopen()? {
            return Ok(None);
        }
        let Some(above) = self.levels.last_mut() else { return Ok(None) };
        let removed =
            above.fd().and_then(|above| rustix::fs::unlinkat(above, &*level.name, AtFlags::REMOVEDIR));
        match removed {
            Ok(()) => self.gone(),
            // Entries were refused, or came, or the listing left some out because others went: another pass finds those.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.stuck || self.pass.has_effect() => {
                above.stuck = true;
            }
            Err(errno) => self.refused(&level.name, errno)?,
        }
        Ok(None)
    }

    /// The same for the volume's own directory, with which a pass ends.
    fn leave_top(&mut self, mut top: Level) -> Result<Option<(PathBuf, String)>, BackendError> {
        match rustix::fs::unlinkat(self.home, &*top.name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed += 1;
                Ok(None)
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.pass.has_effect() => {
                // What was moved up is found by another pass in any case.
                let again = self.pass.again + usize::from(!self.pass.moved);
                *self.pass = Pass { again, ..Pass::default() };
                self.skip = 0;
                if let Some(entries) = &mut top.entries {
                    entries.rewind();
                }
                top.stuck = false;
                self.levels.push(top);
                Ok(None)
            }
            Err(errno) => {
                let path = self.home_path.join(OsStr::from_bytes(top.name.to_bytes()));
                self.levels.push(top);
                match std::mem::take(self.pass).blocked {
                    Some(blocked) => Ok(Some(blocked)),
                    None => Ok(Some((path.clone(), reason(&path, errno)?))),
                }
            }
        }
    }

    /// Opens the deepest levels again, from the volume's own directory downwards. Returns false if the way is not what it
    /// was: then the walk goes on where it ends.
    fn reopen(&mut self) -> Result<bool, BackendError> {
        // The deeper, the dearer: what follows is left to the next call.
        self.left = self.left.saturating_sub(self.levels.len() / DEPTH);
        let open_from = self.levels.len().saturating_sub(DEPTH);
        let mut fd = rustix::io::fcntl_dupfd_cloexec(&self.top, 0)
            .map_err(|errno| BackendError::io("open", &self.path(None), errno))?;
        let mut failed = None;
        for (at, level) in self.levels.iter_mut().enumerate().skip(1) {
            let opened = open_to_empty(&fd, &*level.name).and_then(|child| {
                if at >= open_from {
                    level.reopen(&child)?;
                }
                Ok(child)
            });
            match opened {
                Ok(child) => fd = child,
                Err(errno) => {
                    failed = Some((at, errno));
                    break;
                }
            }
        }
        let Some((at, errno)) = failed else { return Ok(true) };
        let name = self.levels.get(at).map(|level| level.name.clone()).unwrap_or_default();
        self.levels.truncate(at);
        if let Some(last) = self.levels.last_mut()
            && let Err(errno) = last.reopen(&fd)
        {
            return Err(BackendError::io("list", &self.path(None), errno));
        }
        self.refused(&name, errno)?;
        Ok(false)
    }

    fn gone(&mut self) {
        self.removed += 1;
        self.left = self.left.saturating_sub(1);
        self.pass.removed = true;
    }

    /// Notes an entry that could not be removed, so that the walk goes on with the others; an error if the storage
    /// itself failed.
    fn refused(&mut self, name: &CStr, errno: Errno) -> Result<(), BackendError> {
        // Somebody else removed it.
        if errno == Errno::NOENT {
            return Ok(());
        }
        let path = self.path(Some(name));
        let reason = reason(&path, errno)?;
        if let Some(level) = self.levels.last_mut() {
            level.stuck = true;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return Ok(());
        }
        self.left = self.left.saturating_sub(1);
        self.pass.refused += 1;
        self.pass.blocked.get_or_insert((path, reason));
        Ok(())
    }

    fn path(&self, name: Option<&CStr>) -> PathBuf {
        let names = self.levels.iter().map(|level| &*level.name).chain(name);
        let mut path = self.home_path.to_path_buf();
        path.extend(names.map(|name| OsStr::from_bytes(name.to_bytes())));
        path
    }
}

/// The name of a directory whose deletion has begun.
fn marked(id: VolumeId) -> String {
    format!("{DELETING}{id}")
}

/// Opens a directory of the tree, and gives a process without root's rights those it needs to empty it.
fn open_to_empty(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    if !rustix::process::geteuid().is_root() {
        Widened::open(&parent, name, Mode::RWXU)?;
    }
    open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Returns why an entry cannot be removed, and what to do about it; an error if that says something of the storage or
/// of this process, so that no other entry can be removed either.
fn reason(path: &Path, errno: Errno) -> Result<String, BackendError> {
    Ok(match errno {
        Errno::XDEV | Errno::BUSY => {
            "it is a mount point or in use: unmount it (findmnt shows what it is)".into()
        }
        Errno::PERM => format!("{errno}: is it immutable? `chattr -i` mends that"),
        Errno::NOTDIR | Errno::ISDIR | Errno::LOOP => "it changed while it was being removed".into(),
        Errno::NOTEMPTY | Errno::EXIST => "something is written into it: is the volume still in use?".into(),
        Errno::ACCESS if !rustix::process::geteuid().is_root() => format!(
            "{errno}: it lies in a directory of another user: remove it as root, or give that directory to the user \
             that volhost runs as (`chown`)"
        ),
        Errno::MFILE | Errno::NFILE | Errno::NOMEM => {
            return Err(BackendError::uncertain("remove", path, errno));
        }
        errno => match BackendError::uncertain("remove", path, errno) {
            gone if gone.storage_gone().is_some() => return Err(gone),
            _ => errno.to_string(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use crate::backend::tests::{Mounted, is_root, made, open, volume};

    /// A removed volume whose deletion has begun, and its directory.
    fn trashed(root: &Root) -> (VolumeId, PathBuf) {
        let id = made(root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert!(root.mark_deleting(id).unwrap());
        (id, root.path().join(".volhost").join(marked(id)))
    }

    /// Changes an attribute of a file. Returns false if this file system or user has none.
    fn attribute(change: &str, path: &Path) -> bool {
        let changed = Command::new("chattr").arg(change).arg(path).status().is_ok_and(|s| s.success());
        if !changed {
            eprintln!("skipped: this file system or user knows no immutable files");
        }
        changed
    }

    #[test]
    fn only_what_is_marked_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
        assert!(root.is_trashed(id).unwrap() && !root.is_deleting(id).unwrap());
        assert_eq!(root.deleting().unwrap(), Listing::default());
        root.untrash(id, &volume("db")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("db/data")).unwrap(), "db");
        root.trash(&volume("db"), id).unwrap();
        for _ in 0..2 {
            assert!(root.mark_deleting(id).unwrap());
            assert!(root.is_trashed(id).unwrap() && root.is_deleting(id).unwrap());
            assert_eq!(root.deleting().unwrap().volumes, [id]);
            assert_eq!(root.trashed().unwrap(), Listing::default());
            assert!(matches!(root.untrash(id, &volume("db")), Err(BackendError::Missing { .. })));
        }
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
        assert!(!root.mark_deleting(id).unwrap() && !root.is_trashed(id).unwrap());
    }

    #[test]
    fn names_that_only_look_like_a_mark_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        let home = dir.path().join(".volhost");
        let file = home.join(marked(id));
        std::fs::write(&file, "kept").unwrap();
        for other in ["deleting-", "deleting-photos", &marked(id).to_uppercase()] {
            std::fs::create_dir(home.join(other)).unwrap();
        }
        assert_eq!(root.deleting().unwrap(), Listing { volumes: vec![], strays: vec![file.clone()] });
        assert!(
            matches!(root.purge(id, 9, &mut Pass::default()).unwrap(), Progress::Blocked { path, .. } if path == file)
        );
    }

    #[test]
    fn entries_that_cannot_go_hide_none_of_those_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let fixed = top.join("fixed");
        std::fs::write(&fixed, "").unwrap();
        for number in 0..300 {
            std::fs::hard_link(&fixed, top.join(format!("a{number}"))).unwrap();
            std::fs::create_dir(top.join(format!("b{number}"))).unwrap();
            std::fs::write(top.join(format!("b{number}/file")), "").unwrap();
        }
        if !attribute("+i", &fixed) {
            return;
        }
        let (mut pass, mut calls) = (Pass::default(), 0);
        let last = loop {
            calls += 1;
            match root.purge(id, 20, &mut pass) {
                Ok(Progress::More { .. }) if calls < 500 => {}
                last => break last,
            }
        };
        let left = std::fs::read_dir(&top).unwrap().count();
        assert!(attribute("-i", &fixed));
        assert!(
            matches!(last, Ok(Progress::Blocked { ref reason, .. }) if reason.contains("immutable")),
            "{last:?}"
        );
        assert_eq!(left, 301, "what can go was kept");
        while root.purge(id, 500, &mut pass).unwrap() != Progress::Done {}
    }

    #[test]
    fn a_deep_tree_goes_also_where_nothing_can_be_moved_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let mut deep = top.join("d");
        for _ in 0..100 {
            std::fs::create_dir_all(deep.join("e/e")).unwrap();
            std::fs::write(deep.join("f"), "").unwrap();
            deep.push("d");
        }
        // Takes no entry, as a directory on a full disk; and gives none.
        if !attribute("+i", &top) {
            return;
        }
        let (mut pass, mut calls) = (Pass::default(), 0);
        let last = loop {
            calls += 1;
            match root.purge(id, 50, &mut pass) {
                Ok(Progress::More { .. }) if calls < 500 => {}
                last => break last,
            }
        };
        let left = std::fs::read_dir(top.join("d")).unwrap().count();
        assert!(attribute("-i", &top));
        assert!(matches!(last, Ok(Progress::Blocked { .. })), "{last:?} after {calls} calls");
        assert_eq!(left, 0, "what can go was kept");
        while root.purge(id, 500, &mut pass).unwrap() != Progress::Done {}
    }

    #[test]
    fn a_tree_that_is_written_to_is_told_from_one_that_is_large() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for number in 0..2000 {
            std::fs::write(top.join(format!("{number}")), "").unwrap();
        }
        let mut pass = Pass::default();
        while root.purge(id, 50, &mut pass).unwrap() != Progress::Done {
            assert_eq!(pass.again, 0);
        }
        let (id, top) = trashed(&root);
        let (over, mut pass) = (std::sync::atomic::AtomicBool::new(false), Pass::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::write(top.join(VolumeId::random().to_string()), "");
                }
            });
            let mut last = Ok(Progress::Done);
            for _ in 0..10_000 {
                last = root.purge(id, 50, &mut pass);
                if pass.again >= 3 || !matches!(last, Ok(Progress::More { .. })) {
                    break;
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            drop(last.unwrap());
        });
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
            match open(dir.path()).purge(id, 10, &mut Pass::default()).unwrap() {
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
        assert_eq!(root.purge(id, 10, &mut Pass::default()).unwrap(), Progress::Done);
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
        while root.purge(id, 500, &mut Pass::default()).unwrap() != Progress::Done {
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
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
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
            let mut last = root.purge(id, 100, &mut Pass::default()).unwrap();
            while matches!(last, Progress::More { .. }) {
                last = root.purge(id, 100, &mut Pass::default()).unwrap();
            }
            let Progress::Blocked { path, reason } = last else { panic!("{last:?}") };
            assert_eq!(path, at);
            assert!(reason.contains("mount point"), "{reason}");
            assert_eq!(std::fs::read_to_string(at.join("precious")).unwrap(), "kept");
            assert!(!top.join("a/file").exists(), "what can go was kept");
            drop(mounted);
            assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
        }
        let (id, top) = trashed(&root);
        let mounted = Mounted::bind(other.path(), &top);
        assert!(
            matches!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Blocked { path, .. } if path == top)
        );
        drop(mounted);
        let file = top.join("mounted");
        std::fs::write(&file, "").unwrap();
        let mounted = Mounted::bind(&other.path().join("precious"), &file);
        while matches!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::More { .. }) {}
        assert!(
            matches!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Blocked { path, .. } if path == file)
        );
        drop(mounted);
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
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
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
        assert!(!top.exists());
    }

    #[test]
    fn an_immutable_file_blocks_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let file = top.join("data");
        if !attribute("+i", &file) {
            return;
        }
        let progress = root.purge(id, 100, &mut Pass::default()).unwrap();
        assert!(attribute("-i", &file));
        let Progress::Blocked { path, reason } = progress else { panic!("{progress:?}") };
        assert_eq!(path, file);
        assert!(reason.contains("chattr -i"), "{reason}");
        assert_eq!(root.purge(id, 100, &mut Pass::default()).unwrap(), Progress::Done);
    }
}
