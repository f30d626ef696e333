//! The compute drivers.
