//! GlusterFS as a backend: real shared storage, which two machines have mounted through clients of their own, at
//! other paths each.
//!
//! The one brick lies in the memory of `web1`, where the servers run as well.

use std::path::Path;

use serde_json::json;

use crate::engine::{create, show_spec};
use crate::harness::engine::IMAGE;
use crate::harness::storage::{backend, names, says, until_backend};
use crate::harness::wait::{SOON, until};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts::join;

/// Where `web1`, which has volhost too, sees the share, and where `web2` does.
const ON_WEB1: &str = "/srv/volumes";
const ON_WEB2: &str = "/media/fast";

/// Brings up the servers on one machine, with a share of one brick.
const SERVE: &str = r#"
set -eu
mkdir -p /run/gluster /mnt/brick
mount -t tmpfs tmpfs /var/lib/glusterd
glusterd -l /mnt/glusterd.log
until gluster --mode=script volume list >/dev/null 2>&1; do sleep 0.1; done
gluster --mode=script volume create gv store:/mnt/brick/b force
gluster --mode=script volume start gv
"#;

/// Mounts the share.
const MOUNT: &str = r#"
set -eu
mkdir -p "$1"
until mount -t glusterfs -o log-file=/mnt/client.log store:/gv "$1" && stat "$1/." >/dev/null; do
    umount "$1" || true
    sleep 0.1
done
"#;

/// A machine that has the name of the servers, and a place for their logs.
fn prepare(host: &Host) {
    let names = format!("echo {} store >> /etc/hosts", Host::GATEWAY);
    host.run(["sh", "-c", &names]).ok();
    host.run(["mount", "-t", "tmpfs", "tmpfs", "/var/log/glusterfs"]).ok();
}

fn mount(host: &Host, at: &str) {
    host.run(["sh", "-c", MOUNT, "mount", at]).ok();
}

#[test]
fn two_hosts_share_a_glusterfs_and_nothing_is_written_beside_it() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    web2.join(&web1);
    // The machines' own copies of what lies below: the test must not write into the machine that it runs on.
    for (host, dir) in [(&web1, "/srv"), (&web2, "/media")] {
        host.run(["mount", "-t", "tmpfs", "tmpfs", dir]).ok();
        prepare(host);
    }
    web1.run(["sh", "-c", SERVE]).ok();
    mount(&web1, ON_WEB1);
    mount(&web2, ON_WEB2);

    let fast = json!({ "path": ON_WEB1, "require_mount": true, "mountpoint_by_host": { "web2": ON_WEB2 } });
    let listen = ["https://127.0.0.1:7443".to_owned(), format!("https://{}:7443", Host::GATEWAY)];
    let daemon = Daemon::setup()
        .on(&web1)
        .config(&json!({ "node": "web1", "listen": listen }))
        .backends(&json!({ "fast": fast }))
        .start();
    show_spec(&web1, &daemon);
    join(&daemon, &web2);
    let (first, second) = (Engine::start(&web1), Engine::start(&web2));

    create(&first, "db");
    first.run(&["-v", "db:/x"], "echo from web1 > /x/file");
    assert_eq!(second.inspect("db")["Mountpoint"], format!("{ON_WEB2}/db"));
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file && echo from web2 > /x/file"), "from web1");
    assert_eq!(first.run(&["-v", "db:/x"], "cat /x/file"), "from web2");

    // The brick dies: what is known stays known, and what needs the share is refused.
    web1.run(["sh", "-c", "kill -9 $(pgrep -f '[g]lusterfsd -s store')"]).ok();
    let row = until_backend(&daemon, "fast", "offline");
    says(row["reason"].as_str().unwrap(), &[ON_WEB1]);
    assert_eq!(first.ok(&["volume", "ls", "-q"]), "db");
    assert_eq!(first.inspect("db")["Status"]["backend_state"], "offline");
    let refusal = first.fails(&["volume", "create", "-d", "volhost", "late"]);
    says(&refusal, &["fast", "offline"]);
    web1.run(["gluster", "--mode=script", "volume", "start", "gv", "force"]).ok();
    until_backend(&daemon, "fast", "online");
    // Each machine's client finds the brick again at a time of its own.
    until("the other client to have the brick again", SOON, || {
        (web2.run(["cat", &format!("{ON_WEB2}/db/file")]).code == Some(0)).then_some(())
    });
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file"), "from web2");

    // The share is unmounted under volhost: below it is an empty directory of the machine's own disk.
    web1.run(["umount", ON_WEB1]).ok();
    let row = until_backend(&daemon, "fast", "offline");
    says(row["reason"].as_str().unwrap(), &["is the share mounted?"]);
    first.fails(&["volume", "create", "-d", "volhost", "late"]);
    first.fails(&["run", "--rm", "--network", "none", "-v", "db:/x", IMAGE, "true"]);
    first.fails(&["volume", "rm", "db"]);
    assert_eq!(names(&web1.path(ON_WEB1)), [""; 0], "something was written beside the share");
    mount(&web1, ON_WEB1);
    until_backend(&daemon, "fast", "online");
    create(&first, "late");
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file"), "from web2");

    // It is unmounted on a host of Docker alone: volhost does not see that, the engine finds nothing to mount, and the
    // doctor there says why.
    web2.run(["umount", ON_WEB2]).ok();
    let doctor = || web2.run([env!("CARGO_BIN_EXE_volhost"), "doctor"]);
    let said = doctor();
    assert_eq!(said.code, Some(1), "{}{}", said.stdout, said.stderr);
    says(&said.stdout, &["mountpoint", ON_WEB2, "remedy: "]);
    second.fails(&["run", "--rm", "--network", "none", "-v", "db:/x", IMAGE, "true"]);
    assert_eq!(names(&web2.path(ON_WEB2)), [""; 0], "something was written beside the share");
    mount(&web2, ON_WEB2);
    let said = doctor();
    assert_eq!(said.code, Some(0), "{}{}", said.stdout, said.stderr);
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file"), "from web2");

    for volume in ["db", "late"] {
        second.ok(&["volume", "rm", volume]);
    }
    until("both to be in the trash", SOON, || {
        (names(&web1.path(&format!("{ON_WEB1}/.volhost/trash"))).len() == 2).then_some(())
    });
    assert_eq!(backend(&daemon, "fast")["volumes"], 0);
    assert!(Path::new(&web1.path(ON_WEB1)).join(".volhost/backend.json").exists());
}
