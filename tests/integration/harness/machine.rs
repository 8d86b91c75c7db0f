//! A virtual machine with a kernel of its own, for what only a kernel shows: power cuts, quotas. qemu emulates it, which
//! needs nothing of the machine that the tests run on.
//!
//! Its kernel is Debian's, its only file system at first an initramfs with busybox, the program under test and the modules
//! for its disk. It takes shell scripts over the network, from the test alone: its network ends at loopback.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use tempfile::TempDir;

use super::network_disk::NetworkDisk;
use super::wait::{run, until};
use super::{mortal, print_log, scratch};

/// How long an emulated machine may take to boot beside other tests.
const BOOT: Duration = Duration::from_secs(120);

/// How long a script may take to say anything.
const SCRIPT: Duration = Duration::from_secs(120);

/// The ports within the machine: of the service under test, and of its shells.
const SERVICE: u16 = 7000;
const SHELLS: [u16; 4] = [7001, 7002, 7003, 7004];

/// The modules that are loaded, with what they need.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "virtio_net", "xfs", "btrfs"];

/// The first line that a shell prints: before it nothing was done.
const BEGUN: &str = "begun";

/// Makes the initramfs: arguments are a directory, where it and the kernel are left, and the program.
const PREPARE: &str = r#"
set -eu
cd "$1"
package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p' | head -n 1)
[ -e "$package.done" ] || {
    rm -rf kernel ./*.deb
    apt-get -qq download "$package"
    dpkg-deb -x "$package"_*.deb kernel
    rm ./*.deb
    depmod -b kernel "${package#linux-image-}"
    touch "$package.done"
}
rm -rf root
mkdir -p root/bin root/proc root/sys root/dev root/run root/tmp root/mnt root/etc
cp "$(command -v busybox)" root/bin/busybox
strip -o root/bin/volhost "$2"
ldd "$2" | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "root${library%/*}"
    cp -L "$library" "root$library"
done
modules=kernel/lib/modules/${package#linux-image-}
for module in $3; do
    line=$(grep "/$module\.ko:" "$modules/modules.dep")
    # What a module needs stands behind it, the first needed last.
    echo "${line%%:*} ${line#*:}" | tr ' ' '\n' | grep . | tac
done | awk '!seen[$0]++' >root/etc/modules
while read -r module; do
    mkdir -p "root/lib/${module%/*}"
    cp "$modules/$module" "root/lib/$module"
done <root/etc/modules
cat >root/init <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o mode=1777 tmpfs /tmp
while read -r module; do insmod "/lib/$module"; done </etc/modules
echo root:x:0:0::/:/bin/sh >/etc/passwd
hostname machine
ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
for port in 7001 7002 7003 7004; do
    while true; do nc -l -p $port -e /bin/sh; done &
done
wait
INIT
chmod 755 root/init
(cd root && find . | cpio --quiet -o -H newc) >initramfs.new
mv initramfs.new initramfs
cp kernel/boot/vmlinuz-* vmlinuz
"#;

/// A machine that runs.
pub(crate) struct Machine {
    qemu: Child,
    directory: TempDir,
    service: SocketAddr,
    shells: Vec<SocketAddr>,
}

impl Machine {
    /// Boots a machine with this disk, `/dev/vda`.
    pub(crate) fn boot(disk: &NetworkDisk) -> Self {
        let directory = scratch();
        let parts = parts();
        let console = File::create(directory.path().join("console")).expect("it can be written");
        let ports: Vec<_> = free_ports(1 + SHELLS.len());
        let forwarded: String = [SERVICE]
            .iter()
            .chain(&SHELLS)
            .zip(&ports)
            .map(|(within, without)| format!(",hostfwd=tcp:127.0.0.1:{}-:{within}", without.port()))
            .collect();
        let qemu = mortal("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-smp",
                "1",
                "-m",
                "768",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args([
                "-serial",
                "stdio",
                "-monitor",
                "none",
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off",
            ])
            .arg("-kernel")
            .arg(parts.join("vmlinuz"))
            .arg("-initrd")
            .arg(parts.join("initramfs"))
            .arg("-drive")
            .arg(format!("file={},format=raw,if=virtio,cache=writeback", disk.url()))
            .arg("-netdev")
            .arg(format!("user,id=net,restrict=on{forwarded}"))
            .args(["-device", "virtio-net-pci,netdev=net,romfile="])
            .stdin(Stdio::null())
            .stderr(console.try_clone().expect("a file can be shared"))
            .stdout(console)
            .spawn()
            .expect("qemu can be started");
        let mut shells = ports;
        let service = shells.remove(0);
        let machine = Self { qemu, directory, service, shells };
        until("an emulated machine", BOOT, || machine.try_script(0, "true"));
        machine
    }

    /// The address of its service.
    pub(crate) fn service(&self) -> SocketAddr {
        self.service
    }

    /// Runs a script in one of its shells, each of which runs one at a time, and returns what it printed, without the white
    /// space at the end. None if it was cut off.
    pub(crate) fn script(&self, shell: usize, script: &str) -> Option<String> {
        until("a shell of an emulated machine", BOOT, || self.try_script(shell, script))
    }

    /// None if the script was not begun; else what it printed, None if it was cut off.
    fn try_script(&self, shell: usize, script: &str) -> Option<Option<String>> {
        let mut stream = TcpStream::connect(self.shells[shell]).ok()?;
        stream.set_read_timeout(Some(SCRIPT)).ok()?;
        let script = format!("exec 2>&1\necho {BEGUN}\n{script}\necho; echo ended\n");
        stream.write_all(script.as_bytes()).ok()?;
        stream.shutdown(Shutdown::Write).ok()?;
        let mut printed = Vec::new();
        let _ = stream.read_to_end(&mut printed);
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let (begun, printed) = printed.split_once('\n')?;
        (begun == BEGUN)
            .then(|| printed.strip_suffix("\nended\n").map(|printed| printed.trim_end().to_owned()))
    }

    /// Ends it as a power cut does.
    pub(crate) fn cut(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            print_log("an emulated machine's console", &self.directory.path().join("console"));
        }
    }
}

/// Returns the directory of kernel and initramfs, which are made once in each run.
fn parts() -> &'static Path {
    static PARTS: OnceLock<PathBuf> = OnceLock::new();
    PARTS.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("machine");
        fs::create_dir_all(&directory).expect("the directory of tests can be written");
        let lock = File::create(directory.join("lock")).expect("it can be written");
        lock.lock().expect("a file can be locked");
        let mut prepare = Command::new("sh");
        prepare.args(["-c", PREPARE, "prepare"]).arg(&directory);
        prepare.arg(env!("CARGO_BIN_EXE_volhost")).arg(MODULES.join(" "));
        run(&prepare).ok();
        directory
    })
}

/// Returns ports of loopback that were free just now: qemu takes none that it chooses itself.
fn free_ports(count: usize) -> Vec<SocketAddr> {
    let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of loopback is free");
    let held: Vec<_> = (0..count).map(bind).collect();
    held.iter().map(|listener| listener.local_addr().expect("it is bound")).collect()
}
