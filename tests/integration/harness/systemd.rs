//! A machine that systemd runs: a small Debian with volhost installed on it as the README says.
//!
//! The Debian is made once, by debootstrap, and kept in a cache; a machine is that, seen through an overlay in memory,
//! in namespaces of its own, with systemd as its first process. It ends with that process, and nothing of it is left
//! but the cache. `/proc/PID/root` shows its files, and never a symbolic link's target there: programs that resolve
//! links themselves are run on the machine.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::host::dial;
use super::http::Identity;
use super::wait::{self, SOON, Said, until};
use super::{children, mortal, print_log, remove_control_group, scratch, signal};

/// Which Debian: the oldest whose systemd is promised to do.
const SUITE: &str = "bookworm";

/// Where it is kept between runs. Another name for other contents.
const CACHE: &str = "/var/cache/volhost-tests";

/// What the first process does before it becomes systemd: arguments are the Debian, a directory, and the program.
///
/// The root is shared, as on any machine that systemd has booted: what is mounted later reaches its services.
const BOOT: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$2/root"
cd "$2/root"
touch usr/local/bin/volhost
mount --bind "$3" usr/local/bin/volhost
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm run/old
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
echo machine >etc/hostname
pivot_root . run/old
cd /
umount -l /run/old
rmdir /run/old
mount --make-rshared /
exec env -i container=volhost-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin /lib/systemd/systemd
"#;

/// The files of `systemd/`, and where the README installs them.
pub(crate) const INSTALLED: [(&str, &str); 4] = [
    ("volhost.service", "/etc/systemd/system/volhost.service"),
    ("volhost.socket", "/etc/systemd/system/volhost.socket"),
    ("volhost.sysusers.conf", "/etc/sysusers.d/volhost.conf"),
    ("volhost.tmpfiles.conf", "/etc/tmpfiles.d/volhost.conf"),
];

/// A machine.
pub(crate) struct Machine {
    // Held for its life: the machine ends with it.
    unshare: Child,
    init: u32,
    dir: tempfile::TempDir,
}

impl Machine {
    /// Boots one with volhost installed and not started, and nothing configured.
    pub(crate) fn boot() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: run tests/run as root");
        let debian = debian();
        let dir = scratch();
        let group = control_groups().join(dir.path().file_name().expect("a scratch directory has a name"));
        fs::create_dir(&group).expect("a control group can be made");
        let log = dir.path().join("boot.log");
        let enter = r#"echo $$ >"$1/cgroup.procs" && shift && exec "$@""#;
        let mut unshare = mortal("sh");
        unshare.args(["-c", enter, "enter"]).arg(&group).arg("unshare");
        unshare.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child"]);
        unshare.args(["sh", "-c", BOOT, "boot"]).arg(&debian).arg(dir.path().join("m"));
        unshare.arg(env!("CARGO_BIN_EXE_volhost")).stdin(Stdio::null());
        fs::create_dir(dir.path().join("m")).expect("a directory can be made");
        unshare.stdout(File::create(&log).expect("the log can be made"));
        unshare.stderr(File::options().append(true).open(&log).expect("the log is there"));
        let mut unshare = unshare.spawn().expect("unshare can be started");
        let init = until("the machine's first process", SOON, || {
            if unshare.try_wait().expect("unshare is our child").is_some() {
                print_log("the machine's boot", &log);
                panic!("the machine could not be set up");
            }
            children(unshare.id()).first().copied()
        });
        let machine = Self { unshare, init, dir };
        until("the machine's boot", 2 * SOON, || {
            let said = machine.run(["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&&*said.stdout).then_some(())
        });
        for (file, place) in INSTALLED {
            let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(file);
            machine.put(place, &fs::read_to_string(from).expect("the file is there"));
        }
        machine.run(["systemd-sysusers"]).ok();
        machine.run(["systemd-tmpfiles", "--create"]).ok();
        machine.run(["systemctl", "daemon-reload"]).ok();
        machine
    }

    /// Where a path of the machine is found from outside.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{absolute}", self.init))
    }

    /// Writes a file on the machine, by a rename over the one before.
    pub(crate) fn put(&self, absolute: &str, text: &str) {
        let path = self.path(absolute);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("it can be made");
        let new = path.with_extension("new");
        fs::write(&new, text).expect("a file can be written");
        fs::rename(&new, &path).expect("it can be renamed");
    }

    /// A command that runs on the machine, and ends with the thread that starts it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = mortal("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        command
    }

    /// Runs a command on the machine to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Said {
        let mut words = words.into_iter();
        let program = words.next().expect("a command has a name");
        wait::run(self.command(program).args(words))
    }

    /// Has systemd do something with a unit.
    pub(crate) fn systemctl(&self, verb: &str, unit: &str) -> Said {
        self.run(["systemctl", verb, unit])
    }

    /// What systemd knows of volhost's service: `property("StatusText")`.
    pub(crate) fn property(&self, name: &str) -> String {
        self.run(["systemctl", "show", "--property", name, "--value", "volhost.service"]).ok()
    }

    /// Adds to a unit what an administrator would by `systemctl edit`.
    pub(crate) fn edit(&self, unit: &str, text: &str) {
        self.put(&format!("/etc/systemd/system/{unit}.d/test.conf"), text);
        self.run(["systemctl", "daemon-reload"]).ok();
    }

    /// What the journal has of the service, systemd's own lines included.
    pub(crate) fn journal(&self) -> String {
        self.run(["journalctl", "--no-pager", "--output=cat", "--unit=volhost.service"]).ok()
    }

    /// Connects as a program on the machine would.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        dial(self.init, address)
    }

    /// The certificate of the machine's own engine.
    pub(crate) fn identity(&self) -> Identity {
        let file = |name: &str| self.path(&format!("/etc/volhost/pki/{name}"));
        Identity { ca: file("ca.crt"), cert: file("client.crt"), key: file("client.key") }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.dir.path().join("journal");
            let said = self.run(["journalctl", "--no-pager", "--output=short-precise"]);
            let _ = fs::write(&journal, said.stdout);
            print_log("the machine's journal", &journal);
        }
        signal("KILL", self.init);
        let _ = self.unshare.wait();
        if let Some(name) = self.dir.path().file_name().and_then(OsStr::to_str) {
            remove_control_group(name);
        }
    }
}

/// The Debian that machines are made of. The first to ask makes it, while others wait.
fn debian() -> PathBuf {
    let cache = Path::new(CACHE);
    let made = cache.join(SUITE);
    fs::create_dir_all(cache).expect("the cache can be made");
    let lock = File::create(cache.join("lock")).expect("the cache can be written");
    lock.lock().expect("the cache can be locked");
    if !made.exists() {
        let new = cache.join("new");
        let _ = fs::remove_dir_all(&new);
        // It mounts what it needs, which is gone with the namespace however it ends.
        let mut command = mortal("unshare");
        command.args(["--mount", "timeout", "--kill-after=5", "240", "debootstrap", "--variant=minbase"]);
        command.arg("--include=systemd,systemd-sysv,dbus").arg(SUITE).arg(&new).stdin(Stdio::null());
        let output = command.output().expect("debootstrap can be started: tests/run installs it");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "debootstrap failed:\n{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let _ = fs::remove_dir_all(new.join("var/cache/apt/archives"));
        fs::rename(&new, &made).expect("it can be renamed");
    }
    made
}

/// Where the second version of control groups is mounted, the one that systemd needs.
fn control_groups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts can be read");
    let place = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next() == Some("cgroup2")).then(|| PathBuf::from(place))
    });
    place.expect("control groups of version 2 are mounted")
}
