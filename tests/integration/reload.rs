//! Reloads as an administrator sees them: files are changed in every way that files are changed, and the service
//! follows within a second, in three units of which none stops another, without losing a connection or a request.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::authority::Authority;
use crate::harness::http::{Client, Identity, Target};
use crate::harness::wait::SOON;

/// A change is in force within a second; the machine that tests run on is slow and shared.
const BOUND: Duration = Duration::from_secs(3);

pub(crate) const CONFIG: &str = "etc/volhost/volhost.json";
pub(crate) const MAP: &str = "etc/volhost/backends.json";

/// Polls until it holds, prints how long that took, and fails when it was too long.
#[track_caller]
pub(crate) fn in_force(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < SOON, "{what}: not in force after {SOON:?}");
        thread::sleep(Duration::from_millis(5));
    }
    let took = start.elapsed();
    eprintln!("{what}: in force after {} ms", took.as_millis());
    assert!(took < BOUND, "{what}: in force only after {took:?}");
}

/// The text of a map with backends of these names, each with a directory of its own.
pub(crate) fn map(daemon: &Daemon<'_>, names: &[&str]) -> String {
    let mut map = serde_json::Map::new();
    for name in names {
        let directory = daemon.path("srv").join(name);
        fs::create_dir_all(&directory).unwrap();
        map.insert((*name).to_owned(), directory.to_str().unwrap().into());
    }
    Value::Object(map).to_string()
}

/// Whether a new volume can be made on a backend; it goes again.
pub(crate) fn serves(client: &mut Client, backend: &str) -> bool {
    let body = json!({ "Name": "probe", "Opts": { "backend": backend } });
    let made = client.call("/VolumeDriver.Create", &body).unwrap().status == 200;
    assert_eq!(client.call("/VolumeDriver.Remove", &body).unwrap().status, 200);
    made
}

pub(crate) fn works(client: &mut Client) -> bool {
    client.call("/VolumeDriver.List", &json!({})).is_ok_and(|answer| answer.status == 200)
}

/// Whether the connection was closed, by now or within the client's patience.
#[track_caller]
fn closes(what: &str, client: &mut Client) {
    let start = Instant::now();
    assert!(client.is_closed(), "{what}: the connection stays open");
    let took = start.elapsed();
    eprintln!("{what}: closed after {} ms", took.as_millis());
    assert!(took < BOUND, "{what}: closed only after {took:?}");
}

pub(crate) fn last_reload(daemon: &Daemon<'_>) -> Value {
    daemon.status()["last_reload"].clone()
}

#[test]
fn the_map_is_followed_however_it_is_changed() {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    let conf = setup.root().join("etc/volhost/conf");
    config["backends"] = conf.join("backends.json").to_str().unwrap().into();
    let first = setup.root().join("srv/b0");
    fs::create_dir_all(&first).unwrap();
    let daemon = setup
        .config(&config)
        .file("etc/volhost/conf/backends.json", &json!({ "b0": first }).to_string())
        .start();
    let mut client = daemon.tls();
    assert!(serves(&mut client, "b0") && !serves(&mut client, "b1"));
    let kept = json!({ "Name": "kept", "Opts": { "backend": "b0" } });
    assert_eq!(client.call("/VolumeDriver.Create", &kept).unwrap().status, 200);
    let file = conf.join("backends.json");

    let text = map(&daemon, &["b0", "b1"]);
    daemon.put("etc/volhost/conf/backends.json", &text);
    in_force("map, renamed over", || serves(&mut client, "b1"));

    fs::write(&file, map(&daemon, &["b0", "b2"])).unwrap();
    in_force("map, written in place", || serves(&mut client, "b2"));
    assert!(!serves(&mut client, "b1"), "a backend that left the map takes new volumes");

    fs::remove_dir_all(&conf).unwrap();
    in_force("map, directory removed", || last_reload(&daemon)["result"] == "rejected");
    assert!(serves(&mut client, "b2"), "the map in force went with its file");
    let text = map(&daemon, &["b3"]);
    fs::create_dir(&conf).unwrap();
    fs::write(&file, text).unwrap();
    in_force("map, directory made again", || serves(&mut client, "b3"));
    in_force("its word in the status", || last_reload(&daemon)["result"] == "applied");

    // As Kubernetes mounts a ConfigMap: the file is a link through `..data`, and that link is swapped.
    let version = |name: &str, backend: &str| {
        let directory = conf.join(name);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("backends.json"), map(&daemon, &[backend])).unwrap();
        symlink(name, conf.join("..data_tmp")).unwrap();
        fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
    };
    version("..v1", "b4");
    fs::remove_file(&file).unwrap();
    symlink("..data/backends.json", &file).unwrap();
    in_force("map, made a link", || serves(&mut client, "b4"));
    version("..v2", "b5");
    in_force("map, link swapped", || serves(&mut client, "b5"));
    fs::remove_dir_all(conf.join("..v1")).unwrap();
    fs::write(conf.join("..v2/backends.json"), map(&daemon, &["b6"])).unwrap();
    in_force("map, written behind the link", || serves(&mut client, "b6"));

    // The whole directory above is exchanged, as a deployment does.
    let old = daemon.path("etc/volhost/old");
    fs::rename(&conf, &old).unwrap();
    fs::create_dir(&conf).unwrap();
    fs::write(&file, map(&daemon, &["b7"])).unwrap();
    in_force("map, directory exchanged", || serves(&mut client, "b7"));
    let got = client.call("/VolumeDriver.Get", &kept).unwrap();
    assert_eq!(got.status, 200, "a reload lost a volume: {got:?}");
    assert_eq!(got.json()["Volume"]["Status"]["backend_state"], "unmapped");

    // Another map is named, and comes only later.
    config["backends"] = daemon.path("etc/volhost/other.json").to_str().unwrap().into();
    daemon.put(CONFIG, &config.to_string());
    in_force("another map, which is not there", || last_reload(&daemon)["result"] == "rejected");
    daemon.put("etc/volhost/other.json", &map(&daemon, &["b0"]));
    in_force("another map, made later", || serves(&mut client, "b0"));
    assert_eq!(
        client.call("/VolumeDriver.Get", &kept).unwrap().json()["Volume"]["Status"]["backend_state"],
        "online"
    );
}

#[test]
fn the_configuration_is_followed_however_it_is_changed_and_by_sighup() {
    let daemon = Daemon::start();
    let mut client = daemon.tls();
    let path = daemon.path(CONFIG);
    let standard: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let with = |bytes: usize| {
        let mut config = standard.clone();
        config["limits"] = json!({ "body_bytes": bytes });
        config.to_string()
    };
    let takes = |bytes: usize| {
        let body = json!({ "Name": "none", "ID": "x".repeat(bytes) });
        daemon.unix().call("/VolumeDriver.Get", &body).is_ok_and(|answer| answer.status != 413)
    };
    assert!(takes(5000));
    daemon.put(CONFIG, &with(4096));
    in_force("configuration, renamed over", || !takes(5000));
    fs::write(&path, with(8192)).unwrap();
    in_force("configuration, written in place", || takes(5000));
    let moved = daemon.path("etc/volhost/real.json");
    fs::write(&moved, with(4096)).unwrap();
    let link = daemon.path("etc/volhost/link");
    symlink(&moved, &link).unwrap();
    fs::rename(&link, &path).unwrap();
    in_force("configuration, made a link", || !takes(5000));
    fs::remove_file(&path).unwrap();
    fs::remove_file(&moved).unwrap();
    in_force("configuration, removed", || last_reload(&daemon)["result"] == "rejected");
    assert!(!takes(5000), "the configuration in force went with its file");
    // Where that is meant the defaults hold, but what only a restart can change stays.
    daemon.cli(&["reload", "--force"]).ok();
    assert!(takes(5000));
    daemon.put(CONFIG, &with(4096));
    in_force("configuration, made again", || !takes(5000));
    assert!(works(&mut client), "a reload dropped a connection");

    let before = daemon.log().matches("reload: ").count();
    daemon.signal("HUP");
    let news = || daemon.log().split("SIGHUP received").nth(1).map(str::to_owned).unwrap_or_default();
    in_force("SIGHUP", || {
        let news = news();
        ["configuration", "certificates", "crl"].iter().all(|unit| news.contains(&format!("{unit} applied")))
    });
    assert!(daemon.log().matches("reload: ").count() > before);
    assert!(works(&mut client), "SIGHUP dropped a connection");
}

#[test]
fn a_rejected_reload_is_told_everywhere_and_changes_nothing() {
    let daemon = Daemon::start();
    let mut client = daemon.tls();
    daemon.put(MAP, &map(&daemon, &["default", "fast"]));
    in_force("map", || serves(&mut client, "fast"));

    daemon.put(MAP, r#"{"default": "relative/path", "fast": {"paht": "/x", "trash": "5"}}"#);
    in_force("the rejection", || last_reload(&daemon)["result"] == "rejected");
    let reload = last_reload(&daemon);
    assert_eq!(reload["unit"], "configuration");
    let faults: Vec<_> =
        reload["faults"].as_array().unwrap().iter().map(|fault| fault.as_str().unwrap()).collect();
    for (field, hint) in [("default", "relative/path"), ("fast.paht", "path"), ("fast.trash", "unit")] {
        let named = |fault: &&&str| fault.contains("backends.json:1:") && fault.contains(field);
        let fault = faults.iter().find(named).unwrap_or_else(|| panic!("{field} is not in {faults:#?}"));
        assert!(fault.contains(hint), "{fault}");
    }
    let (table, log) = (daemon.cli(&["status"]).ok(), daemon.log());
    assert!(table.contains("REJECTED"), "{table}");
    for fault in &faults {
        assert!(table.contains(fault), "{fault} is not in the table:\n{table}");
        assert!(log.contains(fault), "{fault} is not in the log:\n{log}");
    }
    let check = daemon.cli(&["check"]);
    assert_eq!(check.code, Some(78));
    assert_eq!(daemon.cli(&["check", "--json"]).code, Some(78));
    assert!(faults.iter().all(|fault| format!("{}{}", check.stdout, check.stderr).contains(fault)));

    assert!(serves(&mut client, "fast"), "the map in force was lost");
    let answer =
        client.call("/VolumeDriver.Create", &json!({ "Name": "still", "Opts": { "backend": "fast" } }));
    assert_eq!(answer.unwrap().status, 200);

    // A fault in the other file is told with those of the map, and both are mended one after the other.
    let config = fs::read_to_string(daemon.path(CONFIG)).unwrap();
    daemon.put(CONFIG, &config.replacen('{', r#"{"limts": {}, "#, 1));
    in_force("faults of both files", || {
        let faults = last_reload(&daemon)["faults"].to_string();
        faults.contains("limts") && faults.contains("fast.paht")
    });
    daemon.put(CONFIG, &config);
    in_force("faults of the map alone", || {
        let faults = last_reload(&daemon)["faults"].to_string();
        !faults.contains("limts") && faults.contains("fast.paht")
    });
    daemon.put(MAP, &map(&daemon, &["default", "fast", "slow"]));
    in_force("the corrected map", || serves(&mut client, "slow"));
    in_force("its word in the status", || last_reload(&daemon)["result"] == "applied");
    assert_eq!(last_reload(&daemon)["faults"], json!([]));
}

#[test]
fn what_needs_a_restart_is_named_until_it_is_taken_back() {
    let daemon = Daemon::start();
    let standard: Value = serde_json::from_slice(&fs::read(daemon.path(CONFIG)).unwrap()).unwrap();
    let mut config = standard.clone();
    config["name"] = "other".into();
    config["scope"] = "local".into();
    config["listen"] = json!(["https://127.0.0.1:0"]);
    config["limits"] = json!({ "body_bytes": 4096 });
    daemon.put(CONFIG, &config.to_string());
    in_force("needs_restart", || daemon.status()["needs_restart"] == json!(["name", "scope", "listen"]));
    let status = daemon.cli(&["status"]).ok();
    assert!(status.contains("name, scope, listen"), "{status}");
    assert!(daemon.log().contains("a restart is needed for what changed in name, scope, listen"));
    // The rest of the same change is in force, and what is not is as it was.
    let mut client = daemon.unix();
    let large = json!({ "Name": "x".repeat(5000) });
    assert_eq!(client.call("/VolumeDriver.Get", &large).unwrap().status, 413);
    let scope = daemon.tls().call("/VolumeDriver.Capabilities", &json!({})).unwrap().json();
    assert_eq!(scope["Capabilities"]["Scope"], "global");
    assert_eq!(daemon.status()["name"], "volhost");

    daemon.put(CONFIG, &standard.to_string());
    in_force("needs_restart, taken back", || daemon.status()["needs_restart"] == json!([]));
}

#[test]
fn the_spec_file_follows_what_is_advertised_and_where_it_belongs() {
    let daemon = Daemon::start();
    let standard: Value = serde_json::from_slice(&fs::read(daemon.path(CONFIG)).unwrap()).unwrap();
    let with = |field: &str, value: Value| {
        let mut config = standard.clone();
        config[field] = value;
        config.to_string()
    };
    let port = daemon.tcp("https").port();
    daemon.put(CONFIG, &with("advertise", format!("https://store1.example.org:{port}").into()));
    in_force("advertise", || daemon.spec()["Addr"] == format!("https://store1.example.org:{port}"));
    // The server's certificate holds the new name before anybody is told it.
    let server = daemon.tls().server().to_vec();
    assert!(server.windows(18).any(|bytes| bytes == b"store1.example.org"), "the certificate lacks the name");

    let elsewhere = daemon.path("elsewhere");
    daemon.put(CONFIG, &with("spec", json!({ "dir": elsewhere })));
    in_force("spec.dir", || elsewhere.join("volhost.json").exists());
    daemon.put(CONFIG, &with("spec", Value::Null));
    in_force("spec: null", || daemon.status()["spec"].is_null());
    fs::remove_file(elsewhere.join("volhost.json")).unwrap();
    let unix = json!({ "dir": elsewhere, "format": "spec" });
    daemon.put(CONFIG, &with("spec", unix));
    in_force("spec.format", || {
        fs::read_to_string(elsewhere.join("volhost.spec")).is_ok_and(|text| text.starts_with("unix://"))
    });

    // A stranger's file is left alone, and the status says why ours is not there.
    let strange = daemon.path("strange");
    fs::create_dir(&strange).unwrap();
    fs::write(strange.join("volhost.json"), "{\"Name\": \"mine\"}").unwrap();
    daemon.put(CONFIG, &with("spec", json!({ "dir": strange })));
    in_force("a stranger's spec file", || daemon.status()["spec"].to_string().contains("strange"));
    assert_eq!(fs::read_to_string(strange.join("volhost.json")).unwrap(), "{\"Name\": \"mine\"}");
    assert!(daemon.log().contains("no spec file was written"), "{}", daemon.log());
}

/// A daemon with an administrator's own certificates: the files lie in `tls/` below its root.
pub(crate) struct Own {
    pub(crate) daemon: Daemon<'static>,
    pub(crate) ca: Authority,
}

impl Own {
    /// A configuration that names all files, and these hosts.
    pub(crate) fn config(setup_root: &Path, hosts: Option<Value>) -> Value {
        let file = |name: &str| setup_root.join("tls").join(name);
        let tls = json!({ "cert": file("server.crt"), "key": file("server.key"), "client_ca": file("ca.crt"),
            "crl": file("crl.pem") });
        let socket = format!("unix:{}", setup_root.join("run/volhost/plugin.sock").display());
        let mut config = json!({ "node": "node1", "listen": ["https://127.0.0.1:0", socket], "tls": tls });
        if let Some(hosts) = hosts {
            config["hosts"] = hosts;
        }
        config
    }

    pub(crate) fn setup(ca: &Authority, hosts: Option<Value>) -> crate::harness::daemon::Setup<'static> {
        let setup = Daemon::setup();
        let config = Self::config(&setup.root(), hosts);
        let server = ca.server();
        setup
            .config(&config)
            .file("tls/server.crt", &server.cert)
            .file("tls/server.key", &server.key)
            .file("tls/ca.crt", &ca.pem())
            .file("tls/crl.pem", &ca.crl(&[99]))
    }

    pub(crate) fn start(hosts: Value) -> Self {
        let ca = Authority::new("the company's CA");
        Self { daemon: Self::setup(&ca, Some(hosts)).start(), ca }
    }

    pub(crate) fn identity(&self, ca: &Authority, name: &str, serial: u8) -> Identity {
        ca.client(name, serial).keep(&self.daemon.path("hosts"), &format!("{name}-{serial}"), &self.ca.pem())
    }

    pub(crate) fn connect(&self, identity: &Identity) -> Client {
        self.daemon.connect(identity).unwrap()
    }

    /// Whether a new connection is served.
    pub(crate) fn lets_in(&self, identity: &Identity) -> bool {
        self.daemon.connect(identity).is_ok_and(|mut client| works(&mut client))
    }
}

#[test]
fn an_authority_of_others_needs_the_list_of_hosts() {
    let ca = Authority::new("the company's CA");
    let (status, log) = Own::setup(&ca, None).refused(|| ());
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("tls.client_ca") && log.contains("\"hosts\" mandatory"), "{log}");

    let own = Own::start(json!({ "web1": {} }));
    let (web1, web2) = (own.identity(&own.ca, "web1", 1), own.identity(&own.ca, "web2", 2));
    let mut client = own.connect(&web1);
    let name = json!({ "Name": "db" });
    assert_eq!(client.call("/VolumeDriver.Create", &name).unwrap().status, 200);
    // Who is not listed is told so, and sees nothing.
    let mut stranger = own.connect(&web2);
    for rpc in ["Create", "Remove", "Mount"] {
        let body = json!({ "Name": if rpc == "Create" { "other" } else { "db" }, "ID": "1" });
        let answer = stranger.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap();
        // To it the volume is one that does not exist, and to remove such a one succeeds.
        let expected = match rpc {
            "Create" => 403,
            "Remove" => 200,
            _ => 400,
        };
        assert_eq!(answer.status, expected, "{rpc}: {answer:?}");
    }
    assert_eq!(own.daemon.volumes(), ["db"]);
    assert_eq!(stranger.call("/VolumeDriver.List", &json!({})).unwrap().json(), json!({ "Volumes": [] }));

    // To take the list out is refused while the CA is not ours.
    let root = own.daemon.path("");
    own.daemon.put(CONFIG, &Own::config(&root, None).to_string());
    in_force("hosts taken out", || last_reload(&own.daemon)["result"] == "rejected");
    let fault = last_reload(&own.daemon)["faults"][0].as_str().unwrap().to_owned();
    assert!(fault.contains("tls.client_ca") && fault.contains("\"hosts\" mandatory"), "{fault}");
    assert_eq!(stranger.call("/VolumeDriver.Create", &json!({ "Name": "x" })).unwrap().status, 403);

    // A host that is dropped from the list keeps what it needs for the volumes it knows, and gets nothing new.
    assert_eq!(client.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "m" })).unwrap().status, 200);
    own.daemon.put(CONFIG, &Own::config(&root, Some(json!({ "web2": {} }))).to_string());
    let create = json!({ "Name": "new" });
    in_force("hosts exchanged", || {
        let answer = stranger.call("/VolumeDriver.Create", &create).unwrap();
        answer.status == 200
    });
    // A Mount that is counted already is none that is new.
    for (rpc, id, status) in [
        ("Get", "m", 200),
        ("Path", "m", 200),
        ("Mount", "new", 403),
        ("Mount", "m", 200),
        ("Remove", "m", 403),
        ("Unmount", "m", 200),
        ("Unmount", "m", 200),
    ] {
        let body = json!({ "Name": "db", "ID": id });
        let answer = client.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap();
        assert_eq!(answer.status, status, "{rpc}: {}", answer.err());
    }
    let refused = client.call("/VolumeDriver.Create", &json!({ "Name": "third" })).unwrap();
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(refused.err().contains("web1"), "{}", refused.err());
    let listed = client.call("/VolumeDriver.List", &json!({})).unwrap().json();
    assert_eq!(listed["Volumes"][0]["Name"], "db");
    own.daemon.has_mounts(&[]);
}

#[test]
fn three_units_are_reloaded_and_none_stops_another() {
    let own = Own::start(json!({ "*": {} }));
    let (web1, web2, web3) = (
        own.identity(&own.ca, "web1", 1),
        own.identity(&own.ca, "web2", 2),
        own.identity(&own.ca, "web3", 3),
    );
    let (mut one, mut two, mut three) = (own.connect(&web1), own.connect(&web2), own.connect(&web3));
    assert!(works(&mut one) && works(&mut two) && works(&mut three));
    let daemon = &own.daemon;

    daemon.put(MAP, "{ broken");
    in_force("a broken map", || last_reload(daemon)["unit"] == "configuration");
    daemon.put("tls/crl.pem", &own.ca.crl(&[1]));
    closes("a revoked host, while the map is broken", &mut one);
    assert!(!own.lets_in(&web1) && own.lets_in(&web2));
    assert!(works(&mut two) && works(&mut three));

    let (before, server) = (own.connect(&web2).server().to_vec(), own.ca.server());
    assert_eq!(two.server(), before);
    // One file after the other: for a moment the two do not belong together, and the old ones stay in force.
    daemon.put("tls/server.crt", &server.cert);
    thread::sleep(Duration::from_millis(400));
    assert!(own.lets_in(&web2));
    daemon.put("tls/server.key", &server.key);
    in_force("a new certificate, while the map is broken", || own.connect(&web2).server() != before);
    assert!(works(&mut two), "an old connection was closed for a new certificate");
    assert_eq!(last_reload(daemon)["unit"], "configuration", "the map is still broken");

    daemon.put("tls/crl.pem", "-----BEGIN X509 CRL-----\nno\n-----END X509 CRL-----\n");
    in_force("a broken list", || daemon.log().contains("crl rejected"));
    assert!(!own.lets_in(&web1), "the list in force was lost with its file");
    let good = map(daemon, &["fast"]);
    daemon.put(MAP, &good);
    in_force("the map, while the list is broken", || serves(&mut two, "fast"));
    let reload = last_reload(daemon);
    assert_eq!((&reload["unit"], &reload["result"]), (&json!("crl"), &json!("rejected")));
    assert!(reload["faults"][0].as_str().unwrap().contains("crl.pem"), "{reload}");
    let next = own.ca.server();
    let before = own.connect(&web2).server().to_vec();
    daemon.put("tls/server.key", &next.key);
    daemon.put("tls/server.crt", &next.cert);
    in_force("a new certificate, while the list is broken", || own.connect(&web2).server() != before);

    let rejections = || daemon.log().matches("certificates rejected").count();
    let before = rejections();
    daemon.put("tls/server.key", "no key");
    in_force("a broken key", || rejections() > before);
    daemon.put("tls/crl.pem", &own.ca.crl(&[3]));
    closes("a revoked host, while the key is broken", &mut three);
    assert!(works(&mut two));
    in_force("a host that is no longer revoked", || own.lets_in(&web1));
    let reload = last_reload(daemon);
    assert_eq!((&reload["unit"], &reload["result"]), (&json!("certificates"), &json!("rejected")));
    assert!(reload["faults"][0].as_str().unwrap().contains("server.key"), "{reload}");
    daemon.put("tls/server.key", &next.key);
    in_force("the mended key", || last_reload(daemon)["result"] == "applied");
    assert!(works(&mut two), "reloads closed a connection of a host that nothing happened to");
}

#[test]
fn a_client_authority_that_is_replaced_takes_its_clients_along() {
    let own = Own::start(json!({ "*": {} }));
    let newer = Authority::new("the company's next CA");
    let (web1, web2) = (own.identity(&own.ca, "web1", 1), own.identity(&newer, "web2", 2));
    let mut one = own.connect(&web1);
    assert!(works(&mut one) && !own.lets_in(&web2));

    own.daemon.put("tls/ca.crt", &format!("{}{}", own.ca.pem(), newer.pem()));
    in_force("a second CA", || own.lets_in(&web2));
    let mut two = own.connect(&web2);
    assert!(works(&mut one) && works(&mut two));

    // The list of the CA that goes would be nobody's: to be told rather than passed over.
    own.daemon.put("tls/ca.crt", &newer.pem());
    in_force("a CA that leaves its list behind", || last_reload(&own.daemon)["result"] == "rejected");
    let fault = last_reload(&own.daemon)["faults"][0].as_str().unwrap().to_owned();
    assert!(fault.contains("crl.pem") && fault.contains("the company's CA"), "{fault}");
    own.daemon.put("tls/crl.pem", &newer.crl(&[77]));
    closes("a client of the CA that was taken out", &mut one);
    in_force("their words in the status", || last_reload(&own.daemon)["result"] == "applied");
    assert!(works(&mut two) && !own.lets_in(&web1));
    own.daemon.put("tls/ca.crt", "");
    in_force("an empty CA file", || last_reload(&own.daemon)["result"] == "rejected");
    assert!(works(&mut two) && own.lets_in(&web2), "an empty file shut everybody out");

    // The other way round: first the list, then its CA.
    own.daemon.put("tls/crl.pem", &own.ca.crl(&[98]));
    in_force("a list without its CA", || daemon_rejected_both(&own.daemon));
    own.daemon.put("tls/ca.crt", &own.ca.pem());
    closes("a client of the CA that was taken out after its list", &mut two);
    assert!(own.lets_in(&web1));
    in_force("all is well", || last_reload(&own.daemon)["result"] == "applied");
}

fn daemon_rejected_both(daemon: &Daemon<'_>) -> bool {
    let log = daemon.log();
    log.contains("crl rejected") && log.contains("certificates rejected")
}

#[test]
fn an_authority_that_becomes_somebody_elses_is_not_let_in_without_a_list() {
    // The clients' CA is volhost's own, named by its path, and no hosts are listed.
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["tls"] = json!({ "client_ca": setup.root().join("etc/volhost/clients.crt") });
    let first = Daemon::start();
    let ours = fs::read_to_string(first.path("etc/volhost/pki/ca.crt")).unwrap();
    let key = fs::read_to_string(first.path("etc/volhost/pki/ca.key")).unwrap();
    drop(first);
    let daemon = setup
        .config(&config)
        .file("etc/volhost/pki/ca.crt", &ours)
        .file("etc/volhost/pki/ca.key", &key)
        .file("etc/volhost/clients.crt", &ours)
        .start();
    let mut client = daemon.tls();
    let company = Authority::new("the company's CA");
    let stranger = company.client("web1", 1).keep(&daemon.path("hosts"), "web1", &ours);
    daemon.put("etc/volhost/clients.crt", &format!("{ours}{}", company.pem()));
    in_force("somebody else's CA", || last_reload(&daemon)["result"] == "rejected");
    let fault = last_reload(&daemon)["faults"][0].as_str().unwrap().to_owned();
    assert!(fault.contains("\"hosts\" mandatory"), "{fault}");
    assert!(!daemon.connect(&stranger).is_ok_and(|mut client| works(&mut client)));
    assert!(works(&mut client));

    // With the list, the same file comes into force, without being touched again.
    config["hosts"] = json!({ "node1": {}, "web1": {} });
    daemon.put(CONFIG, &config.to_string());
    in_force("the list of hosts", || daemon.connect(&stranger).is_ok_and(|mut client| works(&mut client)));
    in_force("its word in the status", || last_reload(&daemon)["result"] == "applied");
    assert!(works(&mut client));
}

#[test]
fn an_authority_that_was_put_in_the_place_of_ours_needs_the_list_of_hosts_too() {
    let first = Daemon::start();
    // Any CA that volhost did not make itself, laid where its own would be.
    let (cert, key) = (first.path("company.crt"), first.path("company.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "30",
        ])
        .args(["-subj", "/CN=the company's CA", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let (cert, key) = (fs::read_to_string(cert).unwrap(), fs::read_to_string(key).unwrap());
    let setup = || Daemon::setup().file("etc/volhost/pki/ca.crt", &cert).file("etc/volhost/pki/ca.key", &key);
    let (status, log) = setup().refused(|| ());
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("pki/ca.crt") && log.contains("\"hosts\" mandatory"), "{log}");
    let config = json!({ "node": "node1", "listen": ["https://127.0.0.1:0"], "hosts": { "node1": {} } });
    let daemon = setup().config(&config).start();
    assert!(works(&mut daemon.tls()));
    daemon.put(CONFIG, &json!({ "node": "node1", "listen": ["https://127.0.0.1:0"] }).to_string());
    in_force("hosts taken out", || last_reload(&daemon)["result"] == "rejected");
    assert_eq!(daemon.cli(&["check"]).code, Some(78));
}

#[test]
fn certificates_named_anew_are_followed_even_while_they_are_broken() {
    let own = Own::start(json!({ "*": {} }));
    let web1 = own.identity(&own.ca, "web1", 1);
    let before = own.connect(&web1).server().to_vec();
    let root = own.daemon.path("");
    let mut config = Own::config(&root, Some(json!({ "*": {} })));
    config["tls"]["cert"] = root.join("tls/next.crt").to_str().unwrap().into();
    config["tls"]["key"] = root.join("tls/next.key").to_str().unwrap().into();
    own.daemon.put(CONFIG, &config.to_string());
    in_force("certificates that are not there", || last_reload(&own.daemon)["unit"] == "certificates");
    assert_eq!(last_reload(&own.daemon)["result"], "rejected");
    assert_eq!(own.connect(&web1).server(), before);

    let next = own.ca.server();
    own.daemon.put("tls/next.crt", &next.cert);
    own.daemon.put("tls/next.key", &next.key);
    in_force("certificates that came later", || own.connect(&web1).server() != before);
    in_force("its word in the status", || last_reload(&own.daemon)["result"] == "applied");
}

#[test]
fn a_revocation_is_not_lost_beside_a_change_of_the_configuration() {
    let own = Own::start(json!({ "*": {} }));
    let root = own.daemon.path("");
    let mut config = Own::config(&root, Some(json!({ "*": {} })));
    for round in 0..24_u8 {
        let host = own.identity(&own.ca, "web1", round + 1);
        let mut client = own.connect(&host);
        assert!(works(&mut client));
        config["limits"] = json!({ "body_bytes": 4096 + usize::from(round) });
        own.daemon.put(CONFIG, &config.to_string());
        // While the configuration is noticed, waited for, read, or put in force.
        thread::sleep(Duration::from_micros(100_000 + u64::from(round) * 500));
        own.daemon.put("tls/crl.pem", &own.ca.crl(&[round + 1]));
        closes("a revocation beside another change", &mut client);
    }
}

#[test]
fn reloads_under_load_drop_no_connection_and_no_request() {
    const RELOADS: usize = 24;
    let own = Own::start(json!({ "*": {} }));
    let daemon = &own.daemon;
    let root = daemon.path("");
    daemon.put(MAP, &map(daemon, &["main"]));
    let (ended, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let identities: Vec<_> = (1..=4).map(|n| own.identity(&own.ca, &format!("web{n}"), n)).collect();
    let (tls, unix) = (daemon.tcp("https"), daemon.socket());
    in_force("the map", || {
        let created = json!({ "Name": "db", "Opts": { "backend": "main" } });
        own.connect(&identities[0]).call("/VolumeDriver.Create", &created).unwrap().status == 200
    });

    let work = |who: usize, target: &Target, keep_alive: bool| {
        let mut open = Client::connect(target).unwrap();
        let mut number = 0_u32;
        while !ended.load(Ordering::Relaxed) {
            if !keep_alive {
                open = Client::connect(target).unwrap();
            }
            number += 1;
            let name = format!("v{who}-{number}");
            let (rpc, body) = match number % 3 {
                0 => ("Create", json!({ "Name": name, "Opts": { "backend": "main" } })),
                1 => ("Get", json!({ "Name": "db" })),
                _ => ("List", json!({})),
            };
            let answer = open.call(&format!("/VolumeDriver.{rpc}"), &body);
            let answer = answer.unwrap_or_else(|e| panic!("client {who}, request {number}, {rpc}: {e}"));
            assert_eq!(answer.status, 200, "client {who}, request {number}, {rpc}: {}", answer.err());
            asked.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let targets = [
            (Target::Tls(tls, identities[0].clone()), true),
            (Target::Tls(tls, identities[1].clone()), true),
            (Target::Tls(tls, identities[2].clone()), false),
            (Target::Tls(tls, identities[3].clone()), false),
            (Target::Unix(unix), true),
        ];
        let workers: Vec<_> = targets
            .into_iter()
            .enumerate()
            .map(|(who, (target, keep_alive))| scope.spawn(move || work(who, &target, keep_alive)))
            .collect();
        for reload in 0..RELOADS {
            match reload % 4 {
                0 => daemon.put(MAP, &map(daemon, if reload % 8 == 0 { &["main", "b"] } else { &["main"] })),
                1 => {
                    let server = own.ca.server();
                    daemon.put("tls/server.crt", &server.cert);
                    daemon.put("tls/server.key", &server.key);
                }
                2 => {
                    let mut config = Own::config(&root, Some(json!({ "*": {} })));
                    config["limits"] = json!({ "body_bytes": 100_000 + reload });
                    daemon.put(CONFIG, &config.to_string());
                }
                _ => daemon.signal("HUP"),
            }
            thread::sleep(Duration::from_millis(180));
            if workers.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
    let applied = daemon.log().matches(" applied").count();
    eprintln!("{} requests answered beside {applied} reloads", asked.load(Ordering::Relaxed));
    assert!(applied >= RELOADS / 2 && asked.load(Ordering::Relaxed) > 50, "nothing was under load");
}
