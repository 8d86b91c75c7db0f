//! The rules of access: the backends that are open to a host, and its rights there.
//!
//! These are pure rules over names: nothing here knows a volume, a certificate or a connection. What a host
//! may *see* also depends on the volumes that it already knows, which the volume service adds.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use wildmatch::WildMatch;

use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::right::{Listed, Right, Rule};

/// Host names and globs (`web1`, `web*`, `*`), matched as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Hosts(Vec<WildMatch>);

impl Hosts {
    /// Returns the hosts that match one of these names or globs; no host if there are no patterns.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Self {
        Self(
            patterns
                .into_iter()
                .map(|pattern| WildMatch::new(&pattern.as_ref().to_ascii_lowercase()))
                .collect(),
        )
    }

    /// Returns true if `host` is one of them.
    #[must_use]
    pub fn include(&self, host: &HostName) -> bool {
        self.0.iter().any(|pattern| pattern.matches(host.as_str()))
    }
}

/// A request of a host that the rules judge.
#[derive(Debug, Clone, Copy)]
pub struct AccessRequest<'a> {
    /// The host that asks.
    pub host: &'a HostName,
    /// The backend that it wants to use.
    pub backend: &'a BackendName,
    /// The right that it needs.
    pub right: Right,
    /// True if the volume is for one host at a time.
    pub exclusive: bool,
}

/// Reasons why access is denied, each the end of a sentence that begins with the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The configuration does not list the host.
    #[error("the `hosts` of the configuration name neither it nor \"*\"")]
    NotListed,
    /// The configuration allows the host only other backends.
    #[error("its `backends` in the `hosts` of the configuration do not name that one")]
    OtherBackends,
    /// The backend is not open to the host.
    #[error("the `hosts` of the backend do not name it")]
    OtherHosts,
    /// The host lacks the right.
    #[error("its `rights` in the `hosts` of the configuration lack \"{0}\"")]
    NoRight(Right),
    /// No certificate proves who the host is.
    #[error(
        "no certificate says who it is, and only the name \"anonymous\" itself in the `hosts` of the configuration \
         allows that"
    )]
    Unproven,
}

/// The rules in force.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Access {
    listed: Option<Listed>,
    backends: BTreeMap<BackendName, Hosts>,
}

impl Access {
    /// Returns the rules of a configuration. `listed` are its `hosts`; if it has none, every host has the
    /// usual rights. `backends` are the backends that name their hosts; the others are open to every listed
    /// host.
    #[must_use]
    pub fn new(listed: Option<Listed>, backends: BTreeMap<BackendName, Hosts>) -> Self {
        Self { listed, backends }
    }

    /// Returns true if a backend is open to a host: it sees the volumes there, whatever it may do with them.
    #[must_use]
    pub fn is_open(&self, backend: &BackendName, host: &HostName) -> bool {
        self.rule(backend, host).is_ok()
    }

    /// Returns true if the configuration lists this host, or lists none at all.
    #[must_use]
    pub fn is_listed(&self, host: &HostName) -> bool {
        self.listed.as_ref().is_none_or(|listed| listed.rest.is_some() || listed.named.contains_key(host))
    }

    /// Decides whether a host may do what it asks for.
    ///
    /// A host that only plain TCP identifies may neither remove a volume nor use one that is for one host at
    /// a time, because everybody on this machine shares the name `anonymous`. The configuration can allow it
    /// by listing `anonymous` by name.
    pub fn check(&self, ask: AccessRequest<'_>) -> Result<(), Denied> {
        let AccessRequest { host, backend, right, exclusive } = ask;
        let rule = self.rule(backend, host)?;
        let has = match rule.and_then(|rule| rule.rights.as_ref()) {
            Some(rights) => rights.contains(&right),
            None => Right::USUAL.contains(&right),
        };
        if !has {
            return Err(Denied::NoRight(right));
        }
        let by_name = self.listed.as_ref().is_some_and(|listed| listed.named.contains_key(host));
        if host.is_anonymous() && !by_name && (exclusive || right == Right::Remove) {
            return Err(Denied::Unproven);
        }
        Ok(())
    }

    /// Returns the address under which calls of a host from this address are recorded. For addresses that the
    /// configuration lists as one machine's it is the unspecified address of their family, from which nobody
    /// can call.
    #[must_use]
    pub fn address_of(&self, host: &HostName, from: IpAddr) -> IpAddr {
        let Some(Listed { named, rest }) = &self.listed else { return from };
        let Some(rule) = named.get(host).or(rest.as_ref()) else { return from };
        if !rule.addresses.iter().any(|network| network.contains(from)) {
            return from;
        }
        match from {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Returns the configured rule of a host to which this backend is open; `None` if the configuration has
    /// no rules for hosts.
    fn rule(&self, backend: &BackendName, host: &HostName) -> Result<Option<&Rule>, Denied> {
        let rule = match &self.listed {
            None => None,
            Some(Listed { named, rest }) => Some(named.get(host).or(rest.as_ref()).ok_or(Denied::NotListed)?),
        };
        let backends = rule.and_then(|rule| rule.backends.as_ref());
        if backends.is_some_and(|backends| !backends.contains(backend)) {
            return Err(Denied::OtherBackends);
        }
        if self.backends.get(backend).is_some_and(|hosts| !hosts.include(host)) {
            return Err(Denied::OtherHosts);
        }
        Ok(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str) -> BackendName {
        BackendName::parse(name).unwrap()
    }

    fn host(name: &str) -> HostName {
        if name == "anonymous" { HostName::anonymous() } else { HostName::parse(name).unwrap() }
    }

    fn rule(rights: Option<&[Right]>, backends: Option<&[&str]>) -> Rule {
        Rule {
            rights: rights.map(|rights| rights.iter().copied().collect()),
            backends: backends.map(|names| names.iter().map(|name| backend(name)).collect()),
            addresses: Vec::new(),
        }
    }

    /// Returns the rules of entries like the configuration's, in which `fast` is open to hosts that match
    /// `globs`.
    fn access(hosts: Option<&[(&str, Rule)]>, globs: Option<&[&str]>) -> Access {
        let listed = hosts.map(|hosts| Listed {
            named: hosts
                .iter()
                .filter(|(name, _)| *name != "*")
                .map(|(name, rule)| (host(name), rule.clone()))
                .collect(),
            rest: hosts.iter().find(|(name, _)| *name == "*").map(|(_, rule)| rule.clone()),
        });
        Access::new(listed, globs.map(|globs| (backend("fast"), Hosts::new(globs))).into_iter().collect())
    }

    #[test]
    fn a_backend_is_open_to_listed_hosts_that_its_own_list_names() {
        type Case<'a> = (Option<&'a [&'a str]>, Option<&'a [&'a str]>, Result<(), Denied>);
        let cases: &[Case<'_>] = &[
            (None, None, Ok(())),
            (None, Some(&["web*"]), Ok(())),
            (None, Some(&["WEB1"]), Ok(())),
            (None, Some(&["db*", "web2"]), Err(Denied::OtherHosts)),
            (None, Some(&["web"]), Err(Denied::OtherHosts)),
            (None, Some(&[]), Err(Denied::OtherHosts)),
            (Some(&["web1"]), None, Ok(())),
            (Some(&["*"]), None, Ok(())),
            (Some(&["db1"]), None, Err(Denied::NotListed)),
            (Some(&[]), None, Err(Denied::NotListed)),
            (Some(&["db1"]), Some(&["*"]), Err(Denied::NotListed)),
            (Some(&["web1"]), Some(&["db1"]), Err(Denied::OtherHosts)),
        ];
        for (listed, globs, expected) in cases {
            let hosts: Option<Vec<_>> =
                listed.map(|names| names.iter().map(|name| (*name, Rule::default())).collect());
            let access = access(hosts.as_deref(), *globs);
            let (fast, web1) = (backend("fast"), host("web1"));
            assert_eq!(
                access.rule(&fast, &web1).map(drop),
                *expected,
                "listed {listed:?}, backend {globs:?}"
            );
            assert_eq!(access.is_open(&fast, &web1), expected.is_ok());
        }
    }

    #[test]
    fn rights_are_the_usual_ones_or_those_of_the_hosts_own_entry() {
        use Right::{Adopt, Create, Mount, Remove};
        let hosts = [
            ("web1", Rule::default()),
            ("web2", rule(Some(&[Mount]), None)),
            ("web3", rule(Some(&[]), None)),
            ("web4", rule(Some(&[Create, Adopt]), Some(&["fast"]))),
            ("web5", rule(None, Some(&["slow"]))),
            ("web6", rule(None, Some(&[]))),
            ("*", rule(Some(&[Mount, Remove]), Some(&["fast"]))),
        ];
        type Allowed = Result<&'static [Right], Denied>;
        let cases: &[(&str, &str, Allowed)] = &[
            ("web1", "fast", Ok(&[Create, Mount, Remove])),
            ("web1", "slow", Ok(&[Create, Mount, Remove])),
            ("web2", "fast", Ok(&[Mount])),
            ("web3", "fast", Ok(&[])),
            ("web4", "fast", Ok(&[Create, Adopt])),
            ("web4", "slow", Err(Denied::OtherBackends)),
            ("web5", "slow", Ok(&[Create, Mount, Remove])),
            ("web5", "fast", Err(Denied::OtherBackends)),
            ("web6", "fast", Err(Denied::OtherBackends)),
            ("web7", "fast", Ok(&[Mount, Remove])),
            ("web7", "slow", Err(Denied::OtherBackends)),
            ("anonymous", "fast", Ok(&[Mount])),
        ];
        let access = access(Some(&hosts), None);
        for (name, place, expected) in cases {
            let (host, place) = (host(name), backend(place));
            for right in Right::ALL {
                let told =
                    access.check(AccessRequest { host: &host, backend: &place, right, exclusive: false });
                let expected = match expected {
                    Ok(rights) if rights.contains(&right) => Ok(()),
                    Ok(_) if *name == "anonymous" && right == Remove => Err(Denied::Unproven),
                    Ok(_) => Err(Denied::NoRight(right)),
                    Err(closed) => Err(closed.clone()),
                };
                assert_eq!(told, expected, "{name} {right} on {place}");
            }
        }
    }

    #[test]
    fn callers_without_a_certificate_may_less_unless_they_are_listed_by_their_reserved_name() {
        let nobody = HostName::anonymous();
        let fast = backend("fast");
        let nothing_said = access(None, None);
        let all_listed = access(Some(&[("*", Rule::default())]), None);
        let by_name = access(Some(&[("anonymous", Rule::default())]), None);
        let all_rights = access(Some(&[("*", rule(Some(&Right::ALL), None))]), None);
        type Case<'a> = (&'a Access, Right, bool, Result<(), Denied>);
        let cases: &[Case<'_>] = &[
            (&nothing_said, Right::Create, false, Ok(())),
            (&nothing_said, Right::Mount, false, Ok(())),
            (&nothing_said, Right::Remove, false, Err(Denied::Unproven)),
            (&nothing_said, Right::Create, true, Err(Denied::Unproven)),
            (&nothing_said, Right::Mount, true, Err(Denied::Unproven)),
            (&nothing_said, Right::Adopt, false, Err(Denied::NoRight(Right::Adopt))),
            (&all_listed, Right::Remove, false, Err(Denied::Unproven)),
            (&all_rights, Right::Remove, false, Err(Denied::Unproven)),
            (&all_rights, Right::Adopt, false, Ok(())),
            (&by_name, Right::Remove, false, Ok(())),
            (&by_name, Right::Remove, true, Ok(())),
            (&by_name, Right::Mount, true, Ok(())),
        ];
        for (number, (access, right, exclusive, expected)) in cases.iter().enumerate() {
            let ask = AccessRequest { host: &nobody, backend: &fast, right: *right, exclusive: *exclusive };
            assert_eq!(access.check(ask), *expected, "case {number}");
        }
        assert!(access(None, Some(&["anonymous"])).is_open(&fast, &nobody));
        assert!(!access(None, Some(&["web*"])).is_open(&fast, &nobody));
        let proven = host("web1");
        let ask = AccessRequest { host: &proven, backend: &fast, right: Right::Remove, exclusive: true };
        assert_eq!(nothing_said.check(ask), Ok(()));
    }
}
