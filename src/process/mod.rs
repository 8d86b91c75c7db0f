//! The process among others: the signals it is told by, and the way it ends.
//!
//! This room knows nothing of what runs in the process; it must never decide what a reload does or who is served.

pub(crate) mod clock;
pub(crate) mod drain;
pub(crate) mod log;
pub(crate) mod rlimit;
pub(crate) mod signal;
pub(crate) mod systemd;
pub(crate) mod threads;

pub(crate) use self::drain::Drain;
