//! Deletes a removed volume's tree in bounded steps, with few handles, and never through a link or a mount point.
//!
//! This is the only recursive deletion in volhost, and it deletes only a directory with the mark of `deleting`. It
//! needs no space. An entry that cannot be removed is skipped and reported, and the others are removed.

use std::path::PathBuf;

use rustix::io::Errno;

use crate::backend::deleting::marked;
use crate::backend::error::BackendError;
use crate::backend::purge_walk::{PurgePass, Walk, open_to_empty, reason};
use crate::backend::root::Root;
use crate::model::volume::VolumeId;

/// The progress of a purge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PurgeProgress {
    /// Nothing of the volume is left.
    Done,
    /// The budget was used up: call again.
    More {
        /// The number of entries that were removed; none if entries were only moved up or skipped.
        removed: usize,
    },
    /// The remaining entries cannot be removed.
    Blocked {
        /// An obstacle: a mount point, or an immutable file.
        path: PathBuf,
        /// Why it cannot be removed, and the remedy.
        reason: String,
    },
}

impl Root {
    /// Deletes the tree of a volume that is [marked](Self::mark_deleting). Tries at most `budget` entries, and at least one.
    /// The next call goes on with the same `pass`, or with a new one, as after a restart.
    pub fn purge(
        &self,
        id: VolumeId,
        budget: usize,
        pass: &mut PurgePass,
    ) -> Result<PurgeProgress, BackendError> {
        let Some(meta) = self.meta()? else { return Ok(PurgeProgress::Done) };
        let name = marked(id);
        let fd = match open_to_empty(&meta.fd, &*name) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(PurgeProgress::Done),
            Err(errno) => {
                let path = meta.path.join(name);
                return Ok(PurgeProgress::Blocked { reason: reason(&path, errno)?, path });
            }
        };
        let mut walk = Walk::new(&meta, &name, fd, budget, pass)?;
        match walk.run()? {
            Some((path, reason)) => Ok(PurgeProgress::Blocked { path, reason }),
            None if walk.is_done() => meta.sync().map(|()| PurgeProgress::Done),
            None => Ok(PurgeProgress::More { removed: walk.removed() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::fd::OwnedFd;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::symlink;
    use std::path::Path;
    use std::process::Command;

    use rustix::fs::{Mode, OFlags};

    use super::*;
    use crate::backend::handle::open_beneath;
    use crate::backend::tests::{Mounted, is_root, made, open, volume};
    use crate::backend::volumes::Listing;

    /// Makes a removed volume whose deletion has begun, and returns its directory.
    fn trashed(root: &Root) -> (VolumeId, PathBuf) {
        let id = made(root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert!(root.mark_deleting(id).unwrap());
        (id, root.path().join(".volhost").join(marked(id)))
    }

    /// Changes an attribute of a file. Returns false if this file system or user has none.
    fn attribute(change: &str, path: &Path) -> bool {
        let changed = Command::new("chattr").arg(change).arg(path).status().is_ok_and(|s| s.success());
        if !changed {
            eprintln!("skipped: this file system or user knows no immutable files");
        }
        changed
    }

    #[test]
    fn only_what_is_marked_is_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        assert!(root.is_trashed(id).unwrap() && !root.is_deleting(id).unwrap());
        assert_eq!(root.deleting().unwrap(), Listing::default());
        root.untrash(id, &volume("db")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("db/data")).unwrap(), "db");
        root.trash(&volume("db"), id).unwrap();
        for _ in 0..2 {
            assert!(root.mark_deleting(id).unwrap());
            assert!(root.is_trashed(id).unwrap() && root.is_deleting(id).unwrap());
            assert_eq!(root.deleting().unwrap().volumes, [id]);
            assert_eq!(root.trashed().unwrap(), Listing::default());
            assert!(matches!(root.untrash(id, &volume("db")), Err(BackendError::Missing { .. })));
        }
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        assert!(!root.mark_deleting(id).unwrap() && !root.is_trashed(id).unwrap());
    }

    #[test]
    fn names_that_only_look_like_a_mark_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let id = made(&root, "db");
        let home = dir.path().join(".volhost");
        let file = home.join(marked(id));
        std::fs::write(&file, "kept").unwrap();
        for other in ["deleting-", "deleting-photos", &marked(id).to_uppercase()] {
            std::fs::create_dir(home.join(other)).unwrap();
        }
        assert_eq!(root.deleting().unwrap(), Listing { volumes: vec![], strays: vec![file.clone()] });
        assert!(
            matches!(root.purge(id, 9, &mut PurgePass::default()).unwrap(), PurgeProgress::Blocked { path, .. } if path == file)
        );
    }

    #[test]
    fn entries_that_cannot_go_hide_none_of_those_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let fixed = top.join("fixed");
        std::fs::write(&fixed, "").unwrap();
        for number in 0..300 {
            std::fs::hard_link(&fixed, top.join(format!("a{number}"))).unwrap();
            std::fs::create_dir(top.join(format!("b{number}"))).unwrap();
            std::fs::write(top.join(format!("b{number}/file")), "").unwrap();
        }
        if !attribute("+i", &fixed) {
            return;
        }
        let (mut pass, mut calls) = (PurgePass::default(), 0);
        let last = loop {
            calls += 1;
            match root.purge(id, 20, &mut pass) {
                Ok(PurgeProgress::More { .. }) if calls < 500 => {}
                last => break last,
            }
        };
        let left = std::fs::read_dir(&top).unwrap().count();
        assert!(attribute("-i", &fixed));
        assert!(
            matches!(last, Ok(PurgeProgress::Blocked { ref reason, .. }) if reason.contains("immutable")),
            "{last:?}"
        );
        assert_eq!(left, 301, "what can go was kept");
        while root.purge(id, 500, &mut pass).unwrap() != PurgeProgress::Done {}
    }

    #[test]
    fn a_deep_tree_goes_also_where_nothing_can_be_moved_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let mut deep = top.join("d");
        for _ in 0..100 {
            std::fs::create_dir_all(deep.join("e/e")).unwrap();
            std::fs::write(deep.join("f"), "").unwrap();
            deep.push("d");
        }
        // The directory accepts no new entry, like one on a full disk, and lets none be removed.
        if !attribute("+i", &top) {
            return;
        }
        let (mut pass, mut calls) = (PurgePass::default(), 0);
        let last = loop {
            calls += 1;
            match root.purge(id, 50, &mut pass) {
                Ok(PurgeProgress::More { .. }) if calls < 500 => {}
                last => break last,
            }
        };
        let left = std::fs::read_dir(top.join("d")).unwrap().count();
        assert!(attribute("-i", &top));
        assert!(matches!(last, Ok(PurgeProgress::Blocked { .. })), "{last:?} after {calls} calls");
        assert_eq!(left, 0, "what can go was kept");
        while root.purge(id, 500, &mut pass).unwrap() != PurgeProgress::Done {}
    }

    #[test]
    fn a_tree_that_is_written_to_is_told_from_one_that_is_large() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for number in 0..2000 {
            std::fs::write(top.join(format!("{number}")), "").unwrap();
        }
        let mut pass = PurgePass::default();
        while root.purge(id, 50, &mut pass).unwrap() != PurgeProgress::Done {
            assert_eq!(pass.again, 0);
        }
        let (id, top) = trashed(&root);
        let (over, mut pass) = (std::sync::atomic::AtomicBool::new(false), PurgePass::default());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::write(top.join(VolumeId::random().to_string()), "");
                }
            });
            let mut last = Ok(PurgeProgress::Done);
            for _ in 0..10_000 {
                last = root.purge(id, 50, &mut pass);
                if pass.again >= 3 || !matches!(last, Ok(PurgeProgress::More { .. })) {
                    break;
                }
            }
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            drop(last.unwrap());
        });
    }

    #[test]
    fn a_purge_keeps_to_its_budget_and_is_taken_up_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for number in 0..20 {
            std::fs::create_dir_all(top.join(format!("{number}/inner"))).unwrap();
            std::fs::write(top.join(format!("{number}/inner/file")), "x").unwrap();
        }
        // The file that `made` wrote, twenty times three, and the directory itself.
        let mut left = 1 + 20 * 3 + 1_usize;
        loop {
            // A new handle each time, as after a restart.
            match open(dir.path()).purge(id, 10, &mut PurgePass::default()).unwrap() {
                PurgeProgress::More { removed } => {
                    assert_eq!(removed, 10);
                    left -= removed;
                }
                PurgeProgress::Done => break,
                blocked @ PurgeProgress::Blocked { .. } => panic!("{blocked:?}"),
            }
        }
        assert!(left <= 10, "{left} entries went in the last call");
        assert!(!top.exists());
        assert_eq!(root.purge(id, 10, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
    }

    #[test]
    fn a_deep_tree_is_purged_with_few_handles() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let mut handle: OwnedFd = std::fs::File::open(&top).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&handle, "d", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&handle, "e", Mode::RWXU).unwrap();
            handle = open_beneath(&handle, "d", OFlags::RDONLY | OFlags::DIRECTORY).unwrap();
        }
        let mut calls = 0;
        while root.purge(id, 500, &mut PurgePass::default()).unwrap() != PurgeProgress::Done {
            calls += 1;
            assert!(calls < 100, "no end in sight");
        }
        assert!(!top.exists());
    }

    #[test]
    fn links_and_special_files_are_removed_and_not_followed() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("precious"), "kept").unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        symlink(other.path(), top.join("link")).unwrap();
        symlink("/nowhere", top.join("dangling")).unwrap();
        std::fs::hard_link(other.path().join("precious"), top.join("hard")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, top.join("fifo"), Mode::RUSR).unwrap();
        std::fs::write(top.join(OsStr::from_bytes(b"\xff\n..")), "").unwrap();
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        assert_eq!(std::fs::read_to_string(other.path().join("precious")).unwrap(), "kept");
    }

    #[test]
    fn a_mount_point_inside_blocks_and_keeps_its_data() {
        if !is_root() {
            return;
        }
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("precious"), "kept").unwrap();
        let root = open(dir.path());
        let mounts: [&dyn Fn(&Path) -> Mounted; 2] = [&|at| Mounted::bind(other.path(), at), &|at| {
            let mounted = Mounted::tmpfs(at);
            std::fs::write(at.join("precious"), "kept").unwrap();
            mounted
        }];
        for mount in mounts {
            let (id, top) = trashed(&root);
            let at = top.join("a/b/mounted");
            std::fs::create_dir_all(&at).unwrap();
            std::fs::write(top.join("a/file"), "").unwrap();
            let mounted = mount(&at);
            let mut last = root.purge(id, 100, &mut PurgePass::default()).unwrap();
            while matches!(last, PurgeProgress::More { .. }) {
                last = root.purge(id, 100, &mut PurgePass::default()).unwrap();
            }
            let PurgeProgress::Blocked { path, reason } = last else { panic!("{last:?}") };
            assert_eq!(path, at);
            assert!(reason.contains("mount point"), "{reason}");
            assert_eq!(std::fs::read_to_string(at.join("precious")).unwrap(), "kept");
            assert!(!top.join("a/file").exists(), "what can go was kept");
            drop(mounted);
            assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        }
        let (id, top) = trashed(&root);
        let mounted = Mounted::bind(other.path(), &top);
        assert!(
            matches!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Blocked { path, .. } if path == top)
        );
        drop(mounted);
        let file = top.join("mounted");
        std::fs::write(&file, "").unwrap();
        let mounted = Mounted::bind(&other.path().join("precious"), &file);
        while matches!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::More { .. }) {}
        assert!(
            matches!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Blocked { path, .. } if path == file)
        );
        drop(mounted);
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        assert_eq!(std::fs::read_to_string(other.path().join("precious")).unwrap(), "kept");
    }

    #[test]
    fn directories_without_rights_are_purged_all_the_same() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        for closed in ["a/b", "a", ""] {
            let directory = top.join(closed);
            std::fs::create_dir_all(top.join("a/b")).unwrap();
            std::fs::write(directory.join("file"), "").unwrap();
            let mode = if closed.is_empty() { 0 } else { 0o555 };
            std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
        assert!(!top.exists());
    }

    #[test]
    fn an_immutable_file_blocks_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let (id, top) = trashed(&root);
        let file = top.join("data");
        if !attribute("+i", &file) {
            return;
        }
        let progress = root.purge(id, 100, &mut PurgePass::default()).unwrap();
        assert!(attribute("-i", &file));
        let PurgeProgress::Blocked { path, reason } = progress else { panic!("{progress:?}") };
        assert_eq!(path, file);
        assert!(reason.contains("chattr -i"), "{reason}");
        assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
    }
}
