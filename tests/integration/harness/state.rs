//! What volhost says exists, as its command line lists it.

use serde_json::Value;

use super::daemon::Daemon;
use super::wait::{SOON, until};

/// One row of `mount ls`, without its time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Whose engine mounted it.
    pub host: String,
    /// The engine's ID for it.
    pub id: String,
    /// How often.
    pub count: u64,
    /// Whether it belongs to an earlier activation of the host.
    pub stale: bool,
}

impl Mount {
    /// What tells a mount apart where the engine chose its ID: volume, host, count and whether it is stale.
    pub(crate) fn essence(&self) -> (&str, &str, u64, bool) {
        (&self.volume, &self.host, self.count, self.stale)
    }
}

impl Daemon<'_> {
    /// The volumes' names.
    pub(crate) fn volumes(&self) -> Vec<String> {
        self.rows("volume").iter().map(|row| text(row, "name")).collect()
    }

    /// Waits until a power cut can no longer take the volumes' directories.
    pub(crate) fn await_durable(&self, names: &[&str]) {
        until("the directories are durable", SOON, || {
            let shown = self.cli(&[&["volume", "inspect", "--json"], names].concat()).json();
            shown.as_array().unwrap().iter().all(|volume| volume["durable"] == true).then_some(())
        });
    }

    /// The mounts, in the order of volume, host and ID.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let mount = |row: &Value| Mount {
            volume: text(row, "volume"),
            host: text(row, "host"),
            id: text(row, "id"),
            count: row["count"].as_u64().unwrap_or_else(|| panic!("no count in {row}")),
            stale: row["stale"].as_bool().unwrap_or_else(|| panic!("no stale in {row}")),
        };
        let mut mounts: Vec<_> = self.rows("mount").iter().map(mount).collect();
        mounts.sort();
        mounts
    }

    /// Fails unless the mounts are these, each of them counted once, in any order: volume, host, and whether it is
    /// stale.
    #[track_caller]
    pub(crate) fn has_mounts(&self, expected: &[(&str, &str, bool)]) {
        let mounts = self.mounts();
        let mut listed: Vec<_> = mounts.iter().map(Mount::essence).collect();
        let mut expected: Vec<_> =
            expected.iter().map(|(volume, host, stale)| (*volume, *host, 1, *stale)).collect();
        listed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(listed, expected, "mounts: volume, host, count, stale");
    }

    /// A backend's state, by its name, if there is such a backend.
    pub(crate) fn backend_state(&self, name: &str) -> Option<String> {
        self.rows("backend").iter().find(|row| row["name"] == name).map(|row| text(row, "state"))
    }

    fn rows(&self, group: &str) -> Vec<Value> {
        match self.cli(&[group, "ls", "--json"]).json() {
            Value::Array(rows) => rows,
            other => panic!("{group} ls --json printed no array: {other}"),
        }
    }
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().unwrap_or_else(|| panic!("no {field} in {row}")).to_owned()
}
