//! `status`: prints the service's status, first what needs attention, then the backends.

use crate::model::timestamp;
use clap::Args;
use time::OffsetDateTime;

use super::table::printable;
use super::{Error, Shell, backend};
use crate::admin::wire::{Nothing, Reload, Status as StatusReport, verb};
use crate::error::counted;

/// Show how the service is
///
/// A configuration that was rejected while serving is shown with its faults: the one before it is still in force.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost status
  volhost status --json | jq -r .last_reload.result")]
pub(super) struct Status {}

pub(super) fn run(args: &Status, shell: &mut Shell<'_>) -> Result<(), Error> {
    let Status {} = args;
    let status = shell.client()?.ask::<verb::Status>(&Nothing {})?;
    if shell.global.json {
        return shell.json(&status);
    }
    for line in lines(&status, shell.colour, OffsetDateTime::now_utc()) {
        shell.line(&line)?;
    }
    shell.line("")?;
    backend::show(&status.backends, shell)
}

/// Returns the readable block. The exhaustive destructuring makes the compiler report a new field that is
/// missing here.
fn lines(status: &StatusReport, colour: bool, now: OffsetDateTime) -> Vec<String> {
    let StatusReport {
        version,
        name,
        node,
        listening,
        catalog,
        catalog_fault,
        volumes,
        mounts,
        backends: _, // They are in the table below the block.
        connections,
        since,
        last_reload,
        needs_restart,
        spec,
        server_certificate_expires,
        log_lines_dropped,
        troubles,
        cloned_hosts,
    } = status;
    let mut block = vec![format!("volhost {version}, serving as {name:?} on {node} since {since}")];
    let row = |label: &str, value: &str| format!("  {label:<13} {}", printable(value));
    let alarm = |label: &str, value: &str| format!("  {label:<13} {}", highlighted(value, colour));
    match &**listening {
        [] => block.push(row("listening", "nowhere")),
        addresses => block.extend(addresses.iter().map(|address| row("listening", address))),
    }
    block.push(row("catalog", catalog));
    if let Some(fault) = catalog_fault {
        block.push(alarm("catalog fault", &format!("it cannot be written: {fault}")));
    }
    block.push(row(
        "in use",
        &format!(
            "{}, {}, {}",
            counted(*volumes, "volume"),
            counted(*mounts, "mount"),
            counted(*connections, "connection")
        ),
    ));
    block.extend(troubles.iter().map(|trouble| alarm("trouble", trouble)));
    block.push(row("spec file", spec.as_deref().unwrap_or("none")));
    match server_certificate_expires {
        Some(end) if is_past(end, now) => block.push(alarm(
            "certificate",
            &format!("EXPIRED {end}: no new connection is made to it; put another one in its place"),
        )),
        Some(end) => block.push(row("certificate", &format!("expires {end}"))),
        None => {}
    }
    match last_reload {
        None => block.push(row("last reload", "none")),
        Some(Reload { at, unit, result, faults }) if result == "rejected" => {
            let told = format!("{unit} REJECTED at {at}, what was read before is still in force:");
            block.push(alarm("last reload", &told));
            block.extend(faults.iter().map(|fault| format!("    {}", highlighted(fault, colour))));
        }
        Some(Reload { at, unit, result, faults: _ }) => {
            block.push(row("last reload", &format!("{unit} {result} at {at}")));
        }
    }
    if !cloned_hosts.is_empty() {
        let told = format!(
            "{}: several machines use one certificate (`volhost host ls` tells from where)",
            cloned_hosts.join(", ")
        );
        block.push(alarm("cloned hosts", &told));
    }
    if !needs_restart.is_empty() {
        let told =
            format!("{}: changed in the file, but in force only after a restart", needs_restart.join(", "));
        block.push(alarm("needs restart", &told));
    }
    if *log_lines_dropped > 0 {
        let told = format!("{log_lines_dropped} lines were dropped: the standard error did not take them");
        block.push(alarm("log", &told));
    }
    block
}

/// Returns true if a time, in RFC 3339, has passed.
fn is_past(moment: &str, now: OffsetDateTime) -> bool {
    timestamp::parse(moment).is_ok_and(|moment| moment < now)
}

pub(super) fn highlighted(text: &str, colour: bool) -> String {
    use clap::builder::styling::{AnsiColor, Style};
    let text = printable(text);
    if !colour {
        return text;
    }
    let style: Style = AnsiColor::Red.on_default().bold();
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> StatusReport {
        StatusReport {
            version: "0.1.0".into(),
            name: "volhost".into(),
            node: "store1".into(),
            listening: vec!["https://127.0.0.1:7443".into(), "unix:/run/v.sock".into()],
            catalog: "sqlite:/var/lib/volhost/catalog.db".into(),
            catalog_fault: None,
            volumes: 12,
            mounts: 1,
            backends: Vec::new(),
            connections: 2,
            since: "2026-01-02T03:04:05Z".into(),
            last_reload: None,
            needs_restart: Vec::new(),
            spec: Some("/etc/docker/plugins/volhost.json".into()),
            server_certificate_expires: Some("2027-01-02T03:04:05Z".into()),
            log_lines_dropped: 0,
            troubles: Vec::new(),
            cloned_hosts: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_service_is_told_in_a_block() {
        assert_eq!(
            lines(&status(), false, OffsetDateTime::UNIX_EPOCH).join("\n"),
            "volhost 0.1.0, serving as \"volhost\" on store1 since 2026-01-02T03:04:05Z\n  \
             listening     https://127.0.0.1:7443\n  \
             listening     unix:/run/v.sock\n  \
             catalog       sqlite:/var/lib/volhost/catalog.db\n  \
             in use        12 volumes, 1 mount, 2 connections\n  \
             spec file     /etc/docker/plugins/volhost.json\n  \
             certificate   expires 2027-01-02T03:04:05Z\n  \
             last reload   none"
        );
    }

    #[test]
    fn a_rejected_reload_is_told_with_its_faults() {
        let mut status = status();
        status.needs_restart = vec!["catalog".into(), "listen".into()];
        status.catalog_fault = Some("database or disk is full".into());
        status.log_lines_dropped = 7;
        status.cloned_hosts = vec!["web1".into(), "web2".into()];
        status.last_reload = Some(Reload {
            at: "2026-01-02T04:00:00Z".into(),
            unit: "configuration".into(),
            result: "rejected".into(),
            faults: vec!["volhost.json:3: listne: unknown field".into()],
        });
        status.troubles = vec!["crl: /mnt/crl.pem does not answer".into()];
        let text = lines(&status, false, OffsetDateTime::UNIX_EPOCH).join("\n");
        assert!(text.contains("trouble       crl: /mnt/crl.pem does not answer"), "{text}");
        assert!(text.contains("configuration REJECTED at 2026-01-02T04:00:00Z"), "{text}");
        assert!(text.contains("\n    volhost.json:3: listne: unknown field"), "{text}");
        assert!(text.contains("needs restart catalog, listen: changed"), "{text}");
        assert!(text.contains("catalog fault it cannot be written: database or disk is full"), "{text}");
        assert!(text.contains("log           7 lines were dropped"), "{text}");
        assert!(text.contains("cloned hosts  web1, web2: several machines use one certificate"), "{text}");
        let later = OffsetDateTime::UNIX_EPOCH + time::Duration::days(366 * 100);
        assert!(
            lines(&status, false, later).join("\n").contains("certificate   EXPIRED 2027-01-02T03:04:05Z")
        );
        let coloured = lines(&status, true, OffsetDateTime::UNIX_EPOCH).join("\n");
        assert!(coloured.contains("\x1b[31m"), "{coloured:?}");
    }
}
