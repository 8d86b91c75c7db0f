//! `doctor`: chooses what is examined, and prints the findings.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::lint::search_dirs;
use super::table::printable;
use super::{Error, Shell};
use crate::config::Paths;
use crate::doctor::{self, Docker, Finding, Scope, Verdict, directory};
use crate::error::counted;

/// Find out what is wrong on this machine, and what mends it
///
/// On a Docker host, nothing is needed but this program and the host's bundle: the spec file and what hides it, the
/// certificates, the address (whether it resolves, connects, proves itself and answers), the engine's managed plugins
/// and proxies, the clock, and the mountpoints that this host is to see. On the storage host also the configuration
/// and the service. Nothing is changed. Run it as root, as engines run.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost doctor              What is wrong here
  volhost doctor store        Of the plugin that is called `store` on this host
  volhost doctor --json | jq -r '.[] | select(.verdict == \"wrong\") | .remedy'

Exit codes: 0 nothing is wrong (there may be warnings), 1 something is.")]
pub(super) struct Doctor {
    /// The plugin's name on this machine [default: the configured one, else volhost, else the bundle's]
    #[arg(value_name = "PLUGIN")]
    plugin: Option<String>,
    /// Ask the engine at this socket [default: DOCKER_HOST, else /run/docker.sock]
    #[arg(long, value_name = "SOCKET")]
    docker: Option<PathBuf>,
    /// Look for spec files in this directory instead of the engine's; may be given several times
    #[arg(long = "spec-dir", value_name = "DIR")]
    spec_dirs: Vec<PathBuf>,
}

pub(super) fn run(args: &Doctor, shell: &mut Shell<'_>) -> Result<(), Error> {
    // Another process of this command started this one to inspect a directory.
    if let Some(directory) = directory::requested() {
        let text = serde_json::to_string(&directory::inspect_here(&directory)).map_err(Error::Json)?;
        return shell.line(&text);
    }
    let Doctor { plugin, docker, spec_dirs } = args;
    let root = shell.global.root.as_deref();
    let scope = Scope {
        plugin: plugin.clone(),
        dirs: search_dirs(spec_dirs, shell),
        docker: engine(docker.as_deref(), root, std::env::var_os("DOCKER_HOST")),
        paths: Paths::of_this_process(root)?,
        config: shell.global.config.clone(),
        socket: shell.global.socket.clone(),
    };
    let findings = doctor::examine(&scope);
    if shell.global.json {
        shell.json(&findings.iter().map(value).collect::<Vec<_>>())?;
    } else {
        show(&findings, shell)?;
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let (wrong, warnings) = (count(Verdict::Wrong), counted(count(Verdict::Warning), "warning"));
    match wrong {
        0 if shell.global.json => Ok(()),
        0 => shell.line(&format!("nothing is wrong: {}, {warnings}", counted(findings.len(), "check"))),
        1 => Err(Error::Refused(format!("1 thing is wrong, {warnings}"))),
        wrong => Err(Error::Refused(format!("{wrong} things are wrong, {warnings}"))),
    }
}

/// Returns the default socket of this user's engine.
fn engine_socket(root: Option<&Path>) -> PathBuf {
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(|run| PathBuf::from(run).join("docker.sock"));
    match own {
        Some(own) if root.is_none() && !rustix::process::geteuid().is_root() && own.exists() => own,
        _ => root.unwrap_or(Path::new("/")).join("run/docker.sock"),
    }
}

/// Returns the engine that is meant: by `--docker`, else by DOCKER_HOST as Docker's own commands do it (but
/// not with `--root`, which is for trials), else the default one. Contexts of Docker's commands are ignored:
/// they belong to a user, and mostly name engines on other machines.
fn engine(named: Option<&Path>, root: Option<&Path>, environment: Option<OsString>) -> Docker {
    let environment = environment.filter(|host| root.is_none() && !host.is_empty()).map(PathBuf::from);
    let Some(engine) = named.map(Path::to_owned).or(environment) else {
        return Docker::Default(engine_socket(root));
    };
    match engine.to_str().and_then(|text| text.split_once("://")) {
        None => Docker::Explicit(engine),
        Some(("unix", path)) => Docker::Explicit(path.into()),
        Some(_) => Docker::Remote(engine.display().to_string()),
    }
}

fn show(findings: &[Finding], shell: &mut Shell<'_>) -> Result<(), Error> {
    let width =
        |text: fn(&Finding) -> &str| findings.iter().map(|finding| text(finding).len()).max().unwrap_or(0);
    let (words, checks) = (width(|finding| finding.verdict.word()), width(|finding| finding.check));
    for finding in findings {
        let Finding { check, subject, verdict, message, remedy } = finding;
        let word = format!("{:<words$}", verdict.word());
        let word = match verdict {
            Verdict::Wrong => super::status::highlighted(&word, shell.colour),
            _ => word,
        };
        let head = format!("{word}  {check:<checks$}  {}", printable(subject));
        match verdict {
            Verdict::Ok | Verdict::Note | Verdict::Skipped => {
                shell.line(&format!("{head}: {}", printable(message)))?;
            }
            Verdict::Warning | Verdict::Wrong => {
                shell.line(&head)?;
                shell.line(&format!("{:words$}  {}", "", printable(message)))?;
            }
        }
        if let Some(remedy) = remedy {
            shell.line(&format!("{:words$}  remedy: {}", "", printable(remedy)))?;
        }
    }
    shell.line("")
}

fn value(finding: &Finding) -> serde_json::Value {
    let Finding { check, subject, verdict, message, remedy } = finding;
    json!({ "check": check, "subject": subject, "verdict": verdict.word(), "message": message, "remedy": remedy })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::tests::offline;
    use super::*;

    #[test]
    fn the_engine_is_the_one_that_dockers_own_commands_ask() {
        let of = |named: Option<&str>, root: Option<&str>, host: Option<&str>| {
            engine(named.map(Path::new), root.map(Path::new), host.map(OsString::from))
        };
        let named = |path: &str| Docker::Explicit(path.into());
        assert_eq!(of(None, None, Some("unix:///run/other.sock")), named("/run/other.sock"));
        assert_eq!(of(Some("unix:///a"), None, Some("unix:///b")), named("/a"));
        assert_eq!(of(Some("/a"), None, None), named("/a"));
        for elsewhere in ["tcp://10.0.0.1:2375", "ssh://root@store1", "npipe:////./pipe/docker_engine"] {
            assert_eq!(of(None, None, Some(elsewhere)), Docker::Remote(elsewhere.into()));
        }
        for host in [None, Some(""), Some("unix:///run/other.sock")] {
            assert_eq!(of(None, Some("/r"), host), Docker::Default("/r/run/docker.sock".into()));
        }
    }

    /// Returns a machine with only a spec file, whose service does not run.
    fn fixture() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/docker/plugins");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("store.spec"), "unix:///nowhere/p.sock").unwrap();
        root
    }

    #[test]
    fn each_check_is_a_line_and_what_is_wrong_has_its_cause_and_remedy_below() {
        let root = fixture();
        let ran = offline(&["doctor", "store", "--root", root.path().to_str().unwrap()]);
        assert_eq!((ran.code, &*ran.err), (1, "volhost: 1 thing is wrong, 0 warnings\n"));
        let lines: Vec<_> = ran.out.lines().collect();
        let spec = format!("{}/etc/docker/plugins/store.spec", root.path().display());
        let line = format!(
            "ok       spec-file       store: {spec} is read: unix:///nowhere/p.sock (a socket of this machine)"
        );
        assert!(lines.contains(&&*line), "{}", ran.out);
        let at =
            lines.iter().position(|line| *line == "wrong    address         unix:///nowhere/p.sock").unwrap();
        assert!(lines[at + 1].starts_with("         unix:///nowhere/p.sock cannot be reached (No such file"));
        assert!(lines[at + 2].starts_with("         remedy: start the plugin there"), "{}", lines[at + 2]);
        assert_eq!(lines.last(), Some(&""));
    }

    #[test]
    fn programs_get_a_list_with_the_same() {
        let root = fixture();
        let ran = offline(&["doctor", "store", "--json", "--root", root.path().to_str().unwrap()]);
        assert_eq!(ran.code, 1);
        let findings: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
        let verdict = |check: &str| {
            findings
                .iter()
                .find(|finding| finding["check"] == check)
                .map(|finding| finding["verdict"].clone())
        };
        assert_eq!(verdict("address"), Some("wrong".into()));
        assert_eq!(verdict("clock"), Some("skipped".into()));
        assert_eq!(verdict("engine"), Some("note".into()));
        let ran = offline(&["doctor", "--json", "--root", root.path().to_str().unwrap()]);
        assert!(ran.out.contains("it finds store"), "{}", ran.out);
    }
}
