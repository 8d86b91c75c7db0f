//! The figures that docs/benchmarks.md gives: `cargo bench --profile dist --bench figures`.
//!
//! ```text
//! cargo bench --profile dist --bench figures -- [get] [create] [many] [process] [mount] [hosts] [peer] [etcd] [--volumes N] [--dir DIR]
//! ```
//!
//! Without a subject it runs all of them. `etcd` is four: `etcd-write`, `etcd-many`, `etcd-instances` and `etcd-get`,
//! which need the feature `etcd` and the program of that name, and are left out without. `peer` needs the program
//! `rclone` and FUSE, and is left out without. `--volumes` says how many volumes are many (100000); `--dir` where the
//! files lie, and so on which file system. Each floor runs in the same run as what it is compared with, by turns, so
//! that whatever else the machine does meets both. Nothing here is a test: no figure makes it fail.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark prints, and one that cannot go on has nothing to say but why"
)]
#![allow(clippy::cast_precision_loss, reason = "figures are shown with three digits")]

#[cfg(feature = "etcd")]
mod etcd;
mod fleet;
mod floor;
mod load;
mod peer;
mod process;
mod subjects;

use std::path::{Path, PathBuf};

use subjects::Row;

fn main() {
    let mut words = std::env::args_os().skip(1);
    let mut volumes = 100_000;
    let mut directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut chosen = Vec::new();
    while let Some(word) = words.next() {
        let mut next = || words.next().unwrap_or_else(|| panic!("{} takes an argument", word.display()));
        match word.to_str() {
            Some(floor::SERVER) => {
                let pki = next();
                return floor::serve(Path::new(&pki), Path::new(&next()));
            }
            Some("--volumes") => {
                volumes =
                    next().to_str().and_then(|text| text.parse().ok()).expect("--volumes takes a number");
            }
            Some("--dir") => directory = next().into(),
            // cargo says it.
            Some("--bench") => {}
            Some(subject) if subjects::NAMES.iter().any(|name| is_of(name, subject)) => {
                chosen.push(subject.to_owned());
            }
            _ => panic!("{} is none of {}", word.display(), subjects::NAMES.join(", ")),
        }
    }
    let wanted = |subject: &str| chosen.is_empty() || chosen.iter().any(|chosen| is_of(subject, chosen));

    let scratch =
        tempfile::Builder::new().prefix("figures-").tempdir_in(&directory).expect("DIR can be written");
    println!("{}\n", machine(scratch.path()));
    let runtimes = load::Runtimes::new();
    let mut rows = Vec::new();
    for subject in subjects::NAMES.into_iter().filter(|subject| wanted(subject)) {
        eprint_line(&format!("measuring: {subject}"));
        let path = scratch.path().join(subject);
        std::fs::create_dir(&path).expect("DIR can be written");
        rows.extend(match subject {
            "get" => subjects::get(&runtimes, &path),
            "create" => subjects::create(&runtimes, &path),
            "many" => subjects::many(&runtimes, &path, volumes),
            "mount" => fleet::mount(&runtimes, &path, volumes),
            "hosts" => fleet::hosts(&runtimes, &path),
            "peer" => peer::measure(&runtimes, &path),
            etcd if is_of(etcd, "etcd") => in_etcd(etcd, &runtimes, &path, volumes),
            _ => subjects::process(&runtimes, &path),
        });
    }
    print_table(&rows);
}

/// Whether a subject is what a word chooses: the subject of that name, or all those whose names begin with it.
fn is_of(subject: &str, word: &str) -> bool {
    subject.strip_prefix(word).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

#[cfg(feature = "etcd")]
use etcd::measure as in_etcd;

#[cfg(not(feature = "etcd"))]
fn in_etcd(subject: &str, _: &load::Runtimes, _: &Path, _: u64) -> Vec<Row> {
    eprint_line(&format!("{subject} is left out: it needs `--features etcd`"));
    Vec::new()
}

fn eprint_line(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The table, as Markdown that can be read as it is.
fn print_table(rows: &[Row]) {
    let head = Row::new("figure", "volhost", "compared with", "ratio", "target");
    let all = || std::iter::once(&head).chain(rows);
    let widths: Vec<usize> = (0..head.0.len())
        .map(|column| {
            all().filter_map(|row| row.0.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    for (number, row) in all().enumerate() {
        let cells: Vec<_> =
            row.0.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("| {} |", cells.join(" | "));
        if number == 0 {
            let rules: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
}

/// What it ran on, in one line.
fn machine(directory: &Path) -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory, mounts) = (read("/proc/cpuinfo"), read("/proc/meminfo"), read("/proc/self/mounts"));
    let after_colon = |text: &str, field: &str| {
        let line = text.lines().find(|line| line.starts_with(field));
        line.and_then(|line| line.split_once(':'))
            .map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let gib = after_colon(&memory, "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0) >> 20;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kind = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        .filter(|(at, _)| directory.starts_with(at))
        .max_by_key(|(at, _)| at.len())
        .map_or("", |(_, kind)| kind);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("{cores} × {}, {gib} GiB, Linux {}, {kind}", after_colon(&cpus, "model name"), kernel.trim())
}
