//! The rows of a catalog's file: reading all of them, and storing changed ones.

use std::error::Error;
use std::path::Path;

use rusqlite::Connection;

use super::error::OpenError;
use super::schema;
use crate::catalog::record::{Loader, Row, Table, encode};
use crate::catalog::{View, Write};

/// Reads every row.
pub(super) fn load(path: &Path, connection: &Connection) -> Result<View, OpenError> {
    let engine = |source| OpenError::of_engine(path, source);
    let row_error = |source| OpenError::Row { path: path.into(), source };
    let text_error =
        |error: rusqlite::types::FromSqlError| OpenError::Damaged { path: path.into(), source: error.into() };
    let mut loader = Loader::default();
    for table in Table::ALL {
        let mut statement = connection.prepare(schema::select(table)).map_err(engine)?;
        let parts = table.key().len();
        let mut rows = statement.query([]).map_err(engine)?;
        while let Some(row) = rows.next().map_err(engine)? {
            let text = |index| row.get_ref(index).map_err(engine)?.as_str().map_err(text_error);
            let key = (0..parts).map(text).collect::<Result<Vec<_>, _>>()?;
            loader.take(table, &key, text(parts)?).map_err(row_error)?;
        }
    }
    loader.finish().map_err(row_error)
}

/// Stores and deletes records, inside the caller's transaction.
pub(super) fn store(
    transaction: &Connection,
    writes: impl IntoIterator<Item = impl std::borrow::Borrow<Write>>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    for write in writes {
        let Row { table, key, record } = encode(write.borrow())?;
        let key = key.iter().map(|part| &**part);
        match &record {
            Some(record) => transaction
                .prepare_cached(schema::store(table))?
                .execute(rusqlite::params_from_iter(key.chain([record.as_str()])))?,
            None => {
                transaction.prepare_cached(schema::delete(table))?.execute(rusqlite::params_from_iter(key))?
            }
        };
    }
    Ok(())
}
