//! Reads the catalog's location, and the credentials for an etcd cluster.
//!
//! Nothing here connects to the cluster or reads a key or a password: the client of the cluster does that, at each
//! connection.

use super::fields;
use super::node::{NamedFiles, Node, quoted};
use crate::model::location::{Credentials, Location, NoEtcd};

/// Reads the catalog's location. `etcd` is true if this program was built with etcd's client.
pub(super) fn location(node: &Node<'_>, etcd: bool) -> Option<Location> {
    let text = node.string("the catalog's address, such as \"sqlite:/var/lib/volhost/catalog.db\"")?;
    let takes = "it takes sqlite:/PATH or etcd://HOST:PORT,HOST:PORT,HOST:PORT/PREFIX";
    match text.split_once(':') {
        Some(("sqlite", path)) if path.starts_with('/') && !path.starts_with("//") => {
            node.absolute(path).map(Location::Sqlite)
        }
        Some(("sqlite", path)) => {
            let meant = path.trim_start_matches('/');
            let hint = path.starts_with("//").then(|| format!("did you mean \"sqlite:/{meant}\"?"));
            node.fault_with(format!("{} is no absolute path: {takes}", quoted(path)), hint);
            None
        }
        Some(("etcd", _)) => {
            let location = node.noted(Location::parse(text))?;
            if let (Location::Etcd(cluster), false) = (&location, etcd) {
                node.fault(NoEtcd(cluster.clone()).to_string());
            }
            Some(location)
        }
        scheme => {
            let near = match scheme {
                None if text.starts_with('/') => Some(format!("did you mean \"sqlite:{text}\"?")),
                None => None,
                Some((scheme, _)) => crate::error::nearest(scheme, ["sqlite", "etcd"])
                    .map(|near| format!("did you mean {near:?}?")),
            };
            node.fault_with(format!("{} is no catalog: {takes}", quoted(text)), near);
            None
        }
    }
}

/// Reads the credentials for an etcd cluster. `catalog` is the catalog's location if it is valid.
pub(super) fn credentials(node: &Node<'_>, catalog: Option<&Location>, files: NamedFiles) -> Credentials {
    if let Some(other @ Location::Sqlite(_)) = catalog {
        let example = "etcd://HOST:PORT,HOST:PORT,HOST:PORT/PREFIX";
        node.fault(format!(
            "is for a catalog in etcd, but the catalog is {other}: take it out, or set \"catalog\" to {example}"
        ));
    }
    let takes = "an object with \"ca\", \"cert\", \"key\", \"user\" and \"password_file\"";
    let mut members = node.members(fields::ETCD, takes).unwrap_or_default();
    let user = members.take("user").filter(|node| !node.is_null());
    let [ca, cert, key, password_file] =
        ["ca", "cert", "key", "password_file"].map(|name| members.file(name, files));
    let given = |name: &str| match name {
        "ca" => ca.is_some(),
        "cert" => cert.is_some(),
        "key" => key.is_some(),
        "user" => user.is_some(),
        _ => password_file.is_some(),
    };
    for (one, needed, why) in [
        ("cert", "key", "the certificate in \"cert\" needs its private key"),
        ("key", "cert", "the private key in \"key\" needs its certificate"),
        (
            "user",
            "password_file",
            "the user in \"user\" is let in by a password: name the file that holds it",
        ),
        ("password_file", "user", "whose password is in \"password_file\" must be said"),
    ] {
        if given(one) && !given(needed) {
            node.missing(needed, format!("is missing: {why}"));
        }
    }
    if (given("cert") || given("key")) && !given("ca") {
        let why = "without the members' CA they are called in plain text, where no certificate is shown";
        node.missing("ca", format!("is missing: {why}"));
    }
    let user = user.and_then(|node| {
        let text = node.string("a user of etcd, such as \"volhost\"")?;
        if text.is_empty() {
            node.fault("is empty: it takes a user of etcd, such as \"volhost\"");
        }
        (!text.is_empty()).then(|| text.to_owned())
    });
    let [ca, cert, key, password_file] =
        [ca, cert, key, password_file].map(|file| file.and_then(|(_, path)| path));
    Credentials { ca, cert, key, user, password_file }
}
