//! `spec lint`: prints the plugins that engines find in their directories, and the faults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::table::{Listing, printable};
use super::{Error, Shell};
use crate::discovery::lint::{self, Fault, Finding, Plugin, Report, SearchDirs, Severity, probe};
use crate::error::counted;

/// Read the directories as an engine does, and print the faults of the files in them
///
/// For each plugin: which file an engine reads, what that file hides, and every fault in it and in the TLS files that
/// it names. All plugins are read, not only this one. Run it where the engine runs, and as the engine's user; neither
/// a service nor a configuration is needed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost spec lint              What the engine of this machine finds
  volhost spec lint --probe      Also call each plugin, as the engine would
  volhost spec lint ./plugins    Files that are to be put on a host

Exit codes: 0 no faults, 1 faults.")]
pub(super) struct Lint {
    /// Read these directories, in this order, instead of the engine's
    ///
    /// Sockets are looked for in one that is called `run/docker/plugins`, spec files in every other.
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Call each plugin, and print whether it is found, verified, and answers
    ///
    /// The call asks for the plugin's capabilities, and changes nothing. Proxies are not used.
    #[arg(long)]
    probe: bool,
}

/// The outcome of the call to each plugin, by its name.
type Outcomes = BTreeMap<String, &'static str>;

pub(super) fn run(args: &Lint, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Lint { dirs, probe } = args;
    let mut report = lint::lint(&search_dirs(dirs, shell), OffsetDateTime::now_utc());
    let outcomes = if *probe { call_all(&mut report)? } else { Outcomes::new() };
    if shell.global.json {
        shell.json(&value(&report, &outcomes))?;
    } else {
        show(&report, &outcomes, shell)?;
    }
    match report.findings.len() {
        0 => Ok(()),
        count => Err(Error::Refused(format!("{} in what engines read", counted(count, "fault")))),
    }
}

/// Returns the named directories, or else those of this user's engine.
pub(super) fn search_dirs(dirs: &[PathBuf], shell: &Shell<'_>) -> SearchDirs {
    if !dirs.is_empty() {
        return SearchDirs::named(dirs);
    }
    let root = shell.global.root.as_deref().unwrap_or(Path::new("/"));
    let home = std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_absolute());
    SearchDirs::of_engine(root, rustix::process::geteuid().is_root(), home.as_deref())
}

/// Calls every plugin that an engine would call, and adds the failures to the findings. Returns each plugin's
/// outcome by its name.
fn call_all(report: &mut Report) -> Result<Outcomes, Error> {
    let fails_before = |name: &String| {
        let of_it = |finding: &&Finding| finding.plugin.as_ref() == Some(name);
        report.findings.iter().filter(of_it).any(|finding| finding.fault.is_before_any_call())
    };
    let understood: Vec<_> = report
        .plugins
        .iter()
        .filter(|plugin| !fails_before(&plugin.name))
        .filter_map(|plugin| Some((plugin, plugin.target.as_ref()?)))
        .collect();
    let targets: Vec<_> = understood.iter().map(|(_, target)| *target).collect();
    let told = probe::probe(&targets, probe::PROBE_TIMEOUT).map_err(Error::Probe)?;
    let (mut outcomes, mut findings) = (Outcomes::new(), Vec::new());
    for ((plugin, _), fault) in understood.iter().zip(told) {
        let Plugin { name, file, .. } = plugin;
        outcomes.insert(name.clone(), fault.as_ref().map_or("answers", Fault::word));
        findings.extend(fault.map(|fault| Finding { plugin: Some(name.clone()), file: file.clone(), fault }));
    }
    report.findings.extend(findings);
    Ok(outcomes)
}

fn show(report: &Report, outcomes: &Outcomes, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Report { plugins, findings } = report;
    if plugins.is_empty() {
        shell.note("an engine finds no plugin here");
    } else {
        let mut listing = Listing::new(["NAME", "TLS", "PROBE", "ADDRESS", "FILE"]);
        for plugin in plugins {
            let Plugin { name, file, target, shadows: _ } = plugin; // Each of them is a finding below.
            let (address, tls) =
                target.as_ref().map_or(("-", "-"), |target| (&*target.address, target.protection.word()));
            let probe = outcomes.get(name).copied().unwrap_or("-");
            listing.row([name.clone(), tls.into(), probe.into(), address.into(), file.display().to_string()]);
        }
        shell.table(listing)?;
    }
    if !findings.is_empty() {
        shell.line("")?;
    }
    findings.iter().try_for_each(|Finding { plugin: _, file, fault }| {
        let severity = fault.severity();
        let word = match severity {
            Severity::Error => super::status::highlighted(severity.word(), shell.colour),
            Severity::Warning => severity.word().into(),
        };
        shell.line(&format!("{word}: {}", printable(&format!("{}: {fault}", file.display()))))
    })
}

fn value(report: &Report, outcomes: &Outcomes) -> Value {
    let plugins: Vec<_> = report
        .plugins
        .iter()
        .map(|plugin| {
            let Plugin { name, file, target, shadows } = plugin;
            let shadows: Vec<_> = shadows.iter().map(|path| path.to_string_lossy()).collect();
            json!({
                "name": name,
                "file": file.to_string_lossy(),
                "address": target.as_ref().map(|target| &target.address),
                "tls": target.as_ref().map(|target| target.protection.word()),
                "shadows": shadows,
                "probe": outcomes.get(name),
            })
        })
        .collect();
    let findings: Vec<_> = report
        .findings
        .iter()
        .map(|Finding { plugin, file, fault }| {
            json!({
                "plugin": plugin,
                "file": file.to_string_lossy(),
                "severity": fault.severity().word(),
                "fault": fault.word(),
                "text": fault.to_string(),
            })
        })
        .collect();
    json!({ "plugins": plugins, "findings": findings })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::offline;

    fn fixture(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let path = dir.path().to_str().unwrap().to_owned();
        (dir, path)
    }

    #[test]
    fn good_files_are_listed_and_nothing_is_complained_about() {
        let (_dir, path) = fixture(&[("p.spec", "unix:///run/p.sock\n")]);
        let ran = offline(&["spec", "lint", &path]);
        assert_eq!((ran.code, &*ran.err), (0, ""));
        let listed = format!(
            "NAME  TLS    PROBE  ADDRESS             FILE\np     local  -      unix:///run/p.sock  {path}/p.spec\n"
        );
        assert_eq!(ran.out, listed);
        let empty = tempfile::tempdir().unwrap();
        let ran = offline(&["spec", "lint", "--root", empty.path().to_str().unwrap()]);
        assert_eq!((ran.code, &*ran.out, &*ran.err), (0, "", "an engine finds no plugin here\n"));
    }

    #[test]
    fn each_fault_is_a_line_with_its_file() {
        let (_dir, path) = fixture(&[("p.spec", "https://h:1"), ("p.json", "{}")]);
        let ran = offline(&["spec", "lint", &path]);
        assert_eq!((ran.code, &*ran.err), (1, "volhost: 2 faults in what engines read\n"));
        let lines: Vec<_> = ran.out.lines().skip(2).collect();
        assert_eq!(lines[0], "");
        assert!(lines[1].starts_with(&format!("error: {path}/p.spec: https in a .spec file")), "{}", ran.out);
        assert!(lines[2].starts_with(&format!("warning: {path}/p.json: no engine reads it")), "{}", ran.out);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn a_plugin_that_is_down_is_told_by_the_probe() {
        let (_dir, path) = fixture(&[("p.spec", "unix:///nowhere/p.sock")]);
        let ran = offline(&["spec", "lint", "--json", "--probe", &path]);
        assert_eq!(ran.code, 1);
        let value: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(value["plugins"][0]["probe"], "unreachable");
        assert_eq!(value["findings"][0]["fault"], "unreachable");
        assert_eq!(value["findings"][0]["plugin"], "p");
        assert_eq!(value["findings"][0]["severity"], "error");
    }
}
