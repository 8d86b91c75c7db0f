//! This machine's name among the instances. No two live instances may have the same name, because they would share their
//! mounts.
//!
//! A name is a key under the lease of the instance that has it. At its start, an instance looks for others of its name and
//! waits until it knows if they are alive: a live instance renews its lease, so that the lease's remaining time increases.
//! It does not wait for the previous process on the same machine, because it has taken that process's lock.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::client::{ANSWER, CallError, Members, Reader};
use super::error::OpenError;
use super::keys::{Key, Keys};
use crate::catalog::Write;
use crate::catalog::record::{Loader, Table};
use crate::model::host::HostName;

/// The interval at which the remaining time of another instance's lease is read.
const POLL: Duration = Duration::from_millis(500);

/// The value of an instance's key: what it tells the others about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Serving {
    /// The name of its machine.
    pub(super) node: String,
    /// The identity of the file that it locks while it is alive. Older versions do not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) lock: Option<String>,
}

/// This instance, as the others see it.
#[derive(Debug, Clone)]
pub(super) struct Presence {
    pub(super) me: Uuid,
    pub(super) run: Uuid,
    pub(super) serving: Serving,
}

/// Another instance, or an earlier process of this one.
struct Other {
    id: Uuid,
    serving: Serving,
    lease: i64,
}

impl Presence {
    /// Writes the keys by which the others see this instance and its name, under a lease. Returns false if another instance
    /// has the name, or if `condition` does not hold.
    pub(super) async fn appear(
        &self,
        members: &Members,
        keys: &Keys,
        lease: i64,
        condition: Option<Compare>,
    ) -> Result<bool, CallError> {
        let named = keys.node(&self.serving.node);
        let owner = format!("{} {}", self.me, self.run);
        let put =
            |key: &str, value: String| TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)));
        let serving = serde_json::to_string(&self.serving).unwrap_or_default();
        let appear = [put(&keys.instance(self.me), serving), put(&named, owner.clone())];
        let free = Compare::create_revision(named.as_str(), CompareOp::Equal, 0);
        let ours = Compare::value(named.as_str(), CompareOp::Equal, owner);
        let attempt = |mut compares: Vec<Compare>| {
            compares.extend(condition.clone());
            Txn::new().when(compares).and_then(appear.clone())
        };
        let question = attempt(vec![free]).or_else([TxnOp::txn(attempt(vec![ours]))]);
        let answer = members.ask(ANSWER, async move |client| client.kv_client().txn(question).await).await?;
        let nested = answer.op_responses().into_iter().any(|answer| match answer {
            TxnOpResponse::Txn(inner) => inner.succeeded(),
            TxnOpResponse::Put(_) | TxnOpResponse::Get(_) | TxnOpResponse::Delete(_) => false,
        });
        Ok(answer.succeeded() || nested)
    }

    /// Waits until no other instance of this name can be alive. Fails if one is alive.
    pub(super) async fn await_name(&self, reader: &Reader<'_>, outbox: &Path) -> Result<(), OpenError> {
        let mut remaining: HashMap<i64, i64> = HashMap::new();
        loop {
            let mut others = self.others(reader).await?;
            others.retain(|other| other.id == self.me || other.serving.node == self.serving.node);
            let Some(other) = others.first() else { return Ok(()) };
            let lease = other.lease;
            if other.id == self.me && other.serving.lock.is_some() && other.serving.lock == self.serving.lock
            {
                // It is the previous process, which had the lock that this process has now.
                let _ = reader.ask(|client| async move { client.lease_client().revoke(lease).await }).await;
                continue;
            }
            let lease_state = reader
                .ask(|client| async move { client.lease_client().time_to_live(lease, None).await })
                .await?;
            let now = lease_state.map_or(0, |state| state.ttl());
            let node = &self.serving.node;
            match remaining.insert(lease, now) {
                Some(before) if now > before => {
                    let (location, node) = (reader.location.to_owned(), node.clone());
                    return Err(if other.id == self.me {
                        OpenError::Copied {
                            location,
                            node: other.serving.node.clone(),
                            outbox: outbox.into(),
                        }
                    } else {
                        OpenError::Namesake { location, node, id: other.id }
                    });
                }
                None if now > 0 => log::warn!(
                    "waiting for the name {node}: an instance of that name ({}) served the catalog {} a moment ago; \
                     where it was killed, it counts for {now} s more",
                    other.id,
                    reader.location
                ),
                _ => {}
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Returns the instances that serve, and those of killed processes whose leases have not expired.
    async fn others(&self, reader: &Reader<'_>) -> Result<Vec<Other>, OpenError> {
        let (first, end) = reader.keys.all_instances();
        let pairs = reader.get(first, GetOptions::new().with_range(end)).await?;
        let pairs = pairs.map(|mut got| got.take_kvs()).unwrap_or_default();
        let other = |pair: &etcd_client::KeyValue| {
            let Key::Instance(id) = reader.keys.parse(pair.key()) else { return None };
            let serving = serde_json::from_slice(pair.value()).ok()?;
            (pair.lease() != 0).then(|| Other { id, serving, lease: pair.lease() })
        };
        Ok(pairs.iter().filter_map(other).collect())
    }
}

/// Returns the name that the catalog has recorded for this machine.
pub(super) async fn kept_name(reader: &Reader<'_>, me: Uuid) -> Result<Option<HostName>, OpenError> {
    let (first, end) = reader.keys.all_hosts();
    let pairs = reader.get(first, GetOptions::new().with_range(end)).await?;
    let mut loader = Loader::default();
    for pair in pairs.map(|mut got| got.take_kvs()).unwrap_or_default() {
        let Key::Row(table @ Table::Hosts, parts) = reader.keys.parse(pair.key()) else { continue };
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        let read = loader.read(table, &parts, &String::from_utf8_lossy(pair.value()));
        match read.map_err(|source| OpenError::Row { location: reader.location.to_owned(), source })? {
            Write::Host(name, host) if host.machine == Some(me) => return Ok(Some(name)),
            _ => {}
        }
    }
    Ok(None)
}
