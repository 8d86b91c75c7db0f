//! How the engine starts: it finishes what the process before it had under way, reads everything, takes its name among the
//! instances, and starts its tasks.
//!
//! Nothing of the process before may take effect once this one serves.

use std::collections::HashMap;
use std::sync::Arc;

use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp};
use tokio::sync::watch::Sender;
use uuid::Uuid;

use super::client::{self, Client, NO_LEASE, Reader};
use super::core::Core;
use super::dir_locks::DirLocks;
use super::error::OpenError;
use super::key_locks::KeyLocks;
use super::keys::TTL;
use super::outbox::Outbox;
use super::presence::{self, Presence, Serving};
use super::replay::{self, OutboxProgress};
use super::replica::{self, Claim, Replica};
use super::txn::{self, SLOTS, Slots, Transactions, revision, same};
use super::{Etcd, session};
use crate::catalog::{Cluster, Instance};

/// Opens the catalog in a cluster, and makes an empty one if there is none. Blocks until every record is read, however
/// long the cluster does not answer.
pub fn open(cluster: &Cluster, instance: &Instance) -> Result<Etcd, OpenError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("catalog")
        .enable_all()
        .build()
        .map_err(OpenError::System)?;
    let (core, progress, presence) = runtime.block_on(build(cluster, instance))?;
    let Core { client, replica, txn, .. } = &*core;
    runtime.spawn(session::keep(Arc::clone(client), Arc::clone(replica), presence));
    runtime.spawn(client::follow_credentials(Arc::clone(client)));
    runtime.spawn(txn::probe(Arc::clone(txn)));
    let closing = Sender::new(false);
    let (client, replica, txn) = (Arc::clone(client), Arc::clone(replica), Arc::clone(txn));
    let dir_locks = Arc::new(DirLocks::new(client, replica, txn, closing.subscribe()));
    // What was answered before is recorded before anything else is.
    let of_outbox = Arc::clone(&core);
    let progress = runtime.block_on(async move {
        let mut progress = progress;
        replay::drain(&of_outbox, &mut progress).await;
        progress
    });
    runtime.spawn(replay::keep_up(Arc::clone(&core), progress));
    Ok(Etcd { core, dir_locks, under_way: Arc::new(Sender::new(0)), closing, runtime: Some(runtime) })
}

/// Reads everything, and takes this instance's place among the others.
async fn build(
    cluster: &Cluster,
    instance: &Instance,
) -> Result<(Arc<Core>, OutboxProgress, Presence), OpenError> {
    let Instance { candidate_name: candidate, credentials, spool, request } = instance;
    let (outbox, me) = Outbox::open(spool, &cluster.prefix)?;
    let client = Arc::new(Client::new(cluster, credentials, me, *request)?);
    let Client { location, keys, lease, .. } = &*client;
    let run = Uuid::new_v4();
    let reader = client.reader();
    reader.ready(true).await?;
    let node = candidate.resolve(presence::kept_name(&reader, me).await?);
    if node.recorded.is_none() && !candidate.configured && node.is_default_hostname() {
        return Err(OpenError::Nameless { location: location.clone(), node: node.name.to_string() });
    }
    let serving = Serving { node: node.name.to_string(), lock: outbox.lock_identity() };
    let presence = Presence { me, run, serving };
    // This machine may be a copy of another one, whose process is alive: its keys must not be touched before this is ruled
    // out.
    presence.await_name(&reader, outbox.path()).await?;
    let (slots, progress) = settle_slots(&reader, &outbox, me, run).await?;
    let still_ours = same(keys.slot(me, 0), slots.first().copied().unwrap_or_default());
    end_claims(&reader, me).await?;
    let snapshot = replica::read(&reader).await?;
    let granted = reader.ask(|client| async move { client.lease_client().grant(TTL, None).await }).await?;
    lease.replace(granted.map_or(NO_LEASE, |granted| granted.id()));
    // An import that started meanwhile has deleted the slots; once this instance is present, none starts.
    match presence.appear(&client.members, keys, lease.id(), Some(still_ours)).await {
        Ok(true) => {}
        Ok(false) => {
            let unused = lease.id();
            let revoked = reader
                .ask(|client| async move { client.lease_client().revoke(unused).await })
                .await
                .map(drop);
            revoked.and(presence.await_name(&reader, outbox.path()).await)?;
            return Err(OpenError::HalfImported { location: location.clone() });
        }
        // The session tries it again at once, with another lease.
        Err(error) => {
            log::debug!("this instance cannot be seen by others yet: {}", error.text);
            lease.replace(NO_LEASE);
        }
    }
    let core = Core {
        replica: Replica::start(Arc::clone(&client), snapshot),
        txn: Arc::new(Transactions::new(Arc::clone(&client), Slots::new(slots), run)),
        outbox: Arc::new(outbox),
        key_locks: KeyLocks::default(),
        client,
    };
    Ok((Arc::new(core), OutboxProgress { revision: progress }, presence))
}

/// Finds out the outcome of the transactions that the process before had under way, and makes sure that none of them takes
/// effect from now on. Returns the revisions of the slots, and of the outbox's progress.
///
/// The outcome is made durable before the slots are written, because writing them erases it: the next round needs it if
/// this answer is lost, and the next start if this process is killed.
async fn settle_slots(
    reader: &Reader<'_>,
    outbox: &Outbox,
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
        let stored = reader.get(keys.outbox_progress(me), GetOptions::new()).await?;
        let stored = stored.as_ref().and_then(|got| got.kvs().first());
        let applied = stored.and_then(|pair| pair.value_str().ok()?.parse().ok()).unwrap_or_default();
        outbox.remove_recorded(applied, &numbers)?;

        let slot = |number| keys.slot(me, number);
        let mut unchanged: Vec<_> =
            revisions.iter().enumerate().map(|(number, revision)| same(slot(number), *revision)).collect();
        unchanged.push(same(keys.outbox_progress(me), stored.map_or(0, etcd_client::KeyValue::mod_revision)));
        // An import stops an instance by deleting its slots, which does nothing to an instance that has none yet.
        unchanged.push(same(keys.import(), 0));
        let mut written: Vec<_> =
            (0..SLOTS).map(|number| TxnOp::put(slot(number), format!("{}.0", run.simple()), None)).collect();
        written.push(TxnOp::put(keys.outbox_progress(me), applied.to_string(), None));
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
        outbox.forget_slots();
        return Ok((vec![revision(&answer); SLOTS], revision(&answer)));
    }
}

/// Ends the claims of the process before, without waiting for their lease to expire.
async fn end_claims(reader: &Reader<'_>, me: Uuid) -> Result<(), OpenError> {
    loop {
        let (first, end) = reader.keys.all_claims();
        let found = reader.get(first, GetOptions::new().with_range(end)).await?;
        let found = found.map(|mut got| got.take_kvs()).unwrap_or_default();
        let is_ours = |pair: &&etcd_client::KeyValue| {
            serde_json::from_slice::<Claim>(pair.value()).is_ok_and(|claim| claim.by == me)
        };
        let ours: Vec<_> = found.iter().filter(is_ours).take(SLOTS).collect();
        if ours.is_empty() {
            return Ok(());
        }
        // A claim that ends just now may be another instance's when this is carried out.
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
