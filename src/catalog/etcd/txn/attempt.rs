//! Sending a transaction until its outcome is known.
//!
//! A member that does not answer may have passed the transaction on. So it is sent again, in the same slot, until a member
//! answers. If it must not take effect any more, the slot is written, which ends it for good.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Compare, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::time::timeout;

use super::Transactions;
use super::plan::{Transaction, same};
use super::slots::Slot;
use crate::catalog::etcd::client::{CallError, Client, CallErrorKind};

/// How long after a member did not answer the next one is asked.
const PAUSE: Duration = Duration::from_millis(50);

/// How often a cluster that counts as out of reach is asked all the same for what cannot be left.
const LATER: Duration = Duration::from_secs(1);

/// What became of a transaction.
pub(crate) enum Sent<T> {
    /// It took effect at this revision; with what its sender keeps of it.
    Committed(i64, T),
    /// Its conditions do not hold.
    Stale,
    /// The cluster counts as out of reach: what becomes of it is not known, if it was sent.
    Unknown,
}

/// The transactions by which one change is tried, one after the other, in one slot.
pub(crate) struct Attempt<'a, T> {
    txn: &'a Transactions,
    slot: Slot,
    /// What was sent and not answered, by its number.
    unanswered: Vec<(String, T)>,
}

impl<'a, T: Clone> Attempt<'a, T> {
    /// Waits for a free slot. It is given back by [`settle`](Self::settle), or kept by [`leave`](Self::leave).
    pub(crate) async fn begin(txn: &'a Transactions) -> Self {
        let slot = txn.slots.take().await;
        Self { txn, slot, unanswered: Vec::new() }
    }

    /// Sends a transaction until it is answered, the cluster counts as out of reach, or this one is not answered for as
    /// long as that takes. `keep` comes back with the transaction that took effect: this one, or an earlier one of this
    /// attempt.
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
            let asked = tokio::select! {
                biased;
                answer = ask(&self.txn.client, &key, compares.clone(), writes.clone(), &number) => answer,
                why = self.txn.client.health.out_of_reach() => {
                    Err(CallError { kind: CallErrorKind::Unanswered, text: String::clone(&why), asked: Instant::now() })
                }
            };
            match asked {
                Ok(response) if response.succeeded() => {
                    let revision = revision(&response);
                    self.slot.revision = revision;
                    self.unanswered.clear();
                    return Ok(Sent::Committed(revision, keep));
                }
                Ok(response) => {
                    let found = self.found(first_pair(&response))?;
                    return Ok(match found {
                        Some((at, by)) => self.took_effect(at, &by, &number, keep).unwrap_or(Sent::Stale),
                        None => Sent::Stale,
                    });
                }
                Err(mut error) => {
                    if error.kind == CallErrorKind::Full {
                        // It answers so also where it was within its quota when it took the transaction in, and not
                        // any more when it carried it out: the slot tells.
                        match look(&self.txn.client, &key).await {
                            Ok(pair) => {
                                if let Some((at, by)) = self.found(pair)? {
                                    return match self.took_effect(at, &by, &number, keep) {
                                        Some(sent) => Ok(sent),
                                        None => Err(error),
                                    };
                                }
                            }
                            Err(silence) => error = CallError { kind: CallErrorKind::Unanswered, ..silence },
                        }
                    }
                    let may_have_been_sent = match error.kind {
                        CallErrorKind::Full | CallErrorKind::Refused | CallErrorKind::LeaseGone | CallErrorKind::Compacted | CallErrorKind::Ahead => {
                            return Err(error);
                        }
                        CallErrorKind::Unsent | CallErrorKind::Certificates | CallErrorKind::LockedOut => false,
                        CallErrorKind::Unanswered => true,
                    };
                    if may_have_been_sent && !sent {
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

    /// What became of this attempt, where its slot was written: by the transaction with this number or an earlier one of
    /// this attempt. Nothing, where it was written to end an earlier one.
    fn took_effect(&mut self, at: i64, by: &str, number: &str, keep: T) -> Option<Sent<T>> {
        let earlier = self.unanswered.drain(..).find(|(sent, _)| sent == by);
        let kept = if by == number { Some(keep) } else { earlier.map(|(_, kept)| kept) };
        kept.map(|kept| Sent::Committed(at, kept))
    }

    /// Whether something was sent of which it is not known what became.
    pub(crate) fn is_uncertain(&self) -> bool {
        !self.unanswered.is_empty()
    }

    /// Makes sure that nothing that was sent takes effect from now on, and gives the slot back. What took effect
    /// already is told, with its revision. Waits for the cluster as long as it takes.
    pub(crate) async fn settle(mut self) -> Option<(i64, T)> {
        let settled = self.end_since(Some(Instant::now())).await;
        self.txn.slots.give_back(self.slot);
        settled
    }

    /// Leaves the slot as it is, with the numbers of what was sent: for who will [`resume`](Self::resume).
    pub(crate) fn leave(self) -> (Slot, Vec<String>) {
        (self.slot, self.unanswered.into_iter().map(|(number, _)| number).collect())
    }

    /// Takes up what was left.
    pub(crate) fn resume(txn: &'a Transactions, slot: Slot, numbers: Vec<String>, keep: &T) -> Self {
        let unanswered = numbers.into_iter().map(|number| (number, keep.clone())).collect();
        Self { txn, slot, unanswered }
    }

    /// The same, with the slot kept, and with nobody behind it who would have to be told that it takes long.
    pub(crate) async fn end(&mut self) -> Option<(i64, T)> {
        self.end_since(None).await
    }

    async fn end_since(&mut self, begun: Option<Instant>) -> Option<(i64, T)> {
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
                    // Where the slot is gone, nothing that was sent takes effect any more.
                    return self.settled_by(first_pair(&response));
                }
                Err(error) => {
                    // What takes no change in tells all the same whether it took one in before.
                    if error.kind == CallErrorKind::Full
                        && let Ok(pair) = look(&self.txn.client, &key).await
                        && pair.as_ref().map_or(0, KeyValue::mod_revision) != self.slot.revision
                    {
                        return self.settled_by(pair);
                    }
                    self.txn.client.health.unanswered(&error);
                    if let Some(begun) = begun {
                        self.txn.client.health.not_taken(begun, &error.text);
                    }
                    tokio::time::sleep(PAUSE).await;
                    // What counts as out of reach may take this in all the same: it is not understood, or takes in
                    // changes again, which is found out by such as this.
                    let _ = timeout(LATER, self.txn.client.health.back()).await;
                }
            }
        }
    }

    /// What took effect of what was sent, where the slot was written since, or is gone.
    fn settled_by(&mut self, pair: Option<KeyValue>) -> Option<(i64, T)> {
        let found = self.found(pair).ok().flatten();
        let mut sent = self.unanswered.drain(..);
        let (at, by) = found?;
        sent.find(|(number, _)| *number == by).map(|(_, kept)| (at, kept))
    }

    /// What stands in the slot, where that was written since. An error where it is gone.
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

/// Finds out when changes are taken in again, where they are not although questions are answered: nobody else may begin
/// one until then. Runs for as long as the catalog is served.
pub(crate) async fn probe(txn: Arc<Transactions>) {
    loop {
        txn.client.health.writes_hang().await;
        tokio::time::sleep(LATER).await;
        // Where no slot is free, those find it out who have them.
        let slot = txn.slots.take().await;
        // As if something had been sent: the slot is written.
        Attempt::resume(&txn, slot, vec![txn.number()], &()).settle().await;
    }
}

/// What is to be said where a key is gone that only this instance writes and that is never deleted while it serves.
pub(crate) fn own_key_deleted() -> CallError {
    let text = "another catalog was imported in its place while this instance was cut off, or its keys were deleted: \
                restart volhost";
    CallError { kind: CallErrorKind::Refused, text: text.into(), asked: Instant::now() }
}

/// Sends a transaction once, which also writes its number to the key that tells whether it took effect; where its
/// conditions do not hold, that key is read.
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

/// Reads a key from a quorum. A transaction would not be taken in where there is no room, not even one that only reads.
async fn look(client: &Client, key: &str) -> Result<Option<KeyValue>, CallError> {
    let key = key.to_owned();
    let got = client
        .members
        .ask(client.health.answer(), async move |client| client.kv_client().get(key, None).await)
        .await?;
    Ok(got.kvs().first().cloned())
}

/// At which revision a transaction took effect.
pub(crate) fn revision(response: &TxnResponse) -> i64 {
    response.header().map_or(0, etcd_client::ResponseHeader::revision)
}

/// The key that a transaction read whose conditions did not hold.
pub(crate) fn first_pair(response: &TxnResponse) -> Option<KeyValue> {
    response.op_responses().into_iter().find_map(|answer| match answer {
        TxnOpResponse::Get(got) => got.kvs().first().cloned(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    })
}
