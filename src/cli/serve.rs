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

#[cfg(test)]
mod tests {
    /// The environment of the service, as its unit reads it.
    const SAMPLE: &str = include_str!("../../etc/default/volhost");

    #[test]
    fn the_sample_environment_names_what_is_read_with_values_that_are_understood() {
        let mut named = Vec::new();
        for line in SAMPLE.lines() {
            // A setting may stand there commented out; a sentence has spaces.
            let setting = line.strip_prefix('#').unwrap_or(line);
            let Some((name, value)) = setting.split_once('=').filter(|_| !setting.contains(' ')) else {
                assert!(
                    line.is_empty() || line.starts_with('#'),
                    "{line:?} is neither a setting nor a comment"
                );
                continue;
            };
            let understood = match name {
                env_logger::DEFAULT_FILTER_ENV => value.parse::<log::LevelFilter>().is_ok(),
                env_logger::DEFAULT_WRITE_STYLE_ENV => ["auto", "always", "never"].contains(&value),
                _ => panic!("nothing reads {name}"),
            };
            assert!(understood, "{line}");
            named.push(name);
        }
        assert_eq!(named, [env_logger::DEFAULT_FILTER_ENV, env_logger::DEFAULT_WRITE_STYLE_ENV]);
    }
}
