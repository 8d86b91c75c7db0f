//! What a machine that serves the catalog is called: chosen once, and kept.
//!
//! Mounts are counted by host, and this machine's own engine is one of the hosts. So its name does not follow the
//! hostname: only who configures another name means that this is still the same machine. Pure rules without I/O.

use uuid::Uuid;

use super::view::View;
use crate::model::host::HostName;

/// The names of machines that were given none: every machine has them before somebody names it.
const NOBODYS: [&str; 4] = ["localhost", "localhost.localdomain", "localhost4", "localhost6"];

/// What a machine would be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The configured name, or else the hostname.
    pub name: HostName,
    /// Whether it was configured.
    pub configured: bool,
}

/// What a machine is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    /// Its name.
    pub node: HostName,
    /// The name that was kept for it.
    pub kept: Option<HostName>,
    /// The hostname, where it is another one than the name that is kept.
    pub hostname: Option<HostName>,
}

impl Naming {
    /// The name that it gives up.
    #[must_use]
    pub fn given_up(&self) -> Option<&HostName> {
        self.kept.as_ref().filter(|kept| **kept != self.node)
    }

    /// Returns true if it is called as every machine is that nobody named.
    #[must_use]
    pub fn is_nobodys(&self) -> bool {
        NOBODYS.contains(&self.node.as_str())
    }
}

impl Named {
    /// The name of a machine for which this name, if any, is kept.
    #[must_use]
    pub fn naming(&self, kept: Option<HostName>) -> Naming {
        let Self { name, configured } = self;
        let node = match &kept {
            Some(kept) if !configured => kept.clone(),
            _ => name.clone(),
        };
        let hostname = (!configured && node != *name).then(|| name.clone());
        Naming { node, kept, hostname }
    }
}

impl View {
    /// The name that is kept for a machine.
    #[must_use]
    pub fn name_of(&self, machine: Uuid) -> Option<HostName> {
        self.hosts.iter().find(|(_, host)| host.machine == Some(machine)).map(|(name, _)| name.clone())
    }

    /// The name that a host has now: another one than this, if it is a machine's that was named anew.
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
        for (name, configured, kept, node, given_up, hostname) in [
            ("a", false, None, "a", None, None),
            ("a", true, None, "a", None, None),
            ("a", false, Some("a"), "a", None, None),
            ("b", false, Some("a"), "a", None, Some("b")),
            ("b", true, Some("a"), "b", Some("a"), None),
            ("a", true, Some("a"), "a", None, None),
        ] {
            let named = Named { name: host(name), configured };
            let naming = named.naming(kept.map(host));
            assert_eq!(naming.node, host(node), "{named:?} {kept:?}");
            assert_eq!(naming.given_up(), given_up.map(host).as_ref(), "{named:?} {kept:?}");
            assert_eq!(naming.hostname, hostname.map(host), "{named:?} {kept:?}");
        }
    }
}
