//! Instances of volhost that share a catalog and a backend: one [`Cluster`], any number of [`Daemon`]s.
//!
//! Hosts prove themselves to every instance by certificates of one authority, which none of the instances made.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::authority::Authority;
use super::daemon::{Daemon, Setup};
use super::etcd::{Cluster, PREFIX};
use super::host::Host;
use super::http::{Answer, Client, Identity, Target};
use super::scratch;

/// What a fleet is to be, before it is started.
pub(crate) struct Plan<'a> {
    etcd: Cluster<'a>,
    instances: usize,
    hosts: Vec<&'a Host>,
    changes: Value,
}

/// Instances on one catalog.
pub(crate) struct Fleet<'a> {
    // First, so that no instance outlives what it needs.
    /// The instances: the first one's machine is called `store1`, unless it has a name of its own.
    pub instances: Vec<Daemon<'a>>,
    /// Where the catalog lies.
    pub etcd: Cluster<'a>,
    hosts: Vec<&'a Host>,
    authority: Authority,
    serials: AtomicU8,
    dir: TempDir,
}

impl<'a> Fleet<'a> {
    /// Instances on this cluster's catalog.
    pub(crate) fn of(etcd: Cluster<'a>, instances: usize) -> Plan<'a> {
        Plan { etcd, instances, hosts: Vec::new(), changes: json!({}) }
    }

    /// The directory of the backend that all instances have: `default`.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.dir.path().join("volumes")
    }

    /// A certificate by which a host of that name is known to every instance.
    pub(crate) fn identity(&self, host: &str) -> Identity {
        let serial = self.serials.fetch_add(1, Ordering::Relaxed) + 1;
        let pair = self.authority.client(host, serial);
        pair.keep(&self.dir.path().join("hosts"), &format!("{host}-{serial}"), &self.authority.pem())
    }

    /// Calls an instance as a host does: from the instance's own machine, where it has one.
    pub(crate) fn connect(&self, instance: usize, identity: &Identity) -> io::Result<Client> {
        let daemon = &self.instances[instance];
        match self.hosts.get(instance) {
            Some(host) => Client::tls(host.dial(daemon.tcp("https"))?, &identity.ca, Some(identity)),
            None => Client::connect(&Target::Tls(daemon.tcp("https"), identity.clone())),
        }
    }

    /// A connection of that host to an instance.
    pub(crate) fn client(&self, instance: usize, host: &str) -> Client {
        self.connect(instance, &self.identity(host)).expect("the handshake succeeds")
    }
}

impl<'a> Plan<'a> {
    /// Runs the instances on machines, one on each, whose names are theirs.
    pub(crate) fn on(mut self, hosts: &[&'a Host]) -> Self {
        assert_eq!(hosts.len(), self.instances, "each instance has a machine");
        self.hosts = hosts.to_vec();
        self
    }

    /// Sets fields of every instance's configuration.
    pub(crate) fn config(mut self, changes: Value) -> Self {
        self.changes = changes;
        self
    }

    /// Starts the instances, one after the other, and waits until they are ready.
    pub(crate) fn start(self) -> Fleet<'a> {
        let mut fleet = self.prepare();
        for daemon in &mut fleet.instances {
            daemon.start_again();
        }
        fleet
    }

    /// Writes the instances' files and leaves their start to the test.
    pub(crate) fn prepare(self) -> Fleet<'a> {
        let Self { etcd, instances, hosts, changes } = self;
        let mut fleet = Fleet {
            instances: Vec::new(),
            etcd,
            hosts,
            authority: Authority::new("the company's CA"),
            serials: AtomicU8::new(0),
            dir: scratch(),
        };
        std::fs::create_dir(fleet.volumes()).expect("the backend's directory can be made");
        fleet.instances = (0..instances).map(|at| fleet.setup(at, PREFIX, &changes).prepare()).collect();
        fleet
    }
}

impl<'a> Fleet<'a> {
    /// An instance on the catalog of that prefix, with these fields of its configuration set.
    pub(crate) fn setup(&self, at: usize, prefix: &str, changes: &Value) -> Setup<'a> {
        let host = self.hosts.get(at).copied();
        let setup = match host {
            Some(host) => Daemon::setup().on(host),
            None => Daemon::setup(),
        };
        let file = |name: &str| setup.root().join("tls").join(name);
        let socket = format!("unix:{}", setup.root().join("run/volhost/plugin.sock").display());
        let mut config = json!({
            "node": host.map_or_else(|| format!("store{}", at + 1), |host| host.name().to_owned()),
            "listen": ["https://127.0.0.1:0", socket],
            "tls": { "cert": file("server.crt"), "key": file("server.key"), "client_ca": file("ca.crt") },
            // No engine is here to read one, and its certificate would be missing.
            "spec": null,
            "hosts": { "*": {} },
            "catalog": self.etcd.catalog(prefix),
        });
        if let Some(credentials) = self.etcd.credentials() {
            config["etcd"] = credentials;
        }
        for (field, value) in changes.as_object().expect("changes are an object of fields") {
            config[field] = value.clone();
        }
        let server = self.authority.server();
        setup
            .config(&config)
            .backends(&json!({ "default": self.volumes() }))
            .file("tls/server.crt", &server.cert)
            .file("tls/server.key", &server.key)
            .file("tls/ca.crt", &self.authority.pem())
    }
}

impl Client {
    /// Calls a volume RPC by its short name, for a volume: `client.volume("Mount", json!({"Name": "db", "ID": "1"}))`.
    pub(crate) fn volume(&mut self, rpc: &str, body: &Value) -> io::Result<Answer> {
        self.call(&format!("/VolumeDriver.{rpc}"), body)
    }
}
