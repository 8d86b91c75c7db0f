//! The inputs that the fuzzers kept, and those on which they found something, once more: with the functions that the
//! fuzzers run, on every toolchain.

#[allow(unreachable_pub, reason = "it is a crate of its own to the fuzzers")]
#[path = "../../fuzz/bodies/lib.rs"]
mod bodies;

use std::fs;
use std::path::Path;

/// Runs one target on everything that is kept for it.
fn replay(target: &str) {
    let (_, body) = bodies::TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    for kind in ["corpus", "findings"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target);
        let inputs: Vec<_> = match fs::read_dir(&dir) {
            Ok(inputs) => inputs.map(|input| input.unwrap().path()).collect(),
            // Nothing was found so far.
            Err(_) if kind == "findings" => continue,
            Err(error) => panic!("{}: {error}", dir.display()),
        };
        assert!(!inputs.is_empty(), "{} holds nothing", dir.display());
        for input in inputs {
            // What breaks the test is the last one told.
            eprintln!("{}", input.display());
            body(&fs::read(input).unwrap());
        }
    }
}

#[test]
fn configurations_are_read() {
    replay("config");
}

#[test]
fn certificates_name_hosts() {
    replay("identity");
}

#[test]
fn catalogs_are_imported() {
    replay("import");
}

#[test]
fn requests_are_answered() {
    replay("request");
}

#[test]
fn spec_files_are_read() {
    replay("spec");
}

#[test]
fn every_target_is_run_here_and_by_the_fuzzers() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    let mut targets: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    targets.sort_unstable();
    assert_eq!(targets, bodies::TARGETS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
}
