//! Parses an `Addr` as an engine does: by the rules of Go's `net/url`, then by those of its transport.

use std::net::IpAddr;
use std::path::PathBuf;

use super::fault::Fault;

/// The endpoint that an engine connects to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// TCP, with or without TLS.
    Tcp {
        /// A DNS name or an address, an IPv6 one without brackets.
        host: String,
        /// The port.
        port: u16,
        /// True if the scheme is `https`.
        https: bool,
    },
}

impl Endpoint {
    /// Returns true if calls to it stay on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp { host, port: _, https: _ } => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
            }
        }
    }
}

/// The maximum length of a path in a Unix socket's address on Linux.
const SOCKET_PATH_BYTES: usize = 107;

/// Reads an address, and adds its faults to `faults`.
pub(super) fn read(address: &str, faults: &mut Vec<Fault>) -> Option<Endpoint> {
    match parse_url(address) {
        Ok(url) => endpoint(address, &url, faults),
        Err(why) => {
            faults.push(bad(address, why));
            None
        }
    }
}

fn bad(address: &str, why: &'static str) -> Fault {
    Fault::BadAddress { address: address.chars().take(200).collect(), why }
}

struct Url {
    scheme: String,
    authority: String,
    path: String,
    /// True if there is user information, a query or a fragment.
    more: bool,
}

fn parse_url(address: &str) -> Result<Url, &'static str> {
    if address.is_empty() {
        return Err("it is empty");
    }
    if address.chars().any(char::is_control) {
        return Err("it holds a control character");
    }
    let (text, fragment) = address.split_once('#').map_or((address, false), |(text, _)| (text, true));
    let Some((scheme, rest)) = text.split_once(':') else { return Err("it has no scheme") };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    if !is_scheme {
        return Err("it has no scheme");
    }
    let (rest, query) = rest.split_once('?').map_or((rest, false), |(rest, _)| (rest, true));
    let (authority, path) = match rest.strip_prefix("//") {
        Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
        None if rest.starts_with('/') => ("", rest),
        None => return Err("after its scheme there is no //"),
    };
    let (host, user) = authority.rsplit_once('@').map_or((authority, false), |(_, host)| (host, true));
    if host.contains([' ', '<', '>', '"', '\\', '^', '`', '{', '|', '}']) {
        return Err("its host holds a character that no host has");
    }
    let path = unescaped(path).ok_or("its path holds a broken % escape")?;
    Ok(Url {
        scheme: scheme.to_ascii_lowercase(),
        authority: host.to_owned(),
        path,
        more: fragment || query || user,
    })
}

fn endpoint(address: &str, url: &Url, faults: &mut Vec<Fault>) -> Option<Endpoint> {
    let Url { scheme, authority, path, more } = url;
    if scheme == "unix" {
        // If there is a host, an engine takes it for the path, and drops the rest.
        let why = match (authority.is_empty(), path) {
            (false, _) => "after unix:// it is no absolute path (three slashes are needed)",
            (true, path) if path.is_empty() => "it names no socket",
            (true, path) if path.len() > SOCKET_PATH_BYTES => "its path is too long for a socket",
            (true, path) => {
                faults.extend(more.then(|| Fault::Ignored { address: address.to_owned() }));
                return Some(Endpoint::Unix(path.into()));
            }
        };
        faults.push(bad(address, why));
        return None;
    }
    if !["https", "http", "tcp"].contains(&&**scheme) {
        faults.push(Fault::WrongScheme { scheme: scheme.clone() });
    }
    let https = scheme == "https";
    let (host, port) = match host_and_port(authority) {
        Ok((host, Some(port))) => (host, port),
        Ok((host, None)) => {
            let port = if https { 443 } else { 80 };
            faults.push(Fault::NoPort { address: address.to_owned(), port });
            (host, port)
        }
        Err(why) => {
            faults.push(bad(address, why));
            return None;
        }
    };
    if *more || !path.is_empty() {
        faults.push(Fault::Ignored { address: address.to_owned() });
    }
    Some(Endpoint::Tcp { host, port, https })
}

fn host_and_port(authority: &str) -> Result<(String, Option<u16>), &'static str> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("its [ is never closed")?;
            let port = after.strip_prefix(':');
            if port.is_none() && !after.is_empty() {
                return Err("after the ] there is no port");
            }
            (host, port)
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("it names no host");
    }
    match port {
        None | Some("") => Ok((host.to_owned(), None)),
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => match port.parse() {
            Ok(port) if port != 0 => Ok((host.to_owned(), Some(port))),
            _ => Err("its port is none from 1 to 65535"),
        },
        Some(_) => Err("its port is no number"),
    }
}

fn unescaped(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (high, low) = (digit(rest.next())?, digit(rest.next())?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, https: bool) -> Endpoint {
        Endpoint::Tcp { host: host.to_owned(), port, https }
    }

    #[test]
    fn good_addresses_are_without_fault() {
        for (text, endpoint, local) in [
            ("https://store1:7443", tcp("store1", 7443, true), false),
            ("HTTPS://[::1]:7443", tcp("::1", 7443, true), true),
            ("tcp://localhost:80", tcp("localhost", 80, false), true),
            ("http://10.0.0.7:80", tcp("10.0.0.7", 80, false), false),
            ("unix:///run/a%20b.sock", Endpoint::Unix("/run/a b.sock".into()), true),
            ("unix:/run/a.sock", Endpoint::Unix("/run/a.sock".into()), true),
        ] {
            let mut faults = Vec::new();
            let read = read(text, &mut faults).unwrap();
            assert_eq!((&read, faults), (&endpoint, vec![]), "{text}");
            assert_eq!(read.is_local(), local, "{text}");
        }
    }

    #[test]
    fn what_an_engine_drops_or_guesses_is_told() {
        for (text, word, endpoint) in [
            ("https://h:1/", "ignored", tcp("h", 1, true)),
            ("https://h:1/volumes", "ignored", tcp("h", 1, true)),
            ("tcp://u@h:1", "ignored", tcp("h", 1, false)),
            ("tcp://h:1?a=b", "ignored", tcp("h", 1, false)),
            ("https://h", "no-port", tcp("h", 443, true)),
            ("tcp://[::1]", "no-port", tcp("::1", 80, false)),
            ("htps://h:1", "wrong-scheme", tcp("h", 1, false)),
            ("unix:///p?q", "ignored", Endpoint::Unix("/p".into())),
        ] {
            let mut faults = Vec::new();
            assert_eq!(read(text, &mut faults), Some(endpoint), "{text}");
            assert_eq!(faults.iter().map(Fault::word).collect::<Vec<_>>(), [word], "{text}");
        }
    }

    #[test]
    fn what_cannot_be_called_is_refused() {
        for text in [
            "",
            "/run/a.sock",
            "127.0.0.1:7443",
            "store1:7443",
            "https:h:1",
            "https://:7443",
            "https://h:0",
            "https://h:99999",
            "https://h:x",
            "https://[::1",
            "https://a b:1",
            "unix://",
            "unix://run/a.sock",
            "unix:///a%zz",
            "tcp://h:1\u{7}",
        ] {
            let mut faults = Vec::new();
            assert_eq!(read(text, &mut faults), None, "{text:?}");
            assert_eq!(faults.iter().map(Fault::word).collect::<Vec<_>>(), ["bad-address"], "{text:?}");
        }
        let mut faults = Vec::new();
        assert_eq!(read(&format!("unix:///{}", "a".repeat(107)), &mut faults), None);
    }
}
