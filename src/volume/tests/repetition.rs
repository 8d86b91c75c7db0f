//! Mounts of an ID that is counted already, as `docker cp` sends them: whatever fails, the live mount stays counted.

use super::*;
use crate::model::right::Listed;

fn count(world: &World) -> u32 {
    world.service.view().volume("db").unwrap().mounts.iter().map(|mount| mount.count).sum()
}

async fn unmount(world: &World) {
    world.service.unmount(&engine(), &name("db"), &mount_id()).await.unwrap();
}

/// Makes a volume that a container uses.
async fn used(world: &World) {
    world.filled("db").await;
    world.mount("db").await.unwrap();
}

/// Rules that give no host a right.
fn nobody() -> Access {
    Access::new(Some(Listed::default()), BTreeMap::new())
}

/// Repeats the Mount successfully and ends both, as `docker cp` and then the container's end do.
async fn repeats_well(world: &World, when: &str) {
    let before = count(world);
    let seen = world.mount("db").await.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(seen.mountpoint, world.root.join("db"), "{when}");
    assert_eq!(count(world), before + 1, "{when}: it is counted again");
    unmount(world).await;
    assert_eq!(count(world), before, "{when}: it is ended again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_needs_no_right_and_no_backend() {
    let world = World::new().await;
    used(&world).await;
    repeats_well(&world, "as usual").await;
    put_in_force(&world, |in_force| in_force.access = nobody());
    repeats_well(&world, "without the right").await;
    assert!(matches!(
        world.service.mount(&engine(), name("db"), MountId::parse("new").unwrap()).await,
        Err(Error::Forbidden { .. })
    ));
    std::fs::rename(&world.root, world.dir.path().join("away")).unwrap();
    repeats_well(&world, "with the backend away").await;
    put_in_force(&world, |in_force| in_force.map = Map::default());
    let seen = world.mount("db").await.expect("it is in no map");
    assert_eq!((seen.mountpoint, seen.backend_state), (world.root.join("db"), "unmapped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_waits_for_no_backend_and_for_no_operation_that_does() {
    let Some(world) = World::shaky().await else { return };
    used(&world).await;
    world.fs().hang(true);
    let service = Arc::clone(&world.service);
    let other = MountId::parse("two").unwrap();
    let hanging = tokio::spawn(async move { service.mount(&engine(), name("db"), other).await });
    assert!(world.fs().wait_for_hanging(1, Duration::from_secs(10)));
    tokio::time::timeout(LIMIT / 2, repeats_well(&world, "while the backend hangs"))
        .await
        .expect("it waited");
    world.fs().hang(false);
    let _ = hanging.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_after_a_repetition_that_could_not_be_recorded_takes_nothing() {
    let world = World::new().await;
    used(&world).await;
    for _ in 0..2 {
        world.catalog.refuse(|change| matches!(change, Change::Mount { .. }));
        assert!(matches!(world.mount("db").await, Err(Error::Catalog(CatalogError::Write { .. }))));
        world.catalog.refuse(|_| false);
        unmount(&world).await;
        assert_eq!(count(&world), 1, "the live mount was taken");
        assert!(matches!(world.remove("db").await, Err(Error::Mounted { .. })));
    }
    unmount(&world).await;
    assert_eq!(count(&world), 0, "each failure forgives one Unmount");
    // A failed first Mount of an ID leaves no Unmount to ignore.
    world.catalog.refuse(|change| matches!(change, Change::Mount { .. }));
    assert!(world.mount("db").await.is_err());
    world.catalog.refuse(|_| false);
    world.mount("db").await.unwrap();
    unmount(&world).await;
    assert_eq!(count(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_after_a_repetition_that_took_too_long_takes_nothing() {
    let world = World::new().await;
    used(&world).await;
    world.catalog.delay(|change| matches!(change, Change::Mount { .. }));
    assert!(matches!(world.mount("db").await, Err(Error::TooLong { .. })));
    world.catalog.delay(|_| false);
    unmount(&world).await;
    assert!(count(&world) >= 1, "the live mount was taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unmount_after_a_repetition_whose_caller_went_takes_no_live_mount() {
    let world = World::new().await;
    used(&world).await;
    // Its answer is lost.
    let counted = world.service.mount(&engine(), name("db"), mount_id()).await.unwrap();
    drop(counted);
    unmount(&world).await;
    assert_eq!(count(&world), 1, "the live mount was taken");
    // The caller goes while the Mount is carried out, and the Mount fails.
    world.catalog.delay_by(LIMIT / 8, |change| matches!(change, Change::Mount { .. }));
    world.catalog.refuse(|change| matches!(change, Change::Mount { .. }));
    let refusals = || world.catalog.refusals.load(Ordering::Relaxed);
    let before = refusals();
    let id = mount_id();
    let (caller, volume) = (engine(), name("db"));
    let mut mounting = Box::pin(world.service.mount(&caller, volume, id));
    let waker = std::task::Waker::noop();
    assert!(mounting.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    drop(mounting);
    eventually("it is carried out all the same", || refusals() > before).await;
    world.catalog.refuse(|_| false);
    eventually("the failure is noted", || {
        world.service.ignored_unmounts.take(&name("db"), &engine().host, &mount_id())
    })
    .await;
    unmount(&world).await;
    assert_eq!(count(&world), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_whose_answer_was_lost_is_taken_back_unless_the_engine_unmounts() {
    let window = Duration::from_secs(2);
    let world = World::forgiving(window).await;
    used(&world).await;
    let lost = async || drop(world.service.mount(&engine(), name("db"), mount_id()).await.unwrap());
    lost().await;
    eventually("it is taken back", || count(&world) == 1).await;

    lost().await;
    unmount(&world).await;
    assert_eq!(count(&world), 1);
    tokio::time::sleep(2 * window).await;
    assert_eq!(count(&world), 1, "the engine had unmounted it, and it was taken back besides");

    unmount(&world).await;
    assert_eq!(count(&world), 0);
    lost().await;
    eventually("a first Mount is taken back at once", || count(&world) == 0).await;
}

/// The engines' own count: how often each host's engine has mounted the exclusive volume under each ID.
#[derive(Default)]
struct Engines {
    live: BTreeMap<(usize, String), u32>,
    started: u32,
}

impl Engines {
    fn of(&self, host: usize) -> u32 {
        self.live.range((host, String::new())..(host + 1, String::new())).map(|(_, count)| count).sum()
    }

    fn any(&self, random: &mut Random, host: usize) -> Option<String> {
        let ids: Vec<_> = self.live.keys().filter(|(of, _)| *of == host).map(|(_, id)| id.clone()).collect();
        (!ids.is_empty()).then(|| ids[random.below(ids.len())].clone())
    }

    fn count_down(&mut self, host: usize, id: &str) {
        let key = (host, id.to_owned());
        if let Some(count) = self.live.get_mut(&key) {
            *count -= 1;
        }
        self.live.retain(|_, count| *count > 0);
    }
}

/// Random numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        // The step of a 64-bit linear congruential generator, by Knuth's numbers.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }
}

/// Runs two hosts whose engines behave like Docker Engine 20.10, on an exclusive volume, while Mounts fail in every
/// way.
async fn history(seed: u64, steps: usize) {
    let world = World::new().await;
    let exclusive = || Options::parse([("access", "exclusive")]).unwrap();
    world.service.create(&operator(), name("db"), exclusive()).await.unwrap();
    let (mut random, mut engines) = (Random(seed), Engines::default());
    let caller = |host: usize| Caller {
        host: HostName::parse(&format!("web{host}")).unwrap(),
        via: Via::Tls,
        address: None,
    };
    let id = |text: &str| MountId::parse(text).unwrap();
    let away = world.dir.path().join("away");
    let usual = world.service.in_force();
    let mut trouble = 0;
    for step in 0..steps {
        let host = random.below(2);
        let when = format!("seed {seed}, step {step}");
        match random.below(12) {
            0..=1 => {
                engines.started += 1;
                let new = format!("c{}", engines.started);
                if let Ok(counted) = world.service.mount(&caller(host), name("db"), id(&new)).await {
                    assert_eq!(engines.of(1 - host), 0, "{when}: the other host uses it");
                    assert_ne!(trouble, 1, "{when}: mounted without the right");
                    counted.hand_over();
                    engines.live.insert((host, new), 1);
                }
            }
            2..=4 => {
                let Some(cp) = engines.any(&mut random, host) else { continue };
                match world.service.mount(&caller(host), name("db"), id(&cp)).await {
                    Ok(counted) if random.below(4) > 0 => {
                        counted.hand_over();
                        *engines.live.get_mut(&(host, cp)).unwrap() += 1;
                    }
                    // The answer is lost, or it failed.
                    answer => {
                        drop(answer);
                        world.service.unmount(&caller(host), &name("db"), &id(&cp)).await.unwrap();
                    }
                }
            }
            5..=7 => {
                let Some(ended) = engines.any(&mut random, host) else { continue };
                world.service.unmount(&caller(host), &name("db"), &id(&ended)).await.unwrap();
                engines.count_down(host, &ended);
            }
            8 => {
                if world.service.remove(&operator(), name("db")).await.is_ok() {
                    assert!(engines.live.is_empty(), "{when}: removed under a container");
                    world.catalog.refuse(|_| false);
                    world.service.create(&operator(), name("db"), exclusive()).await.ok();
                }
            }
            9 => {
                // The operator releases whatever was counted too high.
                if engines.of(host) == 0 {
                    let release = Change::Release {
                        name: name("db"),
                        host: caller(host).host,
                        id: None,
                        alive_too: true,
                    };
                    let _ = world.catalog.submit(release).await;
                }
            }
            _ => {
                match trouble {
                    1 => world.service.in_force.store(Arc::clone(&usual)),
                    2 => std::fs::rename(&away, &world.root).unwrap(),
                    3 => world.catalog.refuse(|_| false),
                    _ => {}
                }
                trouble = random.below(4);
                match trouble {
                    1 => put_in_force(&world, |in_force| in_force.access = nobody()),
                    2 => std::fs::rename(&world.root, &away).unwrap(),
                    3 => world.catalog.refuse(|change| matches!(change, Change::Mount { .. })),
                    _ => {}
                }
            }
        }
        let view = world.service.view();
        let Some(volume) = view.volumes.get("db") else {
            assert!(engines.live.is_empty(), "{when}: it is gone");
            world.service.create(&operator(), name("db"), exclusive()).await.ok();
            continue;
        };
        for ((host, text), live) in &engines.live {
            let counted =
                volume.mounts.newest(&caller(*host).host, &id(text), None).map_or(0, |mount| mount.count);
            assert!(
                counted >= *live,
                "{when}: {text} of web{host} is live {live} times and counted {counted} times"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_history_of_engines_that_unmount_after_failures_counts_a_mount_too_low() {
    for seed in 0..8 {
        history(seed, 250).await;
    }
}
