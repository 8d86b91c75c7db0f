//! Compose with volumes of volhost, as the README tells it: its files and command lines are what runs here.
//!
//! volhost is on `store1`; both machines have an engine of their own.

use std::fs;

use crate::harness::wait::{SOON, until};
use crate::harness::{Host, report_version};
use crate::hosts::{join, serve_both};
use crate::readme;
use crate::swarm::{COMPOSE, engine, starts};

#[test]
fn a_compose_file_names_volumes_that_move_with_it_from_host_to_host() {
    let (store1, web1) = (Host::new("store1"), Host::new("web1"));
    let daemon = serve_both(&store1, &web1);
    join(&daemon, &web1);
    let (first, second) = (engine(&store1), engine(&web1));
    let commands = readme::commands("Compose");
    let [(_, make), (_, up), (_, down), (_, up_again), _] = &commands[..] else {
        panic!("the README has other commands: {commands:?}");
    };
    let write = |text: &str| {
        for host in [&store1, &web1] {
            fs::write(host.dir().join(COMPOSE), text).unwrap();
        }
    };
    let text = readme::block("Compose", "yaml");
    write(&text);
    first.shell(make).ok();
    second.shell(up).ok();
    until("the first line", SOON, || (starts(&daemon, "files") == 1).then_some(()));
    daemon.has_mounts(&[("files", "web1", false)]);

    let refusal = first.shell(up_again).fails();
    assert!(refusal.contains("`volhost mount release files web1 --all` frees it"), "{refusal}");
    assert_eq!(starts(&daemon, "files"), 1);

    second.shell(down).ok();
    daemon.has_mounts(&[]);
    first.shell(up_again).ok();
    until("the second line", SOON, || (starts(&daemon, "files") == 2).then_some(()));
    first.shell(down).ok();

    // One that Compose makes itself, where it is needed first.
    write(&text.replace("external: true", "driver: volhost").replace("name: files", "name: shared"));
    for engine in [&second, &first] {
        engine.shell(up).ok();
    }
    until("a line of each", SOON, || (starts(&daemon, "shared") == 2).then_some(()));
    daemon.has_mounts(&[("shared", "store1", false), ("shared", "web1", false)]);
    for engine in [&second, &first] {
        engine.shell(down).ok();
    }
    assert_eq!(daemon.volumes(), ["files", "shared"]);
}

#[test]
fn options_of_a_compose_file_are_compared_where_the_volume_was_made() {
    let (store1, web1) = (Host::new("store1"), Host::new("web1"));
    let daemon = serve_both(&store1, &web1);
    join(&daemon, &web1);
    let (first, second) = (engine(&store1), engine(&web1));
    let version = first.shell("docker-compose version --short").ok();
    report_version("Docker Compose", &version);
    let of_version_1 = version.starts_with("1.");
    let text = readme::block("Compose", "yaml");
    let write = |mode: &str| {
        let options = format!("driver: volhost\n    driver_opts: {{ mode: \"{mode}\" }}");
        for host in [&store1, &web1] {
            fs::write(host.dir().join(COMPOSE), text.replace("external: true", &options)).unwrap();
        }
    };
    let (up, down) = ("docker-compose up --detach --timeout 1", "docker-compose down --timeout 1");
    write("0770");
    second.shell(up).ok();
    until("the first line", SOON, || (starts(&daemon, "files") == 1).then_some(()));

    // Only the engine that made a volume keeps its options.
    let elsewhere = first.shell(up);
    if of_version_1 {
        let refusal = elsewhere.fails();
        assert!(refusal.contains("uses a different \"mode\" driver_opt (None)"), "{refusal}");
    } else {
        assert_eq!(elsewhere.code, Some(0), "{elsewhere:?}");
        assert!(elsewhere.stderr.contains("was not created by Docker Compose"), "{elsewhere:?}");
        until("the second line", SOON, || (starts(&daemon, "files") == 2).then_some(()));
    }
    first.shell(down).ok();
    daemon.has_mounts(&[("files", "web1", false)]);

    write("0700");
    let before = starts(&daemon, "files");
    let changed = second.shell(&format!("echo n | {up}"));
    let asks = changed.stdout.contains("Recreate (data will be lost)?");
    if of_version_1 {
        let refusal = changed.fails();
        assert!(refusal.contains("uses a different \"mode\" driver_opt (0770)"), "{refusal}");
    } else {
        assert_eq!(changed.code, Some(0), "{changed:?}");
    }
    assert!(daemon.volumes() == ["files"] && starts(&daemon, "files") == before);
    if !asks {
        return;
    }
    // The word is given: what is lost lies in the trash.
    second.shell(&format!("{up} --yes")).ok();
    until("the new volume's first line", SOON, || (starts(&daemon, "files") == 1).then_some(()));
    second.shell(down).ok();
    let trash = daemon.cli(&["volume", "ls", "--trash", "--json"]).json();
    let id = trash[0]["id"].as_str().unwrap();
    daemon.cli(&["volume", "rm", "--yes", "files"]).ok();
    daemon.cli(&["volume", "restore", id]).ok();
    assert_eq!(starts(&daemon, "files"), before);
}
