//! Checks that need the engine of this machine: a managed plugin of our plugin's name, and the proxies that
//! the engine uses.
//!
//! Its API is only read: `GET /plugins` and `GET /info`.

use std::io;
use std::path::Path;

use http::Request;
use serde_json::Value;
use tokio::net::UnixStream;

use super::plugin::Plugin;
use super::proxy::{self, Environment};
use super::{Docker, Finding, LOCAL_TIMEOUT, Scope, Verdict, shown};
use crate::discovery::lint::probe::{self, exchange};

const ENGINE: &str = "engine";
const MANAGED: &str = "managed-plugin";

/// The maximum size of an answer: an engine's description of itself takes some kilobytes.
const MAX_RESPONSE: usize = 16 << 20;

/// Reasons why an engine did not answer.
enum EngineError {
    /// The connection failed: no socket, or no permission.
    Connect(io::Error),
    /// The answer is missing or unusable.
    BadAnswer(String),
}

/// Asks the engine. Proxies are also looked for in the environment of running engines.
pub(super) fn examine(scope: &Scope, plugin: &Plugin, findings: &mut Vec<Finding>) {
    let mut environments = proxy::running_engines();
    let asked = match &scope.docker {
        Docker::Default(socket) | Docker::Explicit(socket) => {
            get(socket, "/plugins").map(|plugins| (socket, plugins)).map_err(|silence| {
                unanswered(socket, matches!(scope.docker, Docker::Explicit(_)), silence)
            })
        }
        Docker::Remote(address) => Err(Finding::new(
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
                environments.push(Environment::from_info(&shown(socket), &info));
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

fn unanswered(socket: &Path, named: bool, silence: EngineError) -> Finding {
    let engine = shown(socket);
    let finding = |verdict, message: String| Finding::new(ENGINE, &engine, verdict, message);
    match silence {
        EngineError::Connect(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            finding(Verdict::Note, format!("the engine cannot be asked: {error}"))
                .remedy("run this as the engine's user (root)")
        }
        EngineError::Connect(error) if !named && error.kind() == io::ErrorKind::NotFound => finding(
            Verdict::Note,
            "no engine is asked, for there is no such socket; `--docker` names another".into(),
        ),
        EngineError::Connect(error) => {
            finding(Verdict::Wrong, format!("the engine cannot be asked: {error}"))
                .remedy("start it (`systemctl start docker`), or name its socket by `--docker`")
        }
        EngineError::BadAnswer(why) => {
            finding(Verdict::Wrong, format!("the engine does not answer as it should: {why}"))
                .remedy("its log may tell why: `journalctl -u docker`")
        }
    }
}

/// Checks for a managed plugin: an engine prefers it to every spec file, and fails if it is disabled.
fn managed(name: &str, plugins: &Value) -> Finding {
    // The engine adds the default tag to a name without one.
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

/// Makes one request to the engine's API, in a new runtime on this thread.
fn get(socket: &Path, path: &str) -> Result<Value, EngineError> {
    let said = |error: &dyn std::fmt::Display| EngineError::BadAnswer(error.to_string());
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| said(&error))?;
    let asking = async {
        let stream = UnixStream::connect(socket).await.map_err(EngineError::Connect)?;
        let request = Request::get(path)
            .header(http::header::HOST, "docker")
            .body(http_body_util::Full::default())
            .map_err(|error| said(&error))?;
        exchange(stream, request, MAX_RESPONSE)
            .await
            .map_err(|error| EngineError::BadAnswer(probe::causes(&*error)))
    };
    let late =
        || EngineError::BadAnswer(format!("{path} was not answered within {} s", LOCAL_TIMEOUT.as_secs()));
    let answer = runtime.block_on(async { tokio::time::timeout(LOCAL_TIMEOUT, asking).await });
    let answer = answer.map_err(|_| late())??;
    if answer.status.is_success() {
        Ok(answer.json())
    } else {
        Err(EngineError::BadAnswer(format!("{path} was answered {}", answer.status)))
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
