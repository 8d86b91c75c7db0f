//! Addresses that belong to one machine: single ones, and networks such as `10.0.0.0/24`.
//!
//! Pure rules over numbers.

use std::fmt;
use std::net::IpAddr;

/// A network, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    first: IpAddr,
    length: u8,
}

/// Why a text is neither an address nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no address: it takes one such as \"10.0.0.7\" or \"fd00::7\", or a network such as \"10.0.0.0/24\""
)]
pub struct InvalidNetwork {
    text: String,
}

impl Network {
    /// Parses an address, or a network in CIDR notation. Bits beyond the network's length count as zero.
    pub fn parse(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork { text: text.chars().take(64).collect() };
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address = address.parse::<IpAddr>().map_err(|_| invalid())?.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let length = match length {
            // Neither a sign nor leading zeros are allowed.
            Some(length) => {
                length.parse::<u8>().ok().filter(|number| number.to_string() == length).ok_or_else(invalid)?
            }
            None => most,
        };
        if length > most {
            return Err(invalid());
        }
        Ok(Self { first: masked(address, length), length })
    }

    /// Returns true if the address lies in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.length) == self.first
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_its_addresses_and_no_others() {
        for (text, inside, outside) in [
            ("10.0.0.7", &["10.0.0.7"][..], &["10.0.0.8", "::ffff:0:1", "fd00::7"][..]),
            ("10.0.0.0/24", &["10.0.0.0", "10.0.0.255"], &["10.0.1.0", "9.255.255.255"]),
            ("10.0.0.9/24", &["10.0.0.1"], &["10.0.1.9"]),
            ("0.0.0.0/0", &["1.2.3.4", "255.255.255.255"], &["::1"]),
            ("fd00::/64", &["fd00::1", "fd00::ffff:0:0:1"], &["fd00:0:0:1::1", "10.0.0.1"]),
            ("::/0", &["::1"], &["0.0.0.1"]),
            ("fd00::7", &["fd00::7"], &["fd00::8"]),
            ("::ffff:10.0.0.7", &["10.0.0.7"], &["10.0.0.8"]),
        ] {
            let network = Network::parse(text).unwrap();
            for address in inside {
                assert!(network.contains(address.parse().unwrap()), "{text} {address}");
            }
            for address in outside {
                assert!(!network.contains(address.parse().unwrap()), "{text} {address}");
            }
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "10.0.0",
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "web1",
            "10.0.0.7:80",
        ] {
            assert!(Network::parse(text).is_err(), "{text}");
        }
    }
}
