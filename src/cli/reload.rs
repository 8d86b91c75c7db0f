//! `reload`: makes the service read its files again, and waits for the result.

use clap::Args;

use super::{Error, Shell};
use crate::admin::wire::{Reload as ReloadReport, ReloadAsked, verb};

/// Make the service read its configuration, certificates and revocation list again
///
/// The service follows changed files by itself; this command waits until they are in force, or prints the faults for
/// which they were rejected. After a rejection the earlier ones stay in force, and the exit code is 78.
///
/// Without --force the service rejects a missing file that was in force, an expired server certificate that would replace
/// a valid one, and a revocation list that is older than the one in force.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost reload
  volhost reload --force           The configuration was removed: the defaults are to hold
  systemctl reload volhost         The same, where systemd runs the service")]
pub(super) struct Reload {
    /// Put in force also what is gone, expired or older than what is in force
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Reload, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Reload { force } = *args;
    let reloads = shell.client()?.ask::<verb::Reload>(&ReloadAsked { force })?;
    if shell.global.json {
        shell.json(&reloads)?;
    } else {
        for ReloadReport { at, unit, result, faults: _ } in &reloads {
            shell.line(&format!("{unit} {result} at {at}"))?;
        }
    }
    let faults = reloads.into_iter().flat_map(|reload| reload.faults).collect::<Vec<_>>();
    if faults.is_empty() { Ok(()) } else { Err(Error::Configuration(faults.join("\n"))) }
}
