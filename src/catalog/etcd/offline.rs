//! A catalog in a cluster without a service: reads one whole, or makes one from a view.
//!
//! Reading needs no lock, because a cluster can be read at one revision. Making takes many transactions. The first writes
//! the key `import`, and deletes the slots of earlier instances, which stops their writes. Every other transaction requires
//! that this key is unchanged, and the last one replaces it by the key `format`, which makes the keys a catalog. So an
//! interrupted import is never taken for a catalog, the next import deletes what it left, and of two imports at the same
//! time, the one that began first can write nothing more.
//!
//! It must never change a catalog that has records, or that an instance serves.

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

/// The largest number of records that one transaction writes: etcd allows 128 operations by default.
const MAX_RECORDS: usize = 100;

/// The size of one transaction in bytes, which its last record may exceed: etcd allows 1.5 MiB by default.
const TARGET_BYTES: usize = 512 * 1024;

/// The number of transactions under way at the same time: etcd flushes several together.
const CONCURRENCY: usize = 8;

/// How often an import tries to begin while other processes change the keys.
const ATTEMPTS: usize = 10;

/// Reads the catalog as it was durable at one moment, also while instances serve it. Fails with [`OpenError::Missing`] if
/// there is none, and with [`OpenError::Unreachable`] after some seconds without an answer.
pub fn read(cluster: &Cluster, credentials: &Credentials) -> Result<View, OpenError> {
    let target = OfflineCluster::new(cluster, credentials)?;
    target.runtime.block_on(async {
        let reader = target.reader();
        reader.ready(false).await?;
        Ok(replica::read(&reader).await?.view)
    })
}

/// The permission to make a catalog if there is none, or only an empty one. This is checked when it is claimed, and again
/// when the catalog is filled.
pub struct NewCatalog {
    target: OfflineCluster,
    accepts: Accepts,
}

/// The content that a new catalog may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accepts {
    /// No key, or what an interrupted import left.
    Missing,
    /// Also a catalog without a record.
    Empty,
}

impl NewCatalog {
    /// Claims the catalog if it has no keys.
    pub fn if_missing(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        Self::claim(cluster, credentials, Accepts::Missing)
    }

    /// Claims the catalog if it has no keys, or no record.
    pub fn if_empty(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        Self::claim(cluster, credentials, Accepts::Empty)
    }

    fn claim(cluster: &Cluster, credentials: &Credentials, accepts: Accepts) -> Result<Self, OpenError> {
        let target = OfflineCluster::new(cluster, credentials)?;
        target.runtime.block_on(target.examine(accepts))?;
        Ok(Self { target, accepts })
    }

    /// Makes the catalog from a view. If that is interrupted, there is no catalog until it is made again.
    pub fn fill(self, view: &View) -> Result<(), OpenError> {
        let Self { target, accepts } = self;
        // A record that cannot be encoded is found before anything is written.
        for write in view.records() {
            encode(&write)?;
        }
        target.runtime.block_on(async {
            let run = Uuid::new_v4().to_string();
            let import = target.begin(accepts, &run).await?;
            target.write(import, view).await?;
            target.finish(import, &run).await
        })
    }
}

/// A cluster that no other part of this process calls, with a runtime for the calls.
struct OfflineCluster {
    runtime: Runtime,
    members: Members,
    keys: Keys,
    location: String,
}

impl OfflineCluster {
    fn new(cluster: &Cluster, credentials: &Credentials) -> Result<Self, OpenError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::System)?;
        let members = Members::new(cluster, credentials)?;
        Ok(Self { runtime, members, keys: Keys::new(cluster), location: cluster.to_string() })
    }

    fn reader(&self) -> Reader<'_> {
        let Self { runtime: _, members, keys, location } = self;
        Reader { members, keys, location, retry: RetryLimit::Short }
    }

    /// Returns what lies below the prefix. Fails if a catalog must not replace it.
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

    /// Writes the key `import`, which stops every other writer, if nothing has changed since it was examined. Returns the
    /// revision of that key.
    async fn begin(&self, accepts: Accepts, run: &str) -> Result<i64, OpenError> {
        let keys = &self.keys;
        for _ in 0..ATTEMPTS {
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
                // It may have taken effect when it was sent before and not answered.
                let ours = first_pair(&answer).filter(|pair| pair.value() == run.as_bytes());
                ours.map(|pair| pair.mod_revision())
            };
            let Some(import) = begun else { continue };
            if let State::Import { .. } = state {
                return self.clear_interrupted(import, run).await;
            }
            return Ok(import);
        }
        Err(self.overtaken())
    }

    /// Deletes the records that an interrupted import left, and writes the key `import` again. Returns its new revision, so
    /// that a deletion that was sent twice and arrives late deletes nothing that is written from now on.
    async fn clear_interrupted(&self, import: i64, run: &str) -> Result<i64, OpenError> {
        log::info!("the catalog {}: what an import left that was cut off is cleared away", self.location);
        let keys = &self.keys;
        for table in keys.tables() {
            self.write_part(import, vec![delete(table)]).await?;
        }
        let cleared = Txn::new()
            .when([same(keys.import(), import)])
            .and_then([TxnOp::put(keys.import(), run, None)])
            .or_else([TxnOp::get(keys.import(), None)]);
        let answer = self.send(&cleared).await?;
        if answer.succeeded() {
            return Ok(revision(&answer));
        }
        // It may have taken effect when it was sent before and not answered.
        let ours = first_pair(&answer).filter(|pair| pair.value() == run.as_bytes());
        ours.map(|pair| pair.mod_revision()).ok_or_else(|| self.overtaken())
    }

    /// Writes every record.
    async fn write(&self, import: i64, view: &View) -> Result<(), OpenError> {
        let mut records = view.records();
        let parts = std::iter::from_fn(|| self.part(&mut records).transpose());
        let write = |part| self.write_part(import, part);
        stream::iter(parts).try_for_each_concurrent(CONCURRENCY, write).await
    }

    /// Returns the writes of the next transaction; `None` if there are no more records.
    fn part(&self, records: &mut impl Iterator<Item = Write>) -> Result<Option<Vec<TxnOp>>, OpenError> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while part.len() < MAX_RECORDS && bytes < TARGET_BYTES {
            let Some(write) = records.next() else { break };
            let row = encode(&write)?;
            let (key, record) = (self.keys.row(row.table, &row.key), row.record.unwrap_or_default());
            bytes += key.len() + record.len();
            part.push(TxnOp::put(key, record, None));
        }
        Ok(Some(part).filter(|part| !part.is_empty()))
    }

    /// Makes the records a catalog: replaces the key `import` by the key `format`.
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
        // It may have taken effect when it was sent before and not answered.
        let ours = |pair: KeyValue| pair.value() == Format::made_by(run).as_bytes();
        if answer.succeeded() || first_pair(&answer).is_some_and(ours) {
            return Ok(());
        }
        Err(self.overtaken())
    }

    /// Writes a part of the import. Doing so twice changes nothing more.
    async fn write_part(&self, import: i64, part: Vec<TxnOp>) -> Result<(), OpenError> {
        let part = Txn::new().when([same(self.keys.import(), import)]).and_then(part);
        if self.send(&part).await?.succeeded() { Ok(()) } else { Err(self.overtaken()) }
    }

    async fn send(&self, question: &Txn) -> Result<TxnResponse, OpenError> {
        loop {
            let ask = |client: Arc<etcd_client::Client>| {
                let question = question.clone();
                async move { client.kv_client().txn(question).await }
            };
            // `None` is the answer to a read of a compacted revision, which no transaction is.
            if let Some(answer) = self.reader().ask(ask).await? {
                return Ok(answer);
            }
        }
    }

    /// Returns the first `limit` keys of a range; all if it is 0.
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

/// Returns the name of an instance's machine.
fn node(instance: &KeyValue) -> String {
    serde_json::from_slice(instance.value())
        .map_or_else(|_| "an instance of unknown name".into(), |Serving { node, lock: _ }| node)
}

/// Returns the condition that there is no key in a range.
fn none((first, end): (String, String)) -> Compare {
    Compare::create_revision(first, CompareOp::Equal, 0).with_range(end)
}

fn delete((first, end): (String, String)) -> TxnOp {
    TxnOp::delete(first, Some(DeleteOptions::new().with_range(end)))
}

#[cfg(test)]
mod tests;
