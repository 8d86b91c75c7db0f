//! The rules of hosts and backends: activations, certificates, revocations and identities.

use std::net::IpAddr;
use std::sync::Arc;

use time::OffsetDateTime;

use super::{Decision, Write, recorded_time};
use crate::catalog::entities::{BackendRecord, Certificate, Host};
use crate::catalog::view::View;
use crate::catalog::{Outcome, Refusal};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::mounts::Activation;

impl View {
    pub(super) fn activate(&mut self, name: HostName) -> (Outcome, Vec<Write>) {
        // Of a cloned host, nobody knows which of the machines started its engine.
        if self.is_cloned(&name) || self.counts_of_host(&name).live == 0 {
            return Default::default();
        }
        let mut host = self.host(&name);
        host.activation = Activation(host.activation.0.saturating_add(1));
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    pub(super) fn issue(&mut self, name: HostName, certificate: Certificate) -> (Outcome, Vec<Write>) {
        let mut host = self.host(&name);
        if host.certificates.iter().any(|known| known.serial == certificate.serial) {
            return Default::default();
        }
        host.certificates.reserve_exact(1);
        host.certificates.push(Certificate {
            issued_at: recorded_time(certificate.issued_at),
            not_after: recorded_time(certificate.not_after),
            ..certificate
        });
        // A certificate makes this name a host again, separate from the renamed machine.
        host.renamed = None;
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    pub(super) fn revoke(&mut self, name: HostName, at: OffsetDateTime) -> (Outcome, Vec<Write>) {
        let mut host = self.host(&name);
        for certificate in &mut host.certificates {
            certificate.revoked = true;
        }
        host.revoked_at = Some(recorded_time(at));
        host.machine = None;
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    pub(super) fn seen(&mut self, hosts: Vec<(HostName, OffsetDateTime)>) -> (Outcome, Vec<Write>) {
        let mut writes = Vec::new();
        for (name, at) in hosts {
            let mut host = self.host(&name);
            let at = Some(recorded_time(at));
            // Reports may overtake each other: a host's time never goes back.
            if at > host.last_seen {
                host.last_seen = at;
                writes.push(self.store_host(name, host));
            }
        }
        (Outcome::default(), writes)
    }

    pub(super) fn connected(&mut self, name: HostName, issuer: String) -> (Outcome, Vec<Write>) {
        let Some(known) = self.hosts.get(&name) else { return Default::default() };
        if known.last_issuer.as_ref() == Some(&issuer) {
            return Default::default();
        }
        let host = Host { last_issuer: Some(issuer), ..Host::clone(known) };
        (Outcome::default(), vec![self.store_host(name, host)])
    }

    pub(super) fn called(
        &mut self,
        name: HostName,
        serial: &str,
        from: IpAddr,
        at: OffsetDateTime,
    ) -> (Outcome, Vec<Write>) {
        match self.host(&name).after_call(serial, from, recorded_time(at)) {
            Some(host) => {
                let now = host.cloned.is_some();
                let cloned = (now != self.is_cloned(&name)).then_some(now);
                (Outcome { cloned, ..Outcome::default() }, vec![self.store_host(name, host)])
            }
            None => Default::default(),
        }
    }

    pub(super) fn not_cloned(&mut self, name: HostName) -> (Outcome, Vec<Write>) {
        match self.hosts.get(&name).and_then(|host| host.without_clones()) {
            Some(host) => {
                let outcome = Outcome { cloned: Some(false), ..Outcome::default() };
                (outcome, vec![self.store_host(name, host)])
            }
            None => Default::default(),
        }
    }

    pub(super) fn backend(&mut self, name: BackendName, record: Option<BackendRecord>) -> Decision {
        let Some(record) = record else {
            let known = self.backends.remove(&name).is_some();
            let writes = known.then_some(Write::Backend(name, None)).into_iter().collect();
            return Ok((Outcome::default(), writes));
        };
        let holder = self.backends.iter().find(|(other, known)| **other != name && known.id == record.id);
        if let Some((holder, _)) = holder {
            return Err(Refusal::IdentityTaken(holder.clone()));
        }
        if self.backends.get(&name).is_some_and(|known| **known == record) {
            return Ok(Default::default());
        }
        let record = Arc::new(record);
        self.backends.insert(name.clone(), Arc::clone(&record));
        Ok((Outcome::default(), vec![Write::Backend(name, Some(record))]))
    }

    pub(super) fn host(&self, name: &HostName) -> Host {
        self.hosts.get(name).map(|host| Host::clone(host)).unwrap_or_default()
    }

    pub(super) fn store_host(&mut self, name: HostName, host: Host) -> Write {
        let host = Arc::new(host);
        self.put_host_counted(&name, &host);
        Write::Host(name, host)
    }
}
