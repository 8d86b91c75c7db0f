//! `volume ls|create|inspect|rm|restore`: docker's commands for volumes, and the trash.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::filter::{self, Filter};
use super::table::{Listing, or_dash, printable};
use super::{Error, Shell, each, mount};
use crate::admin::client::{Client, ClientError};
use crate::admin::wire::{
    Directory, Done, Nothing, Trashed, Volume as Row, VolumeCreate, VolumeDetail, VolumeName, VolumeRemove,
    VolumeRestore, verb,
};
use crate::model::options::TABLE;

/// The time limit for deleting a volume's data at once: a file system needs long for a great many files.
const DELETION_TIMEOUT: Duration = Duration::from_secs(6 * 3600);

/// List, create, inspect, remove and restore volumes
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost volume ls --filter backend=fast --filter mounted=false
  volhost volume create -o backend=fast -o uid=70 -o gid=70 db
  volhost volume inspect db
  volhost volume rm db && volhost volume ls --trash
  volhost volume restore db")]
pub(super) enum Volume {
    /// List volumes, or the removed ones
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Create a volume
    Create(Create),
    /// Show everything that is known of volumes
    Inspect(Inspect),
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Take a removed volume out of the trash
    Restore(Restore),
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// Print names alone; with --trash, the identities that `volume restore` takes
    #[arg(short, long)]
    quiet: bool,
    /// List only what matches: name=, backend=, state=, mounted=, dangling=, option.KEY=
    #[arg(short, long, value_name = "KEY=VALUE", long_help = filter::HELP)]
    filter: Vec<Filter>,
    /// List the removed volumes that can still be restored
    #[arg(long)]
    trash: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost volume create db
  volhost volume create -o backend=fast -o mode=0750 db
  volhost volume create -o adopt=true data    An existing directory becomes one")]
pub(super) struct Create {
    /// Set an option of the volume
    #[arg(short, long = "opt", value_name = "KEY=VALUE", value_parser = pair, long_help = options_help())]
    opt: Vec<(String, String)>,
    /// The volume's name
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The volumes' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Remove volumes
///
/// A volume that some host has mounted is never removed: unmount it there, or see `volhost mount release --help`.
/// The data stays in the backend's trash for its `trash` time, and the name is free at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost volume rm db                Remove it; `volhost volume restore db` undoes that
  volhost volume rm --now db          Delete its data at once
  volhost volume ls -q --trash | xargs -r volhost volume rm --now --yes")]
pub(super) struct Rm {
    /// Take a volume that does not exist for removed; never overrides a mount
    #[arg(short, long)]
    force: bool,
    /// Delete the data at once instead of after the backend's `trash` time
    ///
    /// Also takes the name or identity of a volume that is in the trash already.
    #[arg(long)]
    now: bool,
    /// Do not ask before data is deleted
    #[arg(short, long)]
    yes: bool,
    /// The volumes' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// The name it had (the latest removed one of that name), or its identity, as `volume ls --trash` shows it
    #[arg(value_name = "NAME|ID")]
    name: String,
}

/// Returns the help on `-o`, generated from the one table of options.
fn options_help() -> String {
    let width = TABLE.iter().map(|row| row.name.len()).max().unwrap_or(0);
    let rows = TABLE.iter().map(|row| {
        let text = format!("{}; takes {}; default: {}", row.doc, row.value, row.default);
        format!("\n  {:<width$}  {}", row.name, wrapped(&text, 64, &" ".repeat(width + 4)))
    });
    format!("Set an option of the volume\n{}", rows.collect::<String>())
}

/// Wraps `text` into lines of at most `width` characters and indents all but the first: clap would begin them
/// at the left.
fn wrapped(text: &str, width: usize, indent: &str) -> String {
    let (mut out, mut line) = (String::new(), 0);
    for word in text.split(' ') {
        let length = word.chars().count();
        if line > 0 && line + 1 + length > width {
            out = out + "\n" + indent;
            line = 0;
        } else if line > 0 {
            out.push(' ');
            line += 1;
        }
        out.push_str(word);
        line += length;
    }
    out
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        _ => Err("an option is KEY=VALUE".into()),
    }
}

pub(super) fn run(command: Volume, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Volume::Ls(args) if args.trash => ls_trash(&args, shell),
        Volume::Ls(args) => ls(&args, shell),
        Volume::Create(args) => create(args, shell),
        Volume::Inspect(args) => inspect(&args, shell),
        Volume::Rm(args) => rm(&args, shell),
        Volume::Restore(Restore { name }) => {
            let volume = shell.client()?.ask::<verb::VolumeRestore>(&VolumeRestore { name })?;
            if shell.global.json { shell.json(&volume) } else { shell.line(&volume.name) }
        }
    }
}

fn ls(args: &Ls, shell: &mut Shell<'_>) -> Result<(), Error> {
    let mut rows = shell.client()?.ask::<verb::VolumeLs>(&Nothing {})?;
    rows.retain(|row| filter::admits(&args.filter, row));
    if args.quiet {
        return names(rows.iter().map(|row| &*row.name), shell);
    }
    if shell.global.json {
        return shell.json(&rows);
    }
    let mut listing = Listing::new(["NAME", "BACKEND", "STATE", "MOUNTS", "CREATED", "PATH"]).right(3);
    for Row { name, backend, path, created_at, options: _, state, mounts } in &rows {
        let mounts = mounts.to_string();
        listing.row([name.clone(), backend.clone(), state.clone(), mounts, created_at.clone(), path.clone()]);
    }
    shell.table(listing)
}

fn ls_trash(args: &Ls, shell: &mut Shell<'_>) -> Result<(), Error> {
    if let Some(key) = filter::not_for_trash(&args.filter) {
        return Err(Error::Usage(format!(
            "the filter {key} says nothing of removed volumes; with --trash there are name and backend"
        )));
    }
    let mut rows = shell.client()?.ask::<verb::VolumeTrash>(&Nothing {})?;
    rows.retain(|row| filter::admits_trashed(&args.filter, row));
    if args.quiet {
        return names(rows.iter().map(|row| &*row.id), shell);
    }
    if shell.global.json {
        return shell.json(&rows);
    }
    let mut listing = Listing::new(["NAME", "BACKEND", "REMOVED", "DELETED AFTER", "ID", "BLOCKED"]);
    for Trashed { name, id, backend, removed_at, expires_at, blocked } in &rows {
        listing.row([
            name.clone(),
            backend.clone(),
            removed_at.clone(),
            or_dash(expires_at.as_deref()),
            id.clone(),
            or_dash(blocked.as_deref()),
        ]);
    }
    shell.table(listing)
}

fn names<'a>(names: impl Iterator<Item = &'a str>, shell: &mut Shell<'_>) -> Result<(), Error> {
    if shell.global.json {
        return shell.json(&names.collect::<Vec<_>>());
    }
    for name in names {
        shell.line(name)?;
    }
    Ok(())
}

fn create(args: Create, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Create { opt, name } = args;
    let mut options = BTreeMap::new();
    for (key, value) in opt {
        if let Some(before) = options.insert(key.clone(), value.clone())
            && before != value
        {
            return Err(Error::Usage(format!("-o {key} is given twice, as {before:?} and as {value:?}")));
        }
    }
    let volume = shell.client()?.ask::<verb::VolumeCreate>(&VolumeCreate { name, options })?;
    if shell.global.json { shell.json(&volume) } else { shell.line(&volume.name) }
}

fn inspect(args: &Inspect, shell: &mut Shell<'_>) -> Result<(), Error> {
    let client = shell.client()?;
    let mut found = Vec::new();
    let result = each(&args.names, |name| {
        let detail = client.ask::<verb::VolumeInspect>(&VolumeName { name: name.clone() })?;
        found.push(detail);
        Ok(())
    });
    // The volumes that were found are shown even if another one was not, as docker does.
    if shell.global.json {
        shell.json(&found)?;
        return result;
    }
    for (index, detail) in found.iter().enumerate() {
        if index > 0 {
            shell.line("")?;
        }
        show(detail, shell)?;
    }
    result
}

fn show(detail: &VolumeDetail, shell: &mut Shell<'_>) -> Result<(), Error> {
    let VolumeDetail {
        volume: Row { name, backend, path, created_at, options, state, mounts: _ },
        id,
        adopted,
        durable,
        known_to,
        mounted_by,
        directory,
    } = detail;
    let mut found = directory.as_ref().map_or_else(|| "its backend does not say".into(), directory_text);
    if !durable {
        found.push_str("; new, and not durable yet");
    }
    let options: Vec<String> = options.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let rows = [
        ("name", name.clone()),
        ("id", id.clone()),
        ("backend", format!("{backend} ({state})")),
        ("path", path.clone()),
        ("directory", found),
        ("created", created_at.clone()),
        ("options", if options.is_empty() { "none".into() } else { options.join(", ") }),
        ("adopted", if *adopted { "yes: its removal leaves the directory".into() } else { "no".into() }),
        ("known to", if known_to.is_empty() { "no host".into() } else { known_to.join(", ") }),
        ("mounted by", if mounted_by.is_empty() { "no host".into() } else { String::new() }),
    ];
    for (label, value) in rows {
        shell.line(printable(&format!("{label:<12}{value}")).trim_end())?;
    }
    if mounted_by.is_empty() { Ok(()) } else { shell.table(mount::listing(mounted_by, false)) }
}

/// Describes a volume's directory in one line.
fn directory_text(directory: &Directory) -> String {
    let Directory { kind, uid, gid, mode, changed } = directory;
    let mut line = match (uid, gid, mode) {
        (Some(uid), Some(gid), Some(mode)) => format!("owner {uid}:{gid}, mode {mode}"),
        _ => format!("{kind} stands there, where the volume's directory should"),
    };
    if !changed.is_empty() {
        line.push_str("; not as its options said: ");
        line.push_str(&changed.join(", "));
    }
    line
}

fn rm(args: &Rm, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Rm { force, now, yes, names } = args;
    if *now && !*yes {
        shell.prompt().confirm(&format!("Delete the data of {} for good?", names.join(", ")))?;
    }
    let client = shell.client()?;
    let remover = if *now { client.clone().with_answer_timeout(DELETION_TIMEOUT) } else { client.clone() };
    let mut removed = Vec::new();
    let json = shell.global.json;
    let result = each(names, |name| {
        match remover.ask::<verb::VolumeRm>(&VolumeRemove { name: name.clone(), now: *now }) {
            Ok(Done { done }) => {
                removed.push(serde_json::json!({ "name": name, "done": done }));
                if json { Ok(()) } else { shell.line(name) }
            }
            Err(ClientError::Failed(_)) if *force && !exists(name, *now, &client)? => Ok(()),
            Err(error) => Err(error.into()),
        }
    });
    if json {
        shell.json(&removed)?;
    }
    result
}

/// Returns true if a removal had something to remove: programs cannot read that from a refusal.
fn exists(name: &str, in_trash_too: bool, client: &Client) -> Result<bool, Error> {
    let volumes = client.ask::<verb::VolumeLs>(&Nothing {})?;
    if volumes.iter().any(|volume| volume.name == *name) {
        return Ok(true);
    }
    if !in_trash_too {
        return Ok(false);
    }
    let trash = client.ask::<verb::VolumeTrash>(&Nothing {})?;
    Ok(trash.iter().any(|removed| removed.name == *name || removed.id == *name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_on_options_has_a_line_for_each_row_of_the_table() {
        let help = options_help();
        for row in TABLE {
            assert!(help.contains(&format!("\n  {}  ", row.name)), "{help}");
            let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(words.contains(row.doc) && words.contains(row.default), "{help}");
        }
    }

    #[test]
    fn an_option_is_a_pair() {
        assert_eq!(pair("mode=0750"), Ok(("mode".into(), "0750".into())));
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(pair("mode").is_err());
        assert!(pair("=0750").is_err());
    }
}
