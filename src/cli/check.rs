//! `check`: reads the configuration as `serve` would, and prints every fault in it.

use clap::Args;
use serde_json::json;

use super::table::printable;
use super::{Error, Shell};
use crate::app;
use crate::config::{Config, Fault, Paths};
use crate::error::counted;
use crate::model::backend::BackendName;

/// Read the configuration and the backend map, and print every fault in them
///
/// With `--catalog`, also compare the catalog with the directories of every backend. The command changes nothing and asks
/// no service; one may be running. Each fault is printed with its file, line and field, and with a hint if there is one.
/// A backend whose path does not exist is no fault: it would be offline.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost check                              The configuration that `serve` would read
  volhost check --config new.json            Another one
  volhost check --catalog                    Also: is each volume's directory there?
  volhost check --json | jq -r '.[].what'    For programs: a list of faults

Exit codes: 0 no faults, 1 the catalog and the directories differ, 78 faults.")]
pub(super) struct Check {
    /// Also compare the catalog with the backends' directories: volumes without one, directories without a volume,
    /// and what was left half-done
    #[arg(long)]
    catalog: bool,
}

pub(super) fn run(args: &Check, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Check { catalog } = args;
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    match app::load(&paths, shell.global.config.as_deref()) {
        Err(faults) => print_faults(&faults.into_vec(), shell),
        Ok(loaded) if *catalog => super::catalog::compare(&loaded.config, shell),
        Ok(_) if shell.global.json => shell.json(&json!([])),
        Ok(loaded) => shell.line(&success_line(&loaded.config)),
    }
}

/// Prints the faults: for programs as a result, for people as errors.
fn print_faults(faults: &[Fault], shell: &mut Shell<'_>) -> Result<(), Error> {
    if shell.global.json {
        let list: Vec<_> = faults
            .iter()
            .map(|Fault { file, line, column, field, what, hint }| {
                json!({ "file": file.to_string_lossy(), "line": line, "column": column, "field": field,
                        "what": what, "hint": hint })
            })
            .collect();
        shell.json(&list)?;
    } else {
        for fault in faults {
            shell.note(&printable(&fault.to_string()));
        }
    }
    Err(Error::Configuration(format!("the configuration has {}", counted(faults.len(), "fault"))))
}

fn success_line(config: &Config) -> String {
    let backends: Vec<&str> = config.live.backends.keys().map(BackendName::as_str).collect();
    let listen: Vec<String> = config.boot.listen.iter().map(ToString::to_string).collect();
    let backends = match &*backends {
        [] => "no backends".into(),
        names => format!("{} ({})", counted(names.len(), "backend"), names.join(", ")),
    };
    format!("configuration is good: {backends}, served at {}", listen.join(", "))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::tests::offline;

    fn write(root: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(root.join("etc/volhost")).unwrap();
        std::fs::write(root.join("etc/volhost").join(name), text).unwrap();
    }

    #[test]
    fn a_good_configuration_is_told_in_one_line() {
        let root = tempfile::tempdir().unwrap();
        let ran = offline(&["check", "--root", root.path().to_str().unwrap()]);
        assert_eq!((ran.code, &*ran.err), (0, ""));
        assert_eq!(ran.out, "configuration is good: 1 backend (default), served at https://127.0.0.1:7443\n");
        let ran = offline(&["check", "--json", "--root", root.path().to_str().unwrap()]);
        assert_eq!((ran.code, &*ran.out), (0, "[]\n"));
    }

    #[test]
    fn every_fault_has_its_line_and_the_exit_code_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "volhost.json", "{\n  \"listne\": [],\n  \"scope\": \"galactic\"\n}");
        write(root.path(), "backends.json", "{ \"fast\": \"relative\" }");
        let path = root.path().to_str().unwrap();
        let ran = offline(&["check", "--root", path]);
        assert_eq!((ran.code, &*ran.out), (78, ""));
        assert!(ran.err.contains("volhost.json:2:3: listne:"), "{}", ran.err);
        assert!(ran.err.contains("backends.json:1:"), "{}", ran.err);
        assert!(ran.err.ends_with("\nvolhost: the configuration has 3 faults\n"), "{}", ran.err);
        let ran = offline(&["check", "--root", path, "--json"]);
        assert_eq!(ran.code, 78);
        let faults: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!(faults.as_array().unwrap().len(), 3);
        let lines: Vec<_> = faults.as_array().unwrap().iter().map(|fault| &fault["line"]).collect();
        assert!(lines.iter().all(|line| line.is_u64()), "{lines:?}");
    }
}
