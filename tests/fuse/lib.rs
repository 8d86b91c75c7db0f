//! A file system for tests that misbehaves on command: a pass-through to a directory on disk which can hang, refuse
//! what network file systems refuse, answer ESTALE to everything, or lose one answer.
//!
//! It runs in the test's own process, each request in a thread of its own, so that some can hang while others are
//! answered. It needs root and `/dev/fuse`. It knows nothing of volhost, and nothing of it is meant to be fast.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};
use rustix::fs::{AtFlags, CWD, Dir, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use tempfile::TempDir;

/// Nothing is cached by the kernel, so that a change of behaviour shows at once.
const TTL: Duration = Duration::ZERO;

/// Returns true if this process can mount a file system, and says that a test is skipped if it cannot.
#[must_use]
pub fn can_mount() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("skipped: only root can mount a file system");
    }
    is_root
}

/// A file system between two temporary directories.
pub struct ScratchFs {
    // Dropped first: it is mounted at the directory below.
    fs: FuseFs,
    at: TempDir,
    backing: TempDir,
}

impl ScratchFs {
    /// Mounts one; `None` if this process cannot.
    ///
    /// # Panics
    ///
    /// If root cannot mount it either: without `/dev/fuse`, say.
    #[must_use]
    pub fn mount() -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let directory = || TempDir::new().expect("a temporary directory can be made");
        let (backing, at) = (directory(), directory());
        let fs = FuseFs::mount(backing.path(), at.path()).expect("root can mount a file system");
        Some(Self { fs, at, backing })
    }

    /// How the file system behaves from now on.
    #[must_use]
    pub fn control(&self) -> &Control {
        self.fs.control()
    }

    /// The directory that it is mounted at.
    #[must_use]
    pub fn at(&self) -> &Path {
        self.at.path()
    }

    /// The directory that it passes through to.
    #[must_use]
    pub fn backing(&self) -> &Path {
        self.backing.path()
    }
}

/// A mounted file system; unmounted, with everything that hangs released, when it is dropped.
pub struct FuseFs {
    control: Control,
    at: PathBuf,
    session: Option<BackgroundSession>,
}

impl FuseFs {
    /// Mounts a pass-through of the directory `backing` at the directory `at`, open to all users, the kernel checking
    /// permissions. Needs root.
    pub fn mount(backing: &Path, at: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(backing, flags, Mode::empty())?;
        let control = Control::default();
        let core = Core {
            control: control.clone(),
            nodes: Mutex::new(HashMap::from([(INodeNo::ROOT.0, (Arc::new(root), 1))])),
            files: Mutex::default(),
            listings: Mutex::default(),
            next: AtomicU64::new(1),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("volhost-test".into()),
            MountOption::DefaultPermissions,
            MountOption::Suid,
            MountOption::Dev,
        ];
        config.acl = SessionACL::All;
        let session = Session::new(PassThrough(Arc::new(core)), at, &config)?.spawn()?;
        Ok(Self { control, at: at.into(), session: Some(session) })
    }

    /// How the file system behaves from now on.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for FuseFs {
    fn drop(&mut self) {
        self.control.behave();
        // Lazily, because somebody may still have files open; the session ends when the last is closed.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
        drop(self.session.take());
    }
}

/// What a request asks for; the unit in which behaviour is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    /// Looking a name up, which every path walk does.
    Lookup,
    /// Reading attributes.
    Getattr,
    /// Changing owner, mode, size or times.
    Setattr,
    /// Reading a symbolic link.
    Readlink,
    /// Making a directory.
    Mkdir,
    /// Removing a file.
    Unlink,
    /// Removing a directory.
    Rmdir,
    /// Making a symbolic link.
    Symlink,
    /// Renaming.
    Rename,
    /// Making a hard link.
    Link,
    /// Opening a file.
    Open,
    /// Making and opening a file.
    Create,
    /// Reading a file.
    Read,
    /// Writing a file.
    Write,
    /// Making a file durable.
    Fsync,
    /// Opening a directory.
    Opendir,
    /// Listing a directory.
    Readdir,
    /// Making a directory durable.
    Fsyncdir,
    /// Asking for free space.
    Statfs,
}

/// The file system's behaviour, which can be changed at any time from any thread.
#[derive(Clone, Default)]
pub struct Control(Arc<Shared>);

#[derive(Default)]
struct Shared {
    behaviour: Mutex<Behaviour>,
    changed: Condvar,
}

#[derive(Default)]
struct Behaviour {
    hang_all: bool,
    hang: BTreeSet<Op>,
    hanging: usize,
    stale: bool,
    refuse_rename_flags: bool,
    refuse_chown: bool,
    refuse_fsyncdir: bool,
    fold_case: bool,
    fail_once: BTreeMap<Op, Once>,
    lose_once: BTreeMap<Op, Once>,
    seen: BTreeMap<Op, usize>,
}

/// A misbehaviour that is shown once, after so many requests that are answered well.
#[derive(Clone, Copy)]
struct Once {
    after: usize,
    errno: i32,
}

impl Once {
    /// Whether it is this request's turn.
    fn take(waiting: &mut BTreeMap<Op, Self>, op: Op) -> Option<i32> {
        let once = waiting.get_mut(&op)?;
        if let Some(fewer) = once.after.checked_sub(1) {
            once.after = fewer;
            return None;
        }
        waiting.remove(&op).map(|once| once.errno)
    }
}

impl Control {
    /// Whether every request blocks until this is taken back.
    pub fn hang(&self, on: bool) {
        self.change(|behaviour| behaviour.hang_all = on);
    }

    /// Whether requests of one kind block until this is taken back.
    pub fn hang_on(&self, op: Op, on: bool) {
        self.change(|behaviour| {
            if on {
                behaviour.hang.insert(op);
            } else {
                behaviour.hang.remove(&op);
            }
        });
    }

    /// Whether every request is answered with ESTALE, like those to an export that was removed.
    pub fn stale(&self, on: bool) {
        self.change(|behaviour| behaviour.stale = on);
    }

    /// Whether renames with flags are refused with EINVAL, as NFS and Ceph do.
    pub fn refuse_rename_flags(&self, on: bool) {
        self.change(|behaviour| behaviour.refuse_rename_flags = on);
    }

    /// Whether changes of owner are refused with EPERM, as an export with root_squash does.
    pub fn refuse_chown(&self, on: bool) {
        self.change(|behaviour| behaviour.refuse_chown = on);
    }

    /// Whether directories cannot be made durable (EINVAL).
    pub fn refuse_fsyncdir(&self, on: bool) {
        self.change(|behaviour| behaviour.refuse_fsyncdir = on);
    }

    /// Whether names that differ in upper and lower case alone are one, as on CIFS and vfat. Stays so when all
    /// misbehaviour is taken back.
    pub fn fold_case(&self, on: bool) {
        self.change(|behaviour| behaviour.fold_case = on);
    }

    /// Answers the next request of this kind with `errno` and does nothing.
    pub fn fail_once(&self, op: Op, errno: i32) {
        self.fail_after(op, 0, errno);
    }

    /// Answers one request of this kind with `errno` and does nothing, after so many more that are answered well.
    pub fn fail_after(&self, op: Op, after: usize, errno: i32) {
        self.change(|behaviour| {
            behaviour.fail_once.insert(op, Once { after, errno });
        });
    }

    /// Does what the next request of this kind asks for, and answers `errno` all the same, as when a server's answer
    /// is lost.
    pub fn lose_answer_once(&self, op: Op, errno: i32) {
        self.lose_answer_after(op, 0, errno);
    }

    /// Loses one answer to a request of this kind, after so many more that are answered well.
    pub fn lose_answer_after(&self, op: Op, after: usize, errno: i32) {
        self.change(|behaviour| {
            behaviour.lose_once.insert(op, Once { after, errno });
        });
    }

    /// Whether each misbehaviour that was to be shown once has been shown.
    #[must_use]
    pub fn was_shown(&self) -> bool {
        let behaviour = self.lock();
        behaviour.fail_once.is_empty() && behaviour.lose_once.is_empty()
    }

    /// Takes all misbehaviour back and releases what hangs.
    pub fn behave(&self) {
        self.change(|behaviour| {
            let Behaviour { hanging, fold_case, ref mut seen, .. } = *behaviour;
            let seen = std::mem::take(seen);
            *behaviour = Behaviour { hanging, fold_case, seen, ..Behaviour::default() };
        });
    }

    /// How many requests hang now.
    #[must_use]
    pub fn hanging(&self) -> usize {
        self.lock().hanging
    }

    /// Waits until at least `count` requests hang; `false` when that takes longer than `limit`.
    #[must_use]
    pub fn wait_for_hanging(&self, count: usize, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut behaviour = self.lock();
        while behaviour.hanging < count {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            behaviour =
                self.0.changed.wait_timeout(behaviour, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How many requests of this kind have come so far.
    #[must_use]
    pub fn seen(&self, op: Op) -> usize {
        self.lock().seen.get(&op).copied().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Behaviour> {
        self.0.behaviour.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.lock());
        self.0.changed.notify_all();
    }

    /// Lets a request through when it may go on, and says how it is to be answered.
    fn pass(&self, op: Op, asks: Asks) -> Verdict {
        let mut behaviour = self.lock();
        *behaviour.seen.entry(op).or_default() += 1;
        if behaviour.hang_all || behaviour.hang.contains(&op) {
            behaviour.hanging += 1;
            self.0.changed.notify_all();
            while behaviour.hang_all || behaviour.hang.contains(&op) {
                behaviour = self.0.changed.wait(behaviour).unwrap_or_else(PoisonError::into_inner);
            }
            behaviour.hanging -= 1;
            self.0.changed.notify_all();
        }
        let refused = match asks {
            _ if behaviour.stale => Some(libc::ESTALE),
            Asks::RenameWithFlags if behaviour.refuse_rename_flags => Some(libc::EINVAL),
            Asks::Chown if behaviour.refuse_chown => Some(libc::EPERM),
            _ if op == Op::Fsyncdir && behaviour.refuse_fsyncdir => Some(libc::EINVAL),
            _ => Once::take(&mut behaviour.fail_once, op),
        };
        match refused {
            Some(errno) => Verdict::Refuse(errno),
            None => Once::take(&mut behaviour.lose_once, op).map_or(Verdict::Do, Verdict::Lose),
        }
    }
}

/// What about a request can be refused on its own.
#[derive(Clone, Copy)]
enum Asks {
    Nothing,
    Chown,
    RenameWithFlags,
}

enum Verdict {
    Do,
    Refuse(i32),
    Lose(i32),
}

type Answer<T> = Result<T, rustix::io::Errno>;

/// A directory's entries: inode, kind, name.
type Listing = Vec<(u64, FileType, OsString)>;

/// The file system's state. An inode is the backing one's number and an `O_PATH` handle, which keeps the number from
/// being given to another file.
struct Core {
    control: Control,
    nodes: Mutex<HashMap<u64, (Arc<OwnedFd>, u64)>>,
    files: Mutex<HashMap<u64, Arc<OwnedFd>>>,
    listings: Mutex<HashMap<u64, Arc<Listing>>>,
    next: AtomicU64,
}

impl Core {
    fn node(&self, ino: INodeNo) -> Answer<Arc<OwnedFd>> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&ino.0).map(|(fd, _)| Arc::clone(fd)).ok_or(rustix::io::Errno::STALE)
    }

    fn file(&self, handle: FileHandle) -> Answer<Arc<OwnedFd>> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(&handle.0).cloned().ok_or(rustix::io::Errno::BADF)
    }

    fn keep(&self, file: OwnedFd) -> FileHandle {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        self.files.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::new(file));
        FileHandle(handle)
    }

    /// The name under which a directory has the entry that a name leads to.
    fn real(&self, parent: &OwnedFd, name: &OsStr) -> OsString {
        let is_there = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if is_there || !self.control.lock().fold_case {
            return name.to_owned();
        }
        let entries = std::fs::read_dir(by_number(parent)).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.find(|entry| entry.eq_ignore_ascii_case(name)).unwrap_or_else(|| name.to_owned())
    }

    /// Looks a name up and counts that the kernel knows it.
    fn entry(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let parent = self.node(parent)?;
        let name = &*self.real(&parent, name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&*parent, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.entry(stat.st_ino).or_insert_with(|| (Arc::new(fd), 0)).1 += 1;
        Ok(attributes(&stat, stat.st_ino))
    }

    fn forget(&self, ino: u64, count: u64) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if ino != INodeNo::ROOT.0
            && let Some((_, known)) = nodes.get_mut(&ino)
        {
            *known = known.saturating_sub(count);
            if *known == 0 {
                nodes.remove(&ino);
            }
        }
    }

    fn attributes(&self, ino: INodeNo) -> Answer<FileAttr> {
        Ok(attributes(&rustix::fs::fstat(&*self.node(ino)?)?, ino.0))
    }

    /// Gives what was just made the owner and mode that the request asked for.
    fn made(&self, parent: INodeNo, name: &OsStr, owner: (u32, u32), mode: Option<u32>) -> Answer<FileAttr> {
        let parent_fd = self.node(parent)?;
        let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
        rustix::fs::chownat(&*parent_fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if let Some(mode) = mode {
            rustix::fs::chmodat(&*parent_fd, name, Mode::from_raw_mode(mode & 0o7777), AtFlags::empty())?;
        }
        self.entry(parent, name)
    }

    fn change(&self, ino: INodeNo, change: &Change) -> Answer<FileAttr> {
        let fd = self.node(ino)?;
        let path = by_number(&fd);
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&*fd, "", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmod(&path, Mode::from_raw_mode(mode & 0o7777))?;
        }
        if let Some(size) = change.size {
            let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
            rustix::fs::ftruncate(&file, size)?;
        }
        if change.times.0.is_some() || change.times.1.is_some() {
            let times = Timestamps {
                last_access: timespec(change.times.0),
                last_modification: timespec(change.times.1),
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        self.attributes(ino)
    }

    /// The entries that a directory handle lists: read anew whenever it is listed from its beginning.
    fn listing(&self, ino: INodeNo, handle: FileHandle, offset: u64) -> Answer<Arc<Listing>> {
        if offset > 0 {
            let listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
            return listings.get(&handle.0).cloned().ok_or(rustix::io::Errno::BADF);
        }
        let fd = self.node(ino)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = Dir::new(rustix::fs::open(by_number(&fd), flags, Mode::empty())?)?;
        let mut entries = Listing::new();
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            entries.push((entry.ino(), kind(entry.file_type()), name));
        }
        let entries = Arc::new(entries);
        let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
        listings.insert(handle.0, Arc::clone(&entries));
        Ok(entries)
    }
}

struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    times: (Option<TimeOrNow>, Option<TimeOrNow>),
}

fn by_number(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    let nanoseconds = |special: i64| Timespec { tv_sec: 0, tv_nsec: special };
    match time {
        None => nanoseconds(rustix::fs::UTIME_OMIT),
        Some(TimeOrNow::Now) => nanoseconds(rustix::fs::UTIME_NOW),
        Some(TimeOrNow::SpecificTime(time)) => {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            Timespec {
                tv_sec: i64::try_from(since.as_secs()).unwrap_or_default(),
                tv_nsec: since.subsec_nanos().into(),
            }
        }
    }
}

fn kind(kind: rustix::fs::FileType) -> FileType {
    match kind {
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::Fifo => FileType::NamedPipe,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::RegularFile | rustix::fs::FileType::Unknown => FileType::RegularFile,
    }
}

fn attributes(stat: &Stat, ino: u64) -> FileAttr {
    let time = |seconds: i64, nanoseconds: u64| {
        let seconds = u64::try_from(seconds).unwrap_or_default();
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or_default();
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    };
    FileAttr {
        ino: INodeNo(ino),
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        blocks: u64::try_from(stat.st_blocks).unwrap_or_default(),
        atime: time(stat.st_atime, stat.st_atime_nsec),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(rustix::fs::FileType::from_raw_mode(stat.st_mode)),
        perm: u16::try_from(stat.st_mode & 0o7777).unwrap_or_default(),
        nlink: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: u32::try_from(stat.st_rdev).unwrap_or_default(),
        blksize: 4096,
        flags: 0,
    }
}

struct PassThrough(Arc<Core>);

impl PassThrough {
    /// Answers a request from a thread of its own. Were none to be had, the dropped reply answers EIO.
    fn answer<R: Send + 'static, T>(
        &self,
        (op, asks): (Op, Asks),
        reply: R,
        fail: impl FnOnce(R, Errno) + Send + 'static,
        work: impl FnOnce(&Core) -> Answer<T> + Send + 'static,
        send: impl FnOnce(R, T) + Send + 'static,
    ) {
        let core = Arc::clone(&self.0);
        let _ = std::thread::Builder::new().name("fuse-request".into()).spawn(move || {
            let refuse = |errno| Err(Errno::from_i32(errno));
            let result = match core.control.pass(op, asks) {
                Verdict::Refuse(errno) => refuse(errno),
                Verdict::Do => work(&core).map_err(|errno| Errno::from_i32(errno.raw_os_error())),
                Verdict::Lose(errno) => {
                    work(&core).map_or_else(|errno| refuse(errno.raw_os_error()), |_lost| refuse(errno))
                }
            };
            match result {
                Ok(value) => send(reply, value),
                Err(errno) => fail(reply, errno),
            }
        });
    }

    fn entry(
        &self,
        op: Op,
        reply: ReplyEntry,
        work: impl FnOnce(&Core) -> Answer<FileAttr> + Send + 'static,
    ) {
        self.answer((op, Asks::Nothing), reply, ReplyEntry::error, work, |reply, attr| {
            reply.entry(&TTL, &attr, Generation(0));
        });
    }

    fn empty(
        &self,
        op: (Op, Asks),
        reply: ReplyEmpty,
        work: impl FnOnce(&Core) -> Answer<()> + Send + 'static,
    ) {
        self.answer(op, reply, ReplyEmpty::error, work, |reply, ()| reply.ok());
    }
}

impl Filesystem for PassThrough {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(Op::Lookup, reply, move |core| core.entry(parent, &name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.forget(ino.0, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let work = move |core: &Core| core.attributes(ino);
        self.answer((Op::Getattr, Asks::Nothing), reply, ReplyAttr::error, work, |reply, attr| {
            reply.attr(&TTL, &attr);
        });
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change { mode, uid, gid, size, times: (atime, mtime) };
        let asks = if uid.is_some() || gid.is_some() { Asks::Chown } else { Asks::Nothing };
        let work = move |core: &Core| core.change(ino, &change);
        self.answer((Op::Setattr, asks), reply, ReplyAttr::error, work, |reply, attr| {
            reply.attr(&TTL, &attr);
        });
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let work = move |core: &Core| rustix::fs::readlinkat(&*core.node(ino)?, "", Vec::new());
        self.answer((Op::Readlink, Asks::Nothing), reply, ReplyData::error, work, |reply, target| {
            reply.data(target.as_bytes());
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        let (name, owner) = (name.to_owned(), (request.uid(), request.gid()));
        self.entry(Op::Mkdir, reply, move |core| {
            rustix::fs::mkdirat(&*core.node(parent)?, &name, Mode::RWXU)?;
            core.made(parent, &name, owner, Some(mode))
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty((Op::Unlink, Asks::Nothing), reply, move |core| {
            let parent = core.node(parent)?;
            rustix::fs::unlinkat(&*parent, core.real(&parent, &name), AtFlags::empty())
        });
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.empty((Op::Rmdir, Asks::Nothing), reply, move |core| {
            let parent = core.node(parent)?;
            rustix::fs::unlinkat(&*parent, core.real(&parent, &name), AtFlags::REMOVEDIR)
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, owner) = (name.to_owned(), target.to_owned(), (request.uid(), request.gid()));
        self.entry(Op::Symlink, reply, move |core| {
            rustix::fs::symlinkat(&target, &*core.node(parent)?, &name)?;
            core.made(parent, &name, owner, None)
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        let asks = if flags.is_empty() { Asks::Nothing } else { Asks::RenameWithFlags };
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags.bits());
        self.empty((Op::Rename, asks), reply, move |core| {
            let (parent, new_parent) = (core.node(parent)?, core.node(new_parent)?);
            let (name, new_name) = (core.real(&parent, &name), core.real(&new_parent, &new_name));
            rustix::fs::renameat_with(&*parent, &name, &*new_parent, &new_name, flags)
        });
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.entry(Op::Link, reply, move |core| {
            let flags = AtFlags::EMPTY_PATH;
            rustix::fs::linkat(&*core.node(ino)?, "", &*core.node(parent)?, &name, flags)?;
            core.entry(parent, &name)
        });
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let flags = backing_flags(flags.0);
        let work = move |core: &Core| {
            let file = rustix::fs::open(by_number(&*core.node(ino)?), flags, Mode::empty())?;
            Ok(core.keep(file))
        };
        self.answer((Op::Open, Asks::Nothing), reply, ReplyOpen::error, work, |reply, handle| {
            reply.opened(handle, FopenFlags::empty());
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, owner) = (name.to_owned(), (request.uid(), request.gid()));
        let work = move |core: &Core| {
            let flags = backing_flags(flags) | OFlags::CREATE | OFlags::EXCL;
            let file = rustix::fs::openat(&*core.node(parent)?, &name, flags, Mode::RUSR | Mode::WUSR)?;
            let attr = core.made(parent, &name, owner, Some(mode))?;
            Ok((attr, core.keep(file)))
        };
        self.answer((Op::Create, Asks::Nothing), reply, ReplyCreate::error, work, |reply, (attr, handle)| {
            reply.created(&TTL, &attr, Generation(0), handle, FopenFlags::empty());
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = move |core: &Core| {
            let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
            let length = rustix::io::pread(&*core.file(handle)?, &mut *bytes, offset)?;
            bytes.truncate(length);
            Ok(bytes)
        };
        self.answer((Op::Read, Asks::Nothing), reply, ReplyData::error, work, |reply, bytes| {
            reply.data(&bytes);
        });
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        let work = move |core: &Core| rustix::io::pwrite(&*core.file(handle)?, &data, offset);
        self.answer((Op::Write, Asks::Nothing), reply, ReplyWrite::error, work, |reply, length| {
            reply.written(u32::try_from(length).unwrap_or_default());
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty((Op::Fsync, Asks::Nothing), reply, move |core| rustix::fs::fsync(&*core.file(handle)?));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let work = move |core: &Core| {
            core.node(ino)?;
            let handle = core.next.fetch_add(1, Ordering::Relaxed);
            core.listings.lock().unwrap_or_else(PoisonError::into_inner).insert(handle, Arc::default());
            Ok(FileHandle(handle))
        };
        self.answer((Op::Opendir, Asks::Nothing), reply, ReplyOpen::error, work, |reply, handle| {
            reply.opened(handle, FopenFlags::empty());
        });
    }

    fn readdir(&self, _: &Request, ino: INodeNo, handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let work = move |core: &Core| core.listing(ino, handle, offset);
        let send = move |mut reply: ReplyDirectory, entries: Arc<Listing>| {
            let first = usize::try_from(offset).unwrap_or(usize::MAX);
            for (at, (ino, kind, name)) in (1..).zip(entries.iter()).skip(first) {
                if reply.add(INodeNo(*ino), at, *kind, name) {
                    break;
                }
            }
            reply.ok();
        };
        self.answer((Op::Readdir, Asks::Nothing), reply, ReplyDirectory::error, work, send);
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.listings.lock().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.empty((Op::Fsyncdir, Asks::Nothing), reply, move |core| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(by_number(&*core.node(ino)?), flags, Mode::empty())?;
            rustix::fs::fsync(dir)
        });
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let work = move |core: &Core| rustix::fs::fstatvfs(&*core.node(ino)?);
        self.answer((Op::Statfs, Asks::Nothing), reply, ReplyStatfs::error, work, |reply, stat| {
            let size = |size: u64| u32::try_from(size).unwrap_or(4096);
            reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                size(stat.f_bsize),
                size(stat.f_namemax),
                size(stat.f_frsize),
            );
        });
    }
}

/// The flags to open the backing file with: what the kernel asked for, less what it has dealt with itself.
fn backing_flags(flags: i32) -> OFlags {
    let flags = OFlags::from_bits_retain(u32::try_from(flags).unwrap_or_default());
    let dealt_with = OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::DIRECT;
    flags.difference(dealt_with) | OFlags::CLOEXEC
}
