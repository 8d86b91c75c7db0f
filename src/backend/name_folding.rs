//! Under which names a backend's storage finds a directory: some storage takes two different names for one.
//!
//! Volume names are ASCII, so that Unicode normalisation makes no two of them one, whatever the storage does. What
//! can is case folding (CIFS, vfat, ext4 with `casefold`) and dots that are dropped at the end of a name (vfat).

use std::fmt;
use std::path::PathBuf;

use rustix::fs::{Dir, FileType, Stat};

use crate::backend::directory::{Handle, META_DIR, Root};
use crate::backend::error::BackendError;
use crate::backend::volumes::{is_directory, kind, same};
use crate::model::volume::VolumeName;

/// How a file system tells names apart. The default tells all of them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Naming {
    folds_case: bool,
    drops_dots: bool,
}

impl Naming {
    /// Takes for one whatever any known storage does.
    pub const LOOSE: Self = Self { folds_case: true, drops_dots: true };

    /// Returns true if it tells all names apart.
    #[must_use]
    pub fn is_exact(self) -> bool {
        self == Self::default()
    }

    /// Returns true if it takes these two names for one.
    #[must_use]
    pub fn is_same(self, one: &VolumeName, other: &VolumeName) -> bool {
        let cut = |name: &VolumeName| {
            if self.drops_dots { name.as_str().trim_end_matches('.').len() } else { name.as_str().len() }
        };
        let (one, other) = (one.as_str().get(..cut(one)), other.as_str().get(..cut(other)));
        match (one, other) {
            (Some(one), Some(other)) if self.folds_case => one.eq_ignore_ascii_case(other),
            (one, other) => one == other,
        }
    }

    /// Its word, for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self { folds_case: false, drops_dots: false } => "exact",
            Self { folds_case: true, drops_dots: false } => "case-insensitive",
            Self { folds_case: false, drops_dots: true } => "final dots dropped",
            Self { folds_case: true, drops_dots: true } => "case-insensitive, final dots dropped",
        }
    }
}

/// The end of a sentence that begins with the storage.
impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self { folds_case: false, drops_dots: false } => "tells all names apart",
            Self { folds_case: true, drops_dots: false } => "does not tell upper case from lower",
            Self { folds_case: false, drops_dots: true } => "drops dots at the end of a name",
            Self { folds_case: true, drops_dots: true } => {
                "does not tell upper case from lower and drops dots at the end of a name"
            }
        })
    }
}

/// What a volume that adopts the directory of its name would get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Adoptable {
    /// A directory that is listed under exactly that name.
    Directory {
        /// Other names that lead to the same directory.
        same: Vec<VolumeName>,
    },
    /// A directory that the storage lists under another name.
    ListedAs(String),
    /// Nothing.
    Missing,
    /// What stands there is no directory, but this.
    NotADirectory(&'static str),
}

impl Handle {
    /// How names are told apart here. Looks at the name of `.volhost` alone, which every backend has, and writes nothing.
    pub(super) fn naming(&self) -> Result<Naming, BackendError> {
        let Some(meta) = self.stat(META_DIR)? else { return Ok(Naming::default()) };
        // An error about a name that no file here may have says that it is not this one.
        let is_house =
            |name| self.stat(name).is_ok_and(|found| found.is_some_and(|found| same(&found, &meta)));
        Ok(Naming { folds_case: is_house(".VOLHOST"), drops_dots: is_house(".volhost.") })
    }

    /// The name under which the entry that a name leads to is listed, where that is another one.
    pub(super) fn listed_otherwise(&self, name: &str) -> Result<Option<String>, BackendError> {
        if self.naming()?.is_exact() {
            return Ok(None);
        }
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        Ok(match self.list(name, &stat)? {
            (true, _) => None,
            (false, others) => others.into_iter().next(),
        })
    }

    /// Whether exactly that name is listed, and the other entries that have the inode of what it leads to.
    fn list(&self, name: &str, stat: &Stat) -> Result<(bool, Vec<String>), BackendError> {
        let unreadable = |errno| BackendError::io("list", &self.path, errno);
        let (mut is_listed, mut others) = (false, Vec::new());
        let mut entries = Dir::read_from(&self.fd).map_err(unreadable)?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(unreadable)?;
            if entry.file_name().to_bytes() == name.as_bytes() {
                is_listed = true;
            } else if entry.ino() == stat.st_ino {
                others.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        Ok((is_listed, others))
    }
}

impl Root {
    /// How names are told apart below it.
    pub fn naming(&self) -> Result<Naming, BackendError> {
        self.dir.naming()
    }

    /// What a volume of that name would adopt. Of `alike`, the names that may lead to the same directory, those that do
    /// are told, and any other entry that is the same directory, such as one end of a bind mount.
    pub fn adoptable(&self, name: &VolumeName, alike: &[VolumeName]) -> Result<Adoptable, BackendError> {
        let Some(stat) = self.dir.stat(name.as_str())? else { return Ok(Adoptable::Missing) };
        if !is_directory(&stat) {
            return Ok(Adoptable::NotADirectory(kind(FileType::from_raw_mode(stat.st_mode))));
        }
        let (is_listed, others) = self.dir.list(name.as_str(), &stat)?;
        if !is_listed {
            let other = others.into_iter().next();
            return Ok(Adoptable::ListedAs(other.unwrap_or_else(|| "another name".to_owned())));
        }
        let listed = others.iter().filter_map(|other| VolumeName::parse(other).ok());
        let mut found = Vec::new();
        for other in listed.chain(alike.iter().cloned()).filter(|other| other != name) {
            if self.dir.stat(other.as_str())?.is_some_and(|other| same(&other, &stat)) {
                found.push(other);
            }
        }
        Ok(Adoptable::Directory { same: found })
    }

    /// The error of a name that is taken below the root.
    #[must_use]
    pub fn occupied(&self, name: &VolumeName) -> BackendError {
        occupied(&self.dir, name.as_str())
    }
}

/// The error of a name that is taken in a directory.
pub(super) fn occupied(dir: &Handle, name: &str) -> BackendError {
    let listed = dir.listed_otherwise(name).ok().flatten();
    let directory = dir.stat(name).is_ok_and(|stat| stat.is_some_and(|stat| is_directory(&stat)));
    let listed: Option<PathBuf> = listed.map(|listed| dir.path.join(listed));
    BackendError::Occupied { path: dir.path.join(name), directory, listed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::{Shaky, is_root, open, volume};

    #[test]
    fn names_are_the_same_by_what_the_storage_does() {
        let same = |naming: Naming, one, other| naming.is_same(&volume(one), &volume(other));
        let folds_case = Naming { folds_case: true, ..Naming::default() };
        let drops_dots = Naming { drops_dots: true, ..Naming::default() };
        for (one, other, exact, case, dots, loose) in [
            ("db", "db", true, true, true, true),
            ("db", "DB", false, true, false, true),
            ("db", "db.", false, false, true, true),
            ("db", "Db..", false, false, false, true),
            ("db", "db2", false, false, false, false),
            ("a.b", "ab", false, false, false, false),
        ] {
            assert_eq!(same(Naming::default(), one, other), exact, "{one} {other}");
            assert_eq!(same(folds_case, one, other), case, "{one} {other}");
            assert_eq!(same(drops_dots, one, other), dots, "{one} {other}");
            assert_eq!(same(Naming::LOOSE, one, other), loose, "{one} {other}");
        }
    }

    #[test]
    fn a_name_has_nothing_that_normalisation_or_folding_beyond_ascii_could_change() {
        for name in ["\u{e9}", "e\u{301}", "\u{17f}", "\u{212a}"] {
            assert!(VolumeName::parse(name).is_err() && VolumeName::parse(&format!("a{name}")).is_err());
        }
    }

    #[test]
    fn storage_that_tells_names_apart_is_known_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert_eq!(root.naming().unwrap(), Naming::default(), "no .volhost yet");
        // Another directory is not the same one.
        for name in [".volhost", ".VOLHOST", ".volhost.", "db", "DB"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(root.naming().unwrap(), Naming::default());
        let alike = [volume("db")];
        assert_eq!(root.adoptable(&volume("DB"), &alike).unwrap(), Adoptable::Directory { same: vec![] });
    }

    #[test]
    fn storage_that_folds_case_is_found_out_and_adopts_only_the_name_that_is_listed() {
        let Some(shaky) = Shaky::mount() else { return };
        shaky.fs.control().fold_case(true);
        let root = open(shaky.at.path());
        for name in [".volhost", "db"] {
            std::fs::create_dir(shaky.backing.path().join(name)).unwrap();
        }
        assert_eq!(root.naming().unwrap().word(), "case-insensitive");
        assert_eq!(root.adoptable(&volume("DB"), &[]).unwrap(), Adoptable::ListedAs("db".into()));
        assert_eq!(root.adoptable(&volume("db"), &[]).unwrap(), Adoptable::Directory { same: vec![] });
        let error = root.occupied(&volume("DB")).to_string();
        assert!(error.contains("/db") && !error.contains("adopt"), "{error}");
        assert!(root.occupied(&volume("db")).to_string().contains("adopt=true"));
        // Renamed by hand: the volume `db` finds it all the same.
        std::fs::rename(shaky.backing.path().join("db"), shaky.backing.path().join("DB")).unwrap();
        let adoptable = root.adoptable(&volume("DB"), &[volume("db")]).unwrap();
        assert_eq!(adoptable, Adoptable::Directory { same: vec![volume("db")] });
    }

    #[test]
    fn a_bind_mount_of_a_directory_is_the_same_directory() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (db, other) = (dir.path().join("db"), dir.path().join("other"));
        std::fs::create_dir(&db).unwrap();
        std::fs::create_dir(&other).unwrap();
        let _mounted = crate::backend::tests::Mounted::bind(&db, &other);
        let adoptable = open(dir.path()).adoptable(&volume("other"), &[]).unwrap();
        assert_eq!(adoptable, Adoptable::Directory { same: vec![volume("db")] });
    }
}
