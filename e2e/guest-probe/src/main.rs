//! What tests run inside a guest, as one static program.
//!
//! As PID 1, in the place of the agent, it does what the last line of its own file says, which a test has appended:
//! `connections`, `exit`, `pour`, `sleep`, `share` or `true`; `agent OFFSET` leads to a real agent in the same file, beside
//! which it stays as root. As a program of the workload its argument says what to try.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "the answers are on the console, or on standard output")]

use std::process::ExitCode;
use std::thread::park;

use proto::version::{PROTOCOL, VERSION};

mod beside;
mod connections;
mod image;
mod lend;
mod notify;
mod pour;
mod share;
mod socket;
mod spawn;

/// Where the kernel has found this program when it is PID 1.
const INIT: &str = "/init.krun";

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return init();
    }
    match std::env::args().nth(1).as_deref() {
        // In the place of the agent it has to look like one to the gateway.
        Some("--version") => println!("openshell-agent {VERSION} (protocol {PROTOCOL})"),
        Some("vsock") => socket::attempt(),
        Some("notify") => {
            if let Err(error) = notify::say(std::env::args().nth(2).unwrap_or_default().as_bytes()) {
                eprintln!("guest-probe: failed to notify: {error}");
                return ExitCode::FAILURE;
            }
        }
        Some(verb @ ("lend" | "borrow")) => {
            let words: Vec<String> = std::env::args().skip(2).collect();
            let done = match (verb, &words[..]) {
                ("lend", [directory, socket]) => lend::lend(directory, socket),
                ("borrow", [socket, file, value]) => lend::borrow(socket, file, value),
                _ => Err(std::io::Error::other("lend DIRECTORY SOCKET, or borrow SOCKET FILE VALUE")),
            };
            if let Err(error) = done {
                eprintln!("guest-probe: failed to {verb}: {error}");
                return ExitCode::FAILURE;
            }
        }
        Some("pour") => pour::serve(),
        Some("spawn") => spawn::measure(),
        Some(beside::VERB) => beside::obey(),
        _ => {
            eprintln!("usage: guest-probe vsock | lend … | borrow … | pour | spawn | notify MESSAGE");
            return ExitCode::from(64);
        }
    }
    ExitCode::SUCCESS
}

fn init() -> ExitCode {
    let program = std::fs::read(INIT).unwrap_or_default();
    let last_line = program.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    println!("guest-probe: {}", String::from_utf8_lossy(last_line).chars().take(32).collect::<String>());
    let words = String::from_utf8_lossy(last_line);
    if let Some(offset) = words.strip_prefix("agent ").and_then(|offset| offset.parse().ok()) {
        // Before the last line stands the line break that makes it one.
        let end = program.trim_ascii_end().len() - last_line.len() - 1;
        println!("guest-probe: {}", beside::become_agent(&program, offset, end));
    }
    match last_line {
        b"exit" => return ExitCode::SUCCESS,
        b"connections" => connections::attempt(),
        b"pour" => pour::to_the_host(),
        b"share" => share::attempt(),
        b"true" => image::run_true(),
        _ => {}
    }
    loop {
        park();
    }
}
