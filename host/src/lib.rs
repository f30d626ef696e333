//! The gateway and the command line of OpenShell sandboxes.
//!
//! Dependencies point one way: `api → session → sandbox → {identity, rotation}`. Drivers and stores implement
//! traits that `sandbox` and `rotation` declare; only [`gateway`] names concrete ones.

#![forbid(unsafe_code)]

pub mod api;
pub mod atomic_file;
pub mod command;
pub mod config;
pub mod driver;
pub mod faults;
pub mod gateway;
pub mod hex;
pub mod identity;
pub mod quantity;
pub mod registration;
pub mod rotation;
pub mod sandbox;
pub mod secrets;
pub mod session;
pub mod status;
pub mod store;
pub mod tmpfs;
