//! The mark of a removed volume whose deletion has begun: its directory's name.
//!
//! The directory is renamed from `.volhost/trash/ID` to `.volhost/deleting-ID`, durably, before its first entry goes,
//! and only a directory of that name is ever deleted. So a half-deleted directory can be told from a whole one,
//! whatever happens to the catalog. It lies beside the trash and not in it, because a rename needs room for the new
//! name: on a full disk, `.volhost` with its few entries has that room, and a full trash may not.

use std::ffi::CString;

use crate::backend::error::BackendError;
use crate::backend::handle::is_directory;
use crate::backend::layout::{DELETING_PREFIX, TRASH};
use crate::backend::rename::rename_durably;
use crate::backend::root::Root;
use crate::backend::volumes::{Listing, identity};
use crate::model::volume::VolumeId;

impl Root {
    /// Marks a removed volume's directory as one whose deletion has begun, durably. Returns false if the volume has
    /// nothing left to delete.
    pub fn mark_deleting(&self, id: VolumeId) -> Result<bool, BackendError> {
        let Some(meta) = self.meta()? else { return Ok(false) };
        if meta.stat(&marked(id))?.is_some() {
            return Ok(true);
        }
        let Some(trash) = self.meta_dir(TRASH)? else { return Ok(false) };
        match rename_durably(&trash, &id.to_string(), &meta, &marked(id)) {
            Ok(()) => Ok(true),
            Err(BackendError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn is_marked(&self, id: VolumeId) -> Result<bool, BackendError> {
        let Some(meta) = self.meta()? else { return Ok(false) };
        Ok(meta.stat(&marked(id))?.is_some())
    }

    /// Returns the removed volumes whose deletion has begun.
    pub fn deleting(&self) -> Result<Listing, BackendError> {
        let mut listing = Listing::default();
        let Some(meta) = self.meta()? else { return Ok(listing) };
        meta.for_each(|name, _| {
            let id = name.to_bytes().strip_prefix(DELETING_PREFIX.as_bytes());
            if let Some(id) = id.and_then(|id| identity(&CString::new(id).ok()?)) {
                match meta.stat(&marked(id))? {
                    Some(stat) if is_directory(&stat) => listing.volumes.push(id),
                    _ => listing.strays.push(meta.path.join(marked(id))),
                }
            }
            Ok(true)
        })?;
        listing.volumes.sort_unstable();
        listing.strays.sort_unstable();
        Ok(listing)
    }

    /// Returns true if a volume's directory lies in the trash, or did until its deletion began.
    pub fn is_trashed(&self, id: VolumeId) -> Result<bool, BackendError> {
        Ok(self.is_in_trash(id)? || self.is_marked(id)?)
    }

    /// Returns true if a removed volume's deletion has begun: its remains are not the volume.
    pub fn is_deleting(&self, id: VolumeId) -> Result<bool, BackendError> {
        Ok(self.is_marked(id)? && !self.is_in_trash(id)?)
    }
}

/// Returns the name of a directory whose deletion has begun.
pub(super) fn marked(id: VolumeId) -> String {
    format!("{DELETING_PREFIX}{id}")
}
