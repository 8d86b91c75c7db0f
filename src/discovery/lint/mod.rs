//! Lint for the directories in which engines look for plugins: which file of a plugin an engine reads, and
//! which faults it has.
//!
//! This module reads as dockerd does: `dirs` knows where it looks and in which order. An engine checks only that the
//! file exists, and takes no other one if it then cannot read it. This module changes nothing.

pub mod address;
mod certificates;
pub(crate) mod class;
mod dirs;
pub(crate) mod fault;
pub(crate) mod probe;
pub(crate) mod reading;

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;

pub use self::class::Severity;
pub use self::dirs::SearchDirs;
use self::dirs::collect_names;
pub use self::fault::Fault;
pub use self::reading::{Protection, Target};
use crate::files;

/// A plugin that an engine finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugin {
    /// The name of the plugin.
    pub name: String,
    /// The file that an engine reads.
    pub file: PathBuf,
    /// The content of the file; `None` if an engine cannot use it.
    pub target: Option<Target>,
    /// The files that are not read because of it, in the order in which an engine would look.
    pub shadows: Vec<PathBuf>,
}

/// A fault, with the file that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The plugin that the file belongs to.
    pub plugin: Option<String>,
    /// The file or directory.
    pub file: PathBuf,
    /// The fault.
    pub fault: Fault,
}

/// The result of a lint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The plugins, ordered by name.
    pub plugins: Vec<Plugin>,
    /// The faults, in the order of the plugins.
    pub findings: Vec<Finding>,
}

/// Reads the directories as an engine would now.
#[must_use]
pub fn lint(dirs: &SearchDirs, now: OffsetDateTime) -> Report {
    let mut report = Report::default();
    let mut names = BTreeSet::new();
    for (dir, _) in dirs.each() {
        match collect_names(dir, &mut names) {
            Err(error) if !dirs.explicit && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => report.add(None, dir, Fault::NoDirectory { why: error.to_string() }),
            Ok(()) => {}
        }
    }
    for name in names {
        report.read(&name, dirs, now);
    }
    report
}

impl Report {
    fn add(&mut self, plugin: Option<&str>, file: &Path, fault: Fault) {
        self.findings.push(Finding { plugin: plugin.map(str::to_owned), file: file.to_owned(), fault });
    }

    /// Adds the plugin of that name if an engine finds it.
    fn read(&mut self, name: &str, dirs: &SearchDirs, now: OffsetDateTime) {
        let mut plugin: Option<Plugin> = None;
        for (path, ending) in dirs.candidates(name) {
            let Some(exists) = exists(&path, ending) else { continue };
            match (exists, &mut plugin) {
                (Err(fault), _) => self.add(Some(name), &path, fault),
                (Ok(()), Some(plugin)) => plugin.shadows.push(path),
                (Ok(()), none) => {
                    *none =
                        Some(Plugin { name: name.to_owned(), file: path, target: None, shadows: Vec::new() });
                }
            }
        }
        for dir in &dirs.specs {
            for path in [dir.join(format!("{name}.sock")), dir.join(name).join(format!("{name}.sock"))] {
                if path.symlink_metadata().is_ok() {
                    self.add(Some(name), &path, Fault::SocketElsewhere);
                }
            }
        }
        let Some(mut plugin) = plugin else { return };
        let mut faults = Vec::new();
        plugin.target = read_target(&plugin, &mut faults);
        if let Some(target) = &plugin.target {
            certificates::check(&target.files, now, &mut faults);
        }
        for fault in faults {
            self.add(Some(name), &plugin.file, fault);
        }
        for path in &plugin.shadows {
            self.add(Some(name), path, Fault::Shadowed { by: plugin.file.clone() });
        }
        self.plugins.push(plugin);
    }
}

/// Returns `Ok` if an engine finds a file there, a fault if it ignores what is there, and `None` if nothing
/// is there.
fn exists(path: &Path, ending: &str) -> Option<Result<(), Fault>> {
    match std::fs::metadata(path) {
        Ok(metadata) if ending == "sock" && !metadata.file_type().is_socket() => Some(Err(Fault::NotASocket)),
        Ok(_) => Some(Ok(())),
        Err(_) => path.symlink_metadata().is_ok().then_some(Err(Fault::Dangling)),
    }
}

fn read_target(plugin: &Plugin, faults: &mut Vec<Fault>) -> Option<Target> {
    let Plugin { name, file, .. } = plugin;
    let ending = file.extension().and_then(|ending| ending.to_str());
    if ending == Some("sock") {
        return Some(reading::socket(file));
    }
    // Reading a pipe or a device is an error here; an engine would wait for it for ever.
    match files::read_at_most(file, files::SMALL) {
        Err(error) => {
            faults.push(Fault::Unreadable { why: error.to_string() });
            None
        }
        Ok(content) if ending == Some("json") => reading::json(name, &content, faults),
        Ok(content) => reading::line(&content, faults),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use serde_json::Value;

    use super::*;
    use crate::config::tests::with_a_spurious_key;
    use crate::discovery::{Address, Format, PluginName, Spec, TlsFiles};
    use crate::pki::bundle::{CA_FILE, CERT_FILE, KEY_FILE};

    /// The samples in the repository, laid out as the directory of a Docker host.
    const SAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/docker/plugins");

    struct Fixture {
        dir: tempfile::TempDir,
    }

    fn fixture() -> Fixture {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }

    impl Fixture {
        fn path(&self, below: &str) -> PathBuf {
            let path = self.dir.path().join(below);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn put(&self, below: &str, text: &str) {
            std::fs::write(self.path(below), text).unwrap();
        }

        fn line(&self, below: &str) {
            self.put(below, "unix:///run/p.sock\n");
        }

        fn json(&self, below: &str) {
            self.put(below, "{\"Addr\": \"unix:///run/p.sock\"}");
        }

        fn socket(&self, below: &str) {
            drop(UnixListener::bind(self.path(below)).unwrap());
        }

        fn lint(&self) -> Report {
            lint(&SearchDirs::of_engine(self.dir.path(), true, None), OffsetDateTime::now_utc())
        }

        /// Returns each plugin with its file, and each finding's file and code.
        fn told(&self) -> (Vec<String>, Vec<String>) {
            let report = self.lint();
            let below = |path: &Path| path.strip_prefix(self.dir.path()).unwrap().display().to_string();
            let findings = report.findings.iter();
            (
                report
                    .plugins
                    .iter()
                    .map(|plugin| format!("{} {}", plugin.name, below(&plugin.file)))
                    .collect(),
                findings.map(|one| format!("{} {}", below(&one.file), one.fault.word())).collect(),
            )
        }
    }

    #[test]
    fn where_nothing_is_nothing_is_wrong() {
        assert_eq!(fixture().lint(), Report::default());
    }

    #[test]
    fn the_first_file_of_an_engines_order_wins() {
        let f = fixture();
        let order = [
            "run/docker/plugins/p.sock",
            "run/docker/plugins/p/p.sock",
            "etc/docker/plugins/p.spec",
            "etc/docker/plugins/p/p.spec",
            "etc/docker/plugins/p.json",
            "etc/docker/plugins/p/p.json",
            "usr/lib/docker/plugins/p.spec",
            "usr/lib/docker/plugins/p/p.spec",
            "usr/lib/docker/plugins/p.json",
            "usr/lib/docker/plugins/p/p.json",
        ];
        for file in order {
            match file.rsplit_once('.').unwrap().1 {
                "sock" => f.socket(file),
                "spec" => f.line(file),
                _ => f.json(file),
            }
        }
        for (at, file) in order.iter().enumerate() {
            let (plugins, findings) = f.told();
            assert_eq!(plugins, [format!("p {file}")]);
            let shadowed: Vec<_> = order[at + 1..].iter().map(|file| format!("{file} shadowed")).collect();
            assert_eq!(findings, shadowed);
            std::fs::remove_file(f.path(file)).unwrap();
        }
        assert_eq!(f.lint(), Report::default());
    }

    #[test]
    fn what_engines_pass_over_is_told() {
        let f = fixture();
        f.put("run/docker/plugins/a.sock", "");
        f.socket("etc/docker/plugins/b.sock");
        symlink("/nowhere", f.path("etc/docker/plugins/c.spec")).unwrap();
        f.json("etc/docker/plugins/c.json");
        f.put("etc/docker/plugins/README", "not a plugin's");
        f.json("etc/docker/plugins/d/e.json");
        let (plugins, findings) = f.told();
        assert_eq!(plugins, ["c etc/docker/plugins/c.json"]);
        assert_eq!(
            findings,
            [
                "run/docker/plugins/a.sock not-a-socket",
                "etc/docker/plugins/b.sock socket-elsewhere",
                "etc/docker/plugins/c.spec dangling"
            ]
        );
    }

    #[test]
    fn a_file_that_cannot_be_read_still_wins() {
        let f = fixture();
        std::fs::create_dir_all(f.path("etc/docker/plugins/a.spec")).unwrap();
        f.json("etc/docker/plugins/a.json");
        f.put("etc/docker/plugins/b.spec", "nonsense");
        f.put("etc/docker/plugins/c.json", "{");
        let pipe = f.path("etc/docker/plugins/d.json");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let (plugins, findings) = f.told();
        assert_eq!(
            plugins,
            ["a", "b", "c", "d"].map(|name| {
                let ending = if name < "c" { "spec" } else { "json" };
                format!("{name} etc/docker/plugins/{name}.{ending}")
            })
        );
        assert_eq!(
            findings,
            [
                "etc/docker/plugins/a.spec unreadable",
                "etc/docker/plugins/a.json shadowed",
                "etc/docker/plugins/b.spec bad-address",
                "etc/docker/plugins/c.json bad-json",
                "etc/docker/plugins/d.json unreadable"
            ]
        );
    }

    #[test]
    fn files_that_are_named_are_looked_at() {
        let f = fixture();
        let tls = r#"{"CAFile": "/nowhere/a", "CertFile": "/nowhere/c", "KeyFile": "/nowhere/k"}"#;
        f.put("etc/docker/plugins/p.json", &format!(r#"{{"Addr": "tcp://h:1/x", "TLSConfig": {tls}}}"#));
        let faults: Vec<_> = f.lint().findings.iter().map(|one| one.fault.word()).collect();
        assert_eq!(faults, ["ignored", "tls-off", "no-file", "no-file", "no-file"]);
    }

    #[test]
    fn directories_that_are_named_must_be_there() {
        let f = fixture();
        f.socket("run/docker/plugins/p.sock");
        f.json("specs/p.json");
        let dirs = ["run/docker/plugins", "specs", "missing"].map(|dir| f.dir.path().join(dir));
        let report = lint(&SearchDirs::named(&dirs), OffsetDateTime::now_utc());
        assert_eq!(report.plugins[0].file, dirs[0].join("p.sock"));
        let words: Vec<_> = report.findings.iter().map(|one| one.fault.word()).collect();
        assert_eq!(words, ["no-directory", "shadowed"]);
    }

    #[test]
    fn every_users_engine_has_its_directories() {
        let (root, home) = (Path::new("/"), Some(Path::new("/home/u")));
        let dirs = |is_root| SearchDirs::of_engine(root, is_root, home).specs;
        assert_eq!(dirs(true), ["/etc/docker/plugins", "/usr/lib/docker/plugins"].map(PathBuf::from));
        assert_eq!(
            dirs(false),
            ["/etc/docker/plugins", "/home/u/.local/lib/docker/plugins"].map(PathBuf::from)
        );
    }

    #[test]
    fn the_samples_are_what_volhost_writes_and_engines_read() {
        let report = lint(&SearchDirs::named(&[SAMPLES.into()]), OffsetDateTime::now_utc());
        let (host, port) = ("store1.example.com".to_owned(), 7443);
        let tls = TlsFiles { ca: CA_FILE.into(), cert: CERT_FILE.into(), key: KEY_FILE.into() };
        let expected = [
            ("volhost", Format::Json, Address::Https { host, port, tls }, "verified"),
            ("volhost-local", Format::Spec, Address::Unix("/run/volhost/plugin.sock".into()), "local"),
            (
                "volhost-plain",
                Format::Spec,
                Address::Http { host: "127.0.0.1".to_owned(), port: 7080 },
                "off",
            ),
        ];
        assert_eq!(report.plugins.len(), expected.len());
        for (plugin, (name, format, address, protection)) in report.plugins.iter().zip(expected) {
            let spec = Spec { name: PluginName::parse(name).unwrap(), address };
            assert_eq!(std::fs::read_to_string(&plugin.file).unwrap(), spec.render(format).unwrap());
            let target = plugin.target.as_ref().unwrap();
            assert_eq!((&*plugin.name, target.protection.word()), (name, protection));
        }
        // The samples name files of a host, which do not exist here.
        assert!(report.findings.iter().all(|one| one.fault.word() == "no-file"), "{:?}", report.findings);
    }

    #[test]
    fn a_spurious_key_in_any_object_of_a_sample_is_told() {
        let sample = std::fs::read_to_string(Path::new(SAMPLES).join("volhost.json")).unwrap();
        let samples = with_a_spurious_key(&serde_json::from_str::<Value>(&sample).unwrap());
        assert_eq!(samples.len(), 2, "the sample has fewer objects than a spec file can");
        for changed in samples {
            let f = fixture();
            f.put("etc/docker/plugins/volhost.json", &changed.to_string());
            let report = f.lint();
            let told: Vec<_> = report.findings.iter().map(|one| one.fault.to_string()).collect();
            assert!(told.iter().any(|text| text.contains("spurious")), "{changed}: {told:?}");
            // An engine ignores the key, and so does this lint.
            assert_eq!(report.plugins[0].target.as_ref().unwrap().protection.word(), "verified");
        }
    }
}
