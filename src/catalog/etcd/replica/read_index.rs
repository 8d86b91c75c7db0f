//! Waiting until the view is as recent as every answer given so far: each transaction writes one key, `head`. A quorum is
//! asked for its revision, and the watch has to reach that revision.
//!
//! One task asks for all who wait. While nobody waits it asks once a second, so that a cluster that is lost, or back, is
//! noticed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Replica;
use super::memory::Head;
use super::state::Fault;
use crate::catalog::etcd::client::CallError;

/// Someone who waits until the view is recent, and is told why if it cannot be.
pub(super) type Request = oneshot::Sender<Result<(), Arc<String>>>;

/// How often the cluster is asked for its health.
const PULSE: Duration = Duration::from_secs(1);

/// How long the watch may be behind before it begins again.
const BEHIND: Duration = Duration::from_secs(2);

/// How often it may begin again before the replica counts as behind.
const TRIES: usize = 5;

/// Answers for as long as the catalog is served.
pub(super) async fn answer(replica: Arc<Replica>, mut requests: mpsc::UnboundedReceiver<Request>) {
    loop {
        let mut asked = match timeout(PULSE, requests.recv()).await {
            Ok(Some(first)) => vec![first],
            Ok(None) => return,
            Err(_) => Vec::new(),
        };
        while let Ok(more) = requests.try_recv() {
            asked.push(more);
        }
        let answer = sync(&replica, asked.is_empty()).await;
        for request in asked {
            // Whoever asked may be gone.
            let _ = request.send(answer.clone());
        }
        if answer.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn sync(replica: &Replica, only_the_pulse: bool) -> Result<(), Arc<String>> {
    let mut awaited = i64::MAX;
    for _ in 0..TRIES {
        let Some(latest) = latest(replica, only_the_pulse).await? else { return Ok(()) };
        // The lowest answer counts: after a restore the cluster may be behind the history that it replaced.
        awaited = awaited.min(latest);
        if timeout(BEHIND, told(replica, awaited)).await.is_ok() {
            replica.recover(Fault::Behind);
            return Ok(());
        }
        log::debug!("the watch of the catalog {} is behind", replica.client.location);
        replica.state.restart_watch();
    }
    let why = "its members do not tell what was changed";
    replica.fail(Fault::Behind, why);
    Err(Arc::new(why.into()))
}

/// Returns the revision of the latest transaction, from a quorum; `None` if none answers yet and nobody waits.
async fn latest(replica: &Replica, only_the_pulse: bool) -> Result<Option<i64>, Arc<String>> {
    loop {
        let (reached, known) = replica.memory.look(|_, rows| (rows.reached, rows.head.clone()));
        match head(replica).await {
            Ok((head, revision)) => {
                replica.client.health.well();
                // In one history, what was heard before the question is no later than the answer.
                let at = |head: &Option<Head>| head.as_ref().map_or(0, |(at, _)| *at);
                if revision < reached || at(&head) < at(&known) || (at(&head) == at(&known) && head != known)
                {
                    replica.history_changed(revision);
                }
                return Ok(Some(at(&head)));
            }
            Err(error) => {
                replica.client.health.unanswered(&error);
                if let Some(why) = replica.client.health.fault() {
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

/// Waits until the memory has come to a transaction, in the cluster's history.
async fn told(replica: &Replica, latest: i64) {
    let mut reached = replica.memory.reached();
    loop {
        // The sender lives as long as `replica`.
        let _ = reached.wait_for(|reached| *reached >= latest).await;
        if replica.state.needs_reload().is_none() {
            let (reached, known) = replica.memory.look(|_, rows| (rows.reached, rows.head.clone()));
            if reached >= latest && known.map_or(0, |(at, _)| at) >= latest {
                return;
            }
            // It has passed that revision without this transaction.
            if reached >= latest {
                replica.history_changed(reached);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the key that every transaction writes, and the revision of the whole cluster, from a quorum.
pub(super) async fn head(replica: &Replica) -> Result<(Option<Head>, i64), CallError> {
    let Replica { client, .. } = replica;
    let (key, limit) = (client.keys.head(), client.health.answer());
    let got = client.members.ask(limit, async move |client| client.kv_client().get(key, None).await).await?;
    let revision = got.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())), revision))
}
