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
