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
//! outside as its engine does, and asks only what any client may ask. [`monitoring`] reads what the others know.
//!
//! [`model`] holds the words that every room uses. [`error`], [`files`] and [`failpoint`] are used by every room, too.
//! `tests/integration/layout.rs` checks each `use crate::` against this page.
//!
//! `docs/reference/promises.md` lists the promises, `docs/architecture.md` says why the house is built like this, and
//! `docs/contributing.md` where a change begins.

pub(crate) mod admin;
pub mod app;
pub mod backend;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod discovery;
pub mod doctor;
pub(crate) mod error;
pub(crate) mod failpoint;
pub(crate) mod files;
pub mod host;
pub mod model;
pub(crate) mod monitoring;
pub mod pki;
pub(crate) mod process;
pub mod protocol;
pub mod transport;
pub mod volume;
