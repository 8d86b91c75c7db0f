//! Two names for one directory, on storage that folds names.
//!
//! Two volumes must never have one directory: the removal of one would take the data of the other. So Create and
//! Restore refuse a name that the storage takes for another volume's. If two such volumes exist all the same (their
//! backend was moved to such storage), a removal leaves the directory.

use super::Service;
use super::error::Error;
use crate::backend::{Backend, Expect, NameFolding};
use crate::model::volume::VolumeName;

impl Service {
    /// Returns the other volume of that backend whose directory the name leads to, and how the storage folds names.
    ///
    /// Searches all volumes, but only if the storage takes different names for one.
    pub(super) async fn twin(
        &self,
        backend: &Backend,
        expect: Expect,
        name: &VolumeName,
    ) -> Result<Option<(VolumeName, NameFolding)>, Error> {
        let folding = backend.name_folding(expect).await?;
        if folding.is_exact() {
            return Ok(None);
        }
        let view = self.catalog.view();
        let mut others = view.volumes.values().filter(|other| other.backend == *backend.name());
        let twin = others.find(|other| other.name != *name && folding.is_same(&other.name, name));
        Ok(twin.map(|twin| (twin.name.clone(), folding)))
    }

    /// Refuses a name that leads to the directory of another volume.
    pub(super) async fn refuse_twin(
        &self,
        backend: &Backend,
        expect: Expect,
        name: &VolumeName,
    ) -> Result<(), Error> {
        if self.twin(backend, expect, name).await?.is_none() {
            return Ok(());
        }
        // Another instance may have removed the other volume.
        self.sync().await?;
        match self.twin(backend, expect, name).await? {
            None => Ok(()),
            Some((other, folding)) => Err(Error::SameDirectory {
                name: name.clone(),
                other,
                backend: backend.name().clone(),
                folding,
            }),
        }
    }
}
