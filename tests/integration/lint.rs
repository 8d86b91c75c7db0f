//! `volhost spec lint` against a real engine: what it says of a file is what dockerd then does with it.
//!
//! The engine of a machine of its own finds many plugins there, each by files with one fault or with none, and is told
//! to make a volume with each. Those that are called at all lead to one volhost.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::harness::authority::{Authority, from_now};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts;

/// What `spec lint` says on a machine, as JSON, and its exit code.
fn lint(host: &Host, options: &[&str]) -> (Value, Option<i32>) {
    let words = [&[env!("CARGO_BIN_EXE_volhost"), "spec", "lint", "--json"], options].concat();
    let said = host.run(words);
    let value = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said:?}"));
    (value, said.code)
}

/// A plugin's entry, and the words of its findings.
fn told<'a>(report: &'a Value, name: &str) -> (&'a Value, Vec<&'a str>) {
    let list = |field: &str| report[field].as_array().unwrap();
    let plugin = list("plugins").iter().find(|plugin| plugin["name"] == name);
    let findings = list("findings").iter().filter(|finding| finding["plugin"] == name);
    (plugin.unwrap_or(&Value::Null), findings.map(|finding| finding["fault"].as_str().unwrap()).collect())
}

fn put(host: &Host, path: &str, text: &str) {
    let path = host.path(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Makes a volume by each of the plugins, all at the same time: an engine tries long before it gives up.
fn create(engine: &Engine<'_>, names: &[&str]) -> Vec<Result<(), String>> {
    thread::scope(|scope| {
        let create = |name: &str| {
            let said = engine.docker(&["volume", "create", "--driver", name, &format!("by-{name}")]);
            eprintln!("{name}: dockerd: {:?} {}", said.code, said.stderr);
            if said.code == Some(0) { Ok(()) } else { Err(said.stderr) }
        };
        let running: Vec<_> = names.iter().map(|name| scope.spawn(move || create(name))).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn the_file_that_is_said_to_win_is_the_one_that_dockerd_reads() {
    let web1 = Host::new("web1");
    // The machine has its own `/etc` and `/run`; this gives it a `/usr/lib` of its own, too.
    let script = "mkdir /mnt/usr /mnt/usr.work && mount -t overlay \
                  -o lowerdir=/usr/lib,upperdir=/mnt/usr,workdir=/mnt/usr.work overlay /usr/lib";
    web1.run(["sh", "-c", script]).ok();
    let order = ["/run/docker/plugins/NAME.sock", "/run/docker/plugins/NAME/NAME.sock"].into_iter().chain(
        ["/etc/docker/plugins", "/usr/lib/docker/plugins"].into_iter().flat_map(|dir| {
            ["NAME.spec", "NAME/NAME.spec", "NAME.json", "NAME/NAME.json"]
                .map(|file| &*Box::leak(format!("{dir}/{file}").into_boxed_str()))
        }),
    );
    let order: Vec<&str> = order.collect();
    // The first plugin has all of these files, the next one all but the first, and so on. Nobody listens anywhere, so
    // that the engine's complaint names the address that it read.
    let names: Vec<_> = (0..order.len()).map(|at| format!("p{at}")).collect();
    for (at, name) in names.iter().enumerate() {
        for (number, file) in order.iter().enumerate().skip(at) {
            let file = file.replace("NAME", name);
            let address = format!("unix:///run/{name}-{number}.sock");
            match file.rsplit_once('.').unwrap().1 {
                "sock" => {
                    let path = web1.path(&file);
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    drop(UnixListener::bind(path).unwrap());
                }
                "spec" => put(&web1, &file, &address),
                _ => put(&web1, &file, &json!({ "Addr": address }).to_string()),
            }
        }
    }

    let (report, code) = lint(&web1, &[]);
    assert_eq!(code, Some(1));
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let engine = Engine::start(&web1);
    for ((at, name), created) in names.iter().enumerate().zip(create(&engine, &names)) {
        let (plugin, faults) = told(&report, name);
        assert_eq!(plugin["file"], order[at].replace("NAME", name));
        let hidden: Vec<_> = order[at + 1..].iter().map(|file| file.replace("NAME", name)).collect();
        assert_eq!(plugin["shadows"], json!(hidden));
        assert_eq!(faults, vec!["shadowed"; hidden.len()]);
        let read = plugin["address"].as_str().unwrap().strip_prefix("unix://").unwrap();
        let refusal = created.unwrap_err();
        assert!(
            refusal.contains(&format!("dial unix {read}: ")),
            "{name}: {read} was said, dockerd: {refusal}"
        );
    }
}

#[test]
fn a_host_that_has_only_its_bundle_is_without_fault_until_it_is_revoked() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = hosts::serve_both(&web1, &web2);
    hosts::join(&daemon, &web2);
    let (report, code) = lint(&web2, &["--probe"]);
    assert_eq!((code, &report["plugins"][0]["probe"]), (Some(0), &json!("answers")), "{report:#}");
    // Nothing of that was an activation, or a use.
    daemon.has_mounts(&[]);

    daemon.cli(&["host", "revoke", "web2"]).ok();
    let (report, code) = lint(&web2, &["--probe"]);
    assert_eq!((code, told(&report, "volhost").1), (Some(1), vec!["refused"]));
    assert_eq!(lint(&web2, &[]).1, Some(0), "what a server refuses is told by nobody but the server");
}

/// A file of the plugin `NAME`, what `spec lint --probe` says of it, and what dockerd's complaint holds, if it has one.
struct Case {
    file: &'static str,
    text: String,
    faults: &'static [&'static str],
    refusal: Option<&'static str>,
}

#[test]
fn what_is_said_of_a_file_is_what_dockerd_does_with_it() {
    let web1 = Host::new("web1");
    let listen = json!(["https://127.0.0.1:7443", "unix:/run/volhost/plugin.sock"]);
    let _daemon = Daemon::setup().on(&web1).without_root().config(&json!({ "listen": listen })).start();
    // What volhost wrote by itself is without fault.
    let (report, code) = lint(&web1, &["--probe"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(
        (&report["plugins"][0]["probe"], &report["plugins"][0]["tls"]),
        (&json!("answers"), &json!("verified"))
    );

    let cases = cases(&web1);
    let names: Vec<_> = cases.iter().map(|case| name(case)).collect();
    for case in &cases {
        put(&web1, &format!("/etc/docker/plugins/{}", case.file), &case.text);
    }
    let (report, code) = lint(&web1, &["--probe"]);
    assert_eq!(code, Some(1));
    let engine = Engine::start(&web1);
    let created = create(&engine, &names);
    for ((case, name), created) in cases.iter().zip(&names).zip(created) {
        let Case { file, text: _, faults, refusal } = case;
        let (plugin, found) = told(&report, name);
        assert_eq!(&found, faults, "{file}");
        match (refusal, created) {
            (None, Ok(())) => assert_eq!(plugin["probe"], "answers", "{file}"),
            (Some(refusal), Err(said)) => {
                assert!(said.contains(refusal), "{file}: dockerd said {said:?}");
                // With such files an engine calls nobody, and neither does the probe.
                let unusable =
                    ["bad-json", "bad-address", "no-file", "no-certificate", "half-a-pair", "mismatch"];
                assert_eq!(plugin["probe"].is_null(), unusable.contains(&found[0]), "{file}");
                assert_ne!(plugin["probe"], "answers", "{file}");
            }
            (_, created) => panic!("{file}: dockerd: {created:?}"),
        }
    }
}

fn name(case: &Case) -> &'static str {
    Path::new(case.file).file_stem().unwrap().to_str().unwrap()
}

fn cases(web1: &Host) -> Vec<Case> {
    const OURS: &str = "/etc/volhost/pki";
    let other = Authority::new("another CA");
    let stranger = other.client("web1", 1);
    let expired = other.expired("web1", from_now(-3));
    put(web1, "/etc/docker/other/ca.crt", &other.pem());
    for (name, pair) in [("stranger", &stranger), ("expired", &expired)] {
        put(web1, &format!("/etc/docker/other/{name}.crt"), &pair.cert);
        put(web1, &format!("/etc/docker/other/{name}.key"), &pair.key);
        let key = web1.path(&format!("/etc/docker/other/{name}.key"));
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    }
    // A name of this machine that volhost's certificate does not hold.
    put(web1, "/etc/hosts", "127.0.0.1 localhost elsewhere\n");
    let own_key = fs::read_to_string(web1.path(&format!("{OURS}/client.key"))).unwrap();
    put(web1, "/etc/docker/other/exposed.key", &own_key);

    let https = "https://127.0.0.1:7443";
    let (ca, cert, key) =
        ("/etc/volhost/pki/ca.crt", "/etc/volhost/pki/client.crt", "/etc/volhost/pki/client.key");
    let spec = |address: &str, ca: &str, cert: &str, key: &str| {
        json!({ "Addr": address, "TLSConfig": { "CAFile": ca, "CertFile": cert, "KeyFile": key } })
            .to_string()
    };
    let at = |address: &str| spec(address, ca, cert, key);
    let by = |cert: &str, key: &str| spec(https, ca, cert, key);
    let mut cases = Vec::new();
    let mut case = |file, text: String, faults, refusal| cases.push(Case { file, text, faults, refusal });

    // Those that an engine can use, whether that is good or not.
    case("good.json", at(https), &[], None);
    case("path.json", at("https://127.0.0.1:7443/volumes?a=b"), &["ignored"], None);
    case("lower.json", at(https).to_lowercase(), &[], None);
    case("unknown.json", at(https).replacen('{', "{\"Adress\": 1, ", 1), &["unknown-field"], None);
    case("trailing.json", at(https) + " and more", &["trailing"], None);
    case("renamed.json", at(https).replacen('{', "{\"Name\": \"good\", ", 1), &["other-name"], None);
    case("noca.json", spec(https, "", cert, key), &["unverified"], None);
    let skip = spec(https, "/nowhere/ca.crt", cert, key)
        .replace("\"CAFile\"", "\"InsecureSkipVerify\":true,\"CAFile\"");
    case("skip.json", skip, &["unverified"], None);
    case("exposed.json", by(cert, "/etc/docker/other/exposed.key"), &["exposed"], None);
    case("socket.spec", "unix:///run/volhost/plugin.sock\n".into(), &[], None);
    case("sub/sub.json", at(https), &[], None);

    // Those that it cannot read.
    case("broken.json", "{".into(), &["bad-json"], Some("EOF"));
    case("type.json", r#"{"Addr": 1}"#.into(), &["bad-json"], Some("cannot unmarshal"));
    case("noscheme.spec", "/run/volhost/plugin.sock".into(), &["bad-address"], Some("nknown protocol"));
    case("nofile.json", spec(https, "/nowhere/ca.crt", cert, key), &["no-file"], Some("/nowhere/ca.crt"));
    case("notca.json", spec(https, key, cert, key), &["no-certificate"], Some("PEM"));
    case("half.json", by(cert, ""), &["half-a-pair"], Some("X509 key pair"));
    case("mismatch.json", by(cert, "/etc/docker/other/stranger.key"), &["mismatch"], Some("match"));

    // Those that it cannot reach, or does not trust, or that do not trust it.
    case(
        "closed.json",
        at("https://127.0.0.1:1"),
        &["unreachable"],
        Some("127.0.0.1:1: connect: connection refused"),
    );
    case("noport.json", at("https://127.0.0.1"), &["no-port", "unreachable"], Some("127.0.0.1:443: connect"));
    case("nowhere.json", at("https://nowhere.invalid:7443"), &["unresolved"], Some("nowhere.invalid"));
    case(
        "gone.spec",
        "unix:///run/gone.sock".into(),
        &["unreachable"],
        Some("/run/gone.sock: connect: no such file"),
    );
    case("wrongname.json", at("https://elsewhere:7443"), &["not-verified"], Some("x509"));
    case("wrongca.json", spec(https, "/etc/docker/other/ca.crt", cert, key), &["not-verified"], Some("x509"));
    case(
        "system.json",
        json!({ "Addr": https }).to_string(),
        &["no-client-certificate", "not-verified"],
        Some("x509"),
    );
    case("line.spec", https.into(), &["unverified", "refused"], Some("certificate required"));
    case("off.json", at("tcp://127.0.0.1:7443"), &["tls-off", "broken"], Some("http://127.0.0.1:7443"));
    case(
        "scheme.json",
        at("htps://127.0.0.1:7443"),
        &["wrong-scheme", "tls-off", "broken"],
        Some("http://127.0.0.1:7443"),
    );
    case(
        "stranger.json",
        by("/etc/docker/other/stranger.crt", "/etc/docker/other/stranger.key"),
        &["refused"],
        Some("certificate required"),
    );
    case(
        "expired.json",
        by("/etc/docker/other/expired.crt", "/etc/docker/other/expired.key"),
        &["expired", "refused"],
        Some("certificate required"),
    );
    cases
}
