//! What is noted of each request: when its host was seen, with which certificate, and from where.
//!
//! Asked for every request, so it waits for nothing and writes only what is new. What it writes is bounded, so that
//! neither two engines of one name nor a full disk make a write of every request.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use time::OffsetDateTime;

use super::Service;
use crate::catalog::{Change, Host};
use crate::error::chain;
use crate::host::access::Access;
use crate::host::{Caller, Certified};
use crate::model::host::HostName;

/// How often the issuer of a host's certificate is recorded between two times when it is written down who was seen.
const ISSUERS: u8 = 4;

/// How often it is recorded then from where a host calls.
const ADDRESSES: u8 = 16;

/// What is noted of a host between two times when that is written down.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noted {
    /// When it last sent a request.
    pub(super) at: OffsetDateTime,
    /// How often the issuer of its certificate was recorded meanwhile.
    issuers: u8,
    /// How often it was recorded meanwhile from where it calls.
    addresses: u8,
}

impl Service {
    /// Notes that a host sent a request, and returns the name that it has by now, if it is another one.
    ///
    /// A host that the catalog does not know yet is recorded at once, so that it can be listed and revoked; the times of
    /// the others are written down now and then. That a certificate has another issuer is recorded at once, because who
    /// is shut out when a CA goes is told by it; and from where it is used, because clones are told by that.
    pub fn note_seen(&self, caller: &Caller, certified: Option<Certified<'_>>) -> Option<HostName> {
        let host = &caller.host;
        let view = self.catalog.view();
        let recorded = view.hosts.get(host);
        let issuer = certified
            .map(|certified| certified.issuer)
            .filter(|issuer| recorded.is_some_and(|host| host.last_issuer.as_deref() != Some(*issuer)));
        let renamed = recorded.and_then(|host| host.renamed.as_ref());
        let call = certified.zip(caller.address).and_then(|(Certified { serial, .. }, from)| {
            let name = renamed.unwrap_or(host);
            let from = self.in_force.load().access.address_of(name, from);
            let known = view.hosts.get(name).is_some_and(|host| host.knows_call(serial, from));
            (!known).then_some((name, serial, from))
        });
        let now = OffsetDateTime::now_utc();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = !seen.contains_key(host);
        let noted = seen.entry(host.clone()).or_insert(Noted { at: now, issuers: 0, addresses: 0 });
        noted.at = now;
        let issuer = issuer.filter(|_| noted.issuers < ISSUERS);
        noted.issuers += u8::from(issuer.is_some());
        let call = call.filter(|_| noted.addresses < ADDRESSES);
        noted.addresses += u8::from(call.is_some());
        drop(seen);
        if let Some(issuer) = issuer {
            self.record(Change::Connected(host.clone(), issuer.to_owned()));
        }
        if first && recorded.is_none() {
            self.record(Change::Seen(vec![(host.clone(), now)]));
        }
        if let Some((name, serial, from)) = call {
            let serial = serial.to_owned();
            self.record(Change::Called { host: name.clone(), serial, from, at: now });
        }
        renamed.cloned()
    }

    /// Ends what is said of cloned hosts whose addresses the configuration lists by now as one machine's.
    pub fn look_at_clones(&self) {
        let in_force = self.in_force.load();
        for (name, host) in &self.catalog.view().hosts {
            if are_one_machines(&in_force.access, name, host) {
                self.record(Change::NotCloned(name.clone()));
            }
        }
    }

    /// Records what nobody waits for.
    fn record(&self, change: Change) {
        let host = match &change {
            Change::Called { host, .. } | Change::NotCloned(host) => Some(host.clone()),
            _ => None,
        };
        let (catalog, recorded) = (Arc::clone(&self.catalog), self.catalog.submit(change));
        tokio::spawn(async move {
            match recorded.await {
                Ok(outcome) => {
                    if let Some((host, cloned)) = host.zip(outcome.cloned) {
                        log::warn!("{}", told(&host, cloned, catalog.view().hosts.get(&host)));
                    }
                }
                Err(error) => log::warn!("that a host was seen could not be written: {}", chain(&error)),
            }
        });
    }
}

/// Returns true if a host counts as cloned by addresses that are all one machine's.
fn are_one_machines(access: &Access, name: &HostName, host: &Host) -> bool {
    let Some(cloned) = &host.cloned else { return false };
    let places: BTreeSet<IpAddr> =
        cloned.addresses.iter().map(|address| access.address_of(name, *address)).collect();
    places.iter().filter(|place| place.is_ipv4()).count() <= 1
        && places.iter().filter(|place| place.is_ipv6()).count() <= 1
}

/// What the log is told, once.
fn told(name: &HostName, cloned: bool, host: Option<&Arc<Host>>) -> String {
    let addresses = host.and_then(|host| host.cloned.as_ref()).map(|cloned| cloned.addresses().join(", "));
    match (cloned, addresses) {
        (true, addresses) => format!(
            "host {name} is cloned: its certificate is used from {} in turn. None of its mounts is called stale, and an \
             exclusive volume that one of them has mounted is not given to the other, until \"addresses\" of {name} in \
             \"hosts\" lists them as one machine's, or one of the machines uses a certificate of its own (`volhost host \
             renew {name}`; one that is to be another host is let in by `volhost host add` under another name)",
            addresses.unwrap_or_else(|| "several addresses".into())
        ),
        (false, _) => format!(
            "host {name} does not count as cloned any more; which of its mounts so far are stale is not known, so they \
             are not called so. Machines that have this name are one host: each other one is better let in under a name \
             of its own"
        ),
    }
}
