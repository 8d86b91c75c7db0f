//! Checks the proxy variables of engines: an engine that was started with a proxy calls a plugin on another
//! machine through it, however near the plugin is.
//!
//! The variables are read as Go's `net/http` reads them (`golang.org/x/net/http/httpproxy`): the name in
//! capitals first, with exceptions for machines in `NO_PROXY` and for this machine itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::plugin::Plugin;
use super::{Finding, Verdict};
use crate::discovery::lint::address::Endpoint;

const CHECK: &str = "proxy";

/// The proxy variables of an engine's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    /// The name of the engine, for people.
    pub of: String,
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// Returns the variables that an engine reports in `GET /info`, including those of its configuration
    /// file.
    pub(super) fn from_info(of: &str, info: &Value) -> Self {
        let fields = [("HttpProxy", "HTTP_PROXY"), ("HttpsProxy", "HTTPS_PROXY"), ("NoProxy", "NO_PROXY")];
        let variables = fields.into_iter().filter_map(|(field, name)| {
            let value = info.get(field)?.as_str()?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self { of: format!("the engine at {of}"), variables: variables.collect() }
    }

    /// Returns the environment of a process, as the kernel shows it.
    fn of_process(pid: &str, text: &[u8]) -> Self {
        let pairs = text.split(|byte| *byte == 0).filter_map(|pair| {
            let pair = String::from_utf8_lossy(pair);
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self { of: format!("dockerd (process {pid})"), variables: pairs.collect() }
    }

    /// Returns the variable of that name, in capitals or in small letters: its name as found, and its value.
    fn find(&self, name: &str) -> Option<(&str, &str)> {
        [name.to_owned(), name.to_lowercase()].into_iter().find_map(|name| {
            let (name, value) = self.variables.get_key_value(&name)?;
            (!value.is_empty()).then_some((&**name, &**value))
        })
    }

    /// Returns the variable that sends calls to that machine through a proxy, and the proxy.
    fn proxy_for(&self, host: &str, port: u16, https: bool) -> Option<(&str, &str)> {
        // Engines up to 20.10 also know a proxy for everything.
        let found =
            self.find(if https { "HTTPS_PROXY" } else { "HTTP_PROXY" }).or_else(|| self.find("ALL_PROXY"))?;
        let exempt = self.find("NO_PROXY").is_some_and(|(_, list)| is_exempt(list, host, port));
        (!exempt).then_some(found)
    }
}

/// Returns the environments of the engines that run on this machine, if they may be read.
pub(super) fn running_engines() -> Vec<Environment> {
    let network = |pid: &str| std::fs::read_link(Path::new("/proc").join(pid).join("ns/net")).ok();
    let here = network("self");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(pid) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let is_engine = std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "dockerd");
        // An engine with its own network namespace, in a container for example, belongs to another host.
        if is_engine
            && network(pid) == here
            && let Ok(text) = std::fs::read(path.join("environ"))
        {
            found.push(Environment::of_process(pid, &text));
        }
    }
    found
}

/// Checks that engines call the plugin without a proxy.
pub(super) fn examine(plugin: &Plugin, environments: &[Environment], findings: &mut Vec<Finding>) {
    let finding = |verdict, message: &str| Finding::new(CHECK, &plugin.name, verdict, message);
    let Some(target) = &plugin.target else {
        findings.push(finding(Verdict::Skipped, "without a usable spec file there is no address to call"));
        return;
    };
    let Endpoint::Tcp { host, port, https } = &target.endpoint else {
        findings.push(finding(Verdict::Ok, "no engine uses a proxy for a Unix socket"));
        return;
    };
    if target.endpoint.is_local() {
        findings.push(finding(Verdict::Ok, "no engine uses a proxy for this machine itself"));
        return;
    }
    if environments.is_empty() {
        findings.push(finding(Verdict::Skipped, "no running engine's environment could be read"));
        return;
    }
    let before = findings.len();
    for environment in environments {
        let Some((name, proxy)) = environment.proxy_for(host, *port, *https) else { continue };
        // The same engine may be found twice: from its own report and from the kernel.
        let known =
            |finding: &Finding| finding.check == CHECK && finding.message.contains(&format!("{name}="));
        if findings.iter().any(known) {
            continue;
        }
        let message = format!(
            "{} has {name}={}, and so calls {} through that proxy",
            environment.of,
            without_password(proxy),
            target.address
        );
        findings.push(finding(Verdict::Wrong, &message).remedy(format!(
            "add {host} to NO_PROXY in the engine's environment (`systemctl edit docker`) or to \"no-proxy\" in its \
             daemon.json, and start the engine again"
        )));
    }
    if findings.len() == before {
        findings
            .push(finding(Verdict::Ok, "no engine of this machine uses a proxy for the plugin's address"));
    }
}

/// Returns a proxy's address without the user name and password in it.
fn without_password(proxy: &str) -> String {
    match (proxy.split_once("://"), proxy.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => proxy.to_owned(),
    }
}

/// Returns true if `NO_PROXY` names a machine: by `*`, an address, a network, or a domain (`example.org` also
/// names its subdomains, `.example.org` only them), each with or without a port.
fn is_exempt(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    list.split(',').map(|word| word.trim().to_ascii_lowercase()).any(|word| {
        if word == "*" {
            return true;
        }
        if let Some((network, bits)) = word.split_once('/') {
            let network = network.parse().ok().zip(bits.parse().ok());
            return address.zip(network).is_some_and(|(ip, (network, bits))| lies_in(ip, network, bits));
        }
        let (name, of_port) = match word.rsplit_once(':') {
            Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
                (name, digits.parse::<u16>().ok())
            }
            _ => (&*word, None),
        };
        if name.is_empty() || of_port.is_some_and(|of_port| of_port != port) {
            return false;
        }
        let name = name.trim_matches(['[', ']']);
        if let Ok(named) = name.parse::<IpAddr>() {
            return address == Some(named);
        }
        let domain = name.strip_prefix('*').unwrap_or(name);
        match domain.strip_prefix('.') {
            Some(_) => host.ends_with(domain),
            None => host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        }
    })
}

/// Returns true if an address is in a network; an address of the other family never is.
fn lies_in(ip: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let ((ip, width), (network, of)) = (number(ip), number(network));
    // A shift by the whole width returns `None`: a network of no bits contains everything.
    width == of && bits <= width && (ip ^ network).checked_shr(128 - bits).unwrap_or_default() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(text: &str) -> Environment {
        Environment::of_process("1", text.replace(' ', "\0").as_bytes())
    }

    #[test]
    fn the_variable_of_the_scheme_counts() {
        let proxy = |text: &str, https| {
            environment(text).proxy_for("store1", 7443, https).map(|(name, proxy)| format!("{name}={proxy}"))
        };
        assert_eq!(proxy("HTTPS_PROXY=http://p:1", true).as_deref(), Some("HTTPS_PROXY=http://p:1"));
        assert_eq!(proxy("HTTPS_PROXY=http://p:1", false), None);
        assert_eq!(proxy("https_proxy=p HTTP_PROXY=q", true).as_deref(), Some("https_proxy=p"));
        assert_eq!(proxy("HTTPS_PROXY= https_proxy=p", true).as_deref(), Some("https_proxy=p"));
        assert_eq!(proxy("all_proxy=socks5://p", true).as_deref(), Some("all_proxy=socks5://p"));
        assert_eq!(proxy("HTTPS_PROXY=p no_proxy=store1", true), None);
        assert_eq!(proxy("PATH=/bin", true), None);
        let info = serde_json::json!({ "HttpProxy": "", "HttpsProxy": "http://p", "NoProxy": "other" });
        assert_eq!(
            Environment::from_info("s", &info).proxy_for("store1", 1, true),
            Some(("HTTPS_PROXY", "http://p"))
        );
    }

    #[test]
    fn exceptions_are_read_as_go_does() {
        for (list, host, exempt) in [
            ("*", "h", true),
            ("", "h", false),
            ("a, store1", "store1", true),
            ("store1", "STORE1.", true),
            ("store1", "store10", false),
            ("example.org", "store1.example.org", true),
            ("example.org", "notexample.org", false),
            (".example.org", "store1.example.org", true),
            (".example.org", "example.org", false),
            ("*.example.org", "store1.example.org", true),
            ("store1:7443", "store1", true),
            ("store1:7444", "store1", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7:7443", "10.0.0.7", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/16", "10.1.2.3", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("0.0.0.0/0", "10.1.2.3", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00::/8", "fd00::1", true),
            ("fd00::1", "fd00::1", true),
            ("[fd00::1]:7443", "fd00::1", true),
            ("10.0.0.0/8", "store1", false),
        ] {
            assert_eq!(is_exempt(list, host, 7443), exempt, "{list:?} {host}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("http://user:secret@proxy:3128"), "http://…@proxy:3128");
        assert_eq!(without_password("user:secret@proxy"), "…@proxy");
        assert_eq!(without_password("http://proxy:3128"), "http://proxy:3128");
    }
}
