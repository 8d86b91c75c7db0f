//! The engine with a real etcd: what every engine promises, and what only one that is shared must.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use super::*;
use crate::catalog::contract::{self, at, backend, create, host, mount, mount_id, name, remove, volume};
use crate::catalog::{Credentials, Meant, Outcome, Refusal};
use crate::host::name::HostName;
use crate::volume::mounts::Activation;
use crate::volume::name::VolumeId;

/// One etcd on ports of its own.
pub(super) struct Server {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Server {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port that is free now may be taken until etcd has it: then it ends, and others are tried.
        for _ in 0..10 {
            let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let (port, peers) = (free(), free());
            let mut server = Self { child: run(dir.path(), port, peers), dir, port };
            if server.answers() {
                return server;
            }
            server.stop();
            return Self::start();
        }
        panic!("etcd finds no ports")
    }

    fn answers(&mut self) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until && self.child.try_wait().unwrap().is_none() {
            if self.ctl(&["get", "x"]).is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    pub(super) fn ctl(&self, words: &[&str]) -> Option<String> {
        let said = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &format!("127.0.0.1:{}", self.port), "--command-timeout", "2s"])
            .args(words)
            .stderr(Stdio::null())
            .output()
            .unwrap();
        said.status.success().then(|| String::from_utf8(said.stdout).unwrap())
    }

    pub(super) fn signal(&self, name: &str) {
        let done = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub(super) fn cluster(&self, prefix: &str) -> Cluster {
        Cluster { members: vec![format!("127.0.0.1:{}", self.port)], prefix: prefix.into() }
    }

    pub(super) fn instance(&self, node: &str) -> Instance {
        let spool: PathBuf = self.dir.path().join("spools").join(node);
        Instance { node: HostName::parse(node).unwrap(), credentials: Credentials::default(), spool }
    }

    /// An instance of the catalog with this prefix.
    pub(super) async fn open(&self, prefix: &str, node: &str) -> Arc<dyn Catalog> {
        let (cluster, instance) = (self.cluster(prefix), self.instance(node));
        // It blocks until everything is read.
        let opened = tokio::task::spawn_blocking(move || open(&cluster, &instance)).await.unwrap();
        Arc::new(opened.unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(dir: &Path, port: u16, peers: u16) -> Child {
    let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
    Command::new("etcd")
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(["--name", "one", "--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
        .args(["--initial-cluster", &format!("one={peers}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed (etcd-server)")
}

pub(super) async fn done(catalog: &Arc<dyn Catalog>, change: Change) -> Outcome {
    catalog.submit(change.clone()).await.unwrap_or_else(|error| panic!("{change:?}: {error}"))
}

#[tokio::test]
async fn it_keeps_what_every_engine_promises() {
    let server = Server::start();
    contract::battery(async |store| server.open(store, "store1").await).await;
}
