//! The agent: PID 1 of a sandbox.
//!
//! It boots the guest ([`boot`]), then lives until the sandbox ends ([`supervise`]): runs the main process and what is
//! executed beside it ([`workload`], [`services`], [`ssh`], [`sftp`]), reads the token that proves who it is ([`token`]),
//! and keeps its session with the gateway ([`session`]), which also takes what all of them say ([`logs`]).

#![deny(unsafe_code)]

pub mod boot;
pub mod console;
pub mod faults;
pub mod logs;
pub mod power;
pub mod services;
pub mod session;
pub mod sftp;
pub mod ssh;
pub mod supervise;
pub mod sys;
pub mod token;
pub mod workload;
