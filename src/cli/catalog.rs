//! `catalog export|import|rebuild`, and the comparison that `check --catalog` prints. They ask no service.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::table::{Listing, or_dash, printable};
use super::{Error, Shell, output};
use crate::app::recovery::{self, Compared, Counts, Examined, Rebuilt, RecoveryError};
use crate::catalog::reconcile::Finding;
use crate::config::{self, Config, Paths};
use crate::error::chain;
use crate::error::counted;

/// Save the catalog as text, and restore it from text or from the backends
///
/// Stop the service first, because a running one holds its catalog. A catalog in etcd can be exported while it is served;
/// stop all its instances to import or rebuild it.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost catalog export -o catalog.jsonl    A backup, one record a line
  volhost catalog import catalog.jsonl       Restore it, if there is none or an empty one
  volhost catalog rebuild                    Restore a lost one from the backends' copies
  volhost check --catalog                    Compare it with the directories")]
pub(super) enum Catalog {
    /// Write the whole catalog as JSON lines
    Export(Export),
    /// Make a catalog from an export, or from a backend's copy
    Import(Import),
    /// Rebuild a lost catalog from the backends' copies and directories
    ///
    /// Takes the newest complete copy, `.volhost/catalog.jsonl` on any backend of the map, and from older copies the
    /// volumes whose directories are still there. Lists the directories that no copy knows; they can be adopted.
    /// Deletes nothing, and changes nothing on a backend. Refused while there is a catalog: move it away first, with
    /// its -wal, or delete its keys in etcd.
    Rebuild,
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// Write to FILE (mode 0600) instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(short, long, requires = "output")]
    force: bool,
}

#[derive(Debug, Args)]
pub(super) struct Import {
    /// The output of `catalog export`, or a backend's .volhost/catalog.jsonl; `-` for the standard input
    file: PathBuf,
}

impl From<RecoveryError> for Error {
    fn from(error: RecoveryError) -> Self {
        if error.is_configuration() { Self::Configuration(chain(&error)) } else { Self::Recovery(error) }
    }
}

pub(super) fn run(command: &Catalog, shell: &mut Shell<'_>) -> Result<(), Error> {
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    let loaded = config::load(&paths, shell.global.config.as_deref())
        .map_err(|faults| Error::Configuration(faults.to_string()))?;
    let config = &loaded.config;
    match command {
        Catalog::Export(Export { output: None, force: _ }) => {
            let text = recovery::export(config)?;
            shell.out.write_all(text.as_bytes()).map_err(Error::Output)
        }
        Catalog::Export(Export { output: Some(path), force }) => export(config, path, *force, shell),
        Catalog::Import(Import { file }) => import(config, file, shell),
        Catalog::Rebuild => print_rebuilt(config, &recovery::rebuild(config)?, shell),
    }
}

fn export(config: &Config, path: &Path, force: bool, shell: &mut Shell<'_>) -> Result<(), Error> {
    output::must_be_free(path, force)?;
    let text = recovery::export(config)?;
    output::write(path, text.as_bytes(), 0o600, force)?;
    // The first line and the last one are not records.
    let records = text.lines().count().saturating_sub(2);
    if shell.global.json {
        return shell.json(&json!({ "file": path.to_string_lossy(), "records": records }));
    }
    shell.line(&format!("{}: {}", path.display(), counted(records, "record")))
}

fn import(config: &Config, path: &Path, shell: &mut Shell<'_>) -> Result<(), Error> {
    let read = if path == Path::new("-") {
        let mut text = String::new();
        shell.input.read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text = read.map_err(|source| Error::File { path: path.into(), doing: "read", source })?;
    let counts = recovery::import(config, path, &text)?;
    if shell.global.json {
        return shell.json(&with_counts(json!({ "catalog": config.boot.catalog.to_string() }), counts));
    }
    shell.line(&format!("{} holds {}", config.boot.catalog, counts_text(counts)))
}

fn print_rebuilt(config: &Config, rebuilt: &Rebuilt, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Rebuilt { counts, looked, findings } = rebuilt;
    if shell.global.json {
        let copies: Vec<_> = looked.iter().map(row_of_looked).collect();
        let findings: Vec<_> = findings.iter().map(row_of_finding).collect();
        let catalog = config.boot.catalog.to_string();
        let rows = json!({ "catalog": catalog, "copies": copies, "findings": findings });
        return shell.json(&with_counts(rows, *counts));
    }
    let mut listing = Listing::new(["BACKEND", "MADE", "COPY"]);
    for Examined { backend, path, at, reason: _ } in looked {
        let path = path.as_ref().map(|path| path.display().to_string());
        listing.row([
            backend.to_string(),
            or_dash(at.map(output::written).as_deref()),
            or_dash(path.as_deref()),
        ]);
    }
    shell.table(listing)?;
    reasons(looked, shell)?;
    shell.line("")?;
    show(findings, shell)?;
    if !findings.is_empty() {
        shell.line("")?;
    }
    shell.line(&format!("{} holds {}", config.boot.catalog, counts_text(*counts)))?;
    shell.line("start the service, then look: volhost status, volhost volume ls, volhost mount ls")
}

/// Compares the catalog with the directories, for `check --catalog`.
pub(super) fn compare(config: &Config, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Compared { backends, counts, unseen, findings } = recovery::compare(config)?;
    if shell.global.json {
        let unseen: Vec<_> = unseen.iter().map(row_of_looked).collect();
        let findings: Vec<_> = findings.iter().map(row_of_finding).collect();
        let rows = json!({ "looked_at": backends, "not_looked_at": unseen, "findings": findings });
        shell.json(&with_counts(rows, counts))?;
    } else {
        show(&findings, shell)?;
        reasons(&unseen, shell)?;
    }
    let faults = findings.iter().filter(|finding| finding.kind.is_fault()).count();
    match (faults, unseen.len()) {
        (0, 0) if shell.global.json => Ok(()),
        (0, 0) => {
            let volumes = counted(counts.volumes, "volume");
            shell.line(&format!("{volumes} on {}: each has its directory", counted(backends, "backend")))
        }
        (0, unseen) => Err(Error::Refused(format!("{} could not be looked at", counted(unseen, "backend")))),
        (found, _) => Err(Error::Refused(format!(
            "the catalog and the directories differ in {}; nothing was changed",
            counted(found, "place")
        ))),
    }
}

/// Prints the differences as a table, and below it what each means.
fn show(findings: &[Finding], shell: &mut Shell<'_>) -> Result<(), Error> {
    if findings.is_empty() {
        return Ok(());
    }
    let mut listing = Listing::new(["BACKEND", "KIND", "NAME"]);
    for Finding { backend, kind, name, what: _ } in findings {
        let backend = backend.as_ref().map(ToString::to_string);
        listing.row([or_dash(backend.as_deref()), kind.word().into(), name.clone()]);
    }
    shell.table(listing)?;
    shell.line("")?;
    findings
        .iter()
        .try_for_each(|Finding { name, what, .. }| shell.line(&printable(&format!("{name}: {what}"))))
}

fn reasons(looked: &[Examined], shell: &mut Shell<'_>) -> Result<(), Error> {
    looked.iter().try_for_each(|Examined { backend, path, reason, at: _ }| match (path, reason) {
        (Some(path), Some(reason)) => {
            shell.line(&printable(&format!("{} is not used: {reason}", path.display())))
        }
        (None, Some(reason)) => shell.line(&printable(&format!("{backend} was not looked at: {reason}"))),
        (_, None) => Ok(()),
    })
}

fn row_of_looked(Examined { backend, path, at, reason }: &Examined) -> Value {
    let path = path.as_ref().map(|path| path.to_string_lossy());
    json!({ "backend": backend.as_str(), "path": path, "at": at.map(output::written), "reason": reason })
}

fn row_of_finding(Finding { backend, kind, name, what }: &Finding) -> Value {
    let backend = backend.as_ref().map(ToString::to_string);
    json!({ "backend": backend, "kind": kind.word(), "name": name, "what": what })
}

fn with_counts(mut rows: Value, counts: Counts) -> Value {
    let Counts { volumes, mounts, removed, hosts, backends } = counts;
    let numbers = [
        ("volumes", volumes),
        ("mounts", mounts),
        ("removed", removed),
        ("hosts", hosts),
        ("backends", backends),
    ];
    if let Some(rows) = rows.as_object_mut() {
        rows.extend(numbers.map(|(name, number)| (name.to_owned(), number.into())));
    }
    rows
}

fn counts_text(counts: Counts) -> String {
    let Counts { volumes, mounts, removed, hosts, backends } = counts;
    format!(
        "{}, {}, {}, {} and {}",
        counted(volumes, "volume"),
        counted(mounts, "mount"),
        counted(removed, "removed volume"),
        counted(hosts, "host"),
        counted(backends, "backend")
    )
}
