//! Reads the two files: finds their paths, decides what a missing one means, and collects the faults of both.
//!
//! [`super::parse`] and [`super::backends`] read the contents.

use std::io;
use std::path::Path;

use super::backends;
use super::json::{MAX_BYTES, Source};
use super::node::NamedFiles;
use super::parse::Draft;
use super::snapshot::FileSnapshot;
use super::surroundings::Surroundings;
use super::{Config, Fault, Faults, Paths};
use crate::files;

/// A configuration without faults.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The files that it was read from, with their contents at that time, including files that were not found: the
    /// files that [`Unit::Config`](super::watch::Unit::Config) must follow.
    pub files: Vec<FileSnapshot>,
    /// The fault that the field `tls.client_ca` would have, without its text.
    client_ca: Option<Fault>,
}

/// A configuration with faults.
#[derive(Debug)]
pub struct Rejected {
    /// The faults.
    pub faults: Faults,
    /// The files that were read, as in [`Loaded::files`]. They may differ from the previous ones: for example, the
    /// configuration may name another map, which does not exist yet.
    pub files: Vec<FileSnapshot>,
}

impl Loaded {
    /// Returns the path of the configuration's file if the file does not exist, so that the defaults hold.
    #[must_use]
    pub fn missing_file(&self) -> Option<&Path> {
        self.files.first().filter(|seen| !seen.is_there()).map(FileSnapshot::path)
    }

    /// Returns the fault of a configuration that lets in the clients of a foreign CA and does not list hosts.
    ///
    /// `is_ours` returns true if a CA file holds our own CA and no other; this module cannot read certificates. The
    /// caller asks after each load.
    pub fn check_client_ca(&self, is_ours: impl Fn(&Path) -> bool) -> Option<Fault> {
        let file = self.config.live.tls.client_ca.as_deref()?;
        let place = self.client_ca.as_ref()?;
        (self.config.live.hosts.is_none() && !is_ours(file)).then(|| Fault {
            what: format!(
                "{} is not volhost's own CA, which makes the field \"hosts\" mandatory: name the hosts that may call, \
                 such as \"hosts\": {{\"web1\": {{}}}}, or all that this CA ever signs by \"hosts\": {{\"*\": {{}}}}",
                file.display()
            ),
            ..place.clone()
        })
    }
}

/// Reads the configuration and the backend map, for the start and for `volhost check`.
///
/// `file` is `--config`, which must exist; without it the default file is read, and if there is none, defaults hold.
/// Files that the configuration names must exist. A backend's path need not.
///
/// # Errors
/// All faults of both files.
pub fn load(paths: &Paths, file: Option<&Path>) -> Result<Loaded, Faults> {
    read(&Surroundings::here(paths), file, NamedFiles::MustExist, &[]).map_err(|rejected| rejected.faults)
}

/// Reads the configuration and the backend map as a running service has them: TLS files need not exist.
///
/// # Errors
/// All faults of both files, or that they do not answer.
pub fn served(paths: &Paths, file: Option<&Path>) -> Result<Loaded, Faults> {
    let named = file.map_or_else(|| paths.config(), Path::to_path_buf);
    let (paths, file) = (paths.clone(), file.map(Path::to_path_buf));
    match files::within(move || reload(&paths, file.as_deref(), &[])) {
        Ok(loaded) => loaded.map_err(|rejected| rejected.faults),
        Err(error) => Err(whole_file(&named, error.to_string()).into()),
    }
}

/// Reads the configuration and the backend map again, while serving.
///
/// Does the same as [`load()`], but leaves missing TLS files to the unit of the reload that reads them: a certificate
/// that is just being replaced must not hold up a change of the map.
///
/// A file among `in_force` that existed when the configuration in force was read must still exist: if somebody moves it
/// away for a moment, that must not put the defaults in force, under which everybody may do everything.
///
/// # Errors
/// All faults of both files, and the files to follow until they are corrected.
pub fn reload(paths: &Paths, file: Option<&Path>, in_force: &[FileSnapshot]) -> Result<Loaded, Rejected> {
    read(&Surroundings::here(paths), file, NamedFiles::MayBeMissing, in_force)
}

pub(super) fn read(
    around: &Surroundings,
    named: Option<&Path>,
    named_files: NamedFiles,
    in_force: &[FileSnapshot],
) -> Result<Loaded, Rejected> {
    let named = named.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.into()));
    let file = named.clone().unwrap_or_else(|| around.paths.config());
    let (bytes, seen) = FileSnapshot::read(&file, MAX_BYTES);
    let mut files = vec![seen];
    let mut faults = Vec::new();
    let must_exist = |path: &Path| in_force.iter().any(|seen| seen.path() == path && seen.is_there());
    // A missing file means the same as an empty object.
    let bytes = bytes.unwrap_or_else(|error| {
        if named.is_none() && error.kind() == io::ErrorKind::NotFound {
            faults.extend(must_exist(&file).then(|| gone(&file)));
        } else {
            faults.push(whole_file(&file, format!("cannot be read: {error}")));
        }
        b"{}".to_vec()
    });
    let source = Source::new(&file, bytes);
    let Draft { mut config, map, client_ca } = Draft::read(&source, around, named_files);
    faults.extend(source.into_faults());

    let (bytes, seen) = FileSnapshot::read(&config.live.map, MAX_BYTES);
    files.push(seen);
    match (bytes, map) {
        (Ok(bytes), _) => {
            let source = Source::new(&config.live.map, bytes);
            config.live.backends = backends::read(&source, around.owner);
            faults.extend(source.into_faults());
        }
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            faults.extend(must_exist(&config.live.map).then(|| gone(&config.live.map)));
            config.live.backends = backends::without_map(around.paths.volumes(), around.owner);
        }
        // The fault is in the configuration, which names a missing file.
        (Err(error), Some(place)) => {
            faults.push(Fault {
                what: format!("{} cannot be read: {error}", config.live.map.display()),
                ..place
            });
        }
        (Err(error), None) => faults.push(whole_file(&config.live.map, format!("cannot be read: {error}"))),
    }

    match Faults::collect(faults) {
        None => Ok(Loaded { config, files, client_ca }),
        Some(faults) => Err(Rejected { faults, files }),
    }
}

/// Returns the fault of a file that was in force and is missing.
fn gone(file: &Path) -> Fault {
    whole_file(
        file,
        "is gone, and was in force: put it back; if it is not to be there, `volhost reload --force`".into(),
    )
}

fn whole_file(file: &Path, what: String) -> Fault {
    Fault { file: file.into(), line: 0, column: 0, field: String::new(), what, hint: None }
}
