//! The addresses that volhost listens on, as the configuration writes them.
//!
//! A [`Listen`] that exists may be bound: it has a port, an absolute path, and plain HTTP stays on this machine unless
//! that was asked for by name.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::error::nearest;

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// TLS with client certificates required.
    Https {
        /// An IP address (without brackets) or a name that resolves to one of this machine.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
    },
    /// Plain TCP: whoever connects is `anonymous`.
    Http {
        /// An IP address (without brackets) or a name that resolves to one of this machine.
        host: String,
        /// The port; 0 lets the system choose.
        port: u16,
        /// Whether addresses other than loopback were allowed.
        insecure: bool,
    },
    /// A Unix socket for this machine's own engine.
    Unix(PathBuf),
    /// The admin socket. Never read from `listen`; made by the application from `admin`.
    Admin(PathBuf),
}

/// Why a text is no address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidListen {
    /// Nothing before a `:`.
    #[error("{0:?} has no scheme: use https://ADDRESS:PORT, http://ADDRESS:PORT or unix:/PATH")]
    NoScheme(String),
    /// A scheme that is not served.
    #[error("the scheme {scheme:?} is not served: use https://ADDRESS:PORT, http://ADDRESS:PORT or unix:/PATH{}",
        .hint.map(|hint| format!(" (did you mean {hint}?)")).unwrap_or_default())]
    Scheme {
        /// As it was written.
        scheme: String,
        /// What was most likely meant.
        hint: Option<&'static str>,
    },
    /// `https:` or `http:` without `//`.
    #[error("{0:?} lacks the slashes: write {scheme}://ADDRESS:PORT", scheme = .0.split(':').next().unwrap_or_default())]
    NoSlashes(String),
    /// No host before the port.
    #[error("{0:?} has no address before the port: 127.0.0.1 is this machine alone, 0.0.0.0 every network")]
    NoHost(String),
    /// No port.
    #[error("{0:?} has no port: write it as ADDRESS:PORT")]
    NoPort(String),
    /// A port that is no number of 0 to 65535.
    #[error("{0:?} is no port: a number of 0 to 65535 is needed")]
    Port(String),
    /// An IPv6 address without brackets, or brackets around something else.
    #[error("{0:?}: an IPv6 address, and nothing else, stands in brackets, as in https://[::1]:7443")]
    Brackets(String),
    /// A character that no address has.
    #[error("{0:?} is no address: an IP address or a host name is needed")]
    Host(String),
    /// A path, query or user after or before the address.
    #[error("{0:?} has more than an address and a port: engines drop a path in it, so none is taken")]
    More(String),
    /// Plain HTTP on an address that other machines reach.
    #[error(
        "http on {0} would let everyone on the network in without a certificate: use https, a loopback address, or set \"insecure\": true"
    )]
    NotLoopback(String),
    /// `unix:` with a relative or empty path.
    #[error("{0:?} is no absolute path: write unix:/PATH")]
    RelativePath(String),
    /// Longer than the kernel takes.
    #[error("the socket's path is {0} bytes long: at most 107 are possible")]
    PathTooLong(usize),
}

impl Listen {
    /// Reads an address. `insecure` allows plain HTTP on other addresses than loopback.
    pub fn parse(text: &str, insecure: bool) -> Result<Self, InvalidListen> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(InvalidListen::NoScheme(text.into()));
        };
        match scheme {
            "https" => {
                let (host, port) = host_and_port(text, rest)?;
                Ok(Self::Https { host, port })
            }
            "http" => {
                let (host, port) = host_and_port(text, rest)?;
                if !insecure && !is_loopback(&host) {
                    return Err(InvalidListen::NotLoopback(host));
                }
                Ok(Self::Http { host, port, insecure })
            }
            "unix" => {
                // `unix:///run/x.sock` is common elsewhere and means the same.
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
                    return Err(InvalidListen::RelativePath(path.into()));
                }
                if path.len() > 107 {
                    return Err(InvalidListen::PathTooLong(path.len()));
                }
                Ok(Self::Unix(path.into()))
            }
            _ if !rest.starts_with('/') => Err(InvalidListen::NoScheme(text.into())),
            _ => {
                let hint = match scheme {
                    "tcp" => Some("http"),
                    "tls" | "ssl" => Some("https"),
                    _ => nearest(scheme, ["https", "http", "unix"]),
                };
                let hint = ["https", "http", "unix"].into_iter().find(|known| Some(*known) == hint);
                Err(InvalidListen::Scheme { scheme: scheme.into(), hint })
            }
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https { host, port } => write!(f, "https://{}:{port}", Bracketed(host)),
            Self::Http { host, port, insecure: _ } => write!(f, "http://{}:{port}", Bracketed(host)),
            Self::Unix(path) | Self::Admin(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A host as it stands in an address: IPv6 in brackets.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

fn host_and_port(text: &str, rest: &str) -> Result<(String, u16), InvalidListen> {
    let Some(rest) = rest.strip_prefix("//") else {
        return Err(InvalidListen::NoSlashes(text.into()));
    };
    // A lone slash at the end is how browsers write an address; it is no path.
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains(['/', '?', '#', '@']) {
        return Err(InvalidListen::More(text.into()));
    }
    let (host, port) = if let Some(inner) = rest.strip_prefix('[') {
        let Some((host, after)) = inner.split_once(']') else {
            return Err(InvalidListen::Brackets(text.into()));
        };
        if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
            return Err(InvalidListen::Brackets(text.into()));
        }
        let Some(port) = after.strip_prefix(':') else {
            return Err(InvalidListen::NoPort(text.into()));
        };
        (host, port)
    } else {
        if rest.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
            return Err(InvalidListen::Brackets(text.into()));
        }
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(InvalidListen::NoPort(text.into()));
        };
        if host.contains(':') {
            return Err(InvalidListen::Brackets(text.into()));
        }
        if host.is_empty() {
            return Err(InvalidListen::NoHost(text.into()));
        }
        if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)) {
            return Err(InvalidListen::Host(host.into()));
        }
        (host, port)
    };
    if port.is_empty() {
        return Err(InvalidListen::NoPort(text.into()));
    }
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if digits => Ok((host.to_ascii_lowercase(), number)),
        _ => Err(InvalidListen::Port(port.into())),
    }
}

fn is_loopback(host: &str) -> bool {
    match host.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_alike() {
        for text in [
            "https://127.0.0.1:7443",
            "https://[::1]:7443",
            "https://store1.example.org:0",
            "http://localhost:80",
            "http://[::1]:80",
            "unix:/run/x.sock",
        ] {
            assert_eq!(Listen::parse(text, false).unwrap().to_string(), text);
        }
        assert_eq!(Listen::parse("unix:///run/x", false), Ok(Listen::Unix("/run/x".into())));
        assert_eq!(Listen::parse("https://A:1/", false).unwrap().to_string(), "https://a:1");
    }

    #[test]
    fn plain_http_leaves_this_machine_only_on_demand() {
        for text in ["http://0.0.0.0:80", "http://[::]:80", "http://store1:80", "http://10.0.0.1:80"] {
            assert!(matches!(Listen::parse(text, false), Err(InvalidListen::NotLoopback(_))), "{text}");
            assert!(Listen::parse(text, true).is_ok(), "{text}");
        }
    }

    #[test]
    fn each_fault_is_named() {
        let cases = [
            ("/run/x.sock", "has no scheme"),
            ("127.0.0.1:7443", "has no scheme"),
            ("tcp://127.0.0.1:80", "did you mean http?"),
            ("htps://127.0.0.1:80", "did you mean https?"),
            ("ftp://127.0.0.1:80", "\"ftp\" is not served"),
            ("https:127.0.0.1:80", "lacks the slashes: write https://"),
            ("https://:7443", "no address before the port"),
            ("https://127.0.0.1", "has no port"),
            ("https://127.0.0.1:", "has no port"),
            ("https://[::1]", "has no port"),
            ("https://127.0.0.1:65536", "is no port"),
            ("https://127.0.0.1:+1", "is no port"),
            ("https://::1:7443", "in brackets"),
            ("https://[::1:7443", "in brackets"),
            ("https://[store1]:7443", "in brackets"),
            ("https://a b:7443", "is no address"),
            ("https://127.0.0.1:7443/v1", "more than an address"),
            ("https://me@127.0.0.1:7443", "more than an address"),
            ("unix:run/x.sock", "no absolute path"),
            ("unix:", "no absolute path"),
        ];
        for (text, expected) in cases {
            let error = Listen::parse(text, false).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = format!("unix:/{}", "a".repeat(107));
        assert_eq!(Listen::parse(&long, false), Err(InvalidListen::PathTooLong(108)));
    }
}
