//! Another volume plugin beside volhost: Debian's `rclone serve docker`, which does what it does by itself.
//!
//! volhost answers over mutual TLS and once a change is on the disk, rclone over plain TCP and without a flush.

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fleet::mount_and_unmount;
use crate::load::{self, Client, Connection, Runtimes};
use crate::process::Root;
use crate::subjects::{Row, by_turns, median, micros, times};

/// The volume that is mounted.
const MOUNTED: &str = "mounted";

/// How long a plugin may take to start, or for one turn.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is measured.
#[derive(Clone, Copy)]
enum Step {
    Create,
    Get,
    Mount,
}

/// One of the two plugins, as its client sees it.
struct Plugin {
    connection: Connection,
    /// The options that its Creates have.
    options: serde_json::Value,
    volumes: u64,
}

impl Plugin {
    async fn create(&mut self, name: &str) {
        let body = serde_json::json!({ "Name": name, "Opts": self.options }).to_string();
        load::call(&mut self.connection, "/VolumeDriver.Create", body).await;
    }

    /// Creates volumes until there are so many of [`load::name`].
    async fn fill(&mut self, volumes: u64) {
        while self.volumes < volumes {
            self.create(&load::name(self.volumes)).await;
            self.volumes += 1;
        }
    }

    /// How long a step takes, in microseconds: the median of some.
    async fn measure(&mut self, step: Step) -> f64 {
        const EACH: u64 = 40;
        const CREATED: &str = "created";
        // rclone 1.60 never answers again if a Mount comes before it has noticed the end of the mount before.
        const PAUSE: Duration = Duration::from_millis(10);
        let mut taken = Vec::new();
        for number in 0..EACH {
            let began = Instant::now();
            match step {
                Step::Create => self.create(CREATED).await,
                Step::Get => drop(load::get(&mut self.connection, number * self.volumes / EACH).await),
                Step::Mount => mount_and_unmount(&mut self.connection, MOUNTED).await,
            }
            taken.push(micros(began.elapsed()));
            match step {
                Step::Create => {
                    let body = serde_json::json!({ "Name": CREATED }).to_string();
                    drop(load::call(&mut self.connection, "/VolumeDriver.Remove", body).await);
                }
                Step::Get => {}
                Step::Mount => tokio::time::sleep(PAUSE).await,
            }
        }
        median(&mut taken)
    }
}

/// What one client waits for, with few volumes and with more; nothing, where there is no rclone.
pub(crate) fn measure(runtimes: &Runtimes, directory: &Path) -> Vec<Row> {
    let installed = Command::new("rclone").arg("version").stdout(Stdio::null()).status().is_ok();
    if !installed || !Path::new("/dev/fuse").exists() {
        crate::eprint_line(
            "peer is left out: there is no program rclone (Debian's rclone and fuse3), or no FUSE",
        );
        return Vec::new();
    }
    let root = Root::new(directory.join("root"));
    let (volhost, rclone) = (root.start(), Rclone::start(&directory.join("rclone")));
    let client = Client::new(&root.pki());
    let mut ours = Plugin {
        connection: runtimes.alone.block_on(client.connect(volhost.address)),
        options: serde_json::json!({}),
        volumes: 0,
    };
    let mut theirs = Plugin {
        connection: runtimes.alone.block_on(load::connect_plain(rclone.address)),
        options: serde_json::json!({ "type": "local", "path": rclone.data }),
        volumes: 0,
    };
    for plugin in [&mut ours, &mut theirs] {
        runtimes.alone.block_on(plugin.create(MOUNTED));
    }
    let mut rows = Vec::new();
    for volumes in [100, 2000] {
        for plugin in [&mut ours, &mut theirs] {
            runtimes.alone.block_on(plugin.fill(volumes));
        }
        for (what, step) in [("Create", Step::Create), ("Get", Step::Get), ("Mount and Unmount", Step::Mount)]
        {
            let (volhost, rclone) = by_turns(|turn| {
                let plugin = if turn { &mut ours } else { &mut theirs };
                runtimes.alone.block_on(async {
                    tokio::time::timeout(PATIENCE, plugin.measure(step)).await.expect("the plugin answers")
                })
            });
            let show = |micros: f64| format!("{:.2} ms", micros / 1000.0);
            rows.push(Row::new(
                &format!("{volumes} volumes: a {what}, one client, p50; rclone serve docker"),
                &show(volhost),
                &show(rclone),
                &times(volhost / rclone),
                "",
            ));
        }
    }
    rows
}

/// An rclone that answers; ended when dropped, with its mount.
struct Rclone {
    child: Child,
    address: SocketAddr,
    base: PathBuf,
    /// What its volumes hold.
    data: PathBuf,
}

impl Rclone {
    /// Starts it with all its files below a directory, and waits until it answers.
    fn start(directory: &Path) -> Self {
        let [base, cache, data] = ["base", "cache", "data"].map(|name| directory.join(name));
        for path in [&base, &cache, &data] {
            std::fs::create_dir_all(path).expect("the directory can be made");
        }
        // A port that is free now.
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
        let address = listener.local_addr().expect("it is bound");
        drop(listener);
        let child = Command::new("rclone")
            .args(["serve", "docker", "--no-spec", "--socket-addr", &address.to_string(), "--base-dir"])
            .arg(&base)
            .arg("--cache-dir")
            .arg(cache)
            .arg("--config")
            .arg(directory.join("rclone.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(directory.join("rclone.log")).expect("the log can be made"))
            .spawn()
            .expect("rclone starts");
        let rclone = Self { child, address, base, data };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "rclone does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        rclone
    }
}

impl Drop for Rclone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // It says that there is none, unless a step between a Mount and its Unmount panicked.
        let _ =
            Command::new("umount").arg("--lazy").arg(self.base.join(MOUNTED)).stderr(Stdio::null()).status();
    }
}
