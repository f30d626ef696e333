//! The command line. Everything is in [`host::command`].

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(host::command::main(std::env::args_os()))
}
