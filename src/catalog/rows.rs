//! Single rows put into a view: how an engine that shares its store hears of what others wrote.
//!
//! Pure. Rows of one volume may come in another order than they were written, where this process's own are known
//! before those of others: what a row says is put in as it is, and what has no volume any more is passed over.

use std::sync::Arc;

use super::entities::{Host, Volume};
use super::rules::{Write, ordered};
use super::view::View;
use crate::model::host::HostName;
use crate::model::mounts::Mount;
use crate::model::volume::VolumeName;

impl View {
    /// Puts a row in, or takes it out. Mounts and whether it is visible are a volume's own rows, and stay.
    pub(super) fn put(&mut self, write: Write) {
        match write {
            Write::Volume(name, Some(record)) => self.put_volume(name, &record),
            Write::Volume(name, None) => {
                if let Some(volume) = self.volumes.remove(&name) {
                    volume.mounts.iter().for_each(|mount| self.died(mount));
                }
            }
            Write::Mount(key, mount) => {
                let Some(volume) = self.volumes.get(&key.volume) else { return };
                let mut volume = Volume::clone(volume);
                let same = |known: &Mount| {
                    known.host == key.host && known.id == key.id && known.activation == key.activation
                };
                let before = volume.mounts.release(same);
                before.iter().for_each(|mount| self.died(mount));
                if let Some(mount) = mount {
                    self.count_in(&mount);
                    volume.mounts.put(mount);
                    volume.mounts = ordered(volume.mounts);
                }
                self.volumes.insert(key.volume, Arc::new(volume));
            }
            Write::Removed(_, Some(removed)) => self.trash.insert(removed),
            Write::Removed(id, None) => {
                self.trash.remove(&id);
            }
            Write::Host(name, host) => self.put_host(name, host),
            Write::Backend(name, Some(backend)) => {
                self.backends.insert(name, backend);
            }
            Write::Backend(name, None) => {
                self.backends.remove(&name);
            }
        }
    }

    fn put_volume(&mut self, name: VolumeName, record: &Volume) {
        let mut volume = Volume::clone(record);
        match self.volumes.get(&name).filter(|known| known.id == volume.id) {
            Some(known) => {
                volume.mounts = known.mounts.clone();
                volume.visible = known.visible;
            }
            None => volume.mounts = Default::default(),
        }
        if let Some(before) = self.volumes.insert(name, Arc::new(volume))
            && before.id != record.id
        {
            before.mounts.iter().for_each(|mount| self.died(mount));
        }
    }

    fn put_host(&mut self, name: HostName, host: Arc<Host>) {
        if host.activation > self.activation(&name) {
            // What is counted under the new one comes after it.
            self.live.remove(&name);
        }
        self.hosts.insert(name, host);
    }

    fn count_in(&mut self, mount: &Mount) {
        if mount.activation == self.activation(&mount.host) {
            *self.live.entry(mount.host.clone()).or_default() += 1;
        }
    }
}
