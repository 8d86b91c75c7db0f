//! The processes that are measured: volhost and the bare server, started and read from outside.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server that was started and is ready.
pub(crate) struct Process {
    child: Child,
    /// Where it is reached.
    pub address: SocketAddr,
    /// Where its metrics are, if it has any.
    pub metrics: Option<SocketAddr>,
    /// From before it was started to its line `ready`.
    pub start: Duration,
}

/// What a process takes of memory, in bytes.
pub(crate) struct Memory {
    /// All its pages, those of its program file among them.
    pub resident: u64,
    /// Those that no file stands behind.
    pub anonymous: u64,
}

impl Process {
    /// Starts a program that prints `listening on SCHEME://ADDRESS` and then `ready`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the log can be made");
        let began = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let mut lines = BufReader::new(child.stdout.take().expect("it has a pipe")).lines();
        let (mut address, mut metrics) = (None, None);
        loop {
            let line = lines.next().expect("the server ended; its log says why").expect("a line is text");
            if let Some(text) = line.strip_prefix("listening on https://") {
                address = text.parse().ok();
            } else if let Some(text) = line.strip_prefix("metrics at http://") {
                metrics = text.strip_suffix("/metrics").and_then(|text| text.parse().ok());
            } else if line == "ready" {
                break;
            }
        }
        let start = began.elapsed();
        Self { child, address: address.expect("it listens for TLS"), metrics, start }
    }

    /// The processor time it has taken so far, in user mode and in the kernel.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).expect("the process runs");
        // The second field is the program's name, which may hold anything but ends with the last parenthesis.
        let (_, rest) = stat.rsplit_once(") ").expect("the line has a name");
        let ticks: u64 =
            rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
        // The kernel tells it in hundredths of a second, on every machine that Linux runs on today.
        Duration::from_secs(ticks) / 100
    }

    /// The memory it takes now.
    pub(crate) fn memory(&self) -> Memory {
        let text = std::fs::read_to_string(self.proc("smaps_rollup")).expect("the process runs");
        Memory { resident: kib(&text, "Rss:"), anonymous: kib(&text, "Anonymous:") }
    }

    /// The most memory it has taken at any time.
    pub(crate) fn peak(&self) -> u64 {
        kib(&std::fs::read_to_string(self.proc("status")).expect("the process runs"), "VmHWM:")
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn terminate(mut self) {
        let id = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .expect("it has an ID");
        rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it is ours");
        self.child.wait().expect("it is ours");
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.child.id()).into()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kib(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// The files of one volhost, below a directory of its own.
pub(crate) struct Root(PathBuf);

impl Root {
    /// Writes the configuration of a volhost that listens for mutual TLS on a port of the kernel's choice.
    pub(crate) fn new(path: PathBuf) -> Self {
        let etc = path.join("etc/volhost");
        for directory in [&etc, &path.join("log")] {
            std::fs::create_dir_all(directory).expect("the directory can be made");
        }
        std::fs::write(
            etc.join("volhost.json"),
            r#"{ "node": "bench", "listen": ["https://127.0.0.1:0"], "metrics": "http://127.0.0.1:0" }"#,
        )
        .expect("the configuration can be written");
        Self(path)
    }

    /// The same for an instance among others: with another root's authority, a catalog that is named, and the directory
    /// that all of them have their volumes in.
    #[cfg(feature = "etcd")]
    pub(crate) fn sharing(path: PathBuf, other: &Self, catalog: &str, volumes: &Path) -> Self {
        let root = Self::new(path);
        let node = root.0.file_name().map(|name| name.to_string_lossy().into_owned());
        let config =
            serde_json::json!({ "node": node, "listen": ["https://127.0.0.1:0"], "catalog": catalog });
        let map = serde_json::json!({ "default": { "path": volumes } });
        for (file, text) in [("volhost.json", config), ("backends.json", map)] {
            std::fs::write(root.path("etc/volhost").join(file), text.to_string())
                .expect("the configuration can be written");
        }
        std::fs::create_dir_all(volumes).expect("the directory can be made");
        let copied = Command::new("cp").arg("-a").arg(other.pki().dir()).arg(root.pki().dir()).status();
        assert!(copied.is_ok_and(|status| status.success()), "the certificates are copied");
        root
    }

    /// A path below the root.
    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.0.join(relative)
    }

    /// Starts volhost on it.
    pub(crate) fn start(&self) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volhost"));
        command.arg("--root").arg(&self.0).arg("serve").env_remove("RUST_LOG");
        // Not in a directory above the configuration: volhost follows those, and each line of its log would wake it.
        Process::start(&mut command, &self.path("log/volhost.log"))
    }

    /// The catalog's file.
    pub(crate) fn catalog(&self) -> PathBuf {
        self.path("var/lib/volhost/catalog.db")
    }

    /// volhost's certificates and keys.
    pub(crate) fn pki(&self) -> volhost::pki::Pki {
        volhost::pki::Pki::new(self.path("etc/volhost/pki"))
    }
}
