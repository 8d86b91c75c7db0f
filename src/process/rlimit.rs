//! The limit of open files, which include sockets.
//!
//! The soft limit of 1024 that services are started with is for programs that use select(2), which takes no more. This
//! one does not, and thousands of connections are allowed to it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as allowed and returns it; `None` if there is no limit.
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
