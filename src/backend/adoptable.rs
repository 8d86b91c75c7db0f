//! Examines a directory that a volume is to adopt.

use rustix::fs::FileType;

use crate::backend::error::BackendError;
use crate::backend::handle::{is_directory, kind, same};
use crate::backend::name_folding::occupied;
use crate::backend::root::Root;
use crate::model::volume::VolumeName;

/// The entry that a volume would adopt under its name.
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
    /// Something that is not a directory; holds its kind.
    NotADirectory(&'static str),
}

impl Root {
    /// Returns what a volume of that name would adopt. `alike` are names that may lead to the same directory; those
    /// that do are returned, together with any other entry that is the same directory, such as one end of a bind mount.
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

    /// Returns the error for a name that is taken below the root.
    #[must_use]
    pub fn occupied(&self, name: &VolumeName) -> BackendError {
        occupied(&self.dir, name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::NameFolding;
    use volhost_test_fuse::ScratchFs;

    use crate::backend::tests::{is_root, open, volume};

    #[test]
    fn storage_that_tells_names_apart_is_known_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        assert_eq!(root.name_folding().unwrap(), NameFolding::default(), "no .volhost yet");
        // Another directory is not the same one.
        for name in [".volhost", ".VOLHOST", ".volhost.", "db", "DB"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        assert_eq!(root.name_folding().unwrap(), NameFolding::default());
        let alike = [volume("db")];
        assert_eq!(root.adoptable(&volume("DB"), &alike).unwrap(), Adoptable::Directory { same: vec![] });
    }

    #[test]
    fn storage_that_folds_case_is_found_out_and_adopts_only_the_name_that_is_listed() {
        let Some(shaky) = ScratchFs::mount() else { return };
        shaky.control().fold_case(true);
        let root = open(shaky.at());
        for name in [".volhost", "db"] {
            std::fs::create_dir(shaky.backing().join(name)).unwrap();
        }
        assert_eq!(root.name_folding().unwrap().word(), "case-insensitive");
        assert_eq!(root.adoptable(&volume("DB"), &[]).unwrap(), Adoptable::ListedAs("db".into()));
        assert_eq!(root.adoptable(&volume("db"), &[]).unwrap(), Adoptable::Directory { same: vec![] });
        let error = root.occupied(&volume("DB")).to_string();
        assert!(error.contains("/db") && !error.contains("adopt"), "{error}");
        assert!(root.occupied(&volume("db")).to_string().contains("adopt=true"));
        // Renamed by hand: the volume `db` still finds it.
        std::fs::rename(shaky.backing().join("db"), shaky.backing().join("DB")).unwrap();
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
