//! The catalog in memory: the view, the revision of each row in it, and which instance moves which directory.
//!
//! Rows come from two sides: from the watch, in the order of their revisions, and from this instance's own transactions,
//! which may be known before the watch has come so far. A row that is known newer is never overwritten by an older one.
//! Nobody waits under its lock.

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

/// The value of a `moving` key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Moves {
    /// The instance that moves the directory.
    pub(crate) by: Uuid,
    /// The volume that is not visible meanwhile: one that is being made or restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hides: Option<String>,
}

/// A step of what becomes of the memory by one transaction.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// A row is stored or deleted.
    Row(Write),
    /// Somebody moves a volume's directory, or does no more.
    Moving(VolumeId, Option<Moves>),
}

/// What is known.
pub(crate) struct Memory {
    keys: Keys,
    me: Uuid,
    view: ArcSwap<View>,
    known: Mutex<Rows>,
    /// The revision up to which the watch has told everything.
    reached: watch::Sender<i64>,
    /// Counts how often a directory's moving ended.
    settled: watch::Sender<u64>,
    peer_events: watch::Sender<PeerEvents>,
}

/// What is known beside the view, of which it is always the same moment.
#[derive(Default)]
pub(crate) struct Rows {
    /// The revision of each row in the view, by its key.
    rows: HashMap<Box<str>, i64>,
    /// The revisions at which this instance deleted rows, until the watch has come there.
    gone: HashMap<Box<str>, i64>,
    moving: HashMap<VolumeId, (Moves, i64)>,
    /// This instance's own transactions that the watch has not come to yet.
    own: Vec<(i64, Vec<Step>)>,
    pub(crate) reached: i64,
    /// The key that every transaction writes, as it was at that revision.
    pub(crate) head: Option<Head>,
    /// Reads rows; keeps the names that many of them have in common.
    reader: Loader,
}

impl Rows {
    /// The revision of a row, or 0 where there is none.
    pub(crate) fn revision(&self, key: &str) -> i64 {
        self.rows.get(key).copied().unwrap_or_default()
    }

    /// Whether a row is known, or known to be gone, as it was at a revision or later.
    fn has_row(&self, key: &[u8], revision: i64) -> bool {
        let known =
            std::str::from_utf8(key).ok().and_then(|key| self.rows.get(key).or_else(|| self.gone.get(key)));
        known.is_some_and(|known| *known >= revision)
    }

    /// Who moves a volume's directory, and the revision of that.
    pub(crate) fn mover(&self, id: VolumeId) -> Option<&(Moves, i64)> {
        self.moving.get(&id)
    }
}

/// A key's revision and value.
pub(crate) type Head = (i64, Vec<u8>);

/// A catalog as it was read whole, at one revision.
pub(crate) struct Snapshot {
    pub(crate) view: View,
    pub(crate) rows: HashMap<Box<str>, i64>,
    pub(crate) moving: HashMap<VolumeId, (Moves, i64)>,
    pub(crate) head: Option<Head>,
    pub(crate) revision: i64,
}

impl Memory {
    pub(crate) fn new(keys: Keys, me: Uuid, snapshot: Snapshot) -> Self {
        let memory = Self {
            keys,
            me,
            view: ArcSwap::default(),
            known: Mutex::default(),
            reached: watch::Sender::new(0),
            settled: watch::Sender::new(0),
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

    pub(crate) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    pub(crate) fn peer_events(&self) -> watch::Receiver<PeerEvents> {
        self.peer_events.subscribe()
    }

    /// Looks at the view and at what is known beside it, of one moment.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Arc<View>, &Rows) -> T) -> T {
        let known = self.known();
        look(&self.view.load(), &known)
    }

    /// Takes in a transaction of this instance.
    pub(crate) fn committed(&self, revision: i64, steps: Vec<Step>) {
        let mut known = self.known();
        // The watch has told it already, and perhaps what others made of it since.
        if revision <= known.reached {
            return;
        }
        let mut draft = View::clone(&self.view.load());
        for step in &steps {
            self.take(&mut known, &mut draft, revision, step.clone());
        }
        known.own.push((revision, steps));
        self.view.store(Arc::new(draft));
    }

    /// Takes in what the watch tells, which ends with a whole transaction. What is not understood ends it: what comes
    /// before it is taken in, and told again. Returns whether it tells of all transactions of this instance: where it
    /// does not, it is of another history.
    pub(crate) fn heard(&self, events: &[Event]) -> Result<bool, InvalidRow> {
        let mut known = self.known();
        let mut draft = View::clone(&self.view.load());
        let mut peers = *self.peer_events.borrow();
        let (mut changed, head) = (false, known.head.clone());
        let heard = events.iter().try_for_each(|event| {
            changed |= self.hear(&mut known, &mut draft, &mut peers, event)?;
            Ok(())
        });
        let reached = match &heard {
            Ok(()) => {
                events.iter().filter_map(Event::kv).map(KeyValue::mod_revision).max().unwrap_or_default()
            }
            Err(_) => {
                known.head = head;
                0
            }
        };
        let reached = known.reached.max(reached);
        known.reached = reached;
        let told: Vec<_> = events.iter().filter_map(Event::kv).collect();
        let head = self.keys.head();
        let is_told = |revision: i64| {
            told.iter().any(|pair| pair.mod_revision() == revision && pair.key() == head.as_bytes())
        };
        let whole = known.own.iter().all(|(revision, _)| *revision > reached || is_told(*revision));
        known.own.retain(|(revision, _)| *revision > reached);
        known.gone.retain(|_, revision| *revision > reached);
        if changed {
            self.view.store(Arc::new(draft));
        }
        drop(known);
        self.reached.send_if_modified(|before| std::mem::replace(before, reached) < reached);
        self.peer_events.send_if_modified(|before| std::mem::replace(before, peers) != peers);
        heard.map(|()| whole)
    }

    /// Takes in one event. Returns whether the view is another one by it.
    fn hear(
        &self,
        known: &mut Rows,
        draft: &mut View,
        peers: &mut PeerEvents,
        event: &Event,
    ) -> Result<bool, InvalidRow> {
        let Some(pair) = event.kv() else { return Ok(false) };
        let deleted = event.event_type() == EventType::Delete;
        Ok(match self.keys.parse(pair.key()) {
            // Most often this instance's own, which was taken in when it was answered.
            Key::Row(..) if known.has_row(pair.key(), pair.mod_revision()) => false,
            Key::Row(table, parts) => {
                let parts: Vec<_> = parts.iter().map(String::as_str).collect();
                let write = if deleted {
                    deletion(known.reader.read_key(table, &parts)?)
                } else {
                    Some(known.reader.read(table, &parts, &String::from_utf8_lossy(pair.value()))?)
                };
                if let Some(Write::Host(name, host)) = &write {
                    peers.certificate_changes += u64::from(other_certificates(draft.hosts.get(name), host));
                }
                match write {
                    Some(write) => self.take(known, draft, pair.mod_revision(), Step::Row(write)),
                    // What stays in the view without a key is written as a new one.
                    None => {
                        known.rows.remove(&*String::from_utf8_lossy(pair.key()));
                        false
                    }
                }
            }
            Key::Moving(id) => {
                let moves = if deleted { None } else { serde_json::from_slice(pair.value()).ok() };
                self.take(known, draft, pair.mod_revision(), Step::Moving(id, moves))
            }
            Key::Instance(id) => {
                // It may have left something half-done.
                peers.lost_instances += u64::from(deleted && id != self.me);
                false
            }
            Key::Head => {
                known.head = Some((pair.mod_revision(), pair.value().to_vec()));
                false
            }
            Key::Own | Key::Format | Key::Import | Key::Unknown => false,
        })
    }

    /// Takes in a catalog that was read whole, where the watch cannot tell what happened meanwhile; or where what is
    /// known is of another history, and nothing of it is to stay.
    pub(crate) fn replace(&self, snapshot: Snapshot, same_history: bool) {
        let Snapshot { view, rows, moving, head, revision } = snapshot;
        let mut known = self.known();
        let mut peers = *self.peer_events.borrow();
        let before = self.view.load();
        let others = before.hosts.iter().any(|(name, host)| other_certificates(view.hosts.get(name), host));
        let mut draft = view;
        for (id, (moves, _)) in &moving {
            if let Some(name) = hidden(moves) {
                show(&mut draft, &name, *id, false);
            }
        }
        let same_history = same_history && revision >= known.reached;
        known.rows = rows;
        known.moving = moving;
        known.head = head;
        known.gone.clear();
        known.reached = revision;
        // What this instance was answered since stays known; of a history that was given up, it is lost.
        let own = std::mem::take(&mut known.own);
        for (at, steps) in own.into_iter().filter(|_| same_history) {
            if at > revision {
                for step in &steps {
                    self.take(&mut known, &mut draft, at, step.clone());
                }
                known.own.push((at, steps));
            }
        }
        self.view.store(Arc::new(draft));
        drop(known);
        peers.certificate_changes += u64::from(others);
        // Whoever ended meanwhile was not seen to end.
        peers.lost_instances += 1;
        self.peer_events.send_replace(peers);
        self.settled.send_modify(|count| *count += 1);
        self.reached.send_replace(revision);
    }

    /// Takes in a step, unless it is known, or something newer is. Returns whether it was taken in.
    fn take(&self, known: &mut Rows, draft: &mut View, revision: i64, step: Step) -> bool {
        match step {
            Step::Row(write) => {
                let key = self.keys.of_row(&write.key()).into_boxed_str();
                let newer = known.rows.get(&key).or_else(|| known.gone.get(&key));
                if newer.is_some_and(|newer| *newer >= revision) {
                    return false;
                }
                if !write.deletes() {
                    known.gone.remove(&key);
                    known.rows.insert(key, revision);
                } else {
                    known.rows.remove(&key);
                    if revision > known.reached {
                        known.gone.insert(key, revision);
                    }
                }
                let volume = match &write {
                    Write::Volume(name, Some(volume)) => Some((name.clone(), volume.id)),
                    _ => None,
                };
                draft.put(write);
                if let Some((name, id)) = volume {
                    let hides = known.moving.get(&id).is_some_and(|(moves, _)| moves.hides.is_some());
                    show(draft, &name, id, !hides);
                }
            }
            Step::Moving(id, moves) => {
                let key = self.keys.moving(id).into_boxed_str();
                let at = known.moving.get(&id).map(|(_, at)| at).or_else(|| known.gone.get(&key));
                if at.is_some_and(|at| *at >= revision) {
                    return false;
                }
                let before = known.moving.remove(&id);
                if let Some(name) = before.as_ref().and_then(|(moves, _)| hidden(moves)) {
                    show(draft, &name, id, true);
                }
                match moves {
                    Some(moves) => {
                        if let Some(name) = hidden(&moves) {
                            show(draft, &name, id, false);
                        }
                        known.moving.insert(id, (moves, revision));
                    }
                    None => {
                        if revision > known.reached {
                            known.gone.insert(key, revision);
                        }
                        self.settled.send_modify(|count| *count += 1);
                    }
                }
            }
        }
        true
    }

    /// Has a row known at a revision that the cluster never gave it: what no watch would ever mend.
    #[cfg(test)]
    pub(crate) fn mistake(&self, row: &RowKey) {
        self.known().rows.insert(self.keys.of_row(row).into_boxed_str(), i64::MAX);
    }

    fn known(&self) -> MutexGuard<'_, Rows> {
        // What is changed under it is changed by code that does not panic half-way, and is only ever added to.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Whether what is known of a host's certificates differs.
fn other_certificates(one: Option<&Arc<Host>>, other: &Host) -> bool {
    one.is_none_or(|one| one.certificates != other.certificates || one.revoked_at != other.revoked_at)
}

/// The name of the volume that is hidden while its directory is moved.
fn hidden(moves: &Moves) -> Option<VolumeName> {
    moves.hides.as_deref().and_then(|name| VolumeName::parse(name).ok())
}

/// What deletes a row; nothing for a host, which no volhost deletes.
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
    fn an_answer_that_comes_after_the_watch_brings_nothing_back() {
        let keys = Keys::of(&Cluster { members: vec!["a:1".into()], prefix: "p".into() });
        let (view, rows, moving) = Default::default();
        let memory =
            Memory::new(keys, Uuid::nil(), Snapshot { view, rows, moving, head: None, revision: 10 });
        let made = Arc::new(volume("db"));
        let steps = |made: &Arc<Volume>| {
            let moves = Moves { by: Uuid::nil(), hides: Some(made.name.to_string()) };
            let row = Step::Row(Write::Volume(made.name.clone(), Some(Arc::clone(made))));
            vec![Step::Moving(made.id, Some(moves)), row]
        };
        // What it made was removed again, and the watch has told both.
        memory.committed(9, steps(&made));
        assert!(memory.view().volumes.is_empty());
        assert!(memory.look(|_, known| known.mover(made.id).is_none()));
        memory.committed(11, steps(&made));
        assert!(!memory.view().volume("db").unwrap().visible);
        assert!(memory.look(|_, known| known.mover(made.id).is_some()));
    }
}
