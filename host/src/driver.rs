//! The compute drivers.

pub mod vm;
