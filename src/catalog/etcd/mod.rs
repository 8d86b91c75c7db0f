//! The shared engine: a catalog in an etcd cluster, which any number of instances serve at once.
//!
//! # How a change becomes durable
//!
//! Each record is a key. A change is decided by the rules on the view in memory and sent as one transaction, which holds
//! only while the rows that the rules looked at have the revisions that are known; else the view is made fresh and the
//! change is decided anew. Only then it is shown and answered. Two changes of one instance that touch the same volume or
//! host are decided in the order in which they were submitted; all others at the same time.
//!
//! # How an instance knows what others did
//!
//! A watch brings what everybody wrote, in the order of revisions. It is a little behind, so that nothing is refused, and
//! nothing said not to exist, before the view is [`read_index`]: every transaction writes one key, whose latest revision a
//! quorum tells and the watch has to reach. An instance that does not hear what others do, or does not understand it,
//! decides nothing ([`watch_health`]).
//!
//! # What ends with an instance
//!
//! That a volume is not visible yet, and that an instance moves a directory, are keys bound to the instance's lease
//! ([`session`]). When it ends, or is cut off for longer than that, they vanish: its volumes are visible and unconfirmed
//! to the others, as they are to the embedded engine after a crash, and are mended as those are.
//!
//! # When a member does not answer
//!
//! Another one is asked. What was sent may still take effect, so it is sent again in the same [`slot`](slots) until it is
//! known what became of it. While no quorum answers, nothing is begun; Unmounts are kept in the [`outbox`] and carried out
//! exactly once; reads go on from memory.
//!
//! It must never answer a change that is not durable in the cluster or in the spool, and never take a lost answer for a
//! transaction that was not made.

mod core;
mod dir_locks;
mod error;
mod health;
mod key_locks;
mod keys;
mod load;
mod members;
mod offline;
mod outbox;
mod plan;
mod presence;
mod read_index;
mod replay;
mod replica;
mod session;
mod slots;
#[cfg(test)]
mod tests;
mod transact;
mod watch;
mod watch_health;

use std::collections::HashMap;
use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::runtime::Runtime;
use tokio::sync::watch::{Receiver, Sender};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use uuid::Uuid;

use self::core::{Core, place};
pub use self::error::OpenError;
use self::health::Health;
use self::key_locks::KeyLocks;
use self::keys::Keys;
use self::load::{Reader, RetryLimit};
use self::members::{ANSWER, Members};
pub use self::offline::{NewCatalog, read};
use self::outbox::Outbox;
use self::plan::same;
use self::presence::{Presence, Serving};
use self::replay::OutboxProgress;
use self::replica::{Moves, Replica};
use self::slots::{SLOTS, Slots};
use self::transact::revision;
use super::{
    Catalog, CatalogError, CatalogFuture, Change, Cluster, DistributedLock, Instance, PeerEvents, Submitted,
    View,
};

/// How long closing waits for changes under way.
const CLOSING: Duration = Duration::from_secs(5);

/// How often it is looked whether the credentials' files hold something else.
const FOLLOW: Duration = Duration::from_secs(1);

/// How long reading them may take before that is told.
const SLOW: Duration = Duration::from_secs(10);

/// A catalog in a cluster. Dropping it waits for changes under way, as [`close`](Catalog::close) does; what holds only
/// while the instance lives then ends some seconds later.
pub struct Etcd {
    core: Arc<Core>,
    /// How many changes are under way.
    under_way: Arc<Sender<usize>>,
    /// Where everything of it runs, so that it goes on whatever becomes of who asks.
    runtime: Option<Runtime>,
}

/// Opens the catalog in a cluster, and makes an empty one where there is none. Blocks until every record was read,
/// however long the cluster does not answer.
pub fn open(cluster: &Cluster, instance: &Instance) -> Result<Etcd, OpenError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("catalog")
        .enable_all()
        .build()
        .map_err(OpenError::System)?;
    let (core, presence, place, questions) = runtime.block_on(build(cluster, instance))?;
    let core = Arc::new(core);
    runtime.spawn(read_index::answer(Arc::clone(&core), questions));
    runtime.spawn(watch::run(Arc::clone(&core)));
    runtime.spawn(session::keep(Arc::clone(&core), presence));
    runtime.spawn(follow(Arc::clone(&core)));
    runtime.spawn(transact::probe(Arc::clone(&core)));
    // What was answered before is recorded before anything else is.
    let mut place = place;
    let of_spool = Arc::clone(&core);
    runtime.block_on(async { replay::empty(&of_spool, &mut place).await });
    runtime.spawn(replay::keep_up(Arc::clone(&core), place));
    Ok(Etcd { core, under_way: Arc::new(Sender::new(0)), runtime: Some(runtime) })
}

/// Reads everything and takes this instance's place among the others.
async fn build(
    cluster: &Cluster,
    instance: &Instance,
) -> Result<(Core, Presence, OutboxProgress, mpsc::UnboundedReceiver<read_index::ReadIndexRequest>), OpenError>
{
    let Instance { candidate_name: candidate, credentials, spool, request } = instance;
    let (location, keys) = (cluster.to_string(), Keys::of(cluster));
    let members = Members::new(cluster, credentials)?;
    let (spool, me) = Outbox::open(spool, &cluster.prefix)?;
    let run = Uuid::new_v4();
    let reader =
        Reader { members: &members, keys: &keys, location: &location, patience: RetryLimit::Endless };
    reader.ready(true).await?;
    let node = candidate.resolve(presence::kept_name(&reader, me).await?);
    if node.recorded.is_none() && !candidate.configured && node.is_default_hostname() {
        return Err(OpenError::Nameless { location, node: node.name.to_string() });
    }
    let serving = Serving { node: node.name.to_string(), lock: spool.lock_identity() };
    let presence = Presence { me, run, serving };
    // Before anything of another live process is touched, where this machine is a copy of its.
    presence.await_name(&reader, spool.path()).await?;
    let (slots, place) = settle_slots(&reader, &spool, me, run).await?;
    let still_ours = same(keys.slot(me, 0), slots.first().copied().unwrap_or_default());
    end_claims(&reader, me).await?;
    let snapshot = reader.read().await?;
    let lease =
        reader.ask(|client| async move { client.lease_client().grant(session::TTL, None).await }).await?;
    let lease = lease.map_or(session::NONE, |granted| granted.id());
    let (questions, asked) = mpsc::unbounded_channel();
    let core = Core {
        replica: Replica::new(keys.clone(), me, snapshot),
        health: Health::new(location.clone(), *request),
        slots: Slots::new(slots),
        outbox: Arc::new(spool),
        key_locks: KeyLocks::default(),
        release_queue: dir_locks::ReleaseQueue::default(),
        lease: AtomicI64::new(lease),
        lease_gone: tokio::sync::Notify::new(),
        watch_anew: tokio::sync::Notify::new(),
        other_history: AtomicBool::new(false),
        doubted: AtomicBool::new(false),
        watch_health: watch_health::WatchHealth::default(),
        questions,
        run,
        numbers: AtomicU64::new(1),
        closing: Sender::new(false),
        location,
        keys,
        me,
        members,
    };
    // An import that began since has taken the slots away; once this instance is seen, none begins any more.
    match presence.appear(&core.members, &core.keys, lease, Some(still_ours)).await {
        Ok(true) => {}
        Ok(false) => {
            let (members, keys, location) = (&core.members, &core.keys, &*core.location);
            let reader = Reader { members, keys, location, patience: RetryLimit::Endless };
            let unused =
                reader.ask(|client| async move { client.lease_client().revoke(lease).await }).await.map(drop);
            unused.and(presence.await_name(&reader, core.outbox.path()).await)?;
            return Err(OpenError::HalfImported { location: core.location });
        }
        // It is tried again with another lease, at once.
        Err(trouble) => {
            log::debug!("this instance cannot be seen by others yet: {}", trouble.text);
            core.lease.store(session::NONE, Ordering::Release);
        }
    }
    Ok((core, presence, OutboxProgress { revision: place }, asked))
}

/// Finds out what became of the transactions that the process before this one had under way, and makes sure that nothing
/// of them takes effect from now on. Returns the slots' revisions, and that of the spool's place.
///
/// What is found out is durable before the slots are written, because they tell it no more afterwards: not to the next
/// round, where the answer to that transaction is lost, nor to the next start, where this process is killed.
async fn settle_slots(
    reader: &Reader<'_>,
    spool: &Outbox,
    me: Uuid,
    run: Uuid,
) -> Result<(Vec<i64>, i64), OpenError> {
    let keys = reader.keys;
    loop {
        let (first, end) = (keys.slots(me), keys.slots(me) + "~");
        let found = reader
            .get(first.clone(), GetOptions::new().with_range(end))
            .await?
            .map(|mut got| got.take_kvs())
            .unwrap_or_default();
        let (mut revisions, mut numbers) = (vec![0; SLOTS], HashMap::new());
        for pair in &found {
            let number = pair.key_str().ok().and_then(|key| key.strip_prefix(&first)?.parse::<usize>().ok());
            if let Some(revision) = number.and_then(|number| revisions.get_mut(number)) {
                *revision = pair.mod_revision();
            }
            numbers.extend(number.map(|number| (number, String::from_utf8_lossy(pair.value()).into_owned())));
        }
        let place = reader.get(keys.spool(me), GetOptions::new()).await?;
        let place = place.as_ref().and_then(|got| got.kvs().first());
        let applied = place.and_then(|pair| pair.value_str().ok()?.parse().ok()).unwrap_or_default();
        spool.pass_over(applied, &numbers)?;

        let slot = |number| keys.slot(me, number);
        let mut unchanged: Vec<_> =
            revisions.iter().enumerate().map(|(number, revision)| same(slot(number), *revision)).collect();
        unchanged.push(same(keys.spool(me), place.map_or(0, etcd_client::KeyValue::mod_revision)));
        // Who has no slots yet is not kept from writing by an import that takes them away.
        unchanged.push(same(keys.import(), 0));
        let mut written: Vec<_> =
            (0..SLOTS).map(|number| TxnOp::put(slot(number), format!("{}.0", run.simple()), None)).collect();
        written.push(TxnOp::put(keys.spool(me), applied.to_string(), None));
        let question = Txn::new().when(unchanged).and_then(written);
        let answer = reader
            .ask(|client| {
                let question = question.clone();
                async move { client.kv_client().txn(question).await }
            })
            .await?;
        let Some(answer) = answer.filter(etcd_client::TxnResponse::succeeded) else {
            reader.ready(true).await?;
            continue;
        };
        spool.forget_slots();
        return Ok((vec![revision(&answer); SLOTS], revision(&answer)));
    }
}

/// Ends the claims that the process before this one made, before their lease does.
async fn end_claims(reader: &Reader<'_>, me: Uuid) -> Result<(), OpenError> {
    loop {
        let (first, end) = reader.keys.all_moving();
        let found = reader.get(first, GetOptions::new().with_range(end)).await?;
        let found = found.map(|mut got| got.take_kvs()).unwrap_or_default();
        let is_ours = |pair: &&etcd_client::KeyValue| {
            serde_json::from_slice::<Moves>(pair.value()).is_ok_and(|moves| moves.by == me)
        };
        let ours: Vec<_> = found.iter().filter(is_ours).take(SLOTS).collect();
        if ours.is_empty() {
            return Ok(());
        }
        // One that ended just now may be another instance's by the time that this is carried out.
        let still_ours =
            ours.iter().map(|pair| Compare::mod_revision(pair.key(), CompareOp::Equal, pair.mod_revision()));
        let deleted = ours.iter().map(|pair| TxnOp::delete(pair.key(), None));
        let question = Txn::new().when(still_ours.collect::<Vec<_>>()).and_then(deleted.collect::<Vec<_>>());
        reader
            .ask(|client| {
                let question = question.clone();
                async move { client.kv_client().txn(question).await }
            })
            .await?;
    }
}

/// Uses what the credentials' files hold.
async fn follow(core: Arc<Core>) {
    let mut said = false;
    loop {
        tokio::time::sleep(FOLLOW).await;
        let Ok(followed) = timeout(SLOW, core.members.follow()).await else {
            if !said {
                log::warn!(
                    "what \"etcd\" names could not be read within {} s: its storage does not answer; what it held before \
                     is used on",
                    SLOW.as_secs()
                );
            }
            said = true;
            continue;
        };
        match followed {
            Ok(true) => {
                log::info!(
                    "what \"etcd\" names has changed: the catalog {} is called with it",
                    core.location
                );
                said = false;
            }
            Ok(false) => said = false,
            Err(error) if !said => {
                log::warn!("{}; what it held before is used on", crate::error::chain(&error));
                said = true;
            }
            Err(_) => {}
        }
    }
}

impl Etcd {
    /// Runs a question where it goes on whether or not anybody waits for it.
    fn run<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, CatalogError>> + Send + 'static,
    ) -> CatalogFuture<T> {
        let Some(runtime) = self.runtime.as_ref().filter(|_| !*self.core.closing.borrow()) else {
            return Box::pin(ready(Err(CatalogError::Closed)));
        };
        let (answer, answered) = oneshot::channel();
        self.under_way.send_modify(|count| *count += 1);
        let ended = UnderWay(Arc::clone(&self.under_way));
        runtime.spawn(async move {
            // Nobody may be waiting any more; what was done stands all the same.
            let _ = answer.send(question.await);
            drop(ended);
        });
        Box::pin(async move { answered.await.unwrap_or(Err(CatalogError::Closed)) })
    }
}

/// That something is under way; over when dropped, also by a panic.
struct UnderWay(Arc<Sender<usize>>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl Catalog for Etcd {
    fn view(&self) -> Arc<View> {
        self.core.replica.view()
    }

    fn submit(&self, change: Change) -> Submitted {
        let core = Arc::clone(&self.core);
        // Its place is taken now, in the order of calls.
        let mut turn = place(&core, &change);
        self.run(async move {
            core.wait_for_turn(&mut turn, &change).await;
            core.carry_out(change).await
        })
    }

    fn sync(&self) -> CatalogFuture<()> {
        let core = Arc::clone(&self.core);
        self.run(async move { core.sync().await })
    }

    fn try_lock(&self, id: crate::model::volume::VolumeId) -> CatalogFuture<Option<DistributedLock>> {
        let core = Arc::clone(&self.core);
        self.run(async move { core.claim(id).await })
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn limit_requests(&self, limit: Duration) {
        self.core.health.limit_requests(limit);
    }

    fn peer_events(&self) -> Option<Receiver<PeerEvents>> {
        Some(self.core.replica.peer_events())
    }

    fn machine(&self) -> Uuid {
        self.core.me
    }

    fn location(&self) -> &str {
        &self.core.location
    }

    fn fault(&self) -> Option<Arc<String>> {
        match (self.core.health.fault(), self.core.outbox.len()) {
            (fault, 0) => fault,
            (Some(fault), kept) => {
                Some(Arc::new(format!("{fault}; {kept} answered requests are kept until it is back")))
            }
            (None, kept) => Some(Arc::new(format!("{kept} answered requests are not recorded yet"))),
        }
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        self.core.closing.send_replace(true);
        let (core, mut under_way) = (Arc::clone(&self.core), self.under_way.subscribe());
        let Some(runtime) = &self.runtime else { return Box::pin(ready(())) };
        let closed = runtime.spawn(async move {
            if timeout(CLOSING, under_way.wait_for(|count| *count == 0)).await.is_err() {
                log::warn!("the catalog {} does not answer: changes under way are given up", core.location);
            }
            session::leave(&core).await;
        });
        Box::pin(async move {
            // It ends, and what it says it says to the log.
            let _ = closed.await;
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let closed = self.core.closing.send_replace(true);
        let Some(runtime) = self.runtime.take() else { return };
        let mut under_way = self.under_way.subscribe();
        // A thread of its own may wait, which the one that drops this may not be allowed to.
        let end = std::thread::Builder::new().name("etcd-end".into()).spawn(move || {
            // Closed before, it was waited for already.
            if !closed {
                let waited =
                    async { timeout(CLOSING, under_way.wait_for(|count| *count == 0)).await.is_ok() };
                runtime.block_on(waited);
            }
            runtime.shutdown_timeout(ANSWER);
        });
        // Where there is no thread, the runtime went with what was to be done there: nothing is waited for.
        let Ok(end) = end else { return };
        // It does not panic, and nothing could be done about it.
        let _ = end.join();
    }
}
