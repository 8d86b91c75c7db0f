//! What a volume's name stands for, and what each operation makes of it: the whole of what is promised of operations,
//! in the fewest words.
//!
//! Names are independent of each other, so this is the world of one name. It knows no instance, no time and no fault:
//! those are `judge`'s.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// What is true of one name: nothing, or a volume.
pub(super) type World = Option<Volume>;

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Volume {
    /// What its Create said of who may use it.
    pub access: Access,
    /// How often each host has mounted it under each ID; no count is zero.
    pub mounts: Mounts,
}

/// Mounts: how often, by host and ID.
pub(super) type Mounts = BTreeMap<(usize, u8), u32>;

/// The one option of Create that matters to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) enum Access {
    /// It is not said: any number of hosts.
    Unsaid,
    /// Said to be any number of hosts.
    Shared,
    /// One host at a time.
    Exclusive,
}

/// What was done to the name, or seen of it. An answer that tells something is a sight: it changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Deed {
    /// A Create that was answered well.
    Create(Access),
    /// A Mount that was answered well.
    Mount(usize, u8),
    /// An Unmount that was answered well.
    Unmount(usize, u8),
    /// A Remove that was answered well.
    Remove,
    /// What somebody was told.
    Look(Sight),
}

/// What is told of a name without changing it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Sight {
    /// There is no volume.
    Absent,
    /// There is one.
    Present,
    /// There is one, with that many entries in its ledger, of these hosts.
    Used(usize, BTreeSet<usize>),
    /// There is one, and somebody has mounted it: a refused Remove.
    Mounted,
    /// There is one, exclusive, and another host than this has mounted it: a refused Mount.
    Held(usize),
    /// There is one, created with other options than these: a refused Create.
    Different(Access),
    /// All of it.
    Exactly(World),
}

impl Deed {
    /// What it makes of a world; nothing where it could not have been answered so.
    pub(super) fn after(&self, world: &World) -> Option<World> {
        match (self, world) {
            (Self::Create(access), None) => Some(Some(Volume { access: *access, mounts: Mounts::new() })),
            (Self::Create(asked), Some(volume)) => volume.repeats(*asked).then(|| world.clone()),
            (Self::Mount(..), None) => None,
            (Self::Mount(host, id), Some(volume)) => {
                let mut volume = volume.clone();
                *volume.mounts.entry((*host, *id)).or_default() += 1;
                (!volume.is_held_against(*host)).then_some(Some(volume))
            }
            (Self::Unmount(..), None) => Some(None),
            (Self::Unmount(host, id), Some(volume)) => {
                let mut volume = volume.clone();
                if let Some(count) = volume.mounts.get_mut(&(*host, *id)) {
                    *count -= 1;
                }
                volume.mounts.retain(|_, count| *count > 0);
                Some(Some(volume))
            }
            (Self::Remove, None) => Some(None),
            (Self::Remove, Some(volume)) => volume.mounts.is_empty().then_some(None),
            (Self::Look(sight), world) => sight.is_of(world).then(|| world.clone()),
        }
    }
}

impl Volume {
    /// Whether a Create with this option is a repetition: only what is said is compared.
    fn repeats(&self, asked: Access) -> bool {
        asked == Access::Unsaid || asked == self.access
    }

    /// Whether it is exclusive and another host has it.
    fn is_held_against(&self, host: usize) -> bool {
        self.access == Access::Exclusive && self.mounts.keys().any(|(holder, _)| *holder != host)
    }

    fn hosts(&self) -> BTreeSet<usize> {
        self.mounts.keys().map(|(host, _)| *host).collect()
    }
}

impl Sight {
    /// Whether this can be seen of that world.
    pub(super) fn is_of(&self, world: &World) -> bool {
        match (self, world) {
            (Self::Absent, world) => world.is_none(),
            (Self::Exactly(expected), world) => expected == world,
            (_, None) => false,
            (Self::Present, Some(_)) => true,
            (Self::Used(entries, hosts), Some(volume)) => {
                volume.mounts.len() == *entries && volume.hosts() == *hosts
            }
            (Self::Mounted, Some(volume)) => !volume.mounts.is_empty(),
            (Self::Held(host), Some(volume)) => volume.is_held_against(*host),
            (Self::Different(asked), Some(volume)) => !volume.repeats(*asked),
        }
    }
}
