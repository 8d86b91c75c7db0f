//! What lies on disk, and whether it is what volhost says.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::daemon::Daemon;

/// Everything below a directory, by its path relative to it: owner, group and mode, and what a file or a link holds.
pub(crate) type Tree = BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)>;

/// Reads everything below a directory.
pub(crate) fn tree(top: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut left = vec![PathBuf::new()];
    while let Some(relative) = left.pop() {
        let path = top.join(&relative);
        let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let held = if meta.is_dir() {
            left.extend(names(&path).into_iter().map(|name| relative.join(name)));
            Vec::new()
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            target.into_os_string().into_encoded_bytes()
        } else {
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        tree.insert(relative, (meta.uid(), meta.gid(), meta.mode(), held));
    }
    tree
}

/// The same without the directory itself: a volume's own times and place change, what it holds does not.
pub(crate) fn without_top(tree: &Tree) -> Tree {
    tree.iter()
        .filter(|(path, _)| !path.as_os_str().is_empty())
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The names in a directory; none where it is not there.
pub(crate) fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("it can be listed").file_name().to_string_lossy().into_owned()).collect()
}

impl Daemon<'_> {
    /// The removed volumes: identity and name.
    pub(crate) fn trash(&self) -> BTreeMap<String, String> {
        let rows = self.cli(&["volume", "ls", "--trash", "--json"]).json();
        let text = |value: &serde_json::Value| value.as_str().expect("it is a text").to_owned();
        let rows = rows.as_array().expect("it is a list").iter();
        rows.map(|row| (text(&row["id"]), text(&row["name"]))).collect()
    }

    /// What is wrong where the catalog and a backend's directory do not agree: each volume has its directory, each
    /// directory its volume, nothing is half-made, and the trash holds what is listed.
    pub(crate) fn disagreement(&self, root: &Path) -> Option<String> {
        let mut directories = names(root);
        directories.remove(".volhost");
        let volumes: BTreeSet<_> = self.volumes().into_iter().collect();
        let half_made = names(&root.join(".volhost/new"));
        let trashed = names(&root.join(".volhost/trash"));
        let listed: BTreeSet<_> = self.trash().into_keys().collect();
        if directories != volumes {
            return Some(format!("the directories are {directories:?}, the volumes {volumes:?}"));
        }
        if !half_made.is_empty() {
            return Some(format!(".volhost/new holds {half_made:?}"));
        }
        (trashed != listed).then(|| format!(".volhost/trash holds {trashed:?}, listed are {listed:?}"))
    }

    /// Fails where the catalog and a backend's directory do not agree.
    #[track_caller]
    pub(crate) fn agrees_with(&self, root: &Path) {
        if let Some(why) = self.disagreement(root) {
            panic!("{}: {why}", root.display());
        }
    }
}
