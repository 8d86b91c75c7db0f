//! What must be true at the end, when everything works again and nobody asks for anything: all instances tell the same,
//! the catalog's rows say it, and the backend holds exactly that.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::generate::VOLUMES;
use super::model::Access;
use super::record::{Ending, Found, named, number};
use crate::harness::disk::names;
use crate::harness::etcd::PREFIX;
use crate::harness::{Cluster, Daemon};

/// How long the instances may take until they tell the same and nothing is half-made: what was begun by a process that
/// was killed is another's to finish when the first one's lease is over, and looked for in rounds.
pub(super) const QUIET: Duration = Duration::from_secs(60);

/// What an instance tells.
pub(super) fn told(daemon: &Daemon<'_>) -> BTreeMap<usize, Found> {
    let rows = daemon.cli(&["volume", "ls", "--json"]).json();
    let access = |row: &Value| match row["options"]["access"].as_str() {
        None => Access::Unsaid,
        Some("shared") => Access::Shared,
        Some("exclusive") => Access::Exclusive,
        Some(other) => panic!("{other:?} was never asked for"),
    };
    let row =
        |row: &Value| (number(row["name"].as_str().expect("a volume has a name")), (access(row), vec![]));
    let mut volumes: BTreeMap<_, _> = rows.as_array().expect("it is a list").iter().map(row).collect();
    for mount in daemon.mounts() {
        let id = u8::try_from(number(&mount.id)).expect("there are few IDs");
        let count = u32::try_from(mount.count).expect("it is small");
        let (_, mounts) = volumes
            .get_mut(&number(&mount.volume))
            .unwrap_or_else(|| panic!("{mount:?} is of no volume that is listed"));
        mounts.push((number(&mount.host), id, count));
    }
    volumes
}

/// The endings that an instance tells of.
pub(super) fn endings(daemon: &Daemon<'_>, instance: usize, at: u64) -> Vec<Ending> {
    let told = told(daemon);
    let found = |volume: usize| told.get(&volume).cloned();
    (0..VOLUMES).map(|volume| Ending { instance, at, volume, found: found(volume) }).collect()
}

/// What does not agree, if anything.
pub(super) fn disagreement(
    instances: &[Daemon<'_>],
    etcd: Option<&Cluster<'_>>,
    root: &Path,
) -> Option<String> {
    let told: Vec<_> = instances.iter().map(told).collect();
    let trash: Vec<_> = instances.iter().map(Daemon::trash).collect();
    if told.windows(2).any(|two| two[0] != two[1]) || trash.windows(2).any(|two| two[0] != two[1]) {
        return Some(format!("the instances tell {told:?}, and of the trash {trash:?}"));
    }
    for volume in told[0].values() {
        if let (Access::Exclusive, mounts) = volume {
            let hosts: BTreeSet<_> = mounts.iter().map(|(host, ..)| host).collect();
            if hosts.len() > 1 {
                return Some(format!("an exclusive volume has the hosts {hosts:?}: {told:?}"));
            }
        }
    }
    let rows = etcd.and_then(|etcd| {
        let volumes = etcd.keys(&format!("/{PREFIX}/volumes/")).into_iter();
        let volumes: BTreeSet<_> = volumes.map(|key| last(&key).to_owned()).collect();
        let expected: BTreeSet<_> = told[0].keys().map(|volume| named('v', *volume)).collect();
        let counts = etcd.get(&format!("/{PREFIX}/mounts/")).into_iter().map(|(key, record)| {
            let record: Value = serde_json::from_str(&record).unwrap_or_else(|e| panic!("{key}: {e}"));
            record["count"].as_u64().unwrap_or_else(|| panic!("{key} has no count: {record}"))
        });
        let counts: u64 = counts.sum();
        let all = told[0].values().flat_map(|(_, mounts)| mounts);
        let mounted: u64 = all.map(|(_, _, count)| u64::from(*count)).sum();
        let removed = etcd.keys(&format!("/{PREFIX}/removed/")).into_iter();
        let removed: BTreeSet<_> = removed.map(|key| last(&key).to_owned()).collect();
        let right = volumes == expected && counts == mounted && removed.iter().eq(trash[0].keys());
        (!right).then(|| {
            format!(
                "the catalog has {volumes:?} with {counts} mounts and {removed:?} removed, told are {told:?}"
            )
        })
    });
    // What a killed instance had staged may be another's who is still at it: it is left for longer than a test lasts.
    let staged = |wrong: &String| etcd.is_some() && wrong.starts_with(".volhost/new holds");
    let kept = names(&root.join(".volhost/trash"));
    let trashed =
        (!kept.iter().eq(trash[0].keys())).then(|| format!("the trash holds {kept:?}, told are {trash:?}"));
    rows.or(trashed).or_else(|| instances[0].disagreement(root).filter(|wrong| !staged(wrong)))
}

fn last(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or_default()
}
