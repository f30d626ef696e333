//! The RPC services and their listeners.
//!
//! Every request goes through [`guard::Guarded`], which turns transport and bearer into a principal and holds it
//! against the rule of the RPC. Handlers find the principal in the request's extensions and never look at a bearer.

mod caller;
mod configuration;
mod console;
mod debug;
pub mod exec;
pub mod forward;
pub mod guard;
mod guest_services;
pub mod lifecycle;
pub mod listeners;
mod logs;
pub mod loopback;
pub mod reply;
mod secrets;
pub mod serve;
pub mod services;
mod ssh_sessions;
mod sync;
mod tokens;
