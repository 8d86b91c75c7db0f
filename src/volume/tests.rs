//! The service as a whole, on a real catalog and on storage that fails on command. Whatever fails, anything answered
//! holds, and anything unanswered is finished or undone.

mod host_limits;
mod repetition;
mod several;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use time::OffsetDateTime;

use super::inspect::state_word;
use super::purge::{PurgeTurn, PurgeWork};
use super::*;
use crate::backend::{Expect, Map};
use crate::catalog::{CatalogError, Removed, Submitted, Unconfirmed};
use crate::host::{CertificateId, Via};
use crate::model::backend_settings::BackendSettings;
use crate::model::directory::DirectoryId;
use crate::model::limits::Limits;
use crate::model::options::Options;
use crate::model::volume::{MountId, VolumeId};
use volhost_test_fuse::{Control, FuseFs, Op};

/// How long a request may take here: long enough for a slow machine, short enough for tests to wait for it.
const LIMIT: Duration = Duration::from_secs(2);

fn limits() -> Limits {
    Limits { request: LIMIT, ..Limits::default() }
}

/// A catalog that can be told to fail.
struct Unwilling {
    inner: Arc<dyn Catalog>,
    refused: Mutex<fn(&Change) -> bool>,
    /// The number of changes that were refused.
    refusals: AtomicUsize,
    late: Mutex<fn(&Change) -> bool>,
    lateness: Mutex<Duration>,
    /// The removed volumes that were forgotten, in their order.
    forgotten: Mutex<Vec<VolumeId>>,
}

impl Unwilling {
    /// Refuses changes of this kind from now on, as a full disk does.
    fn refuse(&self, which: fn(&Change) -> bool) {
        *self.refused.lock().unwrap() = which;
    }

    /// Answers changes of this kind too late, although they are made at once.
    fn delay(&self, which: fn(&Change) -> bool) {
        self.delay_by(LIMIT, which);
    }

    /// Answers changes of this kind later than they are made, by `lateness`.
    fn delay_by(&self, lateness: Duration, which: fn(&Change) -> bool) {
        *self.lateness.lock().unwrap() = lateness;
        *self.late.lock().unwrap() = which;
    }
}

impl Catalog for Unwilling {
    fn view(&self) -> Arc<View> {
        self.inner.view()
    }

    fn submit(&self, change: Change) -> Submitted {
        let (refused, late) = (*self.refused.lock().unwrap(), *self.late.lock().unwrap());
        let (late, lateness) = (late(&change), *self.lateness.lock().unwrap());
        let submitted: Submitted = if refused(&change) {
            self.refusals.fetch_add(1, Ordering::Relaxed);
            let source = Arc::new(std::io::Error::from_raw_os_error(libc::ENOSPC));
            Box::pin(async { Err(CatalogError::Write { location: "the test's catalog".into(), source }) })
        } else {
            if let Change::Forget(id) = change {
                self.forgotten.lock().unwrap().push(id);
            }
            self.inner.submit(change)
        };
        Box::pin(async move {
            let answer = submitted.await;
            if late {
                tokio::time::sleep(lateness).await;
            }
            answer
        })
    }

    fn location(&self) -> &str {
        self.inner.location()
    }

    fn fault(&self) -> Option<Arc<String>> {
        self.inner.fault()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.inner.close()
    }
}

impl Service {
    /// Deletes a removed volume for good, in as many turns as that takes.
    async fn purge_volume(
        self: &Arc<Self>,
        backend: &Arc<Backend>,
        removed: &Removed,
    ) -> Result<PurgeTurn, Error> {
        let mut work = PurgeWork::default();
        loop {
            match self.purge_turn(backend, removed, &mut work).await? {
                PurgeTurn::Unfinished => {}
                turn @ (PurgeTurn::Done | PurgeTurn::Blocked) => return Ok(turn),
            }
        }
    }
}

/// A service, its catalog and its one backend.
struct World {
    service: Arc<Service>,
    catalog: Arc<Unwilling>,
    root: PathBuf,
    fs: Option<FuseFs>,
    dir: TempDir,
}

impl World {
    /// Starts a service on a directory.
    async fn new() -> Self {
        Self::on(|_| None).await
    }

    /// Starts a service on a file system that fails on command; `None` without the right to mount one.
    async fn shaky() -> Option<Self> {
        if !volhost_test_fuse::can_mount() {
            return None;
        }
        let mount = |dir: &Path| {
            std::fs::create_dir(dir.join("backing")).unwrap();
            Some(FuseFs::mount(&dir.join("backing"), &dir.join("root")).unwrap())
        };
        Some(Self::on(mount).await)
    }

    /// Starts a service on a directory that ignores Unmounts for `window` after a failed Mount.
    async fn forgiving(window: Duration) -> Self {
        let mut world = Self::new().await;
        world.catalog.close().await;
        (world.catalog, world.service) = begin_with(world.dir.path(), &world.root, |_| false, window).await;
        world
    }

    async fn on(mount: impl FnOnce(&Path) -> Option<FuseFs>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let fs = mount(dir.path());
        let (catalog, service) = begin(dir.path(), &root).await;
        Self { service, catalog, root, fs, dir }
    }

    fn fs(&self) -> &Control {
        self.fs.as_ref().unwrap().control()
    }

    /// Ends and starts again, like a program that is killed: only the files remain.
    async fn restart(&mut self) {
        self.catalog.close().await;
        (self.catalog, self.service) = begin(self.dir.path(), &self.root).await;
    }

    /// Restarts with a catalog that refuses changes of this kind from the beginning, as a full disk does.
    async fn restart_with(&mut self, refused: fn(&Change) -> bool) {
        self.catalog.close().await;
        (self.catalog, self.service) =
            begin_with(self.dir.path(), &self.root, refused, IgnoredUnmounts::default().window()).await;
    }

    async fn create(&self, text: &str) -> Result<Arc<Volume>, Error> {
        self.service.create(&engine(), name(text), Options::default()).await
    }

    async fn remove(&self, text: &str) -> Result<Option<VolumeId>, Error> {
        self.service.remove(&engine(), name(text)).await
    }

    async fn mount(&self, text: &str) -> Result<VolumeInfo, Error> {
        let counted = self.service.mount(&engine(), name(text), mount_id()).await?;
        let seen = counted.info().clone();
        counted.hand_over();
        Ok(seen)
    }

    /// Creates a volume with a file in it.
    async fn filled(&self, text: &str) -> VolumeId {
        let volume = self.create(text).await.unwrap();
        std::fs::write(self.root.join(text).join("data"), text).unwrap();
        volume.id
    }

    /// Recovers the backend as its next operation would.
    async fn settle(&self) {
        let backend = self.backend();
        self.service.ready(&backend).await.unwrap();
    }

    fn backend(&self) -> Arc<Backend> {
        Arc::clone(self.service.in_force().map.get(&backend_name()).unwrap())
    }

    fn has_data(&self, text: &str) -> bool {
        std::fs::read_to_string(self.root.join(text).join("data")).is_ok_and(|data| data == text)
    }

    fn exists(&self, text: &str) -> bool {
        self.service.view().volumes.get(text).is_some_and(|volume| volume.visible)
    }

    /// Fails unless every volume has its directory, every directory its volume, and nothing is half-made.
    #[track_caller]
    fn agrees(&self, when: &str) {
        let view = self.service.view();
        let volumes: BTreeSet<_> = view.volumes.keys().map(ToString::to_string).collect();
        let trash: BTreeSet<_> = view.trash.keys().map(ToString::to_string).collect();
        assert!(view.volumes.values().all(|volume| volume.visible), "{when}: a volume is hidden");
        let mut directories = names(&self.root);
        directories.remove(".volhost");
        assert_eq!(directories, volumes, "{when}: directories and volumes");
        assert_eq!(names(&self.root.join(".volhost/new")), BTreeSet::new(), "{when}: half-made");
        assert_eq!(
            names(&self.root.join(".volhost/trash")),
            trash,
            "{when}: the trash on disk and as recorded"
        );
    }
}

/// Puts the present configuration in force with some parts changed.
fn put_in_force(world: &World, change: impl FnOnce(&mut InForce)) {
    let InForce { map, access, limits } = &*world.service.in_force();
    let mut next = InForce { map: map.clone(), access: access.clone(), limits: limits.clone() };
    change(&mut next);
    world.service.in_force.store(Arc::new(next));
}

async fn begin(dir: &Path, root: &Path) -> (Arc<Unwilling>, Arc<Service>) {
    begin_with(dir, root, |_| false, IgnoredUnmounts::default().window()).await
}

async fn begin_with(
    dir: &Path,
    root: &Path,
    refused: fn(&Change) -> bool,
    forgiving: Duration,
) -> (Arc<Unwilling>, Arc<Service>) {
    let inner = Arc::new(crate::catalog::sqlite::open(&dir.join("catalog/catalog.db")).unwrap());
    let catalog = Arc::new(Unwilling {
        inner,
        refused: Mutex::new(refused),
        refusals: AtomicUsize::new(0),
        late: Mutex::new(|_| false),
        lateness: Mutex::default(),
        forgotten: Mutex::default(),
    });
    let settings = BackendSettings {
        path: root.into(),
        mountpoints: PathBuf::from(root).into(),
        draining: false,
        require_mount: false,
        durable_directories: false,
        trash: Duration::from_secs(3600),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: crate::model::options::Mode::parse("0755").unwrap(),
    };
    let map = Map::build(&Map::default(), BTreeMap::from([(backend_name(), settings)]));
    let in_force = InForce { map, access: Access::default(), limits: limits() };
    let mut service = Service::new(Arc::<Unwilling>::clone(&catalog), in_force);
    service.ignored_unmounts = IgnoredUnmounts::within(forgiving);
    let service = Arc::new(service);
    service.bring_up(Duration::from_secs(20)).await;
    (catalog, service)
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn backend_name() -> BackendName {
    BackendName::parse("default").unwrap()
}

fn name(text: &str) -> VolumeName {
    VolumeName::parse(text).unwrap()
}

fn mount_id() -> MountId {
    MountId::parse("one").unwrap()
}

fn engine() -> Caller {
    Caller { host: HostName::parse("web1").unwrap(), via: Via::Tls, address: None }
}

/// Returns the caller of that host and address.
fn called(host: &str, from: Option<&str>) -> Caller {
    let address = from.map(|from| from.parse().unwrap());
    Caller { host: HostName::parse(host).unwrap(), via: Via::Tls, address }
}

fn operator() -> Caller {
    Caller { host: HostName::parse("store1").unwrap(), via: Via::Admin, address: None }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mover_leaves_half_done_is_looked_at_after_it_let_go() {
    let world = World::new().await;
    let id = world.filled("db").await;
    let lock = world.service.lock_directory_locally(&backend_name(), id).unwrap();
    // A Remove has renamed the directory, and has neither recorded the removal nor put the directory back.
    std::fs::create_dir_all(world.root.join(".volhost/trash")).unwrap();
    std::fs::rename(world.root.join("db"), world.root.join(".volhost/trash").join(id.to_string())).unwrap();
    lock.leave_half_done();
    world.service.recovery.require(&backend_name());
    // Another operation comes between, and skips the directory that is being moved.
    world.create("other").await.unwrap();
    assert!(!world.root.join("db").exists());
    drop(lock);
    world.mount("db").await.unwrap();
    assert!(world.has_data("db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn recovery_does_not_mind_what_was_finished_since_it_looked() {
    let world = World::new().await;
    let id = world.filled("db").await;
    let volume = Arc::clone(world.service.view().volume("db").unwrap());
    let (service, backend) = (&world.service, world.backend());
    let expect = service.ready(&backend).await.unwrap();
    service.recover_staged(&backend, expect, id, Some(Arc::clone(&volume))).await.unwrap();
    service.recover_trashed(&backend, expect, &volume).await.unwrap();
    assert!(world.has_data("db"));
    world.agrees("after both");
}

/// Leaves the same state as a kill after the record of a Create, with a foreign directory under the volume's name.
async fn cut_off_with_its_name_taken(world: &World) -> VolumeId {
    let id = world.filled("db").await;
    let made = Volume::clone(world.service.view().volume("db").unwrap());
    let volume = Volume { unconfirmed: Some(Arc::default()), ..made };
    world.remove("db").await.unwrap();
    world.service.expire(&id.to_string()).await.unwrap();
    std::fs::remove_dir_all(world.root.join(".volhost/trash").join(id.to_string())).unwrap();
    world.catalog.submit(Change::Forget(id)).await.unwrap();
    std::fs::create_dir(world.root.join(".volhost/new").join(id.to_string())).unwrap();
    std::fs::create_dir(world.root.join("db")).unwrap();
    std::fs::write(world.root.join("db/data"), "db").unwrap();
    world.catalog.submit(Change::Insert(volume)).await.unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_is_undone_never_takes_the_directory_of_somebody_else() {
    let world = World::new().await;
    cut_off_with_its_name_taken(&world).await;
    // Taking back its record fails at first.
    world.catalog.refuse(|change| matches!(change, Change::Withdraw(..)));
    world.service.recovery.require(&backend_name());
    assert!(world.service.ready(&world.backend()).await.is_err());
    world.catalog.refuse(|_| false);
    world.settle().await;
    assert!(world.service.view().volumes.is_empty(), "the stranger's directory became a volume");
    assert!(world.has_data("db"));
    assert_eq!(names(&world.root.join(".volhost/new")), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_may_have_been_answered_never_takes_the_directory_of_somebody_else() {
    let mut world = World::new().await;
    cut_off_with_its_name_taken(&world).await;
    world.restart().await;
    world.settle().await;
    // It is told of, because it may have been answered, and nobody gets the other directory by its name.
    world.service.inspect(&engine(), "db").await.unwrap();
    assert!(matches!(world.mount("db").await, Err(Error::RecoveryPending(_))));
    assert!(world.has_data("db"));
    std::fs::rename(world.root.join("db"), world.root.join("moved")).unwrap();
    world.mount("db").await.expect("its name is free");
    assert!(!world.has_data("db"));
    assert_eq!(names(&world.root.join(".volhost/new")), BTreeSet::new());
}

fn directory_id(path: &Path) -> DirectoryId {
    let made = std::fs::metadata(path).unwrap();
    let born = made.created().ok().map(|born| born.duration_since(std::time::UNIX_EPOCH).unwrap());
    let born = born.map(|born| (i64::try_from(born.as_secs()).unwrap(), born.subsec_nanos()));
    DirectoryId { inode: std::os::unix::fs::MetadataExt::ino(&made), born }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_power_cut_leaves_of_an_answered_create_becomes_whole() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Left {
        /// The record alone.
        Record,
        /// The record and the staged directory, which does not have the requested mode yet.
        Staged,
        /// Everything except the confirmation of the record.
        Named,
        /// The record alone, and a foreign directory has taken its name since.
        Foreign,
        /// The record alone, and a foreign file has taken its name since.
        File,
    }
    for left in [Left::Record, Left::Staged, Left::Named, Left::Foreign, Left::File] {
        let mut world = World::new().await;
        world.filled("other").await;
        let id = VolumeId::random();
        let asked = Options { mode: crate::model::options::Mode::parse("0711"), ..Default::default() };
        let staged = world.root.join(".volhost/new").join(id.to_string());
        std::fs::create_dir(&staged).unwrap();
        let made = directory_id(&staged);
        let volume = Volume {
            id,
            name: name("db"),
            options: asked,
            visible: false,
            unconfirmed: Some(Arc::new(Unconfirmed { directory: Some(made) })),
            ..Volume::clone(world.service.view().volume("other").unwrap())
        };
        world.catalog.submit(Change::Insert(volume)).await.unwrap();
        let named = world.root.join("db");
        match left {
            Left::Record => std::fs::remove_dir(&staged).unwrap(),
            Left::Staged => {}
            Left::Named => {
                std::fs::rename(&staged, &named).unwrap();
                std::fs::write(named.join("data"), "db").unwrap();
            }
            Left::Foreign => {
                // The file system may give it the same inode.
                std::fs::remove_dir(&staged).unwrap();
                std::fs::create_dir(&named).unwrap();
                std::fs::write(named.join("data"), "somebody else's").unwrap();
            }
            Left::File => {
                std::fs::remove_dir(&staged).unwrap();
                std::fs::write(&named, "somebody else's").unwrap();
            }
        }
        world.restart().await;
        if matches!(left, Left::Foreign | Left::File) {
            assert!(matches!(world.mount("db").await, Err(Error::RecoveryPending(_))), "{left:?}");
            std::fs::rename(&named, world.root.join("moved")).unwrap();
        }
        world.mount("db").await.unwrap();
        let made = Arc::clone(world.service.view().volume("db").unwrap());
        assert!(made.id == id && made.unconfirmed.is_none(), "{left:?}");
        assert_eq!(world.has_data("db"), left == Left::Named, "{left:?}");
        if left != Left::Named {
            let made = std::fs::metadata(&named).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::mode(&made) & 0o7777, 0o711, "{left:?}");
        }
        assert!(world.has_data("other"), "{left:?}");
        assert_eq!(names(&world.root.join(".volhost/new")), BTreeSet::new(), "{left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_is_told_of_although_it_is_not_confirmed_and_its_backend_is_away() {
    let mut world = World::new().await;
    let made = world.create("db").await.unwrap();
    let away = world.root.with_extension("away");
    std::fs::rename(&world.root, &away).unwrap();
    // The state that a start finds if its predecessor died right after the answer.
    world
        .catalog
        .submit(Change::Remove { name: name("db"), id: made.id, at: made.created_at, keep: false })
        .await
        .unwrap();
    let record = Volume { visible: false, unconfirmed: Some(Arc::default()), ..Volume::clone(&made) };
    world.catalog.submit(Change::Insert(record)).await.unwrap();
    world.restart().await;
    world.service.inspect(&engine(), "db").await.expect("it may have been answered");
    assert!(world.mount("db").await.is_err() && world.remove("db").await.is_err());
    std::fs::rename(&away, &world.root).unwrap();
    world.mount("db").await.expect("its directory is there");
    assert!(world.service.view().volume("db").unwrap().unconfirmed.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_record_cannot_be_taken_back_is_finished() {
    for restarted in [false, true] {
        let Some(mut world) = World::shaky().await else { return };
        world.catalog.refuse(|change| matches!(change, Change::Withdraw(..)));
        world.fs().fail_once(Op::Rename, libc::ENOSPC);
        world.create("db").await.unwrap_err();
        world.catalog.refuse(|_| false);
        if restarted {
            world.restart().await;
        }
        world.settle().await;
        world.agrees("afterwards");
        assert!(world.exists("db"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_lies_in_the_trash_is_not_mistaken_for_what_took_its_name() {
    let mut world = World::new().await;
    let id = world.filled("db").await;
    // A kill in a Remove leaves this; then somebody makes a directory of that name.
    std::fs::create_dir_all(world.root.join(".volhost/trash")).unwrap();
    std::fs::rename(world.root.join("db"), world.root.join(".volhost/trash").join(id.to_string())).unwrap();
    std::fs::create_dir(world.root.join("db")).unwrap();
    world.restart().await;
    for _ in 0..2 {
        assert!(matches!(world.mount("db").await, Err(Error::RecoveryPending(_))));
        assert!(matches!(world.remove("db").await, Err(Error::RecoveryPending(_))));
        assert!(matches!(world.create("db").await, Err(Error::RecoveryPending(_))));
        world.create("other").await.expect("other volumes are not concerned");
    }
    std::fs::remove_dir(world.root.join("db")).unwrap();
    world.mount("db").await.unwrap();
    assert!(world.has_data("db"));
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_that_met_an_absent_backend_is_taken_up_when_it_is_back() {
    let world = World::new().await;
    let id = world.filled("db").await;
    world.remove("db").await.unwrap();
    let away = world.root.with_extension("away");
    std::fs::rename(&world.root, &away).unwrap();
    let keeper = tokio::spawn(Arc::clone(&world.service).keep_trash());
    world.service.expire(&id.to_string()).await.unwrap();
    eventually("the purge meets no backend", || state_word(&world.backend().health()) == "offline").await;
    // The purge that noticed it has ended before the directory is back.
    tokio::time::sleep(Duration::from_millis(100)).await;
    std::fs::rename(&away, &world.root).unwrap();
    world.backend().probe(Expect::Nothing).await;
    world.service.recovery.require(&backend_name());
    world.create("other").await.unwrap();
    eventually("the purge is not taken up", || world.service.view().trash.is_empty()).await;
    world.agrees("afterwards");
    keeper.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trash_that_has_to_wait_is_not_tried_without_a_pause() {
    let world = World::new().await;
    let id = world.filled("db").await;
    world.remove("db").await.unwrap();
    world.service.expire(&id.to_string()).await.unwrap();
    // The data goes, but recording that fails.
    world.catalog.refuse(|change| matches!(change, Change::Forget(_)));
    let keeper = tokio::spawn(Arc::clone(&world.service).keep_trash());
    let tries = || world.catalog.refusals.load(Ordering::Relaxed);
    eventually("the trash is not looked through", || tries() > 0).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(tries() < 5, "{} tries in a fifth of a second", tries());
    world.catalog.refuse(|_| false);
    world.service.trash.wake();
    eventually("the purge is not taken up", || world.service.view().trash.is_empty()).await;
    keeper.abort();
}

/// Returns the remains of a removed volume whose deletion has begun.
fn half_deleted(world: &World, id: VolumeId) -> BTreeSet<String> {
    names(&world.root.join(format!(".volhost/deleting-{id}")))
}

/// Makes a removed volume of two files, one of which was deleted before the storage failed.
async fn with_half_deleted(world: &World) -> VolumeId {
    let id = world.filled("db").await;
    std::fs::write(world.root.join("db/more"), "more").unwrap();
    world.remove("db").await.unwrap();
    half_delete(world, id).await;
    id
}

async fn half_delete(world: &World, id: VolumeId) {
    let removed = world.service.find_removed(&id.to_string()).await.unwrap();
    world.fs().fail_after(Op::Unlink, 1, libc::ENOTCONN);
    world.service.purge_volume(&world.backend(), &removed).await.unwrap_err();
    assert_eq!(half_deleted(world, id).len(), 1);
    world.backend().probe(Expect::Nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_deleted_although_the_catalog_has_no_room_to_say_so() {
    let Some(mut world) = World::shaky().await else { return };
    world.catalog.refuse(|change| matches!(change, Change::Expire { .. }));
    // It fails half-way at first: the volume cannot be restored, although no record says so.
    let id = with_half_deleted(&world).await;
    for _ in 0..2 {
        assert!(!world.service.find_removed("db").await.unwrap().expired);
        let refused = world.service.restore(&operator(), "db").await.unwrap_err();
        assert!(matches!(refused, Error::BeingDeleted(_)), "{refused}");
        assert_eq!(half_deleted(&world, id).len(), 1);
        world.restart_with(|change| matches!(change, Change::Expire { .. })).await;
    }
    world.settle().await;
    let removed = world.service.find_removed("db").await.unwrap();
    assert_eq!(world.service.purge_volume(&world.backend(), &removed).await.unwrap(), PurgeTurn::Done);
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_deletion_began_is_not_restored() {
    let Some(mut world) = World::shaky().await else { return };
    let id = with_half_deleted(&world).await;
    for _ in 0..2 {
        let refused = world.service.restore(&operator(), "db").await.unwrap_err();
        assert!(matches!(refused, Error::BeingDeleted(_)), "{refused}");
        assert!(world.service.view().volumes.is_empty());
        world.restart().await;
    }
    let removed = world.service.find_removed(&id.to_string()).await.unwrap();
    world.service.purge_volume(&world.backend(), &removed).await.unwrap();
    world.agrees("afterwards");
}

/// A catalog that does not know of a begun deletion learns it from the backend, as soon as it has room for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_no_record_tells_of_is_recorded_when_the_backend_is_looked_through() {
    let Some(world) = World::shaky().await else { return };
    world.catalog.refuse(|change| matches!(change, Change::Expire { .. }));
    let id = with_half_deleted(&world).await;
    world.catalog.refuse(|_| false);
    world.service.recovery.require(&backend_name());
    world.settle().await;
    assert!(world.service.view().trash[&id].expired);
}

/// An imported older export has the volume; the remains of its data do not come back as if they were whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_deleted_volume_does_not_come_back_by_an_older_catalog() {
    let Some(mut world) = World::shaky().await else { return };
    let id = world.filled("db").await;
    std::fs::write(world.root.join("db/more"), "more").unwrap();
    world.catalog.close().await;
    let (catalog, older) = (world.dir.path().join("catalog"), world.dir.path().join("older"));
    std::fs::create_dir(&older).unwrap();
    std::fs::copy(catalog.join("catalog.db"), older.join("catalog.db")).unwrap();
    world.restart().await;
    world.remove("db").await.unwrap();
    half_delete(&world, id).await;
    world.catalog.close().await;
    std::fs::remove_dir_all(&catalog).unwrap();
    std::fs::rename(&older, &catalog).unwrap();
    world.restart().await;
    world.settle().await;
    assert!(world.exists("db") && !world.root.join("db").exists(), "half of it came back");
    assert!(matches!(world.mount("db").await, Err(Error::DirectoryGone { .. })));
    assert_eq!(half_deleted(&world, id).len(), 1);
    // Its Remove deletes the rest.
    world.remove("db").await.unwrap();
    assert!(matches!(world.service.restore(&operator(), "db").await, Err(Error::BeingDeleted(_))));
    world.settle().await;
    let removed = world.service.find_removed("db").await.unwrap();
    assert!(removed.expired);
    world.service.purge_volume(&world.backend(), &removed).await.unwrap();
    world.agrees("afterwards");
}

/// The same, but the volume was brought back from a backup: the remains of the earlier deletion are no part of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_deletion_left_is_no_part_of_a_volume_brought_back_from_a_backup() {
    let world = World::new().await;
    let id = world.filled("db").await;
    let left = world.root.join(format!(".volhost/deleting-{id}"));
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("more"), "more").unwrap();
    world.service.recovery.require(&backend_name());
    world.mount("db").await.unwrap();
    world.service.unmount(&engine(), &name("db"), &mount_id()).await.unwrap();
    world.remove("db").await.unwrap();
    world.service.recovery.require(&backend_name());
    world.service.restore(&operator(), "db").await.unwrap();
    assert!(world.has_data("db") && left.exists());
    world.remove("db").await.unwrap();
    let removed = world.service.find_removed("db").await.unwrap();
    world.service.purge_volume(&world.backend(), &removed).await.unwrap();
    assert!(!left.exists());
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_that_cannot_be_marked() {
    let Some(world) = World::shaky().await else { return };
    for (op, errno) in [(Op::Rename, libc::ENOSPC), (Op::Rename, libc::EIO), (Op::Fsyncdir, libc::EIO)] {
        let id = world.filled("db").await;
        world.remove("db").await.unwrap();
        let removed = world.service.find_removed(&id.to_string()).await.unwrap();
        world.fs().fail_once(op, errno);
        let unlinks = world.fs().seen(Op::Unlink);
        world.service.purge_volume(&world.backend(), &removed).await.unwrap_err();
        assert_eq!(world.fs().seen(Op::Unlink), unlinks, "{op:?}");
        world.fs().behave();
        world.service.purge_volume(&world.backend(), &removed).await.unwrap();
        world.agrees("afterwards");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_fails_is_passed_over_and_taken_up_again() {
    let Some(world) = World::shaky().await else { return };
    for errno in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EACCES] {
        let id = world.filled("db").await;
        for number in 0..20 {
            std::fs::write(world.root.join(format!("db/{number}")), "").unwrap();
        }
        world.remove("db").await.unwrap();
        let removed = world.service.find_removed(&id.to_string()).await.unwrap();
        world.fs().fail_after(Op::Unlink, 3, errno);
        assert_eq!(
            world.service.purge_volume(&world.backend(), &removed).await.unwrap(),
            PurgeTurn::Done,
            "{errno}"
        );
        world.agrees("afterwards");
    }
}

/// Measures the CPU time of this process for Creates and Removes beside so many removed volumes.
async fn cost_beside(removed: usize) -> Duration {
    const ROUNDS: u32 = 300;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let (catalog, _) = begin(dir.path(), &root).await;
    let mut view = View::clone(&catalog.view());
    catalog.close().await;
    let at = OffsetDateTime::now_utc();
    for number in 0..removed {
        let volume = Volume {
            id: VolumeId::random(),
            name: name(&format!("removed-{number}")),
            backend: backend_name(),
            options: Options::default(),
            created_at: at,
            adopted: false,
            known_to: Vec::new(),
            mounts: crate::model::mounts::Ledger::default(),
            visible: false,
            unconfirmed: None,
        };
        view.trash.insert(Arc::new(Removed { volume: Arc::new(volume), at, expired: false }));
    }
    std::fs::remove_dir_all(dir.path().join("catalog")).unwrap();
    let path = dir.path().join("catalog/catalog.db");
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    crate::catalog::sqlite::NewCatalog::if_missing(&path).unwrap().fill(&view).unwrap();
    let (catalog, service) = begin(dir.path(), &root).await;
    let world = World { service, catalog, root, fs: None, dir };
    assert!(world.service.view().trash.len() >= removed);
    let keeper = tokio::spawn(Arc::clone(&world.service).keep_trash());
    // In ticks of 10 ms, which is fine enough for so many rounds.
    let cpu = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let after_name = stat.rsplit(')').next().unwrap().split_whitespace();
        let ticks: u64 = after_name.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    };
    let before = cpu();
    for _ in 0..ROUNDS {
        world.create("db").await.unwrap();
        world.remove("db").await.unwrap();
    }
    let after = cpu();
    keeper.abort();
    (after - before) / ROUNDS
}

/// `cargo nextest run --release --lib --run-ignored only -E 'test(a_full_trash_costs)' --no-capture`
#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures: takes half a minute, and a machine that does nothing else"]
async fn a_full_trash_costs_a_remove_nothing() {
    let (empty, full) = (cost_beside(0).await, cost_beside(100_000).await);
    eprintln!(
        "CPU of a Create and a Remove: {empty:?} beside an empty trash, {full:?} beside 100,000 removed volumes"
    );
    assert!(full < 2 * empty, "{full:?}, not {empty:?}");
}

/// A volume that is written to, or large, does not hold up others: they take turns.
#[tokio::test(flavor = "multi_thread")]
async fn removed_volumes_take_turns() {
    let world = World::new().await;
    world.filled("written").await;
    let (large, small) = (world.filled("large").await, world.filled("small").await);
    for number in 0..20_000 {
        std::fs::write(world.root.join(format!("large/{number}")), "").unwrap();
    }
    let written = std::fs::File::open(world.root.join("written")).unwrap();
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            for number in 0.. {
                let file = rustix::fs::openat(&written, format!("{number}"), flags, rustix::fs::Mode::RUSR);
                if over.load(Ordering::Relaxed) {
                    break;
                }
                if file.is_err() {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
    // In this order, so that the small one is the last.
    for text in ["written", "large", "small"] {
        world.remove(text).await.unwrap();
        world.service.expire(text).await.unwrap();
    }
    let keeper = tokio::spawn(Arc::clone(&world.service).keep_trash());
    eventually("both are deleted", || world.catalog.forgotten.lock().unwrap().len() == 2).await;
    assert_eq!(*world.catalog.forgotten.lock().unwrap(), [small, large], "the small one was held up");
    over.store(true, Ordering::Relaxed);
    writer.join().unwrap();
    keeper.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remove_that_took_too_long_is_never_carried_out() {
    for op in [Op::Opendir, Op::Rename, Op::Fsyncdir] {
        let Some(mut world) = World::shaky().await else { return };
        let id = world.filled("db").await;
        world.fs().hang_on(op, true);
        assert!(matches!(world.remove("db").await, Err(Error::TooLong { .. })), "{op:?}");
        world.fs().hang_on(op, false);
        eventually("the operation ends", || {
            world.service.lock_directory_locally(&backend_name(), id).is_some()
        })
        .await;
        world.mount("db").await.unwrap();
        assert!(world.has_data("db"), "{op:?}");
        world.agrees("afterwards");
        world.restart().await;
        assert!(world.has_data("db"), "{op:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_took_too_long_is_never_carried_out() {
    let Some(world) = World::shaky().await else { return };
    let id = world.filled("db").await;
    world.remove("db").await.unwrap();
    world.service.recovery.require(&backend_name());
    world.fs().hang(true);
    assert!(matches!(world.service.restore(&operator(), "db").await, Err(Error::TooLong { .. })));
    world.fs().hang(false);
    // The name is free once the operation has noticed.
    world.create("db").await.unwrap();
    assert!(world.service.view().trash.contains_key(&id));
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_took_too_long_before_its_record_is_undone() {
    let Some(world) = World::shaky().await else { return };
    for op in [Op::Opendir, Op::Mkdir] {
        world.fs().hang_on(op, true);
        assert!(matches!(world.create("db").await, Err(Error::TooLong { .. })), "{op:?}");
        world.fs().hang_on(op, false);
        // Waits for the name, and then finds it free.
        world.remove("db").await.unwrap();
        world.settle().await;
        assert!(world.service.view().volumes.is_empty() && world.service.view().trash.is_empty(), "{op:?}");
        world.agrees("afterwards");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_whose_record_takes_its_time_is_made_all_the_same() {
    let world = World::new().await;
    world.catalog.delay_by(LIMIT / 8, |change| matches!(change, Change::Insert(_)));
    world.create("db").await.unwrap();
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn creates_that_wait_for_the_catalog_keep_no_other_operation_from_the_backend() {
    let world = World::new().await;
    world.filled("db").await;
    world.catalog.delay(|change| matches!(change, Change::Insert(_)));
    let create = |number| {
        let service = Arc::clone(&world.service);
        tokio::spawn(async move {
            service.create(&engine(), name(&format!("new-{number}")), Options::default()).await
        })
    };
    let creates: Vec<_> = (0..backend::SLOTS).map(create).collect();
    eventually("they are recorded", || world.service.view().volumes.len() > backend::SLOTS).await;
    // All that the backend takes at once wait for longer than this may take.
    world.mount("db").await.unwrap();
    for create in creates {
        assert!(matches!(create.await.unwrap(), Err(Error::TooLong { .. })));
    }
    // The record is taken back first.
    eventually("they are undone", || names(&world.root.join(".volhost/new")).is_empty()).await;
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_that_ends_after_its_limit_is_taken_back() {
    let world = World::new().await;
    world.filled("db").await;
    world.catalog.delay(|change| matches!(change, Change::Mount { .. }));
    assert!(matches!(world.mount("db").await, Err(Error::TooLong { .. })));
    world.catalog.delay(|_| false);
    assert_eq!(world.service.view().volume("db").unwrap().mounts.len(), 1, "it was recorded, too late");
    world.remove("db").await.expect("waits for the mount's end, and finds it taken back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_mount_is_taken_back_also_while_the_catalog_cannot_be_written() {
    let world = World::new().await;
    world.filled("db").await;
    world.catalog.delay(|change| matches!(change, Change::Mount { .. }));
    world.catalog.refuse(|change| matches!(change, Change::TakeBack { .. }));
    assert!(matches!(world.mount("db").await, Err(Error::TooLong { .. })));
    tokio::time::sleep(LIMIT).await;
    world.catalog.delay(|_| false);
    world.catalog.refuse(|_| false);
    eventually("it is taken back", || world.service.view().volume("db").unwrap().mounts.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_is_answered_about_a_hung_backend_too() {
    let Some(world) = World::shaky().await else { return };
    world.fs().hang(true);
    let patience = 2 * LIMIT;
    let adopted = tokio::time::timeout(patience, world.service.adopt_backend(&backend_name())).await;
    assert!(matches!(adopted.expect("no answer"), Err(Error::TooLong { .. })));
    let begun = tokio::time::timeout(patience, world.service.init_backend(&backend_name(), true)).await;
    assert!(matches!(begun.expect("no answer"), Err(Error::TooLong { .. })));
    world.fs().hang(false);
    world.create("db").await.unwrap();
    world.agrees("afterwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_waits_neither_for_a_backend_nor_for_an_operation_that_does() {
    let Some(world) = World::shaky().await else { return };
    world.filled("db").await;
    world.mount("db").await.unwrap();
    world.fs().hang(true);
    let service = Arc::clone(&world.service);
    let other = MountId::parse("two").unwrap();
    let mounting = tokio::spawn(async move { service.mount(&engine(), name("db"), other).await });
    assert!(world.fs().wait_for_hanging(1, Duration::from_secs(10)));
    let (caller, volume, id) = (engine(), name("db"), mount_id());
    let unmount = world.service.unmount(&caller, &volume, &id);
    tokio::time::timeout(LIMIT / 2, unmount).await.expect("it waited").unwrap();
    world.fs().hang(false);
    let _ = mounting.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_cannot_be_written_leaves_everything_as_it_was() {
    let world = World::new().await;
    world.filled("db").await;
    let removed = world.filled("removed").await;
    world.remove("removed").await.unwrap();
    world.catalog.refuse(|change| !matches!(change, Change::Publish(..)));
    let failed =
        |error: Error| assert!(matches!(error, Error::Catalog(CatalogError::Write { .. })), "{error}");
    for _ in 0..2 {
        failed(world.create("new").await.unwrap_err());
        failed(world.remove("db").await.unwrap_err());
        failed(world.mount("db").await.unwrap_err());
        failed(world.service.restore(&operator(), "removed").await.unwrap_err());
        failed(world.service.expire("removed").await.unwrap_err());
        world.agrees("while the disk is full");
        assert!(world.has_data("db") && world.exists("db") && !world.exists("new"));
        assert!(world.service.view().trash.contains_key(&removed));
    }
    world.catalog.refuse(|_| false);
    world.create("new").await.unwrap();
    world.service.restore(&operator(), "removed").await.unwrap();
    assert!(world.has_data("removed"));
    world.remove("db").await.unwrap();
    world.agrees("with room again");
}

/// Each kind of request that the operations send, with errors after which it may or may not have been done, and some
/// that say which.
const FAULTS: &[(Op, bool, i32)] = &[
    (Op::Lookup, false, libc::EIO),
    (Op::Getattr, false, libc::ESTALE),
    (Op::Setattr, false, libc::EIO),
    (Op::Opendir, false, libc::EIO),
    (Op::Readdir, false, libc::EIO),
    (Op::Mkdir, false, libc::ENOSPC),
    (Op::Mkdir, true, libc::EIO),
    (Op::Rmdir, false, libc::EIO),
    (Op::Rmdir, true, libc::EIO),
    (Op::Rename, false, libc::EIO),
    (Op::Rename, false, libc::ENOSPC),
    (Op::Rename, true, libc::EIO),
    (Op::Rename, true, libc::ENOENT),
    (Op::Fsyncdir, false, libc::EIO),
];

/// Runs an operation once for each request that it sends to the storage, and lets that request fail. `check` learns
/// whether the operation succeeded, and examines the result, before and after a restart.
async fn with_each_fault(
    before: impl AsyncFn(&World),
    operation: impl AsyncFn(&World) -> Result<(), Error>,
    check: impl Fn(&World, bool, &str),
) {
    let Some(mut world) = World::shaky().await else { return };
    before(&world).await;
    for (op, lost, errno) in FAULTS {
        for after in 0.. {
            // Recovers the backend each time, as after a failure.
            world.service.recovery.require(&backend_name());
            if *lost {
                world.fs().lose_answer_after(*op, after, *errno);
            } else {
                world.fs().fail_after(*op, after, *errno);
            }
            let answer = operation(&world).await;
            let shown = world.fs().was_shown();
            world.fs().behave();
            let what = format!("{op:?} number {after} {}: {answer:?}", if *lost { "lost" } else { "failed" });
            world.settle().await;
            world.agrees(&what);
            check(&world, answer.is_ok(), &what);
            world.restart().await;
            world.agrees(&format!("{what}, restarted"));
            check(&world, answer.is_ok(), &format!("{what}, restarted"));
            // Starts again with an empty state.
            for text in ["db", "kept"] {
                world.remove(text).await.unwrap();
            }
            for removed in world.service.trash() {
                world.service.purge_volume(&world.backend(), &removed.removed).await.unwrap();
            }
            before(&world).await;
            if !shown {
                assert!(answer.is_ok(), "{what}");
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_whole_or_not_at_all_whatever_the_storage_fails_at() {
    with_each_fault(
        async |world| {
            world.filled("kept").await;
        },
        async |world| world.create("db").await.map(drop),
        |world, answered, what| {
            assert!(world.exists("db") || !answered, "{what}: what was answered is not there");
            assert!(world.has_data("kept"), "{what}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remove_is_done_or_nothing_is_removed_whatever_the_storage_fails_at() {
    with_each_fault(
        async |world| {
            world.filled("kept").await;
            world.filled("db").await;
        },
        async |world| world.remove("db").await.map(drop),
        |world, answered, what| {
            // Never removed after an error: the caller believes that its data exists.
            assert_eq!(world.exists("db"), !answered, "{what}");
            assert_eq!(world.has_data("db"), !answered, "{what}");
            assert!(world.has_data("kept"), "{what}");
            if answered {
                let id = world.service.view().removed("db").unwrap().volume.id;
                let data = world.root.join(".volhost/trash").join(id.to_string()).join("data");
                assert_eq!(std::fs::read_to_string(data).unwrap(), "db", "{what}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_loses_no_data_whatever_the_storage_fails_at() {
    with_each_fault(
        async |world| {
            world.filled("kept").await;
            world.filled("db").await;
            world.remove("db").await.unwrap();
        },
        async |world| world.service.restore(&operator(), "db").await.map(drop),
        |world, answered, what| {
            assert!(world.exists("db") || !answered, "{what}: what was answered is not there");
            if world.exists("db") {
                assert!(world.has_data("db"), "{what}");
            } else {
                let id = world.service.view().removed("db").unwrap().volume.id;
                let data = world.root.join(".volhost/trash").join(id.to_string()).join("data");
                assert_eq!(std::fs::read_to_string(data).unwrap(), "db", "{what}");
            }
            assert!(world.has_data("kept"), "{what}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_gets_one_identity_whatever_the_storage_fails_at() {
    for (op, lost, errno) in FAULTS.iter().copied().chain([
        (Op::Create, false, libc::EIO),
        (Op::Create, true, libc::EIO),
        (Op::Write, false, libc::EIO),
        (Op::Fsync, false, libc::EIO),
    ]) {
        for after in 0.. {
            if !rustix::process::geteuid().is_root() {
                return;
            }
            let mut world = World::on(|dir| {
                std::fs::create_dir(dir.join("backing")).unwrap();
                let fs = FuseFs::mount(&dir.join("backing"), &dir.join("root")).unwrap();
                if lost {
                    fs.control().lose_answer_after(op, after, errno);
                } else {
                    fs.control().fail_after(op, after, errno);
                }
                Some(fs)
            })
            .await;
            let shown = world.fs().was_shown();
            world.fs().behave();
            let what = format!("{op:?} number {after} {}", if lost { "lost" } else { "failed" });
            world.settle().await;
            world.filled("db").await;
            world.restart().await;
            world.settle().await;
            assert!(world.has_data("db"), "{what}");
            world.agrees(&what);
            if !shown {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_copy_is_written_after_a_change_and_only_then() {
    let world = World::new().await;
    let backend = world.backend();
    let path = world.root.join(".volhost/catalog.jsonl");
    let copy = || crate::catalog::text::parse(&*std::fs::read(&path).unwrap()).unwrap();
    assert!(world.service.copy(&backend).await.unwrap());
    assert!(!world.service.copy(&backend).await.unwrap(), "nothing was changed");
    let first = copy();
    world.create("db").await.unwrap();
    assert!(world.service.copy(&backend).await.unwrap());
    let second = copy();
    assert_eq!(second.view.volumes, world.service.view().volumes);
    assert!(second.at > first.at);
    // A host that was seen again is not worth a copy, but a new host is.
    world.service.note_seen(&called("web9", None), None);
    world.service.write_seen().await;
    assert!(world.service.copy(&backend).await.unwrap());
    world.service.note_seen(&called("web9", None), None);
    world.service.write_seen().await;
    assert!(!world.service.copy(&backend).await.unwrap());
}

#[tokio::test]
async fn an_issuer_is_recorded_at_once_but_not_by_every_request() {
    let world = World::new().await;
    let host = HostName::parse("web9").unwrap();
    let issuer = || world.service.view().hosts.get(&host).and_then(|host| host.last_issuer.clone());
    let call =
        |issuer| world.service.note_seen(&called("web9", None), Some(CertificateId { issuer, serial: "1" }));
    call("CN=one");
    world.service.write_seen().await;
    let mut recorded = Vec::new();
    for number in 0..10 {
        call(if number % 2 == 0 { "CN=one" } else { "CN=two" });
        // The catalog decides in order: this waits for everything submitted before.
        world.service.catalog.submit(Change::Seen(Vec::new())).await.unwrap();
        recorded.extend(issuer());
    }
    let expected = ["CN=one", "CN=two", "CN=one"].into_iter().chain(["CN=two"; 7]);
    assert!(recorded.iter().eq(expected), "{recorded:?}");
    world.service.write_seen().await;
    call("CN=one");
    world.service.write_seen().await;
    assert_eq!(issuer().as_deref(), Some("CN=one"));
}

#[tokio::test]
async fn a_copy_that_fails_leaves_a_whole_one() {
    let Some(world) = World::shaky().await else { return };
    let backend = world.backend();
    assert!(world.service.copy(&backend).await.unwrap());
    let whole = |name: &str| {
        std::fs::read(world.root.join(".volhost").join(name))
            .is_ok_and(|text| crate::catalog::text::parse(&*text).is_ok())
    };
    world.create("db").await.unwrap();
    for (op, after) in [(Op::Write, 0), (Op::Fsync, 0), (Op::Create, 0), (Op::Rename, 0), (Op::Rename, 1)] {
        world.fs().fail_after(op, after, libc::EIO);
        assert!(world.service.copy(&backend).await.is_err(), "{op:?} {after}");
        world.fs().behave();
        assert!(whole("catalog.jsonl") || whole("catalog.jsonl.before"), "{op:?} {after}");
    }
    assert!(world.service.copy(&backend).await.unwrap());
    assert!(whole("catalog.jsonl"));
}

fn is_confirmed(world: &World, text: &str) -> bool {
    world.service.view().volume(text).unwrap().unconfirmed.is_none()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_volumes_are_confirmed_behind_their_answers() {
    let world = World::new().await;
    let confirming = tokio::spawn(Arc::clone(&world.service).keep_confirming());
    let texts: Vec<_> = (0..100).map(|number| format!("volume-{number}")).collect();
    for made in futures_util::future::join_all(texts.iter().map(|text| world.create(text))).await {
        assert!(made.unwrap().unconfirmed.is_some(), "its answer waited for the directory");
    }
    eventually("all are confirmed", || texts.iter().all(|text| is_confirmed(&world, text))).await;
    confirming.abort();
    // The end of the service does not wait for the next flush.
    world.create("last").await.unwrap();
    world.service.confirm_last(LIMIT).await;
    assert!(is_confirmed(&world, "last"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_that_fails_confirms_nothing_and_is_tried_again() {
    let Some(world) = World::shaky().await else { return };
    world.fs().fail_once(Op::Fsyncdir, libc::EIO);
    let confirming = tokio::spawn(Arc::clone(&world.service).keep_confirming());
    world.create("db").await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!is_confirmed(&world, "db"), "its directory may not outlast a power cut");
    eventually("it is confirmed", || is_confirmed(&world, "db")).await;
    confirming.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_waits_for_its_directory_where_the_backend_asks_for_that() {
    let Some(world) = World::shaky().await else { return };
    let settings = BackendSettings { durable_directories: true, ..world.backend().settings().clone() };
    let map = Map::build(&world.service.in_force().map, BTreeMap::from([(backend_name(), settings)]));
    world.service.put_in_force(InForce { map, access: Access::default(), limits: limits() });
    world.create("first").await.unwrap();
    assert!(is_confirmed(&world, "first"));
    world.fs().fail_once(Op::Fsyncdir, libc::EIO);
    world.create("db").await.unwrap_err();
    world.settle().await;
    world.agrees("after a create that failed");
}
