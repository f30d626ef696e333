//! Drives the real programs as a user would: a [`world::World`] is a gateway with directories of its own, and
//! whatever it started ends with it.

#![forbid(unsafe_code)]

pub mod api;
pub mod cut;
pub mod gateway;
pub mod processes;
pub mod programs;
pub mod pty;
pub mod wait;
pub mod world;
