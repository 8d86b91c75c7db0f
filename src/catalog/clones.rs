//! Cloned hosts: one certificate that several machines use, recognised by the addresses that it is used from.
//!
//! A certificate that is used from A, then from B, and then from A again belongs to two machines: a host that moved
//! does not go back. Addresses of IPv4 are not compared with those of IPv6, because one machine has both. The rules
//! here are pure and do no I/O.

use std::net::IpAddr;

use time::OffsetDateTime;

use super::entities::{CertificateUse, Cloned, Host};

/// The number of certificates of a host that are followed: those that were used last.
const CERTIFICATES: usize = 4;

/// The number of addresses that are remembered for a certificate.
const ADDRESSES: usize = 8;

impl Cloned {
    /// Returns the addresses as text.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.iter().map(|address| address_text(Some(*address))).collect()
    }
}

impl Host {
    /// Returns true if a call with this certificate from this address changes nothing. Checked for every request.
    #[must_use]
    pub fn knows_call(&self, serial: &str, address: IpAddr) -> bool {
        let last = || {
            let used = self.used.iter().find(|used| used.serial == serial);
            used.and_then(|used| used.addresses.iter().rfind(|known| same_family(**known, address)))
        };
        match &self.cloned {
            Some(cloned) if cloned.serial == serial => {
                cloned.addresses.contains(&address) || cloned.addresses.len() >= ADDRESSES
            }
            Some(cloned) if self.replaces(serial, cloned, address) => false,
            _ => last() == Some(&address),
        }
    }

    /// Returns the host after a call with this certificate from this address; `None` if the call changes nothing.
    #[must_use]
    pub fn after_call(&self, serial: &str, address: IpAddr, at: OffsetDateTime) -> Option<Self> {
        if self.knows_call(serial, address) {
            return None;
        }
        let mut host = self.clone();
        let seen = host.note(serial, address);
        match &mut host.cloned {
            Some(cloned) if cloned.serial == serial => cloned.addresses.push(address),
            Some(cloned) => {
                if self.replaces(serial, cloned, address) {
                    // That machine has its own certificate now.
                    cloned.addresses.retain(|known| *known != address);
                    let left = cloned.addresses.clone();
                    if !left.iter().any(|one| left.iter().any(|two| one != two && same_family(*one, *two))) {
                        host.end_clones();
                    }
                }
            }
            None => {
                if let Some(addresses) = seen {
                    host.cloned = Some(Cloned { serial: serial.to_owned(), since: at, addresses });
                }
            }
        }
        Some(host)
    }

    /// Returns the addresses that its cloned certificate is used from; if it is not cloned, the latest address of each
    /// family that it called from.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        if let Some(cloned) = &self.cloned {
            return cloned.addresses();
        }
        let Some(used) = self.used.last() else { return Vec::new() };
        let latest = |ipv4: bool| used.addresses.iter().rfind(|address| address.is_ipv4() == ipv4);
        let latest = [latest(true), latest(false)].into_iter().flatten();
        // The unspecified address stands for addresses that the operator has listed as one machine's.
        latest.filter(|address| !address.is_unspecified()).map(ToString::to_string).collect()
    }

    /// Returns the host once its addresses are known to be one machine's; `None` if it is not cloned.
    #[must_use]
    pub fn without_clones(&self) -> Option<Self> {
        let cloned = self.cloned.as_ref()?;
        let mut host = self.clone();
        host.used.retain(|used| used.serial != cloned.serial);
        host.end_clones();
        Some(host)
    }

    /// Ends the cloning. Nobody knows which of the mounts so far are stale, because either machine may have made the
    /// engine starts that were counted.
    fn end_clones(&mut self) {
        self.cloned = None;
        self.certain_from = self.activation;
    }

    /// Records the address that a certificate is used from. Returns the addresses used in turn, if this one was used
    /// before and another one of its family since.
    fn note(&mut self, serial: &str, address: IpAddr) -> Option<Vec<IpAddr>> {
        let mut used = match self.used.iter().position(|used| used.serial == serial) {
            Some(place) => self.used.remove(place),
            None => CertificateUse { serial: serial.to_owned(), addresses: Vec::new() },
        };
        let before = used.addresses.iter().position(|known| *known == address);
        let in_turn = before.map(|before| {
            used.addresses.iter().skip(before).copied().filter(|known| same_family(*known, address)).collect()
        });
        used.addresses.retain(|known| *known != address);
        used.addresses.push(address);
        if used.addresses.len() > ADDRESSES {
            used.addresses.remove(0);
        }
        self.used.push(used);
        if self.used.len() > CERTIFICATES {
            self.used.remove(0);
        }
        in_turn
    }

    /// Returns true if a call with another certificate shows that one of the machines has its own certificate now: a
    /// later one, as far as that is known.
    fn replaces(&self, serial: &str, cloned: &Cloned, address: IpAddr) -> bool {
        // Certificates are in the order in which they were issued, also those of the same second.
        let issued = |serial: &str| self.certificates.iter().position(|one| one.serial == serial);
        let later = match (issued(serial), issued(&cloned.serial)) {
            (Some(one), Some(other)) => one > other,
            _ => true,
        };
        serial != cloned.serial && later && cloned.addresses.contains(&address)
    }
}

/// Returns an address as text. The unspecified one stands for those that are listed as one machine's.
#[must_use]
pub(crate) fn address_text(address: Option<IpAddr>) -> String {
    match address {
        Some(listed) if listed.is_unspecified() => "one of those listed".to_owned(),
        Some(address) => address.to_string(),
        None => "a place that is not known".to_owned(),
    }
}

fn same_family(one: IpAddr, other: IpAddr) -> bool {
    one.is_ipv4() == other.is_ipv4()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Certificate;
    use crate::model::mounts::Activation;

    const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn certificate(serial: &str, second: i64) -> Certificate {
        let issued_at = NOW + time::Duration::seconds(second);
        Certificate { serial: serial.into(), issuer: None, issued_at, not_after: NOW, revoked: false }
    }

    /// Returns a host after these calls, each `SERIAL@ADDRESS`.
    fn after(calls: &[&str]) -> Host {
        let certificates = vec![certificate("old", 1), certificate("new", 2), certificate("newer", 3)];
        go_on(Host { certificates, ..Host::default() }, calls)
    }

    fn go_on(host: Host, calls: &[&str]) -> Host {
        calls.iter().fold(host, |host, call| {
            let (serial, address) = call.split_once('@').unwrap();
            let address = address.parse().unwrap();
            let next = host.after_call(serial, address, NOW);
            assert_eq!(next.is_none(), host.knows_call(serial, address), "{call}");
            next.unwrap_or(host)
        })
    }

    fn cloned(host: &Host) -> Vec<String> {
        host.cloned.as_ref().map(Cloned::addresses).unwrap_or_default()
    }

    #[test]
    fn a_certificate_used_in_turn_from_two_addresses_is_cloned_and_a_host_that_moves_is_not() {
        for (calls, expected) in [
            (&["old@10.0.0.1", "old@10.0.0.1"][..], &[][..]),
            (&["old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.2"], &[]),
            (&["old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.3"], &[]),
            (&["old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.1"], &["10.0.0.1", "10.0.0.2"]),
            (&["old@10.0.0.9", "old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.1"], &["10.0.0.1", "10.0.0.2"]),
            (
                &["old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.3", "old@10.0.0.1"],
                &["10.0.0.1", "10.0.0.2", "10.0.0.3"],
            ),
            // Calls over IPv4 and IPv6 may come from one machine.
            (&["old@10.0.0.1", "old@fd00::1", "old@10.0.0.1", "old@fd00::1"], &[]),
            (
                &["old@10.0.0.1", "old@fd00::1", "old@10.0.0.1", "old@fd00::2", "old@fd00::1"],
                &["fd00::1", "fd00::2"],
            ),
            // Each machine has its own certificate.
            (&["old@10.0.0.1", "new@10.0.0.2", "old@10.0.0.1", "new@10.0.0.2"], &[]),
        ] {
            assert_eq!(cloned(&after(calls)), expected, "{calls:?}");
        }
    }

    #[test]
    fn a_third_machine_is_told_and_nothing_more_is_remembered_than_is_needed() {
        let host = after(&["old@10.0.0.1", "old@10.0.0.2", "old@10.0.0.1", "old@10.0.0.3"]);
        assert_eq!(cloned(&host), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let host = (0..40).fold(host, |host, last| go_on(host, &[&format!("old@10.0.1.{last}")]));
        assert_eq!(cloned(&host).len(), ADDRESSES);
        let host = (0..40).fold(host, |host, number| go_on(host, &[&format!("{number}@10.0.1.1")]));
        assert_eq!(host.used.len(), CERTIFICATES);
        let moving = (0..40).fold(after(&[]), |host, last| go_on(host, &[&format!("old@10.0.1.{last}")]));
        assert_eq!((moving.used[0].addresses.len(), cloned(&moving).len()), (ADDRESSES, 0));
    }

    #[test]
    fn it_ends_when_one_machine_uses_a_later_certificate_or_the_addresses_are_one_machines() {
        let twice = &["new@10.0.0.1", "new@10.0.0.2", "new@10.0.0.1"];
        let host = Host { activation: Activation(3), ..after(twice) };
        assert_eq!(cloned(&go_on(host.clone(), &["old@10.0.0.2"])).len(), 2, "an older one is no sign");
        assert_eq!(cloned(&go_on(host.clone(), &["newer@10.0.0.9"])).len(), 2, "that is neither of them");
        let renewed = go_on(host.clone(), &["newer@10.0.0.2"]);
        assert_eq!((cloned(&renewed).len(), renewed.certain_from), (0, Activation(3)));
        let both = go_on(renewed.clone(), &["new@10.0.0.1", "newer@10.0.0.2", "new@10.0.0.1"]);
        assert_eq!(cloned(&both).len(), 0);
        assert_eq!(cloned(&go_on(both, &["new@10.0.0.2", "new@10.0.0.1"])).len(), 2, "it was not done");
        let listed = host.without_clones().unwrap();
        assert_eq!((cloned(&listed).len(), listed.certain_from), (0, Activation(3)));
        assert!(listed.without_clones().is_none());
        let three = go_on(host, &["new@10.0.0.3", "newer@10.0.0.3"]);
        assert_eq!(cloned(&three), ["10.0.0.1", "10.0.0.2"]);
    }
}
