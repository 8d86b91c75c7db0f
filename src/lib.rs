//! volhost makes directories on local or shared storage into volumes for every Docker host pointed at it.
//!
//! # The way of a request
//!
//! ```text
//! socket → transport → protocol → volume::Service → catalog   what exists
//!          bytes       JSON ↔        decides,       → backend   where it lies
//!          + Host      domain types  orders effects
//! ```
//!
//! One direction; a typed `Result` comes back, and [`protocol`] alone words the JSON. No layer calls upward and no
//! channel sits on the request path. [`catalog`] and [`backend`] do not know each other: [`volume`] alone orders
//! them, so that crash ordering is read in one place. Configuration travels sideways: `config::watch → app → Arc
//! swap`. The command line is a client of [`admin`] and knows nothing of the inside; [`doctor`] looks at a host from
//! outside as its engine does, and asks only what any client may ask.
//!
//! The modules `volume::{name, mounts, options}`, `backend::name`, `catalog::location` and `host::{name, right,
//! mountpoints}` are vocabulary: types without behaviour beyond their own rules, which every room may use, like the
//! words of [`error`], the care of [`files`] and the names of [`step`]. `tests/integration/layout.rs` checks each `use
//! crate::` against this page.
//!
//! # The promises
//!
//! 1. What was answered 200 survives `kill -9`, power loss and a full disk; what was not answered leaves nothing
//!    half-made.
//! 2. No request makes volhost touch a path outside its backend.
//! 3. A backend that hangs or is gone delays no request that does not need it.
//! 4. A reload or restart loses no volume, no mount and no answered request.
//! 5. Without a valid certificate no RPC is answered on an `https` listener.
//! 6. Data is removed only after Remove, never one that was answered with an error, only below the volume's own
//!    directory, never through a mount point inside it.
//! 7. The catalog can be lost and made again.
//!
//! # Where a newcomer adds
//!
//! - *A volume option*: one row in `volume/options.rs`; exhaustive destructuring leads the compiler to the places
//!   that must act on it.
//! - *A catalog engine*: `catalog/<engine>.rs`, one arm in `catalog::open`, one line in the contract battery.
//! - *A protocol*: `protocol/<name>.rs` with its wire types and verbs, its domain beside `volume/`, one entry in
//!   `PROTOCOLS`. Activation, limits, error shape, transports, identity and drain are inherited.

pub mod admin;
pub mod app;
pub mod backend;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod doctor;
pub mod error;
pub mod files;
pub mod host;
pub mod pki;
pub mod process;
pub mod protocol;
pub mod step;
pub mod transport;
pub mod volume;
