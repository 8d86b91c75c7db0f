//! Histories written by hand: good ones are explained, and of bad ones it is told that there is no order for them.

use super::generate::VOLUMES;
use super::judge::{Limits, complaints};
use super::model::Access::{self, Exclusive, Shared, Unsaid};
use super::record::{Answer, Call, Ending, History, Record, Trouble, Why};

/// Small numbers, so that histories can be read.
const LIMITS: Limits =
    Limits { old: 20, late: 50, recovery: 10, reconnect: 10, shared: true, one_moment: true };

/// A host, its ID, and how often it has mounted.
type Mounted = (usize, u8, u32);

/// A history of volume 0, in the making.
#[derive(Default)]
struct Written(History);

impl Written {
    /// A request of a client at an instance, from when until when, and its answer.
    fn asked(
        mut self,
        (client, instance): (usize, usize),
        (invoked, returned): (u64, u64),
        call: Call,
        answer: Answer,
    ) -> Self {
        let number = self.0.records.len();
        self.0.records.push(Record { client, number, instance, call, volume: 0, invoked, returned, answer });
        self
    }

    fn done(self, who: (usize, usize), when: (u64, u64), call: Call) -> Self {
        self.asked(who, when, call, Answer::Done)
    }

    fn refused(self, who: (usize, usize), when: (u64, u64), call: Call, why: Why) -> Self {
        self.asked(who, when, call, Answer::Refused(why, String::new()))
    }

    fn lost(self, who: (usize, usize), when: (u64, u64), call: Call) -> Self {
        self.asked(who, when, call, Answer::Lost(String::new()))
    }

    /// A Get that finds the volume mounted by these hosts, once each.
    fn found(self, who: (usize, usize), when: (u64, u64), hosts: &[usize]) -> Self {
        let seen = (hosts.len(), hosts.iter().copied().collect());
        self.asked(who, when, Call::Get, Answer::Found(Some(seen)))
    }

    fn broken(mut self, what: &str, from: u64, until: u64, struck: &[usize]) -> Self {
        let struck = struck.iter().copied().collect();
        self.0.troubles.push(Trouble { what: what.into(), from, until, struck });
        self
    }

    /// What both instances tell at the end.
    fn ends(mut self, at: u64, found: Option<(Access, &[Mounted])>) -> Self {
        for instance in 0..2 {
            let found = found.map(|(access, mounts)| (access, mounts.to_vec()));
            self.0.endings.push(Ending { instance, at, volume: 0, found });
        }
        self
    }

    #[track_caller]
    fn explained(self) {
        assert_eq!(complaints(&self.0, &LIMITS), [""; 0]);
    }

    /// Fails unless there is one complaint, which says this.
    #[track_caller]
    fn complained(self, expected: &str) {
        let found = complaints(&self.0, &LIMITS);
        assert!(found.len() == 1 && found[0].contains(expected), "{expected:?} expected: {found:#?}");
    }
}

fn with(access: Access) -> Written {
    Written::default().done((0, 0), (10, 20), Call::Create(access))
}

const NO_ORDER: &str = "there is no order";

#[test]
fn what_happens_in_turn_is_explained() {
    with(Exclusive)
        .done((1, 1), (30, 40), Call::Create(Unsaid))
        .done((1, 1), (45, 48), Call::Create(Exclusive))
        .refused((1, 1), (50, 60), Call::Create(Shared), Why::Different)
        .done((0, 0), (70, 80), Call::Mount(0))
        .done((0, 1), (70, 80), Call::Mount(1))
        .refused((1, 1), (90, 100), Call::Mount(0), Why::Held)
        .refused((1, 1), (110, 120), Call::Remove, Why::Mounted)
        .found((2, 0), (121, 122), &[0, 0])
        .done((0, 0), (130, 140), Call::Unmount(0))
        .done((0, 0), (150, 160), Call::Unmount(0))
        .done((0, 0), (170, 180), Call::Unmount(1))
        .done((1, 1), (190, 200), Call::Remove)
        .done((1, 1), (210, 220), Call::Remove)
        .done((1, 1), (221, 222), Call::Unmount(0))
        .refused((2, 0), (230, 240), Call::Get, Why::Missing)
        .refused((2, 0), (250, 260), Call::Mount(0), Why::Missing)
        .ends(300, None)
        .explained();
}

#[test]
fn what_happens_at_the_same_time_is_explained_by_either_order() {
    for held_first in [false, true] {
        let (one, other) = if held_first { (0, 1) } else { (1, 0) };
        with(Exclusive)
            .done((one, 0), (30, 60), Call::Mount(0))
            .refused((other, 1), (30, 60), Call::Mount(0), Why::Held)
            .ends(300, Some((Exclusive, &[(one, 0, 1)])))
            .explained();
    }
    // Removed and made again between: both Creates are answered well.
    with(Shared)
        .done((1, 1), (30, 60), Call::Remove)
        .done((2, 0), (30, 60), Call::Create(Exclusive))
        .ends(300, Some((Exclusive, &[])))
        .explained();
}

#[test]
fn a_lost_volume_is_found() {
    with(Unsaid).refused((1, 1), (30, 40), Call::Get, Why::Missing).complained(NO_ORDER);
    with(Unsaid).refused((1, 1), (30, 40), Call::Mount(0), Why::Missing).complained(NO_ORDER);
    with(Unsaid).ends(300, None).complained(NO_ORDER);
    // Made anew, with what was asked for the second time.
    with(Shared).done((1, 1), (30, 40), Call::Create(Exclusive)).complained(NO_ORDER);
}

#[test]
fn a_split_volume_is_found() {
    let split = with(Exclusive)
        .done((0, 0), (30, 40), Call::Mount(0))
        .done((1, 1), (50, 60), Call::Remove)
        .done((1, 1), (70, 80), Call::Create(Shared));
    split.complained(NO_ORDER);
    with(Exclusive)
        .done((1, 1), (15, 25), Call::Create(Unsaid))
        .done((1, 1), (30, 40), Call::Mount(0))
        .done((0, 0), (30, 40), Call::Mount(0))
        .complained(NO_ORDER);
}

#[test]
fn a_doubled_exclusive_mount_is_found() {
    let both =
        |when| with(Exclusive).done((0, 0), (30, 60), Call::Mount(0)).done((1, 1), when, Call::Mount(0));
    both((30, 60)).complained(NO_ORDER);
    both((70, 80)).complained(NO_ORDER);
    both((70, 80)).broken("Cut(0)", 20, 75, &[0]).complained(NO_ORDER);
}

#[test]
fn a_lost_unmount_is_found() {
    let unmounted =
        || with(Unsaid).done((0, 0), (30, 40), Call::Mount(0)).done((0, 0), (50, 60), Call::Unmount(0));
    unmounted().refused((1, 1), (70, 80), Call::Remove, Why::Mounted).complained(NO_ORDER);
    unmounted().ends(300, Some((Unsaid, &[(0, 0, 1)]))).complained(NO_ORDER);
    // In times of trouble it may be late, but not for ever.
    let late = || unmounted().broken("Cut(0)", 45, 100, &[0]);
    late().refused((1, 1), (140, 150), Call::Remove, Why::Mounted).ends(300, Some((Unsaid, &[]))).explained();
    late().refused((1, 1), (170, 180), Call::Remove, Why::Mounted).complained(NO_ORDER);
    late().ends(300, Some((Unsaid, &[(0, 0, 1)]))).complained(NO_ORDER);
    // The trouble of another instance is no excuse.
    let other = unmounted().broken("Cut(1)", 45, 100, &[1]);
    other.refused((1, 1), (140, 150), Call::Remove, Why::Mounted).complained(NO_ORDER);
}

#[test]
fn a_doubled_unmount_is_found() {
    let twice = || {
        with(Unsaid).done((0, 0), (30, 40), Call::Mount(0)).done((0, 0), (41, 42), Call::Mount(0)).done(
            (0, 0),
            (50, 60),
            Call::Unmount(0),
        )
    };
    twice().ends(300, Some((Unsaid, &[(0, 0, 1)]))).explained();
    twice().ends(300, Some((Unsaid, &[]))).complained(NO_ORDER);
    twice().done((1, 1), (70, 80), Call::Remove).complained(NO_ORDER);
    twice().broken("Quorum", 45, 100, &[0, 1]).ends(300, Some((Unsaid, &[]))).complained(NO_ORDER);
}

#[test]
fn a_removed_volume_that_is_mounted_is_found() {
    let mounted = || with(Unsaid).done((0, 0), (30, 40), Call::Mount(0));
    mounted().done((1, 1), (50, 60), Call::Remove).complained(NO_ORDER);
    mounted().done((1, 1), (35, 60), Call::Remove).complained(NO_ORDER);
    mounted().done((1, 1), (50, 60), Call::Remove).broken("Kill(0)", 45, 100, &[0]).complained(NO_ORDER);
}

#[test]
fn a_miss_told_from_memory_is_found_and_a_hit_is_not_for_a_while() {
    let removed = || with(Unsaid).done((0, 0), (30, 40), Call::Remove);
    removed().found((1, 1), (50, 55), &[]).explained();
    removed().found((1, 1), (70, 75), &[]).complained(NO_ORDER);
    removed().found((1, 1), (70, 75), &[]).broken("Cut(1)", 20, 80, &[1]).explained();
    // An instance knows what it answered itself.
    removed().found((1, 0), (50, 55), &[]).complained(NO_ORDER);
    with(Unsaid)
        .found((1, 0), (20, 25), &[])
        .refused((1, 0), (30, 35), Call::Get, Why::Missing)
        .complained(NO_ORDER);
    let seen = removed().refused((2, 1), (42, 45), Call::Get, Why::Missing);
    seen.found((1, 1), (50, 55), &[]).complained(NO_ORDER);
    // Nothing was ever mounted.
    removed().found((1, 1), (50, 55), &[2]).complained(NO_ORDER);
    let again = || removed().done((0, 0), (50, 60), Call::Create(Unsaid));
    again().refused((1, 1), (65, 70), Call::Get, Why::Missing).complained(NO_ORDER);
    again().refused((1, 1), (55, 70), Call::Get, Why::Missing).explained();
    again()
        .refused((1, 1), (65, 70), Call::Get, Why::Missing)
        .broken("Cut(1)", 20, 80, &[1])
        .complained(NO_ORDER);
}

#[test]
fn a_list_is_a_look_at_every_volume() {
    let listed = |volumes: &[usize]| Answer::Listed(volumes.iter().copied().collect());
    with(Unsaid).asked((1, 1), (50, 55), Call::List, listed(&[0])).explained();
    with(Unsaid).asked((1, 1), (30, 35), Call::List, listed(&[])).explained();
    with(Unsaid).asked((1, 1), (50, 55), Call::List, listed(&[])).complained("volume v0");
    with(Unsaid).asked((1, 1), (50, 55), Call::List, listed(&[0, VOLUMES - 1])).complained("volume v4");
}

#[test]
fn what_was_not_answered_happened_or_did_not() {
    let lost = |call| with(Unsaid).broken("Kill(0)", 35, 60, &[0]).lost((0, 0), (30, 40), call);
    for found in [None, Some((Unsaid, &[][..]))] {
        lost(Call::Remove).ends(300, found).explained();
    }
    // A volume that comes back after it was seen to be gone is neither.
    lost(Call::Remove)
        .refused((1, 1), (70, 75), Call::Get, Why::Missing)
        .ends(300, Some((Unsaid, &[])))
        .complained(NO_ORDER);
    for mounts in [&[][..], &[(0, 0, 1)]] {
        lost(Call::Mount(0)).ends(300, Some((Unsaid, mounts))).explained();
    }
    lost(Call::Mount(0)).ends(300, Some((Unsaid, &[(0, 0, 2)]))).complained(NO_ORDER);
    // Mounted, seen, and taken back.
    lost(Call::Mount(0)).found((1, 1), (70, 75), &[0]).ends(300, Some((Unsaid, &[]))).explained();
    // It cannot happen long after everything was mended.
    lost(Call::Remove)
        .found((1, 1), (150, 155), &[])
        .refused((1, 1), (160, 165), Call::Get, Why::Missing)
        .complained(NO_ORDER);
}

/// A Mount that was lost and perhaps taken back leaves a count that is known only by what somebody sees of it: here before
/// another host's Mount, which was asked for earlier than that was seen.
#[test]
fn what_was_taken_back_is_seen_before_what_happens_at_the_same_time() {
    with(Shared)
        .done((2, 0), (22, 28), Call::Mount(0))
        .done((1, 0), (30, 40), Call::Mount(0))
        .broken("Kill", 45, 60, &[0])
        .lost((1, 0), (50, 60), Call::Mount(0))
        .done((1, 0), (65, 70), Call::Mount(0))
        .done((1, 0), (115, 120), Call::Unmount(0))
        .done((1, 0), (121, 123), Call::Unmount(0))
        .done((4, 0), (127, 129), Call::Create(Unsaid))
        .done((3, 0), (124, 134), Call::Mount(0))
        .found((2, 0), (130, 136), &[2])
        .ends(200, Some((Shared, &[(2, 0, 1), (3, 0, 1)])))
        .explained();
}

#[test]
fn what_failed_did_not_happen() {
    let failed = |call| {
        let failed = Answer::Failed("500".into());
        with(Unsaid).broken("Cut(0)", 25, 60, &[0]).asked((0, 0), (30, 40), call, failed)
    };
    failed(Call::Remove).ends(300, Some((Unsaid, &[]))).explained();
    failed(Call::Remove).ends(300, None).complained(NO_ORDER);
    failed(Call::Mount(0)).ends(300, Some((Unsaid, &[]))).explained();
    failed(Call::Mount(0)).refused((1, 1), (50, 55), Call::Remove, Why::Mounted).explained();
    failed(Call::Mount(0)).ends(300, Some((Unsaid, &[(0, 0, 1)]))).complained(NO_ORDER);
    // What a catalog out of reach refuses is not even seen.
    let refused = Answer::Failed("500 the catalog etcd://a:1/b is out of reach: x".into());
    with(Unsaid)
        .broken("Cut(0)", 25, 60, &[0])
        .asked((0, 0), (30, 40), Call::Mount(0), refused)
        .refused((1, 1), (50, 55), Call::Remove, Why::Mounted)
        .complained(NO_ORDER);
    // Who was to take it back was killed.
    failed(Call::Mount(0))
        .broken("Kill(0)", 45, 60, &[0])
        .ends(300, Some((Unsaid, &[(0, 0, 1)])))
        .explained();
}

#[test]
fn nothing_fails_without_a_reason() {
    let failed = Answer::Failed("500 the catalog is out of reach".into());
    with(Unsaid).asked((0, 0), (30, 40), Call::Remove, failed.clone()).complained("nothing is broken");
    with(Unsaid).lost((0, 0), (30, 40), Call::Get).complained("nothing is broken");
    with(Unsaid)
        .broken("Cut(0)", 50, 60, &[0])
        .lost((0, 0), (30, 40), Call::Get)
        .complained("nothing is broken");
    with(Unsaid).broken("Cut(0)", 10, 25, &[0]).asked((0, 0), (30, 40), Call::Remove, failed).explained();
    with(Unsaid).refused((0, 0), (30, 40), Call::Get, Why::Other).complained("no reason");
    with(Unsaid).refused((0, 0), (30, 40), Call::Remove, Why::Missing).complained("no reason");
}

/// Many operations at the same time have many orders: one is found soon, and soon that there is none.
#[test]
fn a_crowd_is_looked_through_in_a_moment() {
    let crowd = || {
        let mut written = with(Unsaid);
        for client in 0..6 {
            let when = (30 + client as u64, 90);
            written =
                written.done((client, 0), when, Call::Mount(0)).done((client, 1), when, Call::Unmount(0));
        }
        written
    };
    let all: Vec<_> = (0..6).map(|client| (client, 0, 1)).collect();
    crowd().ends(300, Some((Unsaid, &all))).explained();
    crowd().ends(300, Some((Unsaid, &[]))).explained();
    crowd().ends(300, Some((Unsaid, &[(0, 0, 2)]))).complained(NO_ORDER);
}

#[test]
fn an_unmount_after_a_repetition_that_failed_takes_nothing() {
    let failed = || Answer::Failed("500 the disk is full".into());
    let copied = || {
        with(Exclusive)
            .done((0, 0), (30, 40), Call::Mount(0))
            .broken("Quorum", 45, 55, &[0])
            .asked((0, 0), (50, 60), Call::Mount(0), failed())
            .done((0, 0), (70, 80), Call::Unmount(0))
    };
    copied().ends(300, Some((Exclusive, &[(0, 0, 1)]))).explained();
    copied().ends(300, None).complained(NO_ORDER);
    copied().ends(300, Some((Exclusive, &[]))).complained(NO_ORDER);
    copied().done((1, 1), (90, 100), Call::Mount(0)).complained(NO_ORDER);
    // The next one is counted.
    copied().done((0, 0), (90, 100), Call::Unmount(0)).ends(300, Some((Exclusive, &[]))).explained();
}

#[test]
fn an_unmount_after_a_failure_that_its_instance_cannot_know_may_take_one() {
    for (found, killed) in [(&[(0, 0, 1)][..], false), (&[], false), (&[], true)] {
        let copied = with(Exclusive).done((0, 0), (30, 40), Call::Mount(0)).broken("Quorum", 45, 55, &[0, 1]);
        let copied = if killed {
            let failed = Answer::Failed("500 the disk is full".into());
            copied.asked((0, 0), (50, 60), Call::Mount(0), failed).broken("Kill", 65, 66, &[0])
        } else {
            copied.lost((0, 0), (50, 60), Call::Mount(0))
        };
        copied.done((0, 0), (70, 80), Call::Unmount(0)).ends(300, Some((Exclusive, found))).explained();
    }
}
