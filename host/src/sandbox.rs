//! What a sandbox is, and who decides about it.

pub mod driver;
