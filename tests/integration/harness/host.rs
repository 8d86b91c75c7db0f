//! A machine of its own, as far as volhost and an engine can tell: own host name, network, processes and mounts, an
//! own `/run`, and private copies of `/etc` and `/var/lib`, so that programs run there exactly as documented.
//!
//! With [`ROOT`] set it has the programs of another system, whose tree lies in that directory: so the tests of engines
//! run with other versions of them than this machine has (see `tests/engines`).
//!
//! The machine is a process whose namespaces are its own. Nothing of it has a name outside, so that any number of
//! tests run side by side; it ends with that process, and takes everything on it along.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::wait::{self, SOON, Said};
use super::{children, mortal, print_log, remove_control_group, scratch, signal};

/// The environment variable that names the tree of another system, whose programs machines are to have.
pub(crate) const ROOT: &str = "VOLHOST_TEST_ROOT";

/// What the first process does: it sets the machine up, says so, and then waits for orphans, as an init must.
///
/// `/etc` and `/var/lib` are overlays whose upper half lies in memory, so that the machine below stays as it is. The
/// same goes for the whole of another system's tree, which is entered by `pivot_root`: in a mere chroot no engine can
/// start containers. What the tests share with the machine is at the same path in both.
const BOOT: &str = r#"
set -eu
name=$1 other=$2
shift 2
hostname "$name"
if [ -n "$other" ]; then
    mount -t tmpfs -o mode=0755 tmpfs /mnt
    mkdir /mnt/upper /mnt/work /mnt/root
    mount -t overlay -o "lowerdir=$other,upperdir=/mnt/upper,workdir=/mnt/work" overlay /mnt/root
    for shared in /proc /sys /dev "$@"; do
        mkdir -p "/mnt/root$shared"
        mount --rbind "$shared" "/mnt/root$shared"
    done
    cd /mnt/root
    mkdir -p before
    pivot_root . before
    umount --lazy /before
fi
mount -t tmpfs -o mode=0755 tmpfs /run
mount -t tmpfs -o mode=0755 tmpfs /mnt
for tree in etc var/lib; do
    upper=/mnt/$(basename "$tree")
    mkdir "$upper" "$upper.work"
    mount -t overlay -o "lowerdir=/$tree,upperdir=$upper,workdir=$upper.work" overlay "/$tree"
done
mkdir -p /etc/docker /var/lib/volhost /run/lock
mount -t tmpfs -o mode=0755 tmpfs /etc/docker
mount -t tmpfs -o mode=0755 tmpfs /var/lib/volhost
ip link set lo up
echo up
while :; do sleep 5; done
"#;

/// A machine.
pub(crate) struct Host {
    name: String,
    // Held for its pipe and its life: the machine ends with it.
    unshare: Child,
    init: u32,
    members: AtomicU8,
    /// Its number on the network that it has joined.
    member: AtomicU8,
    dir: tempfile::TempDir,
}

impl Host {
    /// Starts a machine of that host name, connected to nothing.
    pub(crate) fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: run tests/run as root");
        let dir = scratch();
        let log = dir.path().join("boot.log");
        let program = Path::new(env!("CARGO_BIN_EXE_volhost"));
        let mut unshare = mortal("unshare")
            .args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", BOOT, "init", name])
            .arg(std::env::var_os(ROOT).unwrap_or_default())
            .args([std::env::temp_dir().as_path(), program.parent().expect("a program has a directory")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).expect("the log can be made"))
            .spawn()
            .expect("unshare can be started");
        let mut said = String::new();
        let stdout = unshare.stdout.take().expect("it was asked for a pipe");
        BufReader::new(stdout).read_line(&mut said).expect("the machine's first line can be read");
        if said != "up\n" {
            let _ = unshare.kill();
            print_log("the machine's boot", &log);
            panic!("the machine {name} could not be set up");
        }
        let init = children(unshare.id())[0];
        Self {
            name: name.to_owned(),
            unshare,
            init,
            members: AtomicU8::new(0),
            member: AtomicU8::new(0),
            dir,
        }
    }

    /// Its host name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A directory of its own that every machine of the test sees under the same path.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The control group that engines are told to put the machine's containers below: `/NAME`.
    ///
    /// Control groups are the one thing that a machine does not have for itself, and that outlives its processes.
    pub(crate) fn control_group(&self) -> String {
        format!("/{}", self.dir.path().file_name().and_then(OsStr::to_str).expect("scratch names are UTF-8"))
    }

    /// Where a path of the machine is found from outside.
    pub(crate) fn path(&self, absolute: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{absolute}", self.init))
    }

    /// A command that runs on the machine, and ends with the thread that starts it.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = mortal("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--"]);
        command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
        // What the test's own environment says of proxies is of no use on a machine without a way out.
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy);
        }
        command
    }

    /// Runs a command on the machine to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Said {
        let mut words = words.into_iter();
        let program = words.next().expect("a command has a name");
        wait::run(self.command(program).args(words))
    }

    /// Shows a directory at another path of the machine. Both are made where they are missing.
    pub(crate) fn bind(&self, directory: &Path, at: &str) {
        let script = r#"mkdir -p "$1" "$2" && mount --bind "$1" "$2""#;
        self.run([
            OsStr::new("sh"),
            "-c".as_ref(),
            script.as_ref(),
            "bind".as_ref(),
            directory.as_ref(),
            at.as_ref(),
        ])
        .ok();
    }

    /// Connects the machine to another's network, and says which address it has there. The other one has
    /// [`Host::GATEWAY`].
    pub(crate) fn join(&self, other: &Host) -> Ipv4Addr {
        let member = other.members.fetch_add(1, Ordering::Relaxed) + 2;
        if member == 2 {
            let gateway = format!("{}/24", Self::GATEWAY);
            other.run(["ip", "link", "add", "lan", "type", "bridge"]).ok();
            other.run(["ip", "addr", "add", &gateway, "dev", "lan"]).ok();
            other.run(["ip", "link", "set", "lan", "up"]).ok();
        }
        self.member.store(member, Ordering::Relaxed);
        let port = format!("port{member}");
        let (here, there) = (self.init.to_string(), other.init.to_string());
        let veth =
            ["link", "add", &port, "netns", &there, "type", "veth", "peer", "name", "eth0", "netns", &here];
        wait::run(Command::new("ip").args(veth)).ok();
        other.run(["ip", "link", "set", &port, "master", "lan", "up"]).ok();
        let address = self.address();
        self.run(["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]).ok();
        self.run(["ip", "link", "set", "eth0", "up"]).ok();
        address
    }

    /// The address of a machine that others have joined, on the network between them.
    pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// Its address on the network that it has joined.
    pub(crate) fn address(&self) -> Ipv4Addr {
        let [a, b, c, _] = Self::GATEWAY.octets();
        Ipv4Addr::new(a, b, c, self.member.load(Ordering::Relaxed))
    }

    /// Cuts the machine off from the one that it has joined: whatever either sends vanishes. Nothing is refused, no
    /// address becomes unknown and no link goes down, so neither end is told.
    pub(crate) fn cut(&self, other: &Host) {
        // Once a neighbour does not answer any more a machine says itself that it is out of reach.
        other.knows(self.address(), "lan", &self.hardware_address("eth0"));
        self.knows(Self::GATEWAY, "eth0", &other.hardware_address("lan"));
        other.run(["bridge", "link", "set", "dev", &self.port(), "state", "0"]).ok();
    }

    /// Has whatever the other machine sends to this one vanish, while what this one sends arrives.
    pub(crate) fn deafen(&self, other: &Host) {
        other.run(["ip", "route", "replace", "blackhole", &format!("{}/32", self.address())]).ok();
    }

    /// Takes back a [`Host::cut`] or a [`Host::deafen`].
    pub(crate) fn heal(&self, other: &Host) {
        other.run(["bridge", "link", "set", "dev", &self.port(), "state", "3"]).ok();
        // There is none unless it was deafened.
        let _ = other.run(["ip", "route", "del", "blackhole", &format!("{}/32", self.address())]);
    }

    fn port(&self) -> String {
        format!("port{}", self.member.load(Ordering::Relaxed))
    }

    fn knows(&self, neighbour: Ipv4Addr, device: &str, hardware: &str) {
        let words =
            ["replace", &neighbour.to_string(), "lladdr", hardware, "dev", device, "nud", "permanent"];
        self.run([&["ip", "neigh"][..], &words].concat()).ok();
    }

    fn hardware_address(&self, device: &str) -> String {
        let told = self.run(["ip", "-json", "link", "show", "dev", device]).json();
        told[0]["address"].as_str().expect("a link has an address").to_owned()
    }

    /// Connects as a program on this machine would.
    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        dial(self.init, address)
    }

    /// Listens as a program on this machine would, on a port of the kernel's choice.
    pub(crate) fn listen(&self, address: Ipv4Addr) -> TcpListener {
        let bound = self.spawn(move || TcpListener::bind((address, 0)));
        bound.join().expect("the thread does not panic").expect("the machine has that address")
    }

    /// Does something in a thread that is on this machine's network.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> JoinHandle<io::Result<T>> {
        spawn_in_network_of(self.init, work)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The kernel lets the first process go last, so that nothing of the machine runs when this returns.
        signal("KILL", self.init);
        let _ = self.unshare.wait();
        remove_control_group(&self.control_group());
    }
}

/// Connects from the network that a process is in.
pub(crate) fn dial(init: u32, address: SocketAddr) -> io::Result<TcpStream> {
    let connected = spawn_in_network_of(init, move || {
        let stream = TcpStream::connect_timeout(&address, SOON)?;
        stream.set_read_timeout(Some(SOON))?;
        Ok(stream)
    });
    connected.join().expect("the thread does not panic")
}

/// A socket belongs to the network it was made in, whichever thread uses it later: so a thread goes there.
fn spawn_in_network_of<T: Send + 'static>(
    init: u32,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> JoinHandle<io::Result<T>> {
    let network = File::open(format!("/proc/{init}/ns/net"));
    std::thread::spawn(move || {
        move_into_link_name_space(network?.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })
}
