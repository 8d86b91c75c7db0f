//! The copies that a backend stores for the service: `.volhost/catalog.jsonl` and the copies that it replaced.
//!
//! Their content is the caller's business. A copy is whole under its name, or not there at all. It is read back before
//! it replaces the previous one, which stays beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use crate::backend::error::BackendError;
use crate::backend::handle::{Handle, kind as words_for, open_beneath, unfinished};
use crate::backend::layout::META_DIR;
use crate::backend::root::Root;
use crate::model::volume::VolumeName;

/// The newest copy.
const NEWEST: &str = "catalog.jsonl";

/// The previous copy.
const BEFORE: &str = "catalog.jsonl.before";

/// The prefix of a copy while it is being written. Each attempt has its own name: a writer that stood still must not
/// find another writer's half-written copy under its own name.
const UNFINISHED: &str = "catalog.jsonl.new";

/// The prefix of a copy that is kept for good.
const KEPT_PREFIX: &str = "catalog.jsonl.kept-";

/// A copy that was found on a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCopy<T> {
    /// Where it lies.
    pub path: PathBuf,
    /// The reader's result; `None` if the copy cannot be opened.
    pub content: Option<T>,
}

impl<T> StoredCopy<T> {
    /// Returns true for the newest copy, which the next one replaces.
    pub fn is_newest(&self) -> bool {
        self.path.file_name().is_some_and(|name| name == NEWEST)
    }
}

impl Root {
    /// Returns every copy on the backend, read one after the other, the newest first.
    pub fn copies<T>(
        &self,
        mut read: impl FnMut(&mut dyn BufRead) -> T,
    ) -> Result<Vec<StoredCopy<T>>, BackendError> {
        let Some(meta) = self.dir.open(META_DIR)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        meta.for_each(|name, _| {
            names.extend(name.to_str().ok().filter(|name| name.starts_with(KEPT_PREFIX)).map(str::to_owned));
            Ok(true)
        })?;
        names.sort();
        let all = [NEWEST, BEFORE].into_iter().map(str::to_owned).chain(names);
        let copies = all.filter_map(|name| {
            let file = open(&meta, &name).transpose()?;
            let content = file.ok().map(|file| read(&mut BufReader::new(file)));
            Some(StoredCopy { path: meta.path.join(&name), content })
        });
        Ok(copies.collect())
    }

    /// Replaces the newest copy durably by what `write` writes, once `is_whole` has accepted what was read back. The
    /// previous copy stays beside it.
    ///
    /// The caller makes sure that there is one writer at a time. Files that an earlier writer left unfinished are
    /// removed, even if it is still writing: it must not replace this copy by an older one. With `keep`, the newest
    /// copy is first put aside for good, under a name with that suffix.
    pub fn write_copy(
        &self,
        keep: Option<&str>,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
        is_whole: impl FnOnce(&mut dyn BufRead) -> bool,
    ) -> Result<(), BackendError> {
        let meta = self.dir.made(META_DIR)?;
        meta.remove_unfinished(UNFINISHED)?;
        let unfinished = unfinished(UNFINISHED);
        let path = meta.path.join(&unfinished);
        let failed = |what: &'static str, errno| BackendError::io(what, &path, errno);
        let verified = meta.write_new(&unfinished, write).and_then(|()| {
            let file = open(&meta, &unfinished).map_err(|errno| failed("read", errno))?;
            let whole = file.is_some_and(|file| is_whole(&mut BufReader::new(file)));
            if whole { Ok(()) } else { Err(failed("read back what was written to", Errno::IO)) }
        });
        if let Err(error) = verified {
            // A useless file must not keep a full disk full.
            let _ = rustix::fs::unlinkat(&meta.fd, &*unfinished, AtFlags::empty());
            return Err(error);
        }
        if let Some(end) = keep {
            put_aside(&meta, &format!("{KEPT_PREFIX}{end}"))?;
        }
        put_aside(&meta, BEFORE)?;
        rename(&meta, &unfinished, NEWEST).map_err(|source| failed("rename", source))?;
        meta.sync()
    }

    /// Returns the entries right below the root whose names are valid volume names: `None` for a directory, else the
    /// entry's kind.
    pub fn entries(&self) -> Result<BTreeMap<VolumeName, Option<&'static str>>, BackendError> {
        let mut found = BTreeMap::new();
        self.dir.for_each(|name, kind| {
            let name = name.to_str().ok().and_then(|name| VolumeName::parse(name).ok());
            let Some(name) = name else { return Ok(true) };
            // Some file systems do not give an entry's kind in a listing.
            let kind = match kind {
                FileType::Unknown => {
                    self.dir.stat(name.as_str())?.map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode))
                }
                kind => kind,
            };
            found.insert(name, (kind != FileType::Directory).then(|| words_for(kind)));
            Ok(true)
        })?;
        Ok(found)
    }
}

/// Gives the newest copy another name, if there is one.
fn put_aside(meta: &Handle, name: &str) -> Result<(), BackendError> {
    match rename(meta, NEWEST, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(BackendError::io("rename", &meta.path.join(NEWEST), errno)),
    }
}

fn rename(meta: &Handle, from: &str, to: &str) -> Result<(), Errno> {
    rustix::fs::renameat(&meta.fd, from, &meta.fd, to)
}

/// Opens a regular file for reading; `None` if there is none.
fn open(meta: &Handle, name: &str) -> Result<Option<File>, Errno> {
    let fd = match open_beneath(&meta.fd, name, OFlags::RDONLY) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(Some(File::from(fd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::open;

    fn texts(root: &Root) -> Vec<(String, Option<String>)> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let kept = root.copies(|input| io::read_to_string(input).unwrap()).unwrap();
        kept.into_iter().map(|StoredCopy { path, content }| (name(path), content)).collect()
    }

    fn write(root: &Root, text: &str, keep: Option<&str>) {
        let is_whole = |input: &mut dyn BufRead| io::read_to_string(input).unwrap() == text;
        root.write_copy(keep, |file| file.write_all(text.as_bytes()), is_whole).unwrap();
    }

    #[test]
    fn a_text_replaces_the_newest_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert_eq!(texts(&root), []);
        for text in ["one\n", "two\n", "three\n"] {
            write(&root, text, None);
        }
        let pair = |name: &str, text: &str| (name.to_owned(), Some(text.to_owned()));
        assert_eq!(texts(&root), [pair(NEWEST, "three\n"), pair(BEFORE, "two\n")]);
        write(&root, "four\n", Some("x"));
        assert_eq!(
            texts(&root),
            [pair(NEWEST, "four\n"), pair(BEFORE, "two\n"), pair("catalog.jsonl.kept-x", "three\n")]
        );
    }

    #[test]
    fn what_was_not_written_whole_takes_nobodys_place() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        write(&root, "one\n", None);
        let short = root.write_copy(None, |file| file.write_all(b"tw"), |_| false);
        let broken = root.write_copy(None, |_| Err(io::ErrorKind::StorageFull.into()), |_| true);
        assert!(short.is_err() && broken.is_err());
        assert_eq!(texts(&root), [(NEWEST.to_owned(), Some("one\n".to_owned()))]);
        assert_eq!(std::fs::read_dir(dir.path().join(META_DIR)).unwrap().count(), 1, "only the text itself");
    }

    #[test]
    fn a_writer_that_another_one_overtook_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let overtaken = root.write_copy(
            None,
            |file| {
                // While this one writes, another one begins and ends.
                write(&root, "newer\n", None);
                file.write_all(b"older\n")
            },
            |_| true,
        );
        assert!(overtaken.is_err());
        assert_eq!(texts(&root), [(NEWEST.to_owned(), Some("newer\n".to_owned()))]);
    }

    #[test]
    fn a_link_in_a_texts_place_is_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        write(&root, "one\n", None);
        let victim = other.path().join("victim");
        std::fs::write(&victim, "kept").unwrap();
        for name in [NEWEST, UNFINISHED] {
            let at = dir.path().join(META_DIR).join(name);
            let _ = std::fs::remove_file(&at);
            std::os::unix::fs::symlink(&victim, at).unwrap();
        }
        assert_eq!(texts(&root), [(NEWEST.to_owned(), None)]);
        write(&root, "two\n", None);
        assert_eq!(texts(&root)[0], (NEWEST.to_owned(), Some("two\n".to_owned())));
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "kept");
    }

    #[test]
    fn what_bears_a_volumes_name_is_listed_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        for name in ["db", "web", ".hidden", "lost+found", "a b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("db", dir.path().join("link")).unwrap();
        let entries = root.entries().unwrap();
        let told: Vec<_> = entries.iter().map(|(name, other)| (name.as_str(), *other)).collect();
        assert_eq!(
            told,
            [("db", None), ("file", Some("a file")), ("link", Some("a symbolic link")), ("web", None)]
        );
    }
}
