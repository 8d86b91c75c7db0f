//! Follows a path as the kernel would, symlink by symlink, even if it leads to nothing.
//!
//! Never decide by this what may be opened: the path may change before it is used.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};

/// The number of symlinks that Linux follows in one path.
const MAX_LINKS: usize = 40;

/// Follows an absolute path and returns where it leads: symlinks are resolved as far as it exists, and the rest is
/// appended as written. Calls `visit` with each name that is looked up and the real directory that holds it.
pub(super) fn follow(path: &Path, mut visit: impl FnMut(&Path, &OsStr)) -> PathBuf {
    let mut real = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            real.pop();
            continue;
        }
        visit(&real, &name);
        real.push(&name);
        if links < MAX_LINKS
            && let Ok(target) = real.read_link()
        {
            links += 1;
            real.pop();
            if target.is_absolute() {
                real = PathBuf::from("/");
            }
            for name in names(&target).rev() {
                rest.push_front(name);
            }
        }
    }
    real
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn real(path: &Path) -> PathBuf {
        follow(path, |_, _| {})
    }

    #[test]
    fn symlinks_are_followed_also_into_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        symlink("a/b", top.join("relative")).unwrap();
        symlink(top.join("nowhere/at/all"), top.join("dangling")).unwrap();
        symlink("loop", top.join("loop")).unwrap();
        symlink("relative/..", top.join("up")).unwrap();
        assert_eq!(real(&top.join("relative/x/y")), top.join("a/b/x/y"));
        assert_eq!(real(&top.join("dangling/x")), top.join("nowhere/at/all/x"));
        assert_eq!(real(&top.join("up/c")), top.join("a/c"));
        assert_eq!(real(&top.join("loop")), top.join("loop"));
        assert_eq!(real(Path::new("/../..//.")), Path::new("/"));
    }

    #[test]
    fn each_name_is_told_with_its_real_directory() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        std::fs::create_dir(top.join("..v1")).unwrap();
        symlink("..v1", top.join("..data")).unwrap();
        symlink("..data/tls.crt", top.join("tls.crt")).unwrap();
        let mut seen = Vec::new();
        follow(&top.join("tls.crt"), |dir, name| seen.push(dir.join(name)));
        let below: Vec<_> = seen.iter().filter_map(|path| path.strip_prefix(&top).ok()).collect();
        assert_eq!(below.last(), Some(&Path::new("..v1/tls.crt")));
        assert!(below.contains(&Path::new("..data")) && below.contains(&Path::new("tls.crt")), "{below:?}");
    }
}
