//! Signals to whole sessions. Every process of the workload that the agent starts leads a session of its own;
//! a shell with job control puts its jobs into groups, but not out of the session.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Sends `signal` to every process of the session that `leader` leads. A process that ended meanwhile is no failure:
/// the session's number is not given to others while one member lives.
pub fn signal_session(leader: Pid, signal: Signal) {
    for member in session_members(leader) {
        let _ = kill_process(member, signal);
    }
}

/// Whether any process of the session is alive.
pub fn session_alive(leader: Pid) -> bool {
    session_members(leader).next().is_some()
}

fn session_members(leader: Pid) -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (state, session) = state_and_session(&stat)?;
        // The leader itself may not have come to make its session yet.
        let leader = leader.as_raw_nonzero().get();
        ((session == leader || pid == leader) && state != 'Z').then(|| Pid::from_raw(pid)).flatten()
    })
}

/// Fields 3 and 6 of `/proc/PID/stat`. The name before them may contain anything, blanks and parentheses too.
fn state_and_session(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(2)?.parse().ok()?))
}

/// Memory of this process that is resident, in KiB; 0 where `/proc` does not tell.
pub fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or_default()
}

/// KILL to every process but this one. Only for PID 1 that powers off.
pub fn kill_everything() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_name() {
        assert_eq!(state_and_session("7 (a) b) S 1 2 3 0"), Some(('S', 3)));
        assert_eq!(state_and_session("7 (sh) Z 1 7 7 34816"), Some(('Z', 7)));
        assert_eq!(state_and_session("7 sh"), None);
    }
}
