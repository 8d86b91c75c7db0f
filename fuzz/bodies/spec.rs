//! A spec file, as engines read it: the same bytes as `.json` and as `.spec`.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use time::OffsetDateTime;
use volhost::discovery::lint::address::Endpoint;
use volhost::discovery::lint::{self, Report, SearchDirs, Severity, Target};
use volhost::discovery::{Address, Format, PluginName, Spec, TlsFiles};

const NAME: &str = "volhost";

/// Reads the file in both forms. What is told is told the same way twice, a file that an engine cannot use has an error,
/// and an address that was understood can be written down and is then read back as it was.
pub fn run(content: &[u8]) {
    let dir = TempDir::new().unwrap();
    for format in Format::ALL {
        if let Some(target) = read(dir.path(), format, content) {
            for format in Format::ALL {
                written_again(dir.path(), format, &target);
            }
        }
    }
}

/// What an engine makes of the content. Nothing else lies in its directory.
fn read(dir: &Path, format: Format, content: &[u8]) -> Option<Target> {
    let name = PluginName::parse(NAME).unwrap();
    for format in Format::ALL {
        let _ = fs::remove_file(dir.join(name.file(format)));
    }
    fs::write(dir.join(name.file(format)), content).unwrap();
    let dirs = SearchDirs::named(&[dir.to_owned()]);
    let report = lint::lint(&dirs, OffsetDateTime::UNIX_EPOCH);
    assert_eq!(report, lint::lint(&dirs, OffsetDateTime::UNIX_EPOCH));
    let Report { mut plugins, findings } = report;
    assert_eq!(plugins.len(), 1);
    let plugin = plugins.pop().unwrap();
    assert_eq!((&*plugin.name, plugin.file), (NAME, dir.join(name.file(format))));
    for finding in &findings {
        assert_eq!(finding.plugin.as_deref(), Some(NAME));
        assert!(!finding.fault.word().is_empty() && !finding.fault.to_string().is_empty());
    }
    let mut errors = findings.iter().filter(|finding| finding.fault.severity() == Severity::Error);
    assert!(plugin.target.is_some() || errors.next().is_some(), "it is unusable, and nobody is told");
    plugin.target
}

/// Writes the address as `volhost` writes its own, and reads it again.
fn written_again(dir: &Path, format: Format, target: &Target) {
    let tls = |path: &str| TlsFiles { ca: path.into(), cert: path.into(), key: path.into() };
    let address = match &target.endpoint {
        Endpoint::Unix(path) => Address::Unix(path.clone()),
        // Ours are plain names and addresses; an engine takes more, which cannot be told from it.
        Endpoint::Tcp { host, .. } if !is_plain(host) => return,
        Endpoint::Tcp { host, port, https: true } => {
            Address::Https { host: host.clone(), port: *port, tls: tls("/nowhere/at-all.pem") }
        }
        Endpoint::Tcp { host, port, https: false } => Address::Http { host: host.clone(), port: *port },
    };
    let spec = Spec { name: PluginName::parse(NAME).unwrap(), address };
    let Ok(text) = spec.render(format) else {
        assert!(
            matches!((format, &spec.address), (Format::Spec, Address::Https { .. })),
            "{:?} was not written",
            spec.address
        );
        return;
    };
    let again = read(dir, format, text.as_bytes());
    assert_eq!(again.map(|again| plainly(again.endpoint)), Some(plainly(target.endpoint.clone())), "{text}");
}

/// An IPv6 address can be spelt in many ways; what is written is the shortest.
fn plainly(endpoint: Endpoint) -> Endpoint {
    match endpoint {
        Endpoint::Tcp { host, port, https } => {
            let host = host.parse::<std::net::IpAddr>().map_or(host, |address| address.to_string());
            Endpoint::Tcp { host, port, https }
        }
        unix @ Endpoint::Unix(_) => unix,
    }
}

fn is_plain(host: &str) -> bool {
    host.parse::<std::net::IpAddr>().is_ok() || volhost::model::host::HostName::parse(host).is_ok()
}
