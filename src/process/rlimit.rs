//! The limit of open files, which include sockets.
//!
//! Services start with a soft limit of 1024, for programs that use select(2), which handles no more. This program does
//! not use it, and it may have thousands of connections.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as possible and returns it; `None` if there is no limit.
pub(crate) fn raise_limit() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            log::warn!("the limit of open files cannot be raised to what is allowed: {error}");
            current
        }
    }
}
