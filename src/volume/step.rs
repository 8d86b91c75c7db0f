//! The durable steps of operations: failpoints at which a test can stop the process.

use crate::failpoint::stop_if_asked;

/// Every step, in the order in which its operation reaches it.
pub const STEPS: &[&str] = &[
    "create:begun",
    "create:staged",
    "create:recorded",
    "create:renamed",
    "create:done",
    "create:flushed",
    "adopt:recorded",
    "mount:checked",
    "mount:recorded",
    "unmount:recorded",
    "remove:begun",
    "remove:trashed",
    "remove:recorded",
    "restore:recorded",
    "restore:renamed",
    "purge:recorded",
    "purge:marked",
    "purge:deleted",
    "purge:forgotten",
    "identity:chosen",
    "identity:written",
];

/// Marks a durable step.
pub(super) fn step(name: &'static str) {
    debug_assert!(STEPS.contains(&name), "{name} is missing in the list of steps");
    stop_if_asked(name);
}
