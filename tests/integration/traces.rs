//! What real engines were recorded to send (`tests/data/traces`) is sent to volhost, byte for byte, over the kind of
//! transport it was recorded on, and the answers are compared with those that the engines were content with.
//!
//! The recorder was a bare plugin that knew no rules, so five things are expected otherwise:
//! - it answered 500 to what does not exist; volhost answers 400, because the caller can mend that;
//! - it took any option; volhost refuses `size`, naming it, and the Create is then sent again without it;
//! - it took any name; volhost refuses `a b/../c` with 400, whatever the call;
//! - its mount points lay elsewhere;
//! - it said nothing of a volume's state in `Status` that could be compared.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::Daemon;
use crate::harness::http::{Answer, Client};
use crate::harness::state::Mount;

/// Options that engines were recorded with and that volhost does not know.
const UNKNOWN_OPTIONS: [&str; 1] = ["size"];

#[test]
fn docker_20_10_is_answered_as_it_was_recorded() {
    replay("docker-20.10.24", Daemon::tls);
}

#[test]
fn docker_26_1_is_answered_as_it_was_recorded() {
    replay("docker-26.1.5", Daemon::tls);
}

#[test]
fn docker_28_5_is_answered_as_it_was_recorded() {
    replay("docker-28.5.2", Daemon::tls);
}

#[test]
fn podman_4_3_is_answered_as_it_was_recorded() {
    replay("podman-4.3.1", Daemon::unix);
}

/// One recorded call.
struct Recorded {
    line: String,
    headers: Vec<(String, String)>,
    body: String,
    status: u64,
    answer: Value,
}

impl Recorded {
    fn read(entry: &Value) -> Self {
        let text = |value: &Value| value.as_str().expect("a recorded text").to_owned();
        let headers = entry["headers"].as_object().expect("recorded headers");
        Self {
            line: text(&entry["request"]),
            headers: headers.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
            body: text(&entry["body"]),
            status: entry["status"].as_u64().expect("a recorded status"),
            answer: entry["answer"].clone(),
        }
    }

    fn rpc(&self) -> &str {
        self.line.split(['/', ' ']).find(|word| word.contains('.')).expect("a recorded path")
    }

    fn arguments(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }

    /// The same call without the options that volhost does not know; none when it has no such option.
    fn without_unknown_options(&self) -> Option<Self> {
        let mut arguments = self.arguments();
        let options = arguments.get_mut("Opts")?.as_object_mut()?;
        let before = options.len();
        options.retain(|name, _| !UNKNOWN_OPTIONS.contains(&&**name));
        if options.len() == before {
            return None;
        }
        let body = arguments.to_string();
        let with_length = |(name, value): &(String, String)| match &**name {
            "Content-Length" => (name.clone(), body.len().to_string()),
            _ => (name.clone(), value.clone()),
        };
        let headers = self.headers.iter().map(with_length).collect();
        Some(Self {
            line: self.line.clone(),
            headers,
            status: self.status,
            answer: self.answer.clone(),
            body,
        })
    }

    fn send(&self, client: &mut Client) -> Answer {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let answer = client.request(&self.line, &headers, &self.body);
        let answer = answer.unwrap_or_else(|e| panic!("{} {}: no answer: {e}", self.line, self.body));
        let kind = answer.header("content-type");
        assert_eq!(kind, Some("application/vnd.docker.plugins.v1.2+json"), "{} {}", self.line, self.body);
        answer
    }
}

fn replay(trace: &str, connect: fn(&Daemon<'static>) -> Client) {
    let setup = Daemon::setup();
    let backends = setup.path("srv");
    for name in ["default", "ssd"] {
        std::fs::create_dir_all(backends.join(name)).unwrap();
    }
    let map = json!({ "default": backends.join("default"), "ssd": backends.join("ssd") });
    let mut config = setup.standard();
    config["scope"] = "global".into();
    let daemon = setup.config(&config).backends(&map).start();

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/traces/{trace}.jsonl"));
    let text = std::fs::read_to_string(path).unwrap();
    let mut client = connect(&daemon);
    let mut counts = BTreeMap::new();
    let mut calls = 0;
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).unwrap();
        if let Some(step) = entry["step"].as_str() {
            // The ledger agrees with the calls at each point where the engine had answered its user.
            assert_eq!(listed_mounts(&daemon), counts, "after the step {step:?}");
            continue;
        }
        calls += 1;
        let recorded = Recorded::read(&entry);
        compare(&recorded, &mut client);
        note(&recorded, &mut counts);
        if trace.starts_with("podman") {
            // podman calls by many short processes.
            client = connect(&daemon);
        }
    }
    assert!(calls > 10, "the trace {trace} holds only {calls} calls");
}

/// Sends one call and compares its answer.
fn compare(recorded: &Recorded, client: &mut Client) {
    let what = format!("{} {}", recorded.line, recorded.body.trim_end());
    let answer = recorded.send(client);
    let name = recorded.arguments()["Name"].as_str().map(str::to_owned);
    if name.is_some_and(|name| name.contains('/')) {
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert!(answer.err().contains("volume name"), "{what}: {}", answer.err());
    } else if let Some(understood) = recorded.without_unknown_options() {
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert!(answer.err().contains(UNKNOWN_OPTIONS[0]), "{what}: {}", answer.err());
        compare(&understood, client);
    } else if recorded.status == 200 {
        assert_eq!(answer.status, 200, "{what}: {}", answer.err());
        same_shape(&recorded.answer, &answer.json(), &what);
    } else {
        assert_eq!(answer.status, 400, "{what}: {answer:?}");
        assert!(!answer.err().is_empty(), "{what}: an error without words");
        same_shape(&recorded.answer, &answer.json(), &what);
    }
}

/// Fails unless `got` has the members of `recorded`, and the same values where these are not volhost's own affair.
fn same_shape(recorded: &Value, got: &Value, what: &str) {
    match (recorded, got) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in old {
                let new = new.get(name).unwrap_or_else(|| panic!("{what}: no {name} in {got}"));
                match &**name {
                    "Mountpoint" => {
                        let volume =
                            |v: &Value| v.as_str().and_then(|p| p.rsplit('/').next().map(str::to_owned));
                        assert_eq!(volume(new), volume(value), "{what}");
                        assert!(new.as_str().is_some_and(|path| path.starts_with('/')), "{what}: {new}");
                    }
                    "CreatedAt" => assert!(is_rfc3339(new), "{what}: CreatedAt is {new}"),
                    "Status" => assert!(new.is_object(), "{what}: Status is {new}"),
                    "Err" => assert!(new.is_string(), "{what}: Err is {new}"),
                    _ => same_shape(value, new, what),
                }
            }
            let extra: Vec<_> = new.keys().filter(|name| !old.contains_key(*name)).collect();
            let may_be_said =
                |name: &&String| matches!(&***name, "CreatedAt" | "Status") && old.contains_key("Name");
            assert!(extra.iter().all(may_be_said), "{what}: {extra:?} was not expected in {got}");
        }
        (Value::Array(old), Value::Array(new)) => {
            assert_eq!(old.len(), new.len(), "{what}: {got}");
            old.iter().zip(new).for_each(|(old, new)| same_shape(old, new, what));
        }
        _ => assert_eq!(recorded, got, "{what}"),
    }
}

fn is_rfc3339(value: &Value) -> bool {
    let parse = |text| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    value.as_str().is_some_and(|text| parse(text).is_ok())
}

/// Counts a mount or an unmount as the engine means it.
fn note(recorded: &Recorded, counts: &mut BTreeMap<(String, String), u64>) {
    let arguments = recorded.arguments();
    let text = |field: &str| arguments[field].as_str().unwrap_or_default().to_owned();
    let key = (text("Name"), text("ID"));
    match recorded.rpc() {
        "VolumeDriver.Mount" => *counts.entry(key).or_default() += 1,
        "VolumeDriver.Unmount" => {
            let count = counts.get_mut(&key).expect("engines unmount what they mounted");
            *count -= 1;
            counts.retain(|_, count| *count > 0);
        }
        _ => {}
    }
}

fn listed_mounts(daemon: &Daemon<'_>) -> BTreeMap<(String, String), u64> {
    let count = |mount: Mount| {
        assert_eq!((&*mount.host, mount.stale), ("node1", false), "{mount:?}");
        ((mount.volume, mount.id), mount.count)
    };
    daemon.mounts().into_iter().map(count).collect()
}
