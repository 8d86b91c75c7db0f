//! The names of the fields that the parser takes: what a document about the configuration must speak of.
//!
//! Words only. The parser takes nothing that is not named here.

pub use super::backends::FIELDS as BACKEND;
pub use super::parse::FIELDS as CONFIG;

/// Those of `tls`.
pub const TLS: &[&str] = &["cert", "key", "client_ca", "crl"];

/// Those of `spec`.
pub const SPEC: &[&str] = &["dir", "format"];

/// Those of one of `hosts`: known, but refused.
pub const HOST: &[&str] = &["rights", "backends"];

/// Those of `limits`.
pub const LIMITS: &[&str] = &["connections", "connections_per_host", "body_bytes", "handshake", "request"];
