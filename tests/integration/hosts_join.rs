//! Bundles, requests for certificates, revocations and renewals: how hosts come in and go, on the command line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::authority::{self, Authority};
use crate::harness::http::{Client, Identity};
use crate::harness::wait::{self, SOON, until};

const ADVERTISE: [&str; 2] = ["--advertise", "https://store1.example.org:7443"];

fn works(client: &mut Client) -> bool {
    client.call("/VolumeDriver.List", &json!({})).is_ok_and(|answer| answer.status == 200)
}

fn lets_in(daemon: &Daemon<'_>, identity: &Identity) -> bool {
    daemon.connect(identity).is_ok_and(|mut client| works(&mut client))
}

fn openssl(words: &[&str]) -> String {
    wait::run(Command::new("openssl").args(words)).ok()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn host(daemon: &Daemon<'_>, name: &str) -> Value {
    let rows = daemon.cli(&["host", "ls", "--json"]).json();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == name);
    row.unwrap_or_else(|| panic!("no host {name} in {rows}")).clone()
}

fn add(daemon: &Daemon<'_>, name: &str, options: &[&str]) -> Identity {
    let directory =
        daemon.path("unpacked").join(format!("{name}-{}", fs::read_dir(daemon.path("")).unwrap().count()));
    let bundle = daemon.path("").parent().unwrap().join(format!("{name}.tar"));
    let _ = fs::remove_file(&bundle);
    let _ = fs::remove_dir_all(&directory);
    daemon.add_host(name, &[&ADVERTISE, options].concat(), &directory)
}

#[test]
fn a_bundle_is_refused_or_written_whole_for_its_owner_alone() {
    let daemon = Daemon::start();
    let out = daemon.path("out");
    fs::create_dir(&out).unwrap();
    let bundle = out.join("web1.tar");
    let add = |words: &[&str]| daemon.cli(&[&["host", "add"], words].concat());

    // Where nothing says what to call, or only what no other machine reaches.
    let said = add(&["web1", "-o", text(&bundle)]).fails();
    assert!(said.contains("loopback") && said.contains("--advertise https://HOST:PORT"), "{said}");
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["web1", "--advertise", "http://store1:80"], 1, &["http://store1:80", "https://HOST:PORT"]),
        (&["web1", "--advertise", "store1"], 1, &["store1", "https://HOST:PORT"]),
        (&["web1", "--advertise", "https://store1:7443/v1"], 1, &["https://HOST:PORT"]),
        (&["web1", "--advertise", "https://*.example.org:7443"], 1, &["example.org"]),
        (&["*.example.org", ADVERTISE[0], ADVERTISE[1]], 1, &["*.example.org"]),
        (&["anonymous", ADVERTISE[0], ADVERTISE[1]], 1, &["anonymous"]),
        (&["", ADVERTISE[0], ADVERTISE[1]], 1, &["name"]),
        (&["web 1", ADVERTISE[0], ADVERTISE[1]], 1, &["web 1"]),
        (&["../web1", ADVERTISE[0], ADVERTISE[1]], 1, &["../web1"]),
        (&["web1", "--plugin-name", "../x", ADVERTISE[0], ADVERTISE[1]], 1, &["../x"]),
        (&["web1", "--plugin-name", "", ADVERTISE[0], ADVERTISE[1]], 1, &["name"]),
        (&["web1", "--csr", "/nowhere.csr", ADVERTISE[0], ADVERTISE[1]], 1, &["/nowhere.csr"]),
        (&["web1", "--bogus", "x"], 2, &["--bogus"]),
    ];
    for (words, code, expected) in cases {
        let said = add(&[words, ["-o", text(&bundle)].as_slice()].concat());
        assert_eq!(said.code, Some(*code), "{words:?}: {}", said.stderr);
        for word in *expected {
            assert!(said.stderr.contains(word), "{words:?}: no {word:?} in {}", said.stderr);
        }
    }
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "something was left of a bundle that was refused");
    let rows = daemon.cli(&["host", "ls", "--json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 1, "a refused host is listed: {rows}");

    fs::write(&bundle, "precious").unwrap();
    let said = add(&[&["web1", "-o", text(&bundle)], ADVERTISE.as_slice()].concat()).fails();
    assert!(said.contains("web1.tar exists"), "{said}");
    assert_eq!(fs::read_to_string(&bundle).unwrap(), "precious");
    let said = add(&[&["web1", "-o", "/nowhere/web1.tar"], ADVERTISE.as_slice()].concat()).fails();
    assert!(said.contains("/nowhere/web1.tar"), "{said}");
    assert_eq!(daemon.cli(&["host", "ls", "--json"]).json(), rows, "a certificate without a bundle");

    let said =
        add(&[&["web1", "--force", "--plugin-name", "netshare", "-o", text(&bundle)], ADVERTISE.as_slice()]
            .concat())
        .ok();
    assert!(said.contains("docker volume create -d netshare"), "{said}");
    assert_eq!(fs::metadata(&bundle).unwrap().permissions().mode() & 0o7777, 0o600);
    wait::run(Command::new("tar").args(["-C", text(&out), "-xf", text(&bundle)])).ok();
    let spec: Value =
        serde_json::from_slice(&fs::read(out.join("etc/docker/plugins/netshare.json")).unwrap()).unwrap();
    assert_eq!(
        spec,
        json!({ "Name": "netshare", "Addr": ADVERTISE[1], "TLSConfig": { "InsecureSkipVerify": false,
            "CAFile": "/etc/docker/volhost/ca.crt", "CertFile": "/etc/docker/volhost/host.crt",
            "KeyFile": "/etc/docker/volhost/host.key" } })
    );
    let key = out.join("etc/docker/volhost/host.key");
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o7777, 0o600);
    let whole = openssl(&[
        "verify",
        "-CAfile",
        text(&out.join("etc/docker/volhost/ca.crt")),
        text(&out.join("etc/docker/volhost/host.crt")),
    ]);
    assert!(whole.ends_with("OK"), "{whole}");
}

#[test]
fn hosts_are_listed_with_what_they_have_and_their_latest_certificate() {
    let daemon = Daemon::start();
    let first = add(&daemon, "web1", &[]);
    let serial = |identity: &Identity| {
        let said = openssl(&["x509", "-noout", "-serial", "-in", text(&identity.cert)]);
        said.trim_start_matches("serial=").trim_start_matches('0').to_lowercase()
    };
    let row = host(&daemon, "web1");
    assert_eq!(row["serial"], serial(&first));
    assert_eq!(
        (&row["last_seen"], &row["mounts"], &row["revoked"]),
        (&Value::Null, &json!(0), &json!(false))
    );
    let years = row["expires"].as_str().unwrap()[..4].parse::<i32>().unwrap()
        - time::OffsetDateTime::now_utc().year();
    assert!((9..=10).contains(&years), "{row}");

    let second = add(&daemon, "web1", &[]);
    assert_ne!(serial(&first), serial(&second));
    assert_eq!(host(&daemon, "web1")["serial"], serial(&second));
    // Both are that host: an engine that was not started again still uses the first.
    let (mut one, mut two) = (daemon.connect(&first).unwrap(), daemon.connect(&second).unwrap());
    for (client, rpc) in [(&mut one, "Create"), (&mut two, "Mount")] {
        let answer =
            client.call(&format!("/VolumeDriver.{rpc}"), &json!({ "Name": "db", "ID": "m" })).unwrap();
        assert_eq!(answer.status, 200, "{rpc}: {}", answer.err());
    }
    let row = host(&daemon, "web1");
    assert_eq!(row["mounts"], 1);
    assert!(row["last_seen"].is_string(), "{row}");
    let table = daemon.cli(&["host", "ls"]).ok();
    assert!(table.contains("web1") && table.contains("node1"), "{table}");
}

#[test]
fn a_key_that_was_made_on_the_host_stays_there() {
    let daemon = Daemon::start();
    let out = daemon.path("out");
    fs::create_dir(&out).unwrap();
    let file = |name: &str| out.join(name);
    let request = |name: &str, subject: &str, kind: &[&str]| {
        let (key, csr) = (file(&format!("{name}.key")), file(&format!("{name}.csr")));
        openssl(
            &[&["req", "-new", "-nodes", "-subj", subject, "-keyout", text(&key), "-out", text(&csr)], kind]
                .concat(),
        );
        (key, csr)
    };
    let ec: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let sign = |csr: &Path, name: &str, bundle: &str| {
        let bundle = file(bundle);
        let words = ["host", daemon.verb_for(name), name, "--csr", text(csr), "-o", text(&bundle)];
        daemon.cli(&[words.as_slice(), &ADVERTISE].concat())
    };
    let kinds: [(&str, &[&str]); 3] =
        [("ec", ec), ("rsa", &["-newkey", "rsa:2048"]), ("ed", &["-newkey", "ed25519"])];
    for (kind, how) in kinds {
        let (key, csr) = request(kind, "/CN=web1", how);
        let said = sign(&csr, "web1", &format!("{kind}.tar"));
        assert!(said.clone().ok().contains("holds no key"), "{}", said.stdout);
        let unpacked = file(&format!("{kind}.d"));
        fs::create_dir(&unpacked).unwrap();
        wait::run(Command::new("tar").args([
            "-C",
            text(&unpacked),
            "-xf",
            text(&file(&format!("{kind}.tar"))),
        ]))
        .ok();
        let place = unpacked.join("etc/docker/volhost");
        assert!(!place.join("host.key").exists(), "a key that nobody sent is in the bundle");
        let identity = Identity { ca: place.join("ca.crt"), cert: place.join("host.crt"), key };
        assert!(lets_in(&daemon, &identity), "{kind}");
    }

    let before = host(&daemon, "web1");
    let (_, other) = request("other", "/CN=web2", ec);
    let (_, weak) = request("weak", "/CN=web1", &["-newkey", "rsa:1024"]);
    let (key, good) = request("good", "/CN=web1", ec);
    let broken = file("broken.csr");
    let pem = fs::read_to_string(&good).unwrap();
    let mut lines: Vec<_> = pem.lines().map(str::to_owned).collect();
    let (line, changed) = (lines.len() - 3, if lines[lines.len() - 3].starts_with('A') { "B" } else { "A" });
    lines[line].replace_range(..1, changed);
    fs::write(&broken, lines.join("\n")).unwrap();
    fs::write(file("empty.csr"), "").unwrap();
    let cases = [
        (other.as_path(), "it names \"web2\", but the certificate is to be for web1"),
        (weak.as_path(), "1024 bits"),
        (broken.as_path(), "signature"),
        (&file("empty.csr"), "BEGIN CERTIFICATE REQUEST"),
        (key.as_path(), "BEGIN CERTIFICATE REQUEST"),
    ];
    for (csr, expected) in cases {
        let said = sign(csr, "web1", "no.tar").fails();
        assert!(said.contains(expected), "{}: {said}", csr.display());
        assert!(!file("no.tar").exists());
    }
    let mut after = host(&daemon, "web1");
    after["last_seen"] = before["last_seen"].clone();
    assert_eq!(after, before, "a request that was refused left a certificate");
}

#[test]
fn a_revoked_host_stays_out_until_it_is_added_again() {
    let mut daemon = Daemon::start();
    let (first, other) = (add(&daemon, "web1", &[]), add(&daemon, "web2", &[]));
    let mut open: Vec<_> = (0..4).map(|_| daemon.connect(&first).unwrap()).collect();
    let mut stays = daemon.connect(&other).unwrap();
    assert!(open.iter_mut().all(works) && works(&mut stays));
    // Requests of which a part is still to come when the host is shut out, and comes too late.
    let request = "POST /VolumeDriver.Create HTTP/1.1\r\nContent-Length: 16\r\n\r\n{\"Name\": \"late\"}";
    for (client, sent) in open[2..].iter_mut().zip([30, request.len() - 5]) {
        client.send(&request.as_bytes()[..sent]).unwrap();
    }
    assert_eq!(open[0].call("/VolumeDriver.Create", &json!({ "Name": "db" })).unwrap().status, 200);
    assert_eq!(open[0].call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "m" })).unwrap().status, 200);

    let said = daemon.cli(&["host", "revoke", "web1"]).ok();
    let revoked = Instant::now();
    assert!(said.contains("1 certificate revoked") && said.contains("1 mount"), "{said}");
    assert!(open.iter_mut().all(Client::is_closed));
    eprintln!("revoked: closed after {} ms", revoked.elapsed().as_millis());
    assert!(revoked.elapsed() < Duration::from_secs(3), "{:?}", revoked.elapsed());
    assert!(works(&mut stays), "the revocation concerned another host");
    assert!(!lets_in(&daemon, &first));
    assert_eq!(host(&daemon, "web1")["revoked"], true);
    daemon.has_mounts(&[("db", "web1", false)]);
    assert_eq!(daemon.volumes(), ["db"], "a request of a revoked host was carried out");
    daemon.restart();
    assert!(!lets_in(&daemon, &first), "a restart let a revoked host in");
    assert!(lets_in(&daemon, &other));

    let again = add(&daemon, "web1", &[]);
    assert!(lets_in(&daemon, &again));
    assert!(!lets_in(&daemon, &first), "the certificate that was revoked came back with the new one");
    assert_eq!(host(&daemon, "web1")["revoked"], false);
    daemon.restart();
    assert!(lets_in(&daemon, &again) && !lets_in(&daemon, &first));

    let said = daemon.cli(&["host", "revoke", "web9"]).fails();
    assert!(said.contains("web9 is not known"), "{said}");
}

#[test]
fn the_authoritys_key_may_be_kept_elsewhere() {
    let mut daemon = Daemon::start();
    let web1 = add(&daemon, "web1", &[]);
    let (key, away) = (daemon.path("etc/volhost/pki/ca.key"), daemon.path("ca.key"));
    fs::rename(&key, &away).unwrap();
    daemon.restart();
    assert!(lets_in(&daemon, &web1) && lets_in(&daemon, &daemon.identity()));
    daemon.signal("HUP");
    until("the reload", SOON, || daemon.log().contains("certificates applied").then_some(()));
    let bundle = daemon.path("web2.tar");
    let words = ["host", "add", "web2", ADVERTISE[0], ADVERTISE[1], "-o", text(&bundle)];
    let said = daemon.cli(&words).fails();
    assert!(said.contains("ca.key") && said.contains("web2"), "{said}");
    assert!(!bundle.exists());
    daemon.cli(&["host", "revoke", "web1"]).ok();
    assert!(!lets_in(&daemon, &web1), "to revoke needs no key");
    fs::rename(&away, &key).unwrap();
    daemon.cli(&words).ok();
}

#[test]
fn the_servers_certificate_is_made_anew_when_it_nears_its_end_or_lacks_a_name() {
    let daemon = Daemon::start();
    let pki = daemon.path("etc/volhost/pki");
    let mut open = daemon.tls();
    let before = open.server().to_vec();
    let names = |der: &[u8]| {
        let file = daemon.path("server.der");
        fs::write(&file, der).unwrap();
        openssl(&[
            "x509",
            "-inform",
            "DER",
            "-noout",
            "-ext",
            "subjectAltName",
            "-enddate",
            "-in",
            text(&file),
        ])
    };
    // A host is told an address that the certificate does not hold yet.
    add(&daemon, "web1", &[]);
    let renewed = until("the certificate with the new name", SOON, || {
        let now = daemon.tls().server().to_vec();
        (now != before).then_some(now)
    });
    assert!(names(&renewed).contains("DNS:store1.example.org"), "{}", names(&renewed));
    assert!(works(&mut open), "an open connection was closed for it");

    // One that has a week of its year left, of the same key, as a service finds it that was off for long.
    let file = |name: &str| pki.join(name);
    let read = |name: &str| fs::read_to_string(file(name)).unwrap();
    let names_wanted = ["localhost", "node1", "store1.example.org", "127.0.0.1", "::1"];
    let near =
        authority::server_near_its_end(&read("ca.crt"), &read("ca.key"), &read("server.key"), &names_wanted);
    let key = read("server.key");
    daemon.put("etc/volhost/pki/server.crt", &near);
    until("a certificate with a year to live", SOON, || {
        let expires = daemon.status()["server_certificate_expires"].as_str()?.to_owned();
        let now = daemon.tls().server().to_vec();
        let days = time::OffsetDateTime::parse(&expires, &time::format_description::well_known::Rfc3339)
            .unwrap()
            - time::OffsetDateTime::now_utc();
        (now != renewed && days.whole_days() > 300).then_some(())
    });
    let latest = daemon.tls().server().to_vec();
    assert!(names(&latest).contains("DNS:store1.example.org"), "a name was lost: {}", names(&latest));
    assert_eq!(read("server.key"), key, "the key is another one");
    assert!(works(&mut open));
    assert!(lets_in(&daemon, &daemon.identity()));
}

#[test]
fn hosts_of_an_authority_of_others_get_no_bundle_of_ours() {
    let ca = Authority::new("the company's CA");
    let setup = Daemon::setup();
    let file = |name: &str| setup.root().join("tls").join(name);
    let config = json!({
        "node": "node1", "listen": ["https://127.0.0.1:0"], "hosts": { "*": {} },
        "tls": { "cert": file("server.crt"), "key": file("server.key"), "client_ca": file("ca.crt") },
    });
    let server = ca.server();
    let daemon = setup
        .config(&config)
        .file("tls/server.crt", &server.cert)
        .file("tls/server.key", &server.key)
        .file("tls/ca.crt", &ca.pem())
        .start();
    let bundle = daemon.path("web1.tar");
    let said = daemon.cli(&["host", "add", "web1", ADVERTISE[0], ADVERTISE[1], "-o", text(&bundle)]).fails();
    assert!(said.contains("issue the host's certificate with your authority"), "{said}");
    assert!(!bundle.exists());
    // To revoke by name works all the same, once the host was seen.
    let web1 = ca.client("web1", 1).keep(&daemon.path("hosts"), "web1", &ca.pem());
    let mut open = daemon.connect(&web1).unwrap();
    assert!(works(&mut open));
    assert_eq!(open.call("/VolumeDriver.Create", &json!({ "Name": "db" })).unwrap().status, 200);
    assert_eq!(open.call("/VolumeDriver.Mount", &json!({ "Name": "db", "ID": "m" })).unwrap().status, 200);
    daemon.cli(&["host", "revoke", "web1"]).ok();
    assert!(open.is_closed());
    assert!(!lets_in(&daemon, &web1));
}
