//! Requests that no engine sends: each gets the status and the words that tell what is wrong with it, and changes
//! nothing.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::{Answer, Client, Target};

const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// A daemon with one volume that has one mount and one file, and everything that must stay as it is.
struct Served {
    daemon: Daemon<'static>,
    before: (Value, Value, Vec<String>),
}

impl Served {
    fn start() -> Self {
        let setup = Daemon::setup();
        let mut config = setup.standard();
        config["limits"] = json!({ "body_bytes": 65536, "request": "3s" });
        let daemon = setup.config(&config).start();
        let mut client = daemon.unix();
        for (rpc, body) in [
            ("Create", json!({ "Name": "db", "Opts": { "mode": "0750" } })),
            ("Mount", json!({ "Name": "db", "ID": "m" })),
        ] {
            assert_eq!(client.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap().status, 200);
        }
        fs::write(daemon.path("var/lib/volhost/volumes/db/file"), "precious").unwrap();
        let before = state(&daemon);
        Self { daemon, before }
    }

    #[track_caller]
    fn is_unchanged(&self) {
        assert_eq!(state(&self.daemon), self.before);
        let log = self.daemon.log();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Volumes, mounts, and every file below the backend with its size, but for the catalog's copies, which are made in the
/// background.
fn state(daemon: &Daemon<'_>) -> (Value, Value, Vec<String>) {
    let listed = |group| daemon.cli(&[group, "ls", "--json"]).json();
    let mut files = Vec::new();
    collect(&daemon.path("var/lib/volhost/volumes"), &mut files);
    files.sort();
    (listed("volume"), listed("mount"), files)
}

fn collect(directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("catalog.jsonl")) {
            continue;
        }
        let metadata = entry.metadata().unwrap();
        files.push(format!(
            "{} {}",
            entry.path().display(),
            if metadata.is_dir() { 0 } else { metadata.len() }
        ));
        if metadata.is_dir() {
            collect(&entry.path(), files);
        }
    }
}

/// Sends one request with this body over a connection of its own.
fn post(daemon: &Daemon<'_>, path: &str, body: &[u8]) -> std::io::Result<Answer> {
    let mut client = daemon.unix();
    let head = format!("POST {path} HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n", body.len());
    // Whoever is refused early need not have read all of it.
    let _ = client.send(&[head.as_bytes(), body].concat());
    client.answer()
}

/// Fails unless it is an error in the protocol's form, of that status and with these words.
#[track_caller]
fn refuses(what: &str, answer: std::io::Result<Answer>, status: u16, words: &[&str]) {
    let answer = answer.unwrap_or_else(|e| panic!("{what}: no answer: {e}"));
    assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("content-type"), Some(MEDIA_TYPE), "{what}");
    let body = answer.json();
    assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{what}: {body}");
    let text = answer.err();
    assert!(!text.is_empty() && text.len() < 2000, "{what}: {} bytes of Err: {text:.300}", text.len());
    assert!(!text.contains("struct "), "{what}: speaks of the program's inside: {text}");
    for word in words {
        assert!(text.contains(word), "{what}: {word:?} is not in {text:?}");
    }
}

#[test]
fn bodies_that_are_no_request_are_refused_by_every_rpc() {
    let served = Served::start();
    let daemon = &served.daemon;
    let deep = [b"{\"Name\": ".as_slice(), &b"[".repeat(20_000), &b"]".repeat(20_000), b"}"].concat();
    let deep_opts = [
        b"{\"Name\": \"x\", \"Opts\": ".as_slice(),
        &b"{\"a\":".repeat(5_000),
        b"1",
        &b"}".repeat(5_000),
        b"}",
    ]
    .concat();
    let bodies: &[(&str, &[u8])] = &[
        ("null", b"null"),
        ("an array", b"[]"),
        ("an array of fields", b"[\"evil\", \"evil\"]"),
        ("a text", b"\"db\""),
        ("a number", b"1e999999"),
        ("true", b"true"),
        ("half an object", b"{\"Name\": \"db\""),
        ("two objects", b"{\"Name\": \"db\", \"ID\": \"m\"} {\"Name\": \"db\", \"ID\": \"m\"}"),
        ("rubbish behind", b"{\"Name\": \"db\", \"ID\": \"m\"}x"),
        ("no UTF-8", b"{\"Name\": \"\xff\xfe\", \"ID\": \"m\"}"),
        ("a byte order mark", b"\xef\xbb\xbf{\"Name\": \"db\", \"ID\": \"m\"}"),
        ("a form", b"Name=db&ID=m"),
        ("deep nesting", &deep),
        ("a name twice", b"{\"Name\": \"db\", \"Name\": \"evil\", \"ID\": \"m\"}"),
        ("a name that is null", b"{\"Name\": null, \"ID\": \"m\"}"),
        ("a name that is a number", b"{\"Name\": 12345678901234567890123456789, \"ID\": \"m\"}"),
        ("a name that is an object", b"{\"Name\": {\"Name\": \"db\"}, \"ID\": \"m\"}"),
        ("half a surrogate", b"{\"Name\": \"\\ud800\", \"ID\": \"m\"}"),
    ];
    for rpc in ["Create", "Get", "Path", "Mount", "Unmount", "Remove"] {
        for (what, body) in bodies {
            refuses(
                &format!("{rpc} of {what}"),
                post(daemon, &format!("/VolumeDriver.{rpc}"), body),
                400,
                &[],
            );
        }
        // Whatever an empty Get is answered with would be taken for the truth.
        for empty in ["", "\n", " \r\n\t "] {
            let answer = post(daemon, &format!("/VolumeDriver.{rpc}"), empty.as_bytes());
            if rpc == "Get" {
                assert!(answer.is_err(), "an empty Get was answered: {answer:?}");
            } else {
                refuses(&format!("an empty {rpc}"), answer, 400, &[rpc, "empty"]);
            }
        }
    }
    refuses("deep options", post(daemon, "/VolumeDriver.Create", &deep_opts), 400, &[]);
    served.is_unchanged();
}

#[test]
fn names_ids_and_options_that_are_wrong_are_named() {
    let served = Served::start();
    let daemon = &served.daemon;
    let long = "x".repeat(256);
    let names = [
        "",
        ".",
        "..",
        "../db",
        "db/..",
        "/db",
        "/etc/passwd",
        "a/b",
        "-db",
        ".db",
        ".volhost",
        "_db",
        "db\u{0}",
        "db\n",
        "db ",
        " db",
        "d\u{e9}",
        "db\u{202e}",
        "db;rm",
        "$(id)",
        "db%2f",
        "C:\\",
        &long,
    ];
    for name in names {
        for rpc in ["Create", "Mount", "Get", "Path", "Remove", "Unmount"] {
            let body = json!({ "Name": name, "ID": "m" }).to_string();
            let answer = post(daemon, &format!("/VolumeDriver.{rpc}"), body.as_bytes());
            refuses(&format!("{rpc} of {name:?}"), answer, 400, &["name"]);
        }
    }
    let huge = "x".repeat(60_000);
    for id in ["", "a\nb", "\u{0}", huge.as_str()] {
        for rpc in ["Mount", "Unmount"] {
            let body = json!({ "Name": "db", "ID": id }).to_string();
            let what = format!("{rpc} with the ID {id:.20?}");
            refuses(&what, post(daemon, &format!("/VolumeDriver.{rpc}"), body.as_bytes()), 400, &["ID"]);
        }
    }
    for rpc in ["Mount", "Unmount"] {
        let answer = post(daemon, &format!("/VolumeDriver.{rpc}"), b"{\"Name\": \"db\"}");
        refuses(&format!("{rpc} without ID"), answer, 400, &["ID"]);
        let answer = post(daemon, &format!("/VolumeDriver.{rpc}"), b"{\"Name\": \"db\", \"ID\": 7}");
        refuses(&format!("{rpc} with a number for its ID"), answer, 400, &[]);
    }
    let options: &[(&str, &[&str])] = &[
        (r#"{"size": "1g"}"#, &["size", "backend", "mode"]),
        (r#"{"mod": "0755"}"#, &["mod", "mode"]),
        (r#"{"mode": "0999"}"#, &["mode", "0999"]),
        (r#"{"mode": "rwx"}"#, &["mode"]),
        (r#"{"mode": ""}"#, &["mode"]),
        (r#"{"mode": "777777"}"#, &["mode"]),
        (r#"{"mode": 755}"#, &[]),
        (r#"{"mode": null}"#, &[]),
        (r#"{"mode": ["0755"]}"#, &[]),
        (r#"{"uid": "-1"}"#, &["uid", "-1"]),
        (r#"{"uid": "4294967295"}"#, &["uid"]),
        (r#"{"uid": "4294967296"}"#, &["uid"]),
        (r#"{"gid": "root"}"#, &["gid", "root"]),
        (r#"{"gid": "0x0"}"#, &["gid"]),
        (r#"{"adopt": "maybe"}"#, &["adopt"]),
        (r#"{"backend": "nowhere"}"#, &["nowhere", "default"]),
        (r#"{"backend": "../default"}"#, &["backend"]),
        (r#"{"backend": ""}"#, &["backend"]),
        (r#"{"": ""}"#, &[]),
        (r#"{"mode": "0755", "mode": "0777"}"#, &["mode"]),
        (r#"[]"#, &[]),
        (r#""mode=0755""#, &[]),
    ];
    for (given, words) in options {
        let body = format!(r#"{{"Name": "fresh", "Opts": {given}}}"#);
        refuses(given, post(daemon, "/VolumeDriver.Create", body.as_bytes()), 400, words);
    }
    let many = (0..2000).map(|n| format!("\"o{n}\": \"{n}\"")).collect::<Vec<_>>().join(",");
    let body = format!(r#"{{"Name": "fresh", "Opts": {{{many}}}}}"#);
    refuses("2000 options", post(daemon, "/VolumeDriver.Create", body.as_bytes()), 400, &["o"]);
    // The same volume with another option is no repetition: both are shown.
    let body = br#"{"Name": "db", "Opts": {"mode": "0700"}}"#;
    refuses("another mode", post(daemon, "/VolumeDriver.Create", body), 400, &["0700", "0750"]);
    served.is_unchanged();
}

#[test]
fn paths_methods_and_sizes_that_are_wrong_are_named() {
    let served = Served::start();
    let daemon = &served.daemon;
    let paths = [
        "/",
        "/VolumeDriver.get",
        "/VolumeDriver.Gett",
        "/Volumedriver.Get",
        "/VolumeDriver/Get",
        "/VolumeDriver.Get/",
        "//VolumeDriver.Get",
        "/v1.41/VolumeDriver.Get",
        "/NetworkDriver.GetCapabilities",
        "/Plugin.Deactivate",
        "/%56olumeDriver.Get",
        "/metrics",
        "/../../etc/passwd",
    ];
    for path in paths {
        refuses(path, post(daemon, path, b"{}"), 404, &["/VolumeDriver.Get"]);
    }
    refuses("a hint", post(daemon, "/VolumeDriver.Gett", b"{}"), 404, &["did you mean /VolumeDriver.Get?"]);
    let long = format!("/{}", "a".repeat(20_000));
    refuses("a long path", post(daemon, &long, b"{}"), 404, &[]);

    let mut client = daemon.tls();
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "post"] {
        for path in ["/VolumeDriver.Remove", "/Plugin.Activate"] {
            let answer = client.request(&format!("{method} {path} HTTP/1.1"), &[("Host", "x")], "");
            refuses(&format!("{method} {path}"), answer, 405, &["POST", method]);
        }
    }
    client.send(b"HEAD /VolumeDriver.List HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let head = client.answer();
    assert!(head.is_err() || head.is_ok_and(|answer| answer.status == 405));
    let mut client = daemon.unix();
    client.send(b"CONNECT store1:22 HTTP/1.1\r\nHost: store1\r\n\r\n").unwrap();
    assert!(client.answer().is_ok_and(|answer| matches!(answer.status, 404 | 405)));

    // A query or an absolute address is no harm.
    let body = br#"{"Name": "db"}"#;
    assert_eq!(post(daemon, "/VolumeDriver.Get?x=1", body).unwrap().status, 200);
    assert_eq!(post(daemon, "http://elsewhere/VolumeDriver.Get", body).unwrap().status, 200);

    for (what, bytes) in
        [("a little more than allowed", 65_537), ("a megabyte", 1 << 20), ("much more", 32 << 20)]
    {
        let mut body = br#"{"Name": "db", "ID": ""#.to_vec();
        body.resize(bytes, b'a');
        refuses(what, post(daemon, "/VolumeDriver.Mount", &body), 413, &["65536", "limits.body_bytes"]);
        // Over TCP an answer is lost when the rest of the body meets a closed socket.
        let mut client = daemon.tls();
        let head = format!("POST /VolumeDriver.Mount HTTP/1.1\r\nHost: x\r\nContent-Length: {bytes}\r\n\r\n");
        let _ = client.send(&[head.as_bytes(), &body].concat());
        refuses(&format!("{what}, over TLS"), client.answer(), 413, &["65536", "limits.body_bytes"]);
    }
    let mut client = daemon.tls();
    let claimed =
        "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n";
    client.send(claimed.as_bytes()).unwrap();
    let answer = client.answer().unwrap();
    assert!(matches!(answer.status, 400 | 413 | 431), "{answer:?}");
    // Chunks are counted, too, and none of a body that is too large is kept.
    let mut client = daemon.unix();
    client
        .send(b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    for _ in 0..5 {
        let _ = client.send(chunk.as_bytes());
    }
    refuses("chunks that are too many", client.answer(), 413, &["limits.body_bytes"]);
    served.is_unchanged();
}

#[test]
fn requests_in_every_lawful_form_are_served() {
    let served = Served::start();
    let daemon = &served.daemon;
    let get = "POST /VolumeDriver.Get HTTP/1.1\r\n";
    let body = r#"{"Name": "db"}"#;
    let whole = format!("{get}Host: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for open in [|daemon: &Daemon<'_>| daemon.unix(), |daemon: &Daemon<'_>| daemon.tls()] {
        let mut client = open(daemon);
        // In chunks, with extension and trailer.
        let chunked = format!(
            "{get}Host: x\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n{}\r\n{:x}\r\n{}\r\n0\r\nX-Sum: 1\r\n\r\n",
            &body[..5],
            body.len() - 5,
            &body[5..]
        );
        client.send(chunked.as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 200);
        // Asked before the body is sent; and not asked on when the answer is clear already.
        let head = |path: &str, length: usize| {
            format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
            )
        };
        client.send(head("/VolumeDriver.Get", body.len()).as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 100);
        client.send(body.as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 200);
        client.send(whole.repeat(20).as_bytes()).unwrap();
        for _ in 0..20 {
            assert_eq!(client.answer().unwrap().status, 200, "a request of twenty in a row");
        }
        client.send(head("/Nowhere.Get", 14).as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 404);

        // Slowly, in pieces that split every line; without Host; by HTTP/1.0; after empty lines.
        let mut client = open(daemon);
        for piece in whole.as_bytes().chunks(9) {
            client.send(piece).unwrap();
            thread::sleep(Duration::from_millis(3));
        }
        assert_eq!(client.answer().unwrap().status, 200);
        for head in ["", "Host:\r\n", "Host: x\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n"] {
            client
                .send(format!("{get}{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
                .unwrap();
            assert_eq!(client.answer().unwrap().status, 200, "{head}");
        }
        client.send(format!("\r\n{}", whole.replace("HTTP/1.1", "HTTP/1.0")).as_bytes()).unwrap();
        assert_eq!(client.answer().unwrap().status, 200);
        assert!(client.is_closed(), "HTTP/1.0 without keep-alive");
    }
    served.is_unchanged();
}

#[test]
fn heads_that_mean_two_things_smuggle_nothing() {
    let served = Served::start();
    let daemon = &served.daemon;
    let inner =
        "POST /VolumeDriver.Create HTTP/1.1\r\nHost: x\r\nContent-Length: 18\r\n\r\n{\"Name\": \"smuggled\"}";
    let list = "POST /VolumeDriver.List HTTP/1.1\r\nHost: x\r\n";
    let shapes = [
        format!("{list}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding: identity\r\n\r\n{inner}"),
        format!("{list}Content-Length: 0\r\nContent-Length: {}\r\n\r\n{inner}", inner.len()),
        format!("{list}Content-Length: 0, {}\r\n\r\n{inner}", inner.len()),
        format!("{list}Content-Length: +0\r\n\r\n{inner}"),
        format!("{list}Content-Length: -1\r\n\r\n{inner}"),
        format!("{list}Content-Length: 0x0\r\n\r\n{inner}"),
        format!("{list}X: y\rContent-Length: 0\r\n\r\n{inner}"),
        format!("{list}X: y\u{0}\r\n\r\n{inner}"),
        format!("{list} folded: x\r\n\r\n{inner}"),
        format!("{list}Transfer-Encoding: chunked\r\n\r\n-1\r\n{inner}"),
        format!("{list}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{inner}"),
        format!("{list}Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n{inner}"),
        format!("POST /VolumeDriver.List HTTP/1.1 \r\nContent-Length : 0\r\n\r\n{inner}"),
        format!("POST /VolumeDriver.List HTTP/2.0\r\n\r\n{inner}"),
        format!("POST /VolumeDriver.List\r\n\r\n{inner}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{inner}"),
        format!("{list}X: {}\r\n\r\n{inner}", "y".repeat(70_000)),
        format!("{list}{}\r\n{inner}", "X: y\r\n".repeat(200)),
        format!("\u{0}\u{1}\u{2}\r\n\r\n{inner}"),
    ];
    for shape in shapes {
        let mut client = daemon.unix();
        let _ = client.send(shape.as_bytes());
        let shown = &shape.chars().take(160).collect::<String>();
        let mut answers = Vec::new();
        while let Ok(answer) = client.answer() {
            answers.push(answer.status);
        }
        assert!(answers.len() <= 1, "two answers, {answers:?}, to {shown:?}");
        assert!(
            answers.iter().all(|status| matches!(status, 200 | 400 | 404 | 431 | 505)),
            "{answers:?} to {shown:?}"
        );
    }
    served.is_unchanged();
}

#[test]
fn a_crowd_of_broken_requests_harms_no_good_one() {
    let served = Served::start();
    let daemon = &served.daemon;
    let target = Target::Tls(daemon.tcp("https"), daemon.identity());
    thread::scope(|scope| {
        for worker in 0..3_usize {
            let target = target.clone();
            scope.spawn(move || {
                for round in 0..40_usize {
                    let mut client = Client::connect(&target).unwrap();
                    let bytes = match (worker + round) % 4 {
                        0 => b"POST /VolumeDriver.Create HTTP/1.1\r\nContent-Length: 100\r\n\r\n{".to_vec(),
                        1 => vec![0; 3000],
                        2 => {
                            b"POST /VolumeDriver.Remove HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
                                .to_vec()
                        }
                        _ => b"POST /VolumeDriver.Get".to_vec(),
                    };
                    // Dropped without waiting for anything.
                    let _ = client.send(&bytes);
                }
            });
        }
        let mut good = daemon.unix();
        for _ in 0..200 {
            let answer = good.call("/VolumeDriver.Get", &json!({ "Name": "db" })).unwrap();
            assert_eq!(answer.status, 200);
        }
    });
    served.is_unchanged();
}

/// A browser on this machine reaches a plain address, and a TLS one with the certificate of whoever sits before it. It
/// says of itself what no engine says, whatever a page has it send.
#[test]
fn what_a_browser_sends_is_refused() {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    let listen = config["listen"].as_array_mut().unwrap();
    listen.push("http://127.0.0.1:0".into());
    let daemon = setup.config(&config).start();
    let body = r#"{"Name": "bad"}"#;
    let length = body.len().to_string();
    let plain = || Client::connect(&Target::Tcp(daemon.tcp("http"))).unwrap();
    let listeners: [(&str, &dyn Fn() -> Client); 4] = [
        ("http", &plain),
        ("https", &|| daemon.tls()),
        ("unix", &|| daemon.unix()),
        ("admin", &|| Client::connect(&Target::Unix(daemon.path("run/volhost/admin.sock"))).unwrap()),
    ];
    for (listener, connect) in listeners {
        for (name, value) in [
            ("Origin", "http://127.0.0.1:8080"),
            ("origin", "null"),
            ("Sec-Fetch-Site", "same-origin"),
            ("Sec-Fetch-Mode", "no-cors"),
            ("sec-fetch-dest", "empty"),
        ] {
            let headers = [("Host", "127.0.0.1"), (name, value), ("Content-Length", &length)];
            let answer = connect().request("POST /VolumeDriver.Create HTTP/1.1", &headers, body);
            refuses(&format!("{listener}: {name}"), answer, 403, &["browser", &name.to_lowercase()]);
        }
    }
    assert_eq!(daemon.cli(&["volume", "ls", "--json"]).json(), json!([]));
    let answer = plain().call("/VolumeDriver.Create", &json!({ "Name": "good" })).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.err());
}

#[test]
fn a_client_cannot_fill_the_log() {
    let daemon = Daemon::start();
    let mut client = daemon.unix();
    for number in 0..200 {
        for (rpc, body) in [
            ("Unmount", json!({ "Name": format!("v{number}"), "ID": "m" })),
            ("Remove", json!({ "Name": format!("v{number}") })),
        ] {
            let answer = client.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap();
            assert_eq!(answer.status, 200, "{rpc}: {}", answer.err());
        }
    }
    let log = daemon.log();
    for words in ["is not among its mounts", "which is unknown to it"] {
        let lines = log.lines().filter(|line| line.contains(words)).count();
        // A minute may end meanwhile.
        assert!((1..=2).contains(&lines), "{lines} lines: {log}");
    }
}

/// Bodies of all connections together are bounded, and small ones, as engines send them, wait for none.
#[test]
fn large_bodies_wait_for_each_other_and_for_no_small_one() {
    const CLIENTS: usize = 300;
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["limits"] = json!({ "request": "4s", "connections_per_host": 1000 });
    let daemon = setup.config(&config).start();
    let status = Path::new("/proc").join(daemon.pid().to_string()).join("status");
    let memory = |field: &str| {
        let text = fs::read_to_string(&status).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap().to_owned();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() / 1024
    };
    let before = memory("VmRSS:");
    // Each of them promises as much as is allowed, and holds the last byte back.
    let head = "POST /VolumeDriver.Create HTTP/1.1\r\nContent-Length: 1048576\r\n\r\n";
    let large = format!("{head}{}", " ".repeat(1_048_575));
    let statuses: Vec<u16> = thread::scope(|scope| {
        let send = || {
            let mut client = daemon.unix();
            // Who is not read from waits here, until it is answered.
            let _ = client.send(large.as_bytes());
            client.answer().unwrap().status
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send)).collect();
        while !clients.iter().all(thread::ScopedJoinHandle::is_finished) {
            let answer = daemon.unix().call("/VolumeDriver.List", &json!({})).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.err());
            thread::sleep(Duration::from_millis(50));
        }
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| [400, 503].contains(status)), "{statuses:?}");
    let peak = memory("VmHWM:");
    assert!(peak < before + 200, "{before} MiB before, {peak} MiB at most");
    // Their room is free again.
    let body = json!({ "Name": "large", "Opts": { "unknown": "x".repeat(1_000_000) } });
    let answer = daemon.unix().call("/VolumeDriver.Create", &body).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.err());
    assert!(answer.err().contains("unknown"), "{:.200}", answer.err());
}

#[test]
fn a_value_of_a_wrong_type_is_named() {
    let served = Served::start();
    let daemon = &served.daemon;
    for (path, body, words) in [
        ("Create", r#"{"Name": "x", "Opts": {"uid": 5}}"#, &["option \"uid\"", "number 5", "\"5\""][..]),
        (
            "Create",
            r#"{"Name": "x", "Opts": {"mode": "0750", "adopt": true}}"#,
            &["option \"adopt\"", "true"],
        ),
        ("Create", r#"{"Name": "x", "Opts": {"uid": null}}"#, &["option \"uid\"", "null"]),
        ("Create", r#"{"Name": "x", "Opts": {"uid": {"a": [1]}}}"#, &["option \"uid\"", "an object"]),
        ("Create", r#"{"Name": "x", "Opts": {"uid": []}}"#, &["option \"uid\"", "a list"]),
        ("Create", r#"{"Name": "x", "Opts": ["uid"]}"#, &["Opts"]),
        ("Create", r#"{"Name": "x", "Opts": 7}"#, &["Opts"]),
        ("Create", r#"{"Name": 5}"#, &["Name", "number 5"]),
        ("Mount", r#"{"Name": "db", "ID": 5}"#, &["ID", "number 5"]),
        ("Remove", r#"{"Name": ["db"]}"#, &["Name", "a list"]),
    ] {
        refuses(body, post(daemon, &format!("/VolumeDriver.{path}"), body.as_bytes()), 400, words);
    }
    served.is_unchanged();
}
