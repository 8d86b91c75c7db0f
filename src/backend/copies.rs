//! The texts that a backend keeps for its owner: `.volhost/catalog.jsonl` and those that it replaced.
//!
//! What they say is the caller's business. A text is whole under its name or not there at all, and was read back
//! before it took the place of the one before, which stays beside it.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;

use crate::backend::directory::{HOUSE, Handle, Root, open_beneath};
use crate::backend::error::BackendError;
use crate::volume::name::VolumeName;

/// The newest text.
const NEWEST: &str = "catalog.jsonl";

/// The text before.
const BEFORE: &str = "catalog.jsonl.before";

/// The text while it is being written.
const UNFINISHED: &str = "catalog.jsonl.new";

/// What begins the name of a text that is kept for good.
const ASIDE: &str = "catalog.jsonl.kept-";

/// A text that lies on a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where.
    pub path: PathBuf,
    /// What it holds; bytes that are no text, or that cannot be read, are none.
    pub text: Option<String>,
}

impl Root {
    /// Every text on the backend, the newest first.
    pub fn copies(&self) -> Result<Vec<Kept>, BackendError> {
        let Some(house) = self.dir.open(HOUSE)? else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        house.for_each(|name, _| {
            names.extend(name.to_str().ok().filter(|name| name.starts_with(ASIDE)).map(str::to_owned));
            Ok(true)
        })?;
        names.sort();
        let all = [NEWEST, BEFORE].into_iter().map(str::to_owned).chain(names);
        let copies = all.filter_map(|name| {
            let bytes = read(&house, &name).transpose()?;
            Some(Kept {
                path: house.path.join(&name),
                text: bytes.ok().and_then(|b| String::from_utf8(b).ok()),
            })
        });
        Ok(copies.collect())
    }

    /// Puts a text in the place of the newest one, durably, once it was read back as it was given; the one before
    /// stays beside it. One writer at a time: the caller sees to that. With `keep`, what lies there already is first
    /// put aside for good, under that name's end.
    pub fn write_copy(&self, text: &str, keep: Option<&str>) -> Result<(), BackendError> {
        let house = self.dir.made(HOUSE)?;
        let path = house.path.join(UNFINISHED);
        let failed = |what: &'static str, errno| BackendError::io(what, &path, errno);
        let verified =
            house.write_new(UNFINISHED, text.as_bytes()).and_then(|()| match read(&house, UNFINISHED) {
                Ok(Some(found)) if found == text.as_bytes() => Ok(()),
                Ok(_) => Err(failed("read back what was written to", Errno::IO)),
                Err(errno) => Err(failed("read", errno)),
            });
        if let Err(error) = verified {
            // A full disk must not be kept full by what is of no use.
            let _ = rustix::fs::unlinkat(&house.fd, UNFINISHED, AtFlags::empty());
            return Err(error);
        }
        if let Some(end) = keep {
            put_aside(&house, &format!("{ASIDE}{end}"))?;
        }
        put_aside(&house, BEFORE)?;
        rename(&house, UNFINISHED, NEWEST).map_err(|source| failed("rename", source))?;
        house.sync()
    }

    /// The directories right below the root that bear a name that a volume could have.
    pub fn directories(&self) -> Result<Vec<VolumeName>, BackendError> {
        let mut found = Vec::new();
        self.dir.for_each(|name, kind| {
            let name = name.to_str().ok().and_then(|name| VolumeName::parse(name).ok());
            let Some(name) = name else { return Ok(true) };
            // Some file systems do not tell an entry's kind in a listing.
            let kind = match kind {
                FileType::Unknown => {
                    self.dir.stat(name.as_str())?.map_or(kind, |stat| FileType::from_raw_mode(stat.st_mode))
                }
                kind => kind,
            };
            if kind == FileType::Directory {
                found.push(name);
            }
            Ok(true)
        })?;
        found.sort_unstable();
        Ok(found)
    }
}

/// Gives the newest text another name, where there is one.
fn put_aside(house: &Handle, name: &str) -> Result<(), BackendError> {
    match rename(house, NEWEST, name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(BackendError::io("rename", &house.path.join(NEWEST), errno)),
    }
}

fn rename(house: &Handle, from: &str, to: &str) -> Result<(), Errno> {
    rustix::fs::renameat(&house.fd, from, &house.fd, to)
}

/// What a regular file holds; `None` where there is none.
fn read(house: &Handle, name: &str) -> Result<Option<Vec<u8>>, Errno> {
    let fd = match open_beneath(&house.fd, name, OFlags::RDONLY) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::open;

    fn texts(root: &Root) -> Vec<(String, Option<String>)> {
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        root.copies().unwrap().into_iter().map(|Kept { path, text }| (name(path), text)).collect()
    }

    #[test]
    fn a_text_replaces_the_newest_and_the_one_before_stays() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert_eq!(texts(&root), []);
        for text in ["one\n", "two\n", "three\n"] {
            root.write_copy(text, None).unwrap();
        }
        let pair = |name: &str, text: &str| (name.to_owned(), Some(text.to_owned()));
        assert_eq!(texts(&root), [pair(NEWEST, "three\n"), pair(BEFORE, "two\n")]);
        root.write_copy("four\n", Some("x")).unwrap();
        assert_eq!(
            texts(&root),
            [pair(NEWEST, "four\n"), pair(BEFORE, "two\n"), pair("catalog.jsonl.kept-x", "three\n")]
        );
    }

    #[test]
    fn a_link_in_a_texts_place_is_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = open(dir.path());
        root.write_copy("one\n", None).unwrap();
        let victim = other.path().join("victim");
        std::fs::write(&victim, "kept").unwrap();
        for name in [NEWEST, UNFINISHED] {
            let at = dir.path().join(HOUSE).join(name);
            let _ = std::fs::remove_file(&at);
            std::os::unix::fs::symlink(&victim, at).unwrap();
        }
        assert_eq!(texts(&root), [(NEWEST.to_owned(), None)]);
        root.write_copy("two\n", None).unwrap();
        assert_eq!(texts(&root)[0], (NEWEST.to_owned(), Some("two\n".to_owned())));
        assert_eq!(std::fs::read_to_string(victim).unwrap(), "kept");
    }

    #[test]
    fn only_directories_with_a_volumes_name_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        for name in ["db", "web", ".hidden", "lost+found", "a b"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("db", dir.path().join("link")).unwrap();
        let names: Vec<_> = root.directories().unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["db", "web"]);
    }
}
