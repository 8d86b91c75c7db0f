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
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Https(address) => write!(f, "https://{address}"),
            Self::Http(address) => write!(f, "http://{address}"),
            Self::Unix(path) | Self::Admin(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
