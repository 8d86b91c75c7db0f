//! The README's catalog without a single point of failure, made as it stands there: certificates, three members of etcd,
//! their users and two instances, each command on the machine that its prompt names; and then what it is for, the loss
//! of a member and of an instance.
//!
//! Two things stand in for what these machines have not: `systemctl` starts and stops etcd, as Debian's unit does, and
//! volhost; `ssh` keeps what is to be run elsewhere for the test to run it there.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::harness::Host;
use crate::harness::storage::Storage;
use crate::harness::wait::{SOON, Said, run, until};
use crate::readme::{Typed, after, marked, quoted, table};
use crate::tour::comparable;

/// What the commands need of systemd; with a process ID in `/run` for each service.
const SYSTEMCTL: &str = r#"#!/bin/sh
end() {
    [ -f "/run/$1.pid" ] || return 0
    kill "-$2" "$(cat "/run/$1.pid")" && while kill -0 "$(cat "/run/$1.pid")"; do sleep 0.05; done 2>/dev/null
    rm "/run/$1.pid"
}
case "$*" in
"stop etcd" | "stop volhost") end "$2" TERM ;;
"kill etcd") end etcd KILL ;;
"start --no-block etcd")
    set -a
    ETCD_DATA_DIR=/var/lib/etcd/default
    . /etc/default/etcd
    setsid setpriv --reuid=etcd --regid=etcd --clear-groups /usr/bin/etcd >/run/etcd.log 2>&1 </dev/null &
    echo $! >/run/etcd.pid ;;
"start volhost" | "restart volhost")
    end volhost TERM
    setsid volhost serve >/run/volhost.out 2>/run/volhost.log </dev/null &
    echo $! >/run/volhost.pid
    for _ in $(seq 300); do
        grep -q '^ready$' /run/volhost.out && exit 0
        sleep 0.1
    done
    cat /run/volhost.log >&2
    exit 1 ;;
*) exit 1 ;;
esac
"#;

/// Keeps what is to be run elsewhere, and its input.
const SSH: &str = r#"#!/bin/sh
to=${1#root@}
shift
cat >"$KEPT/$to.input"
echo "$*" >"$KEPT/$to.command"
"#;

/// The machines, and what stands in for what they have not.
struct Machines<'a> {
    all: &'a [Host],
    kept: &'a Path,
    /// What the shell's environment has beside.
    exports: String,
}

impl Machines<'_> {
    /// Runs a command as somebody types it on that machine, and what it wants run elsewhere.
    fn run(&self, on: &str, command: &str) -> Said {
        let directory = self.host(on).dir().display();
        let said = self.shell(on, &format!("cd {directory}\n{}\n{command}", self.exports));
        for there in self.all {
            let kept = |what: &str| self.kept.join(format!("{}.{what}", there.name()));
            if let Ok(wanted) = std::fs::read_to_string(kept("command")) {
                std::fs::remove_file(kept("command")).unwrap();
                self.shell(there.name(), &format!("exec <{}\n{wanted}", kept("input").display())).ok();
            }
        }
        said
    }

    fn shell(&self, on: &str, script: &str) -> Said {
        let volhost = Path::new(env!("CARGO_BIN_EXE_volhost")).parent().unwrap();
        let path =
            format!("{}:{}:{}", self.kept.display(), volhost.display(), std::env::var("PATH").unwrap());
        let mut shell = self.host(on).command("sh");
        run(shell.args(["-c", script]).env("PATH", path).env("KEPT", self.kept))
    }

    fn host(&self, name: &str) -> &Host {
        self.all
            .iter()
            .find(|host| host.name() == name)
            .unwrap_or_else(|| panic!("no machine is called {name}"))
    }

    /// Runs the commands after a marker, and compares what they print with what is shown.
    fn follow(&self, marker: &str) {
        for Typed { on, command, output } in marked(marker) {
            let printed = self.run(&on, &command).ok();
            let shown = output.join("\n");
            // Each CA has a name and an end of its own.
            let differs = command == "volhost pki init" || shown.is_empty();
            assert!(differs || comparable(&printed) == comparable(&shown), "{on}# {command}\n{printed}");
        }
    }

    /// Waits until as many members answer.
    fn wait_for_members(&self, expected: usize) {
        until("etcd to be healthy", SOON, || {
            let said = self.run("store1", "etcdctl endpoint health 2>&1");
            (said.stdout.matches("is healthy").count() == expected).then_some(())
        });
    }
}

#[test]
fn a_catalog_on_three_machines_is_made_as_it_is_told_and_outlives_one_of_each() {
    let storage = Storage::new();
    // On a file system of its own, as a share is.
    let (share, kept) = (storage.dir("share"), storage.dir("kept"));
    storage.tmpfs(&share);
    for (name, script) in [("systemctl", SYSTEMCTL), ("ssh", SSH)] {
        std::fs::write(kept.join(name), script).unwrap();
        std::fs::set_permissions(kept.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let hosts = ["store1", "store2", "store3", "web1"].map(Host::new);
    let [store1, others @ ..] = &hosts;
    let mut names = format!("{} store1 storage\n", Host::GATEWAY);
    for host in others {
        names += &format!("{} {}\n", host.join(store1), host.name());
    }
    for host in &hosts {
        let setup = "mount -t tmpfs tmpfs /srv; mkdir -p /etc/volhost; echo \"$1\" >>/etc/hosts";
        host.run(["sh", "-c", setup, "setup", &names]).ok();
    }
    for host in &hosts[..2] {
        host.bind(&share, "/srv/volumes");
        for file in ["volhost.json", "backends.json"] {
            let text = after(&format!("three nodes: {file}"), "json");
            std::fs::write(host.path(&format!("/etc/volhost/{file}")), text).unwrap();
        }
    }
    std::fs::write(store1.dir().join("member"), after("three nodes: member", "sh")).unwrap();

    let exports = after("three nodes: environment", "sh");
    let machines = Machines { all: &hosts, kept: &kept, exports };
    machines.follow("three nodes: etcd");
    machines.follow("three nodes: start");
    machines.wait_for_members(3);
    machines.follow("three nodes: users");
    machines.follow("three nodes: volhost");

    // Whoever has volhost's certificate has the catalog's keys and no others; without one, nobody is answered.
    let as_volhost = "ETCDCTL_CERT=volhost.crt ETCDCTL_KEY=volhost.key etcdctl";
    machines.run("store1", &format!("{as_volhost} get /volhost/volumes/db")).ok();
    let refused = machines.run("store1", &format!("{as_volhost} get /volhosts")).fails();
    assert!(refused.contains("permission denied"), "{refused}");
    machines.run("store1", "unset ETCDCTL_CERT ETCDCTL_KEY; etcdctl get /volhost/format").fails();

    // Everything is whole again, and then the machine that leads to the storage by its own name dies altogether.
    machines.run("store2", "systemctl start --no-block etcd").ok();
    machines.wait_for_members(3);
    machines.run("store1", "systemctl restart volhost").ok();
    machines.run("store1", "volhost volume rm db; systemctl kill etcd").ok();
    machines.run("store2", "volhost volume create third").ok();
    machines.run("store1", "kill -KILL $(cat /run/volhost.pid)").ok();
    assert_eq!(machines.run("store2", "volhost volume ls -q").ok(), "more\nthird");
    machines.run("store2", "volhost volume restore db").ok();
    let volumes = || machines.run("store2", "volhost volume ls -q").ok();
    assert_eq!(volumes(), "db\nmore\nthird");

    // What lies in etcd by now is what the README tells of.
    let keys = machines.run("store1", "etcdctl get --prefix --keys-only /volhost/").ok();
    let kind = |key: &str| key.split('/').next().unwrap().to_owned();
    let told: BTreeSet<_> =
        table("three nodes: keys").iter().flat_map(|row| quoted(&row[0])).map(|key| kind(&key)).collect();
    let found: BTreeSet<_> = keys.lines().filter_map(|key| key.strip_prefix("/volhost/")).map(kind).collect();
    assert!(
        found.len() > 6 && found.is_subset(&told),
        "the README tells of {told:?}, and there is {found:?}"
    );

    // What is told of the day on which etcd is full, lost, or to be given up.
    machines.run("store1", "systemctl start --no-block etcd").ok();
    machines.wait_for_members(3);
    machines.follow("three nodes: room");
    let stop = || {
        machines.run("store1", "systemctl start volhost; systemctl stop volhost; rm -f *.jsonl").ok();
        machines.run("store2", "systemctl stop volhost").ok();
    };
    for marker in ["three nodes: rebuild", "three nodes: import"] {
        stop();
        machines.follow("three nodes: export");
        machines.run("store1", "etcdctl del --prefix /volhost/").ok();
        machines.follow(marker);
        machines.run("store2", "systemctl start volhost").ok();
        assert_eq!(volumes(), "db\nmore\nthird", "{marker}");
        machines.run("store2", "volhost check --catalog").ok();
    }
}
