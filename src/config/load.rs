//! Reading the two files: which they are, what it means that one is not there, and all their faults together.
//!
//! What the files may say is told in [`super::parse`] and [`super::backends`].

use std::io;
use std::path::Path;

use super::backends::{self, Owner};
use super::json::{MAX_BYTES, Source};
use super::parse::Draft;
use super::watch::Seen;
use super::{Fault, Faults, Loaded, Paths, Rejected};
use crate::files;

/// What the defaults depend on.
#[derive(Debug, Clone)]
pub(super) struct Surroundings {
    /// The default paths.
    pub(super) paths: Paths,
    /// What the machine calls itself.
    pub(super) hostname: String,
    /// Who owns new volumes when the map does not say.
    pub(super) owner: Owner,
    /// Whether this program was built with etcd's client.
    pub(super) etcd: bool,
}

impl Surroundings {
    pub(super) fn here(paths: &Paths) -> Self {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let owner = match uid.is_root() {
            true => Owner { uid: 0, gid: 0 },
            false => Owner { uid: uid.as_raw(), gid: gid.as_raw() },
        };
        Self { paths: paths.clone(), hostname, owner, etcd: cfg!(feature = "etcd") }
    }
}

/// Whether a file of keys, certificates or a password that the configuration names must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsFilesMust {
    /// A missing one is a fault.
    Exist,
    /// Whoever reads them will see.
    Nothing,
}

/// Reads the configuration and the backend map, for the start and for `volhost check`.
///
/// `file` is `--config`, which must exist; without it the default file is read, and where there is none, defaults
/// hold. Files that the configuration names must exist. A backend's path need not.
///
/// # Errors
/// All faults of both files.
pub fn load(paths: &Paths, file: Option<&Path>) -> Result<Loaded, Faults> {
    read(&Surroundings::here(paths), file, TlsFilesMust::Exist, &[]).map_err(|rejected| rejected.faults)
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
/// As [`load()`], but TLS files that are not there are left to the unit of the reload that reads them: a certificate
/// that is just being replaced must not hold up a change of the map.
///
/// A file that was there when what is in force was read, among `in_force`, must still be there: that somebody moved it
/// away for a moment must not put the defaults in force, under which everybody may do everything.
///
/// # Errors
/// All faults of both files, and what to follow until they are mended.
pub fn reload(paths: &Paths, file: Option<&Path>, in_force: &[Seen]) -> Result<Loaded, Rejected> {
    read(&Surroundings::here(paths), file, TlsFilesMust::Nothing, in_force)
}

pub(super) fn read(
    around: &Surroundings,
    named: Option<&Path>,
    tls_files: TlsFilesMust,
    in_force: &[Seen],
) -> Result<Loaded, Rejected> {
    let named = named.map(|file| std::path::absolute(file).unwrap_or_else(|_| file.into()));
    let file = named.clone().unwrap_or_else(|| around.paths.config());
    let (bytes, seen) = Seen::read(&file, MAX_BYTES);
    let mut files = vec![seen];
    let mut faults = Vec::new();
    let must_exist = |path: &Path| in_force.iter().any(|seen| seen.path() == path && seen.is_there());
    // What is not there says as little as an empty object.
    let bytes = bytes.unwrap_or_else(|error| {
        if named.is_none() && error.kind() == io::ErrorKind::NotFound {
            faults.extend(must_exist(&file).then(|| gone(&file)));
        } else {
            faults.push(whole_file(&file, format!("cannot be read: {error}")));
        }
        b"{}".to_vec()
    });
    let source = Source::new(&file, bytes);
    let Draft { mut config, map, client_ca } = Draft::read(&source, around, tls_files);
    faults.extend(source.into_faults());

    let (bytes, seen) = Seen::read(&config.map, MAX_BYTES);
    files.push(seen);
    match (bytes, map) {
        (Ok(bytes), _) => {
            let source = Source::new(&config.map, bytes);
            config.backends = backends::read(&source, around.owner);
            faults.extend(source.into_faults());
        }
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            faults.extend(must_exist(&config.map).then(|| gone(&config.map)));
            config.backends = backends::without_map(around.paths.volumes(), around.owner);
        }
        // The fault is the configuration's, which names a file that is not there.
        (Err(error), Some(place)) => {
            faults.push(Fault { what: format!("{} cannot be read: {error}", config.map.display()), ..place });
        }
        (Err(error), None) => faults.push(whole_file(&config.map, format!("cannot be read: {error}"))),
    }

    match Faults::collect(faults) {
        None => Ok(Loaded { config, files, client_ca }),
        Some(faults) => Err(Rejected { faults, files }),
    }
}

/// The fault of a file that was in force and is not there any more.
fn gone(file: &Path) -> Fault {
    whole_file(
        file,
        "is gone, and was in force: put it back; if it is not to be there, `volhost reload --force`".into(),
    )
}

fn whole_file(file: &Path, what: String) -> Fault {
    Fault { file: file.into(), line: 0, column: 0, field: String::new(), what, hint: None }
}
