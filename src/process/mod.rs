//! The process among others: the signals it is told by, and the way it ends.
//!
//! This room knows nothing of what runs in the process; it must never decide what a reload does or who is served.

pub mod clock;
pub mod drain;
pub mod log;
pub mod rlimit;
pub mod signal;
pub mod systemd;
pub mod threads;

pub use self::drain::Drain;
