//! volhost under a real systemd: started, reloaded, watched, activated by sockets, hardened.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::http::{Client, Target};
use crate::harness::systemd::Machine;
use crate::harness::wait::{SOON, until};

const TLS: &str = "127.0.0.1:7443";
const SOCKET: &str = "/run/docker/plugins/volhost.sock";

/// Calls the machine's service over TLS, as the engine of that machine does.
fn tls(machine: &Machine) -> std::io::Result<Client> {
    let stream = machine.dial(TLS.parse().unwrap())?;
    let identity = machine.identity();
    Client::tls(stream, &identity.ca, Some(&identity))
}

/// Waits until the journal tells something: what was written to it is in it a moment later.
#[track_caller]
fn until_told(machine: &Machine, what: &str) {
    until(&format!("the journal to tell {what:?}"), SOON, || machine.journal().contains(what).then_some(()));
}

fn configure(machine: &Machine, config: &Value) {
    machine.put("/etc/volhost/volhost.json", &config.to_string());
}

#[test]
fn the_units_are_understood_and_closed_to_what_is_not_justified() {
    let machine = Machine::boot();
    // Docker's own units, with something to start: what is looked at is their order.
    for unit in ["docker.service", "docker.socket", "containerd.service"] {
        let text =
            std::fs::read_to_string(format!("/lib/systemd/system/{unit}")).expect("docker.io is installed");
        for line in text.lines().filter_map(|line| line.strip_prefix("Exec")) {
            let program = line
                .split(['=', ' '])
                .find_map(|word| word.trim_start_matches('-').strip_prefix('/'))
                .unwrap();
            machine.run(["ln", "-sf", "/bin/true", &format!("/{program}")]).ok();
        }
        machine.put(&format!("/etc/systemd/system/{unit}"), &text);
    }
    machine.run(["systemctl", "daemon-reload"]).ok();
    machine.run(["systemctl", "enable", "volhost.service", "volhost.socket", "docker.service"]).ok();
    let units = ["volhost.service", "volhost.socket", "docker.service", "multi-user.target"];
    let said = machine.run([&["systemd-analyze", "verify", "--man=no"][..], &units].concat());
    let complaints: Vec<_> =
        said.stderr.lines().filter(|line| line.contains("volhost") || line.contains("cycle")).collect();
    assert_eq!((said.code, complaints), (Some(0), Vec::<&str>::new()), "{}", said.stderr);
    let before = machine.run(["systemctl", "show", "--property=After", "--value", "docker.service"]).ok();
    assert!(before.split(' ').any(|unit| unit == "volhost.service"), "{before}");

    machine.run(["systemd-analyze", "security", "--threshold=26", "volhost.service"]).ok();
    let rows = machine.run(["systemd-analyze", "security", "--json=short", "volhost.service"]).json();
    let unit = include_str!("../../systemd/volhost.service");
    let mut marked = 0;
    for row in rows.as_array().unwrap().iter().filter(|row| row["set"] == false) {
        let name = row["name"].as_str().unwrap();
        let reason =
            unit.lines().find_map(|line| line.strip_prefix("#   ")?.strip_prefix(name)?.strip_prefix(": "));
        assert!(reason.is_some(), "the unit says nowhere why {name} stays as it is: {row}");
        marked += 1;
    }
    let reasons = unit.lines().filter(|line| line.starts_with("#   ") && !line.starts_with("#    ")).count();
    assert_eq!(reasons, marked, "a reason is given for what is not marked");

    // What the sysusers and tmpfiles are for: the group of the sockets, and where the spec file goes.
    assert!(machine.run(["getent", "group", "docker"]).ok().starts_with("docker:"));
    let stat = |path: &str| machine.run(["stat", "--format=%a %U", path]).ok();
    assert_eq!(stat("/etc/docker/plugins"), "755 root");
    assert_eq!(stat("/run/docker/plugins"), "755 root");
    assert_eq!(stat("/var/lib/volhost"), "711 root");
    assert_eq!(stat("/var/lib/volhost/volumes"), "710 root");
}

#[test]
fn it_is_active_when_it_serves_and_reloaded_when_that_is_in_force() {
    let machine = Machine::boot();
    machine.systemctl("start", "volhost.service").ok();
    // Not a moment later.
    let answer = tls(&machine).unwrap().call("/VolumeDriver.Capabilities", &json!({})).unwrap();
    assert_eq!(answer.status, 200);
    assert!(machine.path("/etc/docker/plugins/volhost.json").exists());
    assert_eq!(machine.property("StatusText"), "serving on https://127.0.0.1:7443");
    // What the filter of system calls and the capabilities let through, all that a volume can ask for.
    machine
        .run(["volhost", "volume", "create", "-o", "mode=2775", "-o", "uid=33", "-o", "gid=44", "db"])
        .ok();
    let made = machine.run(["stat", "--format=%a %u %g", "/var/lib/volhost/volumes/db"]).ok();
    assert_eq!(made, "2775 33 44");
    machine.run(["volhost", "volume", "rm", "db"]).ok();
    machine.run(["volhost", "volume", "restore", "db"]).ok();
    machine.run(["volhost", "volume", "rm", "--now", "--yes", "db"]).ok();

    let map = json!({ "default": "/var/lib/volhost/volumes", "more": "/srv/more" });
    machine.put("/etc/volhost/backends.json", &map.to_string());
    machine.systemctl("reload", "volhost.service").ok();
    let backends = machine.run(["volhost", "backend", "ls", "--json"]).json();
    assert_eq!(backends[1]["name"], "more");

    machine.put("/etc/volhost/backends.json", r#"{"default": "here"}"#);
    machine.systemctl("reload", "volhost.service").fails();
    let status = machine.property("StatusText");
    assert!(
        status.starts_with("configuration rejected") && status.contains("backends.json:1:13"),
        "{status}"
    );
    assert_eq!(machine.property("ActiveState"), "active");
    // The command tells the faults.
    until_told(&machine, "volhost: /etc/volhost/backends.json:1:13");
    machine.put("/etc/volhost/backends.json", &map.to_string());
    machine.systemctl("reload", "volhost.service").ok();
    assert_eq!(machine.property("StatusText"), "serving on https://127.0.0.1:7443");

    machine.systemctl("stop", "volhost.service").ok();
    until_told(&machine, "draining");
    until_told(&machine, "Deactivated successfully");

    // What a restart cannot mend is not tried again.
    configure(&machine, &json!({ "listen": 7443 }));
    machine.systemctl("start", "volhost.service").fails();
    let end = ["Result", "ExecMainStatus", "NRestarts", "ActiveState"].map(|name| machine.property(name));
    assert_eq!(end, ["exit-code", "78", "0", "failed"]);
}

/// Holds the lock on the catalog that SQLite takes to write, as a program that writes to it would: the byte 120 of the
/// file `-shm`. Any process can; it ends with the child.
fn lock_catalog(machine: &Machine) -> Child {
    const SCRIPT: &str = r#"
use Fcntl qw(:DEFAULT :seek);
open(my $file, "+<", "/var/lib/volhost/catalog.db-shm") or die $!;
my $lock = pack("s s x4 q q l x4", F_WRLCK, SEEK_SET, 120, 1, 0);
fcntl($file, F_SETLK, $lock) or die $!;
$| = 1;
print "locked\n";
sleep 600;
"#;
    let mut child = machine
        .command("perl")
        .args(["-e", SCRIPT])
        .stdout(Stdio::piped())
        .spawn()
        .expect("perl is on every Debian");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

#[test]
fn the_watchdog_ends_a_service_that_stands_still() {
    let machine = Machine::boot();
    machine.edit("volhost.service", "[Service]\nWatchdogSec=10\nRestartSec=100ms\n");
    machine.systemctl("start", "volhost.service").ok();
    // It lives while it works, longer than the watchdog's time.
    let pid = machine.property("MainPID");
    std::thread::sleep(Duration::from_secs(21));
    assert_eq!(machine.property("MainPID"), pid);

    // Everything stands still.
    machine.run(["systemctl", "kill", "--signal=STOP", "volhost.service"]).ok();
    let again = || {
        let properties = ["NRestarts", "ActiveState"].map(|name| machine.property(name));
        (properties == ["1", "active"]).then_some(())
    };
    until("the restart of a service that was stopped", 2 * SOON, again);
    until_told(&machine, "Watchdog timeout");
    machine.run(["volhost", "volume", "create", "before"]).ok();

    // The loop comes round, the catalog does not: a write waits for a lock that is not given back.
    let mut holder = lock_catalog(&machine);
    let mut create = machine.command("volhost").args(["volume", "create", "stuck"]).spawn().unwrap();
    until("the watchdog's end of a service whose catalog is stuck", 2 * SOON, || {
        (machine.property("NRestarts") == "2").then_some(())
    });
    until_told(&machine, "the catalog has not answered for");
    assert!(!create.wait().unwrap().success());
    holder.kill().unwrap();
    holder.wait().unwrap();
    until("the restart once the lock is free", 2 * SOON, || {
        (machine.property("ActiveState") == "active").then_some(())
    });
    let volumes = machine.run(["volhost", "volume", "ls", "-q"]).ok();
    assert!(volumes.lines().any(|name| name == "before"), "{volumes}");
}

#[test]
fn sockets_are_held_through_restarts() {
    let machine = Machine::boot();
    configure(&machine, &json!({ "listen": ["https://127.0.0.1:7443", format!("unix:{SOCKET}")] }));
    machine.edit("volhost.socket", &format!("[Socket]\nListenStream={SOCKET}\n"));
    machine.systemctl("start", "volhost.socket").ok();
    assert_eq!(machine.run(["stat", "--format=%a %G", SOCKET]).ok(), "660 docker");
    assert_eq!(machine.property("ActiveState"), "inactive");

    // The first connection starts the service, and is answered by it.
    let unix = || Client::connect(&Target::Unix(machine.path(SOCKET)));
    let created = unix().unwrap().call("/VolumeDriver.Create", &json!({ "Name": "db", "Opts": {} })).unwrap();
    assert_eq!(created.status, 200, "{}", created.err());
    assert_eq!(machine.property("ActiveState"), "active");
    let status = machine.run(["volhost", "status", "--json"]).json();
    assert_eq!(status["listening"], json!(["https://127.0.0.1:7443", format!("unix:{SOCKET}")]));

    let done = AtomicBool::new(false);
    let (tls, unix) = (|| tls(&machine), || unix());
    let callers: [&(dyn Fn() -> std::io::Result<Client> + Sync); 4] = [&tls, &unix, &tls, &unix];
    let counts = std::thread::scope(|scope| {
        let callers = callers.map(|connect| scope.spawn(|| load(connect, &done)));
        for _ in 0..5 {
            machine.systemctl("restart", "volhost.service").ok();
            std::thread::sleep(Duration::from_millis(300));
        }
        done.store(true, Ordering::Relaxed);
        callers.map(|caller| caller.join().expect("a caller's expectation held"))
    });
    let answered: u32 = counts.iter().map(|(answered, _)| answered).sum();
    let cut: u32 = counts.iter().map(|(_, cut)| cut).sum();
    eprintln!("{answered} requests answered, {cut} of them only at the second try");
    assert!(counts.iter().all(|(answered, _)| *answered > 10), "{counts:?}");

    // Stopped, it leaves the sockets to systemd; the next call starts it again.
    machine.systemctl("stop", "volhost.service").ok();
    assert!(machine.path(SOCKET).exists());
    assert_eq!(unix().unwrap().call("/VolumeDriver.Get", &json!({ "Name": "db" })).unwrap().status, 200);

    // A socket that nothing is configured for would leave its callers without an answer for ever.
    machine.run(["systemctl", "stop", "volhost.socket", "volhost.service"]).ok();
    machine
        .edit("volhost.socket", &format!("[Socket]\nListenStream={SOCKET}\nListenStream=127.0.0.1:7444\n"));
    machine.systemctl("start", "volhost.socket").ok();
    machine.systemctl("start", "volhost.service").fails();
    assert_eq!(machine.property("ExecMainStatus"), "78");
    until_told(&machine, "a socket on 127.0.0.1:7444 was handed over");
}

/// Calls on ever new connections, none of which may be refused. One that was accepted just before the service was told
/// to stop is closed when its request takes too long to come, as it may on a busy machine: then the one after it must
/// have an answer, as an engine that tries again gets it. Answers how many had one, and how many at the second try.
fn load(connect: &(dyn Fn() -> std::io::Result<Client> + Sync), done: &AtomicBool) -> (u32, u32) {
    let (mut answered, mut cut) = (0, 0);
    let call = || {
        let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        let answer =
            connect().and_then(|mut client| client.call("/VolumeDriver.Get", &json!({ "Name": "db" })));
        if let Err(error) = &answer {
            assert!(!refused(error), "a connection was refused");
        }
        answer
    };
    while !done.load(Ordering::Relaxed) {
        let answer = call().or_else(|_| {
            cut += 1;
            call()
        });
        let answer = answer.expect("the second try is answered");
        assert_eq!(answer.status, 200, "{}", answer.err());
        answered += 1;
    }
    (answered, cut)
}

#[test]
fn file_systems_come_and_go_while_it_serves() {
    let machine = Machine::boot();
    let share = "/mnt/share";
    let map = json!({ "default": "/var/lib/volhost/volumes",
                      "late": { "path": "/mnt/share/volumes", "require_mount": true } });
    machine.put("/etc/volhost/backends.json", &map.to_string());
    machine.run(["mkdir", "-p", share]).ok();
    machine.systemctl("start", "volhost.service").ok();
    let state = |wanted: &str| {
        until(&format!("the backend to be {wanted}"), SOON, || {
            let backends = machine.run(["volhost", "backend", "ls", "--json"]).json();
            (backends[1]["state"] == wanted).then_some(())
        });
    };
    state("offline");
    // The share lies on a file system that only the machine mounts; what is on it stays from one mount to the next.
    machine.run(["mkdir", "/srv/disk"]).ok();
    machine.run(["mount", "-t", "tmpfs", "disk", "/srv/disk"]).ok();
    machine.run(["mkdir", "/srv/disk/volumes"]).ok();
    for name in ["first", "second"] {
        machine.run(["mount", "--bind", "/srv/disk", share]).ok();
        state("online");
        machine.run(["volhost", "volume", "create", "-o", "backend=late", name]).ok();
        assert!(
            machine.path("/mnt/share/volumes").join(name).is_dir(),
            "the machine sees what the service made"
        );
        // Nothing is held once the new directory is durable, by the service's own view neither.
        let unmounted = || (!machine.run(["umount", share]).stderr.contains("busy")).then_some(());
        until("nobody uses the share", SOON, unmounted);
        let pid = machine.property("MainPID");
        let seen = machine.run(["cat", &format!("/proc/{pid}/mountinfo")]).ok();
        assert!(!seen.contains(share), "{seen}");
        state("offline");
    }
}
