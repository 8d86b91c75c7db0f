//! Waits until the view is as recent as every answer given so far. Every transaction writes one key, `head`: a quorum is
//! asked for its revision, and the watch has to reach that revision.
//!
//! One task asks for all requests that wait. While none waits, it asks once a second, to notice when the cluster becomes
//! unreachable or answers again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Replica;
use super::memory::Head;
use super::state::Fault;
use crate::catalog::etcd::client::CallError;

/// A request that waits until the view is recent; it receives the reason if that fails.
pub(super) type Request = oneshot::Sender<Result<(), Arc<String>>>;

/// The interval at which the cluster is asked while no request waits.
const HEALTH_CHECK: Duration = Duration::from_secs(1);

/// How long the watch may be behind before it is restarted.
const BEHIND: Duration = Duration::from_secs(2);

/// How often the watch is restarted before the replica counts as behind.
const TRIES: usize = 5;

/// Answers requests for as long as the catalog is served.
pub(super) async fn answer(replica: Arc<Replica>, mut requests: mpsc::UnboundedReceiver<Request>) {
    loop {
        let mut waiting = match timeout(HEALTH_CHECK, requests.recv()).await {
            Ok(Some(first)) => vec![first],
            Ok(None) => return,
            Err(_) => Vec::new(),
        };
        while let Ok(more) = requests.try_recv() {
            waiting.push(more);
        }
        let answer = sync(&replica, waiting.is_empty()).await;
        for request in waiting {
            // The request may have been cancelled.
            let _ = request.send(answer.clone());
        }
        if answer.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn sync(replica: &Replica, is_health_check: bool) -> Result<(), Arc<String>> {
    let mut awaited = i64::MAX;
    for _ in 0..TRIES {
        let Some(latest) = latest(replica, is_health_check).await? else { return Ok(()) };
        // The lowest answer counts: after a restore the cluster may be behind the history that it replaced.
        awaited = awaited.min(latest);
        if timeout(BEHIND, await_watch(replica, awaited)).await.is_ok() {
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

/// Returns the revision of the latest transaction, from a quorum; `None` if no quorum answers yet and no request waits.
async fn latest(replica: &Replica, is_health_check: bool) -> Result<Option<i64>, Arc<String>> {
    loop {
        let (reached, own_head) = replica.memory.look(|_, rows| (rows.reached, rows.head.clone()));
        match head(replica).await {
            Ok((head, revision)) => {
                replica.client.health.well();
                // In one history, no event that was delivered before the question is later than the answer.
                let at = |head: &Option<Head>| head.as_ref().map_or(0, |(at, _)| *at);
                if revision < reached
                    || at(&head) < at(&own_head)
                    || (at(&head) == at(&own_head) && head != own_head)
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
                if is_health_check {
                    return Ok(None);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Waits until the memory has reached a transaction, in the cluster's history.
async fn await_watch(replica: &Replica, latest: i64) {
    let mut reached = replica.memory.reached();
    loop {
        // The sender lives as long as `replica`.
        let _ = reached.wait_for(|reached| *reached >= latest).await;
        if replica.state.needs_reload().is_none() {
            let (reached, own_head) = replica.memory.look(|_, rows| (rows.reached, rows.head.clone()));
            if reached >= latest && own_head.map_or(0, |(at, _)| at) >= latest {
                return;
            }
            // The watch has passed that revision without delivering this transaction.
            if reached >= latest {
                replica.history_changed(reached);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Returns the key `head`, which every transaction writes, and the revision of the whole cluster, from a quorum.
pub(super) async fn head(replica: &Replica) -> Result<(Option<Head>, i64), CallError> {
    let Replica { client, .. } = replica;
    let (key, limit) = (client.keys.head(), client.health.answer());
    let got = client.members.ask(limit, async move |client| client.kv_client().get(key, None).await).await?;
    let revision = got.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((got.kvs().first().map(|pair| (pair.mod_revision(), pair.value().to_vec())), revision))
}
