//! Several instances on one catalog and one storage. Each has its own view, which may be stale; any of them may stand
//! still for long enough to be taken for lost, and go on without knowing.

use std::collections::{HashMap, HashSet};
use std::future::ready;
use std::sync::atomic::AtomicBool;

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::*;
use crate::backend::{Health, VolumeState};
use crate::catalog::{BackendState, CatalogFuture, DistributedLock, Outcome, PeerEvents, Refusal, Removed};
use crate::model::backend_settings::BackendSettings;
use crate::volume::recovery_state::Leftovers;

/// The state that all instances share: the rules on one view, and the directory locks.
#[derive(Default)]
struct Cluster {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    view: View,
    /// The directory locks, each with a number that distinguishes it from a later lock on the same volume.
    locks: HashMap<VolumeId, (usize, u64)>,
    last_lock: u64,
    /// The instance that is making or restoring each hidden volume.
    making: HashMap<VolumeId, (usize, VolumeName)>,
    /// Every change that was made, and its instance.
    made: Vec<(usize, Change)>,
}

impl Cluster {
    fn decide(&self, instance: usize, change: Change) -> Result<Outcome, Refusal> {
        let mut held = self.held.lock().unwrap();
        let (outcome, _) = held.view.apply(change.clone())?;
        match &change {
            Change::Insert(volume) => drop(held.making.insert(volume.id, (instance, volume.name.clone()))),
            Change::Restore(id) => {
                let name = outcome.after.as_ref().unwrap().name.clone();
                held.making.insert(*id, (instance, name));
            }
            Change::Publish(_, id)
            | Change::Withdraw(_, id)
            | Change::Unrestore { id, .. }
            | Change::Remove { id, .. } => drop(held.making.remove(id)),
            _ => {}
        }
        held.made.push((instance, change));
        Ok(outcome)
    }

    /// Takes an instance for lost, as when a lease has run out.
    fn lose(&self, lost: usize) {
        let mut held = self.held.lock().unwrap();
        held.locks.retain(|_, (owner, _)| *owner != lost);
        let made: Vec<_> = held.making.iter().filter(|(_, (owner, _))| *owner == lost).collect();
        let made: Vec<_> = made.into_iter().map(|(id, (_, name))| (*id, name.clone())).collect();
        for (id, name) in made {
            held.making.remove(&id);
            let volume = Volume::clone(&held.view.volumes[&name]);
            held.view.volumes.insert(name, Arc::new(Volume { visible: true, ..volume }));
        }
    }

    fn count(&self, which: impl Fn(&Change) -> bool) -> usize {
        self.held.lock().unwrap().made.iter().filter(|(_, change)| which(change)).count()
    }
}

/// Returns true for the changes concerned.
type Which = fn(&Change) -> bool;

/// The moment when a change stands still.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Still {
    Before,
    After,
}

/// One instance's connection to the catalog.
struct Instance {
    cluster: Arc<Cluster>,
    number: usize,
    /// The view of the last sync, while the instance does not follow changes.
    old: Arc<ArcSwap<View>>,
    stale: AtomicBool,
    unreachable: AtomicBool,
    /// True if requests get no answer.
    silent: AtomicBool,
    syncs: AtomicUsize,
    still: Mutex<Option<(Still, Which)>>,
    /// True if the next directory lock stands still once it is granted.
    stops_at_lock: AtomicBool,
    stands: Arc<Notify>,
    goes_on: Arc<Notify>,
    peer_events: watch::Sender<PeerEvents>,
}

impl Instance {
    fn new(cluster: &Arc<Cluster>, number: usize) -> Arc<Self> {
        Arc::new(Self {
            cluster: Arc::clone(cluster),
            number,
            old: Arc::default(),
            stale: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            syncs: AtomicUsize::new(0),
            still: Mutex::default(),
            stops_at_lock: AtomicBool::new(false),
            stands: Arc::default(),
            goes_on: Arc::default(),
            peer_events: watch::Sender::default(),
        })
    }

    fn now(&self) -> Arc<View> {
        Arc::new(self.cluster.held.lock().unwrap().view.clone())
    }

    /// Learns nothing of the others from now on unless it asks.
    fn falls_behind(&self) {
        self.old.store(self.now());
        self.stale.store(true, Ordering::Relaxed);
    }

    fn loses_touch(&self, lost: bool) {
        self.falls_behind();
        self.unreachable.store(lost, Ordering::Relaxed);
        self.stale.store(lost, Ordering::Relaxed);
    }

    /// Stands still at the next change of this kind.
    fn stop_at(&self, when: Still, which: Which) {
        *self.still.lock().unwrap() = Some((when, which));
    }

    async fn stopped(&self) {
        tokio::time::timeout(Duration::from_secs(20), self.stands.notified()).await.expect("it went on");
        *self.still.lock().unwrap() = None;
    }

    fn go_on(&self) {
        self.goes_on.notify_one();
    }

    fn syncs(&self) -> usize {
        self.syncs.load(Ordering::Relaxed)
    }

    fn answer<T: Send + 'static>(&self, answer: impl FnOnce() -> T) -> CatalogFuture<T> {
        if self.silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        if self.unreachable.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(unreachable())));
        }
        self.old.store(self.now());
        Box::pin(ready(Ok(answer())))
    }
}

fn unreachable() -> CatalogError {
    CatalogError::Unreachable { location: "the test's".into(), why: Arc::new("no member answers".into()) }
}

impl Catalog for Instance {
    fn view(&self) -> Arc<View> {
        if self.stale.load(Ordering::Relaxed) { self.old.load_full() } else { self.now() }
    }

    fn submit(&self, change: Change) -> Submitted {
        if self.silent.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        if self.unreachable.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(unreachable())));
        }
        let (cluster, number, old) = (Arc::clone(&self.cluster), self.number, Arc::clone(&self.old));
        let still = self.still.lock().unwrap().filter(|(_, which)| which(&change)).map(|(when, _)| when);
        let (stands, goes_on) = (Arc::clone(&self.stands), Arc::clone(&self.goes_on));
        Box::pin(async move {
            let stand = async |when| {
                if still == Some(when) {
                    stands.notify_one();
                    goes_on.notified().await;
                }
            };
            stand(Still::Before).await;
            let decided = cluster.decide(number, change);
            stand(Still::After).await;
            old.store(Arc::new(cluster.held.lock().unwrap().view.clone()));
            Ok(decided?)
        })
    }

    fn sync(&self) -> CatalogFuture<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.answer(|| ())
    }

    fn try_lock(&self, id: VolumeId) -> CatalogFuture<Option<DistributedLock>> {
        let (cluster, number) = (Arc::clone(&self.cluster), self.number);
        let asked = self.answer(move || {
            let mut held = cluster.held.lock().unwrap();
            // The maker of a hidden volume has its lock already.
            match held.making.get(&id) {
                Some((maker, _)) if *maker == number => return Some(DistributedLock::default()),
                Some(_) => return None,
                None => {}
            }
            if held.locks.contains_key(&id) {
                return None;
            }
            held.last_lock += 1;
            let number_of_lock = held.last_lock;
            held.locks.insert(id, (number, number_of_lock));
            drop(held);
            Some(DistributedLock::new(move || {
                let mut held = cluster.held.lock().unwrap();
                if held.locks.get(&id).is_some_and(|(_, latest)| *latest == number_of_lock) {
                    held.locks.remove(&id);
                }
            }))
        });
        if !self.stops_at_lock.swap(false, Ordering::Relaxed) {
            return asked;
        }
        let (stands, goes_on) = (Arc::clone(&self.stands), Arc::clone(&self.goes_on));
        Box::pin(async move {
            let granted = asked.await;
            stands.notify_one();
            goes_on.notified().await;
            granted
        })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn peer_events(&self) -> Option<watch::Receiver<PeerEvents>> {
        Some(self.peer_events.subscribe())
    }

    fn location(&self) -> &str {
        "the test's"
    }

    fn fault(&self) -> Option<Arc<String>> {
        self.unreachable.load(Ordering::Relaxed).then(|| Arc::new("no member answers".into()))
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(ready(()))
    }
}

/// Two instances on one catalog and one backend.
struct Both {
    cluster: Arc<Cluster>,
    catalogs: [Arc<Instance>; 2],
    services: [Arc<Service>; 2],
    root: PathBuf,
    _dir: TempDir,
}

impl Both {
    async fn new() -> Self {
        let both = Self::empty();
        both.bring_up().await;
        // On a slow machine the first check may have been given up; a service checks again.
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while both.services.iter().any(|service| service.established(&backend_name()).is_none()) {
            assert!(std::time::Instant::now() < until, "the backend does not come up");
            both.bring_up().await;
        }
        both
    }

    /// Starts both instances; neither has checked the backend yet.
    fn empty() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        let cluster = Arc::<Cluster>::default();
        let catalogs = [0, 1].map(|number| Instance::new(&cluster, number));
        let services = [0, 1].map(|number: usize| {
            let settings = BackendSettings {
                path: root.clone(),
                // Each map has the path under which its own hosts see the backend.
                mountpoints: PathBuf::from(format!("/mnt/{number}")).into(),
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
            Arc::new(Service::new(Arc::<Instance>::clone(&catalogs[number]), in_force))
        });
        Self { cluster, catalogs, services, root, _dir: dir }
    }

    async fn bring_up(&self) {
        let [one, other] = &self.services;
        let patience = Duration::from_secs(20);
        tokio::join!(one.bring_up(patience), other.bring_up(patience));
    }

    fn backend(&self, number: usize) -> Arc<Backend> {
        Arc::clone(self.services[number].in_force().map.get(&backend_name()).unwrap())
    }

    async fn create(&self, number: usize, text: &str) -> Result<Arc<Volume>, Error> {
        self.services[number].create(&engine(), name(text), Options::default()).await
    }

    async fn remove(&self, number: usize, text: &str) -> Result<Option<VolumeId>, Error> {
        self.services[number].remove(&engine(), name(text)).await
    }

    async fn mount(&self, number: usize, text: &str) -> Result<(), Error> {
        self.services[number].mount(&engine(), name(text), mount_id()).await.map(CountedMount::hand_over)
    }

    async fn unmount(&self, number: usize, text: &str) {
        self.services[number].unmount(&engine(), &name(text), &mount_id()).await.unwrap();
    }

    async fn filled(&self, number: usize, text: &str) -> VolumeId {
        let volume = self.create(number, text).await.unwrap();
        std::fs::write(self.root.join(text).join("data"), text).unwrap();
        volume.id
    }

    fn has_data(&self, text: &str) -> bool {
        std::fs::read_to_string(self.root.join(text).join("data")).is_ok_and(|data| data == text)
    }

    fn trashed_data(&self, id: VolumeId) -> bool {
        self.root.join(".volhost/trash").join(id.to_string()).join("data").exists()
    }

    /// Takes one instance for lost, and tells the other.
    fn lose(&self, lost: usize) {
        self.cluster.lose(lost);
        self.catalogs[1 - lost].peer_events.send_modify(|events| events.lost_instances += 1);
    }

    /// Begins a Remove at the first instance. It stands still between taking the lock and using it, until it was taken
    /// for lost and the other instance has removed the volume.
    async fn overtaken_remove(&self, text: &'static str) -> JoinHandle<Result<Option<VolumeId>, Error>> {
        self.catalogs[0].falls_behind();
        self.catalogs[0].stops_at_lock.store(true, Ordering::Relaxed);
        let service = Arc::clone(&self.services[0]);
        let removing = tokio::spawn(async move { service.remove(&engine(), name(text)).await });
        self.catalogs[0].stopped().await;
        self.lose(0);
        self.remove(1, text).await.unwrap();
        removing
    }

    /// Recovers the backend as that instance's next operation would.
    async fn settle(&self, number: usize) {
        self.services[number].recovery.require(&backend_name());
        self.services[number].ready(&self.backend(number)).await.unwrap();
    }

    /// Fails unless records and directories agree, nothing is half-made and no lock is held.
    #[track_caller]
    fn agrees(&self) {
        let held = self.cluster.held.lock().unwrap();
        let volumes: BTreeSet<_> = held.view.volumes.keys().map(ToString::to_string).collect();
        let trash: BTreeSet<_> = held.view.trash.keys().map(ToString::to_string).collect();
        let whole = |volume: &Arc<Volume>| volume.visible;
        assert!(held.view.volumes.values().all(whole), "a volume is half-made: {:?}", held.view.volumes);
        let mut directories = names(&self.root);
        directories.remove(".volhost");
        assert_eq!(directories, volumes, "directories and volumes");
        assert_eq!(names(&self.root.join(".volhost/new")), BTreeSet::new());
        assert_eq!(names(&self.root.join(".volhost/trash")), trash, "the trash on disk and as recorded");
        assert!(held.locks.is_empty() && held.making.is_empty(), "something stays locked");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_told_at_once_and_what_is_not_only_when_the_catalog_says_so() {
    let both = Both::new().await;
    both.filled(0, "known").await;
    both.catalogs[1].falls_behind();
    both.filled(0, "db").await;
    let syncs = both.catalogs[1].syncs();
    let [_, other] = &both.services;
    other.inspect(&engine(), "known").await.unwrap();
    assert_eq!(both.catalogs[1].syncs(), syncs, "what is known waits for nobody");
    other.inspect(&engine(), "db").await.expect("the catalog knows it");
    assert!(matches!(other.inspect(&engine(), "none").await, Err(Error::NoSuchVolume(_))));
    let syncs = both.catalogs[1].syncs();
    assert!(matches!(other.inspect(&engine(), "a b").await, Err(Error::Name(_))));
    assert_eq!(both.catalogs[1].syncs(), syncs, "what is no name needs no catalog");
    both.catalogs[1].loses_touch(true);
    other.inspect(&engine(), "db").await.expect("it is known");
    let unknown = other.inspect(&engine(), "none").await;
    assert!(matches!(unknown, Err(Error::Catalog(CatalogError::Unreachable { .. }))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_fresh_where_it_can_be_and_told_from_memory_where_it_cannot() {
    let both = Both::new().await;
    both.catalogs[1].falls_behind();
    both.filled(0, "db").await;
    let listed = async || {
        let mut told = Vec::new();
        let mut list = both.services[1].list(&engine()).await;
        list.more(|seen| {
            told.push(seen.volume.name.to_string());
            true
        });
        told
    };
    assert_eq!(listed().await, ["db"]);
    both.catalogs[1].loses_touch(true);
    assert_eq!(listed().await, ["db"]);
    both.catalogs[1].silent.store(true, Ordering::Relaxed);
    let began = std::time::Instant::now();
    assert_eq!(listed().await, ["db"]);
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_created_by_both_is_one_volume() {
    for _ in 0..20 {
        let both = Both::new().await;
        let (one, other) = tokio::join!(both.create(0, "db"), both.create(1, "db"));
        assert_eq!(one.unwrap().id, other.unwrap().id);
        both.agrees();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_is_compared_with_what_there_is_now() {
    let both = Both::new().await;
    let first = both.filled(0, "db").await;
    both.catalogs[1].falls_behind();
    both.remove(0, "db").await.unwrap();
    assert_ne!(both.create(1, "db").await.unwrap().id, first, "it was removed");
    both.catalogs[1].falls_behind();
    let made = both.create(0, "new").await.unwrap();
    assert_eq!(both.create(1, "new").await.unwrap().id, made.id, "it was made meanwhile");
    both.agrees();
    both.catalogs[1].loses_touch(true);
    let refused = both.create(1, "new").await.unwrap_err();
    assert!(matches!(refused, Error::Catalog(CatalogError::Unreachable { .. })), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_and_removes_are_refused_only_for_what_is_true_now() {
    let both = Both::new().await;
    both.catalogs[1].falls_behind();
    let id = both.filled(0, "db").await;
    both.mount(1, "db").await.expect("it was made meanwhile");
    both.catalogs[1].falls_behind();
    both.unmount(0, "db").await;
    assert_eq!(both.remove(1, "db").await.unwrap(), Some(id), "it is not mounted any more");
    both.catalogs[1].falls_behind();
    let id = both.filled(0, "db").await;
    assert_eq!(both.remove(1, "db").await.unwrap(), Some(id), "there is something to do");
    both.agrees();
    both.filled(0, "db").await;
    both.catalogs[1].falls_behind();
    both.mount(0, "db").await.unwrap();
    assert!(matches!(both.remove(1, "db").await, Err(Error::Mounted { .. })));
    assert!(both.has_data("db"));
    both.catalogs[1].loses_touch(true);
    let unknown = both.remove(1, "none").await;
    assert!(matches!(unknown, Err(Error::Catalog(CatalogError::Unreachable { .. }))), "{unknown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_is_told_of_as_it_is_now() {
    let both = Both::new().await;
    both.catalogs[1].falls_behind();
    let id = both.filled(0, "db").await;
    both.remove(0, "db").await.unwrap();
    let back = both.services[1].restore(&operator(), "db").await.unwrap();
    assert_eq!(back.id, id);
    assert!(both.has_data("db"));
    both.remove(1, "db").await.unwrap();
    both.catalogs[1].falls_behind();
    both.services[0].expire("db").await.unwrap();
    let refused = both.services[1].restore(&operator(), "db").await.unwrap_err();
    assert!(matches!(refused, Error::BeingDeleted(_)), "{refused}");
    assert_eq!(refused.blame(), Blame::Caller);
    assert!(both.trashed_data(id));
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn removes_of_one_volume_by_both_are_one() {
    for _ in 0..20 {
        let both = Both::new().await;
        let id = both.filled(0, "db").await;
        let (one, other) = tokio::join!(both.remove(0, "db"), both.remove(1, "db"));
        let done = [one.unwrap(), other.unwrap()];
        assert!(done.contains(&Some(id)), "{done:?}");
        assert!(both.trashed_data(id));
        both.agrees();
    }
}

/// Another operation that must finish something about the directory needs the lock meanwhile.
#[tokio::test]
async fn a_remove_that_waits_for_another_instance_does_not_keep_the_directory() {
    let both = Both::new().await;
    let made = both.create(0, "db").await.unwrap();
    // Recovery would lock its directory, too.
    both.services[0].confirm_last(LIMIT).await;
    let [_, other] = &both.catalogs;
    other.stops_at_lock.store(true, Ordering::Relaxed);
    let service = Arc::clone(&both.services[1]);
    let removing = tokio::spawn(async move { service.remove(&engine(), name("db")).await });
    other.stopped().await;
    assert!(both.cluster.held.lock().unwrap().locks.contains_key(&made.id));
    both.cluster.decide(0, mounted(made.id)).unwrap();
    let syncs = other.syncs();
    other.silent.store(true, Ordering::Relaxed);
    other.go_on();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while other.syncs() == syncs {
        assert!(std::time::Instant::now() < until, "it does not look again");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(both.cluster.held.lock().unwrap().locks.is_empty(), "it keeps the directory while it waits");
    removing.abort();
}

fn is_insert(change: &Change) -> bool {
    matches!(change, Change::Insert(_))
}

fn is_remove(change: &Change) -> bool {
    matches!(change, Change::Remove { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_another_instance_is_at_is_waited_for() {
    let both = Both::new().await;
    both.catalogs[0].stop_at(Still::After, is_insert);
    let service = Arc::clone(&both.services[0]);
    let creating =
        tokio::spawn(async move { service.create(&engine(), name("db"), Options::default()).await });
    both.catalogs[0].stopped().await;
    let service = Arc::clone(&both.services[1]);
    let waiting =
        tokio::spawn(async move { service.create(&engine(), name("db"), Options::default()).await });
    eventually("nobody waits", || {
        both.services[1]
            .recovery
            .of(&backend_name())
            .is_elsewhere(both.cluster.held.lock().unwrap().view.volumes["db"].id)
    })
    .await;
    both.catalogs[0].go_on();
    assert_eq!(creating.await.unwrap().unwrap().id, waiting.await.unwrap().unwrap().id);
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_another_instance_finished_is_answered_as_done() {
    let both = Both::new().await;
    both.catalogs[0].stop_at(Still::After, is_insert);
    let service = Arc::clone(&both.services[0]);
    let creating =
        tokio::spawn(async move { service.create(&engine(), name("db"), Options::default()).await });
    both.catalogs[0].stopped().await;
    both.settle(1).await;
    assert!(!both.root.join("db").exists(), "whoever lives is left alone");
    both.lose(0);
    both.mount(1, "db").await.expect("it is finished by who is left");
    both.catalogs[0].go_on();
    let made = creating.await.unwrap().expect("it is whole");
    assert!(made.visible);
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_another_instance_finished_is_answered_as_done() {
    let both = Both::new().await;
    both.filled(0, "db").await;
    both.remove(0, "db").await.unwrap();
    both.catalogs[0].stop_at(Still::After, |change| matches!(change, Change::Restore(_)));
    let service = Arc::clone(&both.services[0]);
    let restoring = tokio::spawn(async move { service.restore(&operator(), "db").await });
    both.catalogs[0].stopped().await;
    both.lose(0);
    both.mount(1, "db").await.expect("it is finished by who is left");
    both.catalogs[0].go_on();
    restoring.await.unwrap().expect("it is whole");
    assert!(both.has_data("db"));
    both.agrees();
}

/// The events while a Remove stands still between the rename and its record, having lost its lock.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meanwhile {
    /// The volume is put back, and nothing else happens.
    PutBack,
    /// It is mounted.
    Mounted,
    /// The other instance removes it as well.
    Removed,
    /// The same, and it makes another volume of that name.
    MadeAnew,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remove_that_was_taken_for_lost_ends_as_its_record_says() {
    for meanwhile in [Meanwhile::PutBack, Meanwhile::Mounted, Meanwhile::Removed, Meanwhile::MadeAnew] {
        let both = Both::new().await;
        let id = both.filled(0, "db").await;
        both.catalogs[0].stop_at(Still::Before, is_remove);
        let service = Arc::clone(&both.services[0]);
        let removing = tokio::spawn(async move { service.remove(&engine(), name("db")).await });
        both.catalogs[0].stopped().await;
        both.settle(1).await;
        assert!(both.trashed_data(id), "whoever lives is left alone");
        both.lose(0);
        both.mount(1, "db").await.expect("it is put back by who is left");
        assert!(both.has_data("db"));
        if meanwhile != Meanwhile::Mounted {
            both.unmount(1, "db").await;
        }
        if matches!(meanwhile, Meanwhile::Removed | Meanwhile::MadeAnew) {
            both.remove(1, "db").await.unwrap();
        }
        if meanwhile == Meanwhile::MadeAnew {
            both.filled(1, "db").await;
        }
        both.catalogs[0].go_on();
        let removed = removing.await.unwrap();
        if meanwhile == Meanwhile::Mounted {
            assert!(matches!(removed, Err(Error::Mounted { .. })), "{removed:?}");
            assert!(both.has_data("db"));
        } else {
            assert_eq!(removed.unwrap(), Some(id), "{meanwhile:?}");
            assert!(both.trashed_data(id), "{meanwhile:?}");
        }
        assert_eq!(both.has_data("db"), matches!(meanwhile, Meanwhile::Mounted | Meanwhile::MadeAnew));
        both.agrees();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remove_that_cannot_be_recorded_puts_the_directory_back_when_the_catalog_answers() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    both.catalogs[0].stop_at(Still::Before, is_remove);
    let service = Arc::clone(&both.services[0]);
    let removing = tokio::spawn(async move { service.remove(&engine(), name("db")).await });
    both.catalogs[0].stopped().await;
    // The record is refused, and the lock cannot be taken again.
    both.cluster.decide(1, mounted(id)).unwrap();
    both.catalogs[0].loses_touch(true);
    both.catalogs[0].go_on();
    assert!(removing.await.unwrap().is_err());
    assert!(both.trashed_data(id), "nothing is moved on old events");
    both.catalogs[0].loses_touch(false);
    both.mount(0, "db").await.unwrap();
    assert!(both.has_data("db"));
    both.agrees();
}

fn mounted(volume: VolumeId) -> Change {
    let at = OffsetDateTime::UNIX_EPOCH;
    // A mount by an ID that nobody here uses.
    let id = MountId::parse("elsewhere").unwrap();
    Change::Mount { name: name("db"), volume, host: engine().host, id, address: None, at, again: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_instance_left_is_mended_before_anybody_asks_for_it() {
    let both = Both::new().await;
    both.filled(0, "db").await;
    both.catalogs[0].stop_at(Still::Before, is_remove);
    let service = Arc::clone(&both.services[0]);
    let removing = tokio::spawn(async move { service.remove(&engine(), name("db")).await });
    both.catalogs[0].stopped().await;
    let keeper = tokio::spawn(Arc::clone(&both.services[1]).keep_up());
    // The first round comes at once, and finds nothing to repair.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!both.has_data("db"));
    both.lose(0);
    eventually("nobody looks after it", || both.has_data("db")).await;
    keeper.abort();
    removing.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_staged_directory_without_a_record_is_left_for_as_long_as_somebody_may_be_at_it() {
    let both = Both::new().await;
    let staged = both.root.join(".volhost/new").join(VolumeId::random().to_string());
    std::fs::create_dir(&staged).unwrap();
    let recovery = both.services[1].recovery.of(&backend_name());
    for _ in 0..2 {
        both.settle(1).await;
        assert!(staged.exists() && !recovery.is_retry_due());
    }
    recovery.age();
    assert!(recovery.is_retry_due(), "nobody would look again");
    // This does what the next round does.
    both.services[1].check_backend(&both.backend(1)).await;
    assert!(!staged.exists());
    both.agrees();
    assert!(!recovery.is_retry_due());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_instance_is_at_is_looked_at_again_by_itself() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    let recovery = both.services[1].recovery.of(&backend_name());
    recovery.leave(Leftovers { elsewhere: HashSet::from([id]), ..Leftovers::default() });
    assert!(recovery.is_retry_due());
    both.services[1].check_backend(&both.backend(1)).await;
    assert!(!recovery.is_retry_due());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_begin_with_an_empty_directory_agree_on_its_identity() {
    for _ in 0..20 {
        let both = Both::empty();
        both.catalogs[1].falls_behind();
        both.bring_up().await;
        // An attempt may fail for a round.
        both.bring_up().await;
        for number in [0, 1] {
            both.catalogs[number].stale.store(false, Ordering::Relaxed);
            assert!(matches!(*both.backend(number).health(), Health::Online(_)), "{number}");
            both.filled(number, &format!("db{number}")).await;
        }
        let view = both.catalogs[0].now();
        assert_eq!(view.backends[&backend_name()].state, BackendState::Established);
        assert_eq!(both.cluster.count(|change| matches!(change, Change::Introduce(..))), 1);
        assert_eq!(
            names(&both.root.join(".volhost")),
            BTreeSet::from(["backend.json", "new", "trash"].map(Into::into))
        );
        both.agrees();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_directory_is_not_given_an_identity_on_old_news() {
    let both = Both::empty();
    both.catalogs[0].stop_at(Still::Before, |change| matches!(change, Change::Backend(..)));
    let service = Arc::clone(&both.services[0]);
    let first = tokio::spawn(async move { service.bring_up(Duration::from_secs(20)).await });
    both.catalogs[0].stopped().await;
    both.catalogs[1].falls_behind();
    both.catalogs[0].go_on();
    first.await.unwrap();
    // The second instance still believes that the backend is being initialised; its share is not mounted.
    std::fs::rename(&both.root, both.root.with_extension("away")).unwrap();
    std::fs::create_dir(&both.root).unwrap();
    both.services[1].bring_up(Duration::from_secs(20)).await;
    assert_eq!(names(&both.root), BTreeSet::new(), "an unmounted share became a backend");
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_that_say_other_mountpoints_are_not_written_in_turns() {
    let both = Both::new().await;
    let writes = || both.cluster.count(|change| matches!(change, Change::Backend(..)));
    let before = writes();
    for _ in 0..5 {
        both.bring_up().await;
    }
    assert_eq!(writes(), before);
    assert!(before <= 4, "{before} writes to begin with");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_empty_one_trash_without_getting_in_each_others_way() {
    let both = Both::new().await;
    for number in 0..10 {
        let text = format!("db{number}");
        both.filled(number % 2, &text).await;
        both.remove(number % 2, &text).await.unwrap();
        both.services[number % 2].expire(&text).await.unwrap();
    }
    let keepers = both.services.each_ref().map(|service| tokio::spawn(Arc::clone(service).keep_trash()));
    eventually("the trash is not emptied", || both.catalogs[0].now().trash.is_empty()).await;
    for keeper in keepers {
        keeper.abort();
    }
    assert_eq!(both.cluster.count(|change| matches!(change, Change::Forget(_))), 10);
    assert!(both.services.iter().all(|service| service.trash().is_empty()));
    assert_eq!(names(&both.root.join(".volhost/trash")), BTreeSet::new());
}

/// An instance was lost in the middle of a deletion: the others neither restore the remains nor forget to delete them.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_instance_began_to_delete_is_deleted_by_another() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    std::fs::write(both.root.join("db/more"), "more").unwrap();
    both.remove(0, "db").await.unwrap();
    let home = both.root.join(".volhost");
    let left = home.join(format!("deleting-{id}"));
    std::fs::rename(home.join("trash").join(id.to_string()), &left).unwrap();
    std::fs::remove_file(left.join("data")).unwrap();
    both.lose(0);
    let refused = both.services[1].restore(&operator(), "db").await.unwrap_err();
    assert!(matches!(refused, Error::BeingDeleted(_)), "{refused}");
    assert!(left.join("more").exists() && !both.root.join("db").exists());
    both.settle(1).await;
    let removed = both.services[1].find_removed("db").await.unwrap();
    assert!(removed.expired);
    both.services[1].purge_volume(&both.backend(1), &removed).await.unwrap();
    assert!(!left.exists());
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_that_another_instance_may_restore() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    both.remove(0, "db").await.unwrap();
    let removed = both.services[0].find_removed("db").await.unwrap();
    both.catalogs[0].stop_at(Still::Before, |change| matches!(change, Change::Expire { .. }));
    let (service, backend) = (Arc::clone(&both.services[0]), both.backend(0));
    let due = Removed::clone(&removed);
    let purging = tokio::spawn(async move { service.purge_volume(&backend, &due).await });
    both.catalogs[0].stopped().await;
    both.lose(0);
    both.services[1].restore(&operator(), "db").await.unwrap();
    both.catalogs[0].go_on();
    purging.await.unwrap().unwrap_err();
    assert!(both.has_data("db"));
    both.remove(0, "db").await.unwrap();
    both.services[0].restore(&operator(), "db").await.expect("nothing of it was deleted");
    both.remove(0, "db").await.unwrap();
    let removed = both.services[0].find_removed("db").await.unwrap();
    both.catalogs[0].loses_touch(true);
    both.services[0].purge_volume(&both.backend(0), &removed).await.unwrap_err();
    assert!(both.trashed_data(id), "what is not recorded is not deleted");
}

/// The later removal restarts its retention time.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_deletion_spares_what_was_restored_and_removed_again() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    both.remove(0, "db").await.unwrap();
    let due = Removed::clone(&*both.services[0].find_removed("db").await.unwrap());
    both.catalogs[0].stop_at(Still::Before, |change| matches!(change, Change::Expire { .. }));
    let (service, backend) = (Arc::clone(&both.services[0]), both.backend(0));
    let purging = tokio::spawn(async move { service.purge_volume(&backend, &due).await });
    both.catalogs[0].stopped().await;
    both.lose(0);
    both.services[1].restore(&operator(), "db").await.unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    both.remove(1, "db").await.unwrap();
    both.catalogs[0].go_on();
    let refused = purging.await.unwrap();
    assert!(matches!(refused, Err(Error::NotInTrash(_))), "{refused:?}");
    assert!(both.trashed_data(id));
    both.services[0].restore(&operator(), "db").await.expect("nothing of it was deleted");
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_instances_copy_is_enough_for_both() {
    let both = Both::new().await;
    let path = both.root.join(".volhost/catalog.jsonl");
    let copied = || crate::catalog::text::parse(&*std::fs::read(&path).unwrap()).unwrap();
    let copy = async |number: usize| both.services[number].copy(&both.backend(number)).await.unwrap();
    assert!(copy(0).await);
    assert!(!copy(1).await && !copy(0).await, "nothing was changed");
    both.filled(0, "db").await;
    assert!(copy(1).await);
    assert!(!copy(0).await, "the other one wrote it");
    assert_eq!(copied().view.volumes, both.catalogs[0].now().volumes);
    // An instance with a stale view displaces nothing.
    both.catalogs[1].falls_behind();
    both.filled(0, "new").await;
    both.catalogs[1].loses_touch(true);
    assert!(copy(0).await && !copy(1).await);
    assert_eq!(copied().view.volumes.len(), 2);
    both.catalogs[1].loses_touch(false);
    both.catalogs[0].falls_behind();
    both.filled(1, "newer").await;
    both.filled(0, "newest").await;
    let (one, other) = tokio::join!(copy(0), copy(1));
    assert!(one != other, "both wrote, or neither");
    assert_eq!(copied().view.volumes.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_whose_directory_another_instance_is_moving_is_not_gone() {
    let both = Both::new().await;
    both.filled(0, "db").await;
    both.catalogs[0].stop_at(Still::Before, is_remove);
    let service = Arc::clone(&both.services[0]);
    let removing = tokio::spawn(async move { service.remove(&engine(), name("db")).await });
    both.catalogs[0].stopped().await;
    let service = Arc::clone(&both.services[1]);
    let mounting = tokio::spawn(async move { service.mount(&engine(), name("db"), mount_id()).await });
    let id = both.catalogs[0].now().volumes["db"].id;
    eventually("it does not wait", || both.services[1].recovery.of(&backend_name()).is_elsewhere(id)).await;
    both.catalogs[0].go_on();
    removing.await.unwrap().unwrap();
    let refused = mounting.await.unwrap().map(drop);
    assert!(matches!(refused, Err(Error::NoSuchVolume(_))), "{refused:?}");
    both.agrees();
    // A volume whose directory was deleted by hand is gone at once.
    both.filled(0, "gone").await;
    both.services[0].confirm_last(LIMIT).await;
    std::fs::remove_dir_all(both.root.join("gone")).unwrap();
    let began = std::time::Instant::now();
    assert!(matches!(both.mount(1, "gone").await, Err(Error::DirectoryGone { .. })));
    assert!(began.elapsed() < LIMIT / 2);
    let look = |root: &backend::Root| root.volume_state(&name("gone"));
    assert_eq!(both.backend(0).run(Expect::Nothing, look).await.unwrap(), VolumeState::Missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_remove_moved_of_a_later_volume_goes_back_to_that() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    let removing = both.overtaken_remove("db").await;
    both.services[1].expire("db").await.unwrap();
    let removed = both.services[1].find_removed("db").await.unwrap();
    both.services[1].purge_volume(&both.backend(1), &removed).await.unwrap();
    assert_ne!(both.filled(1, "db").await, id);
    both.catalogs[0].go_on();
    assert_eq!(removing.await.unwrap().expect("the volume that was meant is gone"), None);
    assert!(both.has_data("db"));
    both.agrees();
}

/// The same, but the trash still lists the volume that was to be removed although its directory is gone from there:
/// deleted by hand, or by an instance that was killed before it recorded the deletion.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_remove_moved_goes_back_also_where_the_trash_has_an_entry_for_it() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    let removing = both.overtaken_remove("db").await;
    std::fs::remove_dir_all(both.root.join(".volhost/trash").join(id.to_string())).unwrap();
    assert_ne!(both.filled(1, "db").await, id);
    both.catalogs[0].go_on();
    assert_eq!(removing.await.unwrap().expect("the volume that was meant is removed"), Some(id));
    assert!(both.has_data("db"), "the later volume's directory is in the trash of the one before");
    both.mount(1, "db").await.unwrap();
}

/// The catalog stops answering between the record of a volume and its publication.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_could_not_be_shown_is_shown_by_the_next_round() {
    let both = Both::new().await;
    let id = both.filled(1, "back").await;
    both.remove(1, "back").await.unwrap();
    let is_recorded: Which = |change| matches!(change, Change::Insert(_) | Change::Restore(_));
    for name_of in ["made", "back"] {
        both.catalogs[0].stop_at(Still::After, is_recorded);
        let service = Arc::clone(&both.services[0]);
        let doing = tokio::spawn(async move {
            match name_of {
                "made" => service.create(&engine(), name(name_of), Options::default()).await,
                _ => service.restore(&operator(), name_of).await,
            }
        });
        both.catalogs[0].stopped().await;
        both.catalogs[0].loses_touch(true);
        both.catalogs[0].go_on();
        let refused = doing.await.unwrap();
        assert!(matches!(refused, Err(Error::Catalog(CatalogError::Unreachable { .. }))), "{refused:?}");
        assert!(!both.catalogs[1].now().volumes[name_of].visible);
        both.catalogs[0].loses_touch(false);
        both.services[0].check_backend(&both.backend(0)).await;
        both.mount(1, name_of).await.unwrap();
    }
    assert_eq!(both.catalogs[1].now().volumes["back"].id, id);
    both.agrees();
}

/// Another instance is making a volume on a backend that this one does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_being_made_elsewhere_is_not_answered_as_made() {
    let both = Both::new().await;
    both.catalogs[0].stop_at(Still::After, |change| matches!(change, Change::Insert(_)));
    let service = Arc::clone(&both.services[0]);
    let making = tokio::spawn(async move { service.create(&engine(), name("db"), Options::default()).await });
    both.catalogs[0].stopped().await;
    let unmapped = InForce { map: Map::default(), access: Access::default(), limits: limits() };
    both.services[1].put_in_force(unmapped);
    let answered = both.create(1, "db").await;
    assert!(matches!(answered, Err(Error::Unmapped { .. })), "{answered:?}");
    both.catalogs[0].go_on();
    making.await.unwrap().unwrap();
    both.create(1, "db").await.expect("it is made, wherever it lies");
}

/// The service ends although the catalog does not answer.
#[tokio::test]
async fn the_last_words_are_given_up_in_time() {
    let both = Both::new().await;
    both.services[0].note_seen(&engine(), None);
    both.services[0].note_seen(&engine(), None);
    both.catalogs[0].silent.store(true, Ordering::Relaxed);
    tokio::time::timeout(Duration::from_secs(20), both.services[0].write_last()).await.expect("it hangs");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_mender_brought_back_follows_the_removal() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    // A kill in a Remove leaves this.
    std::fs::rename(both.root.join("db"), both.root.join(".volhost/trash").join(id.to_string())).unwrap();
    both.catalogs[0].falls_behind();
    both.catalogs[0].stops_at_lock.store(true, Ordering::Relaxed);
    let (service, backend) = (Arc::clone(&both.services[0]), both.backend(0));
    service.recovery.require(&backend_name());
    let recovery = tokio::spawn(async move { service.ready(&backend).await });
    both.catalogs[0].stopped().await;
    both.lose(0);
    both.mount(1, "db").await.unwrap();
    both.unmount(1, "db").await;
    both.remove(1, "db").await.unwrap();
    both.catalogs[0].go_on();
    recovery.await.unwrap().unwrap();
    assert!(both.trashed_data(id));
    both.agrees();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_late_restore_brought_back_follows_the_removal() {
    let both = Both::new().await;
    let id = both.filled(0, "db").await;
    both.remove(0, "db").await.unwrap();
    both.catalogs[0].stop_at(Still::After, |change| matches!(change, Change::Restore(_)));
    let service = Arc::clone(&both.services[0]);
    let restoring = tokio::spawn(async move { service.restore(&operator(), "db").await });
    both.catalogs[0].stopped().await;
    both.lose(0);
    both.mount(1, "db").await.unwrap();
    both.unmount(1, "db").await;
    both.remove(1, "db").await.unwrap();
    both.catalogs[0].go_on();
    restoring.await.unwrap().unwrap_err();
    assert!(both.trashed_data(id));
    both.agrees();
}
