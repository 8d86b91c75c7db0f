//! Random views: a decision of a stale view holds as long as its premises do.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::steps::any_step;
use crate::catalog::Change;
use crate::catalog::record::encode;
use crate::catalog::rules::{Premise, RowKey, Write};
use crate::catalog::view::View;
use crate::model::host::HostName;
use crate::model::volume::VolumeName;

/// The step at which each row was last written.
type Revisions = BTreeMap<RowKey, usize>;

fn write_revisions(revisions: &mut Revisions, writes: &[Write], step: usize) {
    for write in writes {
        if write.deletes() {
            revisions.remove(&write.key());
        } else {
            revisions.insert(write.key(), step);
        }
    }
}

/// Returns true if a premise of a view that knows `seen` still holds in `truth`, judged by a store of revisions.
fn holds(premise: &Premise, seen: &Revisions, truth: &Revisions, reached: usize) -> bool {
    let mounts = |of: &VolumeName, but: Option<&HostName>| {
        truth
            .keys()
            .any(|row| matches!(row, RowKey::Mount(key) if key.volume == *of && Some(&key.host) != but))
    };
    match premise {
        Premise::Same(row) => seen.get(row) == truth.get(row),
        Premise::Unused(volume) => !mounts(volume, None),
        Premise::UnusedByOthers(volume, host) => !mounts(volume, Some(host)),
        Premise::SameMounts(of) => truth.iter().all(|(row, at)| match row {
            RowKey::Mount(key) if of.as_ref().is_none_or(|of| key.volume == *of) => *at <= reached,
            _ => true,
        }),
        Premise::SameBackends => {
            truth.iter().all(|(row, at)| !matches!(row, RowKey::Backend(_)) || *at <= reached)
        }
    }
}

/// Returns true if the two views show and hide the same volumes. Instances tell each other this by separate keys.
fn shown_alike(one: &View, other: &View) -> bool {
    let hidden = |view: &View| -> Vec<_> {
        view.volumes.values().filter(|volume| !volume.visible).map(|volume| volume.id).collect()
    };
    hidden(one) == hidden(other)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn a_decision_of_a_view_behind_holds_as_long_as_its_premises_do(
        steps in proptest::collection::vec(any_step(), 0..60),
        others in proptest::collection::vec(any_step(), 0..4),
        last in any_step(),
    ) {
        let (mut behind, mut seen) = (View::default(), Revisions::new());
        for (at, step) in steps.iter().enumerate() {
            if let Ok((_, writes)) = behind.apply(step.change()) {
                write_revisions(&mut seen, &writes, at);
            }
        }
        let (mut truth, mut revisions) = (behind.clone(), seen.clone());
        for (at, step) in others.iter().enumerate() {
            if let Ok((_, writes)) = truth.apply(step.change()) {
                write_revisions(&mut revisions, &writes, steps.len() + at);
            }
        }
        let change = last.change();
        // These depend on more than rows, and are decided on a fresh view.
        if matches!(change, Change::Activate(_) | Change::Release { .. } | Change::Name(..))
            || !shown_alike(&behind, &truth) {
            return Ok(());
        }
        let premises = behind.premises(&change);
        let Ok((_, decided)) = behind.clone().apply(change.clone()) else { return Ok(()) };
        if decided.is_empty() || !premises.iter().all(|premise| {
            holds(premise, &seen, &revisions, steps.len().saturating_sub(1))
        }) {
            return Ok(());
        }
        // Compares what is stored: a written volume carries its ledger along, but the ledger's entries are rows of
        // their own.
        let stored = |writes: Vec<Write>| -> Vec<_> {
            writes.iter().map(|write| format!("{:?}", encode(write).unwrap())).collect()
        };
        let told = truth.apply(change.clone()).ok().map(|(_, writes)| stored(writes));
        prop_assert_eq!(told, Some(stored(decided)), "{:?} after {:?}", change, others);
    }
}
