//! What is broken while clients work: instances are killed, also at a durable step, and frozen; members of the cluster
//! are killed and frozen, one of them or a majority; an instance is cut off from the cluster.
//!
//! Everything is mended again before the next thing is broken. What is done comes from the seed; how long the mending
//! takes does not.

use std::collections::BTreeSet;
use std::time::Duration;

use volhost::volume::STEPS;

use super::client::Scene;
use super::record::Trouble;
use crate::harness::etcd::Loss;
use crate::harness::random::Random;
use crate::harness::{Cluster, Daemon, Host};

/// Something to be broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// An instance is killed and started again.
    Kill(usize),
    /// The same; the next process of that instance dies at a durable step, or soon.
    KillTwice(usize, &'static str),
    /// An instance's clock stops.
    Freeze(usize),
    /// One member of the cluster is lost.
    Member(usize, Loss),
    /// All members but one are lost.
    Quorum(Loss),
    /// What an instance and the cluster send to each other vanishes.
    Cut(usize),
    /// What the cluster sends to an instance vanishes.
    Deafen(usize),
}

/// A fault, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blow {
    /// How long everything works before it.
    pub rest: Duration,
    /// What is broken.
    pub fault: Fault,
    /// For how long.
    pub lasts: Duration,
    /// An instance that is killed in the middle of it and started when it is over.
    pub kills: Option<usize>,
}

/// How much is broken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// How many instances there are.
    pub instances: usize,
    /// How many members the cluster has; none where there is no cluster.
    pub members: usize,
    /// The longest time in which everything works, in milliseconds.
    pub rest: u64,
    /// How long a fault lasts at most, in milliseconds.
    pub lasts: u64,
}

/// The faults of a seed, without end.
pub(super) fn blows(mut random: Random, weather: Weather) -> impl Iterator<Item = Blow> {
    let Weather { instances, members, rest, lasts } = weather;
    let steps: Vec<_> = STEPS
        .iter()
        .copied()
        .filter(|step| ["create", "mount", "unmount", "remove"].iter().any(|of| step.starts_with(of)))
        .collect();
    std::iter::repeat_with(move || {
        let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).expect("it is small");
        let instance = below(instances);
        let loss = [Loss::Killed, Loss::Frozen][below(2)];
        // Without a cluster, and without another instance, there is less that can break.
        let kinds = if members > 0 { 12 } else { 5 };
        let fault = match below(kinds) {
            0 | 1 => Fault::Kill(instance),
            2 | 3 => Fault::KillTwice(instance, steps[below(steps.len())]),
            4 => Fault::Freeze(instance),
            5 | 6 => Fault::Member(below(members), loss),
            7 | 8 => Fault::Quorum(loss),
            9 | 10 => Fault::Cut(instance),
            _ => Fault::Deafen(instance),
        };
        let of_others = !matches!(fault, Fault::Kill(_) | Fault::KillTwice(..) | Fault::Freeze(_));
        let kills = (of_others && below(3) == 0).then(|| below(instances));
        let rest = Duration::from_millis(random.below(rest));
        let lasts = Duration::from_millis(random.below(lasts));
        Blow { rest, fault, lasts, kills }
    })
}

/// What can be broken.
pub(super) struct Stage<'s, 'a> {
    /// The instances.
    pub instances: &'s mut [Daemon<'a>],
    /// The cluster, where there is one.
    pub etcd: Option<&'s mut Cluster<'a>>,
    /// The machine that the cluster is on, and those of the instances.
    pub machines: Option<(&'a Host, Vec<&'a Host>)>,
    /// Where the clients work.
    pub scene: &'s Scene<'a>,
    /// What was broken so far.
    pub troubles: Vec<Trouble>,
}

impl<'a> Stage<'_, 'a> {
    /// Lets clients come in at every instance.
    pub(super) fn open(&self) {
        for (at, daemon) in self.instances.iter().enumerate() {
            self.scene.doors.set(at, Some(daemon.tcp("https")));
        }
    }

    /// Breaks something and mends it.
    pub(super) fn suffer(&mut self, blow: Blow) {
        let Blow { rest, fault, lasts, kills } = blow;
        std::thread::sleep(rest);
        let from = self.scene.now();
        self.strike(fault);
        let half = lasts / 2;
        std::thread::sleep(half);
        if let Some(instance) = kills {
            self.kill(instance);
        }
        std::thread::sleep(lasts - half);
        self.mend(fault);
        if let Some(instance) = kills {
            self.start(instance, &[]);
        }
        let all = (0..self.instances.len()).collect::<BTreeSet<_>>();
        let struck = match fault {
            Fault::Kill(at)
            | Fault::KillTwice(at, _)
            | Fault::Freeze(at)
            | Fault::Cut(at)
            | Fault::Deafen(at) => kills.into_iter().chain([at]).collect(),
            Fault::Member(..) | Fault::Quorum(_) => all,
        };
        let mut what = format!("{fault:?}");
        if let Some(instance) = kills {
            what += &format!(" and Kill({instance})");
        }
        self.troubles.push(Trouble { what, from, until: self.scene.now(), struck });
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(at) => self.kill(at),
            Fault::KillTwice(at, step) => {
                self.kill(at);
                self.start(at, &[("VOLHOST_STOP_AT", step)]);
            }
            Fault::Freeze(at) => self.instances[at].signal("STOP"),
            Fault::Member(at, loss) => self.etcd().lose(at, loss),
            Fault::Quorum(loss) => self.etcd().lose_quorum(loss),
            Fault::Cut(at) => {
                let (center, machine) = self.line(at);
                machine.cut(center);
            }
            Fault::Deafen(at) => {
                let (center, machine) = self.line(at);
                machine.deafen(center);
            }
        }
    }

    fn mend(&mut self, fault: Fault) {
        match fault {
            Fault::Kill(at) => self.start(at, &[]),
            Fault::KillTwice(at, _) => {
                // It may not have come to that step.
                self.kill(at);
                self.start(at, &[]);
            }
            Fault::Freeze(at) => self.instances[at].signal("CONT"),
            Fault::Member(..) | Fault::Quorum(_) => self.etcd().recover(),
            Fault::Cut(at) | Fault::Deafen(at) => {
                let (center, machine) = self.line(at);
                machine.heal(center);
            }
        }
    }

    fn kill(&mut self, at: usize) {
        self.instances[at].kill9();
        self.scene.doors.set(at, None);
    }

    fn start(&mut self, at: usize, environment: &[(&str, &str)]) {
        let started = self.instances[at].start_with(environment);
        // One that is to die at a step may do that before it is ready.
        match started {
            Ok(()) => self.scene.doors.set(at, Some(self.instances[at].tcp("https"))),
            Err(status) => assert!(!environment.is_empty(), "instance {at} did not start: {status}"),
        }
    }

    fn etcd(&mut self) -> &mut Cluster<'a> {
        self.etcd.as_deref_mut().expect("a member is lost only where there is a cluster")
    }

    fn line(&self, at: usize) -> (&'a Host, &'a Host) {
        let (center, machines) = self.machines.as_ref().expect("an instance is cut off only from a cluster");
        (center, machines[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_every_fault_and_all_of_them_come() {
        let weather = Weather { instances: 2, members: 3, rest: 1000, lasts: 1000 };
        let of = |seed| blows(Random::new(seed), weather).take(300);
        assert!(of(7).eq(of(7)));
        for wanted in ["Kill(", "KillTwice(", "Freeze(", "Member(", "Quorum(", "Cut(", "Deafen("] {
            assert!(of(7).any(|blow| format!("{:?}", blow.fault).starts_with(wanted)), "no {wanted}");
        }
        let alone = Weather { instances: 1, members: 0, ..weather };
        let own = |fault| matches!(fault, Fault::Kill(0) | Fault::KillTwice(0, _) | Fault::Freeze(0));
        assert!(blows(Random::new(7), alone).take(300).all(|blow| own(blow.fault)));
    }
}
