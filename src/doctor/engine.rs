//! What the engine of this machine says of itself: a managed plugin of our plugin's name, and the proxies that it uses.
//!
//! Its API is only read: `GET /plugins` and `GET /info`.

use std::io;
use std::path::Path;

use http::Request;
use serde_json::Value;
use tokio::net::UnixStream;

use super::plugin::Plugin;
use super::proxy::{self, Environment};
use super::{Docker, Finding, PATIENCE, Scope, Verdict, shown};
use crate::discovery::lint::probe::{self, exchange};

const ENGINE: &str = "engine";
const MANAGED: &str = "managed-plugin";

/// The largest answer that is read: what an engine tells of itself takes some kilobytes.
const LARGEST: usize = 16 << 20;

/// Why an engine told nothing.
enum Silence {
    /// Nothing to connect to, or no right to.
    Connect(io::Error),
    /// No usable answer.
    Answer(String),
}

/// Asks the engine; its proxies are also looked for in the environment of running ones.
pub(super) fn examine(scope: &Scope, plugin: &Plugin, findings: &mut Vec<Finding>) {
    let mut environments = proxy::running();
    let asked = match &scope.docker {
        Docker::Usual(socket) | Docker::Named(socket) => {
            get(socket, "/plugins").map(|plugins| (socket, plugins)).map_err(|silence| {
                silent(socket, matches!(scope.docker, Docker::Named(_)), silence)
            })
        }
        Docker::Elsewhere(address) => Err(Finding::new(
            ENGINE,
            address,
            Verdict::Note,
            "no engine is asked: that is no socket of this machine, and only an engine of this machine uses the spec \
             files that are here",
        )
        .remedy("run this on the engine's machine, or name a socket by `--docker`")),
    };
    match asked {
        Ok((socket, plugins)) => {
            findings.push(managed(&plugin.name, &plugins));
            if let Ok(info) = get(socket, "/info") {
                environments.push(Environment::told(&shown(socket), &info));
            }
        }
        Err(finding) => {
            findings.push(finding);
            let message = "managed plugins are known to the engine alone";
            findings.push(Finding::new(MANAGED, &plugin.name, Verdict::Skipped, message));
        }
    }
    proxy::examine(plugin, &environments, findings);
}

fn silent(socket: &Path, named: bool, silence: Silence) -> Finding {
    let engine = shown(socket);
    let finding = |verdict, message: String| Finding::new(ENGINE, &engine, verdict, message);
    match silence {
        Silence::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            finding(Verdict::Note, format!("the engine cannot be asked: {error}"))
                .remedy("run this as the engine's user (root)")
        }
        Silence::Connect(error) if !named && error.kind() == io::ErrorKind::NotFound => finding(
            Verdict::Note,
            "no engine is asked, for there is no such socket; `--docker` names another".into(),
        ),
        Silence::Connect(error) => finding(Verdict::Wrong, format!("the engine cannot be asked: {error}"))
            .remedy("start it (`systemctl start docker`), or name its socket by `--docker`"),
        Silence::Answer(why) => {
            finding(Verdict::Wrong, format!("the engine does not answer as it should: {why}"))
                .remedy("its log may tell why: `journalctl -u docker`")
        }
    }
}

/// An engine prefers a managed plugin to every spec file, and takes a disabled one for an error.
fn managed(name: &str, plugins: &Value) -> Finding {
    // The engine completes a name without a tag by the usual one.
    let full = format!("{name}:latest");
    let is_it = |plugin: &&Value| plugin.get("Name").and_then(Value::as_str) == Some(&*full);
    let Some(found) = plugins.as_array().into_iter().flatten().find(is_it) else {
        return Finding::new(MANAGED, name, Verdict::Ok, "the engine has no managed plugin of that name");
    };
    let enabled = found.get("Enabled").and_then(Value::as_bool).unwrap_or_default();
    let message = if enabled {
        format!("the engine has a managed plugin {full}, and uses that instead of the spec file")
    } else {
        format!("the engine has a disabled managed plugin {full}, and refuses that name because of it")
    };
    Finding::new(MANAGED, name, Verdict::Wrong, message)
        .remedy(format!("`docker plugin rm {full}` (once it is disabled), or another name for this plugin"))
}

/// One question of the engine's API, in a runtime of its own on this thread.
fn get(socket: &Path, path: &str) -> Result<Value, Silence> {
    let said = |error: &dyn std::fmt::Display| Silence::Answer(error.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| said(&error))?;
    let asking = async {
        let stream = UnixStream::connect(socket).await.map_err(Silence::Connect)?;
        let request = Request::get(path)
            .header(http::header::HOST, "docker")
            .body(http_body_util::Full::default())
            .map_err(|error| said(&error))?;
        exchange(stream, request, LARGEST).await.map_err(|error| Silence::Answer(probe::told(&*error)))
    };
    let late = || Silence::Answer(format!("{path} was not answered within {} s", PATIENCE.as_secs()));
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await });
    let answer = answer.map_err(|_| late())??;
    if answer.status.is_success() {
        Ok(answer.json())
    } else {
        Err(Silence::Answer(format!("{path} was answered {}", answer.status)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_managed_plugin_takes_the_place_of_a_spec_file() {
        let plugins =
            json!([{ "Name": "other:latest", "Enabled": true }, { "Name": "p:1", "Enabled": true }]);
        assert_eq!(managed("p", &plugins).verdict, Verdict::Ok);
        assert_eq!(managed("p", &Value::Null).verdict, Verdict::Ok);
        for (enabled, words) in [(true, "uses that instead"), (false, "disabled managed plugin p:latest")] {
            let finding = managed("p", &json!([{ "Name": "p:latest", "Enabled": enabled }]));
            assert_eq!(finding.verdict, Verdict::Wrong);
            assert!(finding.message.contains(words), "{}", finding.message);
        }
    }
}
