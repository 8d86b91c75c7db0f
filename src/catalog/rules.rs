//! The rules by which a change turns one view into the next, and the records that each change touches.
//!
//! The rules are pure: no I/O, no clock, no engine. A change that is refused leaves the view as it was.

mod hosts;
mod machines;
mod mounts;
mod premises;
#[cfg(test)]
mod tests;
mod volumes;
mod write;

use std::sync::Arc;

use imbl::OrdMap;
use time::{OffsetDateTime, UtcOffset};

pub use self::premises::Premise;
pub use self::write::{MountKey, RowKey, Write};
use super::entities::Volume;
use super::view::View;
use super::{Change, Outcome, Refusal};

/// The effect of a change, and the records that must be durable before anyone is answered.
type Decision = Result<(Outcome, Vec<Write>), Refusal>;

/// Returns a time as a record keeps it: UTC, to the millisecond, within the years that RFC 3339 can express.
#[must_use]
pub(crate) fn recorded_time(at: OffsetDateTime) -> OffsetDateTime {
    let first = OffsetDateTime::new_utc(
        time::Date::from_ordinal_date(0, 1).unwrap_or(time::Date::MIN),
        time::Time::MIDNIGHT,
    );
    let utc = at.checked_to_offset(UtcOffset::UTC).unwrap_or(first).max(first);
    utc.replace_millisecond(utc.millisecond()).unwrap_or(utc)
}

impl View {
    /// Applies a change to this view.
    ///
    /// Returns the outcome and the records to write, in their order; none if nothing needs to be durable. A refusal
    /// leaves the view as it was.
    pub fn apply(&mut self, change: Change) -> Result<(Outcome, Vec<Write>), Refusal> {
        match change {
            Change::Insert(volume) => self.insert(volume),
            Change::Publish(name, id) => self.publish(&name, id),
            Change::Confirm(volumes) => Ok(self.confirm(&volumes)),
            Change::Withdraw(name, id) => self.withdraw(&name, id),
            Change::Remove { name, id, at, keep } => self.remove(&name, id, at, keep),
            Change::Restore(id) => self.restore(id),
            Change::Unrestore { name, id, at } => self.unrestore(&name, id, at),
            Change::Expire { id, removed } => self.expire(id, removed),
            Change::Forget(id) => self.forget(id),
            Change::Mount { name, volume, host, id, address, at, again } => {
                let host = self.name_now(&host).clone();
                self.mount(&name, volume, (host, address), &id, at, again)
            }
            Change::TakeBack { name, volume, counted } => Ok(self.take_back(&name, volume, &counted)),
            Change::Unmount { name, host, id, target } => {
                let host = self.name_now(&host).clone();
                Ok(self.unmount(&name, &host, &id, target.as_ref()))
            }
            Change::Release { name, host, id, alive_too } => {
                self.release(&name, &host, id.as_ref(), alive_too)
            }
            Change::Activate(host) => Ok(self.activate(self.name_now(&host).clone())),
            Change::Issue(host, certificate) => Ok(self.issue(host, certificate)),
            Change::Revoke(host, at) => Ok(self.revoke(host, at)),
            Change::Seen(hosts) => Ok(self.seen(hosts)),
            Change::Connected(host, issuer) => Ok(self.connected(host, issuer)),
            Change::Called { host, serial, from, at } => Ok(self.called(host, &serial, from, at)),
            Change::NotCloned(host) => Ok(self.not_cloned(host)),
            Change::Name(machine, host) => Ok(self.name_machine(machine, &host)),
            Change::Backend(name, record) => self.backend(name, record),
            Change::Introduce(name, record) => match self.backends.get(&name) {
                Some(known) => Err(Refusal::Known(Arc::clone(known))),
                None => self.backend(name, Some(record)),
            },
        }
    }

    /// Returns every record of this view. A store that holds them is opened as this view with all volumes visible.
    pub fn records(&self) -> impl Iterator<Item = Write> + '_ {
        let volumes = self.volumes.iter().flat_map(|(name, volume)| {
            let mounts = volume.mounts.iter().map(|m| Write::Mount(MountKey::of(name, m), Some(m.clone())));
            std::iter::once(Write::Volume(name.clone(), Some(Arc::clone(volume)))).chain(mounts)
        });
        let removed = self.trash.iter().map(|(id, removed)| Write::Removed(*id, Some(Arc::clone(removed))));
        let hosts = self.hosts.iter().map(|(name, host)| Write::Host(name.clone(), Arc::clone(host)));
        let backends =
            self.backends.iter().map(|(name, b)| Write::Backend(name.clone(), Some(Arc::clone(b))));
        volumes.chain(removed).chain(hosts).chain(backends)
    }

    /// Stores a volume under its name, and returns it with the write that would record it.
    fn store(&mut self, volume: Volume) -> (Arc<Volume>, Write) {
        let volume = Arc::new(volume);
        self.put_counted(&volume);
        let write = Write::Volume(volume.name.clone(), Some(Arc::clone(&volume)));
        (volume, write)
    }
}

/// Returns the name as `map` already holds it, so that equal names share one allocation.
fn interned<K: Ord + Clone, V: Clone>(map: &OrdMap<K, V>, name: K) -> K {
    map.get_key_value(&name).map_or(name, |(known, _)| known.clone())
}
