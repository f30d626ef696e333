//! The one implementation of [`Store`]: a row per sandbox, the record as a JSON document.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, params};
use uuid::Uuid;

pub use super::schema::OpenError;
use super::schema::{check, checkpoint, explain, prepare};
use crate::rotation::rotor::Generations;
use crate::sandbox::record::{Record, Store, StoreError};

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Mutex<Connection>,
    gateway_id: Uuid,
}

impl SqliteStore {
    /// Opens `gateway.db` in `state_dir`, or makes it.
    ///
    /// # Errors
    /// [`OpenError`]; the file is left as it was.
    pub fn open(state_dir: &Path) -> Result<Self, OpenError> {
        let path = state_dir.join("gateway.db");
        // What SQLite makes beside it later gets the same permissions. It also says best what is wrong with a place.
        let _there_already = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let mut connection = Connection::open(&path).map_err(|e| explain(&path, e))?;
        check(&connection, &path)?;
        let gateway_id = prepare(&mut connection).map_err(|e| explain(&path, e))?;
        Ok(Self { connection: Mutex::new(connection), gateway_id })
    }

    /// Made once with the file; part of every token's issuer.
    pub fn gateway_id(&self) -> Uuid {
        self.gateway_id
    }

    /// The ids of the keys that sign tokens of this state directory: none before the first start, one mostly, two
    /// while one is replaced.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn signing_keys(&self) -> Result<Vec<String>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = connection.prepare("SELECT kid FROM signing_keys ORDER BY rowid")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        read().map_err(|e| failed("read the signing keys", &e))
    }

    /// One more key may be found at the next start.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn allow_signing_key(&self, kid: &str) -> Result<(), StoreError> {
        let added = self.connection().execute("INSERT OR IGNORE INTO signing_keys (kid) VALUES (?1)", [kid]);
        added.map(drop).map_err(|e| failed("add a signing key", &e))
    }

    /// This key, and no other one.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn settle_signing_key(&self, kid: &str) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut settle = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM signing_keys WHERE kid <> ?1", [kid])?;
            transaction.execute("INSERT OR IGNORE INTO signing_keys (kid) VALUES (?1)", [kid])?;
            transaction.commit()
        };
        settle().map_err(|e| failed("note the signing key", &e))
    }

    /// Moves what the write-ahead log holds into the file itself, so that `gateway.db` alone is a whole copy.
    ///
    /// # Errors
    /// SQLite's words; nothing is lost, the log is read at the next start.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        checkpoint(&self.connection()).map_err(|e| failed("write the log back", &e))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // Every call is one statement or one transaction: a panic leaves nothing half done.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(act: &str, error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => StoreError::NameTaken,
        _ => StoreError::Failed(format!("failed to {act} in gateway.db: {error}")),
    }
}

fn document(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|e| StoreError::Failed(format!("failed to encode {}: {e}", record.name)))
}

impl Store for SqliteStore {
    fn load(&self) -> Result<Vec<Record>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<String>> {
            let mut statement = connection.prepare("SELECT record FROM sandboxes ORDER BY name")?;
            statement.query_map([], |row| row.get(0))?.collect()
        };
        let documents = read().map_err(|e| failed("read the sandboxes", &e))?;
        let parse = |text: &String| {
            serde_json::from_str(text).map_err(|e| StoreError::Failed(format!("failed to decode a sandbox: {e}")))
        };
        documents.iter().map(parse).collect()
    }

    fn insert(&self, record: &Record) -> Result<(), StoreError> {
        let row = params![record.id.to_string(), record.name, document(record)?];
        self.connection()
            .execute("INSERT INTO sandboxes (id, name, record) VALUES (?1, ?2, ?3)", row)
            .map(drop)
            .map_err(|e| failed("add a sandbox", &e))
    }

    fn update(&self, record: &Record) -> Result<(), StoreError> {
        let row = params![record.id.to_string(), document(record)?];
        self.connection()
            .execute("UPDATE sandboxes SET record = ?2 WHERE id = ?1", row)
            .map(drop)
            .map_err(|e| failed("update a sandbox", &e))
    }

    fn remove(&self, sandbox_id: Uuid) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let mut remove = || -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            transaction.execute("DELETE FROM sandboxes WHERE id = ?1", [sandbox_id.to_string()])?;
            transaction.execute("DELETE FROM generations WHERE sandbox_id = ?1", [sandbox_id.to_string()])?;
            transaction.commit()
        };
        remove().map_err(|e| failed("remove a sandbox", &e))
    }
}

impl Generations for SqliteStore {
    fn reserve(&self, sandbox_id: Uuid, count: u64) -> Result<Range<u64>, String> {
        let mut connection = self.connection();
        let mut reserve = || -> rusqlite::Result<Range<u64>> {
            let transaction = connection.transaction()?;
            let id = sandbox_id.to_string();
            let from: Option<i64> = transaction
                .query_row("SELECT reserved FROM generations WHERE sandbox_id = ?1", [&id], |row| row.get(0))
                .optional()?;
            let from = from.unwrap_or(1);
            let until = from.saturating_add_unsigned(count);
            let upsert = "INSERT INTO generations (sandbox_id, reserved) VALUES (?1, ?2)
                          ON CONFLICT (sandbox_id) DO UPDATE SET reserved = ?2";
            transaction.execute(upsert, params![id, until])?;
            transaction.commit()?;
            Ok(from.unsigned_abs()..until.unsigned_abs())
        };
        reserve().map_err(|e| format!("failed to reserve generations of {sandbox_id} in gateway.db: {e}"))
    }
}

/// Where the file is, for messages.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("gateway.db")
}

#[cfg(test)]
mod tests {
    use super::super::schema::{APPLICATION_ID, SCHEMA, STEPS};
    use super::*;
    use crate::sandbox::decide::Machine;
    use crate::sandbox::spec::Spec;

    fn record(name: &str) -> Record {
        Record {
            id: Uuid::new_v4(),
            name: name.into(),
            spec: Spec {
                image: "debian".into(),
                vcpus: 1,
                memory_mib: 256,
                command: vec!["true".into()],
                tty: false,
                restart: Default::default(),
                await_attachment: false,
                environment: [("A".to_string(), "b".to_string())].into(),
                labels: Default::default(),
                annotations: Default::default(),
                request_id: String::new(),
                services: vec![],
                providers: vec![],
            },
            created_ms: 1,
            version: 1,
            machine: Machine::created(),
            instance_id: String::new(),
            floor: 0,
            main: Default::default(),
            configuration: Default::default(),
            note: String::new(),
            reason: String::new(),
            phase_since_ms: 1,
        }
    }

    #[test]
    fn records_survive_and_names_are_unique() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (record("a"), record("b"));
        let id = {
            let store = SqliteStore::open(dir.path()).unwrap();
            store.insert(&a).unwrap();
            store.insert(&b).unwrap();
            assert_eq!(store.insert(&record("a")), Err(StoreError::NameTaken));
            store.remove(b.id).unwrap();
            store.gateway_id()
        };
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(store.load().unwrap(), vec![a]);
        assert_eq!(store.gateway_id(), id);
    }

    #[test]
    fn generations_are_never_given_twice() {
        let dir = tempfile::tempdir().unwrap();
        let sandbox = Uuid::new_v4();
        let first = SqliteStore::open(dir.path()).unwrap().reserve(sandbox, 256).unwrap();
        let second = SqliteStore::open(dir.path()).unwrap().reserve(sandbox, 256).unwrap();
        assert_eq!((first, second), (1..257, 257..513));
    }

    #[test]
    fn a_store_of_the_first_schema_is_opened_and_brought_up() {
        let dir = tempfile::tempdir().unwrap();
        let (id, a) = (Uuid::new_v4(), record("a"));
        let old = Connection::open(path(dir.path())).unwrap();
        old.execute_batch(STEPS[0]).unwrap();
        old.execute("INSERT INTO gateway (id) VALUES (?1)", [id.to_string()]).unwrap();
        let row = params![a.id.to_string(), a.name, document(&a).unwrap()];
        old.execute("INSERT INTO sandboxes (id, name, record) VALUES (?1, ?2, ?3)", row).unwrap();
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        drop(old);
        for _ in 0..2 {
            let store = SqliteStore::open(dir.path()).unwrap();
            assert_eq!((store.gateway_id(), store.load().unwrap()), (id, vec![a.clone()]));
            assert_eq!(store.signing_keys().unwrap(), [""; 0]);
            let schema = store.connection().query_row("PRAGMA user_version", [], |row| row.get::<_, i32>(0));
            assert_eq!(schema, Ok(SCHEMA));
        }
    }

    #[test]
    fn signing_keys_are_known_until_another_one_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let known = || SqliteStore::open(dir.path()).unwrap().signing_keys().unwrap();
        let store = SqliteStore::open(dir.path()).unwrap();
        assert_eq!(known(), [""; 0]);
        store.settle_signing_key("b").unwrap();
        store.settle_signing_key("b").unwrap();
        store.allow_signing_key("a").unwrap();
        store.allow_signing_key("a").unwrap();
        assert_eq!(known(), ["b", "a"], "the one in use first");
        store.settle_signing_key("a").unwrap();
        assert_eq!(known(), ["a"]);
    }

    #[test]
    fn foreign_newer_and_damaged_files_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = path(dir.path());
        let refused = |bytes: &[u8]| {
            std::fs::write(&file, bytes).unwrap();
            let error = SqliteStore::open(dir.path()).unwrap_err();
            assert_eq!(std::fs::read(&file).unwrap(), bytes);
            error
        };
        assert!(matches!(refused(&[b'x'; 8192]), OpenError::Foreign(_)));

        drop(std::fs::remove_file(&file));
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(SqliteStore::open(dir.path()), Err(OpenError::Foreign(_))));

        std::fs::remove_file(&file).unwrap();
        drop(SqliteStore::open(dir.path()).unwrap());
        Connection::open(&file).unwrap().pragma_update(None, "user_version", SCHEMA + 1).unwrap();
        assert!(matches!(SqliteStore::open(dir.path()), Err(OpenError::Newer { found: 3, .. })));

        std::fs::remove_file(&file).unwrap();
        drop(SqliteStore::open(dir.path()).unwrap());
        let mut bytes = std::fs::read(&file).unwrap();
        let end = bytes.len();
        bytes[4096..end].fill(0xff);
        std::fs::write(&file, &bytes).unwrap();
        assert!(matches!(SqliteStore::open(dir.path()), Err(OpenError::Corrupt { .. })));
    }
}
