//! The kernel's word of what happens in directories, without a thread of its own: whoever waits does so on
//! [`Inotify::events`].

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// What is told of a directory: everything that may make one of its files another one, and nothing that our own reading
/// raises.
const WANTED: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What a file or a directory stays the same through.
const IN_PLACE: ReadFlags = ReadFlags::ATTRIB.union(ReadFlags::MODIFY);

/// Something happened in a watched directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Touched {
    /// To what; `None` when the kernel lost count.
    pub(super) path: Option<PathBuf>,
    /// Whether that may be another file or directory than before.
    pub(super) replaced: bool,
}

/// The directories that the kernel watches.
#[derive(Debug)]
pub(super) struct Inotify {
    events: OwnedFd,
    /// Several paths can lead to one directory, which the kernel watches once.
    paths: HashMap<i32, Vec<PathBuf>>,
}

impl Inotify {
    pub(super) fn new() -> Result<Self, Errno> {
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self { events, paths: HashMap::new() })
    }

    /// What becomes readable when there is something to [`read`](Self::read).
    pub(super) fn events(&self) -> &OwnedFd {
        &self.events
    }

    pub(super) fn watch(&mut self, directory: &Path) -> Result<(), Errno> {
        let number = inotify::add_watch(&self.events, directory, WANTED)?;
        let paths = self.paths.entry(number).or_default();
        if !paths.iter().any(|path| path == directory) {
            paths.push(directory.to_owned());
        }
        Ok(())
    }

    pub(super) fn unwatch(&mut self, directory: &Path) {
        self.paths.retain(|number, paths| {
            paths.retain(|path| path != directory);
            if paths.is_empty() {
                // The kernel may have dropped it already, together with the directory.
                let _ = inotify::remove_watch(&self.events, *number);
            }
            !paths.is_empty()
        });
    }

    /// What has happened since, without waiting for more.
    pub(super) fn read(&self) -> Result<Vec<Touched>, Errno> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&self.events, &mut buffer);
        let mut all = Vec::new();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(all),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno),
            };
            let replaced = !IN_PLACE.contains(event.events() & !ReadFlags::ISDIR);
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                all.push(Touched { path: None, replaced });
            }
            let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
            for directory in self.paths.get(&event.wd()).into_iter().flatten() {
                let path = name.map_or_else(|| directory.clone(), |name| directory.join(name));
                all.push(Touched { path: Some(path), replaced });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_happens_in_a_directory_is_told_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&file, "0").unwrap();
        let mut kernel = Inotify::new().unwrap();
        kernel.watch(dir.path()).unwrap();
        assert_eq!(kernel.read(), Ok(Vec::new()));
        fs::read(&file).unwrap();
        assert_eq!(kernel.read(), Ok(Vec::new()), "reading is nothing that happens");
        let told = |path: &Path, replaced| Touched { path: Some(path.to_owned()), replaced };
        fs::write(&file, "more").unwrap();
        let touched = kernel.read().unwrap();
        assert!(!touched.is_empty() && touched.iter().all(|one| *one == told(&file, false)), "{touched:?}");
        fs::rename(&file, &other).unwrap();
        assert_eq!(kernel.read().unwrap(), [told(&file, true), told(&other, true)]);
        kernel.unwatch(dir.path());
        fs::write(&file, "1").unwrap();
        assert_eq!(kernel.read(), Ok(Vec::new()));
        kernel.watch(dir.path()).unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        assert!(kernel.read().unwrap().contains(&told(dir.path(), true)));
        assert_eq!(kernel.watch(dir.path()), Err(Errno::NOENT));
    }
}
