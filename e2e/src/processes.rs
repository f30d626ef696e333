//! Processes of this machine, by the program that they run.

use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// Process ids and command lines of those that run `program`.
pub fn running(program: &Path) -> Vec<(u32, String)> {
    let all = std::fs::read_dir("/proc").expect("read /proc").flatten();
    all.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (std::fs::read_link(entry.path().join("exe")).ok()? == program).then_some(())?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

/// The parent of a process that runs.
pub fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// What a process holds open.
pub fn open_files(pid: u32) -> Vec<PathBuf> {
    let links = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    links.filter_map(|link| std::fs::read_link(link.path()).ok()).collect()
}

/// Where each thread of a process stands in the kernel: a line for its name and state, then its stack.
pub fn threads(pid: u32) -> String {
    let mut text = String::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let status = read("status");
        let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
        text += &format!("{}: {state}\n", read("comm").trim_end());
        text.extend(read("stack").lines().take(6).map(|line| format!("  {line}\n")));
    }
    text
}

/// Kills a process if it is still there.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Sends a signal to a process if it is still there.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        let _gone = kill_process(pid, signal);
    }
}
