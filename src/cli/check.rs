//! `check`: reads the configuration as `serve` would, and prints every fault in it.

use clap::Args;

use super::{Error, Shell};

/// Read the configuration and the backend map, and print every fault in them
///
/// Nothing is changed and no service is asked. Each fault is told with its file, line and field, and a hint where one
/// is near. A backend whose path does not exist is no fault: it would be offline.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost check                              The configuration that `serve` would read
  volhost check --config new.json            Another one
  volhost check --json | jq -r '.[].what'    For programs: a list of faults

Exit codes: 0 no faults, 78 faults.")]
pub(super) struct Check {}

pub(super) fn run(args: &Check, _shell: &mut Shell<'_>) -> Result<(), Error> {
    let Check {} = args;
    // NOT WIRED: config::load.
    Err(Error::NotWired("config::load"))
}
