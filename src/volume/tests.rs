//! The service as a whole, on a real catalog and on storage that fails on command: whatever fails, what was answered
//! holds, and what was not is finished or undone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tempfile::TempDir;

use super::*;
use crate::backend::fuse::{FuseFs, Op};
use crate::backend::{Map, Settings};
use crate::catalog::{CatalogError, Location, Submitted};
use crate::host::Via;

/// How long a request may take here: long enough for a slow machine, short enough to be waited for.
const LIMIT: Duration = Duration::from_secs(2);

/// A catalog that can be told to fail.
struct Unwilling {
    inner: Arc<dyn Catalog>,
    refused: Mutex<fn(&Change) -> bool>,
}

impl Unwilling {
    /// Answers changes of this kind as a full disk does, from now on.
    fn refuse(&self, which: fn(&Change) -> bool) {
        *self.refused.lock().unwrap() = which;
    }
}

impl Catalog for Unwilling {
    fn view(&self) -> Arc<View> {
        self.inner.view()
    }

    fn submit(&self, change: Change) -> Submitted {
        let refused = *self.refused.lock().unwrap();
        if refused(&change) {
            let source = Arc::new(std::io::Error::from_raw_os_error(libc::ENOSPC));
            return Box::pin(async {
                Err(CatalogError::Write { location: "the test's catalog".into(), source })
            });
        }
        self.inner.submit(change)
    }

    fn location(&self) -> &str {
        self.inner.location()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.inner.close()
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
    /// On a directory.
    async fn new() -> Self {
        Self::on(|_| None).await
    }

    /// On a file system that fails on command; nothing, without the rights to mount one.
    async fn shaky() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can mount a file system");
            return None;
        }
        let mount = |dir: &Path| {
            std::fs::create_dir(dir.join("backing")).unwrap();
            Some(FuseFs::mount(&dir.join("backing"), &dir.join("root")).unwrap())
        };
        Some(Self::on(mount).await)
    }

    async fn on(mount: impl FnOnce(&Path) -> Option<FuseFs>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let fs = mount(dir.path());
        let (catalog, service) = begin(dir.path(), &root).await;
        Self { service, catalog, root, fs, dir }
    }

    fn fs(&self) -> &crate::backend::fuse::Control {
        self.fs.as_ref().unwrap().control()
    }

    /// Ends and starts again, as a program does that is killed: nothing but the files remains.
    async fn restart(&mut self) {
        self.catalog.close().await;
        (self.catalog, self.service) = begin(self.dir.path(), &self.root).await;
    }

    async fn create(&self, text: &str) -> Result<Arc<Volume>, Error> {
        self.service.create(&engine(), name(text), options::Options::default()).await
    }

    async fn remove(&self, text: &str) -> Result<Option<VolumeId>, Error> {
        self.service.remove(&engine(), name(text)).await
    }

    async fn mount(&self, text: &str) -> Result<Seen, Error> {
        self.service.mount(&engine(), name(text), mount_id()).await
    }

    /// A volume with a file in it.
    async fn filled(&self, text: &str) -> VolumeId {
        let volume = self.create(text).await.unwrap();
        std::fs::write(self.root.join(text).join("data"), text).unwrap();
        volume.id
    }

    /// Looks through the backend as its next operation would.
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
        assert_eq!(names(&self.root.join(".volhost/trash")), trash, "{when}: the trash on disk and as recorded");
    }
}

async fn begin(dir: &Path, root: &Path) -> (Arc<Unwilling>, Arc<Service>) {
    let inner = crate::catalog::open(&Location::Sqlite(dir.join("catalog/catalog.db"))).unwrap();
    let catalog = Arc::new(Unwilling { inner, refused: Mutex::new(|_| false) });
    let settings = Settings {
        path: root.into(),
        mountpoint: root.into(),
        draining: false,
        require_mount: false,
        trash: Duration::from_secs(3600),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mode: options::Mode::parse("0755").unwrap(),
    };
    let map = Map::build(&Map::default(), BTreeMap::from([(backend_name(), settings)]));
    let in_force = InForce { map, access: Access::default(), request: LIMIT };
    let shared: Arc<dyn Catalog> = Arc::clone(&catalog) as _;
    let service = Arc::new(Service::new(shared, in_force));
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

fn mount_id() -> name::MountId {
    name::MountId::parse("one").unwrap()
}

fn engine() -> Caller {
    Caller { host: HostName::parse("web1").unwrap(), via: Via::Tls }
}

fn operator() -> Caller {
    Caller { host: HostName::parse("store1").unwrap(), via: Via::Admin }
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
    let moving = world.service.moving(&backend_name(), id).unwrap();
    // A remover's rename was done, and neither recorded nor put back.
    std::fs::create_dir_all(world.root.join(".volhost/trash")).unwrap();
    std::fs::rename(world.root.join("db"), world.root.join(".volhost/trash").join(id.to_string())).unwrap();
    moving.leave_half_done();
    world.service.mark_unmended(&backend_name());
    // Another operation comes between, and passes over what is being moved.
    world.create("other").await.unwrap();
    assert!(!world.root.join("db").exists());
    drop(moving);
    world.mount("db").await.unwrap();
    assert!(world.has_data("db"));
}
