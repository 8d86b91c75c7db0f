//! The catalog in memory: the view, the revision of each row in it, and which instance has the right to move which
//! directory.
//!
//! Rows come from two sources: from the watch, in the order of their revisions, and from this instance's own transactions,
//! which may be answered before the watch delivers them. An older row never overwrites a newer one. Nobody waits while
//! holding the lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use etcd_client::{Event, EventType, KeyValue};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use uuid::Uuid;

use crate::catalog::etcd::keys::{Key, Keys};
use crate::catalog::record::{InvalidRow, Loader};
use crate::catalog::{Host, MountKey, PeerEvents, RowKey, View, Volume, Write};
use crate::model::volume::{VolumeId, VolumeName};

/// The value of a `moving` key: an instance's right to move a volume's directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The instance that has the right.
    pub(crate) by: Uuid,
    /// The volume that is not visible until the claim ends: one that is being made or restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hides: Option<String>,
}

/// One of the changes that a transaction makes to the memory.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A row is stored or deleted.
    Row(Write),
    /// An instance claims the right to move a volume's directory, or the claim ends.
    Claim(VolumeId, Option<Claim>),
}

/// The view, with the revisions of its rows and the claims.
pub(crate) struct Memory {
    keys: Keys,
    me: Uuid,
    view: ArcSwap<View>,
    rows: Mutex<Rows>,
    /// The revision up to which the watch has delivered every event.
    reached: watch::Sender<i64>,
    /// The number of claims that have ended.
    ended_claims: watch::Sender<u64>,
    peer_events: watch::Sender<PeerEvents>,
}

/// The keys behind the view, always of the same moment as the view.
#[derive(Default)]
pub(crate) struct Rows {
    /// The revision of each row in the view, by its key.
    revisions: HashMap<Box<str>, i64>,
    /// The revisions at which this instance deleted rows and claims, until the watch reaches them.
    gone: HashMap<Box<str>, i64>,
    /// Each claim, with the revision of its key.
    claims: HashMap<VolumeId, (Claim, i64)>,
    /// This instance's own transactions that the watch has not delivered yet.
    own: Vec<(i64, Vec<Step>)>,
    /// The revision up to which the watch has delivered every event.
    pub(crate) reached: i64,
    /// The key that every transaction writes, as it was at that revision.
    pub(crate) head: Option<Head>,
    /// Reads rows. It shares the names that many rows have in common.
    reader: Loader,
}

impl Rows {
    /// Returns the revision of a row, or 0 if there is no such row.
    pub(crate) fn revision(&self, key: &str) -> i64 {
        self.revisions.get(key).copied().unwrap_or_default()
    }

    /// Returns true if the memory has a row, or its deletion, as of this revision or a later one.
    fn has_row(&self, key: &[u8], revision: i64) -> bool {
        let latest = std::str::from_utf8(key)
            .ok()
            .and_then(|key| self.revisions.get(key).or_else(|| self.gone.get(key)));
        latest.is_some_and(|latest| *latest >= revision)
    }

    /// Returns the claim on a volume's directory, and its revision.
    pub(crate) fn claim(&self, id: VolumeId) -> Option<&(Claim, i64)> {
        self.claims.get(&id)
    }
}

/// A key's revision and value.
pub(crate) type Head = (i64, Vec<u8>);

/// A catalog that was read whole, at one revision.
pub(crate) struct Snapshot {
    pub(crate) view: View,
    pub(crate) revisions: HashMap<Box<str>, i64>,
    pub(crate) claims: HashMap<VolumeId, (Claim, i64)>,
    pub(crate) head: Option<Head>,
    pub(crate) revision: i64,
}

impl Memory {
    pub(crate) fn new(keys: Keys, me: Uuid, snapshot: Snapshot) -> Self {
        let memory = Self {
            keys,
            me,
            view: ArcSwap::default(),
            rows: Mutex::default(),
            reached: watch::Sender::new(0),
            ended_claims: watch::Sender::new(0),
            peer_events: watch::Sender::new(PeerEvents::default()),
        };
        memory.replace(snapshot, true);
        memory
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(crate) fn reached(&self) -> watch::Receiver<i64> {
        self.reached.subscribe()
    }

    pub(crate) fn ended_claims(&self) -> watch::Receiver<u64> {
        self.ended_claims.subscribe()
    }

    pub(crate) fn peer_events(&self) -> watch::Receiver<PeerEvents> {
        self.peer_events.subscribe()
    }

    /// Calls `look` with the view and the rows behind it, both of the same moment.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Arc<View>, &Rows) -> T) -> T {
        let rows = self.rows();
        look(&self.view.load(), &rows)
    }

    /// Applies a transaction of this instance that was committed.
    pub(crate) fn committed(&self, revision: i64, steps: Vec<Step>) {
        let mut rows = self.rows();
        // The watch has delivered it already, and perhaps what others did to the same rows since.
        if revision <= rows.reached {
            return;
        }
        let mut draft = View::clone(&self.view.load());
        for step in &steps {
            self.apply_step(&mut rows, &mut draft, revision, step.clone());
        }
        rows.own.push((revision, steps));
        self.view.store(Arc::new(draft));
    }

    /// Applies events of the watch, which end with a whole transaction. Returns true if they have all transactions of this
    /// instance up to their last revision. If one is missing, the events belong to another history.
    ///
    /// An event that is not understood is an error. The events before it are applied, and are delivered again.
    pub(crate) fn apply_events(&self, events: &[Event]) -> Result<bool, InvalidRow> {
        let mut rows = self.rows();
        let mut draft = View::clone(&self.view.load());
        let mut peers = *self.peer_events.borrow();
        let (mut changed, head) = (false, rows.head.clone());
        let applied = events.iter().try_for_each(|event| {
            changed |= self.apply_event(&mut rows, &mut draft, &mut peers, event)?;
            Ok(())
        });
        let reached = match &applied {
            Ok(()) => {
                events.iter().filter_map(Event::kv).map(KeyValue::mod_revision).max().unwrap_or_default()
            }
            Err(_) => {
                rows.head = head;
                0
            }
        };
        let reached = rows.reached.max(reached);
        rows.reached = reached;
        let pairs: Vec<_> = events.iter().filter_map(Event::kv).collect();
        let head = self.keys.head();
        let is_delivered = |revision: i64| {
            pairs.iter().any(|pair| pair.mod_revision() == revision && pair.key() == head.as_bytes())
        };
        let has_all_own = rows.own.iter().all(|(revision, _)| *revision > reached || is_delivered(*revision));
        rows.own.retain(|(revision, _)| *revision > reached);
        rows.gone.retain(|_, revision| *revision > reached);
        if changed {
            self.view.store(Arc::new(draft));
        }
        drop(rows);
        self.reached.send_if_modified(|before| std::mem::replace(before, reached) < reached);
        self.peer_events.send_if_modified(|before| std::mem::replace(before, peers) != peers);
        applied.map(|()| has_all_own)
    }

    /// Applies one event. Returns true if that changed the view.
    fn apply_event(
        &self,
        rows: &mut Rows,
        draft: &mut View,
        peers: &mut PeerEvents,
        event: &Event,
    ) -> Result<bool, InvalidRow> {
        let Some(pair) = event.kv() else { return Ok(false) };
        let deleted = event.event_type() == EventType::Delete;
        Ok(match self.keys.parse(pair.key()) {
            // Usually a row that this instance wrote, which was applied when the transaction was answered.
            Key::Row(..) if rows.has_row(pair.key(), pair.mod_revision()) => false,
            Key::Row(table, parts) => {
                let parts: Vec<_> = parts.iter().map(String::as_str).collect();
                let write = if deleted {
                    deletion(rows.reader.read_key(table, &parts)?)
                } else {
                    Some(rows.reader.read(table, &parts, &String::from_utf8_lossy(pair.value()))?)
                };
                if let Some(Write::Host(name, host)) = &write {
                    peers.certificate_changes += u64::from(other_certificates(draft.hosts.get(name), host));
                }
                match write {
                    Some(write) => self.apply_step(rows, draft, pair.mod_revision(), Step::Row(write)),
                    // The row stays in the view, and has no key any more: the next write creates one.
                    None => {
                        rows.revisions.remove(&*String::from_utf8_lossy(pair.key()));
                        false
                    }
                }
            }
            Key::Claim(id) => {
                let claim = if deleted { None } else { serde_json::from_slice(pair.value()).ok() };
                self.apply_step(rows, draft, pair.mod_revision(), Step::Claim(id, claim))
            }
            Key::Instance(id) => {
                // It may have left operations half-done.
                peers.lost_instances += u64::from(deleted && id != self.me);
                false
            }
            Key::Head => {
                rows.head = Some((pair.mod_revision(), pair.value().to_vec()));
                false
            }
            Key::Private | Key::Format | Key::Import | Key::Unknown => false,
        })
    }

    /// Replaces the memory with a catalog that was read whole, because the watch cannot deliver what happened meanwhile. If
    /// the memory belongs to another history, nothing of it stays.
    pub(crate) fn replace(&self, snapshot: Snapshot, same_history: bool) {
        let Snapshot { view, revisions, claims, head, revision } = snapshot;
        let mut rows = self.rows();
        let mut peers = *self.peer_events.borrow();
        let before = self.view.load();
        let others = before.hosts.iter().any(|(name, host)| other_certificates(view.hosts.get(name), host));
        let mut draft = view;
        for (id, (claim, _)) in &claims {
            if let Some(name) = hidden(claim) {
                show(&mut draft, &name, *id, false);
            }
        }
        let same_history = same_history && revision >= rows.reached;
        rows.revisions = revisions;
        rows.claims = claims;
        rows.head = head;
        rows.gone.clear();
        rows.reached = revision;
        // This instance's transactions after the snapshot are applied again; those of a discarded history are lost.
        let own = std::mem::take(&mut rows.own);
        for (at, steps) in own.into_iter().filter(|_| same_history) {
            if at > revision {
                for step in &steps {
                    self.apply_step(&mut rows, &mut draft, at, step.clone());
                }
                rows.own.push((at, steps));
            }
        }
        self.view.store(Arc::new(draft));
        drop(rows);
        peers.certificate_changes += u64::from(others);
        // The end of an instance may have been missed.
        peers.lost_instances += 1;
        self.peer_events.send_replace(peers);
        self.ended_claims.send_modify(|count| *count += 1);
        self.reached.send_replace(revision);
    }

    /// Applies a step, unless the memory has it already, or a newer one. Returns true if it was applied.
    fn apply_step(&self, rows: &mut Rows, draft: &mut View, revision: i64, step: Step) -> bool {
        match step {
            Step::Row(write) => {
                let key = self.keys.of_row(&write.key()).into_boxed_str();
                let latest = rows.revisions.get(&key).or_else(|| rows.gone.get(&key));
                if latest.is_some_and(|latest| *latest >= revision) {
                    return false;
                }
                if !write.deletes() {
                    rows.gone.remove(&key);
                    rows.revisions.insert(key, revision);
                } else {
                    rows.revisions.remove(&key);
                    if revision > rows.reached {
                        rows.gone.insert(key, revision);
                    }
                }
                let volume = match &write {
                    Write::Volume(name, Some(volume)) => Some((name.clone(), volume.id)),
                    _ => None,
                };
                draft.put(write);
                if let Some((name, id)) = volume {
                    let hides = rows.claims.get(&id).is_some_and(|(claim, _)| claim.hides.is_some());
                    show(draft, &name, id, !hides);
                }
            }
            Step::Claim(id, claim) => {
                let key = self.keys.claim(id).into_boxed_str();
                let latest = rows.claims.get(&id).map(|(_, at)| at).or_else(|| rows.gone.get(&key));
                if latest.is_some_and(|latest| *latest >= revision) {
                    return false;
                }
                let before = rows.claims.remove(&id);
                if let Some(name) = before.as_ref().and_then(|(claim, _)| hidden(claim)) {
                    show(draft, &name, id, true);
                }
                match claim {
                    Some(claim) => {
                        if let Some(name) = hidden(&claim) {
                            show(draft, &name, id, false);
                        }
                        rows.claims.insert(id, (claim, revision));
                    }
                    None => {
                        if revision > rows.reached {
                            rows.gone.insert(key, revision);
                        }
                        self.ended_claims.send_modify(|count| *count += 1);
                    }
                }
            }
        }
        true
    }

    /// Sets a row's revision to one that the cluster never gave it. No event of the watch corrects that.
    #[cfg(test)]
    pub(crate) fn corrupt_revision(&self, row: &RowKey) {
        self.rows().revisions.insert(self.keys.of_row(row).into_boxed_str(), i64::MAX);
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // The code that changes it does not panic half-way.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows or hides a volume.
fn show(view: &mut View, name: &VolumeName, id: VolumeId, visible: bool) {
    let Some(volume) = view.volumes.get(name) else { return };
    if volume.id == id && volume.visible != visible {
        let volume = Arc::new(Volume { visible, ..Volume::clone(volume) });
        view.volumes.insert(name.clone(), volume);
    }
}

/// Returns true if a host's certificates or its revocation differ.
fn other_certificates(one: Option<&Arc<Host>>, other: &Host) -> bool {
    one.is_none_or(|one| one.certificates != other.certificates || one.revoked_at != other.revoked_at)
}

/// Returns the name of the volume that a claim hides.
fn hidden(claim: &Claim) -> Option<VolumeName> {
    claim.hides.as_deref().and_then(|name| VolumeName::parse(name).ok())
}

/// Returns the write that deletes a row; `None` for a host, because no volhost deletes one.
fn deletion(row: RowKey) -> Option<Write> {
    match row {
        RowKey::Volume(name) => Some(Write::Volume(name, None)),
        RowKey::Mount(MountKey { volume, host, id, activation }) => {
            Some(Write::Mount(MountKey { volume, host, id, activation }, None))
        }
        RowKey::Removed(id) => Some(Write::Removed(id, None)),
        RowKey::Backend(name) => Some(Write::Backend(name, None)),
        RowKey::Host(name) => {
            log::warn!("the record of host {name} was deleted in etcd by hand: it is kept in memory");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Cluster;
    use crate::catalog::contract::volume;

    #[test]
    fn an_answer_that_arrives_after_the_watch_restores_nothing() {
        let keys = Keys::new(&Cluster { members: vec!["a:1".into()], prefix: "p".into() });
        let (view, revisions, claims) = Default::default();
        let memory =
            Memory::new(keys, Uuid::nil(), Snapshot { view, revisions, claims, head: None, revision: 10 });
        let made = Arc::new(volume("db"));
        let steps = |made: &Arc<Volume>| {
            let claim = Claim { by: Uuid::nil(), hides: Some(made.name.to_string()) };
            let row = Step::Row(Write::Volume(made.name.clone(), Some(Arc::clone(made))));
            vec![Step::Claim(made.id, Some(claim)), row]
        };
        // The volume was removed again, and the watch has delivered both.
        memory.committed(9, steps(&made));
        assert!(memory.view().volumes.is_empty());
        assert!(memory.look(|_, rows| rows.claim(made.id).is_none()));
        memory.committed(11, steps(&made));
        assert!(!memory.view().volume("db").unwrap().visible);
        assert!(memory.look(|_, rows| rows.claim(made.id).is_some()));
    }
}
