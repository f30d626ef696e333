//! The reaper with real processes. A test process of its own, because it waits for every child there is.

#![forbid(unsafe_code)]

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use agent::workload::reaper::{Reaper, exited};
use rustix::process::{Pid, Signal, getpid, set_child_subreaper};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> Command {
    let mut command = Command::new("setsid");
    command.args(["sh", "-c", script]).stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "current_thread")]
async fn every_exit_arrives_where_it_belongs_and_orphans_are_reaped() {
    let reaper = Arc::new(Reaper::default());
    tokio::spawn({
        let reaper = reaper.clone();
        async move { reaper.run().await }
    });
    let test = async {
        // Many at once, all with codes of their own.
        let mut started: Vec<_> =
            (0..50).map(|code| (code, reaper.spawn(&mut shell(&format!("exit {code}"))).unwrap().1)).collect();
        for (code, exit) in &mut started {
            assert_eq!(exited(exit).await, *code);
        }

        let (pid, mut exit) = reaper.spawn(Command::new("sleep").arg("1000")).unwrap();
        reaper.signal_group(pid, Signal::TERM);
        assert_eq!(exited(&mut exit).await, 128 + 15);
        // Its number may be another's now.
        reaper.signal_group(pid, Signal::KILL);

        // A failed start leaves nothing behind.
        assert!(reaper.spawn(&mut Command::new("/no/such/program")).is_err());
        assert_eq!(*reaper.reaped().borrow(), 0);

        set_child_subreaper(Some(getpid())).unwrap();
        let (_, mut exit) = reaper.spawn(&mut shell("(exec 3>&-; sleep 0.1) & exit 0")).unwrap();
        assert_eq!(exited(&mut exit).await, 0);
        while children() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, test).await.expect("a process was never reaped");
}

fn children() -> usize {
    let path = format!("/proc/self/task/{}/children", Pid::as_raw_nonzero(getpid()));
    std::fs::read_to_string(path).unwrap_or_default().split_whitespace().count()
}
