//! `mount ls|release`: lists the mounts, and removes mounts that the operator declares over.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};

use super::table::{Listing, mark};
use super::{Error, Shell};
use crate::admin::wire::{Mount as Row, MountRelease, Nothing, Released, verb};
use crate::error::counted;

/// The number of characters of an engine's ID in a table, as in docker's list of containers.
const SHORT_ID_LENGTH: usize = 12;

/// See which hosts use which volumes, and release what a lost host holds
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost mount ls --volume db          Who uses db
  volhost mount ls --stale              What engines held that were started again
  volhost mount release db web1         Release what is stale of web1's mounts of db
  volhost mount release db web1 --all   Also what may be alive: web1 is gone for good")]
pub(super) enum Mount {
    /// List mounts
    #[command(visible_alias = "list")]
    Ls(Ls),
    Release(Release),
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Only those of this volume
    #[arg(long, value_name = "NAME")]
    volume: Option<String>,
    /// Only those of this host
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Only those from before the host's engine was started again
    #[arg(long)]
    stale: bool,
    /// Print the engines' IDs in full
    #[arg(long)]
    no_trunc: bool,
}

/// Take out mounts that no engine will ever unmount
///
/// A mount is released by the engine's Unmount, or by this: never by guesswork. Without --all only stale ones are
/// taken, those from before the host's engine was started again. With live-restore a container may outlive its engine,
/// so look at the host, where it can be reached, before you say so.
///
/// What would be released is shown, and asked for, first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost mount release db web1                 What is stale of web1's mounts of db
  volhost mount release db web1 0123456789ab    One of them
  volhost mount release db web1 --all           Also what may be alive: web1 is gone for good")]
pub(super) struct Release {
    /// The volume's name
    volume: String,
    /// The host's name
    host: String,
    /// The engine's ID of the mount, or its first characters; all of the host's when absent
    id: Option<String>,
    /// Also those that may be alive; asks for the host's name to be typed
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) fn run(command: Mount, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Mount::Ls(args) => ls(&args, shell),
        Mount::Release(args) => release(args, shell),
    }
}

fn ls(args: &Ls, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Ls { volume, host, stale, no_trunc } = args;
    let mut rows = shell.client()?.ask::<verb::MountLs>(&Nothing {})?;
    rows.retain(|row| {
        volume.as_ref().is_none_or(|volume| row.volume == *volume)
            && host.as_ref().is_none_or(|host| row.host.eq_ignore_ascii_case(host))
            && (row.stale || !stale)
    });
    if shell.global.json { shell.json(&rows) } else { shell.table(listing(&rows, *no_trunc)) }
}

fn release(args: Release, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Release { volume, host, id, all, yes } = args;
    let client = shell.client()?;
    let id = match id {
        Some(id) => Some(full_id(&client.ask::<verb::MountLs>(&Nothing {})?, &volume, &host, id)?),
        None => None,
    };
    confirm_and_release(MountRelease { volume: Some(volume), host, id, all, dry_run: true }, yes, shell)
}

/// Shows the mounts to the operator, and releases them if the operator agrees; with `yes` it does not ask.
pub(super) fn confirm_and_release(
    request: MountRelease,
    yes: bool,
    shell: &mut Shell<'_>,
) -> Result<(), Error> {
    let client = shell.client()?;
    let planned: Released =
        client.ask::<verb::MountRelease>(&MountRelease { dry_run: true, ..request.clone() })?;
    if planned.released.is_empty() {
        return nothing_to_release(&request, &planned, shell);
    }
    if !yes {
        confirm(&request, &planned, shell)?;
    }
    let done = client.ask::<verb::MountRelease>(&MountRelease { dry_run: false, ..request })?;
    if shell.global.json {
        return shell.json(&done);
    }
    shell.line(&format!("released {}", counted(done.released.len(), "mount")))?;
    shell.table(listing(&done.released, false))?;
    if !done.kept.is_empty() {
        shell.note(&format!(
            "{} may be alive and stay; `--all` releases them too",
            counted(done.kept.len(), "mount")
        ));
    }
    Ok(())
}

/// Shows what would be released, and asks for agreement.
fn confirm(request: &MountRelease, planned: &Released, shell: &mut Shell<'_>) -> Result<(), Error> {
    let MountRelease { volume, host, .. } = request;
    let (of, it) = match volume {
        Some(volume) => (format!(" of {volume}"), &**volume),
        None => (String::new(), "its volume"),
    };
    shell.print_table_to_stderr(listing(&planned.released, false));
    let count = counted(planned.released.len(), "mount");
    let alive = planned.released.iter().filter(|mount| !mount.stale).count();
    if request.all {
        shell.note(&format!(
            "{} of these may be alive. A container on {host} that still writes would then share {it} with whoever removes or mounts it next.",
            counted(alive, "mount")
        ));
        let question = format!("To release {count}{of}, type the host's name ({host}):");
        Ok(shell.prompt().confirm_by_typing(&question, host)?)
    } else {
        Ok(shell.prompt().confirm(&format!("Release {count}{of} by {host}?"))?)
    }
}

fn nothing_to_release(
    request: &MountRelease,
    planned: &Released,
    shell: &mut Shell<'_>,
) -> Result<(), Error> {
    let MountRelease { volume, host, .. } = request;
    let (of, command) = match volume {
        Some(volume) => (format!(" of {volume}"), format!("mount release {volume} {host}")),
        None => (String::new(), format!("host release {host}")),
    };
    if planned.kept.is_empty() {
        if shell.global.json {
            return shell.json(planned);
        }
        shell.note(&format!("{host} has no mount{of}: there is nothing to release"));
        return Ok(());
    }
    shell.print_table_to_stderr(listing(&planned.kept, false));
    Err(Error::Refused(format!(
        "nothing was released: {}{of} by {host} may be alive: its engine was not started again since, or which of its machines was is not known; if {host} is gone for good, or no container there uses them, release them with `volhost {command} --all`",
        counted(planned.kept.len(), "mount")
    )))
}

/// Returns the only mount ID of that host and volume that is, or begins with, the typed text.
fn full_id(mounts: &[Row], volume: &str, host: &str, typed: String) -> Result<String, Error> {
    let ids: BTreeSet<&str> = mounts
        .iter()
        .filter(|mount| mount.volume == volume && mount.host.eq_ignore_ascii_case(host))
        .map(|mount| &*mount.id)
        .collect();
    if ids.contains(&*typed) {
        return Ok(typed);
    }
    let mut near = ids.iter().filter(|id| id.starts_with(&typed));
    match (near.next(), near.next()) {
        (Some(id), None) => Ok((*id).to_owned()),
        (Some(_), Some(_)) => Err(Error::Refused(format!(
            "several mounts of {volume} by {host} have an ID that begins with {typed}: give more of it, `volhost mount ls --no-trunc` shows all of it"
        ))),
        (None, _) => Err(Error::Refused(format!(
            "{host} has no mount of {volume} with the ID {typed}: `volhost mount ls --volume {volume} --host {host}` shows those it has"
        ))),
    }
}

/// Returns mounts as a table; `volume inspect` prints it too.
pub(super) fn listing(rows: &[Row], whole_ids: bool) -> Listing {
    let mut listing = Listing::new(["VOLUME", "HOST", "ID", "COUNT", "SINCE", "STALE"]).right(3);
    for Row { volume, host, id, count, since, stale, address: _ } in rows {
        let id = if whole_ids { id.clone() } else { short(id) };
        listing.row([volume.clone(), host.clone(), id, count.to_string(), since.clone(), mark(*stale)]);
    }
    listing
}

/// Returns the beginning of an ID that an engine generated; a short or readable ID stays as it is.
fn short(id: &str) -> String {
    if id.len() >= 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
        id.chars().take(SHORT_ID_LENGTH).collect()
    } else {
        id.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: &str, stale: bool) -> Row {
        Row {
            volume: "db".into(),
            host: "web1".into(),
            id: id.into(),
            count: 1,
            since: "2026-01-02T03:04:05Z".into(),
            stale,
            address: None,
        }
    }

    #[test]
    fn ids_are_shortened_as_dockers_are() {
        let rows = [
            mount(&"0123456789abcdef".repeat(4), true),
            mount("a-speaking-id-of-a-test-engine-0123456789", false),
        ];
        assert_eq!(
            listing(&rows, false).render(None),
            "VOLUME  HOST  ID                                         COUNT  SINCE                 STALE\n\
             db      web1  0123456789ab                                   1  2026-01-02T03:04:05Z  yes\n\
             db      web1  a-speaking-id-of-a-test-engine-0123456789      1  2026-01-02T03:04:05Z\n"
        );
        assert!(listing(&rows, true).render(None).contains(&"0123456789abcdef".repeat(4)));
    }

    #[test]
    fn the_beginning_of_an_id_names_it_if_it_is_the_only_one() {
        let rows = [mount("abc1", false), mount("abc2", false), mount("abc2", true), mount("ab", false)];
        let full = |typed: &str| full_id(&rows, "db", "WEB1", typed.into());
        assert_eq!(full("abc1").unwrap(), "abc1");
        assert_eq!(full("abc2").unwrap(), "abc2", "one ID of two activations is one ID");
        assert_eq!(full("ab").unwrap(), "ab", "a whole ID that others begin with");
        assert!(full("abc").unwrap_err().to_string().contains("several mounts"));
        assert!(full("x").unwrap_err().to_string().contains("no mount of db with the ID x"));
        assert!(full_id(&rows, "db", "web2", "abc1".into()).is_err());
    }
}
