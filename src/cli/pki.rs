//! `pki init`, `pki rollover start|status|finish|abort`, and `pki csr|sign|install`: manages the CA of all
//! certificates.
//!
//! The running service does a rollover, because it knows its hosts. The commands on requests and certificates
//! work on files and need no service.

use std::path::{Path, PathBuf};

use super::table::{Listing, mark, or_dash, printable};
use super::{Error, Shell, output};
use crate::admin::wire::{
    Ca, Nothing, Rollover as Progress, RolloverEnd, RolloverEnded, RolloverHost, Verb, verb,
};
use crate::app::certificates::{self, Installed, MadeCa, OwnCertificate, Signed, SignedServerCertificate};
use crate::config::{self, Config, Paths};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

/// Make and replace the CA, and have certificates signed where its key is kept
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost pki init                          Make the CA of several instances, on the first
  volhost pki rollover start                Trust a new CA beside the old one
  volhost pki rollover status               See which hosts have moved to it
  volhost pki csr server -o server.csr      Ask for a certificate where the CA's key is not
  volhost pki sign server.csr -o server.crt Sign it where it is
  volhost pki install server.crt            And put it in force")]
pub(super) enum Pki {
    /// Make the CA by hand, for the first of several instances that share a catalog
    ///
    /// Only the first instance needs it: an instance that does not share its catalog makes its CA by itself. Give the
    /// other instances ca.crt, and also ca.key if they must sign. Refused if there is a CA already.
    Init,
    #[command(subcommand)]
    Rollover(Rollover),
    Csr(Csr),
    Sign(Sign),
    Install(Install),
}

/// Replace the CA while both the old one and the new one are trusted
///
/// Engines read their certificates once. So a rollover has a beginning and an end: from `start` on both CAs are
/// trusted, and hosts' new certificates are of the new one. Give each host a new bundle (`host renew`) and restart its
/// engine when that suits; `status` shows which hosts have moved. `finish` signs the server's certificate again with the
/// new CA and no longer trusts the old one.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost pki rollover start
  volhost host renew web1 -o web1.tar       For each host
  volhost pki rollover status
  volhost pki rollover finish")]
pub(super) enum Rollover {
    /// Make a new CA, and trust both
    Start,
    /// Tell how far it has got, and which hosts have moved
    Status,
    /// Trust only the new CA; refused while that would lock out hosts
    Finish(End),
    /// Trust only the old CA; refused while that would lock out hosts
    Abort(End),
}

#[derive(Debug, Args)]
pub(super) struct End {
    /// Also if that locks out hosts; asks first
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Ask for a certificate, to be signed where the CA's key is
#[derive(Debug, Args)]
pub(super) struct Csr {
    /// The certificate that is wanted
    which: Which,
    /// Also for NAME, by which engines call the server; once for each
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// Write to FILE instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(short, long, requires = "output")]
    force: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Which {
    /// The server's, for the names that it has and those that the configuration wants
    Server,
    /// The one of this machine's own engine
    Client,
}

/// Sign a request, on the machine that keeps the CA's key
///
/// A server's certificate is good for the names in its request, which are shown; a host's for its name alone. While the
/// CA rolls over, hosts' certificates are signed by the new one, with ca-next.key, and the server's by the old one.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost pki sign server.csr -o server.crt
  volhost pki sign web1.csr --host web1 -o web1.crt
  volhost pki sign server.csr --dir /media/safe/pki -o server.crt")]
pub(super) struct Sign {
    /// The request (PEM)
    request: PathBuf,
    /// Sign the certificate of the host NAME; without it, a server's
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// The directory with ca.crt and ca.key [default: the configured `pki`]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Write to FILE instead of the standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace FILE if it exists
    #[arg(short, long, requires = "output")]
    force: bool,
}

/// Put a certificate in force that was signed on a request of `pki csr`
///
/// It must be of a key that is here, signed by the CA, and good under every name that is wanted. A running service takes
/// it up by itself.
#[derive(Debug, Args)]
pub(super) struct Install {
    /// The certificate (PEM)
    certificate: PathBuf,
}

pub(super) fn run(command: Pki, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Pki::Init => init(shell),
        Pki::Rollover(Rollover::Start) => {
            let progress = shell.client()?.ask::<verb::RolloverStart>(&Nothing {})?;
            print_progress(&progress, shell)
        }
        Pki::Rollover(Rollover::Status) => {
            let progress = shell.client()?.ask::<verb::RolloverStatus>(&Nothing {})?;
            print_progress(&progress, shell)
        }
        Pki::Rollover(Rollover::Finish(args)) => end::<verb::RolloverFinish>(&args, shell),
        Pki::Rollover(Rollover::Abort(args)) => end::<verb::RolloverAbort>(&args, shell),
        Pki::Csr(args) => csr(&args, shell),
        Pki::Sign(args) => sign(&args, shell),
        Pki::Install(Install { certificate }) => install(&certificate, shell),
    }
}

fn print_progress(progress: &Progress, shell: &mut Shell<'_>) -> Result<(), Error> {
    if shell.global.json {
        return shell.json(progress);
    }
    let Progress { state, ca, next, hosts } = progress;
    let Some(next) = next else {
        return shell.line(&format!("no rollover is under way; the CA is {}", ca_text(ca)));
    };
    shell.line(&format!("old CA  {}", ca_text(ca)))?;
    shell.line(&format!("new CA  {}", ca_text(next)))?;
    shell.table(listing(hosts))?;
    let waiting = hosts.iter().filter(|host| !host.moved).count();
    shell.note(&match (&**state, waiting) {
        ("finishing", _) => {
            "a finish was cut off: `volhost pki rollover finish` again, or `volhost pki rollover abort`".to_owned()
        }
        (_, 0) => "every host has moved: `volhost pki rollover finish` ends it".to_owned(),
        (_, waiting) => format!(
            "{waiting} to go: `volhost host renew` for those not renewed, then restart their engines; this machine's own has its certificate already"
        ),
    });
    Ok(())
}

fn ca_text(Ca { name, expires }: &Ca) -> String {
    printable(&format!("{name}, until {expires}"))
}

fn listing(rows: &[RolloverHost]) -> Listing {
    let mut listing = Listing::new(["HOST", "MOVED", "RENEWED", "USES", "LAST SEEN"]);
    for RolloverHost { name, moved, renewed, uses, last_seen } in rows {
        let (uses, seen) = (or_dash(uses.as_deref()), or_dash(last_seen.as_deref()));
        listing.row([name.clone(), mark(*moved), mark(*renewed), uses, seen]);
    }
    listing
}

fn end<V: Verb<Request = RolloverEnd, Reply = RolloverEnded>>(
    &End { force, yes }: &End,
    shell: &mut Shell<'_>,
) -> Result<(), Error> {
    let client = shell.client()?;
    if force && !yes {
        let progress = client.ask::<verb::RolloverStatus>(&Nothing {})?;
        shell.print_table_to_stderr(listing(&progress.hosts));
        let who = if V::PATH == verb::RolloverFinish::PATH { "have not moved" } else { "use the new CA" };
        shell.prompt().confirm(&format!("Shut out the hosts that {who}, if there are any?"))?;
    }
    let ended: RolloverEnded = client.ask::<V>(&RolloverEnd { force })?;
    if shell.global.json {
        return shell.json(&ended);
    }
    let RolloverEnded { ca, kept_certificate, kept_key, shut_out } = ended;
    shell.line(&format!("the CA is {}, and no other is trusted", ca_text(&ca)))?;
    shell.line(&format!("the other one's certificate is kept as {kept_certificate}"))?;
    if let Some(key) = kept_key {
        shell.line(&format!(
            "its key is kept as {key}: hosts that were not renewed since trust it still, so keep it safe, or destroy it"
        ))?;
    }
    if !shut_out.is_empty() {
        shell.line(&printable(&format!("shut out: {}", shut_out.join(", "))))?;
    }
    Ok(())
}

fn init(shell: &mut Shell<'_>) -> Result<(), Error> {
    let MadeCa { path, info } = certificates::init(&configured(shell)?)?;
    let (file, expires) = (path.display().to_string(), output::written(info.not_after));
    if shell.global.json {
        return shell.json(&json!({ "file": file, "name": info.subject, "expires": expires }));
    }
    shell.line(&printable(&format!("{file}: {}, until {expires}", info.subject)))
}

fn csr(Csr { which, names, output, force }: &Csr, shell: &mut Shell<'_>) -> Result<(), Error> {
    let which = match which {
        Which::Server => OwnCertificate::Server,
        Which::Client if names.is_empty() => OwnCertificate::Client,
        Which::Client => return Err(Error::Usage("--name is for the server's certificate".into())),
    };
    if let Some(path) = output {
        output::must_be_free(path, *force)?;
    }
    let pem = certificates::request(&configured(shell)?, which, names)?;
    let field = ("request", &*pem);
    write_or_print(
        field,
        output.as_deref(),
        *force,
        Map::new(),
        "have it signed by `volhost pki sign`",
        shell,
    )
}

fn sign(args: &Sign, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Sign { request, host, dir, output, force } = args;
    let csr = output::read_pem(request)?;
    if let Some(path) = output {
        output::must_be_free(path, *force)?;
    }
    let dir = match dir {
        Some(dir) => dir.clone(),
        None => configured(shell)?.boot.pki,
    };
    let (pem, names, expires, then) = match certificates::sign(&dir, host.as_deref(), &csr)? {
        Signed::Server(SignedServerCertificate { pem, names, not_after }) => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            (pem, names, not_after, "`volhost pki install`")
        }
        Signed::Host(signed) => {
            let then = "`volhost host add --certificate`, `volhost host renew --certificate` or, for the storage host's own engine, `volhost pki install`";
            (signed.cert_pem, vec![signed.issued.host.to_string()], signed.issued.not_after, then)
        }
    };
    let expires = output::written(expires);
    shell.note(&printable(&format!("signed for {}, until {expires}", names.join(", "))));
    let more = [("names".into(), names.into()), ("expires".into(), expires.into())];
    let then = format!("give it to {then}");
    write_or_print(("certificate", &pem), output.as_deref(), *force, Map::from_iter(more), &then, shell)
}

/// Writes a PEM text to its file, or prints it, and tells the operator the next step.
fn write_or_print(
    (what, pem): (&str, &str),
    output: Option<&Path>,
    force: bool,
    mut more: Map<String, Value>,
    then: &str,
    shell: &mut Shell<'_>,
) -> Result<(), Error> {
    if let Some(path) = output {
        output::write(path, pem.as_bytes(), 0o644, force)?;
    }
    if shell.global.json {
        match output {
            Some(path) => more.insert("file".into(), path.to_string_lossy().into()),
            None => more.insert(what.into(), pem.into()),
        };
        return shell.json(&more);
    }
    match output {
        Some(path) => shell.line(&format!("{}: {then}", path.display())),
        None => shell.line(pem.trim_end()),
    }
}

fn install(path: &Path, shell: &mut Shell<'_>) -> Result<(), Error> {
    let pem = output::read_pem(path)?;
    let Installed { which, path, info } = certificates::install(&configured(shell)?, &pem)?;
    let which = match which {
        OwnCertificate::Server => "server",
        OwnCertificate::Client => "client",
    };
    let names: Vec<_> = info.names.iter().map(ToString::to_string).collect();
    let (file, expires) = (path.display().to_string(), output::written(info.not_after));
    if shell.global.json {
        return shell.json(&json!({
            "which": which, "file": file, "serial": info.serial, "names": names, "expires": expires,
        }));
    }
    shell.line(&printable(&format!("{file}: for {}, until {expires}", names.join(", "))))
}

fn configured(shell: &Shell<'_>) -> Result<Config, Error> {
    let paths = Paths::of_this_process(shell.global.root.as_deref())?;
    let loaded = config::load(&paths, shell.global.config.as_deref())
        .map_err(|faults| Error::Configuration(faults.to_string()))?;
    Ok(loaded.config)
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;
    use crate::admin::client::testing::Service;

    /// Returns a service in the middle of a rollover: the example of docs/guide/certificates.md.
    fn service(state: &'static str) -> Service {
        let ca = |name: &str, expires: &str| json!({ "name": format!("O=volhost, CN=volhost CA {name}"), "expires": expires });
        let host = |name: &str, moved: bool, uses: &str, seen: &str| json!({ "name": name, "moved": moved, "renewed": true, "uses": uses, "last_seen": seen });
        Service::answering(move |verb, body| {
            let (old, new) = (ca("4c81f00a", "2046-11-16T12:41:14Z"), ca("59e2b7d3", "2046-11-17T09:02:51Z"));
            let under_way = state != "none";
            let answer = match verb {
                "/pki/rollover/finish" | "/pki/rollover/abort" if body["force"] != true => {
                    return (400, json!({ "error": "a host would be shut out: web1" }).to_string());
                }
                "/pki/rollover/finish" | "/pki/rollover/abort" => json!({
                    "ca": new, "kept_certificate": "/pki/ca-4c81f00a.crt", "kept_key": "/pki/ca-4c81f00a.key",
                    "shut_out": ["web1"],
                }),
                _ => json!({
                    "state": state, "ca": old,
                    "next": if under_way { new } else { Value::Null },
                    "hosts": if under_way {
                        json!([host("store1", true, "new", "2026-11-22T09:14:03Z"), host("web1", false, "old", "2026-11-22T09:16:40Z")])
                    } else {
                        json!([])
                    },
                }),
            };
            (200, answer.to_string())
        })
    }

    #[test]
    fn the_status_is_told_as_in_the_readme() {
        let told = run(&service("overlap"), &["pki", "rollover", "status"], None);
        let page = include_str!("../../docs/guide/certificates.md");
        let all = format!("{}{}", told.out, told.err);
        assert_eq!(told.code, 0, "{all}");
        assert!(page.contains(&all), "not in the guide:\n{all}");
        let told = run(&service("none"), &["pki", "rollover", "status"], None);
        assert!(told.out.starts_with("no rollover is under way; the CA is O=volhost"), "{}", told.out);
        let told = run(&service("finishing"), &["pki", "rollover", "start"], None);
        assert!(told.err.contains("a finish was cut off"), "{}", told.err);
    }

    #[test]
    fn nobody_is_shut_out_unasked() {
        for verb in ["finish", "abort"] {
            let line = ["pki", "rollover", verb];
            let told = run(&service("overlap"), &line, None);
            assert!(told.code == 1 && told.err.contains("web1"), "{}", told.err);
            let forced = [&line[..], &["--force"]].concat();
            let told = run(&service("overlap"), &forced, None);
            assert!(told.code == 1 && told.err.contains("--yes"), "{}", told.err);
            let told = run(&service("overlap"), &forced, Some("n\n"));
            assert!(told.code == 1 && told.err.contains("Shut out the hosts that"), "{}", told.err);
            let told = run(&service("overlap"), &forced, Some("y\n"));
            assert_eq!(told.code, 0, "{}", told.err);
            assert!(told.out.contains("shut out: web1") && told.out.contains("destroy it"), "{}", told.out);
        }
    }
}
