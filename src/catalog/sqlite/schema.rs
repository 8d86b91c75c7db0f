//! The tables of a catalog's file in every version, and the statements that the engine runs.
//!
//! A migration never changes once a release has it: files of an earlier schema are opened by running the migrations
//! that follow.

use rusqlite::Connection;

use crate::catalog::record::Table;

/// The application ID in an SQLite file's header that marks it as a catalog: `vhct`.
pub(super) const APPLICATION_ID: i32 = 0x7668_6374;

/// The position of the application ID in a file's header: four bytes, most significant first.
pub(super) const APPLICATION_ID_AT: std::ops::Range<usize> = 68..72;

/// The first bytes of every SQLite file.
pub(super) const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// The length of a file's header.
pub(super) const HEADER: usize = 100;

/// The schema's migrations, oldest first. The number of a schema is the number of migrations that were run.
pub(super) const MIGRATIONS: &[&str] = &[
    // 1: a table for each kind of record. Keys are texts, values are versioned JSON.
    "CREATE TABLE volumes (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE mounts (volume TEXT, host TEXT, id TEXT, activation TEXT, record TEXT NOT NULL,
         PRIMARY KEY (volume, host, id, activation)) STRICT, WITHOUT ROWID;
     CREATE TABLE removed (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE hosts (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
     CREATE TABLE backends (name TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT, WITHOUT ROWID;",
];

/// Returns the number of a file's schema.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Writes the schema's number into a file, even if it is unchanged, so that a transaction has something to write.
pub(super) fn set_version(connection: &Connection, version: usize) -> rusqlite::Result<()> {
    connection.execute_batch(&format!("PRAGMA user_version = {version}"))
}

/// Runs the migrations that a file of schema `from` lacks, within the caller's transaction.
pub(super) fn migrate(connection: &Connection, migrations: &[&str], from: usize) -> rusqlite::Result<()> {
    for migration in migrations.iter().skip(from) {
        connection.execute_batch(migration)?;
    }
    set_version(connection, migrations.len())
}

/// Returns the statement that reads all rows of a table: the parts of the key, then the record.
pub(super) fn select(table: Table) -> &'static str {
    match table {
        Table::Volumes => "SELECT name, record FROM volumes",
        Table::Mounts => "SELECT volume, host, id, activation, record FROM mounts",
        Table::Removed => "SELECT id, record FROM removed",
        Table::Hosts => "SELECT name, record FROM hosts",
        Table::Backends => "SELECT name, record FROM backends",
    }
}

/// Returns the statement that stores a row. Its parameters are the parts of the key, then the record.
pub(super) fn store(table: Table) -> &'static str {
    match table {
        Table::Volumes => "REPLACE INTO volumes (name, record) VALUES (?, ?)",
        Table::Mounts => "REPLACE INTO mounts (volume, host, id, activation, record) VALUES (?, ?, ?, ?, ?)",
        Table::Removed => "REPLACE INTO removed (id, record) VALUES (?, ?)",
        Table::Hosts => "REPLACE INTO hosts (name, record) VALUES (?, ?)",
        Table::Backends => "REPLACE INTO backends (name, record) VALUES (?, ?)",
    }
}

/// Returns the statement that deletes a row. Its parameters are the parts of the key.
pub(super) fn delete(table: Table) -> &'static str {
    match table {
        Table::Volumes => "DELETE FROM volumes WHERE name = ?",
        Table::Mounts => "DELETE FROM mounts WHERE volume = ? AND host = ? AND id = ? AND activation = ?",
        Table::Removed => "DELETE FROM removed WHERE id = ?",
        Table::Hosts => "DELETE FROM hosts WHERE name = ?",
        Table::Backends => "DELETE FROM backends WHERE name = ?",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_older_schema_gets_what_it_lacks_and_no_more() {
        let connection = Connection::open_in_memory().unwrap();
        let migrations = ["CREATE TABLE a (x)", "CREATE TABLE b (x)", "ALTER TABLE a ADD COLUMN y"];
        migrate(&connection, &migrations[..1], 0).unwrap();
        assert_eq!(version(&connection).unwrap(), 1);
        connection.execute("INSERT INTO a VALUES (1)", []).unwrap();
        migrate(&connection, &migrations, 1).unwrap();
        assert_eq!(version(&connection).unwrap(), 3);
        let y: Option<i64> = connection.query_row("SELECT y FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(y, None);
    }

    #[test]
    fn statements_have_the_parts_of_their_tables_keys() {
        let connection = Connection::open_in_memory().unwrap();
        migrate(&connection, MIGRATIONS, 0).unwrap();
        for table in Table::ALL {
            let columns: Vec<_> = table.key().iter().copied().chain(["record"]).collect();
            assert!(connection.prepare(select(table)).unwrap().column_names().eq(columns.iter().copied()));
            let stored = connection.prepare(store(table)).unwrap();
            assert_eq!(stored.parameter_count(), columns.len());
            assert!(store(table).contains(&format!("({})", columns.join(", "))));
            let deleted = connection.prepare(delete(table)).unwrap();
            assert_eq!(deleted.parameter_count(), table.key().len());
            assert_eq!(
                delete(table).rsplit_once("WHERE ").unwrap().1,
                table.key().join(" = ? AND ") + " = ?"
            );
        }
    }
}
