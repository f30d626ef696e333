//! Promises about identity that need no VM: real gateway, driver, keeper's protocol, tokens and sessions, with guests
//! that are processes (`fake-vmm`).

#![forbid(unsafe_code)]

mod attacks;
mod crashes;
mod directory;
mod stage;
