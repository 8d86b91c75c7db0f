//! `backend ls|init|adopt`: lists the backends, and gives them their identity.

use clap::{Args, Subcommand};

use super::table::{Listing, printable, size};
use super::{Error, Shell};
use crate::admin::wire::{Backend as Row, BackendInit, BackendName, Done, Nothing, verb};

/// See the backends, and give them their identity
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost backend ls            Their state, and the space left
  volhost backend init fast     Make the directory of `fast`, not empty, a backend
  volhost backend adopt fast    Take in a backend with an identity of another's making

A backend is a directory named in the backend map. Its identity, written into it once,
tells it from an empty mount point and from the wrong disk. A new backend in an empty
directory gets one by itself.")]
pub(super) enum Backend {
    /// List the backends
    #[command(visible_alias = "list")]
    Ls,
    /// Give a backend's directory an identity
    Init(Init),
    /// Take in a backend whose identity this service's catalog does not know
    Adopt(Adopt),
}

#[derive(Debug, Args)]
pub(super) struct Init {
    /// The backend's name in the map
    name: String,
    /// Even if the catalog remembers another identity for it
    ///
    /// The volumes that the catalog has on this backend then are expected in this directory.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Adopt {
    /// The backend's name in the map
    name: String,
}

pub(super) fn run(command: Backend, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Backend::Ls => {
            let rows = shell.client()?.ask::<verb::BackendLs>(&Nothing {})?;
            if shell.global.json { shell.json(&rows) } else { show(&rows, shell) }
        }
        Backend::Init(Init { name, force }) => {
            let done = shell.client()?.ask::<verb::BackendInit>(&BackendInit { name, force })?;
            print_done(&done, shell)
        }
        Backend::Adopt(Adopt { name }) => {
            let done = shell.client()?.ask::<verb::BackendAdopt>(&BackendName { name })?;
            print_done(&done, shell)
        }
    }
}

fn print_done(done: &Done, shell: &mut Shell<'_>) -> Result<(), Error> {
    if shell.global.json { shell.json(done) } else { shell.line(&done.done) }
}

/// Prints the backends as a table, and below it why some are not online. `status` prints them too.
pub(super) fn show(rows: &[Row], shell: &mut Shell<'_>) -> Result<(), Error> {
    shell.table(listing(rows))?;
    // Reasons are sentences: in a column they would squeeze the other columns on a terminal.
    reasons(rows).iter().chain(&name_rule_lines(rows)).try_for_each(|reason| shell.line(reason))
}

/// Returns a line for each backend whose storage takes different names for one.
fn name_rule_lines(rows: &[Row]) -> Vec<String> {
    let told = rows.iter().filter_map(|row| row.names.as_ref().map(|names| (row, names)));
    let told = told.filter(|(_, names)| *names != "exact");
    told.map(|(row, names)| printable(&format!("{} takes different names for one: {names}", row.name)))
        .collect()
}

fn reasons(rows: &[Row]) -> Vec<String> {
    let told = rows.iter().filter_map(|row| row.reason.as_ref().map(|reason| (row, reason)));
    told.map(|(row, reason)| printable(&format!("{} is {}: {reason}", row.name, row.state))).collect()
}

fn listing(rows: &[Row]) -> Listing {
    let header = ["NAME", "STATE", "VOLUMES", "SIZE", "FREE", "PATH"];
    let mut listing = Listing::new(header).right(2).right(3).right(4);
    for Row { name, path, state, draining, reason: _, volumes, total_bytes, free_bytes, names: _ } in rows {
        listing.row([
            name.clone(),
            if *draining { format!("{state}, draining") } else { state.clone() },
            volumes.to_string(),
            size(*total_bytes),
            size(*free_bytes),
            path.clone(),
        ]);
    }
    listing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_for_people_and_reasons_are_told() {
        let online = Row {
            name: "fast".into(),
            path: "/mnt/fast".into(),
            state: "online".into(),
            draining: true,
            reason: None,
            volumes: 3,
            total_bytes: Some(4 << 40),
            free_bytes: Some(1536 << 20),
            names: Some("case-insensitive".into()),
        };
        let offline = Row {
            name: "slow".into(),
            state: "offline".into(),
            draining: false,
            reason: Some("no .volhost/backend.json".into()),
            total_bytes: None,
            free_bytes: None,
            names: None,
            ..online.clone()
        };
        let rows = [online, offline];
        assert_eq!(
            listing(&rows).render(None),
            "NAME  STATE             VOLUMES   SIZE     FREE  PATH\n\
             fast  online, draining        3  4 TiB  1.5 GiB  /mnt/fast\n\
             slow  offline                 3      -        -  /mnt/fast\n"
        );
        assert_eq!(reasons(&rows), ["slow is offline: no .volhost/backend.json"]);
        assert_eq!(name_rule_lines(&rows), ["fast takes different names for one: case-insensitive"]);
    }
}
