//! Filled by the rules branch.
