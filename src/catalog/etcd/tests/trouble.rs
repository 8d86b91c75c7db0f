//! A real etcd that answers late, in part, or with what means something else than it says.

use super::*;

/// etcd answers what it did with "no space", where its file outgrew the quota between the question and the doing.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_for_want_of_room_was_not_done() {
    for round in 0..2 {
        let server = Server::start_with(&["--quota-backend-bytes", "600000"]);
        let catalog = server.open("quota", "store1").await;
        let mut results = Vec::new();
        // As many at the same time as there are slots, until it is full.
        for batch in 0..40 {
            let names: Vec<_> = (0..200).map(|at| format!("v{batch}-{at}")).collect();
            let inserted =
                join_all(names.iter().map(|name| catalog.submit(Change::Insert(volume(name))))).await;
            let full = inserted.iter().any(Result::is_err);
            results.extend(names.into_iter().zip(inserted));
            if full {
                break;
            }
        }
        catalog.sync().await.unwrap();
        let view = catalog.view();
        let keys = server.ctl(&["get", "--prefix", "/quota/volumes/", "--keys-only"]).unwrap();
        let refused = results.iter().filter(|(_, result)| result.is_err()).count();
        assert!(refused > 0, "it is not full after {} volumes", results.len());
        for (name, result) in &results {
            let there = keys.lines().any(|key| key == format!("/quota/volumes/{name}"));
            assert_eq!(result.is_ok(), there, "round {round}: {name} of {}: {result:?}", results.len());
            assert_eq!(there, view.volume(name).is_some(), "{name}");
        }
    }
}

/// Has etcd ask for a password, and tells how an instance is let in.
fn with_a_password(server: &Server, node: &str, more: &[&str]) -> Instance {
    let file = server.dir.path().join("password");
    std::fs::write(&file, "secret\n").unwrap();
    for words in [
        &["user", "add", "root:secret"][..],
        &["user", "add", "volhost:secret"],
        &["role", "add", "volhost"],
        &["role", "grant-permission", "--prefix", "volhost", "readwrite", "/"],
        &["user", "grant-role", "volhost", "volhost"],
        more,
        &["auth", "enable"],
    ] {
        assert!(words.is_empty() || server.ctl(words).is_some(), "{words:?}");
    }
    let credentials =
        Credentials { user: Some("volhost".into()), password_file: Some(file), ..Credentials::default() };
    Instance { credentials, ..server.instance(node) }
}

async fn open_as(server: &Server, prefix: &str, instance: Instance) -> Arc<dyn Catalog> {
    let cluster = server.cluster(prefix);
    Arc::new(tokio::task::spawn_blocking(move || open(&cluster, &instance)).await.unwrap().unwrap())
}

/// Who asks for a token waits for one that does not come; others do not wait for that one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_makes_nobody_stand_in_line() {
    let server = Server::start();
    let instance = with_a_password(&server, "store1", &[]);
    let catalog = open_as(&server, "line", instance).await;
    let made = create(&catalog, "db").await;
    done(&catalog, mount(&made, "web1", "x")).await;
    let pending: Vec<_> =
        (0..44).map(|at| catalog.submit(Change::Insert(volume(&format!("v{at}"))))).collect();
    server.signal("STOP");
    let asked = Instant::now();
    let unmounted = timeout(Duration::from_secs(15), catalog.submit(unmount(&made, "x"))).await;
    let took = asked.elapsed();
    server.signal("CONT");
    unmounted.unwrap_or_else(|_| panic!("it is not answered within {took:?}")).unwrap();
    join_all(pending).await;
    eventually("the Unmount is recorded", async || catalog.fault().is_none()).await;
    catalog.sync().await.unwrap();
    assert!(catalog.view().volume("db").unwrap().mounts.is_empty());
}

/// Whoever asks again when the limit is over, as dockerd does, must have been answered by then: an Unmount that is kept
/// after that counts once more.
#[tokio::test]
async fn an_unmount_is_kept_within_a_limit_that_is_short() {
    let server = Server::start();
    for seconds in [3, 1] {
        let (prefix, request) = (format!("short{seconds}"), Duration::from_secs(seconds));
        let catalog = open_as(&server, &prefix, Instance { request, ..server.instance(&prefix) }).await;
        let made = create(&catalog, "db").await;
        for _ in 0..2 {
            done(&catalog, mount(&made, "web1", "x")).await;
        }
        server.signal("STOP");
        let kept = timeout(request, catalog.submit(unmount(&made, "x"))).await;
        server.signal("CONT");
        kept.unwrap_or_else(|_| panic!("it is not answered within {request:?}")).unwrap();
        eventually("the Unmount is recorded", async || catalog.fault().is_none()).await;
        catalog.sync().await.unwrap();
        let view = catalog.view();
        let counted: Vec<_> = view.volume("db").unwrap().mounts.iter().map(|mount| mount.count).collect();
        assert_eq!(counted, [1]);
    }
}
