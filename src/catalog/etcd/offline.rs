//! A catalog in a cluster without a service: read whole, or made of a whole view.
//!
//! Reading needs no lock, because a cluster tells what was there at one revision. Making takes many transactions. The
//! first one puts the key `import`, and takes away what lets an instance of before write: its slots. Every other one
//! holds only while that key is as it was put, and the last one puts in its place what says that this is a catalog. So
//! what was cut off is never taken for a catalog; whoever imports again clears it away; and of two who import at once,
//! the one that began first writes nothing any more.
//!
//! Nothing here changes a catalog that holds something, or that an instance serves.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp, TxnResponse};
use futures_util::{TryStreamExt as _, stream};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::client::{Format, Members, Reader, RetryLimit, State};
use super::error::OpenError;
use super::keys::Keys;
use super::presence::Serving;
use super::replica;
use super::txn::{first_pair, revision, same};
use crate::catalog::record::encode;
use crate::catalog::{Cluster, Credentials, View, Write};

/// How many records one transaction writes: etcd takes 128 operations by default.
const RECORDS: usize = 100;

/// How many bytes one transaction writes, one record more or less: etcd takes 1.5 MiB by default.
const BYTES: usize = 512 * 1024;

/// How many transactions are under way at a time: etcd brings several to the disk at once.
const AT_ONCE: usize = 8;

/// How often it is tried to begin, while others change what stands there.
const TRIES: usize = 10;

/// Reads the catalog, also while instances serve it: what was durable at one moment. Refused as
/// [`OpenError::Missing`] where there is none, and as [`OpenError::Unreachable`] after some seconds without an answer.
pub fn read(cluster: &Cluster, credentials: &Credentials) -> Result<View, OpenError> {
    let place = OfflineCluster::of(cluster, credentials)?;
    place.runtime.block_on(async {
        let reader = place.reader();
        reader.ready(false).await?;
        Ok(replica::read(&reader).await?.view)
    })
}

/// The right to make a catalog where there is none, or an empty one: looked at when it is claimed, and again when it is
/// filled.
pub struct NewCatalog {
    place: OfflineCluster,
    accepts: Accepts,
}

/// In the place of what a catalog may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepts {
    /// Of nothing, and of what an import left that was cut off.
    Missing,
    /// Of a catalog without a record, too.
    Empty,
}

impl NewCatalog {
    /// Claims keys of which there are none.
    pub fn if_missing(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        Self::take(cluster, credentials, Accepts::Missing)
    }

    /// Claims keys of which there are none, or those of a catalog without a record.
    pub fn if_empty(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        Self::take(cluster, credentials, Accepts::Empty)
    }

    fn take(cluster: &Cluster, credentials: &Credentials, accepts: Accepts) -> Result<Self, OpenError> {
        let place = OfflineCluster::of(cluster, credentials)?;
        place.runtime.block_on(place.examine(accepts))?;
        Ok(Self { place, accepts })
    }

    /// Makes the catalog. Where that is cut off, it is no catalog before it is made once more.
    pub fn fill(self, view: &View) -> Result<(), OpenError> {
        let Self { place, accepts } = self;
        // What cannot be written down is found before anything is written.
        for write in view.records() {
            encode(&write)?;
        }
        place.runtime.block_on(async {
            let run = Uuid::new_v4().to_string();
            let import = place.begin(accepts, &run).await?;
            place.write(import, view).await?;
            place.finish(import, &run).await
        })
    }
}

/// A cluster that is asked by nobody else in this process.
struct OfflineCluster {
    runtime: Runtime,
    members: Members,
    keys: Keys,
    location: String,
}

impl OfflineCluster {
    fn of(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::System)?;
        let members = Members::new(cluster, credentials)?;
        Ok(Self { runtime, members, keys: Keys::new(cluster), location: cluster.to_string() })
    }

    fn reader(&self) -> Reader<'_> {
        let Self { runtime: _, members, keys, location } = self;
        Reader { members, keys, location, retry: RetryLimit::Short }
    }

    /// What stands there, if a catalog may be made in its place.
    async fn examine(&self, accepts: Accepts) -> Result<State, OpenError> {
        let location = || self.location.clone();
        let state = self.reader().state().await?;
        let serving = self.range(self.keys.all_instances(), 0).await?;
        if !serving.is_empty() {
            let mut nodes: Vec<_> = serving.iter().map(node).collect();
            nodes.sort();
            return Err(OpenError::Served { location: location(), nodes: nodes.join(", ") });
        }
        if let State::Catalog { .. } = state {
            let root = self.keys.root().to_owned();
            if accepts == Accepts::Missing {
                return Err(OpenError::Taken { location: location(), root, filled: false });
            }
            for table in self.keys.tables() {
                if !self.range(table, 1).await?.is_empty() {
                    return Err(OpenError::Taken { location: location(), root, filled: true });
                }
            }
        }
        Ok(state)
    }

    /// Keeps everybody else from writing, where nothing has changed since it was looked at. Returns the revision of the
    /// key that does.
    async fn begin(&self, accepts: Accepts, run: &str) -> Result<i64, OpenError> {
        let keys = &self.keys;
        for _ in 0..TRIES {
            let state = self.examine(accepts).await?;
            let mut when = vec![none(keys.all_instances())];
            match state {
                State::Nothing => {
                    self.reader().is_outermost().await?;
                    when.push(none((keys.root().to_owned(), keys.end())));
                }
                State::Catalog { revision } => {
                    when.extend([same(keys.import(), 0), same(keys.format(), revision)]);
                    when.extend(keys.tables().map(none));
                }
                State::Import { revision } => when.push(same(keys.import(), revision)),
            }
            let mut then =
                vec![TxnOp::put(keys.import(), run, None), TxnOp::delete(keys.format(), None), self.head()];
            then.extend([keys.all_slots(), keys.all_outbox_progress(), keys.all_claims()].map(delete));
            let begin = Txn::new().when(when).and_then(then).or_else([TxnOp::get(keys.import(), None)]);
            let answer = self.send(&begin).await?;
            let begun = if answer.succeeded() {
                Some(revision(&answer))
            } else {
                // It was sent before, and not answered.
                let ours = first_pair(&answer).filter(|pair| pair.value() == run.as_bytes());
                ours.map(|pair| pair.mod_revision())
            };
            let Some(import) = begun else { continue };
            if let State::Import { .. } = state {
                return self.clear_away(import, run).await;
            }
            return Ok(import);
        }
        Err(self.overtaken())
    }

    /// Clears away what an import left that was cut off. Returns the revision under which this one goes on: another one,
    /// so that a deletion that was sent twice and comes late takes nothing of what is written from now on.
    async fn clear_away(&self, import: i64, run: &str) -> Result<i64, OpenError> {
        log::info!("the catalog {}: what an import left that was cut off is cleared away", self.location);
        let keys = &self.keys;
        for table in keys.tables() {
            self.go_on(import, vec![delete(table)]).await?;
        }
        let cleared = Txn::new()
            .when([same(keys.import(), import)])
            .and_then([TxnOp::put(keys.import(), run, None)])
            .or_else([TxnOp::get(keys.import(), None)]);
        let answer = self.send(&cleared).await?;
        if answer.succeeded() {
            return Ok(revision(&answer));
        }
        // It was sent before, and not answered.
        let ours = first_pair(&answer).filter(|pair| pair.value() == run.as_bytes());
        ours.map(|pair| pair.mod_revision()).ok_or_else(|| self.overtaken())
    }

    /// Writes every record.
    async fn write(&self, import: i64, view: &View) -> Result<(), OpenError> {
        let mut records = view.records();
        let parts = std::iter::from_fn(|| self.part(&mut records).transpose());
        let write = |part| self.go_on(import, part);
        stream::iter(parts).try_for_each_concurrent(AT_ONCE, write).await
    }

    /// As many of the records as one transaction writes; nothing at their end.
    fn part(&self, records: &mut impl Iterator<Item = Write>) -> Result<Option<Vec<TxnOp>>, OpenError> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < RECORDS && bytes < BYTES {
            let Some(write) = records.next() else { break };
            let row = encode(&write)?;
            let (key, record) = (self.keys.row(row.table, &row.key), row.record.unwrap_or_default());
            bytes += key.len() + record.len();
            part.push(TxnOp::put(key, record, None));
        }
        Ok(Some(part).filter(|part| !part.is_empty()))
    }

    /// Makes a catalog of what was written.
    async fn finish(&self, import: i64, run: &str) -> Result<(), OpenError> {
        let keys = &self.keys;
        let end = Txn::new()
            .when([same(keys.import(), import)])
            .and_then([
                TxnOp::put(keys.format(), Format::made_by(run), None),
                TxnOp::delete(keys.import(), None),
                self.head(),
            ])
            .or_else([TxnOp::get(keys.format(), None)]);
        let answer = self.send(&end).await?;
        // It was sent before, and not answered.
        let ours = |pair: KeyValue| pair.value() == Format::made_by(run).as_bytes();
        if answer.succeeded() || first_pair(&answer).is_some_and(ours) {
            return Ok(());
        }
        Err(self.overtaken())
    }

    /// Does a part, which is the same when it is done twice.
    async fn go_on(&self, import: i64, part: Vec<TxnOp>) -> Result<(), OpenError> {
        let part = Txn::new().when([same(self.keys.import(), import)]).and_then(part);
        if self.send(&part).await?.succeeded() { Ok(()) } else { Err(self.overtaken()) }
    }

    async fn send(&self, question: &Txn) -> Result<TxnResponse, OpenError> {
        loop {
            let ask = |client: Arc<etcd_client::Client>| {
                let question = question.clone();
                async move { client.kv_client().txn(question).await }
            };
            // No transaction lies before a compaction.
            if let Some(answer) = self.reader().ask(ask).await? {
                return Ok(answer);
            }
        }
    }

    /// The keys of a range, or the first ones.
    async fn range(&self, (first, end): (String, String), limit: i64) -> Result<Vec<KeyValue>, OpenError> {
        let got = self.reader().get(first, GetOptions::new().with_range(end).with_limit(limit)).await?;
        Ok(got.map(|mut got| got.take_kvs()).unwrap_or_default())
    }

    fn head(&self) -> TxnOp {
        TxnOp::put(self.keys.head(), "", None)
    }

    fn overtaken(&self) -> OpenError {
        OpenError::Overtaken { location: self.location.clone() }
    }
}

/// What an instance is called.
fn node(instance: &KeyValue) -> String {
    serde_json::from_slice(instance.value())
        .map_or_else(|_| "an instance of unknown name".into(), |Serving { node, lock: _ }| node)
}

/// That there is no key in a range.
fn none((first, end): (String, String)) -> Compare {
    Compare::create_revision(first, CompareOp::Equal, 0).with_range(end)
}

fn delete((first, end): (String, String)) -> TxnOp {
    TxnOp::delete(first, Some(DeleteOptions::new().with_range(end)))
}

#[cfg(test)]
mod tests;
