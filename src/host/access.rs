//! Which hosts may come in, and which backends are open to them.
//!
//! Pure rules over names: nothing here knows a volume, a certificate or a connection. What a host may *see* also
//! depends on what it already knows, which the volume service adds.

use std::collections::BTreeMap;

use wildmatch::WildMatch;

use crate::backend::name::BackendName;
use crate::host::name::HostName;

/// Host names and globs (`web1`, `web*`, `*`), matched as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Hosts(Vec<WildMatch>);

impl Hosts {
    /// Hosts that match one of these names or globs; none, where there is no pattern.
    pub fn new<P: AsRef<str>>(patterns: impl IntoIterator<Item = P>) -> Self {
        Self(
            patterns
                .into_iter()
                .map(|pattern| WildMatch::new(&pattern.as_ref().to_ascii_lowercase()))
                .collect(),
        )
    }

    /// Whether `host` is one of them.
    #[must_use]
    pub fn include(&self, host: &HostName) -> bool {
        self.0.iter().any(|pattern| pattern.matches(host.as_str()))
    }
}

/// The rules in force: who is listed, and for each backend which hosts it is open to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Access {
    listed: Option<Hosts>,
    backends: BTreeMap<BackendName, Hosts>,
}

impl Access {
    /// Rules from the configuration: `listed` are the names of its `hosts` (everybody, where it has none), and
    /// `backends` the backends that name their hosts (the others are open to every listed host).
    #[must_use]
    pub fn new(listed: Option<Hosts>, backends: BTreeMap<BackendName, Hosts>) -> Self {
        Self { listed, backends }
    }

    /// Whether `host` may use `backend`.
    #[must_use]
    pub fn open(&self, backend: &BackendName, host: &HostName) -> bool {
        self.listed.as_ref().is_none_or(|hosts| hosts.include(host))
            && self.backends.get(backend).is_none_or(|hosts| hosts.include(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(listed: Option<&[&str]>, backend: Option<&[&str]>, host: &HostName) -> bool {
        let fast = BackendName::parse("fast").unwrap();
        let backends = backend.map(|globs| (fast.clone(), Hosts::new(globs))).into_iter().collect();
        Access::new(listed.map(Hosts::new), backends).open(&fast, host)
    }

    #[test]
    fn a_backend_is_open_to_listed_hosts_that_its_own_list_names() {
        let web1 = HostName::parse("web1").unwrap();
        type Case<'a> = (Option<&'a [&'a str]>, Option<&'a [&'a str]>, bool);
        let cases: &[Case<'_>] = &[
            (None, None, true),
            (None, Some(&["web*"]), true),
            (None, Some(&["WEB1"]), true),
            (None, Some(&["db*", "web2"]), false),
            (None, Some(&["web"]), false),
            (None, Some(&[]), false),
            (Some(&["web1"]), None, true),
            (Some(&["*"]), None, true),
            (Some(&["db1"]), None, false),
            (Some(&["db1"]), Some(&["*"]), false),
            (Some(&["web1"]), Some(&["db1"]), false),
        ];
        for (listed, backend, expected) in cases {
            assert_eq!(open(*listed, *backend, &web1), *expected, "listed {listed:?}, backend {backend:?}");
        }
    }

    #[test]
    fn callers_without_a_certificate_are_matched_by_their_reserved_name() {
        let nobody = HostName::anonymous();
        assert!(open(None, None, &nobody));
        assert!(open(None, Some(&["anonymous"]), &nobody));
        assert!(!open(None, Some(&["web*"]), &nobody));
    }
}
