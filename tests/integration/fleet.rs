//! What two hosts hold, through everything that loses counts, and how the operator takes out what nobody will unmount.
//!
//! volhost runs on `web1`; `web2` reaches it over mutual TLS. Both have engines of their own.

use std::fs;
use std::sync::Barrier;
use std::time::Duration;

use serde_json::{Value, json};

use crate::engine::{create, directory};
use crate::harness::relay::Relay;
use crate::harness::state::Mount;
use crate::harness::wait::{SOON, Said, until};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts::{join, serve_both, until_all_stale};

/// Whose engine, under which ID, and whether it is stale, of every mount.
fn held(daemon: &Daemon<'_>) -> Vec<(String, String, bool)> {
    daemon.mounts().into_iter().map(|Mount { host, id, stale, .. }| (host, id, stale)).collect()
}

#[test]
fn a_refused_removal_names_every_holder_and_both_commands_ask_before_they_release() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let (first, mut second) = (Engine::start(&web1), Engine::start(&web2));
    create(&first, "db");
    create(&first, "files");
    first.sleeper("keeper", &["-v", "db:/x"]);
    first.ok(&["exec", "keeper", "sh", "-c", "echo precious > /x/file"]);
    second.sleeper("c1", &["-v", "db:/x"]);
    second.sleeper("c2", &["-v", "db:/x", "-v", "files:/y"]);
    // Copies mount a second time under a live container's ID, and unmount again.
    let local = web2.dir().join("copied");
    second.ok(&["cp", "c1:/x/file", local.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&local).unwrap(), "precious\n");

    second.kill9();
    second.start_again();
    // The engine has ended its containers without a word, and asks for its plugins anew.
    assert_eq!(second.run(&["-v", "db:/x"], "cat /x/file"), "precious");
    second.ok(&["start", "c1"]);
    let mounts = [
        ("db", "web1", false),
        ("db", "web2", true),
        ("db", "web2", true),
        ("db", "web2", false),
        ("files", "web2", true),
    ];
    daemon.has_mounts(&mounts);

    // An engine whose own container uses the volume does not even ask: it is the other's that hears who does.
    names_every_holder(&first.fails(&["volume", "rm", "files"]), &daemon, "files");
    names_every_holder(&daemon.cli(&["volume", "rm", "db"]).fails(), &daemon, "db");

    // Nobody agrees: by saying no, by an end of input, or because nobody is there to ask.
    let one = &["mount", "release", "db", "web2"][..];
    let all_of_host = &["host", "release", "web2"][..];
    for words in [one, all_of_host] {
        let (code, screen) = daemon.typed(words, "n\n");
        assert_eq!(code, Some(1), "{screen}");
        assert!(screen.contains("by web2? [y/N]") && screen.contains("STALE"), "{screen}");
        let with_all = [words, &["--all"]].concat();
        let (code, screen) = daemon.typed(&with_all, "yes\n");
        assert_eq!(code, Some(1), "{screen}");
        assert!(screen.contains("type the host's name (web2)"), "{screen}");
        assert!(daemon.cli(words).fails().contains("give --yes"));
    }
    daemon.has_mounts(&mounts);

    let (code, screen) = daemon.typed(one, "y\n");
    assert_eq!(code, Some(0), "{screen}");
    daemon.has_mounts(&[("db", "web1", false), ("db", "web2", false), ("files", "web2", true)]);
    let (code, screen) = daemon.typed(all_of_host, "y\n");
    assert_eq!(code, Some(0), "{screen}");
    daemon.has_mounts(&[("db", "web1", false), ("db", "web2", false)]);
    // What may be alive is refused, and how it can be released all the same is told.
    let refusal = daemon.cli(&["host", "release", "web2", "--yes"]).fails();
    assert!(
        refusal.contains("may be alive") && refusal.contains("`volhost host release web2 --all`"),
        "{refusal}"
    );
    let done = daemon.cli(&["host", "release", "web2", "--all", "--yes", "--json"]).json();
    assert_eq!(done["released"][0]["volume"], "db");
    assert_eq!((done["released"].as_array().unwrap().len(), &done["kept"]), (1, &json!([])));

    // The other host was never concerned, nor was what is in the volume; the engine's late unmount takes nothing.
    daemon.has_mounts(&[("db", "web1", false)]);
    second.ok(&["rm", "--force", "c1", "c2"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    assert_eq!(fs::read_to_string(directory(&daemon, "db").join("file")).unwrap(), "precious\n");
    second.ok(&["volume", "rm", "files"]);
    first.ok(&["rm", "--force", "keeper"]);
    first.ok(&["volume", "rm", "db"]);
}

/// Fails unless a refusal tells, of each mount of the volume, the host, the beginning of the ID, since when, and
/// whether it is stale.
#[track_caller]
fn names_every_holder(refusal: &str, daemon: &Daemon<'_>, volume: &str) {
    let rows = daemon.cli(&["mount", "ls", "--volume", volume, "--json"]).json();
    let rows = rows.as_array().unwrap();
    assert!(!rows.is_empty());
    for row in rows {
        let text = |field: &str| row[field].as_str().unwrap();
        let stale = if row["stale"] == true { ", stale" } else { "" };
        let told = format!("mount {} since {}{stale}", &text("id")[..12], text("since"));
        let ends = [";", ")"].map(|end| format!("{told}{end}"));
        assert!(ends.iter().any(|told| refusal.contains(told)), "no {told:?} in {refusal}");
        assert!(refusal.contains(&format!("host {} (", text("host"))), "{refusal}");
    }
}

#[test]
fn a_host_that_lost_power_mounts_again_under_the_same_id_beside_what_it_left() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let second = Engine::start(&web2);
    // What it left does not shut it out of what only one host may have.
    second.ok(&["volume", "create", "-d", "volhost", "-o", "access=exclusive", "db"]);
    second.sleeper("c1", &["--restart", "always", "-v", "db:/x"]);
    second.ok(&["exec", "c1", "sh", "-c", "echo before > /x/file"]);
    let before = held(&daemon);
    assert_eq!(before.len(), 1);
    let id = &*before[0].1;

    let disk = second.lose_power();
    drop(web2);
    daemon.has_mounts(&[("db", "web2", false)]);
    let web2 = Host::new("web2");
    web2.join(&web1);
    join(&daemon, &web2);
    let second = Engine::boot(&web2, disk);
    // The engine starts the container again by itself, and mounts under the ID that it wrote down.
    until("the container's second start", SOON, || (held(&daemon).len() == 2).then_some(()));
    let entry = |stale: bool| ("web2".to_owned(), id.to_owned(), stale);
    let both = held(&daemon);
    assert!(both.contains(&entry(true)) && both.contains(&entry(false)), "{both:?}");
    let read = until("the container to run again", SOON, || {
        let said = second.docker(&["exec", "c1", "cat", "/x/file"]);
        (said.code == Some(0)).then_some(said.stdout)
    });
    assert_eq!(read, "before");

    // One ID, of which only the part from before the loss is released, also when it is named.
    let (code, screen) = daemon.typed(&["mount", "release", "db", "web2", id], "y\n");
    assert_eq!(code, Some(0), "{screen}");
    assert_eq!(held(&daemon), [entry(false)]);
    assert!(second.fails(&["volume", "rm", "db"]).contains("in use"));
    second.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
    second.ok(&["volume", "rm", "db"]);
}

#[test]
fn with_live_restore_a_container_outlives_its_engine_and_its_mount_is_stale_until_it_ends() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let mut second = Engine::with_options(&web2, &["--live-restore"]);
    create(&second, "db");
    second.sleeper("c1", &["-v", "db:/x"]);
    let pid = second.ok(&["inspect", "--format", "{{.State.Pid}}", "c1"]);
    second.kill9();
    second.start_again();
    assert_eq!(second.ok(&["inspect", "--format", "{{.State.Pid}}", "c1"]), pid, "the container was ended");
    // No Mount is sent for what runs: it is known from before, and stale as soon as the plugin is asked for anything.
    second.ok(&["volume", "ls"]);
    until_all_stale(&daemon);
    daemon.has_mounts(&[("db", "web2", true)]);
    let refusal = daemon.cli(&["volume", "rm", "db"]).fails();
    assert!(refusal.contains("host web2 (mount ") && refusal.contains(", stale)"), "{refusal}");

    // More mounts come and go beside it, and its own end is told as if nothing had been.
    second.sleeper("c2", &["-v", "db:/x"]);
    daemon.has_mounts(&[("db", "web2", true), ("db", "web2", false)]);
    second.ok(&["exec", "c1", "sh", "-c", "echo alive > /x/file"]);
    assert_eq!(second.ok(&["exec", "c2", "cat", "/x/file"]), "alive");
    second.ok(&["rm", "--force", "c2"]);
    daemon.has_mounts(&[("db", "web2", true)]);
    second.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
}

/// volhost on `web1` behind a relay, by which alone `web2` reaches it.
fn serve_behind_a_relay<'a>(web1: &'a Host, web2: &Host) -> (Daemon<'a>, Relay<'a>) {
    web2.join(web1);
    let advertised = format!("{}:7443", Host::GATEWAY);
    // The relay's address is not volhost's, but what engines call, and so in the server's certificate.
    let config = json!({ "node": "web1", "listen": ["https://127.0.0.1:7443"],
                         "advertise": format!("https://{advertised}") });
    let daemon = Daemon::setup().on(web1).config(&config).start();
    let relay = Relay::start(web1, advertised.parse().unwrap(), daemon.tcp("https"));
    join(&daemon, web2);
    (daemon, relay)
}

/// Runs a client command up to the answer of the call by which volhost does something (`done` says whether it has);
/// holds that answer up, does something else, and says how the command ended.
pub(crate) fn with_the_answer_held_up(
    engine: &Engine<'_>,
    words: &[&str],
    relay: &Relay<'_>,
    done: impl Fn() -> bool,
    then: impl FnOnce(),
) -> Said {
    relay.hold();
    std::thread::scope(|scope| {
        let command = scope.spawn(|| engine.docker(words));
        until("the answer to what is done", SOON, || {
            if !relay.holds_one() {
                return None;
            }
            if !done() {
                // A handshake, or a Get that goes before.
                relay.let_one_pass();
                return None;
            }
            Some(())
        });
        then();
        command.join().unwrap()
    })
}

#[test]
fn an_answer_to_mount_that_is_late_or_lost_leaves_every_count_to_be_seen() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let (daemon, relay) = serve_behind_a_relay(&web1, &web2);
    let second = Engine::start(&web2);
    create(&second, "db");
    for name in ["late", "lost"] {
        second.ok(&["create", "--name", name, "--network", "none", "-v", "db:/x", "box", "sleep", "100000"]);
    }

    // The cable is pulled and put back while the answer is under way: it arrives, and nothing is counted twice.
    let cable = |state: &str| web1.run(["ip", "link", "set", "port2", state]).ok();
    let mounts = |count: usize| daemon.mounts().len() == count;
    let start = with_the_answer_held_up(
        &second,
        &["start", "late"],
        &relay,
        || mounts(1),
        || {
            cable("down");
            relay.let_pass();
            std::thread::sleep(Duration::from_millis(300));
            cable("up");
        },
    );
    start.ok();
    daemon.has_mounts(&[("db", "web2", false)]);

    // The connection breaks: volhost has answered, the engine has not heard it, and does not know of the mount.
    let start = with_the_answer_held_up(&second, &["start", "lost"], &relay, || mounts(2), || relay.cut());
    let said = start.fails();
    assert!(said.contains("VolumeDriver.Mount") && said.contains("try again"), "{said}");
    daemon.has_mounts(&[("db", "web2", false), ("db", "web2", false)]);
    // The next attempt is another mount, of which the engine knows.
    second.ok(&["start", "lost"]);
    daemon.has_mounts(&[("db", "web2", false); 3]);
    second.ok(&["rm", "--force", "late", "lost"]);
    daemon.has_mounts(&[("db", "web2", false)]);

    // No restart has made it stale, so it takes the word for what may be alive.
    assert!(daemon.cli(&["mount", "release", "db", "web2", "--yes"]).fails().contains("--all"));
    let id = held(&daemon)[0].1.clone();
    daemon.cli(&["mount", "release", "db", "web2", &id, "--all", "--yes"]).ok();
    daemon.has_mounts(&[]);
    second.ok(&["volume", "rm", "db"]);
}

#[test]
fn a_container_that_ends_while_volhost_is_away_is_unmounted_for_15_s_and_then_left_to_the_operator() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let (daemon, mut relay) = serve_behind_a_relay(&web1, &web2);
    let mut second = Engine::start(&web2);
    create(&second, "db");
    for name in ["short", "long"] {
        second.sleeper(name, &["-v", "db:/x"]);
    }

    relay.stop();
    std::thread::scope(|scope| {
        let removed = scope.spawn(|| second.docker(&["rm", "--force", "short"]));
        std::thread::sleep(Duration::from_millis(1500));
        relay.start_again();
        removed.join().unwrap().ok();
    });
    until("the late Unmount", SOON, || (daemon.mounts().len() == 1).then_some(()));

    // The engine gives up, and tells of it in its log alone.
    relay.stop();
    second.ok(&["rm", "--force", "long"]);
    relay.start_again();
    daemon.has_mounts(&[("db", "web2", false)]);
    assert_eq!(second.ok(&["ps", "--all", "--quiet"]), "");
    assert!(second.fails(&["volume", "rm", "db"]).contains("host web2 (mount "));
    // Whatever it had is stale once it was started again.
    second.stop();
    second.start_again();
    second.ok(&["volume", "ls"]);
    until_all_stale(&daemon);
    let (code, screen) = daemon.typed(&["host", "release", "web2"], "y\n");
    assert_eq!(code, Some(0), "{screen}");
    daemon.has_mounts(&[]);
    second.ok(&["volume", "rm", "db"]);
}

#[test]
fn rights_narrowed_while_serving_cost_an_engine_no_labels() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let mut second = Engine::start(&web2);
    let words = ["volume", "create", "-d", "volhost", "--label", "tier=gold", "-o", "mode=0700", "db"];
    second.ok(&words);
    second.ok(&["create", "--name", "c1", "--network", "none", "-v", "db:/x", "box", "cat", "/x/file"]);
    fs::write(directory(&daemon, "db").join("file"), "kept\n").unwrap();
    let known = |engine: &Engine<'_>| {
        let told = engine.inspect("db");
        (told["Labels"].clone(), told["Options"].clone())
    };
    let before = known(&second);
    assert_eq!(before, (json!({ "tier": "gold" }), json!({ "mode": "0700" })));

    let configuration = fs::read_to_string(daemon.path("etc/volhost/volhost.json")).unwrap();
    let mut narrowed: Value = serde_json::from_str(&configuration).unwrap();
    let cases: [(Value, &str); 3] = [
        (json!({ "web1": {}, "web2": { "rights": [] } }), "rights"),
        (json!({ "web1": {}, "web2": { "backends": [] } }), "backend"),
        (json!({ "web1": {} }), "hosts"),
    ];
    for (hosts, why) in cases {
        narrowed["hosts"] = hosts;
        daemon.put("etc/volhost/volhost.json", &narrowed.to_string());
        let refusal = until("the narrower rights", SOON, || {
            let said = second.docker(&["start", "--attach", "c1"]);
            (said.code != Some(0) && said.stderr.contains(why)).then_some(said.stderr)
        });
        assert!(refusal.contains("host web2 may not mount"), "{refusal}");
        assert_eq!(known(&second), before);
        assert_eq!(second.ok(&["volume", "ls", "-q"]), "db");
        let refusal = second.fails(&["volume", "rm", "--force", "db"]);
        assert!(refusal.contains("in use"), "the container that was made: {refusal}");
        // An engine that starts asks for everything anew.
        second.stop();
        second.start_again();
        assert_eq!(known(&second), before);
    }
    second.ok(&["rm", "c1"]);
    let refusal = second.fails(&["volume", "rm", "db"]);
    assert!(refusal.contains("host web2 may not remove"), "{refusal}");
    assert_eq!(known(&second), before);
    daemon.put("etc/volhost/volhost.json", &configuration);
    let read = until("the wider rights", SOON, || {
        let said =
            second.docker(&["run", "--rm", "--network", "none", "-v", "db:/x", "box", "cat", "/x/file"]);
        (said.code == Some(0)).then_some(said.stdout)
    });
    assert_eq!(read, "kept");
    assert_eq!(known(&second), before);
}

/// Docker Engine 20.10, which is Debian's, repeats the live Mount for `docker cp`, and sends an Unmount where that is
/// refused.
#[test]
fn a_copy_from_a_running_container_costs_no_host_its_mount_whatever_is_taken_away() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let (first, second) = (Engine::start(&web1), Engine::start(&web2));
    second.ok(&["volume", "create", "-d", "volhost", "-o", "access=exclusive", "db"]);
    second.sleeper("c1", &["-v", "db:/x"]);
    fs::write(directory(&daemon, "db").join("file"), "kept\n").unwrap();
    let local = web2.dir().join("file");
    let copy = ["cp", "c1:/x/file", local.to_str().unwrap()];
    let is_held = || {
        daemon.has_mounts(&[("db", "web2", false)]);
        let refusal = first.fails(&["run", "--rm", "--network", "none", "-v", "db:/x", "box", "true"]);
        assert!(refusal.contains("exclusive") && refusal.contains("web2"), "{refusal}");
        let refusal = first.fails(&["volume", "rm", "db"]);
        assert!(refusal.contains("web2"), "{refusal}");
    };
    is_held();

    let configuration = fs::read_to_string(daemon.path("etc/volhost/volhost.json")).unwrap();
    let mut narrowed: Value = serde_json::from_str(&configuration).unwrap();
    narrowed["hosts"] = json!({ "web1": {}, "web2": { "rights": [] } });
    daemon.put("etc/volhost/volhost.json", &narrowed.to_string());
    until("the narrower rights", SOON, || {
        let said = second.docker(&["run", "--rm", "--network", "none", "-v", "db:/x", "box", "true"]);
        (said.code != Some(0) && said.stderr.contains("rights")).then_some(())
    });
    second.ok(&copy);
    assert_eq!(fs::read_to_string(&local).unwrap(), "kept\n");
    is_held();

    // Another directory stands where the backend was, as where a share is not mounted.
    let (here, away) = (daemon.path("var/lib/volhost/volumes"), daemon.path("var/lib/volhost/away"));
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    second.fails(&copy);
    fs::remove_dir(&here).unwrap();
    fs::rename(&away, &here).unwrap();
    is_held();

    second.ok(&["rm", "--force", "c1"]);
    daemon.has_mounts(&[]);
}

#[test]
fn of_two_engines_exactly_one_gets_an_exclusive_volume_and_the_other_is_told_who() {
    const ROUNDS: usize = 8;
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    let (first, second) = (Engine::start(&web1), Engine::start(&web2));
    first.ok(&["volume", "create", "-d", "volhost", "-o", "access=exclusive", "db"]);
    let words =
        ["create", "--name", "c1", "--network", "none", "--stop-signal", "KILL", "-v", "db:/x", "box"];
    for engine in [&first, &second] {
        engine.ok(&[&words, &["sh", "-c", "echo mine >> /x/log; sleep 100000"][..]].concat());
    }
    let log = directory(&daemon, "db").join("log");
    let lines = || fs::read_to_string(&log).map_or(0, |text| text.lines().count());
    for round in 1..=ROUNDS {
        let together = Barrier::new(2);
        let race = |engine: &Engine<'_>| {
            together.wait();
            engine.docker(&["start", "c1"])
        };
        let (one, two) = std::thread::scope(|scope| {
            let other = scope.spawn(|| race(&second));
            (race(&first), other.join().unwrap())
        });
        let (winner, engine, loser) = match (one.code, two.code) {
            (Some(0), Some(1..)) => ("web1", &first, two.stderr),
            (Some(1..), Some(0)) => ("web2", &second, one.stderr),
            _ => panic!("round {round}: {one:?}, {two:?}"),
        };
        let remedy = format!("`volhost mount release db {winner} --all` frees it");
        assert!(loser.contains("volume db is exclusive and in use by host "), "{loser}");
        assert!(loser.contains(&format!("host {winner} (mount ")) && loser.contains(&remedy), "{loser}");
        daemon.has_mounts(&[("db", winner, false)]);
        until("the winner's line", SOON, || (lines() == round).then_some(()));
        engine.ok(&["kill", "c1"]);
        until("the unmount", SOON, || daemon.mounts().is_empty().then_some(()));
    }
    assert_eq!(lines(), ROUNDS, "somebody wrote who had lost");

    // The holder loses power; until the operator says so, nobody else gets what it held.
    second.ok(&["start", "c1"]);
    until("its line", SOON, || (lines() == ROUNDS + 1).then_some(()));
    let _disk = second.lose_power();
    drop(web2);
    let refusal = first.fails(&["start", "c1"]);
    assert!(refusal.contains("`volhost mount release db web2 --all` frees it"), "{refusal}");
    assert!(daemon.cli(&["host", "release", "web2", "--yes"]).fails().contains("may be alive"));
    let (code, screen) = daemon.typed(&["host", "release", "web2", "--all"], "web2\n");
    assert_eq!(code, Some(0), "{screen}");
    first.ok(&["start", "c1"]);
    daemon.has_mounts(&[("db", "web1", false)]);
    until("the next holder's line", SOON, || (lines() == ROUNDS + 2).then_some(()));
}
