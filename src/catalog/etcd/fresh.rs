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
use super::members::Trouble;

/// Who is told once the view is fresh, or why it cannot be.
pub(super) type Question = oneshot::Sender<Result<(), Arc<String>>>;

/// How often the cluster is asked for its health.
const PULSE: Duration = Duration::from_secs(1);

/// How long the watch may be behind before it is begun anew.
const BEHIND: Duration = Duration::from_secs(2);

/// How often that is tried.
const TRIES: usize = 5;

/// Answers until nobody can ask any more.
pub(super) async fn answer(core: Arc<Core>, mut questions: mpsc::UnboundedReceiver<Question>) {
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
    let head = loop {
        let reached = core.memory.look(|_, known| known.reached);
        match head(core).await {
            Ok((head, revision)) => {
                if revision < reached {
                    core.history_changed(revision);
                }
                break head;
            }
            Err(trouble) => {
                core.health.unanswered(&trouble);
                if let Some(why) = core.health.fault() {
                    return Err(why);
                }
                if only_the_pulse {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    core.health.well();
    let mut reached = core.memory.reached();
    for _ in 0..TRIES {
        if timeout(BEHIND, reached.wait_for(|reached| *reached >= head)).await.is_ok() {
            return Ok(());
        }
        log::debug!("the watch of the catalog {} is behind: it is begun anew", core.location);
        core.watch_anew.notify_one();
    }
    Err(Arc::new("its members do not tell what was changed".into()))
}

/// The revision of the latest transaction, and that of the whole cluster, as a quorum knows them.
async fn head(core: &Core) -> Result<(i64, i64), Trouble> {
    let key = core.keys.head();
    let limit = core.health.answer();
    let got = core.members.ask(limit, async move |client| client.kv_client().get(key, None).await).await?;
    let revision = got.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((got.kvs().first().map_or(0, etcd_client::KeyValue::mod_revision), revision))
}
