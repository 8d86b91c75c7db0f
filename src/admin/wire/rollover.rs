//! Requests and replies about the rollover of the CA.

use serde::{Deserialize, Serialize};

/// The state of a rollover of the CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rollover {
    /// `none`; `overlap` while both CAs are trusted; `finishing` if a finish was cut off.
    pub state: String,
    /// The CA in force, or the one that is being given up.
    pub ca: Ca,
    /// The CA that takes over.
    pub next: Option<Ca>,
    /// The hosts that are let in during a rollover.
    pub hosts: Vec<RolloverHost>,
}

/// A certificate authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ca {
    /// Its subject.
    pub name: String,
    /// When its certificate expires, RFC 3339.
    pub expires: String,
}

/// A host during a rollover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RolloverHost {
    /// Its name.
    pub name: String,
    /// True if it is let in when the rollover is finished, as far as is known.
    pub moved: bool,
    /// True if it was given a certificate of the new CA.
    pub renewed: bool,
    /// The CA of the certificate with which it last called: `old`, `new`, or `null` if it never called with one.
    pub uses: Option<String>,
    /// When it last sent a request, RFC 3339.
    pub last_seen: Option<String>,
}

/// Ends a rollover.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloverEnd {
    /// True to end it even if that shuts out hosts.
    #[serde(default)]
    pub force: bool,
}

/// The result of ending a rollover.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RolloverEnded {
    /// The CA in force.
    pub ca: Ca,
    /// The path of the certificate of the CA that was given up.
    pub kept_certificate: String,
    /// The path of its key; `null` if the key is kept elsewhere.
    pub kept_key: Option<String>,
    /// The hosts that were shut out.
    pub shut_out: Vec<String>,
}
