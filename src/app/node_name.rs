//! The name of this machine: the one recorded in the catalog, or the configured one.

use super::ServeError;
use super::convert::candidate_name;
use crate::catalog::{Catalog, Change, NodeName};
use crate::config::Config;
use crate::model::host::HostName;

/// Puts the machine's name into the configuration and returns how it came about.
pub(super) fn find(config: &mut Config, catalog: &dyn Catalog) -> NodeName {
    let node = candidate_name(config).resolve(catalog.view().name_of(catalog.machine()));
    config.boot.node.clone_from(&node.name);
    if let Some(hostname) = &node.differing_hostname {
        log::warn!("{}", told(&node.name, hostname));
    }
    if node.recorded.is_none() && !config.boot.node_configured && node.is_default_hostname() {
        log::warn!(
            "this machine's hostname is {}, as on every machine without a name: it stays this machine's name until \
             \"node\" is set to another one",
            node.name
        );
    }
    node
}

/// Returns the warning for a hostname that differs from the recorded name.
pub(super) fn told(node: &HostName, hostname: &HostName) -> String {
    format!(
        "this machine's hostname is {hostname} now; it is still called {node} here, as its mounts are: \"node\": \
         {:?} in the configuration would change that, and take them along",
        hostname.as_str()
    )
}

/// Records the machine's name. Everything recorded under its former name moves along.
pub(super) async fn record(node: &NodeName, catalog: &dyn Catalog) -> Result<(), ServeError> {
    if node.recorded.as_ref() == Some(&node.name) {
        return Ok(());
    }
    let (machine, view) = (catalog.machine(), catalog.view());
    let before = view.hosts.get(&node.name).and_then(|host| host.machine);
    if before.is_some_and(|before| before != machine) {
        log::warn!(
            "the name {} was another machine's until now, which does not serve at present: its mounts count as this \
             machine's from now on",
            node.name
        );
    }
    catalog.submit(Change::Name(machine, node.name.clone())).await?;
    if let Some(replaced) = node.replaced() {
        log::warn!(
            "this machine is called {} from now on, and no more {replaced}: its mounts went along; its engine is known by \
             the certificate of either name until it is started again",
            node.name
        );
    }
    Ok(())
}
