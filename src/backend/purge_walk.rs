//! The walk that empties a tree: relative to handles, with few of them open, and never upwards.
//!
//! The tree may be in use by a container that was not stopped, so names can change under the walk at any time. Every entry
//! is removed or opened relative to the handle of the directory in which it was listed.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::backend::error::BackendError;
use crate::backend::handle::{Handle, TemporaryMode, open_beneath};

/// The number of directory levels that are open at once. Deeper directories are moved up to the volume's own directory,
/// which keeps the walk short. If there is no room for that, upper levels are closed and later opened again, from the
/// volume's own directory downwards.
const OPEN_LEVELS: usize = 16;

/// The position of a purge in the tree, kept from one call to the next: entries that cannot be removed are then tried once
/// in each pass, and the ones behind them are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PurgePass {
    /// The number of entries that could not be removed. The next call meets them again, in this order, before any
    /// other.
    refused: usize,
    /// The first of them.
    blocked: Option<(PathBuf, String)>,
    /// True if an entry was removed.
    removed: bool,
    /// True if a directory was moved up.
    moved: bool,
    /// The number of passes that went through the whole tree and removed something without emptying it.
    pub again: usize,
}

impl PurgePass {
    fn has_effect(&self) -> bool {
        self.removed || self.moved
    }
}

/// A walk through a tree, the deepest directory last.
pub(super) struct Walk<'purge> {
    meta: &'purge Handle,
    /// The volume's own directory: deep directories are moved to it, and closed ones are opened again from it.
    top: OwnedFd,
    levels: Vec<Level>,
    left: usize,
    /// The number of the next entries that were refused earlier in this pass.
    skip: usize,
    removed: usize,
    pass: &'purge mut PurgePass,
}

/// One directory being emptied.
struct Level {
    /// Its name in the directory above.
    name: CString,
    /// `None` while it is closed.
    entries: Option<Dir>,
    /// The position in the listing.
    at: Option<i64>,
    /// True if something in it could not be removed.
    stuck: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { name, entries: Some(Dir::new(fd)?), at: None, stuck: false })
    }

    fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.entries.as_ref().ok_or(Errno::BADF)?.fd()
    }

    /// Opens a closed level again by a handle of its directory, and goes on at its position in the listing.
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

impl<'purge> Walk<'purge> {
    /// Returns a walk that tries at most `budget` entries of the directory `name` in `meta`, which is open as `fd`.
    pub(super) fn new(
        meta: &'purge Handle,
        name: &str,
        fd: OwnedFd,
        budget: usize,
        pass: &'purge mut PurgePass,
    ) -> Result<Self, BackendError> {
        let top = rustix::io::fcntl_dupfd_cloexec(&fd, 0)
            .map_err(|errno| BackendError::io("open", &meta.path.join(name), errno))?;
        // The text of an identity holds no NUL.
        let name = CString::new(name).unwrap_or_default();
        let first = Level::new(fd, name).map_err(|errno| BackendError::io("list", &meta.path, errno))?;
        Ok(Self { meta, top, levels: vec![first], left: budget.max(1), skip: pass.refused, removed: 0, pass })
    }

    /// Returns true if the tree is gone.
    pub(super) fn is_done(&self) -> bool {
        self.levels.is_empty()
    }

    pub(super) fn removed(&self) -> usize {
        self.removed
    }
}

impl Walk<'_> {
    /// Walks until the budget is used up, the tree is gone, or a pass ends without any effect. In the last case returns
    /// the obstacle.
    pub(super) fn run(&mut self) -> Result<Option<(PathBuf, String)>, BackendError> {
        while self.left > 0 {
            let Some(level) = self.levels.last_mut() else { break };
            let Some(entries) = &mut level.entries else {
                self.reopen()?;
                continue;
            };
            match entries.read() {
                // A directory that somebody else removed lists nothing.
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

    /// Removes an entry, or goes down into it.
    fn take(&mut self, entry: &DirEntry) -> Result<(), Errno> {
        let name = entry.file_name();
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let parent = level.fd()?;
        let kind = match entry.file_type() {
            // Some file systems do not give an entry's kind in a listing.
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
        // Refuses a mount point, even one of the same file system.
        let child = open_to_empty(parent, name)?;
        if depth >= OPEN_LEVELS {
            match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
                Ok(()) => {
                    self.gone();
                    return Ok(());
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            // Under a unique name. This needs room for an entry, which a full disk may not have.
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
        if depth > OPEN_LEVELS
            && let Some(closed) = self.levels.get_mut(depth - OPEN_LEVELS)
        {
            closed.entries = None;
        }
        Ok(())
    }

    /// Goes up from a directory whose entries were all tried, and removes it. Returns the obstacle if that ended a pass
    /// which had no effect.
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
            // Entries were refused or added, or the listing skipped some because others were removed: another pass
            // finds those.
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.stuck || self.pass.has_effect() => {
                above.stuck = true;
            }
            Err(errno) => self.refused(&level.name, errno)?,
        }
        Ok(None)
    }

    /// Leaves the volume's own directory, which ends a pass.
    fn leave_top(&mut self, mut top: Level) -> Result<Option<(PathBuf, String)>, BackendError> {
        match rustix::fs::unlinkat(&self.meta.fd, &*top.name, AtFlags::REMOVEDIR) {
            Ok(()) => {
                self.removed += 1;
                Ok(None)
            }
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTEMPTY | Errno::EXIST) if self.pass.has_effect() => {
                // Directories that were moved up need another pass in any case.
                let again = self.pass.again + usize::from(!self.pass.moved);
                *self.pass = PurgePass { again, ..PurgePass::default() };
                self.skip = 0;
                if let Some(entries) = &mut top.entries {
                    entries.rewind();
                }
                top.stuck = false;
                self.levels.push(top);
                Ok(None)
            }
            Err(errno) => {
                let path = self.meta.path.join(OsStr::from_bytes(top.name.to_bytes()));
                self.levels.push(top);
                match std::mem::take(self.pass).blocked {
                    Some(blocked) => Ok(Some(blocked)),
                    None => Ok(Some((path.clone(), reason(&path, errno)?))),
                }
            }
        }
    }

    /// Opens the deepest levels again, from the volume's own directory downwards. Returns false if the path has
    /// changed: the walk then goes on where the path ends.
    fn reopen(&mut self) -> Result<bool, BackendError> {
        // This costs more the deeper the levels lie, so it is charged to the budget.
        self.left = self.left.saturating_sub(self.levels.len() / OPEN_LEVELS);
        let open_from = self.levels.len().saturating_sub(OPEN_LEVELS);
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

    /// Notes an entry that could not be removed, so that the walk goes on with the others. Returns an error if the
    /// storage itself failed.
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
        let mut path = self.meta.path.clone();
        path.extend(names.map(|name| OsStr::from_bytes(name.to_bytes())));
        path
    }
}

/// Opens a directory of the tree. A process that is not root gets the rights that it needs to empty it.
pub(super) fn open_to_empty(parent: impl AsFd, name: impl Arg + Copy) -> Result<OwnedFd, Errno> {
    if !rustix::process::geteuid().is_root() {
        TemporaryMode::open(&parent, name, Mode::RWXU)?;
    }
    open_beneath(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Returns why an entry cannot be removed, and the remedy. Returns an error if the reason lies in the storage or this
/// process, so that no other entry can be removed either.
pub(super) fn reason(path: &Path, errno: Errno) -> Result<String, BackendError> {
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
