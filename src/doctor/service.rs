//! The plugin's address: whether it resolves, connects, proves itself, takes this host's certificate, and answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::plugin::Plugin;
use super::{Finding, Verdict};
use crate::discovery::lint::probe::{self, Answer};
use crate::discovery::lint::{Fault, Protection, Target};

const CHECK: &str = "address";

/// What a service that answers told.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its machine's clock as its answer has it, and this machine's between question and answer.
    pub date: Option<(String, SystemTime)>,
    /// The backends with volumes that this host may see, or why they are not known.
    pub backends: Result<Vec<Backend>, String>,
}

/// A backend as this host is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its name.
    pub name: String,
    /// Its identity; none of a service that does not tell it.
    pub id: Option<String>,
    /// `online`, `offline` or `unmapped`.
    pub state: String,
    /// Where this host is to see it.
    pub mountpoint: PathBuf,
}

/// Calls the service; none where nobody answered.
pub(super) fn examine(plugin: &Plugin, findings: &mut Vec<Finding>) -> Option<Seen> {
    let Some(target) = &plugin.target else {
        let message = "without a usable spec file there is no address to call";
        findings.push(Finding::new(CHECK, &plugin.name, Verdict::Skipped, message));
        return None;
    };
    let address = &target.address;
    let wrong = |fault: &Fault| {
        let (message, remedy) = fault.cause_and_remedy();
        Finding { remedy, ..Finding::new(CHECK, address, Verdict::Wrong, message) }
    };
    let begun = SystemTime::now();
    let answer = match call(target, probe::CAPABILITIES, &json!({})) {
        Ok(answer) => answer,
        Err(fault) => {
            findings.push(wrong(&fault));
            return None;
        }
    };
    let took = begun.elapsed().unwrap_or_default();
    let date = answer.date.clone().map(|date| (date, begun + took / 2));
    if let Some(fault) = answer.fault(address) {
        findings.push(wrong(&fault));
        return Some(Seen { date, backends: Err("the service does not answer as a volume plugin".into()) });
    }
    let how = match target.protection {
        Protection::Verified => ", and each proved itself to the other",
        Protection::Local | Protection::Off | Protection::Unverified => "",
    };
    let message = format!("it answers within {} ms{how}", took.as_millis());
    findings.push(Finding::new(CHECK, address, Verdict::Ok, message));
    Some(Seen { date, backends: backends(target) })
}

fn call(target: &Target, rpc: &str, body: &Value) -> Result<Answer, Fault> {
    probe::call(target, rpc, body.to_string().as_bytes(), probe::PATIENCE)
}

/// Each backend by one of its volumes.
fn backends(target: &Target) -> Result<Vec<Backend>, String> {
    let asked = |rpc: &str, body: &Value| {
        let answer = call(target, rpc, body).map_err(|fault| fault.cause_and_remedy().0)?;
        match answer.refusal() {
            None if answer.status.is_success() => Ok(answer.body),
            told => {
                Err(format!("{rpc} was answered {} {}", answer.status.as_u16(), told.unwrap_or_default()))
            }
        }
    };
    let list = asked("/VolumeDriver.List", &json!({}))?;
    one_of_each(&list)
        .into_iter()
        .filter_map(|(mountpoint, volume)| match asked("/VolumeDriver.Get", &json!({ "Name": volume })) {
            Ok(got) => backend(&got, mountpoint).map(Ok),
            Err(why) => Some(Err(why)),
        })
        .collect()
}

/// One volume for each directory that volumes lie in: a backend's.
fn one_of_each(list: &Value) -> BTreeMap<PathBuf, String> {
    let text = |volume: &Value, field: &str| volume.get(field).and_then(Value::as_str).map(str::to_owned);
    let volumes = list.get("Volumes").and_then(Value::as_array).into_iter().flatten();
    let mut found = BTreeMap::new();
    for volume in volumes {
        let (Some(name), Some(mountpoint)) = (text(volume, "Name"), text(volume, "Mountpoint")) else {
            continue;
        };
        if let Some(parent) = Path::new(&mountpoint).parent() {
            found.entry(parent.to_owned()).or_insert(name);
        }
    }
    found
}

/// What Get told of a backend; none of a plugin that is not volhost.
fn backend(got: &Value, mountpoint: PathBuf) -> Option<Backend> {
    let status = got.get("Volume")?.get("Status")?;
    let text = |field: &str| status.get(field).and_then(Value::as_str).map(str::to_owned);
    Some(Backend {
        name: text("backend")?,
        id: text("backend_id"),
        state: text("backend_state")?,
        mountpoint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_volumes_one_for_each_backend_is_asked_about() {
        let volume = |name: &str, path: &str| json!({ "Name": name, "Mountpoint": path });
        let list = json!({ "Volumes": [volume("a", "/x/a"), volume("b", "/y/b"), volume("c", "/x/c"), {}] });
        let found: Vec<_> = one_of_each(&list).into_iter().collect();
        assert_eq!(found, [("/x".into(), "a".to_owned()), ("/y".into(), "b".to_owned())]);
        assert!(one_of_each(&json!({ "Volumes": null })).is_empty());
    }

    #[test]
    fn a_backend_is_told_by_the_status_of_a_volume() {
        let got = json!({ "Volume": { "Status": { "backend": "fast", "backend_id": "i", "backend_state": "online" } } });
        let expected = Backend {
            name: "fast".into(),
            id: Some("i".into()),
            state: "online".into(),
            mountpoint: "/x".into(),
        };
        assert_eq!(backend(&got, "/x".into()), Some(expected));
        assert_eq!(backend(&json!({ "Volume": { "Name": "another plugin's" } }), "/x".into()), None);
    }
}
