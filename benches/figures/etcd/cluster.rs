//! The etcd that is measured against: members of its own, on this machine, with their data beside everything else.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::Client;

/// How long it may take until a cluster answers.
const PATIENCE: Duration = Duration::from_secs(30);

/// A cluster that answers; ended when dropped.
pub(super) struct Cluster(Vec<Member>);

struct Member {
    child: Child,
    port: u16,
    data: PathBuf,
}

impl Cluster {
    /// Whether there is an etcd to be started.
    pub(super) fn is_installed() -> bool {
        Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok()
    }

    /// Starts one with so many members below a directory, and waits until each of them answers.
    pub(super) fn start(directory: &Path, members: usize) -> Self {
        // A port that is free now may be taken until etcd has it.
        for attempt in 0..10 {
            let directory = directory.join(format!("etcd-{attempt}"));
            std::fs::create_dir_all(&directory).expect("the directory can be made");
            let cluster = Self::begin(&directory, members);
            let until = Instant::now() + PATIENCE;
            while Instant::now() < until && !cluster.0.iter().all(Member::is_healthy) {
                std::thread::sleep(Duration::from_millis(50));
            }
            if cluster.0.iter().all(Member::is_healthy) {
                return cluster;
            }
        }
        panic!("etcd does not answer; its log below {} says why", directory.display());
    }

    fn begin(directory: &Path, members: usize) -> Self {
        // Held until all are chosen, so that none is chosen twice.
        let held: Vec<_> =
            (0..members * 2).map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback is there")).collect();
        let ports: Vec<_> = held.iter().map(|held| held.local_addr().expect("it is bound").port()).collect();
        drop(held);
        let (clients, peers) = ports.split_at(members);
        let name = |number| format!("member{number}");
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let all: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(number, port)| format!("{}={}", name(number), url(port)))
            .collect();
        let start = |(number, (client, peer)): (usize, (&u16, &u16))| {
            let data = directory.join(name(number));
            let log = File::create(data.with_extension("log")).expect("the log can be made");
            let child = Command::new("etcd")
                .args(["--name", &name(number), "--data-dir"])
                .arg(&data)
                .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
                .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
                .args(["--initial-cluster", &all.join(",")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("etcd starts");
            Member { child, port: *client, data }
        };
        Self(clients.iter().zip(peers).enumerate().map(start).collect())
    }

    /// What a configuration names as its catalog.
    pub(super) fn location(&self, prefix: &str) -> String {
        let members: Vec<_> = self.0.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
        format!("etcd://{}/{prefix}", members.join(","))
    }

    /// A client with one channel, to the first member, which is also the first that volhost asks.
    pub(super) async fn client(&self) -> Client {
        let first = self.0.first().expect("there is one");
        Client::connect([format!("http://127.0.0.1:{}", first.port)], None).await.expect("etcd answers")
    }

    /// What the first member has done so far.
    pub(super) fn count(&self) -> Count {
        let text = self.0.first().and_then(|member| member.http("/metrics")).expect("etcd answers");
        let figure = |name: &str| {
            let line = text.lines().filter_map(|line| line.split_once(' ')).find(|(field, _)| *field == name);
            line.and_then(|(_, value)| value.parse().ok()).unwrap_or_default()
        };
        Count {
            transactions: figure("etcd_server_proposals_applied_total"),
            puts: figure("etcd_mvcc_put_total"),
            received: figure("etcd_network_client_grpc_received_bytes_total"),
        }
    }

    /// Where the first member keeps what it holds.
    pub(super) fn database(&self) -> PathBuf {
        self.0.first().expect("there is one").data.join("member/snap/db")
    }
}

impl Member {
    fn is_healthy(&self) -> bool {
        self.http("/health").is_some_and(|text| text.contains("\"true\""))
    }

    fn http(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a member has done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Count {
    /// Proposals that were applied: transactions, leases and the like.
    transactions: f64,
    /// Keys that were put.
    puts: f64,
    /// Bytes that clients sent.
    received: f64,
}

impl Count {
    /// Adds what was done from one moment to another.
    pub(super) fn add(&mut self, before: Self, after: Self) {
        self.transactions += after.transactions - before.transactions;
        self.puts += after.puts - before.puts;
        self.received += after.received - before.received;
    }

    /// The same for each of so many rounds, to be read.
    pub(super) fn each(&self, rounds: usize) -> String {
        let each = |figure: f64| figure / rounds.max(1) as f64;
        format!(
            "{:.2} transactions, {:.2} puts, {:.0} B",
            each(self.transactions),
            each(self.puts),
            each(self.received)
        )
    }
}
