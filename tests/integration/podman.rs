//! podman uses volhost over its Unix socket. It knows no other transport, and no engine's habits: each command is a
//! process of its own that activates anew, and the ID of its mounts is one constant.

use std::process::Command;

use crate::harness::wait::{self, Said};
use crate::harness::{Daemon, Host, engine};

struct Podman<'a> {
    host: &'a Host,
}

impl<'a> Podman<'a> {
    /// Sets podman up on a machine, with volhost under its name and the test's image.
    fn new(host: &'a Host, daemon: &Daemon<'_>) -> Self {
        let socket = daemon.socket();
        let settings = format!(
            "[containers]\nlog_driver = \"k8s-file\"\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n\
             [engine.volume_plugins]\nvolhost = \"{}\"\n",
            socket.display()
        );
        std::fs::write(host.dir().join("containers.conf"), settings).unwrap();
        let podman = Self { host };
        let image = host.dir().join("image.tar");
        engine::write_image(&image);
        podman.ok(&["import", image.to_str().unwrap(), engine::IMAGE]);
        podman
    }

    fn podman(&self, words: &[&str]) -> Said {
        let dir = self.host.dir();
        let mut command: Command = self.host.command("podman");
        command.env("CONTAINERS_CONF", dir.join("containers.conf"));
        command.arg("--root").arg(dir.join("containers")).arg("--runroot").arg("/run/containers");
        command.args(["--storage-driver", "vfs"]).args(words);
        wait::run(&command)
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        self.podman(words).ok()
    }

    /// Starts a container of the image.
    #[track_caller]
    fn start(&self, options: &[&str], command: &[&str]) -> String {
        let group = self.host.control_group();
        let head = ["run", "--network", "none", "--cgroup-parent", &group];
        self.ok(&[&head, options, &[engine::IMAGE], command].concat())
    }

    /// Runs a script in a container to its end.
    #[track_caller]
    fn run(&self, options: &[&str], script: &str) -> String {
        self.start(&[&["--rm"], options].concat(), &["sh", "-c", script])
    }
}

#[test]
fn podman_creates_uses_lists_and_removes_volumes() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);

    assert_eq!(podman.ok(&["volume", "create", "--driver", "volhost", "--opt", "mode=0770", "db"]), "db");
    podman.run(&["-v", "db:/x"], "echo hello > /x/file");
    assert_eq!(podman.run(&["-v", "db:/x"], "cat /x/file"), "hello");
    assert!(podman.ok(&["volume", "ls"]).contains("volhost"));
    assert_eq!(daemon.volumes(), ["db"]);
    daemon.has_mounts(&[]);

    podman.start(&["--detach", "--name", "c1", "-v", "db:/x"], &["sleep", "100000"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    podman.ok(&["rm", "--force", "--time", "0", "c1"]);
    daemon.has_mounts(&[]);

    // What is answered with an error must reach podman as one.
    podman.podman(&["volume", "create", "--driver", "volhost", "--opt", "sizze=1", "other"]).fails();
    podman.ok(&["volume", "rm", "db"]);
    podman.podman(&["volume", "rm", "db"]).fails();
    assert_eq!(daemon.volumes(), [""; 0]);
}
