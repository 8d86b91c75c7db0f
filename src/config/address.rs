//! Addresses: those that volhost listens on, and those that engines are told to call.
//!
//! Nothing here resolves a name or opens a socket.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::model::host::HostName;

/// The length of the longest path that fits into a Unix socket's address on Linux, without its terminating zero.
pub(crate) const SOCKET_PATH_BYTES: usize = 107;

/// An address that engines are served at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// TLS with client certificates required. Port 0 means any free port.
    Https(SocketAddr),
    /// Plain HTTP. Port 0 means any free port.
    Http(SocketAddr),
    /// A Unix socket at an absolute path.
    Unix(PathBuf),
}

/// An address that engines are told to call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Advertise {
    /// TLS.
    Https(Authority),
    /// Plain HTTP.
    Http(Authority),
    /// A Unix socket at an absolute path.
    Unix(PathBuf),
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// A DNS name in lower case, or an IP address without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
}

/// Why a text is not an address, and what was probably meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidAddress {
    /// What is wrong, and what would be right.
    pub what: String,
    /// The probable intention.
    pub hint: Option<String>,
}

impl Listen {
    /// Parses `https://ADDR:PORT`, `http://ADDR:PORT` or `unix:/PATH`, where ADDR is an IP address.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        match split(text)? {
            Split::Https(rest) => socket_address("https", rest).map(Self::Https),
            Split::Http(rest) => socket_address("http", rest).map(Self::Http),
            Split::Unix(path) => Ok(Self::Unix(path)),
        }
    }

    /// Returns true if calls to it never leave this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Https(address) | Self::Http(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Advertise {
    /// Parses `https://HOST:PORT`, `http://HOST:PORT` or `unix:/PATH`, where HOST is a DNS name or an IP address.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        match split(text)? {
            Split::Https(rest) => authority("https", rest).map(Self::Https),
            Split::Http(rest) => authority("http", rest).map(Self::Http),
            Split::Unix(path) => Ok(Self::Unix(path)),
        }
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(authority) => write!(f, "https://{authority}"),
            Self::Http(authority) => write!(f, "http://{authority}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

enum Split<'a> {
    Https(&'a str),
    Http(&'a str),
    Unix(PathBuf),
}

const SCHEMES: [&str; 3] = ["https", "http", "unix"];

fn split(text: &str) -> Result<Split<'_>, InvalidAddress> {
    let Some((scheme, rest)) = text.split_once(':') else {
        return refuse(text, "is no address", None);
    };
    match scheme {
        "https" | "http" => match rest.strip_prefix("//") {
            Some(rest) if scheme == "https" => Ok(Split::Https(rest)),
            Some(rest) => Ok(Split::Http(rest)),
            None => refuse(text, "is no address", Some(format!("did you mean \"{scheme}://{rest}\"?"))),
        },
        "unix" => {
            // Engines write the form with two slashes and an absolute path.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            unix_path(path).map(Split::Unix)
        }
        "tcp" => {
            let rest = rest.trim_start_matches('/');
            refuse(text, "is no address", Some(format!("plain TCP is written \"http://{rest}\"")))
        }
        _ => {
            let near = crate::error::nearest(scheme, SCHEMES);
            refuse(text, "is no address", near.map(|near| format!("did you mean \"{near}\"?")))
        }
    }
}

fn refuse<T>(text: &str, what: &str, hint: Option<String>) -> Result<T, InvalidAddress> {
    let text: String = text.chars().take(120).collect();
    let what = format!("{text:?} {what}: it takes https://ADDRESS:PORT, http://ADDRESS:PORT or unix:/PATH");
    Err(InvalidAddress { what, hint })
}

/// Parses the path of a Unix socket: absolute, and short enough for an address. Several slashes at its beginning are
/// reduced to one, as the system reads them: after `unix:`, two of them would be taken for those of `unix://`.
pub(super) fn unix_path(path: &str) -> Result<PathBuf, InvalidAddress> {
    let what = if !path.starts_with('/') || path.contains('\0') {
        let path: String = path.chars().take(120).collect();
        format!("{path:?} is no absolute path, as a socket needs it")
    } else if path.len() > SOCKET_PATH_BYTES {
        format!(
            "the socket's path is {} bytes long: at most {SOCKET_PATH_BYTES} fit into an address",
            path.len()
        )
    } else {
        return Ok(Path::new("/").join(path.trim_start_matches('/')));
    };
    Err(InvalidAddress { what, hint: None })
}

fn socket_address(scheme: &str, rest: &str) -> Result<SocketAddr, InvalidAddress> {
    if let Ok(address) = rest.parse() {
        return Ok(address);
    }
    let text = format!("{scheme}://{rest}");
    if let Some(trimmed) = rest.strip_suffix('/')
        && trimmed.parse::<SocketAddr>().is_ok()
    {
        return refuse(&text, "has a path", Some(format!("did you mean \"{scheme}://{trimmed}\"?")));
    }
    if let Ok(ip) = rest.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        let meant = SocketAddr::new(ip, 7443);
        return refuse(&text, "has no port", Some(format!("did you mean \"{scheme}://{meant}\"?")));
    }
    let hint = match rest.rsplit_once(':') {
        Some(("localhost", port)) => format!("did you mean \"{scheme}://127.0.0.1:{port}\"?"),
        Some(("" | "*", port)) => {
            format!(
                "every address of this machine is \"{scheme}://0.0.0.0:{port}\" or \"{scheme}://[::]:{port}\""
            )
        }
        _ => "ADDRESS is an IP address of this machine; names are for \"advertise\"".to_owned(),
    };
    refuse(&text, "names no IP address and port", Some(hint))
}

fn authority(scheme: &str, rest: &str) -> Result<Authority, InvalidAddress> {
    let text = format!("{scheme}://{rest}");
    let Some((host, port)) = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
        let hint = HostName::parse(rest).ok().map(|host| format!("did you mean \"{scheme}://{host}:7443\"?"));
        return refuse(&text, "has no port", hint);
    };
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let Some(port) = port.parse::<u16>().ok().filter(|port| digits && *port != 0) else {
        return refuse(&text, "has no port from 1 to 65535", None);
    };
    let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let ip = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => host.parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4),
    };
    match ip {
        Some(ip) if ip.to_canonical().is_unspecified() => {
            let hint = "name the address or the DNS name by which engines reach this machine".to_owned();
            refuse(&text, "is no address that an engine can call", Some(hint))
        }
        Some(ip) => Ok(Authority { host: ip.to_string(), port }),
        None => match HostName::parse(host) {
            Ok(host) => Ok(Authority { host: host.to_string(), port }),
            Err(_) => refuse(&text, "names no DNS name and no IP address", None),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in [
            "https://127.0.0.1:7443",
            "http://[::1]:0",
            "https://0.0.0.0:65535",
            "unix:/run/docker/plugins/v.sock",
        ] {
            assert_eq!(Listen::parse(text).unwrap().to_string(), text);
        }
        for text in
            ["https://store1.example.org:7443", "http://10.0.0.1:80", "https://[fd00::1]:7443", "unix:/x"]
        {
            assert_eq!(Advertise::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Listen::parse("unix:///run/v.sock"), Ok(Listen::Unix("/run/v.sock".into())));
        // Shown with both of its slashes, this would be the relative path after `unix://`.
        assert_eq!(Listen::parse("unix:////run/v.sock").unwrap().to_string(), "unix:/run/v.sock");
    }

    #[test]
    fn loopback_is_known_in_every_spelling() {
        for (text, local) in [
            ("http://127.0.0.1:1", true),
            ("http://127.8.9.1:1", true),
            ("http://[::1]:1", true),
            ("http://[::ffff:127.0.0.1]:1", true),
            ("http://0.0.0.0:1", false),
            ("http://[::]:1", false),
            ("unix:/x", true),
        ] {
            assert_eq!(Listen::parse(text).unwrap().is_local(), local, "{text}");
        }
    }

    #[test]
    fn slips_are_told_what_was_meant() {
        for (text, hint) in [
            ("tcp://127.0.0.1:7443", "plain TCP is written \"http://127.0.0.1:7443\""),
            ("htps://127.0.0.1:7443", "did you mean \"https\"?"),
            ("https:127.0.0.1:7443", "did you mean \"https://127.0.0.1:7443\"?"),
            ("https://127.0.0.1:7443/", "did you mean \"https://127.0.0.1:7443\"?"),
            ("https://[::1]", "did you mean \"https://[::1]:7443\"?"),
            ("https://localhost:7443", "did you mean \"https://127.0.0.1:7443\"?"),
        ] {
            assert_eq!(Listen::parse(text).unwrap_err().hint.as_deref(), Some(hint), "{text}");
        }
        for text in
            ["", ":", "https://", "https://store1:7443", "https://1.2.3.4:99999", "unix:x", "unix:", "/run/x"]
        {
            assert!(Listen::parse(text).is_err(), "{text:?} was accepted");
        }
        for text in [
            "https://a",
            "https://a:0",
            "https://a:+1",
            "https://[::]:1",
            "https://0.0.0.0:1",
            "https://a_b:1",
        ] {
            assert!(Advertise::parse(text).is_err(), "{text:?} was accepted");
        }
        assert!(Listen::parse(&format!("unix:/{}", "a".repeat(SOCKET_PATH_BYTES))).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(https|http|unix|)(:|)(//|)\\PC{0,30}") {
            let _ = Listen::parse(&text);
            let _ = Advertise::parse(&text);
        }
    }
}
