//! A Docker Engine (Debian's `docker.io`) on a [`Host`], with one small image.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::host::Host;
use super::wait::{self, Said};
use super::{print_log, report_version, scratch};

/// Debian's client and daemon, by their paths: another client may stand before them on `PATH`.
const DOCKER: &str = "/usr/bin/docker";
const DOCKERD: &str = "/usr/sbin/dockerd";

/// How long an engine may take to come up or go down.
const START: Duration = Duration::from_secs(90);

/// The image that every engine has: busybox, and a directory `/data` that holds the file `seed`.
pub(crate) const IMAGE: &str = "box";

/// A running (or killed) engine.
pub(crate) struct Engine<'a> {
    host: &'a Host,
    disk: Disk,
    dockerd: Option<Child>,
}

/// What an engine keeps when its machine loses power: its containers and images, and how it is started.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    options: Vec<String>,
}

impl<'a> Engine<'a> {
    /// Starts an engine on a machine and gives it the image.
    pub(crate) fn start(host: &'a Host) -> Self {
        Self::with_options(host, &[])
    }

    /// The same, with more options for dockerd.
    pub(crate) fn with_options(host: &'a Host, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let engine = Self::boot(host, Disk { dir: scratch(), options });
        let image = engine.disk.dir.path().join("image.tar");
        write_image(&image);
        engine.ok(&["import", image.to_str().expect("temporary paths are UTF-8"), IMAGE]);
        engine
    }

    /// Starts the engine whose disk this is, on a machine that was booted again.
    pub(crate) fn boot(host: &'a Host, disk: Disk) -> Self {
        // What lies in /run elsewhere is gone after a loss of power; the process IDs in it are others' now.
        let _ = std::fs::remove_dir_all(disk.dir.path().join("exec"));
        let mut engine = Self { host, disk, dockerd: None };
        engine.start_again();
        report_version("Docker Engine", &engine.ok(&["version", "--format", "{{.Server.Version}}"]));
        engine
    }

    /// Ends dockerd without a word. What is left when its machine ends too, with all its containers, as by a loss of
    /// power: the disk.
    pub(crate) fn lose_power(mut self) -> Disk {
        self.kill9();
        std::mem::replace(&mut self.disk, Disk { dir: scratch(), options: Vec::new() })
    }

    /// The machine it runs on.
    pub(crate) fn host(&self) -> &'a Host {
        self.host
    }

    /// Runs the client.
    pub(crate) fn docker(&self, words: &[&str]) -> Said {
        wait::run(self.client().args(words))
    }

    /// Runs a client command that has to succeed: what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        self.docker(words).ok()
    }

    /// Runs a client command that has to fail: what it complained about.
    #[track_caller]
    pub(crate) fn fails(&self, words: &[&str]) -> String {
        self.docker(words).fails()
    }

    /// Runs a line of shell on the engine's machine, in its directory ([`Host::dir`]). `docker` and `docker-compose` in it
    /// mean this engine.
    pub(crate) fn shell(&self, line: &str) -> Said {
        let mut command = self.host.command("sh");
        // Entering the machine leads to its root directory.
        command.args(["-c", &format!("cd {} && {line}", self.host.dir().display())]);
        command.env("DOCKER_HOST", self.address()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("DOCKER_CONFIG", self.disk.dir.path().join("client"));
        wait::run(&command)
    }

    /// Runs a container of the image to its end, with these options, and this as its shell script.
    #[track_caller]
    pub(crate) fn run(&self, options: &[&str], script: &str) -> String {
        let words = [&["run", "--rm", "--network", "none"], options, &[IMAGE, "sh", "-c", script]].concat();
        self.ok(&words)
    }

    /// Starts a container of that name that sleeps until it is stopped, at once because by SIGKILL.
    #[track_caller]
    pub(crate) fn sleeper(&self, name: &str, options: &[&str]) {
        let words = [
            &["run", "--detach", "--name", name, "--network", "none", "--stop-signal", "KILL"],
            options,
            &[IMAGE, "sleep", "100000"],
        ];
        self.ok(&words.concat());
    }

    /// What `docker volume inspect` says of one volume.
    #[track_caller]
    pub(crate) fn inspect(&self, volume: &str) -> serde_json::Value {
        self.docker(&["volume", "inspect", volume]).json()[0].clone()
    }

    /// Kills dockerd as a crash would: its containers go on.
    pub(crate) fn kill9(&mut self) {
        self.signal("KILL");
        let mut dockerd = self.dockerd.take().expect("the engine runs");
        dockerd.wait().expect("the engine is our child");
    }

    /// Stops it in good order, its containers with it.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        let mut dockerd = self.dockerd.take().expect("the engine runs");
        wait::until("the engine's end", START, || dockerd.try_wait().expect("the engine is our child"));
    }

    /// Starts it after it was killed or stopped.
    pub(crate) fn start_again(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with these environment variables.
    pub(crate) fn start_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.dockerd.is_none(), "the engine runs already");
        // A killed engine leaves it behind, with an ID that another process may have by now.
        let _ = std::fs::remove_file(self.pid_file());
        let log = File::options().create(true).append(true).open(self.log()).expect("the log can be made");
        let mut command = self.host.command(DOCKERD);
        command.args(["--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]);
        command.arg("--cgroup-parent").arg(self.host.control_group());
        command.arg("--data-root").arg(self.disk.dir.path().join("data"));
        command.arg("--exec-root").arg(self.disk.dir.path().join("exec"));
        command.arg("--pidfile").arg(self.pid_file());
        command.arg("--host").arg(self.address()).args(&self.disk.options).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        self.dockerd = Some(command.spawn().expect("dockerd can be started: tests/run installs it"));
        wait::until("the engine's first answer", START, || {
            let dockerd = self.dockerd.as_mut().expect("it was started above");
            if let Some(status) = dockerd.try_wait().expect("the engine is our child") {
                panic!("dockerd ended at once: {status}");
            }
            (self.docker(&["version"]).code == Some(0)).then_some(())
        });
    }

    fn client(&self) -> Command {
        let mut command = self.host.command(DOCKER);
        command.arg("--host").arg(self.address()).env("DOCKER_CONFIG", self.disk.dir.path().join("client"));
        command.env_remove("DOCKER_CONTEXT").env_remove("DOCKER_TLS_VERIFY");
        command
    }

    /// The process ID that dockerd writes down is the one it has on its machine, so the signal is sent there.
    fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.pid_file()).expect("a running engine has a PID file");
        self.host.run(["kill", "-s", name, pid.trim()]).ok();
    }

    /// Its socket, as a URL.
    pub(crate) fn address(&self) -> String {
        format!("unix://{}", self.disk.dir.path().join("docker.sock").display())
    }

    fn pid_file(&self) -> PathBuf {
        self.disk.dir.path().join("dockerd.pid")
    }

    fn log(&self) -> PathBuf {
        self.disk.dir.path().join("dockerd.log")
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Some(mut dockerd) = self.dockerd.take() {
            // The rest of it, containers included, ends with the machine.
            let _ = dockerd.kill();
            let _ = dockerd.wait();
        }
        if std::thread::panicking() {
            print_log(&format!("the log of the engine on {}", self.host.name()), &self.log());
        }
    }
}

/// Writes the image's one layer.
pub(crate) fn write_image(to: &Path) {
    let mut layer = tar::Builder::new(File::create(to).expect("the image can be written"));
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox-static is installed: see tests/run");
    layer.append_path_with_name(busybox, "bin/busybox").expect("busybox can be read");
    let applets = [
        "sh", "cat", "chmod", "cp", "echo", "id", "ls", "mkdir", "mv", "rm", "sleep", "stat", "test", "touch",
    ];
    for applet in applets {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").expect("the layer can be written");
    }
    let text = b"seed\n";
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(text.len() as u64);
    layer.append_data(&mut header, "data/seed", &text[..]).expect("the layer can be written");
    layer.finish().expect("the layer can be written");
}
