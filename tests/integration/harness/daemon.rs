//! volhost itself, as a process: configured, started, asked, killed, started again.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::host::Host;
use super::http::{Client, Identity, Target};
use super::wait::{self, Said};
use super::{inner, mortal, print_log, scratch, signal};

/// How long volhost may take to be ready, or to stop.
const START: Duration = Duration::from_secs(60);

/// What a daemon is to be, before it is started.
pub(crate) struct Setup<'a> {
    dir: TempDir,
    host: Option<&'a Host>,
    rooted: bool,
    configured: bool,
    files: Vec<(String, String)>,
    limits: Vec<String>,
    stderr: Option<File>,
    umask: Option<String>,
}

/// A running (or killed) volhost with its files.
pub(crate) struct Daemon<'a> {
    setup: Setup<'a>,
    process: Option<Process>,
    addresses: Vec<String>,
}

struct Process {
    child: Child,
    /// volhost's own process ID: the child's, or below it where the way leads into a machine.
    pid: u32,
    /// What it prints. Tests ask one daemon from several threads.
    lines: Mutex<Receiver<String>>,
    /// What it has printed, as far as anybody has looked.
    printed: Vec<String>,
}

impl<'a> Daemon<'a> {
    /// A daemon of which nothing is configured but its name and where it listens: see [`Setup::standard`].
    pub(crate) fn setup() -> Setup<'a> {
        Setup {
            dir: scratch(),
            host: None,
            rooted: true,
            configured: true,
            files: Vec::new(),
            limits: Vec::new(),
            stderr: None,
            umask: None,
        }
    }

    /// Starts that daemon.
    pub(crate) fn start() -> Self {
        Self::setup().start()
    }

    /// A path below the root, as the tests see it: `daemon.path("etc/volhost/backends.json")`.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.setup.path(relative)
    }

    /// volhost's process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").pid
    }

    /// The addresses of its `listening on` lines, in their order.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The address it listens on with this scheme (`https` or `http`).
    pub(crate) fn tcp(&self, scheme: &str) -> SocketAddr {
        let of_scheme = |address: &String| address.strip_prefix(scheme)?.strip_prefix("://")?.parse().ok();
        self.addresses
            .iter()
            .find_map(of_scheme)
            .unwrap_or_else(|| panic!("no {scheme} in {:?}", self.addresses))
    }

    /// The address of its metrics.
    pub(crate) fn metrics(&self) -> SocketAddr {
        let printed = &self.process.as_ref().expect("the daemon runs").printed;
        let of_metrics = |line: &String| {
            let (_, address) = line.strip_prefix("metrics at ")?.split_once("://")?;
            address.strip_suffix("/metrics")?.parse().ok()
        };
        printed.iter().find_map(of_metrics).unwrap_or_else(|| panic!("no metrics in {printed:?}"))
    }

    /// The Unix socket it listens on.
    pub(crate) fn socket(&self) -> PathBuf {
        let of_unix = |address: &String| {
            let path = address.strip_prefix("unix:")?;
            Some(PathBuf::from(path.strip_prefix("//").unwrap_or(path)))
        };
        self.addresses
            .iter()
            .find_map(of_unix)
            .unwrap_or_else(|| panic!("no Unix socket in {:?}", self.addresses))
    }

    /// The spec file that it wrote for this machine's engine.
    pub(crate) fn spec(&self) -> Value {
        let path = self.path("etc/docker/plugins/volhost.json");
        let text = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).expect("a spec file is JSON")
    }

    /// The certificate of this machine's engine, as the spec file names it.
    pub(crate) fn identity(&self) -> Identity {
        let spec = self.spec();
        let file = |field: &str| {
            let path = spec["TLSConfig"][field].as_str().unwrap_or_else(|| panic!("no {field} in {spec}"));
            match self.setup.host {
                Some(host) if !self.setup.rooted => host.path(path),
                _ => PathBuf::from(path),
            }
        };
        Identity { ca: file("CAFile"), cert: file("CertFile"), key: file("KeyFile") }
    }

    /// Makes a bundle for a host, by another certificate where it has one, and unpacks it into `directory`, as an
    /// administrator would into `/`.
    pub(crate) fn add_host(&self, name: &str, options: &[&str], directory: &Path) -> Identity {
        let bundle = self.setup.dir.path().join(format!("{name}.tar"));
        let text = bundle.to_str().expect("temporary paths are UTF-8");
        let verb = self.verb_for(name);
        let _ = std::fs::remove_file(&bundle);
        self.cli(&[&["host", verb, name, "-o", text], options].concat()).ok();
        std::fs::create_dir_all(directory).expect("the directory can be made");
        wait::run(Command::new("tar").arg("-C").arg(directory).arg("-xf").arg(&bundle)).ok();
        let file = |name: &str| directory.join("etc/docker/volhost").join(name);
        Identity { ca: file("ca.crt"), cert: file("host.crt"), key: file("host.key") }
    }

    /// How a host gets a bundle: `add`, or `renew` where it has a certificate that is in force.
    pub(crate) fn verb_for(&self, name: &str) -> &'static str {
        let rows = self.cli(&["host", "ls", "--json"]).json();
        let has_one =
            |row: &Value| row["name"] == name && row["serial"].is_string() && row["revoked"] == false;
        if rows.as_array().is_some_and(|rows| rows.iter().any(has_one)) { "renew" } else { "add" }
    }

    /// Calls it over mutual TLS as this machine's engine does.
    pub(crate) fn tls(&self) -> Client {
        Client::connect(&Target::Tls(self.tcp("https"), self.identity())).expect("the handshake succeeds")
    }

    /// Calls it over its Unix socket.
    pub(crate) fn unix(&self) -> Client {
        Client::connect(&Target::Unix(self.socket())).expect("the socket is open")
    }

    /// Calls it as another host does.
    pub(crate) fn connect(&self, identity: &Identity) -> std::io::Result<Client> {
        Client::connect(&Target::Tls(self.tcp("https"), identity.clone()))
    }

    /// Writes a file of its anew, by a rename over the one before.
    pub(crate) fn put(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("it can be made");
        let new = path.with_extension("new");
        std::fs::write(&new, text).expect("a file can be written");
        std::fs::rename(&new, &path).expect("it can be renamed");
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        signal(name, self.pid());
    }

    /// What `volhost status --json` tells.
    pub(crate) fn status(&self) -> Value {
        self.cli(&["status", "--json"]).json()
    }

    /// Runs the command line against it.
    pub(crate) fn cli(&self, words: &[&str]) -> Said {
        let mut command = self.setup.command();
        self.setup.add_root(&mut command);
        wait::run(command.args(words))
    }

    /// Runs the command line on a terminal of its own, where somebody types this: its exit code, and what stood on the
    /// screen.
    pub(crate) fn typed(&self, words: &[&str], keys: &str) -> (Option<i32>, String) {
        let mut command = self.setup.command();
        self.setup.add_root(&mut command);
        command.args(words);
        let line: Vec<_> = [command.get_program()]
            .into_iter()
            .chain(command.get_args())
            .map(|word| word.to_str().expect("the tests' words are UTF-8"))
            .collect();
        let mut child = mortal("script")
            .args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script can be started");
        let mut keyboard = child.stdin.take().expect("it was asked for a pipe");
        keyboard.write_all(keys.as_bytes()).expect("the keys can be typed");
        let output = child.wait_with_output().expect("the command ends");
        // Not earlier: the end of what is typed would be an answer too.
        drop(keyboard);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Its log so far. A thread of its own writes a line after what the line tells: the log is read once nothing has come
    /// for a moment.
    pub(crate) fn log(&self) -> String {
        let read = || std::fs::read_to_string(self.setup.log()).unwrap_or_default();
        let (mut log, begun) = (read(), Instant::now());
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = read();
            if now == log || begun.elapsed() > Duration::from_secs(1) {
                return now;
            }
            log = now;
        }
    }

    /// Kills it as a power loss would.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            kill(&mut process);
        }
    }

    /// Asks it to stop, and says how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended()
    }

    /// Waits for its end, which something else brought about, and says how it ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon ran");
        let ended = || process.child.try_wait().expect("the daemon is our child");
        wait::until("volhost's end", START, ended)
    }

    /// Starts it on the same files again, with or without having killed it before.
    pub(crate) fn restart(&mut self) {
        self.kill9();
        self.start_again();
    }

    /// Starts it after it was killed or terminated.
    pub(crate) fn start_again(&mut self) {
        if let Err(status) = self.start_with(&[]) {
            panic!("volhost ended before it was ready: {status}");
        }
    }

    /// Starts it with these environment variables, for this time only; how it ended, when it did before it was ready.
    pub(crate) fn start_with(&mut self, environment: &[(&str, &str)]) -> Result<(), ExitStatus> {
        assert!(self.process.is_none(), "the daemon runs already");
        let mut process = self.setup.launch(environment);
        self.addresses = process.ready()?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts it and does not wait until it is ready: for one that has to wait itself, for something that the test
    /// withholds. To be followed by [`Daemon::ready`].
    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none(), "the daemon runs already");
        self.process = Some(self.setup.launch(&[]));
    }

    /// What a daemon that was launched has printed so far.
    pub(crate) fn printed(&mut self) -> &[String] {
        let process = self.process.as_mut().expect("the daemon runs");
        process.read(Duration::ZERO);
        &process.printed
    }

    /// Waits until a daemon that was launched is ready; how it ended, when it did before that.
    pub(crate) fn ready(&mut self) -> Result<(), ExitStatus> {
        let mut process = self.process.take().expect("the daemon was launched");
        self.addresses = process.ready()?;
        self.process = Some(process);
        Ok(())
    }

    /// Waits until it has ended by itself, and says how.
    pub(crate) fn wait_for_end(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon runs");
        let ended = || process.child.try_wait().expect("the daemon is our child");
        wait::until("volhost's end by itself", START, ended)
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            print_log("volhost's log", &self.setup.log());
        }
    }
}

impl<'a> Setup<'a> {
    /// Where the daemon's files will be.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A path below the root (without one: on the daemon's machine), as the tests see it.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        match self.host {
            Some(host) if !self.rooted => host.path(&format!("/{relative}")),
            _ => self.root().join(relative),
        }
    }

    /// The configuration of a daemon that is given none: it is `node1`, or its machine's name, and listens for mutual
    /// TLS and on a Unix socket. The port is the kernel's choice; on a machine of its own it is 7443, because engines
    /// never look up a port twice.
    pub(crate) fn standard(&self) -> Value {
        let socket = format!("unix:{}", self.root().join("run/volhost/plugin.sock").display());
        match self.host {
            None => json!({ "node": "node1", "listen": ["https://127.0.0.1:0", socket] }),
            Some(host) => json!({ "node": host.name(), "listen": ["https://127.0.0.1:7443", socket] }),
        }
    }

    /// Sets `volhost.json` in place of the standard one.
    pub(crate) fn config(self, config: &Value) -> Self {
        self.unconfigured().file("etc/volhost/volhost.json", &config.to_string())
    }

    /// Sets `backends.json`.
    pub(crate) fn backends(self, map: &Value) -> Self {
        self.file("etc/volhost/backends.json", &map.to_string())
    }

    /// Sets any file that is to be there at the start.
    pub(crate) fn file(mut self, relative: &str, text: &str) -> Self {
        self.files.push((relative.to_owned(), text.to_owned()));
        self
    }

    /// Leaves the standard configuration out: what remains is `volhost --root DIR serve`.
    pub(crate) fn unconfigured(mut self) -> Self {
        self.configured = false;
        self
    }

    /// Runs it on a machine of its own.
    pub(crate) fn on(mut self, host: &'a Host) -> Self {
        self.host = Some(host);
        self
    }

    /// Runs it without `--root`, on the machine's own paths: `volhost serve`, as a first user types it.
    pub(crate) fn without_root(mut self) -> Self {
        assert!(self.host.is_some(), "only on a machine of its own may volhost use the real paths");
        self.rooted = false;
        self
    }

    /// Limits how many files it may have open: `SOFT:HARD`.
    pub(crate) fn open_files(self, limits: &str) -> Self {
        self.limit("nofile", limits)
    }

    /// Sets a resource limit, by the name that `prlimit` knows it by.
    pub(crate) fn limit(mut self, name: &str, limits: &str) -> Self {
        self.limits.push(format!("--{name}={limits}"));
        self
    }

    /// Has its log written to this file instead of the one that [`Daemon::log`] reads.
    pub(crate) fn stderr(mut self, file: File) -> Self {
        self.stderr = Some(file);
        self
    }

    /// Runs it, and the command line against it, with this umask.
    pub(crate) fn umask(mut self, umask: &str) -> Self {
        self.umask = Some(umask.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    pub(crate) fn start(self) -> Daemon<'a> {
        let mut daemon = self.prepare();
        daemon.start_again();
        daemon
    }

    /// Writes its files and leaves the start to [`Daemon::start_again`] or [`Daemon::start_with`].
    pub(crate) fn prepare(self) -> Daemon<'a> {
        self.write_files();
        Daemon { setup: self, process: None, addresses: Vec::new() }
    }

    /// Starts one that is expected to refuse: how it ended, and its log. What it left is looked at by `look`, before
    /// its files go.
    pub(crate) fn refused(self, look: impl FnOnce()) -> (ExitStatus, String) {
        self.write_files();
        let mut process = self.launch(&[]);
        match process.ready() {
            Ok(addresses) => {
                kill(&mut process);
                panic!("volhost started although it should not, and listens on {addresses:?}")
            }
            Err(status) => {
                look();
                (status, std::fs::read_to_string(self.log()).unwrap_or_default())
            }
        }
    }

    fn write_files(&self) {
        let standard =
            self.configured.then(|| ("etc/volhost/volhost.json".to_owned(), self.standard().to_string()));
        for (relative, text) in standard.iter().chain(&self.files) {
            let path = self.path(relative);
            std::fs::create_dir_all(path.parent().expect("a file has a directory")).expect("it can be made");
            std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("volhost.log")
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_volhost");
        match (self.host, &self.umask) {
            (Some(host), _) => host.command(program),
            (None, None) if self.limits.is_empty() => mortal(program),
            (None, None) => {
                let mut command = mortal("prlimit");
                command.args(&self.limits).arg(program);
                command
            }
            (None, Some(umask)) => {
                let mut command = mortal("sh");
                command.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(program);
                command
            }
        }
    }

    fn add_root(&self, command: &mut Command) {
        if self.rooted {
            command.arg("--root").arg(self.root());
        }
    }

    fn launch(&self, environment: &[(&str, &str)]) -> Process {
        let log = match &self.stderr {
            Some(file) => file.try_clone().expect("a file can be cloned"),
            None => File::options().create(true).append(true).open(self.log()).expect("the log can be made"),
        };
        let mut command = self.command();
        self.add_root(&mut command);
        command.arg("serve").envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("volhost can be started");
        let lines = follow(&mut child);
        let pid = match self.host {
            None => child.id(),
            Some(_) => inner(&mut child),
        };
        Process { child, pid, lines: Mutex::new(lines), printed: Vec::new() }
    }
}

impl Process {
    /// Waits until it is ready, and says where it listens; how it ended, when it did before that.
    fn ready(&mut self) -> Result<Vec<String>, ExitStatus> {
        let deadline = Instant::now() + START;
        let is_address = |line: &String| line.strip_prefix("listening on ").map(str::to_owned);
        loop {
            let ended = self.read(deadline.saturating_duration_since(Instant::now()));
            if self.printed.iter().any(|line| line == "ready") {
                return Ok(self.printed.iter().filter_map(is_address).collect());
            }
            if ended {
                return Err(self.child.wait().expect("the daemon is our child"));
            }
            if Instant::now() >= deadline {
                kill(self);
                panic!("volhost was not ready within {START:?}; it printed {:?}", self.printed);
            }
        }
    }

    /// Reads what it prints within that time, one line if there is nothing yet; true when there will be no more.
    fn read(&mut self, within: Duration) -> bool {
        let lines = self.lines.get_mut().expect("no holder of this lock panics");
        let first = lines.recv_timeout(within);
        let ended = matches!(first, Err(RecvTimeoutError::Disconnected));
        self.printed.extend(first.into_iter().chain(lines.try_iter()));
        ended
    }
}

/// Kills a daemon that may have ended by itself.
fn kill(process: &mut Process) {
    let inner = process.child.id() != process.pid;
    let killed = inner
        && Command::new("kill")
            .args(["-s", "KILL", &process.pid.to_string()])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
    // The way into the machine ends when what it led to has ended, its files closed; not before. It stops with it, too.
    if killed {
        let _ = Command::new("kill").args(["-s", "CONT", &process.child.id().to_string()]).status();
    } else {
        let _ = process.child.kill();
    }
    let _ = process.child.wait();
}

/// Reads what the daemon prints, to its end, so that it never blocks on a full pipe.
fn follow(child: &mut Child) -> Receiver<String> {
    let stdout = BufReader::new(child.stdout.take().expect("it was asked for a pipe"));
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            // Once it is ready nobody listens any more.
            let _ = sender.send(line);
        }
    });
    lines
}
