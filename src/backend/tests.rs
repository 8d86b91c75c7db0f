//! The whole module: races, storage that misbehaves, and the limit on hanging operations. Also helpers for the other
//! tests.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::model::backend::BackendId;
use crate::model::options::{Mode, Ownership};
use crate::model::volume::{VolumeId, VolumeName};
use volhost_test_fuse::{Op, ScratchFs};

pub(super) fn volume(name: &str) -> VolumeName {
    VolumeName::parse(name).unwrap()
}

pub(super) fn mode(text: &str) -> Mode {
    Mode::parse(text).unwrap()
}

pub(super) fn backend_name(name: &str) -> BackendName {
    BackendName::parse(name).unwrap()
}

pub(super) fn open(path: &Path) -> Root {
    Root::open(&backend_name("fast"), path, false).unwrap()
}

/// Returns the user and group that may own files of this process.
pub(super) fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

pub(super) fn owned(uid: u32, gid: u32, mode: Mode) -> Ownership {
    Ownership { uid, gid, mode }
}

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes a volume under its name, with one file in it.
pub(super) fn made(root: &Root, name: &str) -> VolumeId {
    let id = VolumeId::random();
    let (uid, gid) = me();
    root.stage(id, owned(uid, gid, mode("0755"))).unwrap();
    root.publish(id, &volume(name)).unwrap();
    std::fs::write(root.path().join(name).join("data"), name).unwrap();
    id
}

/// A mount that ends with the test.
pub(super) struct Mounted(PathBuf);

impl Mounted {
    pub(super) fn tmpfs(at: &Path) -> Self {
        Self::new(&["-t", "tmpfs", "none"], at)
    }

    pub(super) fn bind(from: &Path, at: &Path) -> Self {
        Self::new(&["--bind", from.to_str().unwrap()], at)
    }

    fn new(arguments: &[&str], at: &Path) -> Self {
        assert!(Command::new("mount").args(arguments).arg(at).status().unwrap().success());
        Self(at.into())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

pub(super) fn settings(path: &Path) -> BackendSettings {
    let (uid, gid) = me();
    BackendSettings {
        path: path.into(),
        mountpoints: std::path::PathBuf::from(path).into(),
        draining: false,
        require_mount: false,
        trash: Duration::ZERO,
        uid,
        gid,
        mode: mode("0755"),
    }
}

/// Returns a backend with short timeouts.
fn hasty(path: &Path) -> Arc<Backend> {
    Arc::new(Backend {
        name: backend_name("fast"),
        settings: settings(path),
        state: Arc::new(State::new(Duration::from_millis(500), Duration::from_secs(1))),
    })
}

#[test]
fn the_file_system_of_these_tests_passes_everything_else_through() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let (at, behind) = (shaky.at(), shaky.backing());
    std::fs::create_dir(at.join("d")).unwrap();
    std::fs::write(at.join("d/file"), vec![7; 300_000]).unwrap();
    assert_eq!(std::fs::read(behind.join("d/file")).unwrap(), vec![7; 300_000]);
    std::fs::write(at.join("d/file"), "short").unwrap();
    assert_eq!(std::fs::read_to_string(at.join("d/file")).unwrap(), "short");
    symlink("d/file", at.join("link")).unwrap();
    std::fs::hard_link(at.join("d/file"), at.join("hard")).unwrap();
    assert_eq!(std::fs::read_link(at.join("link")).unwrap(), Path::new("d/file"));
    assert_eq!(std::fs::metadata(at.join("hard")).unwrap().nlink(), 2);
    std::os::unix::fs::chown(at.join("d"), Some(7), Some(8)).unwrap();
    let owner = std::fs::metadata(behind.join("d")).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (7, 8));
    std::fs::rename(at.join("d"), at.join("e")).unwrap();
    for number in 0..2000 {
        std::fs::write(at.join(format!("e/{number}")), "").unwrap();
    }
    assert_eq!(std::fs::read_dir(at.join("e")).unwrap().count(), 2001);
    std::fs::remove_dir_all(at.join("e")).unwrap();
    assert_eq!(std::fs::read_dir(behind).unwrap().count(), 2);
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn the_default_backend_is_the_one_named_so_or_the_only_one() {
    let map = |names: &[&str]| {
        let settings = names.iter().map(|name| (backend_name(name), settings(&Path::new("/srv").join(name))));
        Map::build(&Map::default(), settings.collect())
    };
    let chosen =
        |names: &[&str]| map(names).default_for_create(|_| true).map(|backend| backend.name().to_string());
    let open = |closed: &str, names: &[&str]| {
        let open = |backend: &Backend| backend.name().as_str() != closed;
        map(names).default_for_create(open).map(|backend| backend.name().to_string())
    };
    assert_eq!(open("slow", &["slow", "fast"]).as_deref(), Some("fast"), "the only one that is open");
    assert_eq!(open("default", &["default", "fast"]).as_deref(), Some("fast"));
    assert_eq!(open("default", &["default", "fast", "slow"]), None);
    assert_eq!(open("only", &["only"]), None);
    assert_eq!(chosen(&["only"]).as_deref(), Some("only"));
    assert_eq!(chosen(&["fast", "default"]).as_deref(), Some("default"));
    assert_eq!(chosen(&["slow", "fast"]), None);
    assert_eq!(chosen(&[]), None);
}

#[test]
fn a_backend_keeps_its_state_while_its_path_stays() {
    let one = Map::build(
        &Map::default(),
        BTreeMap::from([
            (backend_name("a"), settings(Path::new("/a"))),
            (backend_name("b"), settings(Path::new("/b"))),
        ]),
    );
    for backend in one.iter() {
        backend.state.health.offline("unmounted");
    }
    let draining = BackendSettings { draining: true, ..settings(Path::new("/a")) };
    let two = Map::build(
        &one,
        BTreeMap::from([(backend_name("a"), draining), (backend_name("b"), settings(Path::new("/c")))]),
    );
    let health = |name| two.get(&backend_name(name)).unwrap().health();
    assert!(matches!(*health("a"), Health::Offline { .. }));
    assert_eq!(*health("b"), Health::Unknown);
    assert!(two.get(&backend_name("a")).unwrap().settings().draining);
}

#[tokio::test]
async fn work_runs_on_the_expected_backend_only() {
    let dir = tempfile::tempdir().unwrap();
    let backend = hasty(dir.path());
    let id = BackendId::random();
    let refused = backend.run(Expect::This(id), |_| Ok(())).await.unwrap_err();
    let reason = format!("{} has no .volhost/backend.json; is the share mounted?", dir.path().display());
    assert_eq!(refused.to_string(), format!("backend \"fast\" is offline: {reason}"));
    assert!(matches!(&*backend.health(), Health::Offline { reason: told, .. } if *told == reason));

    backend.run(Expect::Nothing, move |root| root.write_identity(id, &backend_name("fast"))).await.unwrap();
    let path = backend.run(Expect::This(id), |root| Ok(root.path().to_owned())).await.unwrap();
    assert_eq!(path, dir.path());
    assert!(matches!(*backend.health(), Health::Online(Usage { total_bytes: 1.., .. })));

    let other = backend.run(Expect::This(BackendId::random()), |_| Ok(())).await.unwrap_err();
    assert!(other.to_string().contains("`volhost backend adopt fast` takes it over"), "{other}");
    let bare = tempfile::tempdir().unwrap();
    let init = hasty(bare.path()).run(Expect::Unknown, |_| Ok(())).await.unwrap_err();
    assert!(
        init.to_string().ends_with("is empty and no backend yet: `volhost backend init fast` makes it one"),
        "{init}"
    );
    std::fs::write(bare.path().join("data"), "").unwrap();
    let init = hasty(bare.path()).run(Expect::Unknown, |_| Ok(())).await.unwrap_err();
    assert!(init.to_string().contains("is not empty and has no .volhost/backend.json"), "{init}");
    let unknown = backend.probe(Expect::Unknown).await;
    assert!(
        matches!(&*unknown, Health::Offline { reason, .. } if reason.contains("this catalog does not know")),
        "{unknown:?}"
    );
    assert!(matches!(*backend.probe(Expect::This(id)).await, Health::Online(_)));
}

#[tokio::test]
async fn work_that_panics_is_told_of_and_frees_its_slot() {
    let dir = tempfile::tempdir().unwrap();
    let backend = hasty(dir.path());
    for _ in 0..=SLOTS {
        let error = backend.run::<()>(Expect::Nothing, |_| panic!("on purpose")).await.unwrap_err();
        assert!(matches!(error, BackendError::Interrupted { .. }), "{error}");
        assert!(error.effect_unknown());
    }
}

#[tokio::test]
async fn a_backend_that_hangs_holds_up_nobody_else() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let good = tempfile::tempdir().unwrap();
    let (bad, good) = (hasty(shaky.at()), hasty(good.path()));
    bad.run(Expect::Nothing, |_| Ok(())).await.unwrap();
    shaky.control().hang(true);
    let waiting: Vec<_> = (0..SLOTS)
        .map(|_| {
            let bad = Arc::clone(&bad);
            tokio::spawn(async move { bad.run(Expect::Nothing, Root::staged).await })
        })
        .collect();
    eventually("all operations hang", || shaky.control().hanging() == SLOTS).await;
    // Callers that go away leave their operations behind, which still hold their slots.
    let gone = waiting.iter().take(SLOTS / 2);
    for caller in gone {
        caller.abort();
    }
    let busy = bad.run(Expect::Nothing, |_| Ok(())).await.unwrap_err();
    assert!(
        busy.to_string().starts_with("backend \"fast\" does not answer: 16 operations wait for it"),
        "{busy}"
    );
    assert!(!busy.effect_unknown());
    assert!(matches!(*bad.health(), Health::Offline { .. }));
    let began = Instant::now();
    assert!(matches!(bad.run(Expect::Nothing, |_| Ok(())).await, Err(BackendError::Busy { .. })));
    good.run(Expect::Nothing, |_| Ok(())).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));

    shaky.control().hang(false);
    for caller in waiting.into_iter().skip(SLOTS / 2) {
        assert_eq!(caller.await.unwrap().unwrap(), Listing::default());
    }
    bad.run(Expect::Nothing, |_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn probes_of_a_backend_that_hangs_do_not_pile_up() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let backend = hasty(shaky.at());
    let id = BackendId::random();
    backend.run(Expect::Nothing, move |root| root.write_identity(id, &backend_name("fast"))).await.unwrap();
    let expect = Expect::This(id);
    assert!(matches!(*backend.probe(expect).await, Health::Online(_)));
    shaky.control().hang(true);
    for _ in 0..3 {
        let health = backend.probe(expect).await;
        let Health::Offline { reason, .. } = &*health else { panic!("{health:?}") };
        assert!(reason.contains(" does not answer since "), "{reason}");
        assert_eq!(shaky.control().hanging(), 1);
    }
    let began = Instant::now();
    assert!(matches!(backend.run(expect, |_| Ok(())).await, Err(BackendError::Offline { .. })));
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(shaky.control().hanging(), 1, "an operation was sent after the probe that hangs");
    shaky.control().hang(false);
    eventually("the probe that hung brings the backend back", || {
        matches!(*backend.health(), Health::Online(_))
    })
    .await;
    backend.run(expect, |_| Ok(())).await.unwrap();
}

#[tokio::test]
async fn a_removed_export_is_offline_until_it_is_back() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let backend = hasty(shaky.at());
    let id = BackendId::random();
    backend.run(Expect::Nothing, move |root| root.write_identity(id, &backend_name("fast"))).await.unwrap();
    shaky.control().stale(true);
    let error = backend.run(Expect::This(id), |_| Ok(())).await.unwrap_err();
    assert!(matches!(error, BackendError::Offline { .. }), "{error}");
    assert!(error.to_string().contains("Stale file handle"), "{error}");
    assert!(matches!(*backend.probe(Expect::This(id)).await, Health::Offline { .. }));
    shaky.control().stale(false);
    backend.run(Expect::This(id), |_| Ok(())).await.unwrap();
    assert!(matches!(*backend.health(), Health::Online(_)));
    let control = shaky.control().clone();
    let lost = backend
        .run(Expect::This(id), move |root| {
            control.stale(true);
            root.trashed()
        })
        .await;
    assert!(lost.is_err());
    assert!(matches!(*backend.health(), Health::Offline { .. }), "lost under the work, and still online");
}

#[test]
fn storage_without_rename_flags_still_never_replaces() {
    let Some(shaky) = ScratchFs::mount() else { return };
    shaky.control().refuse_rename_flags(true);
    let root = open(shaky.at());
    root.write_identity(BackendId::random(), &backend_name("fast")).unwrap();
    let first = made(&root, "db");
    let second = VolumeId::random();
    root.stage(second, owned(0, 0, mode("0755"))).unwrap();
    let occupied = root.publish(second, &volume("db")).unwrap_err();
    assert!(matches!(occupied, BackendError::Occupied { directory: true, .. }), "{occupied}");
    root.trash(&volume("db"), first).unwrap();
    root.publish(second, &volume("db")).unwrap();
    let occupied = root.untrash(first, &volume("db")).unwrap_err();
    assert!(matches!(occupied, BackendError::Occupied { directory: true, .. }), "{occupied}");
    root.untrash(first, &volume("old")).unwrap();
    assert_eq!(std::fs::read_to_string(shaky.at().join("old/data")).unwrap(), "db");
    assert!(shaky.control().seen(Op::Rename) >= 8, "the fallback was not taken");
}

#[test]
fn storage_that_refuses_chown_is_told_of_and_left_clean() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let root = open(shaky.at());
    shaky.control().refuse_chown(true);
    root.stage(VolumeId::random(), owned(0, 0, mode("2775"))).unwrap();
    let refused = root.stage(VolumeId::random(), owned(70, 0, mode("0700"))).unwrap_err();
    assert!(refused.to_string().contains("cannot be given owner 70:0 and mode 0700"), "{refused}");
    assert!(refused.to_string().contains("root_squash"), "{refused}");
    assert!(!refused.effect_unknown());
    let staged = root.staged().unwrap();
    assert_eq!((staged.volumes.len(), staged.strays.len()), (1, 0));
}

#[test]
fn storage_that_cannot_sync_directories_is_used_all_the_same() {
    let Some(shaky) = ScratchFs::mount() else { return };
    shaky.control().refuse_fsyncdir(true);
    let root = open(shaky.at());
    root.write_identity(BackendId::random(), &backend_name("fast")).unwrap();
    let id = made(&root, "db");
    root.trash(&volume("db"), id).unwrap();
    assert!(root.mark_deleting(id).unwrap());
    assert_eq!(root.purge(id, 100, &mut PurgePass::default()).unwrap(), PurgeProgress::Done);
    assert!(shaky.control().seen(Op::Fsyncdir) > 0);
}

#[test]
fn an_answer_that_was_lost_is_looked_after() {
    let Some(shaky) = ScratchFs::mount() else { return };
    let root = open(shaky.at());
    let id = VolumeId::random();
    root.stage(id, owned(0, 0, mode("0755"))).unwrap();
    shaky.control().lose_answer_once(Op::Rename, libc::EIO);
    root.publish(id, &volume("db")).unwrap();
    assert_eq!(root.volume_state(&volume("db")).unwrap(), VolumeState::Directory);
    assert_eq!(root.staged().unwrap(), Listing::default());

    shaky.control().fail_once(Op::Rename, libc::EIO);
    let failed = root.trash(&volume("db"), id).unwrap_err();
    assert!(failed.effect_unknown(), "{failed}");
    assert_eq!(root.volume_state(&volume("db")).unwrap(), VolumeState::Directory);

    shaky.control().fail_once(Op::Rename, libc::ENOSPC);
    let refused = root.trash(&volume("db"), id).unwrap_err();
    assert!(!refused.effect_unknown(), "{refused}");

    shaky.control().fail_once(Op::Fsyncdir, libc::EIO);
    let failed = root.trash(&volume("db"), id).unwrap_err();
    assert!(failed.effect_unknown(), "{failed}");
    assert_eq!(root.trashed().unwrap().volumes, [id]);
}

/// Swaps a directory and a symbolic link to one outside, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Swapper {
    fn start(link: PathBuf, directory: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                swaps += u64::from(rustix::fs::renameat_with(cwd, &link, cwd, &directory, exchange).is_ok());
            }
            swaps
        });
        Self { stop, thread: Some(thread) }
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

fn outside() -> (TempDir, impl Fn(&TempDir)) {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("precious"), "kept").unwrap();
    std::fs::create_dir(outside.path().join("inner")).unwrap();
    std::fs::write(outside.path().join("inner/file"), "kept").unwrap();
    let before = std::fs::metadata(outside.path()).unwrap();
    let untouched = move |outside: &TempDir| {
        let now = std::fs::metadata(outside.path()).unwrap();
        assert_eq!((now.mtime(), now.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
        assert_eq!((now.mode(), now.uid()), (before.mode(), before.uid()));
        assert_eq!(std::fs::read_to_string(outside.path().join("inner/file")).unwrap(), "kept");
    };
    (outside, untouched)
}

#[test]
fn no_swap_of_our_own_directories_leads_outside() {
    let (outside, untouched) = outside();
    for inner in [".volhost", ".volhost/new", ".volhost/trash"] {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        made(&root, "warm");
        root.trash(&volume("warm"), VolumeId::random()).unwrap();
        let link = dir.path().join("link");
        symlink(outside.path(), &link).unwrap();
        let swapper = Swapper::start(link, dir.path().join(inner));
        let (uid, gid) = me();
        let end = Instant::now() + Duration::from_millis(400);
        let mut done = [0; 2];
        // On a busy machine, goes on until the swap has hit both, within reason.
        let last = end + Duration::from_secs(20);
        while Instant::now() < end || (done.contains(&0) && Instant::now() < last) {
            let id = VolumeId::random();
            let name = volume(&id.to_string());
            let made = root.stage(id, owned(uid, gid, mode("0777"))).and_then(|_| root.publish(id, &name));
            let trashed = made.and_then(|()| root.trash(&name, id));
            done[usize::from(trashed.is_ok())] += 1;
            let _ = root.mark_deleting(id);
            let _ = root.purge(id, 10, &mut PurgePass::default());
            let _ = root.write_identity(BackendId::random(), &backend_name("fast"));
            let _ = root.trashed();
        }
        assert!(swapper.stop() > 0);
        assert!(done[0] > 0 && done[1] > 0, "{inner}: the swap met neither, {done:?}");
        untouched(&outside);
    }
}

#[test]
fn no_swap_of_a_volume_leads_outside() {
    let (outside, untouched) = outside();
    let dir = tempfile::tempdir().unwrap();
    let root = open(dir.path());
    let end = Instant::now() + Duration::from_millis(800);
    let mut refused = 0;
    let last = end + Duration::from_secs(20);
    while Instant::now() < end || (refused == 0 && Instant::now() < last) {
        let id = made(&root, "db");
        let (link, inner) = (dir.path().join("link"), dir.path().join("db"));
        symlink(outside.path(), &link).unwrap();
        let swapper = Swapper::start(link.clone(), inner.clone());
        for _ in 0..20 {
            refused += usize::from(root.trash(&volume("db"), id).is_err());
            let _ = root.untrash(id, &volume("db"));
        }
        swapper.stop();
        for left in [&link, &inner] {
            let _ = std::fs::remove_file(left);
            let _ = std::fs::remove_dir_all(left);
        }
        let trash = dir.path().join(".volhost/trash").join(id.to_string());
        let _ = std::fs::remove_file(&trash);
        let _ = std::fs::remove_dir_all(&trash);
        untouched(&outside);
    }
    assert!(refused > 0, "the swap was never met");
}

#[test]
fn no_swap_inside_a_tree_being_purged_leads_outside() {
    let (outside, untouched) = outside();
    let dir = tempfile::tempdir().unwrap();
    let root = open(dir.path());
    for _ in 0..30 {
        let id = made(&root, "db");
        root.trash(&volume("db"), id).unwrap();
        assert!(root.mark_deleting(id).unwrap());
        let top = dir.path().join(format!(".volhost/deleting-{id}"));
        for number in 0..50 {
            std::fs::create_dir_all(top.join(format!("{number}/a/b"))).unwrap();
        }
        std::fs::create_dir(top.join("inner")).unwrap();
        symlink(outside.path(), top.join("link")).unwrap();
        let swapper = Swapper::start(top.join("link"), top.join("inner"));
        let mut pass = PurgePass::default();
        while root.purge(id, 7, &mut pass).unwrap() != PurgeProgress::Done {}
        swapper.stop();
        untouched(&outside);
    }
}
