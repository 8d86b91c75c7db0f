//! The process: its signals, log, limits and clock, and the way it ends.
//!
//! This module does not know the service: it never decides what a reload does or who is served.

pub(crate) mod clock;
pub(crate) mod drain;
pub(crate) mod log;
pub(crate) mod rlimit;
pub(crate) mod signal;
pub(crate) mod systemd;
pub(crate) mod threads;

pub(crate) use self::drain::Drain;
