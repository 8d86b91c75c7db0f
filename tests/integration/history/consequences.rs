//! Unmounts that engines send because a Mount failed, and what they may take.
//!
//! Each client is the only one of its host, and asks for one thing after the other. So its own answers tell how often
//! each of its IDs is counted at least.

use std::collections::BTreeMap;

use super::record::{Answer, Call, Record, Trouble};

/// How long after a failure an Unmount is taken for its consequence, in microseconds.
const WINDOW: u64 = 120_000_000;

/// What an Unmount takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// One, if there is one.
    One,
    /// One or nothing: the instance may not have known of the failure, or of the count.
    Perhaps,
    /// Nothing: it is of a Mount that failed.
    Nothing,
}

/// What is known of one host's ID on one volume.
#[derive(Debug, Clone, Default)]
struct Known {
    /// How often it is counted at least.
    least: u32,
    /// The instance that answered the latest Mount, and so knows of the count.
    counted_by: Option<usize>,
    failures: Vec<Failure>,
}

/// A Mount that failed.
#[derive(Debug, Clone, Copy)]
struct Failure {
    at: u64,
    instance: usize,
    /// Whether the instance said so, and knew that the Mount was a repetition.
    certain: bool,
}

/// What is known of each client's ID on each volume.
#[derive(Debug, Clone, Default)]
pub(super) struct Consequences(BTreeMap<(usize, usize, u8), Known>);

impl Consequences {
    /// Takes a client's next request in, and tells what it takes if it is an Unmount that was answered well.
    pub(super) fn take(&mut self, record: &Record, troubles: &[Trouble]) -> Takes {
        let Record { client, instance, call, volume, invoked, returned, ref answer, .. } = *record;
        let (Call::Mount(id) | Call::Unmount(id)) = call else { return Takes::One };
        let known = self.0.entry((client, volume, id)).or_default();
        match (call, answer) {
            (_, Answer::Unsent(_)) => {}
            (Call::Mount(_), Answer::Done) => {
                known.least += 1;
                known.counted_by = Some(instance);
            }
            (Call::Mount(_), Answer::Failed(_) | Answer::Lost(_)) => {
                let certain = matches!(answer, Answer::Failed(_))
                    && known.least > 0
                    && known.counted_by == Some(instance)
                    && !was_killed(instance, 0, invoked, returned, troubles);
                known.failures.push(Failure { at: returned, instance, certain });
            }
            (Call::Unmount(_), _) => {
                known.failures.retain(|failure| failure.at + WINDOW > invoked);
                let is_known = |failure: &Failure| {
                    failure.certain
                        && failure.instance == instance
                        && !was_killed(instance, failure.at, invoked, returned, troubles)
                };
                let takes = match &known.failures[..] {
                    [] => Takes::One,
                    failures if *answer == Answer::Done && failures.iter().all(is_known) => Takes::Nothing,
                    _ => Takes::Perhaps,
                };
                if takes == Takes::Nothing {
                    known.failures.pop();
                } else {
                    known.least = known.least.saturating_sub(1);
                }
                return takes;
            }
            _ => {}
        }
        Takes::One
    }

    /// Returns true if a Mount that failed may have been a repetition.
    pub(super) fn is_repetition(&self, record: &Record) -> bool {
        let Call::Mount(id) = record.call else { return false };
        // Whatever the client's answers do not tell may have been counted, too.
        self.0
            .get(&(record.client, record.volume, id))
            .is_some_and(|known| known.least > 0 || known.failures.len() > 1)
    }
}

/// Returns true if the instance was killed between the failure and the Unmount, so that it knows of none.
fn was_killed(instance: usize, failed: u64, invoked: u64, returned: u64, troubles: &[Trouble]) -> bool {
    let from = if failed == 0 { invoked } else { failed };
    troubles.iter().any(|trouble| {
        trouble.what.contains("Kill")
            && trouble.struck.contains(&instance)
            && trouble.from <= returned
            && trouble.until >= from
    })
}
