//! (to be written)

/// Marks an answer that must not be written: the connection is closed instead.
#[derive(Debug, Clone, Copy)]
pub struct CloseWithoutAnswer;
