//! The state that the periodic work on backends keeps from one round to the next.

use super::backend_tasks::BackendSlots;
use super::copies::CatalogCopies;
use super::recorded_backends::RecordedBackends;

/// The state of the periodic work on backends.
#[derive(Debug, Default)]
pub(super) struct Upkeep {
    pub(super) slots: BackendSlots,
    pub(super) copies: CatalogCopies,
    pub(super) recorded: RecordedBackends,
}
