//! Metrics and health, as monitoring systems ask for them: with a real Prometheus, and with faults that are real.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::authority::{Authority, from_now};
use crate::harness::daemon::Setup;
use crate::harness::etcd::Loss;
use crate::harness::http::{Answer, Client, Identity, Target};
use crate::harness::storage::Storage;
use crate::harness::wait::{SOON, until};
use crate::harness::{Cluster, Daemon, Fleet, Host, mortal, scratch, signal};
use crate::shaky::{mounting, named};

/// How long Prometheus may take to notice something.
const LONG: Duration = Duration::from_secs(60);

/// A service that is monitored over plain HTTP.
fn monitored() -> Setup<'static> {
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["metrics"] = json!("http://127.0.0.1:0");
    setup.config(&config)
}

fn ask(daemon: &Daemon<'_>, path: &str) -> Answer {
    Client::connect(&Target::Tcp(daemon.metrics())).unwrap().get(path, &[]).unwrap()
}

fn scrape(daemon: &Daemon<'_>) -> String {
    let answer = ask(daemon, "/metrics");
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).unwrap()
}

/// The rows of the documentation's table: each metric's name, labels and meaning, as a scrape tells them.
fn rows(text: &str) -> Vec<String> {
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let row = |(name, help): (&str, &str)| {
        let mut labels = BTreeSet::new();
        for line in text.lines() {
            let Some((_, rest)) = line.strip_prefix(name).and_then(|rest| rest.split_once('{')) else {
                continue;
            };
            let (inside, _) = rest.rsplit_once('}').unwrap();
            labels.extend(
                inside.split("\",").filter_map(|pair| Some(format!("`{}`", pair.split_once('=')?.0))),
            );
        }
        labels.remove("`le`");
        let labels = labels.into_iter().collect::<Vec<_>>().join(", ");
        format!("| `{name}` | {labels} | {} |", help.trim_end_matches('.'))
    };
    helps.map(row).collect()
}

/// The value of a metric with these labels as they are written.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
}

#[test]
fn a_scrape_counts_what_there_is_and_what_was_done() {
    let daemon = monitored().start();
    let mut engine = daemon.tls();
    for name in ["db", "web", "gone"] {
        assert_eq!(engine.volume("Create", &named(name)).unwrap().status, 200);
    }
    for id in ["a", "b"] {
        assert_eq!(engine.volume("Mount", &mounting("db", id)).unwrap().status, 200);
    }
    assert_eq!(engine.volume("Remove", &named("gone")).unwrap().status, 200);
    assert_eq!(engine.volume("Get", &named("none")).unwrap().status, 400);
    let text = scrape(&daemon);
    for (series, expected) in [
        ("volhost_volumes{backend=\"default\"}", 2.0),
        ("volhost_mounts{backend=\"default\"}", 2.0),
        ("volhost_removed_volumes{backend=\"default\"}", 1.0),
        ("volhost_stale_mounts", 0.0),
        ("volhost_backend_up{backend=\"default\"}", 1.0),
        ("volhost_requests_total{rpc=\"VolumeDriver.Create\",code=\"200\"}", 3.0),
        ("volhost_requests_total{rpc=\"VolumeDriver.Get\",code=\"400\"}", 1.0),
        ("volhost_request_seconds_count{rpc=\"VolumeDriver.Mount\"}", 2.0),
        ("volhost_connections{listener=\"https\"}", 1.0),
        ("volhost_connections{listener=\"metrics\"}", 1.0),
        ("volhost_handshakes_total{result=\"accepted\"}", 1.0),
        ("volhost_rejected_reload", 0.0),
        ("volhost_catalog_up", 1.0),
        ("volhost_cloned_hosts", 0.0),
    ] {
        assert_eq!(value(&text, series), expected, "{series}");
    }
    assert!(value(&text, "volhost_catalog_seconds_count{op=\"change\"}") >= 6.0);
    assert!(value(&text, "volhost_backend_bytes{backend=\"default\",kind=\"free\"}") > 0.0);
    let build = format!("volhost_build_info{{version=\"{}\",catalog=\"sqlite\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(value(&text, &build), 1.0);
    let node = daemon.status()["node"].as_str().unwrap().to_owned();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((value(&text, &format!("volhost_host_last_seen_seconds{{host=\"{node}\"}}")) - now).abs() < 60.0);
    for series in [
        "volhost_certificate_expiry_seconds{which=\"server\"}".to_owned(),
        "volhost_certificate_expiry_seconds{which=\"client_ca\"}".to_owned(),
        format!("volhost_host_certificate_expiry_seconds{{host=\"{node}\"}}"),
    ] {
        assert!(value(&text, &series) > now + 300.0 * 86400.0, "{series}");
    }
    assert!(value(&text, "process_resident_memory_bytes") > 1e6);
    assert!(value(&text, "process_open_fds") > 3.0);

    // An engine that is started again makes its mounts stale, and a rejected reload shows.
    assert_eq!(engine.call("/Plugin.Activate", &json!({})).unwrap().status, 200);
    until("the mounts to be stale", SOON, || {
        (value(&scrape(&daemon), "volhost_stale_mounts") == 2.0).then_some(())
    });
    daemon.put("etc/volhost/backends.json", "{");
    until("the reload to be rejected", SOON, || {
        (value(&scrape(&daemon), "volhost_rejected_reload") == 1.0).then_some(())
    });
    let text = scrape(&daemon);
    assert_eq!(value(&text, "volhost_reloads_total{unit=\"configuration\",result=\"rejected\"}"), 1.0);
    assert_eq!(ask(&daemon, "/readyz").status, 200, "what was in force is served");

    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations/monitoring.md"))
        .unwrap();
    let (_, table) = page.split_once("<!-- metrics -->\n").unwrap();
    let mut told: Vec<_> = table.lines().take_while(|line| line.starts_with('|')).skip(2).collect();
    told.sort_unstable();
    let mut rows = rows(&text);
    rows.sort_unstable();
    assert_eq!(told, rows, "docs/operations/monitoring.md needs\n{}", rows.join("\n"));

    let mut lint = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    lint.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let told = lint.wait_with_output().unwrap();
    let words = [told.stdout, told.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(told.status.success() && words.is_empty(), "promtool: {words}");
}

#[test]
fn formats_paths_and_methods() {
    let daemon = monitored().start();
    let mut client = Client::connect(&Target::Tcp(daemon.metrics())).unwrap();
    let plain = client.get("/metrics", &[]).unwrap();
    assert_eq!(plain.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let open = client
        .get("/metrics", &[("Accept", "application/openmetrics-text;version=1.0.0,text/plain")])
        .unwrap();
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.body.ends_with(b"# EOF\n"));
    // A browser is welcome here, and nowhere else.
    assert_eq!(client.get("/healthz", &[("Sec-Fetch-Mode", "navigate")]).unwrap().status, 200);
    for path in ["/index.html", "/metric", "/VolumeDriver.List"] {
        assert_eq!(client.get(path, &[]).unwrap().status, 404, "{path}");
    }
    let answer = client.call("/VolumeDriver.Create", &json!({ "Name": "db" })).unwrap();
    assert_eq!(answer.status, 404);
    assert_eq!(daemon.volumes(), [""; 0]);
    // Engines are not told of metrics, and whoever asks for them is no host.
    assert_eq!(daemon.tls().get("/metrics", &[]).unwrap().status, 404);
    let hosts = daemon.cli(&["host", "ls", "--json"]).json();
    assert!(hosts.as_array().unwrap().iter().all(|host| host["name"] != "anonymous"), "{hosts}");
}

#[test]
fn over_tls_clients_prove_themselves_unless_anyone_is_served() {
    for (clients, stranger_is_served) in [("verified", false), ("anyone", true)] {
        let setup = Daemon::setup();
        let mut config = setup.standard();
        config["metrics"] = json!("https://127.0.0.1:0");
        config["metrics_clients"] = json!(clients);
        let daemon = setup.config(&config).start();
        let identity = daemon.add_host("web9", &["--advertise", "https://127.0.0.1:1"], &daemon.path("web9"));
        let mut known = Client::connect(&Target::Tls(daemon.metrics(), identity.clone())).unwrap();
        assert_eq!(known.get("/healthz", &[]).unwrap().status, 200);
        let dialled = std::net::TcpStream::connect(daemon.metrics()).unwrap();
        dialled.set_read_timeout(Some(SOON)).unwrap();
        let stranger =
            Client::tls(dialled, &identity.ca, None).and_then(|mut client| client.get("/healthz", &[]));
        assert_eq!(stranger.is_ok(), stranger_is_served, "{clients}: {stranger:?}");
        let hosts = daemon.cli(&["host", "ls", "--json"]).json();
        let web9 = hosts.as_array().unwrap().iter().find(|host| host["name"] == "web9").unwrap();
        assert_eq!(web9["last_seen"], Value::Null, "a scrape is no sign of an engine");
        // A revoked host sees nothing any more.
        daemon.cli(&["host", "revoke", "web9"]).ok();
        assert!(known.is_closed(), "{clients}: an open connection outlived the revocation");
    }
}

#[test]
fn ready_says_why_not() {
    // A backend that hangs makes nothing unready.
    let storage = Storage::new();
    let shaky = storage.shaky("shaky");
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["metrics"] = json!("http://127.0.0.1:0");
    let map = json!({ "default": shaky.path() });
    let mut daemon = setup.config(&config).backends(&map).start();
    assert_eq!(ask(&daemon, "/readyz").status, 200);
    let hanging = shaky.hang();
    let mut client = daemon.unix();
    let request = std::thread::spawn(move || client.call("/VolumeDriver.Create", &named("slow")));
    assert!(shaky.control().wait_for_hanging(1, SOON));
    assert_eq!((ask(&daemon, "/readyz").status, ask(&daemon, "/healthz").status), (200, 200));
    until("the backend to count as down", SOON, || {
        (value(&scrape(&daemon), "volhost_backend_up{backend=\"default\"}") == 0.0).then_some(())
    });

    // While it drains it is alive and not ready; engines are not let in any more.
    signal("TERM", daemon.pid());
    until("it to be not ready", SOON, || (ask(&daemon, "/readyz").status == 503).then_some(()));
    assert_eq!(String::from_utf8(ask(&daemon, "/readyz").body).unwrap(), "the service is stopping\n");
    assert_eq!(ask(&daemon, "/healthz").status, 200);
    drop(hanging);
    request.join().unwrap().ok();
    assert!(daemon.ended().success());

    // A catalog that cannot be written is named.
    let directory = storage.dir("state");
    let mut config = Daemon::setup().standard();
    config["metrics"] = json!("http://127.0.0.1:0");
    config["catalog"] = json!(format!("sqlite:{}/catalog.db", directory.display()));
    let daemon = Daemon::setup().config(&config).start();
    std::fs::write(directory.join("other"), "somebody's").unwrap();
    std::fs::rename(directory.join("other"), directory.join("catalog.db")).unwrap();
    until("the catalog's fault", SOON, || (ask(&daemon, "/readyz").status == 503).then_some(()));
    let told = String::from_utf8(ask(&daemon, "/readyz").body).unwrap();
    assert!(
        told.starts_with("the catalog takes no changes: ") && told.contains("replaced by another file"),
        "{told}"
    );
    assert_eq!(value(&scrape(&daemon), "volhost_catalog_up"), 0.0);
}

#[test]
fn an_instance_without_etcd_is_alive_and_not_ready() {
    let mut fleet =
        Fleet::of(Cluster::single().start(), 1).config(json!({ "metrics": "http://127.0.0.1:0" })).start();
    assert_eq!(fleet.client(0, "web1").volume("Create", &named("db")).unwrap().status, 200);
    let text = scrape(&fleet.instances[0]);
    assert_eq!(value(&text, "volhost_volumes{backend=\"default\"}"), 1.0);
    assert!(value(&text, "volhost_catalog_seconds_count{op=\"sync\"}") > 0.0);
    let prometheus = Prometheus::of(&[fleet.instances[0].metrics()]);
    assert_eq!(prometheus.firing(), BTreeSet::new());
    fleet.etcd.lose_quorum(Loss::Frozen);
    let daemon = &fleet.instances[0];
    until("it to be not ready", LONG, || (ask(daemon, "/readyz").status == 503).then_some(()));
    assert_eq!(ask(daemon, "/healthz").status, 200);
    prometheus.until_firing("VolhostCatalogDown");
    let text = scrape(daemon);
    assert_eq!(value(&text, "volhost_catalog_up"), 0.0);
    assert_eq!(value(&text, "volhost_volumes{backend=\"default\"}"), 1.0, "it is told from memory");
    fleet.etcd.recover();
    let daemon = &fleet.instances[0];
    until("it to be ready again", LONG, || (ask(daemon, "/readyz").status == 200).then_some(()));
}

#[test]
fn the_page_tells_what_is_wrong_first_and_names_only_to_whom_it_may() {
    let storage = Storage::new();
    let setup = Daemon::setup();
    let mut config = setup.standard();
    config["metrics"] = json!("https://127.0.0.1:0");
    config["metrics_clients"] = json!("anyone");
    let map = json!({ "default": storage.dir("good"), "away": storage.dir("away") });
    let daemon = setup.config(&config).backends(&map).start();
    let identity = daemon.add_host("web9", &["--advertise", "https://127.0.0.1:1"], &daemon.path("web9"));
    let mut engine = daemon.tls();
    assert_eq!(engine.volume("Create", &named("secret-volume")).unwrap().status, 200);
    assert_eq!(engine.volume("Mount", &mounting("secret-volume", "a")).unwrap().status, 200);
    let page = |client: &mut Client| {
        let answer = client.get("/", &[("Sec-Fetch-Mode", "navigate")]).unwrap();
        assert_eq!(answer.header("content-type"), Some("text/html; charset=utf-8"));
        let policy = answer.header("content-security-policy").unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
        String::from_utf8(answer.body).unwrap()
    };
    let mut known = Client::connect(&Target::Tls(daemon.metrics(), identity.clone())).unwrap();
    let text = page(&mut known);
    for word in ["All is well", "secret-volume", "web9", "<td>default</td>", "<td>away</td>"] {
        assert!(text.contains(word), "{word} is not in\n{text}");
    }
    assert!(!text.contains("<script") && !text.contains("src="), "{text}");

    // What is wrong comes first, with its remedy and the command.
    std::fs::rename(storage.path("away"), storage.path("elsewhere")).unwrap();
    daemon.put("etc/volhost/backends.json", "{ \"<script>alert(1)</script>\": \"/x\" }");
    until("the faults to be told", SOON, || {
        let text = page(&mut known);
        let at = |word: &str| text.find(word);
        let (verdict, backend) = (at("2 things are wrong")?, at("Backend away is offline")?);
        let (reload, backends) = (at("a changed file was rejected")?, at("<h2 id=\"backends\">")?);
        assert!(verdict < backend && backend < reload && reload < backends, "{text}");
        assert!(text.contains("volhost backend ls") && text.contains("is the share mounted?"), "{text}");
        assert!(!text.contains("<script>alert") && text.contains("alert(1)"), "{text}");
        Some(())
    });
}

#[test]
fn the_page_names_nothing_to_strangers() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    web2.join(&web1);
    let at = |port: u16| format!("https://{}:{port}", Host::GATEWAY);
    let config = json!({
        "node": "web1", "listen": ["https://127.0.0.1:7443", at(7443)],
        "metrics": at(9743), "metrics_clients": "anyone",
    });
    let daemon = Daemon::setup().on(&web1).config(&config).start();
    daemon.cli(&["volume", "create", "secret-volume"]).ok();
    let identity = daemon.add_host("web2", &["--advertise", &at(7443)], &daemon.path("web2"));
    let engine = Client::tls(
        web2.dial(format!("{}:7443", Host::GATEWAY).parse().unwrap()).unwrap(),
        &identity.ca,
        Some(&identity),
    );
    assert_eq!(engine.unwrap().volume("Mount", &mounting("secret-volume", "a")).unwrap().status, 200);
    let page = |identity_of_client: Option<&Identity>| {
        let stream = web2.dial(daemon.metrics()).unwrap();
        let mut client = Client::tls(stream, &identity.ca, identity_of_client).unwrap();
        String::from_utf8(client.get("/", &[]).unwrap().body).unwrap()
    };
    let names = |text: &str| ["secret-volume", "web2"].map(|name| text.contains(name));
    assert_eq!(names(&page(Some(&identity))), [true, true]);
    let text = page(None);
    assert_eq!(names(&text), [false, false], "{text}");
    assert!(text.contains("All is well") && text.contains("1 mount of 1 volume"), "{text}");
}

const ETC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc");
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/prometheus/volhost.rules.yml");

fn promtool(words: &[&str]) -> String {
    let told = Command::new("promtool").args(words).output().unwrap();
    let words = [told.stdout, told.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(told.status.success(), "{words}");
    words
}

/// A real Prometheus that scrapes volhosts once a second.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    _dir: TempDir,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Prometheus {
    /// Starts one for these addresses, with the alerts of `etc`, which do not wait here before they fire.
    fn of(targets: &[SocketAddr]) -> Self {
        let dir = scratch();
        let rules: Vec<_> = std::fs::read_to_string(RULES)
            .unwrap()
            .lines()
            .filter(|line| !line.trim_start().starts_with("for: "))
            .map(str::to_owned)
            .collect();
        std::fs::write(dir.path().join("rules.yml"), rules.join("\n")).unwrap();
        let config = json!({
            "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
            "rule_files": ["rules.yml"],
            "scrape_configs": [{
                "job_name": "volhost",
                "static_configs": [{ "targets": targets.iter().map(ToString::to_string).collect::<Vec<_>>() }],
            }],
        });
        // JSON is YAML.
        std::fs::write(dir.path().join("prometheus.yml"), config.to_string()).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = mortal("prometheus")
            .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { child, address, _dir: dir };
        until("Prometheus to have scraped", LONG, || (started.value("min(up)")? == "1").then_some(()));
        started
    }

    fn ask(&self, path: &str) -> Option<Value> {
        Some(Client::connect(&Target::Tcp(self.address)).ok()?.get(path, &[]).ok()?.json()["data"].clone())
    }

    /// The first value that a query gives; `None` if it gives none.
    fn value(&self, query: &str) -> Option<String> {
        let escape = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let query: String = query.bytes().map(escape).collect();
        let data = self.ask(&format!("/api/v1/query?query={query}"))?;
        data["result"][0]["value"][1].as_str().map(str::to_owned)
    }

    fn firing(&self) -> BTreeSet<String> {
        let data = self.ask("/api/v1/alerts").unwrap_or_default();
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        alerts.iter().map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    fn until_firing(&self, alert: &str) {
        until(&format!("{alert} to fire"), LONG, || self.firing().contains(alert).then_some(()));
    }
}

#[test]
fn each_alert_fires_with_its_words_and_has_its_page() {
    promtool(&["check", "rules", RULES]);
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/prometheus/rules.test.yml");
    promtool(&["test", "rules", cases]);
    promtool(&["check", "config", "--syntax-only", &format!("{ETC}/prometheus/scrape.yml")]);
    let (rules, tested) = (std::fs::read_to_string(RULES).unwrap(), std::fs::read_to_string(cases).unwrap());
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations/monitoring.md"))
        .unwrap();
    for alert in alerts {
        assert!(tested.contains(&format!("alertname: {alert}\n    exp_alerts")), "{alert} has no case");
        assert!(
            page.contains(&format!("| `{alert}` |")),
            "docs/operations/monitoring.md does not tell of {alert}"
        );
    }
    for link in rules.lines().filter_map(|line| line.trim().strip_prefix("documentation: ")) {
        let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
        let text = std::fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let is_heading = |line: &str| {
            line.starts_with('#')
                && line.trim_start_matches(['#', ' ']).to_lowercase().replace(' ', "-") == anchor
        };
        assert!(anchor.is_empty() || text.lines().any(is_heading), "{link} leads nowhere");
    }
}

#[test]
fn alerts_fire_when_something_is_wrong_and_not_before() {
    let storage = Storage::new();
    let disk = storage.dir("disk");
    storage.tmpfs(&disk);
    let (small, catalog) = (disk.join("small"), storage.dir("catalog"));
    std::fs::create_dir(&small).unwrap();
    let map = json!({ "default": storage.dir("good"), "away": storage.dir("away"), "small": small });
    let daemon = monitored().backends(&map).start();
    let authority = Authority::new("the company's CA");
    let (setup, pair) = (Daemon::setup(), authority.server());
    let mut config = setup.standard();
    config["metrics"] = json!("http://127.0.0.1:0");
    config["catalog"] = json!(format!("sqlite:{}/catalog.db", catalog.display()));
    config["tls"] = json!({ "cert": setup.path("tls/server.crt"), "key": setup.path("tls/server.key") });
    let setup = setup.config(&config).file("tls/server.crt", &pair.cert).file("tls/server.key", &pair.key);
    let mut other = setup.start();
    let prometheus = Prometheus::of(&[daemon.metrics(), other.metrics()]);
    let mut engine = daemon.tls();
    assert_eq!(engine.volume("Create", &named("db")).unwrap().status, 200);
    assert_eq!(engine.volume("Mount", &mounting("db", "a")).unwrap().status, 200);
    until("its mount to be scraped", LONG, || {
        (prometheus.value("sum(volhost_mounts)")? == "1").then_some(())
    });
    assert_eq!(prometheus.firing(), BTreeSet::new());

    assert_eq!(engine.call("/Plugin.Activate", &json!({})).unwrap().status, 200);
    prometheus.until_firing("VolhostStaleMounts");
    std::fs::rename(storage.path("away"), storage.path("elsewhere")).unwrap();
    prometheus.until_firing("VolhostBackendDown");
    let free = rustix::fs::statvfs(&small).unwrap();
    std::fs::write(
        disk.join("ballast"),
        vec![0; usize::try_from(free.f_bavail * free.f_frsize * 19 / 20).unwrap()],
    )
    .unwrap();
    prometheus.until_firing("VolhostBackendNearlyFull");
    daemon.put("etc/volhost/backends.json", "{");
    prometheus.until_firing("VolhostReloadRejected");
    std::fs::write(catalog.join("other"), "somebody's").unwrap();
    std::fs::rename(catalog.join("other"), catalog.join("catalog.db")).unwrap();
    prometheus.until_firing("VolhostCatalogDown");
    // One machine's certificate on another machine: calls from both addresses in turn.
    let identity = daemon.add_host("web1", &["--advertise", "https://127.0.0.1:7443"], &daemon.path("web1"));
    until("web1 to be known as cloned", LONG, || {
        for last in [11, 12] {
            let mut client = crate::clones::from(&daemon, last, &identity);
            assert_eq!(client.call("/VolumeDriver.List", &json!({})).unwrap().status, 200);
        }
        prometheus.firing().contains("VolhostHostCloned").then_some(())
    });
    let near = authority.server_until(from_now(7));
    for (file, pem) in [("tls/server.key", near.key), ("tls/server.crt", near.cert)] {
        other.put(file, &pem);
    }
    prometheus.until_firing("VolhostCertificateExpires");
    other.kill9();
    prometheus.until_firing("VolhostDown");
}

#[test]
fn every_panel_of_the_dashboard_has_data() {
    let daemon = monitored().start();
    let mut engine = daemon.tls();
    let prometheus = Prometheus::of(&[daemon.metrics()]);
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{ETC}/grafana/volhost.json")).unwrap())
            .unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut missing: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(missing.len() > 20, "{missing:?}");
    let mut number = 0;
    until("data for every panel", LONG, || {
        number += 1;
        for (rpc, body) in [
            ("Create", named("db")),
            ("Mount", mounting("db", &format!("c{number}"))),
            ("Get", named("none")),
        ] {
            engine.volume(rpc, &body).unwrap();
        }
        if number == 1 {
            daemon.cli(&["reload"]).ok();
        }
        missing.retain(|query| {
            let query = query.replace("$instance", ".*").replace("$__rate_interval", "10s");
            prometheus.value(&query).is_none()
        });
        missing.is_empty().then_some(())
    });
}
