//! Reads the backend map: names with a path each, or with an object of more fields.
//!
//! A path that does not exist is not a fault, because shares come and go. Two backends of which one lies in the other
//! are a fault: a volume of the one could be a directory of the other. Only for that check are symlinks followed, and
//! with a time limit, so that a share that hangs cannot hold up a reload.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::json::Source;
use super::node::{Entry, Members, Node, quoted};
use super::{Fault, HostPattern, MapEntry, fields, walk};
use crate::model::backend::BackendName;
use crate::model::backend_settings::BackendSettings;
use crate::model::host::HostName;
use crate::model::options::Mode;

/// How long removed volumes are kept by default.
const TRASH: Duration = Duration::from_secs(24 * 60 * 60);

/// The default permissions of new volumes.
const MODE: &str = "0755";

/// The owner of new volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// The user.
    pub(super) uid: u32,
    /// The group.
    pub(super) gid: u32,
}

/// Returns the map to use if there is none: one backend, `default`.
pub(super) fn without_map(path: PathBuf, owner: Owner) -> BTreeMap<BackendName, MapEntry> {
    let name = BackendName::parse(BackendName::DEFAULT).ok();
    let settings = plain(path, owner);
    name.into_iter().zip(settings.map(|settings| MapEntry { settings, hosts: None })).collect()
}

/// Reads the map. Its faults are noted in `source`.
pub(super) fn read(source: &Source, owner: Owner) -> BTreeMap<BackendName, MapEntry> {
    let Some(value) = source.value() else { return BTreeMap::new() };
    let takes = "an object of backends, such as {\"default\": \"/srv/volumes\"}";
    let mut backends = BTreeMap::new();
    let mut places = Vec::new();
    for entry in Node::root(source, &value).entries(takes).unwrap_or_default() {
        if entry.key == fields::SCHEMA {
            let _ = entry.node.schema();
            continue;
        }
        let name = match BackendName::parse(entry.key) {
            Ok(name) => Some(name),
            Err(error) => {
                entry.fault(error.to_string(), None);
                None
            }
        };
        let Some((backend, place)) = backend(&entry, owner) else { continue };
        let shown = name.as_ref().map_or_else(|| entry.key.to_owned(), ToString::to_string);
        places.push(Place { name: shown, path: backend.settings.path.clone(), fault: place });
        if let Some(name) = name {
            backends.insert(name, backend);
        }
    }
    for fault in overlaps(&places) {
        source.note(fault);
    }
    backends
}

/// Returns the settings of a backend for which the map gives only a path. `None` only if the default mode were invalid.
fn plain(path: PathBuf, Owner { uid, gid }: Owner) -> Option<BackendSettings> {
    Some(BackendSettings {
        mountpoints: path.clone().into(),
        path,
        draining: false,
        require_mount: false,
        durable_directories: false,
        trash: TRASH,
        uid,
        gid,
        mode: Mode::parse(MODE)?,
    })
}

/// Reads one backend, and the position of its path in the file.
fn backend(entry: &Entry<'_>, owner: Owner) -> Option<(MapEntry, Fault)> {
    let node = &entry.node;
    let takes = "a path, or an object with at least \"path\"";
    if node.is_string() {
        let settings = plain(directory(node)?, owner)?;
        return Some((MapEntry { settings, hosts: None }, node.possible_fault()));
    }
    let mut members = node.members(fields::BACKEND, takes)?;
    let path_node = members.take("path");
    if path_node.is_none() {
        node.missing("path", "is missing: a backend needs the directory in which its volumes lie");
    }
    let path = path_node.as_ref().and_then(directory);
    let settings = settings(&mut members, path.clone().unwrap_or_default(), owner)?;
    let hosts = members.take("hosts").filter(|node| !node.is_null()).map(|node| hosts(&node));
    // Without a path there is no backend, but its other fields have been checked.
    path.zip(path_node).map(|(_, node)| (MapEntry { settings, hosts }, node.possible_fault()))
}

fn settings(members: &mut Members<'_>, path: PathBuf, owner: Owner) -> Option<BackendSettings> {
    let mut settings = plain(path, owner)?;
    let mut id = |name| members.number(name).and_then(|id| u32::try_from(id).ok());
    let (given_uid, given_gid) = (id("uid"), id("gid"));
    let BackendSettings {
        path: _,
        mountpoints,
        draining,
        require_mount,
        durable_directories,
        trash,
        uid,
        gid,
        mode,
    } = &mut settings;
    set(&mut mountpoints.usual, members.take("mountpoint").and_then(|node| directory(&node)));
    set(&mut mountpoints.by_host, members.take("mountpoint_by_host").map(|node| mountpoint_by_host(&node)));
    set(draining, members.take("draining").and_then(|node| node.boolean()));
    set(require_mount, members.take("require_mount").and_then(|node| node.boolean()));
    set(durable_directories, members.take("durable_directories").and_then(|node| node.boolean()));
    set(trash, members.take("trash").and_then(|node| trash_time(&node)));
    set(uid, given_uid);
    set(gid, given_gid);
    set(mode, members.take("mode").and_then(|node| self::mode(&node)));
    Some(settings)
}

fn set<T>(setting: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *setting = given;
    }
}

/// Reads an absolute path without `..`: where symlinks are swapped, `..` means another place each time.
fn directory(node: &Node<'_>) -> Option<PathBuf> {
    let path = node.path("a directory's path")?;
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        node.fault(format!("{:?} goes through `..`: name the directory itself", path));
        return None;
    }
    // One spelling for each path, so that `/srv//x/` and `/srv/x` are equal.
    Some(path.components().collect())
}

fn trash_time(node: &Node<'_>) -> Option<Duration> {
    // Zero is the only duration that needs no unit. If seconds or minutes were offered, a slip could empty the trash.
    if node.is_zero() { Some(Duration::ZERO) } else { node.duration("24h", &["h", "days"]) }
}

fn mode(node: &Node<'_>) -> Option<Mode> {
    let takes = "octal digits such as 0755";
    let text = node.string(&format!("{takes}, in quotes"))?;
    let mode = Mode::parse(text);
    if mode.is_none() {
        node.fault(format!("{} is no mode: it takes {takes}", quoted(text)));
    }
    mode
}

fn mountpoint_by_host(node: &Node<'_>) -> BTreeMap<HostName, PathBuf> {
    let takes = "an object of hosts and the paths on them, such as {\"web2\": \"/data/fast\"}";
    let mut paths = BTreeMap::new();
    for entry in node.entries(takes).unwrap_or_default() {
        let path = directory(&entry.node);
        match HostName::parse_or_anonymous(entry.key) {
            Ok(host) if paths.contains_key(&host) => entry.fault("is given twice, in other letters", None),
            Ok(host) => {
                paths.insert(host, path.unwrap_or_default());
            }
            Err(error) => entry.fault(error.to_string(), None),
        }
    }
    paths
}

fn hosts(node: &Node<'_>) -> Vec<HostPattern> {
    let takes = "a list of host names or patterns, such as [\"web*\"]";
    let pattern =
        |node: &Node<'_>| node.noted(HostPattern::parse(node.string("a host's name or a pattern")?));
    node.elements(takes).unwrap_or_default().iter().filter_map(pattern).collect()
}

/// A backend's path and its position in the file.
struct Place {
    name: String,
    path: PathBuf,
    fault: Fault,
}

/// Returns the faults of backends of which one lies in the other, each at the position of the later one.
fn overlaps(places: &[Place]) -> Vec<Fault> {
    let resolved = resolve(places.iter().map(|place| place.path.clone()).collect());
    let mut first: HashMap<&Path, usize> = HashMap::new();
    for (index, path) in resolved.iter().enumerate() {
        first.entry(path).or_insert(index);
    }
    let mut faults = Vec::new();
    for (index, path) in resolved.iter().enumerate() {
        let other =
            path.ancestors().find_map(|ancestor| first.get(ancestor).filter(|other| **other != index));
        let Some(other) = other.copied() else { continue };
        let same = resolved.get(other) == Some(path);
        let (later, earlier, relation) = match (same, other > index) {
            (true, _) => (index, other, "is the directory of"),
            (false, false) => (index, other, "lies inside"),
            (false, true) => (other, index, "holds"),
        };
        let (Some(place), Some(told)) = (places.get(later), places.get(earlier)) else { continue };
        let leads = [later, earlier].into_iter().filter_map(|index| {
            let (text, real) = (&places.get(index)?.path, resolved.get(index)?);
            (text != real).then(|| format!("{} leads to {}", text.display(), real.display()))
        });
        let leads = leads.collect::<Vec<_>>().join(", ");
        faults.push(Fault {
            what: format!(
                "{} {relation} backend {:?}, {}: backends must not overlap",
                place.path.display(),
                told.name,
                told.path.display()
            ),
            hint: (!leads.is_empty()).then_some(leads),
            ..place.fault.clone()
        });
    }
    faults
}

/// How long to wait for one path, and how many paths may take that long before the rest are used as written.
///
/// No test has a path that hangs, and every test expects the real paths, even on a busy machine.
const RESOLVE_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 10_000 } else { 150 });
const HANGING: usize = 3;

/// The number of threads that wait for a path. Those that wait for ever are never more than a few times [`HANGING`].
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Returns the real location of each path, with symlinks followed as far as it exists.
///
/// A share whose server is gone does not answer, so another thread resolves the paths, and a path that takes too long
/// stays as written. Such a thread may stay behind until its share answers.
fn resolve(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    let mut next = 0;
    for _ in 0..HANGING {
        let rest: Vec<_> = paths.iter().skip(next).cloned().collect();
        if rest.is_empty() || WAITING.load(Ordering::Relaxed) > 4 * HANGING {
            break;
        }
        let (sender, receiver) = mpsc::channel();
        WAITING.fetch_add(1, Ordering::Relaxed);
        let look = move || {
            for path in rest {
                if sender.send(walk::follow(&path, |_, _| {})).is_err() {
                    break;
                }
            }
            WAITING.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("config-paths".into()).spawn(look).is_err() {
            WAITING.fetch_sub(1, Ordering::Relaxed);
            break;
        }
        while let Ok(real) = receiver.recv_timeout(RESOLVE_TIMEOUT) {
            if let Some(path) = paths.get_mut(next) {
                *path = real;
            }
            next += 1;
        }
        if next < paths.len() {
            // This path hangs; the next thread begins after it.
            log::warn!(
                "a backend's path did not answer: whether it overlaps with others was told from its text"
            );
            next += 1;
        }
    }
    paths
}
