//! The limits on connections and requests, and on what one host may have.

use std::time::Duration;

/// The limits on connections and requests, and on what one host may have. A reload may change them while requests are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most connections over TCP and TLS together.
    pub connections: usize,
    /// The most connections of one host, of one address over plain TCP, and over each kind of Unix socket.
    pub connections_per_host: usize,
    /// The most volumes that a host may have created or mounted when it creates another.
    pub volumes_per_host: usize,
    /// The most mounts of a host, stale ones included.
    pub mounts_per_host: usize,
    /// The most bytes of a request's body.
    pub body_bytes: u64,
    /// The time for a TLS handshake, and for a request's head once it has begun.
    pub handshake: Duration,
    /// The time for a request.
    pub request: Duration,
}

/// The limits that hold when the configuration sets none.
impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_host: 256,
            volumes_per_host: 100_000,
            mounts_per_host: 100_000,
            body_bytes: 1 << 20,
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(20),
        }
    }
}
