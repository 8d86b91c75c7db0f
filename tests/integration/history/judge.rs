//! What must be true of a whole history: what was answered becomes what the search has to explain, by the rules of what
//! may be late and what may be old.
//!
//! - Every answer but those below is of a moment between the request and its answer. That is also true of every
//!   refusal and of every "no such volume".
//! - What is told from memory (a Get or Path that finds something, a List) may be [`Limits::old`], or as old as the
//!   trouble of the instance that told it; but never older than what the same instance answered of that volume before.
//! - An Unmount that was answered in times of trouble may be done [`Limits::late`] after they are over.
//! - What was not answered may be done until [`Limits::late`] after the trouble, or not at all. A Mount that nobody was
//!   told of is taken back, unless the instance is killed before.
//! - What was answered with status 500 was not done. A Mount may have been, for a moment.
//! - An Unmount after a Mount of the same host and ID that failed takes nothing, where that was counted already: an engine
//!   sends it because of the failure. Where the instance cannot have known of the failure, or of the count, it may take
//!   one. See [`Consequences`].
//! - Nothing fails and nothing is left without an answer where nothing is broken.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::check::{Duty, Item, Unexplained, explain};
use super::consequences::{Consequences, Takes};
use super::generate::VOLUMES;
use super::model::{Deed, Mounts, Sight, Volume};
use super::record::{Answer, Call, History, Record, Trouble, Why};

/// How late and how old things may be, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// How old memory may be where nothing is broken.
    pub old: u64,
    /// How long after a trouble what was held up by it is done.
    pub late: u64,
    /// How long after a trouble requests may still fail, and memory be old.
    pub recovery: u64,
    /// How long after it an instance may still hold itself for cut off, and answer Unmounts that are done later.
    pub reconnect: u64,
    /// Whether instances share a catalog: only then is an Unmount answered that is done later.
    pub shared: bool,
    /// Whether those whom a Get names as users are of one moment. Where instances share a catalog, one may know of what
    /// it did itself before it knows of what others did a moment earlier; nothing is decided by that.
    pub one_moment: bool,
}

/// Everything that is wrong with a history, in words; empty when nothing is.
pub(super) fn complaints(history: &History, limits: &Limits) -> Vec<String> {
    let mut history = history.clone();
    // What was answered earlier comes first, so that what comes of it can name it.
    history.records.sort_by_key(|record| record.returned);
    let history = &history;
    let (items, answered, placed) = Default::default();
    let consequences = Consequences::default();
    let mut judge = Judge { history, limits, items, answered, placed, consequences, complaints: Vec::new() };
    judge.note_answers();
    for (at, record) in history.records.iter().enumerate() {
        judge.take(at, record);
    }
    judge.take_endings();
    let Judge { items, mut complaints, .. } = judge;
    for (volume, items) in &items {
        let (items, sources): (Vec<_>, Vec<_>) = items.iter().cloned().unzip();
        if let Err(unexplained) = explain(&items) {
            // Before what is only strange.
            complaints.insert(0, word(history, *volume, &items, &sources, &unexplained));
        }
    }
    complaints
}

/// Where an item comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    Record(usize),
    Ending(usize),
}

/// When something was answered, when the latest of what was answered until then was asked for, and which record that is.
type Answered = (u64, u64, usize);

struct Judge<'a> {
    history: &'a History,
    limits: &'a Limits,
    items: BTreeMap<usize, Vec<(Item, Source)>>,
    /// By instance and volume: see [`Judge::note_answers`].
    answered: BTreeMap<(usize, usize), Vec<Answered>>,
    /// Which item of its volume a record became.
    placed: BTreeMap<usize, usize>,
    consequences: Consequences,
    complaints: Vec<String>,
}

impl Judge<'_> {
    fn take(&mut self, at: usize, record: &Record) {
        let Record { client, call, volume, invoked, returned, ref answer, .. } = *record;
        let takes = self.consequences.take(record, &self.history.troubles);
        let deed = match call {
            Call::Create(access) => Some(Deed::Create(access)),
            Call::Mount(id) => Some(Deed::Mount(client, id)),
            Call::Unmount(id) => Some(Deed::Unmount(client, id)),
            Call::Remove => Some(Deed::Remove),
            Call::Get | Call::Path | Call::List => None,
        };
        match (answer, deed) {
            (Answer::Done, Some(Deed::Unmount(..))) if takes == Takes::Nothing => {}
            (Answer::Done, Some(deed)) => {
                let duty = if takes == Takes::Perhaps { Duty::May } else { Duty::Must };
                let spooled = self.cut_off(record).filter(|_| matches!(deed, Deed::Unmount(..)));
                let until = spooled.map_or(returned, |(_, end)| returned.max(end + self.limits.late));
                self.add(volume, Source::Record(at), invoked, until, deed, duty);
                if let Some((item, _)) = self.items.get_mut(&volume).and_then(|items| items.last_mut()) {
                    item.soonest = returned;
                }
            }
            (Answer::Found(seen), None) => {
                let sight = match seen {
                    // Whether an Unmount that is done later is seen by who took it, is not said.
                    Some((entries, hosts)) if self.limits.one_moment && self.cut_off(record).is_none() => {
                        Sight::Used(*entries, hosts.clone())
                    }
                    _ => Sight::Present,
                };
                self.add_old(at, record, volume, sight);
            }
            (Answer::Listed(names), None) => {
                for volume in 0..VOLUMES {
                    let sight = if names.contains(&volume) { Sight::Present } else { Sight::Absent };
                    self.add_old(at, record, volume, sight);
                }
            }
            (Answer::Refused(why, _), _) => match refused(*why, call, client) {
                Some(sight) => {
                    self.add(volume, Source::Record(at), invoked, returned, Deed::Look(sight), Duty::Must);
                }
                None => self.complain("is refused for no reason that there can be", record),
            },
            (Answer::Failed(_) | Answer::Lost(_), deed) => {
                if self.anything_broken(invoked, returned).is_none() {
                    self.complain("fails although nothing is broken", record);
                }
                if let Some(deed) = deed {
                    self.take_failed(at, record, deed);
                }
            }
            (Answer::Unsent(_), _) => {}
            (Answer::Done | Answer::Found(_) | Answer::Listed(_), _) => {
                self.complain("is answered by what answers something else", record);
            }
        }
    }

    /// What was not answered, or by a failure, may have been done.
    fn take_failed(&mut self, at: usize, record: &Record, deed: Deed) {
        let Record { volume, invoked, returned, ref answer, .. } = *record;
        // Refused before it was begun, or made impossible: nobody ever sees it.
        if matches!(answer, Answer::Failed(why) if why.contains("is out of reach") && !why.contains("took longer"))
        {
            return;
        }
        let lost = matches!(answer, Answer::Lost(_));
        let undo = match deed {
            Deed::Mount(host, id) => Some(Deed::Unmount(host, id)),
            _ if lost => None,
            _ => return,
        };
        let end = self.anything_broken(invoked, returned).map_or(returned, |(_, end)| end.max(returned));
        let until = end + self.limits.late;
        self.add(volume, Source::Record(at), invoked, until, deed, Duty::May);
        if let Some(undo) = undo {
            let killed = self.history.troubles.iter().any(|trouble| {
                trouble.what.contains("Kill")
                    && trouble.struck.contains(&record.instance)
                    && trouble.from >= invoked
            });
            // A repetition is taken back later than any history ends.
            let duty = if lost || killed || self.consequences.is_repetition(record) {
                Duty::May
            } else {
                Duty::Must
            };
            let items = self.items.entry(volume).or_default();
            let after = Some(items.len() - 1);
            let until = until + self.limits.late;
            items.push((
                Item { from: invoked, until, soonest: until, deed: undo, duty, after },
                Source::Record(at),
            ));
        }
    }

    /// What was told from memory.
    fn add_old(&mut self, at: usize, record: &Record, volume: usize, sight: Sight) {
        let Record { instance, invoked, returned, .. } = *record;
        let memory = invoked.saturating_sub(self.limits.old);
        let memory = match self.trouble(instance, memory, returned) {
            Some((begin, _)) => memory.min(begin.saturating_sub(self.limits.old)),
            None => memory,
        };
        let (asked, before) = self.fresh(instance, volume, invoked);
        let deed = Deed::Look(sight);
        let item = Item {
            from: asked.max(memory),
            until: returned,
            soonest: returned,
            deed,
            duty: Duty::Must,
            after: before,
        };
        self.items.entry(volume).or_default().push((item, Source::Record(at)));
    }

    /// What the memory of an instance cannot be older than: the latest request that the instance had answered before,
    /// and what became of that.
    fn fresh(&self, instance: usize, volume: usize, at: u64) -> (u64, Option<usize>) {
        let Some(answers) = self.answered.get(&(instance, volume)) else { return (0, None) };
        let before = answers.partition_point(|(returned, ..)| *returned <= at);
        let Some(last) = before.checked_sub(1) else { return (0, None) };
        let (_, invoked, record) = answers[last];
        (invoked, self.placed.get(&record).copied())
    }

    /// What each instance answered of each volume, having asked: when it was told, and the latest request until then.
    fn note_answers(&mut self) {
        for (at, record) in self.history.records.iter().enumerate() {
            let Record { instance, volume, invoked, returned, .. } = *record;
            // An answer that may have been given without asking anybody says nothing of how fresh memory is.
            let asked = match (&record.answer, record.call) {
                (Answer::Done, Call::Unmount(_)) => self.trouble(instance, invoked, returned).is_none(),
                (Answer::Done | Answer::Refused(..), _) => true,
                _ => false,
            };
            if asked {
                self.answered.entry((instance, volume)).or_default().push((returned, invoked, at));
            }
        }
        for answers in self.answered.values_mut() {
            answers.sort_unstable();
            let mut latest = (0, 0);
            for (_, invoked, record) in answers {
                latest = latest.max((*invoked, *record));
                (*invoked, *record) = latest;
            }
        }
    }

    fn take_endings(&mut self) {
        for (at, ending) in self.history.endings.iter().enumerate() {
            let world = ending.found.as_ref().map(|(access, mounts)| Volume {
                access: *access,
                mounts: mounts.iter().map(|(host, id, count)| ((*host, *id), *count)).collect::<Mounts>(),
            });
            let deed = Deed::Look(Sight::Exactly(world));
            self.add(ending.volume, Source::Ending(at), ending.at, ending.at, deed, Duty::Must);
        }
    }

    fn add(&mut self, volume: usize, source: Source, from: u64, until: u64, deed: Deed, duty: Duty) {
        let item = Item { from, until, soonest: until, deed, duty, after: None };
        let items = self.items.entry(volume).or_default();
        if let Source::Record(record) = source {
            self.placed.insert(record, items.len());
        }
        items.push((item, source));
    }

    fn complain(&mut self, what: &str, record: &Record) {
        self.complaints.push(format!("{} {what}", line(record)));
    }

    /// The trouble that an instance was in at that time: when it began and when it was over, several that overlap taken
    /// for one.
    fn trouble(&self, instance: usize, from: u64, until: u64) -> Option<(u64, u64)> {
        self.overlapping(from, until, self.limits.recovery, |trouble| trouble.struck.contains(&instance))
    }

    /// The same of what kept the instance from a catalog that it shares.
    fn cut_off(&self, record: &Record) -> Option<(u64, u64)> {
        let of =
            |trouble: &Trouble| trouble.struck.contains(&record.instance) && trouble.keeps_from_catalog();
        let found = self.overlapping(record.invoked, record.returned, self.limits.reconnect, of);
        found.filter(|_| self.limits.shared)
    }

    /// The same of whatever was broken at all.
    fn anything_broken(&self, from: u64, until: u64) -> Option<(u64, u64)> {
        self.overlapping(from, until, self.limits.recovery, |_| true)
    }

    fn overlapping(
        &self,
        from: u64,
        until: u64,
        after: u64,
        of: impl Fn(&Trouble) -> bool,
    ) -> Option<(u64, u64)> {
        let (mut all, mut found) = ((from, until), None);
        loop {
            let wider = self
                .history
                .troubles
                .iter()
                .filter(|trouble| of(trouble))
                .map(|trouble| (trouble.from, trouble.until + after))
                .filter(|(begin, end)| *begin <= all.1 && *end >= all.0)
                .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))?;
            if found == Some(wider) {
                return found;
            }
            all = (all.0.min(wider.0), all.1.max(wider.1));
            found = Some(wider);
        }
    }
}

/// What a refusal tells of the volume; nothing, where there is no such refusal of this call.
fn refused(why: Why, call: Call, client: usize) -> Option<Sight> {
    match (why, call) {
        (Why::Missing, Call::Get | Call::Path | Call::Mount(_)) => Some(Sight::Absent),
        (Why::Mounted, Call::Remove) => Some(Sight::Mounted),
        (Why::Held, Call::Mount(_)) => Some(Sight::Held(client)),
        (Why::Different, Call::Create(asked)) => Some(Sight::Different(asked)),
        _ => None,
    }
}

/// How many lines of the history are shown before the last one.
const SHOWN: usize = 24;

/// Tells what has no explanation, with what happened before.
fn word(
    history: &History,
    volume: usize,
    items: &[Item],
    sources: &[Source],
    unexplained: &Unexplained,
) -> String {
    let Unexplained { item, worlds, under_way, gave_up } = unexplained;
    let mut text = format!("volume v{volume}: ");
    let told = |at: usize| match sources[at] {
        Source::Record(record) => line(&history.records[record]),
        Source::Ending(ending) => format!("{:?}", history.endings[ending]),
    };
    let verdict = if *gave_up { "no order was found in time" } else { "there is no order" };
    let _ = writeln!(text, "{verdict} in which this can be answered:\n    {}", told(*item));
    let _ = writeln!(
        text,
        "  as {:?}, between {} and {}",
        items[*item].deed, items[*item].from, items[*item].until
    );
    let _ = writeln!(text, "  the volume may have been:");
    for world in worlds.iter().take(8) {
        let _ = writeln!(text, "    {world:?}");
    }
    let _ = writeln!(text, "  under way were:");
    for at in under_way.iter().filter(|at| !matches!(items[**at].deed, Deed::Look(_))) {
        let _ = writeln!(text, "    {:?} {}", items[*at].duty, told(*at));
    }
    let end = items[*item].until;
    let mut before: Vec<_> = history
        .records
        .iter()
        .filter(|record| record.volume == volume && record.call != Call::List && record.invoked <= end)
        .collect();
    before.sort_by_key(|record| record.returned);
    let _ = writeln!(text, "  before it:");
    for record in before.iter().skip(before.len().saturating_sub(SHOWN)) {
        let _ = writeln!(text, "    {}", line(record));
    }
    let _ = writeln!(text, "  broken in the last minute:");
    for trouble in &history.troubles {
        if trouble.from <= end && trouble.until + 60_000_000 >= end {
            let _ = writeln!(text, "    {} from {} until {}", trouble.what, trouble.from, trouble.until);
        }
    }
    text
}

fn line(record: &Record) -> String {
    let Record { client, number, instance, call, volume, invoked, returned, answer } = record;
    format!(
        "{invoked}..{returned} h{client} #{number} at instance {instance}: {call:?} v{volume}: {answer:?}"
    )
}
