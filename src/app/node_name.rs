//! The name of this machine: the one that the catalog keeps, or the one that is configured.

use super::ServeError;
use super::convert::named;
use crate::catalog::{Catalog, Change, Naming};
use crate::config::Config;
use crate::model::host::HostName;

/// Puts the machine's name into the configuration and returns where it comes from.
pub(super) fn find(config: &mut Config, catalog: &dyn Catalog) -> Naming {
    let naming = named(config).naming(catalog.view().name_of(catalog.machine()));
    config.boot.node.clone_from(&naming.node);
    if let Some(hostname) = &naming.hostname {
        log::warn!("{}", told(&naming.node, hostname));
    }
    if naming.kept.is_none() && !config.boot.node_configured && naming.is_nobodys() {
        log::warn!(
            "this machine's hostname is {}, as that of every machine that nobody named: it is kept as its name until \
             \"node\" says another one",
            naming.node
        );
    }
    naming
}

/// Returns the warning for a hostname that differs from the name that is kept.
pub(super) fn told(node: &HostName, hostname: &HostName) -> String {
    format!(
        "this machine's hostname is {hostname} now; it is still called {node} here, as its mounts are: \"node\": \
         {:?} in the configuration would change that, and take them along",
        hostname.as_str()
    )
}

/// Records the machine's name. What it held under another one goes along.
pub(super) async fn record(naming: &Naming, catalog: &dyn Catalog) -> Result<(), ServeError> {
    if naming.kept.as_ref() == Some(&naming.node) {
        return Ok(());
    }
    let (machine, view) = (catalog.machine(), catalog.view());
    let before = view.hosts.get(&naming.node).and_then(|host| host.machine);
    if before.is_some_and(|before| before != machine) {
        log::warn!(
            "the name {} was another machine's until now, which does not serve at present: its mounts count as this \
             machine's from now on",
            naming.node
        );
    }
    catalog.submit(Change::Name(machine, naming.node.clone())).await?;
    if let Some(given_up) = naming.given_up() {
        log::warn!(
            "this machine is called {} from now on, and no more {given_up}: its mounts went along; its engine is known by \
             the certificate of either name until it is started again",
            naming.node
        );
    }
    Ok(())
}
