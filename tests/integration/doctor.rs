//! `volhost doctor` on machines that are well, and on machines that are broken in one way each: it names the check, the
//! cause and the remedy, and nothing else is wrong.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::engine::show_spec;
use crate::harness::authority::{Authority, from_now, server_near_its_end};
use crate::harness::storage::Storage;
use crate::harness::wait::{SOON, Said, run, until};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts;

/// What `doctor` found.
struct Report {
    findings: Vec<Value>,
    code: Option<i32>,
}

impl Report {
    fn of(said: &Said) -> Self {
        let findings = serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("{e}: {said:?}"));
        let findings: Vec<Value> = findings;
        let known = |finding: &Value| volhost::doctor::CHECKS.iter().any(|check| finding["check"] == *check);
        assert!(findings.iter().all(known), "a check that has no word: {findings:?}");
        Self { findings, code: said.code }
    }

    /// Of a machine.
    fn on(host: &Host, options: &[&str]) -> Self {
        Self::of(&host.run([&[env!("CARGO_BIN_EXE_volhost"), "doctor", "--json"], options].concat()))
    }

    fn all(&self) -> String {
        self.findings.iter().map(|finding| format!("{finding}\n")).collect()
    }

    fn with(&self, verdict: &str) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["verdict"] == verdict).collect()
    }

    /// Nothing is wrong, and nothing could not be checked.
    #[track_caller]
    fn is_well(&self) -> &Self {
        let bad = self.with("wrong").len() + self.with("skipped").len();
        assert_eq!((self.code, bad), (Some(0), 0), "{}", self.all());
        self
    }

    /// A check came to this, in these words, with a remedy if it is bad.
    #[track_caller]
    fn says(&self, check: &str, verdict: &str, words: &str) -> &Self {
        let of_it = |finding: &&Value| {
            finding["check"] == check
                && finding["verdict"] == verdict
                && finding["message"].as_str().is_some_and(|message| message.contains(words))
        };
        let found = self.findings.iter().find(of_it);
        let found =
            found.unwrap_or_else(|| panic!("no {check} that is {verdict}: {words:?} in\n{}", self.all()));
        assert!(found["remedy"].is_string() || verdict == "ok" || verdict == "note" || verdict == "skipped");
        self
    }

    /// This one check is wrong, in these words, and no other.
    #[track_caller]
    fn blames(&self, check: &str, words: &str) -> &Self {
        assert_eq!(self.code, Some(1), "{}", self.all());
        let others = self.with("wrong").into_iter().filter(|finding| finding["check"] != check).count();
        assert_eq!(others, 0, "{check} is not all that is wrong:\n{}", self.all());
        self.says(check, "wrong", words)
    }
}

const SPEC: &str = "/etc/docker/plugins/volhost.json";

/// Runs a line of shell on a machine.
#[track_caller]
fn sh(host: &Host, script: &str) {
    host.run(["sh", "-ec", script]).ok();
}

/// Makes the machine's spec file say something else.
#[track_caller]
fn respec(host: &Host, change: impl FnOnce(&mut Value)) {
    let path = host.path(SPEC);
    let mut spec = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut spec);
    fs::write(path, spec.to_string()).unwrap();
}

fn volume(daemon: &Daemon<'_>, name: &str) {
    daemon.cli(&["volume", "create", name]).ok();
}

#[test]
fn machines_that_are_well_are_told_so() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = hosts::serve_both(&web1, &web2);
    hosts::join(&daemon, &web2);
    let engine = Engine::start(&web2);
    let socket = engine.address();
    Report::on(&web2, &["--docker", &socket]).is_well().says("mountpoint", "note", "sees no volume yet");

    volume(&daemon, "db");
    let path = daemon.path("var/lib/volhost/volumes");
    let report = Report::on(&web2, &["--docker", &socket]);
    report.is_well().says("service", "note", "no storage host").says("spec-file", "ok", SPEC);
    report.says("certificates", "ok", "this host is web2, until").says(
        "managed-plugin",
        "ok",
        "no managed plugin",
    );
    report.says("address", "ok", "it answers within").says("clock", "ok", "agree").says(
        "proxy",
        "ok",
        "no engine",
    );
    report.says("backend", "ok", "online").says("mountpoint", "ok", "it is backend \"default\"");
    let subjects: Vec<_> = report.findings.iter().map(|finding| &finding["subject"]).collect();
    assert!(subjects.contains(&&json!(path)), "{subjects:?}");
    // Nothing of that was an activation, a use, or left anything behind.
    daemon.has_mounts(&[]);

    let report = Report::of(&daemon.cli(&["doctor", "--json"]));
    assert_eq!((report.code, report.with("wrong").len()), (Some(0), 0), "{}", report.all());
    report.says("configuration", "ok", "without fault").says("service", "ok", "serves since");
    report.says("reload", "ok", "in force").says("server-certificate", "ok", "days");
    report.says("address", "ok", "").says("mountpoint", "ok", "").says("proxy", "ok", "this machine itself");
    // What the service and the host both tell of is told once.
    for check in ["backend", "space"] {
        let of_it = report.findings.iter().filter(|finding| finding["check"] == check);
        let subjects: Vec<_> = of_it.map(|finding| finding["subject"].as_str().unwrap()).collect();
        let once: BTreeSet<_> = subjects.iter().collect();
        assert_eq!(once.len(), subjects.len(), "{}", report.all());
    }

    // For people: a line for each check, the words aligned, and a summary.
    let said = web2.run([env!("CARGO_BIN_EXE_volhost"), "doctor", "--docker", &socket]).ok();
    assert!(said.contains("  address         https://10.77.0.1:7443: it answers within "), "{said}");
    assert!(said.lines().last().unwrap().starts_with("nothing is wrong: "), "{said}");
    // Without an engine's socket it is no fault that there is none, unless somebody named it.
    Report::on(&web2, &[]).says("engine", "note", "no such socket").says("managed-plugin", "skipped", "");
    Report::on(&web2, &["--docker", "/run/none.sock"]).blames("engine", "cannot be asked");
    // As Docker's own commands find it.
    let by_host = |host: &str| {
        let host = format!("DOCKER_HOST={host}");
        Report::of(&web2.run(["env", &host, env!("CARGO_BIN_EXE_volhost"), "doctor", "--json"]))
    };
    let address = if socket.contains("://") { socket.clone() } else { format!("unix://{socket}") };
    by_host(&address).is_well().says("managed-plugin", "ok", "no managed plugin");
    by_host("unix:///run/none.sock").blames("engine", "cannot be asked");
    let report = by_host("tcp://10.77.0.9:2375");
    assert_eq!(report.code, Some(0), "{}", report.all());
    report.says("engine", "note", "no socket of this machine").says("managed-plugin", "skipped", "");
}

#[test]
fn what_is_wrong_with_a_hosts_files_is_told() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = hosts::serve_both(&web1, &web2);
    hosts::join(&daemon, &web2);
    let bundle = web2.dir().join("bundle.tar");
    let mend = || sh(&web2, &format!("rm -rf /etc/docker/*; tar -C / -xf {}", bundle.display()));
    let report = || Report::on(&web2, &[]);
    let break_by = |script: &str| {
        mend();
        sh(&web2, script);
        report()
    };
    let key = "/etc/docker/volhost/host.key";

    // The spec file.
    break_by(&format!("rm {SPEC}")).blames("spec-file", "finds no plugin of that name");
    break_by(&format!("ln -sf /nowhere {SPEC}")).blames("spec-file", "finds no plugin of that name").says(
        "spec-file",
        "warning",
        "it leads nowhere",
    );
    let report_of_both = break_by("echo unix:///run/old.sock > /etc/docker/plugins/volhost.spec");
    assert_eq!(report_of_both.code, Some(1));
    report_of_both.says("spec-file", "wrong", "volhost.spec is found first").says(
        "address",
        "wrong",
        "cannot be reached",
    );
    // Another file that says the same hides nothing.
    let twice =
        break_by(&format!("mkdir /etc/docker/plugins/volhost; cp {SPEC} /etc/docker/plugins/volhost/"));
    assert_eq!(twice.code, Some(0), "{}", twice.all());
    twice.says("spec-file", "warning", "is found first");
    break_by(&format!("echo '{{' > {SPEC}"))
        .blames("spec-file", "cannot read it as JSON")
        .says("address", "skipped", "")
        .says("clock", "skipped", "")
        .says("mountpoint", "skipped", "");
    let plain = break_by(&format!("sed -i s/https:/tcp:/ {SPEC}"));
    plain.says("spec-file", "wrong", "TLS is off").says("address", "wrong", "broke the connection off");
    // Which plugin is meant.
    mend();
    sh(
        &web2,
        &format!(
            "mv {SPEC} /etc/docker/plugins/store.json; sed -i s/volhost\\\"/store\\\"/ /etc/docker/plugins/store.json"
        ),
    );
    report().is_well_but_for_the_engine().says("address", "ok", "");
    sh(&web2, "echo unix:///run/x.sock > /etc/docker/plugins/x.spec");
    report().is_well_but_for_the_engine();
    Report::on(&web2, &["x"]).blames("address", "/run/x.sock cannot be reached");
    Report::on(&web2, &["other"]).blames("spec-file", "it finds store, x");
    mend();
    Report::on(&web2, &["--spec-dir", "/etc/docker/nowhere"]).blames("spec-file", "");
    Report::on(&web2, &["--spec-dir", "/etc/docker/plugins"]).is_well_but_for_the_engine();

    // The certificates.
    break_by("rm /etc/docker/volhost/ca.crt")
        .blames("certificates", "ca.crt cannot be read")
        .says("address", "skipped", "");
    break_by(&format!("chmod 644 {key}")).blames("certificates", "mode 0644").says("address", "ok", "");
    let other = Authority::new("another CA");
    let (stranger, expired) = (other.client("web2", 1), other.expired("web2", from_now(-3)));
    let put =
        |name: &str, text: &str| fs::write(web2.path(&format!("/etc/docker/volhost/{name}")), text).unwrap();
    mend();
    put("host.key", &stranger.key);
    report().blames("certificates", "is not the key of");
    put("host.crt", &stranger.cert);
    report().blames("address", "refused this host");
    put("host.key", &expired.key);
    put("host.crt", &expired.cert);
    report().says("certificates", "wrong", "expired at").says("address", "wrong", "refused");
    mend();
    put("ca.crt", &other.pem());
    report().blames("address", "is not verified by CAFile");

    // The address.
    let readdress = |address: &str| {
        mend();
        respec(&web2, |spec| spec["Addr"] = address.into());
        report()
    };
    readdress("https://store1.invalid:7443").blames("address", "the name store1.invalid was not found");
    readdress("https://10.77.0.1:1").blames("address", "cannot be reached");
    sh(&web2, "echo 10.77.0.1 elsewhere >> /etc/hosts");
    readdress("https://elsewhere:7443").blames("address", "is not verified");
    let standin = stand_in(&web2, "200 OK", Duration::ZERO, None);
    readdress(&format!("https://{standin}")).blames("address", "broke the connection off");

    // The host itself is let in no more.
    mend();
    report().is_well_but_for_the_engine();
    daemon.cli(&["host", "revoke", "web2"]).ok();
    report().blames("address", "refused this host").says("clock", "skipped", "").says(
        "mountpoint",
        "skipped",
        "",
    );
}

impl Report {
    /// Nothing is wrong on a machine without an engine.
    #[track_caller]
    fn is_well_but_for_the_engine(&self) -> &Self {
        assert_eq!((self.code, self.with("wrong").len()), (Some(0), 0), "{}", self.all());
        let skipped: Vec<_> = self.with("skipped").iter().map(|finding| finding["check"].clone()).collect();
        assert_eq!(skipped, ["managed-plugin", "proxy"], "{}", self.all());
        self
    }
}

/// A plugin on a machine's loopback that answers everything by this, by a clock that is behind.
fn stand_in(host: &Host, status: &'static str, behind: Duration, body: Option<&'static str>) -> SocketAddr {
    let listener = host.listen(Ipv4Addr::LOCALHOST);
    let address = listener.local_addr().unwrap();
    thread::spawn(move || answer_all(&listener, status, behind, body));
    address
}

fn answer_all(listener: &TcpListener, status: &str, behind: Duration, body: Option<&str>) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        // Whatever it is, a head ends with an empty line; what is no HTTP ends otherwise.
        while !head.ends_with(b"\r\n\r\n")
            && head.len() < 300
            && stream.read(&mut byte).is_ok_and(|read| read == 1)
        {
            head.push(byte[0]);
        }
        let body = match body {
            Some(body) => body,
            None if head.starts_with(b"POST /VolumeDriver.Cap") => r#"{"Capabilities":{"Scope":"global"}}"#,
            None => r#"{"Volumes":[]}"#,
        };
        let format = time::macros::format_description!(
            "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
        );
        let date = time::OffsetDateTime::from(SystemTime::now() - behind).format(&format).unwrap();
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\n\r\n{body}");
        let _ = stream.write_all(answer.as_bytes());
    }
}

#[test]
fn what_a_plugin_answers_is_judged_and_so_is_its_clock() {
    let web1 = Host::new("web1");
    fs::create_dir_all(web1.path("/etc/docker/plugins")).unwrap();
    let spec = |address: SocketAddr| {
        fs::write(web1.path("/etc/docker/plugins/volhost.spec"), format!("tcp://{address}")).unwrap();
        Report::on(&web1, &[])
    };
    let ok = "200 OK";
    spec(stand_in(&web1, ok, Duration::ZERO, None)).says("clock", "ok", "agree").says(
        "mountpoint",
        "note",
        "",
    );
    let late = spec(stand_in(&web1, ok, Duration::from_secs(30), None));
    assert_eq!(late.code, Some(0), "{}", late.all());
    late.says("clock", "warning", " s ahead of the service's");
    spec(stand_in(&web1, ok, Duration::from_secs(4000), None)).blames("clock", "s ahead of the service's");

    let failing = spec(stand_in(&web1, "500 No", Duration::ZERO, Some(r#"{"Err": "boom"}"#)));
    failing.blames("address", "answered with status 500 and \"boom\"");
    failing.says("clock", "ok", "").says("mountpoint", "skipped", "does not answer as a volume plugin");
    // One that answers Capabilities only.
    let half = stand_in(&web1, ok, Duration::ZERO, Some(r#"{"Capabilities": {}, "Err": null}"#));
    spec(half).says("address", "ok", "").says("mountpoint", "note", "");
}

#[test]
fn what_the_engine_does_with_the_plugin_is_told() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = hosts::serve_both(&web1, &web2);
    hosts::join(&daemon, &web2);
    let mut engine = Engine::start(&web2);
    let socket = engine.address();
    let report = || Report::on(&web2, &["--docker", &socket]);
    let try_one =
        |engine: &Engine<'_>, name: &str| engine.docker(&["volume", "create", "-d", "volhost", name]);
    report().is_well();

    // A managed plugin of that name, disabled as it is when it was made.
    let plugin = web2.dir().join("plugin");
    fs::create_dir_all(plugin.join("rootfs")).unwrap();
    let config = json!({ "description": "in the way", "documentation": "", "entrypoint": ["/none"],
                         "interface": { "types": ["docker.volumedriver/1.0"], "socket": "none.sock" } });
    fs::write(plugin.join("config.json"), config.to_string()).unwrap();
    engine.ok(&["plugin", "create", "volhost", plugin.to_str().unwrap()]);
    report().blames("managed-plugin", "a disabled managed plugin volhost:latest");
    // What is said of it is what dockerd does.
    let refusal = try_one(&engine, "a").fails();
    assert!(refusal.contains("disabled"), "{refusal}");
    engine.ok(&["plugin", "rm", "volhost"]);
    report().is_well();

    // A proxy that leads nowhere.
    engine.stop();
    engine.start_with(&[("HTTPS_PROXY", "http://user:secret@10.77.0.1:9")]);
    let found = report();
    found.blames("proxy", "HTTPS_PROXY=http://…@10.77.0.1:9").says("address", "ok", "");
    assert!(!found.all().contains("secret"));
    let refusal = try_one(&engine, "b").fails();
    assert!(refusal.contains("proxyconnect"), "{refusal}");
    engine.stop();
    engine.start_with(&[("HTTPS_PROXY", "http://10.77.0.1:9"), ("NO_PROXY", "10.77.0.0/24")]);
    report().is_well().says("proxy", "ok", "no engine");
    try_one(&engine, "c").ok();
}

#[test]
fn what_is_wrong_with_a_mountpoint_is_told() {
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let disk = storage.disk("small", "ext4", 16);
    let ext4 = storage.dir("ext4");
    disk.mount(&ext4);
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = hosts::serve_both(&web1, &web2);
    hosts::join(&daemon, &web2);
    volume(&daemon, "db");
    let path = daemon.path("var/lib/volhost/volumes");
    let at = path.display();
    let report = || Report::on(&web2, &[]);
    let mounted = |mount: &str, check: &dyn Fn(Report)| {
        sh(&web2, mount);
        check(report());
        sh(&web2, &format!("umount {at}"));
    };
    report().is_well_but_for_the_engine();

    // What containers would write to then is another disk than the share.
    mounted(&format!("mount -t tmpfs tmpfs {at}"), &|report| {
        report.blames("mountpoint", "nothing is mounted there");
    });
    mounted(&format!("mount -t tmpfs tmpfs {}", path.parent().unwrap().display()), &|report| {
        report.blames("mountpoint", "no such directory");
        sh(&web2, &format!("mkdir {at}; mount -t tmpfs tmpfs {at}"));
        sh(
            &web2,
            &format!("umount {at}; umount {}; mount --bind {at} {at}", path.parent().unwrap().display()),
        );
    });
    let other = storage.dir("other/.volhost");
    let identity: Value =
        serde_json::from_slice(&fs::read(path.join(".volhost/backend.json")).unwrap()).unwrap();
    let mut another = identity.clone();
    another["id"] = json!("00000000-0000-4000-8000-000000000000");
    fs::write(other.join("backend.json"), another.to_string()).unwrap();
    mounted(&format!("mount --bind {} {at}", other.parent().unwrap().display()), &|report| {
        report.blames(
            "mountpoint",
            "another backend is mounted there (id 00000000-0000-4000-8000-000000000000",
        );
    });
    fs::write(other.join("backend.json"), "{").unwrap();
    mounted(&format!("mount --bind {} {at}", other.parent().unwrap().display()), &|report| {
        report.says("mountpoint", "warning", "is not understood");
    });
    mounted(&format!("mount --bind {at} {at}; mount -o remount,bind,ro {at}"), &|report| {
        report.blames("mountpoint", "but read-only");
    });

    // The right one, but full.
    let copy_identity = |to: &Path| {
        fs::create_dir_all(to.join(".volhost")).unwrap();
        fs::write(to.join(".volhost/backend.json"), identity.to_string()).unwrap();
    };
    copy_identity(&ext4);
    let bind_ext4 = format!("mount --bind {} {at}", ext4.display());
    mounted(&bind_ext4, &|report| {
        report.is_well_but_for_the_engine().says("space", "ok", "");
    });
    let room = rustix::fs::statvfs(&ext4).unwrap();
    let mut ballast = fs::File::create(ext4.join("ballast")).unwrap();
    let to_leave = room.f_blocks * room.f_frsize / 20;
    ballast.write_all(&vec![1; usize::try_from(room.f_bavail * room.f_frsize - to_leave).unwrap()]).unwrap();
    ballast.sync_all().unwrap();
    mounted(&bind_ext4, &|report| {
        assert_eq!(report.code, Some(0), "{}", report.all());
        report.says("space", "warning", "little is free");
    });
    while ballast.write_all(&[1; 4096]).is_ok() {}
    mounted(&bind_ext4, &|report| {
        report.blames("space", "nothing is free");
    });

    // The right one, but it hangs: the command ends all the same.
    copy_identity(shaky.behind());
    let bind_shaky = format!("mount --bind {} {at}", shaky.path().display());
    mounted(&bind_shaky, &|report| {
        report.is_well_but_for_the_engine();
    });
    sh(&web2, &bind_shaky);
    let hanging = shaky.hang();
    let begun = Instant::now();
    report().blames("mountpoint", "its storage hangs");
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    drop(hanging);
}

#[test]
fn what_is_wrong_with_the_storage_host_is_told() {
    let web1 = Host::new("web1");
    let listen = json!(["https://127.0.0.1:7443"]);
    let (good, elsewhere) = (json!({ "listen": listen }), web1.dir().join("fast"));
    let map = json!({ "default": "/var/lib/volhost/volumes", "fast": elsewhere });
    fs::create_dir(&elsewhere).unwrap();
    sh(&web1, "mkdir -p /var/lib/volhost/volumes");
    let setup = Daemon::setup().on(&web1).without_root().config(&good).backends(&map);
    let mut daemon = setup.start();
    let report = || Report::on(&web1, &[]);
    report().is_well_but_for_the_engine_here();

    // Its backend.
    let away = elsewhere.with_extension("away");
    fs::rename(&elsewhere, &away).unwrap();
    until("the backend to be offline", SOON, || {
        (daemon.backend_state("fast").as_deref() == Some("offline")).then_some(())
    });
    report().blames("backend", "does not exist; is the share mounted?");
    fs::rename(&away, &elsewhere).unwrap();
    until("the backend to be online", SOON, || {
        (daemon.backend_state("fast").as_deref() == Some("online")).then_some(())
    });

    // Its configuration, which it goes on without.
    daemon.put("etc/volhost/volhost.json", &json!({ "listne": listen }).to_string());
    until("the reload to be rejected", SOON, || {
        (daemon.status()["last_reload"]["result"] == "rejected").then_some(())
    });
    let bad = report();
    assert_eq!(bad.code, Some(1));
    bad.says("configuration", "wrong", "listne").says("reload", "wrong", "was rejected");
    daemon.put("etc/volhost/volhost.json", &json!({ "listen": listen, "node": "other" }).to_string());
    until("a restart to be needed", SOON, || {
        daemon.status()["needs_restart"].as_array().is_some_and(|list| !list.is_empty()).then_some(())
    });
    // What is in force is told a moment later.
    until("the reload to be told", SOON, || {
        (daemon.status()["last_reload"]["result"] == "applied").then_some(())
    });
    let later = report();
    assert_eq!(later.code, Some(0), "{}", later.all());
    later.says("reload", "warning", "only after a restart: node");

    // Its certificate: one that somebody else has to renew.
    let pki = |name: &str| fs::read_to_string(web1.path(&format!("/etc/volhost/pki/{name}"))).unwrap();
    let near = server_near_its_end(&pki("ca.crt"), &pki("ca.key"), &pki("server.key"), &["127.0.0.1"]);
    daemon.put("etc/volhost/near/server.crt", &near);
    daemon.put("etc/volhost/near/server.key", &pki("server.key"));
    let tls = json!({ "cert": "/etc/volhost/near/server.crt", "key": "/etc/volhost/near/server.key" });
    daemon.put("etc/volhost/volhost.json", &json!({ "listen": listen, "tls": tls }).to_string());
    assert_eq!(daemon.terminate().code(), Some(0));
    daemon.start_again();
    report().says("server-certificate", "warning", "it expires in");

    // The service itself.
    assert_eq!(daemon.terminate().code(), Some(0));
    let down = report();
    assert_eq!(down.code, Some(1));
    down.says("service", "wrong", "does not run").says("address", "wrong", "cannot be reached");
}

impl Report {
    /// As [`Report::is_well_but_for_the_engine`], where no proxy concerns the plugin.
    #[track_caller]
    fn is_well_but_for_the_engine_here(&self) {
        assert_eq!((self.code, self.with("wrong").len()), (Some(0), 0), "{}", self.all());
        assert_eq!(self.with("skipped").len(), 1, "{}", self.all());
    }
}

#[test]
fn a_storage_host_without_a_spec_file_of_its_own_is_well() {
    let web1 = Host::new("web1");
    let config = json!({ "listen": ["https://127.0.0.1:7443"], "spec": null });
    let _daemon = Daemon::setup().on(&web1).without_root().config(&config).start();
    let report = Report::on(&web1, &[]);
    assert_eq!((report.code, report.with("wrong").len()), (Some(0), 0), "{}", report.all());
    report.says("spec-file", "note", "\"spec\": null").says("service", "ok", "");
    // A machine that shows the spec file of its engine elsewhere is looked at there.
    let shown = Host::new("web2");
    let daemon = Daemon::setup().on(&shown).start();
    show_spec(&shown, &daemon);
    Report::on(&shown, &[]).says("service", "note", "no storage host").says("address", "ok", "");
}

#[test]
fn set_user_id_programs_and_a_missing_journal_are_told() {
    let storage = Storage::new();
    fs::set_permissions(storage.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let (open, closed, nosuid) = (storage.dir("open"), storage.dir("closed"), storage.dir("nosuid"));
    let (journal, none) = (storage.dir("journal"), storage.dir("none"));
    storage.tmpfs(&open);
    storage.tmpfs(&closed);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o710)).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "nosuid,mode=0755", "tmpfs"]).arg(&nosuid)).ok();
    storage.disk("journal", "ext4", 16).mount(&journal);
    let disk = storage.disk("none", "ext4", 16);
    run(Command::new("tune2fs").args(["-O", "^has_journal"]).arg(storage.path("none.img"))).ok();
    disk.mount(&none);
    let backends = ["open", "closed", "nosuid", "journal", "none"].map(|name| (name, storage.path(name)));
    let map: Value = backends.iter().map(|(name, path)| ((*name).to_owned(), json!(path))).collect();
    let daemon = Daemon::setup().backends(&map).start();

    let report = Report::of(&daemon.cli(&["doctor", "--json"]));
    let told = |check: &str, path: &Path| {
        let of_it = |finding: &&Value| finding["check"] == check && finding["subject"] == json!(path);
        let found: Vec<_> = report.findings.iter().filter(of_it).collect();
        assert!(found.len() < 2, "told twice: {found:?}");
        found.first().map(|finding| finding["verdict"].as_str().unwrap().to_owned())
    };
    assert_eq!(told("setuid", &open).as_deref(), Some("warning"), "{}", report.all());
    assert_eq!(told("setuid", &closed).as_deref(), Some("note"), "{}", report.all());
    assert_eq!(told("setuid", &nosuid).as_deref(), Some("ok"), "{}", report.all());
    assert_eq!(told("journal", &none).as_deref(), Some("warning"), "{}", report.all());
    assert_eq!((told("journal", &journal), told("journal", &open)), (None, None), "{}", report.all());
}
