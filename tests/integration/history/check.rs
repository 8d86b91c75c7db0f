//! Whether there is an order in which everything that was answered can have happened.
//!
//! A history of one name is linearizable when each operation can be given a moment between its call and its answer, so
//! that in the order of these moments every answer is the model's. The search goes through the calls and answers in
//! their order and keeps every [`Guess`] that is still possible: what the world is, and which of the operations under
//! way have had their moment already. An operation is given its moment only when an answer demands it (its own, or that
//! of one that must come after it), so that few guesses are alive where little happens at the same time. Where that finds
//! nothing, the search is made once more with those that a look under way may need. Guesses that can do no more than
//! another one are dropped.
//!
//! An operation without an answer may have its moment until its `until`, or none. What only looks has its moment as soon
//! as a guess allows it, for it takes nothing from anybody.
//!
//! When no guess is left, the history has no explanation, and the operation whose answer was the last straw is told.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use super::model::{Access, Deed, Sight, World};

/// How many guesses are looked at for one answer before the narrow search gives up.
const LIMIT: usize = 50_000;

/// How many guesses are kept from one answer to the next before the narrow search gives up.
const KEPT: usize = 3_000;

/// How many times as many the wide search may have. It is made for the few names that the narrow one cannot explain.
const WIDE: usize = 10;

/// One operation on the name.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// The earliest moment that it can have had.
    pub from: u64,
    /// The latest one.
    pub until: u64,
    /// The latest one, were nothing late.
    pub soonest: u64,
    /// What it did or saw.
    pub deed: Deed,
    /// Whether it had a moment for certain.
    pub duty: Duty,
    /// An item before it that must have had its moment first, if there is one. What may not have happened has no
    /// consequences: where such an item did not happen, neither did this.
    pub after: Option<usize>,
}

/// Whether an operation had its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Duty {
    /// Certainly: it was answered.
    Must,
    /// Perhaps: nobody was told.
    May,
}

/// Why a history has no explanation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unexplained {
    /// The item whose answer fits nothing.
    pub item: usize,
    /// What the world may have been just before.
    pub worlds: BTreeSet<World>,
    /// The operations that were under way.
    pub under_way: Vec<usize>,
    /// Whether the search gave up rather than came to an end.
    pub gave_up: bool,
}

/// Looks for an explanation of everything that happened to one name, which stood for nothing at the beginning.
pub(super) fn explain(items: &[Item]) -> Result<(), Unexplained> {
    // Most of what may be done later was done at once, and an order that says so is soon found.
    let at_once: Vec<_> = items.iter().map(|item| Item { until: item.soonest, ..item.clone() }).collect();
    attempt(&at_once, Breadth::Narrow)
        .or_else(|_| attempt(items, Breadth::Narrow))
        .or_else(|_| attempt(items, Breadth::Wide))
}

/// Which operations are given their moment before one that is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breadth {
    /// Those that it needs itself.
    Narrow,
    /// Also those that a look needs which is under way: it may have seen the world before.
    Wide,
}

impl Breadth {
    fn limit(self, narrow: usize) -> usize {
        match self {
            Self::Narrow => narrow,
            Self::Wide => WIDE * narrow,
        }
    }
}

fn attempt(items: &[Item], breadth: Breadth) -> Result<(), Unexplained> {
    let mut search = Search::new(items, breadth);
    let mut events: Vec<_> = items
        .iter()
        .enumerate()
        .flat_map(|(at, item)| [(item.from, false, at), (item.until, true, at)])
        .collect();
    // Calls before answers of the same moment: they may have met.
    events.sort_unstable();
    for (_, is_answer, at) in events {
        if !is_answer {
            search.begin(at);
        } else if search.under_way.contains(&at) {
            search.end(at)?;
        }
        search.settle();
    }
    Ok(())
}

/// What a guess has seen, what it has used up of what may be done, and the guess.
type Weighed = (BTreeSet<usize>, BTreeSet<usize>, Guess);

/// One way in which everything until now can have happened.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Guess {
    world: World,
    /// Which of the operations under way have had their moment.
    done: BTreeSet<usize>,
}

struct Search<'a> {
    items: &'a [Item],
    breadth: Breadth,
    /// The operations that were called, are not answered, and have not had their moment in every guess.
    under_way: BTreeSet<usize>,
    guesses: Vec<Guess>,
}

impl<'a> Search<'a> {
    fn new(items: &'a [Item], breadth: Breadth) -> Self {
        let guesses = vec![Guess { world: None, done: BTreeSet::new() }];
        Self { items, breadth, under_way: BTreeSet::new(), guesses }
    }

    fn begin(&mut self, at: usize) {
        self.under_way.insert(at);
        let Self { items, breadth: _, under_way, guesses } = self;
        for guess in guesses {
            if is_seen(items, under_way, at, guess) {
                guess.done.insert(at);
            }
        }
    }

    fn end(&mut self, at: usize) -> Result<(), Unexplained> {
        let (had_it, had_it_not) = self.divide(at);
        let with = self
            .until_done(at, had_it.iter().chain(&had_it_not))
            .ok_or_else(|| self.unexplained(at, true))?;
        let guesses = match self.items[at].duty {
            Duty::Must if with.is_empty() => return Err(self.unexplained(at, false)),
            Duty::Must => with,
            // Now or never. What did not happen has no consequences.
            Duty::May => {
                let follows = |other: &usize| self.items[*other].after == Some(at);
                let consequences: Vec<_> = self.under_way.iter().copied().filter(follows).collect();
                let without = had_it_not.into_iter().map(|mut guess| {
                    guess.done.extend(&consequences);
                    guess
                });
                with.into_iter().chain(without).collect()
            }
        };
        self.guesses = guesses;
        self.forget(at);
        let guesses = std::mem::take(&mut self.guesses);
        self.guesses = self.best(guesses);
        if self.guesses.len() > self.breadth.limit(KEPT) { Err(self.unexplained(at, true)) } else { Ok(()) }
    }

    /// The guesses in which this operation has had its moment, and the others.
    fn divide(&self, at: usize) -> (Vec<Guess>, Vec<Guess>) {
        self.guesses.iter().cloned().partition(|guess| guess.done.contains(&at))
    }

    fn unexplained(&self, item: usize, gave_up: bool) -> Unexplained {
        Unexplained {
            item,
            worlds: self.guesses.iter().map(|guess| guess.world.clone()).collect(),
            under_way: self.under_way.iter().copied().filter(|other| *other != item).collect(),
            gave_up,
        }
    }

    /// What becomes of guesses when this operation is given its moment, having given one to whatever may come before;
    /// nothing when there are too many ways.
    fn until_done<'g>(&self, at: usize, guesses: impl Iterator<Item = &'g Guess>) -> Option<Vec<Guess>> {
        let mut left: VecDeque<Guess> = guesses.cloned().collect();
        let mut seen: HashSet<Guess> = left.iter().cloned().collect();
        let mut done = Vec::new();
        while let Some(guess) = left.pop_front() {
            if guess.done.contains(&at) {
                done.push(guess);
                continue;
            }
            for next in self.steps(&guess, at) {
                if seen.insert(next.clone()) {
                    left.push_back(next);
                }
            }
            if seen.len() > self.breadth.limit(LIMIT) {
                return None;
            }
        }
        Some(done)
    }

    /// What a guess becomes when one more operation has its moment, of those that can make a difference to the one that
    /// is wanted. The others can have theirs later, with the same result.
    fn steps(&self, guess: &Guess, wanted: usize) -> Vec<Guess> {
        let ready = self.ready(guess);
        let deeds = || ready.values().map(|at| &self.items[*at].deed);
        let removal = deeds().any(|deed| *deed == Deed::Remove);
        let exclusive = guess.world.as_ref().is_some_and(|volume| volume.access == Access::Exclusive);
        let looks = || {
            let under_way = self.under_way.difference(&guess.done).copied();
            let others = under_way.filter(|_| self.breadth == Breadth::Wide);
            others.chain([wanted]).map(|at| &self.items[at].deed)
        };
        let counts_matter =
            looks().any(|deed| matches!(deed, Deed::Look(Sight::Used(..) | Sight::Exactly(_))));
        let mount_is_seen = looks().any(|deed| matches!(deed, Deed::Look(Sight::Mounted | Sight::Held(_))));
        let matters = |at: usize| match (&self.items[at].deed, &self.items[wanted].deed) {
            _ if at == wanted || counts_matter => true,
            (Deed::Look(_), _) => false,
            (Deed::Create(_) | Deed::Remove, _) => true,
            // Where it lets another one be done, it comes with that: see `enabled`.
            (Deed::Unmount(host, id), Deed::Mount(h, i)) => (host, id) == (h, i),
            (Deed::Unmount(..), _) => false,
            (Deed::Mount(host, id), Deed::Unmount(h, i)) if (host, id) == (h, i) => true,
            (Deed::Mount(host, id), _) => {
                let ended = || deeds().any(|deed| *deed == Deed::Unmount(*host, *id));
                exclusive || mount_is_seen || removal && ended()
            }
        };
        let mut next = Vec::new();
        for at in ready.values().copied().filter(|at| matters(*at)) {
            if let Some(guess) = self.step(guess, at) {
                next.push(guess);
            } else if self.items[at].deed.after(&guess.world).is_none() {
                for first in [Duty::Must, Duty::May] {
                    next.extend(self.enabled(guess, at, first).and_then(|guess| self.step(&guess, at)));
                }
            }
        }
        next
    }

    /// The operations that can have their moment now. Of those that do the same only the one that is due first: which
    /// of them it was makes no difference.
    fn ready(&self, guess: &Guess) -> BTreeMap<(&Deed, Duty, bool), usize> {
        let mut ready: BTreeMap<(&Deed, Duty, bool), usize> = BTreeMap::new();
        for at in self.under_way.difference(&guess.done).copied() {
            let item = &self.items[at];
            if matches!(item.deed, Deed::Look(_)) || !is_ready(self.items, &self.under_way, at, guess) {
                continue;
            }
            let first = ready.entry((&item.deed, item.duty, item.after.is_some())).or_insert(at);
            if item.until < self.items[*first].until {
                *first = at;
            }
        }
        ready
    }

    fn step(&self, guess: &Guess, at: usize) -> Option<Guess> {
        let item = &self.items[at];
        let world = item.deed.after(&guess.world)?;
        if item.duty == Duty::May && world == guess.world {
            // As good as not done.
            return None;
        }
        let mut next = Guess { world, done: guess.done.clone() };
        next.done.insert(at);
        for look in self.under_way.difference(&guess.done) {
            if is_seen(self.items, &self.under_way, *look, &next) {
                next.done.insert(*look);
            }
        }
        Some(next)
    }

    /// What a guess becomes by the Unmounts that an operation needs before it, which are taken rather from those that
    /// were answered, or from the others; nothing where there are not enough.
    fn enabled(&self, guess: &Guess, at: usize, first: Duty) -> Option<Guess> {
        let volume = guess.world.as_ref()?;
        let in_the_way = |host: usize| match self.items[at].deed {
            Deed::Remove => true,
            Deed::Mount(by, _) => host != by,
            _ => false,
        };
        let keys = volume.mounts.iter().filter(|((host, _), _)| in_the_way(*host));
        let mut guess = guess.clone();
        for ((host, id), count) in keys {
            for _ in 0..*count {
                let deed = Deed::Unmount(*host, *id);
                let ready = self.ready(&guess);
                let of = |(alike, duty, _): &(&Deed, Duty, bool)| (**alike == deed).then_some(*duty != first);
                let unmount = ready.iter().filter_map(|(key, at)| Some((of(key)?, *at))).min()?;
                guess = self.step(&guess, unmount.1)?;
            }
        }
        Some(guess)
    }

    /// Drops the guesses that can do no more than another one: of the same world, having done the same that must be
    /// done, seen no more, and used up no less of what may be done.
    fn best(&self, guesses: Vec<Guess>) -> Vec<Guess> {
        let mut groups: BTreeMap<(World, Vec<usize>), Vec<Weighed>> = BTreeMap::new();
        for guess in guesses {
            let of = |wanted: fn(&Item) -> bool| {
                guess.done.iter().copied().filter(move |at| wanted(&self.items[*at]))
            };
            let musts = of(|item| item.duty == Duty::Must && !matches!(item.deed, Deed::Look(_))).collect();
            let looks: BTreeSet<_> = of(|item| matches!(item.deed, Deed::Look(_))).collect();
            let mays: BTreeSet<_> = of(|item| item.duty == Duty::May).collect();
            let group = groups.entry((guess.world.clone(), musts)).or_default();
            if group.iter().any(|(l, m, _)| l.is_superset(&looks) && m.is_subset(&mays)) {
                continue;
            }
            group.retain(|(l, m, _)| !(looks.is_superset(l) && mays.is_subset(m)));
            group.push((looks, mays, guess));
        }
        let guesses: Vec<_> = groups.into_values().flatten().map(|(_, _, guess)| guess).collect();
        let known: HashSet<_> = guesses.iter().cloned().collect();
        guesses.into_iter().filter(|guess| !self.follows(guess, &known)).collect()
    }

    /// Whether a guess is what another one can become by one more operation, and has seen no more than that.
    fn follows(&self, guess: &Guess, known: &HashSet<Guess>) -> bool {
        let deeds = guess.done.iter().filter(|at| !matches!(self.items[**at].deed, Deed::Look(_)));
        deeds.into_iter().any(|at| {
            let mut done = guess.done.clone();
            done.remove(at);
            // What the operation makes of a world cannot be taken back but by trying.
            self.before(guess, *at)
                .into_iter()
                .any(|world| known.contains(&Guess { world, done: done.clone() }))
        })
    }

    /// Worlds of which an operation makes this guess's.
    fn before(&self, guess: &Guess, at: usize) -> Vec<World> {
        let deed = &self.items[at].deed;
        let mut worlds = vec![guess.world.clone()];
        if let (Deed::Mount(host, id) | Deed::Unmount(host, id), Some(volume)) = (deed, &guess.world) {
            let mut fewer = volume.clone();
            if let Some(count) = fewer.mounts.get_mut(&(*host, *id)) {
                *count -= 1;
            }
            fewer.mounts.retain(|_, count| *count > 0);
            let mut more = volume.clone();
            *more.mounts.entry((*host, *id)).or_default() += 1;
            worlds.extend([Some(fewer), Some(more)]);
        }
        worlds.retain(|world| deed.after(world).as_ref() == Some(&guess.world));
        worlds
    }

    /// What has had its moment in every guess is no question any more.
    fn settle(&mut self) {
        let Some((first, rest)) = self.guesses.split_first() else { return };
        let settled: Vec<_> = first
            .done
            .iter()
            .copied()
            .filter(|at| rest.iter().all(|guess| guess.done.contains(at)))
            .collect();
        for at in settled {
            self.forget(at);
        }
    }

    fn forget(&mut self, at: usize) {
        self.under_way.remove(&at);
        for guess in &mut self.guesses {
            guess.done.remove(&at);
        }
    }
}

/// Whether what must have come before an operation has had its moment.
fn is_ready(items: &[Item], under_way: &BTreeSet<usize>, at: usize, guess: &Guess) -> bool {
    items[at].after.is_none_or(|before| guess.done.contains(&before) || !under_way.contains(&before))
}

/// Whether an operation only looks, and sees what it saw.
fn is_seen(items: &[Item], under_way: &BTreeSet<usize>, at: usize, guess: &Guess) -> bool {
    matches!(&items[at].deed, Deed::Look(sight) if sight.is_of(&guess.world))
        && is_ready(items, under_way, at, guess)
}
