//! What the fuzzers do with an input: one function for each thing that volhost reads and others write.
//!
//! Each calls what the program itself calls, and panics where a promise does not hold: that is a finding. The fuzzers
//! (`fuzz_targets`) run them on inputs they invent; `tests/integration/fuzz.rs` runs them on the inputs that were kept.
//! Nothing here may depend on an earlier input, or a finding could not be repeated.

pub mod config;
pub mod identity;
pub mod import;
pub mod request;
pub mod spec;

/// What is done with one input.
pub type Body = fn(&[u8]);

/// Each target's name, which is also that of its directories in `corpus` and `findings`, and its function.
pub const TARGETS: &[(&str, Body)] = &[
    ("config", config::run),
    ("identity", identity::run),
    ("import", import::run),
    ("request", request::run),
    ("spec", spec::run),
];
