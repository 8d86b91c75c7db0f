//! What clients will ask for, and what will be broken when: all of it told by the seed, whatever is answered.
//!
//! There are few volumes, hosts and IDs, so that operations meet; and a client mostly ends what it began, so that
//! volumes are removed now and then. Often it mounts again what it holds, as `docker cp` does with a running container.

use std::time::Duration;

use super::model::Access;
use super::record::Call;
use crate::harness::random::Random;

/// How many volumes' names there are.
pub(super) const VOLUMES: usize = 5;

/// How many mount IDs a host has.
const IDS: u64 = 2;

/// One request to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    /// Which instance is asked.
    pub instance: usize,
    /// For what.
    pub call: Call,
    /// Of which volume.
    pub volume: usize,
    /// How long the client rests before.
    pub pause: Duration,
}

/// The requests of one client, without end.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    random: Random,
    instances: u64,
    home: usize,
    pause: u64,
    /// What the client has asked to mount and not to unmount.
    held: Vec<(usize, u8)>,
}

impl Plan {
    /// The plan of a client that mostly asks one of several instances, and rests up to `pause` microseconds between its
    /// requests.
    pub(super) fn new(random: Random, client: usize, instances: usize, pause: u64) -> Self {
        Self { random, instances: instances as u64, home: client % instances, pause, held: Vec::new() }
    }

    fn below(&mut self, bound: u64) -> usize {
        usize::try_from(self.random.below(bound)).expect("a bound of this test is small")
    }

    fn mount(&mut self, volume: usize) -> (usize, Call) {
        if !self.held.is_empty() && self.below(3) == 0 {
            let at = self.below(self.held.len() as u64);
            let (volume, id) = self.held[at];
            self.held.push((volume, id));
            return (volume, Call::Mount(id));
        }
        let id = if self.below(4) == 0 { self.below(IDS) } else { 0 };
        let id = u8::try_from(id).expect("there are few IDs");
        self.held.push((volume, id));
        (volume, Call::Mount(id))
    }

    fn unmount(&mut self, volume: usize) -> (usize, Call) {
        if self.held.is_empty() || self.below(12) == 0 {
            return (volume, Call::Unmount(u8::try_from(self.below(IDS)).expect("there are few IDs")));
        }
        let at = self.below(self.held.len() as u64);
        let (volume, id) = self.held.swap_remove(at);
        (volume, Call::Unmount(id))
    }
}

impl Iterator for Plan {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        let pause = Duration::from_micros(self.random.below(self.pause));
        let instance = if self.below(4) == 0 { self.below(self.instances) } else { self.home };
        let volume = self.below(VOLUMES as u64);
        // Who holds much lets go before it takes more.
        let (volume, call) = match (self.below(100), self.held.len()) {
            (0..=19, _) => {
                let access = self.random.pick(&[
                    Access::Unsaid,
                    Access::Unsaid,
                    Access::Shared,
                    Access::Exclusive,
                    Access::Exclusive,
                ]);
                (volume, Call::Create(access))
            }
            (20..=39, 0..=1) | (20..=24, 2..=3) => self.mount(volume),
            (20..=54, _) => self.unmount(volume),
            (55..=76, _) => (volume, Call::Remove),
            (77..=90, _) => (volume, Call::Get),
            (91..=94, _) => (volume, Call::Path),
            _ => (volume, Call::List),
        };
        Some(Planned { instance, call, volume, pause })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_tells_every_request_and_all_of_them_come() {
        let plan = || Plan::new(Random::new(7), 1, 2, 1000).take(2000);
        assert!(plan().eq(plan()));
        for verb in ["Create", "Mount", "Unmount", "Remove", "Get", "Path", "List"] {
            assert!(plan().any(|planned| planned.call.verb() == verb), "no {verb}");
        }
        assert!(plan().any(|planned| planned.instance == 0) && plan().any(|planned| planned.instance == 1));
        assert!(!Plan::new(Random::new(8), 1, 2, 1000).take(2000).eq(plan()));
    }
}
