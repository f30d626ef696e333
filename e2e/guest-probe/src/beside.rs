//! Guest root beside the real agent: somebody in the guest who may do everything, and sets its clock.
//!
//! The agent stands in this program's own file, behind its own bytes. It becomes PID 1 as if it had been started by
//! the kernel; what was started before it stays. pivot_root takes this process along into the sandbox's root.

use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::Command;
use std::thread::park_timeout;
use std::time::Duration;

use nix::unistd::fexecve;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime, clock_settime};

use crate::INIT;

/// Argument with which this program is root's process.
pub(crate) const VERB: &str = "root";
/// The workload writes by how many seconds the clock is to be wrong; root answers by removing it.
const ORDER: &str = "/tmp/set-clock-by";
/// What root found and made, in seconds since the epoch.
const ANSWER: &str = "/tmp/clock-was-set";
const LOOK: Duration = Duration::from_millis(100);

/// Starts root's process, then becomes the agent that begins at `offset`. Returns only where that failed.
pub(crate) fn become_agent(program: &[u8], offset: usize, end: usize) -> String {
    match Command::new(INIT).arg(VERB).spawn() {
        Ok(_) => {}
        Err(error) => return format!("failed to start root's process: {error}"),
    }
    let run = || -> std::io::Result<()> {
        let agent = program.get(offset..end).unwrap_or_default();
        let file = memfd_create("agent", MemfdFlags::CLOEXEC)?;
        fs::File::from(file.try_clone()?).write_all(agent)?;
        let words = |words: Vec<Vec<u8>>| words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let arguments = words(std::env::args_os().map(OsStringExt::into_vec).collect())?;
        let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            [name.into_vec(), b"=".to_vec(), value.into_vec()].concat()
        };
        let environment = words(std::env::vars_os().map(variable).collect())?;
        match fexecve(&file, &arguments, &environment)? {}
    };
    match run() {
        Ok(()) => "the agent was not started".to_owned(),
        Err(error) => format!("failed to become the agent: {error}"),
    }
}

/// Root's process.
pub(crate) fn obey() -> ! {
    loop {
        if let Ok(order) = fs::read_to_string(ORDER)
            && let Ok(seconds) = order.trim().parse::<i64>()
        {
            let before = clock_gettime(ClockId::Realtime);
            let mut after = before;
            after.tv_sec += seconds;
            let set = clock_settime(ClockId::Realtime, after);
            let answer = format!("{} {} {set:?}\n", before.tv_sec, after.tv_sec);
            // The order is removed last: who waits for that finds the answer.
            let _ = fs::write(ANSWER, answer).and_then(|()| fs::remove_file(Path::new(ORDER)));
        }
        park_timeout(LOOK);
    }
}
