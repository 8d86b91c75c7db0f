//! Tests of whole command lines against a service that answers from a script, and the golden files of every
//! help text.

use clap::CommandFactory as _;
use serde_json::{Value, json};

use super::*;
use crate::admin::client::testing::Service;

/// The outcome of a command line.
pub(super) struct Outcome {
    pub(super) code: u8,
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs a command line against `service`, with `typed` at the standard input if it is a terminal.
pub(super) fn run(service: &Service, line: &[&str], typed: Option<&str>) -> Outcome {
    let socket = service.socket();
    let line: Vec<&str> = line.iter().copied().chain(["--socket", socket.to_str().unwrap()]).collect();
    run_line(&line, typed)
}

/// Runs a command line that needs no service, or finds one by itself.
pub(super) fn offline(line: &[&str]) -> Outcome {
    run_line(line, None)
}

fn run_line(line: &[&str], typed: Option<&str>) -> Outcome {
    let (mut out, mut err, mut input) = (Vec::new(), Vec::new(), typed.unwrap_or_default().as_bytes());
    let mut shell = Shell {
        global: Global::default(),
        out: &mut out,
        err: &mut err,
        input: &mut input,
        interactive: typed.is_some(),
        width: None,
        colour: false,
        binary_welcome: true,
    };
    let code = main(["volhost"].iter().chain(line).map(OsString::from), &mut shell);
    Outcome { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

/// Returns a service with two volumes. One is mounted by a host whose engine was restarted since, and by
/// another host.
fn service() -> Service {
    let mount = |host: &str, stale: bool| {
        json!({"volume": "db", "host": host, "id": format!("{host}-id"), "count": 1,
               "since": "2026-01-02T03:04:05Z", "stale": stale})
    };
    let volume = |name: &str, mounts: usize| {
        json!({"name": name, "backend": "default", "path": format!("/srv/{name}"), "state": "online",
               "created_at": "2026-01-02T03:04:05Z", "options": {"uid": "70"}, "mounts": mounts})
    };
    Service::answering(move |verb, body| {
        let refused = |text: String| (400, json!({ "error": text }).to_string());
        let answer = match (verb, body["name"].as_str()) {
            ("/volume/ls", _) => json!([volume("db", 2), volume("web", 0)]),
            ("/volume/trash", _) => {
                json!([{"name": "old", "id": "1234", "backend": "default", "expires_at": null,
                "removed_at": "2026-01-02T03:04:05Z", "blocked": null}])
            }
            ("/volume/rm", Some("db")) => return refused("volume \"db\" is mounted by web1".into()),
            ("/volume/rm", Some("web")) => json!({"done": "removed"}),
            ("/volume/create", Some(name)) => volume(name, 0),
            ("/volume/inspect", Some("db")) => {
                let mut detail = volume("db", 2);
                detail["id"] = "77".into();
                detail["adopted"] = false.into();
                detail["durable"] = true.into();
                detail["known_to"] = json!(["web1", "web2"]);
                detail["mounted_by"] = json!([mount("web1", true), mount("web2", false)]);
                detail
            }
            ("/mount/ls", _) => json!([mount("web1", true), mount("web2", false)]),
            ("/mount/release", _) => {
                let (host, all) = (body["host"].as_str().unwrap(), body["all"] == true);
                match (host, all) {
                    ("web1", _) => json!({"released": [mount("web1", true)], "kept": []}),
                    ("web2", true) => json!({"released": [mount("web2", false)], "kept": []}),
                    ("web2", false) => json!({"released": [], "kept": [mount("web2", false)]}),
                    _ => json!({"released": [], "kept": []}),
                }
            }
            ("/host/add", Some(name)) => {
                json!({"name": name, "serial": "0a", "expires": "2036-01-02T03:04:05Z",
                "advertise": "https://store1:7443", "plugin_name": "volhost", "bundle": "YXJjaGl2ZQ=="})
            }
            ("/host/revoke", Some(name)) => json!({"name": name, "certificates": 1, "mounts": 2}),
            (_, name) => return refused(format!("there is no {name:?}")),
        };
        (200, answer.to_string())
    })
}

/// Returns the changes that the service was asked to make, without the queries.
fn releases(service: &Service) -> Vec<Value> {
    let asked = service.asked().into_iter();
    asked
        .filter(|(verb, body)| verb == "/mount/release" && body["dry_run"] == false)
        .map(|asked| asked.1)
        .collect()
}

#[test]
fn volumes_are_listed_as_dockers_are() {
    let service = service();
    let ran = run(&service, &["volume", "ls"], None);
    assert_eq!(
        ran.out,
        "NAME  BACKEND  STATE   MOUNTS  CREATED               PATH\n\
         db    default  online       2  2026-01-02T03:04:05Z  /srv/db\n\
         web   default  online       0  2026-01-02T03:04:05Z  /srv/web\n"
    );
    assert_eq!(run(&service, &["volume", "ls", "-q", "-f", "mounted=false"], None).out, "web\n");
    assert_eq!(run(&service, &["volume", "ls", "-q", "--trash"], None).out, "1234\n");
    let json: Value = serde_json::from_str(&run(&service, &["--json", "volume", "ls"], None).out).unwrap();
    assert_eq!(json[0]["options"]["uid"], "70");
    let ran = run(&service, &["volume", "ls", "--trash", "-f", "mounted=true"], None);
    assert_eq!((ran.code, &*ran.out), (2, ""));
    assert!(
        ran.err.starts_with("volhost: the filter mounted says nothing of removed volumes"),
        "{}",
        ran.err
    );
}

#[test]
fn creation_hands_options_over_and_prints_the_name() {
    let service = service();
    let ran = run(&service, &["volume", "create", "-o", "uid=70", "-o", "mode=0750", "new"], None);
    assert_eq!((ran.code, &*ran.out), (0, "new\n"));
    assert_eq!(
        service.asked(),
        [("/volume/create".to_owned(), json!({"name": "new", "options": {"uid": "70", "mode": "0750"}}))]
    );
    let ran = run(&service, &["volume", "create", "-o", "uid=70", "-o", "uid=71", "new"], None);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert_eq!(service.asked().len(), 1, "a contradiction is not asked");
}

#[test]
fn what_was_found_is_shown_although_another_was_not() {
    let service = service();
    let ran = run(&service, &["volume", "inspect", "nope", "db"], None);
    assert_eq!(ran.code, 1);
    assert_eq!(ran.err, "volhost: there is no Some(\"nope\")\n");
    assert!(ran.out.contains("\nknown to    web1, web2\n"), "{}", ran.out);
    assert!(ran.out.contains("\ndb      web1  web1-id      1  2026-01-02T03:04:05Z  yes\n"), "{}", ran.out);
    let ran = run(&service, &["volume", "inspect", "db", "--json"], None);
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()[0]["mounted_by"][1]["host"], "web2");
}

#[test]
fn force_excuses_what_is_missing_and_nothing_else() {
    let service = service();
    let ran = run(&service, &["volume", "rm", "nope", "web"], None);
    assert_eq!((ran.code, &*ran.out), (1, "web\n"));
    let ran = run(&service, &["volume", "rm", "-f", "nope", "web"], None);
    assert_eq!((ran.code, &*ran.out, &*ran.err), (0, "web\n", ""));
    let ran = run(&service, &["volume", "rm", "-f", "nope", "db"], None);
    assert_eq!((ran.code, &*ran.err), (1, "volhost: volume \"db\" is mounted by web1\n"));
    let ran = run(&service, &["volume", "rm", "nope", "db"], None);
    assert_eq!(ran.err.lines().count(), 2, "each failure has its line: {}", ran.err);
}

#[test]
fn a_service_that_is_gone_is_told_once() {
    let service = service();
    std::fs::remove_file(service.socket()).unwrap();
    let ran = run(&service, &["volume", "rm", "db", "web"], None);
    assert_eq!((ran.code, ran.err.lines().count()), (1, 1), "{}", ran.err);
}

#[test]
fn data_is_deleted_at_once_only_after_a_yes() {
    let service = service();
    let ran = run(&service, &["volume", "rm", "--now", "web"], None);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("give --yes"), "{}", ran.err);
    let ran = run(&service, &["volume", "rm", "--now", "web"], Some("n\n"));
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("Delete the data of web for good? [y/N]"), "{}", ran.err);
    assert_eq!(service.asked(), [], "nothing was asked for");
    assert_eq!(run(&service, &["volume", "rm", "--now", "web"], Some("y\n")).out, "web\n");
    assert_eq!(run(&service, &["volume", "rm", "--now", "--yes", "web"], None).out, "web\n");
    assert_eq!(service.asked()[0].1, json!({"name": "web", "now": true}));
}

#[test]
fn stale_mounts_are_shown_and_released_after_a_yes() {
    let service = service();
    let ran = run(&service, &["mount", "release", "db", "web1"], Some("n\n"));
    assert_eq!((ran.code, &*ran.out), (1, ""));
    assert!(ran.err.starts_with("VOLUME  HOST  ID "), "{}", ran.err);
    assert!(ran.err.contains("Release 1 mount of db by web1? [y/N] "), "{}", ran.err);
    assert_eq!(run(&service, &["mount", "release", "db", "web1"], None).code, 1);
    assert!(releases(&service).is_empty());
    let ran = run(&service, &["mount", "release", "db", "web1", "web1-"], Some("y\n"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("released 1 mount\nVOLUME"), "{}", ran.out);
    assert_eq!(
        releases(&service),
        [json!({"volume": "db", "host": "web1", "id": "web1-id", "all": false, "dry_run": false})]
    );
}

#[test]
fn mounts_that_may_be_alive_are_released_only_for_the_hosts_name() {
    let service = service();
    let ran = run(&service, &["mount", "release", "db", "web2", "--yes"], None);
    assert_eq!((ran.code, &*ran.out), (1, ""));
    assert!(ran.err.contains("1 mount of db by web2 may be alive"), "{}", ran.err);
    assert!(ran.err.contains("volhost mount release db web2 --all"), "{}", ran.err);
    let ran = run(&service, &["mount", "release", "db", "web2", "--all"], Some("y\n"));
    assert_eq!(ran.code, 1, "a yes is not enough");
    assert!(releases(&service).is_empty());
    let ran = run(&service, &["mount", "release", "db", "web2", "--all"], Some("web2\n"));
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(releases(&service).len(), 1);
    let ran = run(&service, &["mount", "release", "db", "web3"], None);
    assert_eq!((ran.code, &*ran.err), (0, "web3 has no mount of db: there is nothing to release\n"));
}

#[test]
fn a_bundle_is_written_and_an_existing_file_refused_before_the_service_is_asked() {
    let service = service();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web1.tar");
    let path = file.to_str().unwrap();
    let ran = run(&service, &["host", "add", "web1", "-o", path], None);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(std::fs::read(&file).unwrap(), b"archive");
    assert!(ran.out.contains("tar -C / -xf web1.tar"), "{}", ran.out);
    let ran = run(&service, &["host", "add", "web1", "-o", path], None);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("exists: name another file, or give --force"), "{}", ran.err);
    assert_eq!(service.asked().len(), 1);
    let ran = run(&service, &["host", "add", "web1", "-o", path, "--force", "--json"], None);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&json["file"], json.get("bundle")), (&json!(path), None), "the key is in the file alone");
    assert_eq!(run(&service, &["host", "add", "web1", "-o", "-"], None).out, "archive");
    assert_eq!(run(&service, &["host", "add", "web1", "-o", "-", "--json"], None).code, 2);
}

#[test]
fn a_refused_host_leaves_no_file() {
    let service = Service::answering(|_, _| (400, r#"{"error":"no CA of our own"}"#.into()));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("web1.tar");
    let ran = run(&service, &["host", "add", "web1", "-o", file.to_str().unwrap()], None);
    assert_eq!((ran.code, &*ran.err), (1, "volhost: no CA of our own\n"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn a_host_is_revoked_without_a_question_and_its_mounts_are_told() {
    let service = service();
    let ran = run(&service, &["host", "revoke", "web1"], None);
    assert!(ran.out.starts_with("web1: 1 certificate revoked\n2 mounts of web1 stay counted"), "{}", ran.out);
}

#[test]
fn an_error_is_one_line_that_commands_no_terminal() {
    let service = Service::answering(|_, _| (500, json!({"error": "first\nsecond\u{1b}[2J"}).to_string()));
    let ran = run(&service, &["status"], None);
    assert_eq!(ran.err, "volhost: first; second [2J\n");
}

/// An output whose writes fail with one error.
struct Failing(io::ErrorKind);

impl Write for Failing {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(self.0.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Err(self.0.into())
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let service = service();
    for (kind, expected) in [(io::ErrorKind::BrokenPipe, 0), (io::ErrorKind::StorageFull, 1)] {
        let (mut out, mut err, mut input) = (Failing(kind), Vec::new(), io::empty());
        let mut shell = Shell {
            global: Global::default(),
            out: &mut out,
            err: &mut err,
            input: &mut input,
            interactive: false,
            width: None,
            colour: false,
            binary_welcome: true,
        };
        let socket = service.socket();
        let line = ["volhost", "volume", "ls", "--socket"].map(OsString::from);
        assert_eq!(main(line.into_iter().chain([socket.into()]), &mut shell), expected, "{kind}");
        assert_eq!(err.is_empty(), expected == 0);
    }
}

#[test]
fn global_flags_stand_before_or_after_the_command() {
    for line in [
        ["volhost", "--root", "/t", "--json", "volume", "ls"],
        ["volhost", "volume", "--root", "/t", "ls", "--json"],
        ["volhost", "volume", "ls", "--json", "--root", "/t"],
    ] {
        let global = Cli::try_parse_from(line).unwrap().global;
        assert!(global.json && global.root.as_deref() == Some(Path::new("/t")), "{line:?}");
    }
}

#[test]
fn wrong_usage_is_told_with_what_is_near() {
    let error = |line: &[&str]| {
        let error = Cli::try_parse_from(["volhost"].iter().chain(line)).unwrap_err();
        assert_eq!(error.exit_code(), i32::from(exit::USAGE));
        error.to_string()
    };
    assert!(error(&["vloume", "ls"]).contains("'volume'"));
    assert!(error(&["volume", "ls", "--filtre", "x"]).contains("'--filter'"));
    let text = error(&["volume", "ls", "--filter", "bakend=x"]);
    assert!(text.contains("did you mean \"backend\"?"), "{text}");
    assert!(error(&["volume", "rm"]).contains("<NAME>"));
}

#[test]
fn the_service_is_asked_where_the_configuration_says() {
    let service = service();
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc/volhost");
    std::fs::create_dir_all(&etc).unwrap();
    let path = root.path().to_str().unwrap();
    let default = offline(&["--root", path, "volume", "ls", "-q"]);
    assert!(
        default.err.contains(&format!("no admin socket at {path}/run/volhost/admin.sock")),
        "{}",
        default.err
    );
    let configured = json!({"admin": service.socket()}).to_string();
    std::fs::write(etc.join("volhost.json"), &configured).unwrap();
    assert_eq!(offline(&["--root", path, "volume", "ls", "-q"]).out, "db\nweb\n");
    let other = root.path().join("other.json");
    std::fs::write(&other, &configured).unwrap();
    std::fs::write(etc.join("volhost.json"), "{").unwrap();
    let other = other.to_str().unwrap();
    assert_eq!(offline(&["--root", path, "--config", other, "volume", "ls", "-q"]).out, "db\nweb\n");
    let fallen_back = offline(&["--root", path, "volume", "ls"]);
    assert!(fallen_back.err.starts_with("volhost: the configuration has faults"), "{}", fallen_back.err);
    std::fs::write(other, "{").unwrap();
    let named = offline(&["--root", path, "--config", other, "volume", "ls"]);
    assert_eq!(named.code, exit::CONFIG, "another service than the named one is never asked");
}

/// Collects the help of a command and its subcommands, with the names of their golden files.
fn helps(command: &mut clap::Command, name: &str, into: &mut Vec<(String, String)>) {
    let text = command.render_long_help().to_string();
    let trimmed: Vec<&str> = text.lines().map(str::trim_end).collect();
    into.push((format!("{name}.txt"), trimmed.join("\n").trim_end().to_owned() + "\n"));
    for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
        helps(below, &format!("{name}-{}", below.get_name()), into);
    }
}

#[test]
fn every_help_text_is_as_its_golden_file() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/help");
    let mut command = Cli::command().term_width(90);
    command.build();
    let mut texts = Vec::new();
    helps(&mut command, "volhost", &mut texts);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(&directory).unwrap();
        for entry in std::fs::read_dir(&directory).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (file, text) in &texts {
            std::fs::write(directory.join(file), text).unwrap();
        }
    }
    for (file, text) in &texts {
        let golden = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
        assert_eq!(*text, golden, "{file} differs: look at it, then UPDATE_GOLDEN=1 cargo test --lib cli::");
    }
    let files = std::fs::read_dir(&directory).unwrap().count();
    assert_eq!(files, texts.len(), "{} has a file of a command that is gone", directory.display());
}

#[test]
fn the_command_line_contradicts_itself_nowhere() {
    Cli::command().debug_assert();
}

#[test]
fn errors_are_json_where_results_are() {
    let service = service();
    let errors = |line: &[&str], code: u8| -> Vec<Value> {
        let ran = run(&service, line, None);
        assert_eq!(ran.code, code, "{line:?}: {}", ran.err);
        ran.err
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    };
    let refused = "volume \"db\" is mounted by web1";
    assert_eq!(errors(&["volume", "rm", "--yes", "db", "--json"], 1), [json!({ "error": refused })]);
    let each = errors(&["--json", "volume", "rm", "--yes", "db", "none"], 1);
    assert_eq!(each.len(), 2, "{each:?}");
    assert_eq!(each[0], json!({ "error": refused }));
    for usage in [
        &["--json", "volume", "frobnicate"][..],
        &["volume", "ls", "--frob", "--json"],
        &["mount", "release", "--json"],
    ] {
        let told = errors(usage, 2);
        assert!(told.len() == 1 && told[0]["error"].as_str().is_some_and(|text| text.len() > 10), "{told:?}");
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/volhost")).unwrap();
    std::fs::write(root.path().join("etc/volhost/volhost.json"), r#"{"listne": [], "scope": "galactic"}"#)
        .unwrap();
    let ran = offline(&["spec", "show", "--json", "--root", root.path().to_str().unwrap()]);
    assert_eq!((ran.code, &*ran.out), (78, ""));
    for line in ran.err.lines() {
        let told: Value = serde_json::from_str(line).unwrap();
        assert!(told["error"].as_str().unwrap().contains("volhost.json:1:"), "{line}");
    }
    assert_eq!(ran.err.lines().count(), 2);
}
