//! Puts single rows into a view: an engine that shares its store learns of other instances' writes in this way.
//!
//! Pure. Rows of one volume may come in another order than they were written, because this process knows its own writes
//! before those of others. So a row is put in as it is, and a mount whose volume is gone is skipped.

use std::sync::Arc;

use super::entities::Volume;
use super::rules::Write;
use super::view::View;

impl View {
    /// Stores a row in the view, or deletes it. A volume's mounts and visibility are not part of its row and stay as
    /// they are.
    pub(super) fn put(&mut self, write: Write) {
        match write {
            Write::Volume(_, Some(record)) => self.put_volume(&record),
            Write::Volume(name, None) => {
                if let Some(volume) = self.remove_counted(&name) {
                    volume.mounts.iter().for_each(|mount| self.uncount_mount(mount));
                }
            }
            Write::Mount(key, mount) => {
                let Some(volume) = self.volumes.get(&key.volume) else { return };
                let mut volume = Volume::clone(volume);
                if let Some(before) = volume.mounts.remove(&key.host, &key.id, key.activation) {
                    self.uncount_mount(&before);
                }
                if let Some(mount) = mount {
                    self.count_mount(&mount);
                    volume.mounts.put(mount);
                }
                self.put_counted(&Arc::new(volume));
            }
            Write::Removed(_, Some(removed)) => self.trash.insert(removed),
            Write::Removed(id, None) => {
                self.trash.remove(&id);
            }
            // Mounts under a new activation come after the row of their host.
            Write::Host(name, host) => self.put_host_counted(&name, &host),
            Write::Backend(name, Some(backend)) => {
                self.backends.insert(name, backend);
            }
            Write::Backend(name, None) => {
                self.backends.remove(&name);
            }
        }
    }

    fn put_volume(&mut self, record: &Volume) {
        let mut volume = Volume::clone(record);
        match self.volumes.get(&record.name).filter(|known| known.id == volume.id) {
            Some(known) => {
                volume.mounts = known.mounts.clone();
                volume.visible = known.visible;
            }
            None => volume.mounts = Default::default(),
        }
        if let Some(before) = self.put_counted(&Arc::new(volume))
            && before.id != record.id
        {
            before.mounts.iter().for_each(|mount| self.uncount_mount(mount));
        }
    }
}
