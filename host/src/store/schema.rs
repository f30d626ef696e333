//! The database as a file: whether it is ours, which layout it has, and how it comes to the newest.

use std::path::Path;

use rusqlite::{Connection, ErrorCode};
use uuid::Uuid;

/// Marks the file as ours (`PRAGMA application_id`): "OSGW".
pub(super) const APPLICATION_ID: i32 = 0x4f53_4757;
/// Layout of the tables (`PRAGMA user_version`).
pub(super) const SCHEMA: i32 = 2;

/// What leads from one layout to the next, beginning with an empty file. A layout that was released never changes.
pub(super) const STEPS: [&str; SCHEMA as usize] = [
    "
    CREATE TABLE gateway (id TEXT NOT NULL);
    CREATE TABLE sandboxes (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) STRICT;
    CREATE TABLE generations (sandbox_id TEXT PRIMARY KEY, reserved INTEGER NOT NULL) STRICT;
    ",
    "CREATE TABLE signing_keys (kid TEXT PRIMARY KEY) STRICT;",
];

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Made by something else.
    #[error("{0} is not a gateway database; move it away, or name another state_dir")]
    Foreign(String),
    /// Made by a later version.
    #[error("{path} has schema {found}, and this gateway knows up to {SCHEMA}; use the gateway that wrote it")]
    Newer {
        /// The file.
        path: String,
        /// Its schema.
        found: i32,
    },
    /// Damaged.
    #[error("{path} is damaged: {cause}; restore it from a copy, or move it away to start with no sandboxes")]
    Corrupt {
        /// The file.
        path: String,
        /// What SQLite says.
        cause: String,
    },
    /// Cannot be opened or written.
    #[error("failed to open {path}: {cause}; make the state directory writable for this user")]
    Failed {
        /// The file.
        path: String,
        /// What SQLite says.
        cause: String,
    },
}

pub(super) fn explain(path: &Path, error: rusqlite::Error) -> OpenError {
    let path_text = path.display().to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::Foreign(path_text),
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path: path_text, cause: error.to_string() },
        _ => OpenError::Failed { path: path_text, cause: error.to_string() },
    }
}

/// Looks before anything is written.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i32>(0));
    let application = pragma("application_id").map_err(|e| explain(path, e))?;
    let schema = pragma("user_version").map_err(|e| explain(path, e))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |r| r.get(0)).map_err(|e| explain(path, e))?;
    let path_text = path.display().to_string();
    if tables == 0 && application == 0 {
        return Ok(());
    }
    if application != APPLICATION_ID {
        return Err(OpenError::Foreign(path_text));
    }
    if schema > SCHEMA {
        return Err(OpenError::Newer { path: path_text, found: schema });
    }
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |r| r.get(0)).map_err(|e| explain(path, e))?;
    if verdict != "ok" {
        // SQLite's words come in several lines.
        let cause = verdict.split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(OpenError::Corrupt { path: path_text, cause });
    }
    Ok(())
}

pub(super) fn prepare(connection: &mut Connection) -> rusqlite::Result<Uuid> {
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    let transaction = connection.transaction()?;
    let schema: i32 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for step in STEPS.iter().skip(schema.unsigned_abs() as usize) {
        transaction.execute_batch(step)?;
    }
    if schema == 0 {
        transaction.execute("INSERT INTO gateway (id) VALUES (?1)", [Uuid::new_v4().to_string()])?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    }
    if schema != SCHEMA {
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        tracing::info!(from = schema, to = SCHEMA, "the tables of the store were brought to this version");
    }
    let id: String = transaction.query_row("SELECT id FROM gateway", [], |row| row.get(0))?;
    transaction.commit()?;
    checkpoint(connection)?;
    id.parse().map_err(|_| rusqlite::Error::InvalidQuery)
}

pub(super) fn checkpoint(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
}
