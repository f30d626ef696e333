//! What identity costs inside of the gateway, next to the same thing without it: a part of `make bench`, which runs
//! this program and puts its rows into the one table.
//!
//! ```text
//! identity        a row of JSON per line on standard output, progress on standard error
//! ```
//!
//! Everything is put together from the gateway's own parts, in this process; identity directories are on a tmpfs.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the rows are the result")]

mod burst;
mod directories;
mod idle;
mod row;
mod rpc;
mod served;
mod single;
mod time;

#[path = "../../tests/api/driver.rs"]
#[allow(dead_code, reason = "nothing fails here")]
mod driver;
#[path = "../../tests/api/stage.rs"]
#[allow(dead_code, reason = "what is benchmarked needs less than what is tested")]
mod stage;
#[path = "../../tests/api/store.rs"]
#[allow(dead_code, reason = "nothing fails here")]
mod store;

use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    raise_descriptors();
    single::measure();
    idle::measure();
    directories::measure();
    burst::measure();
    let many = Builder::new_multi_thread().enable_all().build().map(|runtime| runtime.block_on(served::measure()));
    // One thread for both ends: what a call costs is then what it takes, and nothing hides behind another core.
    let one = Builder::new_current_thread().enable_all().build().map(|runtime| runtime.block_on(rpc::measure()));
    if let Err(error) = many.and(one) {
        eprintln!("identity: failed to make a runtime: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// An identity directory holds two. As many as this user may have.
fn raise_descriptors() {
    let most = 1 << 20;
    if setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: Some(most) }).is_err() {
        let files = getrlimit(Resource::Nofile);
        let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    }
}
