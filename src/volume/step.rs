//! The durable steps of operations, by name, so that a test can stop the process at each of them in turn.
//!
//! In a release build a step is nothing.

/// Every step, in the order in which its operation reaches it.
pub const STEPS: &[&str] = &[
    "create:begun",
    "create:staged",
    "create:recorded",
    "create:renamed",
    "create:done",
    "adopt:recorded",
    "mount:checked",
    "mount:recorded",
    "unmount:recorded",
    "remove:begun",
    "remove:trashed",
    "remove:recorded",
    "restore:recorded",
    "restore:renamed",
    "purge:deleted",
    "purge:forgotten",
    "identity:chosen",
    "identity:written",
];

/// Marks a durable step. A debug build whose environment has `VOLHOST_STOP_AT` set to this name is killed here, as
/// `kill -9` would.
pub(super) fn step(name: &'static str) {
    debug_assert!(STEPS.contains(&name), "{name} is missing in the list of steps");
    #[cfg(debug_assertions)]
    {
        use std::sync::OnceLock;
        static STOP_AT: OnceLock<Option<String>> = OnceLock::new();
        if STOP_AT.get_or_init(|| std::env::var("VOLHOST_STOP_AT").ok()).as_deref() == Some(name) {
            log::warn!("stopping at {name}, as VOLHOST_STOP_AT asks");
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal may reach another thread first; this one must not go on meanwhile.
            loop {
                std::thread::park();
            }
        }
    }
}
