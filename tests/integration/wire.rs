//! The volume protocol word by word: every answer in every situation, against golden files in `tests/data/wire`.
//!
//! Each test writes down what it sends and what comes back (status, Content-Type, body) and compares the whole
//! conversation with its file. Only what differs from run to run is replaced: paths, times and identities.
//! `UPDATE_GOLDEN=1 cargo test --test integration wire::` writes the files anew; look at what changed.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::{Client, Identity, Target};
use crate::harness::wait::{SOON, until};

const TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// A conversation, as its golden file has it.
struct Transcript {
    root: String,
    text: String,
}

impl Transcript {
    fn of(daemon: &Daemon<'_>) -> Self {
        Self {
            root: daemon.path("").display().to_string().trim_end_matches('/').to_owned(),
            text: String::new(),
        }
    }

    /// Begins a situation.
    fn situation(&mut self, title: &str) {
        self.text += &format!("\n# {title}\n");
    }

    /// One RPC with a JSON body, as engines send it.
    fn call(&mut self, client: &mut Client, rpc: &str, body: &Value) -> u16 {
        let path = if rpc.contains('.') { format!("/{rpc}") } else { format!("/VolumeDriver.{rpc}") };
        self.send(client, "POST", &path, &body.to_string())
    }

    /// One RPC in its situation, over a connection of its own.
    fn asked(&mut self, title: &str, target: &Target, rpc: &str, body: &Value) -> u16 {
        self.situation(title);
        self.call(&mut connect(target), rpc, body)
    }

    /// One request as it is given; 0 for a connection that was closed without an answer.
    fn send(&mut self, client: &mut Client, method: &str, path: &str, body: &str) -> u16 {
        let short = if body.len() > 400 { format!("({} bytes)", body.len()) } else { body.to_owned() };
        self.text += format!("> {method} {path} {short}").trim_end();
        self.text += "\n";
        let length = body.len().to_string();
        let headers = [("Host", "volhost"), ("Content-Length", length.as_str())];
        match client.request(&format!("{method} {path} HTTP/1.1"), &headers, body) {
            Ok(answer) => {
                // Fields in the order of their names: engines do not look at the order.
                let said = answer.json().to_string();
                self.text += &format!(
                    "< {} {}\n< {said}\n",
                    answer.status,
                    answer.header("content-type").unwrap_or("without a Content-Type")
                );
                // What holds for every answer, whatever its golden file says.
                assert_eq!(answer.header("content-type"), Some(TYPE), "{said}");
                assert!(answer.json().is_object(), "no JSON object: {said:?}");
                let has_err = answer.json().get("Err").is_some_and(|err| err != "");
                assert_eq!(answer.status == 200, !has_err, "status {} with {said}", answer.status);
                answer.status
            }
            Err(error) => {
                let closed =
                    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
                assert!(closed, "{method} {path}: {error}");
                self.text += "< closed without an answer\n";
                0
            }
        }
    }

    /// Compares the conversation with its golden file, or writes that.
    #[track_caller]
    fn is(self, name: &str) {
        let text = without_chance(&self.text.replace(&self.root, "ROOT")).trim_start().to_owned();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire").join(format!("{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap_or_default();
        let different = text.lines().zip(golden.lines()).enumerate().find(|(_, (is, was))| is != was);
        if let Some((line, (is, was))) = different {
            panic!(
                "{}:{} differs\n  is  {is}\n  was {was}\nUPDATE_GOLDEN=1 writes it anew",
                path.display(),
                line + 1
            );
        }
        assert_eq!(text, golden, "{} has another length", path.display());
    }
}

/// What no two runs have in common, and the word that stands for it: RFC 3339 times in UTC and whole seconds, and
/// backends' identities. A `0` is any decimal digit, an `x` any hexadecimal one.
const BY_CHANCE: [(&[u8], &str); 2] =
    [(b"0000-00-00T00:00:00Z", "TIME"), (b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", "ID")];

/// The text with those replaced; anything else that looks like one stays and fails.
fn without_chance(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let has_shape = |shape: &[u8]| {
            let head = rest.as_bytes().get(..shape.len());
            head.is_some_and(|head| {
                head.iter().zip(shape).all(|(byte, shape)| match shape {
                    b'0' => byte.is_ascii_digit(),
                    b'x' => byte.is_ascii_hexdigit(),
                    _ => byte == shape,
                })
            })
        };
        if let Some((shape, word)) = BY_CHANCE.iter().find(|(shape, _)| has_shape(shape)) {
            out.push_str(word);
            rest = &rest[shape.len()..];
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn connect(target: &Target) -> Client {
    Client::connect(target).unwrap()
}

fn unix(daemon: &Daemon<'_>) -> Target {
    Target::Unix(daemon.socket())
}

fn tls(daemon: &Daemon<'_>, identity: &Identity) -> Target {
    Target::Tls(daemon.tcp("https"), identity.clone())
}

#[test]
fn constants() {
    let daemon = Daemon::start();
    let mut told = Transcript::of(&daemon);
    let client = &mut daemon.unix();
    told.situation("Activate and Capabilities are answered from constants, with and without a body");
    for rpc in ["Plugin.Activate", "VolumeDriver.Capabilities"] {
        told.send(client, "POST", &format!("/{rpc}"), "{}");
        told.send(client, "POST", &format!("/{rpc}"), "");
        told.send(client, "POST", &format!("/{rpc}"), "{\"More\":[1]}\n\n");
    }
    let standard = Daemon::setup();
    let mut config = standard.standard();
    config["scope"] = json!("local");
    let local = standard.config(&config).start();
    told.situation("Capabilities, \"scope\": \"local\"");
    told.call(&mut local.unix(), "Capabilities", &json!({}));
    told.is("constants");
}

#[test]
fn envelope() {
    let standard = Daemon::setup();
    let mut config = standard.standard();
    config["limits"] = json!({ "body_bytes": 4096 });
    let daemon = standard.config(&config).start();
    let mut told = Transcript::of(&daemon);
    told.situation("other methods");
    for (method, path) in
        [("GET", "/VolumeDriver.List"), ("PUT", "/VolumeDriver.Create"), ("DELETE", "/Plugin.Activate")]
    {
        told.send(&mut daemon.unix(), method, path, "");
    }
    told.situation("other paths");
    for path in [
        "/VolumeDriver.Lst",
        "/VolumeDriver.List/",
        "/volumedriver.list",
        "/NetworkDriver.GetCapabilities",
        "/",
    ] {
        told.send(&mut daemon.unix(), "POST", path, "{}");
    }
    told.situation("a query says nothing");
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.List?all=1", "{}");
    told.situation(
        "empty bodies: Get is left without an answer, because its arguments may have been lost on the way",
    );
    for rpc in ["List", "Get", "Create", "Path", "Mount", "Unmount", "Remove"] {
        told.send(&mut daemon.unix(), "POST", &format!("/VolumeDriver.{rpc}"), "");
    }
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Get", " \r\n");
    told.situation("bodies that are not understood");
    for body in [
        "{",
        "[]",
        "[\"db\",{}]",
        "\"db\"",
        "null",
        "{\"Name\":7}",
        "{\"Name\":\"db\"} {}",
        "{\"Name\":\"a\",\"Name\":\"b\"}",
    ] {
        told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Create", body);
    }
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Create", "{\"Name\":\"db\",\"Opts\":{\"uid\":7}}");
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Create", "{\"Name\":\"db\",\"Opts\":[\"uid=7\"]}");
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Get", "{\"Name\":");
    told.situation("a body over limits.body_bytes");
    let long = json!({ "Name": "db", "Opts": { "backend": "x".repeat(5000) } }).to_string();
    told.send(&mut daemon.unix(), "POST", "/VolumeDriver.Create", &long);
    told.situation("none of this made anything");
    told.call(&mut daemon.unix(), "List", &json!({}));
    told.is("envelope");
}

#[test]
fn create() {
    let daemon = Daemon::start();
    let mut told = Transcript::of(&daemon);
    let engine = unix(&daemon);
    let mut case = |title: &str, body: Value| told.asked(title, &engine, "Create", &body);
    case("new", json!({ "Name": "db", "Opts": { "mode": "0750", "uid": "70" } }));
    case("again", json!({ "Name": "db", "Opts": { "mode": "0750", "uid": "70" } }));
    case("again, an option spelt otherwise", json!({ "Name": "db", "Opts": { "mode": "750" } }));
    case("again, naming no option", json!({ "Name": "db", "Opts": {} }));
    case("again, naming the backend it lies on", json!({ "Name": "db", "Opts": { "backend": "default" } }));
    case("again, with other options", json!({ "Name": "db", "Opts": { "mode": "0700", "uid": "71" } }));
    case("again, with an option that was not given", json!({ "Name": "db", "Opts": { "gid": "5" } }));
    case("Opts is null", json!({ "Name": "plain", "Opts": null }));
    case("no Opts", json!({ "Name": "plain" }));
    case("an unknown option, near a known one", json!({ "Name": "x", "Opts": { "mdoe": "0750" } }));
    case("an unknown option", json!({ "Name": "x", "Opts": { "size": "10G" } }));
    for (option, value) in [
        ("mode", "999"),
        ("mode", "rwx"),
        ("mode", "10000"),
        ("uid", "-1"),
        ("uid", "root"),
        ("gid", "4294967295"),
        ("backend", "no/such"),
        ("adopt", "maybe"),
        ("backend", ""),
    ] {
        case(&format!("{option}={value:?}"), json!({ "Name": "x", "Opts": { option: value } }));
    }
    case("no such backend", json!({ "Name": "x", "Opts": { "backend": "fast" } }));
    case("an engine may not adopt", json!({ "Name": "x", "Opts": { "adopt": "true" } }));
    case("no name", json!({ "Opts": {} }));
    for name in ["", "../x", ".x", "-x", "a/b", "a b", "ä", "a\u{0}b", "..", "_x"] {
        case(&format!("name {name:?}"), json!({ "Name": name }));
    }
    case("a name of 256 bytes", json!({ "Name": "n".repeat(256) }));
    case("the longest name", json!({ "Name": "n".repeat(255) }));
    let path = |name: &str| daemon.path("var/lib/volhost/volumes").join(name);
    std::fs::create_dir(path("found")).unwrap();
    case("a directory of that name is there", json!({ "Name": "found" }));
    std::fs::write(path("file"), "x").unwrap();
    case("a file of that name is there", json!({ "Name": "file" }));
    assert_eq!(daemon.volumes(), ["db", &"n".repeat(255), "plain"], "an error made a volume");
    told.is("create");
}

#[test]
fn choice_of_a_backend() {
    let setup = Daemon::setup();
    let root = setup.root();
    let path = |name: &str| root.join("srv").join(name).display().to_string();
    let map = json!({
        "fast": path("fast"), "old": { "path": path("old"), "draining": true }, "gone": path("gone"),
    });
    let daemon = setup.backends(&map).file("srv/fast/.keep", "").file("srv/old/.keep", "").start();
    for name in ["fast", "old"] {
        std::fs::remove_file(root.join("srv").join(name).join(".keep")).unwrap();
        daemon.cli(&["backend", "init", name]);
    }
    let mut told = Transcript::of(&daemon);
    let engine = unix(&daemon);
    let mut case = |title: &str, body: Value| told.asked(title, &engine, "Create", &body);
    case("none is the default", json!({ "Name": "x" }));
    case("no such backend", json!({ "Name": "x", "Opts": { "backend": "slow" } }));
    case("a draining backend", json!({ "Name": "x", "Opts": { "backend": "old" } }));
    case("an offline backend", json!({ "Name": "x", "Opts": { "backend": "gone" } }));
    case("a good one", json!({ "Name": "x", "Opts": { "backend": "fast" } }));
    case("the same volume elsewhere", json!({ "Name": "x", "Opts": { "backend": "old" } }));
    told.asked("Get names the backend", &engine, "Get", &json!({ "Name": "x" }));
    told.is("choice_of_a_backend");
}

#[test]
fn get_list_path() {
    let daemon = Daemon::start();
    let mut told = Transcript::of(&daemon);
    let engine = unix(&daemon);
    told.asked("List, empty", &engine, "List", &json!({}));
    for name in ["web", "db"] {
        told.asked("a volume", &engine, "Create", &json!({ "Name": name }));
    }
    told.asked("List, sorted, without nulls", &engine, "List", &json!({}));
    for rpc in ["Get", "Path"] {
        told.asked(&format!("{rpc} of a volume"), &engine, rpc, &json!({ "Name": "db" }));
        told.asked(&format!("{rpc} of an unknown one"), &engine, rpc, &json!({ "Name": "nope" }));
        told.asked(&format!("{rpc} of a name that is none"), &engine, rpc, &json!({ "Name": "../etc" }));
        told.asked(&format!("{rpc} without a name"), &engine, rpc, &json!({}));
    }
    told.asked("a mount", &engine, "Mount", &json!({ "Name": "db", "ID": "c1" }));
    told.asked("another", &engine, "Mount", &json!({ "Name": "db", "ID": "c2" }));
    told.asked("Get of a mounted volume", &engine, "Get", &json!({ "Name": "db" }));
    let map = json!({ "default": daemon.path("var/lib/volhost/elsewhere") }).to_string();
    std::fs::write(daemon.path("etc/volhost/backends.json"), map).unwrap();
    let moved = || daemon.backend_state("default").is_some_and(|state| state == "offline").then_some(());
    until("a backend that is offline", SOON, moved);
    told.asked("Get, its backend offline", &engine, "Get", &json!({ "Name": "web" }));
    told.asked("List, the backend offline", &engine, "List", &json!({}));
    told.asked("Path, its backend offline", &engine, "Path", &json!({ "Name": "web" }));
    told.asked("Create, the backend offline", &engine, "Create", &json!({ "Name": "new" }));
    told.asked("Mount, the backend offline", &engine, "Mount", &json!({ "Name": "web", "ID": "c3" }));
    told.asked("Remove, the backend offline", &engine, "Remove", &json!({ "Name": "web" }));
    told.asked("Unmount, the backend offline", &engine, "Unmount", &json!({ "Name": "db", "ID": "c1" }));
    let map = json!({ "other": daemon.path("var/lib/volhost/other") }).to_string();
    std::fs::write(daemon.path("etc/volhost/backends.json"), map).unwrap();
    let unmapped = || daemon.backend_state("default").is_some_and(|state| state == "unmapped").then_some(());
    until("a backend that left the map", SOON, unmapped);
    told.asked("Get, its backend not in the map", &engine, "Get", &json!({ "Name": "web" }));
    told.asked("List, the backend not in the map", &engine, "List", &json!({}));
    told.asked("Mount, its backend not in the map", &engine, "Mount", &json!({ "Name": "web", "ID": "c3" }));
    told.asked("Remove, its backend not in the map", &engine, "Remove", &json!({ "Name": "web" }));
    told.asked(
        "Unmount, its backend not in the map",
        &engine,
        "Unmount",
        &json!({ "Name": "db", "ID": "c2" }),
    );
    told.is("get_list_path");
}

#[test]
fn mount_and_unmount() {
    let daemon = Daemon::start();
    let mut told = Transcript::of(&daemon);
    let engine = unix(&daemon);
    told.asked("a volume", &engine, "Create", &json!({ "Name": "db" }));
    for rpc in ["Mount", "Unmount"] {
        told.asked(&format!("{rpc} without a name"), &engine, rpc, &json!({ "ID": "c1" }));
        told.asked(&format!("{rpc} without an ID"), &engine, rpc, &json!({ "Name": "db" }));
        told.asked(&format!("{rpc} with an empty ID"), &engine, rpc, &json!({ "Name": "db", "ID": "" }));
        told.asked(
            &format!("{rpc} with a control character"),
            &engine,
            rpc,
            &json!({ "Name": "db", "ID": "a\nb" }),
        );
        told.asked(
            &format!("{rpc}, an ID of 257 bytes"),
            &engine,
            rpc,
            &json!({ "Name": "db", "ID": "i".repeat(257) }),
        );
        told.asked(
            &format!("{rpc} of a name that is none"),
            &engine,
            rpc,
            &json!({ "Name": "a/b", "ID": "c1" }),
        );
        told.asked(
            &format!("{rpc} of an unknown volume"),
            &engine,
            rpc,
            &json!({ "Name": "nope", "ID": "c1" }),
        );
    }
    told.asked(
        "Unmount of an ID that never mounted",
        &engine,
        "Unmount",
        &json!({ "Name": "db", "ID": "c1" }),
    );
    assert_eq!(daemon.mounts(), []);
    let count = || daemon.mounts().iter().map(|mount| (mount.id.clone(), mount.count)).collect::<Vec<_>>();
    for (rpc, left) in [("Mount", 1), ("Mount", 2), ("Unmount", 1), ("Unmount", 0), ("Unmount", 0)] {
        told.asked(&format!("{rpc}: {left} left"), &engine, rpc, &json!({ "Name": "db", "ID": "c1" }));
        let expected = (left > 0).then(|| ("c1".to_owned(), left));
        assert_eq!(count(), expected.into_iter().collect::<Vec<_>>());
    }
    daemon.await_durable(&["db"]);
    std::fs::remove_dir(daemon.path("var/lib/volhost/volumes/db")).unwrap();
    told.asked("Mount, its directory gone", &engine, "Mount", &json!({ "Name": "db", "ID": "c1" }));
    assert_eq!(daemon.mounts(), []);
    told.is("mount_and_unmount");
}

#[test]
fn remove() {
    let daemon = Daemon::start();
    let web2 = daemon.add_host("web2", &["--advertise", "https://127.0.0.1:7443"], &daemon.path("web2"));
    let (engine, web2) = (unix(&daemon), tls(&daemon, &web2));
    let mut told = Transcript::of(&daemon);
    told.asked("a volume", &engine, "Create", &json!({ "Name": "db" }));
    told.asked("unknown names succeed", &engine, "Remove", &json!({ "Name": "nope" }));
    told.asked("a name that is none", &engine, "Remove", &json!({ "Name": "../x" }));
    told.asked("no name", &engine, "Remove", &json!({}));
    let id = "041ac58588d957beba7ce891ebf9143cdda1b5e06acf3c8b186ca45d57613a7b";
    told.asked("mounted here", &engine, "Mount", &json!({ "Name": "db", "ID": "c1" }));
    told.asked("and there", &web2, "Mount", &json!({ "Name": "db", "ID": id }));
    told.asked("there twice", &web2, "Mount", &json!({ "Name": "db", "ID": id }));
    told.asked("refused, each holder named", &engine, "Remove", &json!({ "Name": "db" }));
    told.asked(
        "a host does not release another's mount",
        &web2,
        "Unmount",
        &json!({ "Name": "db", "ID": "c1" }),
    );
    told.asked("still refused", &web2, "Remove", &json!({ "Name": "db" }));
    for (host, id) in [(&engine, "c1"), (&web2, id), (&web2, id)] {
        told.asked("released", host, "Unmount", &json!({ "Name": "db", "ID": id }));
    }
    told.asked("removed", &engine, "Remove", &json!({ "Name": "db" }));
    told.asked("and once more", &engine, "Remove", &json!({ "Name": "db" }));
    told.asked("gone", &web2, "Get", &json!({ "Name": "db" }));
    told.asked(
        "the name is free at once",
        &web2,
        "Create",
        &json!({ "Name": "db", "Opts": { "mode": "0700" } }),
    );
    told.is("remove");
}

/// CONTRACT 5: a volume on a backend closed to a host does not exist for it, unless that host created or ever mounted
/// it; what was narrowed refuses Create, Mount and Remove, never Get, Path and Unmount.
#[test]
fn visibility() {
    let setup = Daemon::setup();
    let path = |name: &str| setup.root().join("srv").join(name).display().to_string();
    let map = |hosts: &str| {
        json!({ "open": path("open"), "fast": { "path": path("fast"), "hosts": [hosts] } }).to_string()
    };
    let (before, after) = (map("web*"), map("db*"));
    let mut daemon = setup
        .file("etc/volhost/backends.json", &before)
        .file("srv/open/lost+found/x", "")
        .file("srv/fast/lost+found/x", "")
        .start();
    let hosts = ["web1", "web2", "db1"]
        .map(|name| daemon.add_host(name, &["--advertise", "https://127.0.0.1:7443"], &daemon.path(name)));
    let mut told = Transcript::of(&daemon);
    let [web1, web2, db1] = hosts.clone().map(|identity| tls(&daemon, &identity));
    let fast = json!({ "backend": "fast" });
    told.asked(
        "web1 creates on the backend of web*",
        &web1,
        "Create",
        &json!({ "Name": "secret", "Opts": fast }),
    );
    told.asked("and a second one", &web1, "Create", &json!({ "Name": "other", "Opts": fast }));
    told.asked("web2 sees both", &web2, "List", &json!({}));
    told.asked("and mounts one", &web2, "Mount", &json!({ "Name": "secret", "ID": "c1" }));
    closed_to(&mut told, "db1", &db1, "secret");
    told.asked("db1 may not create there", &db1, "Create", &json!({ "Name": "mine", "Opts": fast }));
    told.asked(
        "db1 creates where it may",
        &db1,
        "Create",
        &json!({ "Name": "mine", "Opts": { "backend": "open" } }),
    );
    told.asked("the only backend that is open to db1 is chosen", &db1, "Create", &json!({ "Name": "x" }));

    std::fs::write(daemon.path("etc/volhost/backends.json"), &after).unwrap();
    let opened = || {
        let answer = connect(&db1).call("/VolumeDriver.Get", &json!({ "Name": "secret" })).unwrap();
        (answer.status == 200).then_some(())
    };
    until("the reload that opens the backend to db*", SOON, opened);
    told.situation("--- the map now opens the backend to db* instead of web* ---");
    for round in ["", ", after a restart"] {
        let [web1, web2, db1] = hosts.clone().map(|identity| tls(&daemon, &identity));
        told.asked(&format!("db1 sees everything{round}"), &db1, "List", &json!({}));
        told.asked(&format!("web2 sees what it mounted{round}"), &web2, "List", &json!({}));
        told.asked("and not the other", &web2, "Get", &json!({ "Name": "other" }));
        told.asked(&format!("web1 sees what it created{round}"), &web1, "List", &json!({}));
        for (name, host) in [("web1", &web1), ("web2", &web2)] {
            for rpc in ["Get", "Path", "Unmount"] {
                let status = told.asked(
                    &format!("{rpc} is never refused to {name}"),
                    host,
                    rpc,
                    &json!({ "Name": "secret", "ID": "cx" }),
                );
                assert_eq!(status, 200, "{rpc} by {name}");
            }
            for rpc in ["Create", "Mount", "Remove"] {
                let status = told.asked(
                    &format!("{rpc} is refused to {name}"),
                    host,
                    rpc,
                    &json!({ "Name": "secret", "ID": "cx" }),
                );
                assert_eq!(status, 403, "{rpc} by {name}");
            }
        }
        daemon.has_mounts(&[("secret", "web2", false)]);
        daemon.restart();
    }
    let [_, web2, db1] = hosts.clone().map(|identity| tls(&daemon, &identity));
    told.asked("web2's last unmount", &web2, "Unmount", &json!({ "Name": "secret", "ID": "c1" }));
    told.asked("web2 mounted it once, and sees it still", &web2, "Get", &json!({ "Name": "secret" }));
    told.asked("db1 may remove it now", &db1, "Remove", &json!({ "Name": "secret" }));
    told.is("visibility");
}

/// What single hosts may do, where they see a backend, and how the configuration is followed while it serves.
#[test]
fn rights_and_paths_of_single_hosts() {
    let setup = Daemon::setup();
    let path = |name: &str| setup.root().join("srv").join(name).display().to_string();
    let map = json!({
        "open": path("open"),
        "fast": { "path": path("fast"), "mountpoint": "/mnt/fast", "mountpoint_by_host": { "web2": "/data/fast" } },
    });
    let config = |hosts: Value| {
        let mut config = setup.standard();
        config["listen"].as_array_mut().unwrap().push("http://127.0.0.1:0".into());
        config["hosts"] = hosts;
        config
    };
    let before = config(json!({
        "node1": {}, "web1": { "rights": ["create", "mount", "remove", "adopt"] }, "web2": { "backends": ["fast"] },
        "*": { "rights": ["mount"] },
    }));
    let after = config(json!({
        "node1": {}, "web1": { "rights": [], "backends": ["open"] }, "web2": {}, "anonymous": {},
    }));
    let files = [("srv/open/lost+found/x", ""), ("srv/fast/old/data", "x")];
    let setup = files
        .into_iter()
        .fold(setup.config(&before).backends(&map), |setup, (file, text)| setup.file(file, text));
    let daemon = setup.start();
    daemon.cli(&["backend", "init", "fast"]).ok();
    let hosts = ["web1", "web2", "web3"]
        .map(|name| daemon.add_host(name, &["--advertise", "https://127.0.0.1:7443"], &daemon.path(name)));
    let mut told = Transcript::of(&daemon);
    let [web1, web2, web3] = hosts.clone().map(|identity| tls(&daemon, &identity));
    let nobody = Target::Tcp(daemon.tcp("http"));
    let on = |backend: &str, name: &str| json!({ "Name": name, "Opts": { "backend": backend } });
    let named = |name: &str| json!({ "Name": name, "ID": "c1" });

    told.asked("web1 has every right", &web1, "Create", &on("fast", "db"));
    let adopted = json!({ "Name": "old", "Opts": { "backend": "fast", "adopt": "true" } });
    told.asked("also to adopt", &web1, "Create", &adopted);
    let another = json!({ "Name": "older", "Opts": { "backend": "fast", "adopt": "true" } });
    told.asked("web2 has not that one", &web2, "Create", &another);
    told.asked("web1 is told its path", &web1, "Get", &json!({ "Name": "db" }));
    for rpc in ["Get", "Path", "Mount", "List"] {
        told.asked(&format!("web2 is told its own by {rpc}"), &web2, rpc, &named("db"));
    }
    told.asked("to web2 one backend is open", &web2, "Create", &on("open", "x"));
    told.asked("web3 is one of the rest, who mount", &web3, "Mount", &named("db"));
    told.asked("and do nothing else", &web3, "Create", &on("fast", "x"));
    told.asked("not even this", &web3, "Remove", &named("old"));
    told.asked("nor who calls without a certificate", &nobody, "Remove", &named("old"));
    let single = json!({ "Name": "single", "Opts": { "backend": "fast", "access": "exclusive" } });
    told.asked("an exclusive volume", &web1, "Create", &single);
    told.asked("for whoever comes first", &web1, "Mount", &named("single"));
    told.asked("as often as it likes", &web1, "Mount", &json!({ "Name": "single", "ID": "c2" }));
    told.asked("and for nobody else", &web2, "Mount", &named("single"));
    told.asked("who has no name least of all", &nobody, "Mount", &named("single"));

    daemon.put("etc/volhost/volhost.json", &after.to_string());
    let narrowed = || {
        let answer = connect(&web1).call("/VolumeDriver.Create", &on("open", "later")).unwrap();
        (answer.status == 403).then_some(())
    };
    until("the rights of web1 to be narrowed", SOON, narrowed);
    told.situation(
        "--- web1 has no right any more and only the other backend; anonymous is listed, the rest is not ---",
    );
    for rpc in ["Get", "Path", "Unmount", "List"] {
        let status = told.asked(&format!("{rpc} is not refused to web1"), &web1, rpc, &named("single"));
        assert_eq!(status, 200, "{rpc}");
    }
    for rpc in ["Create", "Mount", "Remove"] {
        let status = told.asked(&format!("{rpc} is"), &web1, rpc, &named("single"));
        assert_eq!(status, 403, "{rpc}");
    }
    told.asked("web3 is not listed any more but knows db", &web3, "Get", &json!({ "Name": "db" }));
    told.asked("and may not mount it again", &web3, "Mount", &json!({ "Name": "db", "ID": "c9" }));
    told.asked("what it does not know is not there", &web3, "Get", &json!({ "Name": "old" }));
    told.asked("web1's second mount still holds this", &web2, "Mount", &named("single"));
    told.asked("until it is given back", &web1, "Unmount", &json!({ "Name": "single", "ID": "c2" }));
    told.asked("now it is free", &web2, "Mount", &named("single"));
    told.asked("anonymous is listed by name", &nobody, "Remove", &named("old"));
    assert!(daemon.path("srv/fast/old/data").exists(), "an adopted directory stays where it is");

    daemon.put("etc/volhost/backends.json", &json!({ "open": daemon.path("srv/open") }).to_string());
    let gone = || {
        let answer = connect(&web2).call("/VolumeDriver.Get", &json!({ "Name": "db" })).unwrap();
        (answer.json()["Volume"]["Status"]["backend_state"] == "unmapped").then_some(())
    };
    until("the backend to have left the map", SOON, gone);
    told.asked("an unmapped backend is where each host saw it last", &web2, "Get", &json!({ "Name": "db" }));
    told.asked("which was elsewhere for web1", &web1, "Get", &json!({ "Name": "db" }));
    told.is("rights");
}

/// What is out of a host's sight looks like what is not there, to a host that may do nothing with either.
#[test]
fn a_host_without_rights_learns_no_name() {
    let setup = Daemon::setup();
    let path = |name: &str| setup.root().join("srv").join(name).display().to_string();
    let map = json!({
        "default": { "path": path("default"), "hosts": ["node1"] },
        "hidden": { "path": path("hidden"), "hosts": ["node1"] },
        "fast": { "path": path("fast"), "hosts": ["node1", "web*"] },
    });
    let mut config = setup.standard();
    config["hosts"] = json!({ "node1": {}, "web1": {}, "web2": {}, "web3": { "rights": [] } });
    let files = ["default", "hidden", "fast"];
    let setup = files.iter().fold(setup.config(&config).backends(&map), |setup, name| {
        setup.file(&format!("srv/{name}/lost+found/x"), "")
    });
    let daemon = setup.start();
    let hosts = ["web1", "web2", "web3", "db9"]
        .map(|name| daemon.add_host(name, &["--advertise", "https://127.0.0.1:7443"], &daemon.path(name)));
    let [web1, web2, web3, db9] = hosts.map(|identity| tls(&daemon, &identity));
    let node1 = unix(&daemon);
    let call = |host: &Target, rpc: &str, body: &Value| {
        let answer = connect(host).call(&format!("/VolumeDriver.{rpc}"), body).unwrap();
        (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
    };
    let on = |backend: &str, name: &str| json!({ "Name": name, "Opts": { "backend": backend } });
    assert_eq!(call(&node1, "Create", &on("hidden", "secret")).0, 200);

    for host in [&db9, &web3] {
        // A volume.
        for rpc in ["Create", "Get", "Path", "Mount", "Unmount", "Remove"] {
            for options in [json!({}), json!({ "adopt": "true" }), json!({ "backend": "fast" })] {
                let told = |name: &str| {
                    let body = json!({ "Name": name, "ID": "c1", "Opts": options });
                    let (status, text) = call(host, rpc, &body);
                    (status, text.replace(name, "NAME"))
                };
                assert_eq!(told("secret"), told("nothing"), "{rpc} {options}");
            }
        }
        // A backend.
        for name in ["secret", "nothing"] {
            let told = |backend: &str| {
                let (status, text) = call(host, "Create", &on(backend, name));
                (status, text.replace(backend, "BACKEND"))
            };
            assert_eq!(told("hidden"), told("nowhere"), "{name}");
        }
    }
    let (status, text) = call(&db9, "Create", &json!({ "Name": "x" }));
    assert_eq!(status, 403, "{text}");
    assert!(text.contains("host db9 may not create volumes: the `hosts` of the configuration"), "{text}");

    // To web1 one backend is open, and the other ones, of which one is called `default`, are not there.
    assert_eq!(call(&web1, "Create", &json!({ "Name": "shared" })).0, 200);
    let (status, text) = call(&web1, "Create", &on("hidden", "x"));
    assert_eq!(status, 400, "{text}");
    assert!(
        text.contains("backend hidden does not exist or is not open to this host; there is only fast"),
        "{text}"
    );
    // Whoever may create has to be told that a name is taken.
    let (status, text) = call(&web1, "Create", &json!({ "Name": "secret" }));
    assert!(status == 403 && text.contains("the name secret is taken"), "{status} {text}");

    // Who has a volume mounted is told to whom a Remove would tell it.
    assert_eq!(call(&web1, "Mount", &json!({ "Name": "shared", "ID": "c1" })).0, 200);
    let status = |host: &Target| {
        let answer = connect(host).call("/VolumeDriver.Get", &json!({ "Name": "shared" })).unwrap();
        answer.json()["Volume"]["Status"].clone()
    };
    for (host, told) in [(&web1, json!(["web1"])), (&web2, json!(["web1"])), (&web3, json!([]))] {
        let status = status(host);
        assert_eq!((&status["mounted_by"], &status["mounts"]), (&told, &json!(1)));
        assert_eq!(status["backend"], "fast", "the only one that is open to web1");
    }
}

/// What a host meets of a volume that is out of its sight.
fn closed_to(told: &mut Transcript, name: &str, host: &Target, volume: &str) {
    told.asked(&format!("{name} sees nothing of it"), host, "List", &json!({}));
    for rpc in ["Get", "Path", "Mount"] {
        told.asked(&format!("no such volume for {name}"), host, rpc, &json!({ "Name": volume, "ID": "c1" }));
    }
    for rpc in ["Unmount", "Remove"] {
        told.asked(
            &format!("as of an unknown one, by {name}"),
            host,
            rpc,
            &json!({ "Name": volume, "ID": "c1" }),
        );
    }
    told.asked("the name is taken", host, "Create", &json!({ "Name": volume }));
    told.asked(
        "wherever it would lie",
        host,
        "Create",
        &json!({ "Name": volume, "Opts": { "backend": "open" } }),
    );
}

/// An operation is carried through whether or not its client waits for the answer; but a Mount that was not answered is
/// counted for nobody.
#[test]
fn an_operation_outlives_its_client_and_a_mount_does_not() {
    let daemon = Daemon::start();
    for name in ["db", "seen"] {
        daemon.cli(&["volume", "create", name]).ok();
    }
    let own = daemon.identity();
    for (kind, target) in [("unix", unix(&daemon)), ("tls", tls(&daemon, &own))] {
        let mut answered = Vec::new();
        for round in 0..25 {
            let name = format!("{kind}{round}");
            call_and_leave(&target, "Create", &json!({ "Name": name }));
            let made =
                || daemon.unix().call("/VolumeDriver.Get", &json!({ "Name": name })).unwrap().status == 200;
            until(&format!("volume {name}, whose client has gone"), SOON, || made().then_some(()));
            if call_and_leave(&target, "Mount", &json!({ "Name": "db", "ID": name })) {
                answered.push(name);
            }
        }
        // What came too late is given back; what was answered in time is the client's to unmount.
        answered.sort();
        let counted = || daemon.mounts().into_iter().map(|mount| mount.id).collect::<Vec<_>>();
        until(&format!("only {answered:?} to be counted"), SOON, || (counted() == answered).then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(counted(), answered);
        for id in answered {
            let unmounted =
                connect(&target).call("/VolumeDriver.Unmount", &json!({ "Name": "db", "ID": id }));
            assert_eq!(unmounted.unwrap().status, 200);
        }
    }
    assert_eq!(daemon.mounts(), []);
    for name in ["db", "seen"] {
        call_and_leave(&unix(&daemon), "Remove", &json!({ "Name": name }));
        until("the removal", SOON, || (!daemon.volumes().contains(&name.to_owned())).then_some(()));
    }
}

/// Sends a call and is gone for the server at once, as one that is killed is; but looks whether there was an answer.
fn call_and_leave(target: &Target, rpc: &str, body: &Value) -> bool {
    let (mut client, leave): (_, Box<dyn FnOnce()>) = match target {
        Target::Unix(path) => {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let end = stream.try_clone().unwrap();
            (Client::over(stream), Box::new(move || end.shutdown(Shutdown::Write).unwrap()))
        }
        Target::Tls(address, identity) => {
            let stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(SOON)).unwrap();
            let end = stream.try_clone().unwrap();
            let client = Client::tls(stream, &identity.ca, Some(identity)).unwrap();
            (client, Box::new(move || end.shutdown(Shutdown::Write).unwrap()))
        }
        Target::Tcp(_) => unreachable!("no test calls over plain TCP"),
    };
    send_only(&mut client, rpc, body);
    leave();
    match client.answer() {
        Ok(answer) => {
            assert_eq!(answer.status, 200, "{rpc} {body}: {}", answer.err());
            true
        }
        Err(error) => {
            let timed_out = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            assert!(!timed_out, "{rpc} {body}: neither answered nor closed");
            false
        }
    }
}

/// Sends a call and reads no answer.
fn send_only(client: &mut Client, rpc: &str, body: &Value) {
    let body = body.to_string();
    let head = format!(
        "POST /VolumeDriver.{rpc} HTTP/1.1\r\nHost: volhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(head.as_bytes()).unwrap();
}
