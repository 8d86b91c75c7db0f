//! Writing spec files: whole or not at all, only when something changed, and only over what volhost itself wrote.
//!
//! What was written is remembered, path and content, in a file of our own beside the catalog. The content is noted
//! before the file is put in place and the older content forgotten after, so that a process that ends in between
//! leaves nothing it would later take for a stranger's.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::spec::{Format, PluginName, Rendering, Spec};
use crate::files::{self, Lock};

/// A directory in which engines look, and the memory of what was written there.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    memory: PathBuf,
}

/// What a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// There was no such file.
    Created,
    /// There was one with another content.
    Updated,
    /// There was one with this content; it was not touched.
    Unchanged,
}

/// What stands in the place of a spec file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Nothing.
    Missing,
    /// What would be written.
    Current,
    /// What volhost wrote earlier; a write replaces it.
    Outdated,
    /// What volhost did not write, or what was changed since; a write refuses.
    Stranger,
}

/// A spec file as it would be, and what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Where it goes.
    pub path: PathBuf,
    /// What would be written.
    pub content: String,
    /// What is there now.
    pub presence: Presence,
}

/// Why a spec file was not written or removed.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// There is no such file.
    #[error("there is no .{} file for the plugin {name}", format.extension())]
    Render {
        /// The plugin.
        name: PluginName,
        /// The form that was asked for.
        format: Format,
        /// Why not.
        #[source]
        source: Rendering,
    },
    /// Somebody else's file.
    #[error(
        "{} exists and is not what volhost wrote there: look at it, and if it may go, `volhost spec write --force` replaces it and `volhost spec remove --force` removes it",
        path.display()
    )]
    Stranger {
        /// The file.
        path: PathBuf,
    },
    /// The memory cannot be read, so that nothing is known to be ours.
    #[error(
        "{} cannot be read as the record of the spec files that volhost wrote: move it away, then `volhost spec write --force`",
        path.display()
    )]
    Memory {
        /// The memory's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The file system refused.
    #[error("could not {did} {}", path.display())]
    Io {
        /// What was tried.
        did: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// What volhost wrote: for each path the content that is there, or the two of which one is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    files: BTreeMap<PathBuf, Vec<String>>,
}

/// What stands at a path.
enum Found {
    Nothing,
    File(Vec<u8>),
    /// A symlink, a directory or the like, which volhost never writes.
    Other,
}

impl Store {
    /// `dir` is where engines look; `memory` is a file in a directory of our own. Neither need exist.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, memory: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), memory: memory.into() }
    }

    /// Where a plugin's spec file goes.
    #[must_use]
    pub fn path(&self, name: &PluginName, format: Format) -> PathBuf {
        self.dir.join(name.file(format))
    }

    /// Writes a spec file, and then removes those that volhost wrote under other names, formats or directories.
    ///
    /// A file that volhost did not write, a symlink among them, is left and is an error, unless `force`d. One that
    /// holds just what would be written counts as ours.
    pub fn write(&self, spec: &Spec, format: Format, force: bool) -> Result<Written, SpecError> {
        let Shown { path, content, .. } = self.rendered(spec, format)?;
        let _held = self.lock()?;
        let mut memory = self.remembered()?;
        self.sweep(&memory, [&path]);
        let found = look(&path)?;
        let known = memory.files.get(&path).cloned().unwrap_or_default();
        let (done, before) = match presence(&found, &known, &content) {
            Presence::Current => (Written::Unchanged, None),
            Presence::Missing => (Written::Created, None),
            Presence::Stranger if !force => return Err(SpecError::Stranger { path }),
            Presence::Outdated | Presence::Stranger => (Written::Updated, text_of(&found)),
        };
        if done != Written::Unchanged {
            let either = before.into_iter().chain([content.clone()]).collect();
            memory.files.insert(path.clone(), either);
            self.remember(&memory)?;
            files::make_dir(&self.dir, 0o755).map_err(failed("make", &self.dir))?;
            replace(&path, content.as_bytes(), 0o644)?;
        }
        let mut after = Memory::default();
        after.files.insert(path.clone(), vec![content]);
        for (old, known) in memory.files.iter().filter(|(old, _)| **old != path) {
            remove_ours(old, known)?;
        }
        if after != self.remembered()? {
            self.remember(&after)?;
        }
        Ok(done)
    }

    /// Returns true if there is no file, and volhost does not remember to have written one: the operator had it
    /// removed.
    pub fn is_taken_back(&self, path: &Path) -> Result<bool, SpecError> {
        Ok(matches!(look(path)?, Found::Nothing) && !self.remembered()?.files.contains_key(path))
    }

    /// What would be written, and what is there. Changes nothing.
    pub fn show(&self, spec: &Spec, format: Format) -> Result<Shown, SpecError> {
        let mut shown = self.rendered(spec, format)?;
        let memory = self.remembered()?;
        let known = memory.files.get(&shown.path).cloned().unwrap_or_default();
        shown.presence = presence(&look(&shown.path)?, &known, &shown.content);
        Ok(shown)
    }

    /// Removes every spec file that volhost wrote, and says which were there.
    ///
    /// One that was changed since, or a stranger's under the plugin's name in this directory, is left and is an error,
    /// unless `force`d.
    pub fn remove(&self, name: &PluginName, force: bool) -> Result<Vec<PathBuf>, SpecError> {
        // Where nothing was ever written there need not be a directory to lock in.
        let own = Format::ALL.map(|format| self.path(name, format));
        let memory = self.remembered()?;
        let mut present = Vec::new();
        for path in &own {
            present.extend((!matches!(look(path)?, Found::Nothing)).then_some(path));
        }
        if memory.files.is_empty() && present.is_empty() {
            return Ok(Vec::new());
        }
        let _held = self.lock()?;
        let memory = self.remembered()?;
        self.sweep(&memory, &own);
        let mut removed = Vec::new();
        for (path, known) in &memory.files {
            if remove_ours(path, known)? {
                removed.push(path.clone());
            }
        }
        self.remember(&Memory::default())?;
        for path in own {
            match (look(&path)?, force) {
                (Found::Nothing, _) => {}
                (_, false) => return Err(SpecError::Stranger { path }),
                (_, true) => {
                    delete(&path)?;
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }

    fn rendered(&self, spec: &Spec, format: Format) -> Result<Shown, SpecError> {
        let content = spec.render(format).map_err(|source| SpecError::Render {
            name: spec.name.clone(),
            format,
            source,
        })?;
        Ok(Shown { path: self.path(&spec.name, format), content, presence: Presence::Missing })
    }

    fn remembered(&self) -> Result<Memory, SpecError> {
        match files::read_small(&self.memory).map_err(failed("read", &self.memory))? {
            Some(text) => serde_json::from_slice(&text)
                .map_err(|source| SpecError::Memory { path: self.memory.clone(), source }),
            None => Ok(Memory::default()),
        }
    }

    fn remember(&self, memory: &Memory) -> Result<(), SpecError> {
        let text = serde_json::to_vec_pretty(memory)
            .map_err(|error| failed("write", &self.memory)(io::Error::other(error)))?;
        replace(&self.memory, &text, 0o600)
    }

    /// Removes what a process left that was killed while it wrote, from beside the memory, the files in it and these. The
    /// lock is held.
    fn sweep<'a>(&self, memory: &'a Memory, more: impl IntoIterator<Item = &'a PathBuf>) {
        files::sweep(&self.memory);
        memory.files.keys().chain(more).for_each(|path| files::sweep(path));
    }

    /// Keeps other processes from writing with the same memory while it is held.
    fn lock(&self) -> Result<Lock, SpecError> {
        if let Some(dir) = self.memory.parent() {
            files::make_dir(dir, 0o700).map_err(failed("make", dir))?;
        }
        let mut path = self.memory.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        Lock::acquire(&path).map_err(failed("lock", &path))
    }
}

fn presence(found: &Found, known: &[String], wanted: &str) -> Presence {
    match found {
        Found::Nothing => Presence::Missing,
        Found::Other => Presence::Stranger,
        Found::File(content) if content == wanted.as_bytes() => Presence::Current,
        Found::File(content) if is_known(content, known) => Presence::Outdated,
        Found::File(_) => Presence::Stranger,
    }
}

fn is_known(content: &[u8], known: &[String]) -> bool {
    known.iter().any(|known| known.as_bytes() == content)
}

/// The text that is about to be replaced; what is none was never ours, and need not be known again.
fn text_of(found: &Found) -> Option<String> {
    match found {
        Found::File(content) => String::from_utf8(content.clone()).ok(),
        Found::Nothing | Found::Other => None,
    }
}

fn look(path: &Path) -> Result<Found, SpecError> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match std::fs::symlink_metadata(path) {
        Err(error) if missing(&error) => Ok(Found::Nothing),
        Err(error) => Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.is_file() => Ok(Found::Other),
        Ok(_) => match files::read_at_most(path, files::SMALL) {
            Err(error) if missing(&error) => Ok(Found::Nothing),
            read => read.map(Found::File).map_err(failed("read", path)),
        },
    }
}

/// Removes a file if it still is what volhost wrote, and says whether it was.
fn remove_ours(path: &Path, known: &[String]) -> Result<bool, SpecError> {
    match look(path)? {
        Found::File(content) if is_known(&content, known) => delete(path).map(|()| true),
        Found::Nothing => Ok(false),
        Found::File(_) | Found::Other => {
            log::warn!("{} is left as it is: it was changed since volhost wrote it", path.display());
            Ok(false)
        }
    }
}

fn delete(path: &Path) -> Result<(), SpecError> {
    files::remove(path).map_err(failed("remove", path))
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), SpecError> {
    files::replace(path, content, mode).map_err(failed("write", path))
}

fn failed(did: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpecError + use<> {
    let path = path.to_owned();
    move |source| SpecError::Io { did, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::super::spec::{Address, TlsFiles};
    use super::*;
    use crate::error::chain;

    struct Fixture {
        dir: tempfile::TempDir,
        store: Store,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(&dir, "docker/plugins");
        Fixture { dir, store }
    }

    fn store_in(dir: &tempfile::TempDir, plugins: &str) -> Store {
        Store::new(dir.path().join(plugins), dir.path().join("lib/specs.json"))
    }

    fn name(text: &str) -> PluginName {
        PluginName::parse(text).unwrap()
    }

    fn socket(plugin: &str, path: &str) -> Spec {
        Spec { name: name(plugin), address: Address::Unix(path.into()) }
    }

    impl Fixture {
        fn path(&self, file: &str) -> PathBuf {
            self.store.dir.join(file)
        }

        fn content(&self, file: &str) -> Option<String> {
            std::fs::read_to_string(self.path(file)).ok()
        }

        fn plant(&self, file: &str, content: &str) {
            std::fs::create_dir_all(&self.store.dir).unwrap();
            std::fs::write(self.path(file), content).unwrap();
        }

        fn files(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.store.dir).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_file_is_written_once_and_left_alone_while_nothing_changes() {
        let f = fixture();
        let spec = socket("volhost", "/run/a.sock");
        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Created);
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/a.sock\n");
        let before = f.path("volhost.spec").metadata().unwrap();
        assert_eq!(before.mode() & 0o777, 0o644);
        assert_eq!(f.store.memory.metadata().unwrap().mode() & 0o777, 0o600);
        let memory = f.store.memory.metadata().unwrap().ino();

        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Unchanged);
        let after = f.path("volhost.spec").metadata().unwrap();
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
        assert_eq!(f.store.memory.metadata().unwrap().ino(), memory, "the memory was written for nothing");

        let spec = socket("volhost", "/run/b.sock");
        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Updated);
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/b.sock\n");
        assert_eq!(f.files(), ["volhost.spec"]);
    }

    #[test]
    fn a_strangers_file_is_left_until_it_is_forced() {
        let f = fixture();
        f.plant("volhost.spec", "unix:///run/theirs.sock\n");
        let spec = socket("volhost", "/run/a.sock");
        let error = f.store.write(&spec, Format::Spec, false).unwrap_err();
        assert!(matches!(error, SpecError::Stranger { .. }), "{}", chain(&error));
        assert!(error.to_string().contains("`volhost spec write --force` replaces it"), "{error}");
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/theirs.sock\n");
        assert!(f.store.remove(&spec.name, false).is_err());
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/theirs.sock\n");

        assert_eq!(f.store.write(&spec, Format::Spec, true).unwrap(), Written::Updated);
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/a.sock\n");
    }

    #[test]
    fn a_file_that_was_edited_is_a_strangers() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        f.plant("volhost.spec", "unix:///run/edited.sock\n");
        let other = socket("volhost", "/run/b.sock");
        assert!(matches!(f.store.write(&other, Format::Spec, false), Err(SpecError::Stranger { .. })));
        assert!(matches!(f.store.remove(&other.name, false), Err(SpecError::Stranger { .. })));
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/edited.sock\n");
    }

    #[test]
    fn a_file_that_says_the_same_counts_as_ours() {
        let f = fixture();
        f.plant("volhost.spec", "unix:///run/a.sock\n");
        let spec = socket("volhost", "/run/a.sock");
        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Unchanged);
        let spec = socket("volhost", "/run/b.sock");
        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Updated);
    }

    #[test]
    fn a_symlink_is_a_strangers_and_what_it_leads_to_is_never_written() {
        let f = fixture();
        f.plant("target", "unix:///run/a.sock\n");
        std::os::unix::fs::symlink("target", f.path("volhost.spec")).unwrap();
        let spec = socket("volhost", "/run/a.sock");
        assert!(matches!(f.store.write(&spec, Format::Spec, false), Err(SpecError::Stranger { .. })));
        let other = socket("volhost", "/run/b.sock");
        f.store.write(&other, Format::Spec, true).unwrap();
        assert_eq!(f.content("target").unwrap(), "unix:///run/a.sock\n");
        assert!(f.path("volhost.spec").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn a_new_form_name_or_directory_takes_the_old_file_away() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        let json = socket("volhost", "/run/a.sock");
        assert_eq!(f.store.write(&json, Format::Json, false).unwrap(), Written::Created);
        assert_eq!(f.files(), ["volhost.json"]);
        f.store.write(&socket("netshare", "/run/a.sock"), Format::Json, false).unwrap();
        assert_eq!(f.files(), ["netshare.json"]);

        let elsewhere = store_in(&f.dir, "elsewhere");
        elsewhere.write(&socket("netshare", "/run/a.sock"), Format::Json, false).unwrap();
        assert!(f.files().is_empty());
        assert!(elsewhere.path(&name("netshare"), Format::Json).exists());
    }

    #[test]
    fn an_old_file_that_was_edited_stays() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        f.plant("volhost.spec", "edited");
        f.store.write(&socket("netshare", "/run/a.sock"), Format::Spec, false).unwrap();
        assert_eq!(f.files(), ["netshare.spec", "volhost.spec"]);
    }

    #[test]
    fn a_refused_write_takes_no_old_file_away() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        f.plant("netshare.spec", "theirs");
        assert!(f.store.write(&socket("netshare", "/run/a.sock"), Format::Spec, false).is_err());
        assert_eq!(f.files(), ["netshare.spec", "volhost.spec"]);
    }

    #[test]
    fn whatever_a_crash_leaves_is_still_ours() {
        let (old, new, newer) = ("/run/a.sock", "/run/b.sock", "/run/c.sock");
        for (in_place, written) in [(old, Written::Updated), (new, Written::Updated)] {
            let f = fixture();
            f.store.write(&socket("volhost", old), Format::Spec, false).unwrap();
            // The intent is noted; the file is the old one or the new one.
            let either = [old, new].map(|path| format!("unix://{path}\n")).to_vec();
            let files = BTreeMap::from([(f.path("volhost.spec"), either)]);
            f.store.remember(&Memory { files }).unwrap();
            f.plant("volhost.spec", &format!("unix://{in_place}\n"));
            f.plant(".volhost.spec.new", "half");
            assert_eq!(f.store.write(&socket("volhost", newer), Format::Spec, false).unwrap(), written);
            assert_eq!(f.files(), ["volhost.spec"]);
            // Also where the file is as it should be.
            f.plant(".volhost.spec.new", "half");
            assert_eq!(
                f.store.write(&socket("volhost", newer), Format::Spec, false).unwrap(),
                Written::Unchanged
            );
            assert_eq!(f.files(), ["volhost.spec"]);
        }
    }

    #[test]
    fn the_intent_is_noted_before_the_file_is_in_place() {
        let f = fixture();
        // A directory where the temporary file would be stops the write halfway.
        std::fs::create_dir_all(f.path(".volhost.spec.new")).unwrap();
        assert!(f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).is_err());
        let memory = f.store.remembered().unwrap();
        assert_eq!(memory.files[&f.path("volhost.spec")], ["unix:///run/a.sock\n"]);
    }

    #[test]
    fn remove_takes_all_that_is_ours() {
        let f = fixture();
        let spec = socket("volhost", "/run/a.sock");
        assert!(f.store.remove(&spec.name, false).unwrap().is_empty());
        assert!(!f.store.dir.exists() && !f.store.memory.exists(), "removing nothing made something");
        f.store.write(&spec, Format::Spec, false).unwrap();
        f.plant("other.spec", "theirs");
        assert_eq!(f.store.remove(&spec.name, false).unwrap(), [f.path("volhost.spec")]);
        assert!(f.store.remove(&spec.name, false).unwrap().is_empty());
        f.plant("volhost.json", "theirs");
        assert_eq!(f.store.remove(&spec.name, true).unwrap(), [f.path("volhost.json")]);
        assert_eq!(f.files(), ["other.spec"]);
    }

    #[test]
    fn show_tells_what_is_there() {
        let f = fixture();
        let spec = socket("volhost", "/run/a.sock");
        let presence = |spec: &Spec| f.store.show(spec, Format::Spec).unwrap().presence;
        assert_eq!(presence(&spec), Presence::Missing);
        f.store.write(&spec, Format::Spec, false).unwrap();
        let shown = f.store.show(&spec, Format::Spec).unwrap();
        assert_eq!(shown.presence, Presence::Current);
        assert_eq!((shown.path, shown.content.as_str()), (f.path("volhost.spec"), "unix:///run/a.sock\n"));
        assert_eq!(presence(&socket("volhost", "/run/b.sock")), Presence::Outdated);
        f.plant("volhost.spec", "edited");
        assert_eq!(presence(&spec), Presence::Stranger);
    }

    #[test]
    fn a_broken_memory_is_no_empty_one() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        std::fs::write(&f.store.memory, "{").unwrap();
        let error = f.store.write(&socket("volhost", "/run/b.sock"), Format::Spec, true).unwrap_err();
        assert!(matches!(error, SpecError::Memory { .. }), "{}", chain(&error));
        assert_eq!(f.content("volhost.spec").unwrap(), "unix:///run/a.sock\n");
    }

    #[test]
    fn what_cannot_be_said_in_a_form_is_an_error_that_writes_nothing() {
        let f = fixture();
        let tls = TlsFiles { ca: "/ca".into(), cert: "/cert".into(), key: "/key".into() };
        let address = Address::Https { host: "h".to_owned(), port: 1, tls };
        let spec = Spec { name: name("volhost"), address };
        let error = f.store.write(&spec, Format::Spec, false).unwrap_err();
        let text = chain(&error);
        assert!(
            text.starts_with("there is no .spec file for the plugin volhost: https://h:1 cannot"),
            "{text}"
        );
        assert!(!f.store.dir.exists());
    }
}
