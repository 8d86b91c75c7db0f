//! The registry of connections: it counts and bounds them, and closes the longest idle one if there is no
//! room for a new one.
//!
//! Unix sockets are counted apart from the network, so that this machine's engine and its operator can always
//! connect, however many connections the network has. Handshakes are not counted here: a peer in a handshake
//! has proved nothing yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Limits;
use super::connection::{Connection, Key};
use crate::model::host::HostName;

/// Reasons why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("all {0} connections of this host are busy (limits.connections_per_host)")]
    Host(usize),
    #[error("all {0} connections are busy (limits.connections)")]
    Total(usize),
}

/// All connections whose handshake is done.
#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    entries: HashMap<u64, Entry>,
    counts: HashMap<Key, usize>,
    network: usize,
}

#[derive(Debug)]
struct Entry {
    connection: Arc<Connection>,
    /// False once the connection was ordered to make room; the watchdog still checks it until it is gone.
    counted: bool,
}

/// A place in the registry, given back on drop.
#[derive(Debug)]
pub(super) struct Admitted {
    registry: Arc<Registry>,
    id: u64,
}

impl Registry {
    /// Adds a connection. If there is no room, closes the longest idle connection that competes for the same
    /// limit.
    pub(super) fn admit(
        self: &Arc<Self>,
        connection: &Arc<Connection>,
        limits: &Limits,
    ) -> Result<Admitted, Full> {
        let mut table = self.table();
        let key = &connection.key;
        let per_host = limits.connections_per_host.max(1);
        while table.counts.get(key).copied().unwrap_or(0) >= per_host {
            if !table.evict(|other| other == key) {
                return Err(Full::Host(per_host));
            }
        }
        let total = limits.connections.max(1);
        while key.is_network() && table.network >= total {
            if !table.evict(Key::is_network) {
                return Err(Full::Total(total));
            }
        }
        table.next += 1;
        let id = table.next;
        table.network += usize::from(key.is_network());
        *table.counts.entry(key.clone()).or_default() += 1;
        table.entries.insert(id, Entry { connection: Arc::clone(connection), counted: true });
        Ok(Admitted { registry: Arc::clone(self), id })
    }

    /// Closes the longest idle connection from the network, because the system itself has no room.
    pub(super) fn make_room(&self) {
        self.table().evict(Key::is_network);
    }

    /// Returns every connection, also those that are about to end.
    pub(super) fn all(&self) -> Vec<Arc<Connection>> {
        self.table().entries.values().map(|entry| Arc::clone(&entry.connection)).collect()
    }

    /// Returns the number of connections of each host, without those of the operator and for monitoring.
    pub(super) fn by_host(&self) -> BTreeMap<HostName, usize> {
        let mut hosts = BTreeMap::new();
        for entry in self.table().entries.values() {
            if entry.counted && !matches!(entry.connection.key, Key::Admin | Key::Monitor(_)) {
                *hosts.entry(entry.connection.caller.host.clone()).or_default() += 1;
            }
        }
        hosts
    }

    /// Returns the number of connections by the kind of their listener.
    pub(super) fn by_listener(&self) -> Vec<(&'static str, usize)> {
        let mut counts = Key::LISTENERS.map(|listener| (listener, 0));
        for entry in self.table().entries.values().filter(|entry| entry.counted) {
            let listener = entry.connection.key.listener();
            if let Some((_, count)) = counts.iter_mut().find(|(known, _)| *known == listener) {
                *count += 1;
            }
        }
        counts.into()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Orders the longest idle of the matching connections to end, and stops counting it. Returns false if
    /// none is idle.
    fn evict(&mut self, concerned: impl Fn(&Key) -> bool) -> bool {
        let longest = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.counted && concerned(&entry.connection.key))
            .filter_map(|(id, entry)| Some((entry.connection.activity.idle_since()?, *id)))
            .min();
        let Some((_, id)) = longest else {
            return false;
        };
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.counted = false;
            let connection = Arc::clone(&entry.connection);
            connection.finish();
            log::debug!("{connection}: closed to make room, being the longest idle");
            self.uncount(&connection.key);
        }
        true
    }

    fn uncount(&mut self, key: &Key) {
        self.network -= usize::from(key.is_network());
        if let Some(count) = self.counts.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(key);
            }
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut table = self.registry.table();
        if let Some(entry) = table.entries.remove(&self.id)
            && entry.counted
        {
            table.uncount(&entry.connection.key);
        }
    }
}
