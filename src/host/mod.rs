//! The callers: a host's name from its certificate or its socket, its rights, and the paths at which it sees
//! backends.
//!
//! This room never reads a request's body: the host is known before the first byte of HTTP.

pub mod access;
pub mod identity;

use std::net::IpAddr;

use crate::model::host::HostName;

/// The sender of a request, known from the connection alone. Transports put it into every request's
/// extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The host's name.
    pub host: HostName,
    /// The kind of connection, which decides how far the caller is trusted.
    pub via: Via,
    /// The caller's address, if it came over a network.
    pub address: Option<IpAddr>,
}

/// The issuer and serial number of a caller's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateId<'a> {
    /// The subject of the authority that issued it.
    pub issuer: &'a str,
    /// Its serial number, in lower-case hexadecimal.
    pub serial: &'a str,
}

/// The kind of connection that a request came over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The admin socket: the operator of this machine.
    Admin,
    /// A Unix socket of this machine: its own engine.
    Unix,
    /// Plain TCP: the caller has no proven name.
    Tcp,
    /// TLS with a verified client certificate.
    Tls,
}

impl Caller {
    /// Returns true if this is the operator, who has every right.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.via == Via::Admin
    }

    /// Returns true if an Activate on this connection means that an engine was started. Podman sends one
    /// before every call, and it uses only Unix sockets.
    #[must_use]
    pub fn begins_activations(&self) -> bool {
        matches!(self.via, Via::Tcp | Via::Tls)
    }
}
