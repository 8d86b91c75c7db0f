//! The rights that hosts can be given, and the configuration's rules about hosts.
//!
//! Only vocabulary: `host::access` decides what follows from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub(crate) use super::network::Network;
use crate::model::backend::BackendName;
use crate::model::host::HostName;

/// A right. Seeing a volume needs none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Right {
    /// The right to make new volumes.
    Create,
    /// The right to use volumes.
    Mount,
    /// The right to remove volumes.
    Remove,
    /// The right to make existing directories into volumes.
    Adopt,
}

impl Right {
    /// Every right.
    pub const ALL: [Self; 4] = [Self::Create, Self::Mount, Self::Remove, Self::Adopt];

    /// The rights of a host for which the configuration gives none.
    pub const USUAL: [Self; 3] = [Self::Create, Self::Mount, Self::Remove];

    /// Returns the word in the configuration, which is also the verb of messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Mount => "mount",
            Self::Remove => "remove",
            Self::Adopt => "adopt",
        }
    }

    /// Parses the configuration's word.
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

/// The configuration's rule for a host, or for all hosts that it does not name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// The rights of the host; [`Right::USUAL`] if none are given.
    pub rights: Option<BTreeSet<Right>>,
    /// The backends that it may use, as far as they allow it; all of them if none are given.
    pub backends: Option<BTreeSet<BackendName>>,
    /// The addresses that belong to one machine.
    pub addresses: Vec<Network>,
}

/// The configuration's `hosts`. A host that neither field covers is not let in anywhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listed {
    /// The rules of the hosts that it names.
    pub named: BTreeMap<HostName, Rule>,
    /// The rule of the others: its `"*"`.
    pub rest: Option<Rule>,
}
