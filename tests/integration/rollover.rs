//! The CA rolls over while engines go on, and its key may be somewhere else all the while.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use volhost::pki::STEPS;

use crate::engine::create;
use crate::harness::authority;
use crate::harness::http::{Client, Identity};
use crate::harness::wait::{self, SOON, until};
use crate::harness::{Daemon, Engine, Host};
use crate::hosts::{join, serve_both};
use crate::readme::{Typed, marked};

const ADVERTISE: [&str; 2] = ["--advertise", "https://store1.example.org:7443"];

fn works(client: &mut Client) -> bool {
    client.call("/VolumeDriver.List", &json!({})).is_ok_and(|answer| answer.status == 200)
}

fn lets_in(daemon: &Daemon<'_>, identity: &Identity) -> bool {
    daemon.connect(identity).is_ok_and(|mut client| works(&mut client))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Issues a host's certificate by `host add` or `host renew`, and unpacks its bundle into a directory of its own.
fn issue(daemon: &Daemon<'_>, verb: &str, name: &str, directory: &str) -> Identity {
    let directory = daemon.path("bundles").join(directory);
    fs::create_dir_all(&directory).unwrap();
    let bundle = directory.join("bundle.tar");
    daemon.cli(&["host", verb, name, ADVERTISE[0], ADVERTISE[1], "-o", text(&bundle)]).ok();
    wait::run(Command::new("tar").args(["-C", text(&directory), "-xf", text(&bundle)])).ok();
    let file = |name: &str| directory.join("etc/docker/volhost").join(name);
    Identity { ca: file("ca.crt"), cert: file("host.crt"), key: file("host.key") }
}

/// A copy of this machine's own certificate, as an engine holds it that was not started again.
fn kept(daemon: &Daemon<'_>, name: &str) -> Identity {
    let directory = daemon.path("bundles").join(name);
    fs::create_dir_all(&directory).unwrap();
    let Identity { ca, cert, key } = daemon.identity();
    let keep = |from: PathBuf| {
        let to = directory.join(from.file_name().unwrap());
        fs::copy(&from, &to).unwrap();
        to
    };
    Identity { ca: keep(ca), cert: keep(cert), key: keep(key) }
}

fn status(daemon: &Daemon<'_>) -> Value {
    daemon.cli(&["pki", "rollover", "status", "--json"]).json()
}

/// Whether a host has moved, whether it was renewed, and what it uses.
fn standing(daemon: &Daemon<'_>, host: &str) -> (bool, bool, Value) {
    let told = status(daemon);
    let row = told["hosts"].as_array().unwrap().iter().find(|row| row["name"] == host);
    let row = row.unwrap_or_else(|| panic!("no {host} in {told}"));
    (row["moved"] == true, row["renewed"] == true, row["uses"].clone())
}

/// Waits until a host stands so. What a host uses is recorded when it calls, and nobody waits for that.
#[track_caller]
fn stands(daemon: &Daemon<'_>, host: &str, expected: &(bool, bool, Value)) {
    let what = format!("{host} to stand as {expected:?}");
    until(&what, SOON, || (standing(daemon, host) == *expected).then_some(()));
}

fn certificates(path: &Path) -> usize {
    fs::read_to_string(path).unwrap().matches("BEGIN CERTIFICATE").count()
}

#[test]
fn engines_go_on_from_the_first_to_the_last_step() {
    let (web1, web2) = (Host::new("web1"), Host::new("web2"));
    let mut daemon = serve_both(&web1, &web2);
    join(&daemon, &web2);
    for host in [&web1, &web2] {
        // So that containers run on while dockerd is restarted, as the README says.
        host.run(["sh", "-c", r#"echo '{"live-restore": true}' > /etc/docker/daemon.json"#]).ok();
    }
    let (mut first, mut second) = (Engine::start(&web1), Engine::start(&web2));
    create(&first, "db");
    let running =
        |engine: &Engine<'_>| engine.ok(&["inspect", "-f", "{{.State.Pid}} {{.State.Running}}", "keeper"]);
    first.sleeper("keeper", &["-v", "db:/x"]);
    second.sleeper("keeper", &["-v", "db:/x"]);
    let (keeper1, keeper2) = (running(&first), running(&second));
    let use_both = |first: &Engine<'_>, second: &Engine<'_>, word: &str| {
        for (engine, other) in [(first, second), (second, first)] {
            create(engine, word);
            engine.run(&["-v", &format!("{word}:/x")], &format!("echo {word} > /x/file"));
            assert_eq!(other.run(&["-v", &format!("{word}:/x")], "cat /x/file"), word);
            other.ok(&["volume", "rm", word]);
        }
    };
    use_both(&first, &second, "before");

    let said = daemon.cli(&["pki", "rollover", "start"]);
    assert!(said.stdout.contains("new CA"), "{}", said.stdout);
    assert!(said.stderr.contains("2 to go"), "{}", said.stderr);
    use_both(&first, &second, "overlap");
    let old = || json!("old");
    stands(&daemon, "web1", &(false, true, old()));
    stands(&daemon, "web2", &(false, false, old()));

    // Another host joins meanwhile, and trusts both from its first call on.
    let web3 = issue(&daemon, "add", "web3", "web3");
    assert_eq!(certificates(&web3.ca), 2);
    // Its address made another certificate of the server necessary. Engines keep their connections: only a start of the
    // service makes them verify it, with the files that they read before the rollover.
    until("the server's new name", SOON, || {
        let server = daemon.path("etc/volhost/pki/server.crt");
        let said = wait::run(Command::new("openssl").args([
            "x509",
            "-noout",
            "-ext",
            "subjectAltName",
            "-in",
            text(&server),
        ]));
        said.ok().contains("store1.example.org").then_some(())
    });
    daemon.restart();
    use_both(&first, &second, "again");
    stands(&daemon, "web3", &(true, true, Value::Null));

    let said = daemon.cli(&["host", "renew", "web9", "-o", text(&daemon.path("web9.tar"))]).fails();
    assert!(said.contains("web9 has no certificate yet") && said.contains("host add web9"), "{said}");
    let bundle = web2.dir().join("renewed.tar");
    let advertise = format!("https://{}:7443", Host::GATEWAY);
    daemon.cli(&["host", "renew", "web2", "--advertise", &advertise, "-o", text(&bundle)]).ok();
    web2.run(["tar", "-C", "/", "-xf", text(&bundle)]).ok();
    use_both(&first, &second, "renewed");
    stands(&daemon, "web2", &(false, true, old()));
    let refused = daemon.cli(&["pki", "rollover", "finish"]).fails();
    for word in [
        "2 hosts would be shut out",
        "web1 still calls",
        "web2 still calls",
        "restart its engine",
        "restart this machine's engine",
    ] {
        assert!(refused.contains(word), "{refused}");
    }
    assert!(!refused.contains("web3"), "{refused}");
    use_both(&first, &second, "refused");

    // The one restart that each engine needs, one after the other, when it suits.
    first.kill9();
    first.start_again();
    use_both(&first, &second, "one");
    stands(&daemon, "web1", &(true, true, json!("new")));
    assert!(!daemon.cli(&["pki", "rollover", "finish"]).fails().contains("web1"));
    second.kill9();
    second.start_again();
    use_both(&first, &second, "two");
    stands(&daemon, "web2", &(true, true, json!("new")));

    let said = daemon.cli(&["pki", "rollover", "finish"]).ok();
    assert!(said.contains("no other is trusted"), "{said}");
    use_both(&first, &second, "after");
    until("the new CA alone", SOON, || {
        (certificates(&daemon.path("etc/volhost/pki/ca.crt")) == 1).then_some(())
    });
    daemon.restart();
    use_both(&first, &second, "end");
    assert_eq!((running(&first), running(&second)), (keeper1, keeper2), "a container was stopped");
    assert!(keeper_is_running(&first) && keeper_is_running(&second));
}

fn keeper_is_running(engine: &Engine<'_>) -> bool {
    engine.ok(&["inspect", "-f", "{{.State.Running}}", "keeper"]) == "true"
}

#[test]
fn hosts_that_have_not_moved_are_named_and_shut_out_by_force_alone() {
    let mut daemon = Daemon::start();
    let (web1, web2) = (issue(&daemon, "add", "web1", "web1"), issue(&daemon, "add", "web2", "web2"));
    let gone = issue(&daemon, "add", "gone", "gone");
    let mut open: Vec<_> = [&web1, &web2].map(|identity| daemon.connect(identity).unwrap()).into();
    assert!(open.iter_mut().all(works));
    let told = status(&daemon);
    assert_eq!((&told["state"], &told["next"], &told["hosts"]), (&json!("none"), &Value::Null, &json!([])));
    for end in ["finish", "abort"] {
        let said = daemon.cli(&["pki", "rollover", end]).fails();
        assert!(said.contains("no rollover of the CA is under way"), "{said}");
    }

    daemon.cli(&["pki", "rollover", "start"]).ok();
    assert_eq!(status(&daemon)["state"], "overlap");
    let key = daemon.path("etc/volhost/pki/ca-next.key");
    assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o7777, 0o600);
    // This machine's engine holds the certificate of before, if there is one that called.
    stands(&daemon, "node1", &(true, true, Value::Null));
    assert!(open.iter_mut().all(works), "the beginning closed a connection");

    let renewed = issue(&daemon, "renew", "web1", "web1-renewed");
    until("the new certificate", SOON, || lets_in(&daemon, &renewed).then_some(()));
    stands(&daemon, "web1", &(true, true, json!("new")));
    // Whoever comes back with the old one has not moved, also when the service forgot everything but its files.
    assert!(lets_in(&daemon, &web1));
    stands(&daemon, "web1", &(false, true, json!("old")));
    daemon.restart();
    stands(&daemon, "web1", &(false, true, json!("old")));
    assert!([&renewed, &web2].iter().all(|identity| lets_in(&daemon, identity)));
    stands(&daemon, "web1", &(true, true, json!("new")));

    let said = daemon.cli(&["pki", "rollover", "finish"]).fails();
    assert!(said.contains("2 hosts would be shut out"), "{said}");
    assert!(said.contains("host renew web2") && said.contains("host revoke gone"), "{said}");
    assert!(said.contains("gone has a certificate of the old CA alone, and was not seen"), "{said}");
    daemon.cli(&["host", "revoke", "gone"]).ok();
    let said = daemon.cli(&["pki", "rollover", "finish"]).fails();
    assert!(!said.contains("gone") && said.contains("a host would be shut out: web2"), "{said}");
    let said = daemon.cli(&["pki", "rollover", "finish", "--force"]).fails();
    assert!(said.contains("--yes"), "nobody was asked: {said}");
    assert_eq!(status(&daemon)["state"], "overlap");

    let (mut stays, mut goes) = (daemon.connect(&renewed).unwrap(), daemon.connect(&web2).unwrap());
    assert!(works(&mut stays) && works(&mut goes));
    let ended = daemon.cli(&["pki", "rollover", "finish", "--force", "--yes", "--json"]).json();
    assert_eq!(ended["shut_out"], json!(["web2"]));
    assert!(goes.is_closed(), "a host of the old CA is served");
    assert!(works(&mut stays), "a host of the new CA lost its connection");
    assert!(!lets_in(&daemon, &web1) && !lets_in(&daemon, &web2) && !lets_in(&daemon, &gone));
    assert!(lets_in(&daemon, &renewed) && lets_in(&daemon, &daemon.identity()));
    assert_eq!(status(&daemon)["state"], "none");
    for (field, mode) in [("kept_certificate", 0o644), ("kept_key", 0o600)] {
        let path = ended[field].as_str().unwrap();
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
    daemon.restart();
    assert!(lets_in(&daemon, &renewed) && !lets_in(&daemon, &web1));
    let again = issue(&daemon, "renew", "web2", "web2-again");
    assert_eq!(certificates(&again.ca), 1);
    assert!(lets_in(&daemon, &again));
}

#[test]
fn an_abort_is_refused_once_hosts_use_the_new_ca() {
    let daemon = Daemon::start();
    let web1 = issue(&daemon, "add", "web1", "web1");
    let own = kept(&daemon, "own");
    let mut open = daemon.connect(&web1).unwrap();
    assert!(works(&mut open) && lets_in(&daemon, &own));
    daemon.cli(&["pki", "rollover", "start"]).ok();
    daemon.cli(&["pki", "rollover", "abort"]).ok();
    assert_eq!(status(&daemon)["state"], "none");
    let all =
        |open: &mut Client| works(open) && lets_in(&daemon, &own) && lets_in(&daemon, &daemon.identity());
    assert!(all(&mut open));

    daemon.cli(&["pki", "rollover", "start"]).ok();
    let renewed = issue(&daemon, "renew", "web1", "renewed");
    let said = daemon.cli(&["pki", "rollover", "abort"]).fails();
    assert!(said.contains("web1 has a certificate of the new CA") && !said.contains("node1"), "{said}");
    until("the new certificate", SOON, || lets_in(&daemon, &renewed).then_some(()));
    let ended = daemon.cli(&["pki", "rollover", "abort", "--force", "--yes", "--json"]).json();
    assert_eq!(ended["shut_out"], json!(["web1"]));
    until("the old CA alone", SOON, || (!lets_in(&daemon, &renewed)).then_some(()));
    assert!(all(&mut open), "the old CA was to stay");
}

/// What is done until the step is reached, and how far the rollover has got after the next start.
fn case(step: &str) -> (&'static str, &'static str) {
    match step {
        "rollover:start:key" => ("start", "none"),
        "rollover:start:certificate" | "rollover:start:trusted" | "rollover:start:client" => {
            ("start", "overlap")
        }
        "rollover:finish:server"
        | "rollover:finish:client"
        | "rollover:finish:kept"
        | "rollover:finish:key-aside" => ("finish", "finishing"),
        "rollover:finish:trusted" | "rollover:finish:key" => ("finish", "none"),
        "rollover:abort:server" | "rollover:abort:client" | "rollover:abort:trusted" => ("abort", "overlap"),
        "rollover:abort:certificate" => ("abort", "none"),
        unknown => panic!("the step {unknown} has no case here: say what becomes of it"),
    }
}

#[test]
fn a_crash_at_any_step_leaves_a_rollover_that_goes_on() {
    for step in STEPS {
        let (verb, state) = case(step);
        let mut daemon = Daemon::start();
        let (web1, own) = (issue(&daemon, "add", "web1", "web1"), kept(&daemon, "own"));
        if verb != "start" {
            daemon.cli(&["pki", "rollover", "start"]).ok();
        }
        daemon.kill9();
        daemon.start_with(&[("VOLHOST_STOP_AT", step)]).unwrap();
        let renewed = (verb != "start").then(|| issue(&daemon, "renew", "web1", "renewed"));
        let words = ["pki", "rollover", verb, "--force", "--yes"];
        let words = if verb == "start" { &words[..3] } else { &words[..] };
        assert_ne!(daemon.cli(words).code, Some(0), "{step} was not reached");
        assert_eq!(daemon.wait_for_end().signal(), Some(9), "{step}");

        daemon.start_again();
        assert_eq!(status(&daemon)["state"], state, "{step}");
        // Nobody is shut out by halves: whoever knows the old CA alone is served until it is not trusted any more.
        let old_is_good = !(verb == "finish" && state == "none");
        let knows_the_server = state != "finishing";
        for old in [&web1, &own] {
            assert_eq!(lets_in(&daemon, old), old_is_good && knows_the_server, "{step}");
        }
        assert!(lets_in(&daemon, &daemon.identity()), "{step}: this machine's own engine is shut out");
        if let Some(renewed) = &renewed {
            assert_eq!(lets_in(&daemon, renewed), verb == "finish" || state == "overlap", "{step}");
        }
        for name in ["ca", "ca-next", "server", "client"] {
            let key = daemon.path(&format!("etc/volhost/pki/{name}.key"));
            let mode = fs::metadata(&key).map(|metadata| metadata.permissions().mode() & 0o7777);
            assert!(mode.is_err() || mode.unwrap() == 0o600, "{step}: {name}.key");
        }

        // What was cut off is given again, and the whole way ends well.
        if state != "none" || verb == "start" {
            daemon.cli(words).ok();
        }
        if status(&daemon)["state"] == "none" && verb != "finish" {
            daemon.cli(&["pki", "rollover", "start"]).ok();
        }
        let last = issue(&daemon, "renew", "web1", "last");
        if status(&daemon)["state"] != "none" {
            daemon.cli(&["pki", "rollover", "finish", "--force", "--yes"]).ok();
        }
        daemon.restart();
        assert_eq!(status(&daemon)["state"], "none", "{step}");
        assert!(lets_in(&daemon, &last) && lets_in(&daemon, &daemon.identity()), "{step}");
        assert!(!lets_in(&daemon, &web1) && !lets_in(&daemon, &own), "{step}");
        let pki = daemon.path("etc/volhost/pki");
        assert!(!pki.join("ca-next.crt").exists() && !pki.join("ca-next.key").exists(), "{step}");
        assert_eq!(certificates(&pki.join("ca.crt")), 1, "{step}");
    }
}

#[test]
fn everything_but_signing_goes_on_without_the_authoritys_key() {
    let mut daemon = Daemon::start();
    let pki = daemon.path("etc/volhost/pki");
    let read = |name: &str| fs::read_to_string(pki.join(name)).unwrap();
    let names = ["localhost", "node1", "127.0.0.1", "::1"];
    let near = authority::server_near_its_end(&read("ca.crt"), &read("ca.key"), &read("server.key"), &names);
    let web1 = issue(&daemon, "add", "web1", "web1");
    fs::remove_file(pki.join("ca.key")).unwrap();
    daemon.put("etc/volhost/pki/server.crt", &near);
    daemon.restart();
    let log = daemon.log();
    let warning =
        log.lines().rfind(|line| line.contains("server.crt expires on")).unwrap_or_else(|| panic!("{log}"));
    assert!(warning.contains("volhost pki csr server") && warning.contains("pki install"), "{warning}");
    assert!(lets_in(&daemon, &web1) && lets_in(&daemon, &daemon.identity()));
    for verb in ["add", "renew"] {
        let bundle = daemon.path("no.tar");
        let name = if verb == "add" { "web2" } else { "web1" };
        let words = ["host", verb, name, "--advertise", "https://localhost:7443", "-o", text(&bundle)];
        let said = daemon.cli(&words).fails();
        assert!(said.contains("ca.key to sign it with is missing") && said.contains("pki sign"), "{said}");
        assert!(!bundle.exists());
    }
    daemon.cli(&["host", "revoke", "web1"]).ok();
    assert!(!lets_in(&daemon, &web1));
}

#[test]
fn requests_go_where_the_key_is_and_certificates_come_back_as_the_readme_says() {
    let setup = Daemon::setup();
    let config = json!({ "node": "store1", "listen": ["https://127.0.0.1:0"],
        "advertise": "https://store1.example.org:7443" });
    let daemon = setup.config(&config).start();
    let (store, safe) = (daemon.path(""), daemon.path("").parent().unwrap().join("safe"));
    fs::create_dir_all(safe.join("etc/volhost/pki")).unwrap();
    let pki = |root: &Path, name: &str| root.join("etc/volhost/pki").join(name);
    fs::copy(pki(&store, "ca.crt"), pki(&safe, "ca.crt")).unwrap();
    fs::rename(pki(&store, "ca.key"), pki(&safe, "ca.key")).unwrap();
    let mut open = daemon.tls();
    let before = open.server().to_vec();

    let desk = daemon.path("").parent().unwrap().join("desk");
    fs::create_dir(&desk).unwrap();
    let run = |root: &Path, command: &str| {
        let program = format!("'{}' --root '{}'", env!("CARGO_BIN_EXE_volhost"), text(root));
        let command = command.replacen(
            "volhost ",
            &format!("{program} "),
            usize::from(command.starts_with("volhost ")),
        );
        wait::run(Command::new("sh").args(["-c", &format!("cd '{}' && {command}", text(&desk))]))
    };
    let example = marked("elsewhere");
    assert_eq!(example.len(), 6);
    for Typed { on, command, output: _ } in &example {
        run(if on == "safe" { &safe } else { &store }, command).ok();
    }
    until("the certificate that came back", SOON, || (daemon.tls().server() != before).then_some(()));
    assert!(works(&mut open), "an open connection was closed for it");

    wait::run(Command::new("tar").args(["-C", text(&desk), "-xf", text(&desk.join("web1.tar"))])).ok();
    let place = desk.join("etc/docker/volhost");
    assert!(!place.join("host.key").exists());
    let web1 =
        Identity { ca: place.join("ca.crt"), cert: place.join("host.crt"), key: desk.join("host.key") };
    assert!(lets_in(&daemon, &web1));
    let rows = daemon.cli(&["host", "ls", "--json"]).json();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "web1").unwrap().clone();
    assert!(row["serial"].is_string() && row["expires"].is_string(), "{row}");

    // The certificate of this machine's own engine, too, which is then recorded like every other.
    run(&store, "volhost pki csr client -o client.csr").ok();
    run(&safe, "volhost pki sign client.csr --host store1 -o client.crt").ok();
    let told: Value = run(&store, "volhost pki install client.crt --json").json();
    assert_eq!((&told["which"], &told["names"]), (&json!("client"), &json!(["store1"])));
    daemon.signal("HUP");
    until("the record of it", SOON, || {
        let rows = daemon.cli(&["host", "ls", "--json"]).json();
        rows.as_array().unwrap().iter().any(|row| row["serial"] == told["serial"]).then_some(())
    });
    assert!(lets_in(&daemon, &daemon.identity()));

    // What is wrong is told, and nothing is replaced.
    let server = fs::read(pki(&store, "server.crt")).unwrap();
    for (root, command, expected) in [
        (&store, "volhost pki sign server.csr -o x.crt", "ca.key to sign it with is missing"),
        (&safe, "volhost pki sign web1.csr -o x.crt", "--host NAME"),
        (&safe, "volhost pki sign web1.csr --host web2 -o x.crt", "it names \"web1\""),
        (&safe, "volhost pki sign server.csr -o server.crt", "server.crt exists"),
        (&store, "volhost pki install web1.crt", "it is of neither key here"),
        (
            &store,
            "volhost host add web2 --certificate web1.crt -o x.tar",
            "it names web1, but is to be for web2",
        ),
        (
            &store,
            "volhost host add web1 --certificate web1.crt --csr web1.csr -o x.tar",
            "cannot be used with",
        ),
        (&store, "volhost pki csr client --name x", "--name is for the server's"),
        (&store, "volhost pki csr server --name '*.x'", "*.x"),
    ] {
        let said = run(root, command).fails();
        assert!(said.contains(expected), "{command}: {said}");
    }
    assert!(!desk.join("x.crt").exists() && !desk.join("x.tar").exists());
    assert_eq!(fs::read(pki(&store, "server.crt")).unwrap(), server);
    // One more name, for an address that the configuration does not tell.
    let asked = run(&store, "volhost pki csr server --name vol.example.org --json").json();
    fs::write(desk.join("more.csr"), asked["request"].as_str().unwrap()).unwrap();
    let signed = run(&safe, "volhost pki sign more.csr --json").json();
    assert!(signed["names"].as_array().unwrap().contains(&json!("vol.example.org")), "{signed}");
    fs::write(desk.join("more.crt"), signed["certificate"].as_str().unwrap()).unwrap();
    run(&store, "volhost pki install more.crt").ok();
    run(
        &store,
        "volhost host renew web1 --certificate web1.crt --advertise https://vol.example.org:7443 -o more.tar",
    )
    .ok();

    daemon.cli(&["host", "revoke", "web1"]).ok();
    assert!(
        !lets_in(&daemon, &web1),
        "a certificate that was signed elsewhere outlives its host's revocation"
    );
}
