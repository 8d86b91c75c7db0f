//! Follows files, so that a change is in force within a second, however it was made.
//!
//! The kernel reports changes in directories, but never reliably the changes of a single file: a file that is renamed
//! over another is a new one. So `directories` watches every directory on the way to each file, and any event there
//! makes us look at the files themselves: only their content decides. A look every few seconds besides covers file
//! systems that report nothing.
//!
//! This runs in its own threads. It parses nothing, applies nothing and never panics.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::directories::{Directories, Touched};
use super::snapshot::FileSnapshot;
use crate::files::{self, ReaderThread, Unfinished};

/// How long no event must come before files are read: most changes consist of several steps.
const QUIET_TIME: Duration = Duration::from_millis(100);

/// How long to wait for that in a directory where events come all the time.
const QUIET_TIMEOUT: Duration = Duration::from_millis(300);

/// How often files are read without an event: network file systems report none.
const POLL: Duration = Duration::from_secs(10);

/// How often files are read if the kernel cannot watch one of them.
const POLL_BLIND: Duration = Duration::from_secs(1);

/// Files that are reloaded together, all or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Unit {
    /// The configuration and the backend map.
    Config,
    /// The server's certificate and key, and the CA of the clients.
    Tls,
    /// The revocation lists.
    Crl,
}

impl Unit {
    /// Every unit.
    pub(crate) const ALL: [Self; 3] = [Self::Config, Self::Tls, Self::Crl];

    /// Returns its name in `volhost status` and the log.
    #[must_use]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Config => "configuration",
            Self::Tls => "certificates",
            Self::Crl => "crl",
        }
    }
}

/// Follows files until it is dropped. Each unit has its own thread, so that a unit whose files are on a share that
/// hangs does not keep changes of the others from being noticed.
#[derive(Debug)]
pub(crate) struct Watcher(BTreeMap<Unit, UnitHandle>);

/// The handle to the thread of one unit.
#[derive(Debug)]
struct UnitHandle {
    messages: Sender<Message>,
    progress: Arc<CheckProgress>,
}

#[derive(Debug)]
enum Message {
    Touched(Touched),
    Files(Vec<FileSnapshot>),
    Stop,
}

/// The time since which a thread has been looking at its files, and the thread.
#[derive(Debug, Default)]
struct CheckProgress {
    since: Mutex<Option<Instant>>,
    thread: OnceLock<ReaderThread>,
}

impl Watcher {
    /// Follows `files`, and calls `notify` with each unit if one of its files has changed since its snapshot.
    ///
    /// The snapshots are those of what the caller has in force: [`super::Loaded::files`] for the configuration, and
    /// [`FileSnapshot::now`] from before they were read for the others. So a change between reading and following is
    /// found. `notify` is called from the watcher's threads and should return at once; it may be called once more while
    /// the watcher is being dropped.
    ///
    /// # Errors
    /// If no thread can be started. Files that cannot be watched are read every second instead, with a warning.
    pub(crate) fn start(
        files: BTreeMap<Unit, Vec<FileSnapshot>>,
        notify: impl Fn(Unit) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let notify = Arc::new(notify);
        // If a thread cannot be started, dropping this ends those that were.
        let mut watcher = Self(BTreeMap::new());
        for (unit, files) in files {
            let notify = Arc::clone(&notify);
            let (messages, receiver) = mpsc::channel();
            let sender = messages.clone();
            let directories = Directories::new(move |touched| {
                // Nobody listens any more only if the watcher is gone.
                let _ = sender.send(Message::Touched(touched));
            });
            let progress = Arc::<CheckProgress>::default();
            let follower = Follower {
                files,
                notify: move || notify(unit),
                directories,
                receiver,
                progress: Arc::clone(&progress),
            };
            let name = format!("watch-{}", unit.as_str());
            let thread = files::start(&name, || follower.run()).map_err(io::Error::other)?;
            // It is set only once.
            let _ = progress.thread.set(thread);
            watcher.0.insert(unit, UnitHandle { messages, progress });
        }
        Ok(watcher)
    }

    /// Follows other files of a unit from now on: after a reload, with the snapshots of that reload, whether it was
    /// applied or rejected. Never with those of an earlier one, or the same change would be found again and again.
    pub(crate) fn set_files(&self, unit: Unit, files: Vec<FileSnapshot>) {
        if let Some(followed) = self.0.get(&unit) {
            followed.tell(Message::Files(files));
        }
    }

    /// Returns why changes of a unit's files go unnoticed at present: the files have not answered for too long.
    #[must_use]
    pub(crate) fn held_up(&self, unit: Unit) -> Option<Unfinished> {
        let progress = &self.0.get(&unit)?.progress;
        let since = *progress.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.filter(|since| since.elapsed() >= files::READ_TIMEOUT)?;
        progress.thread.get().map(ReaderThread::unfinished)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.values().for_each(|followed| followed.tell(Message::Stop));
    }
}

impl UnitHandle {
    fn tell(&self, message: Message) {
        // The thread ends when it is told to, and not before.
        let _ = self.messages.send(message);
    }
}

struct Follower<N> {
    files: Vec<FileSnapshot>,
    notify: N,
    directories: Directories,
    receiver: Receiver<Message>,
    progress: Arc<CheckProgress>,
}

impl<N: Fn()> Follower<N> {
    fn run(mut self) {
        self.check();
        let mut looked = Instant::now();
        loop {
            let poll = if self.directories.blind() { POLL_BLIND } else { POLL };
            match self.receiver.recv_timeout(poll.saturating_sub(looked.elapsed())) {
                Ok(Message::Touched(touched)) if !self.directories.concerns(&touched) => continue,
                Ok(Message::Touched(_)) => {
                    if self.wait_for_quiet().is_break() {
                        return;
                    }
                }
                Ok(Message::Files(files)) => self.files = files,
                Err(RecvTimeoutError::Timeout) => self.directories.renew(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.check();
            looked = Instant::now();
        }
    }

    /// Waits until no event has come for a while, or for long enough.
    fn wait_for_quiet(&mut self) -> ControlFlow<()> {
        let began = Instant::now();
        let mut last = began;
        while last.elapsed() < QUIET_TIME && began.elapsed() < QUIET_TIMEOUT {
            match self.receiver.recv_timeout(QUIET_TIME.saturating_sub(last.elapsed())) {
                Ok(Message::Touched(touched)) => {
                    if self.directories.concerns(&touched) {
                        last = Instant::now();
                    }
                }
                Ok(Message::Files(files)) => self.files = files,
                Err(RecvTimeoutError::Timeout) => break,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// Watches the directories that the files lie in now, then looks at the files: in this order, so that no change
    /// between the two is missed.
    fn check(&mut self) {
        self.progress.set(Some(Instant::now()));
        let paths: Vec<_> = self.files.iter().map(FileSnapshot::path).collect();
        self.directories.watch_the_way_to(&paths);
        let now: Vec<_> = self.files.iter().map(FileSnapshot::again).collect();
        self.progress.set(None);
        if self.files != now {
            self.files = now;
            (self.notify)();
        }
    }
}

impl CheckProgress {
    fn set(&self, since: Option<Instant>) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use tempfile::TempDir;

    use super::*;

    /// A watcher of files in its own directory, and the units that it reported.
    struct Following {
        dir: TempDir,
        watcher: Watcher,
        told: Receiver<Unit>,
    }

    /// Far more than the promised second: the machine may be busy.
    const LONG: Duration = Duration::from_secs(8);

    fn files(dir: &Path, named: &[(Unit, &str)]) -> BTreeMap<Unit, Vec<FileSnapshot>> {
        let mut files: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (unit, name) in named {
            files.entry(*unit).or_default().push(FileSnapshot::now(&dir.join(name), 1000));
        }
        files
    }

    impl Following {
        fn new(dir: TempDir, named: &[(Unit, &str)]) -> Self {
            let (sender, told) = mpsc::channel();
            let files = files(dir.path(), named);
            let watcher = Watcher::start(files, move |unit| sender.send(unit).unwrap_or_default()).unwrap();
            let following = Self { dir, watcher, told };
            following.settled();
            following
        }

        /// Waits until the watcher has processed every message.
        fn settled(&self) {
            while self.told.recv_timeout(Duration::from_millis(700)).is_ok() {}
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Returns the unit that is reported after `done`. No other unit may be reported; on a busy machine this one
        /// may be reported before `done` has ended as well.
        fn after(&self, done: impl FnOnce()) -> Option<Unit> {
            done();
            let told = self.told.recv_timeout(LONG).ok();
            while let Ok(again) = self.told.recv_timeout(Duration::from_millis(700)) {
                assert_eq!(Some(again), told);
            }
            told
        }
    }

    fn dir() -> TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_file_that_is_renamed_over_is_noticed_each_time() {
        let dir = dir();
        fs::write(dir.path().join("a"), "0").unwrap();
        let following = Following::new(dir, &[(Unit::Config, "a")]);
        for round in 1..4 {
            let told = following.after(|| {
                fs::write(following.path("a.new"), round.to_string()).unwrap();
                fs::rename(following.path("a.new"), following.path("a")).unwrap();
            });
            assert_eq!(told, Some(Unit::Config), "round {round}");
        }
    }

    #[test]
    fn a_file_that_is_written_in_place_is_noticed_again_when_it_is_complete() {
        let dir = dir();
        fs::write(dir.path().join("a"), "0").unwrap();
        let following = Following::new(dir, &[(Unit::Tls, "a")]);
        assert_eq!(following.after(|| fs::write(following.path("a"), "hal").unwrap()), Some(Unit::Tls));
        assert_eq!(following.after(|| fs::write(following.path("a"), "whole").unwrap()), Some(Unit::Tls));
    }

    #[test]
    fn a_swapped_symlink_is_noticed_and_so_is_a_write_behind_it() {
        let dir = dir();
        for version in ["..v1", "..v2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("crl.pem"), version).unwrap();
        }
        symlink("..v1", dir.path().join("..data")).unwrap();
        symlink("..data/crl.pem", dir.path().join("crl.pem")).unwrap();
        let following = Following::new(dir, &[(Unit::Crl, "crl.pem")]);
        let told = following.after(|| {
            symlink("..v2", following.path("..data_tmp")).unwrap();
            fs::rename(following.path("..data_tmp"), following.path("..data")).unwrap();
            fs::remove_dir_all(following.path("..v1")).unwrap();
        });
        assert_eq!(told, Some(Unit::Crl));
        let told = following.after(|| fs::write(following.path("..v2/crl.pem"), "in place").unwrap());
        assert_eq!(told, Some(Unit::Crl));
    }

    #[test]
    fn a_symlink_further_up_is_followed_too() {
        let (dir, elsewhere) = (dir(), dir());
        for version in ["one", "two"] {
            fs::create_dir_all(elsewhere.path().join(version).join("etc")).unwrap();
            fs::write(elsewhere.path().join(version).join("etc/a"), version).unwrap();
        }
        symlink(elsewhere.path().join("one"), dir.path().join("current")).unwrap();
        let following = Following::new(dir, &[(Unit::Config, "current/etc/a")]);
        let told = following.after(|| {
            symlink(elsewhere.path().join("two"), following.path("new")).unwrap();
            fs::rename(following.path("new"), following.path("current")).unwrap();
        });
        assert_eq!(told, Some(Unit::Config));
        let told = following.after(|| fs::write(elsewhere.path().join("two/etc/a"), "three").unwrap());
        assert_eq!(told, Some(Unit::Config));
    }

    #[test]
    fn a_directory_that_is_removed_and_made_again_is_followed_on() {
        let dir = dir();
        fs::create_dir_all(dir.path().join("etc/pki")).unwrap();
        fs::write(dir.path().join("etc/pki/a"), "0").unwrap();
        let following = Following::new(dir, &[(Unit::Tls, "etc/pki/a")]);
        let make = |text: &str| {
            fs::create_dir_all(following.path("etc/pki")).unwrap();
            fs::write(following.path("etc/pki/a"), text).unwrap();
        };
        let remove = || fs::remove_dir_all(following.path("etc")).unwrap();
        for round in ["1", "2"] {
            assert_eq!(following.after(remove), Some(Unit::Tls), "removed, round {round}");
            assert_eq!(following.after(|| make(round)), Some(Unit::Tls), "made, round {round}");
            let at_once = following.after(|| {
                remove();
                make("at once");
            });
            assert_eq!(at_once, Some(Unit::Tls), "at once, round {round}");
            let in_place = following.after(|| fs::write(following.path("etc/pki/a"), "in place").unwrap());
            assert_eq!(in_place, Some(Unit::Tls), "in place, round {round}");
        }
        let moved = following.after(|| {
            fs::create_dir_all(following.path("next/pki")).unwrap();
            fs::write(following.path("next/pki/a"), "moved in").unwrap();
            fs::rename(following.path("etc"), following.path("before")).unwrap();
            fs::rename(following.path("next"), following.path("etc")).unwrap();
        });
        assert_eq!(moved, Some(Unit::Tls));
        let in_place = following.after(|| fs::write(following.path("etc/pki/a"), "after the move").unwrap());
        assert_eq!(in_place, Some(Unit::Tls));
    }

    #[test]
    fn a_unit_is_told_alone_and_only_when_its_content_is_another() {
        let dir = dir();
        fs::write(dir.path().join("a"), "0").unwrap();
        let following =
            Following::new(dir, &[(Unit::Config, "a"), (Unit::Config, "map"), (Unit::Crl, "crl")]);
        fs::write(following.path("a"), "0").unwrap();
        fs::write(following.path("beside"), "0").unwrap();
        assert_eq!(following.after(|| fs::write(following.path("map"), "").unwrap()), Some(Unit::Config));
        assert_eq!(following.after(|| fs::write(following.path("crl"), "").unwrap()), Some(Unit::Crl));
        assert_eq!(following.after(|| fs::remove_file(following.path("a")).unwrap()), Some(Unit::Config));
    }

    #[test]
    fn what_changed_between_reading_and_following_is_noticed() {
        let dir = dir();
        let path = dir.path().join("a");
        let seen = BTreeMap::from([(Unit::Config, vec![FileSnapshot::now(&path, 1000)])]);
        fs::write(&path, "early").unwrap();
        let (sender, told) = mpsc::channel();
        let watcher = Watcher::start(seen, move |unit| sender.send(unit).unwrap_or_default()).unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(Unit::Config));
        let other = dir.path().join("b");
        let seen = vec![FileSnapshot::now(&other, 1000)];
        fs::write(&other, "early").unwrap();
        watcher.set_files(Unit::Config, seen);
        assert_eq!(told.recv_timeout(LONG), Ok(Unit::Config));
    }

    #[test]
    fn other_files_are_followed_instead_when_told() {
        let dir = dir();
        let following = Following::new(dir, &[(Unit::Config, "a")]);
        let other = vec![FileSnapshot::now(&following.path("deep/er/b"), 1000)];
        following.watcher.set_files(Unit::Config, other);
        following.settled();
        fs::write(following.path("a"), "1").unwrap();
        let told = following.after(|| {
            fs::create_dir_all(following.path("deep/er")).unwrap();
            fs::write(following.path("deep/er/b"), "1").unwrap();
        });
        assert_eq!(told, Some(Unit::Config));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_looked_for() {
        let dir = dir();
        let (sender, told) = mpsc::channel();
        let files = vec![FileSnapshot::now(&dir.path().join("a"), 1000)];
        let notify = move || sender.send(()).unwrap_or_default();
        let (messages, receiver) = mpsc::channel();
        let directories = Directories::blind_ones();
        let follower = Follower { files, notify, directories, receiver, progress: Arc::default() };
        let thread = std::thread::spawn(move || follower.run());
        fs::write(dir.path().join("a"), "1").unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(()));
        messages.send(Message::Stop).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn reading_and_looking_see_the_same() {
        let dir = dir();
        fs::write(dir.path().join("a"), "content").unwrap();
        for (name, most) in [("a", 1000), ("a", 3), ("absent", 1000), (".", 1000)] {
            let path = dir.path().join(name);
            assert_eq!(FileSnapshot::read(&path, most).1, FileSnapshot::now(&path, most), "{name}");
        }
        let (bytes, seen) = FileSnapshot::read(&dir.path().join("a"), 3);
        assert_eq!(bytes.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert!(seen.is_there() && !FileSnapshot::now(&dir.path().join("absent"), 3).is_there());
    }
}
