//! The hosts that have a volume mounted, for the messages that refuse it to others.

use std::collections::BTreeMap;
use std::fmt;

use crate::catalog::{View, Volume};
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::timestamp::rfc3339;

/// The mounts of a volume, each with true if it is stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders(Vec<(Mount, bool)>);

impl Holders {
    /// Returns the holders of a volume in a view.
    pub(super) fn of(volume: &Volume, view: &View) -> Self {
        Self(volume.mounts.iter().map(|mount| (mount.clone(), view.stale(mount))).collect())
    }

    /// Returns the command by which the operator releases the volume `name` from the first of its hosts.
    pub(super) fn release(&self, name: &str) -> String {
        let host = self.0.first().map_or("HOST", |(mount, _)| mount.host.as_str());
        let alive = self.0.iter().any(|(mount, stale)| mount.host.as_str() == host && !stale);
        format!("volhost mount release {name} {host}{}", if alive { " --all" } else { "" })
    }
}

/// The number of mounts of one host that a message names.
const MAX_SHOWN: usize = 8;

impl fmt::Display for Holders {
    /// Writes every host with the IDs of its first mounts, their times, and whether they are stale.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hosts: BTreeMap<&HostName, Vec<&(Mount, bool)>> = BTreeMap::new();
        for entry in &self.0 {
            hosts.entry(&entry.0.host).or_default().push(entry);
        }
        for (index, (host, entries)) in hosts.iter().enumerate() {
            write!(f, "{}host {host} (", if index > 0 { ", " } else { "" })?;
            for (index, (Mount { id, count, since, .. }, stale)) in entries.iter().take(MAX_SHOWN).enumerate()
            {
                let short: String = id.as_str().chars().take(12).collect();
                write!(f, "{}mount {short}", if index > 0 { "; " } else { "" })?;
                if *count > 1 {
                    write!(f, " {count} times")?;
                }
                write!(f, " since {}{}", rfc3339(*since), if *stale { ", stale" } else { "" })?;
            }
            match entries.len() {
                many if many > MAX_SHOWN => write!(f, "; and {} more)", many - MAX_SHOWN)?,
                _ => f.write_str(")")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;
    use crate::model::mounts::Activation;
    use crate::model::volume::MountId;

    fn mount(host: &str, id: &str, count: u32) -> Mount {
        Mount {
            host: HostName::parse(host).unwrap(),
            id: MountId::parse(id).unwrap(),
            activation: Activation(1),
            count,
            since: OffsetDateTime::UNIX_EPOCH,
            unmounts: 0,
            address: None,
        }
    }

    #[test]
    fn every_host_is_named_with_its_mounts() {
        let id = "041ac58588d957beba7ce891ebf9143cdda1b5e06acf3c8b186ca45d57613a7b";
        let holders = Holders(vec![
            (mount("web1", id, 2), true),
            (mount("web2", id, 1), false),
            (mount("web1", "b", 1), false),
        ]);
        assert_eq!(
            holders.to_string(),
            "host web1 (mount 041ac58588d9 2 times since 1970-01-01T00:00:00Z, stale; mount b since \
             1970-01-01T00:00:00Z), host web2 (mount 041ac58588d9 since 1970-01-01T00:00:00Z)"
        );
        assert_eq!(holders.release("db"), "volhost mount release db web1 --all");
        let stale = Holders(vec![(mount("web1", id, 2), true), (mount("web2", id, 1), false)]);
        assert_eq!(stale.release("db"), "volhost mount release db web1");
    }

    #[test]
    fn of_many_mounts_the_first_are_told_and_of_many_hosts_all() {
        let many = Holders((0..10).map(|number| (mount("web1", &format!("c{number}"), 1), false)).collect());
        assert!(many.to_string().ends_with("mount c7 since 1970-01-01T00:00:00Z; and 2 more)"), "{many}");
        let hosts = Holders((0..200).map(|number| (mount(&format!("w{number}"), "x", 1), false)).collect());
        assert_eq!(hosts.to_string().matches("host w").count(), 200);
    }
}
