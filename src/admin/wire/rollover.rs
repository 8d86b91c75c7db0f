//! What is asked and told of the rollover of the CA.

use serde::{Deserialize, Serialize};

/// How far a rollover of the CA has got.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Rollover {
    /// `none`; `overlap` while both are trusted; `finishing` where a finish was cut off.
    pub state: String,
    /// The CA that is in force, or is given up.
    pub ca: Ca,
    /// The CA that takes over.
    pub next: Option<Ca>,
    /// The hosts that are let in, while a rollover is under way.
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
    /// Whether it is let in when the rollover is finished, as far as is known.
    pub moved: bool,
    /// Whether it was given a certificate of the new CA.
    pub renewed: bool,
    /// Of which CA the certificate was with which it last called: `old`, `new`, or `null` when it never called with one.
    pub uses: Option<String>,
    /// When it last sent a request, RFC 3339.
    pub last_seen: Option<String>,
}

/// Ends a rollover.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RolloverEnd {
    /// Whether also where that shuts out hosts.
    #[serde(default)]
    pub force: bool,
}

/// What the end of a rollover did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RolloverEnded {
    /// The CA in force.
    pub ca: Ca,
    /// Where the certificate lies of the CA that was given up.
    pub kept_certificate: String,
    /// Where its key lies; `null` where that is kept elsewhere.
    pub kept_key: Option<String>,
    /// The hosts that were shut out.
    pub shut_out: Vec<String>,
}
