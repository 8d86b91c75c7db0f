//! podman uses volhost over its Unix socket. It knows no other transport, and no engine's habits: each command is a
//! process of its own that activates anew, and the ID of its mounts is one constant.

use std::process::Command;

use serde_json::json;

use crate::harness::wait::{self, SOON, Said, until};
use crate::harness::{Daemon, Host, engine, report_version};

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
        report_version("podman", &podman.ok(&["version", "--format", "{{.Client.Version}}"]));
        let image = host.dir().join("image.tar");
        engine::write_image(&image);
        podman.ok(&["import", image.to_str().unwrap(), engine::IMAGE]);
        podman
    }

    fn podman(&self, words: &[&str]) -> Said {
        let dir = self.host.dir();
        let mut command: Command = self.host.command("podman");
        command.env("CONTAINERS_CONF", dir.join("containers.conf"));
        // Where the test machine has control groups of the first version, podman 5 complains of them with each command.
        command.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
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

#[test]
fn podman_fills_an_empty_volume_from_the_image() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);
    podman.ok(&["volume", "create", "--driver", "volhost", "fresh"]);
    assert_eq!(podman.run(&["-v", "fresh:/data"], "cat /data/seed"), "seed");
    podman.ok(&["volume", "create", "--driver", "volhost", "bare"]);
    podman.run(&["-v", "bare:/x"], "echo mine > /x/mine");
    assert_eq!(podman.run(&["-v", "bare:/data"], "ls /data"), "mine");
    daemon.has_mounts(&[]);
}

#[test]
fn podman_keeps_volumes_and_labels_while_volhost_is_away() {
    let web1 = Host::new("web1");
    let mut daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);
    podman.ok(&[
        "volume",
        "create",
        "--driver",
        "volhost",
        "--label",
        "tier=gold",
        "--opt",
        "mode=0750",
        "db",
    ]);
    podman.start(&["--detach", "--name", "c1", "-v", "db:/x"], &["sleep", "100000"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    daemon.kill9();
    assert_eq!(podman.ok(&["exec", "c1", "sh", "-c", "echo hello > /x/file && cat /x/file"]), "hello");
    // podman asks the plugin of each volume that it lists, and shows none when one does not answer.
    for words in [["volume", "ls"].as_slice(), &["volume", "inspect", "db"]] {
        let refusal = podman.podman(words).fails();
        assert!(refusal.contains("required plugin missing"), "{refusal}");
    }
    let remembered = |state: &str| {
        let volume = podman.podman(&["volume", "inspect", "db"]).json()[0].clone();
        assert_eq!(volume["Labels"], json!({ "tier": "gold" }), "{volume}");
        assert_eq!(volume["Options"], json!({ "mode": "0750" }), "{volume}");
        assert_eq!(volume["Status"]["backend_state"], state, "{volume}");
    };
    let (here, away) = (daemon.path("var/lib/volhost/volumes"), daemon.path("var/lib/volhost/away"));
    std::fs::rename(&here, &away).unwrap();
    daemon.start_again();
    daemon.has_mounts(&[("db", "web1", false)]);
    remembered("offline");
    daemon.kill9();
    if here.exists() {
        std::fs::remove_dir_all(&here).unwrap();
    }
    std::fs::rename(&away, &here).unwrap();
    daemon.start_again();
    remembered("online");
    podman.ok(&["restart", "--time", "0", "c1"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    assert_eq!(podman.ok(&["exec", "c1", "cat", "/x/file"]), "hello");
    podman.ok(&["rm", "--force", "--time", "0", "c1"]);
    daemon.has_mounts(&[]);
    podman.ok(&["volume", "rm", "db"]);
}

#[test]
fn podman_counts_its_containers_itself_and_mounts_a_volume_once() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);
    podman.ok(&["volume", "create", "--driver", "volhost", "db"]);
    let sleeper = |name: &str| {
        podman.start(&["--detach", "--name", name, "-v", "db:/x"], &["sleep", "100000"]);
        daemon.has_mounts(&[("db", "web1", false)]);
    };
    sleeper("c1");
    sleeper("c2");
    podman.ok(&["rm", "--force", "--time", "0", "c1"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    podman.ok(&["restart", "--time", "0", "c2"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    assert!(podman.podman(&["volume", "rm", "db"]).fails().contains("being used"));
    daemon.cli(&["volume", "rm", "db"]).fails();
    podman.ok(&["kill", "c2"]);
    until("the unmount after a kill", SOON, || daemon.mounts().is_empty().then_some(()));
    podman.ok(&["rm", "c2"]);
    podman.ok(&["volume", "rm", "db"]);
}

#[test]
fn podman_learns_of_other_hosts_volumes_by_reload_and_prunes_them_too() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);
    let file = daemon.path("var/lib/volhost/volumes/db/file");
    // By somebody else.
    daemon.cli(&["volume", "create", "db"]).ok();
    // podman does not ask for a name that it does not know: it makes a volume of its own.
    podman.run(&["-v", "db:/x"], "echo local > /x/file");
    assert!(!file.exists());
    podman.ok(&["volume", "rm", "db"]);
    assert_eq!(daemon.volumes(), ["db"]);
    podman.ok(&["volume", "reload"]);
    podman.run(&["-v", "db:/x"], "echo shared > /x/file");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "shared\n");

    // One that somebody else removed is in the way of all others.
    daemon.cli(&["volume", "create", "brief"]).ok();
    podman.ok(&["volume", "reload"]);
    daemon.cli(&["volume", "rm", "--yes", "brief"]).ok();
    podman.podman(&["volume", "ls"]).fails();
    podman.ok(&["volume", "reload"]);
    assert!(podman.ok(&["volume", "ls"]).contains("db"));

    podman.ok(&["volume", "prune", "--force"]);
    assert_eq!(daemon.volumes(), [""; 0]);
    daemon.cli(&["volume", "restore", "db"]).ok();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "shared\n");
}

#[test]
fn podman_refuses_odd_names_and_volumes_of_a_driver_without_a_name() {
    let web1 = Host::new("web1");
    let daemon = Daemon::setup().on(&web1).start();
    let podman = Podman::new(&web1, &daemon);
    for name in ["a b/../c", "../escape", "..", ".volhost", "a/b", "/etc", "é", "-d"] {
        podman.podman(&["volume", "create", "--driver", "volhost", "--", name]).fails();
    }
    let anonymous = "type=volume,volume-driver=volhost,target=/x";
    let refusal = podman.podman(&["run", "--rm", "--mount", anonymous, engine::IMAGE, "ls"]).fails();
    assert!(refusal.contains("invalid mount option"), "{refusal}");
    assert_eq!(daemon.volumes(), [""; 0]);
    // The same words but for the names are understood.
    podman.ok(&["volume", "create", "--driver", "volhost", "--", "db"]);
    assert_eq!(daemon.volumes(), ["db"]);
}
