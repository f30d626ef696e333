//! The control groups in which the workload lives, so that whatever it does leaves PID 1 processes to start and a
//! share of the processor.
//!
//! ```text
//! /sys/fs/cgroup            the agent: bound by nothing
//! └─ workload               pids.max: three quarters of what the kernel has
//!    ├─ main                pids.max: three quarters of that
//!    └─ exec                the same
//! ```
//!
//! Each level shares the processor by weight: the agent has as much as the whole workload where both want it, and
//! what is executed beside the main process as much as that one. So a fork bomb in the main process leaves heartbeats
//! their time and an exec its processes, and the other way round.

use std::fs;
use std::io;
use std::path::Path;

/// Where a kind of programs belongs.
pub const MAIN: &str = "/sys/fs/cgroup/workload/main";
/// See [`MAIN`].
pub const EXEC: &str = "/sys/fs/cgroup/workload/exec";

const ROOT: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";
const CONTROLLERS: &str = "+pids +cpu";

/// Something that could not be done: to which file, and why.
pub type Fault = (String, io::Error);

/// Makes them.
pub fn make() -> Result<(), Fault> {
    let kernel = at("/proc/sys/kernel/threads-max", number)?.min(at("/proc/sys/kernel/pid_max", number)?);
    write(ROOT, "cgroup.subtree_control", CONTROLLERS)?;
    make_bounded(WORKLOAD, part(kernel))?;
    write(WORKLOAD, "cgroup.subtree_control", CONTROLLERS)?;
    [MAIN, EXEC].into_iter().try_for_each(|group| make_bounded(group, part(part(kernel))))
}

/// Three quarters. The kernel itself sizes its bound by memory: about 2,000 processes for 256 MiB.
fn part(of: u64) -> u64 {
    (of / 4 * 3).max(1)
}

fn make_bounded(group: &str, processes: u64) -> Result<(), Fault> {
    at(group, |group| fs::create_dir(group))?;
    write(group, "pids.max", &processes.to_string())
}

fn number(path: &str) -> io::Result<u64> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}

fn write(group: &str, file: &str, value: &str) -> Result<(), Fault> {
    at(&format!("{group}/{file}"), |path| fs::write(path, value))
}

fn at<T>(path: &str, act: impl FnOnce(&str) -> io::Result<T>) -> Result<T, Fault> {
    act(path).map_err(|error| (path.to_owned(), error))
}

/// Moves this process there. A full group takes it, too: the bound is on forks.
pub fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests {
    use super::part;

    #[test]
    fn each_level_leaves_something_to_the_one_above() {
        for (kernel, workload, group) in [(1900, 1425, 1068), (32_768, 24_576, 18_432), (0, 1, 1)] {
            assert_eq!((part(kernel), part(part(kernel))), (workload, group));
        }
    }
}
