//! The identity file `.volhost/backend.json`, which makes a directory a backend: written once and then only read.
//!
//! Nothing here knows the catalog: the caller says which identity it expects.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::model::timestamp;
use rustix::fs::{AtFlags, FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::backend::error::BackendError;
use crate::backend::handle::{open_beneath, unfinished};
use crate::backend::layout::{IDENTITY, META_DIR, UNFINISHED_IDENTITY};
use crate::backend::root::Root;
use crate::model::backend::{BackendId, BackendName};

/// The length that no identity file exceeds.
const MAX_LENGTH: u64 = 64 * 1024;

/// The content of `.volhost/backend.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The identity.
    pub id: BackendId,
    /// The backend's name at that time; another map may have another name for it.
    pub name: String,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// The identity that an operation expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// This identity: with any other one the backend is offline.
    This(BackendId),
    /// The catalog has none for this backend: it is offline until it is initialised or adopted, and the reason says
    /// which of the two.
    Unknown,
    /// Any identity, or none: for initialising and adopting. Such an operation does not change the backend's health.
    Nothing,
}

/// The file's form.
#[derive(Serialize, Deserialize)]
struct Form {
    version: u32,
    id: String,
    name: String,
    created_at: String,
}

/// Returns the identity in a directory as any host sees it, of whichever backend; `None` if it has none. For diagnosis
/// only: no operation on a backend may rely on it.
///
/// # Errors
/// The file cannot be read; the error's message names it.
pub fn identity_at(directory: &Path) -> Result<Option<Identity>, std::io::Error> {
    let path = directory.join(META_DIR).join(IDENTITY);
    let named = |why: &dyn std::fmt::Display| format!("{} {why}", path.display());
    match crate::files::read_at_most(&path, crate::files::SMALL) {
        Ok(bytes) => parse(&String::from_utf8_lossy(&bytes))
            .map(Some)
            .map_err(|why| std::io::Error::other(named(&why))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let why = named(&format_args!("cannot be read: {error}"));
            Err(std::io::Error::new(error.kind(), why))
        }
    }
}

impl Root {
    /// Returns the root's identity; `None` if it has none. An identity that cannot be read is an error, never `None`.
    pub fn identity(&self) -> Result<Option<Identity>, BackendError> {
        let Some(meta) = self.dir.open(META_DIR)? else { return Ok(None) };
        let path = meta.path.join(IDENTITY);
        let fd = match open_beneath(&meta.fd, IDENTITY, OFlags::RDONLY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(BackendError::io("open", &path, errno)),
        };
        let text = read(fd).map_err(|errno| BackendError::io("read", &path, errno))?;
        parse(&text).map(Some).map_err(|why| BackendError::Offline {
            backend: self.backend.clone(),
            reason: format!("{} {why}", path.display()),
        })
    }

    /// Makes this root the backend `id`, durably. Writing the same identity again changes nothing; another identity is
    /// never replaced. The caller has checked that the root may become a backend, for example that it is empty.
    pub fn write_identity(&self, id: BackendId, name: &BackendName) -> Result<(), BackendError> {
        let meta = self.dir.made(META_DIR)?;
        if let Some(found) = self.identity()? {
            return self.accept(id, &found);
        }
        meta.remove_unfinished(UNFINISHED_IDENTITY)?;
        let unfinished = unfinished(UNFINISHED_IDENTITY);
        let path = meta.path.join(&unfinished);
        meta.write_new(&unfinished, |file| file.write_all(compose(id, name).as_bytes()))?;
        match crate::files::rename_file_no_replace(&meta.fd, &*unfinished, &meta.fd, IDENTITY) {
            Ok(()) => {}
            // Another volhost on the same share was faster.
            Err(Errno::EXIST) => {
                let _ = rustix::fs::unlinkat(&meta.fd, &*unfinished, AtFlags::empty());
                let found =
                    self.identity()?.ok_or(BackendError::Missing { path: meta.path.join(IDENTITY) })?;
                return self.accept(id, &found);
            }
            Err(errno) => return Err(BackendError::uncertain("rename", &path, errno)),
        }
        meta.sync()?;
        self.dir.sync()
    }

    fn accept(&self, id: BackendId, found: &Identity) -> Result<(), BackendError> {
        if found.id == id {
            return Ok(());
        }
        Err(BackendError::Identified {
            backend: self.backend.clone(),
            path: self.path().into(),
            found: found.id,
        })
    }

    /// Refuses a root that is not the expected one. The error gives the reason and the remedy.
    pub(super) fn check(&self, expect: Expect) -> Result<(), BackendError> {
        let offline = |reason| Err(BackendError::Offline { backend: self.backend.clone(), reason });
        let (path, name) = (self.path().display(), &self.backend);
        let found = match expect {
            Expect::Nothing => return Ok(()),
            Expect::This(_) | Expect::Unknown => match self.identity() {
                Ok(found) => found,
                Err(offline @ BackendError::Offline { .. }) => return Err(offline),
                Err(error) => return offline(crate::error::chain(&error)),
            },
        };
        match (expect, found) {
            (Expect::This(id), Some(found)) if found.id == id => Ok(()),
            (Expect::This(id), Some(found)) => offline(format!(
                "{path} holds another backend (id {}), not the one this catalog knows (id {id}): is the right share \
                 mounted? `volhost backend adopt {name}` takes it over",
                found.id
            )),
            (Expect::This(_), None) => {
                offline(format!("{path} has no {META_DIR}/{IDENTITY}; is the share mounted?"))
            }
            (_, Some(found)) => offline(format!(
                "{path} holds a backend that this catalog does not know (id {}): is the right share mounted? \
                 `volhost backend adopt {name}` takes it over",
                found.id
            )),
            (_, None) if self.is_empty().unwrap_or(false) => offline(format!(
                "{path} is empty and no backend yet: `volhost backend init {name}` makes it one"
            )),
            (_, None) => offline(format!(
                "{path} is not empty and has no {META_DIR}/{IDENTITY}: is the share mounted? `volhost backend init {name}` \
                 makes it a backend"
            )),
        }
    }
}

fn read(fd: OwnedFd) -> Result<String, Errno> {
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut bytes = Vec::new();
    File::from(fd)
        .take(MAX_LENGTH)
        .read_to_end(&mut bytes)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // Text that is not UTF-8 is not JSON either; the parser reports that.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn compose(id: BackendId, name: &BackendName) -> String {
    let now = OffsetDateTime::now_utc();
    let form = Form {
        version: 1,
        id: id.to_string(),
        name: name.to_string(),
        // A machine's clock shows a year that RFC 3339 can express.
        created_at: timestamp::rfc3339_exact(now),
    };
    let mut text = serde_json::to_string(&form).unwrap_or_default();
    text.push('\n');
    text
}

/// Reads the file's text. The error is the end of a sentence that begins with the file's path.
fn parse(text: &str) -> Result<Identity, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let garbled =
        |why: &dyn std::fmt::Display| format!("is not understood ({why}); restore it from a backup");
    let Version { version } = serde_json::from_str(text).map_err(|error| garbled(&error))?;
    if version != 1 {
        return Err(format!("is of version {version}: a newer volhost wrote it"));
    }
    let Form { version: _, id, name, created_at } =
        serde_json::from_str(text).map_err(|error| garbled(&error))?;
    Ok(Identity {
        id: id.parse().map_err(|error| garbled(&error))?,
        name,
        created_at: timestamp::parse(&created_at).map_err(|error| garbled(&error))?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::backend::tests::{backend_name, open};
    use volhost_test_fuse::{Op, ScratchFs};

    #[test]
    fn an_identity_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert_eq!(root.identity().unwrap(), None);
        let (id, name) = (BackendId::random(), backend_name("fast"));
        // A crash left this behind.
        std::fs::create_dir(dir.path().join(META_DIR)).unwrap();
        std::fs::write(dir.path().join(META_DIR).join(UNFINISHED_IDENTITY), "{").unwrap();
        assert!(root.is_empty().unwrap());
        root.write_identity(id, &name).unwrap();
        let written = root.identity().unwrap().unwrap();
        assert_eq!((written.id, &*written.name), (id, "fast"));
        assert!(OffsetDateTime::now_utc() - written.created_at < time::Duration::minutes(1));
        assert!(!root.is_empty().unwrap());
        root.write_identity(id, &name).unwrap();
        let refused = root.write_identity(BackendId::random(), &name).unwrap_err();
        assert!(matches!(refused, BackendError::Identified { found, .. } if found == id), "{refused}");
        assert_eq!(root.identity().unwrap().unwrap(), written);
        let file = dir.path().join(META_DIR).join(IDENTITY);
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["id"], id.to_string());
        assert_eq!(std::fs::read_dir(dir.path().join(META_DIR)).unwrap().count(), 1);
    }

    /// Checks storage like NFS, where a rename cannot be told to spare an existing file.
    #[test]
    fn another_ones_identity_stays_where_no_rename_spares_it() {
        let Some(storage) = ScratchFs::mount() else { return };
        let (ours, theirs, name) = (BackendId::random(), BackendId::random(), backend_name("fast"));
        storage.control().refuse_rename_flags(true);
        storage.control().hang_on(Op::Rename, true);
        std::thread::scope(|threads| {
            let late = threads.spawn(|| open(storage.at()).write_identity(ours, &name));
            assert!(storage.control().wait_for_hanging(1, std::time::Duration::from_secs(20)));
            // Another machine with the same storage writes its identity.
            std::fs::write(storage.backing().join(META_DIR).join(IDENTITY), compose(theirs, &name)).unwrap();
            storage.control().hang_on(Op::Rename, false);
            let refused = late.join().unwrap().unwrap_err();
            assert!(
                matches!(refused, BackendError::Identified { found, .. } if found == theirs),
                "{refused}"
            );
        });
        let meta = storage.backing().join(META_DIR);
        assert_eq!(identity_at(storage.backing()).unwrap().unwrap().id, theirs);
        assert_eq!(std::fs::read_dir(&meta).unwrap().count(), 1);
        // Without the other one, it is the first.
        std::fs::remove_file(meta.join(IDENTITY)).unwrap();
        let root = open(storage.at());
        root.write_identity(ours, &name).unwrap();
        assert_eq!(root.identity().unwrap().unwrap().id, ours);
        assert_eq!(std::fs::read_dir(&meta).unwrap().count(), 1);
    }

    #[test]
    fn what_a_new_file_system_holds_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert!(root.is_empty().unwrap());
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert!(root.is_empty().unwrap());
        std::fs::create_dir(dir.path().join(".Trash-0")).unwrap();
        assert!(!root.is_empty().unwrap());
    }

    #[test]
    fn an_identity_that_cannot_be_read_is_never_none() {
        let (id, name) = (BackendId::random(), backend_name("fast"));
        let valid = compose(id, &name);
        let cases = [
            ("", "is not understood"),
            ("{}", "is not understood"),
            (&*valid.replace(&id.to_string(), "x"), "is not understood"),
            (&*valid.replace("\"version\":1", "\"version\":2"), "is of version 2: a newer volhost wrote it"),
            (&*"9".repeat(100_000), "is not understood"),
        ];
        for (text, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let root = open(dir.path());
            std::fs::create_dir(dir.path().join(META_DIR)).unwrap();
            std::fs::write(dir.path().join(META_DIR).join(IDENTITY), text).unwrap();
            for error in [
                root.identity().unwrap_err(),
                root.check(Expect::This(id)).unwrap_err(),
                root.write_identity(id, &name).unwrap_err(),
            ] {
                assert!(matches!(error, BackendError::Offline { .. }), "{error}");
                assert!(error.to_string().contains(expected), "{error}");
            }
            assert_eq!(std::fs::read_to_string(dir.path().join(META_DIR).join(IDENTITY)).unwrap(), text);
        }
        assert_eq!(parse(&valid).unwrap().id, id);
    }

    #[test]
    fn an_identity_is_read_from_a_plain_file_only() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = BackendId::random();
        let elsewhere = open(other.path());
        elsewhere.write_identity(id, &backend_name("fast")).unwrap();
        let root = open(dir.path());
        let refused = || {
            let error = root.check(Expect::This(id)).unwrap_err();
            assert!(matches!(error, BackendError::Offline { .. }), "{error}");
        };
        symlink(other.path().join(META_DIR), dir.path().join(META_DIR)).unwrap();
        refused();
        std::fs::remove_file(dir.path().join(META_DIR)).unwrap();
        std::fs::create_dir(dir.path().join(META_DIR)).unwrap();
        let file = dir.path().join(META_DIR).join(IDENTITY);
        symlink(other.path().join(META_DIR).join(IDENTITY), &file).unwrap();
        refused();
        std::fs::remove_file(&file).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR).unwrap();
        refused();
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        refused();
    }
}
