//! Sends a transaction until its outcome is known.
//!
//! A member that does not answer may have forwarded the transaction. So it is sent again, in the same slot, until a member
//! answers. If it must not take effect any more, the slot is overwritten: the condition on the slot then fails for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Compare, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::time::timeout;

use super::Transactions;
use super::plan::{Transaction, same};
use super::slots::Slot;
use crate::catalog::etcd::client::{CallError, CallErrorKind, Client};

/// The pause after an error before the transaction is sent again.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a slot is written although the cluster counts as out of reach.
const PROBE: Duration = Duration::from_secs(1);

/// The outcome of a transaction.
pub(crate) enum Sent<T> {
    /// It took effect at this revision; with the value that its sender passed as `keep`.
    Committed(i64, T),
    /// Its conditions do not hold.
    Stale,
    /// The cluster counts as out of reach: the outcome is unknown if the transaction was sent.
    Unknown,
}

/// The transactions that are sent for one change, one after the other, in one slot.
pub(crate) struct Attempt<'a, T> {
    txn: &'a Transactions,
    slot: Slot,
    /// The transactions that were sent and not answered: the number of each, and its `keep`.
    unanswered: Vec<(String, T)>,
}

impl<'a, T: Clone> Attempt<'a, T> {
    /// Waits for a free slot. [`settle`](Self::settle) gives it back; [`leave`](Self::leave) keeps it for later.
    pub(crate) async fn begin(txn: &'a Transactions) -> Self {
        let slot = txn.slots.take().await;
        Self { txn, slot, unanswered: Vec::new() }
    }

    /// Sends a transaction until it is answered, until the cluster counts as out of reach, or until this transaction has
    /// been unanswered for as long as a cluster may be before it counts so. The result has the `keep` of the transaction
    /// that took effect, which is this one or an earlier one of this attempt.
    pub(crate) async fn send(&mut self, transaction: &Transaction, keep: T) -> Result<Sent<T>, CallError> {
        let number = self.txn.number();
        let key = self.txn.client.keys.slot(self.txn.client.me, self.slot.number);
        let mut compares = transaction.compares.clone();
        compares.push(same(key.clone(), self.slot.revision));
        let mut writes = transaction.writes.clone();
        writes.push(TxnOp::put(self.txn.client.keys.head(), number.as_str(), None));
        let (begun, mut sent) = (Instant::now(), false);
        loop {
            if self.txn.client.health.fault().is_some() {
                return Ok(Sent::Unknown);
            }
            let answer = tokio::select! {
                biased;
                answer = ask(&self.txn.client, &key, compares.clone(), writes.clone(), &number) => answer,
                why = self.txn.client.health.out_of_reach() => {
                    Err(CallError { kind: CallErrorKind::Unanswered, text: String::clone(&why), asked: Instant::now() })
                }
            };
            match answer {
                Ok(response) if response.succeeded() => {
                    let revision = revision(&response);
                    self.slot.revision = revision;
                    self.unanswered.clear();
                    return Ok(Sent::Committed(revision, keep));
                }
                Ok(response) => {
                    let found = self.found(first_pair(&response))?;
                    return Ok(match found {
                        Some((at, by)) => {
                            self.matching_transaction(at, &by, &number, keep).unwrap_or(Sent::Stale)
                        }
                        None => Sent::Stale,
                    });
                }
                Err(mut error) => {
                    if error.kind == CallErrorKind::Full {
                        // etcd answers so, too, if its quota was exceeded between accepting and applying the
                        // transaction, which it may have applied. The slot shows if it did.
                        match read_slot(&self.txn.client, &key).await {
                            Ok(pair) => {
                                if let Some((at, by)) = self.found(pair)? {
                                    return match self.matching_transaction(at, &by, &number, keep) {
                                        Some(sent) => Ok(sent),
                                        None => Err(error),
                                    };
                                }
                            }
                            Err(lookup) => error = CallError { kind: CallErrorKind::Unanswered, ..lookup },
                        }
                    }
                    let may_take_effect = match error.kind {
                        CallErrorKind::Full
                        | CallErrorKind::Refused
                        | CallErrorKind::LeaseGone
                        | CallErrorKind::Compacted
                        | CallErrorKind::Ahead => {
                            return Err(error);
                        }
                        CallErrorKind::Unsent | CallErrorKind::Certificates | CallErrorKind::LockedOut => {
                            false
                        }
                        CallErrorKind::Unanswered => true,
                    };
                    if may_take_effect && !sent {
                        sent = true;
                        self.unanswered.push((number.clone(), keep.clone()));
                    }
                    self.txn.client.health.unanswered(&error);
                    let long = self.txn.client.health.not_taken(begun, &error.text);
                    if self.txn.client.health.fault().is_some() {
                        return Ok(Sent::Unknown);
                    }
                    if long {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Returns the transaction of this attempt that wrote the slot, at revision `at` with number `by`: the one with this
    /// number, or an earlier one. Returns `None` if the slot was overwritten to end an earlier one.
    fn matching_transaction(&mut self, at: i64, by: &str, number: &str, keep: T) -> Option<Sent<T>> {
        let earlier = self.unanswered.drain(..).find(|(sent, _)| sent == by);
        let kept = if by == number { Some(keep) } else { earlier.map(|(_, kept)| kept) };
        kept.map(|kept| Sent::Committed(at, kept))
    }

    /// Returns true if the outcome of a transaction is unknown.
    pub(crate) fn is_uncertain(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Makes sure that no transaction of this attempt takes effect from now on, and gives the slot back. Returns the one
    /// that took effect before, with its revision. Waits for the cluster as long as it takes.
    pub(crate) async fn settle(mut self) -> Option<(i64, T)> {
        let settled = self.settle_slot(Some(Instant::now())).await;
        self.txn.slots.give_back(self.slot);
        settled
    }

    /// Ends the attempt without settling it. Returns the slot and the numbers of the unanswered transactions, with which
    /// [`resume`](Self::resume) continues it.
    pub(crate) fn leave(self) -> (Slot, Vec<String>) {
        (self.slot, self.unanswered.into_iter().map(|(number, _)| number).collect())
    }

    /// Continues an attempt that was [left](Self::leave).
    pub(crate) fn resume(txn: &'a Transactions, slot: Slot, numbers: Vec<String>, keep: &T) -> Self {
        let unanswered = numbers.into_iter().map(|number| (number, keep.clone())).collect();
        Self { txn, slot, unanswered }
    }

    /// As [`settle`](Self::settle), but keeps the slot, and does not report to the health how long it takes, because no
    /// request waits.
    pub(crate) async fn end(&mut self) -> Option<(i64, T)> {
        self.settle_slot(None).await
    }

    /// Overwrites the slot if a transaction is unanswered. `begun` is when a request began to wait for this, if one does.
    async fn settle_slot(&mut self, begun: Option<Instant>) -> Option<(i64, T)> {
        if !self.is_uncertain() {
            return None;
        }
        let (key, number) =
            (self.txn.client.keys.slot(self.txn.client.me, self.slot.number), self.txn.number());
        loop {
            match ask(
                &self.txn.client,
                &key,
                vec![same(key.clone(), self.slot.revision)],
                Vec::new(),
                &number,
            )
            .await
            {
                Ok(response) if response.succeeded() => {
                    self.slot.revision = revision(&response);
                    self.unanswered.clear();
                    return None;
                }
                Ok(response) => {
                    // If the slot was deleted, no transaction of this attempt takes effect any more.
                    return self.outcome_in(first_pair(&response));
                }
                Err(error) => {
                    // A cluster that takes no change can still say whether it took one before.
                    if error.kind == CallErrorKind::Full
                        && let Ok(pair) = read_slot(&self.txn.client, &key).await
                        && pair.as_ref().map_or(0, KeyValue::mod_revision) != self.slot.revision
                    {
                        return self.outcome_in(pair);
                    }
                    self.txn.client.health.unanswered(&error);
                    if let Some(begun) = begun {
                        self.txn.client.health.not_taken(begun, &error.text);
                    }
                    tokio::time::sleep(PAUSE).await;
                    // A cluster that counts as out of reach may still take this write: perhaps only the replica is not
                    // trusted, or the cluster takes changes again, which is noticed by writes like this one.
                    let _ = timeout(PROBE, self.txn.client.health.back()).await;
                }
            }
        }
    }

    /// Returns the unanswered transaction that took effect, according to the slot's key; `None` if none did, or if the
    /// slot was deleted.
    fn outcome_in(&mut self, pair: Option<KeyValue>) -> Option<(i64, T)> {
        let found = self.found(pair).ok().flatten();
        let mut sent = self.unanswered.drain(..);
        let (at, by) = found?;
        sent.find(|(number, _)| *number == by).map(|(_, kept)| (at, kept))
    }

    /// Returns the revision and value of the slot's key if the slot was written meanwhile. Fails if the key was deleted.
    fn found(&mut self, pair: Option<KeyValue>) -> Result<Option<(i64, String)>, CallError> {
        let Some(pair) = pair else {
            return if self.slot.revision == 0 { Ok(None) } else { Err(own_key_deleted()) };
        };
        if pair.mod_revision() == self.slot.revision {
            return Ok(None);
        }
        self.slot.revision = pair.mod_revision();
        Ok(Some((pair.mod_revision(), String::from_utf8_lossy(pair.value()).into_owned())))
    }
}

/// Finds out when the cluster takes changes again, if it answers reads but takes no change: no other change begins until
/// then. Runs for as long as the catalog is served.
pub(crate) async fn probe(txn: Arc<Transactions>) {
    loop {
        txn.client.health.writes_hang().await;
        tokio::time::sleep(PROBE).await;
        // If no slot is free, the attempts that hold the slots find it out.
        let slot = txn.slots.take().await;
        // An attempt with an unanswered transaction, so that settling it writes the slot.
        Attempt::resume(&txn, slot, vec![txn.number()], &()).settle().await;
    }
}

/// The error if a key was deleted that only this instance writes, and that is never deleted while it serves.
pub(crate) fn own_key_deleted() -> CallError {
    let text = "another catalog was imported in its place while this instance was cut off, or its keys were deleted: \
                restart volhost";
    CallError { kind: CallErrorKind::Refused, text: text.into(), asked: Instant::now() }
}

/// Sends a transaction once. It also writes its number to `key`, which shows whether it took effect. If its conditions do
/// not hold, it reads that key instead.
pub(crate) async fn ask(
    client: &Client,
    key: &str,
    compares: Vec<Compare>,
    mut writes: Vec<TxnOp>,
    number: &str,
) -> Result<TxnResponse, CallError> {
    writes.push(TxnOp::put(key, number, None));
    let question = Txn::new().when(compares).and_then(writes).or_else(vec![TxnOp::get(key, None)]);
    let answer = client
        .members
        .ask(client.health.answer(), async move |client| client.kv_client().txn(question).await)
        .await?;
    client.health.taken();
    Ok(answer)
}

/// Reads a slot's key from a quorum, without a transaction: etcd that is out of space refuses every transaction, even one
/// that only reads.
async fn read_slot(client: &Client, key: &str) -> Result<Option<KeyValue>, CallError> {
    let key = key.to_owned();
    let got = client
        .members
        .ask(client.health.answer(), async move |client| client.kv_client().get(key, None).await)
        .await?;
    Ok(got.kvs().first().cloned())
}

/// Returns the revision at which a transaction took effect.
pub(crate) fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, etcd_client::ResponseHeader::revision)
}

/// Returns the key that a transaction read because its conditions did not hold.
pub(crate) fn first_pair(response: &TxnResponse) -> Option<KeyValue> {
    response.op_responses().into_iter().find_map(|answer| match answer {
        TxnOpResponse::Get(got) => got.kvs().first().cloned(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}
