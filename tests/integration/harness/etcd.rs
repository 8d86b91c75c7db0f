//! A cluster of etcd, of one member or of three, which are killed, frozen, started again and cut off on command.
//!
//! Its members listen on an address of the loopback network that no other test has at the time, or on a machine
//! ([`Host`]) that others join. What they hold is looked at and changed by `etcdctl`, never by volhost's own client.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::authority::{Authority, Pair};
use super::host::Host;
use super::wait::{self, Said, until};
use super::{inner, mortal, print_log, report_version, scratch, signal};

/// Debian's programs, by their paths.
const ETCD: &str = "/usr/bin/etcd";
const ETCDCTL: &str = "/usr/bin/etcdctl";

/// How long a cluster may take until it answers: on a slow machine an election may have to be repeated.
const START: Duration = Duration::from_secs(60);

/// The catalog whose keys, which begin with it between slashes, a limited user may read and write.
pub(crate) const PREFIX: &str = "volhost";

/// The password of the user `root`, who is there as soon as there is another one.
const ROOT: &str = "root:of-the-tests";

/// What a cluster is to be, before it is started.
pub(crate) struct Plan<'a> {
    members: usize,
    tls: bool,
    user: Option<(String, String)>,
    host: Option<&'a Host>,
    quota: Option<u32>,
}

/// A cluster, some members of which may be dead or frozen.
pub(crate) struct Cluster<'a> {
    members: Vec<Etcd>,
    host: Option<&'a Host>,
    tls: Option<Tls>,
    user: Option<String>,
    quota: Option<u32>,
    dir: TempDir,
    /// That no other test has its address.
    _ours: Option<UnixListener>,
}

/// One member: its process, and what outlives that.
struct Etcd {
    name: String,
    dir: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    process: Option<Child>,
    /// The process ID of etcd itself.
    pid: u32,
    frozen: bool,
}

/// The authorities of a cluster: the one that signs now, the one that will, and the members' own among themselves.
struct Tls {
    now: Authority,
    next: Authority,
    peers: Authority,
}

/// How a member is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// It is killed: whoever calls it is refused at once.
    Killed,
    /// It is frozen: whoever calls it hears nothing.
    Frozen,
}

impl<'a> Plan<'a> {
    /// Has clients and members prove themselves to each other by certificates.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Has etcd ask clients for a user and a password, and gives this user what lies below [`PREFIX`].
    pub(crate) fn user(mut self, name: &str, password: &str) -> Self {
        self.user = Some((name.to_owned(), password.to_owned()));
        self
    }

    /// Runs the members on a machine: at [`Host::GATEWAY`], which is its address once another one has joined it.
    pub(crate) fn on(mut self, host: &'a Host) -> Self {
        self.host = Some(host);
        self
    }

    /// Has etcd refuse to grow beyond so many bytes.
    pub(crate) fn quota(mut self, bytes: u32) -> Self {
        self.quota = Some(bytes);
        self
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(self) -> Cluster<'a> {
        let Self { members, tls, user, host, quota } = self;
        assert!(
            Path::new(ETCD).exists(),
            "there is no {ETCD}: install Debian's etcd-server, as tests/run does"
        );
        assert!(
            Path::new(ETCDCTL).exists(),
            "there is no {ETCDCTL}: install Debian's etcd-client, as tests/run does"
        );
        let tls = tls.then(|| Tls {
            now: Authority::new("the cluster's CA"),
            next: Authority::new("the cluster's next CA"),
            peers: Authority::new("the members' CA"),
        });
        let mut cluster =
            Cluster { members: Vec::new(), host, tls, user: None, quota, dir: scratch(), _ours: None };
        cluster.start_somewhere(members);
        if let Some((name, password)) = user {
            cluster.let_in_only(&name, &password);
        }
        cluster
    }
}

impl<'a> Cluster<'a> {
    /// A cluster of one member.
    pub(crate) fn single() -> Plan<'a> {
        Plan { members: 1, tls: false, user: None, host: None, quota: None }
    }

    /// A cluster of three members.
    pub(crate) fn three() -> Plan<'a> {
        Plan { members: 3, ..Self::single() }
    }

    /// How many members it has, dead or alive.
    pub(crate) fn size(&self) -> usize {
        self.members.len()
    }

    /// The members' addresses, for clients.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// The catalog of that prefix as a configuration names it.
    pub(crate) fn catalog(&self, prefix: &str) -> String {
        let members: Vec<_> = self.addresses().iter().map(SocketAddr::to_string).collect();
        format!("etcd://{}/{prefix}", members.join(","))
    }

    /// What a configuration says in `etcd` of how an instance is let in; nothing where everybody is.
    pub(crate) fn credentials(&self) -> Option<Value> {
        let file = |name: &str| self.client_file(name).display().to_string();
        let mut credentials = json!({});
        if self.tls.is_some() {
            credentials =
                json!({ "ca": file("ca.crt"), "cert": file("client.crt"), "key": file("client.key") });
        }
        if let Some(user) = &self.user {
            credentials["user"] = json!(user);
            credentials["password_file"] = json!(file("password"));
        }
        (credentials != json!({})).then_some(credentials)
    }

    /// One of the files that [`Cluster::credentials`] names: `ca.crt`, `client.crt`, `client.key` or `password`.
    pub(crate) fn client_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("client").join(name)
    }

    /// Kills a member.
    pub(crate) fn kill(&mut self, member: usize) {
        self.members[member].kill();
    }

    /// Starts a member that was killed, on what it had. Whether it answers is not waited for. To be called by the thread
    /// that holds the cluster: a member ends with the thread that started it.
    pub(crate) fn start(&mut self, member: usize) {
        let command = self.command(member);
        self.members[member].start(command, self.host.is_some());
    }

    /// Stops a member's clock: its connections stand, and nothing comes from it.
    pub(crate) fn freeze(&mut self, member: usize) {
        let member = &mut self.members[member];
        assert!(member.process.is_some(), "{} does not run", member.name);
        signal("STOP", member.pid);
        member.frozen = true;
    }

    /// Has a frozen member go on.
    pub(crate) fn thaw(&mut self, member: usize) {
        self.members[member].thaw();
    }

    /// Loses a member in that way.
    pub(crate) fn lose(&mut self, member: usize, how: Loss) {
        match how {
            Loss::Killed => self.kill(member),
            Loss::Frozen => self.freeze(member),
        }
    }

    /// Loses all members but one, of three or of one: nothing can be written, and nothing read for certain.
    pub(crate) fn lose_quorum(&mut self, how: Loss) {
        let leader = self.leader();
        let lost = self.size().div_ceil(2);
        // The leader first: until it is gone it answers for those that went before.
        let order = (leader..self.size()).chain(0..leader);
        for member in order.take(lost) {
            self.lose(member, how);
        }
    }

    /// Brings back every member that was lost, and waits until all of them answer.
    pub(crate) fn recover(&mut self) {
        for member in 0..self.size() {
            if self.members[member].process.is_none() {
                self.start(member);
            } else if self.members[member].frozen {
                self.thaw(member);
            }
        }
        self.wait_until_healthy();
    }

    /// Kills all members and starts them again.
    pub(crate) fn restart(&mut self) {
        for member in 0..self.size() {
            self.kill(member);
        }
        self.recover();
    }

    /// Saves what the cluster holds, as an operator does who keeps backups: for [`Cluster::take_back`].
    pub(crate) fn save(&self) -> PathBuf {
        let file = self.dir.path().join("snapshot");
        // Of one member, whichever.
        let address = self.url(self.members[0].client);
        let mut command = self.ctl_command_at(&address, ROOT);
        wait::run(command.args(["snapshot", "save"]).arg(&file)).ok();
        file
    }

    /// Restores what was saved, in the place of all that came after it.
    pub(crate) fn take_back(&mut self, snapshot: &Path) {
        for at in 0..self.size() {
            self.kill(at);
            let member = &self.members[at];
            let data = member.dir.join("data");
            std::fs::remove_dir_all(&data).expect("a member's data can be removed");
            let mut command = self.program(ETCDCTL);
            command.env("ETCDCTL_API", "3").args(["snapshot", "restore"]).arg(snapshot);
            command.arg("--data-dir").arg(&data).args(["--name", &member.name]);
            command.args(["--initial-cluster", &self.peers(), "--initial-cluster-token", &self.token()]);
            wait::run(command.args(["--initial-advertise-peer-urls", &self.url(member.peer)])).ok();
        }
        self.recover();
    }

    /// Waits until each member that runs answers a read that a majority has agreed to.
    pub(crate) fn wait_until_healthy(&self) {
        for member in self.members.iter().filter(|member| member.runs()) {
            let what = format!("{} to answer", member.name);
            until(&what, START, || (self.read_from(member).code == Some(0)).then_some(()));
        }
    }

    /// The member that leads, once those that run agree on it.
    pub(crate) fn leader(&self) -> usize {
        until("the members to agree on who leads", START, || {
            let told = self.ctl(&["endpoint", "status", "--write-out=json"]);
            let status: Value = serde_json::from_str(&told.stdout).ok().filter(|_| told.code == Some(0))?;
            let status = status.as_array()?;
            let leader = status.first()?["Status"]["leader"].as_u64()?;
            let agreed = status.iter().all(|one| one["Status"]["leader"] == leader);
            let is_leader = |one: &&Value| one["Status"]["header"]["member_id"] == leader;
            let endpoint = status.iter().find(is_leader)?["Endpoint"].as_str()?;
            let at = self.members.iter().position(|member| endpoint.ends_with(&member.client.to_string()));
            at.filter(|_| agreed)
        })
    }

    /// Forgets every revision but the present one: who watches from an earlier one has to read everything again.
    pub(crate) fn compact(&self) {
        self.ok(&["compaction", "--physical", &self.revision().to_string()]);
    }

    /// The number of the last change.
    pub(crate) fn revision(&self) -> u64 {
        let told = self.ctl(&["get", "--write-out=json", "none"]).json();
        told["header"]["revision"].as_u64().expect("an answer tells its revision")
    }

    /// The keys that begin with this, and their values, in their order.
    pub(crate) fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let told = self.ctl(&["get", "--prefix", "--write-out=json", prefix]).json();
        let text = |one: &Value, field: &str| {
            let bytes =
                BASE64_STANDARD.decode(one[field].as_str().unwrap_or_default()).expect("it is base64");
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let rows = told["kvs"].as_array().into_iter().flatten();
        rows.map(|row| (text(row, "key"), text(row, "value"))).collect()
    }

    /// The keys that begin with this, in their order.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.get(prefix).into_iter().map(|(key, _)| key).collect()
    }

    /// Writes a key.
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ok(&["put", key, value]);
    }

    /// Deletes a key.
    pub(crate) fn del(&self, key: &str) {
        self.ok(&["del", key]);
    }

    /// Gives the limited user another password. The file that instances read it from is [`Cluster::write_password`]'s.
    pub(crate) fn change_password(&self, password: &str) {
        let user = self.user.as_deref().expect("the cluster has a user");
        let mut command = self.ctl_command(ROOT);
        command
            .args(["user", "passwd", user, "--interactive=false"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("etcdctl can be started");
        let mut keyboard = child.stdin.take().expect("it was asked for a pipe");
        keyboard.write_all(format!("{password}\n").as_bytes()).expect("the password can be typed");
        drop(keyboard);
        let output = child.wait_with_output().expect("etcdctl ends");
        assert!(output.status.success(), "the password was not changed: {output:?}");
    }

    /// Writes a password into the file that instances read it from.
    pub(crate) fn write_password(&self, password: &str) {
        replace(&self.client_file("password"), &format!("{password}\n"));
    }

    /// Gives clients a certificate of the next authority, and its own beside the present one to trust. Members take
    /// both kinds of clients until [`Cluster::retire`].
    pub(crate) fn replace_client_certificate(&self) {
        let Tls { now, next, peers: _ } = self.tls.as_ref().expect("the cluster has TLS");
        replace(&self.client_file("ca.crt"), &format!("{}{}", now.pem(), next.pem()));
        self.write_client(&next.client("instance", 2));
    }

    /// Starts the members again, one after the other, with certificates of the next authority; clients have to have
    /// one of it, too, from now on.
    pub(crate) fn retire(&mut self) {
        for member in 0..self.size() {
            let Tls { now: _, next, peers: _ } = self.tls.as_ref().expect("the cluster has TLS");
            let of = &self.members[member];
            replace(&of.dir.join("clients.crt"), &next.pem());
            of.write_pair("server", &next.member(&of.names()));
            self.kill(member);
            self.start(member);
            self.wait_until_healthy();
        }
    }

    /// Runs etcdctl as the user who may do everything, against the members that run.
    pub(crate) fn ctl(&self, words: &[&str]) -> Said {
        wait::run(self.ctl_command(ROOT).args(words))
    }

    /// Runs etcdctl as an instance is let in, with this password.
    pub(crate) fn ctl_as_instance(&self, password: &str, words: &[&str]) -> Said {
        let user = self.user.as_deref().expect("the cluster has a user");
        wait::run(self.ctl_command(&format!("{user}:{password}")).args(words))
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.ctl(words).ok()
    }

    fn read_from(&self, member: &Etcd) -> Said {
        let address = self.url(member.client);
        wait::run(self.ctl_command_at(&address, ROOT).args(["--command-timeout=2s", "get", "none"]))
    }

    fn ctl_command(&self, user: &str) -> Command {
        let running: Vec<_> = self.members.iter().filter(|member| member.runs()).collect();
        assert!(!running.is_empty(), "no member runs that could be asked");
        let addresses: Vec<_> = running.iter().map(|member| self.url(member.client)).collect();
        self.ctl_command_at(&addresses.join(","), user)
    }

    fn ctl_command_at(&self, addresses: &str, user: &str) -> Command {
        let mut command = self.program(ETCDCTL);
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={addresses}"));
        if self.tls.is_some() {
            for (option, file) in [("cacert", "ca.crt"), ("cert", "client.crt"), ("key", "client.key")] {
                command.arg(format!("--{option}={}", self.client_file(file).display()));
            }
        }
        if self.user.is_some() {
            command.arg(format!("--user={user}"));
        }
        command
    }

    fn program(&self, path: &str) -> Command {
        match self.host {
            Some(host) => host.command(path),
            None => mortal(path),
        }
    }

    fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }

    /// Starts all members, on other ports where those that were free a moment ago are somebody's now.
    fn start_somewhere(&mut self, members: usize) {
        for attempt in 1.. {
            let (address, port, ours) = place(self.host.is_some(), members);
            self._ours = ours;
            let member = |at: usize| Etcd::new(at, self.dir.path(), address, port);
            self.members = (0..members).map(member).collect();
            self.write_certificates();
            for member in 0..members {
                self.start(member);
            }
            let Err(why) = self.come_up() else { break };
            assert!(attempt < 5 && why.contains("address already in use"), "etcd did not start: {why}");
            for member in &mut self.members {
                member.kill();
                std::fs::remove_dir_all(&member.dir).expect("a member's directory can be removed");
            }
        }
        let version = wait::run(Command::new(ETCD).arg("--version")).ok();
        report_version(
            "etcd",
            version.lines().next().unwrap_or_default().trim_start_matches("etcd Version: "),
        );
    }

    /// Waits until every member answers; the end of a member's log, when it ended instead.
    fn come_up(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START;
        for at in 0..self.size() {
            while self.read_from(&self.members[at]).code != Some(0) {
                for member in &mut self.members {
                    member.is_alive()?;
                }
                if Instant::now() > deadline {
                    return Err(format!("it did not answer within {START:?}"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn write_certificates(&self) {
        std::fs::create_dir_all(self.client_file("")).expect("the directory can be made");
        let Some(Tls { now, next, peers }) = &self.tls else { return };
        replace(&self.client_file("ca.crt"), &now.pem());
        self.write_client(&now.client("instance", 1));
        for member in &self.members {
            replace(&member.dir.join("clients.crt"), &format!("{}{}", now.pem(), next.pem()));
            replace(&member.dir.join("peers.crt"), &peers.pem());
            member.write_pair("server", &now.member(&member.names()));
            member.write_pair("peer", &peers.member(&member.names()));
        }
    }

    fn write_client(&self, pair: &Pair) {
        replace(&self.client_file("client.key"), &pair.key);
        replace(&self.client_file("client.crt"), &pair.cert);
    }

    /// Makes the users, and has everybody be one of them from now on.
    fn let_in_only(&mut self, name: &str, password: &str) {
        for words in [
            &["user", "add", ROOT][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "catalog"],
            &["role", "grant-permission", "--prefix", "catalog", "readwrite", &format!("/{PREFIX}/")],
            &["user", "add", &format!("{name}:{password}")],
            &["user", "grant-role", name, "catalog"],
            &["auth", "enable"],
        ] {
            // The role root may be there already; which versions make it themselves is not worth a question.
            self.ok(words);
        }
        self.user = Some(name.to_owned());
        self.write_password(password);
        self.wait_until_healthy();
    }

    /// All members, as each of them is told of the others.
    fn peers(&self) -> String {
        let all = self.members.iter().map(|member| format!("{}={}", member.name, self.url(member.peer)));
        all.collect::<Vec<_>>().join(",")
    }

    /// What tells this cluster from others.
    fn token(&self) -> String {
        self.dir.path().display().to_string()
    }

    fn command(&self, member: usize) -> Command {
        let member = &self.members[member];
        let (client, peer) = (self.url(member.client), self.url(member.peer));
        let mut command = self.program(ETCD);
        let mut add = |option: &str, value: &str| {
            command.arg(format!("--{option}={value}"));
        };
        let file = |name: &str| member.dir.join(name).display().to_string();
        add("name", &member.name);
        add("data-dir", &file("data"));
        add("listen-client-urls", &client);
        add("advertise-client-urls", &client);
        add("listen-peer-urls", &peer);
        add("initial-advertise-peer-urls", &peer);
        add("initial-cluster", &self.peers());
        // The cheapest there is: passwords are asked for at every other step of a test.
        add("bcrypt-cost", "4");
        add("initial-cluster-token", &self.token());
        if let Some(bytes) = self.quota {
            add("quota-backend-bytes", &bytes.to_string());
        }
        if self.tls.is_some() {
            for (prefix, ca, pair) in [("", "clients.crt", "server"), ("peer-", "peers.crt", "peer")] {
                add(&format!("{prefix}client-cert-auth"), "true");
                add(&format!("{prefix}trusted-ca-file"), &file(ca));
                add(&format!("{prefix}cert-file"), &file(&format!("{pair}.crt")));
                add(&format!("{prefix}key-file"), &file(&format!("{pair}.key")));
            }
        }
        command
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.kill();
            if std::thread::panicking() {
                print_log(&format!("the log of {}", member.name), &member.log());
            }
        }
    }
}

impl Etcd {
    fn new(at: usize, below: &Path, address: Ipv4Addr, port: u16) -> Self {
        let name = format!("etcd{}", at + 1);
        let dir = below.join(&name);
        std::fs::create_dir_all(&dir).expect("a member's directory can be made");
        let [client, peer] = ports(port, at).map(|port| SocketAddr::from((address, port)));
        Self { name, dir, client, peer, process: None, pid: 0, frozen: false }
    }

    /// What its certificate names: where it listens, and where it calls the others from.
    fn names(&self) -> [IpAddr; 2] {
        [self.client.ip(), Ipv4Addr::LOCALHOST.into()]
    }

    fn write_pair(&self, name: &str, pair: &Pair) {
        replace(&self.dir.join(format!("{name}.key")), &pair.key);
        replace(&self.dir.join(format!("{name}.crt")), &pair.cert);
    }

    fn start(&mut self, mut command: Command, on_a_machine: bool) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log()).expect("the log can be made");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        let mut child = command.spawn().expect("etcd can be started");
        self.pid = if on_a_machine { inner(&mut child) } else { child.id() };
        self.process = Some(child);
    }

    /// Whether it runs, and is not frozen.
    fn runs(&self) -> bool {
        self.process.is_some() && !self.frozen
    }

    /// The end of its log, unless its process is there.
    fn is_alive(&mut self) -> Result<(), String> {
        let Some(process) = &mut self.process else { return Ok(()) };
        match process.try_wait().expect("etcd is our child") {
            None => Ok(()),
            Some(status) => {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                let last = log.lines().next_back().unwrap_or_default();
                Err(format!("{} ended, {status}: {last}", self.name))
            }
        }
    }

    fn thaw(&mut self) {
        let Some(process) = &self.process else { return };
        if self.frozen {
            // The way into a machine stops with what it led to, and has that go on when it goes on itself.
            signal("CONT", process.id());
            signal("CONT", self.pid);
            self.frozen = false;
        }
    }

    fn kill(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        self.frozen = false;
        if matches!(process.try_wait(), Ok(Some(_))) {
            return;
        }
        signal("KILL", self.pid);
        if process.id() != self.pid {
            signal("CONT", process.id());
        }
        process.wait().expect("etcd is our child");
    }

    fn log(&self) -> PathBuf {
        self.dir.join("etcd.log")
    }
}

/// An address for a cluster's members, and the first of their ports: on a machine of their own the one that others
/// know; else one of the loopback network's many that no test has, for as long as what comes with it is held.
///
/// With an address of its own a member that is down has its port free when it comes back, although others choose ports
/// by themselves meanwhile.
fn place(on_a_machine: bool, members: usize) -> (Ipv4Addr, u16, Option<UnixListener>) {
    const FIRST: u16 = 2379;
    if on_a_machine {
        return (Host::GATEWAY, FIRST, None);
    }
    let start = std::process::id();
    for number in start..start + 60_000 {
        let [_, _, third, fourth] = number.to_be_bytes();
        if [0, 255].contains(&fourth) {
            continue;
        }
        let address = Ipv4Addr::new(127, 77, third, fourth);
        let name =
            UnixAddr::from_abstract_name(format!("volhost-test-etcd-{address}")).expect("the name is short");
        let Ok(ours) = UnixListener::bind_addr(&name) else { continue };
        // Somebody may listen on a port at every address.
        for first in [FIRST, FIRST + 10_000, FIRST + 20_000] {
            let all = (0..members).flat_map(|at| ports(first, at));
            if all.map(|port| TcpListener::bind((address, port))).collect::<Result<Vec<_>, _>>().is_ok() {
                return (address, first, Some(ours));
            }
        }
    }
    panic!("no address of the loopback network has free ports for etcd");
}

/// A member's ports: the clients' and its peers'.
fn ports(first: u16, member: usize) -> [u16; 2] {
    let own = first + 10 * u16::try_from(member).expect("clusters are small");
    [own, own + 1]
}

/// Writes a file that only its owner may read, by a rename over the one before.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    let mut options = File::options();
    options.create(true).truncate(true).write(true).mode(0o600);
    let mut file = options.open(&new).unwrap_or_else(|e| panic!("{}: {e}", new.display()));
    file.write_all(text.as_bytes()).expect("a file can be written");
    std::fs::rename(&new, path).expect("it can be renamed");
}
