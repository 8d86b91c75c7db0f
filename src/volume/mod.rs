//! (to be written)

pub mod mounts;
pub mod name;
pub mod options;
