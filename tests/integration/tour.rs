//! The README's tour of a fleet, run as it stands there: each command on the machine that its prompt names, and what
//! it prints compared with what is shown.
//!
//! Three things stand in for what these machines have not: `systemctl` starts the service by hand, `ssh` keeps what is
//! to be run elsewhere for the test to run it there, and the shared storage is one directory shown to all.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::engine::IMAGE;
use crate::harness::storage::Storage;
use crate::harness::wait::{Said, run};
use crate::harness::{Engine, Host};
use crate::readme::{Typed, marked};

/// Text in which what differs from run to run is the same, and columns are as wide as they may be.
pub(crate) fn comparable(text: &str) -> Vec<String> {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| "();,".contains(c));
        let is_id = bare.len() >= 12 && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let is_moment = bare.len() == 20 && bare.ends_with('Z') && bare.as_bytes()[10] == b'T';
        match (is_id, is_moment) {
            (true, _) => word.replace(bare, "ID"),
            (_, true) => word.replace(bare, "MOMENT"),
            _ => word.to_owned(),
        }
    };
    text.lines().map(|line| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")).collect()
}

/// Starts the service, and waits until it serves.
const SYSTEMCTL: &str = r#"#!/bin/sh
[ "$*" = "restart volhost" ] || exit 1
setsid volhost serve >/run/volhost.out 2>/run/volhost.log &
for _ in $(seq 300); do
    grep -q '^ready$' /run/volhost.out && exit 0
    sleep 0.1
done
cat /run/volhost.log >&2
exit 1
"#;

/// Keeps what is to be run elsewhere, and its input.
const SSH: &str = r#"#!/bin/sh
to=${1#root@}
shift
cat >"$KEPT/$to.input"
echo "$*" >"$KEPT/$to.command"
"#;

/// The machines of the tour, and what stands in for what they have not.
struct Fleet<'a> {
    hosts: &'a [Host; 3],
    engines: [Engine<'a>; 2],
    kept: &'a Path,
}

impl Fleet<'_> {
    /// Runs a command as somebody types it on that machine, and what it wants run elsewhere.
    fn run(&self, on: &str, command: &str) -> Said {
        let host = self.host(on);
        let volhost = Path::new(env!("CARGO_BIN_EXE_volhost")).parent().unwrap();
        let path =
            format!("{}:{}:{}", self.kept.display(), volhost.display(), std::env::var("PATH").unwrap());
        let mut shell = host.command("sh");
        shell.args(["-c", command]).env("PATH", path).env("KEPT", self.kept);
        if let Some(engine) = self.engines.iter().find(|engine| engine.host().name() == on) {
            shell.env("DOCKER_HOST", engine.address());
        }
        let said = run(&shell);
        for there in self.hosts {
            let input = self.kept.join(format!("{}.input", there.name()));
            if let Ok(wanted) = std::fs::read_to_string(self.kept.join(format!("{}.command", there.name()))) {
                there.run(["sh", "-c", &format!("{} <{}", wanted.trim(), input.display())]).ok();
                std::fs::remove_file(self.kept.join(format!("{}.command", there.name()))).unwrap();
            }
        }
        said
    }

    fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|host| host.name() == name)
            .unwrap_or_else(|| panic!("no machine is called {name}"))
    }
}

#[test]
fn the_tour_of_a_fleet_goes_as_it_is_told() {
    let storage = Storage::new();
    // On a file system of its own, as a share is.
    let (share, kept) = (storage.dir("share"), storage.dir("kept"));
    storage.tmpfs(&share);
    for (name, script) in [("systemctl", SYSTEMCTL), ("ssh", SSH)] {
        std::fs::write(kept.join(name), script).unwrap();
        std::fs::set_permissions(kept.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    // Another client may stand before Debian's on PATH.
    std::os::unix::fs::symlink("/usr/bin/docker", kept.join("docker")).unwrap();
    let hosts = ["store1", "web1", "web2"].map(Host::new);
    let [store1, web1, web2] = &hosts;
    let setup = format!(
        "mount -t tmpfs tmpfs /srv; mkdir -p /etc/volhost; echo {} store1 >>/etc/hosts",
        Host::GATEWAY
    );
    for host in &hosts {
        host.run(["sh", "-c", &setup]).ok();
        host.bind(&share, "/srv/volumes");
    }
    web1.join(store1);
    web2.join(store1);
    let engines = [Engine::start(web1), Engine::start(web2)];
    for engine in &engines {
        engine.ok(&["tag", IMAGE, "busybox"]);
    }

    let fleet = Fleet { hosts: &hosts, engines, kept: &kept };
    let tour = marked("fleet");
    assert_eq!(tour.len(), 10, "the README promises ten commands");
    for Typed { on, command, output } in tour.into_iter().chain(marked("fleet, continued")) {
        let said = fleet.run(&on, &command);
        let fails = output.first().is_some_and(|line| line.starts_with("volhost: "));
        assert_eq!(said.code == Some(0), !fails, "{on}# {command}\n{}{}", said.stdout, said.stderr);
        let printed = if fails { &said.stderr } else { &said.stdout };
        assert_eq!(comparable(printed), comparable(&output.join("\n")), "{on}# {command}");
    }
}
