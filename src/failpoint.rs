//! Where a test can stop the process: the durable steps of operations, each by its name.
//!
//! In a release build this is nothing.

/// A debug build whose environment has `VOLHOST_STOP_AT` set to this name is killed here, as `kill -9` would.
pub(crate) fn stop_if_asked(name: &'static str) {
    #[cfg(not(debug_assertions))]
    let _ = name;
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
