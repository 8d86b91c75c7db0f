//! What a volhost that was built without etcd says of a catalog there: with the feature there is nothing of this, so
//! `tests/run` builds and runs it by itself.

#![cfg(not(feature = "etcd"))]
#![allow(clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::process::Command;

#[test]
fn a_catalog_in_etcd_is_a_fault_of_the_configuration_for_every_command() {
    let root = tempfile::tempdir().unwrap();
    let etc = root.path().join("etc/volhost");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("volhost.json"), "{\n  \"catalog\": \"etcd://127.0.0.1:1/volhost\"\n}").unwrap();
    let volhost = |words: &[&str]| {
        let mut volhost = Command::new(env!("CARGO_BIN_EXE_volhost"));
        let output = volhost.arg("--root").arg(root.path()).args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let fault = "volhost.json:2:14: catalog: this volhost was built without etcd, which the catalog \
                 etcd://127.0.0.1:1/volhost needs: install one that was built with it, by `cargo build --release \
                 --features etcd`";
    for words in [
        &["serve"][..],
        &["check"],
        &["check", "--catalog"],
        &["catalog", "export"],
        &["catalog", "import", "/dev/null"],
        &["catalog", "rebuild"],
    ] {
        let (code, said) = volhost(words);
        assert!(code == Some(78) && said.contains(fault), "{words:?}: {code:?}: {said}");
    }
    let left: Vec<_> =
        std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["etc"], "a refused start made something");
}
