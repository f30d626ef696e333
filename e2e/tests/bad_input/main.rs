//! Bad input, bad directories and bad luck, with the real programs: one clear line that names the thing and the
//! remedy, the documented exit code, nothing half-created left behind and nothing lost.
//!
//! None of this needs a guest; what depends on the machine (usable KVM, being root) says when it did not run.

mod bench;
mod config;
mod directories;
mod keys;
mod processes;
mod requests;
mod store;
