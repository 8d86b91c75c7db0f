//! What the spool keeps is carried out once, and nothing waits for it in vain.

use super::*;
use crate::volume::mounts::Activation;

async fn opened(cluster: Cluster, instance: Instance) -> Arc<Etcd> {
    // It blocks until everything is read.
    let opened = tokio::task::spawn_blocking(move || open(&cluster, &instance)).await.unwrap();
    Arc::new(opened.unwrap())
}

fn count(view: &View, volume: &str) -> u32 {
    view.volume(volume).unwrap().mounts.iter().map(|mount| mount.count).sum()
}

/// An engine that crashes again and again, with a container that is started each time.
#[tokio::test]
async fn many_activations_of_one_mount_are_no_hindrance() {
    let server = Server::start();
    let etcd = opened(server.cluster("crashes"), server.instance("store1")).await;
    let catalog: Arc<dyn Catalog> = Arc::<Etcd>::clone(&etcd);
    let made = create(&catalog, "db").await;
    for at in 0..150 {
        done(&catalog, mount(&made, "web1", "x")).await;
        if at < 149 {
            done(&catalog, Change::Activate(host("web1"))).await;
        }
    }
    let taken = done(&catalog, unmount(&made, "x")).await;
    assert_eq!(taken.released[0].activation, Activation(149));
    assert_eq!((count(&catalog.view(), "db"), etcd.core.spool.len(), catalog.fault()), (149, 0, None));
    done(&catalog, unmount(&made, "x")).await;
    assert_eq!((count(&catalog.view(), "db"), etcd.core.spool.len(), catalog.fault()), (148, 0, None));
    let id = Some(mount_id("x"));
    let release = Change::Release { name: made.name.clone(), host: host("web1"), id, alive_too: false };
    assert_eq!(done(&catalog, release.clone()).await.released.len(), 148);
    assert_eq!(done(&catalog, release).await.released.len(), 0);
}

#[tokio::test]
async fn what_one_transaction_cannot_release_several_do() {
    let server = Server::start();
    let catalog = server.open("release", "store1").await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web2", "x")).await;
    for _ in 0..4 {
        done(&catalog, Change::Activate(host("web1"))).await;
        for id in 0..40 {
            done(&catalog, mount(&made, "web1", &format!("m{id}"))).await;
        }
    }
    let release = |alive_too| {
        let (name, host) = (made.name.clone(), host("web1"));
        Change::Release { name, host, id: None, alive_too }
    };
    // By one that learnt of them from etcd.
    let other = server.open("release", "store2").await;
    let outcome = done(&other, release(false)).await;
    assert_eq!((outcome.released.len(), outcome.before.unwrap().mounts.len()), (120, 161));
    assert_eq!(outcome.after.unwrap().mounts.len(), 41);
    assert_eq!(done(&catalog, release(true)).await.released.len(), 40);
    assert_eq!(catalog.view().volume("db").unwrap().mounts.len(), 1);
}
