//! The rules of volumes: how they are made, removed and restored.

use std::sync::Arc;

use time::OffsetDateTime;

use super::{Decision, Write, interned, recorded_time};
use crate::catalog::entities::{Removed, Volume};
use crate::catalog::view::View;
use crate::catalog::{Outcome, Refusal};
use crate::model::mounts::Ledger;
use crate::model::volume::{VolumeId, VolumeName};

impl View {
    pub(super) fn insert(&mut self, volume: Volume) -> Decision {
        if let Some(taken) = self.volumes.get(&volume.name) {
            return Err(Refusal::Exists(Arc::clone(taken)));
        }
        let Volume {
            id,
            name,
            backend,
            mut options,
            created_at,
            adopted,
            known_to,
            mounts: _,
            visible: _,
            unconfirmed,
        } = volume;
        // Thousands of volumes name the same few backends and hosts: they share the strings that the view already
        // holds.
        options.backend = options.backend.map(|backend| interned(&self.backends, backend));
        let mut known_to: Vec<_> = known_to.into_iter().map(|host| interned(&self.hosts, host)).collect();
        known_to.sort_unstable();
        known_to.dedup();
        known_to.shrink_to_fit();
        let volume = Volume {
            id,
            name,
            backend: interned(&self.backends, backend),
            options,
            created_at: recorded_time(created_at),
            adopted,
            known_to,
            mounts: Ledger::default(),
            visible: false,
            unconfirmed,
        };
        let (after, write) = self.store(volume);
        Ok((Outcome { after: Some(after), ..Outcome::default() }, vec![write]))
    }

    pub(super) fn publish(&mut self, name: &VolumeName, id: VolumeId) -> Decision {
        let before = self.volume_with_id(name, id)?;
        let mut volume = Volume::clone(&before);
        volume.visible = true;
        // Visibility is not recorded.
        let (after, _) = self.store(volume);
        Ok((Outcome { before: Some(before), after: Some(after), ..Outcome::default() }, Vec::new()))
    }

    pub(super) fn confirm(&mut self, volumes: &[(VolumeName, VolumeId)]) -> (Outcome, Vec<Write>) {
        let mut writes = Vec::new();
        for (name, id) in volumes {
            let Ok(volume) = self.volume_with_id(name, *id) else { continue };
            if volume.unconfirmed.is_some() {
                writes.push(self.store(Volume { unconfirmed: None, ..Volume::clone(&volume) }).1);
            }
        }
        (Outcome::default(), writes)
    }

    pub(super) fn withdraw(&mut self, name: &VolumeName, id: VolumeId) -> Decision {
        let before = self.hidden(name, id)?;
        self.remove_counted(name);
        let writes = vec![Write::Volume(name.clone(), None)];
        Ok((Outcome { before: Some(before), ..Outcome::default() }, writes))
    }

    pub(super) fn remove(
        &mut self,
        name: &VolumeName,
        id: VolumeId,
        at: OffsetDateTime,
        keep: bool,
    ) -> Decision {
        let before = self.visible(name, id)?;
        if !before.mounts.is_empty() {
            return Err(Refusal::Mounted(before));
        }
        self.remove_counted(name);
        let mut writes = vec![Write::Volume(name.clone(), None)];
        // The directory of an adopted volume is not volhost's to delete, so it must not enter the trash.
        let trashed = (keep && !before.adopted).then(|| self.discard(&before, at, &mut writes));
        Ok((Outcome { before: Some(before), trashed, ..Outcome::default() }, writes))
    }

    pub(super) fn restore(&mut self, id: VolumeId) -> Decision {
        let removed = self.trash.get(&id).map(Arc::clone).ok_or(Refusal::NotInTrash)?;
        if removed.expired {
            return Err(Refusal::Expired(removed));
        }
        if let Some(taken) = self.volumes.get(&removed.volume.name) {
            return Err(Refusal::Exists(Arc::clone(taken)));
        }
        self.trash.remove(&id);
        let mut volume = Volume::clone(&removed.volume);
        volume.visible = false;
        let (after, write) = self.store(volume);
        let before = Some(Arc::clone(&removed.volume));
        let outcome = Outcome { before, after: Some(after), trashed: Some(removed), ..Outcome::default() };
        Ok((outcome, vec![write, Write::Removed(id, None)]))
    }

    pub(super) fn unrestore(&mut self, name: &VolumeName, id: VolumeId, at: OffsetDateTime) -> Decision {
        let before = self.hidden(name, id)?;
        self.remove_counted(name);
        let mut writes = vec![Write::Volume(name.clone(), None)];
        let trashed = Some(self.discard(&before, at, &mut writes));
        Ok((Outcome { before: Some(before), trashed, ..Outcome::default() }, writes))
    }

    pub(super) fn expire(&mut self, id: VolumeId, at: OffsetDateTime) -> Decision {
        let removed = self.trash.get(&id).filter(|removed| removed.at == at).ok_or(Refusal::NotInTrash)?;
        let expired = Arc::new(Removed { expired: true, ..Removed::clone(removed) });
        self.trash.insert(Arc::clone(&expired));
        let outcome = Outcome { trashed: Some(Arc::clone(&expired)), ..Outcome::default() };
        Ok((outcome, vec![Write::Removed(id, Some(expired))]))
    }

    pub(super) fn forget(&mut self, id: VolumeId) -> Decision {
        let removed = self.trash.remove(&id).ok_or(Refusal::NotInTrash)?;
        let before = Some(Arc::clone(&removed.volume));
        let outcome = Outcome { before, trashed: Some(removed), ..Outcome::default() };
        Ok((outcome, vec![Write::Removed(id, None)]))
    }

    pub(super) fn visible(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volume_with_id(name, id)
            .and_then(|volume| if volume.visible { Ok(volume) } else { Err(Refusal::NoSuchVolume) })
    }

    fn hidden(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volume_with_id(name, id)
            .and_then(|volume| if volume.visible { Err(Refusal::Exists(volume)) } else { Ok(volume) })
    }

    fn volume_with_id(&self, name: &VolumeName, id: VolumeId) -> Result<Arc<Volume>, Refusal> {
        self.volumes.get(name).filter(|volume| volume.id == id).map(Arc::clone).ok_or(Refusal::NoSuchVolume)
    }

    /// Puts a volume, which has no mounts, into the trash.
    fn discard(&mut self, volume: &Volume, at: OffsetDateTime, writes: &mut Vec<Write>) -> Arc<Removed> {
        let volume = Arc::new(Volume { visible: false, unconfirmed: None, ..volume.clone() });
        let removed = Arc::new(Removed { at: recorded_time(at), expired: false, volume });
        self.trash.insert(Arc::clone(&removed));
        writes.push(Write::Removed(removed.volume.id, Some(Arc::clone(&removed))));
        removed
    }
}
