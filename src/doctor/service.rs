//! Checks the plugin's address: it must resolve, connect, prove itself, accept this host's certificate, and
//! answer.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Value, json};

use super::plugin::Plugin;
use super::{Finding, Verdict};
use crate::discovery::lint::probe::{self, RpcCall, RpcResponse};
use crate::discovery::lint::{Fault, Protection, Target};

const CHECK: &str = "address";

/// The maximum size of a list; a million volumes take some 150 MiB.
const MAX_LIST: usize = 256 << 20;

/// The facts that a service told in its answers.
#[derive(Debug, Clone)]
pub(crate) struct ServiceReply {
    /// The time by the service's clock, and by this machine's clock in the middle between request and answer.
    pub date: Option<(String, SystemTime)>,
    /// The backends with volumes that this host may see, or the reason why they are not known.
    pub backends: Result<Vec<Backend>, String>,
}

/// A backend as this host should see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Backend {
    /// The backend's name.
    pub name: String,
    /// The backend's ID; `None` if the service does not report it.
    pub id: Option<String>,
    /// `online`, `offline` or `unmapped`.
    pub state: String,
    /// The path at which this host should see it.
    pub mountpoint: PathBuf,
}

/// Calls the service; `None` if nobody answered.
pub(super) fn examine(plugin: &Plugin, findings: &mut Vec<Finding>) -> Option<ServiceReply> {
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
    let answer = match probe::call(target, &probe::CAPABILITIES, probe::PROBE_TIMEOUT) {
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
        return Some(ServiceReply {
            date,
            backends: Err("the service does not answer as a volume plugin".into()),
        });
    }
    let how = match target.protection {
        Protection::Verified if target.files.pair.is_some() => ", and each proved itself to the other",
        Protection::Verified => ", and proved itself",
        Protection::Local | Protection::Off | Protection::Unverified => "",
    };
    let message = format!("it answers within {} ms{how}", took.as_millis());
    findings.push(Finding::new(CHECK, address, Verdict::Ok, message));
    Some(ServiceReply { date, backends: backends(target) })
}

/// Finds each backend by one of its volumes.
fn backends(target: &Target) -> Result<Vec<Backend>, String> {
    let list = ask(target, "/VolumeDriver.List", &json!({}), MAX_LIST)?;
    one_volume_per_backend(&list.body)
        .map_err(|error| format!("the list of volumes cannot be read: {error}"))?
        .into_iter()
        .filter_map(|(mountpoint, volume)| {
            match ask(target, "/VolumeDriver.Get", &json!({ "Name": volume }), probe::MAX_RESPONSE) {
                Ok(got) => backend(&got.json(), mountpoint).map(Ok),
                Err(why) => Some(Err(why)),
            }
        })
        .collect()
}

/// Makes a call that must succeed.
fn ask(target: &Target, rpc: &str, body: &Value, largest: usize) -> Result<RpcResponse, String> {
    let body = body.to_string();
    let rpc_call = RpcCall { rpc, body: body.as_bytes(), largest };
    let answer =
        probe::call(target, &rpc_call, probe::PROBE_TIMEOUT).map_err(|fault| fault.cause_and_remedy().0)?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    let told = answer.json();
    let why = probe::error_text(&told).unwrap_or("without a reason");
    Err(format!("{rpc} was answered with status {}: {why}", answer.status.as_u16()))
}

/// The answer to List. It borrows its texts, because a list can be large.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "Volumes", borrow, default)]
    volumes: Option<Vec<Listed<'a>>>,
}

#[derive(Deserialize)]
struct Listed<'a> {
    #[serde(rename = "Name", borrow)]
    name: Cow<'a, str>,
    #[serde(rename = "Mountpoint", borrow, default)]
    mountpoint: Cow<'a, str>,
}

/// Returns one volume for each parent directory of volumes, which is a backend.
fn one_volume_per_backend(list: &[u8]) -> serde_json::Result<BTreeMap<PathBuf, String>> {
    let List { volumes } = serde_json::from_slice(list)?;
    let mut found = BTreeMap::new();
    for Listed { name, mountpoint } in volumes.into_iter().flatten() {
        // A plugin that does not report the mountpoints of its volumes is not ours.
        if let Some(parent) = Path::new(&*mountpoint).parent()
            && !found.contains_key(parent)
        {
            found.insert(parent.to_owned(), name.into_owned());
        }
    }
    Ok(found)
}

/// Reads the backend from the answer to Get; `None` for a plugin that is not volhost.
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
        let found = |list: Value| one_volume_per_backend(list.to_string().as_bytes());
        let some = [volume("a", "/x/a"), volume("b", "/y/b"), volume("c", "/x/c"), json!({ "Name": "d" })];
        let some: Vec<_> = found(json!({ "Volumes": some })).unwrap().into_iter().collect();
        assert_eq!(some, [("/x".into(), "a".to_owned()), ("/y".into(), "b".to_owned())]);
        assert!(found(json!({ "Volumes": null })).unwrap().is_empty());
        assert!(found(json!({})).unwrap().is_empty());
        assert!(found(json!({ "Volumes": 1 })).is_err());
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
