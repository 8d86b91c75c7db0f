//! Watches the directories on the way to the files that are followed.
//!
//! A file can change because it is written, because another is renamed over it, because a symlink anywhere on the way
//! is swapped, or because a directory on the way is removed, moved or made. Each of these is an event in one of the
//! directories on the way; in the directory that holds the file, every event counts, whatever its name.
//!
//! Nothing here reads a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use notify::event::ModifyKind;
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

use super::walk;

/// An event in a watched directory.
#[derive(Debug)]
pub(super) struct Touched {
    /// The paths concerned; none if the kernel lost count.
    paths: Vec<PathBuf>,
    /// True if the paths may be other files or directories than before.
    replaced: bool,
}

/// The watched directories.
pub(super) struct Directories {
    kernel: Option<Kernel>,
    watched: BTreeMap<PathBuf, Watched>,
    /// The directories that hold files and cannot be watched; a warning has been given for each.
    unwatched: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Watched {
    /// Device and inode: another directory of the same name must be watched separately.
    identity: (u64, u64),
    wanted: Wanted,
}

/// The relevant names in a directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    everything: bool,
    names: BTreeSet<OsString>,
}

impl Directories {
    /// Returns a set without directories. Later events go to `touched`, on another thread.
    pub(super) fn new(touched: impl Fn(Touched) + Send + 'static) -> Self {
        let told = move |event: notify::Result<Event>| match event {
            // Our own reads cause these events.
            Ok(event) if event.kind.is_access() => {}
            Ok(event) => {
                let in_place = matches!(
                    event.kind,
                    EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_) | ModifyKind::Any)
                );
                let paths = if event.need_rescan() { Vec::new() } else { event.paths };
                touched(Touched { paths, replaced: !in_place });
            }
            Err(error) => {
                log::warn!("watching for changes of the configuration: {error}");
                touched(Touched { paths: Vec::new(), replaced: false });
            }
        };
        let kernel = Kernel::start(told);
        if let Err(error) = &kernel {
            log::warn!(
                "changes of the configuration are looked for every second, since none are told: {error}"
            );
        }
        Self { kernel: kernel.ok(), watched: BTreeMap::new(), unwatched: BTreeSet::new() }
    }

    /// Returns a set that behaves as if the kernel could watch nothing.
    #[cfg(test)]
    pub(super) fn blind_ones() -> Self {
        Self { kernel: None, watched: BTreeMap::new(), unwatched: BTreeSet::new() }
    }

    /// Returns true if the kernel does not report the changes of some file.
    pub(super) fn blind(&self) -> bool {
        self.kernel.is_none() || !self.unwatched.is_empty()
    }

    /// Returns true if the event may have changed a file that is followed.
    pub(super) fn concerns(&mut self, touched: &Touched) -> bool {
        let Touched { paths, replaced } = touched;
        let concerns = paths.is_empty()
            || paths.iter().any(|path| {
                let wanted = path.parent().and_then(|parent| self.watched.get(parent));
                let name = path.file_name().unwrap_or_default();
                self.watched.contains_key(path)
                    || wanted
                        .is_some_and(|in_it| in_it.wanted.everything || in_it.wanted.names.contains(name))
            });
        if *replaced {
            // A directory that went away and came back may even have its former inode.
            for path in paths {
                self.forget(path);
            }
        }
        concerns
    }

    /// Makes the next [`Self::watch_the_way_to`] watch everything again, because events may have been lost unnoticed.
    pub(super) fn renew(&mut self) {
        for path in self.watched.keys().cloned().collect::<Vec<_>>() {
            self.forget(&path);
        }
    }

    /// Watches every directory on the way to each of these files, and no others.
    pub(super) fn watch_the_way_to(&mut self, files: &[&Path]) {
        // A directory that appears between looking and watching is not reported. So look again until no new directory
        // was watched. Each round gets further along the way; if a way changes all the time, it is looked at later
        // anyway.
        for _ in 0..8 {
            let wanted = way_to(files);
            if !self.watch(wanted) {
                return;
            }
        }
    }

    /// Watches the wanted directories. Returns true if one of them was not watched before.
    fn watch(&mut self, wanted: BTreeMap<PathBuf, Wanted>) -> bool {
        for path in
            self.watched.keys().filter(|path| !wanted.contains_key(*path)).cloned().collect::<Vec<_>>()
        {
            self.forget(&path);
        }
        self.unwatched.retain(|path| wanted.contains_key(path));
        let mut added = false;
        for (path, wanted) in wanted {
            let Ok(found) = path.metadata() else {
                self.unwatched.remove(&path);
                continue;
            };
            let identity = (found.dev(), found.ino());
            match self.watched.get_mut(&path) {
                Some(watched) if watched.identity == identity => {
                    watched.wanted = wanted;
                    continue;
                }
                Some(_) => self.forget(&path),
                None => {}
            }
            let Some(kernel) = &mut self.kernel else { return false };
            match kernel.ask(|watcher| watcher.watch(&path, RecursiveMode::NonRecursive)) {
                Ok(()) => {
                    self.unwatched.remove(&path);
                    self.watched.insert(path, Watched { identity, wanted });
                    added = true;
                }
                // For a directory further up it suffices that its files are checked now and then.
                Err(error) if !wanted.everything => log::debug!("{} is not watched: {error}", path.display()),
                Err(error) => {
                    if self.unwatched.insert(path.clone()) {
                        let path = path.display();
                        log::warn!("{path} cannot be watched, its files are looked at every second: {error}");
                    }
                }
            }
        }
        added
    }

    /// Stops watching a directory and everything below it.
    fn forget(&mut self, path: &Path) {
        let below: Vec<_> = self.watched.keys().filter(|known| known.starts_with(path)).cloned().collect();
        for path in below {
            self.watched.remove(&path);
            if let Some(kernel) = &mut self.kernel {
                // The kernel may have dropped it already, together with the directory.
                let _ = kernel.ask(|watcher| watcher.unwatch(&path));
            }
        }
    }
}

/// The source of the kernel's events, in a thread of notify's. If that thread cannot be started, notify does not report
/// it, and panics at its next call and when it is dropped.
struct Kernel {
    /// `None` only while this is dropped.
    watcher: Option<RecommendedWatcher>,
    /// The thread's callback holds the strong reference, so nobody holds it once the thread is gone.
    thread: Weak<()>,
}

impl Kernel {
    fn start(told: impl Fn(notify::Result<Event>) + Send + 'static) -> notify::Result<Self> {
        let alive = Arc::new(());
        let thread = Arc::downgrade(&alive);
        let told = move |event| {
            let _held = &alive;
            told(event);
        };
        let kernel = Self { watcher: Some(notify::recommended_watcher(told)?), thread };
        if kernel.is_alive() { Ok(kernel) } else { Err(gone()) }
    }

    fn is_alive(&self) -> bool {
        self.thread.strong_count() > 0
    }

    fn ask(
        &mut self,
        question: impl FnOnce(&mut RecommendedWatcher) -> notify::Result<()>,
    ) -> notify::Result<()> {
        match &mut self.watcher {
            Some(watcher) if self.thread.strong_count() > 0 => question(watcher),
            _ => Err(gone()),
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let watcher = self.watcher.take();
        if !self.is_alive() {
            // Dropping it would panic.
            let _ = ManuallyDrop::new(watcher);
        }
    }
}

fn gone() -> notify::Error {
    notify::Error::io(io::Error::other("there is no thread to tell of them"))
}

impl std::fmt::Debug for Directories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel: _, watched, unwatched } = self;
        f.debug_struct("Directories").field("watched", watched).field("unwatched", unwatched).finish()
    }
}

/// Returns the directories on the way to each of these files, with the relevant names in each.
fn way_to(files: &[&Path]) -> BTreeMap<PathBuf, Wanted> {
    let mut directories: BTreeMap<PathBuf, Wanted> = BTreeMap::new();
    for file in files {
        let real = walk::follow(file, |directory, name| {
            directories.entry(directory.into()).or_default().names.insert(name.into());
        });
        // Both the directory that the path names and the one in which the file really is.
        let named = file.parent().map(|parent| walk::follow(parent, |_, _| {}));
        for directory in named.into_iter().chain(real.parent().map(Path::to_path_buf)) {
            directories.entry(directory).or_default().everything = true;
        }
    }
    directories
}
