//! Signals to whole sessions. Every process of the workload that the agent starts leads a session of its own;
//! a shell with job control puts its jobs into groups, but not out of the session.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// The living processes of the session that `leader` leads. Its number is not given to others while one member lives; so
/// where the leader was `reaped` and there is a process with its number, that is another one, and the session is over.
pub fn session_members(leader: Pid, reaped: bool) -> Vec<Pid> {
    members(processes(), leader.as_raw_nonzero().get(), reaped)
}

fn members(processes: impl Iterator<Item = (i32, Stat)>, leader: i32, reaped: bool) -> Vec<Pid> {
    // The leader itself may not have come to make its session yet.
    let related: Vec<_> = processes.filter(|(pid, stat)| stat.session == leader || *pid == leader).collect();
    if reaped && related.iter().any(|(pid, _)| *pid == leader) {
        return vec![];
    }
    related.into_iter().filter(|(_, stat)| !stat.is_dead()).filter_map(|(pid, _)| Pid::from_raw(pid)).collect()
}

/// Whether any program but PID 1 is alive in this machine.
pub fn programs_alive() -> bool {
    processes().any(|(pid, stat)| stat.is_program(pid))
}

fn processes() -> impl Iterator<Item = (i32, Stat)> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // A name need not be text.
        let stat = fs::read(entry.path().join("stat")).ok()?;
        Some((pid, Stat::parse(&String::from_utf8_lossy(&stat))?))
    })
}

/// Of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    state: char,
    parent: i32,
    session: i32,
}

/// The first process, and the parent of the kernel's threads.
const INIT: i32 = 1;
const KTHREADD: i32 = 2;

impl Stat {
    /// Fields 3, 4 and 6. The name before them may contain anything, blanks and parentheses too.
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        Some(Self { state, parent, session: fields.nth(1)?.parse().ok()? })
    }

    fn is_dead(self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }

    fn is_program(self, pid: i32) -> bool {
        !self.is_dead() && pid != INIT && pid != KTHREADD && self.parent != KTHREADD
    }
}

/// Memory of this process that is resident, in KiB; 0 where `/proc` does not tell.
pub fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or_default()
}

/// How often this process has waited for something and was woken; 0 where the system does not tell.
pub fn wakeups() -> u64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF);
    usage.map_or(0, |usage| usage.voluntary_context_switches().try_into().unwrap_or(0))
}

/// Signals every process but this one. PID 1 alone may do that: it has no effect in any other process.
pub fn signal_everything(signal: nix::sys::signal::Signal) {
    if std::process::id() == 1 {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), signal);
    }
}

/// Whether any program is alive outside of the sessions in `spared`.
pub fn alive_beside(spared: &[Pid]) -> bool {
    programs_beside(spared).next().is_some()
}

/// Signals every program outside of the sessions in `spared`. PID 1 alone may do that.
pub fn signal_beside(spared: &[Pid], signal: Signal) {
    if std::process::id() == 1 {
        programs_beside(spared).for_each(|pid| {
            let _ = kill_process(pid, signal);
        });
    }
}

fn programs_beside(spared: &[Pid]) -> impl Iterator<Item = Pid> {
    let spared: Vec<i32> = spared.iter().map(|leader| leader.as_raw_nonzero().get()).collect();
    let beside = move |(pid, stat): &(i32, Stat)| {
        stat.is_program(*pid) && !spared.contains(&stat.session) && !spared.contains(pid)
    };
    processes().filter(beside).filter_map(|(pid, _)| Pid::from_raw(pid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_name() {
        assert_eq!(Stat::parse("7 (a) b) S 1 2 3 0"), Some(Stat { state: 'S', parent: 1, session: 3 }));
        assert_eq!(Stat::parse("7 (sh) Z 1 7 7 34816"), Some(Stat { state: 'Z', parent: 1, session: 7 }));
        assert_eq!(Stat::parse("7 sh"), None);
    }

    #[test]
    fn a_number_that_was_given_anew_is_no_session() {
        let stat = |state, session| Stat { state, parent: 1, session };
        let leader_gone = [(71, stat('S', 70)), (72, stat('Z', 70)), (90, stat('S', 90))];
        let pids = |processes: &[(i32, Stat)], reaped| -> Vec<i32> {
            members(processes.iter().copied(), 70, reaped).iter().map(|pid| pid.as_raw_nonzero().get()).collect()
        };
        assert_eq!(pids(&leader_gone, true), [71]);
        let leader_there = [(70, stat('S', 1)), (71, stat('S', 70))];
        assert_eq!(pids(&leader_there, false), [70, 71]);
        let given_anew = [(70, stat('S', 70)), (75, stat('S', 70))];
        assert_eq!(pids(&given_anew, true), [0; 0]);
    }

    #[test]
    fn a_program_is_neither_dead_nor_the_kernels_nor_init() {
        let is_program = |pid, stat: &str| Stat::parse(stat).unwrap().is_program(pid);
        assert!(is_program(70, "70 (sh) S 1 70 70 0"));
        assert!(is_program(71, "71 (sh) T 70 70 70 0"));
        assert!(!is_program(72, "72 (sh) Z 1 70 70 0"));
        assert!(!is_program(1, "1 (init.krun) S 0 0 0 0"));
        assert!(!is_program(2, "2 (kthreadd) S 0 0 0 0"));
        assert!(!is_program(9, "9 (kworker/0:1) I 2 0 0 0"));
    }
}
