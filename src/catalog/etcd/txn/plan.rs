//! From a change to a transaction: what the rules decide on the view in memory, and under which conditions it holds.
//!
//! Asks nobody. A plan that was made of a view behind the times fails by its conditions, and is made anew.

use std::sync::Arc;

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};
use uuid::Uuid;

use crate::catalog::etcd::keys::Keys;
use crate::catalog::etcd::replica::{Memory, Claim, Rows, Step};
use crate::catalog::record::{Unwritable, encode};
use crate::catalog::{
    Change, DirectoryUse, Footprint, Outcome, Premise, Refusal, RowKey, View, Volume, Write,
};
use crate::model::volume::{VolumeId, VolumeName};

/// How many mounts one transaction releases: it may have 128 conditions, and 128 writes. What there is beyond that is
/// planned once these are gone.
pub(crate) const RELEASED_AT_ONCE: usize = 50;

/// How many writes stand in one transaction within another.
const NESTED: usize = 60;

/// A transaction without its slot.
#[derive(Debug, Clone, Default)]
pub(crate) struct Transaction {
    pub(crate) compares: Vec<Compare>,
    pub(crate) writes: Vec<TxnOp>,
    /// What becomes of the memory by it.
    pub(crate) steps: Vec<Step>,
}

/// What the rules say of a change at present.
#[derive(Debug)]
pub(crate) enum Planned {
    /// There is nothing to do.
    Nothing(Outcome),
    /// This is to be written.
    Write(Outcome, Transaction),
    /// It is refused.
    Refused(Refusal),
    /// Another instance moves the volume's directory.
    Moving(Arc<Volume>),
}

/// By whom, and under which lease, keys are written that end with the instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) me: Uuid,
    pub(crate) lease: i64,
}

/// Decides a change on the memory.
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
                    transaction.hide(keys, rows, owner, id, &volume.name);
                }
            }
            DirectoryUse::EndMove(id) => transaction.show(keys, rows, id),
            DirectoryUse::Unmoved(id) => transaction.unmoved(keys, rows, id),
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

/// The same writes in transactions within the transaction: of each, etcd takes 128 at once, and all are done or none.
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
        DirectoryUse::EndMove(id) | DirectoryUse::Unmoved(id) => match &footprint.volume {
            Some(name) => view.volumes.get(name),
            None => view.trash.get(&id).map(|removed| &removed.volume),
        },
    }
}

/// Claims the moving of a volume's directory, where nobody does; or claims it anew, where what is known of a claim of this
/// instance, with its revision, still stands.
pub(crate) fn claim_directory(keys: &Keys, owner: Owner, id: VolumeId, before: Option<&(Claim, i64)>) -> Transaction {
    let mut transaction = Transaction::default();
    transaction.compares.push(same(keys.claim(id), before.map_or(0, |(_, revision)| *revision)));
    transaction.put_claim(keys, owner, id, before.and_then(|(claim, _)| claim.hides.clone()));
    transaction
}

/// Gives a claim back, as it was made at a revision.
pub(crate) fn release_claim(keys: &Keys, id: VolumeId, revision: i64) -> Transaction {
    let mut transaction = Transaction::default();
    transaction.compares.push(same(keys.claim(id), revision));
    transaction.writes.push(TxnOp::delete(keys.claim(id), None));
    transaction.steps.push(Step::Claim(id, None));
    transaction
}

impl Transaction {
    fn compare(&mut self, keys: &Keys, rows: &Rows, premise: &Premise) {
        // Where there is no key, it has been created at revision 0.
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

    /// The volume is not visible until this instance shows it, or ends.
    fn hide(&mut self, keys: &Keys, rows: &Rows, owner: Owner, id: VolumeId, name: &VolumeName) {
        self.unmoved(keys, rows, id);
        self.put_claim(keys, owner, id, Some(name.to_string()));
    }

    /// The volume is visible from now on, or gone.
    fn show(&mut self, keys: &Keys, rows: &Rows, id: VolumeId) {
        self.unmoved(keys, rows, id);
        if rows.claim(id).is_some() {
            self.writes.push(TxnOp::delete(keys.claim(id), None));
            self.steps.push(Step::Claim(id, None));
        }
    }

    /// Nobody moves the directory but, perhaps, this instance.
    fn unmoved(&mut self, keys: &Keys, rows: &Rows, id: VolumeId) {
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

/// That a key was last written at a revision; at 0, that there is none.
pub(crate) fn same(key: String, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}
