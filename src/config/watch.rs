//! Following files, so that a change is in force within a second however it was made.
//!
//! The kernel tells of changes in directories, never reliably of changes of one file: a file that is renamed over
//! another is a new one. So `directories` watches every directory on the way to each file, and whatever
//! happens there makes us look at the files themselves: only what stands in them decides. A look every few seconds
//! beside it covers file systems that tell nothing.
//!
//! This runs in a thread of its own. It parses nothing, applies nothing and never panics.

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::directories::{Directories, Touched};

/// How long it must be quiet before files are looked at: most changes come in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long we wait for quiet in a directory that is never quiet.
const PATIENCE: Duration = Duration::from_millis(300);

/// How often files are looked at without cause: network file systems raise nothing.
const POLL: Duration = Duration::from_secs(10);

/// How often where the kernel tells nothing because it cannot.
const POLL_BLIND: Duration = Duration::from_secs(1);

/// What is reloaded together, all of it or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Unit {
    /// The configuration and the backend map.
    Config,
    /// The server's certificate and key, and the CA of the clients.
    Tls,
    /// The certificates that were taken back.
    Crl,
}

/// A file and what stood in it when somebody looked. That it was not there is something to have seen, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    path: PathBuf,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Content { bytes: u64, hash: u64 },
    Unreadable(io::ErrorKind),
    NoFile,
}

impl Seen {
    /// Looks at a file now, by its absolute path. Whoever looks first and reads then misses no change.
    #[must_use]
    pub fn now(path: &Path) -> Self {
        let state = look(path).unwrap_or_else(|error| State::Unreadable(error.kind()));
        Self { path: path.into(), state }
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads a file's bytes, one more than `most` if there are as many, and what is thereby seen.
    pub(super) fn read(path: &Path, most: usize) -> (io::Result<Vec<u8>>, Self) {
        let mut is_file = true;
        let mut read = || {
            let file = File::open(path)?;
            is_file = file.metadata()?.is_file();
            let mut bytes = Vec::new();
            let most = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
            file.take(most).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes: io::Result<Vec<u8>> = read();
        let state = match &bytes {
            _ if !is_file => State::NoFile,
            Ok(bytes) => state_of(&mut bytes.as_slice()).unwrap_or(State::NoFile),
            Err(error) => State::Unreadable(error.kind()),
        };
        (bytes, Self { path: path.into(), state })
    }
}

/// Follows files until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    messages: Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Touched(Touched),
    Files(BTreeMap<Unit, Vec<Seen>>),
    Poke,
    Stop,
}

impl Watcher {
    /// Follows `files`, and calls `notify` with each unit of which a file is no longer as it was seen.
    ///
    /// What was seen is what the caller has in force: [`super::Loaded::files`] for the configuration, and
    /// [`Seen::now`] from before they were read for the others. So a change between reading and following is found.
    /// `notify` is called from the watcher's thread and should return at once; it may be called once more while the
    /// watcher is being dropped.
    ///
    /// # Errors
    /// When no thread can be started. Whatever cannot be watched is looked at every second instead, with a warning.
    pub fn start(
        files: BTreeMap<Unit, Vec<Seen>>,
        notify: impl Fn(Unit) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (messages, receiver) = mpsc::channel();
        let sender = messages.clone();
        let touched = move |touched| {
            // Nobody listens any more only when the watcher is gone.
            let _ = sender.send(Message::Touched(touched));
        };
        let follow = move || {
            let directories = Directories::new(touched);
            Follower { files, notify, directories, receiver }.run();
        };
        std::thread::Builder::new().name("config-watch".into()).spawn(follow)?;
        Ok(Self { messages })
    }

    /// Follows other files from now on: after a reload, with what that reload saw, whether it was applied or rejected.
    /// Never with what an earlier one saw, or the same change would be found again and again.
    pub fn set_files(&self, files: BTreeMap<Unit, Vec<Seen>>) {
        self.send(Message::Files(files));
    }

    /// Looks at all files now, without waiting for the result.
    pub fn poke(&self) {
        self.send(Message::Poke);
    }

    fn send(&self, message: Message) {
        // The thread ends when it is told to, and not before.
        let _ = self.messages.send(message);
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.send(Message::Stop);
    }
}

struct Follower<N> {
    files: BTreeMap<Unit, Vec<Seen>>,
    notify: N,
    directories: Directories,
    receiver: Receiver<Message>,
}

impl<N: Fn(Unit)> Follower<N> {
    fn run(mut self) {
        self.check();
        let mut looked = Instant::now();
        loop {
            let poll = if self.directories.blind() { POLL_BLIND } else { POLL };
            let waited = self.receiver.recv_timeout(poll.saturating_sub(looked.elapsed()));
            match waited {
                Ok(Message::Touched(touched)) if !self.directories.concerns(&touched) => continue,
                Ok(Message::Touched(_)) => {
                    if self.settle().is_break() {
                        return;
                    }
                }
                Ok(Message::Files(files)) => self.files = files,
                Ok(Message::Poke) => {}
                Err(RecvTimeoutError::Timeout) => self.directories.renew(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.check();
            looked = Instant::now();
        }
    }

    /// Waits until nothing has happened for a while, or for long enough.
    fn settle(&mut self) -> ControlFlow<()> {
        let began = Instant::now();
        let mut last = began;
        while last.elapsed() < QUIET && began.elapsed() < PATIENCE {
            match self.receiver.recv_timeout(QUIET.saturating_sub(last.elapsed())) {
                Ok(Message::Touched(touched)) => {
                    if self.directories.concerns(&touched) {
                        last = Instant::now();
                    }
                }
                Ok(Message::Files(files)) => self.files = files,
                Ok(Message::Poke) | Err(RecvTimeoutError::Timeout) => break,
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }

    /// Watches the directories that the files lie in by now, then looks at the files: in this order, so that nothing
    /// can happen between the two.
    fn check(&mut self) {
        let paths: Vec<_> = self.files.values().flatten().map(Seen::path).collect();
        self.directories.watch_the_way_to(&paths);
        for (unit, files) in &mut self.files {
            let now: Vec<_> = files.iter().map(|seen| Seen::now(&seen.path)).collect();
            if *files != now {
                *files = now;
                (self.notify)(*unit);
            }
        }
    }
}

fn look(path: &Path) -> io::Result<State> {
    // A pipe would keep us waiting for its writer.
    if std::fs::metadata(path)?.is_file() { state_of(&mut File::open(path)?) } else { Ok(State::NoFile) }
}

fn state_of(reader: &mut impl io::Read) -> io::Result<State> {
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut bytes = 0;
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(State::Content { bytes, hash: hasher.finish() }),
            Ok(read) => {
                hasher.write(buffer.get(..read).unwrap_or_default());
                bytes += u64::try_from(read).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A watcher of files below a directory of its own, and what it told.
    struct Following {
        dir: TempDir,
        watcher: Watcher,
        told: Receiver<Unit>,
    }

    /// Far more than the second that is promised: the machine may be busy.
    const LONG: Duration = Duration::from_secs(8);

    fn files(dir: &Path, named: &[(Unit, &str)]) -> BTreeMap<Unit, Vec<Seen>> {
        let mut files: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (unit, name) in named {
            files.entry(*unit).or_default().push(Seen::now(&dir.join(name)));
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

        /// Waits until the watcher has done everything that it was told.
        fn settled(&self) {
            while self.told.recv_timeout(Duration::from_millis(700)).is_ok() {}
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// The unit that is told after something was done: no other one is, though on a busy machine this one may be
        /// told in the middle of it, too.
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
        let seen = BTreeMap::from([(Unit::Config, vec![Seen::now(&path)])]);
        fs::write(&path, "early").unwrap();
        let (sender, told) = mpsc::channel();
        let watcher = Watcher::start(seen, move |unit| sender.send(unit).unwrap_or_default()).unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(Unit::Config));
        let other = dir.path().join("b");
        let seen = BTreeMap::from([(Unit::Tls, vec![Seen::now(&other)])]);
        fs::write(&other, "early").unwrap();
        watcher.set_files(seen);
        assert_eq!(told.recv_timeout(LONG), Ok(Unit::Tls));
    }

    #[test]
    fn other_files_are_followed_instead_when_told() {
        let dir = dir();
        let following = Following::new(dir, &[(Unit::Config, "a")]);
        following.watcher.set_files(files(following.dir.path(), &[(Unit::Tls, "deep/er/b")]));
        following.watcher.poke();
        following.settled();
        fs::write(following.path("a"), "1").unwrap();
        let told = following.after(|| {
            fs::create_dir_all(following.path("deep/er")).unwrap();
            fs::write(following.path("deep/er/b"), "1").unwrap();
        });
        assert_eq!(told, Some(Unit::Tls));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_looked_for() {
        let dir = dir();
        let (messages, receiver) = mpsc::channel();
        let (sender, told) = mpsc::channel();
        let files = files(dir.path(), &[(Unit::Crl, "a")]);
        let notify = move |unit| sender.send(unit).unwrap_or_default();
        let follower = Follower { files, notify, directories: Directories::blind_ones(), receiver };
        let thread = std::thread::spawn(move || follower.run());
        fs::write(dir.path().join("a"), "1").unwrap();
        assert_eq!(told.recv_timeout(LONG), Ok(Unit::Crl));
        messages.send(Message::Stop).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn reading_and_looking_see_the_same() {
        let dir = dir();
        fs::write(dir.path().join("a"), "content").unwrap();
        for name in ["a", "absent", "."] {
            let path = dir.path().join(name);
            assert_eq!(Seen::read(&path, 1000).1, Seen::now(&path), "{name}");
        }
        let (bytes, _) = Seen::read(&dir.path().join("a"), 3);
        assert_eq!(bytes.unwrap(), b"cont", "one byte more tells that there are more");
    }
}
