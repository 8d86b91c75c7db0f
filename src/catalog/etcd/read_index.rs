//! How fresh the view is: every transaction changes one key, `head`. Who reads that key from a quorum and waits until the
//! watch has come to its revision has heard of everything that was answered before.
//!
//! One task asks, for all who want to know at the same time; while nobody does, it asks now and then, so that a cluster
//! that is gone, or back, is noticed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::core::Core;
use super::members::CallError;
use super::replica::Head;
use super::watch_health::WatchFault;

/// Who is told once the view is fresh, or why it cannot be.
pub(super) type ReadIndexRequest = oneshot::Sender<Result<(), Arc<String>>>;

/// How often the cluster is asked for its health.
const PULSE: Duration = Duration::from_secs(1);

/// How long the watch may be behind before it is asked whether it is to be begun anew.
const BEHIND: Duration = Duration::from_secs(2);

/// How often that is done before the instance counts as one that does not hear what others do.
const TRIES: usize = 5;

/// Answers until nobody can ask any more.
pub(super) async fn answer(core: Arc<Core>, mut questions: mpsc::UnboundedReceiver<ReadIndexRequest>) {
    loop {
        let mut asked = match timeout(PULSE, questions.recv()).await {
            Ok(Some(first)) => vec![first],
            Ok(None) => return,
            Err(_) => Vec::new(),
        };
        while let Ok(more) = questions.try_recv() {
            asked.push(more);
        }
        let answer = make_fresh(&core, asked.is_empty()).await;
        for question in asked {
            // Who asked may have gone.
            let _ = question.send(answer.clone());
        }
        if answer.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn make_fresh(core: &Core, only_the_pulse: bool) -> Result<(), Arc<String>> {
    let mut awaited = i64::MAX;
    for _ in 0..TRIES {
        let Some(latest) = latest(core, only_the_pulse).await? else { return Ok(()) };
        // In the same history that is later; another one may not have come as far as the one that it took the place of.
        awaited = awaited.min(latest);
        if timeout(BEHIND, told(core, awaited)).await.is_ok() {
            core.watch_recovered(WatchFault::Behind);
            return Ok(());
        }
        log::debug!("the watch of the catalog {} is behind", core.location);
        core.watch_anew.notify_one();
    }
    let why = "its members do not tell what was changed";
    core.watch_failed(WatchFault::Behind, why);
    Err(Arc::new(why.into()))
}

/// The revision of the latest transaction, as a quorum knows it; nothing, where none answers yet and nobody waits.
async fn latest(core: &Core, only_the_pulse: bool) -> Result<Option<i64>, Arc<String>> {
    loop {
        let (reached, known) = core.replica.look(|_, known| (known.reached, known.head.clone()));
        match head(core).await {
            Ok((head, revision)) => {
                core.health.well();
                // What was heard before the question is no later than the answer to it.
                let at = |head: &Option<Head>| head.as_ref().map_or(0, |(at, _)| *at);
                if revision < reached || at(&head) < at(&known) || (at(&head) == at(&known) && head != known)
                {
                    core.history_changed(revision);
                }
                return Ok(Some(at(&head)));
            }
            Err(trouble) => {
                core.health.unanswered(&trouble);
                if let Some(why) = core.health.fault() {
                    return Err(why);
                }
                if only_the_pulse {
                    return Ok(None);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits until everything is known up to a transaction, in the history that the cluster has.
async fn told(core: &Core, latest: i64) {
    let mut reached = core.replica.reached();
    loop {
        // The sender lives as long as `core`.
        let _ = reached.wait_for(|reached| *reached >= latest).await;
        if !core.is_read_again() {
            let (reached, known) = core.replica.look(|_, known| (known.reached, known.head.clone()));
            if reached >= latest && known.map_or(0, |(at, _)| at) >= latest {
                return;
            }
            // It has come so far by other changes, and was not told of this one.
            if reached >= latest {
                core.history_changed(reached);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The key that every transaction writes, and the revision of the whole cluster, as a quorum knows them.
pub(super) async fn head(core: &Core) -> Result<(Option<Head>, i64), CallError> {
    let key = core.keys.head();
    let limit = core.health.answer();
    let got = core.members.ask(limit, async move |client| client.kv_client().get(key, None).await).await?;
    let revision = got.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())), revision))
}
