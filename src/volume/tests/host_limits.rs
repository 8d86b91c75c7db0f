//! Limits of what one host may have.

use super::*;

fn id(number: u32) -> MountId {
    MountId::parse(&format!("c{number}")).unwrap()
}

async fn mounted(world: &World, by: &Caller, number: u32) -> Result<(), Error> {
    world.service.mount(by, name("db"), id(number)).await.map(CountedMount::hand_over)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_creates_volumes_up_to_its_limit() {
    let world = World::new().await;
    put_in_force(&world, |in_force| in_force.limits.volumes_per_host = 2);
    for text in ["a", "b"] {
        world.create(text).await.unwrap();
    }
    let refused = world.create("c").await.unwrap_err();
    assert_eq!(refused.blame(), Blame::Rights);
    assert_eq!(
        refused.to_string(),
        "host web1 has created or mounted 2 volumes, as many as limits.volumes_per_host allows: remove some, or raise \
         the limit in volhost.json"
    );
    assert!(!world.root.join("c").exists());
    world.create("a").await.expect("a repetition makes no volume");
    world.service.create(&called("web2", None), name("other"), Options::default()).await.unwrap();
    world
        .service
        .create(&operator(), name("ours"), Options::default())
        .await
        .expect("the operator has no limit");
    // A volume of another host counts for whoever mounts it, and a Mount is never refused for that.
    world.service.mount(&engine(), name("other"), id(1)).await.unwrap().hand_over();
    world.remove("a").await.unwrap();
    assert!(matches!(world.create("c").await, Err(Error::TooManyVolumes { .. })));
    world.remove("b").await.unwrap();
    world.create("c").await.expect("it has removed enough");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_mounts_up_to_its_limit() {
    let world = World::new().await;
    world.create("db").await.unwrap();
    put_in_force(&world, |in_force| in_force.limits.mounts_per_host = 2);
    for number in [1, 2, 2] {
        mounted(&world, &engine(), number).await.unwrap();
    }
    let refused = mounted(&world, &engine(), 3).await.unwrap_err();
    assert_eq!(refused.blame(), Blame::Rights);
    assert_eq!(
        refused.to_string(),
        "host web1 has 2 mounts, as many as limits.mounts_per_host allows: `volhost mount ls --host web1` lists them, \
         `volhost mount release` ends what is stale; or raise the limit in volhost.json"
    );
    mounted(&world, &engine(), 1).await.expect("a repetition is always taken");
    mounted(&world, &called("web2", None), 3).await.expect("another host has its own limit");
    // Stale mounts count as well.
    world.service.activate(&engine().host);
    assert!(mounted(&world, &engine(), 4).await.is_err());
    // The Unmount that may have followed the failed Mount takes nothing.
    for number in [3, 4] {
        world.service.unmount(&engine(), &name("db"), &id(number)).await.unwrap();
    }
    assert!(mounted(&world, &engine(), 4).await.is_err());
    for _ in 0..2 {
        world.service.unmount(&engine(), &name("db"), &id(2)).await.unwrap();
    }
    mounted(&world, &engine(), 5).await.expect("one of its mounts has ended");
}
