//! `volhost.json` and `backends.json`, in one input with a line `---` between them.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use jsonschema::Validator;
use serde_json::Value;
use tempfile::TempDir;
use volhost::catalog::{Credentials, Location};
use volhost::config::{self, Advertise, Config, HostPattern, Listen, Paths};
use volhost::model::host::HostName;

static CONFIG: LazyLock<Validator> = LazyLock::new(|| schema(include_str!("../../etc/volhost.schema.json")));
static MAP: LazyLock<Validator> = LazyLock::new(|| schema(include_str!("../../etc/backends.schema.json")));

fn schema(text: &str) -> Validator {
    jsonschema::validator_for(&serde_json::from_str(text).unwrap()).unwrap()
}

/// Reads both files. Each fault has a place that can be found; a configuration without one has only what was checked,
/// and editors, which go by the schemas, find nothing wrong with it either.
pub fn run(data: &[u8]) {
    let separator = b"\n---\n";
    let (file, map) = match data.windows(separator.len()).position(|at| at == separator) {
        Some(at) => (&data[..at], Some(&data[at + separator.len()..])),
        None => (data, None),
    };
    let root = TempDir::new().unwrap();
    let paths = Paths::new(Some(root.path()), true, |_| None).unwrap();
    fs::create_dir_all(&paths.etc).unwrap();
    fs::write(paths.config(), file).unwrap();
    if let Some(map) = map {
        fs::write(paths.map(), map).unwrap();
    }
    let loaded = config::load(&paths, None);
    // Whoever is told of a fault when volhost starts is told of the same one when it reloads.
    let reloaded = config::reload(&paths, None, &[]);
    match loaded {
        Err(faults) => {
            assert!(faults.iter().next().is_some());
            for fault in &faults {
                let of_config = (fault.file == paths.config()).then_some(file);
                let of_map = (fault.file == paths.map()).then_some(map).flatten();
                if let Some(text) = of_config.or(of_map) {
                    is_a_place(text, fault.line, fault.column);
                }
                assert!(!fault.what.is_empty(), "{fault:?}");
            }
        }
        Ok(loaded) => {
            let again = reloaded.map(|reloaded| reloaded.config).map_err(|rejected| rejected.faults);
            assert_eq!(again.as_ref(), Ok(&loaded.config));
            is_checked(&loaded.config, &paths);
            fits(&CONFIG, file);
            if let Some(map) = map.filter(|_| loaded.config.live.map == paths.map()) {
                fits(&MAP, map);
            }
        }
    }
}

/// A line of the text, and a column at most one behind its end.
fn is_a_place(text: &[u8], line: usize, column: usize) {
    let text = String::from_utf8_lossy(text);
    let found = line.checked_sub(1).and_then(|line| text.split('\n').nth(line));
    let length = found.map(|line| line.chars().count());
    assert!(
        length.is_some_and(|length| (1..=length + 1).contains(&column)),
        "line {line}, column {column} is no place"
    );
}

fn is_checked(config: &Config, paths: &Paths) {
    assert!(config.boot.changed(&config.boot).is_empty() && config.live.changed(&config.live).is_empty());
    assert!(!config.boot.listen.is_empty());
    for listen in &config.boot.listen {
        assert_eq!(Listen::parse(&listen.to_string()).as_ref(), Ok(listen));
        let open = matches!(listen, Listen::Http(_)) && !listen.is_local();
        assert!(config.live.insecure || !open, "{listen} serves others without TLS");
    }
    if let Some(advertise) = &config.live.advertise {
        assert_eq!(Advertise::parse(&advertise.to_string()).as_ref(), Ok(advertise));
    }
    for host in config.live.hosts.iter().flat_map(|hosts| hosts.named.keys()) {
        assert_eq!(HostName::parse_or_anonymous(host.as_str()).as_ref(), Ok(host));
    }
    for backend in config.live.backends.values() {
        for pattern in backend.hosts.iter().flatten() {
            assert_eq!(HostPattern::parse(&pattern.to_string()).as_ref(), Ok(pattern));
        }
        let mountpoints = &backend.settings.mountpoints;
        for mountpoint in mountpoints.by_host.values().chain([&mountpoints.usual]) {
            assert!(is_plain(mountpoint), "{}", mountpoint.display());
        }
    }
    assert!(config.boot.admin.is_absolute() && config.live.map.is_absolute());
    if let Location::Sqlite(path) = &config.boot.catalog {
        assert!(path.is_absolute());
    }
    // A path may hold what a catalog's address cannot say, such as a slash at its end.
    if let Location::Etcd(_) = &config.boot.catalog {
        assert_eq!(Location::parse(&config.boot.catalog.to_string()).as_ref(), Ok(&config.boot.catalog));
    }
    let Credentials { ca, cert, key, user, password_file } = &config.boot.etcd;
    assert!([ca, cert, key, password_file].into_iter().flatten().all(|path| path.is_absolute()));
    assert!(
        cert.is_some() == key.is_some() && (cert.is_none() || ca.is_some()),
        "a certificate that nobody sees"
    );
    assert!(user.is_some() == password_file.is_some() && user.as_deref() != Some(""));
    let given = config.boot.etcd != Credentials::default();
    assert!(!given || matches!(config.boot.catalog, Location::Etcd(_)), "credentials for nobody");
    assert_eq!(config.boot.pki, paths.pki(), "a file has moved the keys");
    assert_eq!(config.boot.spool, paths.spool(), "a file has moved what was answered");
    let directories: Vec<_> = config.live.backends.values().map(|backend| &*backend.settings.path).collect();
    for (at, directory) in directories.iter().enumerate() {
        assert!(is_plain(directory), "{}", directory.display());
        let other =
            directories.iter().enumerate().find(|(other, path)| *other != at && path.starts_with(directory));
        assert_eq!(other, None, "it overlaps {}", directory.display());
    }
}

fn is_plain(path: &Path) -> bool {
    use std::path::Component::{Normal, RootDir};
    path.is_absolute() && path.components().all(|part| matches!(part, RootDir | Normal(_)))
}

fn fits(schema: &Validator, text: &[u8]) {
    let value: Value = serde_json::from_slice(text).expect("only JSON is taken");
    let errors: Vec<_> = schema.iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "the schema refuses what volhost takes: {errors:?}");
}
