//! The directories on the way to the files that are followed, as the kernel tells of them.
//!
//! A file can change because it is written, because another is renamed over it, because a symlink anywhere on the way
//! is swapped, or because a directory on the way is removed, moved or made. Each of these is an event in one of the
//! directories on the way; in the one that holds the file, every event counts, whatever its name.
//!
//! Nothing here reads a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::inotify::{Inotify, Touched};
use super::walk;

/// The watched directories.
pub(super) struct Directories {
    kernel: Option<Inotify>,
    watched: BTreeMap<PathBuf, Watched>,
    /// The directories that hold files and cannot be watched; a warning has been given for each.
    unwatched: BTreeSet<PathBuf>,
}

#[derive(Debug)]
struct Watched {
    /// Device and inode: another directory of the same name must be watched anew.
    identity: (u64, u64),
    wanted: Wanted,
}

/// What in a directory is of interest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    everything: bool,
    names: BTreeSet<OsString>,
}

impl Directories {
    /// Watches nothing yet.
    pub(super) fn new() -> Self {
        let kernel = Inotify::new();
        if let Err(error) = &kernel {
            log::warn!(
                "changes of the configuration are looked for every second, since none are told: {error}"
            );
        }
        Self { kernel: kernel.ok(), watched: BTreeMap::new(), unwatched: BTreeSet::new() }
    }

    /// As where the kernel can watch nothing.
    #[cfg(test)]
    pub(super) fn blind_ones() -> Self {
        Self { kernel: None, watched: BTreeMap::new(), unwatched: BTreeSet::new() }
    }

    /// Whether there is a file of which the kernel will tell nothing.
    pub(super) fn blind(&self) -> bool {
        self.kernel.is_none() || !self.unwatched.is_empty()
    }

    /// What becomes readable when something happens in a watched directory; `None` where the kernel tells nothing.
    pub(super) fn events(&self) -> Option<&OwnedFd> {
        self.kernel.as_ref().map(Inotify::events)
    }

    /// Takes note of what happened in the watched directories. Returns true if it may have changed a file that is
    /// followed.
    pub(super) fn touched(&mut self) -> bool {
        let touched = match self.kernel.as_ref().map(Inotify::read) {
            None => return false,
            Some(Ok(touched)) => touched,
            Some(Err(error)) => {
                log::warn!(
                    "watching for changes of the configuration: {error}; they are looked for every second"
                );
                self.kernel = None;
                self.watched.clear();
                return true;
            }
        };
        let mut concerns = false;
        for touched in &touched {
            concerns |= self.concerns(touched);
        }
        concerns
    }

    fn concerns(&mut self, touched: &Touched) -> bool {
        let Touched { path, replaced } = touched;
        // The kernel lost count.
        let Some(path) = path else { return true };
        let wanted = path.parent().and_then(|parent| self.watched.get(parent));
        let name = path.file_name().unwrap_or_default();
        let concerns = self.watched.contains_key(path)
            || wanted.is_some_and(|in_it| in_it.wanted.everything || in_it.wanted.names.contains(name));
        if *replaced {
            // A directory that went away and came back may even have the inode that it had before.
            self.forget(path);
        }
        concerns
    }

    /// Makes the next [`Self::watch_the_way_to`] watch everything anew, for what may have been lost in silence.
    pub(super) fn renew(&mut self) {
        for path in self.watched.keys().cloned().collect::<Vec<_>>() {
            self.forget(&path);
        }
    }

    /// Watches every directory on the way to each of these files, and no others.
    pub(super) fn watch_the_way_to(&mut self, files: &[&Path]) {
        // What appears between looking and watching is not told. So look again until nothing new was watched; each
        // turn gets further along the way, and a way that changes all the time is looked at later anyway.
        for _ in 0..8 {
            let wanted = way_to(files);
            if !self.watch(wanted) {
                return;
            }
        }
    }

    /// Whether a directory is watched now that was not before.
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
            match kernel.watch(&path) {
                Ok(()) => {
                    self.unwatched.remove(&path);
                    self.watched.insert(path, Watched { identity, wanted });
                    added = true;
                }
                // Of a directory further up it is enough that its files are looked at now and then.
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

    /// Watches neither a directory nor what lies below it any longer.
    fn forget(&mut self, path: &Path) {
        let below: Vec<_> = self.watched.keys().filter(|known| known.starts_with(path)).cloned().collect();
        for path in below {
            self.watched.remove(&path);
            if let Some(kernel) = &mut self.kernel {
                kernel.unwatch(&path);
            }
        }
    }
}

impl std::fmt::Debug for Directories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kernel: _, watched, unwatched } = self;
        f.debug_struct("Directories").field("watched", watched).field("unwatched", unwatched).finish()
    }
}

/// The directories on the way to each of these files, with what counts in each.
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
