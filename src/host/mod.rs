//! Who calls: the host's name from its certificate or its socket, what it may do, and where it sees backends.
//!
//! This room never looks at a request's body: a host is known before its first byte of HTTP is read.

pub mod access;
pub mod identity;

use std::net::IpAddr;

use crate::model::host::HostName;

/// Who sent a request, known from the connection alone. Transports put one into every request's extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The host's name.
    pub host: HostName,
    /// What the connection is, and with it how far its word goes.
    pub via: Via,
    /// From where it comes, over a network.
    pub address: Option<IpAddr>,
}

/// What a caller's certificate says beside its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Certified<'a> {
    /// The subject of the authority that issued it.
    pub issuer: &'a str,
    /// Its serial number, in lower-case hexadecimal.
    pub serial: &'a str,
}

/// The kind of connection a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The admin socket: the operator of this machine.
    Admin,
    /// A Unix socket of this machine: its own engine.
    Unix,
    /// Plain TCP: nobody in particular.
    Tcp,
    /// TLS with a verified client certificate.
    Tls,
}

impl Caller {
    /// Whether this is the operator, to whom no right is closed.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        self.via == Via::Admin
    }

    /// Whether an Activate by this connection means that an engine was started: podman sends one before every call,
    /// and speaks over Unix sockets only.
    #[must_use]
    pub fn begins_activations(&self) -> bool {
        matches!(self.via, Via::Tcp | Via::Tls)
    }
}
