//! Reads the configuration: from the file's text to a typed [`Config`], or to every fault.
//!
//! Each field has its default where it is read, so that a fault in one field never hides a fault in the next. A faulty
//! field gets its default for the time being; [`super::load()`] never returns a configuration with a fault.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::address::{self, Advertise, Listen};
use super::json::Source;
use super::node::{NamedFiles, Node, quoted};
use super::surroundings::Surroundings;
use super::{
    Boot, Config, Fault, HostPattern, KeyPair, Live, MetricsClients, Scope, SpecFormat, SpecSettings,
    TlsFiles, catalog, fields,
};
use crate::model::backend::BackendName;
use crate::model::host::HostName;
use crate::model::limits::Limits;
use crate::model::location::Location;
use crate::model::right::{Listed, Network, Right, Rule};

/// The configuration while faults are still being searched for, and positions that later checks need.
pub(super) struct Draft {
    /// The configuration, without the backend map.
    pub(super) config: Config,
    /// The position of the map's path, if the configuration has it.
    pub(super) map: Option<Fault>,
    /// The position of the clients' CA, if the configuration has it.
    pub(super) client_ca: Option<Fault>,
}

impl Draft {
    /// Reads the configuration. Its faults are noted in `source`.
    pub(super) fn read(source: &Source, around: &Surroundings, named_files: NamedFiles) -> Self {
        let value = source.value();
        let root = value.as_ref().map(|value| Node::root(source, value));
        let takes = "an object such as {\"listen\": [\"https://127.0.0.1:7443\"]}";
        let mut fields =
            root.as_ref().and_then(|root| root.members(fields::CONFIG, takes)).unwrap_or_default();
        // It is for editors; only its type is checked.
        let _ = fields.take(fields::SCHEMA).and_then(|node| node.schema());
        let paths = &around.paths;

        let insecure = fields.take("insecure").and_then(|node| node.boolean()).unwrap_or(false);
        let listen = listen(fields.take("listen"), insecure);
        let advertise_node = fields.take("advertise").filter(|node| !node.is_null());
        let advertise = advertise_node.as_ref().and_then(advertise);
        let spec = spec(fields.take("spec"), &paths.spec, &listen, advertise.as_ref());
        let tls_node = fields.take("tls");
        let mut client_ca = None;
        let tls = tls_node.map(|node| tls(&node, named_files, &mut client_ca)).unwrap_or_default();

        let given = fields.take("node");
        let node_configured = given.is_some();
        let node = match given {
            Some(node) => host_name(&node),
            None => HostName::parse(&around.hostname).ok().or_else(|| {
                // If the text itself is broken, the field may well be there.
                if root.is_some() {
                    let hostname = quoted(&around.hostname);
                    let what =
                        format!("this machine's hostname {hostname} is no host name: set \"node\" to one");
                    source.fault("node", what);
                }
                None
            }),
        };

        let admin_node = fields.take("admin");
        let admin = match &admin_node {
            Some(node) => socket_path(node),
            None => Some(paths.admin()),
        };
        let admin = admin.unwrap_or_else(|| paths.admin());
        if listen.contains(&Listen::Unix(admin.clone())) {
            let what = "is the same socket as one of \"listen\": engines must not reach it";
            match admin_node {
                Some(node) => node.fault(what),
                None => source.fault("admin", what),
            }
        }

        let metrics_node = fields.take("metrics").filter(|node| !node.is_null());
        let metrics = metrics_node.and_then(|node| metrics(&node, &listen, insecure));

        let map_node = fields.take("backends");
        let map_named = map_node.as_ref().and_then(|node| {
            node.path("the path of the backend map").map(|path| (path, node.possible_fault()))
        });
        let (map, map_place) = match map_named {
            Some((path, place)) => (path, Some(place)),
            None => (paths.map(), None),
        };

        // `None` if the field has a fault: then dependent fields are not compared with it.
        let catalog = match fields.take("catalog") {
            Some(node) => catalog::location(&node, around.etcd),
            None => Some(Location::Sqlite(paths.catalog())),
        };
        let etcd = fields.take("etcd").filter(|node| !node.is_null());
        let etcd =
            etcd.map(|node| catalog::credentials(&node, catalog.as_ref(), named_files)).unwrap_or_default();

        let boot = Boot {
            name: fields
                .take("name")
                .and_then(|node| plugin_name(&node))
                .unwrap_or_else(|| "volhost".to_owned()),
            // Only a configuration with a fault, which is never used, gets this name.
            node: node.unwrap_or_else(HostName::anonymous),
            node_configured,
            scope: fields.take("scope").and_then(|node| scope(&node)).unwrap_or(Scope::Global),
            listen,
            pki: paths.pki(),
            catalog: catalog.unwrap_or_else(|| Location::Sqlite(paths.catalog())),
            etcd,
            spool: paths.spool(),
            admin,
            metrics,
            metrics_clients: fields
                .take("metrics_clients")
                .and_then(|node| node.word("kind of clients", &MetricsClients::WORDS))
                .unwrap_or_default(),
        };
        let live = Live {
            insecure,
            advertise,
            tls,
            spec,
            map,
            backends: Default::default(),
            hosts: fields.take("hosts").filter(|node| !node.is_null()).map(|node| hosts(&node)),
            limits: fields.take("limits").map(|node| limits(&node)).unwrap_or_default(),
        };
        let config = Config { boot, live };
        Self { config, map: map_place, client_ca }
    }
}

fn plugin_name(node: &Node<'_>) -> Option<String> {
    let text = node.string("the plugin's name, such as \"volhost\"")?;
    let valid = (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if !valid {
        node.fault(format!(
            "{} is no plugin name: it takes 1 to 128 letters, digits, `_`, `.` and `-`, and begins with a letter or a \
             digit",
            quoted(text)
        ));
    }
    valid.then(|| text.to_owned())
}

fn host_name(node: &Node<'_>) -> Option<HostName> {
    let text = node.string("this machine's name, such as \"store1\"")?;
    node.noted(HostName::parse(text))
}

fn scope(node: &Node<'_>) -> Option<Scope> {
    let words = [("local", Scope::Local), ("global", Scope::Global)];
    node.word("scope", &words)
}

fn listen(node: Option<Node<'_>>, insecure: bool) -> Vec<Listen> {
    let otherwise = || vec![Listen::Https(([127, 0, 0, 1], 7443).into())];
    let Some(node) = node else { return otherwise() };
    let takes = "a list of addresses, such as [\"https://127.0.0.1:7443\"]";
    let Some(elements) = node.elements(takes) else { return otherwise() };
    if elements.is_empty() {
        node.fault("names no address: engines could not call");
    }
    let mut listen = Vec::new();
    for element in elements {
        let Some(address) = element.string("an address, such as \"https://127.0.0.1:7443\"") else {
            continue;
        };
        match Listen::parse(address) {
            Err(error) => element.fault_with(error.what, error.hint),
            Ok(address) => {
                if matches!(address, Listen::Http(_)) && !address.is_local() && !insecure {
                    element.fault(format!(
                        "{address} serves other machines without TLS, where anybody may read, mount and remove: use \
                         https, or say \"insecure\": true"
                    ));
                }
                let takes_any_port =
                    matches!(&address, Listen::Https(at) | Listen::Http(at) if at.port() == 0);
                let same_place = |other: &Listen| match (other, &address) {
                    (Listen::Unix(one), Listen::Unix(other)) => one == other,
                    (Listen::Https(one) | Listen::Http(one), Listen::Https(other) | Listen::Http(other)) => {
                        one == other
                    }
                    _ => false,
                };
                if !takes_any_port && listen.iter().any(same_place) {
                    element.fault("is given twice");
                }
                listen.push(address);
            }
        }
    }
    listen
}

fn metrics(node: &Node<'_>, listen: &[Listen], insecure: bool) -> Option<Listen> {
    let text = node.string("the address for monitoring, such as \"http://127.0.0.1:9743\"")?;
    let address = Listen::parse(text).map_err(|error| node.fault_with(error.what, error.hint)).ok()?;
    match &address {
        Listen::Unix(_) => node.fault("is a socket: monitoring takes an http:// or https:// address"),
        Listen::Http(_) if !address.is_local() && !insecure => node.fault(format!(
            "{address} serves other machines without TLS: use https, or say \"insecure\": true"
        )),
        Listen::Http(at) | Listen::Https(at) => {
            let is_taken =
                |other: &Listen| matches!(other, Listen::Http(one) | Listen::Https(one) if one == at);
            if at.port() != 0 && listen.iter().any(is_taken) {
                node.fault("is the same address as one of \"listen\": engines are served there");
            }
        }
    }
    Some(address)
}

fn advertise(node: &Node<'_>) -> Option<Advertise> {
    let text = node.string("the address that engines call, such as \"https://store1.example.org:7443\"")?;
    Advertise::parse(text).map_err(|error| node.fault_with(error.what, error.hint)).ok()
}

fn tls(node: &Node<'_>, files: NamedFiles, client_ca_place: &mut Option<Fault>) -> TlsFiles {
    let takes = "an object with \"cert\", \"key\", \"client_ca\" and \"crl\"";
    let mut members = node.members(fields::TLS, takes).unwrap_or_default();
    let mut file = |name: &str| members.file(name, files);
    let server = match (file("cert"), file("key")) {
        (Some((_, cert)), Some((_, key))) => cert.zip(key).map(|(cert, key)| KeyPair { cert, key }),
        (Some(_), None) => {
            node.missing("key", "is missing: the certificate in \"cert\" needs its private key");
            None
        }
        (None, Some(_)) => {
            node.missing("cert", "is missing: the private key in \"key\" needs its certificate");
            None
        }
        (None, None) => None,
    };
    let client_ca = file("client_ca").and_then(|(node, path)| {
        *client_ca_place = Some(node.possible_fault());
        path
    });
    TlsFiles { server, client_ca, crl: file("crl").and_then(|(_, path)| path) }
}

fn spec(
    node: Option<Node<'_>>,
    default_dir: &Path,
    listen: &[Listen],
    advertise: Option<&Advertise>,
) -> Option<SpecSettings> {
    let otherwise = SpecSettings { dir: default_dir.into(), format: None };
    let Some(node) = node else { return Some(otherwise) };
    if node.is_null() {
        return None;
    }
    let takes = "an object with \"dir\" and \"format\", or null for no spec file";
    let mut members = node.members(fields::SPEC, takes).unwrap_or_default();
    let dir = members.take("dir").and_then(|node| node.path("a directory's path")).unwrap_or(otherwise.dir);
    let format = members.take("format").and_then(|node| {
        let format = node.word("format", &[("json", SpecFormat::Json), ("spec", SpecFormat::Spec)])?;
        let only_https = match advertise {
            Some(advertise) => matches!(advertise, Advertise::Https(_)),
            None => !listen.is_empty() && listen.iter().all(|listen| matches!(listen, Listen::Https(_))),
        };
        if format == SpecFormat::Spec && only_https {
            node.fault(
                "a .spec file cannot say which CA an engine shall trust, so https would go unverified: use \"json\"",
            );
        }
        Some(format)
    });
    Some(SpecSettings { dir, format })
}

fn hosts(node: &Node<'_>) -> Listed {
    let takes = "an object of host names, such as {\"web1\": {}, \"*\": {}}";
    let mut listed = Listed::default();
    for entry in node.entries(takes).unwrap_or_default() {
        let rule = rule(&entry.node);
        match HostPattern::parse(entry.key) {
            // A key occurs only once in an object.
            Ok(host) if host.is_any() => listed.rest = Some(rule),
            Ok(_) => match HostName::parse_or_anonymous(entry.key) {
                Ok(host) if listed.named.contains_key(&host) => {
                    entry.fault("is given twice, in other letters", None);
                }
                Ok(host) => {
                    listed.named.insert(host, rule);
                }
                Err(_) => {
                    entry.fault("is a pattern: a host's full name is needed here, or \"*\" for all", None);
                }
            },
            Err(error) => entry.fault(error.to_string(), None),
        }
    }
    listed
}

fn rule(node: &Node<'_>) -> Rule {
    let mut fields = node
        .members(fields::HOST, "an object such as {\"rights\": [\"mount\"]}; {} gives the usual rights")
        .unwrap_or_default();
    let words = Right::ALL.map(|right| (right.as_str(), right));
    let rights = |node: &Node<'_>| {
        let rights = node.elements("a list of rights, such as [\"create\", \"mount\"]").unwrap_or_default();
        rights.iter().filter_map(|node| node.word("right", &words)).collect()
    };
    let backends = |node: &Node<'_>| {
        let names = node.elements("a list of backends, such as [\"fast\"]").unwrap_or_default();
        let name = |node: &Node<'_>| node.noted(BackendName::parse(node.string("a backend's name")?));
        names.iter().filter_map(name).collect()
    };
    let addresses = |node: &Node<'_>| {
        let list =
            node.elements("a list of addresses, such as [\"10.0.0.7\", \"10.0.1.0/24\"]").unwrap_or_default();
        let network = |node: &Node<'_>| node.noted(Network::parse(node.string("an address or a network")?));
        list.iter().filter_map(network).collect()
    };
    let mut given = |name| fields.take(name).filter(|node| !node.is_null());
    Rule {
        rights: given("rights").map(|node| rights(&node)),
        backends: given("backends").map(|node| backends(&node)),
        addresses: given("addresses").map(|node| addresses(&node)).unwrap_or_default(),
    }
}

fn socket_path(node: &Node<'_>) -> Option<PathBuf> {
    let text = node.string("the path of a socket")?;
    address::unix_path(text).map_err(|error| node.fault_with(error.what, error.hint)).ok()
}

fn limits(node: &Node<'_>) -> Limits {
    let mut members = node.members(fields::LIMITS, "an object of limits").unwrap_or_default();
    let mut limits = Limits::default();
    let Limits {
        connections,
        connections_per_host,
        volumes_per_host,
        mounts_per_host,
        body_bytes,
        handshake,
        request,
    } = &mut limits;
    for (name, limit) in [
        ("connections", connections),
        ("connections_per_host", connections_per_host),
        ("volumes_per_host", volumes_per_host),
        ("mounts_per_host", mounts_per_host),
    ] {
        let number = members.number(name);
        if let Some(number) = number.and_then(|number| usize::try_from(number).ok()) {
            *limit = number;
        }
    }
    if let Some(number) = members.number("body_bytes") {
        *body_bytes = number;
    }
    for (name, limit) in [("handshake", handshake), ("request", request)] {
        if let Some(node) = members.take(name)
            && let Some(duration) = node.duration("5s", &["s"])
        {
            if (Duration::from_secs(1)..=Duration::from_secs(600)).contains(&duration) {
                *limit = duration;
            } else {
                let given = humantime::format_duration(duration);
                node.fault(format!("{given} is out of range: it takes from 1s to 10min"));
            }
        }
    }
    limits
}
