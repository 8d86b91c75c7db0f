//! Writes spec files: whole or not at all, only if something changed, and only over files that volhost itself wrote.
//!
//! The new content is put into the record before the file is put in place, and the older content is dropped from it
//! afterwards, so that a process that ends in between leaves no file that it would later take for a foreign one.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{SpecError, failed};
use super::record::{Record, RecordFile};
use super::spec::{Format, PluginName, Spec};
use crate::files;

/// A directory in which engines look, and the record of the files that were written there.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    record: RecordFile,
}

/// The outcome of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// The file did not exist.
    Created,
    /// The file had another content.
    Updated,
    /// The file had this content, and was not touched.
    Unchanged,
}

/// The state of the file at a spec file's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There is no file.
    Missing,
    /// The file has the wanted content.
    Current,
    /// The file is one that volhost wrote earlier; a write replaces it.
    Outdated,
    /// The file is not one that volhost wrote, or was changed since; a write refuses to replace it.
    Foreign,
}

/// A spec file as it would be written, and the state of the existing file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The path of the file.
    pub path: PathBuf,
    /// The content that would be written.
    pub content: String,
    /// The state of the existing file.
    pub presence: Presence,
}

/// The kind of file at a path.
enum OnDisk {
    Nothing,
    File(Vec<u8>),
    /// A symlink, a directory or another kind that volhost never writes.
    Other,
}

impl Store {
    /// Returns a store. `dir` is a directory in which engines look; `record` is a file in a directory of our
    /// own. Neither need exist.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, record: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), record: RecordFile::new(record.into()) }
    }

    /// Returns the path of a plugin's spec file.
    #[must_use]
    pub fn path(&self, name: &PluginName, format: Format) -> PathBuf {
        self.dir.join(name.file(format))
    }

    /// Writes a spec file, then removes the ones that volhost wrote under other names, formats or
    /// directories.
    ///
    /// Keeps a file that volhost did not write, and any symlink, and returns an error, unless `force` is set.
    /// A file that holds exactly the wanted content counts as ours.
    pub fn write(&self, spec: &Spec, format: Format, force: bool) -> Result<Written, SpecError> {
        let Preview { path, content, .. } = self.rendered(spec, format)?;
        let _held = self.record.lock()?;
        let mut record = self.record.read()?;
        self.record.sweep(&record, [&path]);
        let found = on_disk(&path)?;
        let known = record.files.get(&path).cloned().unwrap_or_default();
        let (done, before) = match presence(&found, &known, &content) {
            Presence::Current => (Written::Unchanged, None),
            Presence::Missing => (Written::Created, None),
            Presence::Foreign if !force => return Err(SpecError::Foreign { path }),
            Presence::Outdated | Presence::Foreign => (Written::Updated, text_of(&found)),
        };
        if done != Written::Unchanged {
            let either = before.into_iter().chain([content.clone()]).collect();
            record.files.insert(path.clone(), either);
            self.record.write(&record)?;
            files::make_dir(&self.dir, 0o755).map_err(failed("make", &self.dir))?;
            files::replace(&path, content.as_bytes(), 0o644).map_err(failed("write", &path))?;
        }
        let mut after = Record::default();
        after.files.insert(path.clone(), vec![content]);
        for (old, known) in record.files.iter().filter(|(old, _)| **old != path) {
            remove_ours(old, known)?;
        }
        if after != self.record.read()? {
            self.record.write(&after)?;
        }
        Ok(done)
    }

    /// Returns true if the file does not exist and is not in the record either: the operator had it removed.
    pub fn is_withdrawn(&self, path: &Path) -> Result<bool, SpecError> {
        Ok(matches!(on_disk(path)?, OnDisk::Nothing) && !self.record.read()?.files.contains_key(path))
    }

    /// Returns what would be written and what is there. Changes nothing.
    pub fn show(&self, spec: &Spec, format: Format) -> Result<Preview, SpecError> {
        let mut shown = self.rendered(spec, format)?;
        let record = self.record.read()?;
        let known = record.files.get(&shown.path).cloned().unwrap_or_default();
        shown.presence = presence(&on_disk(&shown.path)?, &known, &shown.content);
        Ok(shown)
    }

    /// Removes every spec file that volhost wrote, and returns the ones that existed.
    ///
    /// Keeps a file that was changed since, and a foreign file under the plugin's name in this directory, and
    /// returns an error, unless `force` is set.
    pub fn remove(&self, name: &PluginName, force: bool) -> Result<Vec<PathBuf>, SpecError> {
        // If nothing was ever written, there may be no directory for the lock.
        let own = Format::ALL.map(|format| self.path(name, format));
        let record = self.record.read()?;
        let mut present = Vec::new();
        for path in &own {
            present.extend((!matches!(on_disk(path)?, OnDisk::Nothing)).then_some(path));
        }
        if record.files.is_empty() && present.is_empty() {
            return Ok(Vec::new());
        }
        let _held = self.record.lock()?;
        let record = self.record.read()?;
        self.record.sweep(&record, &own);
        let mut removed = Vec::new();
        for (path, known) in &record.files {
            if remove_ours(path, known)? {
                removed.push(path.clone());
            }
        }
        self.record.write(&Record::default())?;
        for path in own {
            match (on_disk(&path)?, force) {
                (OnDisk::Nothing, _) => {}
                (_, false) => return Err(SpecError::Foreign { path }),
                (_, true) => {
                    delete(&path)?;
                    removed.push(path);
                }
            }
        }
        Ok(removed)
    }

    fn rendered(&self, spec: &Spec, format: Format) -> Result<Preview, SpecError> {
        let content = spec.render(format).map_err(|source| SpecError::Render {
            name: spec.name.clone(),
            format,
            source,
        })?;
        Ok(Preview { path: self.path(&spec.name, format), content, presence: Presence::Missing })
    }
}

fn presence(found: &OnDisk, known: &[String], wanted: &str) -> Presence {
    match found {
        OnDisk::Nothing => Presence::Missing,
        OnDisk::Other => Presence::Foreign,
        OnDisk::File(content) if content == wanted.as_bytes() => Presence::Current,
        OnDisk::File(content) if is_known(content, known) => Presence::Outdated,
        OnDisk::File(_) => Presence::Foreign,
    }
}

fn is_known(content: &[u8], known: &[String]) -> bool {
    known.iter().any(|known| known.as_bytes() == content)
}

/// Returns the text that is about to be replaced. Other content was never ours, so it need not be recorded.
fn text_of(found: &OnDisk) -> Option<String> {
    match found {
        OnDisk::File(content) => String::from_utf8(content.clone()).ok(),
        OnDisk::Nothing | OnDisk::Other => None,
    }
}

fn on_disk(path: &Path) -> Result<OnDisk, SpecError> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match std::fs::symlink_metadata(path) {
        Err(error) if missing(&error) => Ok(OnDisk::Nothing),
        Err(error) => Err(failed("look at", path)(error)),
        Ok(metadata) if !metadata.is_file() => Ok(OnDisk::Other),
        Ok(_) => match files::read_at_most(path, files::SMALL) {
            Err(error) if missing(&error) => Ok(OnDisk::Nothing),
            read => read.map(OnDisk::File).map_err(failed("read", path)),
        },
    }
}

/// Removes a file if it still has the content that volhost wrote. Returns true if it did.
fn remove_ours(path: &Path, known: &[String]) -> Result<bool, SpecError> {
    match on_disk(path)? {
        OnDisk::File(content) if is_known(&content, known) => delete(path).map(|()| true),
        OnDisk::Nothing => Ok(false),
        OnDisk::File(_) | OnDisk::Other => {
            log::warn!("{} is left as it is: it was changed since volhost wrote it", path.display());
            Ok(false)
        }
    }
}

fn delete(path: &Path) -> Result<(), SpecError> {
    files::remove(path).map_err(failed("remove", path))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
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

        fn record(&self) -> PathBuf {
            self.dir.path().join("lib/specs.json")
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
        assert_eq!(f.record().metadata().unwrap().mode() & 0o777, 0o600);
        let record = f.record().metadata().unwrap().ino();

        assert_eq!(f.store.write(&spec, Format::Spec, false).unwrap(), Written::Unchanged);
        let after = f.path("volhost.spec").metadata().unwrap();
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
        assert_eq!(f.record().metadata().unwrap().ino(), record, "the record was written for nothing");

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
        assert!(matches!(error, SpecError::Foreign { .. }), "{}", chain(&error));
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
        assert!(matches!(f.store.write(&other, Format::Spec, false), Err(SpecError::Foreign { .. })));
        assert!(matches!(f.store.remove(&other.name, false), Err(SpecError::Foreign { .. })));
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
        assert!(matches!(f.store.write(&spec, Format::Spec, false), Err(SpecError::Foreign { .. })));
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
            // The record holds the intent; the file has the old content or the new one.
            let either = [old, new].map(|path| format!("unix://{path}\n")).to_vec();
            let files = BTreeMap::from([(f.path("volhost.spec"), either)]);
            f.store.record.write(&Record { files }).unwrap();
            f.plant("volhost.spec", &format!("unix://{in_place}\n"));
            f.plant(".volhost.spec.new", "half");
            assert_eq!(f.store.write(&socket("volhost", newer), Format::Spec, false).unwrap(), written);
            assert_eq!(f.files(), ["volhost.spec"]);
            // A temporary file is removed even if the file is as it should be.
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
        // A directory at the temporary file's path stops the write halfway.
        std::fs::create_dir_all(f.path(".volhost.spec.new")).unwrap();
        assert!(f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).is_err());
        let record = f.store.record.read().unwrap();
        assert_eq!(record.files[&f.path("volhost.spec")], ["unix:///run/a.sock\n"]);
    }

    #[test]
    fn remove_takes_all_that_is_ours() {
        let f = fixture();
        let spec = socket("volhost", "/run/a.sock");
        assert!(f.store.remove(&spec.name, false).unwrap().is_empty());
        assert!(!f.store.dir.exists() && !f.record().exists(), "removing nothing made something");
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
        assert_eq!(presence(&spec), Presence::Foreign);
    }

    #[test]
    fn a_broken_record_is_no_empty_one() {
        let f = fixture();
        f.store.write(&socket("volhost", "/run/a.sock"), Format::Spec, false).unwrap();
        std::fs::write(f.record(), "{").unwrap();
        let error = f.store.write(&socket("volhost", "/run/b.sock"), Format::Spec, true).unwrap_err();
        assert!(matches!(error, SpecError::Record { .. }), "{}", chain(&error));
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
