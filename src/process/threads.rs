//! Checks that the system gives this process enough threads.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Makes sure that `count` more threads can be started, by starting them.
///
/// Many parts of a service end the process if they get no thread, or wait for one for ever. So this is called before
/// anything is served.
///
/// # Errors
/// Fewer can be started; the error says how many, and what limits them.
pub(crate) fn require(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        // Each waits until all are there.
        let held = gate.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = || drop(gate.lock().unwrap_or_else(PoisonError::into_inner));
        for started in 0..count {
            if let Err(error) = thread::Builder::new().stack_size(64 * 1024).spawn_scoped(scope, wait) {
                let what = format!(
                    "{started} threads can be started and {count} are needed: raise the limit of the user's threads (`ulimit -u`, LimitNPROC=) or of the service's (TasksMax=): {error}"
                );
                return Err(io::Error::new(error.kind(), what));
            }
        }
        drop(held);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_threads_can_be_started() {
        require(8).unwrap();
    }
}
