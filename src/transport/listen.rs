//! The addresses that a server listens on.
//!
//! This module only names them: the configuration parses addresses and decides which of them are allowed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// An address to listen on. Port 0 lets the system choose.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Listen {
    /// TLS with client certificates required.
    Https(SocketAddr),
    /// Plain TCP: every caller is `anonymous`.
    Http(SocketAddr),
    /// A Unix socket for this machine's own engine.
    Unix(PathBuf),
    /// The admin socket.
    Admin(PathBuf),
    /// An address for monitoring systems and browsers, which serves no engine.
    Monitoring(SocketAddr, MonitoringAccess),
}

/// How clients reach an address for monitoring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MonitoringAccess {
    /// Over plain TCP.
    Plain,
    /// Over TLS, with a certificate of a client CA.
    Verified,
    /// Over TLS, with or without such a certificate.
    Anyone,
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(address) | Self::Monitoring(address, MonitoringAccess::Plain) => {
                write!(f, "http://{address}")
            }
            Self::Https(address) | Self::Monitoring(address, _) => write!(f, "https://{address}"),
            Self::Unix(path) | Self::Admin(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
