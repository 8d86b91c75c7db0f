//! The name of a machine that serves the catalog: chosen once, and kept.
//!
//! Mounts are counted by host, and this machine's own engine is one of the hosts. So its name does not follow the
//! hostname: only an operator who configures another name says that this is still the same machine. The rules here are
//! pure and do no I/O.

use uuid::Uuid;

use super::view::View;
use crate::model::host::HostName;

/// The hostnames of machines that nobody has named. Many machines have them, so they identify none.
const DEFAULT_HOSTNAMES: [&str; 4] = ["localhost", "localhost.localdomain", "localhost4", "localhost6"];

/// The name that a machine asks for when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CandidateName {
    /// The configured name, or the hostname if none is configured.
    pub name: HostName,
    /// True if the name comes from the configuration.
    pub configured: bool,
}

/// The name under which a machine serves, and how it came about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// The name in use from now on.
    pub name: HostName,
    /// The name that the catalog has recorded for this machine; `None` if it has none.
    pub recorded: Option<HostName>,
    /// The hostname, if it differs from the name in use.
    pub differing_hostname: Option<HostName>,
}

impl NodeName {
    /// Returns the recorded name if this name replaces it.
    #[must_use]
    pub fn replaced(&self) -> Option<&HostName> {
        self.recorded.as_ref().filter(|recorded| **recorded != self.name)
    }

    /// Returns true if the name is one that every unnamed machine has.
    #[must_use]
    pub fn is_default_hostname(&self) -> bool {
        DEFAULT_HOSTNAMES.contains(&self.name.as_str())
    }
}

impl CandidateName {
    /// Returns the name of a machine for which the catalog has recorded the name `recorded`, if any.
    #[must_use]
    pub fn resolve(&self, recorded: Option<HostName>) -> NodeName {
        let Self { name: candidate, configured } = self;
        let name = match &recorded {
            Some(recorded) if !configured => recorded.clone(),
            _ => candidate.clone(),
        };
        let differing_hostname = (!configured && name != *candidate).then(|| candidate.clone());
        NodeName { name, recorded, differing_hostname }
    }
}

impl View {
    /// Returns the name that is recorded for a machine.
    #[must_use]
    pub fn name_of(&self, machine: Uuid) -> Option<HostName> {
        self.hosts.iter().find(|(_, host)| host.machine == Some(machine)).map(|(name, _)| name.clone())
    }

    /// Returns the name that a host has now. It differs from `host` if that was the name of a machine that has been
    /// renamed since.
    #[must_use]
    pub fn name_now<'a>(&'a self, host: &'a HostName) -> &'a HostName {
        self.hosts.get(host).and_then(|known| known.renamed.as_ref()).unwrap_or(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::contract::host;

    #[test]
    fn a_name_is_kept_until_another_one_is_configured() {
        for (candidate, configured, recorded, name, replaced, hostname) in [
            ("a", false, None, "a", None, None),
            ("a", true, None, "a", None, None),
            ("a", false, Some("a"), "a", None, None),
            ("b", false, Some("a"), "a", None, Some("b")),
            ("b", true, Some("a"), "b", Some("a"), None),
            ("a", true, Some("a"), "a", None, None),
        ] {
            let node = CandidateName { name: host(candidate), configured }.resolve(recorded.map(host));
            assert_eq!(node.name, host(name), "{candidate:?} {recorded:?}");
            assert_eq!(node.replaced(), replaced.map(host).as_ref(), "{candidate:?} {recorded:?}");
            assert_eq!(node.differing_hostname, hostname.map(host), "{candidate:?} {recorded:?}");
        }
    }
}
