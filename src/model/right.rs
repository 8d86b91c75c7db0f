//! What hosts can be given the right to do, and what the configuration says of them.
//!
//! Vocabulary: what follows from it is decided in [`access`](super::access).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub(crate) use super::network::Network;
use crate::model::backend::BackendName;
use crate::model::host::HostName;

/// A right. To see a volume needs none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// To make new volumes.
    Create,
    /// To use volumes.
    Mount,
    /// To remove volumes.
    Remove,
    /// To make directories that are there already into volumes.
    Adopt,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Create, Self::Mount, Self::Remove, Self::Adopt];

    /// Those that a host has of which nothing else is said.
    pub const USUAL: [Self; 3] = [Self::Create, Self::Mount, Self::Remove];

    /// The word in the configuration, which is also the verb of messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Mount => "mount",
            Self::Remove => "remove",
            Self::Adopt => "adopt",
        }
    }

    /// Reads the configuration's word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|right| right.as_str() == text)
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the configuration says of a host, or of all that it does not name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// What it may do; [`Right::USUAL`] where nothing is said.
    pub rights: Option<BTreeSet<Right>>,
    /// The backends that it may use, as far as they allow it; all of them where nothing is said.
    pub backends: Option<BTreeSet<BackendName>>,
    /// The addresses that are all one machine's.
    pub addresses: Vec<Network>,
}

/// The configuration's `hosts`. A host that neither names is not let in anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// The hosts that it names.
    pub named: BTreeMap<HostName, Rule>,
    /// The others: its `"*"`.
    pub rest: Option<Rule>,
}
