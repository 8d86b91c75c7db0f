//! `serve`: runs the app, which prints the addresses that it listens on.

use clap::Args;

use super::{Error, Shell};
use crate::app::{self, ServeError};
use crate::config::Paths;
use crate::error::chain;

/// Serve volumes to engines until a signal ends it
///
/// Without any configuration this is complete: certificates, the catalog, the backend `default` and the engine's spec
/// file are made if they are missing. Prints one line `listening on ADDRESS` for each listener, then `ready`.
///
/// SIGTERM and SIGINT end it when the requests in flight are done, a second one at once; SIGHUP reloads.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost serve                      For this machine's engine, and others by `host add`
  volhost serve --root /tmp/trial    A trial that touches nothing else
  RUST_LOG=debug volhost serve       Log more: error, warn, info, debug or trace")]
pub(super) struct Serve {}

pub(super) fn run(args: &Serve, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Serve {} = args;
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    app::serve(&paths, shell.global.config.as_deref()).map_err(|error| match error {
        ServeError::Configuration(faults) => Error::Configuration(faults.to_string()),
        error if error.is_configuration() => Error::Configuration(chain(&error)),
        error => Error::Serve(error),
    })
}
