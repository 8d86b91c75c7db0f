//! What each request reveals about its host: when it was seen, with which certificate, and from where.
//!
//! This runs for every request, so it waits for nothing and writes only what is new. The number of writes is bounded,
//! so that neither two engines of one name nor a full disk turn every request into a write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use time::OffsetDateTime;

use super::Service;
use crate::catalog::{Change, Host};
use crate::error::chain;
use crate::host::access::Access;
use crate::host::{Caller, CertificateId};
use crate::model::host::HostName;

/// How many issuers of a host's certificate are recorded between two recordings of the times.
const MAX_ISSUERS: u8 = 4;

/// How many addresses of a host are recorded between two recordings of the times.
const MAX_ADDRESSES: u8 = 16;

/// The hosts that sent a request since the times were last recorded.
#[derive(Debug, Default)]
pub(super) struct LastSeen(Mutex<BTreeMap<HostName, HostActivity>>);

/// What a host did since then.
#[derive(Debug, Clone, Copy)]
struct HostActivity {
    last_request: OffsetDateTime,
    issuers_recorded: u8,
    addresses_recorded: u8,
}

/// The parts of one request that are to be recorded at once.
struct RecordNow {
    host: bool,
    issuer: bool,
    address: bool,
}

impl LastSeen {
    /// Notes a request. A new issuer or address is recorded only within the limits above.
    fn note(&self, host: &HostName, now: OffsetDateTime, new_issuer: bool, new_address: bool) -> RecordNow {
        let mut hosts = self.hosts();
        let is_first = !hosts.contains_key(host);
        let activity = hosts.entry(host.clone()).or_insert(HostActivity {
            last_request: now,
            issuers_recorded: 0,
            addresses_recorded: 0,
        });
        activity.last_request = now;
        let issuer = new_issuer && activity.issuers_recorded < MAX_ISSUERS;
        activity.issuers_recorded += u8::from(issuer);
        let address = new_address && activity.addresses_recorded < MAX_ADDRESSES;
        activity.addresses_recorded += u8::from(address);
        RecordNow { host: is_first, issuer, address }
    }

    fn of(&self, host: &HostName) -> Option<OffsetDateTime> {
        self.hosts().get(host).map(|activity| activity.last_request)
    }

    /// Takes all times, to record them.
    fn take(&self) -> Vec<(HostName, OffsetDateTime)> {
        let hosts = std::mem::take(&mut *self.hosts());
        hosts.into_iter().map(|(host, activity)| (host, activity.last_request)).collect()
    }

    fn hosts(&self) -> MutexGuard<'_, BTreeMap<HostName, HostActivity>> {
        // The map is whole after every statement under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Notes that a host sent a request. Returns the host's new name if it was renamed.
    ///
    /// A host that the catalog does not know yet is recorded at once, so that it can be listed and revoked; the times
    /// of the others are recorded now and then. A new issuer of its certificate is recorded at once, because it tells
    /// who is shut out when a CA goes; so is a new address, because clones are recognised by it.
    pub fn note_seen(&self, caller: &Caller, certified: Option<CertificateId<'_>>) -> Option<HostName> {
        let host = &caller.host;
        let view = self.catalog.view();
        let recorded = view.hosts.get(host);
        let issuer = certified
            .map(|certified| certified.issuer)
            .filter(|issuer| recorded.is_some_and(|host| host.last_issuer.as_deref() != Some(*issuer)));
        let renamed = recorded.and_then(|host| host.renamed.as_ref());
        let call = certified.zip(caller.address).and_then(|(CertificateId { serial, .. }, from)| {
            let name = renamed.unwrap_or(host);
            let from = self.in_force.load().access.address_of(name, from);
            let known = view.hosts.get(name).is_some_and(|host| host.knows_call(serial, from));
            (!known).then_some((name, serial, from))
        });
        let now = OffsetDateTime::now_utc();
        let record = self.last_seen.note(host, now, issuer.is_some(), call.is_some());
        if let Some(issuer) = issuer.filter(|_| record.issuer) {
            self.record(Change::Connected(host.clone(), issuer.to_owned()));
        }
        if record.host && recorded.is_none() {
            self.record(Change::Seen(vec![(host.clone(), now)]));
        }
        if let Some((name, serial, from)) = call.filter(|_| record.address) {
            let serial = serial.to_owned();
            self.record(Change::Called { host: name.clone(), serial, from, at: now });
        }
        renamed.cloned()
    }

    /// Returns when a host last sent a request, as far as this process or the catalog knows.
    #[must_use]
    pub fn last_seen(&self, host: &HostName) -> Option<OffsetDateTime> {
        let recorded = self.catalog.view().hosts.get(host).and_then(|host| host.last_seen);
        self.last_seen.of(host).max(recorded)
    }

    /// Records when hosts were last seen. Nothing depends on it, so a failure is only logged.
    pub async fn write_seen(&self) {
        if self.is_shared() && self.catalog.fault().is_some() {
            // The times are kept until the catalog answers again.
            return;
        }
        let seen = self.last_seen.take();
        if !seen.is_empty()
            && let Err(error) = self.catalog.submit(Change::Seen(seen)).await
        {
            log::error!("when hosts were last seen could not be written: {}", chain(&error));
        }
    }

    /// Clears the clone mark of hosts whose addresses the configuration lists as one machine's.
    pub fn look_at_clones(&self) {
        let in_force = self.in_force.load();
        for (name, host) in &self.catalog.view().hosts {
            if are_one_machines(&in_force.access, name, host) {
                self.record(Change::NotCloned(name.clone()));
            }
        }
    }

    /// Records a change for which nobody waits.
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
                        log::warn!("{}", clone_message(&host, cloned, catalog.view().hosts.get(&host)));
                    }
                }
                Err(error) => log::warn!("that a host was seen could not be written: {}", chain(&error)),
            }
        });
    }
}

/// Returns true if a host is marked as cloned because of addresses that are all one machine's.
fn are_one_machines(access: &Access, name: &HostName, host: &Host) -> bool {
    let Some(cloned) = &host.cloned else { return false };
    let machines: BTreeSet<IpAddr> =
        cloned.addresses.iter().map(|address| access.address_of(name, *address)).collect();
    machines.iter().filter(|address| address.is_ipv4()).count() <= 1
        && machines.iter().filter(|address| address.is_ipv6()).count() <= 1
}

/// Returns the log's message when a host is marked as cloned, or no longer is.
fn clone_message(name: &HostName, cloned: bool, host: Option<&Arc<Host>>) -> String {
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
