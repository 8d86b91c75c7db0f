//! Turns a change into a transaction: the writes that the rules decide on the view in memory, and the conditions under
//! which the decision holds.
//!
//! It calls nobody. If the view was outdated, the conditions fail, and the change is planned again.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use uuid::Uuid;

use crate::catalog::etcd::keys::Keys;
use crate::catalog::etcd::replica::{Claim, Memory, Rows, Step};
use crate::catalog::record::{Unwritable, encode};
use crate::catalog::{
    Change, DirectoryUse, Footprint, Outcome, Premise, Refusal, RowKey, View, Volume, Write,
};
use crate::model::volume::{VolumeId, VolumeName};

/// The largest number of mounts that one transaction releases: etcd allows it 128 conditions and 128 writes. Further mounts
/// are released by the next transactions.
pub(crate) const RELEASED_AT_ONCE: usize = 50;

/// The number of writes in each nested transaction.
const NESTED: usize = 60;

/// A transaction, without the condition on its slot and the write to it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transaction {
    pub(crate) compares: Vec<Compare>,
    pub(crate) writes: Vec<TxnOp>,
    /// The changes of the memory when it is committed.
    pub(crate) steps: Vec<Step>,
}

/// The decision on a change, on the present view.
#[derive(Debug)]
pub(crate) enum Planned {
    /// There is nothing to write.
    Nothing(Outcome),
    /// The transaction is to be sent. If it is committed, this is the outcome.
    Write(Outcome, Transaction),
    Refused(Refusal),
    /// Another instance has the right to move the volume's directory.
    Moving(Arc<Volume>),
}

/// The instance and the lease under which claims are written, which end with the instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) me: Uuid,
    pub(crate) lease: i64,
}

/// Decides a change on the view in memory.
pub(crate) fn plan(
    memory: &Memory,
    keys: &Keys,
    owner: Owner,
    change: &Change,
) -> Result<Planned, Unwritable> {
    memory.look(|view, rows| {
        let footprint = change.footprint(view);
        if let Some(volume) = must_not_move(view, &footprint)
            && rows.claim(volume.id).is_some_and(|(claim, _)| claim.by != owner.me)
        {
            return Ok(Planned::Moving(Arc::clone(volume)));
        }
        let mut draft = View::clone(view);
        let (mut outcome, mut records) = match draft.apply(change.clone()) {
            Ok(decided) => decided,
            Err(refusal) => return Ok(Planned::Refused(refusal)),
        };
        let mut premises = view.premises(change);
        if matches!(change, Change::Release { .. }) && records.len() > RELEASED_AT_ONCE {
            records.truncate(RELEASED_AT_ONCE);
            outcome.released.truncate(RELEASED_AT_ONCE);
            let released: Vec<_> = records.iter().map(Write::key).collect();
            premises.retain(|premise| match premise {
                Premise::Same(row @ RowKey::Mount(_)) => released.contains(row),
                _ => true,
            });
        }
        let mut transaction = Transaction::default();
        for premise in premises {
            transaction.compare(keys, rows, &premise);
        }
        for write in records {
            let row = encode(&write)?;
            let key = keys.row(row.table, &row.key);
            transaction.writes.push(match row.record {
                Some(record) => TxnOp::put(key, record, None),
                None => TxnOp::delete(key, None),
            });
            transaction.steps.push(Step::Row(write));
        }
        match footprint.directory {
            DirectoryUse::None => {}
            DirectoryUse::BeginMove(id) => {
                if let Some(volume) = &outcome.after {
                    transaction.hide_volume(keys, rows, owner, id, &volume.name);
                }
            }
            DirectoryUse::EndMove(id) => transaction.end_claim(keys, rows, id),
            DirectoryUse::Unmoved(id) => transaction.require_claim_unchanged(keys, rows, id),
        }
        if transaction.writes.is_empty() {
            return Ok(Planned::Nothing(outcome));
        }
        if matches!(change, Change::Name(..)) {
            transaction.writes = nested(transaction.writes);
        }
        Ok(Planned::Write(outcome, transaction))
    })
}

/// Distributes writes among nested transactions if they are many: etcd allows 128 operations in each, and still commits all
/// of them or none.
fn nested(writes: Vec<TxnOp>) -> Vec<TxnOp> {
    if writes.len() <= NESTED {
        return writes;
    }
    writes.chunks(NESTED).map(|part| TxnOp::txn(Txn::new().and_then(part))).collect()
}

/// Returns the volume whose directory no other instance may be moving.
fn must_not_move<'a>(view: &'a View, footprint: &Footprint) -> Option<&'a Arc<Volume>> {
    match footprint.directory {
        DirectoryUse::None => None,
        // A new volume has no directory yet.
        DirectoryUse::BeginMove(id) => view.trash.get(&id).map(|removed| &removed.volume),
        DirectoryUse::EndMove(id) | DirectoryUse::Unmoved(id) => match footprint.volumes.first() {
            Some(name) => view.volumes.get(name),
            None => view.trash.get(&id).map(|removed| &removed.volume),
        },
    }
}

/// Returns a transaction that claims the right to move a volume's directory. It requires that there is no claim or, if
/// `before` is given, that this claim of the instance is unchanged since its revision.
pub(crate) fn claim_directory(
    keys: &Keys,
    owner: Owner,
    id: VolumeId,
    before: Option<&(Claim, i64)>,
) -> Transaction {
    let mut transaction = Transaction::default();
    transaction.compares.push(same(keys.claim(id), before.map_or(0, |(_, revision)| *revision)));
    transaction.put_claim(keys, owner, id, before.and_then(|(claim, _)| claim.hides.clone()));
    transaction
}

/// Returns a transaction that releases a claim, if it is unchanged since this revision.
pub(crate) fn release_claim(keys: &Keys, id: VolumeId, revision: i64) -> Transaction {
    let mut transaction = Transaction::default();
    transaction.compares.push(same(keys.claim(id), revision));
    transaction.writes.push(TxnOp::delete(keys.claim(id), None));
    transaction.steps.push(Step::Claim(id, None));
    transaction
}

impl Transaction {
    /// Adds the conditions for a premise.
    fn compare(&mut self, keys: &Keys, rows: &Rows, premise: &Premise) {
        // etcd compares a missing key as one that was created at revision 0.
        let empty = |(first, end): (String, String)| {
            Compare::create_revision(first, CompareOp::Equal, 0).with_range(end)
        };
        let unchanged = |(first, end): (String, String)| {
            Compare::mod_revision(first, CompareOp::Less, rows.reached + 1).with_range(end)
        };
        match premise {
            Premise::Same(row) => {
                let key = keys.of_row(row);
                let revision = rows.revision(&key);
                self.compares.push(same(key, revision));
            }
            Premise::Unused(volume) => self.compares.push(empty(keys.mounts(volume))),
            Premise::UnusedByOthers(volume, host) => {
                self.compares.extend(keys.mounts_of_others(volume, host).map(empty));
            }
            Premise::SameMounts(volume) => {
                let range = volume.as_ref().map_or_else(|| keys.all_mounts(), |volume| keys.mounts(volume));
                self.compares.push(unchanged(range));
            }
            Premise::SameBackends => self.compares.push(unchanged(keys.backends())),
        }
    }

    /// Hides the volume until this instance ends the claim, or its lease ends.
    fn hide_volume(&mut self, keys: &Keys, rows: &Rows, owner: Owner, id: VolumeId, name: &VolumeName) {
        self.require_claim_unchanged(keys, rows, id);
        self.put_claim(keys, owner, id, Some(name.to_string()));
    }

    /// Ends this instance's claim: the volume is visible from then on, or removed.
    fn end_claim(&mut self, keys: &Keys, rows: &Rows, id: VolumeId) {
        self.require_claim_unchanged(keys, rows, id);
        if rows.claim(id).is_some() {
            self.writes.push(TxnOp::delete(keys.claim(id), None));
            self.steps.push(Step::Claim(id, None));
        }
    }

    /// Requires that the claim on the directory is the one in memory: none, or this instance's own.
    fn require_claim_unchanged(&mut self, keys: &Keys, rows: &Rows, id: VolumeId) {
        let revision = rows.claim(id).map_or(0, |(_, revision)| *revision);
        self.compares.push(same(keys.claim(id), revision));
    }

    fn put_claim(&mut self, keys: &Keys, owner: Owner, id: VolumeId, hides: Option<String>) {
        let claim = Claim { by: owner.me, hides };
        let value = serde_json::json!({ "by": claim.by, "hides": claim.hides }).to_string();
        let options = PutOptions::new().with_lease(owner.lease);
        self.writes.push(TxnOp::put(keys.claim(id), value, Some(options)));
        self.steps.push(Step::Claim(id, Some(claim)));
    }
}

/// Returns the condition that a key was last written at this revision; with 0, that there is no such key.
pub(crate) fn same(key: String, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}
