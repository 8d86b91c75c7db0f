//! `host ls|add|renew|release|revoke`: manages the machines whose engines may use this service.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};

use super::bundle::Destination;
use super::table::{Listing, mark, or_dash, printable};
use super::{Error, Shell, mount, output};
use crate::admin::wire::{
    Host as Row, HostAdd, HostAdded, HostName, HostRevoked, MountRelease, Nothing, Verb, verb,
};
use crate::error::counted;

pub(super) use super::bundle::BundleError;

/// Let other machines' engines in, and shut them out
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  volhost host add web1 --advertise https://store1:7443 -o web1.tar
  volhost host add web1 -o - | ssh root@web1 tar -C / -xf -
  volhost host ls                           See who was let in, and who was seen
  volhost host renew web1 -o web1.tar       Another certificate; the one it has stays good
  volhost host release web1                 Take out what web1 held before it was started again
  volhost host revoke web1                  Shut it out at once")]
pub(super) enum Host {
    /// List the hosts that have a certificate or were seen
    #[command(visible_alias = "list")]
    Ls,
    Add(Add),
    Renew(Renew),
    Release(Release),
    Revoke(Revoke),
}

/// Issue a host's certificate, and make the bundle that its engine needs
///
/// The bundle is a tar archive to be unpacked in the host's root directory: the spec file, the CA's certificate, and
/// the host's certificate with its private key. Who has the key is that host, so send the bundle over a safe channel
/// and delete it; or make the key there and give its request by --csr.
///
/// A host that has a certificate already is renewed (`host renew`), and the names of machines that volhost itself runs on
/// are not given away: two machines of one name would be one host, which shares its mounts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost host add web1 --advertise https://store1.example.org:7443 -o web1.tar
  volhost host add web1 -o - | ssh root@web1 tar -C / -xf -
  volhost host add web1 --csr web1.csr -o web1.tar   The key stays on web1
  volhost host add web1 --certificate web1.crt -o web1.tar   The CA's key is not here
  volhost host add web1 --plugin-name netshare -o web1.tar

The last one takes the place of the plugin `netshare` on web1.")]
pub(super) struct Add {
    #[command(flatten)]
    bundle: Bundle,
}

/// Issue another certificate to a host that has one, and make the bundle for it
///
/// The certificates that the host has stay good, so that its engine goes on with what it read when it first used the
/// plugin: unpack the bundle when it suits, and restart the engine when that suits. While the CA rolls over, this is how
/// a host gets a certificate of the new CA. `host revoke` ends them all.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost host renew web1 -o web1.tar
  volhost host renew web1 --csr web1.csr -o web1.tar   The key stays on web1
  volhost pki rollover status                          See which hosts use theirs")]
pub(super) struct Renew {
    #[command(flatten)]
    bundle: Bundle,
}

// The arguments on the certificate and the bundle, which both commands have.
#[derive(Debug, Args)]
struct Bundle {
    /// The host's name: what its mounts and rights are kept under
    name: String,
    /// The URL under which that host reaches this service [default: the configured `advertise`]
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// The plugin's name on that host [default: the configured `name`]
    #[arg(long, value_name = "NAME")]
    plugin_name: Option<String>,
    /// A certificate signing request (PEM) made on the host; the bundle then holds no key
    #[arg(long, value_name = "FILE")]
    csr: Option<PathBuf>,
    /// The host's certificate (PEM), signed by `pki sign` where the CA's key is; the bundle then holds no key
    #[arg(long, value_name = "FILE", conflicts_with = "csr")]
    certificate: Option<PathBuf>,
    /// Where to write the bundle, readable for its owner alone; `-` is the standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
}

/// Take out the mounts that a host will never unmount, of every volume
///
/// As `mount release` does of one volume: without --all only stale ones, those from before the host's engine was
/// started again. A host that is gone for good starts no engine, so that its mounts need --all; be sure that none of
/// its containers still writes.
///
/// What would be released is shown, and asked for, first.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  volhost host release web1         What web1's engine held before it was started again
  volhost host release web1 --all   web1 is gone for good: free its volumes for other hosts")]
pub(super) struct Release {
    /// The host's name
    name: String,
    /// Also those that may be alive; asks for the host's name to be typed
    #[arg(long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// Revoke every certificate of a host
///
/// It is refused from now on, on open connections too; another `host add` lets it in again. Nothing is asked. Its mounts stay counted, for its containers may still write:
/// `volhost host release` takes them out.
#[derive(Debug, Args)]
pub(super) struct Revoke {
    /// The host's name
    name: String,
}

pub(super) fn run(command: Host, shell: &mut Shell<'_>) -> Result<(), Error> {
    match command {
        Host::Ls => {
            let rows = shell.client()?.ask::<verb::HostLs>(&Nothing {})?;
            if shell.global.json { shell.json(&rows) } else { shell.table(listing(&rows)) }
        }
        Host::Add(Add { bundle }) => issue::<verb::HostAdd>(bundle, shell),
        Host::Renew(Renew { bundle }) => issue::<verb::HostRenew>(bundle, shell),
        Host::Release(Release { name, all, yes }) => {
            let request = MountRelease { volume: None, host: name, id: None, all, dry_run: true };
            mount::confirm_and_release(request, yes, shell)
        }
        Host::Revoke(Revoke { name }) => revoke(name, shell),
    }
}

fn listing(rows: &[Row]) -> Listing {
    let header = ["NAME", "LAST SEEN", "MOUNTS", "CERTIFICATE", "EXPIRES", "REVOKED", "CLONED"];
    let mut listing = Listing::new(header).right(2);
    for Row { name, serial, expires, last_seen, mounts, revoked, cloned, addresses } in rows {
        listing.row([
            name.clone(),
            or_dash(last_seen.as_deref()),
            mounts.to_string(),
            or_dash(serial.as_deref()),
            or_dash(expires.as_deref()),
            mark(*revoked),
            if *cloned { addresses.join(", ") } else { String::new() },
        ]);
    }
    listing
}

fn issue<V: Verb<Request = HostAdd, Reply = HostAdded>>(
    args: Bundle,
    shell: &mut Shell<'_>,
) -> Result<(), Error> {
    let Bundle { name, advertise, plugin_name, csr, certificate, output, force } = args;
    let to_stdout = output == Path::new("-");
    if to_stdout && shell.global.json {
        return Err(Error::Usage("--json and `-o -` both want the standard output: give a file".into()));
    }
    if to_stdout && !shell.binary_welcome {
        return Err(Error::Usage(
            "the bundle is an archive with a private key, not for a terminal: give `-o FILE`, or a pipe"
                .into(),
        ));
    }
    let read = |path: Option<PathBuf>| path.as_deref().map(output::read_pem).transpose();
    let (csr, certificate) = (read(csr)?, read(certificate)?);
    let has_key = csr.is_none() && certificate.is_none();
    // The file is made before the service is asked, so that no certificate is issued and then lost because
    // the file cannot be written.
    let destination = if to_stdout { None } else { Some(Destination::prepare(&output, force)?) };
    let request = HostAdd { name, advertise, plugin_name, csr, certificate };
    let added: HostAdded = shell.client()?.ask::<V>(&request)?;
    let bundle = STANDARD.decode(&added.bundle).map_err(BundleError::NotBase64)?;
    let Some(destination) = destination else {
        shell.out.write_all(&bundle).map_err(Error::Output)?;
        for line in next_steps(&added, "-", has_key) {
            shell.note(&line);
        }
        return Ok(());
    };
    destination.write(&bundle)?;
    let file = output.display().to_string();
    if shell.global.json {
        let HostAdded { name, serial, expires, advertise, plugin_name, bundle: _ } = &added;
        return shell.json(&serde_json::json!({
            "name": name, "serial": serial, "expires": expires, "advertise": advertise,
            "plugin_name": plugin_name, "file": file, "holds_key": has_key,
        }));
    }
    for line in next_steps(&added, &file, has_key) {
        shell.line(&line)?;
    }
    Ok(())
}

/// Tells the operator what to do with a bundle.
fn next_steps(added: &HostAdded, file: &str, has_key: bool) -> Vec<String> {
    let HostAdded { name, serial: _, expires, advertise, plugin_name, bundle: _ } = added;
    let mut lines = vec![printable(&format!(
        "{name} has a certificate until {expires}, for the plugin {plugin_name} at {advertise}."
    ))];
    if file == "-" {
        lines.push(format!("Unpack the bundle on {name} as root: tar -C / -xf -"));
    } else {
        lines.push(if has_key {
            format!("{file} holds its private key: send it to {name} over a safe channel, unpack it there as root,")
        } else {
            format!("{file} holds no key: send it to {name}, unpack it there as root,")
        });
        lines.push("and delete it:".into());
        let base = Path::new(file).file_name().map_or(file.into(), std::ffi::OsStr::to_string_lossy);
        lines.push(format!("  tar -C / -xf {base}"));
    }
    lines.push(format!("Then, on {name}: docker volume create -d {plugin_name} NAME"));
    lines.push("An engine that used this plugin before reads the new files when it is started again.".into());
    if reaches_this_machine_only(advertise) {
        lines.push(format!(
            "Note: {advertise} names this machine alone. For another one, let the service listen on an address that {name} reaches, and give it here by --advertise, or in the configuration."
        ));
    }
    lines
}

/// Returns true if every machine that reads a URL takes it for itself.
fn reaches_this_machine_only(url: &str) -> bool {
    let Ok(url) = url.parse::<http::Uri>() else { return false };
    let Some(host) = url.host() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Revokes without asking: an operator who revokes is in a hurry, and another `host add` gives the host
/// access again.
fn revoke(name: String, shell: &mut Shell<'_>) -> Result<(), Error> {
    let revoked = shell.client()?.ask::<verb::HostRevoke>(&HostName { name })?;
    if shell.global.json {
        return shell.json(&revoked);
    }
    let HostRevoked { name, certificates, mounts } = revoked;
    shell.line(&format!("{name}: {} revoked", counted(certificates, "certificate")))?;
    if mounts > 0 {
        shell.line(&format!(
            "{} of {name} stay counted; `volhost mount ls --host {name}` lists them, `volhost host release {name}` takes them out",
            counted(mounts, "mount")
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(advertise: &str) -> HostAdded {
        HostAdded {
            name: "web1".into(),
            serial: "0a".into(),
            expires: "2036-01-02T03:04:05Z".into(),
            advertise: advertise.into(),
            plugin_name: "volhost".into(),
            bundle: String::new(),
        }
    }

    #[test]
    fn the_next_steps_name_the_command_and_warn_of_the_key() {
        let text = next_steps(&added("https://store1:7443"), "/tmp/b/web1.tar", true).join("\n");
        assert!(text.contains("/tmp/b/web1.tar holds its private key"), "{text}");
        assert!(text.contains("\n  tar -C / -xf web1.tar\n"), "{text}");
        assert!(!text.contains("Note:"), "{text}");
        let text = next_steps(&added("https://store1:7443"), "web1.tar", false).join("\n");
        assert!(text.contains("holds no key"), "{text}");
    }

    #[test]
    fn an_address_of_this_machine_is_noticed() {
        for url in ["https://127.0.0.1:7443", "https://localhost:1", "https://[::1]:7443"] {
            assert!(reaches_this_machine_only(url), "{url}");
            assert!(next_steps(&added(url), "x", true).iter().any(|line| line.starts_with("Note:")));
        }
        for url in ["https://store1:7443", "https://10.0.0.1:7443", "https://[fd00::1]:7443"] {
            assert!(!reaches_this_machine_only(url), "{url}");
        }
    }
}
