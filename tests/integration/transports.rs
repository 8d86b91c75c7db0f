//! Sockets and connections as engines, careless administrators and strangers on the network meet them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::authority::{Authority, from_now};
use crate::harness::daemon::Setup;
use crate::harness::http::{Client, Identity, Target, dial};
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Host};

/// What a request of an engine looks like, from its first byte to its last.
fn post(rpc: &str, body: &str) -> String {
    format!(
        "POST /VolumeDriver.{rpc} HTTP/1.1\r\nHost: volhost\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Begins a request of an engine, up to where its connection is busy for certain: the server asks for the body, which is
/// sent but for its end. Answers the rest.
fn begin<'a>(client: &mut Client, rpc: &str, body: &'a str) -> &'a [u8] {
    let head = post(rpc, body).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    client.send(&head.as_bytes()[..head.len() - body.len()]).unwrap();
    assert_eq!(client.answer().unwrap().status, 100);
    let (first, rest) = body.as_bytes().split_at(body.len() - 6);
    client.send(first).unwrap();
    rest
}

/// The standard configuration with these limits and, beside its other addresses, plain HTTP on loopback.
fn limited(limits: &Value) -> Setup<'static> {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["limits"] = limits.clone();
    config["listen"].as_array_mut().unwrap().push("http://127.0.0.1:0".into());
    setup.config(&config)
}

fn plain(daemon: &Daemon<'_>) -> Client {
    Client::connect(&Target::Tcp(daemon.tcp("http"))).unwrap()
}

fn works(client: &mut Client) -> bool {
    client.call("/VolumeDriver.List", &json!({})).is_ok_and(|answer| answer.status == 200)
}

/// How long it takes until the server closes the connection.
#[track_caller]
fn closed_after(client: &mut Client) -> Duration {
    let start = Instant::now();
    assert!(client.is_closed(), "the connection stays open, or was answered");
    start.elapsed()
}

#[test]
fn a_unix_socket_belongs_to_the_group_docker_and_is_replaced_only_when_it_is_dead() {
    let host = Host::new("web1");
    host.run(["groupadd", "--system", "--force", "docker"]).ok();
    let group: u32 = host
        .run(["getent", "group", "docker"])
        .ok()
        .split(':')
        .nth(2)
        .and_then(|gid| gid.parse().ok())
        .unwrap();
    let setup = Daemon::setup();
    let root = setup.root();
    let (socket, admin) = (root.join("run/volhost/plugin.sock"), root.join("run/volhost/admin.sock"));
    // A socket that nobody serves any more.
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    drop(UnixListener::bind(&admin).unwrap());
    let mut daemon = setup.on(&host).start();
    let owner = |path| {
        let metadata = fs::metadata(path).unwrap();
        (metadata.permissions().mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(owner(&socket), (0o660, 0, group));
    assert_eq!(owner(&admin), (0o600, 0, 0));
    assert!(works(&mut daemon.unix()));

    daemon.kill9();
    assert!(socket.exists(), "nobody removes a socket after kill -9");
    daemon.start_again();
    assert!(works(&mut daemon.unix()));
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(!socket.exists() && !admin.exists(), "a socket was left behind");
}

#[test]
fn what_is_in_use_is_neither_taken_nor_harmed() {
    let daemon = Daemon::start();
    // The same files: the catalog has its one process.
    let second = daemon.cli(&["serve"]);
    assert_eq!(second.code, Some(1), "{}", second.stderr);
    assert!(
        second.stderr.contains("catalog.db") && second.stderr.contains("in use by process"),
        "{}",
        second.stderr
    );
    assert!(!second.stdout.contains("ready"));

    // Another catalog, but the same socket, the same port, and a file where a socket should be.
    let file = daemon.path("a-file");
    fs::write(&file, "precious").unwrap();
    let cases = [
        (format!("unix:{}", daemon.socket().display()), "another process serves it already"),
        (format!("https://{}", daemon.tcp("https")), "in use"),
        (format!("unix:{}", file.display()), "is no socket"),
        ("https://192.0.2.1:0".to_owned(), "192.0.2.1"),
    ];
    for (address, expected) in cases {
        let setup = Daemon::setup();
        let config = json!({ "node": "node2", "listen": [address] });
        let (status, log) = setup.config(&config).refused(|| ());
        assert_eq!(status.code(), Some(1), "{address}: {log}");
        assert!(log.contains(expected) && log.contains(&address), "{address}: {log}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(works(&mut daemon.unix()) && works(&mut daemon.tls()));
}

#[test]
fn plain_http_is_anonymous_and_stays_on_this_machine() {
    let daemon = limited(&json!({})).start();
    let mut client = plain(&daemon);
    for (rpc, body) in [("Create", json!({ "Name": "db" })), ("Mount", json!({ "Name": "db", "ID": "m" }))] {
        assert_eq!(client.call(&format!("/VolumeDriver.{rpc}"), &body).unwrap().status, 200);
    }
    daemon.has_mounts(&[("db", "anonymous", false)]);
    let mut unix = daemon.unix();
    assert_eq!(unix.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "m" })).unwrap().status, 200);
    let mut tls = daemon
        .connect(&daemon.add_host("web2", &["--advertise", "https://127.0.0.1:1"], &daemon.path("web2")))
        .unwrap();
    assert_eq!(tls.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "m" })).unwrap().status, 200);
    daemon.has_mounts(&[("db", "anonymous", false), ("db", "node1", false), ("db", "web2", false)]);

    let config = json!({ "node": "node1", "listen": ["http://0.0.0.0:0"] });
    let (status, log) = Daemon::setup().config(&config).refused(|| ());
    assert_eq!(status.code(), Some(78), "{log}");
    assert!(log.contains("listen") && log.contains("\"insecure\": true"), "{log}");
    let config = json!({ "node": "node1", "listen": ["http://0.0.0.0:0"], "insecure": true });
    let daemon = Daemon::setup().config(&config).start();
    let port = daemon.tcp("http").port();
    let here = SocketAddr::from(([127, 0, 0, 1], port));
    assert!(works(&mut Client::connect(&Target::Tcp(here)).unwrap()));
}

#[test]
fn both_versions_of_tls_are_served_and_no_stranger_is_answered() {
    let ca = Authority::new("the company's CA");
    let (other, setup) = (Authority::new("another CA"), Daemon::setup());
    let file = |name: &str| setup.root().join("tls").join(name);
    let tls = json!({ "cert": file("server.crt"), "key": file("server.key"), "client_ca": file("ca.crt"),
        "crl": file("crl.pem") });
    let config =
        json!({ "node": "node1", "listen": ["https://127.0.0.1:0"], "tls": tls, "hosts": { "*": {} } });
    let server = ca.server();
    let daemon = setup
        .config(&config)
        .file("tls/server.crt", &server.cert)
        .file("tls/server.key", &server.key)
        .file("tls/ca.crt", &ca.pem())
        .file("tls/crl.pem", &ca.crl(&[9]))
        .start();
    let keep =
        |what: &str, pair: crate::harness::authority::Pair| pair.keep(&daemon.path("hosts"), what, &ca.pem());
    let address = daemon.tcp("https");
    let ask = |versions: &[&'static rustls::SupportedProtocolVersion], identity: Option<&Identity>| {
        let own = daemon.path("tls/ca.crt");
        let mut client = Client::tls_of(versions, dial(address)?, &own, identity)?;
        client.call("/Plugin.Activate", &json!({}))
    };
    let good = keep("good", ca.client("web1", 1));
    let strangers = [
        ("another CA's", keep("other", other.client("web1", 1))),
        ("an expired", keep("expired", ca.expired("web1", from_now(-1)))),
        ("a revoked", keep("revoked", ca.client("web1", 9))),
        ("a server's", keep("server", ca.server())),
        ("a wildcard's", keep("wildcard", ca.client("*.example.org", 2))),
        ("the reserved name's", keep("anonymous", ca.client("anonymous", 3))),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        assert_eq!(ask(&[version], Some(&good)).unwrap().status, 200, "{version:?}");
        let answer = ask(&[version], None);
        assert!(answer.is_err(), "{version:?}: no certificate was answered: {answer:?}");
        for (what, identity) in &strangers {
            let answer = ask(&[version], Some(identity));
            assert!(answer.is_err(), "{version:?}: {what} certificate was answered: {answer:?}");
        }
    }
    for old in ["-tls1", "-tls1_1"] {
        let port = address.port().to_string();
        let said = crate::harness::wait::run(
            Command::new("openssl")
                .args(["s_client", old, "-cipher", "ALL:@SECLEVEL=0", "-connect"])
                .arg(format!("127.0.0.1:{port}")),
        );
        assert!(said.code != Some(0), "{old} was taken: {}", said.stdout);
    }
    let log = daemon.log();
    for why in [
        "no client certificate",
        "not from a CA in tls.client_ca",
        "has expired",
        "is revoked",
        "not meant for clients",
        "*.example.org",
        "anonymous",
    ] {
        assert!(log.contains(why), "{why} is not in the log:\n{log}");
    }
    // Nobody is answered in plain text either: an answer would cost an engine its labels.
    let mut plain = Client::over(dial(address).unwrap());
    let _ = plain.send(post("Get", r#"{"Name": "db"}"#).as_bytes());
    assert!(plain.is_closed());
    assert_eq!(ask(&[&rustls::version::TLS13], Some(&good)).unwrap().status, 200);
}

#[test]
fn who_stalls_is_given_up_and_who_is_idle_is_kept() {
    let daemon = limited(&json!({ "handshake": "1s", "request": "2s" })).start();
    let mut idle = [daemon.tls(), daemon.unix(), plain(&daemon)];
    assert!(idle.iter_mut().all(works));
    // Opened ahead of need and never used so far, as Go's client does.
    let mut unused = daemon.tls();
    let start = Instant::now();

    let bounded = |what: &str, took: Duration, least: u64, most: u64| {
        eprintln!("{what}: closed after {} ms", took.as_millis());
        assert!(took >= Duration::from_millis(least), "{what}: closed already after {took:?}");
        assert!(took < Duration::from_secs(most), "{what}: closed only after {took:?}");
    };
    let https = daemon.tcp("https");
    let (tls, http) = (Target::Tls(https, daemon.identity()), Target::Tcp(daemon.tcp("http")));
    let unix = Target::Unix(daemon.socket());
    thread::scope(|scope| {
        scope.spawn(|| {
            for mut client in
                [tls.clone(), http.clone(), unix.clone()].map(|target| Client::connect(&target).unwrap())
            {
                client.send(b"POST /VolumeDriver.Get HTTP/1.1\r\nHost: ").unwrap();
                bounded("half a head", closed_after(&mut client), 500, 6);
            }
        });
        scope.spawn(|| {
            // Byte by byte, so that the connection is never quiet.
            let mut client = Client::connect(&http).unwrap();
            let start = Instant::now();
            let head = format!("POST /VolumeDriver.Get HTTP/1.1\r\nX: {}", "a".repeat(1000));
            let ended = head.bytes().any(|byte| {
                thread::sleep(Duration::from_millis(50));
                client.send(&[byte]).is_err()
            });
            assert!(ended, "a head that never ends was read for {:?}", start.elapsed());
            bounded("a trickled head", start.elapsed(), 500, 8);
        });
        scope.spawn(|| {
            let mut client = Client::over(dial(https).unwrap());
            bounded("a handshake not begun", closed_after(&mut client), 500, 6);
            let mut client = Client::over(dial(https).unwrap());
            client.send(&[22, 3, 1, 2, 0, 1]).unwrap();
            bounded("half a handshake", closed_after(&mut client), 500, 6);
        });
        scope.spawn(|| {
            let mut client = Client::connect(&tls).unwrap();
            let head = post("Get", &" ".repeat(100));
            client.send(&head.as_bytes()[..head.len() - 50]).unwrap();
            // An answer, whatever it says, would cost the engine its labels.
            bounded("half a body of Get", closed_after(&mut client), 1500, 8);
        });
        scope.spawn(|| {
            let mut client = Client::connect(&tls).unwrap();
            let head = post("Create", "{\"Name\": \"half\"        ");
            client.send(&head.as_bytes()[..head.len() - 5]).unwrap();
            let start = Instant::now();
            let answer = client.answer().unwrap();
            assert_eq!(answer.status, 400);
            assert!(answer.err().contains("limits.request"), "{answer:?}");
            bounded("half a body of Create", start.elapsed(), 1500, 8);
        });
    });
    thread::sleep(Duration::from_secs(8).saturating_sub(start.elapsed()));
    assert!(idle.iter_mut().all(works), "an idle engine's connection was closed");
    assert!(works(&mut unused), "a connection that was opened ahead of need was closed");
    assert!(daemon.volumes().is_empty());
}

#[test]
fn a_host_with_too_many_connections_loses_its_idle_ones_and_nobody_elses() {
    let daemon = limited(&json!({ "connections_per_host": 4 })).start();
    let web2 = daemon.add_host("web2", &["--advertise", "https://127.0.0.1:1"], &daemon.path("web2"));
    let mut other = daemon.connect(&web2).unwrap();
    assert!(works(&mut other));
    let mut clients: Vec<_> = (0..4).map(|_| daemon.tls()).collect();
    for client in &mut clients {
        assert!(works(client));
        thread::sleep(Duration::from_millis(100));
    }
    let mut fifth = daemon.tls();
    assert!(works(&mut fifth), "a new connection was refused beside idle ones");
    assert!(clients[0].is_closed(), "the longest idle connection was kept");
    assert!(clients[1..].iter_mut().all(works) && works(&mut other));

    // Busy ones are not given up, not even for the host's own.
    let busy: Vec<_> = clients[1..]
        .iter_mut()
        .chain([&mut fifth])
        .map(|client| (begin(client, "Create", "{\"Name\": \"db\"} "), client))
        .collect();
    let refused =
        daemon.connect(&daemon.identity()).and_then(|mut client| client.call("/Plugin.Activate", &json!({})));
    assert!(refused.is_err(), "a connection beyond the limit was served: {refused:?}");
    for (rest, client) in busy {
        client.send(rest).unwrap();
        assert_eq!(client.answer().unwrap().status, 200);
    }
    assert!(daemon.log().contains("limits.connections_per_host"), "{}", daemon.log());
    assert!(works(&mut other));
}

#[test]
fn a_thousand_connections_are_served_at_once() {
    let daemon = limited(&json!({ "connections_per_host": 2000 })).start();
    let address = daemon.tcp("http");
    let open = |count: usize| (0..count).map(|_| dial(address)).collect::<io::Result<Vec<_>>>();
    let mut streams = match open(1000) {
        Ok(streams) => streams,
        Err(error) => panic!("the test cannot open a thousand sockets: {error}; see ulimit -n"),
    };
    let request = post("List", "{}");
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).unwrap();
    }
    let answered = streams.into_iter().map(|stream| Client::over(stream).answer());
    let good = answered.filter(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)).count();
    assert_eq!(good, 1000);
    assert!(works(&mut daemon.tls()));
}

#[test]
fn the_limit_of_open_files_makes_room_for_the_connections_that_are_allowed() {
    // As systemd starts services: 1024 files, of which more may be asked for.
    let daemon = Daemon::setup().open_files("1024:4096").start();
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let fields: Vec<_> = line.split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "the limit of open files was not raised to what is allowed: {line}");
}

#[test]
fn sigterm_lets_requests_in_flight_finish() {
    let mut daemon = Daemon::start();
    let (mut idle, mut busy) = (daemon.tls(), daemon.tls());
    assert!(works(&mut idle) && works(&mut busy));
    let rest = begin(&mut busy, "Create", "{\"Name\": \"late\"}");
    daemon.signal("TERM");
    assert!(idle.is_closed(), "an idle connection keeps a service from ending");
    until("the end of accepting", SOON, || TcpStream::connect(daemon.tcp("https")).is_err().then_some(()));
    busy.send(rest).unwrap();
    let answer = busy.answer().unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    assert!(busy.is_closed());
    assert_eq!(daemon.ended().code(), Some(0), "{}", daemon.log());
    daemon.start_again();
    assert_eq!(daemon.volumes(), ["late"]);
}

#[test]
fn a_second_signal_ends_at_once() {
    for (first, second) in [("TERM", "TERM"), ("INT", "TERM")] {
        let mut daemon = Daemon::start();
        let mut busy = daemon.tls();
        begin(&mut busy, "Create", "{\"Name\": \"late\"}");
        daemon.signal(first);
        until("the drain", SOON, || daemon.log().contains("draining").then_some(()));
        daemon.signal(second);
        let start = Instant::now();
        let status = daemon.ended();
        assert!(start.elapsed() < Duration::from_secs(5), "{first}, {second}: took {:?}", start.elapsed());
        assert_eq!(status.code(), Some(1), "{first}, {second}: {status}");
        daemon.start_again();
        assert!(daemon.volumes().is_empty());
    }
}

#[test]
fn who_reads_no_answer_holds_nobody_up() {
    let daemon = limited(&json!({ "request": "2s" })).start();
    let mut client = daemon.unix();
    for number in 0..300 {
        let name = format!("{}{number}", "v".repeat(200));
        assert_eq!(client.call("/VolumeDriver.Create", &json!({ "Name": name })).unwrap().status, 200);
    }
    // Answers pile up until no more fits into the sockets between us.
    let mut deaf = dial(daemon.tcp("http")).unwrap();
    deaf.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let request = post("List", "{}");
    let start = Instant::now();
    while deaf.write_all(request.as_bytes()).is_ok() {}
    assert!(works(&mut client));
    let connections = || daemon.status()["connections"].as_u64();
    until("the deaf client's end", SOON, || (connections() == Some(1)).then_some(()));
    eprintln!("who reads nothing: closed after {} ms", start.elapsed().as_millis());
    let mut rest = Vec::new();
    let _ = deaf.read_to_end(&mut rest);
    assert!(works(&mut client));
}

#[test]
fn a_service_that_may_open_few_files_stays_reachable() {
    // Soft and hard limit alike, so that none can be asked for: strangers use them all up.
    let daemon = limited(&json!({ "connections_per_host": 2000 })).open_files("64:64").start();
    let address = daemon.tcp("http");
    let greedy: Vec<_> = (0..100).filter_map(|_| dial(address).ok()).collect();
    thread::sleep(Duration::from_millis(500));
    let mut late = until("a connection among the greedy", SOON, || {
        let mut client = Client::connect(&Target::Unix(daemon.socket())).ok()?;
        works(&mut client).then_some(client)
    });
    assert!(works(&mut late));
    drop(greedy);
    assert!(works(&mut plain(&daemon)));
}
