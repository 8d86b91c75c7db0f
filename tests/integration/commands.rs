//! The command line as its users see it: every command against the real service, in words and in JSON, and what is
//! said when something is not as it should be.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::http::{Client, Target};
use crate::harness::wait::{self, SOON, Said, until};
use crate::harness::{Daemon, mortal, scratch};

const PROGRAM: &str = env!("CARGO_BIN_EXE_volhost");

/// Runs volhost without a service, with these words after its name.
fn volhost<S: AsRef<std::ffi::OsStr>>(words: &[S]) -> Said {
    wait::run(Command::new(PROGRAM).args(words))
}

/// The same below a root of its own, which holds these files.
struct Place(tempfile::TempDir);

impl Place {
    fn with(files: &[(&str, &str)]) -> Self {
        let place = Self(scratch());
        for (relative, text) in files {
            let path = place.path(relative);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        place
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.0.path().join(relative)
    }

    fn run(&self, words: &[&str]) -> Said {
        wait::run(Command::new(PROGRAM).arg("--root").arg(self.0.path()).args(words))
    }
}

/// Fails unless a JSON object has exactly these fields.
#[track_caller]
fn has_fields(object: &Value, fields: &[&str]) {
    let names: BTreeSet<_> = object
        .as_object()
        .unwrap_or_else(|| panic!("no object: {object}"))
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(names, fields.iter().copied().collect(), "{object}");
}

/// Fails unless a command ended with this code and said nothing on its standard output, and all of this on the other.
#[track_caller]
fn refused(said: &Said, code: i32, words: &[&str]) {
    assert_eq!(said.code, Some(code), "{}: {}{}", said.command, said.stdout, said.stderr);
    assert_eq!(said.stdout, "", "{}: an error is no result", said.command);
    for word in words {
        assert!(said.stderr.contains(word), "{}: no {word:?} in: {}", said.command, said.stderr);
    }
}

#[track_caller]
fn call(client: &mut Client, rpc: &str, body: &Value) {
    let answer = client.call(&format!("/VolumeDriver.{rpc}"), body).unwrap();
    assert_eq!(answer.status, 200, "{rpc} {body}: {}", answer.err());
}

#[test]
fn volumes_are_made_listed_shown_removed_and_restored() {
    let daemon = Daemon::start();
    assert_eq!(daemon.cli(&["volume", "ls"]).ok(), "NAME  BACKEND  STATE  MOUNTS  CREATED  PATH");
    assert_eq!(daemon.cli(&["volume", "ls", "--json"]).json(), json!([]));
    assert_eq!(daemon.cli(&["volume", "create", "-o", "mode=700", "-o", "uid=70", "db"]).ok(), "db");
    let made = daemon.cli(&["volume", "create", "web", "--json"]).json();
    let volume = ["name", "backend", "path", "created_at", "options", "state", "mounts"];
    has_fields(&made, &volume);
    call(&mut daemon.unix(), "Mount", &json!({ "Name": "db", "ID": "c1" }));

    let listed = daemon.cli(&["volume", "ls", "--json"]).json();
    let path = daemon.path("var/lib/volhost/volumes/db");
    has_fields(&listed[0], &volume);
    let db = json!({
        "name": "db", "backend": "default", "path": path, "created_at": listed[0]["created_at"],
        "options": { "mode": "0700", "uid": "70" }, "state": "online", "mounts": 1,
    });
    assert_eq!((&listed[0], listed.as_array().unwrap().len()), (&db, 2));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o7777), (70, 0o700));
    let table = daemon.cli(&["volume", "ls"]).ok();
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    let created = listed[0]["created_at"].as_str().unwrap();
    assert_eq!(row, ["db", "default", "online", "1", created, path.to_str().unwrap()]);

    for (filters, expected) in [
        (&["name=d"][..], "db"),
        (&["mounted=true"], "db"),
        (&["dangling=true"], "web"),
        (&["state=online", "backend=def*"], "db\nweb"),
        (&["option.uid=70"], "db"),
        (&["name=db", "name=web", "mounted=false"], "web"),
        (&["state=offline"], ""),
    ] {
        let words: Vec<_> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        assert_eq!(daemon.cli(&[&["volume", "ls", "-q"], &words[..]].concat()).ok(), expected, "{filters:?}");
    }
    refused(&daemon.cli(&["volume", "ls", "--filter", "nmae=x"]), 2, &["nmae", "did you mean \"name\""]);

    let shown = daemon.cli(&["volume", "inspect", "db", "--json"]).json();
    has_fields(
        &shown[0],
        &[&volume[..], &["id", "adopted", "durable", "known_to", "mounted_by", "directory"]].concat(),
    );
    assert_eq!(shown[0]["mounted_by"][0]["id"], "c1");
    let shown = daemon.cli(&["volume", "inspect", "nope", "db"]);
    assert_eq!(shown.code, Some(1));
    assert!(shown.stdout.starts_with("name        db\n"), "{}", shown.stdout);
    assert!(shown.stderr.contains("no such volume: \"nope\""), "{}", shown.stderr);

    for words in [
        &["volume", "rm", "db"][..],
        &["volume", "rm", "-f", "db"],
        &["volume", "rm", "--now", "--yes", "db"],
    ] {
        refused(&daemon.cli(words), 1, &["volume db is in use by host node1 (mount c1 since "]);
    }
    call(&mut daemon.unix(), "Unmount", &json!({ "Name": "db", "ID": "c1" }));
    fs::write(path.join("file"), "kept").unwrap();
    refused(&daemon.cli(&["volume", "rm", "nope"]), 1, &["no such volume: \"nope\""]);
    assert_eq!(daemon.cli(&["volume", "rm", "-f", "nope"]).ok(), "");
    assert_eq!(daemon.cli(&["volume", "rm", "db", "web"]).ok(), "db\nweb");
    let trash = daemon.cli(&["volume", "ls", "--trash", "--json"]).json();
    has_fields(&trash[0], &["name", "id", "backend", "removed_at", "expires_at", "blocked"]);
    assert_eq!(daemon.cli(&["volume", "ls", "--trash", "-q"]).ok().lines().count(), 2);
    refused(&daemon.cli(&["volume", "ls", "--trash", "--filter", "mounted=true"]), 2, &["mounted"]);
    assert_eq!(daemon.cli(&["volume", "restore", "db"]).ok(), "db");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "kept");
    refused(&daemon.cli(&["volume", "restore", "db"]), 1, &["no removed volume \"db\"", "volume ls --trash"]);
    daemon.cli(&["volume", "create", "web"]).ok();
    refused(&daemon.cli(&["volume", "restore", "web"]), 1, &["volume web exists already"]);

    refused(&daemon.cli(&["volume", "rm", "--now", "db"]), 1, &["give --yes"]);
    assert!(path.exists());
    let done = daemon.cli(&["volume", "rm", "--now", "--yes", "db", "--json"]).json();
    assert_eq!(done[0]["name"], "db");
    assert!(!path.exists(), "the name is free at once");
    let one_left =
        || (daemon.cli(&["volume", "ls", "--trash", "-q"]).ok().lines().count() == 1).then_some(());
    until("the deletion of db's data in the background", SOON, one_left);

    refused(&daemon.cli(&["volume", "create", "-o", "mdoe=1", "x"]), 1, &["did you mean \"mode\""]);
    refused(&daemon.cli(&["volume", "create", "-o", "mode", "x"]), 2, &["an option is KEY=VALUE"]);
    refused(&daemon.cli(&["volume", "create", "../x"]), 1, &["\"../x\" is no volume name"]);
    fs::create_dir(path.with_file_name("found")).unwrap();
    refused(&daemon.cli(&["volume", "create", "found"]), 1, &["exists already", "adopt=true"]);
    assert_eq!(daemon.cli(&["volume", "create", "-o", "adopt=true", "found"]).ok(), "found");
    daemon.cli(&["volume", "rm", "found"]).ok();
    assert!(path.with_file_name("found").exists(), "an adopted directory is left");
}

#[test]
fn mounts_are_listed_and_released_by_the_operators_word() {
    let daemon = Daemon::start();
    let web2 = daemon.add_host("web2", &["--advertise", "https://127.0.0.1:7443"], &daemon.path("web2"));
    daemon.cli(&["volume", "create", "db"]).ok();
    let mut client = Client::connect(&Target::Tls(daemon.tcp("https"), web2)).unwrap();
    let long = "0123456789abcdef".repeat(4);
    call(&mut client, "Mount", &json!({ "Name": "db", "ID": long }));
    assert_eq!(client.call("/Plugin.Activate", &json!({})).unwrap().status, 200);
    call(&mut client, "Mount", &json!({ "Name": "db", "ID": "alive" }));
    call(&mut client, "Mount", &json!({ "Name": "db", "ID": "alive" }));
    let states = || {
        let mounts = daemon.mounts();
        mounts.iter().map(|mount| (mount.id.clone(), mount.count, mount.stale)).collect::<Vec<_>>()
    };
    let both = [(long.clone(), 1, true), ("alive".to_owned(), 2, false)];
    until("the activation", SOON, || (states() == both).then_some(()));

    let rows = daemon.cli(&["mount", "ls", "--json"]).json();
    has_fields(&rows[0], &["volume", "host", "id", "count", "since", "stale", "address"]);
    let table = daemon.cli(&["mount", "ls"]).ok();
    assert!(table.starts_with("VOLUME  HOST  ID "), "{table}");
    assert!(table.contains(" 0123456789ab ") && !table.contains(&long), "{table}");
    assert!(daemon.cli(&["mount", "ls", "--no-trunc"]).ok().contains(&long));
    assert_eq!(daemon.cli(&["mount", "ls", "--stale"]).ok().lines().count(), 2);
    assert_eq!(daemon.cli(&["mount", "ls", "--host", "web1"]).ok().lines().count(), 1);

    // Nobody is there to ask.
    let asked = daemon.cli(&["mount", "release", "db", "web2"]);
    assert_eq!(asked.code, Some(1));
    assert!(asked.stderr.contains("give --yes") && asked.stderr.contains("0123456789ab"), "{}", asked.stderr);
    refused(&daemon.cli(&["mount", "release", "nope", "web2", "--yes"]), 1, &["no such volume: \"nope\""]);
    assert_eq!(daemon.cli(&["mount", "release", "db", "web1", "--yes"]).code, Some(0));
    refused(
        &daemon.cli(&["mount", "release", "db", "web2", "alive", "--yes"]),
        1,
        &["may be alive", "--all"],
    );
    assert_eq!(states(), both, "nothing was released so far");

    // Somebody is, and says no, or types something else.
    assert_eq!(daemon.typed(&["mount", "release", "db", "web2"], "n\n").0, Some(1));
    assert_eq!(daemon.typed(&["mount", "release", "db", "web2", "--all"], "y\n").0, Some(1));
    assert_eq!(states(), both);
    let (code, screen) = daemon.typed(&["mount", "release", "db", "web2"], "y\n");
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("Release 1 mount of db by web2? [y/N]"), "{screen}");
    assert_eq!(states(), both[1..], "the stale one is gone, the other stays");
    let (code, screen) = daemon.typed(&["mount", "release", "db", "web2", "--all"], "web2\n");
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("type the host's name (web2)"), "{screen}");
    assert_eq!(states(), []);

    call(&mut client, "Mount", &json!({ "Name": "db", "ID": "c1" }));
    call(&mut client, "Mount", &json!({ "Name": "db", "ID": "c2" }));
    let done = daemon.cli(&["mount", "release", "db", "web2", "c1", "--all", "--yes", "--json"]).json();
    has_fields(&done, &["released", "kept"]);
    assert_eq!(done["released"][0]["id"], "c1");
    assert_eq!(states(), [("c2".to_owned(), 1, false)]);
}

#[test]
fn backends_and_the_status_are_told() {
    let setup = Daemon::setup();
    let root = setup.root();
    let path = |name: &str| root.join("srv").join(name);
    let map = json!({
        "default": path("a"), "used": path("b"), "gone": path("c"), "old": { "path": path("d"), "draining": true },
    });
    let daemon = setup
        .backends(&map)
        .file("srv/a/lost+found/x", "")
        .file("srv/b/data", "")
        .file("srv/d/lost+found/x", "")
        .start();
    let rows = daemon.cli(&["backend", "ls", "--json"]).json();
    let fields =
        ["name", "path", "state", "draining", "reason", "volumes", "total_bytes", "free_bytes", "names"];
    let told: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            has_fields(row, &fields);
            (
                row["name"].as_str().unwrap(),
                row["state"].as_str().unwrap(),
                row["draining"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("default", "online", false),
            ("gone", "offline", false),
            ("old", "online", true),
            ("used", "offline", false)
        ]
    );
    assert!(rows[0]["total_bytes"].as_u64() > rows[0]["free_bytes"].as_u64());
    assert!(rows[0]["reason"].is_null());
    let table = daemon.cli(&["backend", "ls"]).ok();
    assert!(table.contains("online, draining"), "{table}");
    assert!(table.contains("used is offline: ") && table.contains("`volhost backend init used`"), "{table}");
    assert!(table.contains("gone is offline: ") && table.contains("does not exist"), "{table}");

    assert!(daemon.cli(&["backend", "init", "used"]).ok().starts_with("backend used is "));
    assert_eq!(daemon.backend_state("used").as_deref(), Some("online"));
    refused(&daemon.cli(&["backend", "init", "nope"]), 1, &["no backend nope", "default, gone, old, used"]);
    refused(&daemon.cli(&["backend", "init", "gone"]), 1, &["gone", "does not exist"]);
    refused(&daemon.cli(&["backend", "adopt", "gone"]), 1, &["gone", "does not exist"]);

    let status = daemon.cli(&["status", "--json"]).json();
    has_fields(
        &status,
        &[
            "version",
            "name",
            "node",
            "listening",
            "catalog",
            "catalog_fault",
            "volumes",
            "mounts",
            "backends",
            "connections",
            "since",
            "last_reload",
            "needs_restart",
            "spec",
            "server_certificate_expires",
            "log_lines_dropped",
            "troubles",
            "cloned_hosts",
        ],
    );
    assert_eq!(status["listening"], json!(daemon.addresses()));
    assert_eq!(status["name"], "volhost");
    assert_eq!(status["last_reload"], Value::Null);
    has_fields(&status["backends"][0], &fields);
    daemon.put("etc/volhost/backends.json", "{ \"default\": 7 }");
    let rejected = || {
        let status = daemon.cli(&["status", "--json"]).json();
        (status["last_reload"]["result"] == "rejected").then_some(status)
    };
    let status = until("the rejected reload", SOON, rejected);
    has_fields(&status["last_reload"], &["at", "unit", "result", "faults"]);
    assert!(
        status["last_reload"]["faults"][0].as_str().unwrap().contains("backends.json:1:14: default:"),
        "{status}"
    );
    let text = daemon.cli(&["status"]).ok();
    assert!(
        text.contains("configuration REJECTED at ") && text.contains("backends.json:1:14: default:"),
        "{text}"
    );
    assert!(text.starts_with("volhost 0.1.0, serving as \"volhost\" on node1 since "), "{text}");

    let hosts = daemon.cli(&["host", "ls", "--json"]).json();
    has_fields(
        &hosts[0],
        &["name", "serial", "expires", "last_seen", "mounts", "revoked", "cloned", "addresses"],
    );
    assert_eq!(hosts[0]["name"], "node1");
}

#[test]
fn a_service_that_is_not_there_is_told_with_its_socket_and_a_remedy() {
    let place = Place::with(&[]);
    let socket = place.path("run/volhost/admin.sock");
    for words in
        [&["status"][..], &["volume", "ls"], &["mount", "ls", "--json"], &["backend", "ls"], &["host", "ls"]]
    {
        refused(&place.run(words), 1, &[socket.to_str().unwrap(), "volhost serve", "--socket"]);
    }
    let mut daemon = Daemon::start();
    let plugin = daemon.socket();
    refused(&daemon.cli(&["status", "--socket", plugin.to_str().unwrap()]), 1, &["/status", "admin socket"]);
    // `--root` and `--socket` after the subcommand are the same as before it.
    let root = daemon.path("");
    let root = root.to_str().unwrap();
    let status = volhost(&["status", "--root", root, "--json"]).json();
    let socket = daemon.path("run/volhost/admin.sock");
    assert_eq!(volhost(&["status", "--json", "--socket", socket.to_str().unwrap()]).json(), status);
    assert_eq!(volhost(&["--socket", socket.to_str().unwrap(), "--json", "status"]).json(), status);
    daemon.kill9();
    refused(&daemon.cli(&["status"]), 1, &["nobody listens on", socket.to_str().unwrap(), "volhost serve"]);
    fs::remove_file(&socket).unwrap();
    fs::write(&socket, "").unwrap();
    refused(&daemon.cli(&["status"]), 1, &[socket.to_str().unwrap()]);
}

#[test]
fn mistyped_words_are_hinted_at_and_end_with_2() {
    for (words, hint) in [
        (&["vlume", "ls"][..], "volume"),
        (&["volume", "isnpect", "db"], "inspect"),
        (&["volume", "ls", "--trsh"], "--trash"),
        (&["serve", "--rot", "/x"], "--root"),
        (&["volume"], "Usage: volhost volume"),
        (&[], "Usage: volhost"),
        (&["volume", "rm"], "<NAME>"),
        (&["mount", "release", "db"], "<HOST>"),
        (&["volume", "ls", "--filter", "mounted=perhaps"], "true or false"),
    ] {
        refused(&volhost(words), 2, &[hint]);
    }
    let help = volhost(&["--help"]).ok();
    assert!(help.contains("Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration."), "{help}");
    let version = concat!("volhost ", env!("CARGO_PKG_VERSION"));
    assert_eq!(volhost(&["-V"]).ok(), version);
    let built = if cfg!(feature = "etcd") { " (with etcd)" } else { "" };
    assert_eq!(volhost(&["--version"]).ok(), format!("{version}{built}"));
}

#[test]
fn check_tells_every_fault_with_its_place_and_a_hint() {
    let place = Place::with(&[
        (
            "etc/volhost/volhost.json",
            "{ \"nmae\": \"v\",\n  \"listen\": [\"https://127.0.0.1:7443\", \"http://0.0.0.0:80\"],\n  \"limits\": { \"request\": 20 },\n  \"scope\": \"golbal\",\n  \"audit\": \"/a\" }",
        ),
        (
            "etc/volhost/backends.json",
            "{ \"a\": \"relative\",\n  \"b\": { \"path\": \"/srv/b\", \"drainign\": true },\n  \"c\": \"/srv/b/below\",\n  \"d\": \"/srv/d\", \"d\": \"/srv/e\" }",
        ),
    ]);
    let said = place.run(&["check"]);
    let config = place.path("etc/volhost/volhost.json").display().to_string();
    let map = place.path("etc/volhost/backends.json").display().to_string();
    refused(
        &said,
        78,
        &[
            &format!("{config}:1:3: nmae: "),
            "did you mean \"name\"",
            &format!("{config}:2:40: listen[1]: "),
            "\"insecure\": true",
            &format!("{config}:3:26: limits.request: "),
            &format!("{config}:4:12: scope: "),
            "did you mean \"global\"",
            &format!("{config}:5:12: audit: "),
            &format!("{map}:1:8: a: "),
            &format!("{map}:2:28: b.drainign: "),
            "did you mean \"draining\"",
            &format!("{map}:3:8: c: "),
            &format!("{map}:4:18: d: "),
        ],
    );
    let json = place.run(&["check", "--json"]);
    assert_eq!(json.code, Some(78));
    let faults: Value = serde_json::from_str(&json.stdout).unwrap();
    let faults = faults.as_array().unwrap();
    assert_eq!(faults.len(), said.stderr.lines().count() - 1, "{}", said.stderr);
    for fault in faults {
        has_fields(fault, &["file", "line", "column", "field", "what", "hint"]);
    }
    // The same faults keep it from serving, before anything is made or bound.
    let served = place.run(&["serve"]);
    refused(&served, 78, &[&format!("{config}:1:3: nmae: "), &format!("{map}:2:28: b.drainign: ")]);
    assert!(!place.path("var").exists() && !place.path("run").exists());
    refused(&place.run(&["check", "--config", "/no/such.json"]), 78, &["/no/such.json"]);
    let good = Place::with(&[]);
    assert!(good.run(&["check"]).ok().starts_with("configuration is good: 1 backend (default)"));
    assert_eq!(good.run(&["check", "--json"]).json(), json!([]));
}

#[test]
fn completions_and_manual_pages_need_no_service_and_no_good_configuration() {
    let place = Place::with(&[("volhost.json", "{")]);
    let script = place.run(&["completions", "bash"]).ok();
    assert!(script.contains("complete -F _volhost"), "{script}");
    refused(
        &place.run(&["completions", "tcsh"]),
        2,
        &["[possible values: bash, elvish, fish, powershell, zsh]"],
    );
    let page = place.run(&["man"]).ok();
    assert!(page.contains(".TH VOLHOST 1 "), "{page}");
    let dir = place.path("share/man1");
    let written = place.run(&["man", "--out", dir.to_str().unwrap(), "--json"]).json();
    let files = fs::read_dir(&dir).unwrap().count();
    assert_eq!(written.as_array().unwrap().len(), files);
    assert_eq!(written[0], json!(dir.join("volhost.1")));
    assert_eq!(fs::read_to_string(dir.join("volhost.1")).unwrap().trim(), page);
    let files = place.path("share/man5");
    place.run(&["man", "--section", "5", "--out", files.to_str().unwrap()]).ok();
    let page = fs::read_to_string(files.join("backends.json.5")).unwrap();
    assert_eq!(place.run(&["man", "backends.json"]).ok(), page.trim());
    refused(&place.run(&["man", "volum-ls"]), 2, &["did you mean \"volume-ls\"?"]);
    let file = dir.join("volhost.1");
    refused(&place.run(&["man", "--out", file.to_str().unwrap()]), 1, &["the manual cannot be written to"]);
}

/// The samples in `etc` are complete and right, and one key more anywhere in them is told.
#[test]
fn the_sample_configurations_are_right_and_a_spurious_key_in_them_is_a_fault() {
    let sample = |name: &str| -> Value {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("etc").join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let (mut config, map) = (sample("volhost.json"), sample("backends.json"));
    let place = Place::with(&[]);
    fs::create_dir_all(place.path("etc/volhost")).unwrap();
    let map_file = place.path("etc/volhost/backends.json");
    assert_eq!(config["backends"], "/etc/volhost/backends.json");
    config["backends"] = json!(map_file);
    let check = |config: &Value, map: &Value| {
        fs::write(place.path("etc/volhost/volhost.json"), config.to_string()).unwrap();
        fs::write(&map_file, map.to_string()).unwrap();
        place.run(&["check", "--json"])
    };
    check(&config, &map).ok();
    let spoilt_configs = with_a_spurious_key(&config).into_iter().map(|spoilt| (spoilt, map.clone()));
    let spoilt_maps = with_a_spurious_key(&map).into_iter().map(|spoilt| (config.clone(), spoilt));
    let mut count = 0;
    for (config, map) in spoilt_configs.chain(spoilt_maps) {
        let said = check(&config, &map);
        assert_eq!(said.code, Some(78), "{config} {map}");
        let faults: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(faults.as_array().unwrap().len(), 1, "{faults}");
        assert!(faults[0]["field"].as_str().unwrap().ends_with("spurious"), "{faults}");
        count += 1;
    }
    assert_eq!(count, 8 + 4, "objects in the two samples");
}

/// The sample for a catalog that is shared, too, but for the files that the cluster's operator gives out.
#[cfg(feature = "etcd")]
#[test]
fn the_sample_for_a_shared_catalog_is_right_with_the_files_that_it_names() {
    let text = include_str!("../../etc/volhost-etcd.json");
    let place = Place::with(&[]);
    let config = place.path("etc/volhost/volhost.json");
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let missing = |said: &Said| -> Vec<String> {
        let faults = read(&said.stdout);
        faults.as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap().to_owned()).collect()
    };
    fs::create_dir_all(place.path("etc/volhost/etcd")).unwrap();
    // As if `--root` held for what is written in it.
    let below = text.replace("\"/etc/", &format!("\"{}/etc/", place.0.path().display()));
    fs::write(&config, below).unwrap();
    fs::write(place.path("etc/volhost/backends.json"), include_str!("../../etc/backends.json")).unwrap();
    let said = place.run(&["check", "--json"]);
    assert_eq!(said.code, Some(78));
    assert_eq!(missing(&said), ["etcd.ca", "etcd.cert", "etcd.key", "etcd.password_file"]);
    for name in ["ca.crt", "client.crt", "client.key", "password"] {
        fs::write(place.path("etc/volhost/etcd").join(name), "").unwrap();
    }
    assert_eq!(missing(&place.run(&["check", "--json"])), ["tls"], "the CA of all instances");
    place.run(&["pki", "init"]).ok();
    place.run(&["check"]).ok();
    for spoilt in with_a_spurious_key(&read(&fs::read_to_string(&config).unwrap())) {
        fs::write(&config, spoilt.to_string()).unwrap();
        let said = place.run(&["check", "--json"]);
        assert!(said.code == Some(78) && missing(&said)[0].ends_with("spurious"), "{}", said.stdout);
    }
}

/// Each way to put one member more into one object.
fn with_a_spurious_key(value: &Value) -> Vec<Value> {
    let Value::Object(members) = value else { return Vec::new() };
    let mut all = vec![value.clone()];
    all[0]["spurious"] = json!(1);
    for (key, member) in members {
        for spoilt in with_a_spurious_key(member) {
            let mut whole = value.clone();
            whole[key] = spoilt;
            all.push(whole);
        }
    }
    all
}

#[test]
fn spec_files_are_shown_written_and_removed_and_a_strangers_stays() {
    let place = Place::with(&[]);
    let set = |config: Value| {
        fs::create_dir_all(place.path("etc/volhost")).unwrap();
        fs::write(place.path("etc/volhost/volhost.json"), config.to_string()).unwrap();
    };
    let plugins = place.path("etc/docker/plugins");
    let files = || -> BTreeSet<String> {
        let entries = fs::read_dir(&plugins).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let only = |name: &str| assert_eq!(files(), BTreeSet::from([name.to_owned()]));
    let socket = place.path("run/p.sock");
    let line = |file: &str| fs::read_to_string(plugins.join(file)).unwrap();

    // A Unix socket, then plain TCP, then TLS: one file at a time, in the form that the address needs.
    set(json!({ "listen": [format!("unix:{}", socket.display())] }));
    assert!(place.run(&["spec", "show"]).ok().contains("it is not there; `volhost spec write` writes it"));
    assert!(files().is_empty(), "showing writes nothing");
    assert!(place.run(&["spec", "write"]).ok().ends_with("volhost.spec: created"));
    assert_eq!(line("volhost.spec").trim_end(), format!("unix://{}", socket.display()));
    assert!(place.run(&["spec", "write"]).ok().ends_with("volhost.spec: unchanged"));
    set(json!({ "listen": ["http://127.0.0.1:7480"], "name": "vols" }));
    let shown = place.run(&["spec", "show", "--json"]).json();
    has_fields(&shown, &["path", "presence", "content"]);
    assert_eq!(
        (shown["presence"].as_str(), shown["content"].as_str().map(str::trim_end)),
        (Some("missing"), Some("tcp://127.0.0.1:7480"))
    );
    let written = place.run(&["spec", "write", "--json"]).json();
    assert_eq!(written, json!({ "path": plugins.join("vols.spec"), "result": "created" }));
    only("vols.spec");
    set(json!({ "advertise": "https://store1.example:7443" }));
    place.run(&["spec", "write"]).ok();
    only("volhost.json");
    let spec: Value = serde_json::from_str(&line("volhost.json")).unwrap();
    has_fields(&spec, &["Name", "Addr", "TLSConfig"]);
    has_fields(&spec["TLSConfig"], &["InsecureSkipVerify", "CAFile", "CertFile", "KeyFile"]);
    assert_eq!(
        (&spec["Addr"], &spec["TLSConfig"]["InsecureSkipVerify"]),
        (&json!("https://store1.example:7443"), &json!(false))
    );
    assert!(place.run(&["spec", "remove"]).ok().ends_with("volhost.json: removed"));
    assert!(files().is_empty());
    assert!(place.run(&["spec", "remove"]).stderr.contains("there is no spec file"));

    // Somebody else's.
    fs::write(plugins.join("volhost.json"), "{}").unwrap();
    for command in ["write", "remove"] {
        refused(
            &place.run(&["spec", command]),
            1,
            &["volhost.json exists and is not what volhost wrote", "--force"],
        );
    }
    assert_eq!(place.run(&["spec", "show", "--json"]).json()["presence"], "stranger");
    assert_eq!(line("volhost.json"), "{}");
    assert!(place.run(&["spec", "write", "--force"]).ok().ends_with("volhost.json: updated"));
    fs::write(plugins.join("volhost.json"), "{ }").unwrap();
    place.run(&["spec", "remove", "--force"]).ok();
    assert!(files().is_empty());

    // What nobody knows before the service runs, also when another address is known.
    for listen in [json!(["https://127.0.0.1:0"]), json!(["https://127.0.0.1:0", "unix:/run/p.sock"])] {
        set(json!({ "listen": listen }));
        for command in ["show", "write"] {
            refused(&place.run(&["spec", command]), 1, &["port 0", "volhost status"]);
        }
    }
    set(json!({ "spec": null }));
    refused(&place.run(&["spec", "show"]), 1, &["`spec` is null"]);
    set(json!({ "spek": {} }));
    refused(&place.run(&["spec", "show"]), 78, &["spek", "did you mean \"spec\""]);
    assert!(files().is_empty());
}

#[test]
fn a_service_leaves_a_strangers_spec_file_and_says_so() {
    let daemon = Daemon::setup().file("etc/docker/plugins/volhost.json", "{\"Name\":\"other\"}").start();
    assert_eq!(daemon.spec(), json!({ "Name": "other" }));
    assert!(daemon.log().contains("WARN") && daemon.log().contains("spec write --force"), "{}", daemon.log());
    let status = daemon.cli(&["status", "--json"]).json();
    assert!(status["spec"].as_str().unwrap().contains("not what volhost wrote"), "{status}");
}

/// volhost served by another user than root, below their own directories.
struct Unprivileged {
    home: tempfile::TempDir,
    serve: Option<std::process::Child>,
}

const NOBODY: u32 = 65534;

impl Unprivileged {
    fn start() -> Self {
        let home = scratch();
        let at = |relative: &str| home.path().join(relative);
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // The build's directory may be closed to others.
        fs::copy(PROGRAM, at("volhost")).unwrap();
        for directory in ["home", "config/volhost", "data", "run"] {
            fs::create_dir_all(at(directory)).unwrap();
            std::os::unix::fs::chown(at(directory), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let listen = json!({ "node": "node1", "listen": ["https://127.0.0.1:0", format!("unix:{}", at("run/p.sock").display())] });
        fs::write(at("config/volhost/volhost.json"), listen.to_string()).unwrap();
        std::os::unix::fs::chown(at("config"), Some(NOBODY), Some(NOBODY)).unwrap();
        let log = fs::File::create(at("log")).unwrap();
        let mut user = Self { home, serve: None };
        user.serve = Some(user.own(&["serve"]).stdout(Stdio::piped()).stderr(log).spawn().unwrap());
        user
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.home.path().join(relative)
    }

    fn setting(&self, (name, directory): (&str, &str)) -> String {
        format!("{name}={}", self.at(directory).display())
    }

    fn command(&self, words: &[&str], variables: &[String]) -> Command {
        let mut command = mortal("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--pdeathsig", "KILL", "--"]);
        command.args(["env", "-i", "PATH=/usr/bin:/bin"]).args(variables).arg(self.at("volhost")).args(words);
        command
    }

    fn xdg(&self) -> [String; 3] {
        [("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data"), ("XDG_RUNTIME_DIR", "run")]
            .map(|each| self.setting(each))
    }

    fn own(&self, words: &[&str]) -> Command {
        let whole = [&self.xdg()[..], &[self.setting(("HOME", "home"))]].concat();
        self.command(words, &whole)
    }

    fn run(&self, words: &[&str]) -> Said {
        wait::run(&self.own(words))
    }

    /// Waits until it serves; returns its status.
    fn until_ready(&self) -> Value {
        // Its admin socket is there a moment before its spec file.
        let ready = || {
            let said = self.run(&["status", "--json"]);
            (said.code == Some(0)).then(|| said.json()).filter(|status| status["spec"].is_string())
        };
        until(&format!("the service, which says in {}", self.at("log").display()), SOON, ready)
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        if let Some(mut serve) = self.serve.take() {
            let _ = serve.kill();
            let _ = serve.wait();
        }
    }
}

/// Another user than root has everything below their own directories.
#[test]
fn an_unprivileged_user_serves_below_their_own_directories() {
    let user = Unprivileged::start();
    let at = |relative: &str| user.at(relative);
    let status = user.until_ready();
    let spec = at("home/.local/lib/docker/plugins/volhost.json");
    assert_eq!(status["spec"], json!(spec));
    assert_eq!(status["catalog"], json!(format!("sqlite:{}", at("data/volhost/catalog.db").display())));
    assert!(at("run/volhost/admin.sock").exists() && at("config/volhost/pki").exists());
    user.run(&["volume", "create", "db"]).ok();
    let made = fs::metadata(at("data/volhost/volumes/db")).unwrap();
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
    let mut client = Client::connect(&Target::Unix(at("run/p.sock"))).unwrap();
    call(&mut client, "Mount", &json!({ "Name": "db", "ID": "c1" }));
    let refusal = user.run(&["volume", "create", "-o", "uid=0", "mine"]);
    refused(&refusal, 1, &["owner 0:"]);
    let homeless = wait::run(&user.command(&["check"], &user.xdg()));
    refused(&homeless, 1, &["HOME is not set", "--root"]);
}

/// A container gave the volume's directory to another user: the kernel lets nobody else but root move it.
#[test]
fn an_unprivileged_user_is_told_how_to_remove_what_a_container_gave_away() {
    let user = Unprivileged::start();
    user.until_ready();
    user.run(&["volume", "create", "db"]).ok();
    let volume = user.at("data/volhost/volumes/db");
    fs::write(volume.join("data"), "kept").unwrap();
    std::os::unix::fs::chown(&volume, Some(999), Some(999)).unwrap();
    let path = volume.display().to_string();
    let remedy = format!("chown {NOBODY} {path}");
    refused(&user.run(&["volume", "rm", "db"]), 1, &["belongs to user 999", &remedy, "chown 0"]);
    // Nothing was done.
    assert_eq!(fs::read_to_string(volume.join("data")).unwrap(), "kept");
    user.run(&["volume", "inspect", "db"]).ok();
    // Who lets others write lets them move it; and what was given back is as it was.
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o777)).unwrap();
    user.run(&["volume", "rm", "db"]).ok();
    user.run(&["volume", "restore", "db"]).ok();
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::chown(&volume, Some(NOBODY), Some(NOBODY)).unwrap();
    user.run(&["volume", "rm", "--now", "--yes", "db"]).ok();
    let is_empty = || user.run(&["volume", "ls", "--trash", "-q"]).ok().is_empty().then_some(());
    until("its data to be deleted", SOON, is_empty);
}
