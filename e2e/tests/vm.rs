//! VM tests.
fn main() {}
