//! What is published is looked after: sockets and the spec file that are gone while volhost serves are made again, and
//! never over what somebody else put there.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use serde_json::json;

use crate::harness::Daemon;
use crate::harness::http::{Client, Target};
use crate::harness::wait::{SOON, until};
use crate::reload::works;

/// Whether an engine is served at this socket.
fn serves(socket: &Path) -> bool {
    Client::connect(&Target::Unix(socket.to_path_buf())).is_ok_and(|mut client| works(&mut client))
}

fn troubles(daemon: &Daemon<'_>) -> String {
    daemon.status()["troubles"].to_string()
}

#[test]
fn sockets_and_the_spec_file_that_are_gone_are_made_again() {
    let daemon = Daemon::start();
    let (socket, admin) = (daemon.socket(), daemon.path("run/volhost/admin.sock"));
    let spec = daemon.path("etc/docker/plugins/volhost.json");
    let content = fs::read(&spec).unwrap();
    let mut kept = daemon.unix();
    for path in [&socket, &admin, &spec] {
        fs::remove_file(path).unwrap();
    }
    until("the plugin's socket", SOON, || serves(&socket).then_some(()));
    until("the admin socket", SOON, || (daemon.cli(&["status"]).code == Some(0)).then_some(()));
    until("the spec file", SOON, || fs::read(&spec).is_ok_and(|now| now == content).then_some(()));
    assert!(works(&mut kept), "a connection was lost");
    let log = daemon.log();
    for path in [&socket, &admin, &spec] {
        let told = |line: &str| line.contains(path.to_str().unwrap()) && line.contains("again");
        assert!(log.lines().any(told), "{} is not in:\n{log}", path.display());
    }
    until("the status", SOON, || (troubles(&daemon) == "[]").then_some(()));

    // With their directory, and by the operator's word at once.
    fs::remove_dir_all(daemon.path("etc/docker")).unwrap();
    fs::remove_file(&socket).unwrap();
    daemon.cli(&["reload"]).ok();
    assert!(serves(&socket) && spec.exists());
    fs::remove_dir_all(daemon.path("run/volhost")).unwrap();
    until("both sockets", SOON, || (serves(&socket) && admin.exists()).then_some(()));
    assert_eq!(daemon.spec()["Name"], "volhost");
}

#[test]
fn what_somebody_else_put_there_is_left_and_told() {
    let daemon = Daemon::start();
    let socket = daemon.socket();
    let spec = daemon.path("etc/docker/plugins/volhost.json");
    fs::write(&spec, r#"{"Name": "mine"}"#).unwrap();
    fs::remove_file(&socket).unwrap();
    let _stranger = UnixListener::bind(&socket).unwrap();
    let theirs = fs::symlink_metadata(&socket).unwrap().ino();
    until("its word in the status", SOON, || {
        let told = troubles(&daemon);
        (told.contains("plugin.sock") && told.contains("volhost.json")).then_some(())
    });
    assert!(daemon.cli(&["status"]).ok().contains("plugin.sock"));
    assert_eq!(fs::read_to_string(&spec).unwrap(), r#"{"Name": "mine"}"#);
    daemon.cli(&["reload"]);
    assert_eq!(fs::symlink_metadata(&socket).unwrap().ino(), theirs, "the stranger's socket was replaced");
    // Once is enough for the log.
    let times =
        daemon.log().lines().filter(|line| line.contains("plugin.sock") && line.contains("WARN")).count();
    assert!(times <= 2, "{}", daemon.log());

    fs::remove_file(&socket).unwrap();
    fs::remove_file(&spec).unwrap();
    until("both ours again", SOON, || (serves(&socket) && troubles(&daemon) == "[]").then_some(()));
    assert_eq!(daemon.spec()["Name"], "volhost");
}

#[test]
fn a_spec_file_that_the_operator_took_back_does_not_return_by_itself() {
    let daemon = Daemon::start();
    let spec = daemon.path("etc/docker/plugins/volhost.json");
    let socket = daemon.socket();
    daemon.cli(&["spec", "remove"]).ok();
    // By the time the socket is made again the spec file was looked at, too.
    for _ in 0..2 {
        fs::remove_file(&socket).unwrap();
        until("the plugin's socket", SOON, || serves(&socket).then_some(()));
    }
    assert!(!spec.exists());
    assert_ne!(daemon.status()["spec"], json!(spec));
    daemon.cli(&["reload"]).ok();
    assert!(spec.exists());
}
