//! The gateway's services over real unix sockets, with compute that is not there and agents that follow a script.
//!
//! [`stage::Stage`] puts the gateway together from its public parts; [`driver::FakeDriver`] takes the place of
//! microVMs, and [`agent::Agent`] that of the program in the guest.

mod agent;
mod driver;
mod forward;
mod guard;
mod identity;
mod lifecycle;
mod logs;
mod main_process;
mod relay;
mod session;
mod stage;
mod standard;
mod store;
mod versions;
mod walk;
mod warm;
