//! Following files, so that a change is in force within a second however it was made.
//!
//! The kernel tells of changes in directories, never reliably of changes of one file: a file that is renamed over
//! another is a new one. So [`super::directories`] watches every directory on the way to each file, and whatever
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
        let read = || -> io::Result<(Vec<u8>, State)> {
            let file = File::open(path)?;
            let is_file = file.metadata()?.is_file();
            let mut bytes = Vec::new();
            let most = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
            file.take(most).read_to_end(&mut bytes)?;
            let state = if is_file { state_of(&mut bytes.as_slice())? } else { State::NoFile };
            Ok((bytes, state))
        };
        let (bytes, state) = match read() {
            Ok((bytes, state)) => (Ok(bytes), state),
            Err(error) => {
                let state = State::Unreadable(error.kind());
                (Err(error), state)
            }
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
