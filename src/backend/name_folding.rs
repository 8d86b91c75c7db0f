//! Name folding: some storage takes two different names for one.
//!
//! Volume names are ASCII, so Unicode normalisation cannot make two of them one. Case folding can (CIFS, vfat, ext4 with
//! `casefold`), and so can dropping the dots at the end of a name (vfat).

use std::fmt;
use std::path::PathBuf;

use rustix::fs::{Dir, Stat};

use crate::backend::error::BackendError;
use crate::backend::handle::{Handle, is_directory, same};
use crate::backend::layout::META_DIR;
use crate::model::volume::VolumeName;

/// The differences between names that a file system ignores. The default is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NameFolding {
    folds_case: bool,
    drops_dots: bool,
}

impl NameFolding {
    /// Ignores every difference that any known storage ignores.
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

    /// Returns the word for it in JSON.
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

/// Writes the end of a sentence whose subject is the storage.
impl fmt::Display for NameFolding {
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

impl Handle {
    /// Returns how names are folded here. Looks only for other names of `.volhost`, which every backend has, and writes
    /// nothing.
    pub(super) fn name_folding(&self) -> Result<NameFolding, BackendError> {
        let Some(meta) = self.stat(META_DIR)? else { return Ok(NameFolding::default()) };
        // A name that the storage refuses is no other name of this directory.
        let is_meta =
            |name| self.stat(name).is_ok_and(|found| found.is_some_and(|found| same(&found, &meta)));
        Ok(NameFolding { folds_case: is_meta(".VOLHOST"), drops_dots: is_meta(".volhost.") })
    }

    /// Returns the name under which an entry is listed, if it differs from the name that leads to it.
    pub(super) fn listed_otherwise(&self, name: &str) -> Result<Option<String>, BackendError> {
        if self.name_folding()?.is_exact() {
            return Ok(None);
        }
        let Some(stat) = self.stat(name)? else { return Ok(None) };
        Ok(match self.list(name, &stat)? {
            (true, _) => None,
            (false, others) => others.into_iter().next(),
        })
    }

    /// Returns true if exactly that name is listed, and the other entries with the same inode.
    pub(super) fn list(&self, name: &str, stat: &Stat) -> Result<(bool, Vec<String>), BackendError> {
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

/// Returns the error for a name that is taken in a directory.
pub(super) fn occupied(dir: &Handle, name: &str) -> BackendError {
    let listed = dir.listed_otherwise(name).ok().flatten();
    let directory = dir.stat(name).is_ok_and(|stat| stat.is_some_and(|stat| is_directory(&stat)));
    let listed: Option<PathBuf> = listed.map(|listed| dir.path.join(listed));
    BackendError::Occupied { path: dir.path.join(name), directory, listed }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::tests::volume;

    #[test]
    fn names_are_the_same_by_what_the_storage_does() {
        let same = |folding: NameFolding, one, other| folding.is_same(&volume(one), &volume(other));
        let folds_case = NameFolding { folds_case: true, ..NameFolding::default() };
        let drops_dots = NameFolding { drops_dots: true, ..NameFolding::default() };
        for (one, other, exact, case, dots, loose) in [
            ("db", "db", true, true, true, true),
            ("db", "DB", false, true, false, true),
            ("db", "db.", false, false, true, true),
            ("db", "Db..", false, false, false, true),
            ("db", "db2", false, false, false, false),
            ("a.b", "ab", false, false, false, false),
        ] {
            assert_eq!(same(NameFolding::default(), one, other), exact, "{one} {other}");
            assert_eq!(same(folds_case, one, other), case, "{one} {other}");
            assert_eq!(same(drops_dots, one, other), dots, "{one} {other}");
            assert_eq!(same(NameFolding::LOOSE, one, other), loose, "{one} {other}");
        }
    }

    #[test]
    fn a_name_has_nothing_that_normalisation_or_folding_beyond_ascii_could_change() {
        for name in ["\u{e9}", "e\u{301}", "\u{17f}", "\u{212a}"] {
            assert!(VolumeName::parse(name).is_err() && VolumeName::parse(&format!("a{name}")).is_err());
        }
    }
}
