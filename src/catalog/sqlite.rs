//! The embedded engine (being written).
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use super::{Catalog, Change, Submitted, View};

/// Why a catalog's file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {}

/// A catalog in a file.
pub struct Sqlite {}

/// Opens a catalog's file.
pub fn open(_path: &Path) -> Result<Sqlite, OpenError> {
    Ok(Sqlite {})
}

#[expect(clippy::unimplemented, reason = "the engine follows")]
impl Catalog for Sqlite {
    fn view(&self) -> Arc<View> {
        unimplemented!()
    }
    fn submit(&self, _change: Change) -> Submitted {
        unimplemented!()
    }
    fn location(&self) -> &str {
        unimplemented!()
    }
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        unimplemented!()
    }
}
