//! The content of the two files, the messages about their faults, and what a reload may apply.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::backends::Owner;
use super::fields::{Applied, Field, Takes};
use super::load;
use super::node::NamedFiles;
use super::surroundings::Surroundings;
use super::*;
use crate::model::backend::BackendName;
use crate::model::backend_settings::BackendSettings;
use crate::model::host::HostName;
use crate::model::limits::Limits;
use crate::model::location::{Cluster, Credentials, Location};
use crate::model::mountpoints::Mountpoints;
use crate::model::options::Mode;
use crate::model::right::{Listed, Network, Right, Rule};

mod schema;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/config");

/// A separate `--root` for each test.
struct Place {
    dir: TempDir,
    around: Surroundings,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(Some(dir.path()), true, |_| None).unwrap();
        fs::create_dir_all(&paths.etc).unwrap();
        let owner = Owner { uid: 12, gid: 34 };
        Self { dir, around: Surroundings { paths, hostname: "here".into(), owner, etcd: true } }
    }

    fn with(config: &str, map: &str) -> Self {
        let place = Self::new();
        fs::write(place.around.paths.config(), config).unwrap();
        fs::write(place.around.paths.map(), map).unwrap();
        place
    }

    fn read(&self) -> Result<Loaded, Faults> {
        load::read(&self.around, None, NamedFiles::MayBeMissing, &[]).map_err(|rejected| rejected.faults)
    }

    /// Returns the faults, without the directory of the test.
    fn faults(&self) -> Vec<String> {
        let etc = format!("{}/", self.around.paths.etc.display());
        match self.read() {
            Ok(_) => Vec::new(),
            Err(faults) => faults.to_string().replace(&etc, "").lines().map(str::to_owned).collect(),
        }
    }
}

fn backend_name(name: &str) -> BackendName {
    BackendName::parse(name).unwrap()
}

fn sample(name: &str) -> String {
    fs::read_to_string(format!("{DATA}/{name}")).unwrap()
}

fn config_faults(config: &str) -> Vec<String> {
    Place::with(config, "{}").faults()
}

fn map_faults(map: &str) -> Vec<String> {
    Place::with("{}", map).faults()
}

#[test]
fn nothing_configured_is_complete() {
    let place = Place::new();
    let loaded = place.read().unwrap();
    let paths = &place.around.paths;
    let volumes = paths.volumes();
    let settings = BackendSettings {
        path: volumes.clone(),
        mountpoints: volumes.into(),
        draining: false,
        require_mount: false,
        durable_directories: false,
        trash: Duration::from_secs(86400),
        uid: 12,
        gid: 34,
        mode: Mode::parse("0755").unwrap(),
    };
    let backend = MapEntry { settings, hosts: None };
    let boot = Boot {
        name: "volhost".into(),
        node: HostName::parse("here").unwrap(),
        node_configured: false,
        scope: Scope::Global,
        listen: vec![Listen::parse("https://127.0.0.1:7443").unwrap()],
        pki: paths.pki(),
        catalog: Location::Sqlite(paths.catalog()),
        etcd: Credentials::default(),
        spool: paths.spool(),
        admin: paths.admin(),
        metrics: None,
        metrics_clients: MetricsClients::Verified,
    };
    let live = Live {
        insecure: false,
        advertise: None,
        tls: TlsFiles { server: None, client_ca: None, crl: None },
        spec: Some(SpecSettings { dir: paths.spec.clone(), format: None }),
        map: paths.map(),
        backends: BTreeMap::from([(BackendName::parse("default").unwrap(), backend)]),
        hosts: None,
        limits: Limits {
            connections: 4096,
            connections_per_host: 256,
            volumes_per_host: 100_000,
            mounts_per_host: 100_000,
            body_bytes: 1048576,
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(20),
        },
    };
    let expected = Config { boot, live };
    assert_eq!(loaded.config, expected);
    let followed: Vec<_> = loaded.files.iter().map(snapshot::FileSnapshot::path).collect();
    assert_eq!(followed, [paths.config(), paths.map()]);
    assert_eq!(Place::with("{}", "{}").read().unwrap().config.live.backends, BTreeMap::new());
}

#[test]
fn the_full_sample_is_read() {
    let place = Place::with(&sample("full/volhost.json"), &sample("full/backends.json"));
    let config = place.read().unwrap().config;
    assert_eq!(config.boot.scope, Scope::Local);
    assert_eq!(config.boot.listen.len(), 3);
    assert_eq!(config.live.tls.server.unwrap().key, Path::new("/etc/volhost/tls/server.key"));
    assert_eq!(config.live.tls.crl.as_deref(), Some(Path::new("/etc/volhost/tls/crl.pem")));
    assert_eq!(config.live.spec.unwrap().format, Some(SpecFormat::Json));
    let catalog = "etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/volhost";
    assert_eq!(config.boot.catalog.to_string(), catalog);
    let file = |name: &str| Some(Path::new("/etc/volhost/etcd").join(name));
    let etcd = Credentials {
        ca: file("ca.crt"),
        cert: file("client.crt"),
        key: file("client.key"),
        user: Some("volhost".into()),
        password_file: file("password"),
    };
    assert_eq!(config.boot.etcd, etcd);
    assert_eq!(config.live.limits.request, Duration::from_secs(90));
    let Listed { named, rest } = config.live.hosts.unwrap();
    let web1 = &named[&HostName::parse("web1").unwrap()];
    assert_eq!(web1.rights, Some(BTreeSet::from([Right::Mount, Right::Adopt])));
    assert_eq!(web1.backends, Some(BTreeSet::from([backend_name("fast")])));
    assert_eq!(named[&HostName::anonymous()], Rule::default());
    assert_eq!((named.len(), rest), (2, Some(Rule { rights: Some(BTreeSet::new()), ..Rule::default() })));
    let fast = &config.live.backends[&backend_name("fast")];
    assert_eq!(fast.settings.mountpoints.usual, Path::new("/data/fast"));
    assert_eq!(fast.settings.mountpoints.on(&HostName::parse("web2").unwrap()), Path::new("/other/fast"));
    let settings = &fast.settings;
    assert_eq!((settings.uid, settings.gid, settings.mode.bits()), (70, 0, 0o2770));
    assert_eq!(settings.trash, Duration::from_secs(36 * 3600));
    assert!(settings.draining && settings.require_mount);
    assert_eq!(fast.hosts.as_ref().unwrap().len(), 2);
    assert_eq!(config.live.backends[&backend_name("default")].settings.path, Path::new("/srv/volumes"));
}

#[test]
fn all_faults_of_both_files_are_told_at_once() {
    let place = Place::with(&sample("faulty/volhost.json"), &sample("faulty/backends.json"));
    let told = place.faults().join("\n") + "\n";
    let golden = format!("{DATA}/faulty/faults.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &told).unwrap();
    }
    assert_eq!(told, fs::read_to_string(golden).unwrap());
}

/// Returns every way to put one more member into one object of a value.
pub(crate) fn with_a_spurious_key(value: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    match value {
        Value::Object(members) => {
            let mut with = members.clone();
            with.insert("spurious".into(), json!(1));
            all.push(Value::Object(with));
            for (key, member) in members {
                for changed in with_a_spurious_key(member) {
                    let mut with = members.clone();
                    with.insert(key.clone(), changed);
                    all.push(Value::Object(with));
                }
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                for changed in with_a_spurious_key(element) {
                    let mut with = elements.clone();
                    with[index] = changed;
                    all.push(Value::Array(with));
                }
            }
        }
        _ => {}
    }
    all
}

#[test]
fn a_spurious_key_is_refused_in_every_object() {
    let (config, map) = (sample("full/volhost.json"), sample("full/backends.json"));
    let parsed = [&config, &map].map(|text| serde_json::from_str::<Value>(text).unwrap());
    let configs = with_a_spurious_key(&parsed[0]);
    assert_eq!(configs.len(), 9, "the sample has fewer objects than the configuration");
    for changed in configs {
        let faults = Place::with(&changed.to_string(), &map).faults();
        assert!(faults.len() == 1 && faults[0].contains("spurious:"), "{changed}: {faults:?}");
    }
    for changed in with_a_spurious_key(&parsed[1]) {
        let faults = Place::with(&config, &changed.to_string()).faults();
        assert!(faults.len() == 1 && faults[0].contains("spurious:"), "{changed}: {faults:?}");
    }
}

#[test]
fn every_key_is_hinted_at_when_it_is_mistyped() {
    let map = sample("full/backends.json").replace("\"draining\"", "\"drainig\"");
    assert_eq!(
        map_faults(&map),
        [
            "backends.json:8:5: fast.drainig: unknown field: the known ones are path, mountpoint, mountpoint_by_host, hosts, draining, \
             require_mount, durable_directories, trash, uid, gid, mode (did you mean \"draining\"?)"
        ]
    );
}

#[test]
fn syntax_errors_have_a_place() {
    for (text, expected) in [
        ("", "volhost.json:1:1: the file is empty"),
        (" \n ", "volhost.json:1:1: the file is empty"),
        ("\u{feff}{}", "volhost.json:1:1: the file begins with a byte order mark"),
        ("{\n  \"name\": \"x\",\n}", "volhost.json:2:14: this is no JSON: trailing commas are not allowed"),
        ("{\n // no\n}", "volhost.json:2:2: this is no JSON: comments are not allowed"),
        ("{\"é\" 1}", "volhost.json:1:6: this is no JSON: expected colon"),
        ("{\"name\": \"x\" \"node\": \"y\"}", "volhost.json:1:13: this is no JSON: expected comma"),
        ("{name: 1}", "volhost.json:1:2: this is no JSON: expected string for object property"),
        ("{'name': 1}", "volhost.json:1:2: this is no JSON: single-quoted strings are not allowed"),
        ("{\"name\": 0x1}", "volhost.json:1:10: this is no JSON: hexadecimal numbers are not allowed"),
        ("{\"name\": 01}", "volhost.json:1:11: this is no JSON: expected comma"),
        ("{\"name\": +1}", "volhost.json:1:10: this is no JSON: unary plus on numbers is not allowed"),
        ("{\"name\": .5}", "volhost.json:1:10: this is no JSON: leading or trailing decimal points"),
        ("{\"name\": NaN}", "volhost.json:1:10: this is no JSON: unexpected"),
        ("{\"name\": \"\\x41\"}", "volhost.json:1:11: this is no JSON: invalid escape"),
        ("{\"name\": \"\\ud800\"}", "volhost.json:1:11: this is no JSON: invalid unicode escape sequence"),
        ("{\"name\": \"a\tb\"}", "volhost.json:1:11: this is no JSON: control character"),
        ("{\u{a0}}", "volhost.json:1:2: this is no JSON: key must be a string"),
        ("{\u{b}}", "volhost.json:1:2: this is no JSON: key must be a string"),
        ("{\"name\":\n\"x", "volhost.json:2:1: this is no JSON: unterminated string literal"),
        ("{} {}", "volhost.json:1:4: this is no JSON: text cannot contain more than one JSON value"),
        ("{", "volhost.json:1:1: this is no JSON: unterminated object"),
        ("[]", "volhost.json:1:1: this is a list: it takes an object such as"),
    ] {
        let faults = config_faults(text);
        assert!(faults.len() == 1 && faults[0].starts_with(expected), "{text:?}: {faults:?}");
    }
}

#[test]
fn a_file_that_is_no_text_is_told_where() {
    let place = Place::new();
    fs::write(place.around.paths.config(), b"{\n \"n\": \"\xff\"}").unwrap();
    assert_eq!(place.faults(), ["volhost.json:2:8: the file is not UTF-8 text from here on"]);
}

#[test]
fn depth_and_size_cost_nothing() {
    let deep = "[".repeat(4_000_000);
    assert_eq!(config_faults(&deep).len(), 1);
    for depth in [33, 600, 1_000_000] {
        let nested = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(
            config_faults(&nested),
            ["volhost.json:1:33: nested deeper than 32 levels: no configuration is"]
        );
        let nested = format!("{{\"hosts\": {nested}}}");
        assert_eq!(config_faults(&nested).len(), 1);
    }
    assert_eq!(
        config_faults(&"[".repeat(4 * 1024 * 1024 + 1)),
        ["volhost.json: cannot be read: it is larger than 4 MiB, more than any file of its kind"]
    );
    // A very large number of faults in a single line.
    let many = format!("{{{}}}", ["\"a\":1"; 100_000].join(","));
    let faults = map_faults(&many);
    assert_eq!(faults.len(), 1001);
    assert_eq!(faults[0], "backends.json: more than 1000 faults: the first 1000 are told");
}

#[test]
fn fields_that_are_not_served_yet_are_refused() {
    let faults = config_faults(r#"{"audit": "/a"}"#);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert!(faults[0].contains("is not supported by this version"), "{faults:?}");
    assert!(
        config_faults(r#"{"metrics": null, "audit": null, "hosts": null, "advertise": null, "etcd": null}"#)
            .is_empty()
    );
}

/// Every string of both files ends up in a log or on a terminal at some time, and must not imitate anything there.
#[test]
fn control_characters_are_refused_in_every_string() {
    let text = |what: &str, c: &str| format!("{what}x{c}y");
    for c in ["\n", "\u{9b}", "\u{7f}", "\u{85}", "\u{2028}", "\u{202e}", "\u{2066}", "\0", "\t"] {
        let at = |field: &str| format!(": {field}:");
        let path = text("/srv/", c);
        let config = json!({
            "name": text("n", c), "node": text("n", c), "scope": text("", c), "listen": [format!("unix:{path}")],
            "advertise": format!("unix:{path}"), "tls": { "crl": path }, "spec": { "dir": path, "format": text("", c) },
            "catalog": format!("sqlite:{path}"), "backends": path, "admin": path, "$schema": text("", c),
            "hosts": { "web1": { "rights": [text("", c)], "backends": [text("", c)] } },
            "limits": { "request": text("", c) }, "etcd": { "ca": path, "user": text("", c) },
        });
        let faults = config_faults(&config.to_string());
        for field in [
            "name",
            "node",
            "scope",
            "listen[0]",
            "advertise",
            "tls.crl",
            "spec.dir",
            "spec.format",
            "catalog",
            "backends",
            "admin",
            "hosts.web1.rights[0]",
            "hosts.web1.backends[0]",
            "limits.request",
            "etcd.ca",
            "etcd.user",
            "\"$schema\"",
        ] {
            let of_it: Vec<_> = faults.iter().filter(|fault| fault.contains(&at(field))).collect();
            assert!(
                of_it.len() == 1
                    && of_it[0].starts_with("volhost.json:1:")
                    && of_it[0].contains("control character"),
                "{c:?} in {field}: {of_it:?} of {faults:#?}"
            );
        }
        let map = json!({
            "fast": { "path": path, "mountpoint": path, "mountpoint_by_host": { "web2": path }, "hosts": [text("", c)],
                      "trash": text("", c), "mode": text("", c) },
            "slow": path,
        });
        let faults = map_faults(&map.to_string());
        for field in [
            "fast.path",
            "fast.mountpoint",
            "fast.mountpoint_by_host.web2",
            "fast.hosts[0]",
            "fast.trash",
            "fast.mode",
            "slow",
        ] {
            let of_it: Vec<_> = faults.iter().filter(|fault| fault.contains(&at(field))).collect();
            assert!(
                of_it.len() == 1 && of_it[0].contains("control character"),
                "{c:?} in {field}: {faults:#?}"
            );
        }
        // A key is a name, which contains no control character; and no fault breaks a line.
        for fault in map_faults(&json!({ text("", c): "/srv/x" }).to_string()).iter().chain(&faults) {
            assert!(!fault.contains(crate::error::is_unsafe_to_show), "{fault:?}");
        }
        assert_eq!(map_faults(&json!({ text("", c): "/srv/x" }).to_string()).len(), 1);
    }
    let good = json!({ "default": { "path": "/srv/größe \"漢字\" \\ 🦀" } });
    assert!(map_faults(&good.to_string()).is_empty());
}

#[test]
fn a_catalog_in_etcd_is_refused_where_the_program_was_built_without_it() {
    let mut place = Place::with(r#"{"catalog": "etcd://a:1,b:2/store", "etcd": {}}"#, "{}");
    assert_eq!(place.faults(), [""; 0]);
    place.around.etcd = false;
    assert_eq!(
        place.faults(),
        [
            "volhost.json:1:13: catalog: this volhost was built without etcd, which the catalog etcd://a:1,b:2/store \
          needs: install one that was built with it, by `cargo build --release --features etcd`"
        ]
    );
    assert_eq!(Surroundings::here(&place.around.paths).etcd, cfg!(feature = "etcd"));
}

#[test]
fn plain_http_is_for_this_machine_unless_said_otherwise() {
    assert!(config_faults(r#"{"listen": ["http://127.0.0.1:1", "http://[::1]:1"]}"#).is_empty());
    assert!(config_faults(r#"{"listen": ["http://0.0.0.0:1"], "insecure": true}"#).is_empty());
    let faults = config_faults(r#"{"listen": ["http://10.1.2.3:1"]}"#);
    assert!(
        faults[0].contains("listen[0]: http://10.1.2.3:1 serves other machines without TLS"),
        "{faults:?}"
    );
}

#[test]
fn what_would_go_wrong_together_is_a_fault() {
    for (text, expected) in [
        (r#"{"listen": []}"#, "listen: names no address"),
        (r#"{"listen": ["unix:/a"], "admin": "/a"}"#, "admin: is the same socket as one of \"listen\""),
        (
            r#"{"metrics": "unix:/a"}"#,
            "metrics: is a socket: monitoring takes an http:// or https:// address",
        ),
        (
            r#"{"metrics": "http://10.0.0.1:9743"}"#,
            "metrics: http://10.0.0.1:9743 serves other machines without TLS",
        ),
        (
            r#"{"listen": ["https://127.0.0.1:1"], "metrics": "http://127.0.0.1:1"}"#,
            "metrics: is the same address as one of \"listen\"",
        ),
        (
            r#"{"listen": ["https://1.2.3.4:5", "http://1.2.3.4:5"], "insecure": true}"#,
            "listen[1]: is given twice",
        ),
        (r#"{"tls": {"cert": "/a"}}"#, "tls.key: is missing"),
        (r#"{"tls": {"key": "/a"}}"#, "tls.cert: is missing"),
        (r#"{"spec": {"format": "spec"}}"#, "spec.format: a .spec file cannot say which CA"),
        (r#"{"node": "anonymous"}"#, "node: \"anonymous\" is no host name"),
        (r#"{"hosts": {"web1": {}, "WEB1": {}}}"#, "hosts.WEB1: is given twice"),
        (r#"{"catalog": "/var/x.db"}"#, "(did you mean \"sqlite:/var/x.db\"?)"),
        (r#"{"catalog": "sqlite:x.db"}"#, "catalog: \"x.db\" is no absolute path"),
        (
            r#"{"catalog": "etcd://a:1"}"#,
            "catalog: \"etcd://a:1\" names no catalog: it has no prefix for the catalog's keys",
        ),
        (r#"{"etcd": {"ca": "/a"}}"#, "etcd: is for a catalog in etcd, but the catalog is sqlite:/"),
        (
            r#"{"etcd": {}, "catalog": "sqlite:/a"}"#,
            "is sqlite:/a: take it out, or set \"catalog\" to etcd://HOST:PORT,",
        ),
        // The catalog's own fault is reported, and not in addition that it is not in etcd.
        (r#"{"etcd": {"ca": "/a"}, "catalog": "etc://a:1/p"}"#, "(did you mean \"etcd\"?)"),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"ca": "/a", "cert": "/a"}}"#,
            "etcd.key: is missing: the certificate in \"cert\" needs its private key",
        ),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"ca": "/a", "key": "/a", "cert": null}}"#,
            "etcd.cert: is missing: the private key in \"key\" needs its certificate",
        ),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"cert": "/a", "key": "/b"}}"#,
            "etcd.ca: is missing: without the members' CA they are called in plain text",
        ),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"user": "u"}}"#,
            "etcd.password_file: is missing: the user in \"user\" is let in by a password",
        ),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"password_file": "/a"}}"#,
            "etcd.user: is missing: whose password is in \"password_file\" must be said",
        ),
        (
            r#"{"catalog": "etcd://a:1/p", "etcd": {"password_file": "/a", "user": ""}}"#,
            "etcd.user: is empty",
        ),
        (
            r#"{"limits": {"request": "500ms"}}"#,
            "limits.request: 500ms is out of range: it takes from 1s to 10min",
        ),
        (r#"{"limits": {"body_bytes": 4095}}"#, "limits.body_bytes: 4095 is out of range"),
        (r#"{"limits": {"connections": 1e3}}"#, "limits.connections: 1e3 is out of range"),
    ] {
        let faults = config_faults(text);
        assert!(faults.len() == 1 && faults[0].contains(expected), "{text}: {faults:?}");
    }
    assert!(config_faults(r#"{"listen": ["https://127.0.0.1:0", "https://127.0.0.1:0"]}"#).is_empty());
    assert!(config_faults(r#"{"spec": {"format": "spec"}, "listen": ["unix:/a"]}"#).is_empty());
    assert!(config_faults(r#"{"spec": null}"#).is_empty());
}

#[test]
fn a_hostname_that_is_no_name_is_only_a_fault_without_node() {
    let mut place = Place::new();
    place.around.hostname = "my_box".into();
    let faults = place.faults();
    assert_eq!(
        faults,
        ["volhost.json: node: this machine's hostname \"my_box\" is no host name: set \"node\" to one"]
    );
    fs::write(place.around.paths.config(), r#"{"node": "box"}"#).unwrap();
    assert_eq!(place.read().unwrap().config.boot.node.as_str(), "box");
}

#[test]
fn files_that_are_named_must_be_there() {
    let place = Place::new();
    let absent = place.dir.path().join("absent.json");
    let faults =
        load::read(&place.around, Some(&absent), NamedFiles::MustExist, &[]).unwrap_err().faults.to_string();
    assert!(faults.starts_with(&format!("{}: cannot be read: No such file", absent.display())), "{faults}");

    let map = place.around.paths.map();
    fs::write(place.around.paths.config(), json!({"backends": map}).to_string()).unwrap();
    let faults = place.faults();
    assert!(faults.len() == 1 && faults[0].starts_with("volhost.json:1:13: backends: "), "{faults:?}");
    fs::write(&map, "{}").unwrap();
    assert_eq!(place.faults(), [""; 0]);

    let tls = json!({"tls": {"client_ca": absent, "crl": place.dir.path()}}).to_string();
    fs::write(place.around.paths.config(), tls).unwrap();
    assert_eq!(place.faults(), [""; 0], "a reload leaves these to whoever reads them");
    let rejected = load::read(&place.around, None, NamedFiles::MustExist, &[]).unwrap_err();
    let told: Vec<_> = rejected.faults.iter().map(|fault| (&*fault.field, &*fault.what)).collect();
    assert!(told[0].0 == "tls.client_ca" && told[0].1.contains("cannot be read: No such file"), "{told:?}");
    assert!(told[1].0 == "tls.crl" && told[1].1.ends_with("is no file"), "{told:?}");

    let etcd = json!({"catalog": "etcd://a:1/p", "etcd": {"ca": place.dir.path(), "user": "u", "password_file": absent}});
    fs::write(place.around.paths.config(), etcd.to_string()).unwrap();
    assert_eq!(place.faults(), [""; 0], "a reload leaves these to whoever reads them");
    let rejected = load::read(&place.around, None, NamedFiles::MustExist, &[]).unwrap_err();
    let told: Vec<_> = rejected.faults.iter().map(|fault| (&*fault.field, &*fault.what)).collect();
    assert!(told[0].0 == "etcd.ca" && told[0].1.ends_with("is no file"), "{told:?}");
    assert!(told[1].0 == "etcd.password_file" && told[1].1.contains("cannot be read: No such"), "{told:?}");
}

#[test]
fn a_default_file_that_cannot_be_read_is_not_a_missing_one() {
    let place = Place::new();
    fs::create_dir(place.around.paths.map()).unwrap();
    let faults = place.faults();
    assert!(faults.len() == 1 && faults[0].starts_with("backends.json: cannot be read:"), "{faults:?}");
}

#[test]
fn a_strange_client_ca_makes_hosts_mandatory() {
    let tls = r#""tls": {"client_ca": "/x/ca.crt"}"#;
    let loaded = Place::with(&format!("{{{tls}}}"), "{}").read().unwrap();
    assert_eq!(loaded.check_client_ca(|_| true), None);
    let fault = loaded.check_client_ca(|file| file != Path::new("/x/ca.crt")).unwrap();
    assert_eq!((fault.line, fault.column, &*fault.field), (1, 23, "tls.client_ca"));
    let with_hosts = Place::with(&format!("{{{tls}, \"hosts\": {{\"*\": {{}}}}}}"), "{}").read().unwrap();
    assert_eq!(with_hosts.check_client_ca(|_| false), None);
    assert_eq!(Place::new().read().unwrap().check_client_ca(|_| false), None);
}

#[test]
fn a_backend_is_a_path_or_an_object_with_one() {
    let place =
        Place::with("{}", r#"{"a": "/x//a/", "b": {"path": "/x/b"}, "c": {"path": "/x/c", "trash": 0}}"#);
    let backends = place.read().unwrap().config.live.backends;
    let a = &backends[&backend_name("a")].settings;
    assert_eq!((&*a.path, &*a.mountpoints.usual), (Path::new("/x/a"), Path::new("/x/a")));
    assert_eq!(a.path.as_os_str(), "/x/a", "there is one spelling of each path");
    assert_eq!(
        backends[&backend_name("b")].settings,
        BackendSettings { path: "/x/b".into(), mountpoints: PathBuf::from("/x/b").into(), ..a.clone() }
    );
    assert_eq!(backends[&backend_name("c")].settings.trash, Duration::ZERO);
    for (trash, accepted) in [
        ("\"0\"", true),
        ("\"0s\"", true),
        ("\"90min\"", true),
        ("\"5\"", false),
        ("5", false),
        ("\"\"", false),
    ] {
        let faults = map_faults(&format!(r#"{{"a": {{"path": "/a", "trash": {trash}}}}}"#));
        assert_eq!(faults.is_empty(), accepted, "{trash}: {faults:?}");
    }
}

#[test]
fn backends_must_not_overlap_behind_symlinks_either() {
    let place = Place::new();
    let top = place.dir.path().canonicalize().unwrap();
    fs::create_dir_all(top.join("disk/a")).unwrap();
    symlink(top.join("disk"), top.join("link")).unwrap();
    symlink(top.join("gone/b"), top.join("dangling")).unwrap();
    let faults = |paths: &[&str]| {
        let map: BTreeMap<_, _> =
            paths.iter().enumerate().map(|(i, path)| (format!("b{i}"), top.join(path))).collect();
        fs::write(place.around.paths.map(), json!(map).to_string()).unwrap();
        place.faults()
    };
    assert_eq!(faults(&["disk/a", "link/b", "disk/ab", "gone"]), [""; 0]);
    for (one, other, relation) in [
        ("disk/a", "link/a", "is the directory of"),
        ("disk", "link/not/there", "lies inside"),
        ("link/not/there", "disk", "holds"),
        ("dangling", "gone", "holds"),
        ("gone/b/c", "dangling", "holds"),
        ("x", "x", "is the directory of"),
    ] {
        let faults = faults(&[one, other]);
        assert_eq!(faults.len(), 1, "{one} {other}: {faults:?}");
        assert!(faults[0].contains(relation) && faults[0].contains(" b1: "), "{one} {other}: {faults:?}");
        assert_eq!(faults[0].contains("leads to"), one != other, "{one} {other}: {faults:?}");
    }
}

#[test]
fn a_change_of_a_field_differs_in_the_part_that_its_row_names() {
    let sample: Value = serde_json::from_str(&sample("full/volhost.json")).unwrap();
    let place = Place::with("{}", "{}");
    let other_map = place.around.paths.etc.join("other.json");
    fs::write(&other_map, "{}").unwrap();
    let read = |config: &Value| {
        fs::write(place.around.paths.config(), config.to_string()).unwrap();
        place.read().unwrap().config
    };
    // The field `etcd` needs such a catalog.
    let base = json!({"catalog": "etcd://other:2379/x"});
    let before = read(&base);
    assert!(before.boot.changed(&before.boot).is_empty() && before.live.changed(&before.live).is_empty());
    for field in fields::CONFIG.iter().filter(|field| field.applied != Applied::Untold) {
        let Field { name, takes, applied, .. } = field;
        let value = match *name {
            "name" => json!("other"),
            "listen" => json!(["https://127.0.0.1:1"]),
            "backends" => json!(other_map),
            _ => sample.get(name).unwrap_or_else(|| panic!("the full sample has no {name:?}")).clone(),
        };
        let mut changed = base.clone();
        changed[name] = value;
        let after = read(&changed);
        let (boot, live) = (before.boot.changed(&after.boot), before.live.changed(&after.live));
        let expected: (&[_], &[_]) = match applied {
            Applied::Reload => (&[], &[*name]),
            Applied::Restart | Applied::RestartOrFollowed => (&[*name], &[]),
            Applied::Untold => unreachable!(),
        };
        assert_eq!((&*boot, &*live), expected, "the row of {name:?} says {applied:?}");
        let Takes::Object(members) = takes else { continue };
        for member in *members {
            let restart = |applied: &Applied| *applied != Applied::Reload;
            assert_eq!(restart(&member.applied), restart(applied), "{name}.{}", member.name);
        }
    }
}

/// Returns the files that express a configuration in full.
fn render(config: &Config) -> (Value, Value) {
    let Config { boot, live } = config;
    let Boot {
        name,
        node,
        node_configured: _,
        scope,
        listen,
        pki: _,
        catalog,
        etcd,
        spool: _,
        admin,
        metrics,
        metrics_clients,
    } = boot;
    let Live { insecure, advertise, tls, spec, map, backends, hosts, limits } = live;
    let etcd = matches!(catalog, Location::Etcd(_)).then(|| {
        let Credentials { ca, cert, key, user, password_file } = etcd;
        json!({"ca": ca, "cert": cert, "key": key, "user": user, "password_file": password_file})
    });
    let duration = |duration: Duration| humantime::format_duration(duration).to_string();
    let texts = |list: &[HostPattern]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut tls_members = serde_json::Map::new();
    if let Some(KeyPair { cert, key }) = &tls.server {
        tls_members.insert("cert".into(), json!(cert));
        tls_members.insert("key".into(), json!(key));
    }
    tls_members.insert("crl".into(), json!(tls.crl));
    if let Some(client_ca) = &tls.client_ca {
        tls_members.insert("client_ca".into(), json!(client_ca));
    }
    let spec = spec.as_ref().map(|SpecSettings { dir, format }| match format {
        Some(format) => {
            json!({"dir": dir, "format": if *format == SpecFormat::Json { "json" } else { "spec" }})
        }
        None => json!({"dir": dir}),
    });
    let hosts = hosts.as_ref().map(|Listed { named, rest }| {
        let rule = |Rule { rights, backends, addresses }: &Rule| {
            let rights =
                rights.as_ref().map(|rights| rights.iter().map(|right| right.as_str()).collect::<Vec<_>>());
            let backends =
                backends.as_ref().map(|names| names.iter().map(BackendName::as_str).collect::<Vec<_>>());
            let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            json!({"rights": rights, "backends": backends, "addresses": addresses})
        };
        let named = named.iter().map(|(host, of_host)| (host.to_string(), rule(of_host)));
        let rest = rest.iter().map(|of_rest| ("*".to_owned(), rule(of_rest)));
        named.chain(rest).collect::<serde_json::Map<_, _>>()
    });
    let Limits {
        connections,
        connections_per_host,
        volumes_per_host,
        mounts_per_host,
        body_bytes,
        handshake,
        request,
    } = limits;
    let file = json!({
        "name": name, "node": node.as_str(), "scope": scope.as_str(),
        "listen": listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "insecure": insecure, "advertise": advertise.as_ref().map(ToString::to_string),
        "tls": tls_members, "spec": spec, "catalog": catalog.to_string(), "etcd": etcd,
        "backends": map, "hosts": hosts, "admin": admin,
        "metrics": metrics.as_ref().map(ToString::to_string),
        "metrics_clients": MetricsClients::WORDS.iter().find(|(_, clients)| clients == metrics_clients).unwrap().0,
        "limits": {
            "connections": connections, "connections_per_host": connections_per_host,
            "volumes_per_host": volumes_per_host, "mounts_per_host": mounts_per_host, "body_bytes": body_bytes,
            "handshake": duration(*handshake), "request": duration(*request),
        },
    });
    let backends = backends.iter().map(|(name, backend)| {
        let MapEntry { settings, hosts } = backend;
        let BackendSettings { path, mountpoints, draining, require_mount, durable_directories, trash, uid, gid, mode } = settings;
        let by_host = mountpoints.by_host.iter().map(|(host, path)| (host.to_string(), json!(path)));
        let by_host: serde_json::Map<_, _> = by_host.collect();
        let value = json!({
            "path": path, "mountpoint": mountpoints.usual, "mountpoint_by_host": by_host, "draining": draining, "require_mount": require_mount,
            "durable_directories": durable_directories, "trash": duration(*trash), "uid": uid, "gid": gid, "mode": mode.to_string(),
            "hosts": hosts.as_deref().map(texts),
        });
        (name.to_string(), value)
    });
    (file, Value::Object(backends.collect()))
}

fn path() -> impl Strategy<Value = PathBuf> {
    "(/[a-z\"\\\\é ]{1,6}){1,4}".prop_map(PathBuf::from)
}

fn host() -> impl Strategy<Value = HostPattern> {
    "[a-z0-9]{1,8}(\\.[a-z]{1,5})?".prop_map(|text| HostPattern::parse(&text).unwrap())
}

fn named() -> impl Strategy<Value = HostName> {
    host().prop_map(|pattern| HostName::parse(pattern.as_str()).unwrap())
}

prop_compose! {
    fn rule()(rights in proptest::option::of(btree_set(proptest::sample::select(&Right::ALL[..]), 0..4)),
              backends in proptest::option::of(btree_set("[a-z0-9]{1,9}", 0..3)),
              addresses in vec(("(10\\.[0-9]\\.0\\.[0-9]|fd00::[1-9])", 0_u8..=32), 0..3)) -> Rule {
        let name = |name: String| BackendName::parse(&name).unwrap();
        let network = |(address, length): (String, u8)| Network::parse(&format!("{address}/{length}")).unwrap();
        Rule {
            rights,
            backends: backends.map(|names| names.into_iter().map(name).collect()),
            addresses: addresses.into_iter().map(network).collect(),
        }
    }
}

prop_compose! {
    fn backend()(usual in path(), by_host in btree_map(named(), path(), 0..3), flags in any::<(bool, bool, bool)>(), trash in 0_u64..100_000_000,
                 uid in 0..u32::MAX, gid in 0..u32::MAX, mode in 0_u32..=0o7777,
                 hosts in proptest::option::of(vec(host(), 0..3))) -> MapEntry {
        let settings = BackendSettings {
            path: PathBuf::new(), mountpoints: Mountpoints { usual, by_host }, draining: flags.0, require_mount: flags.1, durable_directories: flags.2,
            trash: Duration::from_millis(trash), uid, gid, mode: Mode::parse(&format!("{mode:o}")).unwrap(),
        };
        MapEntry { settings, hosts }
    }
}

prop_compose! {
    fn listeners()(ports in btree_set(1_u16.., 1..4), v6 in any::<bool>(), socket in any::<bool>()) -> Vec<Listen> {
        let ip: std::net::IpAddr = if v6 { [0; 16].into() } else { [127, 0, 0, 1].into() };
        let ports = ports.into_iter().map(|port| match port % 2 {
            0 => Listen::Https((ip, port).into()),
            _ => Listen::Http((ip, port).into()),
        });
        ports.chain(socket.then(|| Listen::Unix("/run/engine.sock".into()))).collect()
    }
}

prop_compose! {
    fn cluster()(members in btree_set("[a-z0-9._-]{1,9}:[1-9][0-9]{0,3}|\\[fd00::[1-9]\\]:2379", 1..4),
                 prefix in "[a-zA-Z0-9._-]{1,9}(/[a-z]{1,4}){0,2}") -> Cluster {
        Cluster { members: members.into_iter().collect(), prefix }
    }
}

prop_compose! {
    fn credentials()(paths in vec(path(), 4), user in "\\PC{1,9}", tls in 0..3, with_user in any::<bool>()) -> Credentials {
        let at = |index: usize, given: bool| given.then(|| paths[index].clone());
        let user = user.replace(crate::error::is_unsafe_to_show, "-");
        Credentials {
            ca: at(0, tls > 0), cert: at(1, tls > 1), key: at(2, tls > 1),
            user: with_user.then_some(user), password_file: at(3, with_user),
        }
    }
}

prop_compose! {
    fn config()(name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}", node in "[a-z0-9]{1,9}", global in any::<bool>(),
                listen in listeners(), advertise in proptest::option::of(1_u16..), paths in vec(path(), 8),
                some in any::<[bool; 5]>(), hosts in proptest::option::of((btree_map(named(), rule(), 0..4), proptest::option::of(rule()))),
                backends in btree_map("[a-z0-9]{1,9}", backend(), 0..5),
                etcd in proptest::option::of((cluster(), credentials())),
                metrics in any::<(bool, bool)>(), sizes in (1_usize..=1_000_000, 1_usize..=1_000_000, 1_usize..=10_000_000, 1_usize..=10_000_000, 4096_u64..1 << 30),
                times in (1000_u64..=600_000, 1000_u64..=600_000)) -> Config {
        let host = || "engine.example.org".to_owned();
        let at = |index: usize| paths[index].clone();
        let backends = backends.into_iter().map(|(name, mut backend)| {
            let path = PathBuf::from(format!("/nonexistent/{name}"));
            backend.settings.path = path;
            (BackendName::parse(&name).unwrap(), backend)
        });
        let boot = Boot {
            name,
            node: HostName::parse(&node).unwrap(),
            node_configured: true,
            scope: if global { Scope::Global } else { Scope::Local },
            listen,
            pki: PathBuf::new(),
            catalog: etcd.as_ref().map_or_else(|| Location::Sqlite(at(5)), |(cluster, _)| Location::Etcd(cluster.clone())),
            etcd: etcd.map(|(_, credentials)| credentials).unwrap_or_default(),
            spool: PathBuf::new(),
            admin: at(6),
            metrics: metrics.0.then(|| Listen::Http(([127, 0, 0, 1], 9743).into())),
            metrics_clients: if metrics.1 { MetricsClients::Anyone } else { MetricsClients::Verified },
        };
        let live = Live {
            insecure: true,
            advertise: advertise.map(|port| Advertise::Https(address::Authority { host: host(), port })),
            tls: TlsFiles {
                server: some[0].then(|| KeyPair { cert: at(0), key: at(1) }),
                client_ca: some[1].then(|| at(2)),
                crl: some[2].then(|| at(3)),
            },
            spec: some[3].then(|| SpecSettings { dir: at(4), format: some[4].then_some(SpecFormat::Json) }),
            map: PathBuf::new(),
            backends: backends.collect(),
            hosts: hosts.map(|(named, rest)| Listed { named, rest }),
            limits: Limits {
                connections: sizes.0,
                connections_per_host: sizes.1,
                volumes_per_host: sizes.2,
                mounts_per_host: sizes.3,
                body_bytes: sizes.4,
                handshake: Duration::from_millis(times.0),
                request: Duration::from_millis(times.1),
            },
        };
        Config { boot, live }
    }
}

proptest! {
    #[test]
    fn every_valid_configuration_is_read_as_it_was_meant(config in config()) {
        let place = Place::new();
        let paths = &place.around.paths;
        let mut config = config;
        (config.boot.pki, config.boot.spool) = (paths.pki(), paths.spool());
        config.live.map = paths.map();
        let (file, map) = render(&config);
        fs::write(paths.config(), file.to_string()).unwrap();
        fs::write(paths.map(), map.to_string()).unwrap();
        let read = place.read().map(|loaded| loaded.config).map_err(|faults| TestCaseError::fail(faults.to_string()))?;
        prop_assert_eq!(read, config);
    }

    #[test]
    fn no_text_panics(text in "([\\[\\]{}:,\"\\\\ud8cfn0-9.eE+-]|\\PC|[a-z]{1,8}|\\s){0,60}") {
        let _ = config_faults(&text);
        let _ = map_faults(&text);
    }

    #[test]
    fn no_slip_in_a_sample_panics(at in any::<proptest::sample::Index>(), cut in 0_usize..8, put in "\\PC{0,4}") {
        for (file, of_map) in [("full/volhost.json", false), ("full/backends.json", true)] {
            let mut text: Vec<char> = sample(file).chars().collect();
            let from = at.index(text.len());
            let to = (from + cut).min(text.len());
            text.splice(from..to, put.chars());
            let text: String = text.into_iter().collect();
            let faults = if of_map { map_faults(&text) } else { config_faults(&text) };
            // Every refusal has a position in the file.
            prop_assert!(faults.iter().all(|fault| fault.contains(".json:")), "{:?}", faults);
        }
    }
}
