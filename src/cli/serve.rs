//! `serve`: sets up the log and hands over to the app, which prints what it listens on.

use clap::Args;

use super::{Error, Shell};
use crate::app::{self, ServeError};
use crate::config::Paths;
use crate::error::chain;

/// Serve volumes to engines until a signal ends it
///
/// Without any configuration this is complete: certificates, the catalog, the backend `default` and the engine's spec
/// file are made where they are missing. Prints one line `listening on ADDRESS` for each listener, then `ready`.
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
    start_log();
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    app::serve(&paths, shell.global.config.as_deref()).map_err(|error| match error {
        ServeError::Configuration(faults) => Error::Configuration(faults.to_string()),
        error if error.is_configuration() => Error::Configuration(chain(&error)),
        error => Error::Serve(error),
    })
}

/// Logs to the standard error: level `info` unless `RUST_LOG` says otherwise, without times where the journal of
/// systemd adds its own.
fn start_log() {
    let environment = env_logger::Env::default().default_filter_or("info");
    let mut builder = env_logger::Builder::from_env(environment);
    builder.format_target(false).target(env_logger::Target::Stderr);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.format_timestamp(None);
    } else {
        builder.format_timestamp_secs();
    }
    // It fails only where a log was set up before, which then stays.
    let _ = builder.try_init();
}
