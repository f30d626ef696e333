//! What survives a gateway: one SQLite file in its state directory. Never a token, never a key.

pub mod lock;
mod schema;
pub mod sqlite;
