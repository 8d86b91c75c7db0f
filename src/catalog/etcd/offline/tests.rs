//! Reading and making a catalog in a real etcd.

use std::sync::Arc;

use super::super::tests::{Server, done};
use super::*;
use crate::catalog::contract::{at, create, host, mount, volume};
use crate::catalog::{Catalog, Change};
use crate::error::chain;

/// A view of this many volumes, each of them mounted.
fn furnished(volumes: usize) -> View {
    let mut view = View::default();
    for number in 0..volumes {
        let volume = volume(&format!("db{number}"));
        for change in [
            Change::Insert(volume.clone()),
            Change::Publish(volume.name.clone(), volume.id),
            mount(&volume, "web1", "a/b%"),
        ] {
            view.apply(change).unwrap();
        }
    }
    view.apply(Change::Activate(host("web1"))).unwrap();
    view
}

/// Runs work on a thread that may block, because the work has its own runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn read_now(cluster: &Cluster) -> Result<View, OpenError> {
    let cluster = cluster.clone();
    blocking(move || read(&cluster, &Credentials::default())).await
}

async fn import(cluster: &Cluster, view: &View) -> Result<(), OpenError> {
    let (cluster, view) = (cluster.clone(), view.clone());
    blocking(move || NewCatalog::if_empty(&cluster, &Credentials::default())?.fill(&view)).await
}

async fn rebuild(cluster: &Cluster) -> Result<(), OpenError> {
    let cluster = cluster.clone();
    blocking(move || NewCatalog::if_missing(&cluster, &Credentials::default())?.fill(&View::default())).await
}

/// Writes all records of an import without finishing it, as an import that is killed. Returns the revision of `import`.
async fn cut_off(cluster: &Cluster, view: &View) -> i64 {
    let (cluster, view) = (cluster.clone(), view.clone());
    blocking(move || {
        let target = OfflineCluster::new(&cluster, &Credentials::default()).unwrap();
        target.runtime.block_on(async {
            let import = target.begin(Accepts::Empty, "cut off").await.unwrap();
            target.write(import, &view).await.unwrap();
            import
        })
    })
    .await
}

#[tokio::test]
async fn what_is_made_is_read_back_and_served() {
    let server = Server::start();
    let cluster = server.cluster("made");
    assert!(matches!(read_now(&cluster).await, Err(OpenError::Missing { .. })));
    assert!(server.ctl(&["get", "--prefix", "/made"]).unwrap().is_empty(), "a look made something");
    // More records than one transaction takes, and more than a page has.
    let view = furnished(2500);
    import(&cluster, &view).await.unwrap();
    assert_eq!(read_now(&cluster).await.unwrap(), view);
    let catalog = server.open("made", "store1").await;
    assert_eq!(*catalog.view(), view);
    create(&catalog, "new").await;
    // Also while it is served.
    assert_eq!(read_now(&cluster).await.unwrap(), *catalog.view());
    catalog.close().await;
}

/// Otherwise the outer catalog would find keys below its prefix that are not its own.
#[tokio::test]
async fn no_catalog_is_begun_inside_another_one() {
    let server = Server::start();
    let outer = server.open("outer", "store1").await;
    let (cluster, instance) = (server.cluster("outer/inner/most"), server.instance("store2"));
    let opened = blocking(move || super::super::open(&cluster, &instance).map(drop)).await;
    assert!(matches!(&opened, Err(OpenError::Nested { outer, .. }) if outer == "/outer/"), "{opened:?}");
    let imported = import(&server.cluster("outer/inner"), &View::default()).await;
    assert!(matches!(imported, Err(OpenError::Nested { .. })), "{imported:?}");
    assert!(server.ctl(&["get", "--prefix", "/outer/inner"]).unwrap().is_empty());
    create(&outer, "db").await;
    // A catalog beside it is made, also if its prefix begins with the same letters.
    server.open("outer2/inner", "store1").await;
}

#[tokio::test]
async fn records_that_are_large_together_take_several_transactions() {
    let server = Server::start();
    let mut view = View::default();
    for number in 0..120 {
        let mut volume = volume(&format!("db{number}"));
        volume.known_to = (0..1000).map(|number| host(&format!("web{number}.example.com"))).collect();
        volume.known_to.sort();
        view.apply(Change::Insert(volume.clone())).unwrap();
        view.apply(Change::Publish(volume.name, volume.id)).unwrap();
    }
    let bytes: usize = view.records().map(|write| encode(&write).unwrap().record.unwrap().len()).sum();
    assert!(bytes > 2 * 1024 * 1024, "{bytes}");
    import(&server.cluster("large"), &view).await.unwrap();
    assert_eq!(read_now(&server.cluster("large")).await.unwrap(), view);
}

#[tokio::test]
async fn a_catalog_that_is_served_or_has_records_is_not_replaced() {
    let server = Server::start();
    let cluster = server.cluster("taken");
    let message = |done: Result<(), OpenError>| chain(&done.unwrap_err());
    let catalogs = [server.open("taken", "store1").await, server.open("taken", "store2").await];
    for refused in [import(&cluster, &furnished(1)).await, rebuild(&cluster).await] {
        let message = message(refused);
        assert!(message.contains("is in use by volhost on store1, store2; stop that"), "{message}");
    }
    for catalog in &catalogs {
        catalog.close().await;
    }
    let refused = message(rebuild(&cluster).await);
    assert!(refused.contains("there is a catalog etcd://") && !refused.contains("not empty"), "{refused}");
    import(&cluster, &furnished(1)).await.unwrap();
    let before = server.ctl(&["get", "--prefix", "/taken"]).unwrap();
    for (refused, filled) in [(import(&cluster, &furnished(2)).await, true), (rebuild(&cluster).await, false)]
    {
        let message = message(refused);
        assert_eq!(message.contains("and it is not empty"), filled, "{message}");
        assert!(message.contains("delete every key that begins with /taken/"), "{message}");
    }
    assert_eq!(server.ctl(&["get", "--prefix", "/taken"]).unwrap(), before);

    // A record of any table is one.
    let mut view = View::default();
    view.apply(Change::Revoke(host("web1"), at(1))).unwrap();
    import(&server.cluster("one"), &view).await.unwrap();
    assert!(matches!(
        import(&server.cluster("one"), &view).await,
        Err(OpenError::Taken { filled: true, .. })
    ));

    server.ctl(&["put", "/other/key", "x"]).unwrap();
    for refused in [import(&server.cluster("other"), &view).await, rebuild(&server.cluster("other")).await] {
        assert!(matches!(refused, Err(OpenError::Foreign { .. })), "{refused:?}");
    }
}

#[tokio::test]
async fn an_interrupted_import_is_no_catalog_and_is_made_again() {
    let server = Server::start();
    for made_by_import in [true, false] {
        let prefix = if made_by_import { "import" } else { "rebuild" };
        let cluster = server.cluster(prefix);
        // In place of a catalog without a record, whose instance left its slots.
        server.open(prefix, "store1").await.close().await;
        cut_off(&cluster, &furnished(300)).await;
        assert!(matches!(read_now(&cluster).await, Err(OpenError::HalfImported { .. })));
        let instance = server.instance("store1");
        let opened = {
            let cluster = cluster.clone();
            blocking(move || super::super::open(&cluster, &instance).map(drop)).await
        };
        assert!(matches!(opened, Err(OpenError::HalfImported { .. })), "{opened:?}");
        let (view, keys) = if made_by_import {
            let view = furnished(2);
            import(&cluster, &view).await.unwrap();
            (view, 2 + 2 + 1)
        } else {
            rebuild(&cluster).await.unwrap();
            (View::default(), 0)
        };
        assert_eq!(read_now(&cluster).await.unwrap(), view);
        let left = server.ctl(&["get", "--prefix", "--keys-only", &format!("/{prefix}")]).unwrap();
        let left: Vec<_> = left.lines().filter(|line| !line.is_empty()).collect();
        // Besides the records there are only `format` and `head`.
        assert_eq!(left.len(), keys + 2, "{left:?}");
        let catalog = server.open(prefix, "store1").await;
        create(&catalog, "new").await;
    }
}

#[tokio::test]
async fn of_two_imports_the_first_one_gives_up() {
    let server = Server::start();
    let cluster = server.cluster("two");
    let (first, second) = (furnished(3), furnished(1));
    let begun = cut_off(&cluster, &first).await;
    let target = Arc::new({
        let cluster = cluster.clone();
        blocking(move || OfflineCluster::new(&cluster, &Credentials::default()).unwrap()).await
    });
    import(&cluster, &second).await.unwrap();
    let late = {
        let (target, first) = (Arc::clone(&target), first.clone());
        blocking(move || {
            target.runtime.block_on(async {
                [target.write(begun, &first).await, target.finish(begun, "cut off").await]
            })
        })
        .await
    };
    for late in late {
        assert!(matches!(late, Err(OpenError::Overtaken { .. })), "{late:?}");
    }
    assert_eq!(read_now(&cluster).await.unwrap(), second);
    blocking(move || drop(target)).await;
}

#[tokio::test]
async fn a_step_whose_answer_was_lost_is_done_again() {
    let server = Server::start();
    let (cluster, view) = (server.cluster("lost"), furnished(3));
    let expected = view.clone();
    blocking(move || {
        let target = OfflineCluster::new(&cluster, &Credentials::default()).unwrap();
        target.runtime.block_on(async {
            let import = target.begin(Accepts::Missing, "run").await.unwrap();
            target.write(import, &view).await.unwrap();
            target.write(import, &view).await.unwrap();
            target.finish(import, "run").await.unwrap();
            target.finish(import, "run").await.unwrap();
            let another = target.finish(import, "other").await;
            assert!(matches!(another, Err(OpenError::Overtaken { .. })), "{another:?}");
        });
    })
    .await;
    assert_eq!(read_now(&server.cluster("lost")).await.unwrap(), expected);
}

#[tokio::test]
async fn an_instance_that_was_cut_off_meanwhile_changes_nothing_of_what_was_imported() {
    let server = Server::start();
    let cluster = server.cluster("away");
    let catalog = server.open("away", "store1").await;
    // As after an outage longer than the lease.
    server.ctl(&["del", "--prefix", "/away/instances/"]).unwrap();
    let view = furnished(2);
    import(&cluster, &view).await.unwrap();
    for change in [Change::Insert(volume("new")), Change::Revoke(host("web1"), at(1))] {
        let message = chain(&catalog.submit(change).await.unwrap_err());
        assert!(message.contains("restart volhost"), "{message}");
    }
    assert_eq!(read_now(&cluster).await.unwrap(), view);
    catalog.sync().await.unwrap();
    assert_eq!(*catalog.view(), view, "it does not know what was imported");
    catalog.close().await;
    drop(catalog);
    let catalog = server.open("away", "store1").await;
    done(&catalog, Change::Revoke(host("web1"), at(1))).await;
}

#[tokio::test]
async fn an_instance_and_an_import_that_begin_together_do_not_mix() {
    let server = Server::start();
    let cluster = server.cluster("beside");
    for round in 0..10 {
        let (instance, view) = (server.instance("store1"), furnished(200));
        let opening = {
            let cluster = cluster.clone();
            tokio::task::spawn_blocking(move || super::super::open(&cluster, &instance))
        };
        if round % 2 == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(3 * round)).await;
        }
        let imported = import(&cluster, &view).await;
        let opened = opening.await.unwrap();
        let left = read_now(&cluster).await.unwrap();
        match (opened, imported) {
            (Ok(catalog), Ok(())) => {
                // The instance started after the import.
                assert_eq!((&*catalog.view(), &left), (&view, &view));
                let catalog: Arc<dyn Catalog> = Arc::new(catalog);
                create(&catalog, "new").await;
                catalog.close().await;
            }
            (Ok(catalog), Err(OpenError::Served { .. } | OpenError::Taken { .. })) => {
                assert_eq!((&*catalog.view(), &left), (&View::default(), &View::default()));
                catalog.close().await;
            }
            (Err(OpenError::HalfImported { .. }), Ok(())) => assert_eq!(left, view),
            (opened, imported) => panic!("{:?}, {imported:?}", opened.map(drop)),
        }
        server.ctl(&["del", "--prefix", "/beside/"]).unwrap();
    }
}

#[test]
fn a_cluster_that_does_not_answer_is_waited_for_some_seconds() {
    let server = Server::start();
    server.signal("STOP");
    let begun = std::time::Instant::now();
    let cluster = server.cluster("silent");
    let message = read(&cluster, &Credentials::default()).unwrap_err();
    server.signal("CONT");
    assert!(matches!(message, OpenError::Unreachable { .. }), "{message}");
    let took = begun.elapsed().as_secs();
    assert!((8..20).contains(&took), "{took} s");
}
