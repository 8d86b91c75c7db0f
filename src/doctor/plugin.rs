//! Checks the plugin's spec file on this machine, the files that hide it, and its TLS files, with the lint of
//! `spec lint`.

use std::path::Path;

use crate::model::timestamp;
use time::OffsetDateTime;

use super::storage::Storage;
use super::{Finding, Scope, Verdict, shown};
use crate::discovery::lint::{self, Fault, Protection, Report, Severity, Target};
use crate::files;
use crate::pki::{bundle, describe};

const SPEC: &str = "spec-file";
const CERTIFICATES: &str = "certificates";

/// The plugin's name if nobody gave it another.
const DEFAULT_NAME: &str = "volhost";

/// The plugin that is examined.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// The plugin's name on this machine.
    pub name: String,
    /// The address that an engine calls; `None` if an engine would fail before it calls anybody.
    pub target: Option<Target>,
}

/// Reads the files that an engine would read.
pub(super) fn examine(scope: &Scope, storage: Option<&Storage>, findings: &mut Vec<Finding>) -> Plugin {
    let report = lint::lint(&scope.dirs, OffsetDateTime::now_utc());
    for finding in report.findings.iter().filter(|finding| finding.plugin.is_none()) {
        findings.push(finding_of(SPEC, &finding.file, &finding.fault, None));
    }
    let configured = storage.and_then(|storage| storage.name.clone());
    let name = match &scope.plugin {
        Some(name) => name.clone(),
        None => configured.unwrap_or_else(|| guess(&report)),
    };
    let found = report.plugins.iter().find(|plugin| plugin.name == name);
    let faults: Vec<_> =
        report.findings.iter().filter(|finding| finding.plugin.as_ref() == Some(&name)).collect();
    for finding in &faults {
        let check = if finding.fault.is_of_tls_files() { CERTIFICATES } else { SPEC };
        findings.push(finding_of(check, &finding.file, &finding.fault, found.map(|found| &*found.file)));
    }
    let Some(found) = found else {
        missing(&name, &report, scope, storage, findings);
        return Plugin { name, target: None };
    };
    let of = |tls: bool| faults.iter().any(|finding| finding.fault.is_of_tls_files() == tls);
    let target = found.target.clone();
    if let Some(target) = target.as_ref().filter(|_| !of(false)) {
        let how = match target.protection {
            Protection::Local => "a socket of this machine",
            Protection::Off => "in plain text, on this machine",
            Protection::Unverified => "TLS, unverified",
            Protection::Verified => "TLS, verified",
        };
        let message = format!("{} is read: {} ({how})", found.file.display(), target.address);
        findings.push(Finding::new(SPEC, &name, Verdict::Ok, message));
    }
    if let Some(target) = target.as_ref().filter(|_| !of(true)) {
        certificates(target, findings);
    }
    let unusable = faults.iter().any(|finding| finding.fault.is_before_any_call());
    Plugin { name, target: target.filter(|_| !unusable) }
}

/// Returns the name of the plugin that is probably meant if nobody named one: ours by its default name, else
/// the one that a bundle installed.
fn guess(report: &Report) -> String {
    let brought = |plugin: &&lint::Plugin| {
        let ca = plugin.target.as_ref().and_then(|target| target.files.ca.as_deref());
        ca == Some(Path::new(bundle::CA_FILE))
    };
    let named = report.plugins.iter().find(|plugin| plugin.name == DEFAULT_NAME);
    let found = named.or_else(|| report.plugins.iter().find(brought));
    found.map_or_else(|| DEFAULT_NAME.to_owned(), |plugin| plugin.name.clone())
}

fn missing(
    name: &str,
    report: &Report,
    scope: &Scope,
    storage: Option<&Storage>,
    findings: &mut Vec<Finding>,
) {
    if scope.plugin.is_none() && storage.is_some_and(|storage| storage.no_spec) {
        let message = "the configuration says \"spec\": null, and this machine's engine finds no plugin";
        findings.push(Finding::new(SPEC, name, Verdict::Note, message));
        return;
    }
    let dirs: Vec<_> = scope.dirs.specs.iter().map(|dir| shown(dir)).collect();
    let mut message = format!("an engine finds no plugin of that name in {}", dirs.join(" and "));
    if !report.plugins.is_empty() {
        let others: Vec<_> = report.plugins.iter().map(|plugin| &*plugin.name).collect();
        message = format!("{message}; it finds {}", others.join(", "));
    }
    let remedy = match storage {
        Some(_) => "`volhost spec write` writes the spec file, and so does the service when it starts",
        None => {
            "unpack this host's bundle (`volhost host add` on the storage host makes it), or name the plugin as it is \
             called here"
        }
    };
    findings.push(Finding::new(SPEC, name, Verdict::Wrong, message).remedy(remedy));
}

fn finding_of(check: &'static str, file: &Path, fault: &Fault, winner: Option<&Path>) -> Finding {
    let (message, remedy) = fault.cause_and_remedy();
    let hides_another =
        matches!(fault, Fault::Shadowed { .. }) && winner.is_some_and(|winner| !same(winner, file));
    let verdict = match fault.severity() {
        Severity::Error => Verdict::Wrong,
        // This plugin uses another file than the one that this finding is about.
        Severity::Warning if hides_another => Verdict::Wrong,
        Severity::Warning => Verdict::Warning,
    };
    Finding { remedy, ..Finding::new(check, shown(file), verdict, message) }
}

/// Returns true if two spec files have the same content.
fn same(one: &Path, other: &Path) -> bool {
    let read = |path: &Path| files::read_at_most(path, files::SMALL).ok();
    read(one).is_some_and(|text| read(other) == Some(text))
}

fn certificates(target: &Target, findings: &mut Vec<Finding>) {
    let Some((cert, _)) = &target.files.pair else { return };
    let Some(info) = files::read_at_most(cert, files::SMALL).ok().and_then(|pem| describe(pem).ok()) else {
        return;
    };
    let until = timestamp::rfc3339_exact(info.not_after);
    let name = info.dns_names.first().or(info.common_name.as_ref()).unwrap_or(&info.subject);
    let message = format!("this host is {name}, until {until}; its key can be read by nobody else");
    findings.push(Finding::new(CERTIFICATES, shown(cert), Verdict::Ok, message));
}
