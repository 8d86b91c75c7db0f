//! The fields of both files: their names, types, defaults and meanings, in one table each.
//!
//! The parser accepts no name that is missing here and takes the bounds of numbers from here; the JSON Schemas for
//! editors are made from it, and the tables of docs/reference are compared with it. This module holds only the tables;
//! it reads nothing.

use std::ops::RangeInclusive;

/// One field of an object.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// The values that it takes.
    pub takes: Takes,
    /// True if it may be `null`, which means the same as absent, except for `spec`.
    pub null: bool,
    /// Its default, as docs/reference has it: JSON between backquotes, or words.
    pub default: &'static str,
    /// Its meaning, as docs/reference has it.
    pub doc: &'static str,
    /// How a change is put in force.
    pub applied: Applied,
}

/// How a change of a field is put in force. The tests compare it with the part of the configuration that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// By a reload: the field is part of [`Live`](super::Live).
    Reload,
    /// By a restart: the field is part of [`Boot`](super::Boot).
    Restart,
    /// By a restart if the path changes, automatically if the content of the named file does.
    RestartOrFollowed,
    /// Not given: the field's table has no such column.
    Untold,
}

impl Applied {
    /// Returns the words of docs/reference.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Restart => "restart",
            Self::RestartOrFollowed => "restart; the file is followed",
            Self::Untold => "",
        }
    }
}

/// The values that a field takes.
#[derive(Debug, Clone)]
pub enum Takes {
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Number(RangeInclusive<u64>),
    /// One of a set of words.
    Word(&'static [&'static str]),
    /// A string.
    Text(Text),
    /// A duration, or zero without a unit.
    DurationOrZero,
    /// A list of strings, with at least this many elements.
    List(Text, usize),
    /// An object with these fields.
    Object(&'static [Field]),
    /// An object whose keys are hosts or `*`, each with an object of these fields.
    Hosts(&'static [Field]),
    /// An object whose keys are hosts, each with a string.
    ByHost(Text),
    /// No value: the field is specified but not implemented yet, and ignoring it would promise something that is not
    /// done.
    Nothing,
}

/// The kinds of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Text {
    /// Any string.
    Any,
    /// Any string that is not empty.
    NotEmpty,
    /// A plugin's name.
    PluginName,
    /// A host's name.
    HostName,
    /// A host's name or a pattern of names.
    HostPattern,
    /// A right of a host.
    Right,
    /// An IP address, or a network.
    Network,
    /// A backend's name.
    BackendName,
    /// An address to listen on.
    Listen,
    /// An `http` or `https` address to listen on.
    WebAddress,
    /// An address that engines call.
    Advertise,
    /// The catalog's address.
    Catalog,
    /// An absolute path.
    Path,
    /// An absolute path without `..`.
    Directory,
    /// An absolute path that fits into a socket's address.
    Socket,
    /// A duration with its unit.
    Duration,
    /// Permissions in octal.
    Mode,
}

/// The fields of `volhost.json`.
pub const CONFIG: &[Field] = &[
    field(
        "name",
        Takes::Text(Text::PluginName),
        "`\"volhost\"`",
        "the plugin's name (`-d NAME`); engines bind their volumes to it for good",
        Applied::Restart,
    ),
    field(
        "node",
        Takes::Text(Text::HostName),
        "the hostname, kept",
        "this machine's name as a host",
        Applied::Restart,
    ),
    field(
        "scope",
        Takes::Word(&["local", "global"]),
        "`\"global\"`",
        "`\"global\"`: a name is one volume on all hosts; `\"local\"`: a name is one volume on each host",
        Applied::Restart,
    ),
    field(
        "listen",
        Takes::List(Text::Listen, 1),
        "`[\"https://127.0.0.1:7443\"]`",
        "where to listen: `https://IP:PORT`, `http://IP:PORT`, `unix:/PATH`; port 0 takes any free port",
        Applied::Restart,
    ),
    field(
        "insecure",
        Takes::Flag,
        "`false`",
        "allows `http://` on addresses other than loopback, where anybody may then create and mount volumes",
        Applied::Reload,
    ),
    or_null(field(
        "advertise",
        Takes::Text(Text::Advertise),
        "the first `https` address of `listen`",
        "the address that engines call: `https://HOST:PORT`, `http://HOST:PORT` or `unix:/PATH`",
        Applied::Reload,
    )),
    field(
        "tls",
        Takes::Object(TLS),
        "volhost's own certificates",
        "TLS files that replace volhost's own",
        Applied::Reload,
    ),
    or_null(field(
        "spec",
        Takes::Object(SPEC),
        "`{}`",
        "the spec file that volhost writes; `null` for none",
        Applied::Reload,
    )),
    field(
        "catalog",
        Takes::Text(Text::Catalog),
        "`\"sqlite:/var/lib/volhost/catalog.db\"`",
        "`sqlite:/PATH`, a file on a local file system, or `etcd://HOST:PORT,HOST:PORT,HOST:PORT/PREFIX`, shared by several instances",
        Applied::Restart,
    ),
    or_null(field(
        "etcd",
        Takes::Object(ETCD),
        "`null`: plain text, no user",
        "credentials for the etcd cluster of `catalog`",
        Applied::Restart,
    )),
    field(
        "backends",
        Takes::Text(Text::Path),
        "`\"/etc/volhost/backends.json\"`",
        "the backend map's file",
        Applied::Reload,
    ),
    or_null(field(
        "hosts",
        Takes::Hosts(HOST),
        "`null`: every host",
        "who may use volumes, and how: `{\"web1\": {}, \"*\": {…}}`; exact names, `anonymous`, and `*` for the rest",
        Applied::Reload,
    )),
    field(
        "admin",
        Takes::Text(Text::Socket),
        "`\"/run/volhost/admin.sock\"`",
        "the admin socket",
        Applied::Restart,
    ),
    field("limits", Takes::Object(LIMITS), "`{}`", "limits of connections, sizes and times", Applied::Reload),
    or_null(field(
        "metrics",
        Takes::Text(Text::WebAddress),
        "`null`: none",
        "where to serve metrics, health and a page: `http://IP:PORT` or `https://IP:PORT`, the latter with the server's certificate",
        Applied::Restart,
    )),
    field(
        "metrics_clients",
        Takes::Word(&["verified", "anyone"]),
        "`\"verified\"`",
        "whom an `https` address of `metrics` serves: `\"verified\"`: clients with a certificate of `tls.client_ca`; `\"anyone\"`: those without one, too",
        Applied::Restart,
    ),
    or_null(field("audit", Takes::Nothing, "", "refused by this version", Applied::Untold)),
    field(
        "$schema",
        Takes::Text(Text::Any),
        "",
        "the JSON Schema for an editor, such as `\"volhost.schema.json\"`; volhost ignores it",
        Applied::Untold,
    ),
];

/// The fields of `tls`.
pub const TLS: &[Field] = &[
    or_null(field(
        "cert",
        Takes::Text(Text::Path),
        "own, in `pki`",
        "the server's certificate chain (PEM); only together with `key`",
        Applied::Reload,
    )),
    or_null(field(
        "key",
        Takes::Text(Text::Path),
        "own, in `pki`",
        "its private key (PEM, not encrypted)",
        Applied::Reload,
    )),
    or_null(field(
        "client_ca",
        Takes::Text(Text::Path),
        "own, in `pki`",
        "the CAs whose clients are accepted (PEM); a CA other than volhost's makes `hosts` mandatory",
        Applied::Reload,
    )),
    or_null(field(
        "crl",
        Takes::Text(Text::Path),
        "none",
        "the CAs' revocation lists (PEM or DER)",
        Applied::Reload,
    )),
];

/// The fields of `etcd`. The client of the cluster follows the files, so that a certificate and a password can be
/// replaced while volhost serves.
pub const ETCD: &[Field] = &[
    or_null(field(
        "ca",
        Takes::Text(Text::Path),
        "none: plain text",
        "the CAs that sign the members' certificates (PEM); with it, volhost calls the members over TLS",
        Applied::RestartOrFollowed,
    )),
    or_null(field(
        "cert",
        Takes::Text(Text::Path),
        "none",
        "volhost's certificate chain for the members (PEM); only together with `key` and `ca`",
        Applied::RestartOrFollowed,
    )),
    or_null(field(
        "key",
        Takes::Text(Text::Path),
        "none",
        "its private key (PEM, not encrypted)",
        Applied::RestartOrFollowed,
    )),
    or_null(field(
        "user",
        Takes::Text(Text::NotEmpty),
        "none",
        "the user in etcd's own authentication; only together with `password_file`",
        Applied::Restart,
    )),
    or_null(field(
        "password_file",
        Takes::Text(Text::Path),
        "none",
        "a file with the user's password in its first line",
        Applied::RestartOrFollowed,
    )),
];

/// The fields of `spec`.
pub const SPEC: &[Field] = &[
    field(
        "dir",
        Takes::Text(Text::Path),
        "`/etc/docker/plugins`",
        "the directory of the spec file",
        Applied::Reload,
    ),
    field(
        "format",
        Takes::Word(&["json", "spec"]),
        "as the address needs it",
        "`\"json\"` or `\"spec\"`",
        Applied::Reload,
    ),
];

/// The fields of one entry of `hosts`.
pub const HOST: &[Field] = &[
    or_null(field(
        "rights",
        Takes::List(Text::Right, 0),
        "`[\"create\", \"mount\", \"remove\"]`",
        "what the host may do: any of `create`, `mount`, `remove` and `adopt`; even without a right it sees the backends that are open to it",
        Applied::Untold,
    )),
    or_null(field(
        "backends",
        Takes::List(Text::BackendName, 0),
        "all that allow it",
        "the backends that the host may use, if their own `hosts` allow it too",
        Applied::Untold,
    )),
    or_null(field(
        "addresses",
        Takes::List(Text::Network, 0),
        "`null`: any one address",
        "the addresses and networks of this one machine: calls from several of them are no sign of a clone",
        Applied::Untold,
    )),
];

/// The fields of `limits`.
pub const LIMITS: &[Field] = &[
    field(
        "connections",
        Takes::Number(1..=1_000_000),
        "`4096`",
        "the number of connections over TCP and TLS",
        Applied::Reload,
    ),
    field(
        "connections_per_host",
        Takes::Number(1..=1_000_000),
        "`256`",
        "the number of connections of one host; over plain TCP, of one address",
        Applied::Reload,
    ),
    field(
        "volumes_per_host",
        Takes::Number(1..=10_000_000),
        "`100000`",
        "the number of volumes that one host has created or mounted, above which it creates no more",
        Applied::Reload,
    ),
    field(
        "mounts_per_host",
        Takes::Number(1..=10_000_000),
        "`100000`",
        "the number of mounts of one host, stale ones included",
        Applied::Reload,
    ),
    field(
        "body_bytes",
        Takes::Number(4096..=1 << 30),
        "`1048576`",
        "the largest body of a request in bytes, 4096 to 1073741824",
        Applied::Reload,
    ),
    field(
        "handshake",
        Takes::Text(Text::Duration),
        "`\"5s\"`",
        "the longest time for a TLS handshake, and for the head of a request; 1s to 10min",
        Applied::Reload,
    ),
    field(
        "request",
        Takes::Text(Text::Duration),
        "`\"20s\"`",
        "the longest time for a request; 1s to 10min",
        Applied::Reload,
    ),
];

/// The fields of a backend in the map.
pub const BACKEND: &[Field] = &[
    field(
        "path",
        Takes::Text(Text::Directory),
        REQUIRED,
        "the backend's directory on this machine: absolute, without `..`, and neither inside nor around another backend",
        Applied::Untold,
    ),
    field(
        "mountpoint",
        Takes::Text(Text::Directory),
        "as `path`",
        "the path of the directory on the engines' hosts",
        Applied::Untold,
    ),
    field(
        "mountpoint_by_host",
        Takes::ByHost(Text::Directory),
        "`{}`",
        "the path on single hosts: `{\"web2\": \"/data/fast\"}`",
        Applied::Untold,
    ),
    or_null(field(
        "hosts",
        Takes::List(Text::HostPattern, 0),
        "every host",
        "the hosts that may use the backend, by names and patterns (`web*`, `web?`); `[]` for none",
        Applied::Untold,
    )),
    field(
        "draining",
        Takes::Flag,
        "`false`",
        "the backend takes no new volumes; those that exist stay usable",
        Applied::Untold,
    ),
    field(
        "require_mount",
        Takes::Flag,
        "`false`",
        "`path` must lie on another file system than `/`; else the backend is offline",
        Applied::Untold,
    ),
    field(
        "durable_directories",
        Takes::Flag,
        "`false`",
        "a Create waits until the storage has the new directory: for storage that can lose it with flushed files in it",
        Applied::Untold,
    ),
    field(
        "trash",
        Takes::DurationOrZero,
        "`\"24h\"`",
        "how long to keep removed volumes; `0` deletes them at once",
        Applied::Untold,
    ),
    field(
        "uid",
        Takes::Number(0..=u32::MAX as u64 - 1),
        "`0` (not as root: the service's)",
        "the user that owns new volumes",
        Applied::Untold,
    ),
    field(
        "gid",
        Takes::Number(0..=u32::MAX as u64 - 1),
        "`0` (not as root: the service's)",
        "the group that owns new volumes",
        Applied::Untold,
    ),
    field(
        "mode",
        Takes::Text(Text::Mode),
        "`\"0755\"`",
        "the permissions of new volumes, in octal",
        Applied::Untold,
    ),
];

/// The default of a field that has none: an object without it is refused.
pub const REQUIRED: &str = "must be given";

/// The key of both files that names their schema. No backend can have this name.
pub const SCHEMA: &str = "$schema";

/// Returns the names of fields, in the table's order.
pub fn names(fields: &'static [Field]) -> impl Iterator<Item = &'static str> + Clone {
    fields.iter().map(|field| field.name)
}

const fn field(
    name: &'static str,
    takes: Takes,
    default: &'static str,
    doc: &'static str,
    applied: Applied,
) -> Field {
    Field { name, takes, null: false, default, doc, applied }
}

const fn or_null(field: Field) -> Field {
    Field { null: true, ..field }
}
